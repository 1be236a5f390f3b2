//! Symlinks of the image on the paths of mounts, masks and the working directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::context::Context;
use crate::expect::{ensure, file_has};
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};
use crate::tests::escape::{as_kubelet, image_with, sleeper};
use crate::tests::mounts::PRIVATE;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(dangling_resolv_conf),
        test!(dangling_link_under_a_file),
        test!(dangling_link_on_the_way_of_a_volume),
        test!(dangling_link_under_a_volume),
        test!(dangling_working_directory),
        test!(links_that_turn_in_circles),
        test!(mask_that_leads_to_the_root),
        test!(read_only_path_that_leads_to_the_root),
        test!(masks_lie_where_links_lead),
        test!(magic_links_lead_nowhere),
    ]
}

async fn dangling_resolv_conf(cx: Context) -> Result<()> {
    let target = "../run/systemd/resolve/stub-resolv.conf";
    let image = image_with(&cx, json!({}), |w| w.symlink("etc/resolv.conf", target)).await?;
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let c = cx.start(&pod, &sleeper("one", &image)).await?;
    cx.cri.sh(&c, "test -s /etc/resolv.conf && test -s /run/systemd/resolve/stub-resolv.conf").await?;
    Ok(())
}

async fn dangling_link_under_a_file(cx: Context) -> Result<()> {
    let file = cx.volume("x")?.join("localtime");
    fs::write(&file, "zone")?;
    let image =
        image_with(&cx, json!({}), |w| w.symlink("etc/localtime", "/usr/share/zoneinfo/Etc/UTC")).await?;
    let pod = cx.pod().await?;
    let c = cx.start(&pod, &sleeper("one", &image).mount(&file, "/etc/localtime", true, PRIVATE)).await?;
    cx.prints(&c, "cat /etc/localtime /usr/share/zoneinfo/Etc/UTC", "zonezone").await?;
    let on_host = fs::read("/usr/share/zoneinfo/Etc/UTC").ok();
    ensure!(on_host.is_none_or(|zone| zone != b"zone"), "the host's time zone was replaced");
    Ok(())
}

/// The mount point of the service account, in an image whose /var/run is a symlink to a missing folder.
async fn dangling_link_on_the_way_of_a_volume(cx: Context) -> Result<()> {
    let volume = cx.volume("token")?;
    fs::write(volume.join("token"), "secret")?;
    let image = image_with(&cx, json!({}), |w| w.symlink("var/run", "/absent/run")).await?;
    let pod = cx.pod().await?;
    let place = "/var/run/secrets/kubernetes.io/serviceaccount";
    let c = cx.start(&pod, &sleeper("one", &image).mount(&volume, place, true, PRIVATE)).await?;
    cx.prints(&c, &format!("cat {place}/token"), "secret").await?;
    ensure!(!Path::new("/absent").exists(), "/absent was created on the host");
    Ok(())
}

async fn dangling_link_under_a_volume(cx: Context) -> Result<()> {
    let volume = cx.volume("v")?;
    fs::write(volume.join("file"), "volume")?;
    let image = image_with(&cx, json!({}), |w| {
        w.symlink("jump", "/tmp/foo/bar")?;
        w.symlink("chain", "usr/../../../one/./two")?;
        w.symlink("one", "jump2")
    })
    .await?;
    let pod = cx.pod().await?;
    let config = sleeper("one", &image).mount(&volume, "/jump", false, PRIVATE).mount(
        &volume,
        "/chain/three",
        false,
        PRIVATE,
    );
    let c = cx.start(&pod, &config).await?;
    let line = "cat /tmp/foo/bar/file /jump2/two/three/file; readlink /jump";
    cx.prints(&c, line, "volumevolume/tmp/foo/bar").await
}

async fn dangling_working_directory(cx: Context) -> Result<()> {
    let image =
        image_with(&cx, json!({"WorkingDir": "/work/sub"}), |w| w.symlink("work", "srv/not/there")).await?;
    let pod = cx.pod().await?;
    let config = shapes::container("one", &image, &["/bin/sh", "-c", "pwd -P; stat -c %a /srv/not"]);
    cx.outputs(&pod, &config, "/srv/not/there/sub\n755\n").await
}

