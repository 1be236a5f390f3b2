//! Converts CRI resources to cgroup files and values, for v1 and v2, in the order of writing.

use crate::Error;
use model::{HugepageLimit, Resources};
use std::collections::BTreeMap;

/// One cgroup file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Controller, as named in /proc/cgroups.
    pub controller: String,
    /// File in the controller's folder.
    pub file: String,
    /// The value.
    pub value: String,
    /// The CRI field it comes from, for errors.
    pub field: &'static str,
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

/// CFS period, µs: the limits of the kernel.
const PERIOD: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
/// Least CFS quota, µs.
const MIN_QUOTA: i64 = 1_000;
/// Least memory limit, bytes. The code that starts a process is charged to the container until its execve:
/// some 400 KiB.
const MIN_MEMORY: i64 = 1 << 20;
/// Largest v1 share.
const MAX_SHARES: i64 = 262_144;
/// Most entries of `unified` and `hugepage_limits`; a kernel has fewer files.
const MAX_ENTRIES: usize = 128;

/// The files of cgroup v1. `unified` has no effect there (CRI) and is skipped.
pub fn v1(resources: &Resources, mode: Mode) -> Result<Vec<Write>, Error> {
    let checked = check(resources, mode == Mode::Update)?;
    let mut writes = Vec::new();
    let mut put = |controller: &str, file: &str, value: String, field, optional| {
        let (controller, file) = (controller.to_owned(), file.to_owned());
        writes.push(Write { controller, file, value, field, optional });
    };
    // The cpuset first: a process cannot join a cgroup without one.
    if !resources.cpuset_cpus.is_empty() {
        put("cpuset", "cpuset.cpus", resources.cpuset_cpus.clone(), "cpuset_cpus", false);
    }
    if !resources.cpuset_mems.is_empty() {
        put("cpuset", "cpuset.mems", resources.cpuset_mems.clone(), "cpuset_mems", false);
    }
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
    // Memory before memory+swap, which may never be lower. (For an update that raises both, the writer
    // reverses the order, because it knows the current values.)
    if let Some(limit) = checked.memory {
        put("memory", "memory.limit_in_bytes", limit.to_string(), "memory_limit_in_bytes", false);
    }
    if let Some(limit) = checked.memory_and_swap {
        let file = "memory.memsw.limit_in_bytes";
        put("memory", file, limit.to_string(), "memory_swap_limit_in_bytes", true);
    }
    for huge in &resources.hugepage_limits {
        for file in huge_files(huge, "limit_in_bytes", "rsvd.limit_in_bytes") {
            // Kernels before 5.7 do not count reservations.
            let optional = huge.limit == 0 || file.contains(".rsvd.");
            put("hugetlb", &file, huge.limit.to_string(), "hugepage_limits", optional);
        }
    }
    Ok(writes)
}

