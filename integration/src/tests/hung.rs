//! A hang in one pod does not affect others: their calls take no longer than without it.

use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cri_api::v1::security_profile::ProfileType;

use crate::context::{Context, Pod};
use crate::hang::Hang;
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

/// Medians.
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

/// Times of calls that are independent of what hangs.
async fn times(cx: &Context, pod: &Pod, round: &str) -> Result<Times> {
    let bounded = |what: &'static str| move |_| anyhow::anyhow!("{what} of another pod took over {STUCK:?}");
    let (mut list, mut exec, mut stop) = (Vec::new(), Vec::new(), Vec::new());
    let mut ids = Vec::new();
    for n in 0..STOPS {
        let config = cx.sleeper(&format!("{round}{n}"));
        ids.push(
            tokio::time::timeout(2 * STUCK, cx.start(pod, &config))
                .await
                .map_err(bounded("create and start"))??,
        );
    }
    let first = ids.first().context("no container")?.clone();
    for _ in 0..CALLS {
        let start = Instant::now();
        let listed = tokio::time::timeout(STUCK, cx.cri.containers(None)).await;
        ensure!(!listed.map_err(bounded("List"))??.is_empty());
        list.push(start.elapsed());
        let start = Instant::now();
        let ran = tokio::time::timeout(STUCK, cx.cri.exec(&first, &["/bin/true"])).await;
        ensure!(ran.map_err(bounded("ExecSync"))??.code == 0);
        exec.push(start.elapsed());
    }
    for id in ids {
        let start = Instant::now();
        tokio::time::timeout(STUCK, cx.cri.stop(&id, 0)).await.map_err(bounded("StopContainer"))??;
        stop.push(start.elapsed());
    }
    Ok(Times { list: median(list), exec: median(exec), stop: median(stop) })
}

/// The allowed time: twice the reference, or the noise level if that is more.
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

fn threads(cx: &Context) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{}/task", cx.node.pid()?))?.count())
}

async fn sixty_four_stuck_calls_in_one_pod(cx: Context) -> Result<()> {
    let (healthy, stuck) = (cx.pod().await?, cx.pod().await?);
    let calm = times(&cx, &healthy, "calm").await?;
    let before = threads(&cx)?;
    let hang = Hang::new(&cx.volume("hung")?)?;
    let calls: Vec<_> = (0..64)
        .map(|n| {
            let profile = seccomp(ProfileType::Localhost, &hang.path("profile.json"));
            let config = cx.sleeper(&format!("stuck{n}")).with(|c| c.security().seccomp = profile);
            let (cx, pod) = (cx.clone(), stuck.clone());
            tokio::spawn(async move { cx.create(&pod, &config).await })
        })
        .collect();
    let work = async {
        wait::until("the calls to hang", secs(10), || async {
            Ok((threads(&cx)? >= before + 2).then_some(()))
        })
        .await?;
        times(&cx, &healthy, "loaded").await
    };
    let loaded = work.await;
    drop(hang);
    for call in calls {
        let made = tokio::time::timeout(secs(40), call).await.context("a call that never ends")?;
        ensure!(made?.is_err(), "a container whose profile could not be read");
    }
    compare("64 stuck calls in one pod", &calm, &loaded?)
}

async fn a_hung_log_disk(cx: Context) -> Result<()> {
    const PODS: usize = 6;
    let healthy = cx.pod().await?;
    let calm = times(&cx, &healthy, "calm").await?;
    let hang = Hang::new(&cx.volume("hung")?)?;
    let pods: Vec<_> = (0..PODS)
        .map(|n| {
            let mut config = cx.pod_config();
            config.log_directory = hang.path(&format!("pod{n}"));
            let cx = cx.clone();
            tokio::spawn(async move { cx.cri.run_pod(&config).await })
        })
        .collect();
    let loaded = async {
        wait::until_true("shims on the hung disk", secs(10), || {
            let shims = proc::all().into_iter().filter(|p| p.comm.starts_with("copepod-shim"));
            shims.count() > PODS
        })
        .await?;
        times(&cx, &healthy, "loaded").await
    }
    .await;
    drop(hang);
    for pod in pods {
        let up = tokio::time::timeout(secs(40), pod).await.context("a pod that never ends")?;
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
        // Each logs a line of more than 150 bytes: together more than the pipe and the queue can hold.
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..8 {
            let cx = cx.clone();
            callers.spawn(async move {
                for n in 0..1000 {
                    let id = format!("{:064x}", caller * 1000 + n);
                    let refused = tokio::time::timeout(STUCK, cx.cri.start(&id)).await;
                    let refused = refused.with_context(|| format!("call {n} took over {STUCK:?}"))?;
                    ensure!(refused.is_err(), "a container {id}");
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
    // The written lines are complete, and the log says that some are missing.
    let reading = tokio::task::spawn_blocking(move || {
        use std::io::Read as _;
        let mut text = Vec::new();
        std::fs::File::from(unread).read_to_end(&mut text)?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&text).into_owned())
    });
    // Its shim has the same stderr.
    cx.cri.drop_pod(&healthy.id).await?;
    cx.node.terminate().await?;
    let text = tokio::time::timeout(secs(20), reading).await.context("stderr stays open")???;
    ensure!(text.contains("ready") && text.lines().count() > 300, "{} lines", text.lines().count());
    ensure!(text.contains("log lines were dropped"), "it does not say that lines are missing");
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
            // 16 MiB, and then time in which the output of all execs is held at once.
            let line = "dd if=/dev/zero bs=1M count=16 2>/dev/null; sleep 3";
            tokio::spawn(async move { cx.cri.exec_sync(&id, &["/bin/sh", "-c", line], 60).await })
        })
        .collect();
    let (mut kept, mut least) = (0, usize::MAX);
    for exec in execs {
        let out = exec.await??;
        ensure!(out.exit_code == 0, "{}", out.exit_code);
        kept += out.stdout.len();
        least = least.min(out.stdout.len());
    }
    let peak =
        proc::status(pid)?.get("VmHWM").context("VmHWM")?.trim_end_matches(" kB").trim().parse::<u64>()?;
    println!("      {EXECS} execs of 16 MiB: {} MiB kept, peak {} MiB", kept >> 20, peak >> 10);
    ensure!(peak < 300 << 10, "the daemon had {} MiB", peak >> 10);
    ensure!(least >= 16 << 10, "an exec kept {least} bytes");
    // A single exec can use its whole limit.
    let out =
        cx.cri.exec_sync(&id, &["/bin/sh", "-c", "dd if=/dev/zero bs=1M count=15 2>/dev/null"], 60).await?;
    ensure!(out.stdout.len() == 15 << 20, "{} bytes", out.stdout.len());
    Ok(())
}
