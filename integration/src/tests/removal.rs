//! A removal deletes what belongs to the removed object and nothing else: never volumes, mounts or files of the
//! host.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use serde_json::json;

use super::mounts::PRIVATE;
use crate::context::{Context, Pod};
use crate::expect::{ensure, file_has};
use crate::images::Recipe;
use crate::images::layer::{Packing, Writer};
use crate::isolation::command;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(failed_create_spares_the_volumes),
        test!(failed_create_spares_a_whole_tree),
        test!(thousands_of_levels).own().limit(120),
        test!(thousands_of_levels_left_by_a_crash).own().limit(120),
        test!(immutable_files_keep_nothing).ours(),
        test!(append_only_folder_keeps_nothing).ours(),
        test!(mount_inside_a_container_folder_is_spared).own(),
        test!(mount_inside_an_unknown_container_folder_is_spared).own(),
        test!(mount_inside_a_layer_is_spared).own(),
        test!(link_for_a_writable_layer_is_not_followed).ours(),
        test!(container_removed_beside_its_pod).limit(120),
        test!(stats_do_not_wait_for_a_walk).own().limit(180),
        test!(start_does_not_wait_for_leftovers).own().limit(180),
    ]
}

/// Mount points of the volumes. overlayfs lists the lowest layer first, so a removal of the root would begin with them.
const PLACES: [&str; 3] = ["log", "data", "cache"];

/// An image whose user does not exist, so that a create fails once all volumes are mounted.
async fn image_without_its_user(cx: &Context) -> Result<String> {
    let mut lowest = Writer::new();
    for place in PLACES {
        lowest.dir(place, 0o755)?;
    }
    let layers = [lowest.finish(Packing::Gzip)?, cx.fixture.layers.busybox.clone()];
    let image = Recipe::new(&layers, json!({"Cmd": ["/bin/sh"], "User": "nobody-here"})).build();
    cx.fixture.registry.push("removal-user", "1", &image).await?;
    Ok("registry.test/removal-user:1".to_owned())
}

async fn failed_create_spares_the_volumes(cx: Context) -> Result<()> {
    let image = image_without_its_user(&cx).await?;
    let pod = cx.pod().await?;
    let mut config = shapes::container("one", &image, &["/bin/true"]);
    let mut volumes = Vec::new();
    for place in PLACES {
        let volume = cx.volume(place)?;
        fs::write(volume.join("file"), place)?;
        config = config.mount(&volume, &format!("/{place}"), false, PRIVATE);
        volumes.push(volume);
    }
    let error = cx.create(&pod, &config).await.err().context("created with an unknown user")?;
    ensure!(format!("{error:#}").contains("nobody-here"), "the error does not name the user: {error:#}");
    for (volume, place) in volumes.iter().zip(PLACES) {
        let kept = fs::read_to_string(volume.join("file"));
        ensure!(
            kept.as_ref().is_ok_and(|text| text == place),
            "the volume at /{place} has lost its file: {kept:?}"
        );
    }
    Ok(())
}

async fn failed_create_spares_a_whole_tree(cx: Context) -> Result<()> {
    let image = image_without_its_user(&cx).await?;
    let pod = cx.pod().await?;
    let volume = cx.volume("tree")?;
    for folder in ["a/b/c", "d/e", "f"] {
        fs::create_dir_all(volume.join(folder))?;
        fs::write(volume.join(folder).join("file"), folder)?;
    }
    let list = || command("find", &[&volume.display().to_string()]);
    let before = list()?;
    let mut config = shapes::container("one", &image, &["/bin/true"]);
    for place in PLACES {
        config = config.mount(&volume, &format!("/{place}"), false, PRIVATE);
    }
    for attempt in 0..3 {
        let error = cx.create(&pod, &config).await.err().context("created with an unknown user")?;
        ensure!(format!("{error:#}").contains("nobody-here"), "the error does not name the user: {error:#}");
        let after = list()?;
        ensure!(after == before, "attempt {attempt}: of\n{before}\nthere is left\n{after}");
    }
    Ok(())
}

fn folder(cx: &Context, container: &str) -> PathBuf {
    cx.node.paths.root.join("containers").join(container)
}

fn upper(cx: &Context, container: &str) -> PathBuf {
    folder(cx, container).join("rw/upper")
}

/// Waits until the files of all containers and removed images are deleted, in the background too.
async fn deleted(cx: &Context) -> Result<()> {
    for place in ["containers", "trash", "images/trash"] {
        let place = cx.node.paths.root.join(place);
        let empty = || fs::read_dir(&place).map_or(true, |mut entries| entries.next().is_none());
        wait::until_true(&format!("{} to be empty", place.display()), secs(60), empty).await?;
    }
    Ok(())
}

/// An exited container that created more levels of folders than a recursive removal could handle.
async fn deep(cx: &Context, pod: &Pod) -> Result<String> {
    // Paths for mkdir and mv must be below 4096 bytes, so long chains are created and then appended to each other.
    let line = "d=$(printf 'd/%.0s' $(seq 700)); for t in 1 2 3 4 5 6; do mkdir -p /t$t/$d; done; \
                for t in 6 5 4 3 2; do mv /t$t /t$((t-1))/$d; done";
    let status = cx.run(pod, &cx.shell("deep", line)).await?;
    ensure!(status.exit_code == 0, "the container could not create its folders: {status:?}");
    Ok(status.id)
}

