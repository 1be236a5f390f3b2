//! The parts of a seccomp profile.

/// An architecture whose system calls a filter checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    /// x86-64.
    X86_64,
    /// 32-bit x86.
    X86,
    /// x86-64 with 32-bit pointers.
    X32,
    /// 64-bit arm.
    Aarch64,
    /// 32-bit arm.
    Arm,
}

impl Arch {
    /// The architecture of this build. The workspace builds for no other than these two.
    pub const NATIVE: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// The native architecture first, then those whose programs its kernel also runs.
    pub(crate) fn family(self) -> &'static [Self] {
        match self {
            Self::X86_64 | Self::X86 | Self::X32 => &[Self::X86_64, Self::X86, Self::X32],
            Self::Aarch64 | Self::Arm => &[Self::Aarch64, Self::Arm],
        }
    }
}

/// What the kernel does with a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Allows it.
    Allow,
    /// Allows and logs it.
    Log,
    /// Fails it with this error number.
    Errno(u16),
    /// Kills the thread.
    KillThread,
    /// Kills the process.
    KillProcess,
    /// Sends SIGSYS.
    Trap,
    /// Notifies a tracer; fails with ENOSYS if there is none.
    Trace(u16),
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Equal.
    Eq,
    /// Greater or equal.
    Ge,
    /// Greater.
    Gt,
    /// Equal after a bitwise and with this mask.
    Masked(u64),
}

/// A condition on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ArgTest {
    /// Argument index, 0 to 5.
    pub index: u8,
    /// The comparison.
    pub op: Op,
    /// The value.
    pub value: u64,
}

/// The action for some system calls if all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Names in the kernel's spelling; names that an architecture does not have are skipped for it.
    pub names: Vec<String>,
    /// The action.
    pub action: Action,
    /// Conditions, all of which must hold; an empty list always holds.
    pub args: Vec<ArgTest>,
}

/// A filter before compilation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Profile {
    /// Action for system calls that no rule names.
    pub default: Action,
    /// Architectures that the filter checks; programs of other architectures are killed.
    pub arches: Vec<Arch>,
    /// Rules in order. If several rules for one call hold, libseccomp's priority decides.
    pub rules: Vec<Rule>,
    /// SECCOMP_FILTER_FLAG_* bits for loading the program (seccomp(2)).
    pub flags: u32,
}
