//! Checks of pods of every kind, whose manifests are written together.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::bulk::manifests_are_written;
use super::kubepods::Class;
use super::manifests::{pod, shell, sleeper, with, with_spec};
use super::view;
use super::{Check, Rig, check};
use crate::cgroup::{self, Limit};
use crate::expect::{ensure, file_has};
use crate::images::Recipe;
use crate::isolation::NODE_IP;
use crate::proc;
use crate::wait::{self, secs};

/// The checks in the order they run.
pub(crate) fn all() -> Vec<Check> {
    vec![
        check!(host_network_without_any_cni),
        check!(node_turns_ready_with_the_conflist),
        check!(manifests_are_written),
        check!(guaranteed_cgroup),
        check!(burstable_cgroup),
        check!(best_effort_cgroup),
        check!(two_containers_over_localhost),
        check!(init_container_runs_first),
        check!(native_sidecar),
        check!(probes_that_succeed),
        check!(failing_probe_restarts),
        check!(oom_kill_is_reported),
        check!(exit_code_and_termination_message),
        check!(volumes_of_every_kind),
        check!(host_network_with_cni),
        check!(host_port),
        check!(log_endpoints),
        check!(wrong_image_recovers_when_pushed),
        check!(rotation_loses_no_line),
        check!(summary_and_resource_metrics),
        check!(removed_manifest_with_grace),
    ]
}

async fn network_ready(rig: &Rig) -> Result<bool> {
    Ok(rig.node.cri.condition("NetworkReady").await?.status)
}

async fn host_network_without_any_cni(rig: &Rig) -> Result<()> {
    ensure!(!network_ready(rig).await?, "NetworkReady is true without a CNI configuration");
    rig.kubelet.apply(&with_spec(pod("early", json!([sleeper("main")])), &json!({"hostNetwork": true})))?;
    let seen = view::ready(rig, "early").await?;
    let id = seen.container_id("main")?;
    rig.kubelet.delete("early")?;
    gone(rig, "early", &id).await?;
    // kubelet would remove the sandbox within a minute. It is removed now, because it must be possible while there is
    // no network yet.
    for sandbox in sandboxes(rig, "early").await? {
        rig.node.cri.remove_pod(&sandbox).await?;
    }
    ensure!(sandboxes(rig, "early").await?.is_empty(), "a removed sandbox is listed");
    ensure!(!network_ready(rig).await?, "NetworkReady is true without a CNI configuration");
    Ok(())
}

/// Ids of the pod's sandboxes that copepod lists, in any state.
async fn sandboxes(rig: &Rig, name: &str) -> Result<Vec<String>> {
    let full = format!("{name}-node1");
    let all = rig.node.cri.pods(None).await?;
    Ok(all
        .into_iter()
        .filter(|p| p.metadata.as_ref().is_some_and(|m| m.name == full))
        .map(|p| p.id)
        .collect())
}

/// Waits until kubelet does not list the pod any more, its container is not running and its sandbox is not ready.
async fn gone(rig: &Rig, name: &str, container: &str) -> Result<()> {
    wait::until(&format!("{name} to be gone"), secs(60), || async {
        ensure!(view::find(rig, name).await?.is_none(), "kubelet lists it");
        let containers = rig.node.cri.containers(None).await?;
        let running = containers
            .iter()
            .any(|c| c.id == container && c.state() == cri_api::v1::ContainerState::ContainerRunning);
        ensure!(!running, "its container runs");
        let pods = rig.node.cri.pods(None).await?;
        let ready = pods.iter().any(|p| {
            p.metadata.as_ref().is_some_and(|m| m.name == format!("{name}-node1"))
                && p.state() == cri_api::v1::PodSandboxState::SandboxReady
        });
        ensure!(!ready, "its sandbox is ready");
        Ok(Some(()))
    })
    .await
}

async fn node_turns_ready_with_the_conflist(rig: &Rig) -> Result<()> {
    rig.kubelet.apply(&pod("waits", json!([sleeper("main")])))?;
    // The pod must not start; these three seconds are the time in which it would.
    tokio::time::sleep(secs(3)).await;
    let before = view::find(rig, "waits").await?;
    ensure!(before.is_none_or(|v| v.phase() == "Pending"), "a pod runs without a network");
    rig.node.network.install()?;
    wait::until("NetworkReady", secs(10), || async { Ok(network_ready(rig).await?.then_some(())) }).await?;
    let seen = view::ready(rig, "waits").await?;
    let prefix = &rig.node.network.prefix;
    ensure!(seen.ip().starts_with(prefix), "its address is {}, not in {prefix}.0/24", seen.ip());
    rig.kubelet.delete("waits")
}

