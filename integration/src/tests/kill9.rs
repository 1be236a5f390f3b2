//! The daemon is killed: while twenty containers write logs, at 110 random moments, and right after each call.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, ContainerState, MountPropagation, PodSandboxState};
use tonic::Code;

use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::images::digest;
use crate::logfile::Log;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(twenty_writers).own().limit(180),
        test!(random_moments).own().limit(240),
        test!(each_step_in_order).own().limit(120),
    ]
}

/// The bytes of line N.
type Line = fn(usize) -> Vec<u8>;

/// The output of one writer, and the expected content of its log.
struct Writer {
    id: String,
    line: Line,
    count: usize,
    /// Bytes after the last line, which have no line feed.
    tail: &'static str,
    code: i32,
}

fn short_line(n: usize) -> Vec<u8> {
    format!("line {n}\n").into_bytes()
}

/// Lines of more than 20,000 bytes, which are longer than one line of a CRI log (16 KiB).
fn long_line(n: usize) -> Vec<u8> {
    format!("{}line {n}\n", "x".repeat(20_000)).into_bytes()
}

impl Writer {
    /// Whether the log has everything but the last line: the writer waits for the gate.
    fn is_at_the_gate(&self, log: &Path) -> bool {
        let wanted: usize = (0..self.count - 1).map(|n| (self.line)(n).len()).sum();
        Log::read(log).is_ok_and(|log| log.bytes(None).len() == wanted)
    }
}

/// Starts writer number `n`: 1 writes long lines, 2 has a terminal, 3 ends without a line feed, others write short
/// lines.
async fn writer(cx: &Context, pod: &Pod, n: usize, gate: &Path) -> Result<Writer> {
    let (name, count) = (format!("w{n}"), if n == 1 { 300 } else { 25_000 });
    // Each writer waits before its last line until the daemon is up again, so that all of them write across the crash.
    let wait = "until [ -e /gate/open ]; do sleep 0.05; done";
    let numbers = |count: usize| {
        let last = count - 1;
        format!("i=0; while [ $i -lt {last} ]; do echo line $i; i=$((i+1)); done; {wait}; echo line $i")
    };
    let (script, line, tail, code): (String, Line, &'static str, i32) = match n {
        1 => (
            format!(
                "x=$(head -c 20000 /dev/zero | tr '\\0' x); i=0; while [ $i -lt {} ]; do echo ${{x}}line $i; i=$((i+1)); sleep 0.005; done; {wait}; echo ${{x}}line $i; exit 21",
                count - 1
            ),
            long_line,
            "",
            21,
        ),
        2 => (format!("stty -onlcr; {}; exit 22", numbers(count)), short_line, "", 22),
        3 => (format!("{}; printf 'no end'; exit 23", numbers(count)), short_line, "no end", 23),
        _ => (format!("{}; exit 0", numbers(count)), short_line, "", 0),
    };
    let mut config =
        cx.shell(&name, &script).mount(gate, "/gate", true, MountPropagation::PropagationPrivate);
    config.tty = n == 2;
    let id = cx.start(pod, &config).await?;
    Ok(Writer { id, line, count, tail, code })
}

async fn twenty_writers(cx: Context) -> Result<()> {
    cx.need(&Fixture::image("busybox")).await?;
    let mut pods = Vec::new();
    for n in 0..20 {
        let config = cx.pod_config();
        let pod = cx.pod_of(if n < 4 { config.own_network() } else { config }).await?;
        let keep = cx.start(&pod, &cx.sleeper("keep")).await?;
        pods.push((pod, keep));
    }
    let gate = cx.volume("gate")?;
    let mut writers = Vec::new();
    for (n, (pod, _)) in pods.iter().enumerate() {
        writers.push(writer(&cx, pod, n, &gate).await?);
    }
    let mut logs = Vec::new();
    for w in &writers {
        logs.push(PathBuf::from(cx.cri.container(&w.id).await?.log_path));
    }
    let size = |log: &PathBuf| fs::metadata(log).map_or(0, |file| file.len());
    wait::until_true("all writers to write", secs(60), || logs.iter().all(|log| size(log) > 0)).await?;
    cx.node.kill9()?;
    // The shims write on without the daemon.
    let before: Vec<u64> = logs.iter().map(size).collect();
    for ((w, log), before) in writers.iter().zip(&logs).zip(before) {
        wait::until_true("a log to grow without the daemon", secs(60), || {
            size(log) > before || w.is_at_the_gate(log)
        })
        .await?;
    }
    let start = Instant::now();
    cx.node.launch().await?;
    let (listed_pods, listed) = (cx.cri.pods(None).await?, cx.cri.containers(None).await?);
    println!("      lists complete {:.2} s after the new daemon's start", start.elapsed().as_secs_f32());
    ensure!(
        listed_pods.len() == 20 && listed.len() == 40,
        "{} pods and {} containers listed",
        listed_pods.len(),
        listed.len()
    );
    ensure!(
        listed_pods.iter().all(|p| p.state() == PodSandboxState::SandboxReady),
        "a pod is not ready: {listed_pods:?}"
    );
    // Rotation right after the restart: output in the shim's buffers must be neither lost nor repeated.
    let mut rotated = Vec::new();
    for w in &writers {
        let path = cx.cri.container(&w.id).await?.log_path;
        let old = format!("{path}.old");
        fs::rename(&path, &old)?;
        cx.cri.reopen_log(&w.id).await?;
        ensure!(Path::new(&path).exists(), "ReopenContainerLog created no {path}");
        rotated.push((old, path));
    }
    fs::write(gate.join("open"), "")?;
    for (w, (old, path)) in writers.iter().zip(&rotated) {
        let s = cx.cri.wait_exit(&w.id, secs(90)).await?;
        ensure!(s.exit_code == w.code, "{}: exit code {} instead of {}", s.log_path, s.exit_code, w.code);
        let files: Vec<&Path> = [old, path].into_iter().map(Path::new).filter(|p| p.exists()).collect();
        let log = Log::read_all(&files)?;
        let mut expected: Vec<u8> = (0..w.count).flat_map(w.line).collect();
        expected.extend_from_slice(w.tail.as_bytes());
        let found = log.bytes(None);
        ensure!(
            digest(&found) == digest(&expected),
            "{}: {} bytes instead of {}: {}",
            s.log_path,
            found.len(),
            expected.len(),
            difference(&found, &expected)
        );
    }
    for (pod, keep) in &pods {
        cx.is_shown(keep, ContainerState::ContainerRunning).await.context("a container beside a writer")?;
        cx.exec_works(keep).await?;
        cx.cri.stop(keep, 0).await?;
        cx.cri.drop_pod(&pod.id).await?;
    }
    Ok(())
}

