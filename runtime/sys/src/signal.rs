//! Signals: read by signalfd, sent, blocked temporarily, and reset to their defaults (signal(7)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd as Inner};

/// A child has ended.
pub const CHLD: i32 = libc::SIGCHLD;
/// Continue a stopped process.
pub const CONT: i32 = libc::SIGCONT;
/// Hang up.
pub const HUP: i32 = libc::SIGHUP;
/// Interrupt.
pub const INT: i32 = libc::SIGINT;
/// Kill.
pub const KILL: i32 = libc::SIGKILL;
/// Terminate.
pub const TERM: i32 = libc::SIGTERM;

/// Highest signal number, SIGRTMAX.
const LAST: i32 = 64;
/// Bytes of the kernel's set of signals, which is not the C library's.
const SET_BYTES: usize = size_of::<u64>();

/// Blocks the given signals and reads them. Children inherit the mask, also at execve: they reset it unless
/// they want it (pause).
#[derive(Debug)]
pub struct SignalFd(Inner);

impl SignalFd {
    /// Non-blocking, close-on-exec.
    ///
    /// # Errors
    /// No free descriptor; a number that is no signal.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let mut set = SigSet::empty();
        for number in signals {
            set.add(Signal::try_from(*number)?);
        }
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
        Ok(Self(Inner::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// The number of the next pending signal; `None` if there is none. One may stand for several of the same number.
    ///
    /// # Errors
    /// read(2).
    pub fn next(&self) -> io::Result<Option<i32>> {
        Ok(self.0.read_signal()?.map(|info| info.ssi_signo.cast_signed()))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends SIGKILL to a process by its pid, which must be that of a child that was not reaped: no other process has it.
///
/// # Errors
/// kill(2); InvalidInput for 0 and other numbers that name no single process.
pub fn kill(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)?)
}

/// All signals are blocked in this thread while it lives.
pub(crate) struct Blocked {
    before: u64,
}

impl Blocked {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { before: set_mask(u64::MAX)? })
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let restored = set_mask(self.before);
        debug_assert!(restored.is_ok());
    }
}

/// Default actions for every signal, none blocked. Handlers are lost at execve in any case; ignored signals and the
/// mask would stay. Makes system calls only: it may be called between vfork and execve.
pub fn reset() {
    for signal in 1..=LAST {
        set_default(signal);
    }
    // It fails only for a wrong size.
    drop(set_mask(0));
}

/// For a program that does not know by whom it was started: SIGCHLD has its default action, so that children can be waited
/// for, and no signal is blocked. Called before the first thread is started, because threads inherit the mask.
pub fn undo_inherited() {
    set_default(libc::SIGCHLD);
    // It fails only for a wrong size.
    drop(set_mask(0));
}

fn set_default(signal: i32) {
    // SIG_DFL, no flags, no restorer, an empty mask. The kernel's struct sigaction has at most 32 bytes.
    let default = [0u64; 4];
    // nix knows no real-time signals, and the C library refuses two of them. For SIGKILL and SIGSTOP the call
    // fails; they always have their default actions.
    // SAFETY: rt_sigaction(2) reads `default`, of the size that is passed or more, and writes nothing. It removes
    // a handler, if there is one, and installs none.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            default.as_ptr(),
            std::ptr::null_mut::<u64>(),
            SET_BYTES,
        )
    };
}

/// Sets the calling thread's mask, bit n-1 for signal n, and returns the one before. One system call: those of nix and of
/// the C library leave out the two signals that the C library keeps for itself.
fn set_mask(mask: u64) -> io::Result<u64> {
    let mut before = 0u64;
    // SAFETY: rt_sigprocmask(2) reads one set of the size that is passed and writes one; both live across the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            &raw mut before,
            SET_BYTES,
        )
    };
    if done == 0 { Ok(before) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_signals_are_blocked_for_a_while() {
        let mask = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap().to_owned();
            u64::from_str_radix(&line, 16).unwrap()
        };
        let before = mask();
        let blocked = Blocked::new().unwrap();
        // The kernel leaves out SIGKILL and SIGSTOP.
        assert_eq!(mask(), !(1 << 8 | 1 << 18));
        drop(blocked);
        assert_eq!(mask(), before);
    }
}
