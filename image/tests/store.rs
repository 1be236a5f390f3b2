//! The store: names, tags, leases, removal, and damage by a crash or a lost file.
#![allow(missing_docs)]

mod common;

use common::{Built, Codec, Faulty, Node, build, digest_of, tar, two_layers};
use image::Error;
use std::time::Duration;

#[tokio::test]
async fn pull_list_resolve_remove() {
    let (registry, mut node) = (Faulty::start().await, Node::new());
    let image = two_layers();
    let name = registry.push("a/b", "v1", &image);
    let record = node.store.pull(&name, None).await.unwrap();
    assert_eq!(record.id, image.config);
    assert_eq!(record.repo_tags, std::slice::from_ref(&name));
    assert_eq!(record.repo_digests, [format!("{}/a/b@{}", registry.address, image.digest())]);
    assert_eq!((record.uid, record.username.as_deref()), (Some(1000), None));
    assert!(record.size > 200_000);
    assert_eq!(record.layers.len(), 2);
    let top = record.layers_dir.join(&record.layers[0]);
    assert_eq!(std::fs::read_to_string(top.join("etc/other")).unwrap(), "upper");
    let id = image.config.strip_prefix("sha256:").unwrap();
    let digest = format!("{}/a/b@{}", registry.address, image.digest());
    for key in [&name, &image.config, id, &id[..12], &digest, &image.digest()] {
        assert_eq!(node.store.resolve(key).unwrap(), record, "{key}");
    }
    assert!(node.store.resolve("nothing").is_none());
    let document = node.store.document(&record.id).await.unwrap().unwrap();
    assert_eq!(document.json.as_bytes(), image.blobs[&image.config]);
    let config: serde_json::Value = serde_json::from_str(&document.json).unwrap();
    let layers = [0, 1].map(|at| config["rootfs"]["diff_ids"][at].as_str().unwrap());
    assert_eq!(document.chain_id, digest_of(layers.join(" ").as_bytes()));
    assert_eq!(node.store.document(&record.layers[0]).await.unwrap(), None);
    assert!(node.store.usage().bytes > 200_000);
    node.reopen();
    assert_eq!(node.store.list(), std::slice::from_ref(&record));
    assert_eq!(node.store.usage().bytes, record.size - sizes(&image));
    // Known layers and config are not transferred again.
    let before = registry.requests("/blobs/");
    node.store.pull(&name, None).await.unwrap();
    assert_eq!(registry.requests("/blobs/"), before);
    node.store.remove(&name).await.unwrap();
    node.store.remove(&name).await.unwrap();
    assert!(node.store.list().is_empty());
    assert_eq!(node.store.usage().inodes, 0);
    node.assert_empty().await;
}

fn layers_are_there(lease: &image::Lease) -> bool {
    lease.layers.iter().all(|layer| lease.layers_dir.join(layer).is_dir())
}

fn sizes(image: &Built) -> u64 {
    (image.manifest.len() + image.blobs[&image.config].len()) as u64
}

#[tokio::test]
async fn names_tags_and_removal() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let (one, two) = (two_layers(), build(&[(tar(&[("x", b"2")]), Codec::Plain)], "www"));
    let tag = registry.push("a/b", "latest", &one);
    let other = registry.push("c/d", "t", &one);
    let first = node.store.pull(&tag, None).await.unwrap();
    let both = node.store.pull(&other, None).await.unwrap();
    assert_eq!(first.id, both.id);
    assert_eq!((both.repo_tags.len(), both.repo_digests.len()), (2, 2));
    // The tag moves; the image that had it keeps its digest.
    registry.push("a/b", "latest", &two);
    let moved = node.store.pull(&tag, None).await.unwrap();
    assert_eq!(
        (moved.id.as_str(), moved.username.as_deref(), moved.uid),
        (two.config.as_str(), Some("www"), None)
    );
    let old = node.store.resolve(&one.config).unwrap();
    assert_eq!((old.repo_tags.as_slice(), old.repo_digests.len()), (&[other.clone()][..], 2));
    assert_eq!(node.store.resolve(&tag).unwrap().id, two.config);
    // A pull by digest sets no tag.
    let by_digest = format!("{}/a/b@{}", registry.address, one.digest());
    node.store.remove(&one.config).await.unwrap();
    let pulled = node.store.pull(&by_digest, None).await.unwrap();
    assert!(pulled.repo_tags.is_empty());
    assert_eq!(pulled.repo_digests, [by_digest]);
    // Removing one name removes all of them. Several removals may run at once.
    let again = node.store.pull(&other, None).await.unwrap();
    assert_eq!(again.repo_tags.len(), 1);
    let removals = (0..5).map(|_| node.store.remove(&again.repo_tags[0]));
    for result in futures_util::future::join_all(removals).await {
        result.unwrap();
    }
    assert!(node.store.resolve(&one.config).is_none());
    node.store.remove(&two.config[..15]).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test]
