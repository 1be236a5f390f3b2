//! Pulls from a registry that serves wrong bytes, hangs, redirects, asks for tokens or is overloaded.
#![allow(missing_docs)]

mod common;

use common::{Built, Codec, Fault, Faulty, INDEX, Node, build, noise, tar};
use image::{Auth, Digest, Error};
use std::time::{Duration, Instant};

fn two_layers() -> Built {
    let lower = tar(&[("etc/name", b"lower"), ("big", &noise(200_000, 1))]);
    let upper = tar(&[("etc/.wh.name", b""), ("etc/other", b"upper")]);
    build(&[(lower, Codec::Gzip), (upper, Codec::Zstd)], "1000:1000")
}

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
    assert!(node.store.usage().await.bytes > 200_000);
    node.reopen();
    assert_eq!(node.store.list(), std::slice::from_ref(&record));
    assert_eq!(node.store.usage().await.bytes, record.size - sizes(&image));
    // Known layers and config are not transferred again.
    let before = registry.requests("/blobs/");
    node.store.pull(&name, None).await.unwrap();
    assert_eq!(registry.requests("/blobs/"), before);
    node.store.remove(&name).await.unwrap();
    node.store.remove(&name).await.unwrap();
    assert!(node.store.list().is_empty());
    assert_eq!(node.store.usage().await.inodes, 0);
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
    // Removing one name removes all of them; five removals may run at once.
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
    assert_eq!(node.store.leases(), ["pod-1"]);
    assert_eq!(node.store.lease_for(&record.id, "pod-1").await.unwrap(), lease);
    let second = node.store.lease_for(&record.id, "pod-2").await.unwrap();
    assert!(layers_are_there(&second));
    node.store.release("pod-1").await.unwrap();
    node.store.release("pod-1").await.unwrap();
    assert!(layers_are_there(&lease));
    // Pulling finds the leased layers.
    let before = registry.requests("/blobs/");
    node.store.pull(&name, None).await.unwrap();
    assert_eq!(registry.requests("/blobs/"), before + 1, "only the config is fetched");
    node.store.remove(&name).await.unwrap();
    node.store.release("pod-2").await.unwrap();
    node.assert_empty().await;
    assert!(matches!(node.store.lease_for(&record.id, "x").await, Err(Error::NotFound { .. })));
    assert!(node.store.lease_for(&record.id, "../x").await.is_err());
}

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
    let mut image = two_layers();
    let config = String::from_utf8(image.blobs[&image.config].clone()).unwrap();
    for changed in [
        config.replacen("diff_ids\":[\"sha256:", "diff_ids\":[\"sha256:0", 1).replacen("0\",\"", "\",\"", 1),
        config.replace(&config[config.find(",\"sha256:").unwrap()..config.rfind(']').unwrap()], ""),
        {
            let at = config.find("diff_ids\":[\"sha256:").unwrap() + 19;
            let mut bytes = config.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            String::from_utf8(bytes).unwrap()
        },
    ] {
        let digest = Digest::of(changed.as_bytes()).to_string();
        let manifest = String::from_utf8(image.manifest.clone()).unwrap().replace(&image.config, &digest);
        let mut manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        manifest["config"]["size"] = changed.len().into();
        let mut built = image.clone();
        built.manifest = serde_json::to_vec(&manifest).unwrap();
        built.blobs.insert(digest, changed.into_bytes());
        let name = registry.push("a/b", "v", &built);
        let error = node.store.pull(&name, None).await;
        assert!(matches!(error, Err(Error::Corrupt { .. })), "{error:?}");
        node.assert_empty().await;
    }
    image.blobs.clear();
}

#[tokio::test]
async fn hostile_layers_leave_nothing() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let mut hostile = tar(&[("aaaescaped", b"x")]);
    hostile[..10].copy_from_slice(b"../escaped");
    // No layer in use has such an entry.
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
    // Far below any limit but the node's own of half a second.
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
    registry.fault("/manifests/", 100, Fault::Status(403, None));
    let error = node.store.pull(&format!("{}/no/such:tag", registry.address), None).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert!(matches!(node.store.pull("Bad Name", None).await, Err(Error::InvalidReference { .. })));
    node.assert_empty().await;
}

const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

fn user() -> Auth {
    Auth { username: "user".into(), password: "secret".into(), ..Auth::default() }
}

#[tokio::test]
async fn bearer_token_authentication() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let name = registry.push("a/b", "v", &two_layers());
    let realm = format!("http://{}/token", registry.address);
    registry.shared.lock().unwrap().token = Some(("t0ken".into(), realm, Some(BASIC.into())));
    let error = node.store.pull(&name, None).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    let wrong = Auth { password: "other".into(), ..user() };
    assert!(matches!(node.store.pull(&name, Some(wrong)).await, Err(Error::Unauthorized { .. })));
    let before = registry.requests("/token");
    node.store.pull(&name, Some(user())).await.unwrap();
    assert_eq!(registry.requests("/token"), before + 1, "one token serves all requests of a pull");
    node.store.remove(&name).await.unwrap();
    // The combined field, a refresh token, and a registry token.
    for auth in [
        Auth { auth: "dXNlcjpzZWNyZXQ=".into(), ..Auth::default() },
        Auth { identity_token: "idtoken".into(), ..Auth::default() },
        Auth { registry_token: "t0ken".into(), ..Auth::default() },
    ] {
        node.store.pull(&name, Some(auth)).await.unwrap();
        node.store.remove(&name).await.unwrap();
    }
    node.assert_empty().await;
    let shared = registry.shared.lock().unwrap();
    assert!(
        shared.log.iter().any(|(_, path, ..)| path.contains("scope=repository%3Aa%2Fb%3Apull&service=test"))
    );
}

