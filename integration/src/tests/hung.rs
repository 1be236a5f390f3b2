//! A hang in one pod does not affect others: their calls take no longer than without it.

use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use cri_api::v1::security_profile::ProfileType;

use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::fuse::{Hang, Stuck};
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, seccomp};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(sixty_four_stuck_calls_in_one_pod).own().limit(120),
        test!(a_hung_log_disk).own().limit(120),
        test!(a_full_stderr).own().limit(120),
        test!(output_of_many_execs_is_bounded).own().limit(120),
        test!(an_exec_of_a_program_on_a_dead_disk).own().limit(120),
    ]
}

/// Number of calls of each kind; the median is compared.
const CALLS: usize = 15;
/// Number of containers that are stopped, once each.
const STOPS: usize = 5;
/// A call that takes this long is treated as hung.
const STUCK: Duration = Duration::from_secs(5);
/// Medians below this are noise.
const FLOOR: Duration = Duration::from_millis(100);

/// Medians of the durations of calls.
#[derive(Debug)]
struct Times {
    list: Duration,
    exec: Duration,
    stop: Duration,
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Durations of calls for a pod that does not depend on what hangs.
async fn times(cx: &Context, pod: &Pod, round: &str) -> Result<Times> {
    let bounded = |what: &'static str| move |_| anyhow::anyhow!("{what} of another pod took over {STUCK:?}");
    let (mut list, mut exec, mut stop) = (Vec::new(), Vec::new(), Vec::new());
    let mut ids = Vec::new();
    for n in 0..STOPS {
        let config = cx.sleeper(&format!("{round}{n}"));
        ids.push(
            wait::timeout(2 * STUCK, cx.start(pod, &config)).await.map_err(bounded("create and start"))??,
        );
    }
    let first = ids.first().context("no container")?.clone();
    for _ in 0..CALLS {
        let start = Instant::now();
        let listed = wait::timeout(STUCK, cx.cri.containers(None)).await;
        ensure!(!listed.map_err(bounded("List"))??.is_empty(), "ListContainers returned an empty list");
        list.push(start.elapsed());
        let start = Instant::now();
        let ran = wait::timeout(STUCK, cx.cri.exec(&first, &["/bin/true"])).await;
        let ran = ran.map_err(bounded("ExecSync"))??;
        ensure!(ran.code == 0, "`true` ended with {ran:?}");
        exec.push(start.elapsed());
    }
    for id in ids {
        let start = Instant::now();
        wait::timeout(STUCK, cx.cri.stop(&id, 0)).await.map_err(bounded("StopContainer"))??;
        stop.push(start.elapsed());
    }
    Ok(Times { list: median(list), exec: median(exec), stop: median(stop) })
}

/// Calls may take at most twice as long as before, or [`FLOOR`] if that is more.
fn compare(what: &str, calm: &Times, loaded: &Times) -> Result<()> {
    for (call, before, after) in [
        ("List", calm.list, loaded.list),
        ("ExecSync", calm.exec, loaded.exec),
        ("StopContainer", calm.stop, loaded.stop),
    ] {
        ensure!(after <= (before * 2).max(FLOOR), "{call} takes {after:?} with {what}, {before:?} without");
    }
    Ok(())
}

async fn sixty_four_stuck_calls_in_one_pod(cx: Context) -> Result<()> {
    let (healthy, stuck) = (cx.pod().await?, cx.pod().await?);
    let calm = times(&cx, &healthy, "calm").await?;
    let daemon = cx.node.pid()?;
    let before = proc::threads(daemon)?;
    let hang = Hang::mount(&cx.volume("hung")?)?;
    let calls: Vec<_> = (0..64)
        .map(|n| {
            let profile = seccomp(ProfileType::Localhost, &hang.path("profile.json"));
            let config = cx.sleeper(&format!("stuck{n}")).with(|c| c.security().seccomp = profile);
            let (cx, pod) = (cx.clone(), stuck.clone());
            tokio::spawn(async move { cx.create(&pod, &config).await })
        })
        .collect();
    let loaded = async {
        wait::until("the calls to hang", secs(10), || async {
            Ok((proc::threads(daemon)? >= before + 2).then_some(()))
        })
        .await?;
        times(&cx, &healthy, "loaded").await
    }
    .await;
    drop(hang);
    for call in calls {
        let made = wait::timeout(secs(40), call).await.context("no answer to CreateContainer")?;
        ensure!(made?.is_err(), "a container was created although its profile could not be read");
    }
    compare("64 stuck calls in one pod", &calm, &loaded?)
}

async fn a_hung_log_disk(cx: Context) -> Result<()> {
    const PODS: usize = 6;
    let healthy = cx.pod().await?;
    let calm = times(&cx, &healthy, "calm").await?;
    let hang = Hang::mount(&cx.volume("hung")?)?;
    let pods: Vec<_> = (0..PODS)
        .map(|n| {
            let mut config = cx.pod_config();
            config.log_directory = hang.path(&format!("pod{n}"));
            let cx = cx.clone();
            tokio::spawn(async move { cx.cri.run_pod(&config).await })
        })
        .collect();
    let loaded = async {
        wait::until_true("the shims of the pods on the hung disk to start", secs(10), || {
            let shims = proc::all().into_iter().filter(|p| p.comm.starts_with("copepod-shim"));
            shims.count() > PODS
        })
        .await?;
        times(&cx, &healthy, "loaded").await
    }
    .await;
    drop(hang);
    for pod in pods {
        let up = wait::timeout(secs(40), pod).await.context("no answer to RunPodSandbox")?;
        ensure!(up?.is_err(), "a pod whose log folder hangs came up");
    }
    compare("a hung log disk", &calm, &loaded?)
}

/// Simulates a service manager whose journal hangs.
async fn a_full_stderr(cx: Context) -> Result<()> {
    let (unread, stderr): (OwnedFd, OwnedFd) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    cx.node.terminate().await?;
    cx.node.launch_with_stderr(Stdio::from(stderr)).await?;
    let healthy = cx.pod().await?;
    let calm = times(&cx, &healthy, "calm").await?;
    let loaded = async {
        // Each call logs a line of more than 150 bytes: together more than the pipe and the queue can hold.
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..8 {
            let cx = cx.clone();
            callers.spawn(async move {
                for n in 0..1000 {
                    let id = format!("{:064x}", caller * 1000 + n);
                    let refused = wait::timeout(STUCK, cx.cri.start(&id)).await;
                    let refused = refused.with_context(|| format!("call {n} took over {STUCK:?}"))?;
                    ensure!(refused.is_err(), "the unknown container {id} was started");
                }
                Ok(())
            });
        }
        while let Some(caller) = callers.join_next().await {
            caller??;
        }
        times(&cx, &healthy, "loaded").await
    }
    .await;
    if loaded.is_err() {
        // So that the daemon can exit.
        drop(unread);
        return compare("a full stderr", &calm, &loaded?);
    }
    compare("a full stderr", &calm, &loaded?)?;
    // What is read now has many lines, and says that some were dropped.
    let reading = tokio::task::spawn_blocking(move || {
        use std::io::Read as _;
        let mut text = Vec::new();
        std::fs::File::from(unread).read_to_end(&mut text)?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&text).into_owned())
    });
    // Its shim has the same stderr.
    cx.cri.drop_pod(&healthy.id).await?;
    cx.node.terminate().await?;
    let text = wait::timeout(secs(20), reading).await.context("stderr stays open")???;
    ensure!(
        text.contains("ready") && text.lines().count() > 300,
        "the log has {} lines, and `ready` is among them: {}",
        text.lines().count(),
        text.contains("ready")
    );
    ensure!(text.contains("log lines were dropped"), "the log does not say that lines were dropped");
    Ok(())
}

