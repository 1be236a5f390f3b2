//! What the worker of a create keeps open while libcontainer creates init, and init must not have.

use std::os::fd::{BorrowedFd, OwnedFd};

use sys::namespace::Namespaces;
use wire::Reply;

/// The receiver of a worker's messages: the shim, or a test. Only the worker owns it; init must not keep it open.
pub(crate) trait Receiver {
    /// Sends a warning: a setting could not be applied, which is not fatal.
    fn warn(&self, text: &str);
    /// Called by init: sends its pidfd, before it is reported by its pid.
    ///
    /// # Errors
    /// The receiver has closed its end.
    fn init(&self, pidfd: BorrowedFd<'_>) -> std::io::Result<()>;
    /// Sends the result.
    ///
    /// # Errors
    /// The receiver has closed its end.
    fn reply(&self, reply: &Reply) -> std::io::Result<()>;
}

/// The namespaces of other processes that the container joins, as descriptors: a pid could be reused before
/// libcontainer uses it.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    /// Pause.
    pub(crate) pause: Option<Namespaces>,
    /// The container of [`wire::NamespaceSource::Container`].
    pub(crate) target: Option<Namespaces>,
}

/// Descriptors that the worker needs during and after the creation of init, and that init must not keep.
pub(crate) struct WorkerOnly {
    /// Gets the result.
    pub(crate) receiver: Box<dyn Receiver>,
    /// The read end of the create pipe.
    pub(crate) create_pipe_read: OwnedFd,
    /// Open because libcontainer's configuration names them by their numbers.
    pub(crate) _holders: Holders,
    /// The mount namespace that init enters; open for the same reason.
    pub(crate) _mounts: OwnedFd,
}
