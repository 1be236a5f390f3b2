//! The cgroup driver systemd: scopes of pods, and what systemd and the message bus may do beside them. On a node with the
//! driver cgroupfs only what is refused there is tested.

use std::process::Command;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use tonic::Code;

use crate::cgroup::{self, Driver, Limit};
use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::below_parent;
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(parent_of_the_other_driver_is_refused).ours(),
        test!(a_pod_has_one_scope_and_no_unit_is_left).ours(),
        test!(reloads_and_other_units_lose_no_limit).ours().limit(180),
        test!(the_bus_may_go_away).own().limit(120),
        test!(daemon_killed_before_pause_leaves_nothing).own().limit(120),
    ]
}

/// Whether systemd is the driver; prints that the test does nothing if not.
fn has_scopes(cx: &Context) -> bool {
    let has = cgroup::driver() == Driver::Systemd;
    if !has {
        println!(
            "      {}: pods have no scopes here: run it with COPEPOD_TEST_CGROUP_DRIVER=systemd",
            cx.name
        );
    }
    has
}

fn systemctl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("systemctl").args(arguments).output().context("run systemctl")?;
    ensure!(output.status.success(), "systemctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// All scopes of pods that systemd knows, whatever their state.
fn scopes() -> Result<String> {
    systemctl(&["list-units", "--all", "--plain", "--no-legend", "copepod-*.scope"])
}

fn scope(pod: &str) -> String {
    format!("copepod-{}.scope", pod.get(..16).unwrap_or(pod))
}

async fn parent_of_the_other_driver_is_refused(cx: Context) -> Result<()> {
    let (parents, word) = match cgroup::driver() {
        Driver::Cgroupfs => (["/kubepods.slice/kubepods-podx.slice", "system.slice"], "is a systemd slice"),
        Driver::Systemd => (["/kubepods/podx", "/"], "must be a slice"),
    };
    for parent in parents {
        let mut config = cx.pod_config();
        parent.clone_into(&mut config.linux.get_or_insert_default().cgroup_parent);
        let refused =
            cx.cri.run_pod(&config).await.err().with_context(|| format!("a pod came up in {parent}"))?;
        let text = refused.message();
        ensure!(refused.code() == Code::InvalidArgument && text.contains(word), "{parent}: {refused}");
        ensure!(text.contains("cgroup_driver"), "{parent}: no advice: {refused}");
    }
    Ok(())
}

async fn a_pod_has_one_scope_and_no_unit_is_left(cx: Context) -> Result<()> {
    if !has_scopes(&cx) {
        return Ok(());
    }
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let unit = scope(&pod.id);
    let properties = "Delegate,TasksMax,CollectMode,ActiveState,DefaultDependencies";
    let shown = systemctl(&["show", &unit, "-p", properties])?;
    for wanted in
        ["Delegate=yes", "TasksMax=infinity", "CollectMode=inactive-or-failed", "ActiveState=active"]
    {
        ensure!(shown.contains(wanted), "{unit} is not {wanted}: {shown}");
    }
    let place = cgroup::place(&id).context("the container has no cgroup")?;
    ensure!(place.ends_with(&format!("/{unit}/{id}")), "the container is in {place}");
    ensure!(cgroup::find("memory", "starting").is_none(), "the cgroup that the scope began with is left");
    cx.cri.drop_pod(&pod.id).await?;
    wait::until("systemd to forget the scope", secs(10), || async {
        Ok((!scopes()?.contains(&unit)).then_some(()))
    })
    .await
}

/// A container with limits, and what they must stay.
async fn limited(cx: &Context) -> Result<(Pod, String)> {
    let mut config = cx.pod_config();
    config.linux.get_or_insert_default().cgroup_parent = below_parent("churn");
    let pod = cx.pod_of(config).await?;
    let mut container = cx.sleeper("limited");
    container.linux.get_or_insert_default().resources = Some(api::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    let id = cx.start(&pod, &container).await?;
    Ok((pod, id))
}

fn has_its_limits(pod: &str, id: &str) -> Result<()> {
    let (memory, quota) = (cgroup::limit(Limit::Memory, id)?, cgroup::limit(Limit::CpuQuota, id)?);
    ensure!((memory, quota) == (Some(64 << 20), Some(50_000)), "the container has {memory:?} and {quota:?}");
    // cgroup::limit would find the shim's cgroup, which is named like the pod.
    let place = cgroup::place(id).context("the container has no cgroup")?;
    let pause = place.replace(id, pod);
    let pids = cgroup::limit_at(Limit::Pids, &pause)?;
    ensure!(pids == Some(1), "pause may have {pids:?} processes");
    Ok(())
}

async fn reloads_and_other_units_lose_no_limit(cx: Context) -> Result<()> {
    if !has_scopes(&cx) {
        return Ok(());
    }
    let (pod, id) = limited(&cx).await?;
    has_its_limits(&pod.id, &id)?;
    let slice = below_parent("churn").rsplit('/').next().unwrap_or_default().to_owned();
    for round in 0..3 {
        let in_slice = format!("--slice={slice}");
        for arguments in
            [vec!["--scope", "--quiet", &in_slice, "true"], vec!["--wait", "--quiet", &in_slice, "true"]]
        {
            let ran = Command::new("systemd-run").args(&arguments).status().context("run systemd-run")?;
            ensure!(ran.success(), "systemd-run {arguments:?}");
        }
        systemctl(&["daemon-reload"])?;
        systemctl(&["set-property", "--runtime", &slice, &format!("CPUWeight={}", 50 + round)])?;
        systemctl(&["daemon-reexec"])?;
        // A pod that comes up beside it.
        let other = cx.pod().await.context("a pod after daemon-reexec")?;
        has_its_limits(&pod.id, &id).with_context(|| format!("round {round}"))?;
        cx.cri.drop_pod(&other.id).await?;
    }
    cx.exec_works(&id).await?;
    cx.cri
        .update(&id, api::LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() })
        .await?;
    systemctl(&["daemon-reload"])?;
    let memory = cgroup::limit(Limit::Memory, &id)?;
    ensure!(memory == Some(96 << 20), "after an update and a reload the limit is {memory:?}");
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// Starts the message bus again, whatever becomes of the test.
struct NoBus;

impl NoBus {
    fn stop() -> Result<Self> {
        systemctl(&["stop", "dbus.socket", "dbus.service"]).map(|_| Self)
    }
}

impl Drop for NoBus {
    fn drop(&mut self) {
        drop(systemctl(&["start", "dbus.socket", "dbus.service"]));
    }
}

async fn the_bus_may_go_away(cx: Context) -> Result<()> {
    if !has_scopes(&cx) {
        return Ok(());
    }
    let (pod, id) = limited(&cx).await?;
    systemctl(&["restart", "dbus.service"])?;
    let second = cx.pod().await.context("a pod after a restart of the bus")?;
    let stopped = NoBus::stop()?;
    cx.exec_works(&id).await?;
    let third = cx.pod().await.context("a pod without the bus: systemd has a socket of its own")?;
    cx.cri.drop_pod(&second.id).await.context("a removal without the bus")?;
    drop(stopped);
    has_its_limits(&pod.id, &id)?;
    for pod in [pod.id, third.id] {
        cx.cri.drop_pod(&pod).await?;
    }
    Ok(())
}

/// The processes that stand in scopes which have no pause yet.
fn holders() -> usize {
    proc::with_args("hold").iter().filter(|process| process.args.starts_with("copepod-shim hold")).count()
}

async fn daemon_killed_before_pause_leaves_nothing(cx: Context) -> Result<()> {
    if !has_scopes(&cx) {
        return Ok(());
    }
    for point in ["pod.holder", "pod.scope", "pod.supervised", "pod.isolated"] {
        let config = cx.pod_config();
        cx.node.terminate().await?;
        let (program, args) = cx.node.program();
        let mut command = Command::new(program);
        command.args(args).env("COPEPOD_FAILPOINT", point);
        cx.node.launch_by(command).await?;
        let others = scopes()?;
        let ran = cx.cri.run_pod(&config).await;
        ensure!(ran.is_err(), "the failpoint {point} did not end the daemon");
        cx.node.kill9()?;
        cx.node.launch().await?;
        wait::until(&format!("nothing to be left of {point}"), secs(20), || async {
            Ok((scopes()?.lines().count() <= others.lines().count() && holders() == 0).then_some(()))
        })
        .await?;
        let again =
            wait::until("the name to be free", secs(20), || async { Ok(cx.cri.run_pod(&config).await.ok()) });
        cx.cri.drop_pod(&again.await.context(point)?).await?;
    }
    Ok(())
}
