//! Pods, copies, forwarding, logs, debugging and figures by kubectl.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use super::Cluster;
use super::kubectl::transcribe;
use crate::expect::ensure;
use crate::node_test::manifests::{pod, shell, sleeper, with, with_spec};
use crate::node_test::{Check, check};
use crate::wait::{self, secs};

/// The checks that start the pods of the others.
pub(super) fn start() -> Vec<Check<Cluster>> {
    vec![check!(node_is_registered), check!(pods_turn_ready)]
}

/// The checks in the order they run.
pub(super) fn all() -> Vec<Check<Cluster>> {
    vec![
        check!(files_are_copied_both_ways),
        check!(ports_are_forwarded),
        check!(forwarding_to_a_closed_port),
        check!(logs_are_followed_across_rotations),
        check!(a_container_is_debugged),
        check!(a_node_is_measured),
        check!(pods_are_deleted),
    ]
}

async fn node_is_registered(cluster: &Cluster) -> Result<()> {
    let ready = ["wait", "--for=condition=Ready", "node/node1", "--timeout=60s"];
    wait::until("the node", secs(60), || async { cluster.kubectl.quiet(&ready).await.map(Some) }).await?;
    let text = cluster.kubectl.ok(&["get", "nodes", "-o", "wide"]).await?;
    ensure!(text.contains("node1") && text.contains(" Ready ") && text.contains("copepod://"), "{text}");
    Ok(())
}

/// There is no scheduler: each pod names its node. No service account either, whose token would be mounted.
pub(super) fn here(pod: Value) -> Value {
    with_spec(pod, &json!({"nodeName": "node1", "automountServiceAccountToken": false}))
}

/// The pods of most checks.
fn pods() -> Vec<Value> {
    let answer = "echo up; while read x; do echo got $x; done; echo over";
    let nginx = json!({"name": "web", "image": "registry.test/nginx:1", "ports": [{"containerPort": 80}]});
    let host = json!({"hostNetwork": true, "containers": [{"name": "web", "image": "registry.test/nginx:1",
        "command": ["/usr/sbin/nginx", "-c", "/etc/nginx/12003.conf", "-g", "daemon off;"]}]});
    let never = json!({"restartPolicy": "Never"});
    let items = [
        pod("shell", json!([sleeper("main"), shell("other", "sleep 100000")])),
        pod("stdin", json!([with(shell("main", answer), &json!({"stdin": true}))])),
        pod("terminal", json!([with(shell("main", answer), &json!({"stdin": true, "tty": true}))])),
        with_spec(
            pod("once", json!([with(shell("main", answer), &json!({"stdin": true, "stdinOnce": true}))])),
            &never,
        ),
        pod("web", json!([nginx])),
        with_spec(pod("host-web", json!([])), &host),
    ];
    items.into_iter().map(here).collect()
}

async fn pods_turn_ready(cluster: &Cluster) -> Result<()> {
    let items = pods();
    cluster.kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items})).await?;
    cluster.kubectl.ok(&["wait", "--for=condition=Ready", "pods", "--all", "--timeout=90s"]).await?;
    let text = cluster.kubectl.ok(&["get", "pods", "-o", "wide"]).await?;
    ensure!(text.lines().filter(|line| line.contains("Running")).count() == items.len(), "{text}");
    Ok(())
}

/// A folder of the test on the host.
fn folder(cluster: &Cluster, name: &str) -> Result<PathBuf> {
    let dir = cluster.fixture.work().join(name);
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

async fn files_are_copied_both_ways(cluster: &Cluster) -> Result<()> {
    let (there, back) = (folder(cluster, "copied")?, folder(cluster, "back")?);
    let big: Vec<u8> = (0_u32..2 << 20).flat_map(u32::to_le_bytes).collect();
    fs::create_dir_all(there.join("sub"))?;
    fs::write(there.join("big"), &big)?;
    fs::write(there.join("sub/small"), "small\n")?;
    fs::write(there.join("empty"), "")?;
    let (from, to) = (there.display().to_string(), back.display().to_string());
    cluster.kubectl.ok(&["cp", &from, "shell:/tmp/copied", "-c", "main"]).await?;
    let sum =
        cluster.kubectl.ok(&["exec", "shell", "-c", "main", "--", "sha256sum", "/tmp/copied/big"]).await?;
    ensure!(
        crate::images::digest(&big) == format!("sha256:{}", sum.split(' ').next().unwrap_or_default()),
        "the container has {sum}"
    );
    cluster.kubectl.ok(&["cp", "shell:/tmp/copied", &to, "-c", "main"]).await?;
    ensure!(fs::read(back.join("big"))? == big, "other bytes came back");
    ensure!(fs::read_to_string(back.join("sub/small"))? == "small\n", "another file came back");
    ensure!(fs::read(back.join("empty"))?.is_empty(), "an empty file came back with content");
    let missing = cluster.kubectl.run(&["cp", "/no/such/file", "shell:/tmp/x", "-c", "main"], &[]).await?;
    ensure!(missing.code == Some(1) && missing.stderr.contains("/no/such/file"), "{missing:?}");
    Ok(())
}

/// What an HTTP server answers through a local port.
async fn fetch(port: u16) -> Result<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
    socket.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    timeout(secs(20), socket.read_to_string(&mut text)).await.context("no answer")??;
    Ok(text)
}

