//! Silent shims: they are alive but do not respond. Their pods keep running until StopPodSandbox, whatever the
//! daemon does.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cri_api::v1::{ContainerState, PodSandboxState};
use nix::sys::signal::Signal;
use tonic::Code;

use crate::context::{Context, Pod};
use crate::logfile::Log;
use crate::proc;
use crate::runner::{Test, test};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(a_stopped_shim_across_a_restart).own().limit(300),
        test!(stop_ends_by_the_trap_though_the_shim_is_stopped).ours(),
        test!(stop_keeps_its_grace_without_a_connection).own(),
        test!(a_lost_link_to_a_stopped_shim).ours(),
        test!(a_socket_that_was_removed).own(),
        test!(an_exit_that_is_recorded_late).own(),
        test!(stop_and_removal_of_a_silent_pod).own(),
        test!(a_shim_that_dies_while_silent).own(),
    ]
}

/// How long the long test keeps its shim stopped. An earlier version declared a shim dead after 35 s.
const SILENCE: u64 = 42;
/// Environment variable for a longer time, in seconds.
const VARIABLE: &str = "COPEPOD_TEST_SILENCE";

/// Stops the shim of a pod with SIGSTOP, and continues it on drop.
struct Stopped(u32);

impl Stopped {
    fn shim(cx: &Context, pod: &Pod) -> Result<Self> {
        let pid = cx.node.shim(&pod.id)?.pid;
        proc::signal(pid, Signal::SIGSTOP)?;
        Ok(Self(pid))
    }

    fn wake(&self) -> Result<()> {
        proc::signal(self.0, Signal::SIGCONT)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        drop(self.wake());
    }
}

/// Time since which the pod's shim is silent, from verbose status, in nanoseconds since the epoch.
async fn silent_since(cx: &Context, pod: &Pod) -> Result<i64> {
    let info = cx.cri.pod_status(&pod.id).await?.info;
    let parsed: serde_json::Value = serde_json::from_str(info.get("info").context("no verbose info")?)?;
    parsed.get("shimSilentSince").and_then(serde_json::Value::as_i64).context("no shimSilentSince")
}

/// A container that exits with code 7 one second after SIGTERM.
async fn trapping(cx: &Context, pod: &Pod, name: &str) -> Result<String> {
    let line = "trap 'sleep 1; echo trapped; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let id = cx.start(pod, &cx.shell(name, line)).await?;
    let log = cx.cri.container(&id).await?.log_path;
    wait::until_true("the trap to be set", secs(10), || {
        Log::read(&log).is_ok_and(|log| log.text(None).contains("ready"))
    })
    .await?;
    Ok(id)
}

async fn ready(cx: &Context, pod: &Pod, id: &str, pid: u32) -> Result<()> {
    ensure!(proc::alive(pid), "the container's process is dead");
    let state = cx.cri.container(id).await?.state();
    ensure!(state == ContainerState::ContainerRunning, "the container is shown as {state:?}");
    let state = cx.cri.pod_status(&pod.id).await?.status.context("status")?.state();
    ensure!(state == PodSandboxState::SandboxReady, "the pod is shown as {state:?}");
    Ok(())
}

