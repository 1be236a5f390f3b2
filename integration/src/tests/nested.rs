//! Volumes on Bidirectional volumes: the container has both, and the host does not see the nested one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::escape::{image_with, listing, sleeper};
use super::mounts::{PRIVATE, SHARED, SLAVE, privileged, tmpfs, unmount};
use crate::context::Context;
use crate::expect::{ensure, file_has};
use crate::fixture::Fixture;
use crate::isolation::command;
use crate::repeat::Repeat;
use crate::runner::{Test, test};
use crate::shapes::ContainerExt as _;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(token_below_the_hosts_run),
        test!(mounts_of_the_host_come_in),
        test!(termination_log_on_a_dev_of_the_host),
        test!(on_a_mount_below_it_is_refused),
        test!(while_the_host_mounts_on_it).limit(120),
    ]
}

/// Mount points of the host at or below a folder.
pub(super) fn mounted_below(folder: &Path) -> Result<Vec<String>> {
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
            let seen = seen.with_context(|| name.to_owned())?;
            ensure!(seen == "secretone filethe host's", "{name}: the three files have {seen:?}");
            let written = cx.cri.exec(&id, &["/bin/sh", "-c", &format!("echo x > {place}/token")]).await?;
            ensure!(written.code != 0, "a read-only volume was written");
            let now = mounted_below(&run)?;
            ensure!(now == before, "mounts of the host there were {before:?} and are {now:?}");
            let on_host = listing(&run.join("secrets/kubernetes.io/serviceaccount"))?;
            ensure!(on_host.is_empty(), "the host sees the nested volume: {on_host:?}");
            cx.cri.stop(&id, 0).await?;
            cx.cri.remove(&id).await?;
            let now = mounted_below(&run)?;
            ensure!(
                now == before,
                "after the removal, mounts of the host there were {before:?} and are {now:?}"
            );
            file_has(&run.join("sub/file"), "the host's")?;
        }
        Ok(())
    }
    .await;
    cleaned(&run, looked)
}

async fn mounts_of_the_host_come_in(cx: Context) -> Result<()> {
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
            cx.prints(&id, &format!("cat {seen}/file"), "later")
                .await
                .with_context(|| format!("a mount of the host at {}", place.display()))?;
            unmount(&place)?;
            cx.prints(&id, &format!("ls {seen}"), "").await.context("after the host's unmount")?;
        }
        // The container's mounts reach the host.
        cx.cri
            .sh(&id, "mkdir /run/inside && mount -t tmpfs none /run/inside && echo x > /run/inside/file")
            .await?;
        file_has(&run.join("inside/file"), "x\n").context("not seen on the host")?;
        cx.cri.sh(&id, "umount /run/inside").await?;
        ensure!(!run.join("inside/file").exists(), "the container's unmount does not reach the host");
        cx.prints(&id, "cat /run/token/token", "secret").await?;
        // The other volume receives mounts on its own source.
        tmpfs(&token.join("later"))?;
        fs::write(token.join("later/file"), "later")?;
        let seen = cx.cri.sh(&id, "cat /run/token/later/file").await;
        unmount(&token.join("later"))?;
        let seen = seen?;
        ensure!(seen == "later", "of a mount on the nested volume's source the container sees {seen:?}");
        Ok(())
    }
    .await;
    cleaned(&run, looked)
}

/// kubelet mounts a file at /dev/termination-log into every container. Debian's runc leaves it mounted on the host, over the
/// end of the container, if /dev is Bidirectional. What is mounted below /dev is the host's in any case, /dev/shm too: so it
/// is with runc.
async fn termination_log_on_a_dev_of_the_host(cx: Context) -> Result<()> {
    // It stands for the host's /dev, where this test would leave a file.
    let dev = cx.volume("dev")?;
    let log = cx.volume("log")?.join("message");
    tmpfs(&dev)?;
    tmpfs(&dev.join("shm"))?;
    fs::write(dev.join("shm/file"), "the host's")?;
    command("mknod", &[&dev.join("null").display().to_string(), "c", "1", "3"])?;
    let looked = async {
        let pod = privileged(&cx).await?;
        let before = mounted_below(&dev)?;
        for (name, propagation) in [("private", PRIVATE), ("slave", SLAVE), ("shared", SHARED)] {
            fs::write(&log, "")?;
            let config = cx.sleeper(name).privileged().mount(&dev, "/dev", false, propagation).mount(
                &log,
                "/dev/termination-log",
                false,
                PRIVATE,
            );
            let id = cx.start(&pod, &config).await.with_context(|| name.to_owned())?;
            let script = "echo last words > /dev/termination-log; echo x > /dev/null; cat /dev/shm/file";
            cx.prints(&id, script, "the host's").await.with_context(|| name.to_owned())?;
            file_has(&log, "last words\n").with_context(|| name.to_owned())?;
            file_has(&dev.join("termination-log"), "").context("the mount point on the host")?;
            let during = mounted_below(&dev)?;
            cx.cri.stop(&id, 0).await?;
            cx.cri.remove(&id).await?;
            let after = mounted_below(&dev)?;
            ensure!(
                during == before && after == before,
                "{name}: the host has mounted {before:?}, then {during:?}, and at the end {after:?}"
            );
        }
        Ok(())
    }
    .await;
    cleaned(&dev, looked)
}

/// A volume may not lie on a mount below the Bidirectional volume: only the volume's top mount is kept apart from the
/// host's.
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
        ensure!(
            format!("{refused:#}").contains("/run/sub/token"),
            "the error does not name the target: {refused:#}"
        );
        let now = mounted_below(&run)?;
        ensure!(now == before, "mounts of the host there were {before:?} and are {now:?}");
        Ok(())
    }
    .await;
    cleaned(&run, looked)
}

/// The host mounts and unmounts while containers are created: each sees exactly what is mounted once it runs.
async fn while_the_host_mounts_on_it(cx: Context) -> Result<()> {
    let (run, token) = volumes(&cx)?;
    let place = run.join("churn");
    fs::create_dir(&place)?;
    let churn = Repeat::start({
        let place = place.clone();
        move |_| {
            tmpfs(&place)?;
            unmount(&place)?;
            // With pauses, because a create is repeated only a limited number of times.
            std::thread::sleep(std::time::Duration::from_millis(3));
            Ok(())
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
    let rounds = churn.stop();
    let looked = async {
        looked?;
        let rounds = rounds?;
        ensure!(rounds > 12, "the host mounted only {rounds} times, so this test shows little");
        tmpfs(&place)?;
        fs::write(place.join("file"), "mounted")?;
        for id in &made {
            cx.prints(id, "cat /run/churn/file /run/token/token", "mountedsecret").await?;
        }
        unmount(&place)?;
        for id in &made {
            cx.prints(id, "ls /run/churn", "").await.context("after the host's unmount")?;
        }
        Ok(())
    }
    .await;
    cleaned(&run, looked)
}
