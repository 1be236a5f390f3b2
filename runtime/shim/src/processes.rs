//! Sends signals to processes, and examines them and their cgroups.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use crate::descriptors::Cgroups;
use crate::lifecycle::{InitState, SIGKILL, Session, Stopped};

/// How long one kill waits for a v1 cgroup to freeze. The loop does nothing else meanwhile.
const FREEZE: Duration = Duration::from_millis(20);
/// Number of ancestors of a process that are looked at. As pids are used again, those that were read may form a circle.
const MAX_GENERATIONS: usize = 256;

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

/// Kills the processes of sessions in a container, and their leaders. A descendant of one of these that has started a
/// session of its own belongs to them, as long as its ancestors live: one whose parent has ended has detached itself and is
/// left alone. Returns for
/// each session the number of processes that were found, at least 1 if not all processes could be examined (no free
/// descriptor, too many cgroups), and the leader's exit code, if that has ended. The processes in the container's cgroup
/// and below it are listed once for all sessions.
pub(crate) fn kill_sessions(cgroups: Option<&Cgroups>, sessions: &[Session]) -> Vec<(u32, Option<i32>)> {
    // Session ids with their indices.
    let mut indices: Vec<(u32, usize)> =
        sessions.iter().zip(0..).map(|(of, index)| (of.pid, index)).collect();
    indices.sort_unstable();
    let mut results = vec![(0_u32, None); sessions.len()];
    // All are listed before the first is killed: its children would get another parent.
    let (all, mut incomplete) = list(cgroups);
    for listed in &all {
        let Some(index) = session_of(*listed, &all, &indices) else { continue };
        let opened = sys::pidfd::open(listed.pid);
        // Read after the pidfd was opened: if it was started at the same time, it is the process that was listed.
        let examined = opened.and_then(|fd| Ok((fd, sys::proc::stat(listed.pid)?)));
        match sys::proc::unless_gone(examined) {
            Ok(Some((fd, stat))) if stat.started == listed.started && !stat.is_over() => {
                if let Some((count, _)) = results.get_mut(index) {
                    *count += 1;
                    drop(sys::pidfd::send_signal(fd.as_fd(), SIGKILL));
                }
            }
            Ok(_) => {}
            Err(_) => incomplete = true,
        }
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

/// A process of a container.
#[derive(Debug, Clone, Copy)]
struct Listed {
    pid: u32,
    parent: u32,
    session: u32,
    started: u64,
}

/// The processes in a container's cgroup and below it, sorted by pid, and whether some could not be examined.
fn list(cgroups: Option<&Cgroups>) -> (Vec<Listed>, bool) {
    let folders = cgroups.map(Cgroups::folders_with_processes).unwrap_or_default();
    let (mut pids, mut incomplete) = (Vec::new(), false);
    for folder in folders {
        incomplete |= sys::cgroup::processes_below(folder, |pid| pids.push(pid)).is_err();
    }
    // A process that is in several hierarchies counts once. 0 stands for a process of another PID namespace, which is in
    // none of the sessions.
    pids.sort_unstable();
    pids.dedup();
    pids.retain(|pid| *pid != 0);
    let mut all = Vec::with_capacity(pids.len());
    for pid in pids {
        match sys::proc::unless_gone(sys::proc::stat(pid)) {
            Ok(Some(stat)) => {
                all.push(Listed { pid, parent: stat.parent, session: stat.session, started: stat.started })
            }
            Ok(None) => {}
            Err(_) => incomplete = true,
        }
    }
    (all, incomplete)
}

/// The index of the session to which a process belongs by itself or by an ancestor. `all` is sorted by pid, `indices` by
/// session.
fn session_of(process: Listed, all: &[Listed], indices: &[(u32, usize)]) -> Option<usize> {
    let mut at = process;
    for _ in 0..MAX_GENERATIONS {
        if let Ok(found) = indices.binary_search_by_key(&at.session, |(session, _)| *session) {
            return indices.get(found).map(|(_, index)| *index);
        }
        let parent = all.binary_search_by_key(&at.parent, |listed| listed.pid).ok()?;
        let parent = *all.get(parent)?;
        // One that is younger is not its parent: the number was used again.
        if parent.started > at.started {
            return None;
        }
        at = parent;
    }
    None
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
        // The leader has a child with a session of its own.
        let script = "setsid sleep 1000 & wait";
        let mut leader = Command::new("setsid").args(["sh", "-c", script]).spawn().unwrap();
        let pid = leader.id();
        let until = Instant::now() + Duration::from_secs(60);
        let child = loop {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
            let child = children.split_whitespace().next().and_then(|child| child.parse().ok());
            let leads = |pid| sys::proc::stat(pid).is_ok_and(|stat| stat.session == pid);
            if let Some(child) = child.filter(|child| leads(pid) && leads(*child)) {
                break child;
            }
            assert!(Instant::now() < until, "setsid has not started sessions");
            std::thread::sleep(Duration::from_millis(1));
        };
        // A privileged container: the leader is below its cgroup in one hierarchy, and in it in another, where there is
        // also a process of another PID namespace. A third hierarchy does not know it.
        let temp = tempfile::tempdir().unwrap();
        for (name, procs) in [
            ("a", String::new()),
            ("a/below", format!("{pid}\n")),
            ("b", format!("0\n{pid}\n{child}\n")),
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
        if results != [(2, None)] {
            leader.kill().unwrap();
            drop(sys::signal::kill(child));
        }
        let status = leader.wait().unwrap();
        assert_eq!((results.as_slice(), status.signal()), ([(2, None)].as_slice(), Some(SIGKILL)));
        // It was reparented: not to this process, which cannot wait for it.
        while sys::proc::stat(child).is_ok_and(|stat| !stat.is_over()) {
            assert!(Instant::now() < until, "the child was not killed");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn descendants_belong_to_a_session_unless_they_have_detached() {
        let of = |pid, parent, session| Listed { pid, parent, session, started: u64::from(pid) };
        let all = [
            of(1, 900, 1),
            of(10, 900, 10),
            of(11, 10, 10),
            // A session of its own, and its child.
            of(12, 11, 12),
            of(13, 12, 13),
            // Its parent has ended, so it is a child of init.
            of(14, 1, 14),
            // Not a child of any that are listed, but in the session.
            of(15, 1, 10),
            of(20, 900, 20),
            of(21, 20, 21),
            // As if pids were used again while they were listed.
            of(30, 31, 30),
            of(31, 30, 31),
            // The parent that is listed is younger: it has the pid of the true one.
            Listed { started: 5, ..of(40, 11, 40) },
        ];
        let indices = [(10, 1), (20, 0)];
        let found = all.map(|listed| (listed.pid, session_of(listed, &all, &indices)));
        let of_first = [10, 11, 12, 13, 15].map(|pid| (pid, Some(1)));
        let of_second = [20, 21].map(|pid| (pid, Some(0)));
        let of_none = [1, 14, 30, 31, 40].map(|pid| (pid, None));
        let mut wanted = [&of_first[..], &of_second, &of_none].concat();
        wanted.sort_unstable();
        assert_eq!(found.as_slice(), wanted);
    }
}
