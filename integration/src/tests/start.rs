//! What must prevent a daemon from starting, and what must not: locks, sockets, folders, signals.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::context::Context;
use crate::cri::Cri;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::fuse::Stuck;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{self, PodExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(start_waits_for_a_daemon_that_is_stopping).own(),
        test!(running_daemon_of_an_early_build_is_detected).own(),
        test!(plugin_stuck_in_execve_holds_no_lock).own().limit(120),
        test!(hundred_kills_hundred_starts).own().limit(240),
        test!(second_daemon_on_the_same_socket_is_refused),
        test!(folders_of_other_software_are_not_changed).ours(),
        test!(other_signals_do_not_end_the_daemon).own(),
        test!(configuration_that_is_not_a_regular_file_is_refused).ours(),
    ]
}

/// The lock of the node's root as early builds of version 0.1.0 take it: flock(2), with the holder's pid in the file.
fn flock(root: &Path) -> Result<Flock<File>> {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(root.join("lock"))?;
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e).context("the lock is taken")
}

/// The service manager may start the next daemon while a stopping one still has the lock.
async fn start_waits_for_a_daemon_that_is_stopping(cx: Context) -> Result<()> {
    let file = cx.node.paths.root.join("lock");
    // The daemon waits two seconds for the lock. On a busy machine the lock may be released too late for that; such a
    // round shows nothing and is repeated.
    for _ in 0..5 {
        cx.node.terminate().await?;
        let lock = flock(&cx.node.paths.root)?;
        let release = async {
            let opened = || cx.node.pid().is_ok_and(|pid| proc::has_open(pid, &file));
            wait::until_true("the daemon to look at the lock", secs(15), opened).await?;
            let seen = Instant::now();
            tokio::time::sleep(Duration::from_millis(600)).await;
            drop(lock);
            Ok::<_, anyhow::Error>(seen.elapsed())
        };
        let (outcome, released) = tokio::join!(cx.node.launch(), release);
        let Err(gave_up) = outcome else { return Ok(()) };
        ensure!(
            released? > Duration::from_millis(1500),
            "the daemon did not wait for a lock that was released in time: {gave_up:#}"
        );
        drop(cx.node.kill9());
        cx.node.launch().await?;
    }
    bail!("the lock was released too late in five rounds: the machine is too busy for this test")
}

/// An early build that is still running uses flock(2) alone. Neither daemon may start beside the other.
async fn running_daemon_of_an_early_build_is_detected(cx: Context) -> Result<()> {
    ensure!(flock(&cx.node.paths.root).is_err(), "an older daemon would not see this one");
    cx.node.terminate().await?;
    let lock = flock(&cx.node.paths.root)?;
    let out = attempt(&cx, &["--config", &cx.node.paths.config.display().to_string()]).await?;
    drop(lock);
    ensure!(!out.status.success(), "it started beside an early build");
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(text.contains(&format!("pid {}", std::process::id())), "the holder is not named: {text}");
    cx.node.launch().await
}

/// Runs `copepod` with these arguments; it must exit by itself.
pub(super) async fn attempt(cx: &Context, args: &[&str]) -> Result<Output> {
    let run = tokio::process::Command::new(cx.fixture.bin.join("copepod"))
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    Ok(wait::timeout(secs(10), run).await.context("it has not exited within 10 s")??)
}

