//! CRI `LinuxContainerResources` as requested. `spec::resources` computes the files of cgroup v1 and v2.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Limits of a container, or the sums of a pod. Zero and empty mean "not set" (in an update: unchanged).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// CFS period, µs.
    pub cpu_period: i64,
    /// CFS quota, µs per period; <= 0 on create means no limit.
    pub cpu_quota: i64,
    /// Shares of cgroup v1.
    pub cpu_shares: i64,
    /// Hard memory limit, bytes; -1 means no limit.
    pub memory_limit: i64,
    /// Memory plus swap, bytes; -1 means no limit.
    pub memory_swap_limit: i64,
    /// -1000..=1000. Without CAP_SYS_RESOURCE the shim cannot set a value below its own minimum, and sets that instead.
    pub oom_score_adj: i64,
    /// CPU list in the kernel's `cpuset.cpus` format.
    pub cpuset_cpus: String,
    /// Memory node list.
    pub cpuset_mems: String,
    /// One entry per page size.
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Files of cgroup v2 with their values. On v1 a container with any is refused.
    pub unified: BTreeMap<String, String>,
}

/// A request of UpdateContainerResources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Update {
    /// The new values. Zero and empty mean "unchanged"; a quota or limit below zero means that there is none any more.
    pub resources: Resources,
    /// CRI `annotations` of the request: no key of theirs is known, so they are only kept and shown.
    pub annotations: BTreeMap<String, String>,
}

/// Resources of a pod, as UpdatePodSandboxResources has sent them. Informational: the pod's cgroup belongs to the client
/// that has created it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodResources {
    /// CRI `overhead`.
    pub overhead: Option<Resources>,
    /// CRI `resources`: the sums over the pod's containers.
    pub resources: Option<Resources>,
}

/// CRI `HugepageLimit`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepageLimit {
    /// Page size as the kernel writes it in file names, for example `2MB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}
