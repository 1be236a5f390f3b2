//! What the worker has open while init is made, and what it says afterwards.

use std::os::fd::OwnedFd;

use sys::namespace::Namespaces;
use wire::Reply;

/// Who is told of a create. Owned by the worker alone: it is not to live on in init.
pub(crate) trait Answer {
    /// Something is not as asked for, but stops nothing.
    fn warn(&self, text: &str);
    /// How it went.
    ///
    /// # Errors
    /// There is nobody to tell.
    fn reply(&self, reply: &Reply) -> std::io::Result<()>;
}

/// What the plan's namespaces are taken from. By descriptor: the number of a process that ends meanwhile may be
/// another's when libcontainer comes to it.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    /// Pause.
    pub(crate) pause: Option<Namespaces>,
    /// The container of [`wire::NamespaceSource::Container`].
    pub(crate) target: Option<Namespaces>,
}

/// Descriptors that the worker needs while and after init is made, and that init must not hold.
pub(crate) struct WorkerOnly {
    /// Its answer.
    pub(crate) answer: Box<dyn Answer>,
    /// The other end of the pipe that init tells a failure on.
    pub(crate) told: OwnedFd,
    /// Named in the spec by their numbers: kept open, never read.
    pub(crate) _holders: Holders,
}