/// The files of cgroup v2; an entry of `unified` replaces a typed value for the same file.
pub fn v2(resources: &Resources, mode: Mode) -> Result<Vec<Write>, Error> {
    // v2 limits swap without memory, so an update must give both.
    let checked = check(resources, false)?;
    let mut writes: Vec<Write> = Vec::new();
    let mut put = |file: &str, value: String, field, optional| {
        let controller = file.split('.').next().unwrap_or_default().to_owned();
        writes.push(Write { controller, file: file.to_owned(), value, field, optional });
    };
    if !resources.cpuset_cpus.is_empty() {
        put("cpuset.cpus", resources.cpuset_cpus.clone(), "cpuset_cpus", false);
    }
    if !resources.cpuset_mems.is_empty() {
        put("cpuset.mems", resources.cpuset_mems.clone(), "cpuset_mems", false);
    }
    if resources.cpu_shares > 0 {
        put("cpu.weight", weight(resources.cpu_shares).to_string(), "cpu_shares", false);
    }
    let quota = match (resources.cpu_quota, mode) {
        (quota, _) if quota > 0 => Some(quota.to_string()),
        (quota, Mode::Update) if quota < 0 => Some("max".to_owned()),
        // For a period alone the kernel accepts "max <period>".
        _ if resources.cpu_period > 0 && mode == Mode::Create => Some("max".to_owned()),
        _ => None,
    };
    if let Some(quota) = quota {
        let value = match resources.cpu_period {
            0 => quota,
            period => format!("{quota} {period}"),
        };
        put("cpu.max", value, "cpu_quota", false);
    }
    let limit = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    if let Some(memory) = checked.memory {
        put("memory.max", limit(memory), "memory_limit_in_bytes", false);
    }
    if let Some(total) = checked.memory_and_swap {
        let swap = if total < 0 { total } else { total.saturating_sub(checked.memory.unwrap_or(0)) };
        put("memory.swap.max", limit(swap), "memory_swap_limit_in_bytes", true);
    }
    for huge in &resources.hugepage_limits {
        for file in huge_files(huge, "max", "rsvd.max") {
            let optional = huge.limit == 0 || file.contains(".rsvd.");
            put(&file, huge.limit.to_string(), "hugepage_limits", optional);
        }
    }
    for (file, value) in &resources.unified {
        writes.retain(|write| write.file != *file);
        let controller = file.split('.').next().unwrap_or_default().to_owned();
        let (file, value) = (file.clone(), value.clone());
        writes.push(Write { controller, file, value, field: "unified", optional: false });
    }
    Ok(writes)
}

/// Files that limit huge pages in use and those reserved by mmap: without the second, a container with a
/// limit of zero could reserve all pages of the node.
fn huge_files(huge: &model::HugepageLimit, used: &str, reserved: &str) -> [String; 2] {
    [used, reserved].map(|kind| format!("hugetlb.{}.{kind}", huge.page_size))
}

/// cgroup v2 weight of v1 shares, by Kubernetes' formula (KEP-2254): a container is weighted against its
/// siblings by the same formula that kubelet uses for pods.
fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, MAX_SHARES) - 2) * 9999 / 262_142
}

/// The validated oom_score_adj of a container's processes.
pub(crate) fn oom_score_adj(resources: &Resources) -> Result<i32, Error> {
    let given = resources.oom_score_adj;
    match i32::try_from(given) {
        Ok(value) if (-1000..=1000).contains(&value) => Ok(value),
        _ => Err(Error::invalid("linux.resources.oom_score_adj", given.to_string(), "-1000 to 1000")),
    }
}

struct Checked {
    /// Bytes; negative removes the limit.
    memory: Option<i64>,
    /// Bytes of memory and swap together; negative removes the limit.
    memory_and_swap: Option<i64>,
}

fn field(name: &str) -> String {
    format!("linux.resources.{name}")
}

/// `alone`: as for [`memory_and_swap`].
fn check(resources: &Resources, alone: bool) -> Result<Checked, Error> {
    let Resources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit,
        memory_swap_limit,
        oom_score_adj: _,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits,
        unified,
    } = resources;
    if *cpu_period != 0 && !PERIOD.contains(cpu_period) {
        return Err(Error::invalid(field("cpu_period"), cpu_period.to_string(), "0, or 1000 to 1000000 µs"));
    }
    if (1..MIN_QUOTA).contains(cpu_quota) {
        return Err(Error::invalid(field("cpu_quota"), cpu_quota.to_string(), "at least 1000 µs"));
    }
    if (1..MIN_MEMORY).contains(memory_limit) {
        let want = format!("0, or at least {MIN_MEMORY} bytes: no process can start with less");
        return Err(Error::invalid(field("memory_limit_in_bytes"), memory_limit.to_string(), want));
    }
    if *cpu_shares < 0 {
        return Err(Error::invalid(field("cpu_shares"), cpu_shares.to_string(), "0, or 2 to 262144"));
    }
    for (name, list) in [("cpuset_cpus", cpuset_cpus), ("cpuset_mems", cpuset_mems)] {
        let fits = |c: char| c.is_ascii_digit() || c == ',' || c == '-';
        if list.len() > 4096 || !list.chars().all(fits) {
            return Err(Error::invalid(field(name), list, "a list such as 0-3,7"));
        }
    }
    let entries = hugepage_limits.len().max(unified.len());
    if entries > MAX_ENTRIES {
        return Err(Error::invalid(field("unified"), entries.to_string(), "at most 128 entries"));
    }
    check_names(hugepage_limits, unified)?;
    let memory = (*memory_limit != 0).then_some((*memory_limit).max(-1));
    let memory_and_swap = memory_and_swap(*memory_limit, *memory_swap_limit, alone)?;
    Ok(Checked { memory, memory_and_swap })
}

