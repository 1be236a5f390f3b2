//! Pull secrets: the credentials of pods, through the API, kubelet and PullImage, to a registry with users.

use anyhow::Result;
use serde_json::{Value, json};

use super::Cluster;
use super::checks::here;
use crate::expect::ensure;
use crate::images::Recipe;
use crate::node_test::manifests::{pod, shell, with, with_spec};
use crate::node_test::{Check, check};
use crate::wait::{self, secs};

pub(super) fn all() -> Vec<Check<Cluster>> {
    vec![check!(pods_pull_with_their_own_secrets)]
}

/// The secret that `kubectl create secret docker-registry` makes.
async fn secret(cluster: &Cluster, name: &str, server: &str, password: &str) -> Result<()> {
    let (server, password) = (format!("--docker-server={server}"), format!("--docker-password={password}"));
    let arguments =
        ["create", "secret", "docker-registry", name, &server, "--docker-username=user", &password];
    cluster.kubectl.ok(&arguments).await.map(drop)
}

/// A pod of this image with a policy and the name of its pull secret, if it has one.
fn client(name: &str, image: &str, policy: &str, secret: Option<&str>) -> Value {
    let container =
        with(shell("main", "exec sleep 10000"), &json!({"image": image, "imagePullPolicy": policy}));
    let secrets: Vec<Value> = secret.iter().map(|name| json!({"name": name})).collect();
    here(with_spec(pod(name, json!([container])), &json!({"imagePullSecrets": secrets})))
}

/// Waits until an event of the pod tells why its image was not pulled, and the pod is waiting for it.
async fn refused(cluster: &Cluster, name: &str, words: &str) -> Result<String> {
    let of = format!("--field-selector=involvedObject.name={name},reason=Failed");
    let text = wait::until(&format!("an event of {name} with {words:?}"), secs(60), || async {
        let list =
            cluster.kubectl.quiet(&["get", "events", &of, "-o", "jsonpath={.items[*].message}"]).await?;
        ensure!(list.contains(words), "its events are {list:?}");
        Ok(Some(list))
    })
    .await?;
    // The status follows the event.
    let waiting = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
    wait::until(&format!("{name} to wait for its image"), secs(30), || async {
        let reason = cluster.kubectl.quiet(&["get", "pod", name, "-o", waiting]).await?;
        Ok(matches!(reason.as_str(), "ErrImagePull" | "ImagePullBackOff").then_some(()))
    })
    .await?;
    Ok(text)
}

async fn pods_pull_with_their_own_secrets(cluster: &Cluster) -> Result<()> {
    let registry = &cluster.fixture.registry;
    let private = registry.private().await?;
    let host = format!("127.0.0.1:{}", private.port);
    // An image that no other check has pulled: kubelet remembers with which credentials that was.
    let layers = [cluster.fixture.layers.busybox.clone()];
    let config = json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "Labels": {"of": "the private registry"}});
    registry.push("private", "1", &Recipe::new(&layers, config).build()).await?;
    let image = format!("{host}/private:1");
    secret(cluster, "team", &host, "secret").await?;
    secret(cluster, "wrong", &host, "hunter2").await?;
    let apply = async |item: Value| cluster.kubectl.apply(&item).await;

    apply(client("without", &image, "Always", None)).await?;
    refused(cluster, "without", "UNAUTHORIZED: authentication required").await?;
    apply(client("wrong", &image, "Always", Some("wrong"))).await?;
    let told = refused(cluster, "wrong", "UNAUTHORIZED: authentication required").await?;
    ensure!(!told.contains("hunter2"), "the event shows the password: {told}");

    apply(client("with", &image, "Always", Some("team"))).await?;
    let ready = ["wait", "--for=condition=Ready", "pod/with", "--timeout=60s"];
    cluster.kubectl.ok(&ready).await?;
    // The image is there now. A pod that may use what is there must show that it may pull it, and one that always pulls is
    // refused as before.
    for (name, policy, secret) in [("later", "IfNotPresent", None), ("still", "Always", None)] {
        apply(client(name, &image, policy, secret)).await?;
        refused(cluster, name, "UNAUTHORIZED: authentication required").await?;
    }
    apply(client("same", &image, "IfNotPresent", Some("team"))).await?;
    cluster.kubectl.ok(&["wait", "--for=condition=Ready", "pod/same", "--timeout=60s"]).await?;

    let pods = ["without", "wrong", "with", "later", "still", "same"];
    cluster.kubectl.ok(&[["delete", "--wait", "--timeout=60s", "pod"].as_slice(), &pods].concat()).await?;
    cluster.kubectl.ok(&["delete", "secret", "team", "wrong"]).await?;
    cluster.node.cri.remove_image(&image).await?;
    Ok(())
}
