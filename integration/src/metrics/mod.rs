//! Metrics of pods and containers, from CRI or from kubelet's endpoints, and what the kernel says of the same cgroup.

mod kernel;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;

pub(crate) use kernel::{PRESSURE, USAGE, WORKING_SET, equal, io, kernel};

use crate::cri::{Cri, bounded};
use crate::expect::ensure;
use crate::wait::secs;
use crate::{cgroup, proc};

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    /// Name of the metric.
    pub(crate) name: String,
    /// Labels with their values.
    pub(crate) labels: BTreeMap<String, String>,
    /// The value.
    pub(crate) value: f64,
}

/// The values of one reading.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Samples(pub(crate) Vec<Sample>);

impl Samples {
    /// Those of ListPodSandboxMetrics with the labels of ListMetricDescriptors. Fails if one has no descriptor, or another
    /// number of labels than its descriptor, or no value (kubelet reads it without a check).
    pub(crate) async fn of_cri(cri: &Cri) -> Result<Self> {
        let keys: BTreeMap<String, Vec<String>> =
            descriptors(cri).await?.into_iter().map(|it| (it.name, it.label_keys)).collect();
        let pods = list(cri).await?;
        let metrics = pods.into_iter().flat_map(|pod| {
            pod.metrics.into_iter().chain(pod.container_metrics.into_iter().flat_map(|it| it.metrics))
        });
        let sample = |metric: api::Metric| {
            let keys = keys.get(&metric.name).with_context(|| format!("{metric:?} has no descriptor"))?;
            ensure!(keys.len() == metric.label_values.len(), "the labels of {metric:?} are {keys:?}");
            let value = metric.value.context("a metric without a value")?.value as f64;
            let labels = keys.iter().cloned().zip(metric.label_values).collect();
            Ok(Sample { name: metric.name, labels, value })
        };
        Ok(Self(metrics.map(sample).collect::<Result<_>>()?))
    }

    /// Those in the text format of Prometheus.
    pub(crate) fn of_text(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        Ok(Self(lines.map(|line| line_of(line).with_context(|| line.to_owned())).collect::<Result<_>>()?))
    }