/// Like [`attempt`]: whether it succeeded, and its output.
pub(super) async fn outcome(cx: &Context, args: &[&str]) -> Result<(bool, String)> {
    let out = attempt(cx, args).await?;
    let text = [out.stdout, out.stderr].concat();
    Ok((out.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

/// The targets of a process's descriptors.
fn descriptors(pid: u32) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        names.push(std::fs::read_link(fd?.path())?.display().to_string());
    }
    Ok(names)
}

/// A plugin on a file system that hangs: its process is stuck between fork and execve, and cannot be killed. It must
/// not hold the daemon's locks, nor the connections of clients, which would wait for ever.
async fn plugin_stuck_in_execve_holds_no_lock(cx: Context) -> Result<()> {
    let host = cx.pod().await?;
    let id = cx.start(&host, &cx.sleeper("main")).await?;
    let stuck = Stuck::mount(&cx.node.network.bin_dir)?;
    cx.node.network.uninstall()?;
    cx.node.network.conflist("10-stuck.conflist", &json!([{"type": "stuck"}]))?;
    let daemon = cx.node.pid()?;
    let call = {
        let (cri, config) = (Cri::connect(&cx.node.paths.socket)?, cx.pod_config().own_network());
        tokio::spawn(async move { cri.run_pod(&config).await })
    };
    let child = wait::until("a child to hang in execve", secs(20), || async {
        let hanging = proc::children(daemon).into_iter().find(|it| it.state == 'D');
        Ok(hanging.filter(|_| stuck.is_read()))
    })
    .await?;
    let open = descriptors(child.pid)?;
    cx.node.kill9()?;
    ensure!(proc::alive(child.pid), "the plugin's process does not hang, so this test shows nothing");
    let told = wait::timeout(secs(5), call).await;
    let told = told.context("a client still waits for a daemon that is gone")??;
    ensure!(told.is_err(), "a pod was created without a network");
    ensure!(
        !open.is_empty() && open.iter().all(|it| it.starts_with("pipe:")),
        "a plugin that is being started has not only pipes open, but {open:?}"
    );
    let begun = Instant::now();
    let mut daemon = tokio::process::Command::new(cx.fixture.bin.join("copepod"))
        .arg("--config")
        .arg(&cx.node.paths.config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::options().append(true).open(&cx.node.paths.log)?)
        .kill_on_drop(true)
        .spawn()?;
    let started = daemon.id().context("the daemon has ended already")?;
    let ready =
        wait::until("the daemon to be ready beside a child that hangs in execve", secs(15), || async {
            ensure!(proc::alive(started), "the daemon ended: {}", cx.node.last_log(3));
            Ok((cx.node.last_log(1000).matches("ready socket").count() == 2).then_some(()))
        })
        .await;
    let took = begun.elapsed();
    let cri = Cri::connect(&cx.node.paths.socket)?;
    let served =
        wait::until("an exec by the new daemon", secs(if ready.is_ok() { 15 } else { 0 }), || async {
            Ok((cri.sh(&id, "echo in").await? == "in").then_some(()))
        })
        .await;
    ensure!(proc::alive(child.pid), "the plugin's process ended before the daemon was ready");
    daemon.kill().await?;
    drop(stuck);
    ready.and(served)?;
    ensure!(took < secs(5), "the start took {took:?}");
    wait::until_true("the plugin's process to end", secs(10), || !proc::alive(child.pid)).await?;
    // A working plugin allows the left-over lease to be released.
    cx.node.network.script("stuck", "cat > /dev/null; exit 0")?;
    cx.node.launch().await?;
    cx.node.emptied().await
}

/// The next daemon starts while children of the dead one have not called execve yet.
async fn hundred_kills_hundred_starts(cx: Context) -> Result<()> {
    const ROUNDS: u64 = 100;
    // A plugin without state: with the others, a kill during ADD would leave firewall rules.
    cx.node.network.script(
        "brief",
        "cat > /dev/null; [ \"$CNI_COMMAND\" = ADD ] && echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.9.8.7/24\"}]}'; exit 0",
    )?;
    cx.node.network.uninstall()?;
    cx.node.network.conflist("10-brief.conflist", &json!([{"type": "brief"}]))?;
    cx.need(&Fixture::image("busybox")).await?;
    let keep = cx.pod().await?;
    let id = cx.start(&keep, &cx.sleeper("main")).await?;
    let pid = cx.pid(&id).await?;
    let mut slowest = Duration::ZERO;
    for round in 0..ROUNDS {
        let calls: Vec<_> = (0..6)
            .map(|n| {
                let config = shapes::pod(&format!("burst{n}"), &cx.node.paths.logs);
                let config = if n % 2 == 0 { config.own_network() } else { config };
                let cri = cx.cri.clone();
                tokio::spawn(async move { cri.run_pod(&config).await })
            })
            .collect();
        // A different moment in each round, spread over the whole launch.
        tokio::time::sleep(Duration::from_millis(round * 37 % 80)).await;
        cx.node.kill9()?;
        let begun = Instant::now();
        cx.node.launch().await.with_context(|| format!("start {round} of {ROUNDS}"))?;
        slowest = slowest.max(begun.elapsed());
        for call in calls {
            drop(call.await?);
        }
        if round % 10 == 9 {
            let burst = cx.cri.pods(None).await?.into_iter().filter(|pod| pod.id != keep.id);
            let drops: Vec<_> = burst
                .map(|pod| {
                    let cri = cx.cri.clone();
                    tokio::spawn(async move { cri.drop_pod(&pod.id).await })
                })
                .collect();
            for dropped in drops {
                dropped.await?.context("remove what came up")?;
            }
        }
    }
    println!("      {ROUNDS} starts, the slowest answered after {:.2} s", slowest.as_secs_f32());
    ensure!(proc::alive(pid) && cx.pid(&id).await? == pid, "the container's process is not {pid} any more");
    Ok(())
}

/// Separate root and run folders, but by mistake the same socket.
async fn second_daemon_on_the_same_socket_is_refused(cx: Context) -> Result<()> {
    let dir = cx.volume("second")?;
    let path = |name: &str| dir.join(name).display().to_string();
    let config = cx.node.paths.config.display().to_string();
    let socket = cx.node.paths.socket.display().to_string();
    let (root, state) = (path("root"), format!("/run/second-{}", shapes::unique()));
    let args = ["--config", &config, "--root", &root, "--state", &state, "--socket", &socket];
    let attempted = attempt(&cx, &args).await;
    let reached = cx.cri.version().await;
    drop(fs::remove_dir_all(state));
    fs::remove_dir_all(dir)?;
    let out = attempted.context("a second daemon on the first one's socket")?;
    ensure!(!out.status.success(), "a second daemon ended with success");
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(
        text.contains(&socket) && text.contains(&cx.node.pid()?.to_string()),
        "the error does not name the socket and the pid of its daemon: {text}"
    );
    reached.context("the first daemon cannot be reached")?;
    ensure!(cx.node.paths.socket.exists(), "the first daemon's socket is gone");
    Ok(())
}

/// `--root /var/lib` by mistake must not make that folder inaccessible to other services.
async fn folders_of_other_software_are_not_changed(cx: Context) -> Result<()> {
    let dir = cx.volume("theirs")?;
    let theirs = dir.join("lib");
    fs::create_dir_all(theirs.join("dpkg"))?;
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o755))?;
    let path = |name: &str| dir.join(name).display().to_string();
    let config = cx.node.paths.config.display().to_string();
    for (root, state) in [("lib", "run"), ("root", "lib")] {
        let socket = path("sock");
        let args = ["--config", &config, "--root", &path(root), "--state", &path(state), "--socket", &socket];
        let out = attempt(&cx, &args).await;
        let mode = fs::metadata(&theirs)?.permissions().mode() & 0o7777;
        ensure!(mode == 0o755, "the folder's mode became {mode:o}");
        let out = out?;
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(
            !out.status.success() && text.contains("dpkg"),
            "the error does not name the foreign entry: {text}"
        );
    }
    Ok(fs::remove_dir_all(dir)?)
}

async fn other_signals_do_not_end_the_daemon(cx: Context) -> Result<()> {
    let pid = cx.node.pid()?;
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM] {
        proc::signal(pid, signal)?;
        // The daemon logs what it did with the signal, unless the signal killed it.
        wait::until(&format!("the daemon to log {signal}"), secs(10), || async {
            ensure!(proc::alive(pid), "{signal} ended the daemon");
            Ok(cx.node.last_log(100).contains(signal.as_str()).then_some(()))
        })
        .await?;
        cx.cri.version().await.with_context(|| format!("after {signal}"))?;
    }
    Ok(())
}

/// Opening a FIFO blocks until there is a writer.
async fn configuration_that_is_not_a_regular_file_is_refused(cx: Context) -> Result<()> {
    let dir = cx.volume("fifo")?;
    let fifo = dir.join("config.toml");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR)?;
    for path in [&fifo, &dir] {
        let text = path.display().to_string();
        let out = attempt(&cx, &["config", "check", &text]).await.with_context(|| text.clone())?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(
            !out.status.success() && said.contains("not a regular file"),
            "`config check {text}` said: {said}"
        );
    }
    Ok(fs::remove_dir_all(dir)?)
}
