//! The container's own file systems: those that are created for it and show its namespaces, its devices or its cgroups.

use std::os::fd::{AsFd as _, OwnedFd};

use sys::mount::{self, Attributes, FsOption};
use wire::{CgroupPlan, MountKind, MountPlan};

use super::volumes::attributes;

/// The content of a container's /sys/fs/cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cgroups {
    /// v1: a tmpfs with the container's folder of each hierarchy.
    Leaves,
    /// v2 with its own cgroup namespace: a cgroup2 whose root is the container's cgroup.
    Own,
    /// v2 without its own namespace: a bind mount of the host's. A new mount would change the host's options.
    Host,
}

impl Cgroups {
    /// Decided by the plan, because init cannot see the host's /sys any more.
    pub(super) fn of(cgroup: &CgroupPlan, own_namespace: bool) -> Self {
        match (cgroup.unified, own_namespace) {
            (false, _) => Self::Leaves,
            (true, true) => Self::Own,
            (true, false) => Self::Host,
        }
    }
}

/// Creates the file system of a mount that has no source on the host. Where the kernel lets a file system have one SELinux
/// label, it has `label`, and so has the folder of message queues. The files of the others show namespaces, and policies
/// know their labels.
pub(super) fn create(plan: &MountPlan, cgroups: Cgroups, label: &str) -> std::io::Result<OwnedFd> {
    let attributes = attributes(plan);
    match &plan.kind {
        MountKind::Proc => mount::create("proc", &[FsOption::Value("source", "proc")], attributes),
        MountKind::Sysfs => mount::create("sysfs", &[FsOption::Value("source", "sysfs")], attributes),
        MountKind::Mqueue => {
            let queues = mount::create("mqueue", &[FsOption::Value("source", "mqueue")], attributes)?;
            if !label.is_empty() {
                sys::selinux::set_root(queues.as_fd(), label)?;
            }
            Ok(queues)
        }
        MountKind::Devpts => {
            let mut options = vec![
                FsOption::Value("source", "devpts"),
                FsOption::Flag("newinstance"),
                FsOption::Value("ptmxmode", "0666"),
                FsOption::Value("mode", "0620"),
            ];
            options.extend(mount::label(label));
            // The group tty in all distributions.
            options.push(FsOption::Value("gid", "5"));
            mount::create("devpts", &options, attributes).or_else(|error| match options.split_last() {
                // A user namespace may not map the group.
                Some((_, rest)) if mount::errno(&error) == rustix::io::Errno::INVAL.raw_os_error() => {
                    mount::create("devpts", rest, attributes)
                }
                _ => Err(error),
            })
        }
        MountKind::Tmpfs { mode, size } => mount::labelled_tmpfs(*mode, *size, attributes, label),
        MountKind::Cgroup => match cgroups {
            Cgroups::Own => mount::create("cgroup2", &[FsOption::Value("source", "cgroup")], attributes),
            // Leaves are bound below it; it is made read-only after that.
            Cgroups::Leaves => {
                let attributes = Attributes { readonly: false, ..attributes };
                mount::labelled_tmpfs(0o755, 1 << 20, attributes, label)
            }
            Cgroups::Host => Err(std::io::Error::other("bug in copepod: its source was not cloned")),
        },
        MountKind::PodShm | MountKind::Bind { .. } | MountKind::Image { .. } | MountKind::File { .. } => {
            Err(std::io::Error::other("bug in copepod: its source was not cloned"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_for_cgroups_follows_the_plan() {
        let plan = |unified| CgroupPlan { unified, ..CgroupPlan::default() };
        assert_eq!(Cgroups::of(&plan(false), true), Cgroups::Leaves);
        assert_eq!(Cgroups::of(&plan(false), false), Cgroups::Leaves);
        assert_eq!(Cgroups::of(&plan(true), true), Cgroups::Own);
        assert_eq!(Cgroups::of(&plan(true), false), Cgroups::Host);
    }
}
