//! Pulls from a registry that serves wrong content, hangs, is overloaded or has several platforms; shared and cancelled
//! pulls.
#![allow(missing_docs)]

mod common;

use common::{Codec, Fault, Faulty, INDEX, Node, build, digest_of, noise, tar, two_layers};
use image::Error;
use std::time::{Duration, Instant};

#[tokio::test]
async fn broken_content_is_refused_and_leaves_nothing() {
    let node = Node::new();
    for (path, fault) in [("/blobs/", Fault::Flip), ("/blobs/", Fault::Longer), ("/manifests/", Fault::Flip)]
    {
        let registry = Faulty::start().await;
        let image = two_layers();
        let name = registry.push("a/b", "v", &image);
        let target = if path == "/blobs/" { image.layers[0].clone() } else { path.to_owned() };
        registry.fault(&target, 100, fault.clone());
        let by_digest = format!("{}@{}", name.trim_end_matches(":v"), image.digest());
        let error = node.store.pull(&by_digest, None).await;
        assert!(matches!(error, Err(Error::Corrupt { .. })), "{fault:?}: {error:?}");
        assert!(node.store.list().is_empty());
        node.assert_empty().await;
    }
    // A config with another digest than the manifest says.
    let registry = Faulty::start().await;
    let image = two_layers();
    let name = registry.push("a/b", "v", &image);
    registry.fault(&image.config, 100, Fault::Flip);
    assert!(matches!(node.store.pull(&name, None).await, Err(Error::Corrupt { .. })));
    node.assert_empty().await;
}

#[tokio::test]
async fn wrong_diff_id_and_layer_count() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let image = two_layers();
    let (one, other) = (digest_of(b"one"), digest_of(b"other"));
    for diff_ids in [vec![one.clone(), "sha256:0".to_owned()], vec![one.clone()], vec![one, other]] {
        let mut config: serde_json::Value = serde_json::from_slice(&image.blobs[&image.config]).unwrap();
        config["rootfs"]["diff_ids"] = diff_ids.into();
        let config = serde_json::to_vec(&config).unwrap();
        let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        manifest["config"]["size"] = config.len().into();
        manifest["config"]["digest"] = digest_of(&config).into();
        let mut built = image.clone();
        built.manifest = serde_json::to_vec(&manifest).unwrap();
        built.blobs.insert(digest_of(&config), config);
        let name = registry.push("a/b", "v", &built);
        let error = node.store.pull(&name, None).await;
        assert!(matches!(error, Err(Error::Corrupt { .. })), "{error:?}");
        node.assert_empty().await;
    }
}

#[tokio::test]
async fn hostile_layers_leave_nothing() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let mut hostile = tar(&[("aaaescaped", b"x")]);
    hostile[..10].copy_from_slice(b"../escaped");
    // A type that does not exist.
    hostile[156] = b'Z';
    let sum: u32 = hostile[..512]
        .iter()
        .enumerate()
        .map(|(at, b)| if (148..156).contains(&at) { 32 } else { u32::from(*b) })
        .sum();
    hostile[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let image = build(&[(tar(&[("fine", b"x")]), Codec::Gzip), (hostile, Codec::Gzip)], "");
    let name = registry.push("a/b", "v", &image);
    let error = node.store.pull(&name, None).await.unwrap_err();
    assert!(error.to_string().contains("../escaped") && error.to_string().contains("type"), "{error}");
    node.assert_empty().await;
    assert!(!node.root().join("ingest/escaped").exists() && !node.root().join("escaped").exists());
}

