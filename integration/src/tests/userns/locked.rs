//! What root of a container in a user namespace may not do to its mounts, with CAP_SYS_ADMIN.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, MountPropagation};
use serde_json::json;

use super::confined::{UTIL_LINUX, mighty, refused};
use super::volumes::volume;
use super::{LENGTH, mapped};
use crate::context::Context;
use crate::expect::ensure;
use crate::images::Recipe;
use crate::images::layer::{Packing, Writer};
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _};

pub(super) fn tests() -> Vec<Test> {
    vec![
        // With runc, what is attached inside the user namespace is not locked.
        test!(root_inside_cannot_undo_mounts).ours(),
        test!(read_only_root_stays_read_only).ours(),
        test!(kernel_file_systems_stay_masked).ours(),
        test!(mounts_of_its_own),
    ]
}

/// With tools of util-linux and all capabilities.
fn tools() -> api::ContainerConfig {
    mighty(shapes::container("main", "registry.test/tools:1", &["/bin/sleep", "100000"]))
}

fn read_only(config: api::ContainerConfig, from: &Path, at: &str, host: u32) -> api::ContainerConfig {
    volume(config, from, at, host).with(|c| {
        if let Some(mount) = c.mounts.last_mut() {
            mount.readonly = true;
        }
    })
}

/// Neither those that the worker attaches (at /ro), nor those that init attaches (at or below /dev, /proc and /sys).
async fn root_inside_cannot_undo_mounts(cx: Context) -> Result<()> {
    cx.need("registry.test/tools:1").await?;
    let folder = cx.volume("ro")?;
    fs::write(folder.join("file"), "ours\n")?;
    let mut layer = Writer::new();
    layer.file("file", 0o644, b"image's\n")?;
    let name = format!("userns-{}", cx.name);
    cx.fixture
        .registry
        .push(&name, "1", &Recipe::new(&[layer.finish(Packing::Gzip)?], json!({})).build())
        .await?;
    let image = format!("registry.test/{name}:1");
    cx.need(&image).await?;
    let mut config = read_only(tools(), &folder, "/ro", 1_200_000);
    config = read_only(config, &folder, "/dev/v", 1_200_000).with(|c| {
        c.mounts.push(api::Mount {
            container_path: String::from("/dev/image"),
            readonly: true,
            image: Some(api::ImageSpec { image, ..Default::default() }),
            ..Default::default()
        });
    });
    config.security().masked_paths = ["/proc/kcore", "/sys/firmware"].map(String::from).to_vec();
    config.security().readonly_paths = ["/proc/sys", "/proc/bus"].map(String::from).to_vec();
    let pod = cx.pod_of(mapped(&cx, 1_200_000, LENGTH)).await?;
    let id = cx.start(&pod, &config).await?;
    cx.prints(
        &id,
        "stat -c %u:%g /ro/file /dev/v/file; cat /ro/file /dev/v/file /dev/image/file; head -c1 /proc/kcore | wc -c; ls /sys/firmware | wc -l",
        "0:0\n0:0\nours\nours\nimage's\n0\n0",
    )
    .await?;
    let mut lines = vec![
        String::from("echo 1 > /proc/sys/net/ipv4/ip_forward"),
        // Nothing is seen beneath a copy of what contains a mount.
        String::from("mount --bind /dev /mnt"),
        String::from("mount --bind / /mnt"),
    ];
    let read_only = ["/ro", "/dev/v", "/dev/image", "/proc/sys", "/proc/bus", "/sys", "/sys/fs/cgroup"];
    for place in read_only.into_iter().chain([
        "/proc/kcore",
        "/sys/firmware",
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/etc/hosts",
    ]) {
        let own = [
            format!("umount {place}"),
            format!("umount -l {place}"),
            format!("mount --move {place} /mnt"),
            // In a mount namespace and in a user namespace of its own.
            format!("unshare --mount umount {place}"),
            format!("unshare --user --map-root-user --mount umount -l {place}"),
        ];
        lines.extend(own);
    }
    for place in read_only {
        let own = [
            format!("mount -o remount,bind,rw {place}"),
            format!("mount -o remount,rw {place}"),
            format!("unshare --mount mount -o remount,bind,rw {place}"),
            // Nor is a copy of it writable.
            format!("mkdir -p /copy; mount --rbind {place} /copy; mount -o remount,bind,rw /copy"),
        ];
        lines.extend(own);
    }
    lines.extend(["/ro", "/dev/v", "/dev/image"].map(|at| format!("echo x > {at}/file")));
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    refused(&cx, &id, &lines).await?;
    ensure!(fs::read_to_string(folder.join("file"))? == "ours\n", "the volume was written");
    seen_outside(&cx, &id).await
}

