//! What controllers see when copepod is killed again and again: nothing runs twice, is counted twice, or stays.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use cri_api::v1::{ContainerState, PodSandboxState};
use serde_json::{Value, json};

use super::Cluster;
use super::objects::{container, job, name, names, replicated, template, text};
use crate::expect::ensure;
use crate::node_test::manifests::{pod, shell, sleeper, with};
use crate::node_test::{Check, check};
use crate::proc;
use crate::wait::{self, secs};

pub(super) fn all() -> Vec<Check<Cluster>> {
    vec![
        check!(nothing_runs_twice_while_copepod_dies),
        check!(deletions_end_while_copepod_dies),
        check!(pods_deleted_while_they_start_leave_nothing),
        check!(a_crash_loop_counts_on),
    ]
}

impl Cluster {
    /// Kills and starts the daemons of both nodes, with a pause after each.
    pub(super) async fn crash_both(&self, pause: Duration) -> Result<()> {
        for member in &self.members {
            member.node.crash().await.with_context(|| member.name())?;
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// Kills and starts the daemons of both nodes in turn, until the API answers with the wanted text.
    async fn crash_until(&self, arguments: &[&str], wanted: &str) -> Result<()> {
        let mut last = String::new();
        for round in 0..40 {
            // Other times in each round: kubelet does everything in its own rhythm.
            self.crash_both(Duration::from_millis(300 + round * 171 % 900)).await?;
            last = self.kubectl.quiet(arguments).await?;
            if last == wanted {
                return Ok(());
            }
        }
        anyhow::bail!("after 40 rounds kubectl {} says {last:?} instead of {wanted:?}", arguments.join(" "))
    }

    /// Waits until the API has no pod with this label, and the nodes neither.
    pub(super) async fn gone(&self, app: &str) -> Result<()> {
        wait::until("the pods to be deleted", secs(60), || async {
            let left = self.get(&["pods", "--selector", &format!("app={app}")]).await?;
            let left = left["items"].as_array().map(|items| names(items)).unwrap_or_default();
            ensure!(left.is_empty(), "{left:?} are left");
            Ok(Some(()))
        })
        .await?;
        self.agree(app).await
    }

    /// What pods keep while they live: name, address, container and restarts.
    async fn identities(&self, app: &str) -> Result<Vec<[String; 4]>> {
        let pods = self.pods(app).await?;
        let one = |pod: &Value| {
            let status = container(pod, "main");
            let restarts = status["restartCount"].to_string();
            [name(pod), text(pod, "/status/podIP"), text(status, "/containerID"), restarts]
        };
        Ok(pods.iter().map(one).collect())
    }
}

async fn nothing_runs_twice_while_copepod_dies(cluster: &Cluster) -> Result<()> {
    let steady = replicated("Deployment", "steady", 4, template("steady", json!([sleeper("main")])));
    cluster.kubectl.apply(&steady).await?;
    cluster.kubectl.ok(&["rollout", "status", "deployment/steady", "--timeout=80s"]).await?;
    let before = cluster.identities("steady").await?;
    let folder = cluster.fixture.work().join("ran");
    fs::create_dir_all(&folder)?;
    let line = "echo $JOB_COMPLETION_INDEX >> /ran/indexes; sleep 1";
    let mounts = json!({"volumeMounts": [{"name": "ran", "mountPath": "/ran"}]});
    let fields = json!({"completions": 8, "parallelism": 4, "completionMode": "Indexed"});
    let mut once = job("once", json!([with(shell("main", line), &mounts)]), fields);
    once["spec"]["template"]["spec"]["volumes"] = json!([{"name": "ran", "hostPath": {"path": folder}}]);
    let web = replicated("Deployment", "many", 8, template("many", json!([sleeper("main")])));
    cluster.kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [once, web]})).await?;
    let counts = "jsonpath={.items[*].status.succeeded} {.items[*].status.readyReplicas}";
    cluster.crash_until(&["get", "job/once", "deployment/many", "-o", counts], "8 8").await?;
    let status = cluster.get(&["job", "once"]).await?["status"].take();
    ensure!(status["failed"].is_null() && status["completedIndexes"] == "0-7", "{status}");
    let text = fs::read_to_string(folder.join("indexes"))?;
    let mut ran: Vec<&str> = text.lines().collect();
    ran.sort_unstable();
    ensure!(ran == ["0", "1", "2", "3", "4", "5", "6", "7"], "these ran: {ran:?}");
    cluster.agree("many").await?;
    let mut running = BTreeMap::<String, u32>::new();
    for member in &cluster.members {
        for container in member.node.cri.containers(None).await? {
            if container.state() == ContainerState::ContainerRunning {
                *running
                    .entry(container.labels.get("io.kubernetes.pod.name").cloned().unwrap_or_default())
                    .or_default() += 1;
            }
        }
    }
    for pod in cluster.pods("many").await? {
        let count = running.get(&name(&pod)).copied().unwrap_or_default();
        ensure!(count == 1, "{} has {count} running containers", name(&pod));
    }
    let after = cluster.identities("steady").await?;
    ensure!(after == before, "what ran before has changed from {before:?} to {after:?}");
    cluster.delete(&["job/once", "deployment/many", "deployment/steady"]).await?;
    cluster.agree("many").await
}

