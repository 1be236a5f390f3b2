//! Containers.

use crate::{ContainerId, ContainerSecurity, ImageSpec, Mount, PodId, Resources, Text, Update, User};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// CRI `ContainerMetadata`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerMeta {
    /// Container name, unique in its sandbox together with the attempt.
    pub name: String,
    /// Number of the attempt: kubelet increases it with every restart.
    pub attempt: u32,
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
    /// Path in the container.
    pub container_path: String,
    /// Device node on the host, or a folder of nodes.
    pub host_path: String,
    /// Any of `r`, `w` and `m`.
    pub permissions: String,
}

/// A validated CRI `ContainerConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerConfig {
    /// Name and attempt.
    pub meta: ContainerMeta,
    /// The image.
    pub image: ImageSpec,
    /// Replaces the image's entrypoint and cmd.
    pub command: Vec<Text>,
    /// Replaces the image's cmd.
    pub args: Vec<Text>,
    /// Replaces the image's working directory; created if missing.
    pub working_dir: String,
    /// Applied after the image's environment; the last value of a name wins.
    pub envs: Vec<EnvVar>,
    /// Volumes.
    pub mounts: Vec<Mount>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Labels: returned in status and matched by list filters.
    pub labels: BTreeMap<String, String>,
    /// Annotations; returned in status.
    pub annotations: BTreeMap<String, String>,
    /// Log path below the sandbox's log directory; empty discards the output.
    pub log_path: String,
    /// Keep a pipe on stdin for attach.
    pub stdin: bool,
    /// Close stdin after the first attach that used it.
    pub stdin_once: bool,
    /// Allocate a terminal.
    pub tty: bool,
    /// Resource limits: those of the request, or what later updates have made of them.
    pub resources: Resources,
    /// Users, capabilities, profiles.
    pub security: ContainerSecurity,
    /// CRI `Signal` as on the wire, 0 if unset. This is not the kernel's number.
    pub stop_signal: i32,
}

/// The image of a container: all that its status needs, even after the image is removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOfContainer {
    /// CRI `Image.id` (config digest).
    pub id: String,
    /// `repository@digest`, or the id if there is none.
    pub digested: String,
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exit {
    /// 0..=255; 128+n for signal n; 128 if it never started; 255 if the exit code was lost.
    pub code: i32,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// The kernel killed a process of its cgroup because of its memory limit.
    pub oom_killed: bool,
    /// CRI reason: Completed, Error, OOMKilled, StartError, Unknown.
    pub reason: String,
    /// Short message for users.
    pub message: String,
}

/// The phase of a container. `Creating` is not listed. `Removing` is in the record on disk only: a running daemon lists the
/// container as `Exited` until it is gone; one that finds the phase at its start does not list it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerPhase {
    /// Creation has begun and is not committed.
    Creating,
    /// Init exists and waits for the start request.
    Created,
    /// Init has called execve.
    Running,
    /// All its processes have ended.
    Exited,
    /// Removal has begun.
    Removing,
    /// Its record cannot be used, so the state is unknown. Only listed: never written, never managed by a
    /// driver.
    #[serde(skip_deserializing)]
    Unknown,
}

/// The durable record of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// The container's id.
    pub id: ContainerId,
    /// The id of its sandbox.
    pub pod: PodId,
    /// The validated request.
    pub config: ContainerConfig,
    /// The image it was created from.
    pub image: ImageOfContainer,
    /// CRI `Image.id` of its image volumes: one for each of [`ContainerConfig::mounts`] that has an image, in their order.
    /// Empty until the images are looked up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_images: Vec<String>,
    /// Nanoseconds since the epoch, never 0.
    pub created_at: i64,
    /// Nanoseconds since the epoch; 0 until started.
    #[serde(default)]
    pub started_at: i64,
    /// The phase.
    pub phase: ContainerPhase,
    /// Set once it has exited.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// Pid of init in the host's PID namespace; 0 if there is none. Valid only in the current boot.
    #[serde(default)]
    pub pid: u32,
    /// User of init, looked up in the image.
    #[serde(default)]
    pub user: User,
    /// Absolute path of its log; never empty for a container that logs, because an empty one makes kubelet
    /// remove files in its own working directory.
    #[serde(default)]
    pub log_path: String,
    /// Kernel number of the signal that stop sends first.
    #[serde(default)]
    pub stop_signal: i32,
    /// Absolute path of its cgroup below each hierarchy, for example `/kubepods/burstable/pod<uid>/<id>`.
    #[serde(default)]
    pub cgroup: String,
    /// Environment, working directory and credentials that an exec inherits, and init's arguments for verbose status. It is
    /// a `wire::ProcessPlan` (`spec::exec::keep`), as JSON because `wire` depends on this crate.
    #[serde(default)]
    pub exec_template: Option<serde_json::Value>,
    /// The requested variables, as indices into the environment of `exec_template`. An environment can have
    /// megabytes, so it is stored once: `config.envs` is empty while this is not. This is empty until the
    /// container is created, and in records of earlier versions, which stored both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked_env: Vec<u32>,
    /// The update of its resources that has begun and whose end is not recorded. `config` has the values before it. If
    /// the daemon ends meanwhile, the next one asks the cgroup which values are in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Box<Update>>,
    /// The resources that were requested for a container that was updated before its start: a repeated CreateContainer
    /// is compared with these.
    #[serde(default, rename = "asked_resources", skip_serializing_if = "Option::is_none")]
    pub requested_resources: Option<Box<Resources>>,
    /// Annotations of its latest update that had some; for verbose status.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub update_annotations: BTreeMap<String, String>,
}

impl ContainerRecord {
    /// The record of a container that is about to be created; `created_at` in nanoseconds since the epoch.
    pub fn new(id: ContainerId, pod: PodId, config: ContainerConfig, created_at: i64) -> Self {
        Self {
            id,
            pod,
            config,
            image: ImageOfContainer::default(),
            volume_images: Vec::new(),
            created_at,
            started_at: 0,
            phase: ContainerPhase::Creating,
            exit: None,
            pid: 0,
            user: User::default(),
            log_path: String::new(),
            stop_signal: 0,
            cgroup: String::new(),
            exec_template: None,
            asked_env: Vec::new(),
            update: None,
            requested_resources: None,
            update_annotations: BTreeMap::new(),
        }
    }
}
