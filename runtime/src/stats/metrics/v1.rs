//! Reads one cgroup of v1.

use super::folder::{Folder, MAX_DEVICES, devices};
use super::group::{Cpu, DeviceIo, HugePages, Memory, Throttling};
use crate::stats::parse::{self, MemoryStat};
use std::io;

/// Nanoseconds in a tick of `cpuacct.stat` (USER_HZ), of which a second has 100 on all architectures that Linux runs
/// containers on.
const TICK: u64 = 10_000_000;

pub(super) fn cpu(cpu: &Folder, cpuacct: &Folder) -> io::Result<Cpu> {
    let (split, throttling) = (cpuacct.optional("cpuacct.stat"), cpu.optional("cpu.stat"));
    let ticks = |key| Some(parse::value_of(&split, key)?.saturating_mul(TICK));
    let throttling = |key| parse::value_of(&throttling, key);
    let (shares, period) = (cpu.number("cpu.shares"), cpu.number("cpu.cfs_period_us"));
    // -1 without a quota, which is not a number here.
    let quota = cpu.number("cpu.cfs_quota_us");
    Ok(Cpu {
        usage: cpuacct.required("cpuacct.usage", parse::number)?,
        user: ticks("user"),
        system: ticks("system"),
        shares,
        period,
        quota,
        throttling: Throttling {
            periods: throttling("nr_periods"),
            throttled: throttling("nr_throttled"),
            nanoseconds: throttling("throttled_time"),
        },
    })
}

pub(super) fn memory(memory: &Folder) -> io::Result<Memory> {
    let oom = memory.optional("memory.oom_control");
    let (max_usage, failures) = (memory.number("memory.max_usage_in_bytes"), memory.number("memory.failcnt"));
    let kernel = memory.number("memory.kmem.usage_in_bytes");
    let (limit, soft_limit) =
        (memory.limit("memory.limit_in_bytes"), memory.limit("memory.soft_limit_in_bytes"));
    let swap_limit = memory.limit("memory.memsw.limit_in_bytes");
    let stat = MemoryStat::v1(&memory.text("memory.stat")?);
    let usage = memory.required("memory.usage_in_bytes", parse::number)?;
    Ok(Memory {
        usage,
        working_set: stat.working_set(usage),
        max_usage,
        failures,
        kernel,
        cache: stat.cache,
        rss: stat.rss,
        mapped_file: stat.mapped_file,
        swap: stat.swap,
        faults: stat.faults,
        major_faults: stat.major_faults,
        limit,
        swap_limit,
        soft_limit,
        oom_kills: parse::value_of(&oom, "oom_kill"),
    })
}

/// I/O by device. The I/O scheduler bfq counts for its devices. For the others the kernel counts while it throttles, in
/// files of the same form; since Linux 6.10 only while some cgroup has a limit for the device. So both may be empty.
pub(super) fn io(blkio: &Folder) -> Vec<DeviceIo> {
    let read = |kind: &str, what: &str| {
        parse::blkio(&blkio.optional(&format!("blkio.{kind}.{what}_recursive")), MAX_DEVICES)
    };
    let mut bytes = read("bfq", "io_service_bytes");
    let mut requests = read("bfq", "io_serviced");
    if bytes.is_empty() && requests.is_empty() {
        bytes = read("throttle", "io_service_bytes");
        requests = read("throttle", "io_serviced");
    }
    devices(
        bytes
            .into_iter()
            .map(|(number, bytes)| (number, [bytes, requests.remove(&number).unwrap_or_default()])),
    )
}

pub(super) fn huge_pages(hugetlb: &Folder) -> Vec<HugePages> {
    hugetlb.huge_pages("usage_in_bytes", Some("max_usage_in_bytes"))
}
