//! The metrics: names, types, labels and help. Names, types, units and labels are those of kubelet's own
//! `/metrics/cadvisor`, so that dashboards and alerts which were made for it work on this runtime.
//!
//! CRI's values are integers, so a duration has whole seconds.

use cri_api::v1 as cri;

/// Labels of every metric, in the order of their values: the path of the cgroup; the id of the container, or of the
/// sandbox for metrics of a pod; what Kubernetes calls image, namespace, pod and container. Metrics of a pod have neither
/// an image nor a container.
pub(super) const BASE: [&str; 6] = ["id", "name", "image", "namespace", "pod", "container"];

/// What a host must have so that a metric has values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing.
    Nothing,
    /// Accounting of huge pages by cgroup.
    HugePages,
    /// Accounting of huge pages by cgroup v1, which remembers the highest usage.
    PeakOfHugePages,
    /// Pressure by cgroup.
    Pressure,
}

/// A metric with its description.
#[derive(Debug)]
pub(super) struct Family {
    /// Its name.
    pub(super) name: &'static str,
    /// Its type. A counter never decreases while its container runs.
    pub(super) kind: cri::MetricType,
    /// Its labels after [`BASE`].
    pub(super) labels: &'static [&'static str],
    /// What the host must have.
    pub(super) needs: Needs,
    /// One sentence.
    pub(super) help: &'static str,
}

impl Family {
    /// The message of ListMetricDescriptors.
    pub(super) fn descriptor(&self) -> cri::MetricDescriptor {
        cri::MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: BASE.iter().chain(self.labels).map(|label| (*label).to_owned()).collect(),
        }
    }
}

/// Defines each metric, and the list of all.
macro_rules! families {
    ($($item:ident: $kind:ident $name:literal [$($label:literal),*] $needs:ident $help:literal;)*) => {
        $(pub(super) static $item: Family = Family {
            name: concat!("container_", $name),
            kind: cri::MetricType::$kind,
            labels: &[$($label),*],
            needs: Needs::$needs,
            help: $help,
        };)*

        /// All metrics.
        pub(super) static ALL: &[&Family] = &[$(&$item),*];
    };
}

