//! kubectl through a control plane, the real kubelet and copepod: what an operator types first. The run's output is the
//! transcript, and each step checks output and exit code.

mod checks;
pub(crate) mod control_plane;
pub(crate) mod kubectl;
mod resize;
mod secrets;
mod sessions;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use tokio::sync::Mutex;

use crate::census::Census;
use crate::fixture::Fixture;
use crate::node::{Node, Options};
use crate::node_test::kubelet::Kubelet;
use crate::node_test::{Check, judge, selected};
use control_plane::{ControlPlane, Extent};
use kubectl::Kubectl;

/// A cluster of one node.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// copepod.
    node: Node,
    kubelet: Kubelet,
    control_plane: Mutex<ControlPlane>,
    /// kubectl as administrator.
    kubectl: Kubectl,
    /// Registry and images; dropped last.
    fixture: Fixture,
}

/// Runs the checks; `Ok(false)` if any failed.
pub(crate) async fn run(bin: &Path, kubelet: &Path, programs: &Path, filter: Option<&str>) -> Result<bool> {
    let begun = Instant::now();
    let mut checks = checks::start();
    let rest: Vec<Check<Cluster>> =
        sessions::all().into_iter().chain(resize::all()).chain(secrets::all()).chain(checks::all()).collect();
    checks.extend(selected(rest, filter)?);
    let world = Census::take(None);
    let fixture = Fixture::new(bin).await.context("prepare the fixtures")?;
    let node = Node::start(&fixture, &Options::default()).await.context("start copepod")?;
    let control_plane = ControlPlane::start(programs, &node.paths.dir, Extent::Api)
        .await
        .context("start the control plane")?;
    let kubelet = Kubelet::start(kubelet, &node, &[], Some(&control_plane.node("node1")))
        .await
        .context("start kubelet")?;
    println!("the cluster runs after {:.1} s", begun.elapsed().as_secs_f32());
    let kubectl = control_plane.kubectl.clone();
    let cluster = Cluster { node, kubelet, control_plane: Mutex::new(control_plane), kubectl, fixture };
    let (passed, mut failed) = judge(checks, &cluster).await;
    if let Err(e) = end(&cluster, &world).await {
        println!("FAIL  cleaning up the cluster\n    {e:#}");
        failed.push("cleaning up the cluster");
    }
    for name in &failed {
        println!("failed: {name}");
    }
    println!("{passed} passed, {} failed, in {:.0} s", failed.len(), begun.elapsed().as_secs_f32());
    Ok(failed.is_empty())
}

/// Deletes every pod by kubectl, stops everything, and removes what kubelet leaves by design. Nothing else may be left.
async fn end(cluster: &Cluster, world: &Census) -> Result<()> {
    let deleted = cluster.kubectl.ok(&["delete", "pods", "--all", "--wait", "--timeout=60s"]).await;
    cluster.kubelet.stop();
    let rest = cluster.node.empty().await;
    let terminated = cluster.node.terminate().await;
    cluster.kubelet.clean_up();
    cluster.control_plane.lock().await.stop();
    if rest.is_err() || terminated.is_err() {
        cluster.node.raze();
    }
    cluster.node.wipe();
    deleted?;
    rest?;
    terminated?;
    world.settle(None).await
}
