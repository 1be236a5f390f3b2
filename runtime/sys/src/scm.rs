//! Unix sockets: bytes with descriptors (SCM_RIGHTS), pairs, pipes, and accepting connections.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Maximum number of descriptors that are sent or received by one call.
pub const MAX: usize = 32;

/// Sends `bytes`, and descriptors with the first byte. Returns how many bytes were sent; if at least one was,
/// all descriptors were too. Does not raise SIGPIPE.
///
/// # Errors
/// WouldBlock on a full non-blocking socket; sendmsg(2); more than 32 descriptors.
pub fn send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} descriptors", fds.len())));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// What [`recv`] has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Number of bytes; 0 at end of file.
    pub bytes: usize,
    /// Descriptors were lost: there were more than 32, or the process has no free one.
    pub lost_fds: bool,
}

/// Receives bytes, and descriptors (close-on-exec), which are passed to `take` in order.
///
/// # Errors
/// WouldBlock on an empty non-blocking socket; recvmsg(2).
pub fn recv(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    mut take: impl FnMut(OwnedFd),
) -> io::Result<Received> {
    let received = recv_once(socket, buffer, &mut take)?;
    if received.bytes > 0 {
        return Ok(received);
    }
    // For a SOCK_SEQPACKET socket that does not block, the kernel looks for a packet and then for the end of file. A peer
    // that sends and closes in between has its last packet still in the queue; after that nothing more can come.
    recv_once(socket, buffer, &mut take)
}

fn recv_once(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    take: &mut impl FnMut(OwnedFd),
) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fds.for_each(&mut *take);
        }
    }
    Ok(Received { bytes: got.bytes, lost_fds: got.flags.contains(ReturnFlags::CTRUNC) })
}

/// Like [`recv`], but lost descriptors are an error. Returns the number of bytes; 0 means end of file.
///
/// # Errors
/// As for [`recv`]; InvalidData if descriptors were lost (those that arrived were passed to `take`).
pub fn recv_with_fds(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    take: impl FnMut(OwnedFd),
) -> io::Result<usize> {
    let received = recv(socket, buffer, take)?;
    if received.lost_fds {
        let message = "descriptors were lost: there are more than 32, or this process has no free one";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(received.bytes)
}

/// Two connected SOCK_SEQPACKET sockets, close-on-exec: each send is received as one packet.
///
/// # Errors
/// No free descriptor.
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Two connected stream sockets, close-on-exec.
///
/// # Errors
/// No free descriptor.
pub fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// A pipe, `(reading end, writing end)`, close-on-exec.
///
/// # Errors
/// No free descriptor.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// Accepts a connection, non-blocking and close-on-exec; `None` if none is waiting (on a non-blocking listener).
///
/// # Errors
/// accept4(2).
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    use rustix::io::Errno;
    use rustix::net::{SocketFlags, accept_with};
    match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    /// The last packet of a worker that exits at once.
    #[test]
    fn a_packet_before_the_end_is_not_lost() {
        for round in 0..3_000 {
            let (ours, theirs) = packet_pair().unwrap();
            crate::fds::set_nonblocking(ours.as_fd()).unwrap();
            let peer = std::thread::spawn(move || send_with_fds(theirs.as_fd(), b"last", &[]).unwrap());
            let got = loop {
                match recv(ours.as_fd(), &mut [0; 16], |_| ()) {
                    Ok(got) => break got.bytes,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            };
            assert_eq!(got, 4, "round {round}: the end came before the packet");
            peer.join().unwrap();
        }
    }

    #[test]
    fn bytes_and_descriptors_arrive_together() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        assert_eq!(send_with_fds(a.as_fd(), b"hello", &[file.as_fd(), file.as_fd()]).unwrap(), 5);
        let (mut buffer, mut fds) = ([0; 16], Vec::new());
        assert_eq!(recv_with_fds(b.as_fd(), &mut buffer, |fd| fds.push(fd)).unwrap(), 5);
        assert_eq!((&buffer[..5], fds.len()), (&b"hello"[..], 2));
        for fd in &fds {
            assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
        drop(a);
        assert_eq!(recv_with_fds(b.as_fd(), &mut buffer, |_| ()).unwrap(), 0);
    }
}
