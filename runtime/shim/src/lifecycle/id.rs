//! Identifiers of objects and requests.

/// Identifies pause, a container or an exec; never reused while the shim runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Serial(pub(crate) u32);

/// The requester of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Requester {
    /// The connection of the request.
    pub(crate) generation: u32,
    /// The number of the request on that connection.
    pub(crate) id: u64,
}
