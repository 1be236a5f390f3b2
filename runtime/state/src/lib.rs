//! Durable state: records in files, the paths of all files, the lock, and the id of the boot.
//!
//! All functions block; the daemon calls them on a lane. The crate is small because the shim links it too.

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

/// Kinds of records. Each file contains its kind, so that one cannot be mistaken for another.
pub mod kind {
    /// `model::PodRecord`.
    pub const POD: &str = "pod";
    /// `model::ContainerRecord`.
    pub const CONTAINER: &str = "container";
    /// `wire::ExitFacts`, written by the shim.
    pub const EXIT: &str = "exit";
}
