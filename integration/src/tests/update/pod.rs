//! UpdatePodSandboxResources.

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use serde_json::Value;
use tonic::Code;

use super::MIB;
use crate::cgroup::Limit;
use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::{cgroup, proc};

pub(super) fn tests() -> Vec<Test> {
    vec![test!(pod_resources_are_kept)]
}

/// The pod's resources in its verbose information: of `overhead` and `resources`, shares and memory.
async fn pod_shows(cx: &Context, pod: &Pod, wanted: [Option<(i64, i64)>; 2]) -> Result<()> {
    let info = cx.cri.pod_status(&pod.id).await?.info;
    let info: Value = serde_json::from_str(info.get("info").context("no verbose information")?)?;
    let found = ["overhead", "resources"].map(|name| {
        let of = |field: &str| info.pointer(&format!("/config/linux/{name}/{field}"))?.as_i64();
        of("cpu_shares").zip(of("memory_limit_in_bytes"))
    });
    ensure!(found == wanted, "overhead and resources are {found:?}, not {wanted:?}");
    Ok(())
}

async fn pod_resources_are_kept(cx: Context) -> Result<()> {
    let of = |shares: i64, mib: i64| api::LinuxContainerResources {
        cpu_shares: shares,
        memory_limit_in_bytes: mib * MIB,
        ..Default::default()
    };
    let mut config = cx.pod_config();
    if let Some(linux) = &mut config.linux {
        linux.resources = Some(of(10, 10));
    }
    let pod = cx.pod_of(config.clone()).await?;
    let parent = config.linux.as_ref().map(|l| l.cgroup_parent.clone()).unwrap_or_default();
    let pause = cgroup::of_process("memory", cx.node.pause(&pod.id)?.pid)?;
    let limits = || -> Result<[Option<u64>; 2]> {
        Ok([cgroup::limit_at(Limit::Memory, &pause)?, cgroup::limit_at(Limit::Memory, &parent)?])
    };
    let before = limits()?;
    pod_shows(&cx, &pod, [None, Some((10, 10 * MIB))]).await?;
    cx.cri.update_pod(&pod.id, Some(of(1, 5)), Some(of(20, 20))).await?;
    pod_shows(&cx, &pod, [Some((1, 5 * MIB)), Some((20, 20 * MIB))]).await?;
    cx.cri.update_pod(&pod.id, None, Some(of(30, 30))).await?;
    cx.node.crash().await?;
    pod_shows(&cx, &pod, [Some((1, 5 * MIB)), Some((30, 30 * MIB))]).await.context("after a restart")?;
    // The cgroup of the pod is kubelet's, and pause has limits of its own.
    ensure!(limits()? == before, "limits of pause or of its parent {parent:?} have changed");
    let again = cx.cri.run_pod(&config).await?;
    ensure!(again == pod.id, "an equal RunPodSandbox made another pod");
    let unknown = cx.cri.update_pod(&"e".repeat(64), None, None).await.err().context("an unknown pod")?;
    ensure!(unknown.code() == Code::NotFound, "{unknown}");
    let wrong = cx.cri.update_pod(&pod.id, Some(of(-1, 0)), None).await.err().context("negative shares")?;
    ensure!(
        wrong.code() == Code::InvalidArgument && wrong.message().contains("overhead.cpu_shares"),
        "{wrong}"
    );
    cx.cri.stop_pod(&pod.id).await?;
    let stopped = cx.cri.update_pod(&pod.id, None, Some(of(1, 1))).await.err().context("a stopped pod")?;
    ensure!(stopped.code() == Code::FailedPrecondition, "{stopped}");
    ensure!(proc::all().iter().all(|p| !p.args.contains(&pod.id)), "a process of the stopped pod is left");
    Ok(())
}
