//! Imports of archives, exports and prunes, through the store's public functions.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::archives::{exported, import};
use common::{Built, Codec, Faulty, INDEX, MANIFEST, Node, build, digest_of, tar, two_layers};
use image::{Compression, Error, ImportProgress};
use serde_json::json;
use std::collections::BTreeMap;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;
use tokio::sync::mpsc;

fn path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// The archive of an OCI layout with this index and these blobs.
fn layout(index: &serde_json::Value, blobs: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut files: Vec<(String, Vec<u8>)> =
        blobs.into_iter().map(|blob| (path(&digest_of(&blob)), blob)).collect();
    files.push(("index.json".to_owned(), index.to_string().into_bytes()));
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    tar(&files)
}

fn entry(manifest: &[u8], name: &str) -> serde_json::Value {
    json!({"mediaType": MANIFEST, "digest": digest_of(manifest), "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": name}})
}

/// An image as a layout with this name.
fn one(image: &Built, name: &str) -> Vec<u8> {
    let blobs = image.blobs.values().cloned().chain([image.manifest.clone()]);
    layout(&json!({"schemaVersion": 2, "manifests": [entry(&image.manifest, name)]}), blobs)
}

#[tokio::test]
async fn an_import_is_what_a_pull_is() {
    let (node, registry) = (Node::new(), Faulty::start().await);
    let image = two_layers();
    let name = registry.push("a/b", "v", &image);
    let imported = import(&node.store, &one(&image, &name), &[]).await.unwrap();
    assert_eq!((&imported[0].name, &imported[0].digest), (&name, &image.digest()));
    let record = node.store.resolve(&name).unwrap();
    assert_eq!((&record.id, &imported[0].id), (&image.config, &image.config));
    assert_eq!(record.size, imported[0].size);
    // A pull of it transfers nothing.
    assert_eq!(node.store.pull(&name, None).await.unwrap(), record);
    assert_eq!(registry.requests("blobs/"), 0);
    let layer = record.layers_dir.join(&record.layers[0]);
    assert_eq!(std::fs::read(layer.join("etc/other")).unwrap(), b"upper");
    node.store.remove(&name).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test]
async fn a_name_that_moves_to_another_image_is_told() {
    let node = Node::new();
    let (old, new) = (two_layers(), build(&[(tar(&[("new", b"")]), Codec::Gzip)], ""));
    for (image, replaced) in [(&old, ""), (&old, ""), (&new, old.config.as_str())] {
        let imported = import(&node.store, &one(image, "a:1"), &[]).await.unwrap();
        assert_eq!((&imported[0].id, imported[0].replaced.as_str()), (&image.config, replaced));
    }
}

