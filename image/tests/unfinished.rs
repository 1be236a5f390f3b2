//! Pulls that fail, are cancelled or meet a full disk: what they have completed is used by the next one.
#![allow(missing_docs)]

mod common;

use common::{Built, Codec, Fault, Faulty, NOTHING, Node, build, noise, tar};
use image::Error;
use std::process::Command;
use std::time::Duration;

/// An image of three layers. The largest is transferred first.
fn three_layers(seed: u64) -> Built {
    let layer = |n: u64| tar(&[("d/file", &noise(10_000 * usize::try_from(4 - n).unwrap(), seed + n))]);
    build(&[(layer(1), Codec::Gzip), (layer(2), Codec::Plain), (layer(3), Codec::Gzip)], "")
}

/// A node that transfers one layer after the other.
fn one_by_one() -> Node {
    Node::with(|options| options.parallel_layers = 1)
}

/// How often each layer was requested.
fn requests(registry: &Faulty, image: &Built) -> Vec<usize> {
    image.layers.iter().map(|layer| registry.requests(layer)).collect()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

/// The pull fails at the third layer, and so does the next one.
#[tokio::test]
async fn a_retry_transfers_only_what_is_missing() {
    let (registry, mut node) = (Faulty::start().await, one_by_one());
    let image = three_layers(1);
    let name = registry.push("a/b", "v", &image);
    registry.fault(&image.layers[2], 3, Fault::Status(404, None));
    let error = node.store.pull(&name, None).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    assert_eq!(requests(&registry, &image), [1, 1, 1]);
    assert!(node.store.list().is_empty());
    assert!(node.store.usage().bytes >= 50_000, "what is kept is not counted");
    node.store.pull(&name, None).await.unwrap_err();
    until("one record of both pulls", || node.count("pulls") == 1).await;
    // The daemon restarts.
    node.reopen();
    node.store.pull(&name, None).await.unwrap_err();
    assert_eq!(requests(&registry, &image), [1, 1, 3]);
    node.store.pull(&name, None).await.unwrap();
    assert_eq!(requests(&registry, &image), [1, 1, 4]);
    assert_eq!(node.count("pulls"), 0);
    // The layers are those of an image now.
    node.store.remove(&name).await.unwrap();
    until("the layers of the image to go", || node.count("layers") == 0).await;
}

#[tokio::test]
async fn a_cancelled_pull_is_continued() {
    let (registry, mut node) = (Faulty::start().await, one_by_one());
    let image = three_layers(1);
    let name = registry.push("a/b", "v", &image);
    registry.fault(&image.layers[2], 2, Fault::Hang);
    let store = node.store.clone();
    let pull = tokio::spawn({
        let name = name.clone();
        async move { store.pull(&name, None).await.map(drop) }
    });
    until("two layers", || node.count("layers") == 2 && registry.requests(&image.layers[2]) == 1).await;
    pull.abort();
    drop(pull.await);
    until("the record of the pull", || node.count("ingest") == 0 && node.count("pulls") == 1).await;
    registry.shared.lock().unwrap().faults.clear();
    // After a power loss the layers could be damaged: nothing of them is used, and nothing is left of them.
    let damaged = std::fs::read_dir(node.root().join("layers")).unwrap().next().unwrap().unwrap().path();
    std::fs::write(damaged.join("d/file"), "").unwrap();
    node.reopen_with(|options| "another boot".clone_into(&mut options.boot_id));
    assert_eq!(node.store.usage().bytes, 0);
    let record = node.store.pull(&name, None).await.unwrap();
    assert_eq!(requests(&registry, &image), [2, 2, 2]);
    for layer in &record.layers {
        assert!(std::fs::metadata(record.layers_dir.join(layer).join("d/file")).unwrap().len() >= 10_000);
    }
    node.store.remove(&name).await.unwrap();
    node.assert_empty().await;
}

/// A pull stalls, and another one uses a layer that it has completed.
#[tokio::test]
async fn a_layer_of_a_running_pull_is_used_by_others() {
    let (registry, mut node) = (Faulty::start().await, one_by_one());
    let stalled = three_layers(1);
    let shared = tar(&[("d/file", &noise(30_000, 2))]);
    let small = build(&[(shared, Codec::Gzip), (tar(&[("x", b"y")]), Codec::Gzip)], "small");
    assert_eq!(small.layers[0], stalled.layers[0], "the images share no layer");
    let (first, second) = (registry.push("a/b", "v", &stalled), registry.push("c/d", "v", &small));
    registry.fault(&stalled.layers[1], 2, Fault::Hang);
    let store = node.store.clone();
    let pull = tokio::spawn({
        let first = first.clone();
        async move { store.pull(&first, None).await.map(drop) }
    });
    until("the second layer to stall", || registry.requests(&stalled.layers[1]) == 1).await;
    let record = node.store.pull(&second, None).await.unwrap();
    assert_eq!(registry.requests(&small.layers[0]), 1);
    pull.abort();
    drop(pull.await);
    // Also after a power loss: the image was synced, whoever transferred its layers.
    node.reopen_with(|options| "another boot".clone_into(&mut options.boot_id));
    assert_eq!(node.store.list(), std::slice::from_ref(&record));
    until("what the other pull left to go", || node.count("layers") == 2 && node.count("pulls") == 0).await;
    registry.shared.lock().unwrap().faults.clear();
    node.store.pull(&first, None).await.unwrap();
    assert_eq!(requests(&registry, &stalled), [1, 2, 1]);
}

/// A file system of its own, unmounted on drop.
struct Small(std::path::PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: what runs in the background may still have a file open.
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

/// What failed pulls have left goes before anything else.
#[tokio::test]
async fn kept_layers_go_first_when_the_disk_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    std::fs::create_dir(&root).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=12m", "tmpfs"]).arg(&root).status().unwrap();
    assert!(mounted.success(), "the test must run as root");
    let _small = Small(root.clone());
    let mut options = Node::options(folder.path());
    options.parallel_layers = 1;
    let store = image::ImageStore::open(options).unwrap();
    let registry = Faulty::start().await;
    let layer = |seed: u64, length: usize| (tar(&[("file", &noise(length, seed))]), Codec::Plain);
    let used = build(&[layer(1, 2 << 20)], "");
    let failing = build(&[layer(2, 5 << 20), layer(3, 1000)], "");
    let large = build(&[layer(4, 6 << 20), layer(5, 1 << 20)], "");
    let too_large = build(&[layer(6, 1 << 20), layer(7, 500_000), layer(8, 16 << 20)], "");
    let names = [&used, &failing, &large, &too_large].map(|image| {
        let name = common::digest_of(image.config.as_bytes());
        registry.push(&name[7..20], "v", image)
    });
    let kept = store.pull(&names[0], None).await.unwrap();
    registry.fault(&failing.layers[1], 1, Fault::Status(404, None));
    store.pull(&names[1], None).await.unwrap_err();
    assert!(store.usage().bytes >= 7 << 20, "nothing was kept");
    // Does not fit beside what was kept.
    store.pull(&names[2], None).await.unwrap();
    assert_eq!(requests(&registry, &large), [2, 1], "the layer was not transferred again");
    assert!(store.usage().bytes < 10 << 20);
    // Does not fit at all, and must not use up what little there is.
    store.remove(&names[2]).await.unwrap();
    let error = store.pull(&names[3], None).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    let facts = format!("must stay free: the file system at {} has ", root.display());
    assert!(error.is_full() && source.contains(&facts), "{error}: {source}");
    let layers = || std::fs::read_dir(root.join("layers")).unwrap().count();
    until("the layers of the pull that found no space to go", || layers() == 1).await;
    assert_eq!(store.list(), [kept]);
    store.remove(NOTHING).await.unwrap();
}
