//! Forked workers and their packets: each worker has a single task, reports on a socket, and exits.
//!
//! Workers parse plans; the resident shim does not, because its heap must not grow. A packet is a letter and
//! its content; one that begins with `{` is a [`Failure`] from code that does not know packets.
//!
//! A process is reported with its pidfd. By the time the packet is read it may have ended and been reaped, and another
//! child of the shim may have its pid; the pidfd still refers to the process that is meant.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};
use sys::clone::Child;
use wire::{ErrorKind, Failure, Reply, parse_plan};

use crate::failure::{failure, refusal};

/// Largest plan. A seccomp program is its longest part.
const MAX_PLAN: usize = 4 << 20;
/// Largest packet: its content is sent to the daemon in one frame with less than 1 KiB around it.
pub(crate) const MAX_PACKET: usize = wire::MAX_FRAME - 1024;

/// Number of characters that are kept of a text that is too long. JSON escapes cannot make them too long again.
const MAX_TEXT: usize = 1000;

const MADE: u8 = b'P';
const INIT: u8 = b'I';
const STREAMS: u8 = b'L';
const REPLY: u8 = b'R';
const WARNING: u8 = b'W';

/// Which of a request's cgroup folders are used for what: the same fields as in [`crate::descriptors::Cgroups`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct CgroupUses {
    pub(crate) unified: bool,
    pub(crate) memory: Option<usize>,
    pub(crate) freezer: Option<usize>,
    #[serde(default)]
    pub(crate) search_all: bool,
}

/// A packet.
#[derive(Debug)]
pub(crate) enum Packet {
    /// The pid of pause or of the process of an exec. Descriptors: its pidfd, then the one for the daemon, if any.
    Made(u32),
    /// From a container's init, before its worker reports it. Descriptor: its pidfd.
    Init,
    /// The first packet of a container's worker. Its descriptors are the shim's ends: of the start pipe, then either of
    /// the socket for the terminal's master, or of stdout and stderr, and of stdin if it is kept open.
    Streams(CgroupUses),
    /// A warning.
    Warning(String),
    /// The worker has done its task.
    Reply(Reply),
    Failed(Failure),
    /// All processes with the other end have ended or called execve.
    End,
}

/// Reads and parses the plan in a memfd; in a worker only.
pub(crate) fn read_plan<T: serde::de::DeserializeOwned>(plan: BorrowedFd<'_>) -> Result<T, Failure> {
    let json = sys::memfd::read_all(plan, MAX_PLAN);
    parse_plan(&json.map_err(|error| failure(ErrorKind::Internal, "plan", &error))?)
}

/// The worker's end.
pub(crate) struct Reporter(pub(crate) OwnedFd);

impl Reporter {
    fn packet(&self, letter: u8, content: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(content.len() + 1);
        bytes.push(letter);
        bytes.extend_from_slice(content);
        sys::scm::send_with_fds(self.0.as_fd(), &bytes, fds).map(drop)
    }

    /// Reports the created process. `fd`: the descriptor for the daemon.
    pub(crate) fn made(&self, child: &Child, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let fds: Vec<_> = std::iter::once(child.pidfd.as_fd()).chain(fd).collect();
        self.packet(MADE, &child.pid.to_le_bytes(), &fds)
    }

    pub(crate) fn init(&self, pidfd: BorrowedFd<'_>) -> io::Result<()> {
        self.packet(INIT, &[], &[pidfd])
    }

    pub(crate) fn streams(&self, uses: &CgroupUses, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.packet(STREAMS, &serde_json::to_vec(uses)?, fds)
    }

    /// Sends a warning; errors are ignored.
    pub(crate) fn warning(&self, text: &str) {
        drop(self.packet(WARNING, text.as_bytes(), &[]));
    }

    pub(crate) fn reply(&self, reply: &Reply) -> io::Result<()> {
        let mut content = serde_json::to_vec(reply)?;
        if content.len() > MAX_PACKET - 1 {
            let short = match reply {
                Reply::Failed(failure) => Failure { message: beginning(&failure.message), ..failure.clone() },
                Reply::Created { user, home, .. } => {
                    let (groups, home) = (user.groups.len(), home.len());
                    let message = format!(
                        "the image's user has {groups} groups and a home of {home} bytes: more than this runtime \
                         takes ({MAX_PACKET} bytes as text, some 9000 groups)"
                    );
                    refusal(ErrorKind::Invalid, "user", message)
                }
                _ => refusal(ErrorKind::Internal, "worker", "its packet is too long"),
            };
            content = serde_json::to_vec(&Reply::Failed(short))?;
        }
        self.packet(REPLY, &content, &[])
    }

    /// Sends a failure; errors are ignored, because the shim notices that the worker exited.
    pub(crate) fn failed(&self, failure: &Failure) {
        drop(self.reply(&Reply::Failed(failure.clone())));
    }
}

/// A packet, with what has arrived of its descriptors.
pub(crate) struct Received {
    pub(crate) packet: Packet,
    pub(crate) fds: Vec<OwnedFd>,
    /// Some descriptors were lost, because the shim has no free one. The packet still counts: the process that it names
    /// must be known, so that it can be killed.
    pub(crate) lost_fds: bool,
}

