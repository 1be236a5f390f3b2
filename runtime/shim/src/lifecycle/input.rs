//! What happens to the shim.

use wire::{Failure, Reply, Request};

use super::id::{Requester, Serial};

/// An input of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// A daemon has connected; it replaces the one before.
    Connected(u32),
    /// The connection has ended, or was dropped.
    Disconnected(u32),
    /// A daemon asks for something, with so many descriptors.
    Request { requester: Requester, request: Request, fds: usize },
    /// SIGTERM.
    Terminated,
    /// A child was reaped; its number may be another's from now on. `executed`: whether it had called execve, where
    /// that is known.
    Reaped { pid: u32, code: i32, executed: Option<bool> },
    /// The time of [`super::Lifecycle::timer`] has come.
    TimerDue,
    /// A request that needed only one action was served.
    Served { requester: Requester, outcome: Result<(), Failure> },
    /// A worker has made this process. `is_child`: it was a child of the shim, reaped or not, when this was read.
    Made { serial: Serial, pid: u32, is_child: bool },
    /// A worker has made a container. As `Made`, with what the daemon is answered.
    Created { serial: Serial, reply: Reply, pid: u32, is_child: bool },
    /// Something else that concerns one thing.
    Of(Serial, Happened),
}

/// What happens to pause, a container or an exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Happened {
    /// Its worker was forked.
    Forked(Result<u32, Failure>),
    /// Its worker has made a process. `ended`: its code, if it was reaped before anybody knew of it.
    Made { pid: u32, ended: Option<i32> },
    /// Its worker has made a container.
    Created { reply: Reply, pid: u32, ended: Option<i32> },
    /// Its worker has sent the container's streams, which were taken or not.
    Prepared(Result<(), Failure>),
    /// Its worker warns of something.
    Warning(String),
    /// Its worker, or the process that it made, says why it failed.
    Failed(Failure),
    /// All holders of the worker's socket are gone, or have called execve.
    Closed,
    /// No packet waits.
    PacketsRead,
    /// Its worker was reaped.
    WorkerReaped(i32),
    /// Its process (pause, init or the exec's) was reaped.
    Reaped { code: i32, executed: Option<bool> },
    /// Result of `Adopt`.
    Adopted(Result<(), Failure>),
    /// Result of `LetGo`.
    LetGo(Result<(), Failure>),
    /// What init has said on its error pipe; `closed`: nothing more can come.
    ErrorPipe { said: Option<String>, closed: bool },
    /// Result of `LookAtInit`; `None` when it cannot be looked at now.
    InitSeen(Option<InitState>),
    /// Result of `LookAtProcess` or of a session's kill: its code, if it is over though not reaped.
    ProcessSeen(Option<i32>),
    /// Result of `LookAtCgroup`.
    CgroupSeen(CgroupState),
    /// So many processes of its session were killed now; `over`: the leader's code, if it is over though not reaped.
    SessionSeen { count: u32, over: Option<i32> },
    /// Result of `LookForOom`.
    MemorySeen(bool),
    /// Result of `WriteRecord`.
    Recorded(Result<(), String>),
    /// One of its timers is due.
    Due,
    /// The pod is being stopped.
    Stop,
    /// The init of the exec's container has ended.
    ContainerEnded,
    /// A daemon asks to start it.
    Start(Requester),
    /// A daemon asks for a signal, to all in its cgroup if `all`.
    Kill { requester: Requester, signal: i32, all: bool },
    /// A daemon asks to open its log anew.
    ReopenLog(Requester),
    /// A daemon asks to forget it.
    Forget(Requester),
    /// A daemon asks to kill its session.
    KillSession(Requester),
}

/// An init that was not reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InitState {
    /// Its code, if it is over ([`sys::proc::Stat::is_over`]).
    pub(crate) over: Option<i32>,
    /// It has called execve.
    pub(crate) executed: bool,
    pub(crate) held: Held,
}

/// Whether somebody keeps a process from running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// Nobody.
    No,
    /// By a signal; SIGCONT undoes it.
    Stopped,
    /// By tracing it.
    Traced,
}

/// What a look at a container's cgroup has found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CgroupState {
    /// Nobody is in it.
    pub(crate) empty: bool,
    /// The kernel has killed one of it for memory.
    pub(crate) oom_killed: bool,
    /// Children that nobody knows live, or it cannot be said.
    pub(crate) strays: bool,
    /// The init that was asked for is over, though not reaped.
    pub(crate) init_over: bool,
}