fn difference(found: &[u8], expected: &[u8]) -> String {
    let at = found.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(found.len().min(expected.len()));
    let show = |bytes: &[u8]| {
        String::from_utf8_lossy(
            bytes.get(at.saturating_sub(20)..bytes.len().min(at + 40)).unwrap_or_default(),
        )
        .into_owned()
    };
    format!("first difference at byte {at}: `{}` instead of `{}`", show(found), show(expected))
}

/// Creates and removes one pod with one container; the pod's id is added to `ids`.
async fn lifecycle(
    cx: &Context,
    config: &api::PodSandboxConfig,
    ids: &std::sync::Mutex<Vec<String>>,
) -> Result<()> {
    let pod = cx.cri.run_pod(config).await?;
    if let Ok(mut ids) = ids.lock() {
        ids.push(pod.clone());
    }
    let container = cx.cri.create(&pod, &cx.sleeper("main").like(config), config).await?;
    cx.cri.start(&container).await?;
    cx.cri.stop(&container, 0).await?;
    cx.cri.remove(&container).await?;
    cx.cri.drop_pod(&pod).await?;
    Ok(())
}

/// After a crash: every listed object has a status, and a retry creates and removes the pod.
async fn consistent(cx: &Context, config: &api::PodSandboxConfig) -> Result<()> {
    let pods = cx.cri.pods(None).await?;
    for pod in &pods {
        let s = cx.cri.pod_status(&pod.id).await?.status.context("a listed pod without a status")?;
        ensure!(s.metadata.is_some() && s.created_at > 0, "a pod is listed half-made: {s:?}");
    }
    for c in cx.cri.containers(None).await? {
        ensure!(
            pods.iter().any(|p| p.id == c.pod_sandbox_id),
            "container {} of a pod that is not listed",
            c.id
        );
        ensure!(c.state() != ContainerState::ContainerUnknown, "container {} is in state unknown", c.id);
        cx.cri.container(&c.id).await?;
    }
    let names: BTreeSet<_> = pods.iter().filter_map(|p| p.metadata.as_ref()).map(|m| m.uid.clone()).collect();
    ensure!(names.len() == pods.len(), "one pod is listed twice: {pods:?}");
    // As kubelet does: pods that are not ready are removed, and the request is repeated.
    for pod in pods.iter().filter(|p| p.state() == PodSandboxState::SandboxNotready) {
        cx.cri.drop_pod(&pod.id).await.context("remove a pod that is not ready")?;
    }
    let pod = cx.cri.run_pod(config).await.context("RunPodSandbox again")?;
    let old = cx
        .cri
        .containers(Some(api::ContainerFilter { pod_sandbox_id: pod.clone(), ..Default::default() }))
        .await?;
    for c in old {
        cx.cri.remove(&c.id).await.context("remove an old container")?;
    }
    // The old container of this name may still be being removed: the call is repeated, as kubelet does.
    let main = cx.sleeper("main").like(config);
    let container = wait::until("CreateContainer again", secs(10), || async {
        match cx.cri.create(&pod, &main, config).await {
            Err(error) if error.code() == Code::Unavailable => Ok(None),
            answer => Ok(Some(answer)),
        }
    })
    .await?
    .context("CreateContainer again")?;
    cx.cri.start(&container).await.context("StartContainer again")?;
    cx.exec_works(&container).await?;
    cx.cri.drop_pod(&pod).await.context("teardown")?;
    let left = (cx.cri.pods(None).await?, cx.cri.containers(None).await?);
    ensure!(left.0.is_empty() && left.1.is_empty(), "after the removal there are listed {left:?}");
    Ok(())
}

