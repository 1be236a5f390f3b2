//! Makes samples of what was read. Which are of a pod and which of a container:
//!
//! | samples | of the pod | of each container |
//! | --- | --- | --- |
//! | network | yes | no |
//! | CPU, memory, block I/O, huge pages, threads, limits, pressure, times | of the pod's cgroup | of the container's |
//! | writable layer, processes, descriptors, ulimits, OOM kills | no | yes |
//!
//! Quotas and what they cause have samples only where there is a quota, as in cAdvisor.

use super::families::{self as of, BASE, Family};
use super::{ContainerReading, PodReading, Running};
use crate::service::convert;
use crate::stats::metrics::{Cpu, Filesystem, Group, Memory, Pressure, Processes};
use crate::stats::{Network, WritableLayer};
use cri_api::v1 as cri;

const NANOSECONDS: u64 = 1_000_000_000;

/// Samples with the same base labels.
struct Samples {
    base: [String; BASE.len()],
    list: Vec<cri::Metric>,
}

impl Samples {
    fn new(base: [String; BASE.len()]) -> Self {
        Self { base, list: Vec::with_capacity(64) }
    }

    /// Adds a sample that was read just now.
    fn add(&mut self, family: &'static Family, value: u64, labels: &[&str]) {
        self.add_read_at(0, family, value, labels);
    }

    /// Adds a sample that was read at a time in nanoseconds since the epoch; 0 means now.
    fn add_read_at(&mut self, timestamp: i64, family: &'static Family, value: u64, labels: &[&str]) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let labels = labels.iter().map(|label| (*label).to_owned());
        self.list.push(cri::Metric {
            name: family.name.to_owned(),
            timestamp,
            metric_type: family.kind.into(),
            label_values: self.base.iter().cloned().chain(labels).collect(),
            value: Some(cri::UInt64Value { value }),
        });
    }

    /// Adds a sample if there is a value.
    fn add_if(&mut self, family: &'static Family, value: Option<u64>) {
        if let Some(value) = value {
            self.add(family, value, &[]);
        }
    }
}

/// The metrics of a pod and its containers. `now`: seconds since the epoch.
pub(super) fn pod(reading: &PodReading, filesystem: Option<&Filesystem>, now: u64) -> cri::PodSandboxMetrics {
    let PodReading { record, cgroup, group, network, containers } = reading;
    let meta = &record.config.meta;
    let mut samples = Samples::new([
        cgroup.clone(),
        record.id.to_string(),
        String::new(),
        meta.namespace.clone(),
        meta.name.clone(),
        String::new(),
    ]);
    times(&mut samples, record.created_at, now);
    if let Some(group) = group {
        usage(&mut samples, group);
    }
    if let Some(network) = network {
        interfaces(&mut samples, network);
    }
    cri::PodSandboxMetrics {
        pod_sandbox_id: record.id.to_string(),
        metrics: samples.list,
        container_metrics: containers
            .iter()
            .map(|container| of_container(reading, container, filesystem, now))
            .collect(),
    }
}

fn of_container(
    pod: &PodReading,
    ContainerReading { record, running }: &ContainerReading,
    filesystem: Option<&Filesystem>,
    now: u64,
) -> cri::ContainerMetrics {
    let meta = &pod.record.config.meta;
    let mut samples = Samples::new([
        record.cgroup.clone(),
        record.id.to_string(),
        convert::image_of(record).to_owned(),
        meta.namespace.clone(),
        meta.name.clone(),
        record.config.meta.name.clone(),
    ]);
    match running {
        Some(Running { group, processes, layer }) => {
            times(&mut samples, record.started_at, now);
            usage(&mut samples, group);
            samples.add_if(&of::OOM_EVENTS, group.memory.oom_kills);
            files(&mut samples, layer.as_ref(), filesystem);
            if let Some(processes) = processes {
                of_processes(&mut samples, processes);
            }
        }
        // Its cgroup is gone, and with it the count. Without this sample, a kill that ends the container would never be
        // seen, because nobody reads between the kill and the end.
        None => samples.add(&of::OOM_EVENTS, 1, &[]),
    }
    cri::ContainerMetrics { container_id: record.id.to_string(), metrics: samples.list }
}

