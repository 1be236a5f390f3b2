//! Image volumes: content, sub-paths, what keeps the image, and images that try to reach the host.

use std::fs;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use serde_json::json;

use super::escape::{image_with, sleeper};
use super::mounts::{PRIVATE, SHARED, privileged};
use super::nested::mounted_below;
use super::propagation::Playground;
use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::images::Recipe;
use crate::images::layer::{Packing, Writer};
use crate::proc::mount_options as options;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(content_is_complete_and_read_only),
        test!(images_of_one_layer_and_of_none).ours(),
        test!(sub_paths_stay_in_the_image).ours(),
        test!(status_names_the_image_by_its_id).ours(),
        test!(image_stays_while_it_is_mounted).own(),
        test!(a_failed_create_gives_the_image_back).own(),
        test!(on_special_places).ours(),
        test!(on_a_bidirectional_volume_the_host_sees_nothing).ours(),
        test!(contradictions_are_refused).ours(),
    ]
}

/// A volume of the image with this name or id.
fn volume(image: &str, place: &str, sub_path: &str) -> api::Mount {
    api::Mount {
        container_path: place.to_owned(),
        readonly: true,
        image: Some(api::ImageSpec { image: image.to_owned(), ..Default::default() }),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    }
}

/// A sleeping container with these volumes.
fn with(cx: &Context, name: &str, mounts: Vec<api::Mount>) -> api::ContainerConfig {
    cx.sleeper(name).with(|c| c.mounts.extend(mounts))
}

/// The error of a create, which must fail with the prefix that kubelet counts.
async fn failure(cx: &Context, pod: &Pod, mount: api::Mount) -> Result<String> {
    let config = with(cx, "refused", vec![mount]).like(&pod.config);
    cx.need(&Fixture::image("busybox")).await?;
    let refused = cx.cri.create(&pod.id, &config, &pod.config).await;
    let status = refused.err().context("the volume was accepted")?;
    ensure!(
        status.message().starts_with("ImageVolumeMountFailed: ") && status.code() == tonic::Code::Unknown,
        "kubelet would not count this error: {:?} {}",
        status.code(),
        status.message()
    );
    Ok(status.message().to_owned())
}

async fn content_is_complete_and_read_only(cx: Context) -> Result<()> {
    let pod = privileged(&cx).await?;
    let id = cx.cri.pull(&Fixture::image("whiteouts")).await?;
    let before = fs::read_to_string("/proc/self/mountinfo")?.lines().count();
    let c = cx.start(&pod, &with(&cx, "one", vec![volume(&id, "/i", "")]).privileged()).await?;
    cx.prints(&c, "cat /i/etc/marker /i/w/keep /i/w/turned", "from the image\nlower\nnow a file").await?;
    cx.prints(
        &c,
        "ls /i/w/opaque; ls -d /i/w/gone /i/w/remove 2>/dev/null; stat -c %u:%g /i/w/owned",
        "new\n1234:5678",
    )
    .await?;
    cx.prints(&c, "/i/bin/busybox echo a program of it", "a program of it").await?;
    for line in ["echo x > /i/etc/marker", "touch /i/new", "rm /i/etc/passwd", "mkdir /i/etc/d"] {
        let out = cx.cri.exec(&c, &["/bin/sh", "-c", line]).await?;
        ensure!(out.code != 0 && out.stderr.contains("Read-only"), "`{line}` gave {out:?}");
    }
    // Not even with all capabilities: the file system itself has no writable layer.
    let out = cx.cri.exec(&c, &["/bin/sh", "-c", "mount -o remount,bind,rw /i && touch /i/new"]).await?;
    ensure!(cx.node.is_foreign() || out.code != 0, "a privileged container wrote to the image");
    let after = fs::read_to_string("/proc/self/mountinfo")?.lines().count();
    ensure!(cx.node.is_foreign() || after == before, "the host has {after} mounts instead of {before}");
    Ok(())
}