/// `alone`: swap may be limited without memory, because the current memory limit is used.
fn memory_and_swap(memory: i64, swap: i64, alone: bool) -> Result<Option<i64>, Error> {
    Ok(match (memory, swap) {
        // Without its own limit, swap is limited by memory: both together may not exceed the memory limit.
        (0, 0) => None,
        (memory, 0) => Some(memory.max(-1)),
        (_, swap) if swap < 0 => Some(-1),
        (memory, swap) if memory > 0 && swap >= memory => Some(swap),
        (0, swap) if alone => Some(swap),
        (_, swap) => {
            let want = "at least memory_limit_in_bytes, which must be set too";
            return Err(Error::invalid(field("memory_swap_limit_in_bytes"), swap.to_string(), want));
        }
    })
}

/// Page sizes and names of cgroup files, which become parts of paths.
fn check_names(hugepage_limits: &[HugepageLimit], unified: &BTreeMap<String, String>) -> Result<(), Error> {
    for huge in hugepage_limits {
        let digits = ["KB", "MB", "GB"].iter().find_map(|unit| huge.page_size.strip_suffix(unit));
        let right =
            digits.is_some_and(|d| !d.is_empty() && d.len() < 8 && d.bytes().all(|b| b.is_ascii_digit()));
        if !right {
            let want = "a page size in the kernel's spelling, such as 2MB";
            return Err(Error::invalid(field("hugepage_limits.page_size"), &huge.page_size, want));
        }
    }
    for (file, value) in unified {
        let part = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_' || c == '-';
        // The core's files (cgroup.procs, cgroup.subtree_control, cgroup.kill) belong to the runtime.
        let own = file.starts_with("cgroup.") && !file.starts_with("cgroup.max.");
        if file.len() > 255 || !file.contains('.') || !file.chars().all(part) || file.starts_with('.') || own
        {
            return Err(Error::invalid(field("unified"), file, "a controller's file, such as memory.high"));
        }
        if value.len() > 4096 || value.contains('\0') {
            return Err(Error::invalid(field("unified"), format!("{file}={value}"), "at most 4096 bytes"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::HugepageLimit;
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
    fn v1_files_in_order() {
        let writes = v1(&full(), Mode::Create).unwrap();
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
    }

    #[test]
    fn v2_files_and_unified_wins() {
        let mut resources = full();
        resources.unified.insert("memory.swap.max".into(), "0".into());
        resources.unified.insert("memory.oom.group".into(), "1".into());
        let writes = v2(&resources, Mode::Create).unwrap();
        assert_eq!(
            pairs(&writes),
            [
                ("cpuset.cpus", "0-1"),
                ("cpuset.mems", "0"),
                ("cpu.weight", "20"),
                ("cpu.max", "50000 100000"),
                ("memory.max", "67108864"),
                ("hugetlb.2MB.max", "0"),
                ("hugetlb.2MB.rsvd.max", "0"),
                ("memory.oom.group", "1"),
                ("memory.swap.max", "0"),
            ]
        );
    }

    #[test]
    fn unset_means_nothing() {
        for mode in [Mode::Create, Mode::Update] {
            assert!(v1(&Resources::default(), mode).unwrap().is_empty());
            assert!(v2(&Resources::default(), mode).unwrap().is_empty());
        }
        let lifted = Resources { cpu_quota: -1, memory_limit: -1, ..Resources::default() };
        assert_eq!(
            pairs(&v1(&lifted, Mode::Update).unwrap()),
            [
                ("cpu.cfs_quota_us", "-1"),
                ("memory.limit_in_bytes", "-1"),
                ("memory.memsw.limit_in_bytes", "-1")
            ]
        );
        assert_eq!(
            pairs(&v2(&lifted, Mode::Update).unwrap()),
            [("cpu.max", "max"), ("memory.max", "max"), ("memory.swap.max", "max")]
        );
    }

    #[test]
    fn swap_follows_memory() {
        let memory = Resources { memory_limit: 1 << 20, ..Resources::default() };
        assert_eq!(v1(&memory, Mode::Create).unwrap()[1].value, (1 << 20).to_string());
        assert_eq!(v2(&memory, Mode::Create).unwrap()[1].value, "0");
        for (memory_limit, memory_swap_limit) in [(0, 5 << 20), (5 << 20, 4 << 20)] {
            let wrong = Resources { memory_limit, memory_swap_limit, ..Resources::default() };
            let error = v1(&wrong, Mode::Create).unwrap_err();
            assert!(error.field().ends_with("memory_swap_limit_in_bytes"), "{error}");
        }
        // An update may leave memory unchanged.
        let swap = Resources { memory_swap_limit: 5 << 20, ..Resources::default() };
        assert_eq!(
            pairs(&v1(&swap, Mode::Update).unwrap()),
            [("memory.memsw.limit_in_bytes", (5 << 20).to_string().as_str())]
        );
        assert!(v2(&swap, Mode::Update).is_err());
    }

    #[test]
    fn weights() {
        assert_eq!(
            (weight(2), weight(1024), weight(262_144), weight(1), weight(i64::MAX)),
            (1, 39, 10_000, 1, 10_000)
        );
    }

    #[test]
    fn refuses() {
        let wrong = [
            Resources { cpu_period: 10, ..Resources::default() },
            Resources { cpu_quota: 10, ..Resources::default() },
            Resources { cpu_shares: -3, ..Resources::default() },
            Resources { cpuset_cpus: "0\n1".into(), ..Resources::default() },
            Resources {
                hugepage_limits: vec![HugepageLimit { page_size: "../x".into(), limit: 0 }],
                ..Resources::default()
            },
            Resources { unified: [("cgroup.procs".into(), "0".into())].into(), ..Resources::default() },
            Resources { unified: [("../memory.max".into(), "0".into())].into(), ..Resources::default() },
        ];
        for resources in wrong {
            assert!(v1(&resources, Mode::Create).is_err(), "{resources:?}");
            assert!(v2(&resources, Mode::Create).is_err(), "{resources:?}");
        }
        assert_eq!(oom_score_adj(&full()), Ok(999));
        assert!(oom_score_adj(&Resources { oom_score_adj: 1001, ..Resources::default() }).is_err());
        assert!(oom_score_adj(&Resources { oom_score_adj: i64::MIN, ..Resources::default() }).is_err());
    }

    proptest! {
        #[test]
        fn any_numbers_are_checked_without_panic(
            cpu_period in any::<i64>(), cpu_quota in any::<i64>(), cpu_shares in any::<i64>(),
            memory_limit in any::<i64>(), memory_swap_limit in any::<i64>(),
        ) {
            let resources = Resources {
                cpu_period, cpu_quota, cpu_shares, memory_limit, memory_swap_limit, ..Resources::default()
            };
            for mode in [Mode::Create, Mode::Update] {
                prop_assert_eq!(v1(&resources, mode).is_ok(), v2(&resources, mode).is_ok());
            }
        }
    }
}
