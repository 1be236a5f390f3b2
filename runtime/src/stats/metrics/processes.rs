//! Reads the processes of a container.

use crate::stats::parse;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

/// How many processes one call looks at: each costs about 10 µs. A container may start any number, and a node has 32,768
/// pids unless it is configured for more.
const MAX_PROCESSES: usize = 16_384;
/// How many descriptors of one container are examined. Only its link tells whether a descriptor is a socket; to read one
/// takes about 1 µs.
const MAX_LINKS: usize = 16_384;
/// How many descriptors one call examines: those of eight such containers, in 0.15 s.
const MAX_LINKS_OF_CALL: usize = 8 * MAX_LINKS;

/// What one call for metrics may still look at.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(super) processes: usize,
    pub(super) links: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { processes: MAX_PROCESSES, links: MAX_LINKS_OF_CALL }
    }
}

/// The processes of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Processes {
    /// How many.
    pub count: u64,
    /// Their open descriptors; `None` if the budget is used up, or if a process does not let this daemon look at it.
    pub descriptors: Option<u64>,
    /// Those that are sockets; `None` as well if there are more descriptors than are examined.
    pub sockets: Option<u64>,
    /// Soft limit of open files of the container's first process; `None` if it has none, or if the process is gone.
    pub open_files: Option<u64>,
}

/// Reads the processes in a cgroup and in those below it. A process that ends meanwhile has no descriptors. Its pid can be
/// used again before it is read here; then this counts the descriptors of another process.
pub(super) fn read(cgroup: BorrowedFd<'_>, init: u32, budget: &mut Budget) -> io::Result<Processes> {
    let mut pids = Vec::new();
    let mut count = 0;
    sys::cgroup::processes_below(cgroup, |pid| {
        count += 1;
        // 0 stands for a process outside this daemon's PID namespace. Memory for pids is bounded as the budget is.
        if pid != 0 && pids.len() < MAX_PROCESSES {
            pids.push(pid);
        }
    })?;
    let is_complete = pids.len() as u64 == count && pids.len() <= budget.processes;
    budget.processes = budget.processes.saturating_sub(pids.len());
    let (descriptors, sockets) = if is_complete { descriptors(&pids, budget) } else { (None, None) };
    let limits = pids.contains(&init).then(|| fs::read_to_string(format!("/proc/{init}/limits")).ok());
    Ok(Processes {
        count,
        descriptors,
        sockets,
        open_files: limits.flatten().and_then(|limits| parse::open_files(&limits)),
    })
}

/// How many descriptors the processes have, and how many of these are sockets.
fn descriptors(pids: &[u32], budget: &mut Budget) -> (Option<u64>, Option<u64>) {
    let limit = budget.links.min(MAX_LINKS);
    let mut links = limit;
    let (mut all, mut sockets) = (Some(0), Some(0));
    for pid in pids {
        // A process that may not be examined makes both unknown.
        let (more, more_sockets) = of_process(*pid, &mut links).unwrap_or_default();
        all = all.zip(more).map(|(sum, more)| sum + more);
        sockets = sockets.zip(more_sockets).map(|(sum, more)| sum + more);
        if all.is_none() {
            break;
        }
    }
    budget.links -= limit - links;
    (all, sockets)
}

/// The descriptors of a process and the sockets among them. `None` if it may not be examined. Linux 6.2 and newer tell the
/// number of descriptors as the size of the folder; for older ones they are counted, as long as `links` lasts.
fn of_process(pid: u32, links: &mut usize) -> Option<(Option<u64>, Option<u64>)> {
    let folder = format!("/proc/{pid}/fd");
    let entries = match sys::proc::unless_gone(fs::read_dir(&folder)) {
        Ok(Some(entries)) => entries,
        Ok(None) => return Some((Some(0), Some(0))),
        Err(error) => {
            tracing::debug!(pid, %error, "cannot read the descriptors of a process");
            return None;
        }
    };
    let size = fs::metadata(&folder).map_or(0, |facts| facts.len());
    let told = (size > 0).then_some(size);
    let (mut all, mut sockets) = (0, 0);
    for entry in entries.flatten() {
        let Some(left) = links.checked_sub(1) else { return Some((told, None)) };
        *links = left;
        all += 1;
        let link = fs::read_link(entry.path());
        sockets +=
            u64::from(link.is_ok_and(|link| link.as_os_str().as_encoded_bytes().starts_with(b"socket:")));
    }
    Some((Some(all), Some(sockets)))
}
