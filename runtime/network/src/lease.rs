//! Leases on disk: one file per pod, written before its ADD and removed after its DEL.
//!
//! `<pod>` has the arguments of ADD and is synced. `<pod>.result` has the result of ADD. It is not
//! synced: no network namespace survives a reboot, so the result may be lost with one. Both are record files
//! (`state::file`), with magic, checksum and boot id. Files of earlier builds, which had none of these, are read too.
//! `fixtures/lease` has files of every format. They are never changed, so that every later version can run the DEL of pods
//! that a release has attached; fields are only added, so that the version before it can as well.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use model::PodId;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::conf::Network;
use crate::error::Error;

/// Largest lease in bytes: a configuration of at most 1 MiB, and a pod's arguments.
const MAX_BYTES: u64 = 4 << 20;
/// Version of the lease's content; fields are added without changing it.
const VERSION: u32 = 1;

/// Name of the pod's interface, given to the plugins (CNI_IFNAME); Kubernetes uses no other.
pub const IFNAME: &str = "eth0";

/// The file that is locked while GC runs.
pub(crate) const GC: &str = "gc.lock";

/// The kind of a lease's file, and of a result's.
const LEASE: &str = "cni-lease";
const RESULT: &str = "cni-result";

/// Everything that DEL needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub(crate) version: u32,
    pub(crate) pod: PodId,
    pub(crate) ifname: String,
    pub(crate) netns: PathBuf,
    /// CNI_ARGS.
    pub(crate) args: String,
    /// Capability arguments by name; each plugin gets those it asks for.
    pub(crate) capabilities: Map<String, Value>,
    pub(crate) network: Network,
}

/// A lease, and the result of ADD if it succeeded.
pub(crate) type LeaseWithResult = (Lease, Option<Map<String, Value>>);

impl Lease {
    pub(crate) fn new(
        pod: PodId,
        netns: PathBuf,
        args: String,
        caps: Map<String, Value>,
        network: Network,
    ) -> Self {
        let ifname = IFNAME.to_owned();
        Self { version: VERSION, pod, ifname, netns, args, capabilities: caps, network }
    }
}

/// The folder of leases. All calls block.
#[derive(Debug, Clone)]
pub(crate) struct Leases {
    dir: PathBuf,
    /// Of this boot.
    boot_id: String,
}

impl Leases {
    pub(crate) fn new(dir: PathBuf, boot_id: String) -> Self {
        Self { dir, boot_id }
    }

    fn lease_path(&self, pod: &PodId) -> PathBuf {
        self.dir.join(pod.as_str())
    }

    fn result_path(&self, pod: &PodId) -> PathBuf {
        self.dir.join(format!("{pod}.result"))
    }

    /// Writes a lease. Returns once it survives a power loss.
    pub(crate) fn write(&self, lease: &Lease) -> Result<(), Error> {
        let path = self.lease_path(&lease.pod);
        self.write_file(&path, LEASE, lease, true).map_err(failed("write the CNI lease", &path))
    }

    /// Stores the result of ADD.
    pub(crate) fn write_result(&self, pod: &PodId, result: &Map<String, Value>) -> Result<(), Error> {
        let path = self.result_path(pod);
        self.write_file(&path, RESULT, result, false).map_err(failed("write the CNI result", &path))
    }

