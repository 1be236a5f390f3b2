//! Registries that ask for credentials, redirect, or stand behind a mirror.
#![allow(missing_docs)]

mod common;

use common::{Codec, Fault, Faulty, Node, build, tar, two_layers};
use image::{Auth, Error};

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
    // The token server has moved, on the same host.
    for auth in [user(), Auth { identity_token: "idtoken".into(), ..Auth::default() }] {
        registry.fault("/token", 1, Fault::Redirect("/token?moved".to_owned()));
        node.store.pull(&name, Some(auth)).await.unwrap();
        node.store.remove(&name).await.unwrap();
    }
    assert_eq!((registry.requests_by("GET", "?moved"), registry.requests_by("POST", "?moved")), (1, 1));
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

/// The node's own credentials: for the registry, also where `server` names another host, and for a mirror.
#[tokio::test]
async fn credentials_of_the_node() {
    let (upstream, mirror) = (Faulty::start().await, Faulty::start().await);
    let image = two_layers();
    upstream.push("a/b", "v", &image);
    upstream.shared.lock().unwrap().basic = Some(BASIC.into());
    mirror.shared.lock().unwrap().basic = Some("Basic bWlycm9yOnB3".into());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("auth.json");
    let node = Node::with(|options| options.credentials_file = Some(file.clone()));
    node.hosts(
        "registry.example",
        &format!("server = \"http://{}\"\n[host.\"http://{}/cache\"]\n", upstream.address, mirror.address),
    );
    let name = "registry.example/a/b:v";
    let pull = async |auth: Option<Auth>| node.store.pull(name, auth).await.map(drop);
    // There is no such file yet.
    assert!(matches!(pull(None).await, Err(Error::Unauthorized { .. })));
    let mirror_alone =
        format!("{{\"auths\":{{\"{}\":{{\"username\":\"mirror\",\"password\":\"pw\"}}}}}}", mirror.address);
    std::fs::write(&file, &mirror_alone).unwrap();
    assert!(matches!(pull(None).await, Err(Error::Unauthorized { .. })), "the mirror has nothing");
    // Credentials of the request are for the registry, and so for its server, and never for a mirror.
    pull(Some(user())).await.unwrap();
    node.store.remove(name).await.unwrap();
    let log = mirror.shared.lock().unwrap().log.clone();
    assert!(log.iter().any(|(_, _, sent, _)| sent.as_deref() == Some("Basic bWlycm9yOnB3")), "{log:?}");
    assert!(log.iter().all(|(_, _, sent, _)| sent.as_deref() != Some(BASIC)), "{log:?}");
    // Both from the file; that of the registry has its name, not that of the server.
    let both = mirror_alone
        .replace("\"auths\":{", "\"auths\":{\"registry.example\":{\"auth\":\"dXNlcjpzZWNyZXQ=\"},");
    std::fs::write(&file, both).unwrap();
    pull(None).await.unwrap();
    node.store.remove(name).await.unwrap();
    // A request that names a server and has no credentials for it.
    pull(Some(Auth { server_address: "registry.example".into(), ..Auth::default() })).await.unwrap();
    node.store.remove(name).await.unwrap();
    // Those of the request come first, also if they are wrong.
    let wrong = Auth { password: "hunter2".into(), ..user() };
    assert!(matches!(pull(Some(wrong)).await, Err(Error::Unauthorized { .. })));
    // A helper that fails does not prevent the pull of a public image, and is named when one is refused.
    std::fs::write(&file, "{\"credsStore\": \"copepod-none\"}").unwrap();
    let error = pull(None).await.unwrap_err().to_string();
    assert!(error.contains("docker-credential-copepod-none is in no folder of PATH"), "{error}");
    std::fs::write(&file, "{").unwrap();
    let error = pull(None).await.unwrap_err();
    assert!(matches!(&error, Error::Configuration { path, .. } if *path == file), "{error}");
}

/// What registries and token servers say is told, without what could change a terminal.
#[tokio::test]
async fn the_words_of_the_registry() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let name = registry.push("a/b", "v", &two_layers());
    for (status, words, expected) in [
        (
            403,
            r#"{"errors":[{"code":"DENIED","message":"requested access\u001b[2J is denied"}]}"#,
            "status 403 Forbidden: DENIED: requested access [2J is denied",
        ),
        (
            404,
            r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no such repository"}]}"#,
            "NAME_UNKNOWN: no such repository",
        ),
        (400, "no good", "status 400 Bad Request: no good"),
        (
            412,
            r#"{"errors":[{"code":"PROJECTPOLICYVIOLATION","message":"vulnerable"}]}"#,
            "PROJECTPOLICYVIOLATION: vulnerable",
        ),
    ] {
        registry.fault("/manifests/", 1, Fault::Says(status, words));
        let error = node.store.pull(&name, None).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        match status {
            403 => assert!(matches!(error, Error::Unauthorized { .. })),
            404 => assert!(matches!(error, Error::NotFound { .. })),
            _ => assert!(matches!(error, Error::Protocol { .. })),
        }
    }
    let realm = format!("http://{}/token", registry.address);
    registry.shared.lock().unwrap().token = Some(("t0ken".into(), realm, Some(BASIC.into())));
    registry.fault("/token", 1, Fault::Says(401, r#"{"details":"incorrect username or password"}"#));
    let error = node.store.pull(&name, Some(user())).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }));
    let expected = format!("token realm {}: status 401 Unauthorized: incorrect username", registry.address);
    assert!(error.to_string().contains(&expected), "{error}");
}

