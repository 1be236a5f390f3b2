//! Runs the real kubelet, standalone, on copepod: manifests are written into its folder, and results are read from kubelet's
//! /pods and log endpoints, the process table and the cgroup tree.

mod bulk;
mod checks;
mod churn;
mod kubelet;
mod manifests;
mod users;
mod view;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::census::Census;
use crate::fixture::Fixture;
use crate::node::{Node, Options, Peer};
use kubelet::Kubelet;

/// The fixtures of all checks.
#[derive(Debug)]
pub(crate) struct Rig {
    /// Registry and images.
    pub(crate) fixture: Fixture,
    /// copepod.
    pub(crate) node: Node,
    /// kubelet.
    pub(crate) kubelet: Kubelet,
}

/// The future of a check.
pub(crate) type Work<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// One check. Checks run in order, and most need the pods that `manifests_are_written` starts.
pub(crate) struct Check {
    name: &'static str,
    run: for<'a> fn(&'a Rig) -> Work<'a>,
}

impl Check {
    /// A check.
    pub(crate) fn new(name: &'static str, run: for<'a> fn(&'a Rig) -> Work<'a>) -> Self {
        Self { name, run }
    }
}

/// `check!(name)`: the [`Check`] for an async function that takes the rig.
macro_rules! check {
    ($name:ident) => {
        $crate::node_test::Check::new(stringify!($name), |rig| Box::pin($name(rig)))
    };
}
pub(crate) use check;

/// Time limit of one check.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(150);

/// The checks whose name contains the filter; there must be one.
fn selected(filter: Option<&str>) -> Result<Vec<Check>> {
    let all = checks::all().into_iter().chain(users::all()).chain(churn::all());
    let selected: Vec<Check> = all.filter(|check| filter.is_none_or(|f| check.name.contains(f))).collect();
    anyhow::ensure!(!selected.is_empty(), "no check's name contains {:?}", filter.unwrap_or_default());
    Ok(selected)
}

/// Runs the checks; `Ok(false)` if any failed.
pub(crate) async fn run(
    bin: &Path,
    kubelet: &Path,
    filter: Option<&str>,
    peer: Option<Peer>,
) -> Result<bool> {
    let begun = Instant::now();
    let checks = selected(filter)?;
    let world = Census::take(None);
    let fixture = Fixture::new(bin).await.context("prepare the fixtures")?;
    // The node starts without a network, like a cluster's node before its CNI plugin is installed.
    let node = match peer {
        Some(peer) => Node::foreign(&fixture, &peer)?,
        None => Node::start(&fixture, &Options { without_cni: true, ..Options::default() })
            .await
            .context("start copepod")?,
    };
    let kubelet = Kubelet::start(kubelet, &node).await.context("start kubelet")?;
    println!("copepod and kubelet run after {:.1} s", begun.elapsed().as_secs_f32());
    let rig = Arc::new(Rig { fixture, node, kubelet });
    let (mut passed, mut failed) = (0, Vec::new());
    for check in checks {
        let start = Instant::now();
        let outcome = match tokio::time::timeout(LIMIT, (check.run)(&rig)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("did not end within {LIMIT:?}")),
        };
        let seconds = start.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("ok    {:<48} {seconds:6.2} s", check.name);
            }
            Err(e) => {
                println!(
                    "FAIL  {:<48} {seconds:6.2} s\n    {}",
                    check.name,
                    format!("{e:#}").replace('\n', "\n    ")
                );
                failed.push(check.name);
            }
        }
    }
    if let Err(e) = end(&rig, &world).await {
        println!("FAIL  cleaning up the node\n    {e:#}");
        failed.push("cleaning up the node");
    }
    for name in &failed {
        println!("failed: {name}");
    }
    println!("{passed} passed, {} failed, in {:.0} s", failed.len(), begun.elapsed().as_secs_f32());
    Ok(failed.is_empty())
}

/// Removes every pod through kubelet, stops kubelet and copepod, and removes what kubelet leaves by design.
async fn end(rig: &Rig, world: &Census) -> Result<()> {
    if rig.node.pid().is_err() && !rig.node.is_foreign() {
        rig.node.launch().await?;
    }
    if !rig.kubelet.running() {
        rig.kubelet.launch().await?;
    }
    let emptied = rig.kubelet.remove_all(rig).await;
    rig.kubelet.stop();
    let rest = rig.node.empty().await;
    let terminated = if rig.node.is_foreign() { Ok(()) } else { rig.node.terminate().await };
    rig.kubelet.clean_up();
    if emptied.is_err() || rest.is_err() || terminated.is_err() {
        rig.node.raze();
    }
    rig.node.wipe();
    emptied?;
    rest?;
    terminated?;
    world.settle(None).await
}
