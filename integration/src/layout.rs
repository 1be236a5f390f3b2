//! `integration layout`: writes the linker scripts `runtime/layout.ld`, which places together what an idle daemon executes,
//! behind it what a daemon with pods executes, and behind that what it does less often, and `runtime/shim/layout.ld`, which
//! places together what a shim executes.

mod patterns;
mod symbols;
pub(crate) mod trace;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::context::Context;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::node::{Node, Options};
use crate::shapes::PodExt as _;
use crate::{runner, tests, wait};

/// Tests in which the daemon does what it does on every node, if not all the time: pulls, failures, clean-up.
const DUTIES: &str = "pod::,exec::";
/// Number of rounds of a kubelet's requests, one in a second, after which an idle daemon has done all that it does.
const ROUNDS: usize = 12;

/// What one more pattern must save, in bytes ([`patterns::find`]): less than a page, for what is executed all the time.
const WORTH: u64 = 1024;
/// The same for what is executed rarely: a page.
const RARE_WORTH: u64 = 4096;
/// The same for the shim, which executes so little that smaller pieces count.
const SHIM_WORTH: u64 = 128;

/// The arguments of `integration layout`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Directory with copepod and copepod-shim, with their symbols, and the other programs that tests need.
    #[arg(long)]
    bin_dir: PathBuf,
    /// The linker script of the daemon to write.
    #[arg(long)]
    script: PathBuf,
    /// The linker script of the shim to write.
    #[arg(long)]
    shim_script: PathBuf,
}

/// Traces a daemon without pods and its first shims, then a daemon with the work of tests, and writes the scripts. False if
/// a test failed.
pub(crate) async fn run(arguments: &Arguments) -> Result<bool> {
    let bin = fs::canonicalize(&arguments.bin_dir)?;
    let work = tempfile::tempdir().context("temporary folder")?;
    let daemon = Binary::new(&bin, "copepod", work.path())?;
    let shim = Binary::new(&bin, "copepod-shim", work.path())?;
    let traced = work.path().join("bin");
    fs::create_dir(&traced)?;
    for entry in fs::read_dir(&bin)? {
        let entry = entry?;
        std::os::unix::fs::symlink(entry.path(), traced.join(entry.file_name()))?;
    }
    let (idle, pods) = without_and_with_pods(&traced, &daemon, &shim).await?;
    install_tracer(&traced, &daemon, None)?;
    let passed = runner::run(tests::all(), &traced, Some(DUTIES), None).await?;
    let busy = daemon.executed()?;
    let grows = idle.len() > 500 && pods.len() > idle.len() && busy.len() > pods.len();
    ensure!(grows, "traced {}, {} and {} functions", idle.len(), pods.len(), busy.len());
    let (mut known, mut sections) = (Vec::new(), Vec::new());
    for (name, executed, worth) in [("start", idle, WORTH), ("pods", pods, WORTH), ("rare", busy, RARE_WORTH)]
    {
        let found = patterns::find(&daemon.functions, &executed, &known, worth);
        let (count, all) = (executed.len(), daemon.functions.len());
        println!("{name}: {count} of {all} functions of the daemon so far; {} patterns", found.len());
        known.extend(found.iter().cloned());
        sections.push((name, found));
    }
    fs::write(&arguments.script, script(DAEMON, &sections)).context("write the script")?;
    let executed = shim.executed()?;
    ensure!(executed.len() > 200, "traced {} functions of shims", executed.len());
    let mut found = patterns::find(&shim.functions, &executed, &[], SHIM_WORTH);
    // The functions of the static C library are not sections, so their names match nothing.
    found.retain(|pattern| is_rust(pattern));
    println!("{} of {} functions of a shim; {} patterns", executed.len(), shim.functions.len(), found.len());
    fs::write(&arguments.shim_script, script(SHIM, &[("start", found)]))
        .context("write the shim's script")?;
    Ok(passed)
}

/// A binary that is traced.
struct Binary {
    path: PathBuf,
    functions: Vec<symbols::Function>,
    /// A file with the addresses of its functions.
    list: PathBuf,
    /// A folder for the addresses of those that are executed.
    record: PathBuf,
}

impl Binary {
    fn new(bin: &Path, name: &str, work: &Path) -> Result<Self> {
        let path = bin.join(name);
        let functions = symbols::functions(&path)?;
        let (list, record) = (work.join(format!("{name}.functions")), work.join(format!("{name}.record")));
        let addresses: String =
            functions.iter().map(|function| format!("{:x}\n", function.address)).collect();
        fs::write(&list, addresses)?;
        fs::create_dir(&record)?;
        Ok(Self { path, functions, list, record })
    }

    /// The addresses of all functions that were executed so far.
    fn executed(&self) -> Result<BTreeSet<u64>> {
        let mut all = BTreeSet::new();
        for entry in fs::read_dir(&self.record)? {
            let text = fs::read_to_string(entry?.path())?;
            // The last line may be incomplete.
            let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            all.extend(lines.filter_map(|line| u64::from_str_radix(line, 16).ok()));
        }
        Ok(all)
    }
}

/// Whether a pattern is for mangled names.
fn is_rust(pattern: &str) -> bool {
    pattern.starts_with("_ZN") || pattern.starts_with("_R")
}

