//! Mount propagation in both directions, and mounts of the host that a runtime could unmount by mistake.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::mounts::{PRIVATE, SHARED, SLAVE, privileged, tmpfs, unmount, volume};
use crate::context::Context;
use crate::expect::ensure;
use crate::isolation::command;
use crate::repeat::Repeat;
use crate::runner::{Test, test};
use crate::shapes::ContainerExt as _;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(propagation_private),
        test!(propagation_host_to_container),
        test!(propagation_bidirectional),
        test!(propagation_under_churn).limit(120),
        test!(source_that_is_not_shared),
        test!(detach_in_one_pod_leaves_the_host),
        test!(restarted_csi_driver_leaves_volumes),
        test!(unmount_of_parent_reaches_in),
    ]
}

/// A shared mount of the host; unmounted on drop, with everything below.
pub(super) struct Playground(pub(super) PathBuf);

impl Playground {
    /// Mounts it on a new volume.
    pub(super) fn new(cx: &Context, name: &str) -> Result<Self> {
        let place = cx.volume(name)?;
        tmpfs(&place)?;
        command("mount", &["--make-rshared", &place.display().to_string()])?;
        Ok(Self(place))
    }

    /// A folder on it, which is created if it is missing.
    pub(super) fn path(&self, below: &str) -> Result<PathBuf> {
        let path = self.0.join(below);
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        drop(command("umount", &["--recursive", &self.0.display().to_string()]));
    }
}

async fn propagation_private(cx: Context) -> Result<()> {
    let ground = Playground::new(&cx, "private")?;
    let pod = privileged(&cx).await?;
    let c = cx
        .start(&pod, &cx.sleeper("one").privileged().mount(&ground.path("v")?, "/v", false, PRIVATE))
        .await?;
    tmpfs(&ground.0.join("v/host"))?;
    fs::write(ground.0.join("v/host/file"), "x")?;
    ensure!(cx.cri.exec(&c, &["ls", "/v/host/file"]).await?.code != 0, "a host mount came in");
    cx.cri.sh(&c, "mkdir -p /v/inside && mount -t tmpfs none /v/inside && touch /v/inside/file").await?;
    ensure!(!ground.0.join("v/inside/file").exists(), "a container's mount got out");
    unmount(&ground.0.join("v/host"))
}

async fn propagation_host_to_container(cx: Context) -> Result<()> {
    let ground = Playground::new(&cx, "slave")?;
    let pod = privileged(&cx).await?;
    let c =
        cx.start(&pod, &cx.sleeper("one").privileged().mount(&ground.path("v")?, "/v", false, SLAVE)).await?;
    tmpfs(&ground.0.join("v/host"))?;
    fs::write(ground.0.join("v/host/file"), "x")?;
    cx.cri.sh(&c, "ls /v/host/file").await.context("a host mount must come in")?;
    cx.cri.sh(&c, "mkdir -p /v/inside && mount -t tmpfs none /v/inside && touch /v/inside/file").await?;
    ensure!(!ground.0.join("v/inside/file").exists(), "a container's mount got out");
    unmount(&ground.0.join("v/host"))?;
    ensure!(cx.cri.exec(&c, &["ls", "/v/host/file"]).await?.code != 0, "the host's unmount did not come in");
    Ok(())
}

async fn propagation_bidirectional(cx: Context) -> Result<()> {
    let ground = Playground::new(&cx, "shared")?;
    let pod = privileged(&cx).await?;
    let c = cx
        .start(&pod, &cx.sleeper("one").privileged().mount(&ground.path("v")?, "/v", false, SHARED))
        .await?;
    tmpfs(&ground.0.join("v/host"))?;
    fs::write(ground.0.join("v/host/file"), "x")?;
    cx.cri.sh(&c, "ls /v/host/file").await.context("a host mount must come in")?;
    cx.cri.sh(&c, "mkdir -p /v/inside && mount -t tmpfs none /v/inside && touch /v/inside/file").await?;
    ensure!(ground.0.join("v/inside/file").exists(), "a container's mount must get out");
    cx.cri.stop(&c, 0).await?;
    cx.cri.remove(&c).await?;
    ensure!(ground.0.join("v/inside/file").exists(), "it must outlive its container");
    unmount(&ground.0.join("v/inside"))?;
    unmount(&ground.0.join("v/host"))
}

