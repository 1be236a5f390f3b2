//! What the kernel accepts as resources, and the cgroup files that CRI resources are written to, in the order of writing.

mod update;
mod v2;

pub use update::{applied, before, updated};
pub use v2::v2;

use model::{HugepageLimit, Resources};
use std::ops::RangeInclusive;

/// CFS periods, µs.
pub const CPU_PERIODS: RangeInclusive<i64> = 1_000..=1_000_000;
/// CFS period of a new cgroup, µs.
const DEFAULT_PERIOD: i64 = 100_000;
/// Minimum CFS quota, µs.
pub const MIN_CPU_QUOTA: i64 = 1_000;
/// Minimum memory limit of a container, bytes. The code that starts a process is charged to the container until its
/// execve: some 400 KiB.
pub const MIN_MEMORY: i64 = 1 << 20;
/// Values of oom_score_adj.
pub const OOM_SCORE_ADJS: RangeInclusive<i64> = -1000..=1000;
/// Largest v1 share.
const MAX_SHARES: i64 = 262_144;

/// Whether this is a list in the format of cpuset files: numbers and ranges, separated by commas. The kernel checks
/// whether these processors or memory nodes exist.
pub fn is_cpuset_list(list: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.len() < 6 && text.bytes().all(|b| b.is_ascii_digit());
    let item = |part: &str| match part.split_once('-') {
        Some((from, to)) => number(from) && number(to),
        None => number(part),
    };
    list.len() <= 4096 && list.split(',').all(item)
}

/// Whether this is a page size as the kernel has it in the names of hugetlb files, such as 2MB.
pub fn is_page_size(size: &str) -> bool {
    let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
    digits.is_some_and(|d| (1..8).contains(&d.len()) && d.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether this is the name of a cgroup v2 file with a limit. The core's files (cgroup.procs, cgroup.kill,
/// cgroup.subtree_control) belong to the runtime. The kernel checks whether the file exists.
pub fn is_limit_file(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let cores = name.starts_with("cgroup.") && !name.starts_with("cgroup.max.");
    name.len() <= 255 && name.contains('.') && !name.starts_with('.') && name.bytes().all(plain) && !cores
}

/// Whether the limit `both`, of memory and swap together, is valid beside the limit `memory` (bytes): memory must then
/// be limited too, and not to more. A value of 0 or less means no limit.
pub fn is_swap_limit(memory: i64, both: i64) -> bool {
    both <= 0 || (memory > 0 && both >= memory)
}

/// Version of the cgroups that limit resources. Hybrid hosts have v1's controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy for each controller.
    V1,
    /// One hierarchy.
    V2,
}

/// The files of a request. `old` is what the cgroup has before: the defaults for a new one.
pub fn writes(version: Version, old: &Resources, resources: &Resources, mode: Mode) -> Vec<Write> {
    match version {
        Version::V1 => v1(resources, mode),
        Version::V2 => v2(old, resources, mode),
    }
}

/// One cgroup file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Controller, as in /proc/cgroups or cgroup.controllers; `cgroup` for files of v2's core.
    pub controller: String,
    /// File in the controller's folder.
    pub file: String,
    /// The value.
    pub value: String,
    /// The CRI field it comes from, with its parents, for errors.
    pub field: String,
    /// Whether the file may be missing. The request is then fulfilled without it: for example, no huge pages
    /// on a node without huge pages.
    pub optional: bool,
}

/// What zero and empty values mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A new cgroup, which has the kernel's defaults.
    Create,
    /// UpdateContainerResources: the value is unchanged. A negative quota or limit removes the limit.
    Update,
}

impl Mode {
    /// The message of the request in which the resources are, for errors.
    fn message(self) -> &'static str {
        match self {
            Self::Create => "config.linux.resources",
            Self::Update => "linux",
        }
    }

    /// A write for a field of that message.
    fn write(self, controller: &str, file: &str, value: String, field: &str, optional: bool) -> Write {
        let (controller, file) = (controller.to_owned(), file.to_owned());
        Write { controller, file, value, field: format!("{}.{field}", self.message()), optional }
    }
}