/// Puts a script in the daemon's place that runs it traced, and its shims too if they are given.
fn install_tracer(bin: &Path, daemon: &Binary, shim: Option<&Binary>) -> Result<()> {
    let options = |before: &str, program: &Binary| {
        let Binary { path, list, record, .. } = program;
        let (path, list, record) = (path.display(), list.display(), record.display());
        (format!("{path}"), format!("--{before}functions {list} --{before}record {record}"))
    };
    let (path, rest) = options("", daemon);
    let shim = shim.map(|shim| options("shim-", shim)).map(|(path, rest)| format!(" --shim {path} {rest}"));
    let me = std::env::current_exe()?;
    let text = format!(
        "#!/bin/sh\nexec {} trace --program {path} {rest}{} -- \"$@\"\n",
        me.display(),
        shim.unwrap_or_default()
    );
    let place = bin.join("copepod");
    fs::remove_file(&place)?;
    fs::write(&place, text)?;
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Traces a daemon that has an image and a network, and its shims: first without pods, under kubelet's requests, then with
/// pods. Returns what the daemon had executed before the first pod, and after the last one was removed. The image is pulled by
/// an untraced daemon before, because pulls are rare.
async fn without_and_with_pods(
    bin: &Path,
    daemon: &Binary,
    shim: &Binary,
) -> Result<(BTreeSet<u64>, BTreeSet<u64>)> {
    let fixture = Arc::new(Fixture::new(bin).await?);
    let node = Arc::new(Node::start(&fixture, &Options::default()).await?);
    // Dropped after the node, whose folders are in its work folder.
    let ctx = Context::new(Arc::clone(&fixture), Arc::clone(&node), "layout");
    ctx.need(&Fixture::image("busybox")).await?;
    node.terminate().await?;
    install_tracer(bin, daemon, Some(shim))?;
    node.launch().await?;
    for _ in 0..ROUNDS {
        ctx.cri.pods(None).await?;
        ctx.cri.containers(None).await?;
        ctx.cri.status(false).await?;
        ctx.cri.images().await?;
        ctx.cri.image_fs().await?;
        ctx.cri.list_stats(None).await?;
        tokio::time::sleep(wait::secs(1)).await;
    }
    let idle = daemon.executed()?;
    for config in [ctx.pod_config(), ctx.pod_config().own_network()] {
        let pod = ctx.pod_of(config).await?;
        let id = ctx.start(&pod, &ctx.shell("writer", "while echo line; do sleep 0.2; done")).await?;
        ctx.exec_works(&id).await?;
        ctx.cri.list_stats(None).await?;
        ctx.cri.list_pod_stats(None).await?;
        tokio::time::sleep(wait::secs(1)).await;
    }
    node.empty().await?;
    let pods = daemon.executed()?;
    // Kills the tracer, and with it the daemon: what it executes to end is not recorded.
    node.kill9()?;
    node.wipe();
    Ok((idle, pods))
}

/// What is written at the beginning of the daemon's script.
const DAEMON: &str = "\
/* Written by `make layout`. Places together what an idle daemon executes, behind it what a daemon with pods executes, and
 * behind that what it does less often. The kernel maps code in pieces of 64 KiB around what is executed, so an idle daemon
 * would otherwise have nearly all of its code mapped. Each function is a section and is matched by the beginning of its
 * mangled name; a pattern that matches nothing or too much loses some of the gain and nothing else. INSERT extends the
 * linker's own layout (lld and GNU ld). */
";
/// The same for the shim's.
const SHIM: &str = "\
/* Written by `make layout`. Places together what a shim executes, without the workers that it forks: see the daemon's. The C
 * library is not ordered: its functions are not sections. */
";

/// A linker script that places what these patterns match, in this order, before all other code.
fn script(head: &str, sections: &[(&str, Vec<String>)]) -> String {
    let mut text = format!("{head}SECTIONS\n{{\n");
    for (name, patterns) in sections {
        let _ = write!(text, "  .text.{name} :\n  {{\n    *(");
        for (at, pattern) in patterns.iter().enumerate() {
            let indent = if at == 0 { "" } else { "\n      " };
            // Between the two, the compiler names the functions that it holds for unlikely. Names of C have too little to
            // be searched for in others.
            let between = if is_rust(pattern) { "*" } else { "" };
            let _ = write!(text, "{indent}.text.{between}{pattern}*");
        }
        text.push_str(")\n  }\n");
    }
    text.push_str("}\nINSERT BEFORE .text;\n");
    text
}

#[cfg(test)]
mod tests_of_script {
    use super::*;

    #[test]
    fn scripts_name_every_pattern() {
        let (start, pods) = (vec![String::from("_ZN1a"), String::from("_ZN1b")], vec![String::from("main")]);
        let text = script(DAEMON, &[("start", start), ("pods", pods)]);
        let end = text.strip_prefix(DAEMON).unwrap_or_default();
        let expected = "SECTIONS\n{\n  .text.start :\n  {\n    *(.text.*_ZN1a*\n      .text.*_ZN1b*)\n  }\n  \
                        .text.pods :\n  {\n    *(.text.main*)\n  }\n}\nINSERT BEFORE .text;\n";
        assert_eq!(end, expected);
    }
}