/// Mounts that the host makes during the creation of containers must neither be lost nor be left behind.
async fn propagation_under_churn(cx: Context) -> Result<()> {
    let ground = Playground::new(&cx, "churn")?;
    let base = ground.path("v")?;
    let pod = privileged(&cx).await?;
    let churn = Repeat::start({
        let base = base.clone();
        move |round| {
            let place = base.join(format!("m{}", round % 7));
            tmpfs(&place)?;
            fs::write(place.join("file"), "x")?;
            unmount(&place)
        }
    });
    let made = async {
        let mut ids = Vec::new();
        for n in 0..12 {
            ids.push(
                cx.start(
                    &pod,
                    &cx.sleeper(&format!("c{n}")).privileged().mount(
                        &base,
                        "/v",
                        false,
                        if n % 2 == 0 { SLAVE } else { SHARED },
                    ),
                )
                .await?,
            );
        }
        Ok::<_, anyhow::Error>(ids)
    }
    .await;
    let rounds = churn.stop()?;
    ensure!(rounds > 5, "the host made only {rounds} mounts meanwhile, so this test shows little");
    tmpfs(&base.join("last"))?;
    fs::write(base.join("last/file"), "x")?;
    for id in made? {
        cx.cri.sh(&id, "ls /v/last/file").await.context("the last mount did not reach a container")?;
        let inside = cx.cri.sh(&id, "grep -c ' /v/m' /proc/mounts || true").await?;
        ensure!(inside == "0", "a container still has {inside} mounts that the host has unmounted");
    }
    unmount(&base.join("last"))
}

async fn source_that_is_not_shared(cx: Context) -> Result<()> {
    let place = cx.volume("private")?;
    tmpfs(&place)?;
    command("mount", &["--make-rprivate", &place.display().to_string()])?;
    let pod = privileged(&cx).await?;
    let tried = async {
        for (kind, name) in [(SHARED, "shared"), (SLAVE, "slave")] {
            let config = cx.sleeper(name).privileged().mount(&place, "/v", false, kind);
            let e = match cx.create(&pod, &config).await {
                Ok(id) => cx.cri.start(&id).await.err().map(anyhow::Error::from),
                Err(e) => Some(e),
            };
            let e = format!(
                "{:#}",
                e.with_context(|| format!("{name} propagation from a private mount was accepted"))?
            );
            ensure!(e.contains("shared") || e.contains("slave"), "the error does not name the cause: {e}");
        }
        Ok(())
    }
    .await;
    unmount(&place)?;
    tried
}

/// Detaching a copy of a shared tree would unmount the host's tree.
async fn detach_in_one_pod_leaves_the_host(cx: Context) -> Result<()> {
    let ground = Playground::new(&cx, "trap")?;
    let base = ground.path("v")?;
    tmpfs(&base.join("other-pods-volume"))?;
    fs::write(base.join("other-pods-volume/file"), "x")?;
    for n in 0..5 {
        let pod = privileged(&cx).await?;
        let c = cx
            .start(&pod, &cx.sleeper(&format!("c{n}")).privileged().mount(&base, "/v", false, SHARED))
            .await?;
        cx.cri.sh(&c, "ls /v/other-pods-volume/file").await?;
        if n % 2 == 0 {
            cx.cri.stop(&c, 0).await?;
            cx.cri.remove(&c).await?;
        }
        cx.cri.drop_pod(&pod.id).await?;
        ensure!(base.join("other-pods-volume/file").exists(), "teardown {n} unmounted the host's volume");
    }
    unmount(&base.join("other-pods-volume"))
}

async fn restarted_csi_driver_leaves_volumes(cx: Context) -> Result<()> {
    let ground = Playground::new(&cx, "kubelet")?;
    let pods = ground.path("pods")?;
    let driver_pod = privileged(&cx).await?;
    let driver =
        |name: &str| cx.sleeper(name).privileged().mount(&ground.0, "/var/lib/kubelet", false, SHARED);
    let first = cx.start(&driver_pod, &driver("driver")).await?;
    cx.cri.sh(&first, "mkdir -p /var/lib/kubelet/pods/a && mount -t tmpfs none /var/lib/kubelet/pods/a && echo data > /var/lib/kubelet/pods/a/file").await?;
    ensure!(pods.join("a/file").exists(), "the driver's mount is not on the host");
    let user = cx.pod().await?;
    let c = volume(&cx, &user, "user", &pods.join("a"), PRIVATE).await?;
    cx.prints(&c, "cat /v/file", "data").await?;
    cx.cri.remove(&first).await?;
    cx.start(&driver_pod, &driver("restarted")).await?;
    ensure!(pods.join("a/file").exists(), "the restart of the driver unmounted another pod's volume");
    cx.cri.drop_pod(&driver_pod.id).await?;
    ensure!(pods.join("a/file").exists(), "the removal of the driver's pod unmounted another pod's volume");
    cx.prints(&c, "cat /v/file", "data").await.context("after the removal of the driver's pod")?;
    cx.cri.drop_pod(&user.id).await?;
    unmount(&pods.join("a"))
}

async fn unmount_of_parent_reaches_in(cx: Context) -> Result<()> {
    let ground = Playground::new(&cx, "parent")?;
    let base = ground.path("v")?;
    tmpfs(&base.join("late"))?;
    let pod = cx.pod().await?;
    let c = volume(&cx, &pod, "one", &base, SLAVE).await?;
    cx.prints(&c, "grep -c ' /v/late ' /proc/mounts", "1").await?;
    unmount(&base.join("late"))?;
    cx.prints(&c, "grep -c ' /v/late ' /proc/mounts || true", "0")
        .await
        .context("the unmount did not reach the container")?;
    Ok(())
}