async fn thousands_of_levels(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = deep(&cx, &pod).await?;
    let daemon = cx.node.pid()?;
    cx.cri.remove(&id).await?;
    ensure!(!folder(&cx, &id).exists(), "the container's folder is in its place after RemoveContainer");
    deleted(&cx).await?;
    cx.cri.version().await.context("after the removal")?;
    let now = cx.node.pid()?;
    ensure!(now == daemon, "the daemon's pid was {daemon} and is {now}");
    // Also when its pod is removed.
    deep(&cx, &pod).await?;
    cx.cri.drop_pod(&pod.id).await?;
    deleted(&cx).await?;
    cx.cri.version().await.context("after the removal")?;
    Ok(())
}

/// The start removes folders without a record, however deep, and does not crash on them.
async fn thousands_of_levels_left_by_a_crash(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = deep(&cx, &pod).await?;
    cx.node.kill9()?;
    fs::remove_file(folder(&cx, &id).join("record"))?;
    cx.node.launch().await?;
    deleted(&cx).await?;
    cx.cri.version().await.context("after the removal")?;
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// Sets a flag on a path with chattr; false if the file system does not support the flag.
fn set_flag(flag: &str, path: &Path) -> bool {
    command("chattr", &[flag, &path.display().to_string()]).is_ok()
}

/// Removes a container in whose writable layer these paths have a flag that forbids deleting.
async fn removed_with_flags(cx: &Context, flag: &str, paths: &[&str]) -> Result<()> {
    let pod = cx.pod().await?;
    let status =
        cx.run(&pod, &cx.shell("one", "mkdir -p /a/b && echo x > /a/b/file && echo x > /a/file")).await?;
    ensure!(status.exit_code == 0, "the container could not create its files: {status:?}");
    let upper = upper(cx, &status.id);
    for path in paths {
        ensure!(set_flag(flag, &upper.join(path)), "the tests' file system has no chattr {flag}");
    }
    let removed = cx.cri.remove(&status.id).await;
    let gone = wait::until_true("the files to be deleted", secs(20), || {
        !upper.exists()
            && fs::read_dir(cx.node.paths.root.join("trash")).is_ok_and(|mut left| left.next().is_none())
    });
    let gone = gone.await;
    // Needed to clean up the node if the test fails.
    let undo = format!("-{}", flag.trim_start_matches('+'));
    for path in paths {
        set_flag(&undo, &upper.join(path));
    }
    removed?;
    gone
}

async fn immutable_files_keep_nothing(cx: Context) -> Result<()> {
    removed_with_flags(&cx, "+i", &["a/b/file", "a/file", "a/b", "a"]).await
}

async fn append_only_folder_keeps_nothing(cx: Context) -> Result<()> {
    removed_with_flags(&cx, "+a", &["a/b/file", "a"]).await
}

/// Bind-mounts a folder that contains a file at `target`; returns the path of the file.
fn bind(cx: &Context, target: &Path) -> Result<PathBuf> {
    let volume = cx.volume("bound")?;
    let file = volume.join("file");
    fs::write(&file, "kept")?;
    fs::create_dir_all(target)?;
    command("mount", &["--bind", &volume.display().to_string(), &target.display().to_string()])?;
    Ok(file)
}

/// Unmounts everything below a folder.
fn unmount_below(folder: &Path) -> Result<()> {
    for line in fs::read_to_string("/proc/self/mounts")?.lines() {
        let place = line.split(' ').nth(1).unwrap_or_default();
        if Path::new(place).starts_with(folder) && Path::new(place) != folder {
            command("umount", &[place])?;
        }
    }
    Ok(())
}

/// After a removal that found a mount: the mounted file is intact, and once it is unmounted the next start deletes
/// the rest.
async fn spared(cx: &Context, file: &Path) -> Result<()> {
    // When the daemon logs the mount, it has deleted everything else.
    let logged = wait::until_true("the daemon to log that something is mounted", secs(10), || {
        !file.exists() || cx.node.last_log(50).contains("mounted on")
    })
    .await;
    let kept = file_has(file, "kept");
    unmount_below(&cx.node.paths.root)?;
    kept.context("the mounted folder")?;
    logged?;
    cx.node.restart().await?;
    deleted(cx).await
}

async fn mount_inside_a_container_folder_is_spared(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let status = cx.run(&pod, &cx.shell("one", "mkdir -p /a/mnt")).await?;
    let file = bind(&cx, &upper(&cx, &status.id).join("a/mnt"))?;
    // Whether the call succeeds does not matter here.
    drop(cx.cri.remove(&status.id).await);
    spared(&cx, &file).await?;
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

async fn mount_inside_an_unknown_container_folder_is_spared(cx: Context) -> Result<()> {
    cx.node.kill9()?;
    let stray = folder(&cx, &"ab".repeat(32));
    let file = bind(&cx, &stray.join("rw/upper/mnt"))?;
    cx.node.launch().await?;
    spared(&cx, &file).await
}

async fn mount_inside_a_layer_is_spared(cx: Context) -> Result<()> {
    let mut layer = Writer::new();
    layer.file("mnt/image", 0o644, b"image")?;
    let image = Recipe::new(&[layer.finish(Packing::Gzip)?], json!({"Cmd": ["x"]})).build();
    cx.fixture.registry.push("removal-layer", "1", &image).await?;
    let name = "registry.test/removal-layer:1";
    cx.cri.pull(name).await?;
    let layers: Vec<_> = fs::read_dir(cx.node.paths.root.join("images/layers"))?.flatten().collect();
    ensure!(layers.len() == 1, "instead of one layer the store has {layers:?}");
    let place = layers.first().context("no layer")?.path().join("mnt");
    let file = bind(&cx, &place)?;
    drop(cx.cri.remove_image(name).await);
    spared(&cx, &file).await
}

/// The folder of a container's files is a symlink: only the link is removed.
async fn link_for_a_writable_layer_is_not_followed(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let status = cx.run(&pod, &cx.shell("one", "true")).await?;
    let volume = cx.volume("linked")?;
    fs::write(volume.join("file"), "kept")?;
    let upper = upper(&cx, &status.id);
    fs::rename(&upper, upper.with_extension("away"))?;
    std::os::unix::fs::symlink(&volume, &upper)?;
    cx.cri.remove(&status.id).await?;
    deleted_in_trash(&cx).await?;
    file_has(&volume.join("file"), "kept")?;
    Ok(())
}

async fn deleted_in_trash(cx: &Context) -> Result<()> {
    let trash = cx.node.paths.root.join("trash");
    wait::until_true("the trash to be empty", secs(20), || {
        fs::read_dir(&trash).map_or(true, |mut left| left.next().is_none())
    })
    .await
}

/// The second of two removals finds nothing to do and succeeds.
async fn container_removed_beside_its_pod(cx: Context) -> Result<()> {
    for round in 0..25 {
        let pod = cx.pod().await?;
        let id = cx.start(&pod, &cx.shell("one", "true")).await?;
        cx.cri.wait_exit(&id, secs(20)).await?;
        cx.cri.stop_pod(&pod.id).await?;
        let (container, whole) = tokio::join!(cx.cri.remove(&id), cx.cri.remove_pod(&pod.id));
        container.with_context(|| format!("round {round}: RemoveContainer beside RemovePodSandbox"))?;
        whole.with_context(|| format!("round {round}: RemovePodSandbox beside RemoveContainer"))?;
    }
    Ok(())
}

/// Hard links in a folder: as many entries as with files, but created much faster.
fn many_names(folder: &Path, count: u32) -> Result<()> {
    let mut file = PathBuf::new();
    for number in 0..count {
        let name = folder.join(format!("name-{number}"));
        if number % 50_000 == 0 {
            fs::write(&name, "x")?;
            file = name;
        } else {
            fs::hard_link(&file, &name)?;
        }
    }
    Ok(())
}

async fn stats_do_not_wait_for_a_walk(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let upper = upper(&cx, &id);
    tokio::task::spawn_blocking({
        let upper = upper.clone();
        move || many_names(&upper, 400_000)
    })
    .await??;
    // The time of one walk on this machine, with cold caches.
    let start = Instant::now();
    command("find", &[&upper.display().to_string(), "-size", "+1G"])?;
    let walk = start.elapsed();
    let start = Instant::now();
    let listed = cx.cri.list_stats(None).await?;
    let took = start.elapsed();
    ensure!(listed.len() == 1, "of one container the list has the stats {listed:?}");
    let inodes = |stats: &api::ContainerStats| {
        stats.writable_layer.as_ref().and_then(|layer| layer.inodes_used).map_or(0, |inodes| inodes.value)
    };
    // On a busy machine any call may take long. If its reply lacks the result of the walk, it did not wait for it.
    ensure!(
        took < walk / 2 + Duration::from_millis(50) || listed.iter().all(|stats| inodes(stats) < 8),
        "the first call took {took:?}, find takes {walk:?}"
    );
    // The walk continues in the background; its result is in a later reply.
    wait::until("the result of the walk in the stats", secs(120), || async {
        let stats = cx.cri.stats(&id).await?.context("no stats")?;
        Ok((inodes(&stats) >= 8).then_some(()))
    })
    .await?;
    cx.cri.drop_pod(&pod.id).await?;
    deleted(&cx).await
}

async fn start_does_not_wait_for_leftovers(cx: Context) -> Result<()> {
    cx.node.terminate().await?;
    let leftovers = cx.node.paths.root.join("images/ingest/17");
    fs::create_dir_all(&leftovers)?;
    tokio::task::spawn_blocking({
        let leftovers = leftovers.clone();
        move || many_names(&leftovers, 400_000)
    })
    .await??;
    cx.node.launch().await?;
    ensure!(leftovers.exists(), "the daemon answered only after it had deleted what an earlier one had left");
    wait::until_true("the leftovers to be deleted", secs(120), || !leftovers.exists()).await
}