/// The files of the cpuset, which are the same in both versions.
fn cpuset(resources: &Resources, mode: Mode) -> Vec<Write> {
    [
        ("cpuset.cpus", &resources.cpuset_cpus, "cpuset_cpus"),
        ("cpuset.mems", &resources.cpuset_mems, "cpuset_mems"),
    ]
    .into_iter()
    .filter(|(_, list, _)| !list.is_empty())
    .map(|(file, list, field)| mode.write("cpuset", file, list.clone(), field, false))
    .collect()
}

/// The files of cgroup v1. There are none for `unified`, which names files of v2; the caller refuses a request that has it.
pub fn v1(resources: &Resources, mode: Mode) -> Vec<Write> {
    // The cpuset first: a process cannot join a cgroup without one.
    let mut writes = cpuset(resources, mode);
    let mut put = |controller: &str, file: &str, value: String, field: &str, optional| {
        writes.push(mode.write(controller, file, value, field, optional));
    };
    if resources.cpu_shares > 0 {
        let shares = resources.cpu_shares.clamp(2, MAX_SHARES);
        put("cpu", "cpu.shares", shares.to_string(), "cpu_shares", false);
    }
    // The period before the quota, because the kernel checks a quota against the current period.
    if resources.cpu_period > 0 {
        put("cpu", "cpu.cfs_period_us", resources.cpu_period.to_string(), "cpu_period", false);
    }
    match (resources.cpu_quota, mode) {
        (quota, _) if quota > 0 => put("cpu", "cpu.cfs_quota_us", quota.to_string(), "cpu_quota", false),
        (quota, Mode::Update) if quota < 0 => {
            put("cpu", "cpu.cfs_quota_us", "-1".to_owned(), "cpu_quota", false);
        }
        _ => {}
    }
    // Memory before memory and swap together, which may never be lower. (For an update that raises both, the writer
    // reverses the order, because it knows the current values.)
    let (memory, both) = (resources.memory_limit, resources.memory_swap_limit);
    if memory != 0 {
        let limit = memory.max(-1).to_string();
        put("memory", "memory.limit_in_bytes", limit, "memory_limit_in_bytes", false);
    }
    // Without a limit of its own, swap is part of the memory limit.
    let both = if both == 0 { memory } else { both };
    if both != 0 {
        let limit = both.max(-1).to_string();
        put("memory", "memory.memsw.limit_in_bytes", limit, "memory_swap_limit_in_bytes", true);
    }
    for huge in &resources.hugepage_limits {
        for file in hugetlb_files(huge) {
            // Kernels before 5.7 do not count reservations.
            let optional = huge.limit == 0 || file.contains(".rsvd.");
            put("hugetlb", &file, huge.limit.to_string(), "hugepage_limits", optional);
        }
    }
    writes
}

/// Files that limit huge pages in use and those reserved by mmap: without the second, a container with a
/// limit of zero could reserve all pages of the node.
fn hugetlb_files(huge: &HugepageLimit) -> [String; 2] {
    ["limit_in_bytes", "rsvd.limit_in_bytes"].map(|kind| format!("hugetlb.{}.{kind}", huge.page_size))
}

/// Whether this is one of the files of a page size.
fn is_hugetlb_file(file: &str, page_size: &str) -> bool {
    file.strip_prefix("hugetlb.")
        .and_then(|rest| rest.strip_prefix(page_size))
        .is_some_and(|rest| rest.starts_with('.'))
}

