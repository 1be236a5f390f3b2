//! What things and requests are named by.

/// Names pause, a container or an exec for as long as the shim lives; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Serial(pub(crate) u32);

/// Who asked for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Requester {
    /// The connection that the request came on.
    pub(crate) generation: u32,
    /// Its number there.
    pub(crate) id: u64,
}