async fn images_of_one_layer_and_of_none(cx: Context) -> Result<()> {
    let mut layer = Writer::new();
    layer.file("data/file", 0o644, b"data\n")?;
    // There is nothing below this layer, so its whiteouts hide nothing; they must not be seen either.
    layer.file("data/.wh.gone", 0, b"")?;
    let single = format!("{}-single", cx.name);
    let image = Recipe::new(&[layer.finish(Packing::Gzip)?], json!({})).build();
    cx.fixture.registry.push(&single, "1", &image).await?;
    let empty = format!("{}-empty", cx.name);
    cx.fixture.registry.push(&empty, "1", &Recipe::new(&[], json!({})).build()).await?;
    let (single, empty) = (format!("registry.test/{single}:1"), format!("registry.test/{empty}:1"));
    for image in [&single, &empty] {
        cx.need(image).await?;
    }
    let pod = cx.pod().await?;
    let many = Fixture::image("many-layers");
    cx.need(&many).await?;
    let mounts = vec![volume(&single, "/s", ""), volume(&empty, "/e", ""), volume(&many, "/m", "layers")];
    let c = cx.start(&pod, &with(&cx, "one", mounts)).await?;
    cx.prints(
        &c,
        "ls -A /s/data; cat /s/data/file; ls -A /e | wc -l; cat /m/0 /m/59 /m/last",
        "file\ndata\n0\n05959",
    )
    .await?;
    for path in ["/s/x", "/e/x", "/m/x"] {
        let out = cx.cri.exec(&c, &["/bin/sh", "-c", &format!("echo > {path}")]).await?;
        ensure!(out.code != 0 && out.stderr.contains("Read-only"), "{path} was written: {out:?}");
    }
    Ok(())
}

/// CVE-2021-25741 and the like: a sub-path is resolved by the runtime, in a root that is not its own.
async fn sub_paths_stay_in_the_image(cx: Context) -> Result<()> {
    let bait = cx.volume("bait")?;
    fs::write(bait.join("secret"), "the host's")?;
    let outside = bait.display().to_string();
    let image = image_with(&cx, json!({}), |w| {
        w.file("sub/folder/file", 0o644, b"in the image\n")?;
        w.symlink("absolute", "/sub/folder")?;
        w.symlink("relative", "sub/../sub/folder")?;
        w.symlink("chain", "absolute")?;
        w.symlink("up", "../../../../../../../../../../sub/folder")?;
        w.symlink("host", &outside)?;
        w.symlink("climb", &format!("../../../../../../../../../..{outside}"))?;
        w.symlink("process", "/proc/1/root/etc")?;
        w.symlink("myself", "/proc/self/fd")?;
        w.symlink("circle", "circle")
    })
    .await?;
    cx.need(&image).await?;
    let pod = cx.pod().await?;
    for (name, sub_path) in [
        ("plain", "sub/folder"),
        ("slashes", "./sub//folder/"),
        ("absolute", "absolute"),
        ("relative", "relative"),
        ("chain", "chain"),
        ("up", "up"),
    ] {
        let c = cx.start(&pod, &with(&cx, name, vec![volume(&image, "/i", sub_path)])).await?;
        cx.prints(&c, "cat /i/file; ls -A /i", "in the image\nfile").await.context(sub_path)?;
        let shown = cx.cri.container(&c).await?.mounts;
        let shown = shown.first().map(|mount| mount.image_sub_path.clone()).unwrap_or_default();
        ensure!(shown == sub_path, "status shows {shown:?}");
    }
    let c = cx.start(&pod, &with(&cx, "file", vec![volume(&image, "/one", "absolute/file")])).await?;
    cx.prints(&c, "cat /one; stat -c %F /one", "in the image\nregular file").await?;
    for sub_path in [
        "absent",
        "sub/absent",
        "sub/folder/file/below",
        "host",
        "host/secret",
        "climb",
        "process",
        "myself",
        "circle",
    ] {
        let text = failure(&cx, &pod, volume(&image, "/i", sub_path)).await.context(sub_path)?;
        ensure!(text.contains("/i") && text.contains(sub_path), "the error does not say what failed: {text}");
    }
    // The links are part of the image's content as they are; in the container they lead to the container's own files.
    let c = cx.start(&pod, &with(&cx, "whole", vec![volume(&image, "/i", "")])).await?;
    let seen = cx.cri.exec(&c, &["/bin/sh", "-c", "cat /i/host/secret /i/climb/secret"]).await?;
    ensure!(seen.code != 0 && !seen.stdout.contains("the host's"), "the host's file was read: {seen:?}");
    Ok(())
}

