//! Sends signals to processes, and examines them and their cgroups.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use crate::descriptors::Cgroups;
use crate::lifecycle::{InitState, SIGKILL, Session, Stopped};

/// How long one kill waits for a v1 cgroup to freeze. The loop does nothing else meanwhile.
const FREEZE: Duration = Duration::from_millis(20);

/// Signals a child that is not reaped, so its pid cannot have been reused. SIGKILL needs no descriptor, so that a shim
/// without a free one can still end its pod.
///
/// # Errors
/// EINVAL for an invalid signal; no free descriptor. A child that has ended is not an error.
pub(crate) fn signal(pid: u32, signal: i32) -> std::io::Result<()> {
    let sent = if signal == SIGKILL {
        sys::signal::kill(pid)
    } else {
        sys::pidfd::open(pid).and_then(|fd| sys::pidfd::send_signal(fd.as_fd(), signal))
    };
    sys::proc::unless_gone(sent).map(drop)
}

/// Whether a process that a worker has reported was not reaped. Its pidfd decides: another child of the shim may have
/// its pid by now. Without one (the shim had no free descriptor for it) the pid decides. True if it cannot be examined:
/// a child that runs must not count as reaped.
pub(crate) fn is_unreaped(pidfd: Option<OwnedFd>, pid: u32) -> bool {
    let Some(pidfd) = pidfd else {
        let parent = sys::proc::unless_gone(sys::proc::stat(pid).map(|stat| stat.parent));
        return parent.map_or(true, |parent| parent == Some(std::process::id()));
    };
    sys::proc::unless_gone(sys::pidfd::send_signal(pidfd.as_fd(), 0)).map_or(true, |sent| sent.is_some())
}

/// The exit code of a child that is not reaped, if it has ended ([`sys::proc::Stat::is_over`]).
pub(crate) fn code_if_over(pid: u32) -> Option<i32> {
    sys::proc::stat(pid).ok().filter(sys::proc::Stat::is_over).map(|stat| stat.code())
}

/// The state of an init that is not reaped; `None` if it cannot be examined now.
pub(crate) fn init_state(pid: u32) -> Option<InitState> {
    let stat = sys::proc::stat(pid).ok()?;
    let stopped = match stat.state {
        'T' => Stopped::BySignal,
        't' => Stopped::ByTracer,
        _ => Stopped::No,
    };
    Some(InitState { code: stat.is_over().then(|| stat.code()), executed: stat.has_executed(), stopped })
}

/// Kills all processes in a container's cgroup. Errors are ignored; they show in later checks.
pub(crate) fn kill_cgroup(cgroups: &Cgroups) {
    let folders = cgroups.folders_with_processes();
    drop(sys::cgroup::kill_all(&folders, cgroups.freezer_folder(), cgroups.unified, FREEZE));
}

/// Whether it has no processes. `skip_unreapable`: ended processes that a tracer keeps from being reaped do not
/// count.
pub(crate) fn is_empty(cgroups: &Cgroups, skip_unreapable: bool) -> bool {
    cgroups.folders_with_processes().into_iter().all(|folder| {
        // If it cannot be read now (no free descriptor), it is checked again later.
        sys::cgroup::is_empty(folder).unwrap_or(false)
            || skip_unreapable && sys::cgroup::only_unreapable(folder).unwrap_or(false)
    })
}

/// Whether a process of it was OOM-killed.
pub(crate) fn was_oom_killed(cgroups: &Cgroups) -> bool {
    let file = if cgroups.unified { "memory.events" } else { "memory.oom_control" };
    cgroups
        .memory_folder()
        .is_some_and(|folder| sys::cgroup::flat_key(folder, file, "oom_kill").is_ok_and(|count| count > 0))
}

