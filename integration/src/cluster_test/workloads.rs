//! Deployment, `DaemonSet`, Job, `StatefulSet`, and a node that is drained.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::Cluster;
use super::objects::{container, daemon_set, is, job, name, names, replicated, template, text};
use crate::expect::ensure;
use crate::node_test::manifests::{shell, sleeper, with};
use crate::node_test::{Check, check};
use crate::wait::{self, secs};

pub(super) fn all() -> Vec<Check<Cluster>> {
    vec![
        check!(a_deployment_is_rolled_out_and_back),
        check!(a_daemon_set_heeds_taints),
        check!(a_job_completes),
        check!(a_job_gives_up),
        check!(a_stateful_set_is_ordered),
        check!(a_node_is_drained),
    ]
}

/// What all pods of `web` have as their version.
async fn versions(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for pod in cluster.pods("web").await? {
        found.insert(cluster.sh(&name(&pod), "echo $VERSION").await?.trim().to_owned());
    }
    Ok(found)
}

/// Three pods of a version, through a rollout that never has less.
async fn rolled_out(cluster: &Cluster, version: &str) -> Result<()> {
    cluster.kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=80s"]).await?;
    let count = cluster.pods("web").await?.len();
    ensure!(count == 3, "there are {count} pods");
    let found = versions(cluster).await?;
    ensure!(found == BTreeSet::from([version.to_owned()]), "the pods have the versions {found:?}");
    cluster.agree("web").await
}

