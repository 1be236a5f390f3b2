//! Pod sandboxes.

use crate::{PodId, PodSecurity, Resources};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// CRI `PodSandboxMetadata`: the name that must be unique while it is reserved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodMeta {
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod uid.
    pub uid: String,
    /// Grows with every sandbox kubelet makes for the same pod.
    pub attempt: u32,
}

/// CRI `DNSConfig`. Where the message is absent, the host's file is copied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// CRI `Protocol`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// CRI `PortMapping`; `host_port` 0 programs nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport.
    pub protocol: Protocol,
    /// Port in the pod.
    pub container_port: u16,
    /// Port on the host; 0 is none.
    pub host_port: u16,
    /// Address to bind on the host; empty is all.
    pub host_ip: String,
}

/// A checked CRI `PodSandboxConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodConfig {
    /// Identity.
    pub meta: PodMeta,
    /// UTS name; with the host's network the node's.
    pub hostname: String,
    /// Absolute folder of the containers' logs; empty turns logging off.
    pub log_directory: String,
    /// Resolver set-up.
    pub dns: Option<Dns>,
    /// Host ports.
    pub ports: Vec<PortMapping>,
    /// Echoed, matched.
    pub labels: BTreeMap<String, String>,
    /// Echoed, never acted on.
    pub annotations: BTreeMap<String, String>,
    /// cgroupfs path as kubelet gives it, for example `/kubepods/burstable/pod<uid>`; empty for our default.
    pub cgroup_parent: String,
    /// Namespaced kernel parameters, dotted names.
    pub sysctls: BTreeMap<String, String>,
    /// CRI `overhead`, informational.
    pub overhead: Option<Resources>,
    /// CRI `resources` of the pod, informational.
    pub resources: Option<Resources>,
    /// What pause gets.
    pub security: PodSecurity,
    /// CRI `runtime_handler`; empty is the default handler.
    pub runtime_handler: String,
}

/// Where a sandbox is in its life. Only `Ready` is SANDBOX_READY on the wire; `Launching` is never listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodPhase {
    /// Intent: bring-up has begun and has not been committed. Rolled back when found at start.
    Launching,
    /// Pause lives and the network is up.
    Ready,
    /// Stop has begun or pause is gone; the network may still be owed a DEL.
    Stopping,
    /// Everything of it is down; only records and files are left.
    Stopped,
    /// Removal has begun; not listed.
    Removing,
}

/// The durable truth about a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// Its id.
    pub id: PodId,
    /// What was asked for.
    pub config: PodConfig,
    /// Nanoseconds since the epoch, never 0.
    pub created_at: i64,
    /// Where it is.
    pub phase: PodPhase,
    /// Addresses by family preference; empty with the host's network.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Path of the pinned network namespace; empty with the host's network.
    #[serde(default)]
    pub netns: String,
    /// Pid of pause in the host's PID namespace, 0 before it exists. Valid in this boot only.
    #[serde(default)]
    pub pause_pid: u32,
    /// Pid of the shim, 0 before it exists. Valid in this boot only.
    #[serde(default)]
    pub shim_pid: u32,
    /// Why it is not ready, for verbose status and messages.
    #[serde(default)]
    pub message: String,
}