async fn leases_outlive_images_and_restarts() {
    let (registry, mut node) = (Faulty::start().await, Node::new());
    let name = registry.push("a/b", "v", &two_layers());
    let record = node.store.pull(&name, None).await.unwrap();
    let lease = node.store.lease_for(&record.id, "pod-1").await.unwrap();
    assert_eq!(lease.layers, record.layers);
    node.store.remove(&name).await.unwrap();
    node.reopen();
    assert!(node.store.list().is_empty());
    assert_eq!(node.store.lease_owners(), ["pod-1"]);
    assert_eq!(node.store.lease_for(&record.id, "pod-1").await.unwrap(), lease);
    let second = node.store.lease_for(&record.id, "pod-2").await.unwrap();
    assert!(layers_are_there(&second));
    node.store.release("pod-1").await.unwrap();
    node.store.release("pod-1").await.unwrap();
    assert!(layers_are_there(&lease));
    // A pull uses the leased layers.
    let before = registry.requests("/blobs/");
    node.store.pull(&name, None).await.unwrap();
    assert_eq!(registry.requests("/blobs/"), before + 1, "only the config is fetched");
    node.store.remove(&name).await.unwrap();
    // Parts are released with their owner, also after a restart, and nobody else's lease is.
    for owner in ["pod-2_0", "pod-2_17", "pod-22"] {
        node.store.lease_for(&record.id, owner).await.unwrap();
    }
    node.reopen();
    node.store.release("pod-2").await.unwrap();
    assert_eq!(node.store.lease_owners(), ["pod-22"]);
    assert!(layers_are_there(&lease));
    node.store.release("pod-22").await.unwrap();
    node.assert_empty().await;
    assert!(matches!(node.store.lease_for(&record.id, "x").await, Err(Error::NotFound { .. })));
    assert!(node.store.lease_for(&record.id, "../x").await.is_err());
}

