//! UpdateContainerResources: updates that are made, interrupted and overtaken. `refused`: updates that are not made;
//! `pod`: UpdatePodSandboxResources.

mod pod;
mod refused;

use std::process::Command;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use serde_json::Value;
use tonic::Code;

use crate::cgroup;
use crate::cgroup::Limit;
use crate::context::Context;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::shapes::ContainerExt as _;
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    [made(), refused::tests(), pod::tests()].concat()
}

fn made() -> Vec<Test> {
    vec![
        test!(running_container_gets_new_limits),
        test!(created_container_starts_with_new_limits),
        test!(limits_take_effect),
        test!(cpu_manager_and_resize_leave_the_rest),
        test!(daemon_that_ends_in_an_update),
        test!(updates_race_with_everything),
    ]
}

const MIB: i64 = 1 << 20;

/// The limits that the tests begin with.
fn first() -> api::LinuxContainerResources {
    api::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 100,
        memory_limit_in_bytes: 32 * MIB,
        oom_score_adj: 800,
        ..Default::default()
    }
}

/// Every field that a v1 host has, with another value.
fn second() -> api::LinuxContainerResources {
    api::LinuxContainerResources {
        cpu_period: 50_000,
        cpu_quota: 40_000,
        cpu_shares: 300,
        memory_limit_in_bytes: 64 * MIB,
        memory_swap_limit_in_bytes: 96 * MIB,
        oom_score_adj: 900,
        cpuset_cpus: String::from("0"),
        cpuset_mems: String::from("0"),
        // On a host that does not count huge pages, a limit of zero is fulfilled without its file.
        hugepage_limits: vec![api::HugepageLimit { page_size: String::from("2MB"), limit: 0 }],
        ..Default::default()
    }
}

fn sleeper(cx: &Context) -> api::ContainerConfig {
    cx.sleeper("main").with(|c| *c.resources() = first())
}

/// The limits in a container's cgroup.
#[derive(Debug, PartialEq, Eq)]
struct Limits {
    numbers: Vec<(Limit, Option<u64>)>,
    cpus_and_nodes: [String; 2],
}

const LIMITS: [Limit; 5] =
    [Limit::CpuPeriod, Limit::CpuQuota, Limit::CpuShares, Limit::Memory, Limit::MemoryAndSwap];

fn limits(id: &str) -> Result<Limits> {
    let numbers = LIMITS.map(|limit| Ok((limit, cgroup::limit(limit, id)?)));
    Ok(Limits {
        numbers: numbers.into_iter().collect::<Result<_>>()?,
        cpus_and_nodes: cgroup::cpus_and_nodes(id)?,
    })
}

impl Limits {
    /// Fails if a limit is not this number: -1 is none, and shares are what the host makes of them.
    fn has(&self, limit: Limit, wanted: i64) -> Result<()> {
        let found = self.numbers.iter().find(|(name, _)| *name == limit).and_then(|(_, value)| *value);
        let wanted = u64::try_from(wanted).ok();
        let wanted = if limit == Limit::CpuShares { wanted.map(cgroup::shares) } else { wanted };
        ensure!(found == wanted, "{limit:?} is {found:?}, not {wanted:?}");
        Ok(())
    }

    fn has_cpu(&self, cpus: &str) -> Result<()> {
        ensure!(self.cpus_and_nodes[0] == cpus, "the CPUs are {:?}, not {cpus}", self.cpus_and_nodes);
        Ok(())
    }
}

/// The cgroup has the limits of [`second`].
fn has_second(id: &str) -> Result<()> {
    let now = limits(id)?;
    now.has(Limit::CpuPeriod, 50_000)?;
    now.has(Limit::CpuQuota, 40_000)?;
    now.has(Limit::CpuShares, 300)?;
    now.has(Limit::Memory, 64 * MIB)?;
    now.has(Limit::MemoryAndSwap, 96 * MIB)?;
    ensure!(now.cpus_and_nodes == ["0", "0"], "CPUs and nodes are {:?}", now.cpus_and_nodes);
    Ok(())
}

/// The resources in ContainerStatus and in its verbose information, which must be equal.
async fn shown(cx: &Context, id: &str) -> Result<api::LinuxContainerResources> {
    let response = cx.cri.container_response(id).await?;
    let info: Value = serde_json::from_str(response.info.get("info").context("no verbose information")?)?;
    let shown = response.status.and_then(|s| s.resources).and_then(|r| r.linux).context("no resources")?;
    let verbose =
        info.pointer("/config/linux/resources").context("no resources in the verbose information")?;
    for (name, value) in [
        ("cpu_period", shown.cpu_period),
        ("cpu_quota", shown.cpu_quota),
        ("cpu_shares", shown.cpu_shares),
        ("memory_limit_in_bytes", shown.memory_limit_in_bytes),
        ("memory_swap_limit_in_bytes", shown.memory_swap_limit_in_bytes),
        ("oom_score_adj", shown.oom_score_adj),
    ] {
        let verbose = verbose.get(name).and_then(Value::as_i64);
        ensure!(verbose == Some(value), "the status shows {name} {value}, and verbosely {verbose:?}");
    }
    Ok(shown)
}

