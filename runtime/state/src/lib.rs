//! Durable truth: records as files, where they lie, who may write them and which boot they belong to.
//!
//! Blocking and small, because the shim links it too; the daemon calls it on blocking threads.

pub mod boot;
mod error;
pub mod file;
mod layout;
pub mod lock;
pub mod probe;

pub use error::Error;
pub use file::Stored;
pub use layout::Layout;

/// Kinds of record, written into each file so that one cannot be taken for another.
pub mod kind {
    /// `model::PodRecord`.
    pub const POD: &str = "pod";
    /// `model::ContainerRecord`.
    pub const CONTAINER: &str = "container";
}
