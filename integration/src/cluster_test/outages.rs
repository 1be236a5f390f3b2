//! A node without kubelet and copepod for a while, a pod without its sandbox, and a power failure.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use cri_api::v1::PodSandboxState;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::objects::{container, daemon_set, is, job, name, on, replicated, template, text};
use super::{Cluster, Member};
use crate::cgroup::{self, SHIMS};
use crate::expect::ensure;
use crate::node_test::manifests::{pod, shell, sleeper, with, with_spec};
use crate::node_test::{Check, check};
use crate::proc;
use crate::wait::{self, secs};

pub(super) fn all() -> Vec<Check<Cluster>> {
    vec![
        check!(pods_end_although_kubelet_and_copepod_die),
        check!(a_killed_sandbox_is_replaced_once),
        check!(pods_come_back_after_a_power_failure),
    ]
}

/// With mounts that kubelet itself makes and must remove: files by subPath, and tokens.
async fn pods_end_although_kubelet_and_copepod_die(cluster: &Cluster) -> Result<()> {
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "part"}, "data": {"word": "part"}});
    let mounts = json!({"volumeMounts": [{"name": "part", "mountPath": "/part", "subPath": "word"}]});
    let line = ": mounted; trap '' TERM; while :; do sleep 0.2; done";
    let mut set = replicated(
        "Deployment",
        "mounted",
        6,
        template("mounted", json!([with(shell("main", line), &mounts)])),
    );
    set["spec"]["template"]["spec"]["volumes"] = json!([{"name": "part", "configMap": {"name": "part"}}]);
    cluster.kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [config, set]})).await?;
    cluster.kubectl.ok(&["rollout", "status", "deployment/mounted", "--timeout=80s"]).await?;
    cluster.kubectl.ok(&["delete", "deployment/mounted", "--wait=false"]).await?;
    for round in 0..2 {
        // In the first round before the grace period of 2 s is over, in the second when the pods are being removed.
        tokio::time::sleep(Duration::from_millis(500 + round * 1500)).await;
        for member in &cluster.members {
            member.kubelet.kill(Signal::SIGKILL)?;
            member.node.crash().await.with_context(|| member.name())?;
            member.kubelet.launch().await.with_context(|| member.name())?;
        }
    }
    cluster.gone("mounted").await?;
    wait::until_true("the processes to end", secs(10), || proc::with_args(": mounted").is_empty()).await?;
    for member in &cluster.members {
        wait::until_true("kubelet to remove its mounts", secs(30), || {
            let mounts = fs::read_to_string(member.node.machine.mountinfo()).unwrap_or_default();
            !mounts.contains("volume-subpaths/part/")
        })
        .await
        .with_context(|| member.name())?;
    }
    cluster.delete(&["configmap/part"]).await
}

/// With and without a daemon that sees it.
async fn a_killed_sandbox_is_replaced_once(cluster: &Cluster) -> Result<()> {
    cluster.kubectl.apply(&with_spec(pod("lost", json!([sleeper("main")])), &on("node2"))).await?;
    let member = cluster.member("node2")?;
    for (restarts, sees) in [(1, true), (2, false)] {
        let before = cluster.ready("lost").await?;
        let id = container(&before, "main")["containerID"].clone();
        let named = |pod: &&cri_api::v1::PodSandbox| {
            let named = pod.metadata.as_ref().is_some_and(|it| it.name == "lost");
            named && pod.state() == PodSandboxState::SandboxReady
        };
        let pods = member.node.cri.pods(None).await?;
        let sandbox = pods.iter().find(named).context("no sandbox")?;
        let pause = member.node.pause(&sandbox.id)?.pid;
        if sees {
            proc::signal(pause, Signal::SIGKILL)?;
        } else {
            member.node.kill9()?;
            proc::signal(pause, Signal::SIGKILL)?;
            member.node.launch().await?;
        }
        let again = |pod: &Value| is(pod, "Ready") && container(pod, "main")["containerID"] != id;
        let after = cluster.until("the pod to run again", &["pod", "lost"], again).await?;
        ensure!(container(&after, "main")["restartCount"] == restarts, "{}", after["status"]);
        cluster.agree("lost").await?;
        let address = text(&after, "/status/podIP");
        let found = cluster.sh("lost", "ip -4 -o addr show eth0").await?;
        ensure!(found.contains(&format!(" {address}/")), "instead of {address} it has {found}");
    }
    cluster.delete(&["pod/lost"]).await
}

