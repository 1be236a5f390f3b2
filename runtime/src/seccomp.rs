//! Compiles seccomp profiles to BPF and caches the programs by profile, capabilities and architecture.
//! Blocking: a compilation takes some 20 ms, and a Localhost profile is read from disk, so callers use a
//! lane.

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use model::SeccompProfile;
use rustix::fs::{MemfdFlags, memfd_create};
use sha2::{Digest as _, Sha256};
use spec::seccomp::{Action, Arch, ArgTest, Op, Profile, RELEVANT_CAPS, parse_localhost, runtime_default};
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use sys::seccomp::{ARCHITECTURE, NUMBER, allow_each, jump_equal, load};
use wire::SeccompProgram;

/// Maximum number of cached programs, of some 11 KiB each: those of RuntimeDefault for a few sets of capabilities, and
/// those of the Localhost profiles of a node.
const MAX_CACHED: usize = 32;
/// Maximum size of a Localhost profile in bytes. Docker's default profile has 13 KB.
const MAX_PROFILE: u64 = 1 << 20;
/// Maximum number of instructions of a filter (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;
/// Bytes of an instruction (`struct sock_filter`).
const INSTRUCTION: usize = 8;
/// x86-64 system calls, with their numbers, that libseccomp 2.5 does not know and that must not fail: the kernel
/// inserts them into processes with uprobes.
const UNKNOWN_TO_LIBSECCOMP: [(&str, u32); 2] = [("uretprobe", 335), ("uprobe", 336)];
/// libseccomp's optimisation with a binary tree: loading takes 0.45 ms instead of 1.2 ms.
const BINARY_TREE: u32 = 2;

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A Localhost profile could not be read.
    #[error("seccomp profile {path}: {source}")]
    Read {
        /// The path of the profile.
        path: String,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// A Localhost profile is invalid.
    #[error("seccomp profile {path}: {source}")]
    Profile {
        /// The path of the profile.
        path: String,
        /// What is wrong with it.
        #[source]
        source: spec::Error,
    },
    /// libseccomp failed.
    #[error("cannot compile the seccomp filter: {what}: {source}")]
    Library {
        /// The failed step, with the system call if there is one.
        what: String,
        /// libseccomp's error.
        #[source]
        source: libseccomp::error::SeccompError,
    },
    /// The compiled program could not be read back.
    #[error("cannot compile the seccomp filter: {what}: {source}")]
    Export {
        /// The failed step.
        what: &'static str,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// The program is too long for the kernel.
    #[error(
        "compiled seccomp filter has {instructions} instructions, the kernel's limit is {MAX_INSTRUCTIONS}"
    )]
    TooLong {
        /// Its number of instructions.
        instructions: usize,
    },
}

/// The inputs of a compilation.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    /// Digest of a Localhost profile; `None` for RuntimeDefault.
    profile: Option<[u8; 32]>,
    caps: u64,
    arch: Arch,
}

/// A program, and the SECCOMP_FILTER_FLAG_* bits for loading it.
#[derive(Debug)]
pub(crate) struct Compiled {
    /// The BPF program.
    pub program: SeccompProgram,
    /// Flags of seccomp(2).
    pub flags: u32,
}

/// Compiles and caches programs.
#[derive(Debug)]
pub(crate) struct Compiler {
    arch: Arch,
    /// Kernel version, for profiles with conditions on it.
    kernel: (u32, u32),
    /// The cache; the most recently used program is last.
    cached: Mutex<Vec<(Key, Arc<Compiled>)>>,
    /// Held during a compilation, so that an equal request finds its result in the cache.
    compiling: Mutex<()>,
}

impl Compiler {
    /// Creates a compiler for this machine's architecture and kernel.
    pub(crate) fn new() -> Self {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
        let kernel = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let (cached, compiling) = (Mutex::default(), Mutex::default());
        Self { arch: Arch::NATIVE, kernel, cached, compiling }
    }

