//! Requests, replies and events, and which of them carry descriptors.

use crate::failure::Failure;
use crate::plan::LogPlan;
use model::{ContainerId, ExecId, PodId, User};
use serde::{Deserialize, Serialize};

/// Version of the protocol. Increased when something is added that a peer must know.
pub const PROTOCOL: u32 = 1;
/// Largest payload in bytes. Messages are small, because plans travel in memfds; a list of groups is the
/// longest part.
pub const MAX_FRAME: usize = 64 * 1024;
/// Maximum number of descriptors on one frame; most are on a create: plan, namespace and one cgroup folder per v1
/// hierarchy. `sys::scm`, which passes them, has the same limit. (The kernel's own limit is 253.)
pub const MAX_FDS: usize = 32;
/// Maximum number of containers in a shim's table, including exited ones that were not removed; kubelet keeps few.
pub const MAX_CONTAINERS: usize = 256;

/// The initial data of a shim, as JSON in a memfd. Its descriptors by number: 3 listening socket, 4 folder of
/// exit files (`shims/<pod>/exits`), 5 this memfd, 6 the sealed pause binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimInit {
    /// Protocol version of the daemon that started the shim.
    pub protocol: u32,
    /// The shim's pod.
    pub pod: PodId,
    /// Folder below which log paths are opened; created (0755) if missing, empty if there are no logs. The
    /// shim opens it before it leaves the host's mount namespace.
    pub log_directory: String,
    /// Folders that the shim joins by writing "0" to `tasks` (v1), before anything else. The daemon sends none on v2, where it
    /// starts the shim in its cgroup (`sys::spawn::Program::cgroup`); a v2 folder, which only tests send, is joined by
    /// `cgroup.procs`.
    pub cgroups: Vec<String>,
    /// oom_score_adj of the shim; raised if the host does not allow this value.
    pub oom_score_adj: i32,
}

/// The payload of one frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// First frame of a connection, from the shim.
    Hello(Hello),
    /// One object that the shim holds; one frame each.
    Snapshot(Snapshot),
    /// The snapshot is complete; events follow.
    SnapshotEnd,
    /// Daemon to shim.
    Request(Request),
    /// Shim to daemon; has the id of the request in its header.
    Reply(Reply),
    /// Shim to daemon, without a request.
    Event(Event),
}

/// Describes the shim.
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
    /// The features it has beyond protocol 1, by their names in [`feature`]. A daemon uses no others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

impl Hello {
    /// Whether the shim has a feature; `name` is one of [`feature`].
    pub fn has(&self, name: &str) -> bool {
        self.features.iter().any(|feature| feature == name)
    }
}

/// Names of additions to protocol 1. A shim lists those that it has in [`Hello::features`].
pub mod feature {
    /// [`super::Event::Started`] is sent.
    pub(super) const STARTED_EVENT: &str = "started-event";
    /// Plans with unknown fields or variants are refused. A shim without this feature skips them, so it must
    /// only get plans of its own version.
    pub const STRICT_PLANS: &str = "strict-plans";
    /// [`super::Request::Exec::deadline_ms`] is enforced. A shim without this feature skips the field, and
    /// only the daemon kills the exec.
    pub(super) const EXEC_DEADLINE: &str = "exec-deadline";
    /// [`super::Request::Attach`] and [`super::Request::CloseStdin`] are carried out. A shim without this feature
    /// replies that it does not support them.
    pub(super) const ATTACH: &str = "attach";
    /// [`crate::ExecPlan::size`] is set before the process starts. A shim without this feature refuses plans that have it.
    pub const TERMINAL_SIZE: &str = "terminal-size";
    /// [`crate::ProcessPlan::apparmor`] is applied. A shim without this feature refuses plans that have it.
    pub const APPARMOR: &str = "apparmor";
    /// [`crate::ProcessPlan::selinux`] and the labels of files are applied. A shim without this feature refuses plans that
    /// have them.
    pub const SELINUX: &str = "selinux";
    /// All features of this build.
    pub const ALL: [&str; 7] =
        [STARTED_EVENT, STRICT_PLANS, EXEC_DEADLINE, ATTACH, TERMINAL_SIZE, APPARMOR, SELINUX];
}

