//! Images and volumes whose symlinks redirect mounts: nothing of the host is reached, and what confines a container
//! is mounted at the paths that it sees.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;

use super::mounts::PRIVATE;
use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::images::Recipe;
use crate::images::layer::{Packing, Writer};
use crate::repeat::Repeat;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(proc_is_no_link),
        test!(sys_is_no_link),
        test!(dev_is_no_link),
        test!(proc_through_a_shared_volume),
        test!(image_link_to_the_root_under_a_volume),
        test!(volume_link_to_the_root_under_a_volume),
        test!(volume_over_the_volume_that_it_lies_on),
        test!(volume_that_is_swapped_while_others_are_attached).limit(120),
    ]
}

/// Pushes busybox with one more layer; returns its reference.
pub(super) async fn image_with(
    cx: &Context,
    config: serde_json::Value,
    fill: impl FnOnce(&mut Writer) -> Result<()>,
) -> Result<String> {
    let mut layer = Writer::new();
    fill(&mut layer)?;
    let layers = [cx.fixture.layers.busybox.clone(), layer.finish(Packing::Gzip)?];
    let name = format!("{}-{}", cx.name, shapes::unique());
    cx.fixture.registry.push(&name, "1", &Recipe::new(&layers, config).build()).await?;
    Ok(format!("registry.test/{name}:1"))
}

/// A sleeping container of an image.
pub(super) fn sleeper(name: &str, image: &str) -> cri_api::v1::ContainerConfig {
    shapes::container(name, image, &["/bin/sleep", "100000"])
}

/// The paths that kubelet masks and makes read-only.
pub(super) fn as_kubelet(config: cri_api::v1::ContainerConfig) -> cri_api::v1::ContainerConfig {
    let list = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    config.with(|c| {
        c.security().masked_paths = list(&[
            "/proc/asound",
            "/proc/acpi",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/sched_debug",
            "/proc/scsi",
            "/sys/firmware",
            "/sys/devices/virtual/powercap",
        ]);
        c.security().readonly_paths =
            list(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
    })
}

/// A folder of the host with entries that libcontainer would replace, and a list of them.
pub(super) fn bait(cx: &Context) -> Result<(PathBuf, Vec<String>)> {
    let folder = cx.volume("bait")?;
    for name in ["ptmx", "console", "null", "kept"] {
        fs::write(folder.join(name), "the host's")?;
    }
    let before = listing(&folder)?;
    Ok((folder, before))
}

/// Every name below a folder with its kind and length, links not followed.
pub(super) fn listing(folder: &Path) -> Result<Vec<String>> {
    let mut all = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let facts = fs::symlink_metadata(&path)?;
            all.push(format!("{} {:?} {}", path.display(), facts.file_type(), facts.len()));
            if facts.is_dir() {
                open.push(path);
            }
        }
    }
    all.sort();
    Ok(all)
}

/// An image in which one of the runtime's mount points is a symlink is refused, whatever its target.
async fn refuses_link(cx: &Context, folder: &str) -> Result<()> {
    let pod = cx.pod().await?;
    for target in ["/", ".", "bin/..", "../../..", "/etc", "/proc/1/root/etc", "/sys", "absent"] {
        let image = image_with(cx, json!({}), |w| w.symlink(folder, target)).await?;
        let made = cx.start(&pod, &as_kubelet(sleeper("one", &image))).await;
        let error = match made {
            Err(error) => format!("{error:#}"),
            Ok(id) => {
                let seen = cx.cri.exec(&id, &["/bin/busybox", "head", "-n3", "/proc/self/mountinfo"]).await;
                anyhow::bail!("an image with /{folder} -> {target} runs; it sees {seen:?}");
            }
        };
        ensure!(
            error.contains(&format!("/{folder}")),
            "of /{folder} -> {target} the error does not name it: {error}"
        );
    }
    Ok(())
}

async fn proc_is_no_link(cx: Context) -> Result<()> {
    refuses_link(&cx, "proc").await
}

async fn sys_is_no_link(cx: Context) -> Result<()> {
    refuses_link(&cx, "sys").await
}