/// Registries count how often manifests are fetched.
#[tokio::test]
async fn what_is_known_by_digest_is_not_fetched_again() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let image = two_layers();
    let name = registry.push("a/b", "v", &image);
    let by_digest = format!("{}@{}", name.trim_end_matches(":v"), image.digest());
    node.store.pull(&name, None).await.unwrap();
    assert_eq!((registry.requests_by("GET", ""), registry.requests_by("HEAD", "")), (4, 0));
    for (at, reference) in [&name, &by_digest, &name].into_iter().enumerate() {
        node.store.pull(reference, None).await.unwrap();
        assert_eq!((registry.requests_by("GET", ""), registry.requests_by("HEAD", "")), (4, at + 1));
    }
    // The tag has moved to an image with the same layers.
    let mut moved = image.clone();
    let config = String::from_utf8(moved.blobs.remove(&image.config).unwrap()).unwrap();
    let config = config.replace("1000:1000", "1001:1001").into_bytes();
    let digest = common::digest_of(&config);
    moved.manifest = String::from_utf8(moved.manifest).unwrap().replace(&image.config, &digest).into_bytes();
    moved.blobs.insert(digest.clone(), config);
    registry.push("a/b", "v", &moved);
    assert_eq!(node.store.pull(&name, None).await.unwrap().id, digest);
    assert_eq!((registry.requests_by("GET", ""), registry.requests_by("HEAD", "")), (6, 4));
    // A host without HEAD.
    registry.fault("/manifests/", 1, Fault::Status(405, None));
    node.store.pull(&name, None).await.unwrap();
    assert_eq!((registry.requests_by("GET", ""), registry.requests_by("HEAD", "")), (7, 5));
    // An image that somebody else has pulled is not given to who has no access.
    registry.shared.lock().unwrap().basic = Some(BASIC.into());
    assert!(matches!(node.store.pull(&by_digest, None).await, Err(Error::Unauthorized { .. })));
    node.store.pull(&by_digest, Some(user())).await.unwrap();
}

/// A host, such as a mirror, cannot give another image that the node has for a digest.
#[tokio::test]
async fn a_digest_is_not_replaced_by_the_answer_to_head() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let (old, new) = (build(&[(tar(&[("a", b"old")]), Codec::Gzip)], "1"), two_layers());
    let mut references = Vec::new();
    for image in [&old, &new] {
        let name = registry.push("a/b", "v", image);
        references.push(format!("{}@{}", name.trim_end_matches(":v"), image.digest()));
        assert_eq!(node.store.pull(&references[references.len() - 1], None).await.unwrap().id, image.config);
    }
    let manifest = (old.manifest.clone(), common::MANIFEST.to_owned());
    registry.shared.lock().unwrap().manifests.insert(format!("a/b/manifests/{}", new.digest()), manifest);
    let pulled = node.store.pull(&references[1], None).await;
    assert!(matches!(pulled, Err(Error::Corrupt { .. })), "{pulled:?}");
}

/// A mirror that cannot be reached is asked once, by the first of several pulls.
#[tokio::test]
async fn a_mirror_that_failed_is_left_out() {
    let (upstream, node) = (Faulty::start().await, Node::new());
    upstream.push("a/b", "v", &two_layers());
    // Accepts connections and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    node.hosts(
        "registry.example",
        &format!("server = \"http://{}\"\n[host.\"http://{address}\"]\n", upstream.address),
    );
    let connections = tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let accepted = tokio::time::timeout(std::time::Duration::from_secs(4), silent.accept()).await;
            let Ok(Ok((stream, _))) = accepted else { return open.len() };
            open.push(stream);
        }
    });
    node.store.pull("registry.example/a/b:v", None).await.unwrap();
    let error = node.store.pull("registry.example/a/c:v", None).await.unwrap_err();
    let expected = "not asked because another pull had no answer from it less than 30 s ago";
    assert!(error.to_string().contains(expected), "{error}");
    assert_eq!(connections.await.unwrap(), 1, "the mirror was asked again");
    // The only host is asked whatever happened before.
    upstream.fault("", 4, Fault::Status(503, None));
    let direct = format!("{}/a/b:v", upstream.address);
    assert!(matches!(node.store.pull(&direct, None).await, Err(Error::Unavailable { .. })));
    node.store.pull(&direct, None).await.unwrap();
}

