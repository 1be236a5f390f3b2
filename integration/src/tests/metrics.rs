//! Metrics of pods and containers through CRI, compared with the cgroup files and /proc.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use cri_api::v1 as api;

use crate::context::{Context, Pod};
use crate::cri::bounded;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::metrics::{self, Samples};
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::wait::{self, secs};
use crate::{cgroup, proc};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(every_metric_has_a_value_right_after_the_start).ours(),
        test!(values_equal_the_cgroup_files_and_proc).ours(),
        test!(network_of_the_pod).ours(),
        test!(what_has_ended_has_no_metrics).ours(),
        test!(oom_kills_are_counted_to_the_end).ours(),
        test!(metrics_survive_a_restart).own(),
        test!(streamed_metrics_are_the_listed_ones).ours(),
    ]
}

/// A container with a limit of each kind.
fn limited(cx: &Context, line: &str) -> api::ContainerConfig {
    cx.shell("limited", line).with(|c| {
        *c.resources() = api::LinuxContainerResources {
            cpu_period: 50_000,
            cpu_quota: 10_000,
            cpu_shares: 1024,
            memory_limit_in_bytes: 64 << 20,
            memory_swap_limit_in_bytes: 64 << 20,
            ..Default::default()
        };
    })
}

/// The last path element of the pod's cgroup.
fn pod_leaf(pod: &Pod) -> Result<String> {
    let parent = pod.config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
    Ok(parent.rsplit_once('/').context("the pod has no cgroup_parent")?.1.to_owned())
}

fn seconds() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

async fn every_metric_has_a_value_right_after_the_start(cx: Context) -> Result<()> {
    let announced: Vec<String> =
        metrics::descriptors(&cx.cri).await?.into_iter().map(|descriptor| descriptor.name).collect();
    let (mut sorted, mut expected) = (announced.clone(), metrics::names(false));
    sorted.sort();
    expected.sort();
    ensure!(sorted == expected, "announced are {sorted:?}");
    for descriptor in metrics::descriptors(&cx.cri).await? {
        ensure!(!descriptor.help.is_empty() && descriptor.label_keys.len() >= 6, "{descriptor:?}");
    }
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let id = cx.start(&pod, &limited(&cx, "exec sleep 1000")).await?;
    // Right now: nothing may have to be sampled or walked before.
    let samples = Samples::of_cri(&cx.cri).await?;
    let here: BTreeSet<&str> = samples
        .0
        .iter()
        .filter(|sample| sample.labels.get("name").is_some_and(|name| *name == id || *name == pod.id))
        .map(|sample| sample.name.as_str())
        .collect();
    let missing: Vec<String> =
        metrics::names(true).into_iter().filter(|name| !here.contains(name.as_str())).collect();
    ensure!(missing.is_empty(), "right after the start there is no {missing:?}");
    Ok(())
}

