//! The protocol between daemon and shim, without I/O.
//!
//! A unix stream socket; the daemon dials, the shim accepts one daemon at a time (a new one replaces
//! the old). A frame is a 16-byte header (`codec`) and a JSON payload; file descriptors ride on the
//! frame's first byte (SCM_RIGHTS) and are counted in the header. On accept the shim sends
//! [`Message::Hello`], one [`Message::Snapshot`] for each thing it holds, [`Message::SnapshotEnd`];
//! then events as they come, and replies to requests, matched by the header's number.
//!
//! The resident shim must not grow its heap, so whatever is large (plans) travels in a memfd that only
//! the forked worker reads. The protocol grows only by addition: unknown fields of messages are ignored,
//! unknown requests answered with [`ErrorKind::Unsupported`], and so are plans with anything unknown in
//! them. What a shim can do beyond protocol 1 stands in [`Hello::features`].

pub mod codec;
mod message;
mod plan;
pub mod session;

pub use message::{
    ContainerState, EXIT_RECORD_KIND, ErrorKind, Event, ExitFacts, Failure, Hello, MAX_CONTAINERS, MAX_FDS,
    MAX_FRAME, Message, PROTOCOL, Reply, Request, ShimInit, Snapshot, feature,
};
pub use plan::{
    CapSets, CgroupMember, CgroupPlan, ContainerPlan, DeviceNode, ExecPlan, LogPlan, MountKind, MountPlan,
    NamespacePlan, NamespaceSource, PausePlan, ProcessPlan, Rlimit, RootfsPlan, SeccompProgram, UserPlan,
    parse_plan,
};
