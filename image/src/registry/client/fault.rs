//! Why one host did not serve a request, and the error of a pull that no host could serve.

use super::Endpoint;
use crate::error::Error;
use crate::reference::Reference;
use std::time::Duration;

/// Whether a host that did not serve a request has answered at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// It has answered.
    No,
    /// It cannot be reached or does not answer, so each retry may take a whole time limit: there is at most one.
    Own,
    /// The same for another host that this one leads to: its token server, or the target of a redirect.
    Other,
}

/// Why a request to one host failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The host does not have it, with its status.
    NotFound(String),
    /// Credentials are missing or were refused.
    Unauthorized(String),
    /// It may be temporary: the request is retried after a wait.
    Transient {
        reason: String,
        /// The host's `Retry-After`.
        retry_after: Option<Duration>,
        silence: Silence,
    },
    /// The content is not what was requested. A retry would bring the same.
    Corrupt(String),
    /// The host rejects the request, or answers in a way that the distribution protocol does not allow. A retry would
    /// fail in the same way.
    Final(String),
}

impl Fault {
    /// Adds what the fault is about.
    pub(super) fn about(self, what: &str) -> Self {
        self.with_reason(|reason| format!("{what}: {reason}"))
    }

    /// Marks a fault that is not the host's own, but that of one that it leads to.
    pub(super) fn of_another_host(self) -> Self {
        match self {
            Self::Transient { reason, retry_after, silence: Silence::Own } => {
                Self::Transient { reason, retry_after, silence: Silence::Other }
            }
            other => other,
        }
    }

    /// Adds why there are no credentials, if that may be the cause.
    pub(super) fn with_problem(self, problem: Option<&str>) -> Self {
        match (problem, &self) {
            (Some(problem), Self::Unauthorized(_)) => {
                self.with_reason(|reason| format!("{reason}; {problem}"))
            }
            _ => self,
        }
    }

    fn with_reason(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::NotFound(reason) => Self::NotFound(change(reason)),
            Self::Unauthorized(reason) => Self::Unauthorized(change(reason)),
            Self::Transient { reason, retry_after, silence } => {
                Self::Transient { reason: change(reason), retry_after, silence }
            }
            Self::Corrupt(reason) => Self::Corrupt(change(reason)),
            Self::Final(reason) => Self::Final(change(reason)),
        }
    }
}

/// The faults of all hosts that were asked.
pub(super) struct HostFaults<'a> {
    reference: &'a Reference,
    /// `host: reason` of each.
    texts: Vec<String>,
    any_transient: bool,
    any_unauthorized: bool,
    any_corrupt: bool,
    any_final: bool,
}

impl<'a> HostFaults<'a> {
    pub(super) fn new(reference: &'a Reference) -> Self {
        Self {
            reference,
            texts: Vec::new(),
            any_transient: false,
            any_unauthorized: false,
            any_corrupt: false,
            any_final: false,
        }
    }

    pub(super) fn add(&mut self, endpoint: &Endpoint, fault: Fault) {
        let reason = match fault {
            Fault::NotFound(reason) => reason,
            Fault::Unauthorized(reason) => {
                self.any_unauthorized = true;
                reason
            }
            Fault::Transient { reason, .. } => {
                self.any_transient = true;
                reason
            }
            Fault::Corrupt(reason) => {
                self.any_corrupt = true;
                reason
            }
            Fault::Final(reason) => {
                self.any_final = true;
                reason
            }
        };
        self.texts.push(format!("{}: {reason}", endpoint.host.authority));
    }

    /// A host that was not asked, and why.
    pub(super) fn add_left_out(&mut self, endpoint: &Endpoint, reason: &str) {
        self.any_transient = true;
        self.texts.push(format!("{}: not asked {reason}", endpoint.host.authority));
    }

    /// The error of the pull: a temporary fault of any host counts most, because a retry may help. `object` is what was
    /// requested, unless it was the reference itself.
    pub(super) fn into_error(self, object: Option<String>) -> Error {
        let reference = self.reference.to_string();
        if self.texts.is_empty() {
            return Error::unsupported(
                reference,
                "no configured host has the capability to pull or resolve it",
            );
        }
        let mut detail = self.texts.join("; ");
        if let Some(object) = &object {
            detail = format!("{object}: {detail}");
        }
        if self.any_transient {
            Error::Unavailable { reference, detail }
        } else if self.any_unauthorized {
            Error::Unauthorized { reference, detail }
        } else if self.any_corrupt {
            Error::corrupt(reference, detail)
        } else if self.any_final {
            Error::Protocol { reference, detail }
        } else {
            Error::NotFound { object: format!("image {reference}"), detail }
        }
    }
}