#[tokio::test]
async fn an_index_has_one_image_for_this_node() {
    let node = Node::new();
    let (ours, other) = (build(&[(tar(&[("ours", b"")]), Codec::Gzip)], ""), two_layers());
    let platform = |architecture: &str, image: &Built| {
        json!({"mediaType": MANIFEST, "digest": image.digest(), "size": image.manifest.len(),
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": INDEX,
        "manifests": [platform("s390x", &other), platform("amd64", &ours)]})
    .to_string()
    .into_bytes();
    let top = json!({"manifests": [{"mediaType": INDEX, "digest": digest_of(&index), "size": index.len(),
        "annotations": {"io.containerd.image.name": "r.example/a:1"}}]});
    // The blobs of other platforms may be missing.
    let blobs = ours.blobs.values().cloned().chain([ours.manifest.clone(), index.clone()]);
    let imported = import(&node.store, &layout(&top, blobs), &[]).await.unwrap();
    assert_eq!((&imported[0].id, &imported[0].digest), (&ours.config, &digest_of(&index)));
}

#[tokio::test]
async fn names_are_those_of_the_archive_or_of_the_caller() {
    let node = Node::new();
    let image = two_layers();
    for (name, wanted) in [("v1", "has no name"), ("", "has no name")] {
        let error = import(&node.store, &one(&image, name), &[]).await.unwrap_err().to_string();
        assert!(error.contains(wanted) && error.contains("--tag"), "{error}");
    }
    let names = ["one", "r.example/two:2"];
    let imported = import(&node.store, &one(&image, "v1"), &names).await.unwrap();
    assert_eq!(
        imported.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(),
        ["docker.io/library/one:latest", "r.example/two:2"]
    );
    assert_eq!(node.store.list().len(), 1);
    assert!(import(&node.store, &one(&image, "v1"), &["UPPER"]).await.is_err());
    // A name for several images.
    let second = build(&[(tar(&[("x", b"")]), Codec::Plain)], "");
    let index = json!({"manifests": [entry(&image.manifest, "a:1"), entry(&second.manifest, "b:1")]});
    let blobs = image.blobs.values().chain(second.blobs.values()).cloned();
    let both = layout(&index, blobs.chain([image.manifest.clone(), second.manifest.clone()]));
    let error = import(&node.store, &both, &["c"]).await.unwrap_err().to_string();
    assert!(error.contains("2 images"), "{error}");
    assert_eq!(import(&node.store, &both, &[]).await.unwrap().len(), 2);
}

/// Nothing of a refused archive stays.
#[tokio::test]
async fn damaged_archives_leave_nothing() {
    let node = Node::new();
    let image = two_layers();
    let whole = one(&image, "a:1");
    for kind in ["missing", "flipped", "longer", "cut"] {
        let mut blobs: Vec<Vec<u8>> = image.blobs.values().cloned().collect();
        let layer = blobs.iter().position(|blob| digest_of(blob) == image.layers[0]).unwrap();
        let name = path(&image.layers[0]);
        let mut changed = blobs.remove(layer);
        let mut archive = whole.clone();
        match kind {
            "cut" => archive.truncate(whole.len() / 2),
            _ => {
                match kind {
                    "flipped" => changed[1000] ^= 1,
                    "longer" => changed.push(0),
                    _ => {}
                }
                let index = json!({"manifests": [entry(&image.manifest, "a:1")]});
                archive = layout(&index, blobs.into_iter().chain([image.manifest.clone()]));
                if kind != "missing" {
                    archive.truncate(archive.len() - 1024);
                    archive.extend(tar(&[(&name, &changed)]));
                }
            }
        }
        let error = import(&node.store, &archive, &[]).await.unwrap_err();
        let expected = match kind {
            "missing" => matches!(error, Error::NotFound { .. }),
            _ => matches!(error, Error::Corrupt { .. }),
        };
        assert!(expected, "{kind}: {error}");
        assert!(node.store.list().is_empty());
        node.assert_empty().await;
    }
}

/// A layer whose config states another diff id, in an archive of `docker save`.
#[tokio::test]
async fn a_layer_of_docker_save_is_verified() {
    let node = Node::new();
    let layer = tar(&[("f", b"content")]);
    for (diff_id, good) in [(digest_of(&layer), true), (digest_of(b"other"), false)] {
        let config =
            json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [diff_id]}}).to_string();
        let list = json!([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l/layer.tar"]}]).to_string();
        let files: [(&str, &[u8]); 3] =
            [("l/layer.tar", &layer), ("c.json", config.as_bytes()), ("manifest.json", list.as_bytes())];
        let result = import(&node.store, &tar(&files), &[]).await;
        assert_eq!(result.is_ok(), good, "{result:?}");
    }
}

/// An import that is given up leaves nothing, and neither does one whose daemon is killed.
#[tokio::test]
async fn an_import_that_is_given_up_leaves_nothing() {
    let mut node = Node::new();
    let archive = one(&two_layers(), "a:1");
    let (sender, input) = mpsc::channel(4);
    let progress = ImportProgress::default();
    let place = node.store.import_place().await.unwrap();
    {
        let mut running = pin!(node.store.import(place, input, &[], &progress));
        sender.send(archive[..archive.len() / 2].to_vec().into()).await.unwrap();
        tokio::select! {
            ended = &mut running => panic!("{ended:?}"),
            // It has taken what was sent.
            all = sender.reserve_many(4) => drop(all.unwrap()),
        }
        // The file has no name from the beginning.
        assert_eq!(node.count("ingest"), 0);
    }
    drop(sender);
    node.assert_empty().await;
    // What is left if the daemon dies between the creation of the file and the removal of its name.
    std::fs::write(node.root().join("ingest/7"), "part").unwrap();
    node.reopen();
    node.assert_empty().await;
    // Both places are free again.
    for _ in 0..3 {
        import(&node.store, &archive, &[]).await.unwrap();
    }
}

/// Members of an archive.
fn members(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut reader = ::tar::Archive::new(archive);
    let entries = reader.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    });
    entries.collect()
}

