//! The daemon: wiring of CRI services, pods, shims, images and networks. See ARCHITECTURE.md.
pub mod cgroups;
pub mod seccomp;
pub mod stats;
