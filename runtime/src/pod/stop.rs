//! The work of StopContainer: stop signal, grace period, kill. It also works without the shim, which may be
//! stopped, hang on a disk, or be disconnected: init is signalled by pidfd, and the pidfd also shows its
//! exit.

use super::backoff::later;
use super::context::Context;
use super::exit;
use crate::clock::now;
use crate::error::{Error, ErrorKind};
use crate::lanes;
use crate::shims::{Client, watched};
use model::{ContainerRecord, Exit};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use wire::{ExitFacts, Request};

/// Time limit for a request that only makes a system call. The daemon does not wait longer for a silent shim,
/// because it can make the call itself.
const TOLD: Duration = Duration::from_secs(2);
/// Time limit for the shim to reap what it has killed, unless a process hangs in the kernel.
const KILL: Duration = Duration::from_secs(10);
/// Number and interval of the checks whether a killed process has ended.
const CHECKS: u32 = 20;
const CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// Time limit for the shim to report an exit that has happened.
const REPORT: Duration = Duration::from_secs(2);
/// Pauses between checks for the exit status of a container that has no process left.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// One stop of one container.
#[derive(Debug)]
pub(crate) struct Stop {
    /// The connection to the shim, if there is one.
    pub(crate) client: Option<Client>,
    /// The shim's pid, or 0 if it is not known.
    pub(crate) shim_pid: u32,
    /// The container's record at the beginning of the stop.
    pub(crate) record: Arc<ContainerRecord>,
    /// When to kill; may be moved to an earlier time.
    pub(crate) deadline: watch::Receiver<Instant>,
    /// Becomes true when its exit is recorded.
    pub(crate) exited: watch::Receiver<bool>,
}

impl Stop {
    /// Sends the stop signal, waits until the deadline, and kills. Returns the exit if the shim has not
    /// reported it.
    ///
    /// # Errors
    /// Processes survive SIGKILL.
    pub(crate) async fn run(mut self, context: &Arc<Context>) -> Result<Option<Exit>, Error> {
        let init = self.find_init().await;
        if *self.deadline.borrow() > Instant::now() {
            self.signal(init.as_ref()).await;
            if self.grace(init.as_ref()).await == Grace::Exited {
                return Ok(None);
            }
        }
        if *self.exited.borrow() || self.kill_by_shim(init.as_ref()).await {
            return Ok(None);
        }
        let (cgroups, leaf) = (context.cgroups.clone(), self.record.cgroup.clone());
        let kill = move || Ok(cgroups.kill_all(&leaf)?);
        lanes::run(lanes::kill(), self.record.pod.as_str(), "kill the container", kill).await?;
        // No process is left; only the shim's report is missing.
        self.find_exit(context).await
    }

    /// Opens a pidfd of init, if its pid is certainly not reused.
    async fn find_init(&self) -> Option<AsyncFd<OwnedFd>> {
        let (record, shim_pid) = (self.record.clone(), self.shim_pid);
        let pod = self.record.pod.as_str();
        let found = lanes::run(lanes::kill(), pod, "find init", move || {
            find(&record, shim_pid).map_err(|error| Error::of(format!("look for pid {}", record.pid), &error))
        });
        match found.await {
            Ok(init) => init.and_then(|init| watched(init, Interest::READABLE).ok()),
            Err(error) => {
                tracing::warn!(container = %self.record.id, %error, "cannot find init");
                None
            }
        }
    }

    /// Sends the stop signal. A failure is logged, and the grace period is still waited: SIGKILL follows at
    /// its end.
    async fn signal(&self, init: Option<&AsyncFd<OwnedFd>>) {
        let (id, signal) = (&self.record.id, self.record.stop_signal);
        if let Some(init) = init {
            match sys::pidfd::send_signal(init.get_ref().as_fd(), signal) {
                Ok(()) => return,
                Err(error) => tracing::debug!(container = %id, %error, "stop signal not sent to init"),
            }
        }
        let Some(client) = &self.client else {
            tracing::warn!(container = %id, signal, "stop signal not sent: init was not found, its shim is silent");
            return;
        };
        let gently = Request::Kill { container: id.clone(), signal, all: false };
        if let Err(error) = client.done("the stop signal", gently, TOLD).await {
            tracing::warn!(container = %id, signal, %error, "stop signal not sent");
        }
    }

