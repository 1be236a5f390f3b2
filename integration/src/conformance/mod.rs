//! `make conformance`: runs critest of cri-tools, a binary that the caller has, on copepod: with SPDY and then with
//! WebSocket for its streaming specs, in a random order, and compares every spec with `conformance/expected.txt`.

mod expected;
mod images;
mod report;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use crate::census::Census;
use crate::fixture::Fixture;
use crate::node::{Node, Options};
use expected::Scope;
pub(crate) use expected::missing;
use report::{Outcome, Spec};

/// Lines of a failure that are printed; all are in critest's report.
const MAX_LINES: usize = 6;

/// The seed of critest's order of specs.
#[derive(Debug, Clone, Copy)]
struct Order(u32);

impl Order {
    /// The given one, or another for every run.
    fn new(given: Option<u32>) -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        Self(given.unwrap_or_else(now))
    }
}

/// The protocol of critest's streaming specs.
#[derive(Debug, Clone, Copy)]
enum Transport {
    Spdy,
    WebSocket,
}

impl Transport {
    /// critest's flags for it.
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Spdy => &[],
            Self::WebSocket => &["--websocket-exec", "--websocket-attach", "--websocket-portforward"],
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spdy => "spdy",
            Self::WebSocket => "websocket",
        })
    }
}

/// How critest is run.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// Its binary.
    pub(crate) critest: &'a Path,
    /// The seed of the order of its specs; another one for every run if `None`.
    pub(crate) seed: Option<u32>,
    /// Only specs with this in their names: all, if it is empty.
    pub(crate) focus: &'a str,
    /// Where its outputs and reports stay.
    pub(crate) reports: &'a Path,
}

/// Runs critest with both protocols; `Ok(false)` if a result differs from the file or something is left behind.
pub(crate) async fn run(bin: &Path, request: &Request<'_>) -> Result<bool> {
    let Request { critest, seed, focus, reports } = *request;
    let rows = expected::rows()?;
    let critest = fs::canonicalize(critest).with_context(|| format!("critest at {}", critest.display()))?;
    fs::create_dir_all(reports)?;
    let reports = fs::canonicalize(reports)?;
    let begun = Instant::now();
    let world = Census::take(None);
    // critest reaches host ports at 127.0.0.1, which portmap translates.
    fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").context("route_localnet")?;
    let fixture = Fixture::new(bin).await.context("prepare the fixtures")?;
    let names = images::push(&fixture).await?;
    let node = Node::start(&fixture, &Options::default()).await.context("start copepod")?;
    images::mirrors(&node.paths.certs, &fixture)?;
    println!(
        "copepod runs after {:.1} s, the registry has {names} of critest's images",
        begun.elapsed().as_secs_f32()
    );
    let order = Order::new(seed);
    let scope = Scope { apparmor: crate::proc::has_apparmor(), selinux: crate::proc::has_selinux(), focus };
    let mut good = true;
    for transport in [Transport::Spdy, Transport::WebSocket] {
        let start = Instant::now();
        println!("{transport}: critest in random order, seed {}", order.0);
        let specs = report::run(&critest, &node.paths.socket, transport, order, focus, &reports).await?;
        let differences = expected::differences(&rows, &specs, scope);
        print(transport, &specs, &differences, start);
        good &= differences.is_empty();
    }
    let clean = end(&node, &world).await;
    if let Err(e) = &clean {
        println!("FAIL  cleaning up the node\n    {e:#}");
    }
    println!("outputs and reports of critest are in {}", reports.display());
    Ok(good && clean.is_ok())
}

/// The summary of one run: how often critest skipped for which reason, and all differences.
fn print(transport: Transport, specs: &[Spec], differences: &[String], start: Instant) {
    let mut skipped: BTreeMap<&str, u32> = BTreeMap::new();
    let (mut passed, mut failed) = (0_u32, 0_u32);
    for spec in specs {
        match &spec.outcome {
            Outcome::Passed => passed += 1,
            Outcome::Failed(_) => failed += 1,
            Outcome::Skipped(reason) => *skipped.entry(reason).or_default() += 1,
        }
    }
    for (reason, count) in &skipped {
        println!("{transport}: {count} skipped: {reason}");
    }
    for difference in differences {
        let shown: Vec<&str> = difference.lines().take(MAX_LINES).collect();
        println!("FAIL  {}", shown.join("\n    "));
    }
    println!(
        "{transport}: {passed} passed, {failed} failed, {} skipped, {} not as expected, in {:.0} s",
        skipped.values().sum::<u32>(),
        differences.len(),
        start.elapsed().as_secs_f32()
    );
}

/// Stops copepod; nothing of it and of critest's pods may be left.
async fn end(node: &Node, world: &Census) -> Result<()> {
    let emptied = node.empty().await;
    let terminated = node.terminate().await;
    if emptied.is_err() || terminated.is_err() {
        node.raze();
    }
    node.wipe();
    emptied?;
    terminated?;
    world.settle(None).await
}