async fn status_names_the_image_by_its_id(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let name = Fixture::image("number-1");
    let id = cx.cri.pull(&name).await?;
    let mut by_id = volume(&id, "/a", "etc");
    // As kubelet sends it.
    let spec = by_id.image.get_or_insert_default();
    spec.user_specified_image = name.clone();
    spec.annotations.insert(String::from("note"), String::from("kept"));
    let c = cx.start(&pod, &with(&cx, "one", vec![by_id.clone(), volume(&name, "/b", "")])).await?;
    let check = |mounts: &[api::Mount]| -> Result<()> {
        let mut wanted = by_id.clone();
        wanted.image.get_or_insert_default().image_ref = id.clone();
        ensure!(mounts.first() == Some(&wanted), "status shows {:?} instead of {wanted:?}", mounts.first());
        let second = mounts.get(1).and_then(|mount| mount.image.clone()).context("no second image")?;
        ensure!(
            (&second.image, &second.image_ref, &second.user_specified_image) == (&id, &id, &name),
            "status shows {second:?}"
        );
        Ok(())
    };
    check(&cx.cri.container(&c).await?.mounts)?;
    // kubelet's garbage collector asks for dead containers too.
    cx.cri.stop(&c, 0).await?;
    check(&cx.cri.container(&c).await?.mounts)
}

/// Names of the leases' owners.
fn leases(cx: &Context) -> Result<Vec<String>> {
    let folder = cx.node.paths.root.join("images/leases");
    let names = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn layers(cx: &Context) -> Result<usize> {
    Ok(fs::read_dir(cx.node.paths.root.join("images/layers"))?.count())
}

async fn image_stays_while_it_is_mounted(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let image = Fixture::image("whiteouts");
    cx.need(&image).await?;
    let mounts = vec![volume(&image, "/a", "w"), volume(&image, "/b", "x")];
    let c = cx.start(&pod, &with(&cx, "one", mounts)).await?;
    let held = leases(&cx)?;
    ensure!(held.len() == 2, "one lease for the root and one for the image are wanted: {held:?}");
    cx.cri.remove_image(&image).await?;
    let kept = layers(&cx)?;
    let whole = |when: &'static str| {
        let (cri, c) = (cx.cri.clone(), c.clone());
        async move {
            let seen = cri.sh(&c, "cat /a/keep /a/turned; wc -l < /b/private").await.context(when)?;
            ensure!(seen == "lower\nnow a file\n2", "{when}: {seen:?}");
            anyhow::Ok(())
        }
    };
    whole("after the image's removal").await?;
    // Its leases are known as the container's by the next daemon.
    cx.node.restart().await?;
    whole("after a restart").await?;
    cx.node.crash().await?;
    cx.cri.remove_image(&Fixture::image("number-2")).await?;
    cx.cri.pull(&Fixture::image("number-2")).await?;
    cx.cri.remove_image(&Fixture::image("number-2")).await?;
    ensure!(
        leases(&cx)?.len() == 2 && layers(&cx)? == kept,
        "leases {:?}, {} layers",
        leases(&cx)?,
        layers(&cx)?
    );
    whole("after a crash and the removal of another image").await?;
    cx.cri.stop(&c, 0).await?;
    ensure!(leases(&cx)?.len() == 2, "a lease was released before the container was removed");
    cx.cri.remove(&c).await?;
    ensure!(leases(&cx)?.is_empty(), "leases are left: {:?}", leases(&cx)?);
    let left = layers(&cx)?;
    ensure!(left < kept, "the image's layers are left: {left} of {kept}");
    Ok(())
}

async fn a_failed_create_gives_the_image_back(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let image = Fixture::image("number-3");
    cx.need(&image).await?;
    let text = failure(&cx, &pod, volume("registry.test/never-pulled:1", "/i", "")).await?;
    ensure!(text.contains("never-pulled") && text.contains("pull it first"), "{text}");
    failure(&cx, &pod, volume(&image, "/i", "absent")).await?;
    // The place cannot be a folder.
    failure(&cx, &pod, volume(&image, "/etc/marker", "")).await?;
    ensure!(leases(&cx)?.is_empty(), "leases are left: {:?}", leases(&cx)?);
    let containers = cx.cri.containers(None).await?;
    ensure!(containers.is_empty(), "listed: {containers:?}");
    Ok(())
}