/// Waits up to 15 s until the daemon reports the silence, and checks meanwhile that the pod runs. Returns whether it
/// was reported; callers check that last, after what happens to the pod.
async fn silence_shown(cx: &Context, pod: &Pod, id: &str, pid: u32) -> Result<bool> {
    let begun = Instant::now();
    while begun.elapsed() < secs(15) {
        ready(cx, pod, id, pid).await.with_context(|| format!("{:?} into the silence", begun.elapsed()))?;
        if silent_since(cx, pod).await.is_ok_and(|since| since > 0) {
            return Ok(true);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(false)
}

/// Checks that the log has consecutive numbers from 0, one per line, and returns how many.
fn without_gap(log: &Log) -> Result<usize> {
    let text = log.text(None);
    for (expected, line) in text.lines().enumerate() {
        ensure!(line == expected.to_string(), "line {expected} of the log is `{line}`");
    }
    Ok(text.lines().count())
}

async fn exec_works_again(cx: &Context, id: &str) -> Result<()> {
    wait::until("exec to work again", secs(15), || async { Ok(cx.cri.sh(id, "echo in").await.ok()) })
        .await
        .map(drop)
}

async fn a_stopped_shim_across_a_restart(cx: Context) -> Result<()> {
    let silence = match std::env::var(VARIABLE) {
        Ok(text) => text.parse::<u64>().with_context(|| format!("{VARIABLE}={text}"))?.max(SILENCE),
        Err(_) => SILENCE,
    };
    let pod = cx.pod().await?;
    let count = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done";
    let counter = cx.start(&pod, &cx.shell("counter", count)).await?;
    let trapper = trapping(&cx, &pod, "trapper").await?;
    let pid = cx.pid(&counter).await?;
    let log = cx.cri.container(&counter).await?.log_path;
    let stopped = Stopped::shim(&cx, &pod)?;
    let lines = without_gap(&Log::read(&log)?)?;
    cx.node.crash().await?;
    let begun = Instant::now();
    let shown = silence_shown(&cx, &pod, &counter, pid).await?;
    let mut execs = 0;
    while begun.elapsed() < secs(silence) {
        let asked = Instant::now();
        ready(&cx, &pod, &counter, pid)
            .await
            .with_context(|| format!("{:?} into the silence", begun.elapsed()))?;
        // Far below what a call to a shim may take.
        ensure!(asked.elapsed() < secs(10), "status took {:?}", asked.elapsed());
        if execs < 3 {
            execs += 1;
            let asked = Instant::now();
            let error = cx.cri.exec_sync(&counter, &["true"], 60).await.err().context("an exec succeeded")?;
            ensure!(error.code() == Code::Unavailable, "exec without a shim: {error}");
            ensure!(asked.elapsed() < secs(30), "the refusal took {:?}", asked.elapsed());
        }
        // Nothing happens for a while, and at no look in it may anything have happened.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let asked = Instant::now();
    cx.cri.stop(&trapper, 60).await.context("StopContainer without a connection")?;
    ensure!(asked.elapsed() < secs(30), "StopContainer took {:?}", asked.elapsed());
    let status = cx.cri.container(&trapper).await?;
    ensure!(status.exit_code == 7, "it did not end by its trap: {status:?}");
    stopped.wake()?;
    exec_works_again(&cx, &counter).await?;
    ready(&cx, &pod, &counter, pid).await?;
    wait::until("the log to go on", secs(15), || async {
        Ok((without_gap(&Log::read(&log)?)? > lines + 100).then_some(()))
    })
    .await?;
    // The trap's output, which was written while the shim did not read it.
    wait::until_true("the last words of the stopped one", secs(10), || {
        Log::read(&status.log_path).is_ok_and(|log| log.text(None) == "ready\ntrapped\n")
    })
    .await?;
    ensure!(cx.cri.container(&trapper).await?.exit_code == 7, "the shim's word changed the exit code");
    ensure!(shown, "the silence was never shown");
    ensure!(silent_since(&cx, &pod).await? == 0, "still shown as silent");
    cx.cri.remove(&trapper).await?;
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// The daemon is connected, but the shim does not respond: the stop signal must not wait for it.
async fn stop_ends_by_the_trap_though_the_shim_is_stopped(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = trapping(&cx, &pod, "trapper").await?;
    let stopped = Stopped::shim(&cx, &pod)?;
    let asked = Instant::now();
    cx.cri.stop(&id, 30).await?;
    let took = asked.elapsed();
    let status = cx.cri.container(&id).await?;
    ensure!(status.exit_code == 7 && took < secs(20), "code {} after {took:?}", status.exit_code);
    stopped.wake()?;
    cx.cri.remove(&id).await?;
    let next = cx.start(&pod, &cx.sleeper("next")).await.context("a further container")?;
    ensure!(cx.cri.sh(&next, "echo in").await? == "in");
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

async fn stop_keeps_its_grace_without_a_connection(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.shell("deaf", "trap '' TERM; while :; do sleep 0.1; done")).await?;
    let pid = cx.pid(&id).await?;
    let stopped = Stopped::shim(&cx, &pod)?;
    cx.node.crash().await?;
    let asked = Instant::now();
    let stop = {
        let (cri, id) = (cx.cri.clone(), id.clone());
        tokio::spawn(async move { cri.stop(&id, 8).await })
    };
    wait::until_true("it to be killed", secs(60), || !proc::alive(pid)).await?;
    ensure!(asked.elapsed() >= secs(8), "killed {:?} into a grace of 8 s", asked.elapsed());
    stop.await?.context("StopContainer")?;
    ensure!(!proc::alive(pid), "it lives");
    let status = cx.cri.container(&id).await?;
    ensure!(status.exit_code == 137, "{status:?}");
    stopped.wake()?;
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// A new connection replaces the daemon's; then the shim is stopped before the daemon connects again.
async fn a_lost_link_to_a_stopped_shim(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let pid = cx.pid(&id).await?;
    let socket = cx.node.paths.run.join("shims").join(&pod.id).join("sock");
    let mut intruder = UnixStream::connect(&socket).with_context(|| socket.display().to_string())?;
    intruder.set_read_timeout(Some(secs(5)))?;
    let mut greeting = [0; 16];
    intruder.read_exact(&mut greeting).context("the shim's greeting")?;
    let stopped = Stopped::shim(&cx, &pod)?;
    let begun = Instant::now();
    // Nothing happens for a while, and at no look in it may anything have happened.
    while begun.elapsed() < secs(10) {
        ready(&cx, &pod, &id, pid)
            .await
            .with_context(|| format!("{:?} into the silence", begun.elapsed()))?;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    stopped.wake()?;
    exec_works_again(&cx, &id).await?;
    cx.cri.stop(&id, 0).await?;
    ensure!(cx.cri.container(&id).await?.exit_code == 137);
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// The shim's socket below /run was deleted: the shim cannot be reached any more, but is alive.
async fn a_socket_that_was_removed(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let pid = cx.pid(&id).await?;
    cx.node.kill9()?;
    std::fs::remove_file(cx.node.paths.run.join("shims").join(&pod.id).join("sock"))?;
    cx.node.launch().await?;
    let shown = silence_shown(&cx, &pod, &id, pid).await?;
    ready(&cx, &pod, &id, pid).await?;
    cx.cri.stop(&id, 1).await?;
    ensure!(!proc::alive(pid), "it lives");
    ensure!(shown, "the silence was never shown");
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// A shim without its socket works, but cannot report: StopContainer finds the exit in the record that the shim writes
/// shortly after it has reaped init. Here the daemon finds neither a zombie nor a record at first: it is stopped until
/// init is reaped, and the folder of the records, which the shim has open, is out of its place for longer.
async fn an_exit_that_is_recorded_late(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line = "trap 'echo asked; until [ -e /tmp/go ]; do sleep 0.05; done; exit 7' TERM; echo ready; \
                while :; do sleep 0.1; done";
    let id = cx.start(&pod, &cx.shell("trapper", line)).await?;
    cx.said(&id, "ready").await?;
    let pid = cx.pid(&id).await?;
    let shim = cx.node.paths.run.join("shims").join(&pod.id);
    cx.node.kill9()?;
    std::fs::remove_file(shim.join("sock"))?;
    cx.node.launch().await?;
    let shown = silence_shown(&cx, &pod, &id, pid).await?;
    let (exits, away) = (shim.join("exits"), shim.join("exits-away"));
    std::fs::rename(&exits, &away).with_context(|| exits.display().to_string())?;
    let stop = {
        let (cri, id) = (cx.cri.clone(), id.clone());
        tokio::spawn(async move { cri.stop(&id, 30).await })
    };
    let daemon = Stopped(cx.node.pid()?);
    let outcome = async {
        cx.said(&id, "asked").await.context("StopContainer sends no signal")?;
        proc::signal(daemon.0, Signal::SIGSTOP)?;
        std::fs::write(format!("/proc/{pid}/root/tmp/go"), "")?;
        wait::until_true("the exit to be recorded", secs(30), || away.join(&id).exists()).await?;
        daemon.wake()?;
        // Nothing happens for a while: the daemon looks and finds nothing.
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok::<_, anyhow::Error>(!stop.is_finished())
    }
    .await;
    drop(daemon);
    std::fs::rename(&away, &exits)?;
    let waits = outcome?;
    let answer = stop.await?;
    ensure!(waits, "StopContainer did not wait for the record: {answer:?}");
    answer.context("StopContainer")?;
    let status = cx.cri.container(&id).await?;
    ensure!(status.exit_code == 7, "{status:?}");
    ensure!(proc::one(pid).is_none(), "its process is there");
    ensure!(shown, "the silence was never shown");
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

async fn stop_and_removal_of_a_silent_pod(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let (pid, shim) = (cx.pid(&id).await?, cx.node.shim(&pod.id)?);
    let _stopped = Stopped::shim(&cx, &pod)?;
    cx.node.crash().await?;
    let shown = silence_shown(&cx, &pod, &id, pid).await?;
    ready(&cx, &pod, &id, pid).await?;
    let asked = Instant::now();
    cx.cri.stop_pod(&pod.id).await?;
    ensure!(asked.elapsed() < secs(20), "StopPodSandbox took {:?}", asked.elapsed());
    ensure!(!proc::alive(pid) && !proc::alive(shim.pid), "something of the pod lives");
    let status = cx.cri.container(&id).await?;
    ensure!(status.exit_code == 137, "{status:?}");
    cx.cri.remove_pod(&pod.id).await?;
    ensure!(cx.cri.pods(None).await?.is_empty(), "it is still listed");
    ensure!(shown, "the silence was never shown");
    Ok(())
}

/// A shim that dies while it is silent must be detected.
async fn a_shim_that_dies_while_silent(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let pid = cx.pid(&id).await?;
    let stopped = Stopped::shim(&cx, &pod)?;
    cx.node.crash().await?;
    let shown = silence_shown(&cx, &pod, &id, pid).await?;
    ready(&cx, &pod, &id, pid).await?;
    proc::signal(stopped.0, Signal::SIGKILL)?;
    let status = cx.cri.wait_exit(&id, secs(10)).await?;
    ensure!(status.exit_code == 255 && !status.message.is_empty(), "{status:?}");
    wait::until_true("its processes to be dead", secs(5), || !proc::alive(pid)).await?;
    ensure!(shown, "the silence was never shown");
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}
