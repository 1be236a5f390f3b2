//! Parses files of cgroup v1 and of /proc. Pure.

use std::collections::BTreeMap;

/// The operations of the block layer, as `blkio` files name them.
const OPERATIONS: [&str; 6] = ["Read", "Write", "Sync", "Async", "Discard", "Total"];

/// The value of a line `key value`.
pub(super) fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A file with one number. Negative ones (no quota) are `None`.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// `pids.max`: 0 stands for no limit, as in cAdvisor's metric.
pub(super) fn task_limit(text: &str) -> Option<u64> {
    if text.trim() == "max" { Some(0) } else { number(text) }
}

/// What a `blkio` file says of one device: the value of each operation.
pub(super) type Operations = Vec<(&'static str, u64)>;

/// A `blkio` file with lines of `major:minor operation value`, by device. The sum in the last line, and operations that
/// no kernel of today knows, are left out; so are devices beyond the first `limit`.
pub(super) fn devices(text: &str, limit: usize) -> BTreeMap<(u32, u32), Operations> {
    let mut devices: BTreeMap<(u32, u32), Operations> = BTreeMap::new();
    for line in text.lines() {
        let Some((device, operation, value)) = device_line(line) else { continue };
        if devices.contains_key(&device) || devices.len() < limit {
            devices.entry(device).or_default().push((operation, value));
        }
    }
    devices
}

fn device_line(line: &str) -> Option<((u32, u32), &'static str, u64)> {
    let mut words = line.split_ascii_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let name = words.next()?;
    let operation = OPERATIONS.into_iter().find(|known| *known == name)?;
    Some(((major.parse().ok()?, minor.parse().ok()?), operation, words.next()?.parse().ok()?))
}

/// The soft limit of open files in `/proc/<pid>/limits`; `None` if it is unlimited.
pub(super) fn open_files(text: &str) -> Option<u64> {
    let values = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    values.split_ascii_whitespace().next()?.parse().ok()
}

/// The page size in the name of a file such as `hugetlb.2MB.usage_in_bytes`. The files of reservations (`rsvd`) and of
/// NUMA nodes have other names.
pub(super) fn page_size(name: &str) -> Option<&str> {
    name.strip_prefix("hugetlb.")?.strip_suffix(".usage_in_bytes").filter(|size| !size.contains('.'))
}
