//! The mount namespace in which libcontainer runs until init enters the container's.
//!
//! libcontainer makes cgroups of its own and moves init there, in every cgroup v1 hierarchy whose mount it finds in
//! /proc/self/mountinfo. A volume may show the host's: /sys/fs/cgroup, /sys or / of the host. In such a cgroup the
//! container would have neither its limits nor its device rules, and nobody would remove it. So libcontainer gets a
//! namespace that has no cgroup file system, and nothing of the container.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use sys::mount::{self, Attributes};

use super::stage::{Step, internal};
use super::tree::{self, Kind};

const STAGE: &str = "a mount namespace without cgroups";
/// The only mount of the pod's namespace that has others below it (`podns`), among them those of cgroups.
const SYS: &str = "/sys";
/// Size in bytes of the file system that replaces it.
const SIZE: u64 = 4096;

/// Moves the caller to a copy of the pod's mount namespace without cgroups. libcontainer finds a tmpfs at
/// /sys/fs/cgroup, which means cgroup v1 to it, and no hierarchy of that.
pub(super) fn enter(pod: BorrowedFd<'_>) -> Step<()> {
    let enter = || {
        sys::namespace::enter_mount(pod)?;
        sys::namespace::unshare_mount()?;
        // With all that is mounted below it. The pod's namespace is private: nothing is mounted here later.
        mount::detach(Path::new(SYS))?;
        let empty = mount::tmpfs(0o755, SIZE, Attributes::default())?;
        tree::make(empty.as_fd(), "/fs/cgroup", Kind::Directory)?;
        mount::attach_at(empty.as_fd(), Path::new(SYS))
    };
    enter().map_err(internal(STAGE, SYS))
}
