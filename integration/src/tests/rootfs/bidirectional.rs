//! What is mounted in a container must not appear on the host through a Bidirectional volume.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::context::Context;
use crate::expect::{ensure, file_has};
use crate::runner::{Test, test};
use crate::shapes::ContainerExt as _;
use crate::tests::escape::{as_kubelet, image_with, sleeper};
use crate::tests::mounts::{PRIVATE, SHARED, privileged, tmpfs, unmount};
use crate::tests::nested::mounted_below;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(files_below_etc_stay_off_the_host),
        test!(link_onto_a_bidirectional_volume),
        test!(two_bidirectional_volumes_on_one_place),
        test!(masks_stay_off_bidirectional_volumes),
    ]
}

/// A folder of the host that is a separate mount, so that mounts on it are visible.
fn mount_of_its_own(cx: &Context) -> Result<PathBuf> {
    let place = cx.volume("bidirectional")?;
    tmpfs(&place)?;
    Ok(place)
}

/// Nothing but the folder itself is mounted at or below it on the host.
fn nothing_is_mounted_on(place: &Path) -> Result<()> {
    let mounts = mounted_below(place)?;
    ensure!(mounts.len() == 1, "mounted on the host are {mounts:?}, not {} alone", place.display());
    Ok(())
}

async fn files_below_etc_stay_off_the_host(cx: Context) -> Result<()> {
    let place = mount_of_its_own(&cx)?;
    let looked = async {
        for name in ["resolv.conf", "hostname", "hosts"] {
            fs::write(place.join(name), "the host's")?;
        }
        let image = image_with(&cx, json!({}), |w| w.symlink("etc", "/shared")).await?;
        let pod = privileged(&cx).await?;
        for (name, at) in [("direct", "/etc"), ("by-link", "/shared")] {
            let image =
                if name == "direct" { crate::fixture::Fixture::image("busybox") } else { image.clone() };
            let config = sleeper(name, &image).privileged().mount(&place, at, false, SHARED);
            let c = cx.start(&pod, &config).await?;
            nothing_is_mounted_on(&place)?;
            cx.prints(&c, &format!("cat {at}/resolv.conf"), "the host's").await?;
        }
        file_has(&place.join("hosts"), "the host's")?;
        Ok(())
    }
    .await;
    unmount(&place)?;
    looked
}

/// A symlink of the image leads a volume onto another, Bidirectional one.
async fn link_onto_a_bidirectional_volume(cx: Context) -> Result<()> {
    let place = mount_of_its_own(&cx)?;
    let looked = async {
        fs::create_dir(place.join("x"))?;
        let inner = cx.volume("inner")?;
        let image = image_with(&cx, json!({}), |w| w.symlink("b", "/shared")).await?;
        let pod = privileged(&cx).await?;
        let config = sleeper("one", &image)
            .privileged()
            .mount(&place, "/shared", false, SHARED)
            .mount(&inner, "/b/x", false, PRIVATE)
            .mount(&inner, "/dev/y", false, PRIVATE);
        let made = cx.start(&pod, &config).await;
        nothing_is_mounted_on(&place)?;
        let c = made?;
        // It is still a shared mount.
        cx.cri.sh(&c, "mkdir /shared/in && mount -t tmpfs none /shared/in").await?;
        ensure!(mounted_below(&place)?.len() == 2, "a mount of the container's does not reach the host");
        cx.cri.sh(&c, "umount /shared/in").await?;
        Ok(())
    }
    .await;
    unmount(&place)?;
    looked
}

async fn two_bidirectional_volumes_on_one_place(cx: Context) -> Result<()> {
    let (one, two) = (mount_of_its_own(&cx)?, mount_of_its_own(&cx)?);
    let looked = async {
        let image = image_with(&cx, json!({}), |w| {
            w.dir("shared", 0o755)?;
            w.symlink("b", "/shared")
        })
        .await?;
        let pod = privileged(&cx).await?;
        let config = sleeper("one", &image)
            .privileged()
            .mount(&one, "/shared", false, SHARED)
            .mount(&two, "/b", false, SHARED);
        let made = cx.start(&pod, &config).await;
        for place in [&one, &two] {
            nothing_is_mounted_on(place)?;
        }
        ensure!(made.is_err(), "two Bidirectional volumes were attached at one place");
        Ok(())
    }
    .await;
    unmount(&one)?;
    unmount(&two)?;
    looked
}

/// A mask or read-only mount on such a volume would remain on the host after the container.
async fn masks_stay_off_bidirectional_volumes(cx: Context) -> Result<()> {
    let place = mount_of_its_own(&cx)?;
    let looked = async {
        fs::create_dir(place.join("folder"))?;
        fs::write(place.join("file"), "the host's")?;
        let pod = privileged(&cx).await?;
        for (masked, readonly) in
            [("/shared/folder", "/absent"), ("/shared/file", "/absent"), ("/absent", "/shared")]
        {
            let config = as_kubelet(cx.sleeper("one")).mount(&place, "/shared", false, SHARED).with(|c| {
                c.security().masked_paths.push(masked.to_owned());
                c.security().readonly_paths.push(readonly.to_owned());
            });
            let made = cx.start(&pod, &config).await;
            nothing_is_mounted_on(&place)?;
            let error = format!("{:#}", made.err().context("a mask on a Bidirectional volume was accepted")?);
            ensure!(error.contains("Bidirectional"), "the error does not give the reason: {error}");
        }
        // Masks at other paths are in effect.
        let config = as_kubelet(cx.sleeper("two")).mount(&place, "/shared", false, SHARED).with(|c| {
            c.security().readonly_paths.extend(["/proc", "/sys"].map(str::to_owned));
        });
        let c = cx.start(&pod, &config).await?;
        cx.prints(&c, "cat /shared/file /proc/keys; ls /sys/firmware | wc -l", "the host's0").await
    }
    .await;
    unmount(&place)?;
    looked
}
