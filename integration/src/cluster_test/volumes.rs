//! What volumes bring into a pod: `ConfigMaps` and Secrets that change, the downward API, and tokens of service accounts.

use anyhow::Result;
use serde_json::{Value, json};

use super::Cluster;
use super::objects::{is, text};
use crate::expect::ensure;
use crate::gate::{Gate, Scheme};
use crate::node_test::manifests::{pod, sleeper, with, with_spec};
use crate::node_test::{Check, check};
use crate::wait::{self, secs};

pub(super) fn all() -> Vec<Check<Cluster>> {
    vec![
        check!(config_maps_and_secrets_are_updated),
        check!(tokens_of_service_accounts_are_accepted),
        check!(a_service_account_pulls_with_its_secret),
    ]
}

fn config_map(value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"colour": value, "size": "big"}})
}

fn secret(value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "password"}, "stringData": {"word": value}})
}

async fn config_maps_and_secrets_are_updated(cluster: &Cluster) -> Result<()> {
    cluster
        .kubectl
        .apply(&json!({"apiVersion": "v1", "kind": "List", "items": [config_map("red"), secret("open")]}))
        .await?;
    let mounts = json!([
        {"name": "settings", "mountPath": "/settings", "readOnly": true},
        {"name": "password", "mountPath": "/password", "readOnly": true},
        {"name": "settings", "mountPath": "/once", "subPath": "colour"},
        {"name": "all", "mountPath": "/all"},
    ]);
    let env =
        json!([{"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}}]);
    let container = with(sleeper("main"), &json!({"volumeMounts": mounts, "env": env}));
    let all = json!([{"configMap": {"name": "settings"}}, {"secret": {"name": "password"}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]);
    let volumes = json!({"volumes": [
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "password", "secret": {"secretName": "password", "defaultMode": 0o400}},
        {"name": "all", "projected": {"sources": all}},
    ]});
    cluster.kubectl.apply(&with_spec(pod("volumes", json!([container])), &volumes)).await?;
    cluster.ready("volumes").await?;
    let files = "/settings/colour /once /password/word /all/colour /all/size /all/word /all/labels";
    let show = format!("echo $COLOUR $(for file in {files}; do cat $file; echo; done)");
    let show = show.as_str();
    cluster.prints("volumes", show, "red red red open red big open app=\"volumes\"\n").await?;
    let modes = cluster
        .sh("volumes", "stat -L -c %a /password/word /settings/colour; touch /settings/new || echo refused")
        .await?;
    ensure!(modes == "400\n644\nrefused\n", "modes and the answer to a write are {modes:?}");
    cluster
        .kubectl
        .apply(&json!({"apiVersion": "v1", "kind": "List", "items": [config_map("blue"), secret("shut")]}))
        .await?;
    cluster.kubectl.ok(&["label", "pod", "volumes", "new=yes"]).await?;
    // Variables and files mounted by subPath keep what they had.
    let wanted = "red blue red shut blue big shut app=\"volumes\" new=\"yes\"\n";
    cluster.prints("volumes", show, wanted).await?;
    cluster.delete(&["pod/volumes", "configmap/settings", "secret/password"]).await
}

/// What a pod does with its own rights.
async fn asked(cluster: &Cluster, token: &str, path: &str) -> Result<(String, String)> {
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    let line = format!(
        "curl -sS --max-time 20 --cacert {account}/ca.crt -H \"Authorization: Bearer $(cat {token})\" -w '\\n%{{http_code}}' \
         https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT{path}"
    );
    let answer = cluster.sh("reader", &line).await?;
    let (body, code) = answer.rsplit_once('\n').unwrap_or_default();
    Ok((code.to_owned(), body.to_owned()))
}

async fn tokens_of_service_accounts_are_accepted(cluster: &Cluster) -> Result<()> {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader"}});
    cluster.kubectl.apply(&account).await?;
    let curl = json!({"image": "registry.test/curl:1", "volumeMounts": [{"name": "others", "mountPath": "/others"}]});
    let token = |path: &str, audience: &str| json!({"serviceAccountToken": {"path": path, "audience": audience, "expirationSeconds": 600}});
    let sources = json!([token("same", "https://kubernetes.default.svc"), token("other", "somebody-else")]);
    let spec = json!({"serviceAccountName": "reader", "volumes": [{"name": "others", "projected": {"sources": sources}}]});
    // On the node whose way to the API server leads through the other one.
    let spec = with(spec, &super::objects::on("node2"));
    cluster.kubectl.apply(&with_spec(pod("reader", json!([with(sleeper("main"), &curl)])), &spec)).await?;
    cluster.ready("reader").await?;
    let own = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    let path = "/api/v1/namespaces/default/pods/reader";
    let (code, body) = asked(cluster, own, path).await?;
    ensure!(code == "403" && body.contains("system:serviceaccount:default:reader"), "{code}: {body}");
    cluster.kubectl.ok(&["create", "role", "reads", "--verb=get", "--resource=pods"]).await?;
    cluster
        .kubectl
        .ok(&["create", "rolebinding", "reads", "--role=reads", "--serviceaccount=default:reader"])
        .await?;
    for token in [own, "/others/same"] {
        wait::until("the pod to read itself", secs(20), || async {
            let (code, body) = asked(cluster, token, path).await?;
            ensure!(code == "200" && body.contains("\"name\": \"reader\""), "{token}: {code}: {body}");
            Ok(Some(()))
        })
        .await?;
    }
    let (code, body) = asked(cluster, own, "/api/v1/namespaces/default/secrets").await?;
    ensure!(code == "403", "it may read secrets: {body}");
    let (code, body) = asked(cluster, "/others/other", path).await?;
    ensure!(code == "401", "a token for another audience is accepted: {code}: {body}");
    cluster.delete(&["pod/reader", "serviceaccount/reader", "role/reads", "rolebinding/reads"]).await
}

async fn a_service_account_pulls_with_its_secret(cluster: &Cluster) -> Result<()> {
    let gate = Gate::start(cluster.fixture.registry.port, Scheme::Basic).await?;
    let host = format!("127.0.0.1:{}", gate.port);
    let fields = json!({"image": format!("{host}/number-2:1")});
    // The registry listens on the first node's loopback address.
    let guarded = |name: &str, account: &str| {
        let spec = with(super::objects::on("node1"), &json!({"serviceAccountName": account}));
        with_spec(pod(name, json!([with(sleeper("main"), &fields)])), &spec)
    };
    let config = json!({"auths": {&host: {"username": "user", "password": "secret"}}}).to_string();
    let items = json!([
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pull"}, "type": "kubernetes.io/dockerconfigjson",
         "stringData": {".dockerconfigjson": config}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "puller"}, "imagePullSecrets": [{"name": "pull"}]},
        guarded("refused", "default"),
    ]);
    cluster.kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items})).await?;
    let reason = "/status/containerStatuses/0/state/waiting/reason";
    let refused = |pod: &Value| ["ErrImagePull", "ImagePullBackOff"].contains(&text(pod, reason).as_str());
    cluster.until("the pull to be refused", &["pod", "refused"], refused).await?;
    cluster.kubectl.apply(&guarded("pulled", "puller")).await?;
    cluster.ready("pulled").await?;
    let other = cluster.get(&["pod", "refused"]).await?;
    ensure!(!is(&other, "Ready"), "a pod without the secret runs: {}", other["status"]);
    cluster.delete(&["pod/refused", "pod/pulled", "secret/pull", "serviceaccount/puller"]).await
}