async fn values_equal_the_cgroup_files_and_proc(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    // It is throttled, has page faults and two sockets in three processes, and then is quiet.
    let line = "nc -l -p 8080 & nc -l -p 8081 & i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; \
                dd if=/dev/zero of=/file bs=1M count=4 2>/dev/null; echo quiet; exec sleep 1000";
    let id = cx.start(&pod, &limited(&cx, line)).await?;
    cx.said(&id, "quiet").await?;
    let (leaf, info) = (pod_leaf(&pod)?, cx.cri.container(&id).await?);
    let parent = pod.config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
    let pid = cx.pid(&id).await?;
    let path = cgroup::leaf(&parent, &pod.id, &id);
    let meta = pod.config.metadata.clone().unwrap_or_default();
    let image = Fixture::image("busybox");
    let of_pod = [
        ("id", parent.as_str()),
        ("name", pod.id.as_str()),
        ("namespace", "it"),
        ("pod", meta.name.as_str()),
        ("container", ""),
        ("image", ""),
    ];
    let of_container = [
        ("id", path.as_str()),
        ("name", id.as_str()),
        ("namespace", "it"),
        ("pod", meta.name.as_str()),
        ("container", "limited"),
        ("image", image.as_str()),
    ];
    wait::until("metrics that are what the kernel says", secs(30), || async {
        let before = (metrics::kernel(&id)?, metrics::kernel(&leaf)?, metrics::of_processes(&id)?);
        let samples = Samples::of_cri(&cx.cri).await?;
        let after = (metrics::kernel(&id)?, metrics::kernel(&leaf)?, metrics::of_processes(&id)?);
        metrics::equal(&samples, &of_container, [&before.0, &after.0], &[])?;
        // The pod's cgroup has no quota here, and v1 counts OOM kills for the container alone.
        let no_quota = [
            "cpu_cfs_periods_total",
            "cpu_cfs_throttled_periods_total",
            "cpu_cfs_throttled_seconds_total",
            "spec_cpu_quota",
            "oom_events_total",
        ];
        metrics::equal(&samples, &of_pod, [&before.1, &after.1], &no_quota)?;
        let one = |name: &str, own: &[(&str, &str)]| {
            samples.one(&format!("container_{name}"), &[&of_container[..], own].concat())
        };
        let found = [one("processes", &[])?, one("file_descriptors", &[])?, one("sockets", &[])?];
        let expected = after.2.map(|count| count as f64);
        ensure!(
            found == expected && before.2 == after.2,
            "processes, descriptors, sockets: {found:?}, {expected:?}"
        );
        ensure!(found.first() == Some(&3.0) && found.last() == Some(&2.0), "{found:?}");
        ensure!(one("cpu_cfs_throttled_periods_total", &[])? > 0.0, "it was never throttled");

        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let soft = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files")?.split_ascii_whitespace().next());
        ensure!(
            one("ulimits_soft", &[("ulimit", "max_open_files")])?
                == soft.context("no limit")?.parse::<f64>()?
        );
        let layer = cx.cri.stats(&id).await?.and_then(|stats| stats.writable_layer).context("no layer")?;
        let used = layer.used_bytes.map_or(0.0, |used| used.value as f64);
        ensure!(
            one("fs_usage_bytes", &[])? == used && used >= f64::from(4 << 20),
            "the layer has {used} bytes"
        );
        let facts = nix::sys::statvfs::statvfs(&cx.node.paths.root)?;
        let (size, inodes) = ((facts.blocks() * facts.fragment_size()) as f64, facts.files() as f64);
        ensure!(one("fs_limit_bytes", &[])? == size && one("fs_inodes_total", &[])? == inodes);
        ensure!(one("fs_inodes_free", &[])? <= inodes);
        let started = (info.started_at / 1_000_000_000) as f64;
        ensure!(one("start_time_seconds", &[])? == started);
        ensure!((one("last_seen", &[])? - seconds()?).abs() < 30.0, "last seen {}", one("last_seen", &[])?);
        Ok(Some(()))
    })
    .await
}

async fn network_of_the_pod(cx: Context) -> Result<()> {
    let host = cx.pod().await?;
    cx.start(&host, &cx.sleeper("on-host")).await?;
    let (pod, id, pid) = cx.sleeping(cx.pod_config().own_network()).await?;
    let address = super::network::ip(&cx, &pod).await?;
    // Each refused connection is a packet in each direction.
    let start = metrics::interface(pid, "eth0")?;
    for _ in 0..20 {
        drop(tokio::net::TcpStream::connect(format!("{address}:9")).await);
    }
    let before = metrics::interface(pid, "eth0")?;
    let samples = Samples::of_cri(&cx.cri).await?;
    let after = metrics::interface(pid, "eth0")?;
    ensure!(before[1] >= start[1] + 20 && before[5] >= start[5] + 20, "from {start:?} to {before:?}");
    for ((name, before), after) in metrics::OF_INTERFACE.into_iter().zip(before).zip(after) {
        let value = samples.one(name, &[("name", &pod.id), ("interface", "eth0")])?;
        let range = before as f64..=after as f64;
        ensure!(range.contains(&value), "{name} is {value}, the kernel said {before} and {after}");
        ensure!(samples.all(name, &[("interface", "lo")]).is_empty(), "{name} of lo");
        ensure!(samples.all(name, &[("name", &id)]).is_empty(), "{name} of a container");
        // With the host's network the counters are the host's.
        ensure!(samples.all(name, &[("name", &host.id)]).is_empty(), "{name} of a pod on the host's network");
    }
    Ok(())
}

async fn what_has_ended_has_no_metrics(cx: Context) -> Result<()> {
    let (pod, stays, _) = cx.sleeping(cx.pod_config()).await?;
    let created = cx.create(&pod, &cx.sleeper("created")).await?;
    let ended = cx.start(&pod, &cx.sleeper("ended")).await?;
    let of = |samples: &Samples, name: &str| {
        samples.0.iter().filter(|it| it.labels.get("name").is_some_and(|it| it == name)).count()
    };
    let samples = Samples::of_cri(&cx.cri).await?;
    ensure!(of(&samples, &ended) > 30 && of(&samples, &stays) > 30, "running containers have few metrics");
    ensure!(of(&samples, &created) == 0, "a container that was not started has metrics");
    cx.cri.stop(&ended, 0).await?;
    let samples = Samples::of_cri(&cx.cri).await?;
    ensure!(of(&samples, &ended) == 0, "a container that was stopped has metrics");
    ensure!(of(&samples, &stays) > 30 && of(&samples, &pod.id) > 10, "its pod has none");
    cx.cri.stop_pod(&pod.id).await?;
    let pods = metrics::list(&cx.cri).await?;
    ensure!(!pods.iter().any(|it| it.pod_sandbox_id == pod.id), "a stopped pod is listed");
    Ok(())
}

