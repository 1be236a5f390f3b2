//! Gives volumes the SELinux label of the container's files, before they are mounted. The walk is that of
//! [`sys::selinux::relabel`].

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use sys::selinux::Relabelled;
use wire::MountPlan;

use super::stage::{Step, internal, invalid};

/// Folders of the node that a label of a container would make unusable to the node itself.
const OF_THE_NODE: [&str; 30] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/dev/shm",
    "/etc",
    "/etc/pki",
    "/etc/ssl",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/sbin",
    "/usr/share",
    "/var",
    "/var/lib",
    "/var/lib/kubelet",
    "/var/log",
    "/var/tmp",
];

/// Relabels the source of a volume if its plan says so, in the mount namespace that has it. A file system without labels is
/// no error: the policy decides what a container may do there.
pub(super) fn apply(source: BorrowedFd<'_>, plan: &MountPlan, stage: &str) -> Step<()> {
    if plan.relabel.is_empty() {
        return Ok(());
    }
    if let Some(folder) = of_the_node(source) {
        let text = format!(
            "it is {folder} of the node, which must keep its SELinux labels: mount a folder below it, or ask for no relabelling"
        );
        return Err(invalid(stage, text));
    }
    match sys::selinux::relabel(source, &plan.relabel) {
        Ok(Relabelled::Fits | Relabelled::Done { .. } | Relabelled::Unsupported) => Ok(()),
        Err(error) => {
            let what = format!("SELinux label {} for {}", plan.relabel, error.path.display());
            Err(internal(stage, what)(error.source))
        }
    }
}

/// Which of [`OF_THE_NODE`] it is, by whatever path it was opened.
fn of_the_node(source: BorrowedFd<'_>) -> Option<&'static str> {
    let own = identity(source, Path::new(""))?;
    OF_THE_NODE.into_iter().find(|path| identity(CWD, Path::new(path)) == Some(own))
}

/// The device and the inode of `path`, or of `at` if `path` is empty. Only what the kernel knows already, and nothing is
/// mounted on demand: one of the node's folders may be on a server that does not answer (NFS), which no other volume must
/// wait for.
fn identity(at: BorrowedFd<'_>, path: &Path) -> Option<(u32, u32, u64)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let facts = statx(at, path, flags, StatxFlags::INO).ok()?;
    Some((facts.stx_dev_major, facts.stx_dev_minor, facts.stx_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use wire::MountKind;

    fn relabelled(path: &Path) -> Step<()> {
        let source = path.to_str().unwrap().to_owned();
        let kind = MountKind::File { source };
        let plan = MountPlan { relabel: "u:r:t:s0:c1,c2".to_owned(), ..MountPlan::new("/data", kind) };
        apply(File::open(path).unwrap().as_fd(), &plan, "volume /data")
    }

    #[test]
    fn folders_of_the_node_are_refused_by_any_path() {
        for path in ["/", "/etc", "/etc/../usr/./lib", "/proc/self/root/var/lib"] {
            let refused = relabelled(Path::new(path)).unwrap_err();
            assert!(refused.message.contains("of the node"), "{path}: {refused:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/etc", &link).unwrap();
        assert!(relabelled(&link).is_err());
    }

    #[test]
    fn nothing_is_done_without_a_label() {
        let plan = MountPlan::new("/data", MountKind::File { source: "/etc".to_owned() });
        assert!(apply(File::open("/etc").unwrap().as_fd(), &plan, "volume /data").is_ok());
    }
}
