//! The paths of the files and folders that daemon and shim keep, except cgroups and pinned network namespaces
//! (/run/netns).
//!
//! ```text
//! /var/lib/copepod                     root: survives a reboot
//! ├── lock                             held by the daemon
//! ├── pods/<pod>/
//! │   ├── record                       model::PodRecord
//! │   └── hostname, hosts, resolv.conf bound into the pod's containers
//! ├── containers/<container>/
//! │   ├── record                       model::ContainerRecord
//! │   └── rw/{upper,work}              the writable layer
//! ├── trash/                           folders of removed containers, being deleted
//! ├── network/<pod>                    CNI lease (network crate)
//! ├── images/                          image crate
//! └── aside/                           damaged records, and files that are not records
//! /run/copepod                         run: gone after a reboot
//! ├── lock                             held by the daemon
//! ├── copepod.sock                     CRI
//! └── shims/<pod>/
//!     ├── sock                         the shim's socket
//!     └── exits/<container>            wire::ExitFacts, written by the shim before it reports
//! ```
//! All folders have mode 0700, except the one with the CRI socket, and `upper`, which is the root of the container's file
//! system. Containers get their files by mounts of open descriptors, not by these paths.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use model::{ContainerId, PodId};

use crate::{Error, file};

/// The two folders of a daemon, with every path below them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
    run: PathBuf,
}

