//! What the worker keeps open while libcontainer creates init.

use std::os::fd::OwnedFd;

use sys::namespace::Namespaces;
use wire::Reply;

/// The receiver of a worker's messages: the shim, or a test. Only the worker owns it; init must not keep it open.
pub(crate) trait Answer {
    /// Sends a warning: a setting could not be applied, which is not fatal.
    fn warn(&self, text: &str);
    /// Sends the result.
    ///
    /// # Errors
    /// The receiver has closed its end.
    fn reply(&self, reply: &Reply) -> std::io::Result<()>;
}

/// The processes whose namespaces the plan joins, as descriptors: a pid could be reused before libcontainer uses it.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    /// Pause.
    pub(crate) pause: Option<Namespaces>,
    /// The container of [`wire::NamespaceSource::Container`].
    pub(crate) target: Option<Namespaces>,
}

/// Descriptors that the worker needs during and after the creation of init, and that init must not keep.
pub(crate) struct WorkerOnly {
    /// For the result.
    pub(crate) answer: Box<dyn Answer>,
    /// The reading end of the pipe to which init writes an error.
    pub(crate) told: OwnedFd,
    /// The spec has their numbers, so they must stay open.
    pub(crate) _holders: Holders,
}
