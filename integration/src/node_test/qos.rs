//! The values in kubelet's own cgroups, which copepod's are below: of pods and of classes, as the pods ask for them; a resize
//! in place; and whom the kernel kills if a container has no memory left.

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use serde_json::{Value, json};

use super::kubepods::Class;
use super::manifests::{pod, shell, sleeper, with, with_spec};
use super::view;
use super::{Check, Rig, check};
use crate::cgroup::{self, Limit};
use crate::expect::ensure;
use crate::wait::{self, secs};

/// The checks in the order they run.
pub(crate) fn all() -> Vec<Check> {
    vec![
        check!(cgroups_of_pods_and_classes),
        check!(pod_is_resized_in_place),
        check!(child_without_memory_ends_its_container),
    ]
}

/// Limits of a cgroup.
type Limits = [(Limit, Option<u64>)];

/// Fails unless the cgroup at `path` has these limits.
fn has(path: &str, limits: &Limits) -> Result<()> {
    for (limit, wanted) in limits {
        let found = cgroup::limit_at(*limit, path)?;
        ensure!(found == *wanted, "{limit:?} of {path} is {found:?}, not {wanted:?}");
    }
    Ok(())
}

/// kubelet's cgroups of the pods that the first checks have started. copepod must not change them: their limits are for all
/// containers of the pod together, and another program has made them.
async fn cgroups_of_pods_and_classes(rig: &Rig) -> Result<()> {
    let of_pod = async |name: &str, class: Class| -> Result<String> {
        Ok(class.pod(&view::ready(rig, name).await?.uid()))
    };
    let guaranteed = of_pod("guaranteed", Class::Guaranteed).await?;
    has(
        &guaranteed,
        &[
            (Limit::CpuShares, Some(cgroup::shares(204))),
            (Limit::CpuQuota, Some(20_000)),
            (Limit::CpuPeriod, Some(100_000)),
            (Limit::Memory, Some(64 << 20)),
        ],
    )?;
    let burstable = of_pod("burstable", Class::Burstable).await?;
    has(
        &burstable,
        &[
            (Limit::CpuShares, Some(cgroup::shares(102))),
            (Limit::CpuQuota, None),
            (Limit::Memory, Some(128 << 20)),
        ],
    )?;
    let best_effort = of_pod("best-effort", Class::BestEffort).await?;
    has(&best_effort, &[(Limit::CpuShares, Some(cgroup::shares(2))), (Limit::Memory, None)])?;
    // kubelet sets those of classes when a pod is synced: of the burstable pods, one asks for CPU time.
    wait::until("the shares of the classes", secs(90), || async {
        has(&Class::Burstable.place(), &[(Limit::CpuShares, Some(cgroup::shares(102)))])?;
        has(&Class::BestEffort.place(), &[(Limit::CpuShares, Some(cgroup::shares(2)))])?;
        Ok(Some(()))
    })
    .await
}

/// Resources of a container, and what they are in a cgroup.
struct Size {
    resources: Value,
    cgroup: [(Limit, Option<u64>); 3],
}

fn sizes() -> [Size; 2] {
    let size = |request: &str, limit: &str, memory: &str, shares: u64, quota: u64, bytes: u64| Size {
        resources: json!({
            "requests": {"cpu": request, "memory": "16Mi"}, "limits": {"cpu": limit, "memory": memory},
        }),
        cgroup: [
            (Limit::CpuShares, Some(cgroup::shares(shares))),
            (Limit::CpuQuota, Some(quota)),
            (Limit::Memory, Some(bytes)),
        ],
    };
    [size("100m", "200m", "32Mi", 102, 20_000, 32 << 20), size("250m", "500m", "96Mi", 256, 50_000, 96 << 20)]
}

/// The same process in the same container gets larger and smaller again. Without a control plane, the manifest of a static
/// pod changes; kubelet takes that for the same pod if the manifest has a uid, which is otherwise a hash of it.
async fn pod_is_resized_in_place(rig: &Rig) -> Result<()> {
    let manifest = |size: &Size| {
        let container = with(sleeper("main"), &json!({"resources": size.resources}));
        let mut manifest = with_spec(pod("resized", json!([container])), &json!({"hostNetwork": true}));
        manifest["metadata"]["uid"] = json!("0123456789abcdef0123456789abcdef");
        manifest
    };
    let [small, large] = sizes();
    rig.kubelet.apply(&manifest(&small))?;
    let first = view::ready(rig, "resized").await?;
    let id = first.container_id("main")?;
    let of_pod = Class::Burstable.pod(&first.uid());
    for size in [&small, &large, &small] {
        rig.kubelet.apply(&manifest(size))?;
        wait::until(&format!("the size {}", size.resources), secs(60), || async {
            has(&of_pod, &size.cgroup)?;
            has(&cgroup::place(&id).context("no cgroup")?, &size.cgroup)?;
            let seen = view::pod(rig, "resized").await?;
            ensure!(seen.container_id("main")? == id && seen.restarts("main")? == 0, "{}", seen.status());
            // kubelet has it from ContainerStatus.
            let shown = seen.container("main")?.get("resources").cloned().unwrap_or_default();
            ensure!(shown == size.resources, "kubelet shows {shown}");
            Ok(Some(()))
        })
        .await?;
    }
    let linux =
        rig.node.cri.container(&id).await?.resources.and_then(|it| it.linux).context("no resources")?;
    ensure!(linux.memory_limit_in_bytes == 32 << 20 && linux.cpu_quota == 20_000, "shown is {linux:?}");
    rig.kubelet.delete("resized")
}

/// A container whose child needs more memory than the container may have.
pub(super) fn parent_of_a_hungry_child(name: &str) -> Value {
    let line = "dd if=/dev/zero of=/dev/null bs=100M count=1; echo the parent is alive; \
                trap 'exit 0' TERM; sleep 100000 & wait";
    let container = with(shell("main", line), &json!({"resources": {"limits": {"memory": "20Mi"}}}));
    with_spec(pod(name, json!([container])), &json!({"hostNetwork": true, "restartPolicy": "Never"}))
}

/// By default, kubelet asks on v2 for a container that ends as a whole (memory.oom.group).
async fn child_without_memory_ends_its_container(rig: &Rig) -> Result<()> {
    if !cgroup::is_v2() {
        println!("      not checked: cgroup v1 has no memory.oom.group");
        return Ok(());
    }
    rig.kubelet.apply(&parent_of_a_hungry_child("hungry"))?;
    let seen = view::until(rig, "hungry", "failed", 60, |v| v.phase() == "Failed").await?;
    let ended = seen.terminated("main").context("not terminated")?;
    ensure!(
        ended.get("reason").and_then(Value::as_str) == Some("OOMKilled")
            && ended.get("exitCode") == Some(&json!(137)),
        "it has ended with {ended}"
    );
    let log = rig.kubelet.container_log("default", "hungry-node1", "main", "")?;
    ensure!(!log.contains("alive"), "its first process went on: {log}");
    let status = rig.node.cri.container(&seen.container_id("main")?).await?;
    ensure!(status.state() == api::ContainerState::ContainerExited && status.reason == "OOMKilled");
    rig.kubelet.delete("hungry")
}