/// Checks the container's cgroup and process against the values that Kubernetes defines for its QoS class.
async fn has_class(
    rig: &Rig,
    name: &str,
    class: Class,
    values: &[(Limit, Option<u64>)],
    oom_scores: RangeInclusive<i32>,
) -> Result<()> {
    let seen = view::ready(rig, name).await?;
    let (id, uid) = (seen.container_id("main")?, seen.uid());
    let dir = cgroup::find("memory", &id).context("no memory cgroup")?;
    let listed = rig.node.cri.containers(None).await?;
    let sandbox = listed.into_iter().find(|it| it.id == id).context("not listed")?.pod_sandbox_id;
    let expected = cgroup::leaf(&class.pod(&uid), &sandbox, &id);
    ensure!(dir.display().to_string().ends_with(&expected), "the leaf is {}, not {expected}", dir.display());
    for (limit, value) in values {
        let found = cgroup::limit(*limit, &id)?;
        ensure!(found == *value, "{limit:?} is {found:?}, not {value:?}");
    }
    let pid = cgroup::members(&dir).into_iter().next().context("the cgroup is empty")?;
    let score: i32 = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim().parse()?;
    ensure!(oom_scores.contains(&score), "oom_score_adj is {score}, not in {oom_scores:?}");
    Ok(())
}

async fn guaranteed_cgroup(rig: &Rig) -> Result<()> {
    let values = [
        (Limit::CpuShares, Some(cgroup::shares(204))),
        (Limit::CpuQuota, Some(20_000)),
        (Limit::CpuPeriod, Some(100_000)),
        (Limit::Memory, Some(64 << 20)),
    ];
    // kubelet asks for -997; without CAP_SYS_RESOURCE the value stays at the daemon's.
    let scores = if proc::may_lower_oom_score()? { -997..=-997 } else { -1000..=0 };
    has_class(rig, "guaranteed", Class::Guaranteed, &values, scores).await
}

async fn burstable_cgroup(rig: &Rig) -> Result<()> {
    let values = [
        (Limit::CpuShares, Some(cgroup::shares(102))),
        (Limit::CpuQuota, None),
        (Limit::Memory, Some(128 << 20)),
    ];
    has_class(rig, "burstable", Class::Burstable, &values, 3..=999).await
}

async fn best_effort_cgroup(rig: &Rig) -> Result<()> {
    let values = [(Limit::CpuShares, Some(cgroup::shares(2)))];
    has_class(rig, "best-effort", Class::BestEffort, &values, 1000..=1000).await
}

/// Waits until a container's log, got from kubelet's endpoint, contains a text.
async fn logged(rig: &Rig, name: &str, container: &str, text: &str) -> Result<String> {
    wait::until(&format!("`{text}` in the log of {name}"), secs(40), || async {
        let log = rig.kubelet.container_log("default", &format!("{name}-node1"), container, "")?;
        ensure!(log.contains(text), "it is `{log}`");
        Ok(Some(log))
    })
    .await
}

async fn two_containers_over_localhost(rig: &Rig) -> Result<()> {
    view::ready(rig, "localhost").await?;
    let log = logged(rig, "localhost", "client", "talked").await?;
    ensure!(log.contains("hello from nginx"), "the client's log is {log:?}");
    Ok(())
}

async fn init_container_runs_first(rig: &Rig) -> Result<()> {
    let seen = view::ready(rig, "init").await?;
    logged(rig, "init", "main", "by init").await?;
    let ended = seen.terminated("first").context("the init container has not ended")?;
    ensure!(
        ended.get("reason").and_then(Value::as_str) == Some("Completed") && seen.restarts("first")? == 0,
        "the init container ended with {ended} and was restarted {} times",
        seen.restarts("first")?
    );
    Ok(())
}

async fn native_sidecar(rig: &Rig) -> Result<()> {
    let seen = view::ready(rig, "sidecar").await?;
    logged(rig, "sidecar", "main", "ready").await?;
    ensure!(
        seen.container("side")?.pointer("/state/running").is_some() && seen.restarts("side")? == 0,
        "the sidecar does not run without a restart: {}",
        seen.status()
    );
    Ok(())
}

async fn probes_that_succeed(rig: &Rig) -> Result<()> {
    let first = view::ready(rig, "probes").await?;
    // Several probes run in this time; none may restart a container.
    tokio::time::sleep(secs(5)).await;
    let later = view::ready(rig, "probes").await?;
    ensure!(first.identity() == later.identity(), "a container was restarted: {}", later.status());
    Ok(())
}