async fn links_that_turn_in_circles(cx: Context) -> Result<()> {
    let volume = cx.volume("v")?;
    let image = image_with(&cx, json!({}), |w| {
        w.symlink("a", "b/x")?;
        w.symlink("b", "a/y")?;
        w.symlink("self", "self")
    })
    .await?;
    let pod = cx.pod().await?;
    for place in ["/a/volume", "/self", "/self/volume"] {
        let made = cx.create(&pod, &sleeper("one", &image).mount(&volume, place, false, PRIVATE)).await;
        let error = format!("{:#}", made.err().context("a mount behind a circle of links")?);
        ensure!(error.contains(place), "the error does not name {place}: {error}");
    }
    Ok(())
}

async fn mask_that_leads_to_the_root(cx: Context) -> Result<()> {
    let image = image_with(&cx, json!({}), |w| w.symlink("m", "bin/..")).await?;
    let pod = cx.pod().await?;
    let config = sleeper("one", &image).with(|c| c.security().masked_paths = vec![String::from("/m")]);
    let error = cx.create(&pod, &config).await.err().context("the root was masked")?;
    ensure!(format!("{error:#}").contains("/m"), "the error does not name the path: {error:#}");
    Ok(())
}

async fn read_only_path_that_leads_to_the_root(cx: Context) -> Result<()> {
    let image = image_with(&cx, json!({}), |w| w.symlink("r", "/")).await?;
    let pod = cx.pod().await?;
    let config = sleeper("one", &image).with(|c| c.security().readonly_paths = vec![String::from("/r")]);
    let error = cx.create(&pod, &config).await.err().context("the root was mounted over")?;
    ensure!(format!("{error:#}").contains("/r"), "the error does not name the path: {error:#}");
    Ok(())
}

/// Below /proc and /sys the kernel's own symlinks are followed, and nothing else can redirect a mask.
async fn masks_lie_where_links_lead(cx: Context) -> Result<()> {
    let volume = cx.volume("v")?;
    fs::write(volume.join("secret"), "secret")?;
    symlink("/etc/marker", volume.join("link"))?;
    let pod = cx.pod().await?;
    let config = as_kubelet(cx.sleeper("one")).mount(&volume, "/v", false, PRIVATE).with(|c| {
        let more = [
            "/sys/class/net/lo/address",
            "/v/secret",
            "/v/link",
            "/proc/absent/x",
            "/proc/version/x",
            "/bin/ls/x",
        ];
        c.security().masked_paths.extend(more.map(str::to_owned));
    });
    let c = cx.start(&pod, &config).await?;
    // All masked files are empty; /proc/version, below which a path was to be masked, is not.
    let line = "cat /sys/devices/virtual/net/lo/address /v/secret /v/link /etc/marker /proc/keys; ls /sys/firmware; \
                cat /proc/version | wc -l";
    cx.prints(&c, line, "1").await?;
    file_has(&volume.join("secret"), "secret")?;
    Ok(())
}

async fn magic_links_lead_nowhere(cx: Context) -> Result<()> {
    let volume = cx.volume("v")?;
    let pod = cx.pod().await?;
    for place in ["/dev/fd/0", "/dev/stdin", "/proc/1/cwd/tmp", "/dev/fd/3/x"] {
        let made = cx.create(&pod, &cx.sleeper("one").mount(&volume, place, false, PRIVATE)).await;
        ensure!(made.is_err(), "a volume at {place} was accepted");
    }
    let image = image_with(&cx, json!({}), |w| w.symlink("p", "/proc/1/root")).await?;
    // While volumes are attached, /proc is not mounted yet: the link leads to new folders of the image.
    let c = cx.start(&pod, &sleeper("two", &image).mount(&volume, "/p/volume", false, PRIVATE)).await?;
    cx.cri.sh(&c, "test ! -e /volume").await?;
    ensure!(!Path::new("/volume").exists(), "/volume was created on the host");
    Ok(())
}
