//! Runs a daemon and records which of its functions are executed, and which of those of its shims. Each function begins
//! with a breakpoint that is removed when it is reached, so the program is as fast as ever after a moment, and is asked for
//! nothing that it would not do.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The instruction of a breakpoint, and how far the program counter is behind it when it was executed.
#[cfg(target_arch = "x86_64")]
const BREAKPOINT: (&[u8], u64) = (&[0xcc], 1);
#[cfg(target_arch = "aarch64")]
const BREAKPOINT: (&[u8], u64) = (&0xd420_0000_u32.to_le_bytes(), 0);

/// The arguments of `integration trace`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The program.
    #[arg(long)]
    program: PathBuf,
    /// A file with the addresses of its functions, one in a line.
    #[arg(long)]
    functions: PathBuf,
    /// A folder in which a file is created for the addresses of those that are executed.
    #[arg(long)]
    record: PathBuf,
    /// A shim whose processes are traced too, but not the workers that they fork. They are killed with the daemon.
    #[arg(long, requires_all = ["shim_functions", "shim_record"])]
    shim: Option<PathBuf>,
    /// As --functions, of the shim.
    #[arg(long)]
    shim_functions: Option<PathBuf>,
    /// As --record, of the shim.
    #[arg(long)]
    shim_record: Option<PathBuf>,
    /// The program's arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the program to its end, which SIGTERM and SIGHUP reach; it is killed with this process. True if it succeeded.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    // Stops itself, to be traced from its first instruction on.
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""])
        .arg(&arguments.program)
        .args(&arguments.arguments);
    let child = Pid::from_raw(i32::try_from(shell.spawn().context("run sh")?.id())?);
    forward(child)?;
    waitpid(child, Some(WaitPidFlag::WUNTRACED)).context("wait for sh")?;
    let options = Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(child, options).context("trace")?;
    kill(child, Signal::SIGCONT)?;
    let mut traced = Traced::new(child, arguments)?;
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return Ok(code == 0),
            Ok(WaitStatus::Signaled(pid, ..)) if pid == child => return Ok(false),
            Ok(status) => match traced.event(status) {
                Err(error) if is_gone(&error) => {}
                other => other?,
            },
            Err(Errno::EINTR) => {}
            Err(error) => bail!("wait for {child}: {error}"),
        }
    }
}

/// Whether a process was killed while it was handled: ptrace does not find it, and its memory is gone.
fn is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref() == Some(&Errno::ESRCH)
        || error.downcast_ref::<io::Error>().is_some_and(|error| {
            error.raw_os_error() == Some(nix::libc::ESRCH)
                || matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::WriteZero
                )
        })
}

/// Passes signals on. They are blocked after the child was started, which would inherit that.
fn forward(child: Pid) -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT]);
    signals.thread_block()?;
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            if kill(child, signal).is_err() {
                return;
            }
        }
    });
    Ok(())
}

struct Traced {
    child: Pid,
    daemon: Program,
    shim: Option<Program>,
    /// Processes that execute the shim. What they fork has copies of their breakpoints.
    shims: BTreeSet<Pid>,
    started: bool,
}

struct Program {
    path: PathBuf,
    length: u64,
    /// The addresses of the functions in the file.
    addresses: Vec<u64>,
    /// By address in memory. Those that were executed stay: two threads may reach one breakpoint at once.
    functions: BTreeMap<u64, Function>,
    record: File,
}

struct Function {
    /// In the file.
    address: u64,
    /// The instruction that the breakpoint replaced.
    code: Vec<u8>,
    executed: bool,
}

fn memory(pid: Pid) -> Result<File> {
    File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).context("open the memory")
}

impl Program {
    fn new(path: &Path, functions: &Path, record: &Path) -> Result<Self> {
        let mut addresses = Vec::new();
        for line in fs::read_to_string(functions).context("read the functions")?.lines() {
            addresses.push(u64::from_str_radix(line, 16).context("an address")?);
        }
        let record =
            File::create(record.join(std::process::id().to_string())).context("create the record")?;
        let path = fs::canonicalize(path)?;
        let length = fs::metadata(&path)?.len();
        Ok(Self { path, length, addresses, functions: BTreeMap::new(), record })
    }

