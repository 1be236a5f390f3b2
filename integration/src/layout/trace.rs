//! Runs a program and records which of its functions are executed. Each function begins with a breakpoint that is removed
//! when it is reached, so the program is as fast as ever after a moment, and is asked for nothing that it would not do.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
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
    let record =
        File::create(arguments.record.join(std::process::id().to_string())).context("create the record")?;
    let mut traced = Traced { child, record, functions: BTreeMap::new(), started: false };
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return Ok(code == 0),
            Ok(WaitStatus::Signaled(pid, ..)) if pid == child => return Ok(false),
            Ok(status) => match traced.event(status, arguments) {
                // The thread was killed meanwhile.
                Err(error) if error.downcast_ref() == Some(&Errno::ESRCH) => {}
                other => other?,
            },
            Err(Errno::EINTR) => {}
            Err(error) => bail!("wait for {child}: {error}"),
        }
    }
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
    record: File,
    /// By address in memory: the address in the file and the instruction that the breakpoint replaced. Those that were
    /// executed stay: two threads may reach one breakpoint at once.
    functions: BTreeMap<u64, Function>,
    started: bool,
}

struct Function {
    address: u64,
    code: Vec<u8>,
    executed: bool,
}

fn memory(pid: Pid) -> Result<File> {
    File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).context("open the memory")
}

impl Traced {
    fn event(&mut self, status: WaitStatus, arguments: &Arguments) -> Result<()> {
        match status {
            WaitStatus::PtraceEvent(pid, _, event) if event == Event::PTRACE_EVENT_EXEC as i32 => {
                if pid == self.child && !self.started {
                    self.started = true;
                    self.place(arguments)?;
                } else {
                    // Another program.
                    return Ok(ptrace::detach(pid, None)?);
                }
                ptrace::cont(pid, None)?;
            }
            WaitStatus::PtraceEvent(pid, ..) => ptrace::cont(pid, None)?,
            WaitStatus::Stopped(pid, Signal::SIGTRAP) => {
                self.reached(pid)?;
                ptrace::cont(pid, None)?;
            }
            WaitStatus::Stopped(pid, signal) => ptrace::cont(pid, signal)?,
            _ => {}
        }
        Ok(())
    }

    /// Places the breakpoints.
    fn place(&mut self, arguments: &Arguments) -> Result<()> {
        let base = base(self.child, &arguments.program)?;
        let memory = memory(self.child)?;
        for line in fs::read_to_string(&arguments.functions).context("read the functions")?.lines() {
            let address = u64::from_str_radix(line, 16).context("an address")?;
            let mut code = BREAKPOINT.0.to_vec();
            memory.read_exact_at(&mut code, base + address)?;
            memory.write_all_at(BREAKPOINT.0, base + address)?;
            self.functions.insert(base + address, Function { address, code, executed: false });
        }
        Ok(())
    }

    /// Removes the breakpoint that a thread has reached, from the memory of its process: others may have copies.
    fn reached(&mut self, pid: Pid) -> Result<()> {
        let mut registers = ptrace::getregs(pid)?;
        let at = program_counter(&mut registers);
        let Some(function) = self.functions.get_mut(&at.wrapping_sub(BREAKPOINT.1)) else { return Ok(()) };
        *at -= BREAKPOINT.1;
        let at = *at;
        memory(pid)?.write_all_at(&function.code, at)?;
        if BREAKPOINT.1 > 0 {
            ptrace::setregs(pid, registers)?;
        }
        if !function.executed {
            function.executed = true;
            writeln!(self.record, "{:x}", function.address)?;
        }
        Ok(())
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
    let program = fs::canonicalize(program)?.display().to_string();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("read the mappings")?;
    let first = maps.lines().find(|line| line.ends_with(&program)).context("the program is not mapped")?;
    let start = first.split('-').next().unwrap_or_default();
    Ok(u64::from_str_radix(start, 16)?)
}
