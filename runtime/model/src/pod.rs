//! Pod sandboxes.

use crate::{PodId, PodResources, PodSecurity, Resources, SelinuxLabels};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// CRI `PodSandboxMetadata`. Together its fields are the sandbox's name, which no other sandbox can have until this one
/// is removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodMeta {
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod uid.
    pub uid: String,
    /// Number of the attempt: kubelet increases it with every sandbox that it creates for the same pod.
    pub attempt: u32,
}

/// CRI `DNSConfig`. Without the message, or if it is empty, the host's resolv.conf is copied.
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

/// CRI `PortMapping`; with `host_port` 0 no port is mapped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport.
    pub protocol: Protocol,
    /// Port in the pod.
    pub container_port: u16,
    /// Port on the host; 0 means none.
    pub host_port: u16,
    /// Address to bind on the host; empty means all.
    pub host_ip: String,
}

/// A validated CRI `PodSandboxConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodConfig {
    /// Identity.
    pub meta: PodMeta,
    /// Host name. Empty, or with the host's network, it is the node's.
    pub hostname: String,
    /// Absolute folder of the containers' logs; empty disables logging.
    pub log_directory: String,
    /// Resolver set-up.
    pub dns: Option<Dns>,
    /// Host ports.
    pub ports: Vec<PortMapping>,
    /// Labels: returned in status and matched by list filters.
    pub labels: BTreeMap<String, String>,
    /// Annotations: returned in status and passed to CNI plugins, which may enforce the bandwidth limits in them.
    pub annotations: BTreeMap<String, String>,
    /// Parent cgroup as kubelet names it, for example `/kubepods/burstable/pod<uid>`; empty means the default
    /// parent.
    pub cgroup_parent: String,
    /// Namespaced kernel parameters, dotted names.
    pub sysctls: BTreeMap<String, String>,
    /// CRI `overhead`; informational.
    pub overhead: Option<Resources>,
    /// CRI `resources` of the pod; informational.
    pub resources: Option<Resources>,
    /// Security context of pause.
    pub security: PodSecurity,
    /// CRI `runtime_handler`; empty means the default handler.
    pub runtime_handler: String,
}

/// The phase of a sandbox. `Ready` is CRI's SANDBOX_READY, all others are NOTREADY; `Launching` is not
/// listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodPhase {
    /// Creation has begun and is not committed. If the daemon finds a pod in this phase when it starts, it rolls the pod
    /// back, unless the pod has containers from before a reboot ([`crate::reconcile::is_leaving`]).
    Launching,
    /// Pause is running and the network is up.
    Ready,
    /// Stop has begun or pause has ended; CNI DEL may still be due.
    Stopping,
    /// Everything is torn down; only records and files are left.
    Stopped,
    /// Removal has begun. The daemon that removes it lists it as stopped until it is gone; one that finds this phase at its
    /// start does not list it, unless that removal fails.
    Removing,
}

/// The durable record of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// The pod's id.
    pub id: PodId,
    /// The validated request.
    pub config: PodConfig,
    /// Nanoseconds since the epoch, never 0.
    pub created_at: i64,
    /// The phase.
    pub phase: PodPhase,
    /// Path of the systemd scope that has the cgroups of pause and of the containers; empty if they are directly in
    /// `cgroup_parent` (or its default), which is so with the cgroup driver cgroupfs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scope: String,
    /// Its SELinux labels; `None` on a node without SELinux. While the pod exists, no other pod gets the pair of categories
    /// in them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux: Option<SelinuxLabels>,
    /// Addresses in the order of the CNI result; empty with the host network.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Path of the pinned network namespace; empty with the host network.
    #[serde(default)]
    pub netns: String,
    /// Pid of pause in the host's PID namespace; 0 before it exists. Valid only in the current boot.
    #[serde(default)]
    pub pause_pid: u32,
    /// Pid of the shim; 0 before it exists. Valid only in the current boot.
    #[serde(default)]
    pub shim_pid: u32,
    /// Why the pod is not ready; for verbose status and messages.
    #[serde(default)]
    pub message: String,
    /// What UpdatePodSandboxResources has sent since the request; for verbose status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<Box<PodResources>>,
}

impl PodRecord {
    /// The record of a pod that is about to be launched; `created_at` in nanoseconds since the epoch.
    pub fn new(id: PodId, config: PodConfig, created_at: i64) -> Self {
        Self {
            id,
            config,
            created_at,
            phase: PodPhase::Launching,
            scope: String::new(),
            selinux: None,
            ips: Vec::new(),
            netns: String::new(),
            pause_pid: 0,
            shim_pid: 0,
            message: String::new(),
            updated: None,
        }
    }
}
