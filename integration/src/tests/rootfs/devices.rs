//! Devices, /dev and /proc: what a volume or the image may put in their place.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use serde_json::json;
use tar::EntryType;

use crate::context::Context;
use crate::expect::{ensure, file_has};
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::tests::escape::{as_kubelet, image_with, listing, sleeper};
use crate::tests::mounts::PRIVATE;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(device_in_place_of_passwd),
        test!(own_folders_are_no_files),
        test!(volume_on_dev_null),
        test!(volume_on_dev),
        test!(volume_on_proc),
        test!(device_that_is_there_already),
        test!(device_name_that_is_something_else),
        test!(dev_is_executable),
        test!(console_of_a_volume_is_no_device),
    ]
}

/// Opening a device may have an effect (a watchdog reboots the node), so it is examined but never opened.
async fn device_in_place_of_passwd(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for (kind, name) in
        [(EntryType::Char, "etc/passwd"), (EntryType::Block, "etc/group"), (EntryType::Fifo, "etc/passwd")]
    {
        let image = image_with(&cx, json!({}), |w| w.raw(kind, name, "", 0o666, (0, 0), b"")).await?;
        let error = cx.create(&pod, &sleeper("one", &image)).await.err().context("a device was read")?;
        let error = format!("{error:#}");
        ensure!(
            error.contains(&format!("/{name}: not a regular file")),
            "the error does not name the file: {error}"
        );
    }
    Ok(())
}

async fn own_folders_are_no_files(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for folder in ["proc", "sys", "dev"] {
        let image = image_with(&cx, json!({}), |w| w.file(folder, 0o644, b"file")).await?;
        let error = cx.create(&pod, &sleeper("one", &image)).await.err().context("a file was mounted on")?;
        ensure!(
            format!("{error:#}").contains(&format!("/{folder}")),
            "the error does not name /{folder}: {error:#}"
        );
    }
    Ok(())
}

async fn volume_on_dev_null(cx: Context) -> Result<()> {
    let file = cx.volume("x")?.join("log");
    fs::write(&file, "")?;
    let pod = cx.pod().await?;
    let config =
        as_kubelet(cx.shell("one", "echo last > /dev/null; cat /proc/keys | wc -c; ls /proc/acpi | wc -l"))
            .mount(&file, "/dev/null", false, PRIVATE);
    cx.outputs(&pod, &config, "0\n0\n").await?;
    file_has(&file, "last\n")?;
    Ok(())
}

async fn volume_on_dev(cx: Context) -> Result<()> {
    let dev = cx.volume("dev")?;
    fs::write(dev.join("null"), "a file")?;
    let pod = cx.pod().await?;
    let config =
        as_kubelet(cx.shell("one", "ls /dev; cat /proc/keys | wc -c")).mount(&dev, "/dev", false, PRIVATE);
    cx.outputs(&pod, &config, "null\n0\n").await?;
    file_has(&dev.join("null"), "a file").context("the volume's file was written instead of the null device")
}

async fn volume_on_proc(cx: Context) -> Result<()> {
    let folder = cx.volume("proc")?;
    let file = folder.join("file");
    fs::write(&file, "lxcfs")?;
    let pod = cx.pod().await?;
    for place in ["/proc", "/proc/1", "/proc/self", "/proc/self/attr", "/proc/thread-self/attr"] {
        let made =
            cx.create(&pod, &as_kubelet(cx.sleeper("one").mount(&folder, place, false, PRIVATE))).await;
        let error = format!("{:#}", made.err().with_context(|| format!("a volume at {place}"))?);
        ensure!(error.contains(place), "the error does not name {place}: {error}");
    }
    let config = cx
        .sleeper("two")
        .mount(&file, "/proc/meminfo", true, PRIVATE)
        .mount(&folder, "/proc/fs", true, PRIVATE);
    let c = cx.start(&pod, &as_kubelet(config)).await?;
    cx.prints(&c, "cat /proc/meminfo /proc/fs/file", "lxcfslxcfs").await?;
    Ok(())
}

fn null_at(path: &str) -> api::Device {
    api::Device {
        host_path: String::from("/dev/null"),
        container_path: path.to_owned(),
        permissions: String::from("rwm"),
    }
}

async fn device_that_is_there_already(cx: Context) -> Result<()> {
    let volume = cx.volume("v")?;
    let pod = cx.pod().await?;
    for name in ["one", "two"] {
        let config = cx
            .sleeper(name)
            .mount(&volume, "/v", false, PRIVATE)
            .with(|c| c.devices = vec![null_at("/v/null"), null_at("/dev/null"), null_at("/dev/deep/null")]);
        let c = cx.start(&pod, &config).await?;
        cx.cri.sh(&c, "test -c /v/null && test -c /dev/deep/null && echo x > /v/null").await?;
    }
    Ok(())
}

async fn device_name_that_is_something_else(cx: Context) -> Result<()> {
    let volume = cx.volume("v")?;
    let outside = cx.volume("outside")?.join("file");
    fs::write(&outside, "the host's")?;
    symlink(&outside, volume.join("link"))?;
    fs::write(volume.join("file"), "a file")?;
    let pod = cx.pod().await?;
    let before = listing(&volume)?;
    for place in ["/v/link", "/v/file"] {
        let config =
            cx.sleeper("one").mount(&volume, "/v", false, PRIVATE).with(|c| c.devices = vec![null_at(place)]);
        let error =
            cx.create(&pod, &config).await.err().context("something else was taken for the device")?;
        ensure!(format!("{error:#}").contains(place), "the error does not name {place}: {error:#}");
    }
    let after = listing(&volume)?;
    ensure!(after == before, "the volume had {before:#?} and has {after:#?}");
    file_has(&outside, "the host's")
}

async fn dev_is_executable(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let c = cx.start(&pod, &cx.sleeper("one")).await?;
    let script =
        "cp /bin/busybox /dev/box && /dev/box true; grep -E ' (/dev|/etc/[a-z.]*|/dev/shm) ' /proc/mounts";
    let text = cx.cri.sh(&c, script).await?;
    for line in text.lines() {
        let flags: Vec<&str> = line.split(' ').nth(3).unwrap_or_default().split(',').collect();
        ensure!(flags.contains(&"nosuid"), "a mount without nosuid: {line}");
        ensure!(
            line.contains("/dev/shm") == flags.contains(&"noexec"),
            "/dev/shm without noexec, or another mount with it: {line}"
        );
    }
    ensure!(text.lines().count() >= 4, "the mounts of /dev, /dev/shm and below /etc are only\n{text}");
    Ok(())
}

/// A terminal comes only from devpts: another device of that name would be opened as root.
async fn console_of_a_volume_is_no_device(cx: Context) -> Result<()> {
    let dev = cx.volume("dev")?;
    fs::create_dir(dev.join("pts"))?;
    nix::unistd::mkfifo(&dev.join("pts/ptmx"), nix::sys::stat::Mode::S_IRWXU)?;
    let pod = cx.pod().await?;
    let config = cx.sleeper("one").mount(&dev, "/dev", false, PRIVATE).terminal();
    let error = cx.create(&pod, &config).await.err().context("a FIFO was taken for a terminal")?;
    ensure!(format!("{error:#}").contains("devpts"), "the error does not give the reason: {error:#}");
    Ok(())
}
