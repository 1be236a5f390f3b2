//! What may happen, and what may be planted.

/// Something that happens; numbers choose among what there is.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Connect,
    Disconnect,
    StartPause,
    Create(u8),
    Start(u8),
    Kill(u8, bool, bool),
    Exec(u8, Option<u16>),
    KillExec(u8),
    ReopenLog(u8),
    Forget(u8),
    StopPod,
    Shutdown,
    Unknown,
    /// A worker does its next step, in a way that the second number chooses.
    Work(u8, u8),
    /// Packets of a worker are read.
    Read(u8),
    /// A process that was made calls execve, or fails to.
    Execve(u8, bool),
    /// The error pipe of an init is read.
    Pipe(u8),
    /// A process ends by itself.
    Die(u8, u8),
    /// Some children are reaped; packets are read first, or (late ones) not.
    Reap(u8, bool),
    /// A tracer takes hold of a process.
    Trace(u8),
    /// A container freezes itself.
    Freeze(u8),
    /// An exec's process forks.
    Fork(u8),
    /// Others than the shim make a process.
    Bystander,
    /// Time passes, milliseconds; timers are served, maybe late.
    Pass(u16),
    Terminate,
}

/// A bug that is planted into what the machine does or says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sabotage {
    None,
    /// An answer is lost.
    LostAnswer,
    /// An exit is told twice.
    DoubleExit,
    /// The end of a container is never looked for: its name is never free again.
    StuckName,
    /// A worker is killed as soon as it was forked.
    EarlyKill,
    /// Signals are sent after the next turn, when their number may be another's.
    LateKill,
    /// A listing shows a container that is being made as made.
    HalfMade,
    /// An exit is told before it is recorded.
    Unrecorded,
}
