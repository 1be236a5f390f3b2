//! A root that accepts no writes: full, out of inodes, or read-only after a disk error. Running pods continue and
//! can be listed and stopped; Status reports the problem; a restarted daemon serves what it can read.

use std::fs;

use anyhow::{Context as _, Result};
use cri_api::v1::{ContainerState, PodSandboxState};

use crate::context::{Context, Pod};
use crate::disk::Disk;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::shapes::PodExt as _;
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(root_without_space).own().limit(120),
        test!(root_without_inodes).own().limit(120),
        test!(root_that_becomes_read_only).own().limit(120),
        test!(start_on_a_read_only_root).own().limit(120),
    ]
}

/// The node with its root on a separate file system.
async fn on(cx: &Context, inodes: u32) -> Result<Disk> {
    cx.node.terminate().await?;
    let disk = Disk::mount(&cx.node.paths.root, 64, inodes)?;
    cx.node.launch().await?;
    Ok(disk)
}

/// Restores the original root.
async fn off(cx: &Context, disk: Disk) -> Result<()> {
    cx.node.kill9()?;
    drop(disk);
    cx.node.launch().await
}

/// A pod with a network, and a container that exits with code 7 on SIGTERM.
async fn running(cx: &Context) -> Result<(Pod, String)> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let line = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let id = cx.start(&pod, &cx.shell("main", line)).await?;
    cx.said(&id, "ready").await?;
    Ok((pod, id))
}

/// Waits until RuntimeReady has this reason, and a message with this word.
async fn reason(cx: &Context, wanted: &str, word: &str) -> Result<()> {
    wait::until(&format!("RuntimeReady to have the reason {wanted}"), secs(30), || async {
        let found = cx.cri.condition("RuntimeReady").await?;
        // kubelet skips pod deletions while the condition is false, so a full disk would never be freed.
        ensure!(found.status == (wanted == "RootFull"), "it is {found:?}");
        ensure!(found.reason == wanted && found.message.contains(word), "it is {found:?}");
        Ok(Some(()))
    })
    .await
}

/// All calls for a running pod.
async fn serves(cx: &Context, pod: &Pod, id: &str) -> Result<()> {
    wait::until("an exec to work", secs(10), || async { cx.exec_works(id).await.map(Some) }).await?;
    cx.pod_is_shown(&pod.id, PodSandboxState::SandboxReady).await?;
    cx.is_shown(id, ContainerState::ContainerRunning).await?;
    let stats = cx.cri.list_stats(None).await?;
    ensure!(
        stats.iter().any(|it| it.attributes.as_ref().is_some_and(|a| a.id == id)),
        "ListContainerStats has no stats of container {id}: {stats:?}"
    );
    Ok(())
}

async fn full(cx: Context, inodes: bool) -> Result<()> {
    let disk = on(&cx, if inodes { 2048 } else { 16384 }).await?;
    let outcome = async {
        let (pod, id) = running(&cx).await?;
        let condition = cx.cri.condition("RuntimeReady").await?;
        ensure!(condition.status, "on a disk with space: {condition:?}");
        if inodes {
            disk.fill_inodes()?;
        } else {
            disk.fill_bytes()?;
        }
        reason(&cx, "RootFull", "full").await?;
        serves(&cx, &pod, &id).await.context("on a full root")?;
        cx.node.crash().await.context("start on a full root")?;
        reason(&cx, "RootFull", "full").await.context("of a daemon that started on a full root")?;
        serves(&cx, &pod, &id).await.context("after a start on a full root")?;
        cx.cri.stop(&id, 10).await.context("StopContainer on a full root")?;
        cx.exited_with(&id, 7).await?;
        cx.cri.stop_pod(&pod.id).await.context("StopPodSandbox on a full root")?;
        disk.free()?;
        wait::until("RuntimeReady to be true without a reason once there is space", secs(30), || async {
            let condition = cx.cri.condition("RuntimeReady").await?;
            Ok((condition.status && condition.reason.is_empty()).then_some(()))
        })
        .await?;
        cx.cri.drop_pod(&pod.id).await?;
        let again = running(&cx).await.context("a new pod once there is space")?;
        Ok(cx.cri.drop_pod(&again.0.id).await?)
    }
    .await;
    off(&cx, disk).await?;
    outcome
}

async fn root_without_space(cx: Context) -> Result<()> {
    full(cx, false).await
}

async fn root_without_inodes(cx: Context) -> Result<()> {
    full(cx, true).await
}

