//! Requests, replies and events, and which of them carry descriptors.

use crate::LogPlan;
use model::{ContainerId, ExecId, PodId, User};
use serde::{Deserialize, Serialize};

/// Version of the protocol. Raised when something is added that a peer must know of.
pub const PROTOCOL: u32 = 1;
/// Largest payload, bytes. Plans travel in memfds, so messages are small; a list of groups is the longest part.
pub const MAX_FRAME: usize = 64 * 1024;
/// Most descriptors on one frame: plan, namespace, stdio and one cgroup folder per v1 hierarchy.
/// (The kernel's own limit is 253.)
pub const MAX_FDS: usize = 32;
/// Most containers that a shim holds, dead ones that were not forgotten included: kubelet keeps few.
pub const MAX_CONTAINERS: usize = 256;
/// `kind` of the exit record files (`state::file`).
pub const EXIT_RECORD_KIND: &str = "exit";

/// What a shim is told at exec, as JSON in a memfd. Descriptors by number: 3 listening socket,
/// 4 folder of exit records (`shims/<pod>/exits`), 5 this memfd, 6 the sealed pause binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimInit {
    /// Protocol version of the daemon that started it.
    pub protocol: u32,
    /// Its pod.
    pub pod: PodId,
    /// Folder below which log paths are opened; made (0755) when absent; empty for none. The shim
    /// opens it before it leaves the host's mount namespace.
    pub log_directory: String,
    /// Folders whose `tasks` (v1) or `cgroup.procs` (v2) the shim joins with "0" before anything else.
    pub cgroups: Vec<String>,
    /// Wanted oom_score_adj; clamped when the host forbids it.
    pub oom_score_adj: i32,
}

/// One frame's payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// First frame of a connection, from the shim.
    Hello(Hello),
    /// What the shim holds, one entry a frame.
    Snapshot(Snapshot),
    /// The snapshot is complete; from here on events follow.
    SnapshotEnd,
    /// Daemon to shim.
    Request(Request),
    /// Shim to daemon; the header's number is the request's.
    Reply(Reply),
    /// Shim to daemon, unasked.
    Event(Event),
}

/// Who the shim is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`] of the shim.
    pub protocol: u32,
    /// Version of its build.
    pub build: String,
    /// Its pod.
    pub pod: PodId,
    /// Its pid in the host's PID namespace.
    pub pid: u32,
    /// What it can do beyond protocol 1, by the names in [`feature`]. A daemon asks for nothing else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

impl Hello {
    /// Whether the shim can do this; `name` is one of [`feature`].
    pub fn has(&self, name: &str) -> bool {
        self.features.iter().any(|feature| feature == name)
    }
}

/// Names of what was added to protocol 1. Each is listed in [`Hello::features`] by a shim that has it.
pub mod feature {
    /// [`super::Event::Started`] is sent.
    pub(super) const STARTED_EVENT: &str = "started-event";
    /// Plans with unknown fields or variants are refused. A shim without it skips them, so it must be given
    /// plans of its own time only.
    pub const STRICT_PLANS: &str = "strict-plans";
    /// [`super::Request::Exec::deadline_ms`] is kept. A shim without it skips the field, and the daemon alone
    /// ends the exec.
    pub(super) const EXEC_DEADLINE: &str = "exec-deadline";
    /// All that this build has.
    pub const ALL: [&str; 3] = [STARTED_EVENT, STRICT_PLANS, EXEC_DEADLINE];
}

/// One thing a shim holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Snapshot {
    /// Pause was started; `exited` once it is gone.
    Pause {
        /// Pid in the host's PID namespace.
        pid: u32,
        /// Wait status as code (128+n for signals), when gone.
        exited: Option<i32>,
    },
    /// A container that was created and not forgotten.
    Container {
        /// Which.
        container: ContainerId,
        /// Where it is.
        state: ContainerState,
        /// Pid of init.
        pid: u32,
    },
    /// An exec whose process lives. Its streams are gone with the old connection; it can be killed.
    Exec {
        /// As given by the daemon that started it.
        exec: ExecId,
        /// In which container.
        container: ContainerId,
    },
}

