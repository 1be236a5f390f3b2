//! The disk of the root is full: every removal works and frees its space, and running containers continue.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use cri_api::v1::PodSandboxState;
use tonic::Code;

use crate::context::Context;
use crate::disk;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::isolation::command;
use crate::runner::{Test, test};
use crate::shapes;
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(full_tmpfs).own().limit(120),
        test!(full_tmpfs_without_inodes).own().limit(120),
        test!(full_ext4).own().limit(120),
        test!(full_ext4_without_inodes).own().limit(120),
        test!(image_removed_on_a_full_disk_stays_removed).own().limit(120),
        test!(start_on_a_full_disk).own().limit(120),
    ]
}

/// The resource that runs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scarce {
    Bytes,
    Inodes,
}

/// A separate file system at the node's root, used by the daemon.
struct Disk {
    root: PathBuf,
    /// The mounted ext4; `None` for a tmpfs.
    ext4: Option<disk::Disk>,
    scarce: Scarce,
}

impl Disk {
    async fn tmpfs(cx: &Context, scarce: Scarce) -> Result<Self> {
        let options = match scarce {
            Scarce::Bytes => "size=96m",
            Scarce::Inodes => "size=1g,nr_inodes=3000",
        };
        Self::mount(cx, scarce, |root| {
            command("mount", &["-t", "tmpfs", "-o", options, "tmpfs", &root.display().to_string()])?;
            Ok(None)
        })
        .await
    }

    async fn ext4(cx: &Context, scarce: Scarce) -> Result<Self> {
        // Few inodes, or many.
        let inodes = if scarce == Scarce::Inodes { 2500 } else { 20_000 };
        Self::mount(cx, scarce, |root| Ok(Some(disk::Disk::mount(root, 128, inodes)?))).await
    }

    async fn mount(
        cx: &Context,
        scarce: Scarce,
        mount: impl FnOnce(&Path) -> Result<Option<disk::Disk>>,
    ) -> Result<Self> {
        cx.node.terminate().await?;
        let root = cx.node.paths.root.clone();
        let ext4 = mount(&root)?;
        cx.node.launch().await?;
        Ok(Self { root, ext4, scarce })
    }

    /// Uses up everything that is left. The first call needs space for a folder.
    fn fill(&self) -> Result<()> {
        let folder = self.root.join("filler");
        fs::create_dir_all(&folder)?;
        for number in 0.. {
            match self.scarce {
                Scarce::Bytes => {
                    let mut file = File::options().create(true).append(true).open(folder.join("file"))?;
                    let size = if number < 4 { 1 << 20 } else { 4096 };
                    let chunk = vec![b'x'; size];
                    while file.write_all(&chunk).and_then(|()| file.sync_data()).is_ok() {}
                    if number >= 4 {
                        break;
                    }
                }
                Scarce::Inodes => {
                    let name = format!("{number}-{}", shapes::unique());
                    if File::create_new(folder.join(name)).is_err() {
                        break;
                    }
                }
            }
        }
        let full = match self.scarce {
            Scarce::Bytes => fs::write(self.root.join("probe"), [0; 8192]).is_err(),
            Scarce::Inodes => File::create_new(self.root.join("probe")).is_err(),
        };
        drop(fs::remove_file(self.root.join("probe")));
        ensure!(full, "the disk is not full");
        Ok(())
    }

    fn unfill(&self) -> Result<()> {
        fs::remove_dir_all(self.root.join("filler"))?;
        Ok(())
    }

    /// Free bytes or inodes.
    fn free(&self) -> Result<u64> {
        let stat = nix::sys::statvfs::statvfs(&self.root)?;
        Ok(match self.scarce {
            Scarce::Bytes => stat.blocks_free() * stat.fragment_size(),
            Scarce::Inodes => stat.files_free(),
        })
    }

    /// Waits until at least `min` is free.
    async fn frees(&self, what: &str, min: u64) -> Result<()> {
        wait::until(&format!("{what} to free at least {min}"), secs(20), || async {
            let free = self.free()?;
            ensure!(free >= min, "{free} is free");
            Ok(Some(()))
        })
        .await
    }

    async fn unmount(self, cx: &Context) -> Result<()> {
        cx.node.terminate().await?;
        wait::until("the disk to be unmounted", secs(10), || async {
            command("umount", &[&self.root.display().to_string()]).map(Some)
        })
        .await?;
        // Removes the file with the ext4.
        drop(self.ext4);
        cx.node.launch().await
    }
}

/// A container that uses much of what is scarce, and how much of it must be free once the container is removed.
fn greedy(cx: &Context, scarce: Scarce) -> (cri_api::v1::ContainerConfig, u64) {
    match scarce {
        Scarce::Bytes => (cx.shell("eater", "dd if=/dev/zero of=/fat bs=1M count=24"), 20 << 20),
        Scarce::Inodes => {
            (cx.shell("eater", "mkdir /many; for n in $(seq 500); do echo > /many/$n; done"), 450)
        }
    }
}

/// The lists must have this many pods and containers.
async fn listed(cx: &Context, pods: usize, containers: usize) -> Result<()> {
    let found = (cx.cri.pods(None).await?, cx.cri.containers(None).await?);
    ensure!(
        (found.0.len(), found.1.len()) == (pods, containers),
        "instead of {pods} pods and {containers} containers the lists have {found:?}"
    );
    Ok(())
}

