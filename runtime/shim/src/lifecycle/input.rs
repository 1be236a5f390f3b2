//! The inputs of the lifecycle.

use wire::{Failure, Reply, Request};

use super::id::{Requester, Serial};

/// An input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// A daemon has connected; it replaces an earlier one.
    Connected(u32),
    /// The connection has ended or was closed.
    Disconnected(u32),
    /// A request of a daemon, with this number of descriptors.
    Request { requester: Requester, request: Request, fds: usize },
    /// SIGTERM.
    Terminated,
    /// A child was reaped, so its pid may be reused from now on. `executed`: whether it had called execve, if
    /// known.
    Reaped { pid: u32, code: i32, executed: Option<bool> },
    /// The time of [`super::Lifecycle::timer`] has come.
    TimerDue,
    /// The result of a request that needed only one action.
    Served { requester: Requester, outcome: Result<(), Failure> },
    /// A worker has created this process. `is_child`: its pid was that of a child of the shim, running or
    /// not reaped, when the packet was read.
    Made { serial: Serial, pid: u32, is_child: bool },
    /// A worker has created a container. Like `Made`, with the data of the reply.
    Created { serial: Serial, reply: Reply, pid: u32, is_child: bool },
    /// An input for one object.
    Of(Serial, Happened),
}

/// An input for pause, a container or an exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Happened {
    /// Its worker was forked.
    Forked(Result<u32, Failure>),
    /// Its worker has created a process. `ended`: its exit code, if it was reaped before.
    Made { pid: u32, ended: Option<i32> },
    /// Its worker has created a container.
    Created { reply: Reply, pid: u32, ended: Option<i32> },
    /// Its worker has sent the container's streams, which were accepted or not.
    Prepared(Result<(), Failure>),
    /// A warning of its worker.
    Warning(String),
    /// The failure of its worker or process.
    Failed(Failure),
    /// All processes with the worker's socket have ended or called execve.
    Closed,
    /// No packet is left.
    PacketsRead,
    /// Its worker was reaped.
    WorkerReaped(i32),
    /// Its process (pause, init or the exec's) was reaped.
    Reaped { code: i32, executed: Option<bool> },
    /// Result of `Adopt`.
    Adopted(Result<(), Failure>),
    /// Result of `StartInit`.
    StartSent(Result<(), Failure>),
    /// Data on init's error pipe; `closed`: the pipe is closed.
    ErrorPipe { said: Option<String>, closed: bool },
    /// Result of `LookAtInit`; `None` if it cannot be examined now.
    InitSeen(Option<InitState>),
    /// Result of `LookAtProcess` or of killing its session: its exit code, if it has ended but is not reaped.
    ProcessSeen(Option<i32>),
    /// Result of `LookAtCgroup`.
    CgroupSeen(CgroupState),
    /// Number of processes of its session that were killed now; `over`: the leader's exit code, if it has
    /// ended but is not reaped.
    SessionSeen { count: u32, over: Option<i32> },
    /// Result of `LookForOom`.
    MemorySeen(bool),
    /// Result of `WriteRecord`.
    Recorded(Result<(), String>),
    /// One of its timers is due.
    Due,
    /// The pod is being stopped.
    Stop,
    /// Init of the exec's container has ended.
    ContainerEnded,
    /// A request to start it.
    Start(Requester),
    /// A request to send a signal, to all processes in its cgroup if `all`.
    Kill { requester: Requester, signal: i32, all: bool },
    /// A request to reopen its log.
    ReopenLog(Requester),
    /// A request to remove it.
    Forget(Requester),
    /// A request to kill its session.
    KillSession(Requester),
}

/// The state of an init that is not reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InitState {
    /// Its exit code, if it has ended ([`sys::proc::Stat::is_over`]).
    pub(crate) over: Option<i32>,
    /// It has called execve.
    pub(crate) executed: bool,
    pub(crate) held: Held,
}

/// What keeps a process from running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// Nothing.
    No,
    /// A stop signal; SIGCONT continues it.
    Stopped,
    /// A tracer.
    Traced,
}

/// The state of a container's cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CgroupState {
    /// It has no processes.
    pub(crate) empty: bool,
    /// A process of it was OOM-killed.
    pub(crate) oom_killed: bool,
    /// There are unknown children, or it could not be checked.
    pub(crate) strays: bool,
    /// The given init has ended but is not reaped.
    pub(crate) init_over: bool,
}