async fn oom_kills_are_counted_to_the_end(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line = "dd if=/dev/zero of=/dev/null bs=64M count=1; echo killed; while [ ! -e /tmp/end ]; do sleep 0.05; done; \
                exec dd if=/dev/zero of=/dev/null bs=64M count=1";
    let config = cx.shell("hungry", line).with(|c| c.resources().memory_limit_in_bytes = 15 << 20);
    let id = cx.start(&pod, &config).await?;
    cx.said(&id, "killed").await?;
    let count = async || Samples::of_cri(&cx.cri).await?.one("container_oom_events_total", &[("name", &id)]);
    ensure!(count().await? == 1.0, "after one kill the count is {}", count().await?);
    let labels = |samples: Samples| {
        samples.all("container_oom_events_total", &[("name", &id)]).first().map(|it| it.labels.clone())
    };
    let before = labels(Samples::of_cri(&cx.cri).await?);
    cx.cri.sh(&id, "touch /tmp/end").await?;
    let status = cx.cri.wait_exit(&id, secs(20)).await?;
    ensure!(status.reason == "OOMKilled", "it ended with {}", status.reason);
    // The cgroup with its count is gone.
    ensure!(
        cgroup::find("memory", &id).is_none() && count().await? == 1.0,
        "the count is {}",
        count().await?
    );
    ensure!(labels(Samples::of_cri(&cx.cri).await?) == before, "its labels were {before:?}");
    cx.cri.remove(&id).await?;
    ensure!(count().await.is_err(), "a removed container has metrics");
    Ok(())
}

async fn metrics_survive_a_restart(cx: Context) -> Result<()> {
    let (pod, id, pid) = cx.sleeping(cx.pod_config().own_network()).await?;
    let names = async || {
        let samples = Samples::of_cri(&cx.cri).await?;
        let of = samples
            .0
            .into_iter()
            .filter(|it| it.labels.get("name").is_some_and(|it| *it == id || *it == pod.id));
        anyhow::Ok(of.map(|sample| (sample.name, sample.labels)).collect::<BTreeSet<_>>())
    };
    let start =
        async || Samples::of_cri(&cx.cri).await?.one("container_start_time_seconds", &[("name", &id)]);
    let (before, started) = (names().await?, start().await?);
    ensure!(before.len() > 60, "before the restart there are {} metrics", before.len());
    for crash in [false, true] {
        if crash {
            cx.node.crash().await?
        } else {
            cx.node.restart().await?
        }
        let after = names().await?;
        let lost: Vec<_> = before.symmetric_difference(&after).collect();
        ensure!(lost.is_empty(), "after the restart these are missing or new: {lost:?}");
        ensure!(start().await? == started && proc::alive(pid));
    }
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

async fn streamed_metrics_are_the_listed_ones(cx: Context) -> Result<()> {
    let (one, _, _) = cx.sleeping(cx.pod_config()).await?;
    let (two, _, _) = cx.sleeping(cx.pod_config().own_network()).await?;
    let request = bounded(api::StreamPodSandboxMetricsRequest {}, secs(10));
    let mut stream = cx.cri.runtime.clone().stream_pod_sandbox_metrics(request).await?.into_inner();
    let mut streamed = Vec::new();
    while let Some(reply) = stream.message().await? {
        ensure!(!reply.pod_sandbox_metrics.is_empty(), "an empty reply");
        streamed.extend(reply.pod_sandbox_metrics);
    }
    let listed = metrics::list(&cx.cri).await?;
    for pod in [&one.id, &two.id] {
        let series = |pods: &[api::PodSandboxMetrics]| -> Result<BTreeSet<(String, Vec<String>)>> {
            let mut found = pods.iter().filter(|it| it.pod_sandbox_id == *pod);
            let of = found.next().with_context(|| format!("no metrics of pod {pod}"))?;
            ensure!(found.next().is_none(), "pod {pod} is there twice");
            let all = of.metrics.iter().chain(of.container_metrics.iter().flat_map(|it| &it.metrics));
            Ok(all.map(|metric| (metric.name.clone(), metric.label_values.clone())).collect())
        };
        let (streamed, listed) = (series(&streamed)?, series(&listed)?);
        ensure!(streamed == listed && streamed.len() > 50, "{} and {} metrics", streamed.len(), listed.len());
    }
    Ok(())
}
