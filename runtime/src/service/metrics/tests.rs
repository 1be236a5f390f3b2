use super::families::{ALL, BASE};
use super::*;
use crate::stats::metrics::{Cpu, DeviceIo, HugePages, Memory, Pressure, Throttling};
use crate::stats::{Interface, Psi, PsiData, Traffic};
use model::{ContainerConfig, ContainerId, ContainerMeta, Exit, ImageSpec, PodConfig, PodMeta};
use std::collections::{BTreeMap, BTreeSet};

/// The names that clients know: what kubelet's own exporter has for a runtime that cAdvisor supports.
const KNOWN: &str = "
blkio_device_usage_total
cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total
cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total
file_descriptors
fs_inodes_free fs_inodes_total fs_limit_bytes fs_reads_bytes_total fs_reads_total fs_usage_bytes
fs_writes_bytes_total fs_writes_total
hugetlb_max_usage_bytes hugetlb_usage_bytes
last_seen
memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file memory_max_usage_bytes
memory_rss memory_swap memory_usage_bytes memory_working_set_bytes
network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total
network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total
network_transmit_packets_dropped_total network_transmit_packets_total
oom_events_total
pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total
pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total
pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total
processes sockets
spec_cpu_period spec_cpu_quota spec_cpu_shares
spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes
start_time_seconds threads threads_max ulimits_soft
";

/// The labels beside the common ones.
const LABELS: [(&str, &[&str]); 11] = [
    ("cpu_usage_seconds_total", &["cpu"]),
    ("memory_failures_total", &["failure_type", "scope"]),
    ("blkio_device_usage_total", &["device", "major", "minor", "operation"]),
    ("fs_inodes_free", &["device"]),
    ("fs_inodes_total", &["device"]),
    ("fs_limit_bytes", &["device"]),
    ("fs_usage_bytes", &["device"]),
    ("fs_reads_bytes_total", &["device"]),
    ("fs_reads_total", &["device"]),
    ("fs_writes_bytes_total", &["device"]),
    ("fs_writes_total", &["device"]),
];

fn labels_of(name: &str) -> Vec<&'static str> {
    let own = LABELS.into_iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, labels)| labels);
    let by_prefix: &[&str] = match name {
        _ if name.starts_with("network_") => &["interface"],
        _ if name.starts_with("hugetlb_") => &["pagesize"],
        "ulimits_soft" => &["ulimit"],
        _ => &[],
    };
    [&BASE[..], own, by_prefix].concat()
}

fn known() -> BTreeSet<&'static str> {
    KNOWN.split_ascii_whitespace().collect()
}

#[test]
fn the_descriptors_are_the_known_ones() {
    assert_eq!(known().len(), 56);
    let here: BTreeSet<&str> = ALL.iter().map(|family| family.name).collect();
    assert_eq!(here.len(), ALL.len(), "a name is used twice");
    let expected: BTreeSet<String> = known().into_iter().map(|name| format!("container_{name}")).collect();
    assert_eq!(here, expected.iter().map(String::as_str).collect());
    for family in ALL {
        let short = family.name.trim_start_matches("container_");
        let descriptor = family.descriptor();
        assert_eq!(descriptor.label_keys, labels_of(short), "{short}");
        assert!(descriptor.help.ends_with('.') && descriptor.name == family.name, "{descriptor:?}");
        // Counts of what has happened are counters, and only their names may end like this.
        let counts = short.ends_with("_total") && short != "fs_inodes_total" || short == "memory_failcnt";
        assert_eq!(family.kind == cri::MetricType::Counter, counts, "{short}");
        let needs = match short {
            "hugetlb_max_usage_bytes" => Needs::PeakOfHugePages,
            _ if short.starts_with("hugetlb_") => Needs::HugePages,
            _ if short.starts_with("pressure_") => Needs::Pressure,
            _ => Needs::Nothing,
        };
        assert_eq!(family.needs, needs, "{short}");
    }
}

/// Pressure with these seconds.
fn psi(some: u64, full: u64) -> Option<Psi> {
    let line = |seconds| PsiData { total: seconds * 1_000_000_000 + 999_999_999, ..PsiData::default() };
    Some(Psi { some: line(some), full: line(full) })
}

