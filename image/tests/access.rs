//! Registries that ask for credentials, redirect, or stand behind a mirror.
#![allow(missing_docs)]

mod common;

use common::{Fault, Faulty, Node, two_layers};
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