    /// Whether a process executes it. A shim is executed from a mount of its own, so only its length tells.
    fn is_executed_by(&self, pid: Pid) -> bool {
        fs::metadata(format!("/proc/{pid}/exe")).is_ok_and(|file| file.len() == self.length)
    }

    /// Places the breakpoints of the functions that were not executed yet. `base`: where the file begins in memory.
    fn place(&mut self, pid: Pid, base: u64) -> Result<()> {
        let memory = memory(pid)?;
        for address in &self.addresses {
            let at = base + address;
            let function = match self.functions.entry(at) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let mut code = BREAKPOINT.0.to_vec();
                    memory.read_exact_at(&mut code, at)?;
                    new.insert(Function { address: *address, code, executed: false })
                }
            };
            if !function.executed {
                memory.write_all_at(BREAKPOINT.0, at)?;
            }
        }
        Ok(())
    }

    /// Removes the breakpoint that a thread has reached, from the memory of its process: others may have copies. False
    /// if it is none of this program.
    fn reached(&mut self, pid: Pid, records: bool) -> Result<bool> {
        let mut registers = ptrace::getregs(pid)?;
        let at = program_counter(&mut registers);
        let Some(function) = self.functions.get_mut(&at.wrapping_sub(BREAKPOINT.1)) else { return Ok(false) };
        *at -= BREAKPOINT.1;
        let at = *at;
        memory(pid)?.write_all_at(&function.code, at)?;
        if BREAKPOINT.1 > 0 {
            ptrace::setregs(pid, registers)?;
        }
        if records && !function.executed {
            function.executed = true;
            writeln!(self.record, "{:x}", function.address)?;
        }
        Ok(true)
    }
}

impl Traced {
    fn new(child: Pid, arguments: &Arguments) -> Result<Self> {
        let daemon = Program::new(&arguments.program, &arguments.functions, &arguments.record)?;
        let shim = arguments
            .shim
            .as_ref()
            .zip(arguments.shim_functions.as_ref())
            .zip(arguments.shim_record.as_ref());
        let shim =
            shim.map(|((path, functions), record)| Program::new(path, functions, record)).transpose()?;
        Ok(Self { child, daemon, shim, shims: BTreeSet::new(), started: false })
    }

    fn event(&mut self, status: WaitStatus) -> Result<()> {
        match status {
            WaitStatus::PtraceEvent(pid, _, event) if event == Event::PTRACE_EVENT_EXEC as i32 => {
                self.executes(pid)?;
            }
            WaitStatus::PtraceEvent(pid, ..) => ptrace::cont(pid, None)?,
            WaitStatus::Stopped(pid, Signal::SIGTRAP) => {
                if !self.daemon.reached(pid, true)?
                    && let Some(shim) = &mut self.shim
                {
                    shim.reached(pid, self.shims.contains(&pid))?;
                }
                ptrace::cont(pid, None)?;
            }
            WaitStatus::Stopped(pid, signal) => ptrace::cont(pid, signal)?,
            _ => {}
        }
        Ok(())
    }

    /// A process executes a program. One that is not traced is let go.
    fn executes(&mut self, pid: Pid) -> Result<()> {
        if pid == self.child && !self.started {
            self.started = true;
            self.daemon.place(pid, base(pid, &self.daemon.path)?)?;
        } else if let Some(shim) = self.shim.as_mut().filter(|shim| shim.is_executed_by(pid)) {
            self.shims.insert(pid);
            // It is linked to a fixed address.
            shim.place(pid, 0)?;
        } else {
            return Ok(ptrace::detach(pid, None)?);
        }
        Ok(ptrace::cont(pid, None)?)
    }
}

#[cfg(target_arch = "x86_64")]
fn program_counter(registers: &mut nix::libc::user_regs_struct) -> &mut u64 {
    &mut registers.rip
}

#[cfg(target_arch = "aarch64")]
fn program_counter(registers: &mut nix::libc::user_regs_struct) -> &mut u64 {
    &mut registers.pc
}

/// Where the program's file begins in the memory of the process.
fn base(pid: Pid, program: &Path) -> Result<u64> {
    let program = program.display().to_string();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("read the mappings")?;
    let first = maps.lines().find(|line| line.ends_with(&program)).context("the program is not mapped")?;
    let start = first.split('-').next().unwrap_or_default();
    Ok(u64::from_str_radix(start, 16)?)
}
