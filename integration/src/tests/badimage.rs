//! Hostile images and registries: they cause a clear error and leave nothing in the store or outside it.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result};
use serde_json::json;
use tar::EntryType;
use tonic::Code;

use super::image::stored;
use crate::context::Context;
use crate::expect::ensure;
use crate::images::layer::{Packing, Writer};
use crate::images::{Image, Recipe};
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(missing_image),
        test!(bad_references),
        test!(digest_that_does_not_match).own(),
        test!(corrupt_layer).own(),
        test!(layer_with_another_diff_id).own(),
        test!(tar_that_climbs_out).own(),
        test!(tar_through_a_symlink).own(),
        test!(truncated_and_foreign_bytes).own(),
        test!(layer_without_a_byte).own(),
        test!(manifest_that_lies).own(),
        test!(too_many_declared_volumes),
    ]
}

async fn missing_image(cx: Context) -> Result<()> {
    let e = cx.cri.pull("registry.test/no-such-image:1").await.err().context("pulled a missing image")?;
    ensure!(e.message().contains("no-such-image"), "the error does not name the image: {e}");
    let e = cx.cri.pull("registry.test/busybox:no-such-tag").await.err().context("pulled a missing tag")?;
    ensure!(e.message().contains("no-such-tag"), "the error does not name the tag: {e}");
    let pod = cx.pod().await?;
    let config = shapes::container("one", "registry.test/never-pulled:1", &["true"]).like(&pod.config);
    let e =
        cx.cri.create(&pod.id, &config, &pod.config).await.err().context("a container without an image")?;
    ensure!(e.message().contains("never-pulled"), "the error does not name the image: {e}");
    ensure!(cx.cri.containers(None).await?.iter().all(|c| c.pod_sandbox_id != pod.id), "it is listed");
    Ok(())
}

async fn bad_references(cx: Context) -> Result<()> {
    let before = cx.cri.images().await?.len();
    for name in [
        "",
        " ",
        "UPPER/case:1",
        "registry.test/busybox:",
        "registry.test/busybox@sha256:short",
        "registry.test/../etc:1",
        "registry.test/a b",
        "http://registry.test/busybox",
        &format!("registry.test/{}:1", "a".repeat(5000)),
    ] {
        ensure!(cx.cri.pull(name).await.is_err(), "`{name}` was pulled");
    }
    let after = cx.cri.images().await?;
    ensure!(after.len() == before, "{before} images were listed before, and now {after:?}");
    Ok(())
}

/// Pulls an image, which must fail with this code and text and leave nothing on the node.
async fn refused(cx: &Context, name: &str, code: Code, text: &str) -> Result<()> {
    let before = stored(cx)?;
    let e = cx.cri.pull(name).await.err().with_context(|| format!("{name} was pulled"))?;
    ensure!(
        e.code() == code && e.message().contains(text),
        "the pull of {name} failed not with {code:?} and `{text}`, but with {e}"
    );
    ensure!(cx.cri.images().await?.is_empty(), "an image of a refused pull is listed");
    crate::wait::until("the store to be as before", crate::wait::secs(10), || async {
        // The layers of a failed pull are kept until somebody wants space.
        cx.cri.remove_image("registry.test/nothing:1").await?;
        let left: BTreeSet<_> = &stored(cx)? - &before;
        ensure!(left.is_empty(), "{left:?} are left");
        Ok(Some(()))
    })
    .await
}

async fn push(cx: &Context, name: &str, image: &Image) -> Result<String> {
    cx.fixture.registry.push(name, "1", image).await?;
    Ok(format!("registry.test/{name}:1"))
}

fn layer_of(content: &str) -> Result<crate::images::layer::Layer> {
    let mut w = Writer::new();
    w.file("etc/unique", 0o644, content.as_bytes())?;
    w.file("big", 0o644, &vec![b'x'; 200_000])?;
    w.finish(Packing::Gzip)
}

async fn digest_that_does_not_match(cx: Context) -> Result<()> {
    let name = format!("registry.test/busybox@sha256:{}", "0".repeat(64));
    refused(&cx, &name, Code::NotFound, "not found").await?;
    // The manifest is changed in the registry's storage.
    let image = Recipe::new(&[layer_of("manifest")?], json!({"Cmd": ["x"]})).build();
    push(&cx, "bad-manifest", &image).await?;
    let file = cx.fixture.registry.blob_file(&image.manifest.digest);
    let text = fs::read_to_string(&file)?;
    fs::write(&file, text.replace("schemaVersion\":2", "schemaVersion\": 2"))?;
    let name = format!("registry.test/bad-manifest@{}", image.manifest.digest);
    let result = refused(&cx, &name, Code::DataLoss, "is corrupt").await;
    fs::write(&file, text)?;
    result
}

