//! The actions of the lifecycle.

use model::ContainerId;
use wire::{Event, ExitFacts, Reply};

use super::id::{Requester, Serial};

pub(crate) use sys::signal::KILL as SIGKILL;

/// An action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send hello, the snapshot and its end mark to the daemon that has just connected.
    Greet,
    /// Reply to a request. `fd_of`: with the descriptor for the daemon that the worker of that object has sent.
    Reply { to: Requester, reply: Reply, fd_of: Option<Serial> },
    /// Send an event to the daemon.
    Event(Event),
    /// Fork a worker; the descriptors of the request are for it. Result: `Forked`.
    Fork(Serial, Fork),
    /// Read all packets of a worker. Each is an input; then follows `PacketsRead`.
    ReadPackets(Serial),
    /// Close a worker's socket and the descriptors that it has sent.
    DropWorker(Serial),
    /// Send a signal to a child that is not reaped, so its pid cannot have been reused. Errors are ignored;
    /// they show in later checks.
    Signal { pid: u32, signal: i32 },
    /// The same, requested by a daemon. Result: `Served`.
    SignalFor { requester: Requester, pid: u32, signal: i32 },
    /// Open the namespaces of a new process, a child that is not reaped (`None`: it has ended), and receive
    /// the terminal of a container. Result: `Adopted`.
    Adopt(Serial, Option<u32>),
    /// Close the namespaces of an ended process.
    DropNamespaces(Serial),
    /// Watch the start pipe of an init that waits, and tell it to start. Result: `StartSent`.
    StartInit(Serial, ContainerId),
    /// Start copying a container's output to its log.
    WatchOutputs(Serial),
    /// Read what init has written to its start pipe, and close it. Result: `StartPipe`.
    ReadStartPipe(Serial),
    /// Close the start pipe.
    DropStartPipe(Serial),
    /// Examine an init that is not reaped. Result: `InitChecked`.
    CheckInit(Serial, u32),
    /// Check whether pause or the process of an exec, which is not reaped, has ended. Result: `ProcessChecked`.
    CheckProcess(Serial, u32),
    /// Kill all processes in a container's cgroup. Errors are ignored; they show in later checks.
    KillCgroup(Serial),
    /// Check whether a container's cgroup is empty. Result: `CgroupChecked`.
    CheckCgroup(Serial, CgroupCheck),
    /// Kill the processes of sessions in a container. Result: `SessionKilled` for each.
    KillSessions { container: Serial, sessions: Vec<Session> },
    /// Check whether a process in a container's cgroup was OOM-killed, because the worker of this exec was killed.
    /// Result: `OomChecked`.
    CheckOom { exec: Serial, container: Serial },
    /// Write the remaining output of a container and close its streams.
    FinishOutputs(Serial),
    /// Remove a container's bundle, and libcontainer's state of it.
    RemoveFiles(ContainerId),
    /// Write a container's exit file. Result: `Recorded`.
    WriteRecord(Serial, ContainerId, ExitFacts),
    /// Remove an exit file, if it exists. Result: `Served`.
    RemoveRecord { requester: Requester, container: ContainerId },
    /// Reopen a container's log. Result: `Served`.
    ReopenLog { requester: Requester, serial: Serial },
    /// Give a client a container's output by the pipes of the request. Result: `Served`, and the container's input for
    /// the reply.
    Attach { requester: Requester, serial: Serial, stdout: bool, stderr: bool, tell_loss: bool },
    /// Close a container's stdin. Result: `Served`.
    CloseStdin { requester: Requester, serial: Serial },
    /// Close all descriptors of an object.
    Release(Serial),
    /// Exit.
    End,
}

/// The work of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fork {
    /// Pause.
    Pause,
    /// A container.
    Container {
        /// Log path below the pod's log folder; `None` discards the output.
        log: Option<String>,
        /// Stdio is a terminal.
        terminal: bool,
        /// Stdin is kept open.
        stdin: bool,
        /// Serial of pause, whose namespaces it may share.
        pause: Serial,
    },
    /// A process in a container.
    Exec {
        /// Its serial.
        container: Serial,
    },
}

/// How to check a cgroup whose processes are being killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CgroupCheck {
    /// Ended processes that a tracer keeps from being reaped do not count.
    pub(crate) skip_unreapable: bool,
    /// An init that is not reaped: also report whether it has ended.
    pub(crate) init: Option<u32>,
    /// Kill and count unknown children of the shim ([`super::Lifecycle::knows`]): an interrupted worker may
    /// have left them.
    pub(crate) strays: bool,
}

/// A session that is being killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) exec: Serial,
    /// Its leader's pid, which is the session id as long as a process of the session exists.
    pub(crate) pid: u32,
    /// The leader is not reaped: kill it by its pid as well, and report whether it has ended.
    pub(crate) unreaped: bool,
}
