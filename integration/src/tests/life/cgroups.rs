//! Privileged containers that freeze, nest, multiply or leave their cgroups.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, MountPropagation};

use crate::cgroup;
use crate::context::Context;
use crate::expect::ensure;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(own_frozen_cgroup_does_not_keep_it_alive),
        test!(deep_cgroups_are_killed),
        test!(process_that_left_the_freezer_is_killed),
        test!(ten_thousand_cgroups_are_removed),
    ]
}

/// Where a privileged container sees its own cgroup with the freezer.
fn freezer() -> &'static str {
    if cgroup::is_v2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/freezer" }
}

/// Starts a privileged container in a pod of this configuration, and waits until it has created /tmp/ready.
async fn ready(cx: &Context, pod: api::PodSandboxConfig, config: &api::ContainerConfig) -> Result<String> {
    let pod = cx.pod_of(pod.privileged()).await?;
    let id = cx.start(&pod, &config.clone().privileged()).await?;
    cx.cri.sh(&id, "until [ -e /tmp/ready ]; do sleep 0.01; done").await?;
    Ok(id)
}

/// Fails if no process runs `sleep` with this argument: the test would show nothing.
fn sleeps(mark: &str) -> Result<()> {
    ensure!(!proc::with_args(&format!("sleep {mark}")).is_empty(), "the test's process does not run");
    Ok(())
}

/// No process runs `sleep` with this argument.
fn is_killed(mark: &str) -> Result<()> {
    let left = proc::with_args(&format!("sleep {mark}"));
    ensure!(left.is_empty(), "after StopContainer the container's processes {left:?} are alive");
    Ok(())
}

async fn own_frozen_cgroup_does_not_keep_it_alive(cx: Context) -> Result<()> {
    let mark = format!("7{:05}", shapes::unique());
    let freeze = if cgroup::is_v2() { "1 > a/b/cgroup.freeze" } else { "FROZEN > a/b/freezer.state" };
    let line = format!(
        "cd {}; mkdir -p a/b; sleep {mark} & echo $! > a/b/cgroup.procs; \
         echo {freeze}; touch /tmp/ready; exec sleep 1000",
        freezer()
    );
    let id = ready(&cx, cx.pod_config(), &cx.shell("one", &line)).await?;
    sleeps(&mark)?;
    let start = Instant::now();
    cx.cri.stop(&id, 0).await?;
    ensure!(start.elapsed() < wait::longer(secs(5)), "its stop took {:?}", start.elapsed());
    is_killed(&mark).context("a process that the container froze itself")?;
    cx.cri.remove(&id).await?;
    Ok(())
}

async fn deep_cgroups_are_killed(cx: Context) -> Result<()> {
    let mark = format!("8{:05}", shapes::unique());
    let line = format!(
        "cd {}; i=0; while [ $i -lt 50 ]; do mkdir d && cd d; i=$((i+1)); done; \
         setsid sleep {mark} & echo $! > cgroup.procs; touch /tmp/ready; exec sleep 1000",
        freezer()
    );
    // In the PID namespace of pause, other processes do not end with init.
    let id = ready(&cx, cx.pod_config().shared_pid(), &cx.shell("one", &line)).await?;
    sleeps(&mark)?;
    cx.cri.stop(&id, 0).await?;
    is_killed(&mark).context("a process 50 cgroups deep")?;
    cx.cri.remove(&id).await?;
    Ok(())
}

async fn ten_thousand_cgroups_are_removed(cx: Context) -> Result<()> {
    let mark = format!("6{:05}", shapes::unique());
    let line = format!(
        "cd {0}; mkdir $(seq 1 10200); setsid sleep {mark} & \
         echo $! > {0}/10200/cgroup.procs; touch /tmp/ready; exec sleep 1000",
        freezer()
    );
    let id = ready(&cx, cx.pod_config().shared_pid(), &cx.shell("one", &line)).await?;
    sleeps(&mark)?;
    cx.cri.stop(&id, 0).await.context("stop")?;
    is_killed(&mark).context("a process in one of 10,200 cgroups")?;
    cx.cri.remove(&id).await.context("removal")?;
    ensure!(cgroup::find("freezer", &id).is_none(), "its cgroup is still there");
    Ok(())
}

async fn process_that_left_the_freezer_is_killed(cx: Context) -> Result<()> {
    let mark = format!("9{:05}", shapes::unique());
    let root = if cgroup::is_v2() { "/host" } else { "/host/freezer" };
    let line =
        format!("setsid sleep {mark} & echo $! > {root}/cgroup.procs && touch /tmp/ready; exec sleep 1000");
    let config = cx.shell("one", &line).mount(
        Path::new("/sys/fs/cgroup"),
        "/host",
        false,
        MountPropagation::PropagationPrivate,
    );
    let id = ready(&cx, cx.pod_config().shared_pid(), &config).await?;
    sleeps(&mark)?;
    cx.cri.stop(&id, 0).await?;
    is_killed(&mark).context("a process that left the container's freezer cgroup")
}
