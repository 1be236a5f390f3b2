//! The benchmark: the same load on several runtimes, interleaved in one run; prints medians and ratios.
//!
//! Absolute times vary with the machine, so only ratios between endpoints of one run can be compared; a budget that is
//! missed is marked as a hint. Other runtimes are given by socket, and by their `certs.d` folder if the registry must be
//! added there. They must run in the network and mount namespace of the bench: the registry, their streaming server and
//! the volumes are there.

mod containerd;
mod load;
mod memory;
mod pulls;
mod spdy;
mod streams;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::context::Context;
use crate::fixture::Fixture;
use crate::node::{Node, Options, Peer};
use table::{Measure, Table, Unit};

/// Number of pods in the memory and stats measurements.
pub(crate) const PODS: usize = 20;
/// Rounds of the pod measurements.
const ROUNDS: usize = 40;
/// Rounds with several pods that start at once.
const BURSTS: usize = 6;
/// Rounds of the log measurements.
const LOGS: usize = 6;
/// Rounds of the exec measurements.
const EXECS: usize = 60;

/// A runtime under load.
pub(crate) struct Endpoint {
    /// Column title.
    pub(crate) name: String,
    /// Context for calls.
    pub(crate) ctx: Context,
}

/// The endpoints in the order of a round. Each is first in turn, because the kernel's delayed work, such as freeing the
/// objects of the previous round, slows down the first of a round.
fn turn<T>(all: &[T], round: usize) -> impl Iterator<Item = &T> {
    let (late, early) = all.split_at(round.checked_rem(all.len()).unwrap_or(0));
    early.iter().chain(late)
}

/// Copies the programs of a build to `to`. The state of a file in the page cache changes the PSS of processes that run
/// from it by a tenth, so every build is measured from fresh copies.
fn fresh(bin: &Path, to: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for name in ["copepod", "copepod-shim", "pause"] {
        let from = bin.join(name);
        std::fs::copy(&from, to.join(name)).with_context(|| from.display().to_string())?;
    }
    Ok(to.to_owned())
}

/// What is measured beside the first build of copepod.
#[derive(Debug)]
pub(crate) struct Others<'a> {
    /// Other builds, each as name=directory.
    pub(crate) beside: &'a [String],
    /// Running runtimes, each as name=socket or name=socket,certs.d.
    pub(crate) endpoints: &'a [String],
    /// A program of containerd, which the bench starts to measure pulls.
    pub(crate) containerd: Option<&'a Path>,
}

/// Measures copepod and others, and prints one table. `filter` selects among the groups `pods`, `execs`, `logs`, `streams`,
/// `memory` and `pulls`.
pub(crate) async fn run(bin: &Path, others: &Others<'_>, filter: Option<&str>) -> Result<bool> {
    let Others { beside, endpoints, containerd } = others;
    let fixture = Arc::new(Fixture::new(bin).await?);
    let mut builds = vec![(String::from("copepod"), bin.to_owned())];
    for given in *beside {
        let (name, dir) =
            given.split_once('=').with_context(|| format!("--beside {given}: expected name=directory"))?;
        builds.push((name.to_owned(), PathBuf::from(dir)));
    }
    let (mut nodes, mut all) = (Vec::new(), Vec::new());
    for (name, bin) in builds {
        let bin = fresh(&bin, &fixture.work().join(format!("bin-{name}")))?;
        let options = Options { bin: Some(bin), ..Options::default() };
        let node = Arc::new(Node::start(&fixture, &options).await?);
        all.push(Endpoint { name, ctx: Context::new(fixture.clone(), node.clone(), "bench") });
        nodes.push(node);
    }
    for given in *endpoints {
        let (name, rest) = given
            .split_once('=')
            .with_context(|| format!("--endpoint {given}: expected name=socket[,certs.d]"))?;
        let (socket, certs) =
            rest.split_once(',').map_or((rest, None), |(socket, certs)| (socket, Some(PathBuf::from(certs))));
        let peer = Arc::new(Node::foreign(&fixture, &Peer { socket: PathBuf::from(socket), certs })?);
        all.push(Endpoint { name: name.to_owned(), ctx: Context::new(fixture.clone(), peer, "bench") });
    }
    for endpoint in &all {
        endpoint
            .ctx
            .need(&Fixture::image("busybox"))
            .await
            .with_context(|| format!("{}: image", endpoint.name))?;
    }
    let outcome =
        with_containerd(&fixture, &all, containerd.filter(|_| wanted(filter, "pulls")), filter).await;
    drop(all);
    let cleaned = end_all(&nodes).await;
    let table = outcome?;
    cleaned?;
    println!("{table}");
    for node in nodes {
        node.wipe();
    }
    Ok(true)
}

/// Empties and ends the builds' daemons. All are tried.
async fn end_all(nodes: &[Arc<Node>]) -> Result<()> {
    let mut cleaned = Ok(());
    for node in nodes {
        let emptied = node.empty().await;
        let ended = node.terminate().await;
        if ended.is_err() {
            node.raze();
        }
        cleaned = cleaned.and(emptied).and(ended);
    }
    cleaned
}

