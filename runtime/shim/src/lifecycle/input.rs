//! The inputs of the lifecycle. Pause, containers and execs have an enum each of what can happen to them; what their
//! workers have in common is [`WorkerInput`].

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
    /// An input from the worker of pause, of a container or of an exec.
    Worker(Serial, WorkerInput),
    /// A worker has created pause or the process of an exec. `unreaped`: when the packet was read, this process, not
    /// another one with its pid, was running or not reaped.
    Made { serial: Serial, pid: u32, unreaped: bool },
    /// A worker has created a container, whose init has this pid. `unreaped` as for `Made`.
    Created { serial: Serial, reply: Reply, pid: u32, unreaped: bool },
    /// Result of `Adopt`, for pause or a container.
    Adopted(Serial, Result<(), Failure>),
    /// Result of `CheckProcess`, for pause or an exec: its exit code, if it has ended but is not reaped.
    ProcessChecked(Serial, Option<i32>),
    /// The result of another action for a container.
    Container(Serial, ContainerInput),
    /// The result of another action for an exec.
    Exec(Serial, ExecInput),
}

/// An input from a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WorkerInput {
    /// It was forked and has this pid.
    Forked(Result<u32, Failure>),
    /// A warning.
    Warning(String),
    /// The failure of the worker, or of the process that it has created.
    Failed(Failure),
    /// All processes with its socket have ended or called execve.
    Closed,
    /// No packet is left.
    PacketsRead,
    /// It was reaped, with this exit code.
    Reaped(i32),
}

/// An input for pause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PauseInput {
    /// From its worker.
    Worker(WorkerInput),
    /// Its worker has created it. `ended`: its exit code, if it was reaped before.
    Made { pid: u32, ended: Option<i32> },
    /// It was reaped, with this exit code.
    Reaped(i32),
    /// Result of `Adopt`.
    Adopted(Result<(), Failure>),
    /// Result of `CheckProcess`: its exit code, if it has ended but is not reaped.
    Checked(Option<i32>),
    /// One of its timers is due.
    Due,
    /// The pod is being stopped.
    Stop,
}

/// An input for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ContainerInput {
    /// From its worker.
    Worker(WorkerInput),
    /// Its worker has sent the shim's ends of the container's streams; the shim could keep them or not.
    StreamsReceived(Result<(), Failure>),
    /// Its worker has created it, with an init of this pid. `ended`: init's exit code, if it was reaped before.
    Created { reply: Reply, pid: u32, ended: Option<i32> },
    /// Init was reaped. `executed`: whether it had called execve, if known.
    Reaped { code: i32, executed: Option<bool> },
    /// Result of `Adopt`.
    Adopted(Result<(), Failure>),
    /// Result of `StartInit`.
    StartSent(Result<(), Failure>),
    /// Init's error, if it has reported one; `closed`: the start pipe is closed.
    StartPipe { error: Option<String>, closed: bool },
    /// Result of `CheckInit`; `None` if it cannot be examined now.
    InitChecked(Option<InitState>),
    /// Result of `CheckCgroup`.
    CgroupChecked(CgroupState),
    /// Result of `WriteRecord`.
    Recorded(Result<(), String>),
    /// One of its timers is due.
    Due,
    /// The pod is being stopped.
    Stop,
    /// A request to start it.
    Start(Requester),
    /// A request to send a signal, to all processes in its cgroup if `all`.
    Kill { requester: Requester, signal: i32, all: bool },
    /// A request to reopen its log.
    ReopenLog(Requester),
    /// A request for its output and input.
    Attach { requester: Requester, stdout: bool, stderr: bool, tell_loss: bool },
    /// A request to close its stdin.
    CloseStdin(Requester),
    /// A request to remove it.
    Forget(Requester),
}

/// An input for an exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ExecInput {
    /// From its worker.
    Worker(WorkerInput),
    /// Its worker has created the process. `ended`: its exit code, if it was reaped before.
    Made { pid: u32, ended: Option<i32> },
    /// The process was reaped, with this exit code.
    Reaped(i32),
    /// Result of `CheckProcess`: its exit code, if it has ended but is not reaped.
    Checked(Option<i32>),
    /// Result of `KillSessions`: the number of processes of its session that were killed now, and the exit code of the
    /// leader, if that has ended but is not reaped.
    SessionKilled { count: u32, leader: Option<i32> },
    /// Result of `CheckOom`: a process in its container's cgroup was OOM-killed.
    OomChecked(bool),
    /// One of its timers is due.
    Due,
    /// The pod is being stopped.
    Stop,
    /// Init of its container has ended.
    ContainerEnded,
    /// A request to kill its session.
    KillSession(Requester),
}

/// The state of an init that is not reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InitState {
    /// Its exit code, if it has ended ([`sys::proc::Stat::is_over`]).
    pub(crate) code: Option<i32>,
    /// It has called execve.
    pub(crate) executed: bool,
    pub(crate) stopped: Stopped,
}

/// Whether a process is stopped, and by what (the states T and t in proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    No,
    /// By a signal; SIGCONT continues it.
    BySignal,
    ByTracer,
}

/// The state of a container's cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CgroupState {
    /// It has no processes.
    pub(crate) empty: bool,
    /// A process of it was OOM-killed.
    pub(crate) oom_killed: bool,
    /// The shim has unknown children, or its children could not be listed.
    pub(crate) strays: bool,
    /// The given init has ended but is not reaped.
    pub(crate) init_over: bool,
}