async fn output_of_many_execs_is_bounded(cx: Context) -> Result<()> {
    const EXECS: usize = 24;
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    cx.cri.sh(&id, "true").await?;
    let pid = cx.node.pid()?;
    // Resets the peak.
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("clear_refs")?;
    let execs: Vec<_> = (0..EXECS)
        .map(|_| {
            let (cx, id) = (cx.clone(), id.clone());
            // 16 MiB, and then time in which the daemon has the output of all execs in memory.
            let line = "dd if=/dev/zero bs=1M count=16 2>/dev/null; sleep 3";
            tokio::spawn(async move { cx.cri.exec_sync(&id, &["/bin/sh", "-c", line], 60).await })
        })
        .collect();
    let (mut received, mut smallest) = (0, usize::MAX);
    for exec in execs {
        let out = exec.await??;
        ensure!(out.exit_code == 0, "an exec ended with {}", out.exit_code);
        received += out.stdout.len();
        smallest = smallest.min(out.stdout.len());
    }
    let peak = proc::peak_kib(pid)?;
    println!("      {EXECS} execs of 16 MiB: {} MiB received, peak {} MiB", received >> 20, peak >> 10);
    ensure!(peak < 300 << 10, "the daemon had up to {} MiB", peak >> 10);
    ensure!(smallest >= 16 << 10, "of one exec only {smallest} bytes were received");
    // A single exec can use the whole limit of one.
    let out =
        cx.cri.exec_sync(&id, &["/bin/sh", "-c", "dd if=/dev/zero bs=1M count=15 2>/dev/null"], 60).await?;
    ensure!(out.stdout.len() == 15 << 20, "of 15 MiB {} bytes were received", out.stdout.len());
    Ok(())
}

/// execve reads the program's first page, which never arrives. The kernel lets nobody end that wait, but the process has
/// its SIGKILL then and ends with the wait.
async fn an_exec_of_a_program_on_a_dead_disk(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let place = cx.volume("dead")?;
    let stuck = Stuck::mount(&place)?;
    let config = cx.sleeper("app").mount(&place, "/dead", true, api::MountPropagation::PropagationPrivate);
    let tried = async {
        let id = cx.start(&pod, &config).await?;
        let init = cx.pid(&id).await?;
        let shim = proc::one(init).context("init has ended")?.parent;
        let before = proc::children(shim).len();
        let begun = Instant::now();
        let refused = cx.cri.exec_sync(&id, &["/dead/program"], 1).await;
        ensure!(refused.is_err(), "an exec of a program that cannot be read: {refused:?}");
        ensure!(begun.elapsed() < wait::longer(STUCK), "the time limit of 1 s took {:?}", begun.elapsed());
        ensure!(stuck.is_read(), "the program was not read");
        let left: Vec<_> = proc::children(shim).into_iter().filter(|p| p.pid != init).collect();
        for process in left {
            let status = proc::status(process.pid)?;
            let pending = status.get("ShdPnd").and_then(|bits| u64::from_str_radix(bits, 16).ok());
            let killed = pending.is_some_and(|bits| bits & (1 << 8) != 0);
            ensure!(killed || process.comm == "pause", "{process:?} was not killed: {status:?}");
        }
        cx.exec_works(&id).await?;
        Ok((id, shim, before))
    }
    .await;
    drop(stuck);
    let (id, shim, before) = tried?;
    wait::until_true("the process to end", secs(10), || proc::children(shim).len() == before).await?;
    cx.exec_works(&id).await
}