#[tokio::test]
async fn basic_authentication() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let name = registry.push("a/b", "v", &two_layers());
    registry.shared.lock().unwrap().basic = Some(BASIC.into());
    assert!(matches!(node.store.pull(&name, None).await, Err(Error::Unauthorized { .. })));
    let elsewhere = Auth { server_address: "other.example".into(), ..user() };
    assert!(matches!(node.store.pull(&name, Some(elsewhere)).await, Err(Error::Unauthorized { .. })));
    let error =
        node.store.pull(&name, Some(Auth { password: "hunter2".into(), ..user() })).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    let bound = Auth { server_address: format!("http://{}", registry.address), ..user() };
    node.store.pull(&name, Some(bound)).await.unwrap();
}

#[tokio::test]
async fn redirects_do_not_carry_credentials() {
    let (registry, storage, node) = (Faulty::start().await, Faulty::start().await, Node::new());
    let image = two_layers();
    let name = registry.push("a/b", "v", &image);
    registry.shared.lock().unwrap().basic = Some(BASIC.into());
    storage.shared.lock().unwrap().blobs = image.blobs.clone();
    for layer in &image.layers {
        registry.fault(
            layer,
            100,
            Fault::Redirect(format!("http://{}/elsewhere/blobs/{layer}?sig=x", storage.address)),
        );
    }
    registry.fault(&image.config, 1, Fault::Redirect(format!("/v2/a/b/blobs/{}", image.config)));
    node.store.pull(&name, Some(user())).await.unwrap();
    let log = storage.shared.lock().unwrap().log.clone();
    assert_eq!(log.len(), 2);
    assert!(log.iter().all(|(_, _, authorization, _)| authorization.is_none()), "{log:?}");
    // Storage hosts that ask for credentials get none.
    node.store.remove(&name).await.unwrap();
    storage.shared.lock().unwrap().basic = Some(BASIC.into());
    assert!(node.store.pull(&name, Some(user())).await.is_err());
    assert!(
        storage.shared.lock().unwrap().log.iter().all(|(_, _, authorization, _)| authorization.is_none())
    );
    // A redirect loop ends.
    registry.fault("/manifests/", 1000, Fault::Redirect("/v2/a/b/manifests/v".to_owned()));
    assert!(node.store.pull(&name, Some(user())).await.is_err());
}

#[tokio::test]
async fn mirrors_come_first_and_the_server_last() {
    let (upstream, mirror, node) = (Faulty::start().await, Faulty::start().await, Node::new());
    let image = two_layers();
    upstream.push("a/b", "v", &image);
    upstream.shared.lock().unwrap().basic = None;
    node.hosts(
        "registry.example",
        &format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", upstream.address, mirror.address),
    );
    // The mirror has nothing, so the server is asked.
    let record = node.store.pull("registry.example/a/b:v", Some(user())).await.unwrap();
    assert_eq!(record.repo_tags, ["registry.example/a/b:v"]);
    assert!(mirror.requests("ns=registry.example") >= 1);
    node.store.remove(&record.id).await.unwrap();
    mirror.push("a/b", "v", &image);
    let before = upstream.requests("");
    node.store.pull("registry.example/a/b:v", Some(user())).await.unwrap();
    assert_eq!(upstream.requests(""), before, "the mirror has everything");
    let log = mirror.shared.lock().unwrap().log.clone();
    assert!(
        log.iter().all(|(_, _, authorization, _)| authorization.is_none()),
        "credentials are not the mirror's"
    );
    // A mirror without the capability `resolve` is not asked for tags.
    node.store.remove(&record.id).await.unwrap();
    node.hosts(
        "registry.example",
        &format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
            upstream.address, mirror.address
        ),
    );
    let before = mirror.requests("/manifests/v");
    node.store.pull("registry.example/a/b:v", None).await.unwrap();
    assert_eq!(mirror.requests("/manifests/v"), before);
    node.hosts("registry.example", "server = 7");
    let error = node.store.pull("registry.example/a/b:v", None).await.unwrap_err();
    assert!(matches!(error, Error::Configuration { .. }), "{error}");
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
    let other = Digest::of(b"x").to_string();
    let index = serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "mediaType": INDEX,
        "manifests": [entry(&other, "s390x"), entry(&image.digest(), "amd64")]}))
    .unwrap();
    let top = Digest::of(&index).to_string();
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
async fn equal_pulls_are_one_transfer() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let image = two_layers();
    let name = registry.push("a/b", "v", &image);
    registry.fault(&image.layers[0], 1, Fault::Slow(20));
    let pulls = (0..8).map(|_| node.store.pull(&name, None));
    let records = futures_util::future::join_all(pulls).await;
    assert!(records.iter().all(|record| record.as_ref().unwrap().id == image.config));
    assert_eq!(registry.requests("/manifests/"), 1);
    assert_eq!(registry.requests("/blobs/"), 3);
    // Two images with the same layers transfer them once.
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
    // The transfer goes on when one of two waiting callers leaves.
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

#[tokio::test]
async fn crash_leftovers_and_torn_files() {
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
    node.reopen();
    assert_eq!(node.store.list(), std::slice::from_ref(&record));
    for (folder, count) in
        [("ingest", 0), ("trash", 0), ("layers", 2), ("blobs", 2), ("leases", 0), ("facts", 2)]
    {
        // Opening does not wait for the deletion of leftovers.
        for _ in 0..500 {
            if node.count(folder) == count {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(node.count(folder), count, "{folder}");
    }
    // A damaged config affects only its image. A torn index loses all names, but layers in use stay.
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

/// One registry stalls after the headers and has more layers to serve than its share of transfers; another
/// one works.
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

/// A layer was lost from the disk: its image is not listed, and a new pull fetches only that layer.
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