async fn corrupt_layer(cx: Context) -> Result<()> {
    let layer = layer_of("corrupt")?;
    let image = Recipe::new(std::slice::from_ref(&layer), json!({"Cmd": ["x"]})).build();
    let name = push(&cx, "corrupt", &image).await?;
    let file = cx.fixture.registry.blob_file(&layer.blob.digest);
    let good = fs::read(&file)?;
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    if let Some(byte) = bad.get_mut(middle) {
        *byte ^= 0xff;
    }
    fs::write(&file, &bad)?;
    refused(&cx, &name, Code::DataLoss, "is corrupt").await?;
    fs::write(&file, good.get(..good.len() / 2).unwrap_or_default())?;
    refused(&cx, &name, Code::DataLoss, "bytes").await?;
    fs::write(&file, &good)?;
    cx.cri.pull(&name).await.context("a pull of the undamaged layer")?;
    cx.cri.remove_image(&name).await?;
    Ok(())
}

async fn layer_with_another_diff_id(cx: Context) -> Result<()> {
    let mut layer = layer_of("diff id")?;
    layer.diff_id = format!("sha256:{}", "1".repeat(64));
    let name = push(&cx, "diff-id", &Recipe::new(&[layer], json!({"Cmd": ["x"]})).build()).await?;
    refused(&cx, &name, Code::DataLoss, "in the config").await
}

