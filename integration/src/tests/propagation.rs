//! Mount propagation in both directions, and mounts of the host that a runtime could unmount by mistake.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::mounts::{PRIVATE, SHARED, SLAVE, privileged, tmpfs, unmount, volume};
use crate::context::Context;
use crate::isolation::command;
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

/// A shared mount for a test; `close` unmounts it with everything below.
struct Playground(PathBuf);

impl Playground {
    fn new(cx: &Context, name: &str) -> Result<Self> {
        let place = cx.volume(name)?;
        tmpfs(&place)?;
        command("mount", &["--make-rshared", &place.display().to_string()])?;
        Ok(Self(place))
    }
    fn path(&self, below: &str) -> Result<PathBuf> {
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
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let churn = {
        let (stop, base) = (std::sync::Arc::clone(&stop), base.clone());
        std::thread::spawn(move || -> Result<u32> {
            let mut n = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let place = base.join(format!("m{}", n % 7));
                tmpfs(&place)?;
                fs::write(place.join("file"), "x")?;
                unmount(&place)?;
                n += 1;
            }
            tmpfs(&base.join("last"))?;
            fs::write(base.join("last/file"), "x")?;
            Ok(n)
        })
    };
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
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let rounds = churn.join().map_err(|_| anyhow::anyhow!("the churning thread panicked"))??;
    ensure!(rounds > 5, "only {rounds} mounts were made meanwhile");
    for id in made? {
        cx.cri.sh(&id, "ls /v/last/file").await.context("the last mount did not reach a container")?;
        let inside = cx.cri.sh(&id, "grep -c ' /v/m' /proc/mounts || true").await?;
        ensure!(inside == "0", "{inside} mounts stayed in a container that the host has taken away");
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
            ensure!(e.contains("shared") || e.contains("slave"), "{e}");
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
    ensure!(cx.cri.sh(&c, "cat /v/file").await? == "data");
    for n in 0..3 {
        if n == 1 {
            cx.cri.drop_pod(&driver_pod.id).await?;
            break;
        }
        cx.cri.remove(&first).await?;
        cx.start(&driver_pod, &driver(&format!("driver{n}"))).await?;
        ensure!(pods.join("a/file").exists(), "restart {n} of the driver unmounted another pod's volume");
    }
    ensure!(
        pods.join("a/file").exists() && cx.cri.sh(&c, "cat /v/file").await? == "data",
        "the driver's end took the volume away"
    );
    cx.cri.drop_pod(&user.id).await?;
    unmount(&pods.join("a"))
}

async fn unmount_of_parent_reaches_in(cx: Context) -> Result<()> {
    let ground = Playground::new(&cx, "parent")?;
    let base = ground.path("v")?;
    tmpfs(&base.join("late"))?;
    let pod = cx.pod().await?;
    let c = volume(&cx, &pod, "one", &base, SLAVE).await?;
    ensure!(cx.cri.sh(&c, "grep -c ' /v/late ' /proc/mounts").await? == "1");
    unmount(&base.join("late"))?;
    ensure!(
        cx.cri.sh(&c, "grep -c ' /v/late ' /proc/mounts || true").await? == "0",
        "the unmount did not reach the container"
    );
    Ok(())
}
