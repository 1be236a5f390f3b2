//! Probes, and the order of a pod's containers.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::Cluster;
use super::objects::{container, is, job, text};
use crate::expect::ensure;
use crate::node_test::manifests::{pod, shell, sleeper, with};
use crate::node_test::{Check, check};

pub(super) fn all() -> Vec<Check<Cluster>> {
    vec![
        check!(liveness_restarts),
        check!(readiness_decides_who_serves),
        check!(init_and_sidecar_containers_are_ordered),
    ]
}

async fn liveness_restarts(cluster: &Cluster) -> Result<()> {
    let probe =
        json!({"exec": {"command": ["test", "-e", "/tmp/alive"]}, "periodSeconds": 1, "failureThreshold": 1});
    let line = "echo begun; touch /tmp/alive; trap 'echo told; exit 7' TERM; while :; do sleep 0.2; done";
    let lively =
        with(shell("main", line), &json!({"livenessProbe": with(probe, &json!({"initialDelaySeconds": 1}))}));
    cluster.kubectl.apply(&pod("lively", json!([lively, sleeper("other")]))).await?;
    let before = cluster.ready("lively").await?;
    cluster.sh("lively", "rm /tmp/alive").await?;
    let again = |pod: &Value| container(pod, "main")["restartCount"] == 1 && is(pod, "Ready");
    let after = cluster.until("main to be restarted", &["pod", "lively"], again).await?;
    let ended = &container(&after, "main")["lastState"]["terminated"];
    ensure!(ended["exitCode"] == 7, "it ended with {ended}");
    ensure!(
        container(&after, "other")["containerID"] == container(&before, "other")["containerID"]
            && text(&after, "/status/podIP") == text(&before, "/status/podIP"),
        "the other container or the sandbox was restarted: {}",
        after["status"]
    );
    let log = cluster.kubectl.ok(&["logs", "lively", "-c", "main", "--previous"]).await?;
    ensure!(log == "begun\ntold\n", "its log is {log:?}");
    cluster.delete(&["pod/lively"]).await
}

async fn readiness_decides_who_serves(cluster: &Cluster) -> Result<()> {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "served"},
        "spec": {"selector": {"app": "served"}, "ports": [{"port": 80}]}});
    let probe = json!({"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1, "failureThreshold": 1});
    let line = "mkdir /tmp/www; echo yes > /tmp/www/index.html; httpd -f -p 80 -h /tmp/www & trap 'exit 0' TERM; wait";
    let made = with(shell("main", line), &json!({"readinessProbe": probe}));
    let items = json!([service, pod("served", json!([made]))]);
    cluster.kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items})).await?;
    let slices = ["endpointslices", "--selector", "kubernetes.io/service-name=served"];
    let ready = |wanted: bool| {
        move |list: &Value| list["items"][0]["endpoints"][0]["conditions"]["ready"] == Value::Bool(wanted)
    };
    cluster.until("the pod to be served", &slices, ready(true)).await?;
    cluster.sh("served", "mv /tmp/www/index.html /tmp/www/hidden").await?;
    cluster.until("the pod not to be served", &slices, ready(false)).await?;
    cluster.sh("served", "mv /tmp/www/hidden /tmp/www/index.html").await?;
    cluster.until("the pod to be served again", &slices, ready(true)).await?;
    let pod = cluster.get(&["pod", "served"]).await?;
    ensure!(container(&pod, "main")["restartCount"] == 0, "{}", pod["status"]);
    cluster.delete(&["pod/served", "service/served"]).await
}

async fn init_and_sidecar_containers_are_ordered(cluster: &Cluster) -> Result<()> {
    let mounts = json!({"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]});
    let step = |name: &str, line: &str| with(shell(name, line), &mounts);
    let side = "echo side >> /shared/order; touch /shared/up; trap 'echo side told; exit 0' TERM; while :; do sleep 0.2; done";
    let probe = json!({"exec": {"command": ["test", "-e", "/shared/up"]}, "periodSeconds": 1});
    let side = with(step("side", side), &json!({"restartPolicy": "Always", "startupProbe": probe}));
    let init = json!([
        step("first", "sleep 1; echo first >> /shared/order"),
        side,
        step("second", "ls /shared/up && echo second >> /shared/order"),
    ]);
    let main = step(
        "main",
        "echo main >> /shared/order; while [ ! -e /shared/end ]; do sleep 0.2; done; cat /shared/order",
    );
    let mut ordered = job("ordered", json!([main]), json!({}));
    ordered["spec"]["template"]["spec"]["initContainers"] = init;
    ordered["spec"]["template"]["spec"]["volumes"] = json!([{"name": "shared", "emptyDir": {}}]);
    cluster.kubectl.apply(&ordered).await?;
    cluster.kubectl.ok(&["wait", "--for=jsonpath={.status.ready}=1", "job/ordered", "--timeout=60s"]).await?;
    let pods = cluster.pods("ordered").await?;
    let name = pods.first().map(super::objects::name).context("the job has no pod")?;
    // A sidecar that ends is started again, and nothing else is.
    cluster.kubectl.ok(&["exec", &name, "-c", "side", "--", "/bin/sh", "-c", "kill 1"]).await?;
    let again = |pod: &Value| {
        container(pod, "side")["restartCount"] == 1 && container(pod, "side")["started"] == true
    };
    let pod = cluster.until("the sidecar to be restarted", &["pod", &name], again).await?;
    for one in ["first", "second", "main"] {
        ensure!(container(&pod, one)["restartCount"] == 0, "{one} was restarted: {}", pod["status"]);
    }
    cluster.kubectl.ok(&["exec", &name, "-c", "main", "--", "touch", "/shared/end"]).await?;
    // The job ends although the sidecar would run on.
    cluster.kubectl.ok(&["wait", "--for=condition=complete", "job/ordered", "--timeout=60s"]).await?;
    let log = cluster.kubectl.ok(&["logs", &name, "-c", "main"]).await?;
    ensure!(log == "first\nside\nsecond\nmain\nside\n", "the order was {log:?}");
    let log = cluster.kubectl.ok(&["logs", &name, "-c", "side"]).await?;
    ensure!(log == "side told\n", "the sidecar's log is {log:?}");
    cluster.delete(&["job/ordered"]).await?;
    cluster.agree("ordered").await
}