/// A container as the shim sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum ContainerState {
    /// The worker is at work.
    Creating,
    /// Init waits for start.
    Created,
    /// Init has exec'd.
    Running {
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// Init was reaped and the cgroup is empty.
    Exited(ExitFacts),
    /// A state of a later version, as a daemon reads it that was downgraded. Init lives.
    Unknown,
}

// A derived one refuses unknown variants (`serde(other)` takes no content), and the daemon would lose the whole
// pod for one container of it.
impl<'de> Deserialize<'de> for ContainerState {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct State;
        impl<'de> serde::de::Visitor<'de> for State {
            type Value = ContainerState;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the state of a container")
            }

            fn visit_str<E>(self, name: &str) -> Result<ContainerState, E> {
                Ok(match name {
                    "Creating" => ContainerState::Creating,
                    "Created" => ContainerState::Created,
                    _ => ContainerState::Unknown,
                })
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<ContainerState, A::Error> {
                #[derive(Deserialize)]
                struct Running {
                    started_at: i64,
                }
                let name: String = map.next_key()?.ok_or_else(|| serde::de::Error::custom("no state"))?;
                Ok(match name.as_str() {
                    "Running" => {
                        let Running { started_at } = map.next_value()?;
                        ContainerState::Running { started_at }
                    }
                    "Exited" => ContainerState::Exited(map.next_value()?),
                    _ => {
                        map.next_value::<serde::de::IgnoredAny>()?;
                        ContainerState::Unknown
                    }
                })
            }
        }
        deserializer.deserialize_any(State)
    }
}

/// How a container ended: content of its exit record, written before the event is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExitFacts {
    /// 0..=255, 128+n for signal n.
    pub code: i32,
    /// Nanoseconds since the epoch; 0 when it never ran.
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// oom_kill of its leaf cgroup was not 0 at the end.
    pub oom_killed: bool,
    /// Set when start failed: what execve said.
    pub start_error: Option<String>,
}

/// Daemon to shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Starts pause. Descriptors: memfd of a [`crate::PausePlan`], then the cgroup folders its plan
    /// names, in that order. Answer: [`Reply::PauseStarted`], with the network namespace when it is new.
    StartPause,
    /// Creates a container. Descriptors: memfd of a [`crate::ContainerPlan`], the mount namespace that
    /// kubelet lives in, then the cgroup folders. Answer: [`Reply::Created`].
    Create {
        /// Its id.
        container: ContainerId,
        /// The worker is killed after this many milliseconds.
        deadline_ms: u64,
        /// Output; none discards it. (Here and not in the plan, because the resident shim parses no plans.)
        log: Option<LogPlan>,
        /// Its stdio is a terminal of its own.
        terminal: bool,
        /// Keep stdin open for attach; else it is /dev/null.
        stdin: bool,
    },
    /// Lets init go on to execve; answered when it has exec'd or failed ([`ErrorKind::StartFailed`]; the
    /// container is then exited with code 128).
    Start {
        /// Which.
        container: ContainerId,
    },
    /// Sends a signal to init (or, with `all`, kills everything in the cgroup with SIGKILL). Done when
    /// sent; an exited container is no error.
    Kill {
        /// Which.
        container: ContainerId,
        /// Kernel number.
        signal: i32,
        /// Everything in its cgroup.
        all: bool,
    },
    /// Starts a process. Descriptors: memfd of an [`crate::ExecPlan`]; without terminal stdin, stdout and
    /// stderr, with one none (the answer carries the pty master). Answered when it has exec'd or failed
    /// ([`ErrorKind::ExecFailed`]); [`Event::ExecExited`] follows.
    Exec {
        /// Unique on this connection.
        exec: ExecId,
        /// Which container; must be running.
        container: ContainerId,
        /// Its session is killed after this many milliseconds, as by [`Request::KillExec`], whether or not a
        /// daemon is there then. None: never. (Feature `exec-deadline`.)
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline_ms: Option<u64>,
    },
    /// Kills the whole session of an exec with SIGKILL until none of it is left. Gone already is no error.
    KillExec {
        /// Which.
        exec: ExecId,
    },
    /// Opens the log file anew by its path; answered when the new file exists. On error no file was made
    /// and the old one stays in use.
    ReopenLog {
        /// Which.
        container: ContainerId,
    },
    /// The container is removed: an exited one is dropped from the table and its exit record deleted.
    Forget {
        /// Which.
        container: ContainerId,
    },
    /// Kills every container, exec and pause, reaps them, answers, and leaves when the daemon closes or
    /// sends [`Request::Shutdown`].
    StopPod,
    /// Leave. Refused ([`ErrorKind::Busy`]) while a process of the pod lives.
    Shutdown,
    /// Something of a later version.
    #[serde(other)]
    Unknown,
}