families! {
    LAST_SEEN: Gauge "last_seen" [] Nothing "Time of this reading, in seconds since the epoch.";
    START_TIME: Gauge "start_time_seconds" [] Nothing "When the container was started, in seconds since the epoch.";

    CPU_USAGE: Counter "cpu_usage_seconds_total" ["cpu"] Nothing "CPU time used, in seconds.";
    CPU_USER: Counter "cpu_user_seconds_total" [] Nothing "CPU time used in user mode, in seconds.";
    CPU_SYSTEM: Counter "cpu_system_seconds_total" [] Nothing "CPU time used in kernel mode, in seconds.";
    CFS_PERIODS: Counter "cpu_cfs_periods_total" [] Nothing
        "Periods of the CPU quota in which the container had work.";
    CFS_THROTTLED_PERIODS: Counter "cpu_cfs_throttled_periods_total" [] Nothing
        "Periods in which the container used up its CPU quota.";
    CFS_THROTTLED_SECONDS: Counter "cpu_cfs_throttled_seconds_total" [] Nothing
        "Time for which the CPU quota made the container wait, in seconds.";

    MEMORY_CACHE: Gauge "memory_cache" [] Nothing "Page cache, in bytes.";
    MEMORY_RSS: Gauge "memory_rss" [] Nothing "Anonymous memory, in bytes.";
    MEMORY_KERNEL: Gauge "memory_kernel_usage" [] Nothing "Memory that the kernel uses for the container, in bytes.";
    MEMORY_MAPPED_FILE: Gauge "memory_mapped_file" [] Nothing "Page cache of mapped files, in bytes.";
    MEMORY_SWAP: Gauge "memory_swap" [] Nothing "Swap in use, in bytes.";
    MEMORY_FAILCNT: Counter "memory_failcnt" [] Nothing "How often memory usage has reached the limit.";
    MEMORY_USAGE: Gauge "memory_usage_bytes" [] Nothing "Memory in use with all of the page cache, in bytes.";
    MEMORY_MAX_USAGE: Gauge "memory_max_usage_bytes" [] Nothing "Highest memory usage so far, in bytes.";
    MEMORY_WORKING_SET: Gauge "memory_working_set_bytes" [] Nothing
        "Memory in use without inactive page cache, in bytes.";
    MEMORY_FAILURES: Counter "memory_failures_total" ["failure_type", "scope"] Nothing
        "Page faults (pgfault), and those that needed I/O (pgmajfault), of the cgroup alone or of its hierarchy.";

    FS_INODES_FREE: Gauge "fs_inodes_free" ["device"] Nothing "Free inodes of the writable layer's file system.";
    FS_INODES: Gauge "fs_inodes_total" ["device"] Nothing "Inodes of the writable layer's file system.";
    FS_LIMIT: Gauge "fs_limit_bytes" ["device"] Nothing "Size of the writable layer's file system, in bytes.";
    FS_USAGE: Gauge "fs_usage_bytes" ["device"] Nothing "Size of the writable layer, in bytes.";
    FS_READ_BYTES: Counter "fs_reads_bytes_total" ["device"] Nothing "Bytes read from the device.";
    FS_READS: Counter "fs_reads_total" ["device"] Nothing "Reads from the device.";
    FS_WRITTEN_BYTES: Counter "fs_writes_bytes_total" ["device"] Nothing "Bytes written to the device.";
    FS_WRITES: Counter "fs_writes_total" ["device"] Nothing "Writes to the device.";
    BLKIO_USAGE: Counter "blkio_device_usage_total" ["device", "major", "minor", "operation"] Nothing
        "Bytes of I/O by device and operation.";

    NETWORK_RX_BYTES: Counter "network_receive_bytes_total" ["interface"] Nothing "Bytes received by the pod.";
    NETWORK_RX_PACKETS: Counter "network_receive_packets_total" ["interface"] Nothing
        "Packets received by the pod.";
    NETWORK_RX_DROPPED: Counter "network_receive_packets_dropped_total" ["interface"] Nothing
        "Packets for the pod that were dropped.";
    NETWORK_RX_ERRORS: Counter "network_receive_errors_total" ["interface"] Nothing
        "Packets for the pod that had errors.";
    NETWORK_TX_BYTES: Counter "network_transmit_bytes_total" ["interface"] Nothing "Bytes sent by the pod.";
    NETWORK_TX_PACKETS: Counter "network_transmit_packets_total" ["interface"] Nothing "Packets sent by the pod.";
    NETWORK_TX_DROPPED: Counter "network_transmit_packets_dropped_total" ["interface"] Nothing
        "Packets of the pod that were dropped.";
    NETWORK_TX_ERRORS: Counter "network_transmit_errors_total" ["interface"] Nothing
        "Packets of the pod that had errors.";

    PROCESSES: Gauge "processes" [] Nothing "Processes in the container.";
    FILE_DESCRIPTORS: Gauge "file_descriptors" [] Nothing "Descriptors that its processes have open.";
    SOCKETS: Gauge "sockets" [] Nothing "Descriptors of sockets that its processes have open.";
    THREADS: Gauge "threads" [] Nothing "Threads, including the main thread of each process.";
    THREADS_MAX: Gauge "threads_max" [] Nothing "Limit of threads; 0 means none.";
    ULIMITS_SOFT: Gauge "ulimits_soft" ["ulimit"] Nothing "Soft limits of the container's first process.";
    OOM_EVENTS: Counter "oom_events_total" [] Nothing
        "Processes of the container that the kernel killed because of a memory limit.";

    HUGE_USAGE: Gauge "hugetlb_usage_bytes" ["pagesize"] HugePages "Huge pages in use or reserved, in bytes.";
    HUGE_MAX_USAGE: Gauge "hugetlb_max_usage_bytes" ["pagesize"] PeakOfHugePages
        "Highest usage of huge pages so far, in bytes.";

    PRESSURE_CPU_SOME: Counter "pressure_cpu_waiting_seconds_total" [] Pressure
        "Time in which at least one task waited for a CPU, in seconds.";
    PRESSURE_CPU_FULL: Counter "pressure_cpu_stalled_seconds_total" [] Pressure
        "Time in which all tasks waited for a CPU, in seconds.";
    PRESSURE_MEMORY_SOME: Counter "pressure_memory_waiting_seconds_total" [] Pressure
        "Time in which at least one task waited for memory, in seconds.";
    PRESSURE_MEMORY_FULL: Counter "pressure_memory_stalled_seconds_total" [] Pressure
        "Time in which all tasks waited for memory, in seconds.";
    PRESSURE_IO_SOME: Counter "pressure_io_waiting_seconds_total" [] Pressure
        "Time in which at least one task waited for block I/O, in seconds.";
    PRESSURE_IO_FULL: Counter "pressure_io_stalled_seconds_total" [] Pressure
        "Time in which all tasks waited for block I/O, in seconds.";

    SPEC_CPU_PERIOD: Gauge "spec_cpu_period" [] Nothing "Period of the CPU quota, in microseconds.";
    SPEC_CPU_QUOTA: Gauge "spec_cpu_quota" [] Nothing "CPU time in each period, in microseconds.";
    SPEC_CPU_SHARES: Gauge "spec_cpu_shares" [] Nothing "CPU shares; on cgroup v2 computed from the weight.";
    SPEC_MEMORY_LIMIT: Gauge "spec_memory_limit_bytes" [] Nothing "Memory limit in bytes; 0 means none.";
    SPEC_MEMORY_RESERVATION: Gauge "spec_memory_reservation_limit_bytes" [] Nothing
        "Soft memory limit in bytes, on cgroup v2 what is protected from reclaim; 0 means none.";
    SPEC_MEMORY_SWAP_LIMIT: Gauge "spec_memory_swap_limit_bytes" [] Nothing
        "Limit of memory and swap together, on cgroup v2 of swap alone, in bytes; 0 means none.";
}
