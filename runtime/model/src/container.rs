//! Containers.

use crate::{ContainerId, ContainerSecurity, Mount, PodId, Resources, Text, User};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// CRI `ContainerMetadata`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerMeta {
    /// Container name, unique with the attempt in its sandbox.
    pub name: String,
    /// Grows with every restart.
    pub attempt: u32,
}

/// CRI `ImageSpec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageSpec {
    /// Name, digest or id.
    pub image: String,
    /// Echoed.
    pub annotations: BTreeMap<String, String>,
    /// What the user wrote; shown in status.
    pub user_specified_image: String,
    /// Handler the image was pulled for.
    pub runtime_handler: String,
}

/// CRI `KeyValue`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name, without '='.
    pub key: String,
    /// Any bytes but NUL.
    pub value: Text,
}

/// CRI `Device`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Where it appears.
    pub container_path: String,
    /// Node, or directory of nodes, on the host.
    pub host_path: String,
    /// Some of `rwm`.
    pub permissions: String,
}

/// A checked CRI `ContainerConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerConfig {
    /// Identity.
    pub meta: ContainerMeta,
    /// A local image.
    pub image: ImageSpec,
    /// Replaces the image's entrypoint and drops its cmd.
    pub command: Vec<Text>,
    /// Replaces the image's cmd.
    pub args: Vec<Text>,
    /// Over the image's; made when absent.
    pub working_dir: String,
    /// After the image's, last wins.
    pub envs: Vec<EnvVar>,
    /// Volumes.
    pub mounts: Vec<Mount>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Echoed, matched.
    pub labels: BTreeMap<String, String>,
    /// Echoed.
    pub annotations: BTreeMap<String, String>,
    /// Below the sandbox's log directory; empty discards the output.
    pub log_path: String,
    /// Keep a pipe for attach.
    pub stdin: bool,
    /// Close it after the first attach that had it.
    pub stdin_once: bool,
    /// Allocate a terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Users, capabilities, profiles.
    pub security: ContainerSecurity,
    /// CRI `Signal` number as on the wire, 0 when unset. (Not the kernel's number.)
    pub stop_signal: i32,
}

/// The image a container was made from: all it takes to answer status after the image is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOfContainer {
    /// CRI `Image.id` (config digest).
    pub id: String,
    /// `repository@digest`, or the id where there is none.
    pub digested: String,
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exit {
    /// 0..=255; 128+n for signal n; 128 when it never started; 255 when the exit was lost.
    pub code: i32,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// The kernel killed a process of its cgroup for lack of memory.
    pub oom_killed: bool,
    /// CRI reason: Completed, Error, OOMKilled, StartError, Unknown.
    pub reason: String,
    /// Short text for people.
    pub message: String,
}

/// Where a container is in its life. `Creating` and `Removing` are never listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerPhase {
    /// Intent, not committed.
    Creating,
    /// Init waits for start.
    Created,
    /// Init has exec'd.
    Running,
    /// Its cgroup is empty.
    Exited,
    /// Removal has begun.
    Removing,
    /// Its record cannot be used, so nobody knows. Shown, never written, and never a driver's.
    #[serde(skip_deserializing)]
    Unknown,
}

/// The durable truth about a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: ContainerId,
    /// Its sandbox.
    pub pod: PodId,
    /// What was asked for.
    pub config: ContainerConfig,
    /// What it was made from.
    pub image: ImageOfContainer,
    /// Nanoseconds since the epoch, never 0.
    pub created_at: i64,
    /// 0 until started.
    #[serde(default)]
    pub started_at: i64,
    /// Where it is.
    pub phase: ContainerPhase,
    /// Set when exited.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// Pid of init in the host's PID namespace; 0 when there is none. Valid in this boot only.
    #[serde(default)]
    pub pid: u32,
    /// Who init runs as, resolved in its rootfs.
    #[serde(default)]
    pub user: User,
    /// Absolute path of its log; never empty for a container that logs (an empty one makes kubelet
    /// remove files in its working directory).
    #[serde(default)]
    pub log_path: String,
    /// Kernel signal number that stop sends first.
    #[serde(default)]
    pub stop_signal: i32,
    /// Absolute cgroupfs path of its leaf below each hierarchy, for example
    /// `/kubepods/burstable/pod<uid>/<id>`.
    #[serde(default)]
    pub cgroup: String,
    /// Environment, cwd and credentials an exec inherits, and init's arguments for status, as JSON of
    /// `wire::ProcessPlan` (`spec::exec::keep`); kept opaque here so that records do not depend on
    /// the protocol.
    #[serde(default)]
    pub exec_template: Option<serde_json::Value>,
    /// Where in the template's environment the variables of `config.envs` stand, which is empty then: an
    /// environment can be megabytes, and is kept once. Empty until the container is made, and in records of
    /// versions that kept both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked_env: Vec<u32>,
}