#[tokio::test]
async fn crash_leftovers_and_damaged_files() {
    let (registry, mut node) = (Faulty::start().await, Node::new());
    let image = two_layers();
    let name = registry.push("a/b", "v", &image);
    let record = node.store.pull(&name, None).await.unwrap();
    let root = node.root();
    for junk in ["ingest/7", "trash/8", "layers/0123456789abcdef01234567"] {
        std::fs::create_dir_all(root.join(junk).join("sub")).unwrap();
    }
    std::fs::write(root.join("ingest/9"), "x").unwrap();
    std::fs::write(root.join("blobs").join("f".repeat(64)), "x").unwrap();
    std::fs::write(root.join("leases/torn.json"), "{").unwrap();
    std::fs::write(root.join("pulls/torn.json"), "{").unwrap();
    node.reopen();
    assert_eq!(node.store.list(), std::slice::from_ref(&record));
    for (folder, count) in
        [("ingest", 0), ("trash", 0), ("layers", 2), ("blobs", 2), ("leases", 0), ("facts", 2), ("pulls", 0)]
    {
        // Leftovers are deleted in the background.
        for _ in 0..500 {
            if node.count(folder) == count {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(node.count(folder), count, "{folder}");
    }
    // A damaged config affects only its image. A damaged index loses all images, but leased layers stay.
    let blob = root.join("blobs").join(image.config.strip_prefix("sha256:").unwrap());
    std::fs::write(&blob, "{}").unwrap();
    node.reopen();
    assert!(node.store.list().is_empty());
    let before = registry.requests(&image.layers[0]);
    node.store.pull(&name, None).await.unwrap();
    assert_eq!(registry.requests(&image.layers[0]), before);
    node.store.lease_for(&record.id, "c1").await.unwrap();
    std::fs::write(root.join("index.json"), "{\"version\":1,\"ima").unwrap();
    node.reopen();
    assert!(node.store.list().is_empty());
    let lease = node.store.lease_for(&record.id, "c1").await.unwrap();
    assert!(layers_are_there(&lease));
    node.store.release("c1").await.unwrap();
    node.assert_empty().await;
}

/// The image of a lost layer is not listed, and a new pull transfers only that layer.
#[tokio::test]
async fn images_with_a_lost_layer_are_not_listed_until_pulled() {
    let (registry, mut node) = (Faulty::start().await, Node::new());
    let image = two_layers();
    let name = registry.push("a/b", "v", &image);
    let record = node.store.pull(&name, None).await.unwrap();
    sys::tree::remove_path(&node.root().join("layers").join(&record.layers[0])).unwrap();
    node.reopen();
    assert!(node.store.list().is_empty() && node.store.resolve(&name).is_none());
    let error = node.store.lease_for(&record.id, "c").await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    let before = registry.requests("/blobs/");
    let again = node.store.pull(&name, None).await.unwrap();
    assert_eq!(
        (&again.id, &again.layers, registry.requests("/blobs/")),
        (&record.id, &record.layers, before + 1)
    );
    node.store.lease_for(&record.id, "c").await.unwrap();
    node.store.release("c").await.unwrap();
    // An image that is not listed can be removed, too.
    sys::tree::remove_path(&node.root().join("layers").join(&record.layers[0])).unwrap();
    node.reopen();
    node.store.remove(&name).await.unwrap();
    node.assert_empty().await;
}

/// The facts of a layer that a container has mounted are lost, and its image is pulled again: the folder must stay.
#[tokio::test]
async fn a_leased_layer_is_not_replaced() {
    use std::os::unix::fs::MetadataExt as _;
    let (registry, mut node) = (Faulty::start().await, Node::new());
    let name = registry.push("a/b", "v", &two_layers());
    let record = node.store.pull(&name, None).await.unwrap();
    let lease = node.store.lease_for(&record.id, "c").await.unwrap();
    let inode = |layer: &String| std::fs::metadata(lease.layers_dir.join(layer)).unwrap().ino();
    let before: Vec<_> = lease.layers.iter().map(inode).collect();
    std::fs::remove_file(node.root().join("facts").join(format!("{}.json", lease.layers[0]))).unwrap();
    node.reopen();
    assert!(node.store.list().is_empty());
    assert_eq!(node.store.pull(&name, None).await.unwrap(), record);
    assert_eq!(lease.layers.iter().map(inode).collect::<Vec<_>>(), before);
    node.reopen();
    assert_eq!(node.store.list(), [record]);
}

/// `sha256:<hex>` is an image's id, also if there is an image with the name `docker.io/library/sha256:<hex>`.
#[tokio::test]
async fn an_id_is_not_a_name() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let id = common::digest_of(b"another image");
    registry.push("library/sha256", id.strip_prefix("sha256:").unwrap(), &two_layers());
    node.hosts("docker.io", &format!("server = \"http://{}\"\n", registry.address));
    node.store.pull(&id, None).await.unwrap();
    assert!(node.store.resolve(&id).is_none());
    node.store.remove(&id).await.unwrap();
    assert!(node.store.resolve(&format!("docker.io/library/{id}")).is_some());
}

/// An index and a lease that name a layer twice, as older versions wrote them.
#[tokio::test]
async fn equal_layers_of_an_old_index_count_once() {
    let (registry, mut node) = (Faulty::start().await, Node::new());
    let (a, b) = (tar(&[("f", b"a")]), tar(&[("f", b"b")]));
    let image = build(&[(b.clone(), Codec::Gzip), (a.clone(), Codec::Gzip), (b, Codec::Plain)], "");
    let name = registry.push("a/b", "v", &image);
    let record = node.store.pull(&name, None).await.unwrap();
    assert_eq!(record.layers.len(), 2);
    let path = node.root().join("index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let layers = index["images"][0]["layers"].as_array_mut().unwrap();
    let topmost = layers.last().cloned().unwrap();
    layers.insert(0, topmost);
    let lease = serde_json::json!({"image": record.id, "layers": layers});
    std::fs::write(&path, serde_json::to_vec(&index).unwrap()).unwrap();
    std::fs::write(node.root().join("leases/old.json"), serde_json::to_vec(&lease).unwrap()).unwrap();
    node.reopen();
    assert_eq!(node.store.resolve(&name).unwrap().layers, record.layers);
    assert_eq!(node.store.lease_for(&record.id, "new").await.unwrap().layers, record.layers);
    assert_eq!(node.store.lease_for(&record.id, "old").await.unwrap().layers, record.layers);
}

/// A layer with a folder `d`.
fn folder_of(mode: u32, uid: u32) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(mode);
    header.set_uid(uid.into());
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(0);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, "d/", &b""[..]).unwrap();
    builder.into_inner().unwrap()
}

