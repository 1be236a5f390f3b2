//! Runs the tests one after another with a census after each, and prints one line per test.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use crate::census::Census;
use crate::context::Context;
use crate::fixture::Fixture;
use crate::node::{Node, Options, Peer};

/// The future of a test.
pub(crate) type Work = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// One test.
#[derive(Clone)]
pub(crate) struct Test {
    /// `theme::name`.
    pub(crate) name: String,
    /// The test's function.
    run: fn(Context) -> Work,
    /// Options of the test's own node; `None` uses the shared one.
    own: Option<Options>,
    /// Time limit of the test.
    limit: Duration,
    /// The test checks copepod's own processes or behaviour, so it is skipped for other runtimes.
    ours: bool,
}

impl Test {
    /// A test on the shared node with a limit of one minute. `module` is its `module_path!()`; the theme is the module
    /// below `tests`, also if its file is one of several in the theme's folder.
    pub(crate) fn new(module: &str, name: &str, run: fn(Context) -> Work) -> Self {
        let theme = module.split("::").skip_while(|part| *part != "tests").nth(1).unwrap_or(module);
        Self { name: format!("{theme}::{name}"), run, own: None, limit: Duration::from_secs(60), ours: false }
    }

    /// Runs on its own node.
    pub(crate) fn own(self) -> Self {
        self.own_with(Options::default())
    }

    /// Runs on its own node with options.
    pub(crate) fn own_with(mut self, options: Options) -> Self {
        self.own = Some(options);
        self.ours = true;
        self
    }

    /// Runs against copepod only.
    pub(crate) fn ours(mut self) -> Self {
        self.ours = true;
        self
    }

    /// Sets the time limit in seconds.
    pub(crate) fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }
}

/// `test!(name)`: the [`Test`] for an async function of the same module.
macro_rules! test {
    ($name:ident) => {
        $crate::runner::Test::new(module_path!(), stringify!($name), |cx| Box::pin($name(cx)))
    };
}
pub(crate) use test;

/// Prints the names.
pub(crate) fn list(all: Vec<Test>, filter: Option<&str>) {
    for test in selected(all, filter) {
        println!("{}", test.name);
    }
}

/// The tests whose name contains one of the filter's words, which have commas between them.
fn selected(all: Vec<Test>, filter: Option<&str>) -> Vec<Test> {
    let fits = |name: &str| filter.is_none_or(|words| words.split(',').any(|word| name.contains(word)));
    all.into_iter().filter(|test| fits(&test.name)).collect()
}

/// Runs all that match; `Ok(false)` if any failed.
#[expect(clippy::too_many_lines, reason = "the run from its first test to its summary")]
pub(crate) async fn run(
    all: Vec<Test>,
    bin: &Path,
    filter: Option<&str>,
    peer: Option<Peer>,
) -> Result<bool> {
    let begun = Instant::now();
    let tests = selected(all, filter);
    anyhow::ensure!(!tests.is_empty(), "no test's name contains {:?}", filter.unwrap_or_default());
    let fixture = Arc::new(Fixture::new(bin).await.context("prepare the fixtures")?);
    println!(
        "fixtures ready in {:.1} s: {} images pushed",
        begun.elapsed().as_secs_f32(),
        fixture.images.len()
    );
    let mut shared: Option<Arc<Node>> = match peer {
        Some(peer) => Some(Arc::new(Node::foreign(&fixture, &peer)?)),
        None => None,
    };
    let foreign = shared.is_some();
    let (mut passed, mut failed, mut left_out) = (0_u32, Vec::new(), 0_u32);
    let mut ran = Vec::new();
    for test in tests {
        if foreign && test.ours {
            left_out += 1;
            continue;
        }
        ran.push(test.name.clone());
        let start = Instant::now();
        let outcome = one(&test, &fixture, &mut shared).await;
        let seconds = start.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("ok    {:<52} {seconds:6.2} s", test.name);
            }
            Err(e) => {
                println!(
                    "FAIL  {:<52} {seconds:6.2} s\n    {}",
                    test.name,
                    format!("{e:#}").replace('\n', "\n    ")
                );
                failed.push(test.name.clone());
            }
        }
    }
    if let Some(node) = shared.take()
        && let Err(e) = finish(&node).await
    {
        println!("FAIL  stopping the shared node\n    {e:#}");
        failed.push(String::from("stopping the shared node"));
    }
    crate::cgroup::destroy(&crate::shapes::CGROUP_PARENT);
    if filter.is_none() && !foreign {
        for name in crate::conformance::missing(&ran)? {
            println!("FAIL  conformance/expected.txt names {name}, which did not run");
            failed.push(name);
        }
        for name in crate::coverage::missing(&ran) {
            println!("FAIL  docs/cri-coverage.md names {name}, which did not run");
            failed.push(name);
        }
    }
    for name in &failed {
        println!("failed: {name}");
    }
    if left_out > 0 {
        println!(
            "{left_out} skipped: they check copepod's own processes, which another runtime does not have"
        );
    }
    println!("{passed} passed, {} failed, in {:.0} s", failed.len(), begun.elapsed().as_secs_f32());
    Ok(failed.is_empty())
}

#[expect(clippy::too_many_lines, reason = "a test from its node to its census")]
async fn one(test: &Test, fixture: &Arc<Fixture>, shared: &mut Option<Arc<Node>>) -> Result<()> {
    // Taken before the test's own node starts: everything of that node must be gone at the end.
    let world = Census::take(None);
    let node = match (&test.own, shared.as_ref()) {
        (None, Some(node)) => Arc::clone(node),
        (None, None) => {
            let node =
                Arc::new(Node::start(fixture, &Options::default()).await.context("start the shared node")?);
            *shared = Some(Arc::clone(&node));
            node
        }
        (Some(options), _) => Arc::new(Node::start(fixture, options).await.context("start the node")?),
    };
    let before = Census::take(Some(&node));
    let cx = Context::new(Arc::clone(fixture), Arc::clone(&node), &test.name);
    // In its own task, so that a panic fails only this test.
    let task = tokio::spawn((test.run)(cx));
    let abort = task.abort_handle();
    let outcome = match crate::wait::timeout(test.limit, task).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(e)) => Err(anyhow!("the test panicked: {e}")),
        Err(_) => {
            abort.abort();
            Err(anyhow!("did not end within {:?}", test.limit))
        }
    };
    let outcome = outcome.map_err(|e| with_log(e, &node));
    let clean = async {
        if node.pid().is_err() && !node.is_foreign() {
            node.launch().await?;
        }
        crate::wait::timeout(Duration::from_secs(60), node.empty())
            .await
            .context("clean-up took over 60 s")??;
        before.settle(Some(&node)).await
    }
    .await
    .context("after the test");
    let own = test.own.is_some();
    let clean = match clean {
        Ok(()) if own => finish(&node).await.context("stop the node"),
        other => other,
    };
    let clean = match clean {
        Ok(()) if own => world.settle(None).await.context("after the node"),
        other => other,
    };
    if clean.is_err() {
        node.raze();
        if !own && !node.is_foreign() {
            *shared = None;
        }
    }
    outcome.and(clean.map_err(|e| with_log(e, &node)))
}

/// Stops a node's daemon with SIGTERM and removes its folders.
async fn finish(node: &Node) -> Result<()> {
    if node.is_foreign() {
        return Ok(());
    }
    let ended = node.terminate().await;
    node.wipe();
    ended
}

fn with_log(error: anyhow::Error, node: &Node) -> anyhow::Error {
    let log = node.last_log(6);
    if log.is_empty() { error } else { anyhow!("{error:#}\nend of copepod's log:\n{log}") }
}
