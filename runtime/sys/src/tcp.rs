//! What the kernel knows of a TCP connection's peer (TCP_INFO, tcp(7)), which neither nix nor rustix reads.

use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;

/// Whether a peer answers. Its kernel does, also when its program does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answers {
    /// Time since its last acknowledgement or data.
    pub silent: Duration,
    /// Retransmissions, and probes (of keepalive, and of a window of 0), that were sent since then.
    pub unanswered: u32,
}

/// How a connected socket's peer answers.
///
/// # Errors
/// getsockopt(2); InvalidData from a kernel that does not tell.
pub fn answers(socket: BorrowedFd<'_>) -> io::Result<Answers> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let size = size_of::<libc::tcp_info>();
    let mut length = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
    let to = info.as_mut_ptr().cast();
    // SAFETY: `to` has room for `length` bytes, and the kernel writes no more.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut length)
    };
    Errno::result(result)?;
    // The structure grows with the kernel: an older one fills less of it than libc knows, and that is enough.
    let needed = offset_of!(libc::tcp_info, tcpi_last_ack_recv) + size_of::<u32>();
    if usize::try_from(length).is_ok_and(|length| length < needed) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a short TCP_INFO"));
    }
    // SAFETY: its fields are integers, for which all bytes are valid; they were zeroed, and then written by the kernel.
    let info = unsafe { info.assume_init() };
    let silent = info.tcpi_last_ack_recv.min(info.tcpi_last_data_recv);
    Ok(Answers {
        silent: Duration::from_millis(silent.into()),
        unanswered: u32::from(info.tcpi_retransmits) + u32::from(info.tcpi_probes),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;
    use std::thread::sleep;

    use super::*;

    #[test]
    fn silence_lasts_until_the_peer_acknowledges_or_sends() {
        const PAUSE: Duration = Duration::from_millis(400);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let silent = || answers(server.as_fd()).unwrap().silent;
        // The kernel counts in ticks, and may acknowledge later.
        let is_heard = || {
            (0..1000).any(|_| {
                silent() < PAUSE / 2 || {
                    sleep(PAUSE / 200);
                    false
                }
            })
        };
        for from_client in [false, true] {
            sleep(PAUSE);
            assert!(silent() >= PAUSE / 2, "{:?}", silent());
            if from_client {
                client.write_all(b"data").unwrap();
            } else {
                (&server).write_all(b"what is acknowledged, although nobody reads it").unwrap();
            }
            assert!(is_heard(), "from the client: {from_client}");
        }
        assert_eq!(answers(server.as_fd()).unwrap().unanswered, 0);
    }

    #[test]
    fn a_socket_of_another_kind_is_refused() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(answers(socket.as_fd()).is_err());
    }
}
