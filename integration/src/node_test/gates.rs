//! Checks of kubelet with the feature gates with which it uses more of CRI: it lists with the streaming calls, follows
//! events, and takes all statistics and metrics of pods from the runtime instead of from its own cAdvisor.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::kubepods::Class;
use super::manifests::{pod, sleeper, with};
use super::{Check, Rig, check};
use super::{checks, churn, dead, view};
use crate::cgroup::{self, Usage};
use crate::expect::ensure;
use crate::metrics::{self, Samples};
use crate::wait::{self, secs};

/// The gates.
pub(super) const GATES: [&str; 3] = ["CRIListStreaming", "EventedPLEG", "PodAndContainerStatsFromCRI"];

/// The checks of the first round on which the gates have an influence: what is listed, how fast kubelet sees an end or a
/// restart, and its calls after a restart of the runtime.
const AGAIN: [&str; 12] = [
    "node_turns_ready_with_the_conflist",
    "manifests_are_written",
    "init_container_runs_first",
    "native_sidecar",
    "failing_probe_restarts",
    "oom_kill_is_reported",
    "exit_code_and_termination_message",
    "summary_and_resource_metrics",
    "removed_manifest_with_grace",
    "kubelet_logged_nothing_bad_so_far",
    "copepod_killed_under_kubelet",
    "no_hazard_in_the_summary_loop",
];

/// The checks in the order they run: those of [`AGAIN`] in theirs, and the others after the pods have been started.
pub(super) fn all() -> Result<Vec<Check>> {
    let first: Vec<Check> = checks::all().into_iter().chain(churn::all()).collect();
    let mut again: Vec<Check> = first.into_iter().filter(|check| AGAIN.contains(&check.name)).collect();
    anyhow::ensure!(again.len() == AGAIN.len(), "a name in AGAIN is not that of a check");
    let later =
        again.split_off(AGAIN.iter().position(|name| *name == "summary_and_resource_metrics").unwrap_or(0));
    let before = vec![check!(every_image_exists)];
    let own = vec![
        check!(gates_are_on),
        check!(lists_are_streamed_and_events_followed),
        check!(pods_come_and_go),
        check!(summary_is_what_the_cgroups_say),
        check!(cadvisor_metrics_are_complete),
        check!(resource_metrics_are_complete),
    ];
    // They stop copepod, so they come after the check of kubelet's log.
    let last = [check!(metrics_go_on_after_a_restart)];
    let last = last.into_iter().chain(dead::all());
    Ok(before.into_iter().chain(again).chain(own).chain(later).chain(last).collect())
}

/// The image that one pod of the first round has to wait for.
async fn every_image_exists(rig: &Rig) -> Result<()> {
    checks::push_missing_image(rig).await
}

async fn gates_are_on(rig: &Rig) -> Result<()> {
    let metrics = Samples::of_text(&rig.kubelet.metrics()?)?;
    for gate in GATES {
        ensure!(metrics.one("kubernetes_feature_enabled", &[("name", gate)])? == 1.0, "{gate} is off");
    }
    Ok(())
}

/// The lines of copepod's log about successful calls with this name.
fn calls(rig: &Rig, name: &str) -> Result<usize> {
    let log = fs::read_to_string(&rig.node.paths.log)?;
    Ok(log.lines().filter(|line| line.contains("call succeeded") && line.contains(name)).count())
}

async fn lists_are_streamed_and_events_followed(rig: &Rig) -> Result<()> {
    view::ready(rig, "guaranteed").await?;
    rig.kubelet.summary()?;
    rig.kubelet.cadvisor_metrics()?;
    for call in [
        "StreamPodSandboxes",
        "StreamContainers",
        "StreamImages",
        "StreamPodSandboxStats",
        "StreamPodSandboxMetrics",
        "GetContainerEvents",
    ] {
        wait::until(&format!("kubelet to call {call}"), secs(30), || async {
            Ok((calls(rig, call)? > 0).then_some(()))
        })
        .await?;
    }
    for call in ["call=\"ListPodSandbox\"", "call=\"ListContainers\"", "call=\"ListPodSandboxMetrics\""] {
        ensure!(calls(rig, call)? == 0, "kubelet fell back to {call}");
    }
    let metrics = Samples::of_text(&rig.kubelet.metrics()?)?;
    ensure!(metrics.one("kubelet_evented_pleg_connection_success_count", &[])? >= 1.0);
    ensure!(metrics.one("kubelet_evented_pleg_connection_error_count", &[])? == 0.0);
    Ok(())
}

