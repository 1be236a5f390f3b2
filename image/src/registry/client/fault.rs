//! Why one host did not serve a request, and the error of a pull that no host could serve.

use super::Endpoint;
use crate::error::Error;
use crate::reference::Reference;
use hyper::body::Incoming;
use hyper::header::RETRY_AFTER;
use hyper::{Response, StatusCode};
use std::time::Duration;

/// Why a request to one host failed.
#[derive(Debug)]
pub(super) enum Fault {
    NotFound,
    Unauthorized,
    /// It may be temporary: the request is retried after a wait.
    Transient {
        reason: String,
        /// The host's `Retry-After`.
        retry_after: Option<Duration>,
        /// The host cannot be reached or does not respond, so each retry may take a whole time limit: there is only
        /// one.
        retry_once: bool,
    },
    /// The content is not what was requested. A retry would bring the same.
    Corrupt(String),
    /// The host rejects the request, or answers in a way that the distribution protocol does not allow. A retry would
    /// fail in the same way.
    Final(String),
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
            Fault::NotFound => "not found".to_owned(),
            Fault::Unauthorized => {
                self.any_unauthorized = true;
                "unauthorized".to_owned()
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
            Error::NotFound { reference, detail }
        }
    }
}

/// The fault that an error response stands for.
pub(super) fn fault_of(response: &Response<Incoming>, status: StatusCode) -> Fault {
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    match status.as_u16() {
        404 => Fault::NotFound,
        401 | 403 => Fault::Unauthorized,
        408 | 429 | 500..=599 => Fault::Transient {
            reason: format!("status {status}"),
            retry_after: retry_after.map(Duration::from_secs),
            retry_once: false,
        },
        _ => Fault::Final(format!("status {status}")),
    }
}
