//! Which image of an index is pulled, images without one, digests by sha512, and pinned images.
#![allow(missing_docs)]

mod common;

use common::{Built, CONFIG, Codec, Faulty, INDEX, LAYER, MANIFEST, Node, build, digest_of, tar, two_layers};
use image::Error;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

/// An image that differs from others by `user`, for this architecture.
fn image_of(user: &str, architecture: &str) -> Built {
    let mut image = build(&[(tar(&[("file", user.as_bytes())]), Codec::Gzip)], user);
    let mut config: Value = serde_json::from_slice(&image.blobs[&image.config]).unwrap();
    config["architecture"] = architecture.into();
    config["os"] = "Linux".into();
    change_config(&mut image, &config);
    image
}

fn change_config(image: &mut Built, config: &Value) {
    let config = config.to_string().into_bytes();
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    image.config = digest_of(&config);
    manifest["config"]["digest"] = image.config.clone().into();
    manifest["config"]["size"] = config.len().into();
    image.manifest = manifest.to_string().into_bytes();
    image.blobs.insert(image.config.clone(), config);
}

fn entry(digest: &str, architecture: Option<&str>) -> Value {
    let mut entry = json!({"mediaType": MANIFEST, "digest": digest, "size": 1});
    if let Some(architecture) = architecture {
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
    }
    entry
}

/// Serves an index, and returns its name and digest.
fn push_index(registry: &Faulty, tag: &str, entries: &[Value]) -> (String, String) {
    let index =
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string().into_bytes();
    let digest = digest_of(&index);
    let mut shared = registry.shared.lock().unwrap();
    for name in [tag, &digest] {
        shared.manifests.insert(format!("a/b/manifests/{name}"), (index.clone(), INDEX.to_owned()));
    }
    (format!("{}/a/b:{tag}", registry.address), digest)
}

#[tokio::test]
async fn another_entry_serves_if_the_best_one_does_not() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let (image, arm) = (image_of("1", "x86_64"), image_of("2", "aarch64"));
    registry.push("a/b", "image", &image);
    registry.push("a/b", "arm", &arm);
    let mut artifact = image.clone();
    let config: Value = serde_json::from_slice(&artifact.manifest).unwrap();
    let mut config = config.clone();
    config["config"]["mediaType"] = "application/vnd.oci.empty.v1+json".into();
    artifact.manifest = config.to_string().into_bytes();
    registry.push("a/b", "artifact", &artifact);
    let gone = digest_of(b"gone");
    let (image, arm, artifact) = (image.digest(), arm.digest(), artifact.digest());
    for (tag, before) in [
        ("gone", entry(&gone, Some("amd64"))),
        ("artifact", entry(&artifact, Some("amd64"))),
        ("unstated", entry(&arm, None)),
        ("stated", entry(&arm, Some("arm64"))),
    ] {
        let after = if tag == "unstated" { None } else { Some("amd64") };
        let (name, _) = push_index(&registry, tag, &[before, entry(&image, after)]);
        let record = node.store.pull(&name, None).await.unwrap();
        assert_eq!(record.config.user, "1", "{tag}");
        node.store.remove(&name).await.unwrap();
    }
    // The error is that of the best one.
    let (name, _) = push_index(&registry, "v", &[entry(&arm, None), entry(&gone, Some("amd64"))]);
    let error = node.store.pull(&name, None).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }) && error.to_string().contains(&gone), "{error}");
    let (name, _) = push_index(&registry, "v", &[entry(&arm, None)]);
    let error = node.store.pull(&name, None).await.unwrap_err();
    assert!(
        matches!(error, Error::Unsupported { .. }) && error.to_string().contains("linux/arm64"),
        "{error}"
    );
    node.assert_empty().await;
}

#[tokio::test]
async fn indexes_in_indexes_are_limited() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let image = image_of("1", "amd64");
    registry.push("a/b", "image", &image);
    let index_of = |tag: &str, digests: &[String]| {
        let entry = |digest: &String| json!({"mediaType": INDEX, "digest": digest, "size": 1});
        push_index(&registry, tag, &digests.iter().map(entry).collect::<Vec<_>>())
    };
    let (_, inner) = push_index(&registry, "inner", &[entry(&image.digest(), Some("amd64"))]);
    let (_, empty) = push_index(&registry, "empty", &[]);
    let (name, outer) = index_of("outer", &[empty, inner.clone()]);
    let record = node.store.pull(&name, None).await.unwrap();
    // The config, the manifest and the two indexes that lead to it.
    assert_eq!((record.config.user.as_str(), node.count("blobs")), ("1", 4));
    assert_eq!(record.repo_digests, [format!("{}/a/b@{outer}", registry.address)]);
    let (_, second) = index_of("second", &[inner]);
    let (name, _) = index_of("third", &[second]);
    let error = node.store.pull(&name, None).await.unwrap_err();
    assert!(error.to_string().contains("nested too deeply"), "{error}");
    let many: Vec<String> = (0..6)
        .map(|n| {
            let lost = (0..6).map(|m| entry(&digest_of(format!("{n} {m}").as_bytes()), Some("amd64")));
            push_index(&registry, &format!("lost{n}"), &lost.collect::<Vec<_>>()).1
        })
        .collect();
    let (name, _) = index_of("many", &many);
    let before = registry.requests("/manifests/");
    assert!(matches!(node.store.pull(&name, None).await, Err(Error::NotFound { .. })));
    assert_eq!(registry.requests("/manifests/") - before, 8);
}

