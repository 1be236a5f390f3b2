//! The peer of a unix socket (SO_PEERCRED, unix(7)).

use std::io;
use std::os::fd::BorrowedFd;

// rustix takes the pid for non-zero, which that of a process in another PID namespace is not.
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// User of the process at the other end, as it was when it connected.
///
/// # Errors
/// getsockopt(2).
pub fn uid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(getsockopt(&socket, PeerCredentials)?.uid())
}

/// Pid of the peer in the caller's PID namespace: the process that called connect(2), or for a client's
/// socket the one that called listen(2). It may have ended. `None` if it is in another namespace.
///
/// # Errors
/// getsockopt(2).
pub fn pid(socket: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let peer = getsockopt(&socket, PeerCredentials)?;
    Ok(u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0))
}
