//! Streams of containers: log lines into files.

pub(crate) mod log;
pub(crate) mod output;
pub(crate) mod stamp;
