//! Errors of cgroup operations, with the path and the failed action.

use std::io;
use std::path::{Path, PathBuf};

/// Why a cgroup operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's cgroups cannot confine containers.
    #[error("cgroups of this host cannot be used: {missing}")]
    Host {
        /// What is missing, and how to fix it.
        missing: String,
    },
    /// The configured cgroup driver cannot be used.
    #[error(
        "the cgroup driver systemd cannot be used: {reason}; without systemd, set cgroup_driver = \"cgroupfs\" here and \
        in kubelet"
    )]
    Driver {
        /// What is missing.
        reason: String,
    },
    /// systemd cannot be asked for a scope, or does not answer.
    #[error(
        "systemd has not made {unit}: {reason}; running pods are not affected; `systemctl status` and `systemctl status dbus` show whether they work"
    )]
    Systemd {
        /// The scope.
        unit: String,
        /// What was tried.
        reason: String,
    },
    /// systemd refuses a scope.
    #[error("systemd refuses {unit}: {reason}")]
    Unit {
        /// The scope.
        unit: String,
        /// Its reason.
        reason: String,
    },
    /// A pod's scope has ended.
    #[error("scope {path} has ended, and with it the pod's processes: the pod has to be stopped")]
    NoScope {
        /// The scope's cgroup.
        path: String,
    },
    /// The path is not that of a cgroup, or the device rules are too many.
    #[error("cgroup: {source}")]
    Path {
        /// The path, and what a valid one is.
        #[from]
        source: spec::Error,
    },
    /// A file or folder could not be created, read or written.
    #[error("{what} {path}: {source}")]
    Io {
        /// The failed action.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// The kernel does not allow limits below a v2 cgroup.
    #[error("cgroup {path}: cannot enable {controllers} for the cgroups below: {reason}")]
    Controllers {
        /// The cgroup's folder.
        path: PathBuf,
        /// As written to `cgroup.subtree_control`.
        controllers: String,
        /// The reason, and what to do.
        reason: String,
    },
    /// The program that filters devices could not be attached. Without it a container could use every device.
    #[error(
        "cgroup {path}: the filter of devices: {source}; it needs CONFIG_CGROUP_BPF and CAP_BPF or CAP_SYS_ADMIN"
    )]
    Devices {
        /// The cgroup's folder.
        path: PathBuf,
        /// The failed call.
        #[source]
        source: sys::bpf::Error,
    },
    /// The kernel refused a limit, or has no file for it.
    #[error("{field}: {value:?} cannot be set in {path}: {reason}")]
    Limit {
        /// The CRI field with its parents.
        field: String,
        /// The value.
        value: String,
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A limit is lower than what is in use and cannot be reclaimed.
    #[error(
        "{field}: {value} cannot be set in {path}: {usage} bytes are in use, and the kernel cannot reclaim enough of them"
    )]
    BelowUsage {
        /// The CRI field with its parents.
        field: String,
        /// The limit in bytes.
        value: String,
        /// Bytes in use; empty if they could not be read.
        usage: String,
        /// The file.
        path: PathBuf,
    },
    /// The cgroup was removed.
    #[error("cgroup {path} is gone: the container has exited")]
    Gone {
        /// The cgroup, or the file in it.
        path: String,
    },
    /// Processes could not be killed.
    #[error(
        "cgroup {path} still has the processes {pids:?} after {waited:.1?} of SIGKILL: they hang in the kernel, mostly on a disk or a network file system; `cat /proc/<pid>/stack` shows where"
    )]
    Busy {
        /// Path of the cgroup.
        path: String,
        /// The remaining pids, at most sixteen.
        pids: Vec<i32>,
        /// How long it was tried.
        waited: std::time::Duration,
    },
    /// Several errors; every step was tried.
    #[error("{}", failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several {
        /// The errors.
        failures: Vec<Error>,
    },
}

impl Error {
    pub(crate) fn io(what: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io { what, path: path.as_ref().to_owned(), source }
    }
}

/// Collects the errors of steps that are all tried.
#[derive(Debug, Default)]
pub(crate) struct Failures(Vec<Error>);

impl Failures {
    /// Adds the error of a step, if it failed.
    pub(crate) fn note<T>(&mut self, outcome: Result<T, Error>) {
        self.0.extend(outcome.err());
    }

    /// Ok if no step failed.
    pub(crate) fn into_result(mut self) -> Result<(), Error> {
        match self.0.len() {
            0 | 1 => self.0.pop().map_or(Ok(()), Err),
            _ => Err(Error::Several { failures: self.0 }),
        }
    }
}