/// Two hundred pods start and end, twenty at a time. kubelet gets every event: it counts those that it has received.
async fn pods_come_and_go(rig: &Rig) -> Result<()> {
    const ROUNDS: u32 = 10;
    let received = || -> Result<f64> {
        let metrics = Samples::of_text(&rig.kubelet.metrics()?)?;
        ensure!(metrics.one("kubelet_evented_pleg_connection_error_count", &[])? == 0.0);
        metrics.one("kubelet_evented_pleg_connection_latency_seconds_count", &[])
    };
    let before = received()?;
    for round in 0..ROUNDS {
        let names: Vec<String> = (0..20).map(|number| format!("churn-{round}-{number}")).collect();
        for name in &names {
            rig.kubelet.apply(&pod(name, json!([sleeper("main")])))?;
        }
        for name in &names {
            view::until(rig, name, "ready", 90, |v| v.phase() == "Running" && v.is("Ready")).await?;
        }
        for name in &names {
            rig.kubelet.delete(name)?;
        }
        for name in &names {
            wait::until(&format!("{name} to be gone"), secs(60), || async {
                Ok(view::find(rig, name).await?.is_none().then_some(()))
            })
            .await?;
        }
    }
    // Created, Started and Stopped of a pod and its container. kubelet removes both later.
    let wanted = f64::from(ROUNDS * 20 * 6);
    wait::until("kubelet to have all events", secs(20), || async {
        let found = received()? - before;
        ensure!(found >= wanted, "it has received {found} of {wanted} events");
        Ok(Some(()))
    })
    .await
}

/// A pod with a network of its own and all limits; its id of the container, and the last element of its cgroup's path.
async fn measured(rig: &Rig) -> Result<(String, String)> {
    let resources = json!({"resources": {
        "requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"},
    }});
    if view::find(rig, "measured").await?.is_none() {
        let busy = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/file bs=1M count=4; \
                    trap 'exit 0' TERM; sleep 100000 & wait";
        let container = with(super::manifests::shell("main", busy), &resources);
        rig.kubelet.apply(&pod("measured", json!([container])))?;
    }
    let seen = view::ready(rig, "measured").await?;
    Ok((seen.container_id("main")?, Class::Burstable.name_of_pod(&seen.uid())))
}

fn number(value: &Value, pointer: &str) -> Result<u64> {
    value.pointer(pointer).and_then(Value::as_u64).with_context(|| format!("no {pointer} in {value}"))
}

async fn summary_is_what_the_cgroups_say(rig: &Rig) -> Result<()> {
    let (id, leaf) = measured(rig).await?;
    wait::until("a summary that is what the kernel says", secs(60), || async {
        let before = [metrics::kernel(&id)?, metrics::kernel(&leaf)?];
        let cpu = || -> Result<[u64; 2]> {
            Ok([cgroup::usage(Usage::Cpu, &id)?, cgroup::usage(Usage::Cpu, &leaf)?])
        };
        let cpu_before = cpu()?;
        let summary = rig.kubelet.summary()?;
        let (after, cpu_after) = ([metrics::kernel(&id)?, metrics::kernel(&leaf)?], cpu()?);
        let pods = summary.pointer("/pods").and_then(Value::as_array).cloned().unwrap_or_default();
        let named = |p: &&Value| p.pointer("/podRef/name").and_then(Value::as_str) == Some("measured-node1");
        let pod = pods.iter().find(named).context("the summary has no pod measured")?;
        let container = pod.pointer("/containers/0").context("no container")?;
        for (index, it) in [container, pod].into_iter().enumerate() {
            // kubelet may have the values of a few seconds ago; the container is quiet.
            let [working_set, usage] =
                [number(it, "/memory/workingSetBytes")?, number(it, "/memory/usageBytes")?];
            let of = |values: &[Vec<u64>; 2], at: usize| {
                values.get(index).and_then(|it| it.get(at)).copied().unwrap_or(0)
            };
            let near = |value: u64, at: usize| {
                let (low, high) = (of(&before, at).min(of(&after, at)), of(&before, at).max(of(&after, at)));
                (low..=high).contains(&value)
            };
            ensure!(near(usage, metrics::USAGE) && near(working_set, metrics::WORKING_SET), "memory of {it}");
            let used = number(it, "/cpu/usageCoreNanoSeconds")?;
            let (low, high) =
                (cpu_before.get(index).copied().unwrap_or(0), cpu_after.get(index).copied().unwrap_or(0));
            ensure!((low..=high).contains(&used), "{used} ns of CPU time, the kernel said {low} and {high}");
            number(it, "/cpu/usageNanoCores").context("no CPU rate")?;
            for field in ["rssBytes", "pageFaults", "majorPageFaults"] {
                number(it, &format!("/memory/{field}"))?;
            }
        }
        ensure!(number(container, "/rootfs/usedBytes")? >= 4 << 20, "the writable layer: {container}");
        number(container, "/logs/usedBytes")?;
        ensure!(
            number(pod, "/network/rxBytes")? > 0 && number(pod, "/network/txBytes")? > 0,
            "network of {pod}"
        );
        ensure!(pod.pointer("/network/name") == Some(&json!("eth0")), "network of {pod}");
        // The shell and its sleep.
        ensure!(number(pod, "/process_stats/process_count")? == 2, "processes of {pod}");
        number(pod, "/ephemeral-storage/usedBytes")?;
        Ok(Some(()))
    })
    .await
}

