//! Kills and restarts copepod and kubelet while pods run, and then checks kubelet's log and metrics.

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::view;
use super::{Check, Rig, check};
use crate::expect::ensure;
use crate::wait::{self, secs};

/// The checks in the order they run.
pub(crate) fn all() -> Vec<Check> {
    vec![
        check!(kubelet_logged_nothing_bad_so_far),
        check!(copepod_killed_under_kubelet),
        check!(copepod_restarted_under_kubelet),
        check!(kubelet_restarted_on_copepod),
        check!(both_killed),
        check!(no_hazard_in_the_summary_loop),
    ]
}

/// Parts of the lines that kubelet logs when a runtime fails.
const BAD: [&str; 21] = [
    "GenericPLEG: Unable to retrieve pods",
    "pleg was last seen active",
    "Event channel is full",
    "from runtime service failed",
    "from image service failed",
    // It does not log NotFound, which is the right reply for a sandbox that was removed since it was listed.
    "PodSandboxStatus of sandbox for pod",
    "CRI violation",
    "Error syncing pod, skipping",
    "CreatePodSandbox for pod failed",
    "Container termination failed with gracePeriod",
    "Kill container failed",
    "Failed to stop sandbox",
    "Multiple sandboxes are ready",
    "Housekeeping took longer",
    "getPodContainerStatuses for pod failed",
    "verify ContainerStatus failed",
    "viction manager: failed to get summary stats",
    "Failed to create legacy symbolic link",
    "panic: ",
    "Observed a panic",
    "Failed to remove container",
];

/// Pods that cause errors on purpose, and the image that is missing at first. Lines that name them are not counted.
const PROVOKED: [&str; 5] =
    ["wrong-image-node1", "comes-later", "probe-fails-node1", "waits-node1", "overlaid-node1"];

/// Pods whose manifests were removed before copepod was first killed.
const GONE: [&str; 3] = ["waits-node1", "probe-fails-node1", "graceful-node1"];

/// kubelet's line about a call that it cancelled itself. A pod's sync waits for kubelet's next relist. If the manifest
/// is removed meanwhile, kubelet cancels that sync and starts it anyway; its first call, Version, then fails without
/// being sent.
fn cancelled_by_kubelet(line: &str) -> bool {
    line.contains("Version from runtime service failed") && line.contains("desc = context canceled")
}

/// kubelet's line about the call PodSandboxStats without an id, with which it finds out at its start, if the gate
/// PodAndContainerStatsFromCRI is on, whether the runtime has this call. NotFound is the right reply.
fn probe_of_kubelet(line: &str) -> bool {
    line.contains("PodSandbox from runtime service failed") && line.ends_with("podSandboxID=\"\"")
}

/// kubelet's lines about its own time limits, which an emulated machine exceeds: of its housekeeping, and of probes.
fn late_on_a_slow_machine(line: &str) -> bool {
    wait::is_slow()
        && (line.contains("Housekeeping took longer than expected")
            || line.contains("ExecSync cmd from runtime service failed")
                && line.contains("did not end within"))
}

/// kubelet's lines about a container, or a link to its log, that its garbage collection wanted to remove and another of its
/// threads had removed. Before a removal it asks for the status, to which NotFound is the right reply.
fn is_gone_already(line: &str) -> bool {
    line.contains("Failed to remove container")
        && (line.contains("failed to get container status") && line.contains("code = NotFound")
            || line.contains("log dead symlink") && line.contains("no such file or directory"))
}

/// Fails if a part of kubelet's log has lines of [`BAD`].
pub(crate) fn has_no_bad_lines(log: &str) -> Result<()> {
    let bad: Vec<&str> = log
        .lines()
        .filter(|l| BAD.iter().any(|b| l.contains(b)))
        .filter(|l| !PROVOKED.iter().any(|p| l.contains(p)))
        // kubelet queries a container that it has just removed once more; NotFound is the right reply.
        .filter(|l| {
            !(l.contains("ContainerStatus from runtime service failed") && l.contains("code = NotFound"))
        })
        .filter(|l| !cancelled_by_kubelet(l) && !probe_of_kubelet(l) && !late_on_a_slow_machine(l))
        .filter(|l| !is_gone_already(l))
        .take(10)
        .collect();
    ensure!(bad.is_empty(), "kubelet's log says\n{}", bad.join("\n"));
    Ok(())
}

async fn kubelet_logged_nothing_bad_so_far(rig: &Rig) -> Result<()> {
    let log = rig.kubelet.log();
    has_no_bad_lines(&log)?;
    let cancelled = log.lines().filter(|l| cancelled_by_kubelet(l)).count();
    // Of the pod whose volume is refused.
    let refused =
        log.lines().filter(|l| l.contains("CreateContainer") && l.contains("pod default/overlaid-node1"));
    let refused = refused.filter(|l| l.contains("from runtime service failed")).count();
    let metrics = rig.kubelet.metrics()?;
    let errors: Vec<&str> = metrics
        .lines()
        .filter(|l| l.starts_with("kubelet_runtime_operations_errors_total") && !l.ends_with(" 0"))
        // Errors of the missing image, of probes while their container restarts, of pods before there is a network,
        // and of statuses of objects that are being removed.
        .filter(|l| {
            !["pull_image", "exec_sync", "run_podsandbox", "\"container_status\"", "\"podsandbox_status\""]
                .iter()
                .any(|o| l.contains(o))
        })
        .filter(|l| !(l.contains("\"version\"") && l.ends_with(&format!(" {cancelled}"))))
        .filter(|l| !(l.contains("\"create_container\"") && l.ends_with(&format!(" {refused}"))))
        .collect();
    ensure!(errors.is_empty(), "runtime operations failed: {errors:?}");
    Ok(())
}

