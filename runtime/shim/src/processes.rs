//! Signals to processes, and looks at them and their cgroups.

use std::os::fd::AsFd as _;
use std::time::Duration;

use crate::descriptors::Cgroups;
use crate::lifecycle::{Held, InitState, SIGKILL, Session};

/// Longest wait of one kill for a v1 cgroup to freeze; output of other containers waits as well.
const FREEZE: Duration = Duration::from_millis(20);

/// Signals a child that was not reaped, so its number is its own.
///
/// # Errors
/// EINVAL for a signal that there is not; out of descriptors. That it has ended meanwhile is as good.
pub(crate) fn signal(pid: u32, signal: i32) -> std::io::Result<()> {
    let sent = sys::pidfd::open(pid).and_then(|fd| sys::pidfd::send_signal(fd.as_fd(), signal));
    sys::proc::unless_gone(sent).map(drop)
}

/// Whether it is a child of the shim, reaped or not.
pub(crate) fn is_child(pid: u32) -> bool {
    sys::proc::stat(pid).is_ok_and(|stat| stat.parent == std::process::id())
}

/// How a child that was not reaped has ended, if it is over ([`sys::proc::Stat::is_over`]).
pub(crate) fn over(pid: u32) -> Option<i32> {
    sys::proc::stat(pid).ok().filter(sys::proc::Stat::is_over).map(|stat| stat.code())
}

/// An init that was not reaped; `None` when it cannot be looked at now.
pub(crate) fn init_state(pid: u32) -> Option<InitState> {
    let stat = sys::proc::stat(pid).ok()?;
    let held = match stat.state {
        'T' => Held::Stopped,
        't' => Held::Traced,
        _ => Held::No,
    };
    Some(InitState { over: stat.is_over().then(|| stat.code()), executed: stat.has_executed(), held })
}

/// SIGKILL to all in a container's cgroup. Errors show by its not getting empty.
pub(crate) fn kill_cgroup(cgroups: &Cgroups) {
    let folders = cgroups.folders_with_processes();
    drop(sys::cgroup::kill_all(&folders, cgroups.freezer_folder(), cgroups.unified, FREEZE));
}

/// Whether nobody is in it. `patient`: those that a tracer holds on their way out count as gone.
pub(crate) fn is_empty(cgroups: &Cgroups, patient: bool) -> bool {
    cgroups.folders_with_processes().into_iter().all(|folder| {
        // What cannot be read now (out of descriptors) is looked at again.
        sys::cgroup::is_empty(folder).unwrap_or(false)
            || patient && sys::cgroup::only_held(folder).unwrap_or(false)
    })
}

/// Whether the kernel has killed a process of it for memory.
pub(crate) fn was_oom_killed(cgroups: &Cgroups) -> bool {
    let file = if cgroups.unified { "memory.events" } else { "memory.oom_control" };
    cgroups
        .memory_folder()
        .is_some_and(|folder| sys::cgroup::flat_key(folder, file, "oom_kill").is_ok_and(|count| count > 0))
}

/// Kills what runs of sessions in a container, and their leaders. Says of each how many processes were found, and
/// the code of a leader that is over. The container's processes are listed once, however many sessions there are.
pub(crate) fn kill_sessions(cgroups: Option<&Cgroups>, sessions: &[Session]) -> Vec<(u32, Option<i32>)> {
    // Session, and its place.
    let mut places: Vec<(u32, usize)> = sessions.iter().zip(0..).map(|(of, place)| (of.pid, place)).collect();
    places.sort_unstable();
    let mut seen = vec![(0_u32, None); sessions.len()];
    if let Some(folder) = cgroups.and_then(Cgroups::procs_folder) {
        // A folder that is gone has nobody in it.
        drop(sys::cgroup::processes(folder, |pid| {
            let Ok(fd) = sys::pidfd::open(pid) else { return };
            // After the descriptor was opened: what is read now is of that process, or it has ended.
            let Ok(stat) = sys::proc::stat(pid) else { return };
            let Ok(found) = places.binary_search_by_key(&stat.session, |(session, _)| *session) else {
                return;
            };
            let place = places.get(found).map_or(usize::MAX, |(_, place)| *place);
            if let Some((count, _)) = seen.get_mut(place).filter(|_| !stat.is_over()) {
                *count += 1;
                drop(sys::pidfd::send_signal(fd.as_fd(), SIGKILL));
            }
        }));
    }
    for (session, (_, code)) in sessions.iter().zip(&mut seen).filter(|(session, _)| session.unreaped) {
        drop(signal(session.pid, SIGKILL));
        *code = over(session.pid);
    }
    seen
}

/// Kills children that nobody knows: what a worker left that was stopped half-way. Returns whether there are any,
/// or it cannot be said now. Only for when no other worker is at work, whose children they might be.
///
/// Only those in the shim's own cgroup: what was made after the worker had joined the container's goes with
/// that, and what is in another container's is an orphan of it, which lives on.
pub(crate) fn kill_strays(known: impl Fn(u32) -> bool) -> bool {
    let children = match sys::proc::children() {
        Ok(children) => children,
        // A kernel that has no such list.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return false,
        Err(_) => return true,
    };
    let strange: Vec<u32> = children.into_iter().filter(|pid| !known(*pid)).collect();
    if strange.is_empty() {
        return false;
    }
    let Ok(own) = sys::proc::cgroups(std::process::id()) else { return true };
    let mut found = false;
    for pid in strange {
        if sys::proc::stat(pid).is_ok_and(|stat| stat.state == 'Z') {
            continue;
        }
        match sys::proc::cgroups(pid) {
            Ok(of_it) if of_it == own => {
                found = true;
                drop(signal(pid, SIGKILL));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(_) => found = true,
        }
    }
    found
}
