//! The streams of a process, as the streaming server uses them.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use streaming::remote::Size;
use streaming::server::{Process, Sink, Source};
use tokio::net::unix::pipe::{Receiver, Sender};

/// The reading side of a pipe, if there is one.
pub(super) fn source(fd: Option<OwnedFd>) -> io::Result<Option<Source>> {
    Ok(match fd {
        Some(fd) => Some(Box::new(Receiver::from_owned_fd(fd)?)),
        None => None,
    })
}

/// The writing side of a pipe, if there is one.
pub(super) fn sink(fd: Option<OwnedFd>) -> io::Result<Option<Sink>> {
    Ok(match fd {
        Some(fd) => Some(Box::new(Sender::from_owned_fd(fd)?)),
        None => None,
    })
}

/// Lets the client write to a terminal and set its size.
pub(super) fn control(process: &mut Process, master: &OwnedFd, stdin: bool) -> io::Result<()> {
    sys::fds::set_nonblocking(master.as_fd())?;
    if stdin {
        process.stdin = Some(Box::new(Sender::from_owned_fd_unchecked(master.try_clone()?)?));
    }
    let master = master.try_clone()?;
    process.resize = Some(Box::new(move |Size { width, height }| {
        if let Err(error) = sys::pty::set_size(master.as_fd(), width, height) {
            tracing::debug!(%error, "cannot set the size of a terminal");
        }
    }));
    Ok(())
}

/// A terminal's output.
pub(super) fn screen(master: &OwnedFd) -> io::Result<Source> {
    sys::fds::set_nonblocking(master.as_fd())?;
    Ok(Box::new(Receiver::from_owned_fd_unchecked(master.try_clone()?)?))
}