/// As registry.k8s.io did: the storage breaks a transfer and refuses its rest.
#[tokio::test]
async fn a_layer_whose_rest_is_refused_is_requested_again() {
    for refusal in [400, 416] {
        let (registry, node) = (Faulty::start().await, Node::new());
        let image = two_layers();
        let name = registry.push("a/b", "v", &image);
        registry.fault(&image.layers[0], 1, Fault::Truncate);
        registry.fault(&image.layers[0], 1, Fault::Status(refusal, None));
        node.store.pull(&name, None).await.unwrap();
        let shared = registry.shared.lock().unwrap();
        let asked = shared.log.iter().filter(|(_, path, ..)| path.contains(&image.layers[0]));
        assert_eq!(asked.map(|(.., range)| range.is_some()).collect::<Vec<_>>(), [false, true, false]);
    }
}

#[tokio::test]
async fn a_web_page_is_no_manifest() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let name = registry.push("a/b", "v", &two_layers());
    registry.fault("/manifests/", 1, Fault::Says(200, "\n<!DOCTYPE html>"));
    let error = node.store.pull(&name, None).await.unwrap_err().to_string();
    assert!(error.contains(&format!("{}: it answers with a web page", registry.address)), "{error}");
    node.store.pull(&name, None).await.unwrap();
}

#[tokio::test]
async fn broken_transfers_are_resumed() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let image = two_layers();
    let name = registry.push("a/b", "v", &image);
    registry.fault(&image.layers[0], 2, Fault::Truncate);
    node.store.pull(&name, None).await.unwrap();
    let shared = registry.shared.lock().unwrap();
    let ranges =
        shared.log.iter().filter(|(_, path, _, range)| path.contains(&image.layers[0]) && range.is_some());
    assert_eq!(ranges.count(), 2);
}

#[tokio::test]
async fn transfers_that_always_break_end() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let image = two_layers();
    let name = registry.push("a/b", "v", &image);
    registry.fault(&image.layers[0], 1000, Fault::Hang);
    let started = Instant::now();
    let error = node.store.pull(&name, None).await;
    assert!(matches!(error, Err(Error::Unavailable { .. })), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(30));
    node.assert_empty().await;
}

#[tokio::test]
async fn a_silent_registry_times_out() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let name = registry.push("a/b", "v", &two_layers());
    registry.fault("/manifests/", 1000, Fault::Silence);
    let started = Instant::now();
    assert!(matches!(node.store.pull(&name, None).await, Err(Error::Unavailable { .. })));
    // `Node` has set limits below one second; the default ones are a minute.
    assert!(started.elapsed() < Duration::from_secs(30));
    let nobody = node.store.pull("127.0.0.1:1/a/b:v", None).await.unwrap_err();
    assert!(
        matches!(&nobody, Error::Unavailable { detail, .. } if detail.contains("127.0.0.1:1")),
        "{nobody}"
    );
}

#[tokio::test]
async fn overload_is_retried_for_a_limited_time() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let image = two_layers();
    let name = registry.push("a/b", "v", &image);
    registry.fault("/manifests/", 2, Fault::Status(429, Some("1")));
    registry.fault("/blobs/", 2, Fault::Status(503, None));
    let started = Instant::now();
    node.store.pull(&name, None).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(2), "Retry-After was ignored");
    registry.fault("/manifests/", 100, Fault::Status(500, None));
    let before = registry.requests("/manifests/");
    assert!(matches!(node.store.pull(&name, None).await, Err(Error::Unavailable { .. })));
    assert_eq!(registry.requests("/manifests/"), before + 4);
}

#[tokio::test]
async fn absent_images_and_forbidden_ones() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let error = node.store.pull(&format!("{}/no/such:tag", registry.address), None).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    // The registry rejects the request: nothing is lost, and a retry does not help.
    for status in [400, 405] {
        registry.fault("/manifests/", 1, Fault::Status(status, None));
        let error = node.store.pull(&format!("{}/no/such:tag", registry.address), None).await.unwrap_err();
        let names = |detail: &String| detail.contains(&format!("status {status}"));
        assert!(matches!(&error, Error::Protocol { detail, .. } if names(detail)), "{error}");
    }
    registry.fault("/manifests/", 100, Fault::Status(403, None));
    let error = node.store.pull(&format!("{}/no/such:tag", registry.address), None).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert!(matches!(node.store.pull("Bad Name", None).await, Err(Error::InvalidReference { .. })));
    node.assert_empty().await;
}

