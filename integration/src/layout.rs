//! `integration layout`: writes `runtime/layout.ld`, which places together what an idle daemon executes, and behind it what
//! a daemon with pods executes.

mod patterns;
mod symbols;
pub(crate) mod trace;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::expect::ensure;
use crate::{runner, tests, wait};

/// Tests in which the daemon does what it does on every node all day: pods, containers, probes, statistics.
const DUTIES: &str = "pod::,exec::";
/// Time after which an idle daemon has done all that it does.
const IDLE: u64 = 12;

/// The arguments of `integration layout`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Directory with copepod, with its symbols, and the other programs that tests need.
    #[arg(long)]
    bin_dir: PathBuf,
    /// The linker script to write.
    #[arg(long)]
    script: PathBuf,
}

/// Traces a daemon without work, then one with the work of tests, and writes the script. False if a test failed.
pub(crate) async fn run(arguments: &Arguments) -> Result<bool> {
    let program = arguments.bin_dir.join("copepod");
    let functions = symbols::functions(&program)?;
    let work = tempfile::tempdir().context("temporary folder")?;
    let bin = traced(&arguments.bin_dir, &functions, work.path())?;
    idle(&bin, work.path()).await?;
    let idle = executed(work.path())?;
    let passed = runner::run(tests::all(), &bin, Some(DUTIES), None).await?;
    let busy = executed(work.path())?;
    ensure!(
        idle.len() > 500 && busy.len() > idle.len(),
        "traced {} and {} functions",
        idle.len(),
        busy.len()
    );
    let start = patterns::find(&functions, &idle, &[]);
    let pods = patterns::find(&functions, &busy, &start);
    fs::write(&arguments.script, script(&start, &pods)).context("write the script")?;
    println!(
        "{} of {} functions in an idle daemon, {} in one with pods; {} and {} patterns",
        idle.len(),
        functions.len(),
        busy.len(),
        start.len(),
        pods.len()
    );
    Ok(passed)
}

/// A folder with what `bin` has, and instead of the daemon a script that traces it.
fn traced(bin: &Path, functions: &[symbols::Function], work: &Path) -> Result<PathBuf> {
    let addresses: String = functions.iter().map(|function| format!("{:x}\n", function.address)).collect();
    let (list, record, folder) = (work.join("functions"), work.join("record"), work.join("bin"));
    fs::write(&list, addresses)?;
    fs::create_dir(&record)?;
    fs::create_dir(&folder)?;
    let bin = fs::canonicalize(bin)?;
    for entry in fs::read_dir(&bin)? {
        let entry = entry?;
        std::os::unix::fs::symlink(entry.path(), folder.join(entry.file_name()))?;
    }
    let daemon = folder.join("copepod");
    fs::remove_file(&daemon)?;
    let me = std::env::current_exe()?;
    let text = format!(
        "#!/bin/sh\nexec {} trace --program {} --functions {} --record {} -- \"$@\"\n",
        me.display(),
        bin.join("copepod").display(),
        list.display(),
        record.display()
    );
    fs::write(&daemon, text)?;
    fs::set_permissions(&daemon, fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// Runs a daemon without work, and kills it: what it executes to end is not part of an idle daemon.
async fn idle(bin: &Path, work: &Path) -> Result<()> {
    let text = format!(
        "root = \"{0}/root\"\nstate = \"{0}/state\"\n[network]\nconf_dir = \"{0}/cni\"\n",
        work.display()
    );
    let config = work.join("config.toml");
    fs::write(&config, text)?;
    fs::create_dir(work.join("cni"))?;
    let mut daemon =
        Command::new(bin.join("copepod")).arg("--config").arg(&config).spawn().context("start")?;
    tokio::time::sleep(wait::secs(IDLE)).await;
    let ended = daemon.try_wait()?;
    daemon.kill()?;
    daemon.wait()?;
    ensure!(ended.is_none(), "the daemon ended by itself: {ended:?}");
    Ok(())
}

/// The addresses of all functions that were executed so far.
fn executed(work: &Path) -> Result<BTreeSet<u64>> {
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(work.join("record"))? {
        let text = fs::read_to_string(entry?.path())?;
        // The last line may be incomplete.
        let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        all.extend(lines.filter_map(|line| u64::from_str_radix(line, 16).ok()));
    }
    Ok(all)
}

/// What is written at the beginning of the script.
const HEAD: &str = "\
/* Written by `make layout`. Places together what an idle daemon executes, and behind it what a daemon with pods executes.
 * The kernel maps code in pieces of 64 KiB around what is executed, so an idle daemon would otherwise have nearly all of
 * its code mapped. Each function is a section and is matched by the beginning of its mangled name; a pattern that matches
 * nothing or too much loses some of the gain and nothing else. INSERT extends the linker's own layout (lld and GNU ld). */
";

fn script(start: &[String], pods: &[String]) -> String {
    let mut text = format!("{HEAD}SECTIONS\n{{\n");
    for (name, patterns) in [("start", start), ("pods", pods)] {
        let _ = write!(text, "  .text.{name} :\n  {{\n    *(");
        for (at, pattern) in patterns.iter().enumerate() {
            let indent = if at == 0 { "" } else { "\n      " };
            // Between the two, the compiler names the functions that it holds for unlikely. Names of C have too little to
            // be searched for in others.
            let between = if pattern.starts_with("_ZN") || pattern.starts_with("_R") { "*" } else { "" };
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
        let text = script(&[String::from("_ZN1a"), String::from("_ZN1b")], &[String::from("main")]);
        let end = text.strip_prefix(HEAD).unwrap_or_default();
        let expected = "SECTIONS\n{\n  .text.start :\n  {\n    *(.text.*_ZN1a*\n      .text.*_ZN1b*)\n  }\n  \
                        .text.pods :\n  {\n    *(.text.main*)\n  }\n}\nINSERT BEFORE .text;\n";
        assert_eq!(end, expected);
    }
}