async fn dev_is_no_link(cx: Context) -> Result<()> {
    refuses_link(&cx, "dev").await
}

/// The link's target lies on a volume, whose owner could swap it between the mount and the masks.
async fn proc_through_a_shared_volume(cx: Context) -> Result<()> {
    let shared = cx.volume("shared")?;
    fs::create_dir(shared.join("p"))?;
    let image = image_with(&cx, json!({}), |w| w.symlink("proc", "/shared/p")).await?;
    let pod = cx.pod().await?;
    let made =
        cx.start(&pod, &as_kubelet(sleeper("one", &image).mount(&shared, "/shared", false, PRIVATE))).await;
    ensure!(made.is_err(), "/proc was mounted on a volume");
    let inside = listing(&shared.join("p"))?;
    ensure!(inside.is_empty(), "created on the volume: {inside:?}");
    Ok(())
}

/// A folder on a volume that looks like a root file system to code that uses paths.
pub(super) fn like_a_root(cx: &Context, bait: &Path) -> Result<PathBuf> {
    let volume = cx.volume("root")?;
    for folder in ["bin", "etc", "proc", "sys"] {
        fs::create_dir(volume.join(folder))?;
    }
    symlink(format!("/proc/1/root{}", bait.display()), volume.join("dev"))?;
    Ok(volume)
}

/// Checks that the container is refused, or that it runs in its own root, and that nothing of the host is changed.
/// Returns whether it ran.
async fn harmless(
    cx: &Context,
    pod: &Pod,
    config: &cri_api::v1::ContainerConfig,
    hosts: &[(&Path, &[String])],
) -> Result<bool> {
    let made = cx.start(pod, &as_kubelet(config.clone())).await;
    for (folder, before) in hosts {
        let now = listing(folder)?;
        if now != *before {
            // Where its mounts are shows how it came to that.
            let mounts = match &made {
                Ok(id) => {
                    cx.cri.sh(id, "cat /proc/self/mountinfo").await.unwrap_or_else(|e| format!("{e:#}"))
                }
                Err(error) => format!("{error:#}"),
            };
            anyhow::bail!("{} of the host had {before:#?} and has {now:#?}; {mounts}", folder.display());
        }
    }
    let Ok(id) = made else { return Ok(false) };
    let root = cx.cri.sh(&id, "ls /bin/busybox; wc -c < /proc/keys; cat /proc/1/comm").await?;
    ensure!(root == "/bin/busybox\n0\nsleep", "its root or its masks are not its own: {root}");
    let written = cx.cri.exec(&id, &["/bin/sh", "-c", "echo core > /proc/sys/kernel/core_pattern"]).await?;
    ensure!(written.code != 0, "/proc/sys is writable");
    cx.cri.stop(&id, 0).await?;
    cx.cri.remove(&id).await?;
    Ok(true)
}

async fn image_link_to_the_root_under_a_volume(cx: Context) -> Result<()> {
    let (bait, before) = bait(&cx)?;
    let pod = cx.pod().await?;
    for target in ["/", ".", "bin/..", "../.."] {
        let volume = like_a_root(&cx, &bait)?;
        let as_it_was = listing(&volume)?;
        let image = image_with(&cx, json!({}), |w| w.symlink("y", target)).await?;
        let config = sleeper("one", &image).mount(&volume, "/y", false, PRIVATE);
        let runs = harmless(&cx, &pod, &config, &[(&bait, &before), (&volume, &as_it_was)]).await?;
        ensure!(!runs, "a volume at /y -> {target} covers the root");
    }
    Ok(())
}

async fn volume_link_to_the_root_under_a_volume(cx: Context) -> Result<()> {
    let (bait, before) = bait(&cx)?;
    let pod = cx.pod().await?;
    for target in ["/", "..", "../bin/..", "../../../.."] {
        let (outer, inner) = (cx.volume("outer")?, like_a_root(&cx, &bait)?);
        symlink(target, outer.join("b"))?;
        let as_it_was = listing(&inner)?;
        let config =
            cx.sleeper("one").mount(&outer, "/a", false, PRIVATE).mount(&inner, "/a/b", false, PRIVATE);
        let runs = harmless(&cx, &pod, &config, &[(&bait, &before), (&inner, &as_it_was)]).await?;
        ensure!(!runs, "a volume at /a/b -> {target} covers the root");
    }
    Ok(())
}