fn group() -> Group {
    Group {
        cpu: Cpu {
            usage: 3_999_999_999,
            user: Some(2_500_000_000),
            system: Some(1_490_000_000),
            shares: Some(512),
            period: Some(100_000),
            quota: Some(20_000),
            throttling: Throttling { periods: Some(9), throttled: Some(8), nanoseconds: Some(7_500_000_000) },
        },
        memory: Memory {
            usage: 1000,
            working_set: 900,
            max_usage: Some(2000),
            failures: Some(3),
            kernel: Some(50),
            cache: Some(300),
            rss: Some(600),
            mapped_file: Some(10),
            swap: Some(20),
            faults: [Some(30), Some(31)],
            major_faults: [Some(40), Some(41)],
            limit: Some(64 << 20),
            swap_limit: None,
            soft_limit: None,
            oom_kills: Some(2),
        },
        io: vec![DeviceIo {
            device: "/dev/vda".to_owned(),
            number: (254, 0),
            bytes: vec![("Read", 4096), ("Write", 8192), ("Total", 12_288)],
            requests: vec![("Read", 1), ("Write", 2)],
        }],
        huge_pages: vec![HugePages { size: "2MB".to_owned(), usage: 2 << 20, max_usage: Some(4 << 20) }],
        tasks: Some(5),
        task_limit: Some(0),
        pressure: Pressure { cpu: psi(12, 11), memory: psi(14, 13), io: psi(16, 15) },
    }
}

fn reading(group: &Group, running: bool) -> PodReading {
    let pod_id = PodId::from_random([1; 32]);
    let meta = PodMeta { name: "web".to_owned(), namespace: "prod".to_owned(), ..PodMeta::default() };
    let mut pod = PodRecord::new(pod_id.clone(), PodConfig { meta, ..PodConfig::default() }, 5_900_000_000);
    pod.phase = model::PodPhase::Ready;
    let config = ContainerConfig {
        meta: ContainerMeta { name: "nginx".to_owned(), attempt: 0 },
        image: ImageSpec {
            image: "sha256:abc".to_owned(),
            user_specified_image: "docker.io/library/nginx:1".to_owned(),
            ..ImageSpec::default()
        },
        ..ContainerConfig::default()
    };
    let mut container =
        ContainerRecord::new(ContainerId::from_random([2; 32]), pod_id, config, 6_000_000_000);
    container.image.id = "sha256:abc".to_owned();
    container.cgroup = "/kubepods/pod1/c".to_owned();
    container.started_at = 7_900_000_000;
    let layer = WritableLayer { timestamp: 77, used_bytes: 123, inodes_used: 4 };
    let processes = Processes { count: 3, descriptors: Some(30), sockets: Some(10), open_files: Some(1024) };
    PodReading {
        record: Arc::new(pod),
        cgroup: "/kubepods/pod1".to_owned(),
        group: Some(group.clone()),
        network: Some(Network {
            timestamp: 1,
            interfaces: vec![Interface {
                name: "eth0".to_owned(),
                rx: Traffic { bytes: 1, packets: 2, errors: 3, dropped: 4 },
                tx: Traffic { bytes: 5, packets: 6, errors: 7, dropped: 8 },
            }],
            default: 0,
        }),
        containers: vec![ContainerReading {
            record: Arc::new(container),
            running: running.then(|| Running {
                group: group.clone(),
                processes: Some(processes),
                layer: Some(layer),
            }),
        }],
    }
}

fn filesystem() -> Filesystem {
    Filesystem { device: "/dev/vda".to_owned(), bytes: 1 << 40, inodes: 1000, inodes_free: 900 }
}

/// Every sample as `name{own labels} value`, after a check of its form.
fn shown(samples: &[cri::Metric]) -> BTreeMap<String, u64> {
    let mut shown = BTreeMap::new();
    for sample in samples {
        let family = ALL.iter().find(|family| family.name == sample.name);
        let family = family.unwrap_or_else(|| panic!("{sample:?} has no descriptor"));
        assert_eq!(sample.label_values.len(), family.descriptor().label_keys.len(), "{sample:?}");
        assert_eq!(sample.metric_type, i32::from(family.kind), "{sample:?}");
        assert_eq!(sample.timestamp, if family.name == "container_fs_usage_bytes" { 77 } else { 0 });
        let labels = sample.label_values[BASE.len()..].join(",");
        let name = format!("{}{{{labels}}}", family.name.trim_start_matches("container_"));
        let value = sample.value.as_ref().expect("kubelet reads the value without a check").value;
        assert_eq!(shown.insert(name, value), None, "{sample:?} is there twice");
    }
    shown
}