#[tokio::test]
async fn an_image_for_another_processor_is_pulled_if_it_is_named() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let name = registry.push("a/b", "arm", &image_of("arm", "arm64"));
    assert_eq!(node.store.pull(&name, None).await.unwrap().config.user, "arm");
    // Configs often state the wrong one, and the index is right.
    let wrong = image_of("wrong", "arm64");
    registry.push("a/b", "wrong", &wrong);
    let (name, _) = push_index(&registry, "index", &[entry(&wrong.digest(), Some("amd64"))]);
    assert_eq!(node.store.pull(&name, None).await.unwrap().config.user, "wrong");
    let mut windows = image_of("windows", "amd64");
    let mut config: Value = serde_json::from_slice(&windows.blobs[&windows.config]).unwrap();
    config["os"] = "windows".into();
    change_config(&mut windows, &config);
    let name = registry.push("a/b", "windows", &windows);
    let error = node.store.pull(&name, None).await.unwrap_err();
    assert!(
        matches!(error, Error::Unsupported { .. }) && error.to_string().contains("windows/amd64"),
        "{error}"
    );
}

fn sha512(bytes: &[u8]) -> String {
    let hash = Sha512::digest(bytes);
    hash.iter().fold("sha512:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[tokio::test]
async fn an_image_by_sha512() {
    let (registry, mut node) = (Faulty::start().await, Node::new());
    let plain = tar(&[("file", b"content")]);
    let blob = plain.clone();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"User": "7"},
        "rootfs": {"type": "layers", "diff_ids": [sha512(&plain)]}})
    .to_string()
    .into_bytes();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": sha512(&config), "size": config.len()},
        "layers": [{"mediaType": LAYER, "digest": sha512(&blob), "size": blob.len()}]})
    .to_string()
    .into_bytes();
    let (id, top) = (sha512(&config), sha512(&manifest));
    {
        let mut shared = registry.shared.lock().unwrap();
        shared.blobs.extend([(id.clone(), config), (sha512(&blob), blob)]);
        shared.manifests.insert(format!("a/b/manifests/{top}"), (manifest, MANIFEST.to_owned()));
    }
    let name = format!("{}/a/b@{top}", registry.address);
    let record = node.store.pull(&name, None).await.unwrap();
    assert_eq!((&record.id, record.repo_digests.as_slice()), (&id, std::slice::from_ref(&name)));
    let file = record.layers_dir.join(&record.layers[0]).join("file");
    assert_eq!(std::fs::read(file).unwrap(), b"content");
    node.reopen();
    assert_eq!(node.store.list(), std::slice::from_ref(&record));
    for key in [&name, &id, &id[7..30], &top] {
        assert_eq!(node.store.resolve(key).as_ref(), Some(&record), "{key}");
    }
    let lease = node.store.lease_for(&id, "owner").await.unwrap();
    assert_eq!(lease.layers, record.layers);
    node.store.release("owner").await.unwrap();
    node.store.remove(&id).await.unwrap();
    node.assert_empty().await;
    // Another content under the same name.
    let broken = (b"{}".to_vec(), MANIFEST.to_owned());
    registry.shared.lock().unwrap().manifests.insert(format!("a/b/manifests/{top}"), broken);
    assert!(matches!(node.store.pull(&name, None).await, Err(Error::Corrupt { .. })));
}

#[tokio::test]
async fn pins_follow_the_patterns() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let name = registry.push("a/b", "v1", &two_layers());
    assert!(!node.store.pull(&name, None).await.unwrap().pinned);
    let pinned = || node.store.resolve(&name).unwrap().pinned;
    for (patterns, want) in [
        (vec![format!("{}/*", registry.address)], true),
        (vec!["other".to_owned()], false),
        (vec![name.clone()], true),
    ] {
        node.store.set_pinned(patterns).await.unwrap();
        assert_eq!(pinned(), want);
    }
    assert!(node.store.pull(&name, None).await.unwrap().pinned);
    node.store.set_pinned(Vec::new()).await.unwrap();
    assert!(!pinned());
    node.store.set_pinned(vec!["*".to_owned()]).await.unwrap();
    // Who asks for a removal gets it, as with containerd and CRI-O: pins are for kubelet's own choice.
    node.store.remove(&name).await.unwrap();
    node.assert_empty().await;
}