async fn random_moments(cx: Context) -> Result<()> {
    cx.need(&Fixture::image("busybox")).await?;
    let nothing = std::sync::Mutex::new(Vec::new());
    // How long a life takes on the host network, and with CNI.
    let mut whole = [Duration::ZERO; 2];
    for (own, slot) in whole.iter_mut().enumerate() {
        let config = if own == 1 { cx.pod_config().own_network() } else { cx.pod_config() };
        let start = Instant::now();
        lifecycle(&cx, &config, &nothing).await.context("one undisturbed life")?;
        *slot = start.elapsed();
    }
    // Every run draws the same numbers. The moments depend on how long a life takes.
    let mut random = fastrand::Rng::with_seed(1);
    let mut unfinished = 0;
    for round in 0..110 {
        let own = round % 2;
        let config = if own == 1 { cx.pod_config().own_network() } else { cx.pod_config() };
        let span = u64::try_from(whole.get(own).context("span")?.as_micros())?;
        let delay = Duration::from_micros(random.u64(..span.max(1)));
        let ids = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let life = {
            let (cx, config, ids) = (cx.clone(), config.clone(), std::sync::Arc::clone(&ids));
            let start = Instant::now();
            tokio::spawn(async move { lifecycle(&cx, &config, &ids).await.map(|()| start.elapsed()) })
        };
        tokio::time::sleep(delay).await;
        cx.node.kill9()?;
        let ended = wait::timeout(secs(10), life)
            .await
            .context("a call has no answer 10 s after the daemon's death")??;
        unfinished += u32::from(ended.is_err());
        // Other load may have prolonged the measured life: the shortest one counts.
        if let (Ok(took), Some(slot)) = (ended, whole.get_mut(own)) {
            *slot = took.min(*slot);
        }
        cx.node.launch().await.with_context(|| format!("round {round}: start after a kill at {delay:?}"))?;
        let moment = || {
            format!(
                "round {round}: killed {delay:?} into a life of {:?} ({}), seen {ids:?}",
                whole.get(own),
                if own == 1 { "CNI" } else { "host network" }
            )
        };
        consistent(&cx, &config).await.with_context(moment)?;
    }
    println!(
        "      110 kills, {unfinished} of them in the middle of a life of {:?} or {:?}",
        whole[0], whole[1]
    );
    ensure!(unfinished >= 60, "only {unfinished} kills met a life in progress");
    Ok(())
}

/// Kills the daemon right after each call was sent, a moment that random delays rarely hit.
async fn each_step_in_order(cx: Context) -> Result<()> {
    cx.need(&Fixture::image("busybox")).await?;
    for step in 0..6 {
        for wait in [0_u64, 2, 6] {
            let config = cx.pod_config().own_network();
            let outcome = killed_in(&cx, &config, step, Duration::from_millis(wait)).await;
            if cx.node.pid().is_err() {
                cx.node.launch().await?;
            }
            outcome.with_context(|| format!("step {step}"))?;
            consistent(&cx, &config).await.with_context(|| format!("killed {wait} ms into step {step}"))?;
        }
    }
    Ok(())
}

/// Runs the steps before `step`, sends the call of `step` and kills the daemon right after.
async fn killed_in(
    cx: &Context,
    config: &api::PodSandboxConfig,
    step: usize,
    moment: Duration,
) -> Result<()> {
    let mut pod = String::new();
    let mut container = String::new();
    for now in 0..=step {
        let call = {
            let (cri, config, pod, container) =
                (cx.cri.clone(), config.clone(), pod.clone(), container.clone());
            let main = cx.sleeper("main").like(&config);
            tokio::spawn(async move {
                match now {
                    0 => cri.run_pod(&config).await,
                    1 => cri.create(&pod, &main, &config).await,
                    2 => cri.start(&container).await.map(|()| String::new()),
                    3 => cri.stop(&container, 0).await.map(|()| String::new()),
                    4 => cri.stop_pod(&pod).await.map(|()| String::new()),
                    _ => cri.remove_pod(&pod).await.map(|()| String::new()),
                }
            })
        };
        if now == step {
            tokio::time::sleep(moment).await;
            cx.node.kill9()?;
            drop(wait::timeout(secs(10), call).await.context("no answer 10 s after the daemon's death")?);
            return Ok(());
        }
        let id = call.await??;
        match now {
            0 => pod = id,
            1 => container = id,
            _ => {}
        }
    }
    anyhow::bail!("there is no step {step}")
}
