//! The image store seen by an operator: lost layers, stalled registries, disk usage.

use std::fs;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use crate::context::Context;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::fuse::Stuck;
use crate::images::layer::{Layer, Packing, Writer};
use crate::images::{Image, Recipe};
use crate::runner::{Test, test};
use crate::shapes;
use crate::stall::Stall;
use crate::wait;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(lost_layer_is_pulled_again).own(),
        test!(lost_layer_harms_no_other_image).own(),
        test!(a_blob_that_cannot_be_read_to_its_end_stops_nothing_else).own(),
        test!(a_removed_image_has_given_its_space_back).own(),
        test!(stalled_pulls_stop_no_other).own(),
        test!(stalled_pull_is_given_up_with_its_caller).own(),
        test!(what_containers_wrote_is_counted_apart),
    ]
}

/// Names of the folders of unpacked layers.
fn layers(cx: &Context) -> Result<Vec<String>> {
    let folder = cx.node.paths.root.join("images/layers");
    let names = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Kills the daemon, deletes a layer's folder and starts the daemon.
async fn lose(cx: &Context, layer: &str) -> Result<()> {
    cx.node.kill9()?;
    fs::remove_dir_all(cx.node.paths.root.join("images/layers").join(layer))?;
    cx.node.launch().await
}

async fn lost_layer_is_pulled_again(cx: Context) -> Result<()> {
    let name = Fixture::image("busybox");
    let id = cx.cri.pull(&name).await?;
    let all = layers(&cx)?;
    lose(&cx, all.first().context("no layer")?).await?;
    ensure!(
        cx.cri.image(&name).await?.is_none(),
        "an image with a lost layer has a status, so kubelet would not pull it again"
    );
    ensure!(cx.cri.images().await?.is_empty(), "an image with a lost layer is listed");
    let again = cx.cri.pull(&name).await?;
    ensure!(again == id, "the second pull gave image {again} instead of {id}");
    let pod = cx.pod().await?;
    cx.outputs(&pod, &shapes::container("look", &name, &["/bin/cat", "/etc/marker"]), "from the image\n")
        .await
}

/// kubelet removes images to free space, measures right after, and evicts pods if there is too little.
async fn a_removed_image_has_given_its_space_back(cx: Context) -> Result<()> {
    for _ in 0..10 {
        cx.cri.pull(&Fixture::image("tools")).await?;
        let kept = layers(&cx)?;
        ensure!(!kept.is_empty(), "no layers");
        cx.cri.remove_image(&Fixture::image("tools")).await?;
        let trash = fs::read_dir(cx.node.paths.root.join("images/trash"))?.count();
        ensure!(
            trash == 0 && layers(&cx)?.is_empty(),
            "after RemoveImage {trash} folders are in the trash; the image had the layers {kept:?}"
        );
    }
    Ok(())
}

/// A FUSE file system simulates a disk that hangs during a read.
async fn a_blob_that_cannot_be_read_to_its_end_stops_nothing_else(cx: Context) -> Result<()> {
    let id = cx.cri.pull(&Fixture::image("busybox")).await?;
    let blob = cx.node.paths.root.join("images/blobs").join(id.strip_prefix("sha256:").context("no digest")?);
    cx.node.kill9()?;
    fs::write(&blob, "damaged")?;
    cx.node.launch().await?;
    ensure!(cx.cri.images().await?.is_empty(), "an image without a config is listed");
    // A file whose content never arrives, in place of the blob.
    let place = cx.node.paths.root.with_file_name("stuck");
    fs::create_dir(&place)?;
    let stuck = Stuck::mount(&place)?;
    mount(Some(&place.join("blob")), &blob, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    let pulling = {
        let cri = cx.cri.clone();
        tokio::spawn(async move { cri.pull(&Fixture::image("tools")).await })
    };
    wait::until_true("the daemon to read the blob", wait::secs(30), || stuck.is_read()).await?;
    // More calls than worker threads.
    let asked: Vec<_> = (0..4)
        .map(|_| {
            let cri = cx.cri.clone();
            tokio::spawn(async move { cri.image_fs().await })
        })
        .collect();
    let listed = wait::timeout(wait::secs(5), cx.cri.containers(None)).await;
    let listed = listed.context("ListContainers hangs with the image disk");
    let mut answers = Vec::new();
    for one in asked {
        answers.push(wait::timeout(wait::secs(5), one).await.is_ok());
    }
    // Before a check can end the test: the clean-up does not know this mount.
    umount2(&blob, MntFlags::MNT_DETACH)?;
    fs::remove_file(&blob)?;
    drop(stuck);
    fs::remove_dir(&place)?;
    listed?.context("ListContainers")?;
    ensure!(answers == [true; 4], "ImageFsInfo hangs with the image disk: {answers:?}");
    pulling.await??;
    Ok(())
}

async fn lost_layer_harms_no_other_image(cx: Context) -> Result<()> {
    let (one, two) = (Fixture::image("busybox"), Fixture::image("tools"));
    cx.cri.pull(&one).await?;
    let shared = layers(&cx)?;
    cx.cri.pull(&two).await?;
    let own =
        layers(&cx)?.into_iter().find(|layer| !shared.contains(layer)).context("no layer of its own")?;
    lose(&cx, &own).await?;
    ensure!(cx.cri.image(&one).await?.is_some(), "the image that has all its layers is lost too");
    ensure!(cx.cri.image(&two).await?.is_none(), "an image with a lost layer has a status");
    // An image that is not listed can be removed; layers of other images stay.
    cx.cri.remove_image(&two).await?;
    let pod = cx.pod().await?;
    cx.output(&pod, &shapes::container("look", &one, &["/bin/true"])).await?;
    Ok(())
}

/// Pushes images of layers that no other image has; returns their names and all those layers.
async fn push_unlike_others(
    cx: &Context,
    name: &str,
    images: usize,
    layers: usize,
) -> Result<(Vec<String>, Vec<Layer>)> {
    let (mut names, mut all) = (Vec::new(), Vec::new());
    for image in 0..images {
        let mut own = Vec::new();
        for layer in 0..layers {
            let mut w = Writer::new();
            w.file("f", 0o644, format!("{name} {image} {layer}").as_bytes())?;
            own.push(w.finish(Packing::Plain)?);
        }
        let image_name = format!("{name}-{image}");
        let built: Image = Recipe::new(&own, json!({"Cmd": ["x"]})).build();
        cx.fixture.registry.push(&image_name, "1", &built).await?;
        names.push(format!("{image_name}:1"));
        all.extend(own);
    }
    Ok((names, all))
}

/// A proxy for the registry at which these layers stall.
async fn stalling(cx: &Context, layers: &[Layer]) -> Result<Stall> {
    let length = layers.first().context("no layer")?.blob.bytes.len();
    ensure!(layers.iter().all(|layer| layer.blob.bytes.len() == length), "layers of different sizes");
    let digests = layers.iter().map(|layer| layer.blob.digest.clone()).collect();
    Stall::start(cx.fixture.registry.port, digests, length).await
}

/// Two pulls of five layers each hang at a stalled registry: a pull from another registry succeeds.
async fn stalled_pulls_stop_no_other(cx: Context) -> Result<()> {
    let (names, all) = push_unlike_others(&cx, "stalled", 2, 5).await?;
    let stall = stalling(&cx, &all).await?;
    let pulls: Vec<_> = names
        .iter()
        .map(|name| {
            let (cri, name) = (cx.cri.clone(), format!("127.0.0.1:{}/{name}", stall.port));
            tokio::spawn(async move { cri.pull(&name).await })
        })
        .collect();
    // By default, one pull transfers four layers at once.
    wait::until_true("eight layers to stall", wait::secs(20), || stall.stalled() >= 8).await?;
    let pull = wait::timeout(wait::secs(20), cx.cri.pull(&Fixture::image("busybox"))).await;
    let ended = pulls.iter().filter(|pull| pull.is_finished()).count();
    pulls.iter().for_each(tokio::task::JoinHandle::abort);
    pull.context("a pull from a healthy registry waits for the one that stalls")??;
    ensure!(ended == 0, "{ended} of the stalled pulls ended, so this test shows nothing");
    Ok(())
}

async fn stalled_pull_is_given_up_with_its_caller(cx: Context) -> Result<()> {
    let (names, all) = push_unlike_others(&cx, "given-up", 1, 1).await?;
    let stall = stalling(&cx, &all).await?;
    let name = format!("127.0.0.1:{}/{}", stall.port, names.first().context("no name")?);
    let pull = {
        let (cri, name) = (cx.cri.clone(), name.clone());
        tokio::spawn(async move { cri.pull(&name).await })
    };
    wait::until_true("the layer to stall", wait::secs(20), || stall.stalled() == 1).await?;
    pull.abort();
    let folder = cx.node.paths.root.join("images");
    wait::until("everything of the pull to be deleted", wait::secs(20), || async {
        let mut left = Vec::new();
        for kind in ["ingest", "layers", "facts", "blobs", "pulls", "trash"] {
            left.extend(fs::read_dir(folder.join(kind))?.flatten().map(|entry| entry.path()));
        }
        ensure!(left.is_empty(), "{left:?} are left");
        Ok(Some(()))
    })
    .await
}

async fn what_containers_wrote_is_counted_apart(cx: Context) -> Result<()> {
    const WRITTEN: u64 = 8 << 20;
    let used = || async {
        let info = cx.cri.image_fs().await?;
        let [images, containers] = [info.image_filesystems.first(), info.container_filesystems.first()];
        let (images, containers) =
            (images.context("no image file system")?, containers.context("no container file system")?);
        // kubelet takes two mount points for two file systems.
        ensure!(
            images.fs_id == containers.fs_id,
            "images and containers are on different file systems: {images:?} and {containers:?}"
        );
        let bytes =
            |value: Option<cri_api::v1::UInt64Value>| value.context("no bytes").map(|value| value.value);
        Ok::<_, anyhow::Error>((bytes(images.used_bytes)?, bytes(containers.used_bytes)?))
    };
    let pod = cx.pod().await?;
    cx.need(&Fixture::image("busybox")).await?;
    let before = used().await?;
    let line = "dd if=/dev/zero of=/written bs=1M count=8 2>/dev/null; exec sleep 10000";
    let id = cx.start(&pod, &cx.shell("writer", line)).await?;
    wait::until("what the container wrote to be counted", wait::secs(30), || async {
        let now = used().await?;
        ensure!(
            now.0 == before.0,
            "the use by images changed: (images, containers) was {before:?}, now {now:?}"
        );
        ensure!(
            now.1 >= WRITTEN && now.1 < before.1 + WRITTEN * 2,
            "of {WRITTEN} bytes the use by containers shows {} now, and {} before",
            now.1,
            before.1
        );
        Ok(Some(()))
    })
    .await?;
    cx.cri.stop(&id, 0).await?;
    Ok(())
}