#[tokio::test]
async fn indexes_lead_to_this_platform() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let image = two_layers();
    registry.push("a/b", "inner", &image);
    let entry = |digest: &str, arch: &str| {
        serde_json::json!({"mediaType": common::MANIFEST, "digest": digest, "size": image.manifest.len(),
            "platform": {"os": "linux", "architecture": arch}})
    };
    let other = digest_of(b"x");
    let index = serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "mediaType": INDEX,
        "manifests": [entry(&other, "s390x"), entry(&image.digest(), "amd64")]}))
    .unwrap();
    let top = digest_of(&index);
    let content = (index, INDEX.to_owned());
    registry.shared.lock().unwrap().manifests.insert("a/b/manifests/multi".into(), content);
    let record = node.store.pull(&format!("{}/a/b:multi", registry.address), None).await.unwrap();
    assert_eq!(record.id, image.config);
    assert_eq!(record.repo_digests, [format!("{}/a/b@{top}", registry.address)]);
    assert_eq!(node.count("blobs"), 3);
    let error =
        serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "manifests": [entry(&other, "s390x")]}))
            .unwrap();
    registry
        .shared
        .lock()
        .unwrap()
        .manifests
        .insert("a/b/manifests/foreign".into(), (error, INDEX.to_owned()));
    let error = node.store.pull(&format!("{}/a/b:foreign", registry.address), None).await;
    assert!(matches!(error, Err(Error::Unsupported { .. })), "{error:?}");
}