    /// Waits until the deadline, or until init has ended.
    async fn grace(&mut self, init: Option<&AsyncFd<OwnedFd>>) -> Grace {
        let ended = ended(init);
        tokio::pin!(ended);
        loop {
            let until = *self.deadline.borrow_and_update();
            tokio::select! {
                _ = self.exited.wait_for(|exited| *exited) => return Grace::Exited,
                () = &mut ended => break,
                () = tokio::time::sleep_until(until) => return Grace::Over,
                changed = self.deadline.changed() => if changed.is_err() { return Grace::Over },
            }
        }
        // The shim now kills the remaining processes and reports, normally at once.
        if self.client.is_some() && timeout(REPORT, self.exited.wait_for(|exited| *exited)).await.is_ok() {
            return Grace::Exited;
        }
        self.client = None;
        Grace::Over
    }

    /// Has the shim kill all processes; returns true if it has reported the exit. A shim that fails to do so
    /// is not used any more.
    async fn kill_by_shim(&mut self, init: Option<&AsyncFd<OwnedFd>>) -> bool {
        let Some(client) = self.client.take() else { return false };
        let kill = Request::Kill { container: self.record.id.clone(), signal: 9, all: true };
        if let Err(error) = client.done("the kill", kill, TOLD).await {
            tracing::warn!(container = %self.record.id, %error, "the shim did not kill the container: killing by cgroup");
            return *self.exited.borrow();
        }
        // If init has ended without a report, a tracer may keep the shim from reaping it.
        let held = async {
            ended(init).await;
            tokio::time::sleep(REPORT).await;
        };
        tokio::select! {
            _ = self.exited.wait_for(|exited| *exited) => true,
            () = held => false,
            () = tokio::time::sleep(KILL) => false,
        }
    }

    /// The exit of a container that has no process left: from the shim's report, from its exit file, or from
    /// the kernel. A shim that works but cannot be reached reaps init shortly before it writes the file.
    async fn find_exit(mut self, context: &Arc<Context>) -> Result<Option<Exit>, Error> {
        let until = Instant::now() + KILL;
        for attempt in 0.. {
            if let Some(exit) = self.read_exit(context).await? {
                return Ok(Some(exit));
            }
            let pause = later(FIRST_PAUSE, attempt, LONGEST_PAUSE);
            if timeout(pause, self.exited.wait_for(|exited| *exited)).await.is_ok() {
                return Ok(None);
            }
            if Instant::now() >= until {
                break;
            }
        }
        let id = &self.record.id;
        let text = format!("container {id}: its processes are gone, but its shim has not reported the exit");
        Err(Error::new(ErrorKind::DeadlineExceeded, text))
    }

    /// The exit from the shim's exit file, or from the kernel as long as init is not reaped.
    async fn read_exit(&self, context: &Arc<Context>) -> Result<Option<Exit>, Error> {
        let (theirs, record, shim_pid) = (Arc::clone(context), self.record.clone(), self.shim_pid);
        let pod = self.record.pod.as_str();
        let read = move || {
            let path = theirs.layout.exit(&record.pod, &record.id);
            if let Ok(Some(stored)) = state::file::read::<ExitFacts>(&path, state::kind::EXIT) {
                return Ok(Some(exit::exit_of(&stored.data, now())));
            }
            let Some(code) = code(record.pid, shim_pid) else { return Ok(None) };
            let oom_killed = theirs.cgroups.oom_kills(&record.cgroup).is_ok_and(|kills| kills > 0);
            let facts = ExitFacts { code, finished_at: now(), oom_killed, ..ExitFacts::default() };
            Ok(Some(exit::exit_of(&facts, now())))
        };
        lanes::run(lanes::kill(), pod, "read how the container ended", read).await
    }
}

