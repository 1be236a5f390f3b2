//! Images: references, forms, consistency, users, content on disk.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use serde_json::json;
use tonic::Code;

use crate::context::Context;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::images::Recipe;
use crate::images::layer::{Packing, Writer};
use crate::runner::{Test, test};
use crate::shapes;
use crate::stall::Stall;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(fs_info_on_an_empty_node).own(),
        test!(pull_status_list_remove),
        test!(every_reference_gives_the_same),
        test!(digest_pull_has_no_tag),
        test!(forms_and_packings),
        test!(manifest_lists_choose_the_platform),
        test!(tls_with_a_private_ca).ours(),
        test!(mirror_falls_back).ours(),
        test!(user_is_uid_or_name),
        test!(three_tags_one_image),
        test!(two_registries_one_image).ours(),
        test!(simultaneous_pulls_are_one).own(),
        test!(simultaneous_removals),
        test!(deadline_of_a_millisecond),
        test!(cancelled_pull_leaves_what_a_retry_needs).own(),
        test!(crash_in_the_middle_of_a_pull).own(),
        test!(whiteouts_links_and_owners),
        test!(sixty_layers),
        test!(removal_while_in_use),
        test!(usage_is_counted).own(),
    ]
}

/// Everything in the image store but its own folders, which are created once.
pub(super) fn stored(cx: &Context) -> Result<BTreeSet<PathBuf>> {
    let root = cx.node.paths.root.join("images");
    let (mut found, mut open) = (BTreeSet::new(), vec![root.clone()]);
    while let Some(folder) = open.pop() {
        let entries = match std::fs::read_dir(&folder) {
            // Deleted meanwhile.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && folder != root => continue,
            entries => entries.with_context(|| folder.display().to_string())?,
        };
        for entry in entries {
            let entry = entry?;
            if folder != root || entry.file_type()?.is_file() {
                found.insert(entry.path());
            }
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(found)
}

async fn fs_info_on_an_empty_node(cx: Context) -> Result<()> {
    let info = cx.cri.image_fs().await?;
    let fs = info.image_filesystems.first().context("no image file system")?;
    ensure!(
        fs.timestamp > 0 && fs.used_bytes.is_some() && fs.inodes_used.is_some(),
        "kubelet would panic: {fs:?}"
    );
    let place = fs.fs_id.as_ref().map(|f| f.mountpoint.clone()).unwrap_or_default();
    ensure!(std::path::Path::new(&place).is_dir(), "mount point `{place}`");
    ensure!(!info.container_filesystems.is_empty(), "no container file system");
    ensure!(cx.cri.images().await?.is_empty(), "a new node has images");
    Ok(())
}

async fn pull_status_list_remove(cx: Context) -> Result<()> {
    let name = Fixture::image("number-1");
    let id = cx.cri.pull(&name).await?;
    ensure!(
        id == cx.fixture.entry("number-1", "1")?.image.id,
        "the id is not the configuration's digest: {id}"
    );
    let image = cx.cri.image(&name).await?.context("no status right after the pull")?;
    ensure!(image.id == id && image.size > 0, "of the image {id} the status is {image:?}");
    ensure!(image.repo_tags == [name.clone()], "{name} has the tags {:?}", image.repo_tags);
    ensure!(
        image.repo_digests.len() == 1 && image.repo_digests.iter().all(|d| d.contains("@sha256:")),
        "{name} has the digests {:?}",
        image.repo_digests
    );
    ensure!(cx.cri.images().await?.iter().any(|i| i.id == id), "not listed");
    cx.cri.remove_image(&name).await?;
    ensure!(
        cx.cri.image(&name).await?.is_none() && !cx.cri.images().await?.iter().any(|i| i.id == id),
        "still there"
    );
    cx.cri.remove_image(&name).await.context("removing an absent image is no error")?;
    Ok(())
}

async fn every_reference_gives_the_same(cx: Context) -> Result<()> {
    let latest = "registry.test/busybox";
    let id = cx.cri.pull(latest).await?;
    let digest = &cx.fixture.entry("busybox", "latest")?.image.manifest.digest;
    let by_digest = format!("registry.test/busybox@{digest}");
    let short = id.trim_start_matches("sha256:").get(..12).unwrap_or_default().to_owned();
    let bare = id.trim_start_matches("sha256:").to_owned();
    let reference = cx.cri.image("registry.test/busybox:latest").await?.context("by tag")?;
    for name in [latest, &by_digest, &id, &bare, &short] {
        let found = cx.cri.image(name).await?.with_context(|| format!("not found by {name}"))?;
        ensure!(found == reference, "by {name}: {found:?} instead of {reference:?}");
    }
    ensure!(
        cx.cri.image("registry.test/busybox:none").await?.is_none(),
        "a tag that was not pulled is found"
    );
    Ok(())
}

async fn digest_pull_has_no_tag(cx: Context) -> Result<()> {
    let digest = cx.fixture.entry("number-2", "1")?.image.manifest.digest.clone();
    let name = format!("registry.test/number-2@{digest}");
    let id = cx.cri.pull(&name).await?;
    let image = cx.cri.image(&name).await?.context("no status")?;
    ensure!(image.repo_tags.is_empty() && image.repo_digests == [name], "pulled by digest: {image:?}");
    cx.cri.remove_image(&id).await?;
    Ok(())
}

async fn forms_and_packings(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for name in ["busybox-zstd", "busybox-plain", "busybox-docker", "busybox"] {
        let image = Fixture::image(name);
        let config = shapes::container(name, &image, &["/bin/cat", "/etc/marker"]);
        cx.outputs(&pod, &config, "from the image\n").await.context(name)?;
    }
    Ok(())
}

async fn manifest_lists_choose_the_platform(cx: Context) -> Result<()> {
    for name in ["multi-oci", "multi-docker"] {
        let id = cx.cri.pull(&Fixture::image(name)).await?;
        let entry = cx.fixture.entry(name, "1")?;
        ensure!(id == entry.image.id, "{name}: not amd64's configuration: {id}");
        let image = cx.cri.image(&id).await?.context("status")?;
        ensure!(
            image.repo_digests == [format!("registry.test/{name}@{}", entry.image.manifest.digest)],
            "{name} has the digests {:?}, not that of the index",
            image.repo_digests
        );
        cx.cri.remove_image(&id).await?;
    }
    Ok(())
}

async fn tls_with_a_private_ca(cx: Context) -> Result<()> {
    let id = cx.cri.pull("tls.test/number-3:1").await?;
    let pushed = &cx.fixture.entry("number-3", "1")?.image.id;
    ensure!(id == *pushed, "image {id} came instead of {pushed}");
    cx.cri.remove_image(&id).await?;
    // Without the CA the same server is refused.
    let hosts = cx.node.paths.certs.join("untrusted.test");
    std::fs::create_dir_all(&hosts)?;
    std::fs::write(
        hosts.join("hosts.toml"),
        format!("server = \"https://127.0.0.1:{}\"\n", cx.fixture.registry.tls_port),
    )?;
    let e = cx.cri.pull("untrusted.test/number-3:1").await.err().context("an unknown CA was trusted")?;
    ensure!(e.message().to_lowercase().contains("certificate"), "the error does not name the cause: {e}");
    Ok(())
}

async fn mirror_falls_back(cx: Context) -> Result<()> {
    let id = cx.cri.pull("fallback.test/number-3:1").await.context("the server behind a dead mirror")?;
    cx.cri.remove_image(&id).await?;
    let e =
        cx.cri.pull("absent.test/number-3:1").await.err().context("pulled from a port without a listener")?;
    ensure!(e.message().contains("absent.test"), "the error does not name the image: {e}");
    Ok(())
}

async fn user_is_uid_or_name(cx: Context) -> Result<()> {
    for (name, uid, user) in [
        ("user-uid", Some(1002), ""),
        ("user-name", None, "www-data"),
        ("user-uid-group", Some(1003), ""),
        ("user-name-group", None, "www-data"),
    ] {
        let id = cx.cri.pull(&Fixture::image(name)).await?;
        let image = cx.cri.image(&id).await?.context("status")?;
        ensure!(
            image.uid.map(|v| v.value) == uid && image.username == user,
            "{name}: uid {:?} and username `{}` instead of {uid:?} and `{user}`",
            image.uid,
            image.username
        );
        cx.cri.remove_image(&id).await?;
    }
    Ok(())
}

async fn three_tags_one_image(cx: Context) -> Result<()> {
    let mut ids = Vec::new();
    for tag in ["1", "2", "3"] {
        ids.push(cx.cri.pull(&format!("registry.test/tags:{tag}")).await?);
    }
    ids.dedup();
    ensure!(ids.len() == 1, "three tags of one manifest are the images {ids:?}");
    let id = ids.pop().context("id")?;
    let listed: Vec<_> = cx.cri.images().await?.into_iter().filter(|i| i.id == id).collect();
    let mut tags = listed.first().map(|i| i.repo_tags.clone()).unwrap_or_default();
    tags.sort();
    ensure!(
        listed.len() == 1 && tags == ["registry.test/tags:1", "registry.test/tags:2", "registry.test/tags:3"],
        "one image with three tags is listed as {listed:?}"
    );
    cx.cri.remove_image("registry.test/tags:2").await?;
    for tag in ["1", "2", "3"] {
        ensure!(
            cx.cri.image(&format!("registry.test/tags:{tag}")).await?.is_none(),
            "tag {tag} survived RemoveImage"
        );
    }
    Ok(())
}

async fn two_registries_one_image(cx: Context) -> Result<()> {
    let one = cx.cri.pull("registry.test/number-1:1").await?;
    let two = cx.cri.pull("other.test/number-1:1").await?;
    ensure!(one == two, "one image of two registries is {one} and {two}");
    let image = cx.cri.image(&one).await?.context("status")?;
    ensure!(
        image.repo_tags.len() == 2 && image.repo_digests.len() == 2,
        "an image of two registries: {image:?}"
    );
    cx.cri.remove_image("other.test/number-1:1").await?;
    ensure!(
        cx.cri.image("registry.test/number-1:1").await?.is_none(),
        "tags in other registries must go too"
    );
    Ok(())
}

async fn simultaneous_pulls_are_one(cx: Context) -> Result<()> {
    let name = Fixture::image("tools");
    let layer = cx.fixture.layers.tools.blob.digest.clone();
    let before = cx.fixture.registry.requests(&format!("GET /v2/tools/blobs/{layer}"));
    let work: Vec<_> = (0..8)
        .map(|_| {
            let (cri, name) = (cx.cri.clone(), name.clone());
            tokio::spawn(async move { cri.pull(&name).await })
        })
        .collect();
    let mut ids = Vec::new();
    for one in work {
        ids.push(one.await??);
    }
    ids.dedup();
    ensure!(ids.len() == 1, "pulls of one name gave the images {ids:?}");
    cx.fixture.registry.settled().await?;
    let transfers = cx.fixture.registry.requests(&format!("GET /v2/tools/blobs/{layer}")) - before;
    ensure!(transfers == 1, "the layer was transferred {transfers} times");
    Ok(())
}

async fn simultaneous_removals(cx: Context) -> Result<()> {
    let name = Fixture::image("number-3");
    for _ in 0..5 {
        cx.cri.pull(&name).await?;
        let work: Vec<_> = (0..5)
            .map(|_| {
                let (cri, name) = (cx.cri.clone(), name.clone());
                tokio::spawn(async move { cri.remove_image(&name).await })
            })
            .collect();
        for one in work {
            one.await?.context("one of five removals")?;
        }
        ensure!(cx.cri.image(&name).await?.is_none(), "{name} is there after its removal");
    }
    Ok(())
}

async fn deadline_of_a_millisecond(cx: Context) -> Result<()> {
    let name = Fixture::image("nginx");
    cx.cri.remove_image(&name).await?;
    let spec = api::ImageSpec { image: name.clone(), ..Default::default() };
    let request = api::PullImageRequest { image: Some(spec), ..Default::default() };
    let e = cx
        .cri
        .images
        .clone()
        .pull_image(crate::cri::bounded(request, Duration::from_millis(1)))
        .await
        .err()
        .context("pulled in 1 ms")?;
    ensure!(
        matches!(e.code(), Code::DeadlineExceeded | Code::Cancelled),
        "a pull with a deadline of 1 ms: {e}"
    );
    ensure!(cx.cri.image(&name).await?.is_none(), "the image of a cancelled pull is there");
    cx.cri.pull(&name).await.context("the next pull")?;
    Ok(())
}

async fn cancelled_pull_leaves_what_a_retry_needs(cx: Context) -> Result<()> {
    let before = stored(&cx)?;
    let (_stall, pull) = half_pulled(&cx, "cancelled").await?;
    pull.abort();
    let images = cx.node.paths.root.join("images");
    let count = |folder: &str| std::fs::read_dir(images.join(folder)).map_or(0, Iterator::count);
    crate::wait::until_true("the layer that was complete to be kept", Duration::from_secs(30), || {
        (count("layers"), count("pulls"), count("ingest")) == (1, 1, 0)
    })
    .await?;
    for wait in [1, 3, 8, 15, 25, 40] {
        let spec = api::ImageSpec { image: Fixture::image("tools"), ..Default::default() };
        let request = api::PullImageRequest { image: Some(spec), ..Default::default() };
        let outcome =
            cx.cri.images.clone().pull_image(crate::cri::bounded(request, Duration::from_millis(wait))).await;
        if outcome.is_ok() {
            cx.cri.remove_image(&Fixture::image("tools")).await?;
        }
    }
    crate::wait::until("what cancelled pulls left to go", Duration::from_secs(30), || async {
        // Whoever removes an image wants space.
        cx.cri.remove_image(&Fixture::image("nothing")).await?;
        // The index stays if one of the pulls was fast enough.
        let mut left: BTreeSet<_> = &stored(&cx)? - &before;
        left.retain(|path| !path.ends_with("index.json"));
        ensure!(left.is_empty(), "{left:?} are left");
        Ok(Some(()))
    })
    .await?;
    cx.cri.pull(&Fixture::image("tools")).await.context("a full pull afterwards")?;
    Ok(())
}

/// Pulls an image of two layers, one of which stalls, until the other one is in the store.
async fn half_pulled(
    cx: &Context,
    name: &str,
) -> Result<(Stall, tokio::task::JoinHandle<Result<String, tonic::Status>>)> {
    let mut w = Writer::new();
    w.file("stalled", 0o644, cx.name.as_bytes())?;
    let stalled = w.finish(Packing::Gzip)?;
    let layers = [cx.fixture.layers.busybox.clone(), stalled.clone()];
    cx.fixture.registry.push(name, "1", &Recipe::new(&layers, json!({"Cmd": ["/bin/true"]})).build()).await?;
    let stall =
        Stall::start(cx.fixture.registry.port, vec![stalled.blob.digest], stalled.blob.bytes.len()).await?;
    let (cri, name) = (cx.cri.clone(), format!("127.0.0.1:{}/{name}:1", stall.port));
    let pull = tokio::spawn(async move { cri.pull(&name).await });
    let layers = cx.node.paths.root.join("images/layers");
    crate::wait::until_true("half of the image to be here", Duration::from_secs(30), || {
        stall.stalled() == 1 && std::fs::read_dir(&layers).is_ok_and(|mut found| found.next().is_some())
    })
    .await?;
    ensure!(!pull.is_finished(), "the pull ended although one layer stalls");
    Ok((stall, pull))
}

/// Kills the daemon when half of an image was pulled, and at increasing times after the start of a pull: the image is
/// complete or absent, the layer that was complete is kept, and the next pull succeeds.
async fn crash_in_the_middle_of_a_pull(cx: Context) -> Result<()> {
    let (_stall, pull) = half_pulled(&cx, "crashed").await?;
    cx.node.kill9()?;
    ensure!(pull.await?.is_err(), "the pull outlived the daemon");
    cx.node.launch().await?;
    ensure!(cx.cri.images().await?.is_empty(), "half an image is listed");
    let left = std::fs::read_dir(cx.node.paths.root.join("images/layers"))?.count();
    ensure!(left == 1, "{left} layers of half an image are kept");
    cx.cri.pull(&Fixture::image("crashed")).await.context("the pull after the crash")?;
    cx.cri.remove_image(&Fixture::image("crashed")).await?;
    let name = Fixture::image("tools");
    for wait in [0, 5, 12, 25, 45, 70, 100] {
        let pull = {
            let (cri, name) = (cx.cri.clone(), name.clone());
            tokio::spawn(async move { cri.pull(&name).await })
        };
        tokio::time::sleep(Duration::from_millis(wait)).await;
        cx.node.kill9()?;
        drop(crate::wait::timeout(Duration::from_secs(10), pull).await.context("the call hangs")?);
        cx.node.launch().await.with_context(|| format!("start after a kill {wait} ms into a pull"))?;
        for image in cx.cri.images().await? {
            ensure!(image.size > 0 && !image.repo_tags.is_empty(), "half an image is listed: {image:?}");
        }
        cx.cri.pull(&name).await.with_context(|| format!("the pull after a kill at {wait} ms"))?;
        let pod = cx.pod().await?;
        cx.outputs(&pod, &shapes::container("one", &name, &["/usr/bin/id", "-u"]), "0\n").await?;
        cx.cri.drop_pod(&pod.id).await?;
        cx.cri.remove_image(&name).await?;
    }
    Ok(())
}

async fn whiteouts_links_and_owners(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let script = "cd /w; ls | sort | tr '\\n' ' '; echo; cat replace turned; stat -c %a replace suid; stat -c '%u %g %a' owned; \
                  ls opaque | tr '\\n' ' '; echo; readlink soft; readlink absolute; stat -c %h hard; [ hard -ef keep ] && echo same; ls -a | grep -c '^.wh' ";
    let config = shapes::container(
        "look",
        &Fixture::image("whiteouts"),
        &["/bin/sh", "-c", &format!("{script}; true")],
    );
    let text = cx.output(&pod, &config).await?;
    let expected = "absolute attributed hard keep opaque owned replace soft suid turned \nupper\nnow a file\n600\n4755\n1234 5678 640\nnew \nkeep\n/etc/marker\n2\nsame\n0\n";
    ensure!(text == expected, "got\n{text}\ninstead of\n{expected}");
    Ok(())
}

async fn sixty_layers(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = shapes::container(
        "look",
        &Fixture::image("many-layers"),
        &["/bin/sh", "-c", "ls /layers | wc -l; cat /layers/last"],
    );
    let text = cx.output(&pod, &config).await?;
    ensure!(text.trim() == "61\n59", "number of files, and content of the topmost `last`: {text:?}");
    Ok(())
}

async fn removal_while_in_use(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let name = Fixture::image("busybox-zstd");
    let id = cx.start(&pod, &shapes::container("user", &name, &["/bin/sleep", "10000"])).await?;
    let image = cx.cri.container(&id).await?.image_id;
    cx.cri.remove_image(&name).await?;
    ensure!(
        cx.cri.sh(&id, "cat /etc/marker && ls /bin | wc -l").await?.starts_with("from the image"),
        "the files of a container whose image was removed are gone"
    );
    let status = cx.cri.container(&id).await.context("status must go on working")?;
    ensure!(status.image_id == image, "its image_id was {image} and is {}", status.image_id);
    Ok(())
}

async fn usage_is_counted(cx: Context) -> Result<()> {
    let used = || async {
        Ok::<_, anyhow::Error>(
            cx.cri
                .image_fs()
                .await?
                .image_filesystems
                .first()
                .and_then(|f| f.used_bytes)
                .map_or(0, |v| v.value),
        )
    };
    let empty = used().await?;
    cx.cri.pull(&Fixture::image("tools")).await?;
    crate::wait::until("the usage to grow", Duration::from_secs(40), || async {
        Ok((used().await? > empty + (1 << 20)).then_some(()))
    })
    .await?;
    cx.cri.remove_image(&Fixture::image("tools")).await?;
    crate::wait::until("the usage to shrink", Duration::from_secs(40), || async {
        Ok((used().await? < empty + (1 << 20)).then_some(()))
    })
    .await
}
