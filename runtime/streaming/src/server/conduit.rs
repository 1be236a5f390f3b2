//! Bytes on their way from a port's socket to the client's socket, without a copy: splice(2) moves the kernel's pages
//! through a pipe. They are in the pipe before the frame's head is sent, so that the length in the head is true.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{SendFlags, send};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use crate::output::MAX_PAYLOAD;

/// A port whose read has this size will most likely send more, which is worth the pipe's two descriptors. Shorter reads
/// are copied.
pub(super) const BULK: usize = 16 * 1024;

/// The pipe; empty between two frames.
#[derive(Debug)]
pub(super) struct Conduit {
    read: OwnedFd,
    write: OwnedFd,
}

impl Conduit {
    /// A new pipe.
    pub(super) fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { read, write })
    }

    /// Takes what the socket `from` has, at most [`MAX_PAYLOAD`] bytes; 0 at its end. The socket must be non-blocking: the
    /// kernel looks at that and not at splice's own flag, which is for the pipe.
    pub(super) fn fill(&self, from: impl AsFd) -> io::Result<usize> {
        Ok(splice(from, None, &self.write, None, MAX_PAYLOAD, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
    }

    /// Moves at most `count` bytes to a socket, which must not block.
    pub(super) fn drain(&self, to: impl AsFd, count: usize) -> io::Result<usize> {
        Ok(splice(&self.read, None, to, None, count, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
    }
}

/// Sends the head of a frame whose payload [`Conduit::drain`] sends next: the kernel holds a short packet back until then.
pub(super) fn send_head(to: impl AsFd, head: &[u8]) -> io::Result<usize> {
    let flags = SendFlags::MORE | SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(send(to, head, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn bytes_pass_from_socket_to_socket_behind_the_head() {
        let (mut port, from) = sockets();
        let (ours, mut client) = sockets();
        let conduit = Conduit::new().unwrap();
        port.write_all(b"payload").unwrap();
        from.peek(&mut [0]).unwrap();
        from.set_nonblocking(true).unwrap();
        assert_eq!(conduit.fill(&from).unwrap(), 7);
        assert_eq!(send_head(&ours, b"head ").unwrap(), 5);
        assert_eq!(conduit.drain(&ours, 7).unwrap(), 7);
        let mut all = [0; 12];
        client.read_exact(&mut all).unwrap();
        assert_eq!(&all, b"head payload");
        assert_eq!(conduit.fill(&from).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(port);
        from.set_nonblocking(false).unwrap();
        from.peek(&mut [0]).unwrap();
        assert_eq!(conduit.fill(&from).unwrap(), 0);
    }

    #[test]
    fn no_more_than_a_payload_at_a_time() {
        let (mut port, from) = sockets();
        from.set_nonblocking(true).unwrap();
        let conduit = Conduit::new().unwrap();
        let writing = std::thread::spawn(move || port.write_all(&vec![7; 4 * MAX_PAYLOAD]).map(|()| port));
        let (ours, mut client) = sockets();
        let mut got = 0;
        while got < 4 * MAX_PAYLOAD {
            match conduit.fill(&from) {
                Ok(count) => {
                    assert!((1..=MAX_PAYLOAD).contains(&count), "{count}");
                    assert_eq!(conduit.drain(&ours, count).unwrap(), count);
                    client.read_exact(&mut vec![0; count]).unwrap();
                    got += count;
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        drop(writing.join().unwrap().unwrap());
    }
}
