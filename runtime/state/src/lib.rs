//! Durable state: records as files, their paths, the lock on them, and the boot they belong to.
//!
//! Blocking and small, because the shim links it too; the daemon calls it on a lane.

mod aside;
pub mod boot;
mod error;
pub mod file;
mod layout;
pub mod lock;
pub mod probe;

pub use aside::set_aside;
pub use error::Error;
pub use file::Stored;
pub use layout::Layout;

/// Kinds of records. The kind is stored in each file, so that one cannot be mistaken for another.
pub mod kind {
    /// `model::PodRecord`.
    pub const POD: &str = "pod";
    /// `model::ContainerRecord`.
    pub const CONTAINER: &str = "container";
    /// `wire::ExitFacts`, written by the shim.
    pub const EXIT: &str = "exit";
}