async fn cadvisor_metrics_are_complete(rig: &Rig) -> Result<()> {
    let (id, leaf) = measured(rig).await?;
    let of_container =
        [("namespace", "default"), ("pod", "measured-node1"), ("container", "main"), ("name", id.as_str())];
    wait::until("metrics that are what the kernel says", secs(60), || async {
        let before = [metrics::kernel(&id)?, metrics::kernel(&leaf)?];
        let samples = Samples::of_text(&rig.kubelet.cadvisor_metrics()?)?;
        let after = [metrics::kernel(&id)?, metrics::kernel(&leaf)?];
        let [before_container, before_pod] = &before;
        let [after_container, after_pod] = &after;
        metrics::equal(&samples, &of_container, [before_container, after_container], &[])?;
        let id_of_pod = format!("{}/{leaf}", Class::Burstable.place());
        let of_pod = [
            ("namespace", "default"),
            ("pod", "measured-node1"),
            ("container", ""),
            ("id", id_of_pod.as_str()),
        ];
        metrics::equal(&samples, &of_pod, [before_pod, after_pod], &["oom_events_total"])?;
        let here = |name: &String| !samples.all(name, &[("pod", "measured-node1")]).is_empty();
        let missing: Vec<String> = metrics::names(true).into_iter().filter(|name| !here(name)).collect();
        ensure!(missing.is_empty(), "/metrics/cadvisor has no {missing:?}");
        for name in metrics::OF_INTERFACE {
            samples.one(name, &[("pod", "measured-node1"), ("interface", "eth0")])?;
        }
        let image = samples
            .all("container_memory_rss", &of_container)
            .first()
            .and_then(|it| it.labels.get("image"))
            .cloned();
        ensure!(image.as_deref() == Some("registry.test/busybox:1"), "the image is {image:?}");
        Ok(Some(()))
    })
    .await
}

async fn resource_metrics_are_complete(rig: &Rig) -> Result<()> {
    let (id, leaf) = measured(rig).await?;
    let labels = [("namespace", "default"), ("pod", "measured-node1")];
    let of_container = [&labels[..], &[("container", "main")]].concat();
    wait::until("resource metrics that are what the kernel says", secs(60), || async {
        let read = |leaf: &str| -> Result<(f64, f64)> {
            let cpu = cgroup::usage(Usage::Cpu, leaf)? as f64 / 1e9;
            let memory = metrics::kernel(leaf)?.get(metrics::WORKING_SET).copied().unwrap_or(0) as f64;
            Ok((cpu, memory))
        };
        let before = [read(&id)?, read(&leaf)?];
        let samples = Samples::of_text(&rig.kubelet.resource_metrics()?)?;
        let after = [read(&id)?, read(&leaf)?];
        ensure!(samples.one("resource_scrape_error", &[])? == 0.0, "kubelet could not read them");
        let found = [
            (
                samples.one("container_cpu_usage_seconds_total", &of_container)?,
                samples.one("container_memory_working_set_bytes", &of_container)?,
            ),
            (
                samples.one("pod_cpu_usage_seconds_total", &labels)?,
                samples.one("pod_memory_working_set_bytes", &labels)?,
            ),
        ];
        for ((before, after), found) in before.into_iter().zip(after).zip(found) {
            ensure!(
                (before.0..=after.0).contains(&found.0),
                "CPU time {found:?}, the kernel said {before:?}, {after:?}"
            );
            let range = before.1.min(after.1)..=before.1.max(after.1);
            ensure!(range.contains(&found.1), "memory {found:?}, the kernel said {before:?}, {after:?}");
        }
        ensure!(samples.one("container_start_time_seconds", &of_container)? > 1.6e9);
        samples.one("container_swap_usage_bytes", &of_container)?;
        Ok(Some(()))
    })
    .await
}

/// kubelet asks for the list of metrics once, when it starts. A restart of the runtime must not change it.
async fn metrics_go_on_after_a_restart(rig: &Rig) -> Result<()> {
    measured(rig).await?;
    let series = || -> Result<Vec<String>> {
        let samples = Samples::of_text(&rig.kubelet.cadvisor_metrics()?)?;
        let of_pod =
            samples.0.into_iter().filter(|it| it.labels.get("pod").is_some_and(|it| it == "measured-node1"));
        let mut names: Vec<String> =
            of_pod.map(|sample| format!("{}{:?}", sample.name, sample.labels)).collect();
        names.sort();
        Ok(names)
    };
    let before = series()?;
    ensure!(before.len() > 60, "before the restart there are {} series", before.len());
    rig.node.restart().await?;
    wait::until("the same series as before the restart", secs(30), || async {
        let after = series()?;
        ensure!(after == before, "from {} to {} series", before.len(), after.len());
        Ok(Some(()))
    })
    .await
}