/// How the grace period ended.
#[derive(Debug, PartialEq, Eq)]
enum Grace {
    /// The shim has reported the exit.
    Exited,
    /// The remaining processes must be killed.
    Over,
}

/// Resolves when init has ended, reaped or not.
async fn ended(init: Option<&AsyncFd<OwnedFd>>) {
    match init {
        // A pidfd stays readable; an error means that the runtime is ending.
        Some(init) => drop(init.readable().await),
        None => std::future::pending().await,
    }
}

/// Opens a pidfd of init. The pid may have been reused, so the process must be in the container's cgroup, or
/// be a zombie of the shim. Blocking.
fn find(record: &ContainerRecord, shim_pid: u32) -> io::Result<Option<OwnedFd>> {
    if record.pid == 0 {
        return Ok(None);
    }
    let Some(process) = sys::pidfd::find(record.pid)? else { return Ok(None) };
    if zombie_of(record.pid, shim_pid) {
        return Ok(Some(process));
    }
    let Some(cgroups) = sys::proc::unless_gone(sys::proc::cgroups(record.pid))? else { return Ok(None) };
    // Init may be in a cgroup that it created below its own.
    let cgroups = String::from_utf8_lossy(&cgroups);
    let mut parts = cgroups.lines().flat_map(|line| line.split('/'));
    Ok(parts.any(|part| part == record.id.as_str()).then_some(process))
}

/// The exit code of init from the kernel, as long as init is not reaped. Blocking.
pub(super) fn code(pid: u32, shim_pid: u32) -> Option<i32> {
    if pid == 0 || shim_pid == 0 {
        return None;
    }
    for _ in 0..CHECKS {
        match sys::proc::stat(pid) {
            Ok(stat) if stat.parent == shim_pid && stat.is_over() => return Some(stat.code()),
            // It leaves its cgroup shortly before it can be reaped.
            Ok(stat) if stat.parent == shim_pid => std::thread::sleep(CHECK_INTERVAL),
            _ => return None,
        }
    }
    None
}

fn zombie_of(pid: u32, parent: u32) -> bool {
    pid != 0
        && parent != 0
        && sys::proc::stat(pid).is_ok_and(|stat| stat.state == 'Z' && stat.parent == parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{ContainerConfig, ContainerId, ContainerPhase, PodId};
    use std::process::Command;

    fn record(pid: u32) -> ContainerRecord {
        ContainerRecord {
            started_at: 2,
            phase: ContainerPhase::Running,
            pid,
            stop_signal: 15,
            ..ContainerRecord::new(
                ContainerId::from_random([7; 32]),
                PodId::from_random([9; 32]),
                ContainerConfig::default(),
                1,
            )
        }
    }

    #[test]
    fn a_process_with_a_reused_pid_is_not_signalled() {
        let own = std::process::id();
        assert!(find(&record(own), 0).unwrap().is_none());
        assert!(find(&record(0), own).unwrap().is_none());
        assert!(find(&record(4_194_305), own).unwrap().is_none());
    }

    #[test]
    fn exit_code_of_an_unreaped_init_is_read_from_the_kernel() {
        let own = std::process::id();
        for (line, expected) in [("exit 7", 7), ("kill -9 $$", 137)] {
            let mut child = Command::new("/bin/sh").args(["-c", line]).spawn().unwrap();
            let init = sys::pidfd::open(child.id()).unwrap();
            while !sys::pidfd::has_ended(init.as_fd()).unwrap() {
                std::thread::yield_now();
            }
            let record = record(child.id());
            assert!(find(&record, own).unwrap().is_some(), "{line}");
            assert_eq!(code(record.pid, own), Some(expected), "{line}");
            // A zombie of another parent is ignored.
            assert_eq!(code(record.pid, own + 1), None);
            child.wait().unwrap();
            assert_eq!(code(record.pid, own), None);
        }
    }
}