/// The mount tables of the container and of the host have nothing of each other.
async fn seen_outside(cx: &Context, id: &str) -> Result<()> {
    let pid = cx.pid(id).await?;
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    for hidden in ["/seen", "/run/l", "/run/rw", "/run/bundles", "/stage"] {
        ensure!(
            !table.lines().any(|l| l.split(' ').nth(4).is_some_and(|p| p.starts_with(hidden))),
            "{hidden} is mounted: {table}"
        );
    }
    let host = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!host.contains(id), "the host's mount table has the container");
    // An exec is in init's mount namespace.
    let own = fs::read_link(format!("/proc/{pid}/ns/mnt"))?.display().to_string();
    cx.prints(id, "readlink /proc/self/ns/mnt", &own).await
}

async fn read_only_root_stays_read_only(cx: Context) -> Result<()> {
    cx.need("registry.test/tools:1").await?;
    let mut config = tools();
    config.security().readonly_rootfs = true;
    let pod = cx.pod_of(mapped(&cx, 1_210_000, LENGTH)).await?;
    let id = cx.start(&pod, &config).await?;
    let lines = [
        "touch /x",
        "mount -o remount,bind,rw /",
        "mount -o remount,rw /",
        "mount -o remount,bind,rw /etc/hosts",
        "mount -t tmpfs none /mnt && mkdir /mnt/copy && mount --rbind / /mnt/copy && mount -o remount,bind,rw /mnt/copy",
    ];
    refused(&cx, &id, &lines).await
}

/// A new mount of proc or sysfs would show what is masked, so the kernel refuses it. A container with `procMount: Unmasked`
/// has nothing masked, and may run containers in it.
async fn kernel_file_systems_stay_masked(cx: Context) -> Result<()> {
    cx.need("registry.test/tools:1").await?;
    let pod = cx.pod_of(mapped(&cx, 1_220_000, LENGTH)).await?;
    let mut config = tools();
    config.security().masked_paths = ["/proc/kcore", "/sys/firmware"].map(String::from).to_vec();
    config.security().readonly_paths = vec![String::from("/proc/sys")];
    let id = cx.start(&pod, &config).await?;
    let lines = [
        "mount -t proc proc /mnt",
        "mount -t sysfs sysfs /mnt",
        "mount -t sysfs -o ro sysfs /mnt",
        "unshare --pid --fork --mount mount -t proc proc /mnt",
        "unshare --user --map-root-user --pid --fork --mount mount -t proc proc /mnt",
    ];
    refused(&cx, &id, &lines).await?;
    let mut unmasked = tools().with(|c| {
        if let Some(metadata) = &mut c.metadata {
            metadata.name = String::from("unmasked");
        }
    });
    unmasked.security().masked_paths = Vec::new();
    unmasked.security().readonly_paths = Vec::new();
    let id = cx.start(&pod, &unmasked).await?;
    let nested = "unshare --pid --fork --mount sh -c 'mount -t proc proc /proc && readlink /proc/self'";
    let out =
        cx.cri.sh(&id, &format!("{UTIL_LINUX}{nested}")).await.context("a container in the container")?;
    ensure!(out.parse::<u32>().is_ok_and(|pid| pid < 10), "its /proc shows {out}");
    // Read-only stays read-only.
    refused(&cx, &id, &["mount -t sysfs sysfs /mnt", "mount -o remount,bind,rw /sys"]).await
}

/// The mounts that it makes itself are its own: they can be changed, moved and removed.
async fn mounts_of_its_own(cx: Context) -> Result<()> {
    cx.need("registry.test/tools:1").await?;
    let host = cx.volume("v")?;
    let config = volume(tools(), &host, "/v", 1_230_000);
    let config =
        config.mount(&cx.volume("plain")?, "/dev/plain", false, MountPropagation::PropagationPrivate);
    let pod = cx.pod_of(mapped(&cx, 1_230_000, LENGTH)).await?;
    let id = cx.start(&pod, &config).await?;
    for line in [
        "mount -t tmpfs none /mnt && touch /mnt/x && mount -o remount,bind,ro /mnt && mount -o remount,bind,rw /mnt && umount /mnt",
        "mount -t tmpfs none /v && umount /v && touch /v/x",
        "mount -t tmpfs none /dev/plain && umount /dev/plain",
        "mkdir -p /copy && mount --rbind /dev /copy && ls /copy/plain && umount -l /copy",
        "unshare --mount mount -t tmpfs none /mnt",
        "unshare --user --map-root-user --mount mount -t tmpfs none /mnt",
        "mkdir -p /moved && mount -t tmpfs none /mnt && mount --move /mnt /moved && umount /moved",
    ] {
        cx.cri.sh(&id, &format!("{UTIL_LINUX}{line}")).await.with_context(|| line.to_owned())?;
    }
    ensure!(host.join("x").exists(), "the volume was not written");
    Ok(())
}
