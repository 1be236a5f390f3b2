//! The phases of a container, each with the data that is needed only in it.
//!
//! ```text
//!            Created       Adopted          Start           execve
//! Creating ──────────► Adopting ──► Created ──────► Starting ──────► Running
//!    │ failed, late,      │            │               │                │
//!    │ killed             │            └───────┬───────┴────────────────┘
//!    ▼                    │                    ▼ init reaped, or ended
//! Undoing ◄───────────────┘                 Ending    its cgroup is killed until it is empty
//!    │ no process left                         ▼
//!    ▼ the failure is reported             Recording  the exit file is written
//!  Gone ◄────── Forget ────── Exited ◄─────────┘ the exit is reported
//! ```

use wire::{ContainerState, ErrorKind, ExitFacts, Failure, Reply};

use super::checks::{UntilEmpty, UntilExecve, UntilReaped};
use super::context::Context;
use super::id::Requester;
use super::worker::{Process, Worker};
use crate::failure::refusal;

/// Exit code of a container that could not be started.
const START_FAILED: i32 = 128;
/// A memory limit that suffices to create any container, in bytes: the memory of worker and init, with a
/// reserve.
const MIN_MEMORY: u64 = 8 << 20;
/// Longest start error that is kept, in bytes of its JSON form. With this limit a snapshot of full tables
/// fits into the queue for a daemon (`conn::MAX_QUEUED`).
pub(crate) const MAX_START_ERROR: usize = 1024;

/// The phase of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A worker creates it.
    Creating(Worker),
    /// Init exists; its namespaces and its terminal are being opened. Before the result, only packets of its
    /// worker can follow that were sent earlier.
    Adopting { requester: Requester, worker: Option<u32>, process: Process, reply: Reply },
    /// Init waits for the start request.
    Created(Init),
    /// Init was started; its execve is awaited.
    Starting { init: Init, requester: Requester, checks: UntilExecve, execve: Execve },
    /// Init has called execve.
    Running { init: Init, started_at: i64 },
    /// Init has ended; remaining processes in its cgroup are being killed.
    Ending(Ending),
    /// Creation failed; its processes are being killed, then the failure is reported.
    Undoing(Undoing),
    /// No process is left; the exit file is being written.
    Recording { pid: u32, facts: ExitFacts, failed: Option<(Requester, Failure)> },
    /// It has exited.
    Exited { pid: u32, facts: ExitFacts },
    /// To be removed from the table.
    Gone,
}

/// What is known about the execve of an init that was told to start. Its start pipe tells: execve closes it, and init
/// writes there why it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Execve {
    /// The start pipe is open: init has neither called execve nor ended.
    Pending,
    /// The start pipe was closed without an error: init has called execve, or is ending. It could not be examined yet.
    Unclear,
    /// The start pipe was closed without an error, and init had not called execve: it is ending.
    NotCalled,
    /// Init's error, or why it was killed. It ends by itself; the reply waits until it is reaped.
    Failed(String),
}

/// Init, which is not reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Init {
    pub(crate) pid: u32,
    /// It was killed, or was seen to have ended: when to check whether it has ended but cannot be reaped.
    pub(crate) ending: Option<UntilReaped>,
}

impl Init {
    /// From now on it is checked whether it has ended but cannot be reaped.
    pub(crate) fn check_end(&mut self, now: u64) -> &mut UntilReaped {
        self.ending.get_or_insert(UntilReaped::new(now))
    }

    /// Kills it.
    pub(crate) fn kill(&mut self, cx: &mut Context) {
        cx.kill(self.pid);
        self.check_end(cx.time.ms);
    }
}

/// A container that is ending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) pid: u32,
    pub(crate) facts: ExitFacts,
    /// It was being started.
    pub(crate) start: Option<Unstarted>,
    pub(crate) checks: UntilEmpty,
}

/// A start request whose init has ended: before execve, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unstarted {
    pub(crate) requester: Requester,
    /// Whether init had called execve, if known.
    pub(crate) executed: Option<bool>,
    /// Init's error, or why it was killed.
    pub(crate) error: Option<String>,
}

impl Unstarted {
    /// The error for the reply and for the container's exit.
    pub(crate) fn failed(self, facts: &mut ExitFacts) -> Failure {
        let message = self.error.unwrap_or_else(|| {
            let memory = if facts.oom_killed { ": its memory limit is too small" } else { "" };
            format!("init ended with code {} before execve{memory}", facts.code)
        });
        let message = cut_start_error(&message);
        facts.code = START_FAILED;
        facts.start_error = Some(message.clone());
        refusal(ErrorKind::StartFailed, "start", message)
    }
}

