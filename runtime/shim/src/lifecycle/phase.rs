//! Where a container is, with what is needed only there.
//!
//! ```text
//!            Created       Adopted          Start           execve
//! Creating ──────────► Adopting ──► Created ──────► Starting ──────► Running
//!    │ failed, late,      │            │               │                │
//!    │ killed             │            └───────┬───────┴────────────────┘
//!    ▼                    │                    ▼ init reaped, or over
//! Undoing ◄───────────────┘                 Ending    its cgroup is killed until it is empty
//!    │ nothing is left                         ▼
//!    ▼ the failure is answered             Recording  the exit record is written
//!  Gone ◄────── Forget ────── Exited ◄─────────┘ the exit is told
//! ```

use wire::{ContainerState, ErrorKind, ExitFacts, Failure, Reply};

use super::context::Context;
use super::id::Requester;
use super::look::Look;
use super::worker::{Process, Worker};
use crate::failure::refusal;

/// Code of a container that could not be started.
const START_FAILED: i32 = 128;
/// A memory limit under which any container can be made, bytes: what worker and init take, with room.
const LEAST_MEMORY: u64 = 8 << 20;
/// Longest start error that is kept, as JSON writes it. With it a snapshot of full tables fits what may wait for a
/// daemon (`conn::MAX_QUEUED`).
pub(crate) const MAX_START_ERROR: usize = 1024;

/// Where a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A worker makes it.
    Creating(Worker),
    /// It is made; its namespaces and its terminal are being opened. The result is the next input.
    Adopting { requester: Requester, worker: Option<u32>, process: Process, reply: Reply },
    /// Init waits.
    Created(Init),
    /// Init was told to go on; its execve is awaited.
    Starting { init: Init, requester: Requester, look: Look, said: Option<String>, pipe_closed: bool },
    /// Init has called execve.
    Running { init: Init, started_at: i64 },
    /// Init is gone; what it left in its cgroup is being killed.
    Ending(Ending),
    /// Creation failed; what it left is being killed, then the failure is answered.
    Undoing(Undoing),
    /// Nothing is left; the exit record is being written.
    Recording { pid: u32, facts: ExitFacts, failed: Option<(Requester, Failure)> },
    /// Over.
    Exited { pid: u32, facts: ExitFacts },
    /// To be taken out of the table.
    Gone,
}

/// Init, which was not reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Init {
    pub(crate) pid: u32,
    /// SIGKILL was sent to it: when to look whether it is over but cannot be reaped.
    pub(crate) killed: Option<Look>,
}

impl Init {
    pub(crate) fn note_killed(&mut self, now: u64) {
        self.killed.get_or_insert(Look::at_killed(now));
    }

    pub(crate) fn kill(&mut self, cx: &mut Context) {
        Process::new(self.pid, None).kill(cx);
        self.note_killed(cx.time.ms);
    }
}

/// An end that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) pid: u32,
    pub(crate) facts: ExitFacts,
    /// It was being started.
    pub(crate) start: Option<Unstarted>,
    pub(crate) look: Look,
}

/// A start that its init did not live to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unstarted {
    pub(crate) requester: Requester,
    pub(crate) executed: Option<bool>,
    /// Why, in init's words.
    pub(crate) said: Option<String>,
}

impl Unstarted {
    /// What is answered, and noted as the container's end.
    pub(crate) fn failed(self, facts: &mut ExitFacts) -> Failure {
        let message = self.said.unwrap_or_else(|| {
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
    /// Init, if one was made, until it is reaped.
    pub(crate) init: Option<u32>,
    pub(crate) look: Look,
}

impl Undoing {
    /// What is answered. The worker or init does not know when its memory was too small, and what it left unsaid
    /// shows as something else.
    pub(crate) fn failed(&self, oom_killed: bool) -> Failure {
        let failure = &self.failure;
        if failure.kind != ErrorKind::Internal || !oom_killed {
            return failure.clone();
        }
        let message = format!(
            "too small for a container to be made in it, {LEAST_MEMORY} bytes are enough ({}: {})",
            failure.stage, failure.message
        );
        refusal(ErrorKind::Invalid, "memory_limit_in_bytes", message)
    }
}

impl Phase {
    /// As the daemon is told.
    pub(crate) fn state(&self) -> ContainerState {
        let unless_started = |at: i64| {
            if at > 0 { ContainerState::Running { started_at: at } } else { ContainerState::Created }
        };
        match self {
            Self::Creating(_) | Self::Adopting { .. } | Self::Undoing(_) | Self::Gone => {
                ContainerState::Creating
            }
            Self::Created(_) | Self::Starting { .. } => ContainerState::Created,
            Self::Running { started_at, .. } => ContainerState::Running { started_at: *started_at },
            // Not over before its cgroup is empty and its record is written.
            Self::Ending(Ending { facts, .. }) | Self::Recording { facts, .. } => {
                unless_started(facts.started_at)
            }
            Self::Exited { facts, .. } => ContainerState::Exited(facts.clone()),
        }
    }

    /// Init's pid, as the daemon was told; 0 until there is one.
    pub(crate) fn pid(&self) -> u32 {
        match self {
            Self::Creating(_) | Self::Undoing(Undoing { init: None, .. }) | Self::Gone => 0,
            Self::Undoing(Undoing { init: Some(pid), .. }) => *pid,
            Self::Adopting { process, .. } => process.pid,
            Self::Created(init) | Self::Starting { init, .. } | Self::Running { init, .. } => init.pid,
            Self::Ending(Ending { pid, .. }) | Self::Recording { pid, .. } | Self::Exited { pid, .. } => *pid,
        }
    }

    /// Init, while it was not seen to end.
    pub(crate) fn init_mut(&mut self) -> Option<&mut Init> {
        match self {
            Self::Created(init) | Self::Starting { init, .. } | Self::Running { init, .. } => Some(init),
            _ => None,
        }
    }

    /// Whether its init lives and was not killed.
    pub(crate) fn thrives(&self) -> bool {
        match self {
            Self::Created(init) | Self::Starting { init, .. } | Self::Running { init, .. } => {
                init.killed.is_none()
            }
            _ => false,
        }
    }

    /// When to look at init, and its pid.
    pub(crate) fn init_timer(&self) -> Option<(u32, u64)> {
        match self {
            Self::Created(Init { pid, killed: Some(look) })
            | Self::Starting { init: Init { pid, killed: Some(look) }, .. }
            | Self::Running { init: Init { pid, killed: Some(look) }, .. } => Some((*pid, look.at)),
            Self::Starting { init, look, .. } => Some((init.pid, look.at)),
            _ => None,
        }
    }

    /// Init is being looked at: again later.
    pub(crate) fn postpone(&mut self, now: u64) {
        if let Self::Starting { look, .. } = self {
            look.start_again(now);
        }
        if let Some(look) = self.init_mut().and_then(|init| init.killed.as_mut()) {
            look.killed_again(now);
        }
    }

    /// When something is to be done without being asked (monotonic ms).
    pub(crate) fn timer(&self) -> Option<u64> {
        match self {
            Self::Creating(worker) => Some(worker.deadline),
            Self::Ending(Ending { look, .. }) | Self::Undoing(Undoing { look, .. }) => Some(look.at),
            other => other.init_timer().map(|(_, at)| at),
        }
    }
}

/// The beginning of a text that takes at most [`MAX_START_ERROR`] bytes as a JSON string, quotes not counted.
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