#[tokio::test]
async fn equal_pulls_are_shared() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let image = two_layers();
    let name = registry.push("a/b", "v", &image);
    registry.fault(&image.layers[0], 1, Fault::Slow(20));
    let pulls = (0..8).map(|_| node.store.pull(&name, None));
    let records = futures_util::future::join_all(pulls).await;
    assert!(records.iter().all(|record| record.as_ref().unwrap().id == image.config));
    assert_eq!(registry.requests("/manifests/"), 1);
    assert_eq!(registry.requests("/blobs/"), 3);
    // Pulls of two images with the same layers transfer them once.
    node.store.remove(&image.config).await.unwrap();
    registry.fault(&image.layers[0], 1, Fault::Slow(20));
    let other = registry.push("c/d", "v", &image);
    let (one, two) = tokio::join!(node.store.pull(&name, None), node.store.pull(&other, None));
    assert_eq!(one.unwrap().id, two.unwrap().id);
    assert_eq!(registry.requests(&image.layers[0]), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_pulls_leave_nothing() {
    let (registry, mut node) = (Faulty::start().await, Node::new());
    let image = two_layers();
    let name = registry.push("a/b", "v", &image);
    for millis in [0, 1, 5, 20, 60, 120, 200] {
        registry.fault(&image.layers[0], 1, Fault::Slow(15));
        let limit = Duration::from_millis(millis);
        assert!(tokio::time::timeout(limit, node.store.pull(&name, None)).await.is_err());
        node.assert_empty().await;
        registry.shared.lock().unwrap().faults.clear();
    }
    // A pull goes on when one of its two callers leaves.
    let before = registry.requests("/manifests/");
    registry.fault(&image.layers[0], 1, Fault::Slow(15));
    let (short, long) = tokio::join!(
        tokio::time::timeout(Duration::from_millis(50), node.store.pull(&name, None)),
        node.store.pull(&name, None)
    );
    assert!(short.is_err());
    long.unwrap();
    assert_eq!(registry.requests("/manifests/"), before + 1);
    node.reopen();
    assert_eq!(node.store.list().len(), 1);
}

/// A stalled registry has an image with the same layer as a registry that works.
#[tokio::test]
async fn a_stalled_transfer_does_not_delay_the_same_layer_of_another_registry() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = Node::options(folder.path());
    // Longer than this test runs, so that nothing times out by itself.
    options.idle_timeout = Duration::from_secs(600);
    let store = image::ImageStore::open(options).unwrap();
    let (stalled, healthy) = (Faulty::start().await, Faulty::start().await);
    let image = two_layers();
    let (slow, name) = (stalled.push("a/b", "v", &image), healthy.push("c/d", "v", &image));
    for layer in &image.layers {
        stalled.fault(layer, 1000, Fault::Hang);
    }
    let other = store.clone();
    let pull = tokio::spawn(async move { other.pull(&slow, None).await.map(drop) });
    let end = Instant::now() + Duration::from_secs(30);
    while image.layers.iter().any(|layer| stalled.requests(layer) == 0) {
        assert!(Instant::now() < end, "the layers are not requested");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let healthy = tokio::time::timeout(Duration::from_secs(30), store.pull(&name, None));
    healthy.await.expect("the pull waits for the stalled registry").unwrap();
    assert!(!pull.is_finished());
    pull.abort();
}

/// One registry stalls after the headers and has more layers than places for its transfers; another one works.
#[tokio::test]
async fn a_stalled_registry_does_not_delay_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = Node::options(folder.path());
    // Longer than this test runs, so that nothing times out by itself.
    options.idle_timeout = Duration::from_secs(600);
    let store = image::ImageStore::open(options).unwrap();
    let (stalled, healthy) = (Faulty::start().await, Faulty::start().await);
    let mut pulls = Vec::new();
    for n in 0..4u8 {
        let layers: Vec<_> = (0..5u8).map(|m| (tar(&[("f", &[n, m])]), Codec::Gzip)).collect();
        let image = build(&layers, &n.to_string());
        let name = stalled.push(&format!("a/{n}"), "v", &image);
        for layer in &image.layers {
            stalled.fault(layer, 1000, Fault::Hang);
        }
        let store = store.clone();
        pulls.push(tokio::spawn(async move { store.pull(&name, None).await.map(drop) }));
    }
    // A pull transfers three layers at once, and a registry has six transfers.
    let configs = pulls.len();
    let end = Instant::now() + Duration::from_secs(30);
    while stalled.requests("/blobs/") < configs + 6 {
        assert!(Instant::now() < end, "{} requests", stalled.requests("/blobs/"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let name = healthy.push("a/b", "v", &two_layers());
    let pull = tokio::time::timeout(Duration::from_secs(30), store.pull(&name, None));
    pull.await.expect("the pull waits for the stalled registry").unwrap();
    assert!(pulls.iter().all(|pull| !pull.is_finished()));
    pulls.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Two places for the registry's layers, and two slow layers with the largest window: one of them waits for the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_zstd_window_holds_up_nobody_else() {
    let registry = Faulty::start().await;
    let node = Node::with(|options| {
        options.parallel_layers = 1;
        options.idle_timeout = Duration::from_secs(120);
    });
    let mut slow = Vec::new();
    for (seed, ms) in [(1, 3000), (2, 100)] {
        let image = build(&[(tar(&[("file", &noise(200_000, seed))]), Codec::ZstdLong)], "");
        let name = registry.push("a/b", &format!("slow{seed}"), &image);
        registry.fault(&image.layers[0], 1, Fault::Slow(ms));
        let store = node.store.clone();
        slow.push(tokio::spawn(async move { store.pull(&name, None).await }));
        while registry.requests(&image.layers[0]) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let quick = registry.push("c/d", "v", &two_layers());
    node.store.pull(&quick, None).await.unwrap();
    assert!(!slow[0].is_finished(), "it has waited for a slow layer");
    // The other one gets the room once the first has ended.
    slow[0].abort();
    slow.remove(1).await.unwrap().unwrap();
    assert_eq!(node.store.list().len(), 2);
}