#[tokio::test]
async fn an_export_is_complete_and_shares_layers() {
    let node = Node::new();
    let base = tar(&[("f", &common::noise(300_000, 1))]);
    let first = build(&[(base.clone(), Codec::Gzip), (base.clone(), Codec::Gzip)], "");
    let second = build(&[(base, Codec::Gzip), (tar(&[("g", b"g")]), Codec::Zstd)], "u");
    import(&node.store, &one(&first, "a:1"), &["a:1", "a:2"]).await.unwrap();
    import(&node.store, &one(&second, "b:1"), &[]).await.unwrap();
    let (output, mut parts) = mpsc::channel::<bytes::Bytes>(1);
    let collect = async {
        let mut archive = Vec::new();
        while let Some(part) = parts.recv().await {
            assert!(part.len() <= 1 << 20);
            archive.extend_from_slice(&part);
        }
        archive
    };
    let names = ["a:2", &second.config, "b:1"].map(ToOwned::to_owned);
    let (images, archive) = tokio::join!(node.store.export(&names, Compression::None, output), collect);
    let images = images.unwrap();
    let names: Vec<_> = images.iter().map(|image| &image.names[..]).collect();
    assert_eq!(names, [["docker.io/library/a:2"], ["docker.io/library/b:1"]]);
    let members = members(&archive);
    // Two layers, two configs, two manifests.
    let blobs: Vec<_> = members.iter().filter(|(name, _)| name.starts_with("blobs/sha256/")).collect();
    assert_eq!(blobs.len(), 6, "{:?}", members.keys());
    for (name, content) in blobs {
        assert_eq!(*name, path(&digest_of(content)));
    }
    let list: serde_json::Value = serde_json::from_slice(&members["manifest.json"]).unwrap();
    let layers = &list[0]["Layers"];
    assert_eq!(layers[0], layers[1]);
    assert_eq!(layers[0], list[1]["Layers"][0]);
    let config: serde_json::Value =
        serde_json::from_slice(&members[list[1]["Config"].as_str().unwrap()]).unwrap();
    // All but the diff ids is as it was.
    assert_eq!((&config["config"]["User"], &config["architecture"]), (&json!("u"), &json!("amd64")));
    let other = Node::new();
    let imported = import(&other.store, &archive, &[]).await.unwrap();
    assert_eq!(imported.len(), 2);
    assert_eq!(imported[1].id, images[1].id);
    assert_eq!(imported[1].digest, images[1].digest);
}

/// An operator reads where a call hangs: an export that writes does not wait for others.
#[tokio::test]
async fn the_step_of_an_export_is_what_it_does() {
    let node = Node::new();
    import(&node.store, &one(&two_layers(), "a:1"), &[]).await.unwrap();
    // Nobody reads, so it does not end.
    let (output, _parts) = mpsc::channel(1);
    output.try_send(bytes::Bytes::new()).unwrap();
    let (names, progress) = (["a:1".to_owned()], progress::Progress::default());
    let mut running = pin!(progress.clone().scope(node.store.export(&names, Compression::None, output)));
    let pending = poll_fn(|context| Poll::Ready(running.as_mut().poll(context).is_pending())).await;
    assert!(pending, "the export has ended");
    assert_eq!(progress.place().unwrap().steps, "write the archive");
}

#[tokio::test]
async fn exports_that_cannot_be_made() {
    let node = Node::new();
    let (output, _parts) = mpsc::channel(1);
    let export = |names: Vec<String>| node.store.export(&names.leak()[..], Compression::None, output.clone());
    assert!(matches!(export(vec!["a:1".to_owned()]).await, Err(Error::NotFound { .. })));
    assert!(matches!(export(Vec::new()).await, Err(Error::Unsupported { .. })));
    assert!(matches!(export(vec!["a".to_owned(); 65]).await, Err(Error::TooLarge { .. })));
    // The reader has gone away.
    import(&node.store, &one(&two_layers(), "a:1"), &[]).await.unwrap();
    let (output, parts) = mpsc::channel(1);
    drop(parts);
    let names = ["a:1".to_owned()];
    assert!(matches!(node.store.export(&names, Compression::Gzip, output).await, Err(Error::Cancelled)));
    assert_eq!(node.count("ingest"), 0);
    assert!(!exported(&node.store, "a:1", Compression::Gzip).await.is_empty());
}

#[tokio::test]
async fn a_prune_takes_what_nothing_uses() {
    let node = Node::with(|options| options.pinned = vec!["pinned".to_owned()]);
    let image = |content: &[u8]| build(&[(tar(&[("f", content)]), Codec::Gzip)], "");
    for name in ["used", "pinned", "unused"] {
        import(&node.store, &one(&image(name.as_bytes()), &format!("{name}:latest")), &[]).await.unwrap();
    }
    let used = node.store.resolve("used").unwrap();
    node.store.lease_for(&used.id, "container").await.unwrap();
    let before = node.store.usage().bytes;
    for dry_run in [true, false] {
        let pruned = node.store.prune(dry_run).await.unwrap();
        let names: Vec<_> = pruned.images.iter().flat_map(|image| image.repo_tags.clone()).collect();
        assert_eq!(names, ["docker.io/library/unused:latest"]);
        let left = node.store.list().len();
        let freed = before - node.store.usage().bytes;
        assert_eq!((left, freed), if dry_run { (3, 0) } else { (2, pruned.bytes) });
        assert!(pruned.bytes > 0);
    }
    assert_eq!(node.count("layers"), 2);
    assert_eq!(node.store.prune(false).await.unwrap(), image::Pruned::default());
    node.store.release("container").await.unwrap();
    assert_eq!(node.store.prune(false).await.unwrap().images.len(), 1);
}
