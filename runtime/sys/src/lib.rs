//! Kernel facilities behind safe functions: the only `unsafe` of the project outside pause.
//!
//! Descriptors are owned when returned and borrowed when taken; errors are the kernel's. Nothing here knows
//! what a pod is.

pub mod cgroup;
pub mod clone;
pub mod epoll;
pub mod fork;
pub mod memfd;
pub mod netns;
pub mod pidfd;
pub mod proc;
pub mod pty;
pub mod scm;
pub mod seal;
pub mod signalfd;
pub mod spawn;
