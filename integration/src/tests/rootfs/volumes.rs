//! Volumes of kubelet and of the image, the files below /etc, and the view of an exec.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::context::Context;
use crate::expect::{ensure, file_has};
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::tests::escape::{as_kubelet, image_with, listing, sleeper};
use crate::tests::mounts::PRIVATE;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(files_below_etc_on_a_volume),
        test!(image_volume_is_not_made_on_a_volume),
        test!(image_volume_is_writable_below_a_read_only_root),
        test!(image_volume_on_the_root_changes_nothing),
        test!(users_are_the_images),
        test!(exec_sees_the_same_root),
    ]
}

async fn files_below_etc_on_a_volume(cx: Context) -> Result<()> {
    let (etc, hosts) = (cx.volume("etc")?, cx.volume("x")?.join("hosts"));
    fs::write(etc.join("own"), "own")?;
    fs::write(etc.join("resolv.conf"), "the volume's\n")?;
    fs::write(&hosts, "127.0.0.1 kubelets\n")?;
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let config =
        cx.sleeper("one").mount(&etc, "/etc", false, PRIVATE).mount(&hosts, "/etc/hosts", false, PRIVATE);
    let c = cx.start(&pod, &config).await?;
    let line = "cat /etc/own /etc/hosts && test -s /etc/hostname && ! grep volume /etc/resolv.conf";
    cx.prints(&c, line, "own127.0.0.1 kubelets").await?;
    file_has(&etc.join("resolv.conf"), "the volume's\n")?;
    // A volume at exactly that path replaces our file.
    let own = cx.volume("x")?.join("resolv");
    fs::write(&own, "nameserver 192.0.2.53\n")?;
    let c = cx.start(&pod, &cx.sleeper("two").mount(&own, "/etc/resolv.conf", false, PRIVATE)).await?;
    cx.prints(&c, "cat /etc/resolv.conf", "nameserver 192.0.2.53").await?;
    Ok(())
}

async fn image_volume_is_not_made_on_a_volume(cx: Context) -> Result<()> {
    let volume = cx.volume("v")?;
    let image = image_with(&cx, json!({"Volumes": {"/v/declared": {}, "/link/deep": {}}}), |w| {
        w.symlink("link", "/v")
    })
    .await?;
    let pod = cx.pod().await?;
    let c = cx.start(&pod, &sleeper("one", &image).mount(&volume, "/v", false, PRIVATE)).await?;
    let on_volume = listing(&volume)?;
    ensure!(on_volume.is_empty(), "created on the volume: {on_volume:?}");
    cx.cri.stop(&c, 0).await?;
    Ok(())
}

async fn image_volume_is_writable_below_a_read_only_root(cx: Context) -> Result<()> {
    let image = image_with(&cx, json!({"Volumes": {"/data": {}, "/var/lib/new": {}, "/v": {}}}), |w| {
        w.file("data/from-image", 0o644, b"image\n")
    })
    .await?;
    let volume = cx.volume("v")?;
    let pod = cx.pod().await?;
    let config = sleeper("one", &image)
        .mount(&volume, "/v", true, PRIVATE)
        .with(|c| c.security().readonly_rootfs = true);
    let c = cx.start(&pod, &config).await?;
    let line = "cat /data/from-image && echo x > /data/from-image && echo y > /var/lib/new/file && cat /data/from-image";
    cx.prints(&c, line, "image\nx").await?;
    for place in ["/file", "/var/lib/file", "/v/file"] {
        let out = cx.cri.exec(&c, &["/bin/sh", "-c", &format!("echo x > {place}")]).await?;
        ensure!(out.code != 0 && out.stderr.contains("Read-only"), "a write to {place} gave {out:?}");
    }
    // Another container starts with the image's content.
    let config = sleeper("two", &image).with(|c| c.security().readonly_rootfs = true);
    let c = cx.start(&pod, &config).await?;
    cx.prints(&c, "cat /data/from-image", "image").await?;
    Ok(())
}

async fn image_volume_on_the_root_changes_nothing(cx: Context) -> Result<()> {
    let image =
        image_with(&cx, json!({"Volumes": {"/": {}, "/slash": {}, "/..": {}}}), |w| w.symlink("slash", "/"))
            .await?;
    let pod = cx.pod().await?;
    let config = sleeper("one", &image).with(|c| c.security().readonly_rootfs = true);
    let c = cx.start(&pod, &config).await?;
    let out = cx.cri.exec(&c, &["/bin/sh", "-c", "echo x > /file"]).await?;
    ensure!(out.code != 0 && out.stderr.contains("Read-only"), "a write to the read-only root gave {out:?}");
    Ok(())
}

/// As with containerd, a volume on /etc/passwd changes what programs see, but not the container's user.
async fn users_are_the_images(cx: Context) -> Result<()> {
    let passwd = cx.volume("x")?.join("passwd");
    fs::write(&passwd, "root:x:0:0::/:/bin/sh\nalice:x:0:0::/:/bin/sh\nghost:x:7:7::/:/bin/sh\n")?;
    let pod = cx.pod().await?;
    let named = |name: &str, user: &str| {
        cx.sleeper(name)
            .mount(&passwd, "/etc/passwd", true, PRIVATE)
            .with(|c| user.clone_into(&mut c.security().run_as_username))
    };
    let c = cx.start(&pod, &named("one", "alice")).await?;
    cx.prints(&c, "id -u; grep -c ghost /etc/passwd", "1000\n1")
        .await
        .context("the user must be the image's alice, and the file the volume's")?;
    let error = cx.create(&pod, &named("two", "ghost")).await.err().context("a user that the image lacks")?;
    ensure!(format!("{error:#}").contains("ghost"), "the error does not name the user: {error:#}");
    ensure!(
        fs::read_dir(passwd.parent().context("folder")?)?.count() == 1,
        "the volume's folder was emptied"
    );
    Ok(())
}

async fn exec_sees_the_same_root(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let c = cx.start(&pod, &as_kubelet(cx.sleeper("one"))).await?;
    ensure!(
        cx.cri.sh(&c, "ls -a /").await? == cx.cri.sh(&c, "ls -a /..").await?,
        "there is something above /"
    );
    let text = cx
        .cri
        .sh(
            &c,
            "readlink /proc/self/root; stat -c '%d %i' / /proc/1/root/ | uniq | wc -l; \
             cut -d' ' -f5 /proc/self/mountinfo | grep -cx /; grep -c ' / / .* - overlay' /proc/self/mountinfo",
        )
        .await?;
    ensure!(
        text == "/\n1\n1\n1",
        "root, number of roots of init and exec, mounts of / and overlays at /: {text:?}"
    );
    Ok(())
}