/// What the container's device rules let it do: the list that v1 has of them, and what becomes of opening devices, which
/// is all that v2 shows.
async fn devices(cx: &Context, id: &str) -> Result<(Option<String>, String)> {
    let line = "for device in 'null 1 3' 'kmsg 1 11' 'mem 1 1' 'loop 7 0'; do set -- $device; \
                mknod /tmp/$1 c $2 $3 && true 3<> /tmp/$1 && echo $1; rm -f /tmp/$1; done 2>/dev/null; true";
    let list = if cgroup::is_v2() { None } else { Some(cgroup::read("devices", id, "devices.list")?) };
    Ok((list, cx.cri.sh(id, line).await?))
}

async fn running_container_gets_new_limits(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &sleeper(&cx)).await?;
    let before = devices(&cx, &id).await?;
    let request = api::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(second()),
        windows: None,
        annotations: [(String::from("note"), String::from("resized"))].into(),
    };
    cx.cri.update_with(request).await?;
    has_second(&id)?;
    ensure!(devices(&cx, &id).await? == before, "the update has changed the device rules");
    let scores = "cat /proc/1/oom_score_adj; cat /proc/self/oom_score_adj";
    cx.prints(&id, scores, "900\n900").await.context("init and an exec")?;
    cx.prints(&id, "grep Cpus_allowed_list /proc/1/status | cut -f2", "0").await?;
    ensure!(shown(&cx, &id).await? == second(), "the status has {:?}", shown(&cx, &id).await?);
    let info = cx.cri.container_response(&id).await?.info;
    let info: Value = serde_json::from_str(info.get("info").context("no verbose information")?)?;
    let note = info.pointer("/updateAnnotations/note").and_then(Value::as_str);
    ensure!(note == Some("resized"), "the verbose information has the annotation {note:?}");
    let status = cx.cri.container(&id).await?;
    ensure!(
        status.annotations.is_empty(),
        "an update has changed the annotations to {:?}",
        status.annotations
    );
    // Killing the daemon changes none of it.
    cx.node.crash().await?;
    has_second(&id)?;
    ensure!(shown(&cx, &id).await? == second(), "after a restart: {:?}", shown(&cx, &id).await?);
    cx.prints(&id, scores, "900\n900").await.context("after a restart")?;
    // What a zero leaves, and what a negative number removes.
    let lifted =
        api::LinuxContainerResources { cpu_quota: -1, memory_limit_in_bytes: -1, ..Default::default() };
    cx.cri.update(&id, lifted).await?;
    let now = limits(&id)?;
    now.has(Limit::CpuQuota, -1)?;
    now.has(Limit::CpuShares, 300)?;
    now.has(Limit::Memory, -1)?;
    now.has(Limit::MemoryAndSwap, -1)
}

async fn created_container_starts_with_new_limits(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = cx
        .shell("main", &format!("cat /proc/self/oom_score_adj {}; nproc", cgroup::inside(Limit::Memory)))
        .with(|c| *c.resources() = first());
    let id = cx.create(&pod, &config).await?;
    cx.cri.update(&id, second()).await?;
    has_second(&id)?;
    // An equal CreateContainer, which kubelet repeats after a time-out, is the same container.
    let again = cx.create(&pod, &config).await?;
    ensure!(again == id, "a repeated CreateContainer after an update made {again} beside {id}");
    cx.node.crash().await?;
    ensure!(shown(&cx, &id).await? == second(), "after a restart: {:?}", shown(&cx, &id).await?);
    has_second(&id)?;
    let again = cx.create(&pod, &config).await?;
    ensure!(again == id, "a repeated CreateContainer after a restart made {again} beside {id}");
    cx.cri.start(&id).await?;
    let status = cx.cri.wait_exit(&id, secs(10)).await?;
    let text = crate::logfile::Log::read(&status.log_path)?.text(None);
    ensure!(text == format!("900\n{}\n1\n", 64 * MIB), "the container saw {text:?}");
    Ok(())
}

async fn limits_take_effect(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id =
        cx.start(&pod, &cx.sleeper("main").with(|c| c.resources().memory_limit_in_bytes = 16 * MIB)).await?;
    let hungry = ["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=32M", "count=1"];
    let dd = || async { Ok::<_, anyhow::Error>(cx.cri.exec(&id, &hungry).await?.code) };
    ensure!(dd().await? == 137, "32 MiB fit into a limit of 16 MiB");
    let limit =
        |mib: i64| api::LinuxContainerResources { memory_limit_in_bytes: mib * MIB, ..Default::default() };
    cx.cri.update(&id, limit(64)).await?;
    ensure!(dd().await? == 0, "32 MiB do not fit into the new limit of 64 MiB");
    cx.cri.update(&id, limit(16)).await?;
    ensure!(dd().await? == 137, "32 MiB fit into the new limit of 16 MiB");
    Ok(())
}

