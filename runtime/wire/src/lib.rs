//! The protocol between daemon and shim, without I/O.
//!
//! It uses a unix stream socket. The daemon connects; the shim accepts one daemon at a time, and a new one
//! replaces the old. A frame is a 16-byte header (`codec`) and a JSON payload; file descriptors are sent with
//! the frame's first byte (SCM_RIGHTS), and the header has their number. After accepting, the shim sends
//! [`Message::Hello`], one [`Message::Snapshot`] for each object it holds, and [`Message::SnapshotEnd`]
//! (one that could not start sends a reply that it has failed instead);
//! after that it sends events, and replies that have the id of their request.
//!
//! The heap of the resident shim must not grow, so large data (plans) is sent in memfds that only forked
//! workers read. The protocol is extended by additions only: unknown fields of messages are ignored, unknown
//! requests are replied to with [`ErrorKind::Unsupported`], and so are plans with unknown content.
//! [`Hello::features`] lists what a shim supports beyond protocol 1.

pub mod codec;
mod failure;
mod message;
mod plan;
pub mod session;

pub use failure::{ErrorKind, Failure};
pub use message::{
    ContainerState, Event, ExitFacts, Hello, MAX_CONTAINERS, MAX_FDS, MAX_FRAME, Message, PROTOCOL, Reply,
    Request, ShimInit, Snapshot, feature,
};
pub use plan::{
    CapSets, CgroupMember, CgroupPlan, ContainerPlan, DeviceNode, ExecPlan, LayerSource, LogPlan, MountKind,
    MountPlan, NamespacePlan, NamespaceSource, PausePlan, ProcessPlan, Rlimit, RootfsPlan, SeccompProgram,
    TerminalSize, UserPlan, parse_plan,
};

/// The shim's first argument with which it only waits for the end of its standard input. The second one is the pod, for
/// people who look at processes.
pub const HOLD: &str = "hold";
/// The shim's first argument with which it only tries whether containers of the host can have a user namespace. The second
/// one is the folder of the image layers. It prints the reason if they cannot, and nothing if they can.
pub const PROBE_USER_NAMESPACES: &str = "probe-user-namespaces";