    /// Those of a metric with these labels.
    pub(crate) fn all(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Sample> {
        let has = |sample: &Sample, label: &(&str, &str)| {
            sample.labels.get(label.0).is_some_and(|it| it == label.1)
        };
        let found = self.0.iter().filter(|it| it.name == name && labels.iter().all(|label| has(it, label)));
        found.collect()
    }

    /// The value of the only one of a metric with these labels.
    pub(crate) fn one(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let found = self.all(name, labels);
        ensure!(found.len() == 1, "with the labels {labels:?}, {name} has the samples {found:?}");
        Ok(found.first().map_or(0.0, |sample| sample.value))
    }
}

/// `name{label="value",…} number [timestamp]`.
fn line_of(line: &str) -> Result<Sample> {
    let (head, tail) = line.rsplit_once('}').unwrap_or_else(|| line.split_once(' ').unwrap_or((line, "")));
    let (name, mut rest) = head.split_once('{').unwrap_or((head, ""));
    let mut labels = BTreeMap::new();
    while let Some((key, after)) = rest.split_once("=\"") {
        // No label of these tests has an escaped quote.
        let (value, after) = after.split_once('"').context("a label's value has no end")?;
        labels.insert(key.trim_start_matches(',').to_owned(), value.to_owned());
        rest = after;
    }
    let value = tail.split_ascii_whitespace().next().context("no value")?.parse()?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// ListMetricDescriptors.
pub(crate) async fn descriptors(cri: &Cri) -> Result<Vec<api::MetricDescriptor>> {
    let request = bounded(api::ListMetricDescriptorsRequest {}, secs(10));
    Ok(cri.runtime.clone().list_metric_descriptors(request).await?.into_inner().descriptors)
}

/// ListPodSandboxMetrics.
pub(crate) async fn list(cri: &Cri) -> Result<Vec<api::PodSandboxMetrics>> {
    let request = bounded(api::ListPodSandboxMetricsRequest {}, secs(20));
    Ok(cri.runtime.clone().list_pod_sandbox_metrics(request).await?.into_inner().pod_metrics)
}

/// Whether the host accounts for huge pages by cgroup: then there are two more metrics.
pub(crate) fn has_huge_pages() -> bool {
    match cgroup::folder("hugetlb", "/") {
        Ok(root) if cgroup::is_v2() => std::fs::read_to_string(root.join("cgroup.controllers"))
            .is_ok_and(|all| all.split_whitespace().any(|name| name == "hugetlb")),
        found => found.is_ok(),
    }
}

/// The names that clients know, without their prefix. `-` marks those of pressure, which needs cgroup v2, `h` those
/// that need accounting of huge pages, `p` those of huge pages that only cgroup v1 has, `i` those of block I/O, which
/// the kernel counts only with some I/O schedulers or limits, and `q` those of a CPU quota.
const KNOWN: &str = "
i:blkio_device_usage_total q:cpu_cfs_periods_total q:cpu_cfs_throttled_periods_total q:cpu_cfs_throttled_seconds_total
cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total
fs_limit_bytes i:fs_reads_bytes_total i:fs_reads_total fs_usage_bytes i:fs_writes_bytes_total i:fs_writes_total
p:hugetlb_max_usage_bytes h:hugetlb_usage_bytes last_seen memory_cache memory_failcnt memory_failures_total
memory_kernel_usage memory_mapped_file memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes
memory_working_set_bytes network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total
network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total
network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total
-:pressure_cpu_stalled_seconds_total -:pressure_cpu_waiting_seconds_total -:pressure_io_stalled_seconds_total
-:pressure_io_waiting_seconds_total -:pressure_memory_stalled_seconds_total -:pressure_memory_waiting_seconds_total
processes sockets spec_cpu_period q:spec_cpu_quota spec_cpu_shares spec_memory_limit_bytes
spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes start_time_seconds threads threads_max ulimits_soft
";

/// The names that this host must announce. `valued`: only those that a pod with a network of its own and a container with
/// a CPU quota must have values of.
pub(crate) fn names(valued: bool) -> Vec<String> {
    let wanted = KNOWN.split_ascii_whitespace().filter_map(|word| match word.split_once(':') {
        None => Some(word),
        Some(("q", name)) => Some(name),
        Some(("h", name)) => has_huge_pages().then_some(name),
        Some(("p", name)) => (has_huge_pages() && !cgroup::is_v2()).then_some(name),
        Some(("-", name)) => cgroup::has_pressure("/").then_some(name),
        Some(("i", name)) => (!valued).then_some(name),
        Some(_) => None,
    });
    wanted.map(|name| format!("container_{name}")).collect()
}

/// Descriptors and sockets of the processes in a cgroup, and their number.
pub(crate) fn of_processes(leaf: &str) -> Result<[u64; 3]> {
    let folder = cgroup::find("cpu", leaf).with_context(|| format!("no cpu cgroup {leaf}"))?;
    let members = cgroup::members(&folder);
    let (mut descriptors, mut sockets) = (0, 0);
    for pid in &members {
        descriptors += proc::fds(*pid)? as u64;
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
        let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        sockets += links.filter(|link| link.display().to_string().starts_with("socket:")).count() as u64;
    }
    Ok([members.len() as u64, descriptors, sockets])
}

/// Counters of an interface in a process's network namespace: received bytes, packets, errors, drops, then sent ones.
pub(crate) fn interface(pid: u32, name: &str) -> Result<Vec<u64>> {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("net/dev"))?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(&format!("{name}:")));
    let fields = line.with_context(|| format!("no {name} in {text}"))?.split_ascii_whitespace();
    let numbers: Vec<u64> = fields.map(str::parse).collect::<Result<_, _>>()?;
    let wanted = [0..4, 8..12].into_iter().flatten().map(|index| numbers.get(index).copied());
    wanted.collect::<Option<_>>().context("too few counters")
}

/// The metrics in the order of [`interface`].
pub(crate) const OF_INTERFACE: [&str; 8] = [
    "container_network_receive_bytes_total",
    "container_network_receive_packets_total",
    "container_network_receive_errors_total",
    "container_network_receive_packets_dropped_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_packets_total",
    "container_network_transmit_errors_total",
    "container_network_transmit_packets_dropped_total",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_format_is_parsed() {
        let text = "# HELP a b\n# TYPE a counter\na{x=\"1\",y=\"/b c\"} 6.7e+07 1700000000000\nb 3\n";
        let samples = Samples::of_text(text).unwrap();
        assert_eq!(samples.one("a", &[("y", "/b c"), ("x", "1")]).unwrap(), 6.7e7);
        assert_eq!(samples.one("b", &[]).unwrap(), 3.0);
        assert!(samples.one("a", &[("x", "2")]).is_err() && Samples::of_text("a{x=\"1} 3").is_err());
    }
}
