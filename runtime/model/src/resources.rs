//! CRI `LinuxContainerResources`, as asked for. What becomes of each value on cgroup v1 and v2 is
//! computed by `spec::resources`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Limits of a container, or the sum of a pod's. Zero and empty mean "not set" (on update: unchanged).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// CFS period, µs.
    pub cpu_period: i64,
    /// CFS quota, µs per period; <= 0 on create is no limit.
    pub cpu_quota: i64,
    /// v1 shares; converted to a v2 weight.
    pub cpu_shares: i64,
    /// Hard memory limit, bytes.
    pub memory_limit: i64,
    /// Memory plus swap, bytes.
    pub memory_swap_limit: i64,
    /// -1000..=1000; raised to what this host lets us set.
    pub oom_score_adj: i64,
    /// CPU list, as the kernel's `cpuset.cpus` takes it.
    pub cpuset_cpus: String,
    /// Memory node list.
    pub cpuset_mems: String,
    /// One entry a page size.
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Raw cgroup v2 files; they win over the typed fields and mean nothing on v1.
    pub unified: BTreeMap<String, String>,
}

/// CRI `HugepageLimit`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepageLimit {
    /// Page size as the kernel spells it in file names, for example `2MB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}
