//! What one reading of a container or of a pod contains.
//!
//! CPU, memory, swap, I/O and tasks are read from files of cgroup v1 or v2, networks from /proc/net/dev; a writable layer is
//! walked. A value whose file does not exist on this host is `None`, not 0; only [`Psi::full`] is zeros where the file has no
//! line for it.
//! All timestamps are nanoseconds since the epoch, taken right before the files are read. Counters start at 0 when their
//! cgroup or interface is created. A pod's cgroup outlives its containers, so a pod's counters go on across restarts of
//! them, and are larger than the sum of those of its containers.

/// CPU time (`CpuUsage`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cpu {
    /// Nanoseconds since the epoch.
    pub timestamp: i64,
    /// CPU time of all cores since the cgroup was created, in nanoseconds, with the cgroups below:
    /// `cpuacct.usage` (v1), or `usage_usec` of `cpu.stat` (v2).
    pub usage_core_nano_seconds: u64,
    /// CPU time per second of wall-clock time, in nanoseconds, over the last 5 to 15 seconds (over 1 second or more while
    /// there is no sample that old); `None` in the first second. 1,000,000,000 means one core.
    pub usage_nano_cores: Option<u64>,
    /// Tasks that waited for a CPU; `None` if the kernel has no PSI for this cgroup.
    pub psi: Option<Psi>,
}

/// Memory (`MemoryUsage`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Memory {
    /// Nanoseconds since the epoch.
    pub timestamp: i64,
    /// Working set: `usage_bytes` without `total_inactive_file` (v1) or `inactive_file` (v2) of `memory.stat`, never
    /// below 0.
    pub working_set_bytes: u64,
    /// Bytes by which the working set may grow until it reaches `memory.limit_in_bytes` (v1) or `memory.max` (v2); `None`
    /// without a limit.
    pub available_bytes: Option<u64>,
    /// Bytes in use, page cache included: `memory.usage_in_bytes` (v1) or `memory.current` (v2).
    pub usage_bytes: u64,
    /// Bytes of anonymous memory: `total_rss` (v1) or `anon` (v2) of `memory.stat`.
    pub rss_bytes: u64,
    /// Page faults: `total_pgfault` (v1) or `pgfault` (v2) of `memory.stat`.
    pub page_faults: u64,
    /// Page faults that needed disk I/O: `total_pgmajfault` (v1) or `pgmajfault` (v2) of `memory.stat`.
    pub major_page_faults: u64,
    /// Tasks that waited for memory; `None` if the kernel has no PSI for this cgroup.
    pub psi: Option<Psi>,
}

/// Swap (`SwapUsage`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Swap {
    /// Nanoseconds since the epoch.
    pub timestamp: i64,
    /// Bytes left to the limit, which is `memory.memsw.limit_in_bytes` without `memory.limit_in_bytes` (v1), or
    /// `memory.swap.max` (v2); `None` without a limit.
    pub swap_available_bytes: Option<u64>,
    /// Bytes in use: `total_swap` of `memory.stat` (v1), or `memory.swap.current` (v2).
    pub swap_usage_bytes: u64,
}

/// Block I/O (`IoUsage`), of which CRI has only the pressure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Io {
    /// Nanoseconds since the epoch.
    pub timestamp: i64,
    /// Tasks that waited for block I/O.
    pub psi: Psi,
}

/// Pressure stall information of a cgroup (`PsiStats`): `cpu.pressure`, `memory.pressure` or `io.pressure`. v2 has these
/// files unless the kernel was built without or started with psi=0; v1 only with the kernels of some distributions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Psi {
    /// Time in which all tasks that are not idle waited. Kernels before 5.13 have no such line in `cpu.pressure`: zeros.
    pub full: PsiData,
    /// Time in which at least one task waited.
    pub some: PsiData,
}

/// One line of a pressure file (`PsiData`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct PsiData {
    /// Nanoseconds since the cgroup was created. (The kernel's file has microseconds.)
    pub total: u64,
    /// Share of the last 10 seconds, in percent.
    pub avg10: f64,
    /// Share of the last 60 seconds, in percent.
    pub avg60: f64,
    /// Share of the last 300 seconds, in percent.
    pub avg300: f64,
}

/// A writable layer (`FilesystemUsage`): the overlay's upper folder, without volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WritableLayer {
    /// When it was walked, nanoseconds since the epoch.
    pub timestamp: i64,
    /// Bytes on disk.
    pub used_bytes: u64,
    /// Files and folders.
    pub inodes_used: u64,
}

/// Stats of a container. Its attributes (id, name, labels) come from the record: CRI needs them even without
/// stats.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ContainerStats {
    /// CPU.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Swap; `None` if the host does not account for it.
    pub swap: Option<Swap>,
    /// Block I/O; `None` if the kernel has no PSI for this cgroup.
    pub io: Option<Io>,
    /// Writable layer; `None` until it was walked for the first time.
    pub writable_layer: Option<WritableLayer>,
    /// Tasks, threads included: `pids.current`; `None` without the controller.
    pub pids: Option<u64>,
}

/// Stats of a pod: those of the cgroup that kubelet gave it, which contains pause and all containers, and those of its
/// network namespace. Each part is read by itself: if one cannot be read, only this one is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct PodStats {
    /// CPU, memory, swap and block I/O; `None` if the pod's cgroup cannot be read, or if it is the root cgroup, whose
    /// values are those of the host.
    pub usage: Option<PodUsage>,
    /// Network; `None` if the pod uses the host's network, whose counters are not the pod's, or if it has no interface.
    pub network: Option<Network>,
    /// Processes; `None` if they cannot be counted.
    pub processes: Option<Processes>,
}

/// What the cgroup of a pod accounts for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PodUsage {
    /// CPU.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Swap; `None` if the host does not account for it. (CRI has no field for it.)
    pub swap: Option<Swap>,
    /// Block I/O; `None` if the kernel has no PSI for this cgroup.
    pub io: Option<Io>,
    /// Tasks, threads included: `pids.current`; `None` without the controller.
    pub pids: Option<u64>,
}

/// The interfaces of a pod's network namespace (`NetworkUsage`), from its /proc/net/dev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    /// Nanoseconds since the epoch.
    pub timestamp: i64,
    /// All interfaces except `lo`, in the kernel's order; never empty.
    pub interfaces: Vec<Interface>,
    /// Which of them is the pod's own: `eth0`, the name given to CNI plugins, or the first if there is no `eth0`.
    pub default: usize,
}

/// An interface as the pod sees it (`NetworkInterfaceUsage`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Its name in the pod's network namespace, at most 15 bytes.
    pub name: String,
    /// Received by the pod.
    pub rx: Traffic,
    /// Sent by the pod.
    pub tx: Traffic,
}

/// Counters of one direction of an interface, since it was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Dropped packets.
    pub dropped: u64,
}

/// Processes of a pod (`ProcessUsage`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Processes {
    /// Nanoseconds since the epoch.
    pub timestamp: i64,
    /// Processes (not threads) in the pod's containers, and in the cgroups below theirs: lines of `cgroup.procs`. Pause is
    /// not counted, nor does kubelet count it.
    pub count: u64,
}
