//! What can go wrong, by what a caller can do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use model::PodId;

/// CNI's commands (`CNI_COMMAND`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Give the pod a network.
    Add,
    /// Take it back.
    Del,
    /// See whether it is still there.
    Check,
    /// Can the plugin serve an ADD now (1.1.0)?
    Status,
    /// Drop what belongs to no known attachment (1.1.0).
    Gc,
}

impl Verb {
    /// As plugins read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How one run of a plugin failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// In none of the folders.
    #[error("no such program in {}", dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", "))]
    Missing {
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// Could not be started or talked to.
    #[error("cannot run {}", path.display())]
    Run {
        /// The program.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Said no, in CNI's own form.
    #[error("{message} (code {code}){}{details}", if details.is_empty() { "" } else { ": " })]
    Refused {
        /// CNI's error code; 11 asks to try again later.
        code: u64,
        /// The plugin's message, shortened.
        message: String,
        /// The plugin's details, shortened.
        details: String,
    },
    /// Ended badly without saying why in CNI's form.
    #[error("{status}, and printed {output:?}")]
    Ended {
        /// Exit status or signal.
        status: String,
        /// Standard error, or standard output where that is empty, shortened.
        output: String,
    },
    /// Ended well, but what it printed is not a result.
    #[error("not a CNI result: {reason}; it printed {output:?}")]
    Garbage {
        /// What does not fit.
        reason: String,
        /// Standard output, shortened.
        output: String,
    },
    /// Printed more than a result can be; killed.
    #[error("printed more than {limit} bytes")]
    TooMuch {
        /// The cap in bytes.
        limit: usize,
    },
    /// Did not end in time; killed with its process group.
    #[error("did not end within {after_ms} ms and was killed")]
    Hung {
        /// The time it had, in milliseconds.
        after_ms: u128,
    },
}

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No network is configured, or none that works.
    #[error("network is not ready: {reason}")]
    NotReady {
        /// Why.
        reason: String,
    },
    /// A field of the pod cannot be told to plugins.
    #[error("pod {pod}: {field} {value:?} cannot be passed to CNI plugins")]
    Attachment {
        /// The pod.
        pod: PodId,
        /// The field.
        field: &'static str,
        /// Its value, shortened.
        value: String,
    },
    /// A plugin failed. What it did is undone by DEL.
    #[error("{}CNI {verb} of plugin {plugin:?} in network {network:?}", pod.as_ref().map(|pod| format!("pod {pod}: ")).unwrap_or_default())]
    Plugin {
        /// The pod, where the command concerns one.
        pod: Option<PodId>,
        /// The command.
        verb: Verb,
        /// The plugin's `type`.
        plugin: String,
        /// Name of the network.
        network: String,
        /// How.
        #[source]
        failure: Box<Failure>,
    },
    /// All plugins are content, but the pod has no address.
    #[error("pod {pod}: network {network:?} gave no address for {interface}")]
    NoAddress {
        /// The pod.
        pod: PodId,
        /// Name of the network.
        network: String,
        /// The interface that should have one.
        interface: &'static str,
    },
    /// Too many chains hang.
    #[error("pod {pod}: CNI {verb} waited {waited_ms} ms for its turn")]
    Busy {
        /// The pod.
        pod: PodId,
        /// The command.
        verb: Verb,
        /// How long, in milliseconds.
        waited_ms: u128,
    },
    /// The lease cannot be kept or read.
    #[error("{action} {}", path.display())]
    Lease {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel, or the parser, said.
        source: io::Error,
    },
    /// Several plugins of a teardown failed; every one was run.
    #[error("{} failures, the first: {}", .0.len(), .0.first().map(ToString::to_string).unwrap_or_default())]
    Several(Vec<Error>),
}

impl Error {
    /// The plugin asked to try again later (CNI code 11), or others were in the way.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Plugin { failure, .. } => match &**failure {
                Failure::Refused { code: 11, .. } => true,
                // No process, or no thread, to be had now.
                Failure::Run { source, .. } => {
                    matches!(source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy)
                }
                _ => false,
            },
            Self::Busy { .. } => true,
            // No thread to do it on.
            Self::Lease { source, .. } => source.kind() == io::ErrorKind::ResourceBusy,
            Self::Several(errors) => !errors.is_empty() && errors.iter().all(Self::is_temporary),
            _ => false,
        }
    }

    pub(crate) fn gathered(mut errors: Vec<Error>) -> Result<(), Error> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}
