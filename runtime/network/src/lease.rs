//! Leases on disk: one file per pod, written before its ADD and removed after its DEL.
//!
//! `<pod>` has the arguments of ADD and is synced. `<pod>.result` has the result of ADD. It is not
//! synced: no network namespace survives a reboot, so the result may be lost with one.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
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
/// Format version of the file; fields are added without changing it.
const VERSION: u32 = 1;

/// Name of the pod's interface, given to the plugins (CNI_IFNAME); Kubernetes uses no other.
pub const IFNAME: &str = "eth0";

/// Suffix of a file that is still being written.
const TEMPORARY: &str = "new";

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
}

impl Leases {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
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
        write(&self.dir, &path, lease, true).map_err(failed("write the CNI lease", &path))
    }

    /// Stores the result of ADD.
    pub(crate) fn write_result(&self, pod: &PodId, result: &Map<String, Value>) -> Result<(), Error> {
        let path = self.result_path(pod);
        write(&self.dir, &path, result, false).map_err(failed("write the CNI result", &path))
    }

    /// The lease and its result. A lease that cannot be parsed is an error of kind InvalidData; a result that
    /// cannot be parsed is treated as missing.
    pub(crate) fn get(&self, pod: &PodId) -> Result<Option<LeaseWithResult>, Error> {
        let path = self.lease_path(pod);
        let Some(lease) = read::<Lease>(&path).map_err(failed("read the CNI lease", &path))? else {
            return Ok(None);
        };
        if lease.version > VERSION {
            // The lease is intact: the later version can use it for DEL.
            let reason = format!("version {}, known is {VERSION}: a later copepod wrote it", lease.version);
            return Err(failed("read the CNI lease", &path)(io::Error::new(
                io::ErrorKind::Unsupported,
                reason,
            )));
        }
        let reason =
            if lease.pod != *pod { "it is the lease of another pod" } else { "it has an unknown version" };
        if lease.pod != *pod || lease.version != VERSION {
            return Err(failed("read the CNI lease", &path)(io::Error::new(
                io::ErrorKind::InvalidData,
                reason,
            )));
        }
        let result = read(&self.result_path(pod)).unwrap_or_else(|error| {
            tracing::warn!(%pod, %error, "cannot read a CNI result; DEL runs without it");
            None
        });
        Ok(Some((lease, result)))
    }

    /// Locks the lease (flock(2)) as long as the descriptor or a copy of it is open; `None` if it is locked already.
    pub(crate) fn lock(&self, pod: &PodId) -> Result<Option<OwnedFd>, Error> {
        let path = self.lease_path(pod);
        let file = OwnedFd::from(fs::File::open(&path).map_err(failed("open", &path))?);
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(failed("lock", &path)(error.into())),
        }
    }

    /// Removes the lease. Not synced: a DEL that is repeated after a power loss does no harm.
    pub(crate) fn remove(&self, pod: &PodId) -> Result<(), Error> {
        let (result, lease) = (self.result_path(pod), self.lease_path(pod));
        for path in
            [result.with_added_extension(TEMPORARY), lease.with_added_extension(TEMPORARY), result, lease]
        {
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

    /// Renames a lease that cannot be read, so that it can be inspected.
    pub(crate) fn set_aside(&self, pod: &PodId) -> Result<PathBuf, Error> {
        let (path, aside) = (self.lease_path(pod), self.dir.join(format!("{pod}.torn")));
        fs::rename(&path, &aside).map_err(failed("set aside", &path))?;
        self.remove(pod)?;
        Ok(aside)
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

fn write<T: Serialize>(dir: &Path, path: &Path, data: &T, durable: bool) -> io::Result<()> {
    let bytes = serde_json::to_vec(data)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {MAX_BYTES} bytes")));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // The only writer of this pod's files, so the temporary name is not shared.
    sys::file::replace(path, &path.with_added_extension(TEMPORARY), &bytes, 0o600, durable)
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    match sys::file::read_own(path, MAX_BYTES) {
        Ok(None) => Ok(None),
        Ok(Some(bytes)) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|error| invalid(error.to_string()))
        }
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Err(invalid(error.to_string())),
        Err(error) => Err(error),
    }
}