async fn on_special_places(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let image = Fixture::image("number-1");
    cx.need(&image).await?;
    let outer = cx.volume("outer")?;
    fs::write(outer.join("file"), "outer")?;
    let mut quiet = volume(&image, "/quiet", "");
    quiet.mount_options = vec![String::from("noexec"), String::from("nodev"), String::from("nosuid")];
    let config = cx.sleeper("one").mount(&outer, "/outer", false, PRIVATE).with(|c| {
        c.mounts.extend([
            volume(&image, "/dev/data", "etc"),
            volume(&image, "/outer/inner", ""),
            volume(&image, "/var/busybox", "bin/busybox"),
            quiet,
        ]);
    });
    let c = cx.start(&pod, &config).await?;
    cx.prints(
        &c,
        "cat /dev/data/marker /outer/inner/etc/marker /outer/file",
        "from the image\nfrom the image\nouter",
    )
    .await?;
    cx.prints(&c, "/var/busybox echo one file", "one file").await?;
    let text = match cx.cri.exec(&c, &["/quiet/bin/busybox", "true"]).await {
        Ok(out) => format!("{out:?}"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(text.contains("ermission denied"), "a program of a noexec volume: {text}");
    let found = options(cx.pid(&c).await?, "/quiet")?;
    for option in ["ro", "noexec", "nodev", "nosuid"] {
        ensure!(found.iter().any(|have| have == option), "{option} is missing: {found:?}");
    }
    let out = cx.cri.exec(&c, &["/bin/sh", "-c", "echo > /dev/data/x"]).await?;
    ensure!(out.code != 0 && out.stderr.contains("Read-only"), "the volume in /dev was written: {out:?}");
    ensure!(mounted_below(&outer)?.is_empty(), "the host sees the nested volume");
    Ok(())
}

async fn on_a_bidirectional_volume_the_host_sees_nothing(cx: Context) -> Result<()> {
    let ground = Playground::new(&cx, "shared")?;
    let source = ground.path("v")?;
    let pod = privileged(&cx).await?;
    let image = Fixture::image("number-1");
    cx.need(&image).await?;
    let before = mounted_below(&ground.0)?;
    let config = sleeper("one", &Fixture::image("busybox"))
        .privileged()
        .mount(&source, "/shared", false, SHARED)
        .with(|c| c.mounts.push(volume(&image, "/shared/image", "etc")));
    let c = cx.start(&pod, &config).await?;
    cx.prints(&c, "cat /shared/image/marker", "from the image").await?;
    let now = mounted_below(&ground.0)?;
    ensure!(now == before, "mounts of the host there were {before:?} and are {now:?}");
    ensure!(!source.join("image/marker").exists(), "the host sees the image");
    cx.cri.sh(&c, "mkdir /shared/own && mount -t tmpfs none /shared/own").await?;
    let now = mounted_below(&ground.0)?;
    ensure!(now.len() == before.len() + 1, "the container's own mount does not reach the host: {now:?}");
    Ok(())
}

async fn contradictions_are_refused(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let image = Fixture::image("busybox");
    let change = |change: fn(&mut api::Mount)| {
        let mut mount = volume(&image, "/i", "");
        change(&mut mount);
        mount
    };
    for (field, mount) in [
        ("readonly", change(|m| m.readonly = false)),
        ("host_path", change(|m| m.host_path = String::from("/tmp"))),
        ("propagation", change(|m| m.propagation = SHARED.into())),
        ("image_sub_path", change(|m| m.image_sub_path = String::from("../etc"))),
        ("image_sub_path", change(|m| m.image_sub_path = String::from("/etc"))),
        ("image_sub_path", change(|m| (m.image, m.image_sub_path) = (None, String::from("etc")))),
    ] {
        let config = shapes::container("no", &image, &["true"]).with(|c| c.mounts.push(mount));
        let refused = cx.create(&pod, &config).await;
        let text = format!("{:#}", refused.err().with_context(|| format!("{field} was accepted"))?);
        ensure!(text.contains(&format!("mounts[0].{field}")), "the error does not name {field}: {text}");
    }
    Ok(())
}