/// An object that a shim holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Snapshot {
    /// Pause was started; `exited` is set once it has ended.
    Pause {
        /// Pid in the host's PID namespace.
        pid: u32,
        /// Exit code (128+n for signal n), if it has ended.
        exited: Option<i32>,
    },
    /// A container that was created and not removed.
    Container {
        /// The container.
        container: ContainerId,
        /// Its state.
        state: ContainerState,
        /// Pid of init in the host's PID namespace; 0 until it is known.
        pid: u32,
    },
    /// An exec that is starting or running, or has ended while its session is being killed. Its streams were closed with
    /// the old connection; it can only be killed.
    Exec {
        /// The id from the daemon that started it.
        exec: ExecId,
        /// Its container.
        container: ContainerId,
    },
}

/// The state of a container in the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum ContainerState {
    /// The worker is creating it, or a failed creation is being undone.
    Creating,
    /// Init waits for the start request, or has not called execve. As with `Running`, it may have ended, as long as the
    /// conditions of `Exited` are not met.
    Created,
    /// Init has called execve. It may have ended, as long as the conditions of `Exited` are not met.
    Running {
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// Init has ended, nothing runs in its cgroup, and its exit file was written (or a warning says why not).
    Exited(ExitFacts),
    /// A state of a later version, seen by a daemon that was downgraded. It is treated as running.
    Unknown,
}

// A derived implementation refuses unknown variants (`serde(other)` allows no content), and the daemon would
// lose the whole pod because of one container.
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

/// How a container exited: the content of its exit file, which is written before the event is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExitFacts {
    /// 0..=255, 128+n for signal n.
    pub code: i32,
    /// Nanoseconds since the epoch; 0 if it never ran.
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// The oom_kill counter of its leaf cgroup was not 0 at the end.
    pub oom_killed: bool,
    /// Set if the start failed: the error of execve, or why init ended before it.
    pub start_error: Option<String>,
}