/// No container was restarted, and kubelet still works.
async fn same_afterwards(rig: &Rig, before: &[(String, Vec<view::Identity>)]) -> Result<()> {
    // Time for several relists, probes and a housekeeping round, after which kubelet would restart a container. On a
    // busy machine there are fewer of them, which makes the check weaker but cannot fail it.
    tokio::time::sleep(secs(12)).await;
    let after = wait::until("kubelet to list all pods again", secs(60), || async {
        let now = view::identities(rig).await?;
        ensure!(
            // A kubelet that was restarted gets the statuses of containers pod by pod.
            now.len() == before.len()
                && now.iter().zip(before).all(|(now, before)| now.1.len() == before.1.len())
                && now.iter().all(|(_, c)| c.iter().all(|c| !c.1.is_empty())),
            "of {} pods kubelet lists {now:?}",
            before.len()
        );
        Ok(Some(now))
    })
    .await?;
    ensure!(after == before, "containers changed from\n{before:?}\nto\n{after:?}");
    view::ready(rig, "probes").await.context("probes afterwards")?;
    Ok(())
}

/// Waits until every pod that should be running is, before something is killed.
async fn settled(rig: &Rig) -> Result<Vec<(String, Vec<view::Identity>)>> {
    for name in [
        "guaranteed",
        "burstable",
        "best-effort",
        "localhost",
        "init",
        "sidecar",
        "probes",
        "volumes",
        "on-host",
        "host-port",
        "logs",
        "rotation",
    ] {
        view::ready(rig, name).await.with_context(|| format!("{name} before the kill"))?;
    }
    view::identities(rig).await
}

async fn copepod_killed_under_kubelet(rig: &Rig) -> Result<()> {
    let before = settled(rig).await?;
    rig.node.kill9()?;
    // Meanwhile kubelet's calls fail; how many there are does not matter.
    tokio::time::sleep(secs(4)).await;
    rig.node.launch().await?;
    same_afterwards(rig, &before).await
}

async fn copepod_restarted_under_kubelet(rig: &Rig) -> Result<()> {
    let before = settled(rig).await?;
    rig.node.restart().await?;
    same_afterwards(rig, &before).await
}

async fn kubelet_restarted_on_copepod(rig: &Rig) -> Result<()> {
    let before = settled(rig).await?;
    rig.kubelet.kill(Signal::SIGTERM)?;
    rig.kubelet.launch().await?;
    same_afterwards(rig, &before).await
}

async fn both_killed(rig: &Rig) -> Result<()> {
    let before = settled(rig).await?;
    rig.kubelet.kill(Signal::SIGKILL)?;
    rig.node.kill9()?;
    rig.node.launch().await?;
    rig.kubelet.launch().await?;
    same_afterwards(rig, &before).await
}

/// Once the errors of the kills have ceased: two rounds of the summary, a garbage collection, and no bad line.
async fn no_hazard_in_the_summary_loop(rig: &Rig) -> Result<()> {
    // kubelet may log errors for a while after the kills of earlier checks.
    let start = wait::until("three seconds without a bad line in kubelet's log", secs(90), || async {
        let start = rig.kubelet.log().len();
        tokio::time::sleep(secs(3)).await;
        has_no_bad_lines(rig.kubelet.log().get(start..).unwrap_or_default())?;
        Ok(Some(start))
    })
    .await?;
    // Two rounds of the summary, which kubelet gets every ten seconds; nothing bad may be logged.
    tokio::time::sleep(secs(22)).await;
    rig.kubelet.summary()?;
    // kubelet collects garbage once a minute, and right after its start it does not know all pods.
    wait::until("kubelet to remove the sandboxes of deleted pods", secs(90), || async {
        let pods = rig.node.cri.pods(None).await?;
        let left = pods.iter().find(|p| p.metadata.as_ref().is_some_and(|m| GONE.contains(&m.name.as_str())));
        ensure!(left.is_none(), "{left:?} is listed");
        Ok(Some(()))
    })
    .await?;
    let log = rig.kubelet.log();
    let fresh = log.get(start..).unwrap_or_default();
    has_no_bad_lines(fresh)?;
    let skipped: Vec<&str> = fresh.lines().filter(|l| l.contains("Skipping pod synchronization")).collect();
    ensure!(skipped.is_empty(), "kubelet waits for the runtime: {skipped:?}");
    Ok(())
}