impl Member {
    /// Everything that runs on the second machine ends at once, and it boots: its files are what is left.
    async fn lose_power(&self) -> Result<()> {
        let pods = self.node.cri.pods(None).await?;
        self.kubelet.stop();
        self.node.kill9()?;
        for pod in &pods {
            if let Ok(shim) = self.node.shim(&pod.id) {
                for process in proc::children(shim.pid).into_iter().chain([shim]) {
                    drop(proc::signal(process.pid, Signal::SIGKILL));
                }
            }
        }
        let root = &self.node.machine.cgroup_root;
        cgroup::destroy(&format!("{root}/kubepods"));
        pods.iter().for_each(|pod| cgroup::destroy(&format!("{SHIMS}/{}", pod.id)));
        self.node.machine.reboot()?;
        // Volatile files. A pin of the other node is a mount, and cannot be removed.
        fs::remove_dir_all(&self.node.paths.run)?;
        fs::create_dir_all(&self.node.paths.run)?;
        for pin in fs::read_dir("/run/netns")?.flatten() {
            drop(fs::remove_file(pin.path()));
        }
        Ok(())
    }
}

async fn pods_come_back_after_a_power_failure(cluster: &Cluster) -> Result<()> {
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}, "data": {"word": "kept"}});
    let mounts = json!({"volumeMounts": [{"name": "kept", "mountPath": "/kept"}]});
    let mut agents = template("agent", json!([with(sleeper("main"), &mounts)]));
    agents["spec"]["volumes"] = json!([{"name": "kept", "configMap": {"name": "kept"}}]);
    agents["spec"]["initContainers"] = json!([shell("init", "sleep 0.5")]);
    let single = with_spec(pod("single", json!([sleeper("main")])), &on("node2"));
    // Its first pod would never end.
    let folder = cluster.fixture.work().join("interrupted");
    fs::create_dir_all(&folder)?;
    let ran = json!({"volumeMounts": [{"name": "ran", "mountPath": "/ran"}]});
    let line = with(shell("main", "if mkdir /ran/first; then sleep 100000; fi"), &ran);
    let mut interrupted = job("interrupted", json!([line]), json!({"backoffLimit": 2}));
    interrupted["spec"]["template"]["spec"]["volumes"] =
        json!([{"name": "ran", "hostPath": {"path": folder}}]);
    interrupted["spec"]["template"]["spec"]["nodeSelector"] = on("node2")["nodeSelector"].take();
    let items = json!([config, daemon_set("agent", agents), single, interrupted]);
    cluster.kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items})).await?;
    cluster.kubectl.ok(&["rollout", "status", "daemonset/agent", "--timeout=80s"]).await?;
    cluster.ready("single").await?;
    wait::until_true("the job to run", secs(60), || folder.join("first").exists()).await?;
    let agents = cluster.pods("agent").await?;
    let agent =
        agents.iter().find(|pod| text(pod, "/spec/nodeName") == "node2").map(name).context("no agent")?;
    let before = [cluster.get(&["pod", &agent]).await?, cluster.get(&["pod", "single"]).await?];
    let member = cluster.member("node2")?;
    member.lose_power().await?;
    cluster.route(member)?;
    member.kubelet.cover()?;
    member.node.launch().await?;
    member.kubelet.launch().await?;
    for pod in &before {
        let (name, id) = (name(pod), container(pod, "main")["containerID"].clone());
        let again = |now: &Value| is(now, "Ready") && container(now, "main")["containerID"] != id;
        let after = cluster.until("the pod to come back", &["pod", &name], again).await?;
        ensure!(text(&after, "/metadata/uid") == text(pod, "/metadata/uid"), "{name} is another pod");
        ensure!(container(&after, "main")["restartCount"] == 1, "{name}: {}", after["status"]);
        cluster.prints(&name, "hostname", &format!("{name}\n")).await?;
    }
    cluster.prints(&agent, "cat /kept/word", "kept").await?;
    // The interrupted pod has failed, once, and another one has done the work.
    cluster.kubectl.ok(&["wait", "--for=condition=complete", "job/interrupted", "--timeout=80s"]).await?;
    let status = cluster.get(&["job", "interrupted"]).await?["status"].take();
    ensure!(status["succeeded"] == 1 && status["failed"] == 1, "{status}");
    for app in ["agent", "single"] {
        cluster.agree(app).await?;
    }
    cluster.delete(&["daemonset/agent", "pod/single", "job/interrupted", "configmap/kept"]).await
}
