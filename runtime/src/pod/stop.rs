//! The work of StopContainer: stop signal, grace period, kill. It works without the shim too, which may be stopped, hang
//! on a disk, or have no connection: init is signalled by its pidfd, and the pidfd shows when init has ended.

use super::backoff;
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

/// Time limit for a request for which the shim only makes a system call. If the shim is silent, the daemon makes the
/// call itself.
const REQUEST: Duration = Duration::from_secs(2);
/// Time limit for the shim to reap processes that were killed. One that hangs in the kernel cannot be reaped.
const KILL: Duration = Duration::from_secs(10);
/// Number and interval of the checks whether a killed init can be reaped.
const CHECKS: u32 = 20;
const CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// Time limit for the shim to report the exit of an init that has ended.
const REPORT: Duration = Duration::from_secs(2);
/// Pauses between checks for the exit status of a container that has no process left.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What an operator can do if the grace period takes too long.
const GRACE: &str = "the container has not ended by its stop signal yet: it is killed at the end of the grace period; \
                     a second StopContainer with a shorter one ends it earlier";

/// One stop of one container.
#[derive(Debug)]
pub(crate) struct Stop {
    /// The connection to the shim, if there is one.
    pub(crate) client: Option<Client>,
    /// The shim's pid, or 0 if it is not known.
    pub(crate) shim_pid: u32,
    /// The container's record at the beginning of the stop.
    pub(crate) record: Arc<ContainerRecord>,
    /// The end of the grace period. It may become earlier.
    pub(crate) deadline: watch::Receiver<Instant>,
    /// Becomes true when its exit is recorded.
    pub(crate) exited: watch::Receiver<bool>,
}

impl Stop {
    /// Sends the stop signal, waits until the deadline, and kills. Returns the exit if the shim has not
    /// reported it.
    ///
    /// # Errors
    /// Processes survive SIGKILL; DeadlineExceeded if none is left and the exit is not found.
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

    /// A pidfd of init. `None` if init has ended, or if its pid may be that of another process by now.
    async fn find_init(&self) -> Option<AsyncFd<OwnedFd>> {
        let (record, shim_pid) = (self.record.clone(), self.shim_pid);
        let pod = self.record.pod.as_str();
        let found = lanes::run(lanes::kill(), pod, "find init", move || {
            find(&record, shim_pid).map_err(|error| Error::of(format!("look for pid {}", record.pid), error))
        });
        match found.await {
            Ok(init) => init.and_then(|init| watched(init, Interest::READABLE).ok()),
            Err(error) => {
                tracing::warn!(container = %self.record.id, error = %error.text(), "cannot find init");
                None
            }
        }
    }

    /// Sends the stop signal. If that fails, the error is logged, and SIGKILL follows at the end of the grace period.
    async fn signal(&self, init: Option<&AsyncFd<OwnedFd>>) {
        let (id, signal) = (&self.record.id, self.record.stop_signal);
        if let Some(init) = init {
            match sys::pidfd::send_signal(init.get_ref().as_fd(), signal) {
                Ok(()) => return,
                Err(error) => tracing::debug!(container = %id, %error, "stop signal not sent to init"),
            }
        }
        let Some(client) = &self.client else {
            tracing::warn!(container = %id, signal, "stop signal not sent: not possible by init's pidfd, and there is no connection to its shim");
            return;
        };
        let gently = Request::Kill { container: id.clone(), signal, all: false };
        if let Err(error) = client.done("the stop signal", gently, REQUEST).await {
            tracing::warn!(container = %id, signal, %error, "stop signal not sent");
        }
    }

    /// Waits until the exit is recorded, init has ended, or the grace period is over.
    async fn grace(&mut self, init: Option<&AsyncFd<OwnedFd>>) -> Grace {
        let _step = progress::enter("wait until it ends by the stop signal", GRACE);
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
        // Init has ended. The shim now kills the remaining processes and reports the exit, normally at once.
        if self.client.is_some() && timeout(REPORT, self.exited.wait_for(|exited| *exited)).await.is_ok() {
            return Grace::Exited;
        }
        self.client = None;
        Grace::Over
    }

    /// Asks the shim to kill all processes. Returns true if the exit is recorded; if not, the shim is not used any more.
    async fn kill_by_shim(&mut self, init: Option<&AsyncFd<OwnedFd>>) -> bool {
        let Some(client) = self.client.take() else { return false };
        let kill = Request::Kill { container: self.record.id.clone(), signal: 9, all: true };
        if let Err(error) = client.done("the kill", kill, REQUEST).await {
            tracing::warn!(container = %self.record.id, %error, "the shim did not kill the container: killing by cgroup");
            return *self.exited.borrow();
        }
        let _step =
            progress::enter("wait until the killed processes have ended", lanes::advice(lanes::kill()));
        // If init has ended and the shim does not report it, a tracer keeps the shim from reaping init.
        let unreaped = async {
            ended(init).await;
            tokio::time::sleep(REPORT).await;
        };
        tokio::select! {
            _ = self.exited.wait_for(|exited| *exited) => true,
            () = unreaped => false,
            () = tokio::time::sleep(KILL) => false,
        }
    }