/// Whether a group is measured: its name contains `filter`.
fn wanted(filter: Option<&str>, group: &str) -> bool {
    filter.is_none_or(|part| group.contains(part))
}

/// Measures, with a containerd for pulls if its program is given.
async fn with_containerd(
    fixture: &Arc<Fixture>,
    all: &[Endpoint],
    program: Option<&Path>,
    filter: Option<&str>,
) -> Result<Table> {
    let Some(program) = program else { return measure(all, None, filter).await };
    let running = containerd::Containerd::start(program, fixture.work()).await?;
    let node = Arc::new(Node::foreign(fixture, running.peer())?);
    let ctx = Context::new(fixture.clone(), node, "bench");
    let for_pulls = Endpoint { name: format!("containerd {}", running.version()), ctx };
    measure(all, Some(&for_pulls), filter).await
}

/// Runs the measurements, interleaved over the endpoints: all, or those of the groups whose name contains `filter`.
async fn measure(all: &[Endpoint], for_pulls: Option<&Endpoint>, filter: Option<&str>) -> Result<Table> {
    let mut table = Table::new(all.iter().chain(for_pulls).map(|e| e.name.clone()).collect());
    let wanted = |group: &str| wanted(filter, group);
    if wanted("pods") {
        pods(all, &mut table).await?;
    }
    if wanted("execs") {
        execs(all, &mut table).await?;
    }
    if wanted("logs") {
        logs(all, &mut table).await?;
    }
    if wanted("streams") {
        streams::measure(all, &mut table).await?;
    }
    if wanted("memory") {
        memory::measure(all, &mut table).await?;
    }
    if wanted("pulls") {
        pulls::measure(&all.iter().chain(for_pulls).collect::<Vec<_>>(), &mut table).await?;
    }
    Ok(table)
}

async fn pods(all: &[Endpoint], table: &mut Table) -> Result<()> {
    let (mut ready, mut down) = (
        Measure::new("pod ready, CNI plugins", 60.0, Unit::Ms),
        Measure::new("teardown, CNI plugins", 0.0, Unit::Ms),
    );
    let (mut ready_host, mut down_host) = (
        Measure::new("pod ready, host network", 18.0, Unit::Ms),
        Measure::new("teardown, host network", 0.0, Unit::Ms),
    );
    for round in 0..ROUNDS {
        for e in turn(all, round) {
            let (up, gone) =
                load::pod(&e.ctx, true).await.with_context(|| format!("{}: pod on plugins", e.name))?;
            ready.add(&e.name, up);
            down.add(&e.name, gone);
            let (up, gone) = load::pod(&e.ctx, false)
                .await
                .with_context(|| format!("{}: pod on the host network", e.name))?;
            ready_host.add(&e.name, up);
            down_host.add(&e.name, gone);
        }
    }
    for m in [ready, down, ready_host, down_host] {
        table.push(m);
    }
    let mut rate = Measure::new("pods/s, 8 at once, CNI plugins", 25.0, Unit::PerSecond);
    for round in 0..BURSTS {
        for e in turn(all, round) {
            rate.add(
                &e.name,
                load::burst(&e.ctx, 8).await.with_context(|| format!("{}: 8 pods at once", e.name))?,
            );
        }
    }
    table.push(rate);
    Ok(())
}

async fn execs(all: &[Endpoint], table: &mut Table) -> Result<()> {
    let mut hot = Measure::new("ExecSync true, hot", 4.0, Unit::Ms);
    let mut idle = Measure::new("ExecSync true, after 100 ms idle", 6.0, Unit::Ms);
    let mut pods = Vec::new();
    for e in all {
        let pod = e.ctx.pod().await?;
        let id = e.ctx.start(&pod, &e.ctx.sleeper("main")).await?;
        pods.push((e, pod, id));
    }
    for round in 0..EXECS {
        for (e, _, id) in turn(&pods, round) {
            hot.add(&e.name, load::exec(&e.ctx, id).await?);
        }
    }
    for round in 0..EXECS / 2 {
        for (e, _, id) in turn(&pods, round) {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            idle.add(&e.name, load::exec(&e.ctx, id).await?);
        }
    }
    for (e, pod, _) in pods {
        e.ctx.cri.drop_pod(&pod.id).await?;
    }
    table.push(hot);
    table.push(idle);
    Ok(())
}

async fn logs(all: &[Endpoint], table: &mut Table) -> Result<()> {
    for (name, line, want) in
        [("log throughput, 100-byte lines", 100, 250.0), ("log throughput, 4000-byte lines", 4000, 350.0)]
    {
        let mut measure = Measure::new(name, want, Unit::MibPerSecond);
        for round in 0..LOGS {
            for e in turn(all, round) {
                measure.add(
                    &e.name,
                    load::log(&e.ctx, line).await.with_context(|| format!("{}: {name}", e.name))?,
                );
            }
        }
        table.push(measure);
    }
    Ok(())
}
