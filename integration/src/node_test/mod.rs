//! Runs the real kubelet, standalone, on copepod: manifests are written into its folder, and results are read from kubelet's
//! /pods and log endpoints, the process table and the cgroup tree. This is done twice: with kubelet's default feature
//! gates, and with those with which it uses more of CRI ([`gates`]). A third round, [`crowd`], runs only if it is named.

mod bulk;
mod checks;
mod churn;
mod cpus;
mod crowd;
mod dead;
mod devices;
mod gates;
pub(crate) mod kubelet;
pub(crate) mod kubepods;
pub(crate) mod manifests;
mod memory;
mod plugin;
mod qos;
mod users;
mod view;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::census::Census;
use crate::fixture::Fixture;
use crate::node::{Node, Options, Peer};
use kubelet::Kubelet;

/// The fixtures of all checks.
#[derive(Debug)]
pub(crate) struct Rig {
    /// Registry and images.
    pub(crate) fixture: Arc<Fixture>,
    /// copepod.
    pub(crate) node: Node,
    /// kubelet.
    pub(crate) kubelet: Kubelet,
}

/// The future of a check.
pub(crate) type Work<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// One check. Checks run in order, and most need the pods that `manifests_are_written` starts.
pub(crate) struct Check<R = Rig> {
    name: &'static str,
    run: for<'a> fn(&'a R) -> Work<'a>,
    limit: Duration,
}

impl<R> Check<R> {
    /// A check.
    pub(crate) fn new(name: &'static str, run: for<'a> fn(&'a R) -> Work<'a>) -> Self {
        Self { name, run, limit: LIMIT }
    }

    /// The check with another time limit.
    pub(crate) fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }
}

/// `check!(name)`: the [`Check`] for an async function that takes the rig.
macro_rules! check {
    ($name:ident) => {
        $crate::node_test::Check::new(stringify!($name), |rig| Box::pin($name(rig)))
    };
}
pub(crate) use check;

/// Time limit of one check that has none of its own.
const LIMIT: Duration = Duration::from_secs(150);

/// The round that runs only if it or its check is named.
const CROWD: &str = "crowd";

/// One node, with its own copepod and kubelet.
struct Round {
    /// A filter of this name selects all its checks.
    name: &'static str,
    title: &'static str,
    /// Feature gates of kubelet that are turned on.
    gates: &'static [&'static str],
    checks: Vec<Check>,
}

/// The rounds with the checks whose name contains the filter, which may also be the name of a round; there must be one.
fn rounds(filter: Option<&str>) -> Result<Vec<Round>> {
    let first = checks::all()
        .into_iter()
        .chain(users::all())
        .chain(churn::all())
        .chain(qos::all())
        .chain(devices::all())
        .chain(cpus::all())
        .chain(memory::all())
        .collect();
    let rounds = [
        Round { name: "default", title: "kubelet with its default feature gates", gates: &[], checks: first },
        Round {
            name: "gates",
            title: "kubelet with CRIListStreaming, EventedPLEG and PodAndContainerStatsFromCRI",
            gates: &gates::GATES,
            checks: gates::all()?,
        },
        Round { name: CROWD, title: "a hundred pods", gates: &[], checks: crowd::all() },
    ];
    let mut selected = Vec::new();
    for mut round in rounds {
        let name = round.name;
        round.checks.retain(|check| match filter {
            None => name != CROWD,
            Some(filter) => filter == name || check.name.contains(filter),
        });
        if !round.checks.is_empty() {
            selected.push(round);
        }
    }
    anyhow::ensure!(!selected.is_empty(), "no check's name contains {:?}", filter.unwrap_or_default());
    Ok(selected)
}

/// The checks whose name contains the filter; there must be one.
pub(crate) fn selected<R>(all: Vec<Check<R>>, filter: Option<&str>) -> Result<Vec<Check<R>>> {
    let selected: Vec<Check<R>> =
        all.into_iter().filter(|check| filter.is_none_or(|f| check.name.contains(f))).collect();
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
    let rounds = rounds(filter)?;
    let world = Census::take(None);
    let fixture = Arc::new(Fixture::new(bin).await.context("prepare the fixtures")?);
    let (mut passed, mut failed) = (0, Vec::new());
    for round in rounds {
        println!("-- {}", round.title);
        let (right, wrong) = one_round(round, &fixture, kubelet, peer.as_ref(), &world).await?;
        passed += right;
        failed.extend(wrong);
    }
    for name in &failed {
        println!("failed: {name}");
    }
    println!("{passed} passed, {} failed, in {:.0} s", failed.len(), begun.elapsed().as_secs_f32());
    Ok(failed.is_empty())
}

/// Runs the checks of one round; returns how many passed, and the names of the others.
async fn one_round(
    round: Round,
    fixture: &Arc<Fixture>,
    kubelet: &Path,
    peer: Option<&Peer>,
    world: &Census,
) -> Result<(usize, Vec<&'static str>)> {
    let begun = Instant::now();
    // The node starts without a network, like a cluster's node before its CNI plugin is installed.
    let options = Options { without_cni: true, log_calls: !round.gates.is_empty(), ..Options::default() };
    let node = match peer {
        Some(peer) => Node::foreign(fixture, peer)?,
        None => Node::start(fixture, &options).await.context("start copepod")?,
    };
    let kubelet = Kubelet::start(kubelet, &node, round.gates, None).await.context("start kubelet")?;
    println!("copepod and kubelet run after {:.1} s", begun.elapsed().as_secs_f32());
    let rig = Rig { fixture: Arc::clone(fixture), node, kubelet };
    let (passed, mut failed) = judge(round.checks, &rig).await;
    if let Err(e) = end(&rig, world).await {
        println!("FAIL  cleaning up the node\n    {e:#}");
        failed.push("cleaning up the node");
    }
    Ok((passed, failed))
}

/// Runs checks one after another; the number that passed, and the names of the others.
pub(crate) async fn judge<R>(checks: Vec<Check<R>>, rig: &R) -> (usize, Vec<&'static str>) {
    let (mut passed, mut failed) = (0, Vec::new());
    for check in checks {
        let start = Instant::now();
        let outcome = match crate::wait::timeout(check.limit, (check.run)(rig)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("did not end within {:?}", crate::wait::longer(check.limit))),
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
    (passed, failed)
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
