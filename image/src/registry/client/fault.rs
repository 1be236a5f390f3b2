//! Errors of a single host, and the error of a pull when no host could serve it.

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
    /// Temporary: retried after a wait.
    Transient {
        what: String,
        after: Option<Duration>,
        quick: bool,
    },
    Final(String),
}

/// The fault of each host that was tried.
pub(super) struct Failures<'a> {
    reference: &'a Reference,
    text: Vec<String>,
    unauthorized: bool,
    transient: bool,
    only_absent: bool,
}

impl<'a> Failures<'a> {
    pub(super) fn new(reference: &'a Reference) -> Self {
        Self { reference, text: Vec::new(), unauthorized: false, transient: false, only_absent: true }
    }

    pub(super) fn add(&mut self, endpoint: &Endpoint, fault: Fault) {
        let what = match fault {
            Fault::NotFound => "not found".to_owned(),
            Fault::Unauthorized => {
                self.unauthorized = true;
                "unauthorized".to_owned()
            }
            Fault::Transient { what, .. } => {
                self.transient = true;
                what
            }
            Fault::Final(what) => {
                self.only_absent = false;
                what
            }
        };
        self.text.push(format!("{}: {what}", endpoint.host.authority));
    }

    pub(super) fn error(self, object: Option<String>) -> Error {
        let reference = self.reference.to_string();
        if self.text.is_empty() {
            return Error::unsupported(
                reference,
                "no configured host has the capability to pull or resolve it",
            );
        }
        let mut detail = self.text.join("; ");
        if let Some(object) = &object {
            detail = format!("{object}: {detail}");
        }
        if self.transient {
            Error::Unavailable { reference, detail }
        } else if self.unauthorized {
            Error::Unauthorized { reference, detail }
        } else if self.only_absent {
            Error::NotFound { reference, detail }
        } else {
            Error::corrupt(reference, detail)
        }
    }
}

/// Classifies an error response.
pub(super) fn fault_of(response: &Response<Incoming>, status: StatusCode) -> Fault {
    let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    match status.as_u16() {
        404 => Fault::NotFound,
        401 | 403 => Fault::Unauthorized,
        408 | 429 | 500..=599 => Fault::Transient {
            what: format!("status {status}"),
            after: after.map(Duration::from_secs),
            quick: false,
        },
        _ => Fault::Final(format!("status {status}")),
    }
}

/// An error with its causes. hyper's messages contain host names and system errors, but no paths or queries.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}