/// What a mirror says to one user is not told to another one, who is served by it all the same.
#[tokio::test]
async fn pulls_of_others_do_not_see_the_answers_to_one() {
    let (upstream, mirror, node) = (Faulty::start().await, Faulty::start().await, Node::new());
    node.hosts(
        "registry.example",
        &format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", upstream.address, mirror.address),
    );
    mirror.push("a/b", "v", &two_layers());
    mirror.fault("/a/secret/", 1, Fault::Busy("the quota of team-a is used up"));
    let error = node.store.pull("registry.example/a/secret:v", Some(user())).await.unwrap_err().to_string();
    assert!(error.contains("the quota of team-a is used up"), "{error}");
    let before = mirror.requests("/a/other/");
    let error = node.store.pull("registry.example/a/other:v", None).await.unwrap_err().to_string();
    assert!(!error.contains("team-a") && !error.contains("not asked"), "{error}");
    assert_eq!(mirror.requests("/a/other/"), before + 1);
    // Neither does a refusal of one user's credentials.
    mirror.shared.lock().unwrap().basic = Some(BASIC.into());
    assert!(node.store.pull("registry.example/a/b:v", None).await.is_err());
    mirror.shared.lock().unwrap().basic = None;
    node.store.pull("registry.example/a/b:v", None).await.unwrap();
}

/// Token servers and storage that a registry names must not be services of the node.
#[tokio::test]
async fn a_registry_does_not_lead_to_link_local_addresses() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let image = two_layers();
    let name = registry.push("a/b", "v", &image);
    let refused = |error: Error, by: &str| {
        let expected = "169.254.169.254 is a link-local address or a metadata service, where";
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
        assert!(error.to_string().contains(&format!("{by} 169.254.169.254: {expected}")), "{error}");
    };
    registry.fault("/manifests/", 1, Fault::Redirect("http://169.254.169.254/latest".to_owned()));
    refused(node.store.pull(&name, None).await.unwrap_err(), "redirect to");
    registry.fault(&image.layers[0], 1, Fault::Redirect("http://169.254.169.254/latest".to_owned()));
    refused(node.store.pull(&name, None).await.unwrap_err(), "redirect to");
    let realm = "http://169.254.169.254/token".to_owned();
    registry.shared.lock().unwrap().token = Some(("t0ken".into(), realm, None));
    refused(node.store.pull(&name, None).await.unwrap_err(), "token realm");
}

#[tokio::test]
async fn relative_redirects() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let image = two_layers();
    let name = registry.push("a/b", "v", &image);
    registry.fault(&image.config, 1, Fault::Redirect(format!("../../x/blobs/{}?y", image.config)));
    node.store.pull(&name, None).await.unwrap();
    assert_eq!(registry.requests(&format!("/v2/a/x/blobs/{}?y", image.config)), 1);
}

/// A mirror whose transfers always break is given up for the registry.
#[tokio::test]
async fn a_mirror_that_breaks_off_is_left() {
    let (upstream, mirror, node) = (Faulty::start().await, Faulty::start().await, Node::new());
    let image = two_layers();
    upstream.push("a/b", "v", &image);
    mirror.push("a/b", "v", &image);
    mirror.fault(&image.layers[0], 1000, Fault::Truncate);
    node.hosts(
        "registry.example",
        &format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", upstream.address, mirror.address),
    );
    node.store.pull("registry.example/a/b:v", None).await.unwrap();
    assert_eq!((mirror.requests(&image.layers[0]), upstream.requests(&image.layers[0])), (2, 1));
}

/// A wait that is longer than a pull should take is left to kubelet.
#[tokio::test]
async fn long_waits_are_not_waited_for() {
    let (registry, node) = (Faulty::start().await, Node::new());
    let name = registry.push("a/b", "v", &two_layers());
    registry.fault("/manifests/", 100, Fault::Status(429, Some("3600")));
    let error = node.store.pull(&name, None).await.unwrap_err();
    assert!(error.to_string().contains("asks for a wait of 3600 s"), "{error}");
    assert_eq!(registry.requests("/manifests/"), 1);
    registry.shared.lock().unwrap().faults.clear();
    registry.fault("/manifests/", 1, Fault::Status(429, Some("Thu, 01 Jan 1970 00:00:00 GMT")));
    node.store.pull(&name, None).await.unwrap();
}