/// The local port of `kubectl port-forward`, and the rest of its output, which must stay open.
async fn forwarded_port(child: &mut Child) -> Result<(u16, Lines<BufReader<ChildStdout>>)> {
    let mut lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
    let line = timeout(secs(30), lines.next_line()).await.context("kubectl does not listen")??;
    let line = line.context("kubectl has ended")?;
    // Forwarding from 127.0.0.1:40000 -> 80
    let local = line.split_whitespace().find_map(|word| word.strip_prefix("127.0.0.1:"));
    Ok((local.with_context(|| line.clone())?.parse()?, lines))
}

async fn ports_are_forwarded(cluster: &Cluster) -> Result<()> {
    for (websockets, target, port) in [
        ("true", "web", "80"),
        ("false", "web", "80"),
        ("true", "host-web", "12003"),
        ("false", "host-web", "12003"),
    ] {
        let variables = [("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)];
        let (target, ports) = (format!("pod/{target}"), format!(":{port}"));
        let arguments = ["port-forward", target.as_str(), ports.as_str()];
        let mut child = cluster
            .kubectl
            .command(&arguments, &variables)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start kubectl")?;
        let (local, _output) = forwarded_port(&mut child).await?;
        for _ in 0..3 {
            let text = fetch(local).await?;
            ensure!(text.ends_with("hello from nginx\n"), "{target}, WebSocket {websockets}: {text:?}");
        }
        let many: Vec<_> = (0..20).map(|_| tokio::spawn(fetch(local))).collect();
        for one in many {
            ensure!(one.await??.ends_with("hello from nginx\n"), "{target}, WebSocket {websockets}");
        }
        child.kill().await?;
        transcribe(&arguments, &variables, None);
    }
    Ok(())
}

async fn forwarding_to_a_closed_port(cluster: &Cluster) -> Result<()> {
    let arguments = ["port-forward", "pod/web", ":9"];
    let mut child = cluster
        .kubectl
        .command(&arguments, &[])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start kubectl")?;
    let (local, _output) = forwarded_port(&mut child).await?;
    // It may be answered with a reset.
    drop(fetch(local).await);
    let ended = timeout(secs(30), child.wait_with_output()).await.context("kubectl goes on")??;
    transcribe(&arguments, &[], ended.status.code());
    let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(ended.status.code() == Some(1) && stderr.contains("port 9"), "{}: {stderr}", ended.status);
    Ok(())
}

/// No line is lost, doubled or out of order, although kubelet rotates the log meanwhile.
async fn logs_are_followed_across_rotations(cluster: &Cluster) -> Result<()> {
    let count = "i=0; while [ $i -lt 1500 ]; do echo line $i of the count, long enough to fill a file soon; \
                 i=$((i+1)); usleep 12000; done; echo counted";
    let pod = with_spec(pod("count", json!([shell("main", count)])), &json!({"restartPolicy": "Never"}));
    cluster.kubectl.apply(&here(pod)).await?;
    cluster.kubectl.ok(&["wait", "--for=condition=Ready", "pod/count", "--timeout=60s"]).await?;
    // kubelet reads the current file from its beginning, so this must begin before the first rotation.
    let text = cluster.kubectl.ok(&["logs", "-f", "count"]).await?;
    let logs = cluster.kubelet.logs.clone();
    let files =
        fs::read_dir(&logs)?.flatten().filter(|d| d.file_name().to_string_lossy().contains("_count_"));
    let files: usize = files.map(|d| fs::read_dir(d.path().join("main")).map_or(0, Iterator::count)).sum();
    ensure!(files >= 2, "the log was not rotated: it has {files} files");
    let mut numbers =
        text.lines().filter_map(|line| line.strip_prefix("line ")?.split(' ').next()?.parse().ok());
    for wanted in 0..1500_u32 {
        let found = numbers.next();
        ensure!(found == Some(wanted), "line {wanted} is {found:?}; the log has {files} files");
    }
    ensure!(numbers.next().is_none() && text.ends_with("counted\n"), "the end is {:?}", text.lines().last());
    let tail = cluster.kubectl.ok(&["logs", "--tail=2", "--timestamps", "count"]).await?;
    ensure!(tail.lines().count() == 2 && tail.ends_with(" counted\n"), "{tail}");
    Ok(())
}

/// An ephemeral container in the target's PID namespace, attached to.
async fn a_container_is_debugged(cluster: &Cluster) -> Result<()> {
    let mut terminal = cluster.kubectl.terminal(
        &[
            "debug",
            "-it",
            "shell",
            "--image=registry.test/busybox:1",
            "--target=main",
            "--profile=general",
            "--",
            "/bin/sh",
        ],
        100,
        30,
    )?;
    terminal.until("# ").await?;
    terminal.send("tr '\\0' ' ' < /proc/1/cmdline; echo; stty size\n")?;
    terminal.until("trap 'exit 0' TERM").await.context("PID 1 is not the target's")?;
    terminal.until("30 100").await.context("the size at the start")?;
    terminal.send("while :; do stty size; sleep 0.2; done\n")?;
    terminal.resize(90, 20)?;
    terminal.until("20 90").await.context("the new size")?;
    terminal.send("\u{3}")?;
    terminal.until("# ").await?;
    terminal.send("exit 6\n")?;
    // The session's end is attach's, which has no exit code; the container's is in the status.
    let code = terminal.ended().await?;
    ensure!(code == Some(0), "kubectl debug ended with {code:?}");
    let pointer = "jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.exitCode}";
    wait::until("the ephemeral container's exit code", secs(30), || async {
        let code = cluster.kubectl.quiet(&["get", "pod", "shell", "-o", pointer]).await?;
        ensure!(code == "6", "it is {code:?}");
        Ok(Some(()))
    })
    .await
}

/// `kubectl top` by metrics-server, whose source is kubelet's /metrics/resource; and kubelet's summary.
async fn a_node_is_measured(cluster: &Cluster) -> Result<()> {
    cluster.control_plane.lock().await.start_metrics().await?;
    let top = wait::until("kubectl top", secs(100), || async {
        tokio::time::sleep(secs(2)).await;
        let text = cluster.kubectl.quiet(&["top", "pods", "--containers", "--no-headers"]).await?;
        for (pod, container) in [("shell", "main"), ("shell", "other"), ("web", "web"), ("host-web", "web")] {
            let found = text.lines().any(|line| line.split_whitespace().take(2).eq([pod, container]));
            ensure!(found, "no line of {pod} {container}: {text}");
        }
        Ok(Some(text))
    })
    .await;
    let top = match top {
        Ok(top) => top,
        Err(e) => return Err(e.context(cluster.control_plane.lock().await.last("metrics-server"))),
    };
    cluster.kubectl.ok(&["top", "pods", "--containers"]).await?;
    // nginx and its worker have a megabyte at least; a busybox that loops has used the CPU.
    let memory = |pod: &str| {
        let line = top.lines().find(|line| line.starts_with(&format!("{pod} ")))?;
        line.split_whitespace().nth(3)?.strip_suffix("Mi")?.parse::<u64>().ok()
    };
    ensure!(
        memory("web").is_some_and(|mib| (1..100).contains(&mib)),
        "web has {:?} MiB: {top}",
        memory("web")
    );
    let node = cluster.kubectl.ok(&["top", "node", "node1", "--no-headers"]).await?;
    ensure!(node.contains("node1") && !node.contains("unknown"), "{node}");
    let summary = cluster.kubectl.ok(&["get", "--raw", "/api/v1/nodes/node1/proxy/stats/summary"]).await?;
    let summary: Value = serde_json::from_str(&summary)?;
    let pods = summary["pods"].as_array().context("no pods")?;
    let shell = pods.iter().find(|pod| pod["podRef"]["name"] == "shell").context("no pod shell")?;
    let containers = shell["containers"].as_array().context("no containers")?;
    ensure!(containers.len() >= 2, "{shell}");
    for container in containers.iter().filter(|c| c["name"] == "main" || c["name"] == "other") {
        ensure!(container["memory"]["workingSetBytes"].as_u64().is_some_and(|n| n > 0), "{container}");
        ensure!(container["cpu"]["usageCoreNanoSeconds"].as_u64().is_some_and(|n| n > 0), "{container}");
    }
    Ok(())
}

async fn pods_are_deleted(cluster: &Cluster) -> Result<()> {
    cluster.kubectl.ok(&["delete", "pod", "shell", "--wait", "--timeout=40s"]).await?;
    let gone = cluster.kubectl.run(&["exec", "shell", "--", "true"], &[]).await?;
    ensure!(gone.code == Some(1) && gone.stderr.contains("not found"), "{gone:?}");
    let left = cluster.node.cri.pods(None).await?;
    // kubelet removes a stopped sandbox later.
    let ready = cri_api::v1::PodSandboxState::SandboxReady;
    let named = |p: &&cri_api::v1::PodSandbox| p.metadata.as_ref().is_some_and(|m| m.name == "shell");
    let running = left.iter().filter(named).filter(|p| p.state() == ready).count();
    ensure!(running == 0, "{running} of its sandboxes are ready");
    Ok(())
}
