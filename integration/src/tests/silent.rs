//! Silent shims: they are alive but do not respond. Their pods keep running until StopPodSandbox, whatever the
//! daemon does.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use cri_api::v1::{ContainerState, PodSandboxState};
use nix::sys::signal::Signal;
use tonic::Code;

use crate::context::{Context, Pod};
use crate::expect::ensure;
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
        test!(a_damaged_container_record_below_a_silent_shim).own(),
    ]
}

/// Seconds for which [`a_stopped_shim_across_a_restart`] keeps its shim stopped. Early builds took a shim for dead after
/// 35 s.
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
    cx.said(&id, "ready").await?;
    Ok(id)
}

/// Checks that the container runs and that the pod and the container are shown so.
async fn is_ready(cx: &Context, pod: &Pod, id: &str, pid: u32) -> Result<()> {
    ensure!(proc::alive(pid), "the container's process {pid} is dead");
    cx.is_shown(id, ContainerState::ContainerRunning).await?;
    cx.pod_is_shown(&pod.id, PodSandboxState::SandboxReady).await
}

/// Waits up to 15 s until the daemon reports the silence, and checks meanwhile that the pod runs. Returns whether it
/// was reported; callers check it last, because what happens to the pod matters more.
async fn silence_shown(cx: &Context, pod: &Pod, id: &str, pid: u32) -> Result<bool> {
    let begun = Instant::now();
    while begun.elapsed() < secs(15) {
        is_ready(cx, pod, id, pid)
            .await
            .with_context(|| format!("{:?} into the silence", begun.elapsed()))?;
        if silent_since(cx, pod).await.is_ok_and(|since| since > 0) {
            return Ok(true);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(false)
}

/// Checks that the log has consecutive numbers from 0, one per line; returns how many.
fn without_gap(log: &Log) -> Result<usize> {
    let text = log.text(None);
    for (expected, line) in text.lines().enumerate() {
        ensure!(line == expected.to_string(), "the log has `{line}` instead of {expected}");
    }
    Ok(text.lines().count())
}

async fn exec_works_again(cx: &Context, id: &str) -> Result<()> {
    wait::until("an exec to work again", secs(15), || async { cx.exec_works(id).await.map(Some) }).await
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
        is_ready(&cx, &pod, &counter, pid)
            .await
            .with_context(|| format!("{:?} into the silence", begun.elapsed()))?;
        // Far less than a call to a shim may take.
        ensure!(asked.elapsed() < wait::longer(secs(10)), "the status calls took {:?}", asked.elapsed());
        if execs < 3 {
            execs += 1;
            let asked = Instant::now();
            let error = cx.cri.exec_sync(&counter, &["true"], 60).await.err();
            let error = error.context("an exec succeeded although the shim is stopped")?;
            ensure!(error.code() == Code::Unavailable, "an exec without a shim was answered with {error}");
            ensure!(
                asked.elapsed() < wait::longer(secs(30)),
                "the refusal of an exec took {:?}",
                asked.elapsed()
            );
        }
        // The checks are repeated as long as the silence lasts.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let asked = Instant::now();
    cx.cri.stop(&trapper, 60).await.context("StopContainer without a connection")?;
    ensure!(asked.elapsed() < wait::longer(secs(30)), "StopContainer took {:?}", asked.elapsed());
    cx.exited_with(&trapper, 7).await.context("a container that exits by its trap")?;
    let status = cx.cri.container(&trapper).await?;
    stopped.wake()?;
    exec_works_again(&cx, &counter).await?;
    is_ready(&cx, &pod, &counter, pid).await?;
    wait::until("the log to go on", secs(15), || async {
        Ok((without_gap(&Log::read(&log)?)? > lines + 100).then_some(()))
    })
    .await?;
    // The trap wrote while the shim was stopped.
    wait::until_true("the trap's output in the log of the stopped container", secs(10), || {
        Log::read(&status.log_path).is_ok_and(|log| log.text(None) == "ready\ntrapped\n")
    })
    .await?;
    cx.exited_with(&trapper, 7).await.context("after the shim has reported the exit")?;
    ensure!(shown, "the silence was never shown");
    let since = silent_since(&cx, &pod).await?;
    ensure!(since == 0, "the shim responds again, and is shown as silent since {since}");
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
    cx.exited_with(&id, 7).await?;
    ensure!(took < secs(20), "StopContainer took {took:?}");
    stopped.wake()?;
    cx.cri.remove(&id).await?;
    let next = cx.start(&pod, &cx.sleeper("next")).await.context("a further container")?;
    cx.exec_works(&next).await?;
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
    wait::until_true("the container to be killed", secs(60), || !proc::alive(pid)).await?;
    ensure!(asked.elapsed() >= secs(8), "it was killed {:?} into a grace of 8 s", asked.elapsed());
    stop.await?.context("StopContainer")?;
    ensure!(!proc::alive(pid), "the container's process {pid} is alive");
    cx.exited_with(&id, 137).await?;
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
    // At no moment may the pod be shown as anything but running.
    while begun.elapsed() < secs(10) {
        is_ready(&cx, &pod, &id, pid)
            .await
            .with_context(|| format!("{:?} into the silence", begun.elapsed()))?;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    stopped.wake()?;
    exec_works_again(&cx, &id).await?;
    cx.cri.stop(&id, 0).await?;
    cx.exited_with(&id, 137).await?;
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
    is_ready(&cx, &pod, &id, pid).await?;
    cx.cri.stop(&id, 1).await?;
    ensure!(!proc::alive(pid), "the container's process {pid} is alive");
    ensure!(shown, "the silence was never shown");
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// A shim without its socket works, but cannot report: StopContainer finds the exit in the exit file that the shim
/// writes shortly after it has reaped init. Here the daemon finds neither a zombie nor an exit file at first: it is
/// stopped until init is reaped, and the folder of the exit files, which the shim has open, is out of its place for
/// longer.
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
        // In this time the daemon looks for the exit file and does not find it; it must not answer without it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok::<_, anyhow::Error>(!stop.is_finished())
    }
    .await;
    drop(daemon);
    std::fs::rename(&away, &exits)?;
    let waits = outcome?;
    let answer = stop.await?;
    ensure!(waits, "StopContainer did not wait for the exit file: {answer:?}");
    answer.context("StopContainer")?;
    cx.exited_with(&id, 7).await?;
    ensure!(proc::one(pid).is_none(), "init was not reaped: {:?}", proc::one(pid));
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
    is_ready(&cx, &pod, &id, pid).await?;
    let asked = Instant::now();
    cx.cri.stop_pod(&pod.id).await?;
    ensure!(asked.elapsed() < wait::longer(secs(20)), "StopPodSandbox took {:?}", asked.elapsed());
    ensure!(!proc::alive(pid), "the container's process {pid} is alive");
    ensure!(!proc::alive(shim.pid), "the shim {} is alive", shim.pid);
    cx.exited_with(&id, 137).await?;
    cx.cri.remove_pod(&pod.id).await?;
    ensure!(cx.cri.pods(None).await?.is_empty(), "the removed pod is listed");
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
    is_ready(&cx, &pod, &id, pid).await?;
    proc::signal(stopped.0, Signal::SIGKILL)?;
    let status = cx.cri.wait_exit(&id, secs(10)).await?;
    ensure!(
        status.exit_code == 255 && !status.message.is_empty(),
        "an exit that was not recorded is shown as {status:?}"
    );
    wait::until_true("the container's process to be dead", secs(5), || !proc::alive(pid)).await?;
    ensure!(shown, "the silence was never shown");
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// A container whose record is damaged is lost, but its files may go only after its processes, and a silent shim does
/// not kill these.
async fn a_damaged_container_record_below_a_silent_shim(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let sibling = cx.start(&pod, &cx.sleeper("sibling")).await?;
    let damaged = cx.start(&pod, &cx.sleeper("damaged")).await?;
    let (sibling_pid, pid) = (cx.pid(&sibling).await?, cx.pid(&damaged).await?);
    let stopped = Stopped::shim(&cx, &pod)?;
    cx.node.kill9()?;
    let root = &cx.node.paths.root;
    let folder = root.join("containers").join(&damaged);
    let lease = root.join("images/leases").join(format!("{damaged}.json"));
    ensure!(lease.exists(), "{} does not exist, so this test shows nothing", lease.display());
    std::fs::write(folder.join("record"), "{\"magic\":")?;
    cx.node.launch().await?;
    wait::until_true("the container's files to be removed", secs(30), || !folder.exists() || !lease.exists())
        .await?;
    ensure!(!proc::alive(pid), "files of the container were removed, and its process {pid} is alive");
    wait::until_true("all of them to be removed", secs(10), || !folder.exists() && !lease.exists()).await?;
    is_ready(&cx, &pod, &sibling, sibling_pid).await?;
    stopped.wake()?;
    exec_works_again(&cx, &sibling).await?;
    is_ready(&cx, &pod, &sibling, sibling_pid).await?;
    cx.cri.drop_pod(&pod.id).await?;
    // The daemon keeps the damaged record here for the operator; the census would find it.
    std::fs::remove_dir_all(root.join("aside"))?;
    Ok(std::fs::create_dir(root.join("aside"))?)
}
