//! oom_score_adj of the processes in a cgroup (proc_pid_oom_score_adj(5)).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open, openat};

use super::processes_below;
use crate::proc::{nearest_oom_score_adj, unless_gone};

/// Maximum number of rounds. Each finds the processes that were forked during the one before.
const ROUNDS: usize = 4;
/// Maximum number of processes whose folders in /proc are open at once.
const BATCH: usize = 256;

/// Sets oom_score_adj to `to`, or the nearest allowed value, for the processes in the cgroup and below it that have the
/// value `from`: those that have inherited it. A process that has chosen another value keeps it. Returns the value in
/// effect; `from` if no process had it. If processes are forked all the time, some may keep the old
/// value.
///
/// # Errors
/// As for [`processes_below`]; no /proc.
pub fn change_oom_score_adj(dir: BorrowedFd<'_>, from: i32, to: i32) -> io::Result<i32> {
    let mut effective = from;
    for _ in 0..ROUNDS {
        let mut changed = false;
        let pids: Vec<u32> = members(dir)?.into_iter().collect();
        for batch in pids.chunks(BATCH) {
            for process in open_members(dir, batch)? {
                // Gone since it was listed: its folder stays open and has no files any more.
                let Some(Some(set)) = unless_gone(change(&process, from, to))? else { continue };
                changed |= set != from;
                effective = set;
            }
        }
        if !changed {
            break;
        }
    }
    Ok(effective)
}

fn members(dir: BorrowedFd<'_>) -> io::Result<BTreeSet<u32>> {
    let mut pids = BTreeSet::new();
    processes_below(dir, |pid| {
        if pid != 0 {
            pids.insert(pid);
        }
    })?;
    Ok(pids)
}

/// Opens the folders in /proc of those pids that belong to the cgroup. The kernel may have given a pid to a process
/// elsewhere since it was listed: so the cgroup is listed again when the folders, which stand for one process each, are
/// open.
fn open_members(dir: BorrowedFd<'_>, pids: &[u32]) -> io::Result<Vec<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = |pid: u32| open(format!("/proc/{pid}"), flags, Mode::empty()).map_err(io::Error::from);
    let mut opened = Vec::with_capacity(pids.len());
    for pid in pids {
        if let Some(process) = unless_gone(folder(*pid))? {
            opened.push((*pid, process));
        }
    }
    let members = members(dir)?;
    Ok(opened.into_iter().filter(|(pid, _)| members.contains(pid)).map(|(_, process)| process).collect())
}

/// The value in effect for a process that had `from`; `None` for one with another value.
fn change(process: &OwnedFd, from: i32, to: i32) -> io::Result<Option<i32>> {
    let file = |flags: OFlags| -> io::Result<File> {
        Ok(openat(process.as_fd(), "oom_score_adj", flags | OFlags::CLOEXEC, Mode::empty())?.into())
    };
    let read = || {
        let mut text = String::new();
        file(OFlags::RDONLY)?.read_to_string(&mut text)?;
        text.trim().parse::<i32>().map_err(io::Error::other)
    };
    if read()? != from {
        return Ok(None);
    }
    let write = |value: i32| file(OFlags::WRONLY)?.write_all(value.to_string().as_bytes());
    nearest_oom_score_adj(to, read, write).map(Some)
}
