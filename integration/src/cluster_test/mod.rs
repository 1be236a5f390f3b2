//! Kubernetes' controllers and scheduler with two nodes: copepod and the real kubelet on two machines
//! ([`crate::machine`]), between whose pod networks there are routes. What a check expects is read from the API and, where a
//! runtime could hide it, from the nodes.

mod between;
mod faults;
mod objects;
mod outages;
mod pods;
mod volumes;
mod workloads;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::census::Census;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::images::Recipe;
use crate::images::layer::{Packing, Writer};
use crate::kubectl_test::control_plane::{ControlPlane, Extent};
use crate::kubectl_test::kubectl::Kubectl;
use crate::machine::Machine;
use crate::node::{Node, Options};
use crate::node_test::kubelet::Kubelet;
use crate::node_test::{Check, check, judge, selected};
use crate::wait::{self, secs};

/// The address of the API server's service, and its port.
const SERVICE: &str = "10.96.0.1";

/// A node of the cluster.
#[derive(Debug)]
struct Member {
    node: Node,
    kubelet: Kubelet,
    /// Taken before its first pod.
    before: Census,
}

/// A cluster of two nodes.
#[derive(Debug)]
struct Cluster {
    members: [Member; 2],
    control_plane: ControlPlane,
    /// kubectl as administrator.
    kubectl: Kubectl,
    /// Registry and images; dropped last.
    fixture: Fixture,
}

/// Runs the checks; `Ok(false)` if any failed.
pub(crate) async fn run(bin: &Path, kubelet: &Path, programs: &Path, filter: Option<&str>) -> Result<bool> {
    let begun = Instant::now();
    let all = workloads::all().into_iter().chain(volumes::all()).chain(pods::all());
    let all = all.chain(between::all()).chain(faults::all()).chain(outages::all()).collect();
    let mut checks: Vec<Check<Cluster>> = vec![check!(nodes_are_registered)];
    checks.extend(selected(all, filter)?);
    let world = Census::take(None);
    let cluster = start(bin, kubelet, programs).await?;
    println!("the cluster runs after {:.1} s", begun.elapsed().as_secs_f32());
    let (passed, mut failed) = judge(checks, &cluster).await;
    if let Err(e) = cluster.control_plane.alive().and(end(cluster, &world).await) {
        println!("FAIL  cleaning up the cluster\n    {e:#}");
        failed.push("cleaning up the cluster");
    }
    for name in &failed {
        println!("failed: {name}");
    }
    println!("{passed} passed, {} failed, in {:.0} s", failed.len(), begun.elapsed().as_secs_f32());
    Ok(failed.is_empty())
}

async fn start(bin: &Path, kubelet: &Path, programs: &Path) -> Result<Cluster> {
    let fixture = Fixture::new(bin).await.context("prepare the fixtures")?;
    let mut curl = Writer::new();
    curl.program("/usr/bin/curl").context("Debian package curl")?;
    let layers = [fixture.layers.busybox.clone(), curl.finish(Packing::Gzip)?];
    fixture.registry.push("curl", "1", &Recipe::new(&layers, json!({"Cmd": ["/bin/sh"]})).build()).await?;
    let control_plane = ControlPlane::start(programs, fixture.work(), Extent::Whole);
    let control_plane = control_plane.await.context("start the control plane")?;
    let (node1, kubelet1) =
        member(&fixture, kubelet, &control_plane, Machine::first()).await.context("the first node")?;
    let (node2, kubelet2) =
        member(&fixture, kubelet, &control_plane, Machine::second()?).await.context("the second node")?;
    let kubectl = control_plane.kubectl.clone();
    // Only now: each census has the processes and the cable of the other node.
    let first = Member { before: Census::take(Some(&node1)), node: node1, kubelet: kubelet1 };
    let second = Member { before: Census::take(Some(&node2)), node: node2, kubelet: kubelet2 };
    let cluster = Cluster { members: [first, second], control_plane, kubectl, fixture };
    for member in &cluster.members {
        cluster.route(member)?;
    }
    Ok(cluster)
}