/// Two images share a layer whose folder has no entry, on bases with different attributes. The daemon is killed at each
/// step in which the layer with the right attributes is published.
#[tokio::test]
async fn corrected_folders_are_right_after_a_crash_at_any_step() {
    use std::os::unix::fs::MetadataExt as _;
    let (registry, mut node) = (Faulty::start().await, Node::new());
    let bases = [(0o711, 5), (0o1770, 6)];
    let names = bases.map(|(mode, uid)| {
        let layers = [(folder_of(mode, uid), Codec::Gzip), (tar(&[("d/x", b"x")]), Codec::Gzip)];
        registry.push(&format!("a/b{uid}"), "v", &build(&layers, ""))
    });
    // Whether the index, the facts of the added layer, and its folder are lost.
    for lost in
        [[false; 3], [true, false, false], [true, false, true], [true, true, true], [false, false, true]]
    {
        for name in &names {
            node.store.pull(name, None).await.unwrap();
        }
        let added = node.store.resolve(&names[0]).unwrap().layers[0].clone();
        let files = ["index.json".to_owned(), format!("facts/{added}.json")];
        for (file, _) in files.iter().zip(lost).filter(|(_, lost)| *lost) {
            std::fs::remove_file(node.root().join(file)).unwrap();
        }
        if lost[2] {
            let ingest = node.root().join("ingest/9");
            std::fs::rename(node.root().join("layers").join(&added), ingest).unwrap();
        }
        node.reopen();
        for (name, (mode, uid)) in names.iter().zip(bases) {
            let record = node.store.pull(name, None).await.unwrap();
            assert_eq!(record.layers.len(), 3, "{lost:?}");
            let folder = |layer: usize| {
                let meta =
                    std::fs::metadata(record.layers_dir.join(&record.layers[layer]).join("d")).unwrap();
                (meta.mode() & 0o7777, meta.uid())
            };
            assert_eq!((folder(0), folder(1)), ((mode, uid), (0o755, 0)), "{name}, {lost:?}");
        }
    }
    // The layer of one image does not go with the other image.
    node.store.remove(&names[0]).await.unwrap();
    node.reopen();
    let record = node.store.resolve(&names[1]).unwrap();
    let meta = std::fs::metadata(record.layers_dir.join(&record.layers[0]).join("d")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), bases[1]);
    node.store.remove(&names[1]).await.unwrap();
    node.assert_empty().await;
}
