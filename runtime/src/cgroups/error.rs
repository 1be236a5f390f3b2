//! Errors of cgroup work, with the path and what was tried.

use std::io;
use std::path::{Path, PathBuf};

/// Why something about a cgroup failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host cannot confine containers with what is built.
    #[error("cgroups of this host cannot be used: {missing}")]
    Host {
        /// What is missing and what would do.
        missing: String,
    },
    /// A path that is not a clean absolute one.
    #[error("cgroup path: {source}")]
    Path {
        /// Which, and what would be right.
        #[from]
        source: spec::Error,
    },
    /// A file or folder could not be made, read or written.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A limit that the kernel refuses, or has no file for.
    #[error("linux.resources.{field}: {value:?} cannot be set in {path}: {reason}")]
    Limit {
        /// CRI field.
        field: &'static str,
        /// What was to be written.
        value: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Processes that do not die.
    #[error("cgroup {path} still holds processes {pids:?} after {waited:?}")]
    Busy {
        /// Path of the cgroup.
        path: String,
        /// Who is left, at most sixteen.
        pids: Vec<i32>,
        /// How long was tried.
        waited: std::time::Duration,
    },
    /// Several of the above; every step was tried.
    #[error("{}", failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several {
        /// Each.
        failures: Vec<Error>,
    },
}

impl Error {
    pub(crate) fn io(what: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io { what, path: path.as_ref().to_owned(), source }
    }
}

/// Gathers failures of steps that are all tried.
#[derive(Debug, Default)]
pub struct Failures(Vec<Error>);

impl Failures {
    /// Notes a step's outcome.
    pub fn note<T>(&mut self, outcome: Result<T, Error>) {
        self.0.extend(outcome.err());
    }

    /// Ok when every step was.
    pub fn into_result(mut self) -> Result<(), Error> {
        match self.0.len() {
            0 | 1 => self.0.pop().map_or(Ok(()), Err),
            _ => Err(Error::Several { failures: self.0 }),
        }
    }
}
