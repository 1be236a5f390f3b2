//! Volumes on Bidirectional volumes: the container has both, and the host does not see the nested one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::escape::{image_with, sleeper};
use super::mounts::{PRIVATE, SHARED, SLAVE, privileged, tmpfs, unmount};
use crate::context::Context;
use crate::fixture::Fixture;
use crate::runner::{Test, test};
use crate::shapes::ContainerExt as _;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(token_below_the_hosts_run),
        test!(mounts_of_the_host_pass_below_it),
        test!(on_a_mount_below_it_is_refused),
        test!(while_the_host_mounts_on_it).limit(120),
    ]
}

/// Mount points at or below a folder of the host.
fn mounted_below(folder: &Path) -> Result<Vec<String>> {
    let below = folder.display().to_string();
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.filter(|point| Path::new(point).starts_with(&below)).map(str::to_owned).collect())
}

/// A shared folder of the host with a mount in it, and a volume with a token.
fn volumes(cx: &Context) -> Result<(PathBuf, PathBuf)> {
    let (run, token) = (cx.volume("run")?, cx.volume("token")?);
    tmpfs(&run)?;
    tmpfs(&run.join("sub"))?;
    fs::write(run.join("sub/file"), "the host's")?;
    fs::write(token.join("token"), "secret")?;
    Ok((run, token))
}

/// Unmounts everything and returns the first error.
fn cleaned(run: &Path, looked: Result<()>) -> Result<()> {
    let mut gone = Ok(());
    for point in mounted_below(run)?.iter().rev() {
        gone = gone.and(unmount(Path::new(point)));
    }
    looked.and(gone)
}

/// Every pod of kubelet has such a volume, and in many images /var/run is a symlink to /run.
async fn token_below_the_hosts_run(cx: Context) -> Result<()> {
    let (run, token) = volumes(&cx)?;
    let file = cx.volume("file")?.join("one");
    fs::write(&file, "one file")?;
    let looked = async {
        let linked = image_with(&cx, json!({}), |w| w.symlink("var/run", "/run")).await?;
        let pod = privileged(&cx).await?;
        let before = mounted_below(&run)?;
        for (name, image, top) in
            [("linked", linked.as_str(), "/run"), ("plain", &Fixture::image("busybox"), "/var/run")]
        {
            let place = "/var/run/secrets/kubernetes.io/serviceaccount";
            let config = sleeper(name, image)
                .privileged()
                .mount(&run, top, false, SHARED)
                .mount(&token, place, true, PRIVATE)
                .mount(&file, "/var/run/one", true, PRIVATE);
            let id = cx.start(&pod, &config).await.with_context(|| format!("{name}, {top}"))?;
            let seen = cx.cri.sh(&id, &format!("cat {place}/token /var/run/one {top}/sub/file")).await;
            ensure!(seen.with_context(|| name.to_owned())? == "secretone filethe host's");
            let written = cx.cri.exec(&id, &["/bin/sh", "-c", &format!("echo x > {place}/token")]).await?;
            ensure!(written.code != 0, "a read-only volume was written");
            ensure!(mounted_below(&run)? == before, "on the host: {:?}", mounted_below(&run)?);
            ensure!(fs::read_dir(run.join("secrets/kubernetes.io/serviceaccount"))?.next().is_none());
            cx.cri.stop(&id, 0).await?;
            cx.cri.remove(&id).await?;
            ensure!(mounted_below(&run)? == before, "after its removal: {:?}", mounted_below(&run)?);
            ensure!(fs::read_to_string(run.join("sub/file"))? == "the host's");
        }
        Ok(())
    }
    .await;
    cleaned(&run, looked)
}

