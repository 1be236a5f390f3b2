//! Images in the shapes that builders give them. Each is pulled, and what overlayfs makes of its layers is compared entry
//! by entry (type, owner, mode, time, extended attributes, links, content) with two other opinions: a model of what the
//! builder was asked for, or the folder that its tool has read; and what umoci (Go's archive/tar) unpacks from the same
//! layers. Needs root, and the Debian packages of `make deps`.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod archive;
mod archives_of_tools;
mod builders;
mod image;
mod lazy;
mod model;
mod opinion;
mod tree;
