//! Kernel facilities behind safe functions: the only `unsafe` of the project outside pause.
//!
//! Returned descriptors are owned, and those in arguments are borrowed; errors are the kernel's. This crate
//! does not know pods.

pub mod apparmor;
pub mod beneath;
pub mod bpf;
pub mod cgroup;
pub mod clock;
pub mod clone;
pub mod creds;
pub mod epoll;
pub mod execute;
pub mod fds;
pub mod file;
pub mod fork;
pub mod host_proc;
pub mod jail;
pub mod keyring;
pub mod malloc;
pub mod memfd;
pub mod mount;
pub mod mountinfo;
pub mod namespace;
pub mod netns;
pub mod page;
pub mod peer;
pub mod pidfd;
pub mod proc;
pub mod pty;
pub mod rlimit;
pub mod scm;
pub mod scratch;
pub mod seal;
pub mod seccomp;
pub mod selinux;
pub mod signal;
pub mod spawn;
pub mod tcp;
pub mod tree;
pub mod userns;
pub mod wait;
