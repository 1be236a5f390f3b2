//! The values of a cgroup.

use crate::stats::{Psi, parse};

/// The values of one cgroup. Those that this kernel has no file for are `None`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    /// CPU.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// The devices with I/O.
    pub io: Vec<DeviceIo>,
    /// Huge pages, by their size.
    pub huge_pages: Vec<HugePages>,
    /// Tasks, threads included: `pids.current`.
    pub tasks: Option<u64>,
    /// `pids.max`; 0 means no limit.
    pub task_limit: Option<u64>,
    /// Tasks that waited.
    pub pressure: Pressure,
}

/// CPU time and limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cpu {
    /// CPU time of all cores in nanoseconds.
    pub usage: u64,
    /// In user mode, in nanoseconds. v1 counts in hundredths of a second.
    pub user: Option<u64>,
    /// In kernel mode, in nanoseconds.
    pub system: Option<u64>,
    /// `cpu.shares`; on v2 the shares that kubelet's cAdvisor shows for `cpu.weight`.
    pub shares: Option<u64>,
    /// Period of the quota in microseconds: `cpu.cfs_period_us` (v1), or the second number of `cpu.max` (v2).
    pub period: Option<u64>,
    /// CPU time in each period in microseconds: `cpu.cfs_quota_us` (v1), or the first number of `cpu.max` (v2); `None`
    /// without a quota.
    pub quota: Option<u64>,
    /// `cpu.stat`.
    pub throttling: Throttling,
}

/// `cpu.stat`: how the quota was enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Throttling {
    /// Periods that have passed while there was something to run.
    pub periods: Option<u64>,
    /// Those in which the quota was used up.
    pub throttled: Option<u64>,
    /// Nanoseconds for which tasks had to wait.
    pub nanoseconds: Option<u64>,
}

/// Memory. Bytes, unless a field says something else. The values include the cgroups below, unless a field says something
/// else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Memory {
    /// `memory.usage_in_bytes` (v1) or `memory.current` (v2).
    pub usage: u64,
    /// Usage without inactive page cache, never below 0.
    pub working_set: u64,
    /// `memory.max_usage_in_bytes` (v1), or `memory.peak` (v2, since Linux 5.19).
    pub max_usage: Option<u64>,
    /// How often the limit was reached: `memory.failcnt` (v1, of this cgroup alone), or `max` of `memory.events` (v2).
    pub failures: Option<u64>,
    /// `memory.kmem.usage_in_bytes` (v1), or `kernel` of `memory.stat` (v2, since Linux 5.18).
    pub kernel: Option<u64>,
    /// Page cache.
    pub cache: Option<u64>,
    /// Anonymous memory.
    pub rss: Option<u64>,
    /// Mapped files.
    pub mapped_file: Option<u64>,
    /// Swap; `None` if the host does not account for it.
    pub swap: Option<u64>,
    /// Page faults of this cgroup alone, and with those below. v2 has only the latter, for both.
    pub faults: [Option<u64>; 2],
    /// The same for page faults that needed I/O.
    pub major_faults: [Option<u64>; 2],
    /// `memory.limit_in_bytes` (v1) or `memory.max` (v2); `None` without a limit, as the next two.
    pub limit: Option<u64>,
    /// `memory.memsw.limit_in_bytes` (v1), of memory and swap together, or `memory.swap.max` (v2), of swap alone.
    pub swap_limit: Option<u64>,
    /// `memory.soft_limit_in_bytes` (v1); on v2 `memory.min`, which kubelet's cAdvisor shows in its place.
    pub soft_limit: Option<u64>,
    /// Processes that the kernel killed because of a memory limit: `oom_kill` of `memory.oom_control` (v1, of this cgroup
    /// alone) or of `memory.events` (v2).
    pub oom_kills: Option<u64>,
}

/// I/O of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceIo {
    /// Path of the device, such as `/dev/sda`; empty if it does not exist any more.
    pub device: String,
    /// Major and minor number.
    pub number: (u32, u32),
    /// Bytes by operation (`Read`, `Write`, …).
    pub bytes: parse::Operations,
    /// Requests by operation.
    pub requests: parse::Operations,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HugePages {
    /// The size as in the names of the kernel's files, such as `2MB`.
    pub size: String,
    /// Reserved, whether in use or not, as in kubelet's cAdvisor; in use where the kernel does not tell of reservations.
    pub usage: u64,
    /// The highest value of `usage` so far. v2 does not remember it.
    pub max_usage: Option<u64>,
}

/// Tasks that waited; each `None` if the kernel does not measure it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Pressure {
    /// For a CPU.
    pub cpu: Option<Psi>,
    /// For memory.
    pub memory: Option<Psi>,
    /// For block I/O.
    pub io: Option<Psi>,
}
