//! Five mistakes of a runtime that make kubelet fail or destroy something; copepod must make none of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use cri_api::v1::ContainerState;

use crate::context::Context;
use crate::driver::Driver;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};
use crate::wait::secs;
use crate::{cgroup, proc};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(log_path_is_absolute).ours(),
        test!(no_cgroup_beside_the_pods).ours(),
        test!(no_message_is_absent),
        test!(mount_points_exist_and_stay),
        test!(every_listed_container_has_a_status).ours(),
    ]
}

/// kubelet removes `<log_path>*`; an empty path would match its working directory.
async fn log_path_is_absolute(cx: Context) -> Result<()> {
    for (directory, path) in [("", ""), ("", "x/0.log"), ("logs", "")] {
        let mut config = cx.pod_config();
        config.log_directory = if directory.is_empty() {
            String::new()
        } else {
            cx.node.paths.logs.join(directory).display().to_string()
        };
        let pod = cx.pod_of(config).await?;
        let id = cx.start(&pod, &cx.sleeper("one").with(|c| c.log_path = path.to_owned())).await?;
        let created = cx.create(&pod, &cx.sleeper("two").with(|c| c.log_path = path.to_owned())).await?;
        cx.cri.stop(&id, 0).await?;
        for id in [id, created] {
            let shown = cx.cri.container(&id).await?.log_path;
            ensure!(
                shown.starts_with('/') && shown.len() > 1 && !shown.ends_with('/'),
                "log_path is `{shown}` for `{directory}` and `{path}`"
            );
        }
        cx.cri.drop_pod(&pod.id).await?;
    }
    Ok(())
}

/// kubelet kills the processes of any cgroup directly below a QoS level whose name contains "pod", as "copepod"
/// does.
async fn no_cgroup_beside_the_pods(cx: Context) -> Result<()> {
    let qos = shapes::below_parent("besteffort");
    let checked = async {
        let mut config = cx.pod_config().own_network();
        let parent = match cgroup::driver() {
            Driver::Cgroupfs => format!("{qos}/podhazard"),
            Driver::Systemd => {
                let name = qos.rsplit('/').next().unwrap_or_default().trim_end_matches(".slice");
                format!("{qos}/{name}-podhazard.slice")
            }
        };
        config.linux.get_or_insert_default().cgroup_parent.clone_from(&parent);
        let pod = cx.pod_of(config).await?;
        let id = cx.start(&pod, &cx.sleeper("one")).await?;
        let below: BTreeSet<String> = cgroup::all(|p| p.starts_with(&qos));
        for path in &below {
            let (_, path) = path.split_once(':').context("path")?;
            let fits = path == qos
                || path == parent
                || path == cgroup::leaf(&parent, &pod.id, &id)
                || path.starts_with(&format!("{parent}/{}", pod.id))
                || cgroup::driver() == Driver::Systemd && path.starts_with(&format!("{parent}/copepod-"));
            ensure!(
                fits,
                "a cgroup below kubelet's QoS level belongs neither to the pod nor to its container: {path}"
            );
        }
        let shim = cx.node.shim(&pod.id)?.pid;
        let text = std::fs::read_to_string(format!("/proc/{shim}/cgroup"))?;
        ensure!(!text.contains(&qos), "the shim is below a QoS level, where kubelet kills it: {text}");
        cx.cri.drop_pod(&pod.id).await?;
        Ok(())
    }
    .await;
    cgroup::destroy(&qos);
    checked
}