async fn deletions_end_while_copepod_dies(cluster: &Cluster) -> Result<()> {
    // It ignores SIGTERM, so that kubelet waits and then sends SIGKILL.
    let line = ": stubborn; trap '' TERM; while :; do sleep 0.2; done";
    let set = replicated(
        "Deployment",
        "stubborn",
        8,
        template("stubborn", json!([shell("main", line), sleeper("other")])),
    );
    cluster.kubectl.apply(&set).await?;
    cluster.kubectl.ok(&["rollout", "status", "deployment/stubborn", "--timeout=80s"]).await?;
    cluster.kubectl.ok(&["delete", "deployment/stubborn", "--wait=false"]).await?;
    // A daemon that lives shorter than the grace period, 2 s, may never get to the kill: kubelet begins anew each time.
    for _ in 0..3 {
        cluster.crash_both(secs(1)).await?;
    }
    cluster.gone("stubborn").await?;
    wait::until_true("the processes to end", secs(10), || proc::with_args(": stubborn").is_empty()).await
}

/// Each round deletes at another moment of the pods' start, and kills the daemons at another moment of their end.
async fn pods_deleted_while_they_start_leave_nothing(cluster: &Cluster) -> Result<()> {
    let mut set = replicated("Deployment", "brief", 8, template("brief", json!([sleeper("main")])));
    set["spec"]["template"]["spec"]["initContainers"] = json!([shell("init", "exit 0")]);
    for round in 0..6 {
        cluster.kubectl.apply(&set).await?;
        tokio::time::sleep(Duration::from_millis(round * 170)).await;
        cluster.kubectl.ok(&["delete", "deployment/brief", "--wait=false"]).await?;
        cluster.crash_both(Duration::from_millis(round * 90)).await?;
    }
    cluster.gone("brief").await?;
    wait::until("the nodes to give addresses back", secs(30), || async {
        for member in &cluster.members {
            let pods = member.node.cri.pods(None).await?;
            let ready = pods.iter().filter(|pod| pod.state() == PodSandboxState::SandboxReady).count();
            let leased = member.node.network.leased();
            ensure!(leased.len() == ready, "{} leases {leased:?} to {ready} pods", member.name());
        }
        Ok(Some(()))
    })
    .await
}

async fn a_crash_loop_counts_on(cluster: &Cluster) -> Result<()> {
    cluster
        .kubectl
        .apply(&pod("loops", json!([shell("main", "echo life $$; sleep 1; exit 9"), sleeper("other")])))
        .await?;
    let sandboxes = || async { cluster.sandboxes("loops").await };
    let mut last = 0;
    for wanted in 1..=2 {
        let pod = cluster
            .until("the container to be restarted", &["pod", "loops"], |pod| {
                container(pod, "main")["restartCount"].as_u64().is_some_and(|count| count >= wanted)
            })
            .await?;
        cluster.crash_both(Duration::ZERO).await?;
        let count = container(&pod, "main")["restartCount"].as_u64().unwrap_or_default();
        ensure!(count >= last && count <= wanted + 1, "{count} restarts after {last}");
        last = count;
    }
    let loops = |pod: &Value| {
        let status = container(pod, "main");
        status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            && status["lastState"]["terminated"]["exitCode"] == 9
    };
    let pod = cluster.until("the pod to wait", &["pod", "loops"], loops).await?;
    let count = container(&pod, "main")["restartCount"].as_u64().unwrap_or_default();
    ensure!((last..=last + 1).contains(&count), "{count} restarts after {last}");
    ensure!(container(&pod, "other")["restartCount"] == 0, "{}", pod["status"]);
    let log = cluster.kubectl.ok(&["logs", "loops", "-c", "main", "--previous"]).await?;
    ensure!(log.starts_with("life "), "its log is {log:?}");
    let found = sandboxes().await?;
    ensure!(found == ["loops"], "its sandboxes are {found:?}");
    cluster.delete(&["pod/loops"]).await
}