    fn create_dir(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)
    }

    fn write_file<T: Serialize>(&self, path: &Path, kind: &str, data: &T, durable: bool) -> io::Result<()> {
        self.create_dir()?;
        // The only writer of this pod's files.
        state::file::write_within(MAX_BYTES, path, kind, &self.boot_id, data, durable).map_err(io_error)
    }

    /// The lease and its result. A damaged lease is an error of kind InvalidData; a damaged result is treated as missing.
    pub(crate) fn get(&self, pod: &PodId) -> Result<Option<LeaseWithResult>, Error> {
        let path = self.lease_path(pod);
        let failed = |source| failed("read the CNI lease", &path)(source);
        let Some(lease) = read::<Lease>(&path, LEASE).map_err(failed)? else {
            return Ok(None);
        };
        if lease.version > VERSION {
            // The lease is intact: the later version can use it for DEL.
            let reason = format!("version {}, known is {VERSION}: a later copepod wrote it", lease.version);
            return Err(failed(io::Error::new(io::ErrorKind::Unsupported, reason)));
        }
        let reason =
            if lease.pod != *pod { "it is the lease of another pod" } else { "it has an unknown version" };
        if lease.pod != *pod || lease.version != VERSION {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, reason)));
        }
        let result = read(&self.result_path(pod), RESULT).unwrap_or_else(|error| {
            tracing::warn!(%pod, %error, "cannot read a CNI result; DEL runs without it");
            None
        });
        Ok(Some((lease, result)))
    }

    /// The capability arguments of a lease that was written since the host was booted: what plugins made of those of another
    /// boot is gone with the kernel. Empty without a lease, or if it cannot be read.
    pub(crate) fn capabilities_of_this_boot(&self, pod: &PodId) -> Map<String, Value> {
        let lease = state::file::read::<Lease>(&self.lease_path(pod), LEASE).ok().flatten();
        let lease = lease.filter(|lease| lease.boot_id == self.boot_id);
        lease.map(|lease| lease.data.capabilities).unwrap_or_default()
    }

    /// Takes the lock of this name (flock(2)), the file of a pod's lease or [`GC`], as long as the descriptor or a copy of it
    /// is open; `None` if it is taken. The file of a lease must exist.
    pub(crate) fn lock(&self, name: &str) -> Result<Option<OwnedFd>, Error> {
        let path = self.dir.join(name);
        let create = name == GC;
        if create {
            self.create_dir().map_err(failed("create", &self.dir))?;
        }
        // Creating needs write access.
        let opened = fs::OpenOptions::new().read(true).append(create).create(create).mode(0o600).open(&path);
        let file = OwnedFd::from(opened.map_err(failed("open", &path))?);
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(failed("lock", &path)(error.into())),
        }
    }

    /// Whether there was ever a GC.
    pub(crate) fn had_gc(&self) -> bool {
        self.dir.join(GC).exists()
    }

    /// Removes the lease. Not synced: a DEL that is repeated after a power loss does no harm.
    pub(crate) fn remove(&self, pod: &PodId) -> Result<(), Error> {
        let (result, lease) = (self.result_path(pod), self.lease_path(pod));
        // What a daemon that was killed while writing has left: `hidden` is this build's, `unfinished` that of earlier ones.
        let unfinished = ["result.new", "new"].map(|end| self.dir.join(format!("{pod}.{end}")));
        let hidden = [".result.new", ".new"].map(|end| self.dir.join(format!(".{pod}{end}")));
        for path in unfinished.into_iter().chain(hidden).chain([result, lease]) {
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // The DEL is done, and repeating it at the next start does no harm. Failing here would keep
                // the pod from being removed as long as the disk takes no writes.
                Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                    tracing::warn!(%pod, path = %path.display(), %error, "cannot remove the CNI lease of a detached pod; DEL is repeated at the next start");
                }
                Err(error) => return Err(failed("remove", &path)(error)),
            }
        }
        Ok(())
    }

    /// Removes damaged leases that earlier builds have set aside and never looked at again.
    pub(crate) fn sweep(&self) -> Result<(), Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("list", &self.dir)(error)),
        };
        for entry in entries {
            let path = entry.map_err(failed("list", &self.dir))?.path();
            if path.extension().is_some_and(|end| end == "torn") {
                tracing::warn!(path = %path.display(), "removing a damaged CNI lease that an earlier version has set aside");
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Pods with a lease, sorted.
    pub(crate) fn list(&self) -> Result<Vec<PodId>, Error> {
        let mut pods = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(pods),
            Err(error) => return Err(failed("list", &self.dir)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.dir))?;
            pods.extend(entry.file_name().to_str().and_then(|name| name.parse::<PodId>().ok()));
        }
        pods.sort();
        Ok(pods)
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Lease { action, path, source }
}

/// Its kind is InvalidData if the file itself is bad, and Unsupported if a later build has written it.
fn io_error(error: state::Error) -> io::Error {
    match error {
        state::Error::Io { source, .. } => source,
        error if error.is_bad_file() => io::Error::new(io::ErrorKind::InvalidData, error),
        error @ state::Error::TooLarge { .. } => io::Error::new(io::ErrorKind::FileTooLarge, error),
        error => io::Error::new(io::ErrorKind::Unsupported, error),
    }
}

fn read<T: DeserializeOwned>(path: &Path, kind: &str) -> io::Result<Option<T>> {
    match state::file::read(path, kind) {
        Ok(stored) => Ok(stored.map(|stored| stored.data)),
        Err(error) if error.is_bad_file() => bare(path).map(Some).ok_or_else(|| io_error(error)),
        Err(error) => Err(io_error(error)),
    }
}

/// The data in a file of an earlier build, which is its bare JSON.
fn bare<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = sys::file::read_own(path, MAX_BYTES).ok()??;
    let object: Map<String, Value> = serde_json::from_slice(&bytes).ok()?;
    // A damaged record is not one.
    if object.contains_key("magic") {
        return None;
    }
    serde_json::from_value(Value::Object(object)).ok()
}

#[cfg(test)]
mod tests;