async fn member(
    fixture: &Fixture,
    kubelet: &Path,
    control_plane: &ControlPlane,
    machine: Machine,
) -> Result<(Node, Kubelet)> {
    let config = control_plane.node(machine.name);
    let options = Options { without_cni: true, machine: Some(Arc::new(machine)), ..Options::default() };
    let node = Node::start(fixture, &options).await.context("start copepod")?;
    node.network.install_routed()?;
    let kubelet = Kubelet::start(kubelet, &node, &[], Some(&config)).await.context("start kubelet")?;
    Ok((node, kubelet))
}

impl Member {
    fn name(&self) -> &'static str {
        self.node.machine.name
    }
}

impl Cluster {
    /// Lets pods of a node reach those of the other one, and the API server by the address of its service, as kube-proxy
    /// does.
    fn route(&self, member: &Member) -> Result<()> {
        let to = format!("{}:{}", Machine::first().address, self.control_plane.port);
        let machine = &member.node.machine;
        for chain in ["PREROUTING", "OUTPUT"] {
            let service =
                ["-d", SERVICE, "-p", "tcp", "--dport", "443", "-j", "DNAT", "--to-destination", &to];
            machine.run("iptables", &[["-w", "-t", "nat", "-A", chain].as_slice(), &service].concat())?;
        }
        // The other way is the second machine's default route.
        if machine.address != Machine::first().address {
            let range = format!("{}.0/24", member.node.network.prefix);
            crate::isolation::command("ip", &["route", "replace", &range, "via", machine.address])?;
        }
        Ok(())
    }

    /// The node of this name.
    fn member(&self, name: &str) -> Result<&Member> {
        self.members.iter().find(|member| member.name() == name).with_context(|| format!("no node {name}"))
    }

    /// Deletes objects of the default namespace; returns when they and what their controllers made are gone.
    async fn delete(&self, objects: &[&str]) -> Result<()> {
        let arguments =
            [["delete", "--wait", "--cascade=foreground", "--timeout=60s"].as_slice(), objects].concat();
        self.kubectl.ok(&arguments).await.map(drop)
    }
}

async fn nodes_are_registered(cluster: &Cluster) -> Result<()> {
    let ready = ["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s"];
    wait::until("the nodes", secs(60), || async { cluster.kubectl.quiet(&ready).await.map(Some) }).await?;
    wait::until("the nodes to be schedulable", secs(60), || async {
        let taints =
            cluster.kubectl.quiet(&["get", "nodes", "-o", "jsonpath={.items[*].spec.taints}"]).await?;
        ensure!(taints.is_empty(), "they have the taints {taints}");
        cluster.kubectl.quiet(&["get", "serviceaccount", "default"]).await?;
        cluster.kubectl.quiet(&["get", "configmap", "kube-root-ca.crt"]).await.map(Some)
    })
    .await?;
    let text = cluster.kubectl.ok(&["get", "nodes", "-o", "wide"]).await?;
    for member in &cluster.members {
        let line =
            text.lines().find(|line| line.starts_with(member.name())).context("no line of the node")?;
        let address = member.node.machine.address;
        ensure!(line.contains(" Ready ") && line.contains("copepod://") && line.contains(address), "{text}");
    }
    Ok(())
}

/// Deletes everything by kubectl, stops everything, and removes what kubelet leaves by design. Nothing else may be left.
async fn end(cluster: Cluster, world: &Census) -> Result<()> {
    let kinds = "deployments,daemonsets,statefulsets,jobs,pods,services";
    let deleted = cluster.delete(&[kinds, "--all"]).await;
    let mut outcome = deleted.context("delete all objects");
    // Control groups and processes are those of both nodes, so the pods of both must be gone before anything is compared.
    let mut emptied = Vec::new();
    for member in &cluster.members {
        member.kubelet.stop();
        let rest = member.node.emptied().await;
        member.kubelet.clean_up();
        emptied.push(rest.with_context(|| member.name()));
    }
    for (member, emptied) in cluster.members.iter().zip(emptied) {
        let clean = match emptied {
            Ok(()) => member.before.settle(Some(&member.node)).await.with_context(|| member.name()),
            failed => failed,
        };
        let terminated = member.node.terminate().await;
        if clean.is_err() || terminated.is_err() {
            member.node.raze();
        }
        member.node.wipe();
        outcome = outcome.and(clean).and(terminated);
    }
    drop(cluster);
    outcome?;
    world.settle(None).await
}