async fn failing_probe_restarts(rig: &Rig) -> Result<()> {
    let seen = view::until(rig, "probe-fails", "restarted", 60, |v| v.restarts("main").is_ok_and(|n| n >= 1))
        .await?;
    rig.kubelet.delete("probe-fails")?;
    ensure!(seen.terminated("main").is_some(), "the status has no last state: {}", seen.status());
    Ok(())
}

async fn oom_kill_is_reported(rig: &Rig) -> Result<()> {
    let seen = view::until(rig, "oom", "failed", 60, |v| v.phase() == "Failed").await?;
    let ended = seen.terminated("main").context("not terminated")?;
    ensure!(
        ended.get("reason").and_then(Value::as_str) == Some("OOMKilled")
            && ended.get("exitCode") == Some(&json!(137)),
        "the OOM kill is reported as {ended}"
    );
    Ok(())
}

async fn exit_code_and_termination_message(rig: &Rig) -> Result<()> {
    let seen = view::until(rig, "exit", "failed", 60, |v| v.phase() == "Failed").await?;
    let ended = seen.terminated("main").context("not terminated")?;
    ensure!(ended.get("exitCode") == Some(&json!(42)), "its end is reported as {ended}");
    ensure!(
        ended.get("message").and_then(Value::as_str) == Some("what went wrong\n"),
        "its end is reported as {ended}"
    );
    Ok(())
}

async fn volumes_of_every_kind(rig: &Rig) -> Result<()> {
    view::ready(rig, "volumes").await?;
    let log = logged(rig, "volumes", "main", "tmpfs").await?;
    ensure!(log.matches("host content").count() == 2, "hostPath and its subPath: {log}");
    ensure!(log.contains("file\n"), "emptyDir by subPath: {log}");
    ensure!(log.lines().any(|l| l.contains(" 8192 ")), "sizeLimit of the memory volume: {log}");
    file_has(&rig.node.paths.dir.join("host-volume/from-pod"), "inside\n")
}

async fn answers(address: &str) -> Result<()> {
    let http = crate::http::Http::new();
    wait::until(&format!("nginx on {address}"), secs(20), || async {
        Ok(http.get(&format!("http://{address}/")).await?.contains("hello from nginx").then_some(()))
    })
    .await
}

async fn host_network_with_cni(rig: &Rig) -> Result<()> {
    let seen = view::ready(rig, "on-host").await?;
    // Without an API server kubelet may not know the node's address.
    ensure!(seen.ip().is_empty() || seen.ip() == NODE_IP, "its address is {}", seen.ip());
    answers("127.0.0.1:12003").await
}

async fn host_port(rig: &Rig) -> Result<()> {
    view::ready(rig, "host-port").await?;
    answers(&format!("{NODE_IP}:18080")).await?;
    answers("127.0.0.1:18080").await
}

async fn log_endpoints(rig: &Rig) -> Result<()> {
    view::ready(rig, "logs").await?;
    let log = logged(rig, "logs", "main", "third").await?;
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    ensure!(lines == ["first", "second", "third"], "the log is {log:?}");
    let tail = rig.kubelet.container_log("default", "logs-node1", "main", "?tailLines=1")?;
    ensure!(log.ends_with(&tail) && tail.lines().count() == 1, "of {log:?} the last line is {tail:?}");
    let stamped = rig.kubelet.container_log("default", "logs-node1", "main", "?timestamps=true")?;
    ensure!(
        stamped.lines().count() == 3 && stamped.lines().all(|l| l.get(10..11) == Some("T")),
        "the log with times is {stamped:?}"
    );
    Ok(())
}

/// Pushes the image of the pod `wrong-image`.
pub(super) async fn push_missing_image(rig: &Rig) -> Result<()> {
    let image = Recipe::new(
        std::slice::from_ref(&rig.fixture.layers.busybox),
        json!({"Cmd": ["/bin/sh"], "Labels": {"late": "yes"}}),
    )
    .build();
    rig.fixture.registry.push("comes-later", "1", &image).await?;
    Ok(())
}

async fn wrong_image_recovers_when_pushed(rig: &Rig) -> Result<()> {
    view::until(rig, "wrong-image", "waiting for its image", 40, |v| {
        matches!(v.waiting("main").as_str(), "ErrImagePull" | "ImagePullBackOff")
    })
    .await?;
    ensure!(rig.kubelet.log().contains("ErrImagePull"), "kubelet's log has no ErrImagePull");
    push_missing_image(rig).await?;
    view::until(rig, "wrong-image", "running", 90, |v| v.phase() == "Running").await?;
    Ok(())
}

