//! Privileged containers that freeze, nest, multiply or leave their cgroups.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use cri_api::v1::MountPropagation;

use crate::context::Context;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};
use crate::wait::secs;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(own_frozen_cgroup_does_not_keep_it_alive),
        test!(deep_cgroups_are_killed),
        test!(who_left_the_freezer_is_killed),
        test!(ten_thousand_cgroups_are_removed),
    ]
}

/// A privileged container on a pod that allows it, with the line as its shell's.
async fn privileged(cx: &Context, line: &str) -> Result<String> {
    let pod = cx.pod_of(cx.pod_config().privileged()).await?;
    let id = cx.start(&pod, &cx.shell("one", line).privileged()).await?;
    cx.cri.sh(&id, "until [ -e /tmp/ready ]; do sleep 0.01; done").await?;
    Ok(id)
}

async fn own_frozen_cgroup_does_not_keep_it_alive(cx: Context) -> Result<()> {
    let mark = format!("7{:05}", shapes::unique());
    let line = format!(
        "cd /sys/fs/cgroup/freezer; mkdir -p a/b; sleep {mark} & echo $! > a/b/cgroup.procs; \
         echo FROZEN > a/b/freezer.state; touch /tmp/ready; exec sleep 1000"
    );
    let id = privileged(&cx, &line).await?;
    let start = Instant::now();
    cx.cri.stop(&id, 0).await?;
    ensure!(start.elapsed() < secs(5), "its stop took {:?}", start.elapsed());
    ensure!(proc::with_args(&format!("sleep {mark}")).is_empty(), "a process that it froze itself lives");
    cx.cri.remove(&id).await?;
    Ok(())
}

async fn deep_cgroups_are_killed(cx: Context) -> Result<()> {
    let mark = format!("8{:05}", shapes::unique());
    let line = format!(
        "cd /sys/fs/cgroup/freezer; i=0; while [ $i -lt 50 ]; do mkdir d && cd d; i=$((i+1)); done; \
         setsid sleep {mark} & echo $! > cgroup.procs; touch /tmp/ready; exec sleep 1000"
    );
    // In the PID namespace of pause, other processes do not end with init.
    let pod = cx.pod_of(cx.pod_config().privileged().shared_pid()).await?;
    let id = cx.start(&pod, &cx.shell("one", &line).privileged()).await?;
    cx.cri.sh(&id, "until [ -e /tmp/ready ]; do sleep 0.01; done").await?;
    ensure!(!proc::with_args(&format!("sleep {mark}")).is_empty(), "the test's process does not run");
    cx.cri.stop(&id, 0).await?;
    ensure!(proc::with_args(&format!("sleep {mark}")).is_empty(), "a process 50 cgroups deep lives");
    cx.cri.remove(&id).await?;
    Ok(())
}

async fn ten_thousand_cgroups_are_removed(cx: Context) -> Result<()> {
    let mark = format!("6{:05}", shapes::unique());
    let line = format!(
        "cd /sys/fs/cgroup/freezer; mkdir $(seq 1 10200); setsid sleep {mark} & \
         echo $! > /sys/fs/cgroup/freezer/10200/cgroup.procs; touch /tmp/ready; exec sleep 1000"
    );
    let pod = cx.pod_of(cx.pod_config().privileged().shared_pid()).await?;
    let id = cx.start(&pod, &cx.shell("one", &line).privileged()).await?;
    cx.cri.sh(&id, "until [ -e /tmp/ready ]; do sleep 0.01; done").await?;
    cx.cri.stop(&id, 0).await.context("stop")?;
    ensure!(proc::with_args(&format!("sleep {mark}")).is_empty(), "a process in one of them lives");
    cx.cri.remove(&id).await.context("removal")?;
    ensure!(crate::cgroup::find("freezer", &id).is_none(), "its cgroup is still there");
    Ok(())
}

async fn who_left_the_freezer_is_killed(cx: Context) -> Result<()> {
    let mark = format!("9{:05}", shapes::unique());
    let line = format!(
        "setsid sleep {mark} & echo $! > /host/freezer/cgroup.procs && touch /tmp/ready; exec sleep 1000"
    );
    let pod = cx.pod_of(cx.pod_config().privileged().shared_pid()).await?;
    let config = cx.shell("one", &line).privileged().mount(
        Path::new("/sys/fs/cgroup"),
        "/host",
        false,
        MountPropagation::PropagationPrivate,
    );
    let id = cx.start(&pod, &config).await?;
    cx.cri.sh(&id, "until [ -e /tmp/ready ]; do sleep 0.01; done").await?;
    let all = proc::with_args(&format!("sleep {mark}"));
    ensure!(!all.is_empty(), "the test's process does not run");
    cx.cri.stop(&id, 0).await?;
    ensure!(proc::with_args(&format!("sleep {mark}")).is_empty(), "who left the freezer hierarchy lives");
    Ok(())
}
