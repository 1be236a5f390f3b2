//! What all drivers and jobs share: paths, stores and clients.

use crate::apparmor::AppArmor;
use crate::cgroups::Cgroups;
use crate::error::Error;
use crate::lanes;
use crate::pod::inputs::Inputs;
use crate::root::Root;
use crate::seccomp::Compiler;
use crate::selinux::Selinux;
use crate::shims::spawn::Binaries;
use image::ImageStore;
use network::Cni;
use serde::Serialize;
use state::Layout;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use sys::tree::Trash;

/// The parts of a node.
#[derive(Debug)]
pub(crate) struct NodeOptions {
    /// All paths. The folders exist, and this daemon has locked them.
    pub(crate) layout: Layout,
    /// Whether the durable folder accepts writes.
    pub(crate) root: Root,
    /// The id of this boot ([`state::boot::id`]).
    pub(crate) boot_id: String,
    /// The image store.
    pub(crate) images: ImageStore,
    /// The CNI client.
    pub(crate) cni: Cni,
    /// Cgroups.
    pub(crate) cgroups: Cgroups,
    /// The seccomp compiler.
    pub(crate) compiler: Arc<Compiler>,
    /// AppArmor.
    pub(crate) apparmor: AppArmor,
    /// SELinux.
    pub(crate) selinux: Selinux,
    /// Path of `copepod-shim`.
    pub(crate) shim_binary: PathBuf,
    /// Path of `pause`.
    pub(crate) pause_binary: PathBuf,
    /// Mount namespace in which volumes are looked up, for example `/proc/1/ns/mnt`.
    pub(crate) mount_namespace: PathBuf,
    /// Folder of the pinned network namespaces: `/run/netns`.
    pub(crate) netns_dir: PathBuf,
    /// Time limit for setting up one container's file systems and init.
    pub(crate) create_timeout: Duration,
}

/// What all drivers and jobs share. Fields without a comment: see [`NodeOptions`].
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) layout: Layout,
    /// Removed containers' folders are moved here.
    pub(crate) trash: Trash,
    pub(crate) root: Root,
    pub(crate) boot_id: String,
    pub(crate) images: ImageStore,
    pub(crate) cni: Cni,
    pub(crate) cgroups: Cgroups,
    pub(crate) compiler: Arc<Compiler>,
    pub(crate) apparmor: AppArmor,
    pub(crate) selinux: Selinux,
    pub(crate) binaries: Binaries,
    /// Mount namespace in which volumes are looked up.
    pub(crate) mount_namespace: OwnedFd,
    pub(crate) netns_dir: PathBuf,
    pub(crate) create_timeout: Duration,
    /// The daemon's capability bounding set: no container gets more.
    pub(crate) cap_bounding: u64,
    /// The node's host name.
    pub(crate) node_name: String,
    /// Inputs of attached clients.
    pub(crate) inputs: Arc<Inputs>,
}

impl Context {
    /// Opens and reads what does not change while the daemon runs.
    pub(crate) async fn new(options: NodeOptions) -> Result<Self, Error> {
        blocking("open the node", move || {
            let NodeOptions { layout, root, boot_id, images, cni, cgroups, compiler, apparmor, selinux, .. } =
                options;
            let (shim, pause) = (&options.shim_binary, &options.pause_binary);
            let trash = Trash::new(layout.trash_dir(), |error| {
                tracing::warn!(%error, "cannot delete a folder in the trash; it is retried later and at the next start of the daemon");
            });
            Ok(Self {
                layout,
                trash,
                root,
                boot_id,
                images,
                cni,
                cgroups,
                compiler,
                apparmor,
                selinux,
                binaries: Binaries::open(shim, pause)?,
                mount_namespace: mount_namespace(&options.mount_namespace)?,
                netns_dir: options.netns_dir,
                create_timeout: options.create_timeout,
                cap_bounding: cap_bounding()?,
                node_name: node_name()?,
                inputs: Arc::default(),
            })
        })
        .await
    }

    /// Writes a record. Blocking.
    pub(crate) fn write<T: Serialize>(
        &self,
        path: &Path,
        kind: &str,
        record: &T,
        durable: bool,
    ) -> Result<(), Error> {
        self.write_within(state::file::MAX_BYTES, path, kind, record, durable)
    }

    /// Writes a record of at most `limit` bytes. Blocking.
    pub(crate) fn write_within<T: Serialize>(
        &self,
        limit: u64,
        path: &Path,
        kind: &str,
        record: &T,
        durable: bool,
    ) -> Result<(), Error> {
        let written = state::file::write_within(limit, path, kind, &self.boot_id, record, durable);
        if matches!(written, Err(state::Error::Io { .. })) {
            self.root.check_soon();
        }
        Ok(written?)
    }
}

fn cap_bounding() -> Result<u64, Error> {
    let path = "/proc/self/status";
    let text = std::fs::read_to_string(path).map_err(|error| Error::of(format!("read {path}"), error))?;
    let hex = text.lines().find_map(|line| line.strip_prefix("CapBnd:")).map(str::trim).unwrap_or_default();
    u64::from_str_radix(hex, 16).map_err(|error| Error::of(format!("{path}: CapBnd {hex:?}"), error))
}

fn node_name() -> Result<String, Error> {
    let path = "/proc/sys/kernel/hostname";
    let text = std::fs::read_to_string(path).map_err(|error| Error::of(format!("read {path}"), error))?;
    Ok(text.trim().to_owned())
}

/// Runs work that may block on the disk of `root`, without counting it to a pod's share of the lane: work that belongs to
/// no pod, or that must not wait for other work of its pod, such as writing a record. Other work of a pod uses
/// [`lanes::run`].
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let _step = progress::enter(what, lanes::advice(lanes::records()));
    match lanes::records().run(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::from(error).context(what)),
    }
}

/// Opens the mount namespace in which volumes are looked up. If that of PID 1 may not be opened, the daemon's own is
/// used, which is the same unless the service manager has created one for the daemon.
fn mount_namespace(path: &Path) -> Result<OwnedFd, Error> {
    let open = |path: &Path| std::fs::File::open(path).map(OwnedFd::from);
    match open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            tracing::warn!(path = %path.display(), %error, "volumes are looked up in the daemon's own mount namespace");
            open(Path::new("/proc/self/ns/mnt"))
        }
        opened => opened,
    }
    .map_err(|error| Error::of(format!("open the mount namespace {}", path.display()), error))
}

/// 32 random bytes for an id. Reading /dev/urandom does not block.
pub(crate) fn random() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Error::of("read /dev/urandom", error))?;
    Ok(bytes)
}
