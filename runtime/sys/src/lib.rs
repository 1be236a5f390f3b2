//! sys: see ARCHITECTURE.md.

pub mod netns;
pub mod creds;
pub mod execute;
pub mod mount;
pub mod namespace;
pub mod rlimit;
pub mod seccomp;
