//! Resource limits by kernel number (setrlimit(2)), and the nice value.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The resources in the order of the kernel's numbers (asm-generic/resource.h).
const RESOURCES: [Resource; 16] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];

/// A soft and a hard limit; `u64::MAX` means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    soft: u64,
    hard: u64,
}

impl Limit {
    fn of(resource: Resource) -> Self {
        let now = getrlimit(resource);
        Self { soft: now.current.unwrap_or(u64::MAX), hard: now.maximum.unwrap_or(u64::MAX) }
    }

    /// Sets it as the calling process's limit of open files. Makes one system call and allocates nothing.
    pub(crate) fn apply_to_open_files(self) -> Result<(), Errno> {
        self.apply(Resource::Nofile)
    }

    fn apply(self, resource: Resource) -> Result<(), Errno> {
        let some = |limit| Some(limit).filter(|limit| *limit != u64::MAX);
        setrlimit(resource, Rlimit { current: some(self.soft), maximum: some(self.hard) })
    }
}

/// Sets a limit of the calling process. If the hard limit cannot be raised (no CAP_SYS_RESOURCE, or above
/// fs.nr_open), both values are reduced to it.
///
/// # Errors
/// EINVAL for an unknown resource or a soft limit above the hard one.
pub fn set(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let place = usize::try_from(resource).ok();
    let resource = *place.and_then(|place| RESOURCES.get(place)).ok_or(Errno::INVAL)?;
    match (Limit { soft, hard }).apply(resource) {
        Err(Errno::PERM) => {
            let max = Limit::of(resource).hard;
            Ok(Limit { soft: soft.min(max), hard: hard.min(max) }.apply(resource)?)
        }
        other => Ok(other?),
    }
}

/// Sets the calling process's nice value to 0; errors are ignored.
pub(crate) fn reset_nice() {
    let _ = rustix::process::setpriority_process(None, 0);
}

/// Soft limit of open files that this process was started with; [`UNCHANGED`] until it was raised.
static ORIGINAL: AtomicU64 = AtomicU64::new(UNCHANGED);
const UNCHANGED: u64 = u64::MAX;
/// Open files that the daemon or a shim may need: pipes, sockets and cgroup folders of every container.
const NEEDED: u64 = 65_536;

/// Raises the soft limit of open files as far as needed and allowed by the hard limit. Programs that are
/// started later must get the original limit: [`restore_open_files`].
///
/// # Errors
/// prlimit(2).
pub fn raise_open_files() -> io::Result<()> {
    let now = Limit::of(Resource::Nofile);
    let soft = now.hard.min(NEEDED);
    if soft > now.soft {
        Limit { soft, ..now }.apply_to_open_files()?;
        ORIGINAL.store(now.soft, Ordering::Relaxed);
    }
    Ok(())
}

/// The limit of open files for programs that this process starts, if its own differs.
pub(crate) fn original() -> Option<Limit> {
    let soft = Some(ORIGINAL.load(Ordering::Relaxed)).filter(|soft| *soft != UNCHANGED)?;
    let hard = Limit::of(Resource::Nofile).hard;
    Some(Limit { soft: soft.min(hard), hard })
}

/// In a child: restores the soft limit of open files that its parent was started with.
///
/// # Errors
/// prlimit(2).
pub fn restore_open_files() -> io::Result<()> {
    Ok(original().map_or(Ok(()), Limit::apply_to_open_files)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowers_and_refuses_nonsense() {
        let core = Resource::Core;
        let hard = Limit::of(core).hard;
        set(libc::RLIMIT_CORE, 0, hard).unwrap();
        assert_eq!(Limit::of(core), Limit { soft: 0, hard });
        assert_eq!(set(16, 0, 0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(set(libc::RLIMIT_CORE, 2, 1).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn resources_stand_at_their_numbers() {
        for (resource, place) in RESOURCES.into_iter().zip(0u32..) {
            assert_eq!(resource as u32, place, "{resource:?}");
        }
    }
}
