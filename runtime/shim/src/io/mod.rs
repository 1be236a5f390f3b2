//! Streams of containers: log lines into files, output to attached clients.

pub(crate) mod attached;
pub(crate) mod folder;
pub(crate) mod log;
pub(crate) mod output;
pub(crate) mod stamp;