/// Shim to daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing to say but that it is done.
    Done,
    /// Answer to [`Request::StartPause`].
    PauseStarted {
        /// Pid in the host's PID namespace.
        pid: u32,
    },
    /// Answer to [`Request::Create`].
    Created {
        /// Pid of init in the host's PID namespace.
        pid: u32,
        /// Who it will run as, resolved in its rootfs.
        user: User,
        /// Home of that user in the image's passwd, `/` when unknown; becomes HOME where none was set.
        home: String,
    },
    /// Answer to [`Request::Start`].
    Started {
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// Answer to [`Request::Exec`].
    ExecStarted {
        /// Pid in the host's PID namespace.
        pid: u32,
    },
    /// It failed and left nothing behind.
    Failed(Failure),
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What the daemon branches on.
    pub kind: ErrorKind,
    /// Named step, for example `rootfs` or `volume /var/run/x`.
    pub stage: String,
    /// For people: what, where, and the kernel's word.
    pub message: String,
    /// errno where there is one, else 0.
    pub errno: i32,
}

/// Classes of failure that the daemon tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// No such container, exec or pause.
    NotFound,
    /// The object's state forbids it.
    WrongState,
    /// The plan asks for something that cannot be: unknown user, a source that is not shared, a target
    /// outside the rootfs.
    Invalid,
    /// execve of init failed.
    StartFailed,
    /// execve of an exec failed.
    ExecFailed,
    /// Deadline passed; the worker was killed.
    Timeout,
    /// Processes live.
    Busy,
    /// Not known to this shim: the request, or something that its plan asks for.
    Unsupported,
    /// A table is full: there are as many containers or execs as one shim holds. Some must end first.
    Exhausted,
    /// The kernel or libcontainer said no; also what a class of a later version is read as.
    #[serde(other)]
    Internal,
}

/// Shim to daemon, unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A container ended; its exit record is written.
    Exited {
        /// Which.
        container: ContainerId,
        /// How.
        facts: ExitFacts,
    },
    /// Init of a container has exec'd. Sent to whichever daemon is connected then, before the reply to
    /// [`Request::Start`] if that one asked for it; a snapshot taken before says [`ContainerState::Created`].
    /// (Feature `started-event`.)
    Started {
        /// Which.
        container: ContainerId,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// An exec's process was reaped.
    ExecExited {
        /// Which.
        exec: ExecId,
        /// 0..=255, 128+n for signal n.
        code: i32,
    },
    /// Pause is gone: the sandbox is not ready any more.
    PauseExited {
        /// 0..=255, 128+n for signal n.
        code: i32,
    },
    /// Something an operator should know, for example a log file that cannot be written.
    Warning {
        /// Which container, if one.
        container: Option<ContainerId>,
        /// What.
        message: String,
    },
    /// Something of a later version.
    #[serde(other)]
    Unknown,
}