    /// What [`Self::program`] returns; `None` if it would have to read a file or to compile. Does not block.
    pub(crate) fn ready(&self, profile: &SeccompProfile, caps: u64) -> Option<Option<Arc<Compiled>>> {
        match profile {
            SeccompProfile::Unconfined => Some(None),
            SeccompProfile::RuntimeDefault => self.find(&self.default_key(caps)).map(Some),
            SeccompProfile::Localhost(_) => None,
        }
    }

    /// The key of RuntimeDefault, whose program depends on some capabilities only.
    fn default_key(&self, caps: u64) -> Key {
        Key { profile: None, caps: caps & RELEVANT_CAPS, arch: self.arch }
    }

    /// The program of a profile for a process with these capabilities (bounding set); `None` means
    /// unconfined.
    pub(crate) fn program(
        &self,
        profile: &SeccompProfile,
        caps: u64,
    ) -> Result<Option<Arc<Compiled>>, Error> {
        let arch = self.arch;
        match profile {
            SeccompProfile::Unconfined => Ok(None),
            SeccompProfile::RuntimeDefault => {
                let key = self.default_key(caps);
                let caps = key.caps;
                self.cached_or(key, || Ok(runtime_default(arch, caps))).map(Some)
            }
            SeccompProfile::Localhost(path) => {
                let text = read(path).map_err(|source| Error::Read { path: path.clone(), source })?;
                let key = Key { profile: Some(Sha256::digest(&text).into()), caps, arch };
                let parse = || {
                    let parsed = parse_localhost(&text, arch, caps, self.kernel);
                    parsed.map_err(|source| Error::Profile { path: path.clone(), source })
                };
                self.cached_or(key, parse).map(Some)
            }
        }
    }

    /// The cached program, or a new one. A compilation does not delay requests whose program is cached.
    fn cached_or(
        &self,
        key: Key,
        profile: impl FnOnce() -> Result<Profile, Error>,
    ) -> Result<Arc<Compiled>, Error> {
        if let Some(program) = self.find(&key) {
            return Ok(program);
        }
        let _one = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = self.find(&key) {
            return Ok(program);
        }
        let profile = profile()?;
        let program = Arc::new(Compiled { program: compile(&profile)?, flags: profile.flags });
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.len() >= MAX_CACHED {
            cached.remove(0);
        }
        cached.push((key, Arc::clone(&program)));
        Ok(program)
    }

    fn find(&self, key: &Key) -> Option<Arc<Compiled>> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let at = cached.iter().position(|(have, _)| have == key)?;
        let entry = cached.remove(at);
        let program = Arc::clone(&entry.1);
        cached.push(entry);
        Some(program)
    }
}