/// Daemon to shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Starts pause. Descriptors: memfd of a [`crate::PausePlan`], then the cgroup folders of its plan in
    /// order. Reply: [`Reply::PauseStarted`], with the network namespace if it is new.
    StartPause,
    /// Creates a container. Descriptors: memfd of a [`crate::ContainerPlan`], kubelet's mount namespace, then
    /// the cgroup folders. Reply: [`Reply::Created`].
    Create {
        /// Its id.
        container: ContainerId,
        /// The worker is killed after this time in milliseconds.
        deadline_ms: u64,
        /// Log file; `None` discards the output. It is not in the plan, because the resident shim parses no
        /// plans.
        log: Option<LogPlan>,
        /// Stdio is a terminal.
        terminal: bool,
        /// Keeps stdin open for attach; otherwise it is /dev/null.
        stdin: bool,
    },
    /// Starts init. The reply is sent when init has called execve or failed to ([`ErrorKind::StartFailed`];
    /// the container has then exited with code 128).
    Start {
        /// The container.
        container: ContainerId,
    },
    /// Sends a signal to init, or with `all` kills every process in the cgroup with SIGKILL. The reply is
    /// sent when the signal is sent; an exited container is not an error.
    Kill {
        /// The container.
        container: ContainerId,
        /// Kernel number of the signal.
        signal: i32,
        /// Every process in its cgroup.
        all: bool,
    },
    /// Starts a process. Descriptors: memfd of an [`crate::ExecPlan`], then stdin, stdout and stderr unless
    /// it has a terminal (then the reply carries the pty master). The reply is sent when the process has
    /// called execve or failed to ([`ErrorKind::ExecFailed`]); [`Event::ExecExited`] follows.
    Exec {
        /// Unique on this connection.
        exec: ExecId,
        /// The container, which must be running.
        container: ContainerId,
        /// The session is killed after this time in milliseconds, as by [`Request::KillExec`], even without a
        /// daemon. `None` means no limit. (Feature `exec-deadline`.)
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline_ms: Option<u64>,
    },
    /// Kills all processes of an exec's session, and their descendants in sessions of their own, with SIGKILL. An exec that has ended is not an error.
    KillExec {
        /// The exec.
        exec: ExecId,
    },
    /// Reopens the log file by its path; the reply is sent when the new file exists. On an error no file was
    /// created and the old one stays in use.
    ReopenLog {
        /// The container.
        container: ContainerId,
    },
    /// Copies a running container's output to pipes, beside its log, and gives its input. Descriptors, all of them
    /// write ends of pipes: one that is closed when the container has exited, then one for stdout (or the terminal)
    /// and one for stderr, each if wanted. What a full pipe does not take is dropped. Reply: [`Reply::Done`], with the
    /// master of its terminal, or the write end of its stdin if that is kept open. (Feature `attach`.)
    Attach {
        /// The container.
        container: ContainerId,
        /// Stdout is wanted.
        stdout: bool,
        /// Stderr is wanted; a terminal has none.
        stderr: bool,
        /// One byte is written to the first pipe when output is dropped for the first time. Shims of earlier builds ignore
        /// this and write nothing.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        tell_loss: bool,
    },
    /// Closes the shim's end of a running container's stdin. (Feature `attach`.)
    CloseStdin {
        /// The container.
        container: ContainerId,
    },
    /// Removes an exited container from the shim's table, and its exit file. An unknown one is not an error.
    Forget {
        /// The container.
        container: ContainerId,
    },
    /// Kills and reaps every container, exec and pause, and replies. The shim then exits when the daemon
    /// closes the connection or sends [`Request::Shutdown`].
    StopPod,
    /// Exit. Refused ([`ErrorKind::Busy`]) while a process of the pod is running.
    Shutdown,
    /// A request of a later version.
    #[serde(other)]
    Unknown,
}

/// Shim to daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The request is done; there is no other result.
    Done,
    /// Reply to [`Request::StartPause`].
    PauseStarted {
        /// Pid in the host's PID namespace.
        pid: u32,
    },
    /// Reply to [`Request::Create`].
    Created {
        /// Pid of init in the host's PID namespace.
        pid: u32,
        /// The user of init, looked up in the image.
        user: User,
        /// Home of that user in the image's passwd, `/` if unknown; used as HOME if that is not set.
        home: String,
    },
    /// Reply to [`Request::Start`].
    Started {
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// Reply to [`Request::Exec`].
    ExecStarted {
        /// Pid in the host's PID namespace.
        pid: u32,
    },
    /// The request failed. What it had created is removed, except processes that cannot be killed; a failed
    /// [`Request::Start`] leaves a container that has exited, or can be started again.
    Failed(Failure),
}

/// Shim to daemon, without a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A container has exited, as in [`ContainerState::Exited`].
    Exited {
        /// The container.
        container: ContainerId,
        /// How it exited.
        facts: ExitFacts,
    },
    /// Init of a container has called execve. Sent to the daemon that is connected, before the reply to its
    /// [`Request::Start`] if it sent one; an earlier snapshot has [`ContainerState::Created`].
    /// (Feature `started-event`.)
    Started {
        /// The container.
        container: ContainerId,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// The process of an exec has ended, or could not be killed in time (code 137).
    ExecExited {
        /// The exec.
        exec: ExecId,
        /// 0..=255, 128+n for signal n.
        code: i32,
    },
    /// Pause has ended: the sandbox is not ready any more.
    PauseExited {
        /// 0..=255, 128+n for signal n.
        code: i32,
    },
    /// A message for operators, for example that a log file cannot be written.
    Warning {
        /// The container, if it concerns one.
        container: Option<ContainerId>,
        /// The message.
        message: String,
    },
    /// An event of a later version.
    #[serde(other)]
    Unknown,
}
