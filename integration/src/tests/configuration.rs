//! The configuration: reports of faults, drop-in files, reload.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::start::outcome;
use crate::context::Context;
use crate::expect::ensure;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::PodExt as _;
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(every_fault_is_reported_with_its_file_and_line).ours(),
        test!(drop_in_files_are_laid_over_the_main_file).own(),
        test!(reload_changes_what_can_change).own(),
        test!(reload_with_a_fault_changes_nothing).own(),
    ]
}

/// Runs `copepod config check` on the file at `path`: whether it succeeded, and its output.
async fn check(cx: &Context, path: &Path) -> Result<(bool, String)> {
    outcome(cx, &["config", "check", &path.display().to_string()]).await
}

async fn every_fault_is_reported_with_its_file_and_line(cx: Context) -> Result<()> {
    let dir = cx.volume("faults")?;
    let (main, drop_in) = (dir.join("config.toml"), dir.join("conf.d/10-more.toml"));
    fs::create_dir(dir.join("conf.d"))?;
    fs::write(&main, "[network]\nmax_paralel = 3\ntimeout_seconds = \"5\"\n\n[handlers.runc]\n")?;
    fs::write(&drop_in, "\n[log]\nlevel = \"loud\"\n")?;
    let (good, said) = check(&cx, &main).await?;
    let (main, drop_in) = (main.display(), drop_in.display());
    for wanted in [
        format!("{main}, line 2: network.max_paralel: unknown key; the nearest name is network.max_parallel"),
        format!(
            "{main}, line 3: network.timeout_seconds: invalid type: string \"5\", expected a whole number"
        ),
        format!("{main}, line 5: handlers.runc: runtime handlers are not supported yet"),
        format!("{drop_in}, line 3: log.level: \"loud\" must be one of error, warn, info, debug, trace"),
    ] {
        ensure!(said.contains(&wanted), "{wanted:?} is not in:\n{said}");
    }
    ensure!(!good && said.contains("4 faults"), "`config check` succeeded: {good}, and said: {said}");
    fs::write(dir.join("config.toml"), "[network]\nmax_parallel = 3\n")?;
    fs::write(dir.join("conf.d/10-more.toml"), "")?;
    let (good, said) = check(&cx, &dir.join("config.toml")).await?;
    ensure!(good && said.contains("no faults"), "`config check` succeeded: {good}, and said: {said}");
    Ok(fs::remove_dir_all(dir)?)
}

/// Writes a drop-in file for the node's daemon.
pub(super) fn drop_in(cx: &Context, name: &str, text: &str) -> Result<PathBuf> {
    let folder = cx.node.paths.config.with_file_name("conf.d");
    fs::create_dir_all(&folder)?;
    let path = folder.join(name);
    fs::write(&path, text)?;
    Ok(path)
}

/// The effective configuration, as verbose Status shows it.
async fn effective(cx: &Context) -> Result<Value> {
    let status = cx.cri.status(true).await?;
    Ok(serde_json::from_str(status.info.get("config").context("Status shows no configuration")?)?)
}

/// Sends SIGHUP and waits for a new log line with `words`.
async fn reload(cx: &Context, words: &str) -> Result<()> {
    let count = || cx.node.last_log(10_000).lines().filter(|line| line.contains(words)).count();
    let before = count();
    proc::signal(cx.node.pid()?, Signal::SIGHUP)?;
    wait::until(&format!("the daemon to say {words:?}"), secs(10), || async {
        Ok((count() > before).then_some(()))
    })
    .await
}

async fn drop_in_files_are_laid_over_the_main_file(cx: Context) -> Result<()> {
    let before = effective(&cx).await?;
    drop_in(&cx, "20-late.toml", "[network]\nmax_parallel = 5\n")?;
    drop_in(&cx, "10-early.toml", "[network]\nmax_parallel = 4\n[image]\nmax_parallel_downloads = 2\n")?;
    drop_in(&cx, "30-other-ending.toml.bak", "nonsense")?;
    cx.node.restart().await?;
    let after = effective(&cx).await?;
    ensure!(
        after["network"]["maxParallel"] == 5 && after["image"]["maxParallelDownloads"] == 2,
        "the effective configuration is {after}"
    );
    ensure!(
        after["network"]["confDir"] == before["network"]["confDir"],
        "a key of the main file alone is lost: {after}"
    );
    Ok(())
}

/// Whether kubelet is told not to remove an image.
async fn pinned(cx: &Context, name: &str) -> Result<bool> {
    Ok(cx.cri.image(name).await?.context("the image is not there")?.pinned)
}