/// Reads one packet; `None` if there is none yet.
pub(crate) fn recv(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut fds = Vec::new();
    let (bytes, lost_fds) = match sys::scm::recv(socket, buffer, |fd| fds.push(fd)) {
        Ok(got) => (buffer.get(..got.bytes).unwrap_or_default(), got.lost_fds),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let packet = match bytes.split_first() {
        None => Packet::End,
        Some((&MADE, pid)) => match pid.first_chunk::<4>() {
            Some(pid) => Packet::Made(u32::from_le_bytes(*pid)),
            None => return Err(io::Error::other("a pid is cut")),
        },
        Some((&INIT, _)) => Packet::Init,
        Some((&STREAMS, json)) => Packet::Streams(serde_json::from_slice(json)?),
        Some((&WARNING, text)) => Packet::Warning(String::from_utf8_lossy(text).into_owned()),
        Some((&REPLY, json)) => match serde_json::from_slice(json)? {
            Reply::Failed(failure) => Packet::Failed(failure),
            reply => Packet::Reply(reply),
        },
        Some(_) => Packet::Failed(
            // Text that is no complete failure is escaped when it is encoded for the daemon, and could be too long then.
            serde_json::from_slice(bytes).unwrap_or_else(|_| {
                refusal(ErrorKind::Internal, "worker", beginning(&String::from_utf8_lossy(bytes)))
            }),
        ),
    };
    Ok(Some(Received { packet, fds, lost_fds }))
}

fn beginning(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// Forks a worker for `work`, which gets the worker's end of the socket and copies of `keep`. The child closes all
/// other descriptors except stdio ([`sys::fork::worker`]). It is created in `cgroup`, a folder of v2, unless that may not
/// have processes (EBUSY): then in the shim's. `work` is told whether it is in `cgroup`.
pub(crate) fn fork<F>(
    cgroup: Option<BorrowedFd<'_>>,
    keep: &[BorrowedFd<'_>],
    work: F,
) -> io::Result<(u32, OwnedFd)>
where
    F: FnOnce(Reporter, Vec<OwnedFd>, bool) -> i32 + Clone + 'static,
{
    let (ours, theirs) = sys::scm::packet_pair()?;
    sys::fds::set_nonblocking(ours.as_fd())?;
    let mut kept = keep.to_vec();
    kept.push(theirs.as_fd());
    let begin = move |mut fds: Vec<OwnedFd>, in_cgroup| match fds.pop() {
        Some(socket) => work(Reporter(socket), fds, in_cgroup),
        None => 1,
    };
    let other = begin.clone();
    let pid = match cgroup.map(|cgroup| sys::clone::worker_in(cgroup, &kept, move |fds| begin(fds, true))) {
        Some(Err(error)) if error.kind() != io::ErrorKind::ResourceBusy => return Err(error),
        Some(Ok(pid)) => pid,
        _ => sys::fork::worker(&kept, move |fds| other(fds, false))?,
    };
    Ok((pid, ours))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processes;
    use std::process::Command;

    #[test]
    fn a_user_with_more_groups_than_a_packet_holds_is_a_failure() {
        let (ours, theirs) = sys::scm::packet_pair().unwrap();
        let user = model::User { uid: 1, gid: 1, groups: (0..20_000).collect() };
        Reporter(theirs).reply(&Reply::Created { pid: 1, user, home: "/".to_owned() }).unwrap();
        let received = recv(ours.as_fd(), &mut vec![0; MAX_PACKET]).unwrap().unwrap();
        let Packet::Failed(failure) = received.packet else { panic!("{:?}", received.packet) };
        assert_eq!((failure.kind, failure.stage.as_str()), (ErrorKind::Invalid, "user"));
    }

    #[test]
    fn a_failure_that_was_cut_fits_a_frame() {
        let (ours, theirs) = sys::scm::packet_pair().unwrap();
        let line = format!("{{\"message\":\"{}", "\\\"".repeat(MAX_PACKET));
        sys::scm::send_with_fds(theirs.as_fd(), line.as_bytes(), &[]).unwrap();
        let received = recv(ours.as_fd(), &mut vec![0; MAX_PACKET]).unwrap().unwrap();
        let Packet::Failed(failure) = received.packet else { panic!("{:?}", received.packet) };
        assert!(failure.message.starts_with("{\"message\""), "{failure:?}");
        let reply = wire::Message::Reply(Reply::Failed(failure));
        wire::codec::encode(1, 0, &reply, &mut Vec::new()).unwrap();
    }

    #[test]
    fn a_pidfd_tells_whether_the_reported_process_was_reaped() {
        let (ours, theirs) = sys::scm::packet_pair().unwrap();
        let mut child = Command::new("true").spawn().unwrap();
        let report = || {
            let made = Child { pid: child.id(), pidfd: sys::pidfd::open(child.id()).unwrap() };
            Reporter(theirs.try_clone().unwrap()).made(&made, Some(theirs.as_fd())).unwrap();
        };
        report();
        report();
        let unreaped = || {
            let received = recv(ours.as_fd(), &mut [0; 64]).unwrap().unwrap();
            let Packet::Made(pid) = received.packet else { panic!("{:?}", received.packet) };
            let mut fds = received.fds.into_iter();
            let unreaped = processes::is_unreaped(fds.next(), pid);
            assert!(fds.next().is_some() && !received.lost_fds);
            unreaped
        };
        assert!(unreaped());
        child.wait().unwrap();
        // By now its pid may be that of another child.
        assert!(!unreaped());
    }
}
