//! The node or the daemon's pids cgroup has reached its limit of processes: the daemon continues and can still stop
//! pods.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tonic::Code;

use crate::cgroup::Driver;
use crate::context::Context;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::shapes::{PodExt as _, unique};
use crate::wait::{self, secs};
use crate::{cgroup, proc};

pub(super) fn tests() -> Vec<Test> {
    vec![test!(stop_kill_and_exec_need_no_new_thread).own(), test!(a_start_without_threads_serves).own()]
}

/// A cgroup with a limit of processes. On drop, processes left in it are moved to the root and it is removed.
#[derive(Debug)]
struct Pids {
    folder: PathBuf,
}

impl Pids {
    fn new() -> Result<Self> {
        let root = cgroup::hierarchy("pids").context("no pids hierarchy")?;
        let folder = root.join(format!("cpt-pids-{}-{}", std::process::id(), unique()));
        fs::create_dir(&folder)?;
        Ok(Self { folder })
    }

    fn limit(&self, max: &str) -> Result<()> {
        fs::write(self.folder.join("pids.max"), max).with_context(|| format!("pids.max {max}"))
    }

    /// Sets the limit to the current number of processes.
    fn close(&self) -> Result<()> {
        let current = fs::read_to_string(self.folder.join("pids.current"))?;
        self.limit(current.trim())
    }
}

impl Drop for Pids {
    fn drop(&mut self) {
        drop(self.limit("max"));
        if let Some(root) = self.folder.parent() {
            for pid in cgroup::members(&self.folder) {
                drop(fs::write(root.join("cgroup.procs"), pid.to_string()));
            }
        }
        drop(fs::remove_dir(&self.folder));
    }
}

/// Waits until the number of threads has been the same for 2.5 s, because idle ones end after some seconds. If one ends
/// even later, the limit that is set next allows a thread more: that makes the test weaker but cannot fail it.
async fn threads_are_stable(pid: u32) -> Result<()> {
    let mut last = (proc::threads(pid)?, Instant::now());
    wait::until("the daemon's number of threads to be stable", secs(30), || {
        let stable = proc::threads(pid).map(|now| {
            if now != last.0 {
                last = (now, Instant::now());
            }
            (last.1.elapsed() > Duration::from_millis(2500)).then_some(())
        });
        std::future::ready(stable)
    })
    .await
}

async fn stop_kill_and_exec_need_no_new_thread(cx: Context) -> Result<()> {
    let (pod, other) = (cx.pod().await?, cx.pod().await?);
    let one = cx.start(&pod, &cx.sleeper("one")).await?;
    let two = cx.start(&pod, &cx.sleeper("two")).await?;
    cx.start(&other, &cx.sleeper("three")).await?;
    let networked = cx.pod_of(cx.pod_config().own_network()).await?;
    let pid = cx.node.pid()?;
    let pids = Pids::new()?;
    fs::write(pids.folder.join("cgroup.procs"), pid.to_string())?;
    threads_are_stable(pid).await?;
    pids.close()?;
    for round in 0..5 {
        let asked = wait::timeout(secs(10), cx.cri.exec(&one, &["/bin/echo", "here"])).await;
        let out = asked.context("no answer to an exec")??;
        ensure!(out.stdout == "here\n", "round {round}: an exec at the limit of processes gave {out:?}");
    }
    cx.cri.list_stats(None).await.context("stats")?;
    // Networks are read in a thread of their own.
    let stats =
        cx.cri.pod_stats(&networked.id).await.context("stats of a pod")?.and_then(|stats| stats.linux);
    ensure!(
        stats.as_ref().is_some_and(|it| it.cpu.is_some() && it.memory.is_some() && it.network.is_none()),
        "without a new thread, the stats of a pod are {stats:?}"
    );
    let begun = wait::timeout(secs(20), cx.cri.run_pod(&cx.pod_config())).await;
    let begun = begun.context("no answer to a new pod")?;
    if cgroup::is_v2() && cgroup::driver() == Driver::Cgroupfs {
        // A shim is created in a cgroup of its own, and counts there. A call to systemd needs a thread.
        cx.cri.drop_pod(&begun.context("a pod beside the limit of the daemon's cgroup")?).await?;
    } else {
        let e = begun.err().context("a shim was started beyond the limit")?;
        ensure!(e.code() == Code::Unavailable, "a pod beyond the limit of processes was answered with {e}");
    }
    cx.cri.stop(&one, 0).await.context("stop of a container")?;
    cx.cri.remove(&one).await.context("removal of a container")?;
    // Without its shim, a pod is killed by its cgroups.
    proc::signal(cx.node.shim(&pod.id)?.pid, nix::sys::signal::Signal::SIGKILL)?;
    wait::timeout(secs(20), cx.cri.drop_pod(&pod.id)).await.context("end of a pod without a shim")??;
    ensure!(cx.cri.container(&two).await.is_err(), "a container of a removed pod has a status");
    wait::timeout(secs(20), cx.cri.drop_pod(&other.id)).await.context("end of a pod")??;
    ensure!(cx.node.pid()? == pid && proc::alive(pid), "the daemon has ended");
    drop(pids);
    cx.cri.drop_pod(&networked.id).await.context("end of a pod with a network")?;
    let pod = cx.pod().await.context("a pod with processes to spare")?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    cx.cri.sh(&id, "true").await?;
    Ok(())
}

/// The daemon must be able to start, because it can end the pod that uses up all processes.
async fn a_start_without_threads_serves(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    cx.node.terminate().await?;
    let pids = Pids::new()?;
    pids.limit("1")?;
    let (program, args) = cx.node.program();
    let mut command = Command::new("sh");
    command
        .args(["-c", "echo 0 > \"$0/cgroup.procs\" && exec \"$@\""])
        .arg(&pids.folder)
        .arg(program)
        .args(args);
    cx.node.launch_by(command).await.context("a start with one thread")?;
    let pid = cx.node.pid()?;
    let threads = proc::threads(pid)?;
    ensure!(threads == 1, "with a limit of one process the daemon has {threads} threads");
    ensure!(cx.cri.pods(None).await?.len() == 1, "the pod is not listed");
    wait::until("an exec to work", secs(20), || async {
        Ok((cx.cri.exec(&id, &["/bin/echo", "here"]).await?.stdout == "here\n").then_some(()))
    })
    .await?;
    wait::timeout(secs(30), cx.cri.drop_pod(&pod.id)).await.context("end of the pod")??;
    drop(pids);
    cx.node.restart().await?;
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("two")).await?;
    cx.cri.sh(&id, "true").await?;
    Ok(())
}