async fn reload_changes_what_can_change(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("main")).await?;
    let pid = cx.pid(&id).await?;
    // The log level.
    let answered = || cx.node.last_log(10_000).contains("call=\"Version\"");
    cx.cri.version().await?;
    ensure!(!answered(), "calls are logged at info");
    drop_in(&cx, "10-log.toml", "[log]\nlevel = \"debug\"\n")?;
    reload(&cx, "configuration reloaded").await?;
    cx.cri.version().await?;
    wait::until_true("a call to be logged", secs(10), answered).await?;
    // The folder with the configuration of registries.
    let name = "moved.test/busybox:1";
    ensure!(cx.cri.pull(name).await.is_err(), "{name} can be pulled without a configuration");
    let certs = cx.node.paths.dir.join("moved.d");
    fs::create_dir_all(certs.join("moved.test"))?;
    let server = format!("server = \"http://127.0.0.1:{}\"\n", cx.fixture.registry.port);
    fs::write(certs.join("moved.test/hosts.toml"), server)?;
    let other = drop_in(&cx, "20-certs.toml", &format!("[image]\ncerts_dir = \"{}\"\n", certs.display()))?;
    reload(&cx, "configuration reloaded").await?;
    cx.cri.pull(name).await.context("from a registry that a reload made known")?;
    // Which images are pinned.
    ensure!(!pinned(&cx, name).await?, "an image is pinned by default");
    let pins = drop_in(&cx, "25-pinned.toml", "[image]\npinned = [\"moved.test/*\"]\n")?;
    reload(&cx, "changed=\"image.pinned\"").await?;
    ensure!(pinned(&cx, name).await?, "the image is not pinned");
    fs::remove_file(pins)?;
    reload(&cx, "changed=\"image.pinned\"").await?;
    ensure!(!pinned(&cx, name).await?, "the image is still pinned");
    // The time limit of CNI plugins.
    cx.node.network.script("slow", "exec sleep 100")?;
    cx.node.network.uninstall()?;
    cx.node.network.conflist("10-slow.conflist", &serde_json::json!([{"type": "slow"}]))?;
    drop_in(&cx, "30-network.toml", "[network]\ntimeout_seconds = 1\n")?;
    reload(&cx, "configuration reloaded").await?;
    let begun = std::time::Instant::now();
    let refused = cx.cri.run_pod(&cx.pod_config().own_network()).await;
    ensure!(
        refused.is_err() && begun.elapsed() < wait::longer(secs(5)),
        "with a plugin that hangs and a limit of 1 s: {refused:?} after {:?}",
        begun.elapsed()
    );
    // A key that needs a restart is logged and not applied.
    drop_in(&cx, "40-restart.toml", "[network]\nmax_parallel = 3\n")?;
    reload(&cx, "need a restart").await?;
    let log = cx.node.last_log(3);
    ensure!(
        log.contains("network.max_parallel"),
        "the log does not name the key that needs a restart: {log}"
    );
    let now = effective(&cx).await?;
    ensure!(
        now["network"]["maxParallel"] == 16 && now["network"]["timeoutSeconds"] == 1,
        "the effective configuration is {now}"
    );
    ensure!(now["image"]["certsDir"] == certs.display().to_string(), "the effective configuration is {now}");
    // Without its file, a key has the main file's value again.
    fs::remove_file(other)?;
    reload(&cx, "configuration reloaded").await?;
    let now = effective(&cx).await?;
    let wanted = cx.node.paths.certs.display().to_string();
    ensure!(now["image"]["certsDir"] == wanted, "the effective configuration is {now}");
    ensure!(cx.pid(&id).await? == pid && proc::alive(pid), "the container's process is not {pid} any more");
    // A plugin that works releases what is left.
    cx.node.network.script("slow", "cat > /dev/null; exit 0")?;
    cx.node.emptied().await
}

/// Creates at `path` something whose refusal contains `words`.
fn unreadable(path: &Path, words: &str) -> Result<()> {
    match words {
        "nested" => fs::write(path, format!("x.y = {}1{}", "{ a.b = ".repeat(70), " }".repeat(70)))?,
        "UTF-8" => fs::write(path, b"# \xff")?,
        "larger than" => fs::write(path, "#".repeat((1 << 20) + 1))?,
        "regular file" => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR)?,
        _ => std::os::unix::fs::symlink("/nowhere", path)?,
    }
    Ok(())
}

async fn reload_with_a_fault_changes_nothing(cx: Context) -> Result<()> {
    let before = effective(&cx).await?;
    drop_in(&cx, "10-good.toml", "[log]\nlevel = \"debug\"\n[network]\ntimeout_seconds = 7\n")?;
    let bad = drop_in(&cx, "20-bad.toml", "[log]\nfromat = \"json\"\n[image]\ncerts_dir = 5\n")?;
    reload(&cx, "the old one stays in effect").await?;
    let log = cx.node.last_log(20);
    for wanted in
        ["line 2: log.fromat: unknown key; the nearest name is log.format", "line 4: image.certs_dir"]
    {
        ensure!(log.contains(wanted) && log.contains("20-bad.toml"), "{wanted:?} is not in:\n{log}");
    }
    let now = effective(&cx).await?;
    ensure!(now == before, "the effective configuration was {before} and is {now}");
    // A file that cannot be read changes nothing either.
    for words in ["nested", "UTF-8", "larger than", "regular file", "No such file"] {
        fs::remove_file(&bad)?;
        unreadable(&bad, words)?;
        reload(&cx, words).await?;
        wait::until_true("the reload to be refused", secs(10), || {
            cx.node.last_log(1).contains("the old one stays in effect")
        })
        .await?;
        let now = effective(&cx).await?;
        ensure!(now == before, "{words}: the effective configuration was {before} and is {now}");
    }
    fs::remove_file(bad)?;
    reload(&cx, "configuration reloaded").await?;
    let now = effective(&cx).await?;
    ensure!(
        now["log"]["level"] == "debug" && now["network"]["timeoutSeconds"] == 7,
        "the effective configuration is {now}"
    );
    Ok(())
}
