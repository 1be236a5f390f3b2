//! Signals as something to read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd as Inner};

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
