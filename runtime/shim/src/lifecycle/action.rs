//! What the machine wants done.

use model::ContainerId;
use wire::{Event, ExitFacts, Reply};

use super::id::{Requester, Serial};

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send hello, the snapshot and its end mark to the daemon that has just connected.
    Greet,
    /// Answer a request. `fd_of`: with the descriptor that the worker of that thing sent with its process's pid.
    Reply { to: Requester, reply: Reply, fd_of: Option<Serial> },
    /// Tell the daemon.
    Event(Event),
    /// Fork a worker; the descriptors of the request are for it. Result: `Forked`.
    Fork(Serial, Fork),
    /// Read a worker's packets until there are none. Each is an input, then comes `PacketsRead`.
    ReadPackets(Serial),
    /// Close a worker's socket and what it sent.
    DropWorker(Serial),
    /// Send a signal to a child that was not reaped, so that its number is its own. Errors show by its living on.
    Signal { pid: u32, signal: i32 },
    /// The same for a daemon. Result: `Served`.
    SignalFor { requester: Requester, pid: u32, signal: i32 },
    /// Open the namespaces of a process just made, a child that was not reaped (`None`: it has ended), and take the
    /// terminal of a container. Result: `Adopted`.
    Adopt(Serial, Option<u32>),
    /// Close the namespaces of a process that has ended.
    DropNamespaces(Serial),
    /// Let init go on to execve, and watch its error pipe. Result: `LetGo`.
    LetGo(Serial, ContainerId),
    /// Copy a container's output into its log from now on.
    WatchOutputs(Serial),
    /// Read what init has written to its error pipe so far, and close it. Result: `ErrorPipe`.
    ReadErrorPipe(Serial),
    /// Close the error pipe.
    DropErrorPipe(Serial),
    /// Look at an init that was not reaped. Result: `InitSeen`.
    LookAtInit(Serial, u32),
    /// Look whether pause or the process of an exec, which was not reaped, is over. Result: `ProcessSeen`.
    LookAtProcess(Serial, u32),
    /// SIGKILL to all in a container's cgroup. Errors show by its not getting empty.
    KillCgroup(Serial),
    /// Look whether a container's cgroup is empty. Result: `CgroupSeen`.
    LookAtCgroup(Serial, CgroupLook),
    /// Kill the processes of sessions in a container. Result: `SessionSeen` for each.
    KillSessions { container: Serial, sessions: Vec<Session> },
    /// Look whether a container's cgroup has lost a process for memory; for the worker of this exec. Result:
    /// `MemorySeen`.
    LookForOom { exec: Serial, container: Serial },
    /// Write out what is left of a container's output and close its streams.
    FinishOutputs(Serial),
    /// Remove libcontainer's files of a container.
    RemoveFiles(ContainerId),
    /// Write a container's exit record. Result: `Recorded`.
    WriteRecord(Serial, ContainerId, ExitFacts),
    /// Remove an exit record, if there is one. Result: `Served`.
    RemoveRecord { requester: Requester, container: ContainerId },
    /// Open a container's log anew. Result: `Served`.
    ReopenLog { requester: Requester, serial: Serial },
    /// Close all that is open for a thing.
    Release(Serial),
    /// Leave.
    End,
}

/// What a worker is to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fork {
    /// Pause.
    Pause,
    /// A container.
    Container {
        /// Below the pod's log folder; `None` discards output.
        log: Option<String>,
        /// Its stdio is a terminal.
        terminal: bool,
        /// Its stdin is kept open.
        stdin: bool,
        /// Pause, whose namespaces it may share.
        pause: Serial,
    },
    /// A process in a container.
    Exec {
        /// Which.
        container: Serial,
    },
}

/// How to look at a cgroup that is being emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CgroupLook {
    /// Processes that a tracer holds on their way out count as gone.
    pub(crate) patient: bool,
    /// An init that was not reaped: say whether it is over.
    pub(crate) init: Option<u32>,
    /// Kill and count children of the shim that nobody knows ([`super::Lifecycle::knows`]): a worker that was
    /// killed may have left them.
    pub(crate) strays: bool,
}

/// A session that is being killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) exec: Serial,
    /// Its leader's pid, which is the session's number for as long as a process of it lives.
    pub(crate) pid: u32,
    /// The leader was not reaped: kill it by its pid as well, and say whether it is over.
    pub(crate) unreaped: bool,
}