/// The content of the container's log with all rotated and compressed files, oldest first, and the number of
/// files.
fn whole_log(folder: &Path) -> Result<(String, usize)> {
    let mut files: Vec<_> = fs::read_dir(folder)?.flatten().map(|e| e.path()).collect();
    // 0.log.<time>.gz, 0.log.<time>, then 0.log.
    files.sort_by_key(|p| {
        let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        (name == "0.log", name)
    });
    let mut text = String::new();
    for file in &files {
        let bytes = fs::read(file)?;
        let plain = if file.extension().is_some_and(|e| e == "gz") {
            let mut out = String::new();
            std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(bytes.as_slice()), &mut out)?;
            out
        } else {
            String::from_utf8_lossy(&bytes).into_owned()
        };
        text.push_str(&plain);
    }
    Ok((text, files.len()))
}

async fn rotation_loses_no_line(rig: &Rig) -> Result<()> {
    let seen = view::ready(rig, "rotation").await?;
    let folder = rig.kubelet.logs.join(format!("default_rotation-node1_{}", seen.uid())).join("main");
    wait::until("the writer to be done", secs(90), || async {
        Ok(whole_log(&folder)?.0.contains(" F done").then_some(()))
    })
    .await?;
    let (text, files) = whole_log(&folder)?;
    ensure!(files >= 3, "kubelet rotated only {files} files");
    let numbers: Vec<u32> =
        text.lines().filter_map(|l| l.split_once(" F line ")?.1.split(' ').next()?.parse().ok()).collect();
    let expected: Vec<u32> = (0..1500).collect();
    ensure!(
        numbers == expected,
        "{} lines in {files} files; the first wrong one is {:?}",
        numbers.len(),
        numbers.iter().zip(&expected).find(|(a, b)| a != b)
    );
    Ok(())
}

async fn summary_and_resource_metrics(rig: &Rig) -> Result<()> {
    wait::until("kubelet's summary with every pod", secs(30), || async {
        let summary = rig.kubelet.summary()?;
        let pods = summary.pointer("/pods").and_then(Value::as_array).cloned().unwrap_or_default();
        let find = |name: &str| {
            pods.iter().find(|p| p.pointer("/podRef/name").and_then(Value::as_str) == Some(name))
        };
        let one = find("guaranteed-node1").context("the summary has no pod guaranteed")?;
        let memory = one.pointer("/containers/0/memory/workingSetBytes").and_then(Value::as_u64).unwrap_or(0);
        ensure!(memory > 0, "no working set: {one}");
        let cpu = one.pointer("/containers/0/cpu/usageCoreNanoSeconds").and_then(Value::as_u64).unwrap_or(0);
        ensure!(cpu > 0, "no CPU time: {one}");
        ensure!(one.pointer("/containers/0/rootfs/usedBytes").is_some(), "no root file system usage: {one}");
        ensure!(
            summary.pointer("/node/runtime/imageFs/usedBytes").and_then(Value::as_u64).is_some_and(|b| b > 0),
            "no image file system"
        );
        Ok(Some(()))
    })
    .await
}

async fn removed_manifest_with_grace(rig: &Rig) -> Result<()> {
    let host = rig.node.paths.dir.join("grace");
    fs::create_dir_all(&host)?;
    let line = "trap 'sleep 1; echo ended gracefully > /host/end; exit 0' TERM; while :; do sleep 0.2; done";
    let container =
        with(shell("main", line), &json!({"volumeMounts": [{"name": "host", "mountPath": "/host"}]}));
    let manifest = with_spec(
        pod("graceful", json!([container])),
        &json!({"terminationGracePeriodSeconds": 20, "volumes": [{"name": "host", "hostPath": {"path": host}}]}),
    );
    rig.kubelet.apply(&manifest)?;
    let seen = view::ready(rig, "graceful").await?;
    let id = seen.container_id("main")?;
    let dir = cgroup::find("memory", &id).context("no cgroup")?;
    let pid = cgroup::members(&dir).into_iter().next().context("no process")?;
    rig.kubelet.delete("graceful")?;
    gone(rig, "graceful", &id).await?;
    file_has(&host.join("end"), "ended gracefully\n").context("it was not given its grace period")?;
    ensure!(!proc::alive(pid), "its process is still running");
    wait::until_true("its cgroups to be gone", Duration::from_secs(30), || {
        cgroup::all(|p| p.contains(&seen.uid())).is_empty()
    })
    .await
}