async fn cpu_manager_and_resize_leave_the_rest(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &sleeper(&cx)).await?;
    // kubelet's CPU manager sends nothing else.
    let cpus = api::LinuxContainerResources { cpuset_cpus: String::from("0"), ..Default::default() };
    cx.cri.update(&id, cpus).await?;
    let now = limits(&id)?;
    now.has_cpu("0")?;
    now.has(Limit::CpuQuota, 50_000)?;
    now.has(Limit::Memory, 32 * MIB)?;
    // A resize sends what a create sends.
    for cpu in [40_000, 20_000, 90_000] {
        let resized = api::LinuxContainerResources {
            cpu_quota: cpu,
            memory_limit_in_bytes: cpu * 1000 / 4096 * 4096,
            ..first()
        };
        cx.cri.update(&id, resized.clone()).await?;
        let now = limits(&id)?;
        now.has(Limit::CpuQuota, cpu)?;
        now.has(Limit::Memory, resized.memory_limit_in_bytes)?;
        now.has(Limit::MemoryAndSwap, resized.memory_limit_in_bytes)?;
        now.has_cpu("0")?;
        let shown = shown(&cx, &id).await?;
        ensure!(
            shown == api::LinuxContainerResources { cpuset_cpus: String::from("0"), ..resized },
            "shown: {shown:?}"
        );
    }
    Ok(())
}

/// Starts the daemon so that it ends at this point.
async fn launch_to_fail(cx: &Context, point: &str) -> Result<()> {
    cx.node.terminate().await?;
    let (program, args) = cx.node.program();
    let mut command = Command::new(program);
    command.args(args).env("COPEPOD_FAILPOINT", point);
    cx.node.launch_by(command).await
}

/// What is shown after the restart is what the cgroup has, all or nothing, whenever the daemon ended.
async fn daemon_that_ends_in_an_update(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &sleeper(&cx)).await?;
    let before = limits(&id)?;
    launch_to_fail(&cx, "update.recorded").await?;
    ensure!(cx.cri.update(&id, second()).await.is_err(), "the failpoint did not end the daemon");
    // Part of the update: as if the daemon had ended a little later.
    let place = cgroup::place(&id).context("no cgroup")?;
    cgroup::set(Limit::CpuShares, &place, cgroup::shares(300))?;
    cx.node.crash().await?;
    wait::until("the update to be undone", secs(10), || async { Ok((limits(&id)? == before).then_some(())) })
        .await?;
    ensure!(shown(&cx, &id).await? == first(), "shown: {:?}", shown(&cx, &id).await?);
    cx.prints(&id, "cat /proc/1/oom_score_adj; cat /proc/self/oom_score_adj", "800\n800").await?;

    launch_to_fail(&cx, "update.applied").await?;
    ensure!(cx.cri.update(&id, second()).await.is_err(), "the failpoint did not end the daemon");
    cx.node.crash().await?;
    has_second(&id)?;
    wait::until("the update to be shown", secs(10), || async {
        Ok((shown(&cx, &id).await? == second()).then_some(()))
    })
    .await?;
    cx.prints(&id, "cat /proc/1/oom_score_adj; cat /proc/self/oom_score_adj", "900\n900").await?;
    cx.cri.update(&id, first()).await?;
    // The update is settled: another restart changes nothing.
    let now = limits(&id)?;
    cx.node.crash().await?;
    tokio::time::sleep(secs(1)).await;
    ensure!(
        limits(&id)? == now && shown(&cx, &id).await?.cpu_shares == 100,
        "a restart has changed the limits"
    );
    Ok(())
}

async fn updates_race_with_everything(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for round in 0..4 {
        let id =
            cx.create(&pod, &cx.sleeper(&format!("c{round}")).with(|c| *c.resources() = first())).await?;
        let mut work = Vec::new();
        for n in 0..8_i64 {
            let (cx, id) = (cx.clone(), id.clone());
            work.push(tokio::spawn(async move {
                let linux = api::LinuxContainerResources {
                    cpu_shares: 100 + n,
                    memory_limit_in_bytes: (16 + n) * MIB,
                    ..Default::default()
                };
                cx.cri.update(&id, linux).await
            }));
        }
        cx.cri.start(&id).await?;
        if round % 2 == 0 {
            for one in work.drain(..) {
                one.await?.context("an update beside the start")?;
            }
            // They were done one after the other: the files are those of one of them, and are shown.
            let (now, shown) = (limits(&id)?, shown(&cx, &id).await?);
            now.has(Limit::CpuShares, shown.cpu_shares)?;
            now.has(Limit::Memory, shown.memory_limit_in_bytes)?;
            ensure!(shown.memory_limit_in_bytes / MIB - 16 == shown.cpu_shares - 100, "mixed: {shown:?}");
        }
        let stop = cx.cri.stop(&id, 0);
        let late = cx.cri.update(&id, second());
        let (stopped, _) = tokio::join!(stop, late);
        stopped?;
        cx.cri.remove(&id).await?;
        for one in work {
            if let Err(status) = one.await? {
                ensure!(matches!(status.code(), Code::FailedPrecondition | Code::NotFound), "{status}");
            }
        }
        ensure!(cgroup::find("memory", &id).is_none(), "a cgroup is left of {id}");
    }
    Ok(())
}