/// A creation that is being undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Undoing {
    pub(crate) requester: Requester,
    pub(crate) failure: Failure,
    /// The worker, until it is reaped.
    pub(crate) worker: Option<u32>,
    /// Init, if it exists, until it is reaped.
    pub(crate) init: Option<u32>,
    pub(crate) checks: UntilEmpty,
}

impl Undoing {
    /// The failure to report. Worker and init do not notice that their memory limit is too small; it shows as
    /// other errors.
    pub(crate) fn failed(&self, oom_killed: bool) -> Failure {
        let failure = &self.failure;
        if failure.kind != ErrorKind::Internal || !oom_killed {
            return failure.clone();
        }
        let message = format!(
            "too small to create a container, {MIN_MEMORY} bytes are enough ({}: {})",
            failure.stage, failure.message
        );
        refusal(ErrorKind::Invalid, "memory_limit_in_bytes", message)
    }
}

impl Phase {
    /// The state as reported to the daemon.
    pub(crate) fn state(&self) -> ContainerState {
        let by_start = |at: i64| {
            if at > 0 { ContainerState::Running { started_at: at } } else { ContainerState::Created }
        };
        match self {
            Self::Creating(_) | Self::Adopting { .. } | Self::Undoing(_) | Self::Gone => {
                ContainerState::Creating
            }
            Self::Created(_) | Self::Starting { .. } => ContainerState::Created,
            Self::Running { started_at, .. } => ContainerState::Running { started_at: *started_at },
            // It counts as exited when its cgroup is empty and its exit file is written.
            Self::Ending(Ending { facts, .. }) | Self::Recording { facts, .. } => by_start(facts.started_at),
            Self::Exited { facts, .. } => ContainerState::Exited(facts.clone()),
        }
    }

    /// Init's pid as reported to the daemon; 0 until there is one.
    pub(crate) fn pid(&self) -> u32 {
        match self {
            Self::Creating(_) | Self::Undoing(Undoing { init: None, .. }) | Self::Gone => 0,
            Self::Undoing(Undoing { init: Some(pid), .. }) => *pid,
            Self::Adopting { process, .. } => process.pid,
            Self::Created(init) | Self::Starting { init, .. } | Self::Running { init, .. } => init.pid,
            Self::Ending(Ending { pid, .. }) | Self::Recording { pid, .. } | Self::Exited { pid, .. } => *pid,
        }
    }

    /// Init, unless its end is known.
    pub(crate) fn init_mut(&mut self) -> Option<&mut Init> {
        match self {
            Self::Created(init) | Self::Starting { init, .. } | Self::Running { init, .. } => Some(init),
            _ => None,
        }
    }

    /// Whether init exists, as far as is known.
    pub(crate) fn has_init(&self) -> bool {
        matches!(self, Self::Created(_) | Self::Starting { .. } | Self::Running { .. })
    }

    /// Whether its init exists, as far as is known, and was not killed.
    pub(crate) fn is_up(&self) -> bool {
        match self {
            Self::Created(init) | Self::Starting { init, .. } | Self::Running { init, .. } => {
                init.ending.is_none()
            }
            _ => false,
        }
    }

    /// Init's pid, and when to check it (monotonic ms).
    pub(crate) fn init_timer(&self) -> Option<(u32, u64)> {
        match self {
            Self::Created(Init { pid, ending: Some(checks) })
            | Self::Starting { init: Init { pid, ending: Some(checks) }, .. }
            | Self::Running { init: Init { pid, ending: Some(checks) }, .. } => Some((*pid, checks.at)),
            Self::Starting { init, checks, .. } => Some((init.pid, checks.at)),
            _ => None,
        }
    }

    /// Init is being checked; sets the time of the next check.
    pub(crate) fn postpone(&mut self, now: u64) {
        if let Self::Starting { checks, .. } = self {
            checks.again(now);
        }
        if let Some(checks) = self.init_mut().and_then(|init| init.ending.as_mut()) {
            checks.again(now);
        }
    }

    /// When its next timer is due (monotonic ms).
    pub(crate) fn timer(&self) -> Option<u64> {
        match self {
            Self::Creating(worker) => Some(worker.deadline),
            Self::Ending(Ending { checks, .. }) | Self::Undoing(Undoing { checks, .. }) => Some(checks.at),
            other => other.init_timer().map(|(_, at)| at),
        }
    }
}

/// The beginning of a text, cut to at most [`MAX_START_ERROR`] bytes as a JSON string without quotes.
pub(crate) fn cut_start_error(text: &str) -> String {
    let mut room = MAX_START_ERROR;
    let fits = text.chars().take_while(|c| {
        let size = match c {
            '"' | '\\' => 2,
            c if c.is_ascii_control() => 6,
            c => c.len_utf8(),
        };
        room.checked_sub(size).inspect(|left| room = *left).is_some()
    });
    fits.collect()
}