async fn every_removal_works(cx: &Context, disk: Disk) -> Result<()> {
    let unused = Fixture::image("tools");
    cx.cri.pull(&unused).await?;
    let (pod, running, _) = cx.sleeping(cx.pod_config()).await?;
    let (config, min) = greedy(cx, disk.scarce);
    let eater = cx.run(&pod, &config).await?;
    ensure!(eater.exit_code == 0, "the container that uses space ended with {eater:?}");
    let stopped = cx.pod().await?;
    cx.cri.stop_pod(&stopped.id).await?;
    let ready = cx.pod().await?;

    disk.fill()?;
    listed(cx, 3, 2).await?;
    cx.exec_works(&running).await?;
    cx.cri.remove_pod(&stopped.id).await.context("RemovePodSandbox of a stopped pod on a full disk")?;

    disk.fill()?;
    cx.cri.stop_pod(&ready.id).await.context("StopPodSandbox on a full disk")?;
    let status = cx.cri.pod_status(&ready.id).await?.status.context("no status")?;
    ensure!(status.state() == PodSandboxState::SandboxNotready, "the stopped pod is shown as {status:?}");
    cx.cri.remove_pod(&ready.id).await.context("RemovePodSandbox on a full disk")?;

    disk.fill()?;
    cx.cri.remove_image(&unused).await.context("RemoveImage on a full disk")?;
    ensure!(cx.cri.image(&unused).await?.is_none(), "the image is still there");
    disk.frees("the removal of the image", if disk.scarce == Scarce::Bytes { 1 << 20 } else { 10 }).await?;

    disk.fill()?;
    cx.cri.remove(&eater.id).await.context("RemoveContainer on a full disk")?;
    disk.frees("the removal of the container", min).await?;
    cx.exec_works(&running).await?;

    disk.fill()?;
    cx.cri.remove(&running).await.context("RemoveContainer of a running container on a full disk")?;
    cx.cri.drop_pod(&pod.id).await.context("stop and remove of the last pod on a full disk")?;
    listed(cx, 0, 0).await?;
    // What was removed stays removed.
    cx.node.crash().await?;
    listed(cx, 0, 0).await.context("after a start on a full disk")?;
    ensure!(cx.cri.image(&unused).await?.is_none(), "the image came back");

    disk.unfill()?;
    let (pod, ..) = cx.sleeping(cx.pod_config()).await.context("a pod once there is space again")?;
    cx.cri.drop_pod(&pod.id).await?;
    disk.unmount(cx).await
}

async fn full_tmpfs(cx: Context) -> Result<()> {
    let disk = Disk::tmpfs(&cx, Scarce::Bytes).await?;
    every_removal_works(&cx, disk).await
}

async fn full_tmpfs_without_inodes(cx: Context) -> Result<()> {
    let disk = Disk::tmpfs(&cx, Scarce::Inodes).await?;
    every_removal_works(&cx, disk).await
}

async fn full_ext4(cx: Context) -> Result<()> {
    let disk = Disk::ext4(&cx, Scarce::Bytes).await?;
    every_removal_works(&cx, disk).await
}

async fn full_ext4_without_inodes(cx: Context) -> Result<()> {
    let disk = Disk::ext4(&cx, Scarce::Inodes).await?;
    every_removal_works(&cx, disk).await
}

fn layers(root: &Path) -> Result<usize> {
    Ok(fs::read_dir(root.join("images/layers"))?.count())
}

/// Another image has the same layers, so the removal frees no space for the index.
async fn image_removed_on_a_full_disk_stays_removed(cx: Context) -> Result<()> {
    let disk = Disk::tmpfs(&cx, Scarce::Bytes).await?;
    let (one, two) = (Fixture::image("number-1"), Fixture::image("number-2"));
    cx.cri.pull(&one).await?;
    cx.cri.pull(&two).await?;
    disk.fill()?;
    let refused = cx.cri.pull(&Fixture::image("number-3")).await.err().context("a pull on a full disk")?;
    ensure!(
        refused.code() == Code::ResourceExhausted && refused.message().contains("copepod image prune"),
        "a pull on a full disk ended with {refused}"
    );
    disk.fill()?;
    cx.cri.remove_image(&one).await.context("RemoveImage on a full disk")?;
    let images = cx.cri.images().await?;
    ensure!(
        cx.cri.image(&one).await?.is_none() && images.len() == 1,
        "after the removal of {one}: {images:?}"
    );
    disk.fill()?;
    cx.node.crash().await?;
    ensure!(cx.cri.image(&one).await?.is_none(), "the image came back");
    ensure!(cx.cri.image(&two).await?.is_some(), "the other image is lost");
    let left = layers(&disk.root)?;
    ensure!(left == 1, "{left} layers are in the store instead of the one of the other image");
    disk.fill()?;
    cx.cri.remove_image(&two).await.context("RemoveImage of the last one on a full disk")?;
    wait::until_true("its layer to go", secs(10), || layers(&disk.root).is_ok_and(|left| left == 0)).await?;
    disk.unfill()?;
    cx.cri.pull(&one).await.context("a pull once there is space again")?;
    cx.cri.remove_image(&one).await?;
    disk.unmount(&cx).await
}

/// A daemon that is killed while the disk is full starts again with its pods and can remove them.
async fn start_on_a_full_disk(cx: Context) -> Result<()> {
    let disk = Disk::ext4(&cx, Scarce::Bytes).await?;
    let (pod, running, _) = cx.sleeping(cx.pod_config()).await?;
    let (config, min) = greedy(&cx, disk.scarce);
    let eater = cx.run(&pod, &config).await?;
    disk.fill()?;
    cx.node.crash().await?;
    disk.fill()?;
    cx.exec_works(&running).await?;
    cx.cri.remove(&eater.id).await.context("RemoveContainer after a start on a full disk")?;
    disk.frees("the removal of the container", min).await?;
    cx.cri.drop_pod(&pod.id).await?;
    disk.unfill()?;
    disk.unmount(&cx).await
}
