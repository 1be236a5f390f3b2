//! Clients that see a container's output beside its log.
//!
//! Each has pipes, of which this is the writing side. What a full pipe does not take is dropped, so that a client that
//! reads slowly, or not at all, delays neither the log nor the container. A client can ask to be told when this
//! happens.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;
use wire::{ErrorKind, Failure};

use crate::failure::{failure, refusal};

/// Maximum number of clients of a container at a time.
const MAX: usize = 16;

/// All clients of a container.
#[derive(Debug, Default)]
pub(crate) struct Attached(Vec<Client>);

#[derive(Debug)]
struct Client {
    /// Closed when the container has exited.
    end: OwnedFd,
    /// A byte is written to `end` when output is dropped.
    tell_loss: bool,
    /// stdout or the terminal, and stderr, if it wants them.
    outputs: [Option<OwnedFd>; 2],
}

impl Attached {
    /// Adds a client by the descriptors of its request: the one that tells the end, then one for each wanted output.
    pub(crate) fn add(
        &mut self,
        fds: Vec<OwnedFd>,
        wanted: [bool; 2],
        tell_loss: bool,
    ) -> Result<(), Failure> {
        // On a silent container nothing is written that would show that a client has gone.
        self.0.retain(|client| sys::fds::has_reader(client.end.as_fd()));
        if self.0.len() >= MAX {
            let message = format!("{MAX} clients are attached to the container: one must leave first");
            return Err(refusal(ErrorKind::Exhausted, "attach", message));
        }
        let few = || refusal(ErrorKind::Invalid, "attach", "a pipe is missing");
        let mut fds = fds.into_iter();
        let end = fds.next().ok_or_else(few)?;
        let [mut stdout, mut stderr] = [None, None];
        for (wanted, place) in wanted.into_iter().zip([&mut stdout, &mut stderr]) {
            if wanted {
                let fd = fds.next().ok_or_else(few)?;
                sys::fds::set_nonblocking(fd.as_fd())
                    .map_err(|error| failure(ErrorKind::Internal, "attach", &error))?;
                *place = Some(fd);
            }
        }
        self.0.push(Client { end, tell_loss, outputs: [stdout, stderr] });
        Ok(())
    }

    /// Gives all clients what was read from an output: stdout or the terminal (0), or stderr (1).
    pub(crate) fn write(&mut self, which: usize, bytes: &[u8]) {
        if self.0.is_empty() {
            return;
        }
        self.0.retain_mut(|client| client.write(which, bytes));
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
    }

    /// Tells all clients that the container has exited.
    pub(crate) fn end(&mut self) {
        self.0 = Vec::new();
    }
}

impl Client {
    /// Whether the client is still there.
    fn write(&mut self, which: usize, bytes: &[u8]) -> bool {
        let Some(Some(fd)) = self.outputs.get(which) else { return true };
        match rustix::io::write(fd, bytes) {
            Ok(count) if count == bytes.len() => true,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {
                if std::mem::take(&mut self.tell_loss) {
                    // The pipe is empty, so this does not wait. If it fails, the client has gone.
                    let _told = rustix::io::write(&self.end, &[0]);
                }
                true
            }
            // Nobody reads any more. SIGPIPE is ignored: the Rust runtime does that at the start of a program.
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(attached: &mut Attached) -> (OwnedFd, [OwnedFd; 2]) {
        let ((end, a), (out, b), (err, c)) =
            (sys::scm::pipe().unwrap(), sys::scm::pipe().unwrap(), sys::scm::pipe().unwrap());
        attached.add(vec![a, b, c], [true, true], true).unwrap();
        (end, [out, err])
    }

    fn read(fd: &OwnedFd) -> Vec<u8> {
        let mut buffer = [0; 256];
        let count = sys::fds::read(fd.as_fd(), &mut buffer).unwrap();
        buffer[..count].to_vec()
    }

    #[test]
    fn all_clients_get_the_same() {
        let mut attached = Attached::default();
        let (first, second) = (client(&mut attached), client(&mut attached));
        attached.write(0, b"out");
        attached.write(1, b"err");
        for (_, [out, err]) in [&first, &second] {
            assert_eq!((read(out), read(err)), (b"out".to_vec(), b"err".to_vec()));
        }
        attached.end();
        assert!(read(&first.0).is_empty() && read(&first.1[0]).is_empty(), "the end");
    }

    #[test]
    fn a_client_that_does_not_read_delays_nobody() {
        let mut attached = Attached::default();
        let (slow, fast) = (client(&mut attached), client(&mut attached));
        for number in 0..10_000u32 {
            let bytes = number.to_le_bytes().repeat(64);
            attached.write(0, &bytes);
            assert_eq!(read(&fast.1[0]), bytes);
        }
        attached.end();
        assert_eq!((read(&slow.0), read(&slow.0)), (vec![0], vec![]), "it is told once");
        assert!(read(&fast.0).is_empty(), "it has lost nothing");
    }

    #[test]
    fn clients_that_have_gone_make_room() {
        let mut attached = Attached::default();
        for _ in 0..3 * MAX {
            drop(client(&mut attached));
        }
        let _there: Vec<_> = (0..MAX - attached.0.len()).map(|_| client(&mut attached)).collect();
        attached.write(0, b"x");
        assert!(attached.0.len() < MAX);
        let there: Vec<_> = (attached.0.len()..MAX).map(|_| client(&mut attached)).collect();
        let (_end, full) = sys::scm::pipe().unwrap();
        assert_eq!(attached.add(vec![full], [false; 2], false).unwrap_err().kind, ErrorKind::Exhausted);
        drop(there);
        let (_end, again) = sys::scm::pipe().unwrap();
        attached.add(vec![again], [false; 2], false).unwrap();
    }
}