async fn a_deployment_is_rolled_out_and_back(cluster: &Cluster) -> Result<()> {
    let deployment = |version: &str, image: &str| {
        let fields = json!({"image": image, "env": [{"name": "VERSION", "value": version}]});
        let mut made =
            replicated("Deployment", "web", 3, template("web", json!([with(sleeper("main"), &fields)])));
        made["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        made
    };
    cluster.kubectl.apply(&deployment("1", "registry.test/busybox:1")).await?;
    rolled_out(cluster, "1").await?;
    cluster.kubectl.apply(&deployment("2", "registry.test/busybox:1")).await?;
    rolled_out(cluster, "2").await?;
    let before = names(&cluster.pods("web").await?);
    // A version whose image does not exist ends no pod of the version before.
    cluster.kubectl.apply(&deployment("3", "registry.test/absent:1")).await?;
    wait::until("the pull to fail", secs(60), || async {
        let pods = cluster.pods("web").await?;
        let reason = |pod: &Value| text(container(pod, "main"), "/state/waiting/reason");
        let failed =
            pods.iter().any(|pod| ["ErrImagePull", "ImagePullBackOff"].contains(&reason(pod).as_str()));
        Ok(failed.then_some(()))
    })
    .await?;
    let now = names(&cluster.pods("web").await?);
    ensure!(now.len() == 4 && before.iter().all(|pod| now.contains(pod)), "{before:?} became {now:?}");
    cluster.kubectl.ok(&["rollout", "undo", "deployment/web"]).await?;
    rolled_out(cluster, "2").await?;
    let now = names(&cluster.pods("web").await?);
    ensure!(now == before, "{before:?} became {now:?}");
    cluster.kubectl.ok(&["rollout", "undo", "deployment/web", "--to-revision=1"]).await?;
    rolled_out(cluster, "1").await?;
    cluster.delete(&["deployment/web"]).await?;
    cluster.agree("web").await
}

/// The nodes on which the ready pods of `agent` are.
async fn agents_are_on(cluster: &Cluster, wanted: &[&str]) -> Result<()> {
    wait::until(&format!("the agents to be on {wanted:?}"), secs(60), || async {
        let pods = cluster.pods("agent").await?;
        let mut nodes: Vec<String> =
            pods.iter().filter(|pod| is(pod, "Ready")).map(|pod| text(pod, "/spec/nodeName")).collect();
        nodes.sort();
        ensure!(nodes == wanted, "they are on {nodes:?}");
        Ok(Some(()))
    })
    .await?;
    cluster.agree("agent").await
}

async fn a_daemon_set_heeds_taints(cluster: &Cluster) -> Result<()> {
    cluster.kubectl.ok(&["taint", "node", "node2", "kept=for-tests:NoExecute"]).await?;
    let set = |tolerations: Value| {
        let mut template = template("agent", json!([sleeper("main")]));
        template["spec"]["tolerations"] = tolerations;
        daemon_set("agent", template)
    };
    cluster.kubectl.apply(&set(json!([]))).await?;
    agents_are_on(cluster, &["node1"]).await?;
    let tolerated =
        json!([{"key": "kept", "operator": "Equal", "value": "for-tests", "effect": "NoExecute"}]);
    cluster.kubectl.apply(&set(tolerated)).await?;
    agents_are_on(cluster, &["node1", "node2"]).await?;
    // Without the toleration it is evicted.
    cluster.kubectl.apply(&set(json!([]))).await?;
    agents_are_on(cluster, &["node1"]).await?;
    cluster.kubectl.ok(&["taint", "node", "node2", "kept-"]).await?;
    agents_are_on(cluster, &["node1", "node2"]).await?;
    cluster.delete(&["daemonset/agent"]).await?;
    cluster.agree("agent").await
}

async fn a_job_completes(cluster: &Cluster) -> Result<()> {
    let fields = json!({"completions": 4, "parallelism": 2, "completionMode": "Indexed"});
    let line = "echo index $JOB_COMPLETION_INDEX on $(hostname)";
    cluster.kubectl.apply(&job("count", json!([shell("main", line)]), fields)).await?;
    let state = json!([{"name": "state", "mountPath": "/state"}]);
    let twice = with(
        shell("main", "[ -e /state/ran ] || { touch /state/ran; exit 1; }"),
        &json!({"volumeMounts": state}),
    );
    let mut again = job("again", json!([twice]), json!({"backoffLimit": 3}));
    again["spec"]["template"]["spec"]["restartPolicy"] = json!("OnFailure");
    again["spec"]["template"]["spec"]["volumes"] = json!([{"name": "state", "emptyDir": {}}]);
    cluster.kubectl.apply(&again).await?;
    cluster
        .kubectl
        .ok(&["wait", "--for=condition=complete", "job/count", "job/again", "--timeout=80s"])
        .await?;
    let status = cluster.get(&["job", "count"]).await?["status"].take();
    ensure!(
        status["succeeded"] == 4 && status["completedIndexes"] == "0-3" && status["failed"].is_null(),
        "{status}"
    );
    let pods = cluster.pods("count").await?;
    ensure!(pods.len() == 4, "there are the pods {:?}", names(&pods));
    for pod in &pods {
        let index = text(pod, "/metadata/annotations/batch.kubernetes.io~1job-completion-index");
        let log = cluster.kubectl.quiet(&["logs", &name(pod)]).await?;
        ensure!(log == format!("index {index} on count-{index}\n"), "index {index} says {log:?}");
        let ended = &container(pod, "main")["state"]["terminated"];
        ensure!(ended["exitCode"] == 0 && ended["reason"] == "Completed", "{ended}");
    }
    let pods = cluster.pods("again").await?;
    let [pod] = pods.as_slice() else { anyhow::bail!("there are the pods {:?}", names(&pods)) };
    let status = container(pod, "main");
    ensure!(status["restartCount"] == 1 && status["lastState"]["terminated"]["exitCode"] == 1, "{status}");
    cluster.delete(&["job/count", "job/again"]).await
}

async fn a_job_gives_up(cluster: &Cluster) -> Result<()> {
    cluster.kubectl.apply(&job("fail", json!([shell("main", "exit 3")]), json!({"backoffLimit": 1}))).await?;
    cluster.kubectl.ok(&["wait", "--for=condition=failed", "job/fail", "--timeout=80s"]).await?;
    let status = cluster.get(&["job", "fail"]).await?["status"].take();
    ensure!(status["failed"] == 2 && status["succeeded"].is_null(), "{status}");
    let reasons = status["conditions"].as_array().context("no conditions")?;
    ensure!(
        reasons.iter().any(|it| it["type"] == "Failed" && it["reason"] == "BackoffLimitExceeded"),
        "{status}"
    );
    let pods = cluster.pods("fail").await?;
    ensure!(pods.len() == 2, "there are the pods {:?}", names(&pods));
    for pod in &pods {
        ensure!(container(pod, "main")["state"]["terminated"]["exitCode"] == 3, "{}", pod["status"]);
    }
    cluster.delete(&["job/fail"]).await
}

async fn a_stateful_set_is_ordered(cluster: &Cluster) -> Result<()> {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "peers"},
        "spec": {"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"port": 80}]}});
    cluster.kubectl.apply(&service).await?;
    let probe = json!({"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1});
    let line = "sleep 2; touch /tmp/ready; trap 'exit 0' TERM; while :; do sleep 0.2; done";
    let containers = json!([with(shell("main", line), &json!({"readinessProbe": probe}))]);
    let mut set = replicated("StatefulSet", "db", 2, template("db", containers));
    set["spec"]["serviceName"] = json!("peers");
    cluster.kubectl.apply(&set).await?;
    cluster.kubectl.ok(&["rollout", "status", "statefulset/db", "--timeout=80s"]).await?;
    let pods = cluster.pods("db").await?;
    ensure!(names(&pods) == ["db-0", "db-1"], "the pods are {:?}", names(&pods));
    // The second pod was made when the first was ready.
    let conditions = pods[0]["status"]["conditions"].as_array().context("no conditions")?;
    let ready = conditions.iter().find(|it| it["type"] == "Ready").map(|it| text(it, "/lastTransitionTime"));
    let made = text(&pods[1], "/metadata/creationTimestamp");
    ensure!(
        ready.as_ref().is_some_and(|ready| *ready <= made),
        "db-0 was ready at {ready:?}, db-1 made at {made}"
    );
    for pod in ["db-0", "db-1"] {
        let found = cluster.sh(pod, "hostname; hostname -f").await?;
        ensure!(
            found == format!("{pod}\n{pod}.peers.default.svc.cluster.local\n"),
            "{pod} calls itself {found:?}"
        );
    }
    served(cluster).await?;
    let before = text(&pods[0], "/metadata/uid");
    cluster.delete(&["pod/db-0"]).await?;
    cluster
        .until("db-0 to come back", &["pod", "db-0"], |pod| {
            is(pod, "Ready") && pod["metadata"]["uid"] != before
        })
        .await?;
    served(cluster).await?;
    cluster.kubectl.ok(&["scale", "statefulset/db", "--replicas=1"]).await?;
    cluster.kubectl.ok(&["wait", "--for=delete", "pod/db-1", "--timeout=60s"]).await?;
    ensure!(names(&cluster.pods("db").await?) == ["db-0"], "db-0 was ended");
    cluster.agree("db").await?;
    cluster.delete(&["statefulset/db", "service/peers"]).await?;
    cluster.agree("db").await
}

/// The headless service has the two pods with their host names and addresses.
async fn served(cluster: &Cluster) -> Result<()> {
    wait::until("the service to have the pods", secs(30), || async {
        let slices =
            cluster.get(&["endpointslices", "--selector", "kubernetes.io/service-name=peers"]).await?;
        let mut served: Vec<_> = slices["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|slice| slice["endpoints"].as_array())
            .flatten()
            .map(|it| (text(it, "/hostname"), text(it, "/addresses/0"), it["conditions"]["ready"] == true))
            .collect();
        served.sort();
        let pods = cluster.pods("db").await?;
        let wanted: Vec<_> = pods.iter().map(|pod| (name(pod), text(pod, "/status/podIP"), true)).collect();
        ensure!(served == wanted && wanted.len() == 2, "it has {served:?} of {wanted:?}");
        Ok(Some(()))
    })
    .await
}

async fn a_node_is_drained(cluster: &Cluster) -> Result<()> {
    let mut spread = replicated("Deployment", "moved", 4, template("moved", json!([sleeper("main")])));
    spread["spec"]["template"]["spec"]["topologySpreadConstraints"] = json!([{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": "moved"}}}]);
    let nodes = || async {
        let pods = cluster.pods("moved").await?;
        let ready = pods.iter().filter(|pod| is(pod, "Ready"));
        Ok::<_, anyhow::Error>(ready.map(|pod| text(pod, "/spec/nodeName")).collect::<Vec<_>>())
    };
    cluster.kubectl.apply(&spread).await?;
    cluster.kubectl.apply(&daemon_set("stays", template("stays", json!([sleeper("main")])))).await?;
    for object in ["deployment/moved", "daemonset/stays"] {
        cluster.kubectl.ok(&["rollout", "status", object, "--timeout=80s"]).await?;
    }
    let found = nodes().await?;
    ensure!(found.iter().any(|it| it == "node2"), "they are on {found:?}");
    cluster
        .kubectl
        .ok(&["drain", "node2", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=80s"])
        .await?;
    wait::until("all pods to be on node1", secs(60), || async {
        let found = nodes().await?;
        ensure!(found == ["node1"; 4], "they are on {found:?}");
        Ok(Some(()))
    })
    .await?;
    cluster.agree("moved").await?;
    cluster.agree("stays").await?;
    ensure!(cluster.sandboxes("stays").await?.len() == 2, "the daemon set's pod was drained");
    cluster.kubectl.ok(&["uncordon", "node2"]).await?;
    cluster.kubectl.ok(&["rollout", "restart", "deployment/moved"]).await?;
    cluster.kubectl.ok(&["rollout", "status", "deployment/moved", "--timeout=80s"]).await?;
    let found = nodes().await?;
    ensure!(found.iter().any(|it| it == "node2"), "after uncordon they are on {found:?}");
    cluster.delete(&["deployment/moved", "daemonset/stays"]).await
}
