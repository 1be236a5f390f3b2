//! Signals: as something to read, blocked for a moment, and put back to their defaults (signal(7)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd as Inner};

/// Highest signal number, SIGRTMAX.
const LAST: i32 = 64;
/// Bytes of the kernel's set of signals, which is not the C library's.
const SET_BYTES: usize = size_of::<u64>();

/// Blocks the given signals and reads them. The mask survives fork and execve: children reset it.
#[derive(Debug)]
pub struct SignalFd(Inner);

impl SignalFd {
    /// Non-blocking, close-on-exec.
    ///
    /// # Errors
    /// Out of descriptors; a number that is no signal.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let mut set = SigSet::empty();
        for number in signals {
            set.add(Signal::try_from(*number)?);
        }
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
        Ok(Self(Inner::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// The next pending signal's number; `None` when there is none. One may stand for many of its kind.
    ///
    /// # Errors
    /// read(2).
    pub fn next(&self) -> io::Result<Option<u32>> {
        Ok(self.0.read_signal()?.map(|info| info.ssi_signo))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// All signals are blocked in this thread while it lives.
pub(crate) struct Blocked(SigSet);

impl Blocked {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?))
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // It fails only for sets that are none.
        let restored = self.0.thread_set_mask();
        debug_assert!(restored.is_ok());
    }
}

/// Default actions for every signal, none blocked. Handlers fall at execve by themselves; ignored signals and the
/// mask would stay. Makes system calls only: it may be called between vfork and execve.
pub fn reset() {
    // SIG_DFL, no flags, no restorer, empty mask: the kernel's own struct sigaction is at most 32 bytes.
    let default = [0u64; 4];
    for signal in 1..=LAST {
        // nix knows no real-time signals, and the C library refuses two of them. SIGKILL and SIGSTOP fail, and need
        // it not.
        // SAFETY: rt_sigaction(2) reads `default`, of the size told or more, and writes nothing back. It takes a
        // handler away, if any, and installs no code.
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
    let none = 0u64;
    // Not by nix: the C library's call is not promised to be free of locks.
    // SAFETY: rt_sigprocmask(2) reads one mask of the size told, which lives across the call, and writes nothing.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut::<u64>(),
            SET_BYTES,
        )
    };
}