/// Messages that kubelet dereferences without a check.
async fn no_message_is_absent(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let created = cx.create(&pod, &cx.sleeper("created")).await?;
    let running = cx.start(&pod, &cx.sleeper("running")).await?;
    let exited = cx.start(&pod, &cx.shell("exited", "true")).await?;
    cx.cri.wait_exit(&exited, secs(10)).await?;
    let list = cx.cri.list_stats(None).await?;
    ensure!(
        list.iter().any(|s| s.attributes.as_ref().is_some_and(|a| a.id == running)),
        "the running one has no stats"
    );
    for stats in &list {
        let attributes = stats.attributes.as_ref().context("stats without attributes")?;
        ensure!(
            attributes.metadata.is_some() && !attributes.id.is_empty(),
            "listed stats have {attributes:?}"
        );
    }
    for id in [&created, &running, &exited] {
        let answer = cx.cri.stats(id).await;
        ensure!(
            id != &running || matches!(answer, Ok(Some(_))),
            "of a running container the stats are {answer:?}"
        );
        if let Ok(Some(stats)) = answer {
            ensure!(
                stats.attributes.as_ref().is_some_and(|a| a.metadata.is_some()),
                "ContainerStats of {id} have no metadata: {stats:?}"
            );
        }
        let s = cx.cri.container(id).await?;
        ensure!(
            s.metadata.is_some() && s.image.is_some() && !s.image_ref.is_empty() && s.created_at > 0,
            "a field is missing in the status {s:?}"
        );
    }
    let info = cx.cri.image_fs().await?;
    ensure!(!info.image_filesystems.is_empty(), "no image file system: {info:?}");
    for fs in info.image_filesystems.iter().chain(&info.container_filesystems) {
        ensure!(
            fs.used_bytes.is_some() && fs.inodes_used.is_some() && fs.fs_id.is_some(),
            "a field is missing in the file system {fs:?}"
        );
    }
    for pod in cx.cri.pods(None).await? {
        ensure!(pod.metadata.is_some() && pod.created_at > 0, "a field is missing in the listed pod {pod:?}");
    }
    Ok(())
}

/// If stat() of the mount point fails, kubelet's whole summary fails.
async fn mount_points_exist_and_stay(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let place = cx
        .cri
        .stats(&id)
        .await?
        .and_then(|s| s.writable_layer)
        .and_then(|l| l.fs_id)
        .context("no writable layer")?
        .mountpoint;
    let info = cx.cri.image_fs().await?;
    let image = info
        .image_filesystems
        .first()
        .and_then(|f| f.fs_id.clone())
        .context("no image file system")?
        .mountpoint;
    ensure!(Path::new(&place).exists() && Path::new(&image).exists(), "{place} or {image} does not exist");
    cx.cri.drop_pod(&pod.id).await?;
    ensure!(Path::new(&place).exists(), "{place} was removed with its container");
    ensure!(cx.node.is_foreign() || !place.contains(&id), "{place} belongs to one container");
    Ok(())
}

/// If the status of a listed container fails, kubelet cannot remove it and stops collecting images.
async fn every_listed_container_has_a_status(cx: Context) -> Result<()> {
    let name = Fixture::image("busybox-docker");
    let pod = cx.pod().await?;
    let sleeping = |n: &str| shapes::container(n, &name, &["/bin/sleep", "10000"]);
    let running = cx.start(&pod, &sleeping("running")).await?;
    cx.create(&pod, &sleeping("created")).await?;
    let dead = cx.start(&pod, &shapes::container("dead", &name, &["/bin/true"])).await?;
    cx.cri.wait_exit(&dead, secs(10)).await?;
    cx.cri.remove_image(&name).await?;
    proc::signal(cx.node.shim(&pod.id)?.pid, nix::sys::signal::Signal::SIGKILL)?;
    // At any moment until the daemon has noticed the shim's death.
    let end = Instant::now() + secs(20);
    loop {
        all_listed_have_a_status(&cx).await?;
        if cx.cri.container(&running).await?.state() == ContainerState::ContainerExited {
            break;
        }
        ensure!(Instant::now() < end, "the container of a dead shim is shown as running for 20 s");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    cx.cri.container(&running).await.context("the status of a container without its image and shim")?;
    // While containers come and go.
    let other = cx.pod_of(cx.pod_config().label("second", "pod")).await?;
    let churn = {
        let cx = cx.clone();
        tokio::spawn(async move {
            for n in 0..15 {
                let id = cx.start(&other, &cx.sleeper(&format!("c{n}"))).await?;
                cx.cri.remove(&id).await?;
            }
            Ok::<_, anyhow::Error>(())
        })
    };
    while !churn.is_finished() {
        all_listed_have_a_status(&cx).await?;
    }
    churn.await?
}

/// Every container in the list has a status, unless it was removed in between.
async fn all_listed_have_a_status(cx: &Context) -> Result<()> {
    for listed in cx.cri.containers(None).await? {
        if let Err(e) = cx.cri.container(&listed.id).await {
            let still = cx.cri.containers(None).await?.iter().any(|c| c.id == listed.id);
            ensure!(!still, "container {} is listed but has no status: {e:#}", listed.id);
        }
    }
    Ok(())
}