macro_rules! below {
    ($($(#[$doc:meta])* $name:ident = $base:ident / $part:literal;)*) => {
        $($(#[$doc])* pub fn $name(&self) -> PathBuf { self.$base.join($part) })*
    };
}

macro_rules! below_id {
    ($($(#[$doc:meta])* $name:ident($id:ident: $kind:ty) = $base:ident / $part:literal;)*) => {
        $($(#[$doc])* pub fn $name(&self, $id: &$kind) -> PathBuf { self.$base($id).join($part) })*
    };
}

impl Layout {
    /// A layout with the folders `root` (durable) and `run` (volatile).
    ///
    /// # Errors
    /// [`Error::Relative`]: paths must not depend on the daemon's working folder.
    pub fn new(root: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Result<Self, Error> {
        let layout = Self { root: root.into(), run: run.into() };
        for path in [&layout.root, &layout.run] {
            if !path.is_absolute() {
                return Err(Error::Relative { path: path.clone() });
            }
        }
        Ok(layout)
    }

    /// The durable folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The volatile folder.
    pub fn run(&self) -> &Path {
        &self.run
    }

    below! {
        /// Locked by the daemon that uses this root.
        root_lock = root / "lock";
        /// One folder per pod.
        pods_dir = root / "pods";
        /// One folder per container.
        containers_dir = root / "containers";
        /// Folders that are being deleted (`sys::tree::Trash`).
        trash_dir = root / "trash";
        /// CNI leases, one file per pod.
        network_dir = root / "network";
        /// The folder of the image store.
        images_dir = root / "images";
        /// Damaged records, and files that are not records, are moved here.
        aside_dir = root / "aside";
        /// Locked by the daemon that uses this run folder.
        run_lock = run / "lock";
        /// One folder per shim.
        shims_dir = run / "shims";
    }

    below_id! {
        /// The pod's record.
        pod_record(pod: PodId) = pod_dir / "record";
        /// `/etc/hostname` of its containers.
        pod_hostname(pod: PodId) = pod_dir / "hostname";
        /// `/etc/hosts` of its containers, if kubelet mounts none.
        pod_hosts(pod: PodId) = pod_dir / "hosts";
        /// `/etc/resolv.conf` of its containers.
        pod_resolv_conf(pod: PodId) = pod_dir / "resolv.conf";
        /// The container's record.
        container_record(container: ContainerId) = container_dir / "record";
        /// Its writable layer, which contains `upper` and `work`.
        container_rw(container: ContainerId) = container_dir / "rw";
        /// The socket of the pod's shim.
        shim_socket(pod: PodId) = shim_dir / "sock";
        /// Exit files of the pod's containers, named by container id.
        exits_dir(pod: PodId) = shim_dir / "exits";
    }

    /// The durable folder of a pod.
    pub fn pod_dir(&self, pod: &PodId) -> PathBuf {
        self.pods_dir().join(pod.as_str())
    }

    /// The durable folder of a container.
    pub fn container_dir(&self, container: &ContainerId) -> PathBuf {
        self.containers_dir().join(container.as_str())
    }

    /// The volatile folder of a pod's shim.
    pub fn shim_dir(&self, pod: &PodId) -> PathBuf {
        self.shims_dir().join(pod.as_str())
    }

    /// The exit file of a container.
    pub fn exit(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.exits_dir(pod).join(container.as_str())
    }

    /// Creates the folders that belong to no single object, durably, with mode 0700, and 0711 for the run folder; existing
    /// ones get that mode. On a read-only file system they are used as they are.
    ///
    /// # Errors
    /// [`Error::NotOurs`] if other software uses the root or the run folder, which is not changed then. Otherwise: which
    /// folder cannot be created.
    pub fn create(&self) -> Result<(), Error> {
        own(&self.root, &ROOT_NAMES, PRIVATE)?;
        own(&self.run, &RUN_NAMES, PASSABLE)?;
        let durable =
            [self.pods_dir(), self.containers_dir(), self.network_dir(), self.images_dir(), self.aside_dir()];
        let mut made = false;
        for dir in durable.iter().chain([&self.shims_dir()]) {
            made |= private(dir, PRIVATE)?;
        }
        // An error is ignored: on a full disk the folder of an earlier version may have no trash, and none can be made.
        // Then removals make it later, or remove in place.
        made |= private(&self.trash_dir(), PRIVATE).unwrap_or(false);
        if made {
            file::sync_dir(&self.root)?;
            if let Some(parent) = self.root.parent() {
                file::sync_dir(parent)?;
            }
        }
        Ok(())
    }

    /// Ids of all pods with a folder, in no order. Names that are not ids are skipped.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn pods(&self) -> Result<Vec<PodId>, Error> {
        ids(&self.pods_dir())
    }

    /// Ids of all containers with a folder, in no order. Names that are not ids are skipped.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn containers(&self) -> Result<Vec<ContainerId>, Error> {
        ids(&self.containers_dir())
    }

    /// Ids of all pods with a shim folder, in no order. Only these can have processes in this boot.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn shims(&self) -> Result<Vec<PodId>, Error> {
        ids(&self.shims_dir())
    }

    /// Ids of the containers of `pod` with an exit file; none if the shim folder does not exist.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn exits(&self, pod: &PodId) -> Result<Vec<ContainerId>, Error> {
        ids(&self.exits_dir(pod))
    }
}

/// The names that copepod creates in its root, and those that a new file system may contain.
const ROOT_NAMES: [&str; 8] =
    ["lock", "pods", "containers", "trash", "network", "images", "aside", "lost+found"];
/// The names that this or an earlier version (`spool`) creates in its run folder, and those that a new file
/// system may contain.
const RUN_NAMES: [&str; 5] = ["lock", "copepod.sock", "shims", "spool", "lost+found"];

/// Creates one of the two top folders, or uses an existing one if it is ours: if it has our lock file, or no names but
/// ours. A wrong argument (`--root /var/lib`) must not change the permissions of a folder that other software uses.
fn own(dir: &Path, names: &[&str], mode: u32) -> Result<(), Error> {
    match fs::read_dir(dir) {
        Ok(entries) if !fs::symlink_metadata(dir.join("lock")).is_ok_and(|lock| lock.is_file()) => {
            for entry in entries {
                let name = entry.map_err(Error::io("list", dir))?.file_name();
                if !names.iter().any(|ours| name == *ours) {
                    let found = name.to_string_lossy().into_owned();
                    return Err(Error::NotOurs { path: dir.to_path_buf(), found });
                }
            }
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // The permissions of parent folders are not changed.
            if let Some(parent) = dir.parent() {
                fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            }
        }
        Err(error) => return Err(Error::io("list", dir)(error)),
    }
    private(dir, mode).map(drop)
}

/// Mode of the folders that only the daemon's user enters.
const PRIVATE: u32 = 0o700;
/// Mode of the folder with the CRI socket, as with containerd: agents that are not root have that folder as a volume. The
/// socket's own mode and group decide who may connect.
const PASSABLE: u32 = 0o711;

/// Creates a folder with this mode, or gives it that. Returns true if it is new.
fn private(dir: &Path, mode: u32) -> Result<bool, Error> {
    let read_only = |error: &std::io::Error| error.raw_os_error() == Some(libc::EROFS);
    let made = match fs::DirBuilder::new().mode(mode).create(dir) {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
        // It does not exist and cannot be created: readers treat it as empty.
        Err(error) if read_only(&error) => return Ok(false),
        Err(error) => return Err(Error::io("create", dir)(error)),
    };
    let facts = fs::metadata(dir).map_err(Error::io("stat", dir))?;
    if !facts.is_dir() {
        return Err(Error::io("use", dir)(std::io::ErrorKind::NotADirectory.into()));
    }
    if facts.permissions().mode() & 0o7777 != mode
        && let Err(error) = fs::set_permissions(dir, fs::Permissions::from_mode(mode))
        && !read_only(&error)
    {
        return Err(Error::io("chmod", dir)(error));
    }
    Ok(made)
}

fn ids<T: std::str::FromStr>(dir: &Path) -> Result<Vec<T>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", dir)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", dir))?;
        found.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_where_the_drawing_says() {
        let layout = Layout::new("/var/lib/copepod", "/run/copepod").unwrap();
        let (pod, container) = (PodId::from_random([1; 32]), ContainerId::from_random([2; 32]));
        let (p, c) = ("01".repeat(32), "02".repeat(32));
        assert_eq!(layout.pod_record(&pod), PathBuf::from(format!("/var/lib/copepod/pods/{p}/record")));
        assert_eq!(
            layout.container_rw(&container),
            PathBuf::from(format!("/var/lib/copepod/containers/{c}/rw"))
        );
        assert_eq!(layout.shim_socket(&pod), PathBuf::from(format!("/run/copepod/shims/{p}/sock")));
        assert_eq!(layout.exit(&pod, &container), PathBuf::from(format!("/run/copepod/shims/{p}/exits/{c}")));
        // sun_path of unix(7) holds 108 bytes with its NUL.
        assert!(layout.shim_socket(&pod).as_os_str().len() < 108);
    }

    #[test]
    fn folders_are_private_and_lists_skip_names_that_are_not_ids() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("root"), dir.path().join("run")).unwrap();
        layout.create().unwrap();
        layout.create().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(layout.root()), mode(&layout.run)), (0o700, 0o711));
        assert_eq!((mode(&layout.shims_dir()), mode(&layout.pods_dir())), (0o700, 0o700));
        let pod = PodId::from_random([7; 32]);
        fs::create_dir(layout.pod_dir(&pod)).unwrap();
        fs::create_dir(layout.pods_dir().join("lost+found")).unwrap();
        assert_eq!(layout.pods().unwrap(), std::slice::from_ref(&pod));
        assert_eq!(layout.exits(&pod).unwrap(), []);
        assert!(matches!(Layout::new("var", "/run"), Err(Error::Relative { .. })));
    }

    /// mkfs.ext4 leaves a folder in the file system that it makes.
    #[test]
    fn both_folders_may_be_new_file_systems() {
        let dir = tempfile::tempdir().unwrap();
        let (root, run) = (dir.path().join("root"), dir.path().join("run"));
        for folder in [&root, &run] {
            fs::create_dir_all(folder.join("lost+found")).unwrap();
        }
        let layout = Layout::new(&root, &run).unwrap();
        layout.create().unwrap();
        assert!(root.join("lost+found").exists() && run.join("lost+found").exists());
    }

    #[test]
    fn folders_of_other_software_are_refused_unchanged() {
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let dir = tempfile::tempdir().unwrap();
        let (theirs, ours) = (dir.path().join("theirs"), dir.path().join("way/ours"));
        fs::create_dir_all(theirs.join("dpkg")).unwrap();
        // One of our names, but not a file, as in /run.
        fs::create_dir(theirs.join("lock")).unwrap();
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o755)).unwrap();
        for (root, run) in [(&theirs, &ours), (&ours, &theirs)] {
            let error = Layout::new(root, run).unwrap().create().unwrap_err();
            assert!(matches!(&error, Error::NotOurs { path, .. } if *path == theirs), "{error}");
        }
        assert_eq!(mode(&theirs), 0o755);
        assert_eq!((mode(&ours), mode(ours.parent().unwrap())), (0o700, 0o755), "parents stay open");
        // The permissions of a folder that is ours are reduced, even if an operator has added files.
        let run = dir.path().join("run");
        fs::write(ours.join("lock"), "").unwrap();
        fs::write(ours.join("notes.txt"), "").unwrap();
        fs::set_permissions(&ours, fs::Permissions::from_mode(0o755)).unwrap();
        Layout::new(&ours, &run).unwrap().create().unwrap();
        assert_eq!(mode(&ours), 0o700);
    }
}
