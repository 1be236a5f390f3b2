//! kubelet's CPU manager, which changes containers that run by UpdateContainerResources with a cpuset alone. A resize sends
//! the same call with more fields ([`super::qos`], `tests::update`).

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::manifests::{pod, sleeper, with, with_spec};
use super::view;
use super::{Check, Rig, check};
use crate::cgroup;
use crate::expect::ensure;
use crate::wait::{self, secs};

/// The check, which runs last: it starts kubelet with another configuration.
pub(crate) fn all() -> Vec<Check> {
    vec![check!(cpu_manager_moves_running_containers)]
}

/// Waits until a container's cpuset is this one, in its cgroup and in what copepod shows.
async fn has_cpus(rig: &Rig, id: &str, wanted: &str) -> Result<()> {
    wait::until(&format!("container {id} to have the CPUs {wanted}"), secs(40), || async {
        let [found, _] = cgroup::cpus_and_nodes(id)?;
        ensure!(found == wanted, "it has {found}");
        let shown =
            rig.node.cri.container(id).await?.resources.and_then(|r| r.linux).context("no resources")?;
        ensure!(shown.cpuset_cpus == wanted, "it is shown with {:?}", shown.cpuset_cpus);
        Ok(Some(()))
    })
    .await
}

async fn cpu_manager_moves_running_containers(rig: &Rig) -> Result<()> {
    let cpus = std::fs::read_to_string("/sys/devices/system/cpu/online")?.trim().to_owned();
    ensure!(cpus.starts_with("0-"), "this check needs two CPUs, and the host has {cpus}");
    rig.kubelet.remove_all(rig).await?;
    rig.kubelet.kill(Signal::SIGTERM)?;
    let plain = rig.kubelet.reconfigure(&json!({
        "cpuManagerPolicy": "static", "cpuManagerReconcilePeriod": "1s", "reservedSystemCPUs": "0",
    }))?;
    rig.kubelet.launch().await?;
    // On the host's network, so that no other check is needed first.
    let host = json!({"hostNetwork": true});
    rig.kubelet.apply(&with_spec(pod("shared", json!([sleeper("main")])), &host))?;
    let shared = view::ready(rig, "shared").await?.container_id("main")?;
    // With all CPUs, and shown as kubelet has sent them.
    has_cpus(rig, &shared, &cpus).await.context("before another pod needs a CPU of its own")?;
    let one: Value = json!({"cpu": "1", "memory": "64Mi"});
    let exclusive = with(sleeper("main"), &json!({"resources": {"requests": one, "limits": one}}));
    rig.kubelet.apply(&with_spec(pod("exclusive", json!([exclusive])), &host))?;
    let id = view::ready(rig, "exclusive").await?.container_id("main")?;
    has_cpus(rig, &id, "1").await?;
    let rest =
        if cpus == "0-1" { "0".to_owned() } else { cpus.replacen("0-", "0,2-", 1).replace("2-2", "2") };
    has_cpus(rig, &shared, &rest).await.context("while another pod has a CPU of its own")?;
    rig.node.crash().await?;
    has_cpus(rig, &shared, &rest).await.context("after copepod was killed")?;
    rig.kubelet.delete("exclusive")?;
    has_cpus(rig, &shared, &cpus).await.context("when the other pod is gone")?;
    let failed: Vec<String> = rig
        .kubelet
        .log()
        .lines()
        .filter(|line| line.contains("UpdateContainerResources from runtime service failed"))
        // It may ask while copepod is killed, or while a container exits.
        .filter(|line| !line.contains("code = Unavailable") && !line.contains(&id))
        .map(str::to_owned)
        .collect();
    ensure!(failed.is_empty(), "kubelet logged {failed:?}");
    rig.kubelet.remove_all(rig).await?;
    rig.kubelet.kill(Signal::SIGTERM)?;
    rig.kubelet.reconfigure(&plain)?;
    rig.kubelet.launch().await
}
