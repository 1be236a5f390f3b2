//! A level-triggered epoll set with numbers as tokens.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

/// Kinds of events: those that are watched for, or those that have occurred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interest {
    /// Readable, or hung up.
    pub read: bool,
    /// Writable.
    pub write: bool,
}

impl Interest {
    /// Reading only.
    pub const READ: Self = Self { read: true, write: false };
    /// Both.
    pub const BOTH: Self = Self { read: true, write: true };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.read);
        flags.set(EventFlags::OUT, self.write);
        flags
    }
}

/// An event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// The token that was passed to [`Epoll::add`].
    pub token: u64,
    /// `read` is also set for errors and hang-ups, which reading then reports.
    pub interest: Interest,
}

/// An epoll set.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// Creates an empty set, close-on-exec.
    ///
    /// # Errors
    /// No free descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Watches a descriptor.
    ///
    /// # Errors
    /// EEXIST, or EPERM for what cannot be watched (a regular file).
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(token), interest.flags())?)
    }

    /// Changes the events that a descriptor is watched for.
    ///
    /// # Errors
    /// ENOENT.
    pub fn modify(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.0, fd, EventData::new_u64(token), interest.flags())?)
    }

    /// Stops watching a descriptor. Call it before the descriptor is closed: if a child has a copy, closing alone does
    /// not remove it from the set.
    ///
    /// # Errors
    /// ENOENT.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(&self.0, fd)?)
    }

    /// Waits for at most `timeout_ms` (without a limit if `None`) and calls `each` with each event.
    ///
    /// # Errors
    /// epoll_wait(2); an interrupted wait is not an error.
    pub fn wait(&self, timeout_ms: Option<u64>, mut each: impl FnMut(Ready)) -> io::Result<()> {
        let timeout = timeout_ms.map(|ms| Timespec {
            tv_sec: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(ms % 1000).unwrap_or_default() * 1_000_000,
        });
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); 32];
        let ready = match epoll::wait(&self.0, &mut space, timeout.as_ref()) {
            Ok((ready, _)) => ready,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for event in ready {
            let (flags, data) = (event.flags, event.data);
            let read = flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR);
            each(Ready {
                token: data.u64(),
                interest: Interest { read, write: flags.contains(EventFlags::OUT) },
            });
        }
        Ok(())
    }
}