/// Names and links that would leave the root are resolved within it, as containerd does: the container has the
/// entry, and the host does not.
async fn tar_that_climbs_out(cx: Context) -> Result<()> {
    for (n, (kind, entry, link, place)) in [
        (EntryType::Regular, "../climbed", "", "/climbed"),
        (EntryType::Regular, "a/../../climbed", "", "/climbed"),
        (EntryType::Link, "hard", "../../../../../../etc/fine", "/hard"),
        (EntryType::Link, "hard", "/etc/fine", "/hard"),
        (EntryType::Regular, "/absolute-climbed", "", "/absolute-climbed"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut w = Writer::new();
        w.file("etc/fine", 0o644, b"of the image")?;
        w.raw(kind, entry, link, 0o644, (0, 0), if link.is_empty() { b"of the image" } else { b"" })?;
        let layers = [cx.fixture.layers.busybox.clone(), w.finish(Packing::Gzip)?];
        let image = Recipe::new(&layers, json!({"Cmd": ["/bin/true"]})).build();
        let name = push(&cx, &format!("climb-{n}"), &image).await?;
        cx.cri.pull(&name).await.with_context(|| format!("{entry} -> {link}"))?;
        ensure!(!std::path::Path::new("/absolute-climbed").exists(), "written to the host's root");
        for place in ["climbed", "images/climbed", "images/layers/climbed"] {
            ensure!(
                !cx.node.paths.root.join(place).exists(),
                "{entry} was written to {place} in the daemon's root"
            );
        }
        let pod = cx.pod().await?;
        let text = cx.output(&pod, &shapes::container("look", &name, &["/bin/cat", place])).await?;
        ensure!(text == "of the image", "{entry} -> {link}: {place} is {text:?}");
        cx.cri.drop_pod(&pod.id).await?;
        cx.cri.remove_image(&name).await?;
    }
    Ok(())
}

/// A symlink in a layer and then a file through it: the file is created within the root.
async fn tar_through_a_symlink(cx: Context) -> Result<()> {
    let victim = cx.volume("victim")?;
    fs::write(victim.join("victim"), "keep")?;
    let outside = victim.display().to_string();
    for (n, target) in [outside.clone(), format!("../../../../../../../..{outside}")].into_iter().enumerate()
    {
        let mut first = Writer::new();
        first.raw(EntryType::Symlink, "link", &target, 0o777, (0, 0), b"")?;
        first.raw(EntryType::Regular, "link/same-layer", "", 0o644, (0, 0), b"inside")?;
        first.raw(EntryType::Regular, "link/.wh.victim", "", 0o644, (0, 0), b"")?;
        let mut second = Writer::new();
        second.raw(EntryType::Regular, "link/next-layer", "", 0o644, (0, 0), b"next")?;
        second.raw(EntryType::Regular, "link/.wh.victim", "", 0o644, (0, 0), b"")?;
        let layers =
            [cx.fixture.layers.busybox.clone(), first.finish(Packing::Gzip)?, second.finish(Packing::Gzip)?];
        let image = Recipe::new(&layers, json!({"Cmd": ["/bin/true"]})).build();
        let name = push(&cx, &format!("symlink-{n}"), &image).await?;
        cx.cri.pull(&name).await.context(target)?;
        let left: Vec<_> = fs::read_dir(&victim)?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(left == ["victim"], "the host's folder holds {left:?}");
        let pod = cx.pod().await?;
        let line = format!("cat {outside}/same-layer /link/next-layer");
        let text = cx.output(&pod, &shapes::container("look", &name, &["/bin/sh", "-c", &line])).await?;
        ensure!(text == "insidenext", "the files behind the symlink have {text:?}");
        cx.cri.drop_pod(&pod.id).await?;
        cx.cri.remove_image(&name).await?;
    }
    Ok(())
}

async fn truncated_and_foreign_bytes(cx: Context) -> Result<()> {
    let mut w = Writer::new();
    w.file("etc/file", 0o644, &vec![b'y'; 50_000])?;
    let good = w.finish(Packing::Plain)?;
    for (name, bytes) in [
        ("not-a-tar", bytes::Bytes::from_static(&[0x42; 4096])),
        ("cut-tar", good.blob.bytes.slice(..30_000)),
    ] {
        let mut layer = good.clone();
        layer.diff_id = crate::images::digest(&bytes);
        layer.blob.digest.clone_from(&layer.diff_id);
        layer.blob.bytes = bytes;
        let reference = push(&cx, name, &Recipe::new(&[layer], json!({"Cmd": ["x"]})).build()).await?;
        refused(&cx, &reference, Code::DataLoss, "is corrupt").await.context(name)?;
    }
    Ok(())
}

/// An empty blob is an empty layer, as with containerd.
async fn layer_without_a_byte(cx: Context) -> Result<()> {
    let mut layer = Writer::new().finish(Packing::Plain)?;
    layer.diff_id = crate::images::digest(b"");
    layer.blob.digest.clone_from(&layer.diff_id);
    layer.blob.bytes = bytes::Bytes::new();
    let layers = [cx.fixture.layers.busybox.clone(), layer];
    let name = push(&cx, "no-byte", &Recipe::new(&layers, json!({"Cmd": ["/bin/true"]})).build()).await?;
    cx.cri.pull(&name).await?;
    let pod = cx.pod().await?;
    cx.outputs(&pod, &shapes::container("look", &name, &["/bin/cat", "/etc/marker"]), "from the image\n")
        .await?;
    cx.cri.drop_pod(&pod.id).await?;
    cx.cri.remove_image(&name).await?;
    Ok(())
}

/// A wrong layer size, and an index without an image for this platform.
async fn manifest_that_lies(cx: Context) -> Result<()> {
    let mut image = Recipe::new(&[layer_of("sizes")?], json!({"Cmd": ["x"]})).build();
    let mut value: serde_json::Value = serde_json::from_slice(&image.manifest.bytes)?;
    if let Some(size) = value.pointer_mut("/layers/0/size") {
        *size = json!(7);
    }
    image.manifest.bytes = bytes::Bytes::from(value.to_string());
    image.manifest.digest = crate::images::digest(&image.manifest.bytes);
    let name = push(&cx, "lying-size", &image).await?;
    refused(&cx, &name, Code::DataLoss, "bytes").await?;
    let only_arm =
        Recipe { architecture: "arm64", ..Recipe::new(&[layer_of("arm")?], json!({"Cmd": ["x"]})) }.build();
    let list = crate::images::index(
        crate::images::Form::Oci,
        &[(only_arm, json!({"architecture": "arm64", "os": "linux"}))],
    );
    let name = push(&cx, "only-arm", &list).await?;
    refused(&cx, &name, Code::FailedPrecondition, "amd64").await
}

/// Each declared volume costs folders, and below a read-only root a mount: their number and length have limits.
async fn too_many_declared_volumes(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let many: serde_json::Map<_, _> = (0..10_000).map(|n| (format!("/v/{n}"), json!({}))).collect();
    let deep = "/d".repeat(2_000);
    let long: serde_json::Map<_, _> = (0..100).map(|n| (format!("/{n}{deep}"), json!({}))).collect();
    for volumes in [many, long] {
        let count = volumes.len();
        let image = super::escape::image_with(&cx, json!({"Volumes": volumes}), |_| Ok(())).await?;
        let config = super::escape::sleeper("one", &image).with(|c| c.security().readonly_rootfs = true);
        let refused = cx.create(&pod, &config).await.err().context("a container of such an image")?;
        let text = format!("{refused:#}");
        ensure!(
            text.contains("Volumes") && text.contains(&count.to_string()),
            "the error does not name the field and its {count} entries: {text}"
        );
    }
    Ok(())
}