/// Kills the processes of sessions in a container, and their leaders. Returns for each session the number of processes
/// that were found, at least 1 if not all processes could be examined (no free descriptor, too many cgroups), and the
/// leader's exit code, if that has ended. The processes in the container's cgroup and below it are listed once for all
/// sessions.
pub(crate) fn kill_sessions(cgroups: Option<&Cgroups>, sessions: &[Session]) -> Vec<(u32, Option<i32>)> {
    // Session ids with their indices.
    let mut indices: Vec<(u32, usize)> =
        sessions.iter().zip(0..).map(|(of, index)| (of.pid, index)).collect();
    indices.sort_unstable();
    let mut results = vec![(0_u32, None); sessions.len()];
    let folders = cgroups.map(Cgroups::folders_with_processes).unwrap_or_default();
    let (mut seen, mut incomplete): (Vec<u32>, _) = (Vec::new(), false);
    for folder in &folders {
        let listed = sys::cgroup::processes_below(*folder, |pid| {
            // 0 stands for a process of another PID namespace, which is in none of the sessions.
            if pid == 0 {
                return;
            }
            // A process that is in several hierarchies counts once.
            if folders.len() > 1 {
                let Err(place) = seen.binary_search(&pid) else { return };
                seen.insert(place, pid);
            }
            let opened = sys::pidfd::open(pid);
            // Read after the pidfd was opened: if the process has not ended, this is its data.
            let examined = opened.and_then(|fd| Ok((fd, sys::proc::stat(pid)?)));
            let (fd, stat) = match sys::proc::unless_gone(examined) {
                Ok(Some(examined)) => examined,
                Ok(None) => return,
                Err(_) => {
                    incomplete = true;
                    return;
                }
            };
            let Ok(found) = indices.binary_search_by_key(&stat.session, |(session, _)| *session) else {
                return;
            };
            let index = indices.get(found).map_or(usize::MAX, |(_, index)| *index);
            if let Some((count, _)) = results.get_mut(index).filter(|_| !stat.is_over()) {
                *count += 1;
                drop(sys::pidfd::send_signal(fd.as_fd(), SIGKILL));
            }
        });
        incomplete |= listed.is_err();
    }
    if incomplete {
        for (count, _) in &mut results {
            *count = (*count).max(1);
        }
    }
    for (session, (_, code)) in sessions.iter().zip(&mut results).filter(|(session, _)| session.unreaped) {
        drop(signal(session.pid, SIGKILL));
        *code = code_if_over(session.pid);
    }
    results
}

/// Kills unknown children, which an interrupted worker left. Returns whether there are any; true if that
/// cannot be checked now. Call it only while no other worker is running, because they could be its children.
///
/// Only children in the shim's own cgroup are killed: processes created after the worker joined the
/// container's cgroup end with that cgroup, and those in another container's cgroup are its orphans, which
/// must continue.
pub(crate) fn kill_strays(known: impl Fn(u32) -> bool) -> bool {
    let children = match sys::proc::children() {
        Ok(children) => children,
        // The kernel does not provide this list.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return false,
        Err(_) => return true,
    };
    let unknown: Vec<u32> = children.into_iter().filter(|pid| !known(*pid)).collect();
    if unknown.is_empty() {
        return false;
    }
    let Ok(own) = sys::proc::cgroups(std::process::id()) else { return true };
    let mut found = false;
    for pid in unknown {
        if sys::proc::stat(pid).is_ok_and(|stat| stat.state == 'Z') {
            continue;
        }
        match sys::proc::cgroups(pid) {
            Ok(of_it) if of_it == own => {
                found = true;
                drop(signal(pid, SIGKILL));
            }
            Ok(_) => {}
            Err(error) => found |= sys::proc::unless_gone::<()>(Err(error)).is_err(),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::Serial;
    use std::fs::{File, create_dir, write};
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;
    use std::time::Instant;

    #[test]
    fn sessions_are_killed_wherever_the_container_can_have_moved_them() {
        let mut leader = Command::new("setsid").args(["sleep", "1000"]).spawn().unwrap();
        let pid = leader.id();
        let until = Instant::now() + Duration::from_secs(60);
        while sys::proc::stat(pid).unwrap().session != pid {
            assert!(Instant::now() < until, "setsid has not started a session");
            std::thread::sleep(Duration::from_millis(1));
        }
        // A privileged container: the leader is below its cgroup in one hierarchy, and in it in another, where there is
        // also a process of another PID namespace. A third hierarchy does not know it.
        let temp = tempfile::tempdir().unwrap();
        for (name, procs) in [
            ("a", String::new()),
            ("a/below", format!("{pid}\n")),
            ("b", format!("0\n{pid}\n")),
            ("c", String::new()),
        ] {
            create_dir(temp.path().join(name)).unwrap();
            write(temp.path().join(name).join("cgroup.procs"), procs).unwrap();
        }
        let folders = ["a", "b", "c"].map(|name| OwnedFd::from(File::open(temp.path().join(name)).unwrap()));
        let folders = Vec::from(folders);
        let cgroups = Cgroups { folders, search_all: true, freezer: Some(2), ..Cgroups::default() };
        // It counts as reaped, so it is killed only if it is listed.
        let session = Session { exec: Serial(1), pid, unreaped: false };
        let results = kill_sessions(Some(&cgroups), &[session]);
        if results != [(1, None)] {
            leader.kill().unwrap();
        }
        let status = leader.wait().unwrap();
        assert_eq!((results.as_slice(), status.signal()), ([(1, None)].as_slice(), Some(SIGKILL)));
    }
}
