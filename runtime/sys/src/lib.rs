//! sys: see ARCHITECTURE.md.

pub mod netns;
pub mod creds;
pub mod execute;
pub mod mount;
pub mod namespace;
pub mod rlimit;
pub mod seccomp;
pub mod cgroup;
pub mod fork;
pub mod memfd;
pub mod pidfd;
pub mod proc;
pub mod scm;
pub mod seal;
pub mod spawn;
