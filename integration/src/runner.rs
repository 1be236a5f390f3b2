//! Runs the tests one after the other, each followed by the census, and prints one line for each.

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

/// What a test returns.
pub(crate) type Work = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// One test.
#[derive(Clone)]
pub(crate) struct Test {
    /// `theme::name`.
    pub(crate) name: String,
    /// Its function.
    run: fn(Context) -> Work,
    /// Gets a node of its own with these options, instead of the shared one.
    own: Option<Options>,
    /// Longest time it may take.
    limit: Duration,
    /// Looks at copepod's own processes and files: left out for another runtime.
    ours: bool,
}

impl Test {
    /// A test on the shared node, at most a minute long. `module` is its `module_path!()`.
    pub(crate) fn new(module: &str, name: &str, run: fn(Context) -> Work) -> Self {
        let theme = module.rsplit("::").next().unwrap_or(module);
        Self { name: format!("{theme}::{name}"), run, own: None, limit: Duration::from_secs(60), ours: false }
    }

    /// On a node of its own.
    pub(crate) fn own(self) -> Self {
        self.own_with(Options::default())
    }

    /// On a node of its own with options.
    pub(crate) fn own_with(mut self, options: Options) -> Self {
        self.own = Some(options);
        self.ours = true;
        self
    }

    /// Only copepod can be asked this.
    pub(crate) fn ours(mut self) -> Self {
        self.ours = true;
        self
    }

    /// May take up to this many seconds.
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

fn selected(all: Vec<Test>, filter: Option<&str>) -> Vec<Test> {
    all.into_iter().filter(|t| filter.is_none_or(|f| t.name.contains(f))).collect()
}

/// Runs all that match; `Ok(false)` if any failed.
pub(crate) async fn run(
    all: Vec<Test>,
    bin: &Path,
    filter: Option<&str>,
    peer: Option<Peer>,
) -> Result<bool> {
    let begun = Instant::now();
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
    for test in selected(all, filter) {
        if foreign && test.ours {
            left_out += 1;
            continue;
        }
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
        println!("FAIL  the shared node's end\n    {e:#}");
        failed.push(String::from("the shared node's end"));
    }
    crate::cgroup::destroy(&crate::shapes::CGROUP_PARENT);
    for name in &failed {
        println!("failed: {name}");
    }
    if left_out > 0 {
        println!(
            "{left_out} left out: they look at copepod's own processes, which another runtime does not have"
        );
    }
    println!("{passed} passed, {} failed, in {:.0} s", failed.len(), begun.elapsed().as_secs_f32());
    Ok(failed.is_empty())
}

async fn one(test: &Test, fixture: &Arc<Fixture>, shared: &mut Option<Arc<Node>>) -> Result<()> {
    // Before the own node starts: everything of it, the daemon included, must be gone at the end.
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
    // In a task of its own: a panic of the test is one failed test.
    let task = tokio::spawn((test.run)(cx));
    let abort = task.abort_handle();
    let outcome = match tokio::time::timeout(test.limit, task).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(e)) => Err(anyhow!("the test panicked: {e}")),
        Err(_) => {
            abort.abort();
            Err(anyhow!("not over after {:?}", test.limit))
        }
    };
    let outcome = outcome.map_err(|e| with_log(e, &node));
    let clean = async {
        if node.pid().is_err() && !node.is_foreign() {
            node.launch().await?;
        }
        tokio::time::timeout(Duration::from_secs(60), node.empty())
            .await
            .context("clean-up took over 60 s")??;
        before.settle(Some(&node)).await
    }
    .await
    .context("after the test");
    let own = test.own.is_some();
    let clean = match clean {
        Ok(()) if own => finish(&node).await.context("end of the node"),
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

/// Ends a node's daemon the ordinary way and removes its folders.
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
    if log.is_empty() { error } else { anyhow!("{error:#}\ncopepod's last words:\n{log}") }
}