/// `started`: nanoseconds since the epoch.
fn times(samples: &mut Samples, started: i64, now: u64) {
    samples.add(&of::LAST_SEEN, now, &[]);
    samples.add(&of::START_TIME, u64::try_from(started).unwrap_or(0) / NANOSECONDS, &[]);
}

/// What a cgroup accounts for.
fn usage(samples: &mut Samples, group: &Group) {
    let Group { cpu, memory, io: _, huge_pages, tasks, task_limit, pressure } = group;
    of_cpu(samples, cpu);
    of_memory(samples, memory);
    of_devices(samples, group);
    for pages in huge_pages {
        samples.add(&of::HUGE_USAGE, pages.usage, &[&pages.size]);
        if let Some(max_usage) = pages.max_usage {
            samples.add(&of::HUGE_MAX_USAGE, max_usage, &[&pages.size]);
        }
    }
    samples.add_if(&of::THREADS, *tasks);
    samples.add_if(&of::THREADS_MAX, *task_limit);
    of_pressure(samples, pressure);
}

fn of_pressure(samples: &mut Samples, Pressure { cpu, memory, io }: &Pressure) {
    for (psi, some, full) in [
        (cpu, &of::PRESSURE_CPU_SOME, &of::PRESSURE_CPU_FULL),
        (memory, &of::PRESSURE_MEMORY_SOME, &of::PRESSURE_MEMORY_FULL),
        (io, &of::PRESSURE_IO_SOME, &of::PRESSURE_IO_FULL),
    ] {
        samples.add_if(some, psi.map(|psi| psi.some.total / NANOSECONDS));
        samples.add_if(full, psi.map(|psi| psi.full.total / NANOSECONDS));
    }
}

fn of_cpu(samples: &mut Samples, cpu: &Cpu) {
    let Cpu { usage, user, system, shares, period, quota, throttling } = cpu;
    samples.add(&of::CPU_USAGE, usage / NANOSECONDS, &["total"]);
    samples.add_if(&of::CPU_USER, user.map(|it| it / NANOSECONDS));
    samples.add_if(&of::CPU_SYSTEM, system.map(|it| it / NANOSECONDS));
    samples.add_if(&of::SPEC_CPU_SHARES, *shares);
    samples.add_if(&of::SPEC_CPU_PERIOD, *period);
    samples.add_if(&of::SPEC_CPU_QUOTA, *quota);
    if quota.is_some() {
        samples.add_if(&of::CFS_PERIODS, throttling.periods);
        samples.add_if(&of::CFS_THROTTLED_PERIODS, throttling.throttled);
        samples.add_if(&of::CFS_THROTTLED_SECONDS, throttling.nanoseconds.map(|it| it / NANOSECONDS));
    }
}

