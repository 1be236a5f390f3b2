//! Reads one cgroup of v2. Where v1 has a value and v2 has not, the metrics that are made for v1 show what kubelet's
//! cAdvisor shows in its place, or nothing where that is always 0.

use super::folder::{Folder, MAX_DEVICES, devices, without_number};
use super::group::{Cpu, DeviceIo, HugePages, Memory, Throttling};
use crate::stats::parse::{self, MemoryStat};
use std::io;

pub(super) fn cpu(folder: &Folder) -> io::Result<Cpu> {
    let shares = folder.number("cpu.weight").map(shares);
    let max = folder.optional("cpu.max");
    let mut max = max.split_ascii_whitespace();
    // "max" without a quota, which is not a number here.
    let (quota, period) = (max.next().and_then(parse::number), max.next().and_then(parse::number));
    let stat = folder.text("cpu.stat")?;
    let microseconds = |key| parse::microseconds_of(&stat, key);
    Ok(Cpu {
        usage: microseconds("usage_usec").ok_or_else(|| without_number("cpu.stat"))?,
        user: microseconds("user_usec"),
        system: microseconds("system_usec"),
        shares,
        period,
        quota,
        throttling: Throttling {
            periods: parse::value_of(&stat, "nr_periods"),
            throttled: parse::value_of(&stat, "nr_throttled"),
            nanoseconds: microseconds("throttled_usec"),
        },
    })
}

/// The shares of a weight: the range of weights, 1 to 10,000, stretched to that of shares, 2 to 262,144. So they are not
/// quite those that the weight was computed from.
fn shares(weight: u64) -> u64 {
    2 + weight.clamp(1, 10_000).saturating_sub(1) * 262_142 / 9999
}

pub(super) fn memory(folder: &Folder) -> io::Result<Memory> {
    let events = folder.optional("memory.events");
    let (max_usage, swap) = (folder.number("memory.peak"), folder.number("memory.swap.current"));
    let (limit, swap_limit) = (folder.limit("memory.max"), folder.limit("memory.swap.max"));
    let soft_limit = folder.limit("memory.min");
    let stat = MemoryStat::v2(&folder.text("memory.stat")?);
    let usage = folder.required("memory.current", parse::number)?;
    Ok(Memory {
        usage,
        working_set: stat.working_set(usage),
        max_usage,
        failures: parse::value_of(&events, "max"),
        kernel: stat.kernel,
        cache: stat.cache,
        rss: stat.rss,
        mapped_file: stat.mapped_file,
        swap,
        faults: stat.faults,
        major_faults: stat.major_faults,
        limit,
        swap_limit,
        soft_limit,
        oom_kills: parse::value_of(&events, "oom_kill"),
    })
}

pub(super) fn io(folder: &Folder) -> Vec<DeviceIo> {
    devices(parse::io_stat(&folder.optional("io.stat"), MAX_DEVICES).into_iter())
}

pub(super) fn huge_pages(hugetlb: &Folder) -> Vec<HugePages> {
    hugetlb.huge_pages("current", None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_become_shares() {
        assert_eq!([1, 39, 100, 10_000].map(shares), [2, 998, 2597, 262_144]);
        assert_eq!([0, u64::MAX].map(shares), [2, 262_144], "what no kernel has");
    }
}
