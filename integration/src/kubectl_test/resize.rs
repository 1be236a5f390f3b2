//! In-place resize: kubelet changes the limits of a running container by UpdateContainerResources, after it has read
//! its usage.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::Cluster;
use super::checks::here;
use crate::cgroup::{self, Limit};
use crate::expect::ensure;
use crate::node_test::manifests::{pod, shell, with, with_spec};
use crate::node_test::{Check, check};
use crate::wait::{self, secs};

pub(super) fn all() -> Vec<Check<Cluster>> {
    vec![check!(a_restarted_container_is_resized)]
}

/// Requests and limits of CPU and memory.
fn resources(cpu: [&str; 2], memory: [&str; 2]) -> Value {
    json!({"requests": {"cpu": cpu[0], "memory": memory[0]}, "limits": {"cpu": cpu[1], "memory": memory[1]}})
}

/// The status of the only container.
async fn status(cluster: &Cluster) -> Result<Value> {
    let text = cluster.kubectl.quiet(&["get", "pod", "resized", "-o", "json"]).await?;
    let pod: Value = serde_json::from_str(&text)?;
    pod.pointer("/status/containerStatuses/0").cloned().context("no status of the container")
}

/// Raises and lowers the limits of a container that has ended once before. kubelet lowers a memory limit only if it
/// knows the usage of each container of that name in the list of stats.
async fn a_restarted_container_is_resized(cluster: &Cluster) -> Result<()> {
    let line =
        "[ -e /state/ran ] || { touch /state/ran; exit 1; }; trap 'exit 0' TERM; while :; do sleep 0.2; done";
    let first = resources(["100m", "200m"], ["32Mi", "64Mi"]);
    let mounts = json!([{"name": "state", "mountPath": "/state"}]);
    let container = with(shell("main", line), &json!({"resources": first, "volumeMounts": mounts}));
    let volumes = json!({"volumes": [{"name": "state", "emptyDir": {}}]});
    cluster.kubectl.apply(&here(with_spec(pod("resized", json!([container])), &volumes))).await?;
    wait::until("the container to be restarted", secs(60), || async {
        let status = status(cluster).await?;
        Ok((status["restartCount"] == 1 && status["ready"] == true).then_some(()))
    })
    .await?;
    let before = status(cluster).await?;
    let id = before["containerID"].as_str().and_then(|id| id.strip_prefix("copepod://")).context("no id")?;
    // CPU and memory up, memory down, CPU down, both down.
    for (cpu, memory, limits) in [
        (["150m", "300m"], ["48Mi", "96Mi"], [153, 30_000, 96 << 20]),
        (["150m", "300m"], ["24Mi", "48Mi"], [153, 30_000, 48 << 20]),
        (["50m", "100m"], ["24Mi", "48Mi"], [51, 10_000, 48 << 20]),
        (["20m", "40m"], ["16Mi", "40Mi"], [20, 4000, 40 << 20]),
    ] {
        let wanted = resources(cpu, memory);
        let patch = json!({"spec": {"containers": [{"name": "main", "resources": wanted}]}}).to_string();
        cluster
            .kubectl
            .ok(&["patch", "pod", "resized", "--subresource", "resize", "--patch", &patch])
            .await?;
        wait::until("the pod to be resized", secs(30), || async {
            let status = status(cluster).await?;
            ensure!(status["resources"] == wanted, "its status has {}", status["resources"]);
            Ok(Some(()))
        })
        .await
        .with_context(|| format!("to {wanted}"))?;
        let found = [
            cgroup::limit(Limit::CpuShares, id)?,
            cgroup::limit(Limit::CpuQuota, id)?,
            cgroup::limit(Limit::Memory, id)?,
        ];
        let [shares, quota, memory] = limits;
        let limits = [cgroup::shares(shares), quota, memory].map(Some);
        ensure!(found == limits, "the cgroup has {found:?} instead of {limits:?}");
    }
    let after = status(cluster).await?;
    ensure!(
        after["containerID"] == before["containerID"] && after["restartCount"] == 1,
        "it was restarted: {after}"
    );
    Ok(())
}
