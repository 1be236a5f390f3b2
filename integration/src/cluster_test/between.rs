//! Pods on both nodes: TCP between them, and kubectl's sessions with each.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::Cluster;
use super::objects::{on, text};
use crate::expect::ensure;
use crate::node_test::manifests::{pod, shell, with, with_spec};
use crate::node_test::{Check, check};

pub(super) fn all() -> Vec<Check<Cluster>> {
    vec![check!(pods_of_both_nodes_talk), check!(logs_and_exec_work_on_both_nodes)]
}

/// A pod on a node that tells on port 9000 who its peer is, as /proc/net has it, and echoes on 9001.
fn talker(node: &str) -> Value {
    let line = "echo this is $(hostname); trap 'exit 0' TERM; \
                nc -ll -p 9000 -e /bin/cat /proc/net/tcp /proc/net/tcp6 & nc -ll -p 9001 -e /bin/cat & wait";
    let probe = |port: u16| json!({"tcpSocket": {"port": port}, "periodSeconds": 1});
    let fields = json!({"startupProbe": probe(9000), "readinessProbe": probe(9001)});
    with_spec(pod(&format!("on-{node}"), json!([with(shell("main", line), &fields)])), &on(node))
}

async fn pods_of_both_nodes_talk(cluster: &Cluster) -> Result<()> {
    let pods = json!([talker("node1"), talker("node2")]);
    cluster.kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods})).await?;
    let mut addresses = Vec::new();
    for member in &cluster.members {
        let pod = cluster.ready(&format!("on-{}", member.name())).await?;
        ensure!(text(&pod, "/spec/nodeName") == member.name(), "{} is elsewhere", member.name());
        let address = text(&pod, "/status/podIP");
        ensure!(address.starts_with(&format!("{}.", member.node.network.prefix)), "its address is {address}");
        addresses.push(address);
    }
    let [first, second] = addresses.as_slice() else { anyhow::bail!("{addresses:?}") };
    for (from, own, to) in [("on-node1", first, second), ("on-node2", second, first)] {
        let table = cluster.sh(from, &format!("nc -w 10 {to} 9000 < /dev/null")).await?;
        let peers: Vec<String> = table.lines().filter_map(peer).collect();
        ensure!(peers.contains(own), "to {to}, {own} appears as one of {peers:?}: {table}");
        let echo = format!("head -c 3000000 /dev/zero | nc -w 10 {to} 9001 | wc -c");
        let count = cluster.sh(from, &echo).await?;
        ensure!(count.trim() == "3000000", "{count} of 3000000 bytes came back from {to}");
    }
    // The nodes reach the other's pods too, as probes and the API server do.
    for member in &cluster.members {
        for to in [first, second] {
            let line = format!("busybox nc -w 10 {to} 9001 < /dev/null");
            member.node.machine.run("sh", &["-c", &line]).with_context(|| member.name())?;
        }
    }
    Ok(())
}

/// The peer of a connection of port 9000, in a line of /proc/net/tcp, or of tcp6, where the address ends with that of
/// IPv4. The peer may have closed the connection already.
fn peer(line: &str) -> Option<String> {
    let mut words = line.split_whitespace().skip(1);
    let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
    let address = remote.split(':').next()?;
    let address = u32::from_str_radix(address.get(address.len().checked_sub(8)?..)?, 16).ok()?;
    (local.ends_with(":2328") && state != "0A").then(|| Ipv4Addr::from(address.swap_bytes()).to_string())
}

/// The API server reaches kubelet, and kubelet copepod, on both nodes.
async fn logs_and_exec_work_on_both_nodes(cluster: &Cluster) -> Result<()> {
    let pods = json!([talker("node1"), talker("node2")]);
    cluster.kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods})).await?;
    for name in ["on-node1", "on-node2"] {
        cluster.ready(name).await?;
        let log = cluster.kubectl.ok(&["logs", name]).await?;
        ensure!(log == format!("this is {name}\n"), "the log of {name} is {log:?}");
        let ended = cluster
            .kubectl
            .run(&["exec", "-i", name, "--", "/bin/sh", "-c", "cat; exit 5"], b"input")
            .await?;
        ensure!(ended.code == Some(5) && ended.stdout == b"input", "{name}: {ended:?}");
        let mut terminal = cluster.kubectl.terminal(&["exec", "-it", name, "--", "/bin/sh"], 80, 24)?;
        terminal.until("# ").await?;
        terminal.send("hostname; exit 4\n")?;
        terminal.until(name).await?;
        let code = terminal.ended().await?;
        ensure!(code == Some(4), "{name}: kubectl ended with {code:?}");
    }
    cluster.delete(&["pod/on-node1", "pod/on-node2"]).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_is_that_of_a_connection_and_not_of_a_listener() {
        let line = |port: &str, state: &str| {
            format!("   1: 0202580A:{port} 0301580A:9C40 {state} 00000000:00000000")
        };
        for state in ["01", "08"] {
            assert_eq!(peer(&line("2328", state)).as_deref(), Some("10.88.1.3"));
        }
        let mapped = line("2328", "01").replace("0301580A", "0000000000000000FFFF00000301580A");
        assert_eq!(peer(&mapped).as_deref(), Some("10.88.1.3"));
        assert_eq!(peer(&line("2328", "0A")), None);
        assert_eq!(peer(&line("2329", "01")), None);
        assert_eq!(peer("  sl  local_address rem_address   st tx_queue"), None);
    }
}