async fn mounts_of_the_host_pass_below_it(cx: Context) -> Result<()> {
    let (run, token) = volumes(&cx)?;
    let looked = async {
        let pod = privileged(&cx).await?;
        let config = cx.sleeper("one").privileged().mount(&run, "/run", false, SHARED).mount(
            &token,
            "/run/token",
            false,
            SLAVE,
        );
        let id = cx.start(&pod, &config).await?;
        for (place, seen) in [(run.join("later"), "/run/later"), (run.join("sub/later"), "/run/sub/later")] {
            tmpfs(&place)?;
            fs::write(place.join("file"), "later")?;
            ensure!(cx.cri.sh(&id, &format!("cat {seen}/file")).await? == "later", "{seen}");
            unmount(&place)?;
            ensure!(cx.cri.sh(&id, &format!("ls {seen}")).await?.is_empty(), "{seen} is still mounted");
        }
        // The container's mounts reach the host.
        cx.cri
            .sh(&id, "mkdir /run/inside && mount -t tmpfs none /run/inside && echo x > /run/inside/file")
            .await?;
        ensure!(fs::read_to_string(run.join("inside/file"))? == "x\n", "not seen on the host");
        cx.cri.sh(&id, "umount /run/inside").await?;
        ensure!(!run.join("inside/file").exists());
        ensure!(cx.cri.sh(&id, "cat /run/token/token").await? == "secret");
        // The other volume receives mounts on its own source.
        tmpfs(&token.join("later"))?;
        fs::write(token.join("later/file"), "later")?;
        let seen = cx.cri.sh(&id, "cat /run/token/later/file").await;
        unmount(&token.join("later"))?;
        ensure!(seen? == "later");
        Ok(())
    }
    .await;
    cleaned(&run, looked)
}

/// That mount belongs to the host too, and only the volume's top mount is kept separate.
async fn on_a_mount_below_it_is_refused(cx: Context) -> Result<()> {
    let (run, token) = volumes(&cx)?;
    let looked = async {
        let pod = privileged(&cx).await?;
        let before = mounted_below(&run)?;
        let config = cx.sleeper("one").privileged().mount(&run, "/run", false, SHARED).mount(
            &token,
            "/run/sub/token",
            false,
            PRIVATE,
        );
        let refused = cx.start(&pod, &config).await.err().context("it was mounted on the host's mount")?;
        ensure!(format!("{refused:#}").contains("/run/sub/token"), "{refused:#}");
        ensure!(mounted_below(&run)? == before, "on the host: {:?}", mounted_below(&run)?);
        Ok(())
    }
    .await;
    cleaned(&run, looked)
}

/// With a host mount at any moment: a container sees exactly what is mounted when it runs.
async fn while_the_host_mounts_on_it(cx: Context) -> Result<()> {
    let (run, token) = volumes(&cx)?;
    let (place, stop) = (run.join("churn"), Arc::new(AtomicBool::new(false)));
    fs::create_dir(&place)?;
    let churn = std::thread::spawn({
        let (place, stop) = (place.clone(), Arc::clone(&stop));
        move || -> Result<usize> {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                tmpfs(&place)?;
                unmount(&place)?;
                rounds += 1;
                // With pauses, because a create is repeated only a limited number of times.
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
            // Mounted at the end, before the check.
            tmpfs(&place)?;
            fs::write(place.join("file"), "mounted")?;
            Ok(rounds)
        }
    });
    let pod = privileged(&cx).await?;
    let mut made = Vec::new();
    let looked = async {
        for n in 0..12 {
            let config = cx.sleeper(&format!("c{n}")).privileged().mount(&run, "/run", false, SHARED).mount(
                &token,
                "/run/token",
                false,
                PRIVATE,
            );
            made.push(cx.start(&pod, &config).await?);
        }
        Ok::<_, anyhow::Error>(())
    }
    .await;
    stop.store(true, Ordering::Relaxed);
    let rounds = churn.join().map_err(|_| anyhow::anyhow!("the thread that mounts panicked"))?;
    let looked = async {
        looked?;
        ensure!(rounds? > 12, "the host has mounted too little");
        for id in &made {
            let seen = cx.cri.sh(id, "cat /run/churn/file /run/token/token").await?;
            ensure!(seen == "mountedsecret", "{id} sees {seen:?}");
        }
        unmount(&place)?;
        for id in &made {
            ensure!(cx.cri.sh(id, "ls /run/churn").await?.is_empty(), "{id} still has it mounted");
        }
        Ok(())
    }
    .await;
    cleaned(&run, looked)
}