impl Default for Compiler {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads a profile of limited size. A path that is not a regular file is an error and does not block.
fn read(path: &str) -> io::Result<Vec<u8>> {
    sys::file::read_capped(sys::beneath::regular(Path::new(path))?, MAX_PROFILE)
}

fn comparison(test: &ArgTest) -> ScmpArgCompare {
    let op = match test.op {
        Op::Ne => ScmpCompareOp::NotEqual,
        Op::Lt => ScmpCompareOp::Less,
        Op::Le => ScmpCompareOp::LessOrEqual,
        Op::Eq => ScmpCompareOp::Equal,
        Op::Ge => ScmpCompareOp::GreaterEqual,
        Op::Gt => ScmpCompareOp::Greater,
        Op::Masked(mask) => ScmpCompareOp::MaskedEqual(mask),
    };
    ScmpArgCompare::new(u32::from(test.index), op, test.value)
}

fn compile(profile: &Profile) -> Result<SeccompProgram, Error> {
    let step = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Library { what, source }
    };
    let mut filter = ScmpFilterContext::new(action(profile.default)).map_err(step("create"))?;
    // The loader sets no_new_privs if it is requested.
    filter.set_ctl_nnp(false).map_err(step("attribute CTL_NNP"))?;
    filter.set_ctl_optimize(BINARY_TREE).map_err(step("attribute CTL_OPTIMIZE"))?;
    for arch in &profile.arches {
        filter.add_arch(scmp_arch(*arch)).map_err(step("architecture"))?;
    }
    let mut unknown = Vec::new();
    // Numbers of allowed calls that are newer than libseccomp.
    let mut newer = Vec::new();
    for rule in &profile.rules {
        // libseccomp refuses a rule with the default action; such a rule is not needed.
        if rule.action == profile.default {
            continue;
        }
        let tests: Vec<ScmpArgCompare> = rule.args.iter().map(comparison).collect();
        for name in &rule.names {
            // libseccomp does not know the call: none of our architectures has it, or it is newer than the
            // library and gets the default action.
            let Ok(call) = ScmpSyscall::from_name(name) else {
                match UNKNOWN_TO_LIBSECCOMP.iter().find(|(known, _)| known == name) {
                    Some((_, number)) if rule.action == Action::Allow && tests.is_empty() => {
                        newer.push(*number);
                    }
                    _ => unknown.push(name.as_str()),
                }
                continue;
            };
            filter
                .add_rule_conditional(action(rule.action), call, &tests)
                .map_err(step(&format!("rule of {name}")))?;
        }
    }
    if matches!(profile.default, Action::Allow | Action::Log) && !unknown.is_empty() {
        // A call that the profile refuses by such a name stays allowed.
        tracing::warn!(calls = ?unknown, "seccomp profile names system calls that libseccomp does not know; they get the default action");
    }
    let mut program = export(&filter)?;
    if !newer.is_empty() && profile.arches.first() == Some(&Arch::X86_64) {
        program.instructions.splice(0..0, allowing_prefix(&newer));
    }
    match program.instructions.len() {
        instructions if instructions > MAX_INSTRUCTIONS => Err(Error::TooLong { instructions }),
        _ => Ok(program),
    }
}

/// A prefix for a program that allows these x86-64 calls; all others continue with the program.
fn allowing_prefix(calls: &[u32]) -> Vec<u64> {
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    // The jump skips two instructions per call and the load.
    let rest = u8::try_from(1 + 2 * calls.len()).unwrap_or(u8::MAX);
    let mut program = vec![load(ARCHITECTURE), jump_equal(AUDIT_ARCH_X86_64, 0, rest), load(NUMBER)];
    program.extend(allow_each(calls.iter().copied()));
    program
}

fn export(filter: &ScmpFilterContext) -> Result<SeccompProgram, Error> {
    let broken = |what| move |source: io::Error| Error::Export { what, source };
    let memory = memfd_create("seccomp", MemfdFlags::CLOEXEC);
    let mut memory = File::from(memory.map_err(io::Error::from).map_err(broken("memfd"))?);
    let written = filter.export_bpf(&memory);
    written.map_err(|source| Error::Library { what: "export".to_owned(), source })?;
    let mut bytes = Vec::new();
    memory.rewind().map_err(broken("rewind"))?;
    memory.read_to_end(&mut bytes).map_err(broken("read"))?;
    let (instructions, rest) = bytes.as_chunks::<INSTRUCTION>();
    if !rest.is_empty() {
        let source = io::Error::new(io::ErrorKind::UnexpectedEof, "a cut instruction");
        return Err(Error::Export { what: "read", source });
    }
    // The wire format is little-endian, as both architectures are.
    let instructions = instructions.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    Ok(SeccompProgram { instructions })
}

fn action(action: Action) -> ScmpAction {
    match action {
        Action::Allow => ScmpAction::Allow,
        Action::Log => ScmpAction::Log,
        Action::Errno(number) => ScmpAction::Errno(i32::from(number)),
        Action::KillThread => ScmpAction::KillThread,
        Action::KillProcess => ScmpAction::KillProcess,
        Action::Trap => ScmpAction::Trap,
        Action::Trace(number) => ScmpAction::Trace(number),
    }
}

fn scmp_arch(arch: Arch) -> ScmpArch {
    match arch {
        Arch::X86_64 => ScmpArch::X8664,
        Arch::X86 => ScmpArch::X86,
        Arch::X32 => ScmpArch::X32,
        Arch::Aarch64 => ScmpArch::Aarch64,
        Arch::Arm => ScmpArch::Arm,
    }
}

#[cfg(test)]
mod tests;
