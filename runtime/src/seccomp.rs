//! Seccomp profiles compiled to BPF, once for each profile, set of capabilities and architecture. Blocking:
//! a compilation takes some 20 ms, and a Localhost profile is read from disk; callers use a lane.

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use model::SeccompProfile;
use rustix::fs::{MemfdFlags, memfd_create};
use sha2::{Digest as _, Sha256};
use spec::seccomp::{Action, Arch, Op, Profile, RELEVANT_CAPS, parse_localhost, runtime_default};
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use sys::seccomp::{ARCHITECTURE, NUMBER, allow_each, jump_equal, load};
use wire::SeccompProgram;

/// Programs kept, of some 11 KiB each: the default with a handful of capability sets, and the Localhost
/// profiles of a node.
const KEPT: usize = 32;
/// Largest Localhost profile, bytes. Docker's own has 13 KB.
const LARGEST_PROFILE: u64 = 1 << 20;
/// Most instructions of a filter (BPF_MAXINSNS).
const MOST_INSTRUCTIONS: usize = 4096;
/// Bytes of an instruction (`struct sock_filter`).
const INSTRUCTION: usize = 8;
/// System calls of x86-64 that are newer than libseccomp 2.5 and that a program dies without, by number: the
/// kernel's own code for return probes makes them.
const NEWER: [(&str, u32); 2] = [("uretprobe", 335), ("uprobe", 336)];
/// libseccomp's optimisation by a binary tree: 1.2 ms a load becomes 0.45.
const BINARY_TREE: u32 = 2;

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A Localhost profile that cannot be read.
    #[error("seccomp profile {path}: {source}")]
    Read {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A Localhost profile that is not right.
    #[error("seccomp profile {path}: {source}")]
    Profile {
        /// Its path.
        path: String,
        /// What is wrong with it.
        #[source]
        source: spec::Error,
    },
    /// libseccomp refused.
    #[error("compile seccomp filter: {what}: {source}")]
    Library {
        /// Which step, with the system call where there is one.
        what: String,
        /// What it said.
        #[source]
        source: libseccomp::error::SeccompError,
    },
    /// The program could not be taken over.
    #[error("compile seccomp filter: {what}: {source}")]
    Export {
        /// Which step.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More than the kernel takes.
    #[error("compiled seccomp filter has {instructions} instructions, the kernel takes {MOST_INSTRUCTIONS}")]
    TooLong {
        /// How many.
        instructions: usize,
    },
}

/// What a program was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    /// Digest of a Localhost profile; None for RuntimeDefault.
    profile: Option<[u8; 32]>,
    caps: u64,
    arch: Arch,
}

/// A program, and the SECCOMP_FILTER_FLAG_* bits that its profile has it loaded with.
#[derive(Debug)]
pub struct Compiled {
    /// What the kernel runs.
    pub program: SeccompProgram,
    /// seccomp(2).
    pub flags: u32,
}

/// Compiles and keeps programs.
#[derive(Debug)]
pub struct Compiler {
    arch: Arch,
    /// Kernel version, for profiles that ask.
    kernel: (u32, u32),
    /// Most recently used last.
    kept: Mutex<Vec<(Key, Arc<Compiled>)>>,
    /// One compilation at a time: an equal one then finds its result.
    compiling: Mutex<()>,
}

impl Compiler {
    /// A compiler for this machine's architecture and kernel.
    pub fn new() -> Self {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
        let kernel = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let (kept, compiling) = (Mutex::default(), Mutex::default());
        Self { arch: Arch::NATIVE, kernel, kept, compiling }
    }

    /// The program of a profile for a process with these capabilities (bounding set). None: unconfined.
    pub fn program(&self, profile: &SeccompProfile, caps: u64) -> Result<Option<Arc<Compiled>>, Error> {
        let arch = self.arch;
        match profile {
            SeccompProfile::Unconfined => Ok(None),
            SeccompProfile::RuntimeDefault => {
                let caps = caps & RELEVANT_CAPS;
                let key = Key { profile: None, caps, arch };
                self.kept_or(key, || Ok(runtime_default(arch, caps))).map(Some)
            }
            SeccompProfile::Localhost(path) => {
                let text = read(path).map_err(|source| Error::Read { path: path.clone(), source })?;
                let key = Key { profile: Some(Sha256::digest(&text).into()), caps, arch };
                let parse = || {
                    let parsed = parse_localhost(&text, arch, caps, self.kernel);
                    parsed.map_err(|source| Error::Profile { path: path.clone(), source })
                };
                self.kept_or(key, parse).map(Some)
            }
        }
    }

    /// The kept program, else a new one, compiled without holding up those who find theirs.
    fn kept_or(
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
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((key, Arc::clone(&program)));
        Ok(program)
    }

    fn find(&self, key: &Key) -> Option<Arc<Compiled>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(have, _)| have == key)?;
        let entry = kept.remove(at);
        let program = Arc::clone(&entry.1);
        kept.push(entry);
        Some(program)
    }
}

impl Default for Compiler {
    fn default() -> Self {
        Self::new()
    }
}

/// A profile's bytes, capped. What is not a regular file gives an error, and does not hold anybody up.
fn read(path: &str) -> io::Result<Vec<u8>> {
    sys::file::read_capped(sys::beneath::regular(Path::new(path))?, LARGEST_PROFILE)
}

fn compile(profile: &Profile) -> Result<SeccompProgram, Error> {
    let step = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Library { what, source }
    };
    let mut filter = ScmpFilterContext::new(action(profile.default)).map_err(step("create"))?;
    // no_new_privs is set by who loads the program, where it is asked for.
    filter.set_ctl_nnp(false).map_err(step("attribute CTL_NNP"))?;
    filter.set_ctl_optimize(BINARY_TREE).map_err(step("attribute CTL_OPTIMIZE"))?;
    for arch in &profile.arches {
        filter.add_arch(scmp_arch(*arch)).map_err(step("architecture"))?;
    }
    let mut unknown = Vec::new();
    let mut newer = Vec::new();
    for rule in &profile.rules {
        // A rule that says what happens anyway is refused by libseccomp and not needed.
        if rule.action == profile.default {
            continue;
        }
        let tests: Vec<ScmpArgCompare> = rule
            .args
            .iter()
            .map(|test| {
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
            })
            .collect();
        for name in &rule.names {
            // Unknown to this libseccomp: no architecture of ours has it, or it is newer than the library
            // and stays with the default.
            let Ok(call) = ScmpSyscall::from_name(name) else {
                match NEWER.iter().find(|(known, _)| known == name) {
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
        // What such a profile refuses by name is allowed where the name is not known: say so.
        tracing::warn!(calls = ?unknown, "seccomp profile names system calls that libseccomp does not know");
    }
    let mut program = export(&filter)?;
    if !newer.is_empty() && profile.arches.first() == Some(&Arch::X86_64) {
        program.instructions.splice(0..0, allowing(&newer));
    }
    match program.instructions.len() {
        instructions if instructions > MOST_INSTRUCTIONS => Err(Error::TooLong { instructions }),
        _ => Ok(program),
    }
}

/// What is put before a program so that these calls of x86-64 are allowed; all others go on to it.
fn allowing(calls: &[u32]) -> Vec<u64> {
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    // Two instructions a call and the load are jumped over.
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
    // Both architectures are little-endian, as is the wire's form.
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