/// The error occurs while the daemon runs: no call may be blocked by a failed write.
async fn root_that_becomes_read_only(cx: Context) -> Result<()> {
    let disk = on(&cx, 16384).await?;
    let (pod, id) = running(&cx).await?;
    if !disk.abort()? {
        println!("      {}: an ext4 in use cannot be read either after an error of this kernel", cx.name);
        return lost(&cx, disk, &pod).await;
    }
    let outcome = async {
        reason(&cx, "RootReadOnly", "read-only").await?;
        serves(&cx, &pod, &id).await?;
        let refused = cx.cri.run_pod(&cx.pod_config()).await.err().context("a pod on a read-only root")?;
        ensure!(refused.message().contains("read-only"), "the refusal does not give the reason: {refused}");
        ends(&cx, &pod, &id).await
    }
    .await;
    outcome.and(off(&cx, disk).await)
}

/// The root can be neither read nor written: Status says so, and nothing new is begun. What the disk holds is enough to
/// end the pod once it is mounted again.
async fn lost(cx: &Context, disk: Disk, pod: &Pod) -> Result<()> {
    reason(cx, "RootBroken", "cannot be written").await?;
    let refused = cx.cri.run_pod(&cx.pod_config()).await.err().context("a pod on a lost root")?;
    ensure!(
        refused.message().contains("cannot be written"),
        "the refusal does not give the reason: {refused}"
    );
    cx.node.kill9()?;
    let disk = disk.copied()?;
    cx.node.launch().await.context("start on what the lost disk held")?;
    let outcome = async {
        cx.pod_is_shown(&pod.id, PodSandboxState::SandboxReady).await?;
        cx.cri.drop_pod(&pod.id).await.context("the pod of a lost disk")
    }
    .await;
    outcome.and(off(cx, disk).await)
}

/// The error occurs while there is no daemon: it must start on a root that it can read but not write.
async fn start_on_a_read_only_root(cx: Context) -> Result<()> {
    let disk = on(&cx, 16384).await?;
    let outcome = async {
        let (pod, id) = running(&cx).await?;
        let (other, kept) = running(&cx).await?;
        cx.node.kill9()?;
        ensure!(disk.abort()?, "the root cannot be read");
        cx.node.launch().await.context("start on a read-only root")?;
        let condition = cx.cri.condition("RuntimeReady").await?;
        ensure!(
            !condition.status && condition.reason == "RootReadOnly",
            "right after a start on a read-only root: {condition:?}"
        );
        for (pod, id) in [(&pod, &id), (&other, &kept)] {
            serves(&cx, pod, id).await?;
        }
        for answer in [
            cx.cri.run_pod(&cx.pod_config()).await,
            cx.cri.create(&pod.id, &cx.sleeper("new"), &pod.config).await,
        ] {
            let refused = answer.err().context("something new on a read-only root")?;
            ensure!(
                refused.message().contains("read-only"),
                "the refusal does not give the reason: {refused}"
            );
        }
        let log = cx.cri.container(&id).await?.log_path;
        fs::rename(&log, format!("{log}.old"))?;
        cx.cri.reopen_log(&id).await.context("ReopenContainerLog")?;
        ends(&cx, &pod, &id).await?;
        // A further start, with a pod that has ended and whose exit could not be recorded.
        cx.node.crash().await?;
        wait::until("the exit to be known again", secs(10), || async {
            Ok((cx.cri.container(&id).await?.state() == ContainerState::ContainerExited).then_some(()))
        })
        .await?;
        serves(&cx, &other, &kept).await?;
        ends(&cx, &other, &kept).await
    }
    .await;
    outcome.and(off(&cx, disk).await)
}

/// StopContainer and StopPodSandbox end all processes of a pod although nothing can be recorded.
async fn ends(cx: &Context, pod: &Pod, id: &str) -> Result<()> {
    let pid = cx.pid(id).await?;
    cx.cri.stop(id, 10).await.context("StopContainer")?;
    cx.exited_with(id, 7).await?;
    cx.cri.stop_pod(&pod.id).await.context("StopPodSandbox")?;
    cx.pod_is_shown(&pod.id, PodSandboxState::SandboxNotready).await?;
    ensure!(!crate::proc::alive(pid), "the container's process {pid} is alive after StopPodSandbox");
    // A removal that is impossible fails with a reason and does not hang.
    let removed =
        cx.cri.remove_pod(&pod.id).await.err().context("a record was removed from a read-only disk")?;
    ensure!(removed.message().contains("ead-only"), "the refusal does not give the reason: {removed}");
    Ok(())
}
