//! Folders of the root that are separate file systems.

use anyhow::{Context as _, Result};

use crate::context::Context;
use crate::disk::Disk;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::isolation::command;
use crate::runner::{Test, test};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(images_that_become_read_only).own().limit(120),
        test!(both_folders_are_new_file_systems).own().limit(120),
    ]
}

/// Waits until RuntimeReady is false because of the folder of images.
async fn images_are_read_only(cx: &Context, folder: &str) -> Result<()> {
    wait::until("RuntimeReady to name the folder of images", secs(30), || async {
        let found = cx.cri.condition("RuntimeReady").await?;
        ensure!(
            !found.status && found.reason == "ImagesReadOnly" && found.message.contains(folder),
            "it is {found:?}"
        );
        Ok(Some(()))
    })
    .await
}

/// Pods continue and can be removed although image leases cannot be deleted.
async fn images_that_become_read_only(cx: Context) -> Result<()> {
    cx.node.terminate().await?;
    let images = cx.node.paths.root.join("images");
    std::fs::remove_dir_all(&images)?;
    std::fs::create_dir_all(&images)?;
    let disk = Disk::mount(&images, 96, 8192)?;
    cx.node.launch().await?;
    let looked = async {
        let image = Fixture::image("busybox");
        let (one, two) = (cx.pod().await?, cx.pod().await?);
        let running = cx.start(&one, &cx.sleeper("running")).await?;
        let exited = cx.run(&one, &cx.shell("exited", "true")).await?.id;
        let kept = cx.start(&two, &cx.sleeper("kept")).await?;
        let condition = cx.cri.condition("RuntimeReady").await?;
        ensure!(condition.status, "before the error: {condition:?}");
        ensure!(disk.abort()?, "the images cannot be read");
        images_are_read_only(&cx, &images.display().to_string()).await?;
        let refused = cx.cri.run_pod(&cx.pod_config()).await.err().context("a pod without image leases")?;
        ensure!(refused.message().contains("images"), "the refusal does not name the folder: {refused}");
        cx.exec_works(&running).await?;
        let removed = cx.cri.remove_image(&image).await.err().context("an image was removed")?;
        ensure!(removed.message().contains("ead-only"), "the refusal does not give the reason: {removed}");
        cx.cri.remove(&exited).await.context("RemoveContainer of an exited container")?;
        cx.cri.remove(&running).await.context("RemoveContainer of a running container")?;
        cx.cri.drop_pod(&one.id).await.context("stop and removal of its pod")?;
        cx.node.crash().await.context("a start with such images")?;
        images_are_read_only(&cx, &images.display().to_string()).await?;
        ensure!(cx.cri.image(&image).await?.is_some(), "the image is lost");
        cx.exec_works(&kept).await?;
        cx.cri.drop_pod(&two.id).await.context("stop and removal of the other pod")
    }
    .await;
    cx.node.kill9()?;
    drop(disk);
    cx.node.launch().await?;
    looked
}

/// mkfs.ext4 creates a folder `lost+found`, which must not count as somebody else's content.
async fn both_folders_are_new_file_systems(cx: Context) -> Result<()> {
    cx.node.terminate().await?;
    let (root, run) = (cx.node.paths.root.clone(), cx.node.paths.run.clone());
    for folder in [&root, &run] {
        std::fs::remove_dir_all(folder)?;
        std::fs::create_dir_all(folder)?;
    }
    let disks = (Disk::mount(&root, 96, 8192)?, Disk::mount(&run, 32, 4096)?);
    ensure!(
        root.join("lost+found").exists() && run.join("lost+found").exists(),
        "mkfs.ext4 made no lost+found, so this test shows nothing"
    );
    let started = async {
        cx.node.launch().await.context("start on two new file systems")?;
        let pod = cx.pod().await?;
        let id = cx.start(&pod, &cx.sleeper("one")).await?;
        cx.exec_works(&id).await?;
        cx.cri.drop_pod(&pod.id).await?;
        cx.node.terminate().await
    }
    .await;
    if started.is_err() {
        cx.node.kill9()?;
    }
    for folder in [&root, &run] {
        command("umount", &["-l", &folder.display().to_string()])?;
    }
    drop(disks);
    cx.node.launch().await?;
    started
}