fn of_memory(samples: &mut Samples, memory: &Memory) {
    let Memory {
        usage,
        working_set,
        max_usage,
        failures,
        kernel,
        cache,
        rss,
        mapped_file,
        swap,
        faults,
        major_faults,
        limit,
        swap_limit,
        soft_limit,
        // Of a container only: v1 does not add it up, and cAdvisor has none of a pod either.
        oom_kills: _,
    } = memory;
    samples.add(&of::MEMORY_USAGE, *usage, &[]);
    samples.add(&of::MEMORY_WORKING_SET, *working_set, &[]);
    samples.add_if(&of::MEMORY_MAX_USAGE, *max_usage);
    samples.add_if(&of::MEMORY_FAILCNT, *failures);
    samples.add_if(&of::MEMORY_KERNEL, *kernel);
    samples.add_if(&of::MEMORY_CACHE, *cache);
    samples.add_if(&of::MEMORY_RSS, *rss);
    samples.add_if(&of::MEMORY_MAPPED_FILE, *mapped_file);
    // A host that does not account for swap has no limit for it either. Clients expect both metrics from every host, and
    // cAdvisor shows 0 as well.
    samples.add(&of::MEMORY_SWAP, swap.unwrap_or(0), &[]);
    for (kind, counts) in [("pgfault", faults), ("pgmajfault", major_faults)] {
        for (count, scope) in counts.iter().zip(["container", "hierarchy"]) {
            if let Some(count) = count {
                samples.add(&of::MEMORY_FAILURES, *count, &[kind, scope]);
            }
        }
    }
    samples.add(&of::SPEC_MEMORY_LIMIT, limit.unwrap_or(0), &[]);
    samples.add(&of::SPEC_MEMORY_SWAP_LIMIT, swap_limit.unwrap_or(0), &[]);
    samples.add(&of::SPEC_MEMORY_RESERVATION, soft_limit.unwrap_or(0), &[]);
}

fn of_devices(samples: &mut Samples, group: &Group) {
    for io in &group.io {
        let (major, minor) = (io.number.0.to_string(), io.number.1.to_string());
        for (operation, bytes) in &io.bytes {
            samples.add(&of::BLKIO_USAGE, *bytes, &[&io.device, &major, &minor, operation]);
        }
        let families = [
            (&io.bytes, &of::FS_READ_BYTES, &of::FS_WRITTEN_BYTES),
            (&io.requests, &of::FS_READS, &of::FS_WRITES),
        ];
        for (counts, reads, writes) in families {
            for (operation, count) in counts {
                match *operation {
                    "Read" => samples.add(reads, *count, &[&io.device]),
                    "Write" => samples.add(writes, *count, &[&io.device]),
                    _ => {}
                }
            }
        }
    }
}

fn interfaces(samples: &mut Samples, network: &Network) {
    for interface in &network.interfaces {
        let name: &[&str] = &[&interface.name];
        let (rx, tx) = (&interface.rx, &interface.tx);
        samples.add(&of::NETWORK_RX_BYTES, rx.bytes, name);
        samples.add(&of::NETWORK_RX_PACKETS, rx.packets, name);
        samples.add(&of::NETWORK_RX_DROPPED, rx.dropped, name);
        samples.add(&of::NETWORK_RX_ERRORS, rx.errors, name);
        samples.add(&of::NETWORK_TX_BYTES, tx.bytes, name);
        samples.add(&of::NETWORK_TX_PACKETS, tx.packets, name);
        samples.add(&of::NETWORK_TX_DROPPED, tx.dropped, name);
        samples.add(&of::NETWORK_TX_ERRORS, tx.errors, name);
    }
}

/// The writable layer and its file system. The layer is walked in the background, so its size is older than the rest.
fn files(samples: &mut Samples, layer: Option<&WritableLayer>, filesystem: Option<&Filesystem>) {
    let Some(Filesystem { device, bytes, inodes, inodes_free }) = filesystem else { return };
    let device: &[&str] = &[device];
    samples.add(&of::FS_LIMIT, *bytes, device);
    samples.add(&of::FS_INODES, *inodes, device);
    samples.add(&of::FS_INODES_FREE, *inodes_free, device);
    if let Some(layer) = layer {
        samples.add_read_at(layer.timestamp, &of::FS_USAGE, layer.used_bytes, device);
    }
}

fn of_processes(samples: &mut Samples, processes: &Processes) {
    let Processes { count, descriptors, sockets, open_files } = processes;
    samples.add(&of::PROCESSES, *count, &[]);
    samples.add_if(&of::FILE_DESCRIPTORS, *descriptors);
    samples.add_if(&of::SOCKETS, *sockets);
    if let Some(open_files) = open_files {
        samples.add(&of::ULIMITS_SOFT, *open_files, &["max_open_files"]);
    }
}