/// oom_score_adj of a container's processes.
pub(crate) fn oom_score_adj(resources: &Resources) -> i32 {
    // A request's value is one of `OOM_SCORE_ADJS`.
    i32::try_from(resources.oom_score_adj).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(writes: &[Write]) -> Vec<(&str, &str)> {
        writes.iter().map(|write| (write.file.as_str(), write.value.as_str())).collect()
    }

    fn full() -> Resources {
        Resources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit: 64 << 20,
            memory_swap_limit: 96 << 20,
            oom_score_adj: 999,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }],
            ..Resources::default()
        }
    }

    #[test]
    fn files_in_order() {
        let writes = v1(&full(), Mode::Create);
        assert_eq!(
            pairs(&writes),
            [
                ("cpuset.cpus", "0-1"),
                ("cpuset.mems", "0"),
                ("cpu.shares", "512"),
                ("cpu.cfs_period_us", "100000"),
                ("cpu.cfs_quota_us", "50000"),
                ("memory.limit_in_bytes", "67108864"),
                ("memory.memsw.limit_in_bytes", "100663296"),
                ("hugetlb.2MB.limit_in_bytes", "0"),
                ("hugetlb.2MB.rsvd.limit_in_bytes", "0"),
            ]
        );
        assert!(
            writes
                .iter()
                .all(|write| write.optional == (write.value == "0" && write.controller == "hugetlb")
                    || write.file.contains("memsw")
                    || write.file.starts_with("cpuset.mems"))
        );
        assert_eq!(oom_score_adj(&full()), 999);
    }

    #[test]
    fn unset_means_nothing() {
        for mode in [Mode::Create, Mode::Update] {
            assert!(v1(&Resources::default(), mode).is_empty());
        }
        let lifted = Resources { cpu_quota: -1, memory_limit: -1, ..Resources::default() };
        let memory = [("memory.limit_in_bytes", "-1"), ("memory.memsw.limit_in_bytes", "-1")];
        assert_eq!(pairs(&v1(&lifted, Mode::Create)), memory);
        let mut wanted = vec![("cpu.cfs_quota_us", "-1")];
        wanted.extend(memory);
        assert_eq!(pairs(&v1(&lifted, Mode::Update)), wanted);
    }

    #[test]
    fn swap_follows_memory() {
        let memory = Resources { memory_limit: 1 << 20, ..Resources::default() };
        assert_eq!(v1(&memory, Mode::Create)[1].value, (1 << 20).to_string());
        let unlimited = Resources { memory_swap_limit: -1, ..memory };
        assert_eq!(v1(&unlimited, Mode::Create)[1].value, "-1");
        // An update may leave memory unchanged.
        let swap = Resources { memory_swap_limit: 5 << 20, ..Resources::default() };
        let wanted = (5 << 20).to_string();
        assert_eq!(pairs(&v1(&swap, Mode::Update)), [("memory.memsw.limit_in_bytes", wanted.as_str())]);
    }

    #[test]
    fn names_and_lists() {
        assert!(["0", "0-3,8", "1,2"].into_iter().all(is_cpuset_list));
        assert!(!["", "a", "1-", "-1", "1,,2", "1-2-3", "999999", "0\n1"].into_iter().any(is_cpuset_list));
        assert!(["64KB", "2MB", "1GB"].into_iter().all(is_page_size));
        assert!(
            !["", "MB", "2M", "2mb", "x2MB", "2MBMB", "../x", "12345678KB"].into_iter().any(is_page_size)
        );
        assert!(
            ["memory.high", "hugetlb.2MB.max", "cgroup.max.depth", "io.max"].into_iter().all(is_limit_file)
        );
        assert!(
            !["memory", "../memory.max", "a/b.c", ".x", "cgroup.procs", "cgroup.kill", ""]
                .into_iter()
                .any(is_limit_file)
        );
        assert!(is_swap_limit(0, 0) && is_swap_limit(0, -1) && is_swap_limit(5, 0) && is_swap_limit(5, 5));
        assert!(!is_swap_limit(5, 4) && !is_swap_limit(0, 5) && !is_swap_limit(-1, 5));
    }

    proptest! {
        #[test]
        fn any_numbers_are_written_without_panic(
            cpu_period in any::<i64>(), cpu_quota in any::<i64>(), cpu_shares in any::<i64>(),
            memory_limit in any::<i64>(), memory_swap_limit in any::<i64>(),
        ) {
            let resources = Resources {
                cpu_period, cpu_quota, cpu_shares, memory_limit, memory_swap_limit, ..Resources::default()
            };
            for mode in [Mode::Create, Mode::Update] {
                // Five at most have numbers.
                prop_assert!(v1(&resources, mode).len() <= 5);
            }
        }
    }
}
