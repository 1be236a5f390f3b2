//! What a filter is made of.

/// An architecture whose system calls a filter judges.
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
    /// What this program was built for. Others than these two are refused at build time elsewhere.
    pub const NATIVE: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// The native one first, then those whose programs its kernel runs too.
    pub(crate) fn family(self) -> &'static [Self] {
        match self {
            Self::X86_64 | Self::X86 | Self::X32 => &[Self::X86_64, Self::X86, Self::X32],
            Self::Aarch64 | Self::Arm => &[Self::Aarch64, Self::Arm],
        }
    }
}

/// What happens to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Goes on.
    Allow,
    /// Goes on, and is logged.
    Log,
    /// Fails with this error number.
    Errno(u16),
    /// Kills the thread.
    KillThread,
    /// Kills the process.
    KillProcess,
    /// SIGSYS.
    Trap,
    /// Tells a tracer, or fails with ENOSYS without one.
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

/// A test of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ArgTest {
    /// 0 to 5.
    pub index: u8,
    /// How.
    pub op: Op,
    /// With what.
    pub value: u64,
}

/// What happens to some system calls when all tests hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Names as the kernel has them; those unknown to an architecture are passed over there.
    pub names: Vec<String>,
    /// What happens.
    pub action: Action,
    /// All must hold; none always holds.
    pub args: Vec<ArgTest>,
}

/// A filter before it is compiled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Profile {
    /// For what no rule names.
    pub default: Action,
    /// Which architectures it judges; programs of others are killed.
    pub arches: Vec<Arch>,
    /// In order; of several rules for one call each that holds counts as libseccomp orders them.
    pub rules: Vec<Rule>,
    /// SECCOMP_FILTER_FLAG_* bits that the program is loaded with (seccomp(2)).
    pub flags: u32,
}
