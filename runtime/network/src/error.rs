//! Errors, sorted by what a caller can do about them.

use std::fmt;
use std::io;
use std::path::PathBuf;

use causes::with_causes;
use model::PodId;

/// CNI's commands (`CNI_COMMAND`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attaches the pod to the network.
    Add,
    /// Detaches it.
    Del,
    /// Asks whether the pod's network is as ADD left it (0.4.0).
    Check,
    /// Tells the plugin which pods are attached, so that it releases what belongs to others (1.1.0).
    Gc,
    /// Asks whether the plugin can serve an ADD now (1.1.0).
    Status,
}

impl Verb {
    /// The value of CNI_COMMAND.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an operator can do about a plugin that takes too long.
pub(crate) const ADVICE: &str = "look at the plugin's own log and at what it waits for: the network's daemon, the API server, a pool of addresses";

/// Why one run of a plugin failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The program was not found.
    #[error("no such program in {}", dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", "))]
    Missing {
        /// The folders that were searched.
        dirs: Vec<PathBuf>,
    },
    /// No thread could start the program: nothing was done.
    #[error("was not started")]
    NotStarted {
        /// The error of the lane.
        source: pool::Error,
    },
    /// The program could not be started, or its pipes failed.
    #[error("cannot run {}", path.display())]
    Run {
        /// The program.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// The plugin reported an error in CNI's format.
    #[error("{message} (code {code}){}{details}", if details.is_empty() { "" } else { ": " })]
    Refused {
        /// CNI's error code; 11 means: try again later.
        code: u64,
        /// The plugin's message, shortened.
        message: String,
        /// The plugin's details, shortened.
        details: String,
    },
    /// The plugin exited with an error, but not in CNI's format.
    #[error("{status}, and printed {output:?}")]
    Ended {
        /// Exit status or signal.
        status: String,
        /// Standard error, or standard output if that is empty, shortened.
        output: String,
    },
    /// The plugin exited successfully, but its output is not a result.
    #[error("not a CNI result: {reason}; it printed {output:?}")]
    Garbage {
        /// What is wrong with it.
        reason: String,
        /// Standard output, shortened.
        output: String,
    },
    /// The output exceeded the limit. The pipe was closed, and the plugin has ended.
    #[error("printed more than {limit} bytes")]
    TooMuch {
        /// The limit in bytes.
        limit: usize,
    },
    /// The plugin exceeded its deadline; it was killed with its process group.
    #[error(
        "did not end within {after_ms} ms and was killed (network.timeout_seconds limits ADD, DEL and STATUS; CHECK and GC have \
         shorter limits); {}",
        ADVICE
    )]
    Hung {
        /// The time limit in milliseconds.
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
    /// A field or annotation of the pod cannot be passed to plugins.
    #[error("pod {pod}: {field} {value:?}: {want}")]
    Attachment {
        /// The pod.
        pod: PodId,
        /// The field, or the name of the annotation.
        field: &'static str,
        /// Its value, shortened.
        value: String,
        /// What a valid value is.
        want: &'static str,
    },
    /// A plugin failed. DEL undoes what the plugins did.
    #[error("{}CNI {verb} of plugin {plugin:?} in network {network:?}", pod.as_ref().map(|pod| format!("pod {pod}: ")).unwrap_or_default())]
    Plugin {
        /// The pod, if the command is for one.
        pod: Option<PodId>,
        /// The command.
        verb: Verb,
        /// The plugin's `type`.
        plugin: String,
        /// Name of the network.
        network: String,
        /// Why.
        #[source]
        failure: Box<Failure>,
    },
    /// All plugins succeeded, but the pod has no address.
    #[error("pod {pod}: network {network:?} gave no address for {interface}")]
    NoAddress {
        /// The pod.
        pod: PodId,
        /// Name of the network.
        network: String,
        /// The interface that should have one.
        interface: &'static str,
    },
    /// No plugin chain could be started within the time limit, because `max_parallel` chains were running.
    #[error(
        "pod {pod}: CNI {verb} was not started within {waited_ms} ms: as many plugin chains are running as network.max_parallel allows; verbose Status (crictl info) shows where they are"
    )]
    Busy {
        /// The pod.
        pod: PodId,
        /// The command.
        verb: Verb,
        /// The time waited, in milliseconds.
        waited_ms: u128,
    },
    /// A host port of the pod still leads to another one, whose DEL was tried again and has failed. Nothing was done.
    #[error(
        "pod {pod}: host port {port}/{protocol} still leads to the address of pod {holder}, which has ended, because its CNI DEL has not succeeded ({problem}); that is run again before each attempt to start this pod. If it can never succeed, remove the port's rules and then {}", lease.display()
    )]
    HostPort {
        /// The pod.
        pod: PodId,
        /// The host port.
        port: u16,
        /// `tcp`, `udp` or `sctp`.
        protocol: String,
        /// The pod that has ended.
        holder: PodId,
        /// Its lease.
        lease: PathBuf,
        /// Why its last DEL has failed.
        problem: String,
    },
    /// The lease could not be read or written.
    #[error("{action} {}", path.display())]
    Lease {
        /// The failed action.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system call or of the parser. Its kind is InvalidData for a damaged file.
        source: io::Error,
    },
    /// Several plugins failed during DEL or GC. GC has run every one; DEL has not run the first, which gives the addresses
    /// back, unless ADD had failed.
    #[error("{} failures: {}", .0.len(), reasons(.0))]
    Several(Vec<Error>),
}

/// How many failures a message of several has in full: each may have a kilobyte, and the message is sent in a header of
/// HTTP/2, whose size clients limit.
const MAX_REASONS: usize = 4;

fn reasons(errors: &[Error]) -> String {
    let mut text: Vec<String> = errors.iter().take(MAX_REASONS).map(|error| with_causes(error)).collect();
    if let Some(more @ 1..) = errors.len().checked_sub(MAX_REASONS) {
        text.push(format!("and {more} more"));
    }
    text.join("; ")
}

impl Error {
    /// Whether a retry may help: the plugin asked for one (CNI code 11), or a limit was reached.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Plugin { failure, .. } => match &**failure {
                Failure::Refused { code: 11, .. } => true,
                Failure::NotStarted { source } => source.is_temporary(),
                // No process could be created now.
                Failure::Run { source, .. } => {
                    matches!(source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy)
                }
                _ => false,
            },
            Self::Busy { .. } | Self::HostPort { .. } => true,
            // No thread was free.
            Self::Lease { source, .. } => source.kind() == io::ErrorKind::ResourceBusy,
            Self::Several(errors) => !errors.is_empty() && errors.iter().all(Self::is_temporary),
            _ => false,
        }
    }

    pub(crate) fn from_all(mut errors: Vec<Error>) -> Result<(), Error> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_several_failures_is_told_with_its_reason() {
        let failed = |number: u64| Error::Plugin {
            pod: None,
            verb: Verb::Del,
            plugin: format!("p{number}"),
            network: "net".to_owned(),
            failure: Box::new(Failure::Refused {
                code: number,
                message: format!("reason {number}"),
                details: String::new(),
            }),
        };
        let text = |count: u64| Error::from_all((0..count).map(failed).collect()).unwrap_err().to_string();
        let two = "2 failures: CNI DEL of plugin \"p0\" in network \"net\": reason 0 (code 0); \
            CNI DEL of plugin \"p1\" in network \"net\": reason 1 (code 1)";
        assert_eq!(text(2), two);
        assert!(text(4).ends_with("reason 3 (code 3)"));
        assert!(text(9).ends_with("reason 3 (code 3); and 5 more"));
    }
}