fn names(shown: &BTreeMap<String, u64>) -> BTreeSet<String> {
    shown.keys().map(|name| name.split('{').next().unwrap_or_default().to_owned()).collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_metric_has_a_sample_of_its_form() {
    let made = samples::pod(&reading(&group(), true), Some(&filesystem()), 42);
    let (pod, container) = (shown(&made.metrics), shown(&made.container_metrics[0].metrics));
    let all: BTreeSet<String> = names(&pod).union(&names(&container)).cloned().collect();
    let expected = ALL.iter().map(|family| family.name.trim_start_matches("container_").to_owned());
    assert_eq!(all, expected.collect());

    let (pod_id, id) = (made.pod_sandbox_id.as_str(), made.container_metrics[0].container_id.as_str());
    assert_eq!(made.metrics[0].label_values, ["/kubepods/pod1", pod_id, "", "prod", "web", ""]);
    let labels = &made.container_metrics[0].metrics[0].label_values;
    assert_eq!(*labels, ["/kubepods/pod1/c", id, "docker.io/library/nginx:1", "prod", "web", "nginx"]);

    for (name, value) in [
        ("last_seen{}", 42),
        ("start_time_seconds{}", 7),
        ("cpu_usage_seconds_total{total}", 3),
        ("cpu_user_seconds_total{}", 2),
        ("cpu_system_seconds_total{}", 1),
        ("cpu_cfs_periods_total{}", 9),
        ("cpu_cfs_throttled_periods_total{}", 8),
        ("cpu_cfs_throttled_seconds_total{}", 7),
        ("memory_failures_total{pgfault,container}", 30),
        ("memory_failures_total{pgmajfault,hierarchy}", 41),
        ("spec_memory_limit_bytes{}", 64 << 20),
        ("spec_memory_swap_limit_bytes{}", 0),
        ("spec_memory_reservation_limit_bytes{}", 0),
        ("blkio_device_usage_total{/dev/vda,254,0,Total}", 12_288),
        ("fs_reads_bytes_total{/dev/vda}", 4096),
        ("fs_writes_total{/dev/vda}", 2),
        ("fs_usage_bytes{/dev/vda}", 123),
        ("fs_inodes_free{/dev/vda}", 900),
        ("oom_events_total{}", 2),
        ("ulimits_soft{max_open_files}", 1024),
        ("threads{}", 5),
        ("processes{}", 3),
        ("pressure_cpu_waiting_seconds_total{}", 12),
        ("pressure_cpu_stalled_seconds_total{}", 11),
        ("pressure_io_waiting_seconds_total{}", 16),
        ("pressure_io_stalled_seconds_total{}", 15),
    ] {
        assert_eq!(container.get(name), Some(&value), "{name}");
    }
    for (name, value) in [
        ("start_time_seconds{}", 5),
        ("network_receive_packets_dropped_total{eth0}", 4),
        ("network_transmit_errors_total{eth0}", 7),
        ("memory_working_set_bytes{}", 900),
        ("hugetlb_max_usage_bytes{2MB}", 4 << 20),
        ("pressure_memory_waiting_seconds_total{}", 14),
        ("pressure_memory_stalled_seconds_total{}", 13),
    ] {
        assert_eq!(pod.get(name), Some(&value), "{name}");
    }
    // What belongs to one of the two only.
    assert!(!names(&container).iter().any(|name| name.starts_with("network_")));
    for name in ["processes", "sockets", "fs_usage_bytes", "oom_events_total"] {
        assert!(!names(&pod).contains(name), "{name}");
    }
}

#[test]
fn what_does_not_exist_has_no_sample() {
    let mut group = group();
    group.cpu.quota = None;
    (group.memory.kernel, group.memory.swap, group.tasks) = (None, None, None);
    (group.io, group.huge_pages) = (Vec::new(), Vec::new());
    group.pressure.cpu = None;
    let mut reading = reading(&group, true);
    (reading.group, reading.network) = (None, None);
    let made = samples::pod(&reading, None, 42);
    assert_eq!(names(&shown(&made.metrics)), ["last_seen", "start_time_seconds"].map(str::to_owned).into());
    let container = shown(&made.container_metrics[0].metrics);
    let of_quota = ["cpu_cfs_periods_total", "cpu_cfs_throttled_periods_total", "spec_cpu_quota"];
    for name in of_quota.into_iter().chain([
        "memory_kernel_usage",
        "threads",
        "fs_usage_bytes",
        "fs_limit_bytes",
        "pressure_cpu_waiting_seconds_total",
    ]) {
        assert!(!names(&container).contains(name), "{name}");
    }
    assert_eq!(container.get("memory_swap{}"), Some(&0));
    assert_eq!(container.get("spec_cpu_period{}"), Some(&100_000));
}

#[test]
fn an_oom_kill_is_still_seen_when_the_container_has_ended() {
    let made = samples::pod(&reading(&group(), false), Some(&filesystem()), 42);
    let container = &made.container_metrics[0].metrics;
    assert_eq!(shown(container), BTreeMap::from([("oom_events_total{}".to_owned(), 1)]));
    // The labels are those from before, so that it is the same series.
    let before = samples::pod(&reading(&group(), true), None, 42);
    assert_eq!(container[0].label_values, before.container_metrics[0].metrics[0].label_values);

    let mut record = ContainerRecord::clone(&reading(&group(), false).containers[0].record);
    record.phase = ContainerPhase::Exited;
    assert!(!was_oom_killed(&record));
    record.exit = Some(Exit { oom_killed: true, ..Exit::default() });
    assert!(was_oom_killed(&record));
    record.phase = ContainerPhase::Removing;
    assert!(!was_oom_killed(&record));
}