    /// The exit of a container that has no process left; `None` if it is recorded. Repeated for a while, because a shim
    /// without a connection reaps init shortly before it writes the exit file: then neither kernel nor file has the exit.
    async fn find_exit(mut self, context: &Arc<Context>) -> Result<Option<Exit>, Error> {
        let _step = progress::enter("wait for the exit code", "");
        let until = Instant::now() + KILL;
        for attempt in 0.. {
            if let Some(exit) = self.read_exit(context).await? {
                return Ok(Some(exit));
            }
            let pause = backoff::pause(FIRST_PAUSE, attempt, LONGEST_PAUSE);
            if timeout(pause, self.exited.wait_for(|exited| *exited)).await.is_ok() {
                return Ok(None);
            }
            if Instant::now() >= until {
                break;
            }
        }
        let id = &self.record.id;
        let text = format!(
            "container {id}: its processes are gone, but its shim has not reported the exit within {KILL:?}; the stop can be repeated"
        );
        Err(Error::new(ErrorKind::DeadlineExceeded, text))
    }

    /// The exit from the shim's exit file, or from the kernel, which has it until init is reaped.
    async fn read_exit(&self, context: &Arc<Context>) -> Result<Option<Exit>, Error> {
        let (shared, record, shim_pid) = (Arc::clone(context), self.record.clone(), self.shim_pid);
        let pod = self.record.pod.as_str();
        let read = move || {
            let path = shared.layout.exit(&record.pod, &record.id);
            if let Ok(Some(stored)) = state::file::read::<ExitFacts>(&path, state::kind::EXIT) {
                return Ok(Some(exit::exit_of(&stored.data, now())));
            }
            let Some(code) = code(record.pid, shim_pid) else { return Ok(None) };
            let oom_killed = shared.cgroups.oom_kills(&record.cgroup).is_ok_and(|kills| kills > 0);
            let facts = ExitFacts { code, finished_at: now(), oom_killed, ..ExitFacts::default() };
            Ok(Some(exit::exit_of(&facts, now())))
        };
        lanes::run(lanes::kill(), pod, "read how the container ended", read).await
    }
}

/// How the grace period ended.
#[derive(Debug, PartialEq, Eq)]
enum Grace {
    /// The exit is recorded.
    Exited,
    /// Processes may be left, which must be killed.
    Over,
}

/// Resolves when init has ended, reaped or not.
async fn ended(init: Option<&AsyncFd<OwnedFd>>) {
    match init {
        // A pidfd stays readable. An error means that tokio is shutting down.
        Some(init) => drop(init.readable().await),
        None => std::future::pending().await,
    }
}

/// Opens a pidfd of init. The pid may have been reused, so the process must be in the container's cgroup, or be a zombie
/// whose parent is the shim. Blocking.
fn find(record: &ContainerRecord, shim_pid: u32) -> io::Result<Option<OwnedFd>> {
    if record.pid == 0 {
        return Ok(None);
    }
    let Some(process) = sys::pidfd::find(record.pid)? else { return Ok(None) };
    if zombie_of(record.pid, shim_pid) {
        return Ok(Some(process));
    }
    let Some(cgroups) = sys::proc::unless_gone(sys::proc::cgroups(record.pid))? else { return Ok(None) };
    // Init may have moved to a cgroup below its own.
    let cgroups = String::from_utf8_lossy(&cgroups);
    let mut parts = cgroups.lines().flat_map(|line| line.split('/'));
    Ok(parts.any(|part| part == record.id.as_str()).then_some(process))
}

/// The exit code of init from the kernel, which has it until init is reaped. Blocking.
pub(super) fn code(pid: u32, shim_pid: u32) -> Option<i32> {
    if pid == 0 || shim_pid == 0 {
        return None;
    }
    for _ in 0..CHECKS {
        match sys::proc::stat(pid) {
            Ok(stat) if stat.parent == shim_pid && stat.is_over() => return Some(stat.code()),
            // It has left its cgroup, and can be reaped shortly after that.
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
    use std::io::Read as _;
    use std::process::{Command, Stdio};

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

    /// A stop without a connection to the shim, and what its driver tells it.
    fn stop(record: ContainerRecord, grace: Duration) -> (Stop, watch::Sender<Instant>, watch::Sender<bool>) {
        let (deadline, exited) = (watch::Sender::new(Instant::now() + grace), watch::Sender::new(false));
        let stop = Stop {
            client: None,
            shim_pid: 0,
            record: Arc::new(record),
            deadline: deadline.subscribe(),
            exited: exited.subscribe(),
        };
        (stop, deadline, exited)
    }

    #[tokio::test]
    async fn the_stop_signal_and_the_grace_period_need_no_shim() {
        let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done";
        let mut child = Command::new("/bin/sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        let init = watched(sys::pidfd::open(child.id()).unwrap(), Interest::READABLE).unwrap();
        let (mut stop, _deadline, _exited) = stop(record(child.id()), Duration::from_secs(120));
        let before = Instant::now();
        stop.signal(Some(&init)).await;
        // What is left must be killed, but not before init has ended by itself.
        assert_eq!(stop.grace(Some(&init)).await, Grace::Over);
        assert!(before.elapsed() < Duration::from_secs(60), "{:?}", before.elapsed());
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn the_grace_period_is_kept_and_can_be_shortened() {
        let (mut kept, _deadline, _exited) = stop(record(0), Duration::from_secs(30));
        let before = Instant::now();
        assert_eq!(kept.grace(None).await, Grace::Over);
        assert_eq!(before.elapsed().as_secs(), 30);
        let (mut shortened, deadline, _exited) = stop(record(0), Duration::from_secs(3600));
        let before = Instant::now();
        let (outcome, ()) = tokio::join!(shortened.grace(None), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            deadline.send_replace(Instant::now() + Duration::from_secs(2));
        });
        assert_eq!((outcome, before.elapsed().as_secs()), (Grace::Over, 3));
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