/// A link by which a volume covers the one that it lies on: what is created for later mounts is on the pod's own volumes, or
/// the container is refused if those are read-only.
async fn volume_over_the_volume_that_it_lies_on(cx: Context) -> Result<()> {
    let (bait, before) = bait(&cx)?;
    let pod = cx.pod().await?;
    for readonly in [true, false] {
        let (outer, inner) = (cx.volume("outer")?, like_a_root(&cx, &bait)?);
        symlink(".", outer.join("b"))?;
        let as_it_was = listing(&outer)?;
        let mut expected = listing(&inner)?;
        if !readonly {
            for folder in ["b", "b/c"] {
                fs::create_dir(inner.join(folder))?;
            }
            expected = listing(&inner)?;
            fs::remove_dir_all(inner.join("b"))?;
        }
        let config = cx
            .sleeper("one")
            .mount(&outer, "/a", false, PRIVATE)
            .mount(&inner, "/a/b", readonly, PRIVATE)
            .mount(&inner, "/a/b/c", readonly, PRIVATE);
        let hosts: [(&Path, &[String]); 3] = [(&bait, &before), (&outer, &as_it_was), (&inner, &expected)];
        let runs = harmless(&cx, &pod, &config, &hosts).await?;
        ensure!(runs != readonly, "readonly: {readonly}, and it runs: {runs}");
    }
    Ok(())
}

/// A sidecar replaces a folder on its volume by symlinks while mounts are made through that folder.
async fn volume_that_is_swapped_while_others_are_attached(cx: Context) -> Result<()> {
    let (bait, before) = bait(&cx)?;
    let (outer, inner) = (cx.volume("outer")?, like_a_root(&cx, &bait)?);
    // Mount points that the swaps can rightly lead to in this volume, which is the pod's own. The second mount may be made
    // while the link is to /proc, and the third while it is to /proc/self/fd. And an ext4 of the host can show a symlink
    // that is being removed with an empty text, or without its end (ext4_evict_inode clears it while another looks it up by
    // RCU; seen with Linux 6.12): then /a/b is /a, as with a link to ".", /sys/fs is /sys, and /proc/self/fd is /proc/self.
    // Any other new name is an error.
    for place in ["c", "b/c", "self/fd/c", "self/c", "fs/c", "fd/c"] {
        fs::create_dir_all(inner.join(place))?;
    }
    let as_it_was = listing(&inner)?;
    let swapper = Repeat::start({
        let swapped = outer.join("b");
        move |_| {
            for target in ["/", "/proc", "/sys/fs", "/etc", "/proc/self/fd", "../dev"] {
                // Steps fail while something is mounted there; the next round tries again.
                drop(fs::remove_file(&swapped));
                drop(symlink(target, &swapped));
                drop(fs::remove_file(&swapped));
                drop(fs::create_dir(&swapped));
                drop(fs::remove_dir(&swapped));
            }
            Ok(())
        }
    });
    let pod = cx.pod().await?;
    let mut runs = 0;
    let mut result = Ok(());
    for _ in 0..30 {
        let config = cx
            .sleeper("one")
            .mount(&outer, "/a", false, PRIVATE)
            .mount(&inner, "/a/b/c", false, PRIVATE)
            .mount(&inner, "/a/b", false, PRIVATE);
        match harmless(&cx, &pod, &config, &[(&bait, &before), (&inner, &as_it_was)]).await {
            Ok(ran) => runs += u32::from(ran),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    let rounds = swapper.stop()?;
    println!("      ({runs} of 30 ran, {rounds} rounds of swaps)");
    result?;
    // Otherwise the test shows nothing.
    ensure!(rounds > 0, "the folder was never swapped");
    ensure!(runs > 0, "no container ran, so nothing was checked from inside");
    Ok(())
}
