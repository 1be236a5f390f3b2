//! Events of a sequence, and planted bugs.

/// An event; numbers select among the existing objects.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Connect,
    Disconnect,
    StartPause,
    Create(u8),
    Start(u8),
    /// SIGKILL if the first flag is set, else SIGTERM; to all processes of the container if the second one is.
    Kill(u8, bool, bool),
    /// An exec with a deadline in milliseconds.
    Exec(u8, Option<u16>),
    KillExec(u8),
    ReopenLog(u8),
    Attach(u8),
    CloseStdin(u8),
    Forget(u8),
    StopPod,
    Shutdown,
    Unknown,
    /// A worker does its next step; the second number selects how: with 11 it succeeds.
    Work(u8, u8),
    /// Packets of a worker are read.
    Read(u8),
    /// A created process calls execve, or fails to.
    Execve(u8, bool),
    /// The start pipe of an init is read.
    Pipe(u8),
    /// A process ends by itself.
    Die(u8, u8),
    /// Some children are reaped; packets are read first, or not.
    Reap(u8, bool),
    /// A tracer attaches to a process.
    Trace(u8),
    /// A container freezes itself.
    Freeze(u8),
    /// An exec's process forks.
    Fork(u8),
    /// Another process than the shim forks.
    Bystander,
    /// From now on the shim has no free descriptor, or has some again.
    Descriptors(bool),
    /// From now on exit files cannot be written, or can again.
    DiskFull(bool),
    /// Time passes, in milliseconds; timers expire, possibly late.
    Pass(u16),
    Terminate,
}

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sabotage {
    None,
    /// A reply is lost.
    LostReply,
    /// An exit is reported twice.
    DoubleExit,
    /// The end of a container is never checked, so its name stays reserved.
    StuckName,
    /// A worker is killed as soon as it was forked.
    EarlyKill,
    /// Signals are sent after the next input, when the pid may be reused.
    LateKill,
    /// A snapshot has an incomplete container as created.
    HalfMade,
    /// An exit is reported before it is recorded.
    Unrecorded,
}
