//! Values, compared with the kernel files that they come from.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;

use super::{answered, linux, stats, value};
use crate::cgroup::{self, Limit, Usage};
use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::isolation::command;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(values_are_those_of_the_cgroups).ours(),
        test!(network_is_that_of_the_namespace).ours(),
        test!(containers_are_included).ours(),
        test!(rates_are_those_of_the_last_seconds).ours(),
    ]
}

/// The path of the pod's cgroup.
fn place(pod: &Pod) -> Result<String> {
    Ok(pod.config.linux.as_ref().context("no linux")?.cgroup_parent.clone())
}

/// The path of a pod's pinned network namespace, from verbose status.
async fn netns(cx: &Context, pod: &Pod) -> Result<String> {
    let info = cx.cri.pod_status(&pod.id).await?.info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("no verbose info")?)?;
    Ok(info["netns"].as_str().context("verbose info has no network namespace")?.to_owned())
}

/// What a memory cgroup says now: usage, inactive file pages, anonymous memory, faults, major faults, swap.
fn memory_now(place: &str) -> Result<[u64; 6]> {
    let now = |what| cgroup::usage_at(what, place);
    Ok([
        now(Usage::Memory)?,
        now(Usage::InactiveFile)?,
        now(Usage::Anonymous)?,
        now(Usage::Faults)?,
        now(Usage::MajorFaults)?,
        now(Usage::Swap)?,
    ])
}

/// Compares memory with the files of its cgroup, which must not change meanwhile: what is measured sleeps.
fn is_memory(memory: &api::MemoryUsage, now: [u64; 6], limit: Option<u64>) -> Result<()> {
    let [usage, inactive, rss, faults, major, _] = now;
    let working_set = usage.saturating_sub(inactive);
    let found = (
        value(memory.usage_bytes, "usage")?,
        value(memory.working_set_bytes, "working set")?,
        value(memory.rss_bytes, "rss")?,
        value(memory.page_faults, "page faults")?,
        value(memory.major_page_faults, "major page faults")?,
        memory.available_bytes.map(|bytes| bytes.value),
    );
    let wanted =
        (usage, working_set, rss, faults, major, limit.map(|limit| limit.saturating_sub(working_set)));
    ensure!(found == wanted && memory.timestamp > 0, "memory is {found:?}, the files say {wanted:?}");
    Ok(())
}

/// The interfaces in a network namespace except `lo`: name; bytes and errors received, bytes and errors sent.
fn interfaces(netns: &str) -> Result<Vec<(String, [u64; 4])>> {
    let shown = command("nsenter", &[&format!("--net={netns}"), "ip", "-json", "-statistics", "link"])?;
    let shown: Vec<serde_json::Value> = serde_json::from_str(&shown)?;
    let mut found = Vec::new();
    for link in shown {
        let name = link["ifname"].as_str().context("a link without a name")?.to_owned();
        let counter = |direction: &str, what: &str| {
            link["stats64"][direction][what]
                .as_u64()
                .with_context(|| format!("no {direction} {what} of {name}"))
        };
        let counters = [
            counter("rx", "bytes")?,
            counter("rx", "errors")?,
            counter("tx", "bytes")?,
            counter("tx", "errors")?,
        ];
        if name != "lo" {
            found.push((name, counters));
        }
    }
    Ok(found)
}

async fn values_are_those_of_the_cgroups(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network().label("k", "v")).await?;
    // What kubelet does with the limit of a pod.
    let limit = 512 << 20;
    let place = place(&pod)?;
    cgroup::set(Limit::Memory, &place, limit)?;
    let line = "dd if=/dev/zero of=/tmp/file bs=1M count=8 2>/dev/null; sleep 1000 & sleep 1000 & wait";
    let limited = cx.shell("limited", line).with(|c| {
        c.resources().memory_limit_in_bytes = 128 << 20;
        c.resources().memory_swap_limit_in_bytes = 192 << 20;
    });
    let id = cx.start(&pod, &limited).await?;
    cx.start(&pod, &cx.sleeper("free")).await?;

    let leaf = cgroup::place(&id).context("no cgroup of the container")?;
    let cpu = || cgroup::usage_at(Usage::Cpu, &place);
    // memory.stat of the kernel may be two seconds old.
    wait::until("equal values in the stats and the files", secs(30), || async {
        let before = (cpu()?, memory_now(&place)?, memory_now(&leaf)?);
        let stats = stats(&cx, &pod.id).await?;
        let after = (cpu()?, memory_now(&place)?, memory_now(&leaf)?);
        let attributes = stats.attributes.context("no attributes: kubelet would panic")?;
        ensure!(
            attributes.id == pod.id
                && attributes.metadata == pod.config.metadata
                && attributes.labels == pod.config.labels
                && attributes.annotations == pod.config.annotations,
            "attributes are {attributes:?}"
        );
        let linux = stats.linux.context("no `linux`")?;
        let used = linux.cpu.context("no cpu")?;
        let total = value(used.usage_core_nano_seconds, "CPU time")?;
        ensure!(
            (before.0..=after.0).contains(&total) && used.timestamp > 0,
            "{total} ns of CPU time is not between {} and {}",
            before.0,
            after.0
        );
        if (before.1, before.2) != (after.1, after.2) {
            return Ok(None);
        }
        is_memory(&linux.memory.context("no memory")?, before.1, Some(limit)).context("the pod")?;
        let listed = linux.containers.iter().find(|it| it.attributes.as_ref().is_some_and(|a| a.id == id));
        let container = listed.context("the container is not listed")?.clone();
        is_memory(&container.memory.context("no memory")?, before.2, Some(128 << 20))
            .context("the container")?;
        // Swap of the pod has no field.
        let swap = container.swap.context("no swap")?;
        let swap = (value(swap.swap_usage_bytes, "swap")?, value(swap.swap_available_bytes, "swap left")?);
        ensure!(swap == (before.2[5], (64 << 20) - before.2[5]), "swap is {swap:?}");
        Ok(Some(()))
    })
    .await?;
    processes_are_counted(&cx, &pod).await?;

    // Pressure of a cgroup exists only if the kernel has files for it.
    let has_pressure = cgroup::has_pressure(&place);
    let linux = linux(&cx, &pod.id).await?;
    ensure!(
        linux.io.is_some() == has_pressure
            && linux.cpu.is_some_and(|cpu| cpu.psi.is_some() == has_pressure)
            && linux.memory.is_some_and(|memory| memory.psi.is_some() == has_pressure),
        "the host has pressure files: {has_pressure}; io is {:?}",
        linux.io
    );
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// Processes, not threads, of all containers and without pause.
async fn processes_are_counted(cx: &Context, pod: &Pod) -> Result<()> {
    let freezer = cgroup::folder("freezer", &place(pod)?)?;
    let pause = cx.node.pause(&pod.id)?.pid;
    wait::until("the number of processes", secs(10), || async {
        let count = || {
            let members = cgroup::members(&freezer);
            (members.contains(&pause), members.len())
        };
        let before = count();
        let process = linux(cx, &pod.id).await?.process.context("no process")?;
        ensure!(before.0 && process.timestamp > 0, "pause is not in {}", freezer.display());
        let found = value(process.process_count, "process count")?;
        // A shell with two children, and a sleeper.
        Ok((before == count() && found == 4 && before.1 == 5).then_some(()))
    })
    .await
}

async fn network_is_that_of_the_namespace(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let netns = netns(&cx, &pod).await?;
    // A second interface, as Multus makes it, listed before eth0 in the alphabet and after it in the kernel.
    let inside = format!("--net={netns}");
    command("nsenter", &[&inside, "ip", "link", "add", "a1", "type", "veth", "peer", "name", "a2"])?;
    let gateway = cx.cri.sh(&id, "ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'").await?;
    for bytes in ["0", "1000"] {
        cx.cri.sh(&id, &format!("ping -c 2 -W 2 -s {bytes} {gateway} >/dev/null")).await?;
        // Packets that nobody asked for (neighbour discovery) may come between the readings.
        wait::until("equal counters in the stats and in `ip -s link`", secs(20), || async {
            let before = interfaces(&netns)?;
            let network = linux(&cx, &pod.id).await?.network.context("no network")?;
            if before != interfaces(&netns)? {
                return Ok(None);
            }
            let found = answered(&network)?;
            let sorted = |list: &[(String, [u64; 4])]| list.iter().cloned().collect::<BTreeSet<_>>();
            ensure!(
                sorted(&found) == sorted(&before) && found.len() == 3 && network.timestamp > 0,
                "the stats are {found:?}, `ip -s link` shows {before:?}"
            );
            let default = network.default_interface.context("no default interface: kubelet would panic")?;
            ensure!(default.name == "eth0", "the default interface is {}", default.name);
            ensure!(network.interfaces.contains(&default), "{default:?} is not in {found:?}");
            ensure!(value(default.rx_bytes, "rx_bytes")? > 0, "eth0 has received nothing");
            Ok(Some(()))
        })
        .await?;
    }
    // The counters of the host's network are not those of one pod.
    let host = cx.pod().await?;
    let shown = linux(&cx, &host.id).await?;
    ensure!(shown.network.is_none(), "a pod with the host's network has {:?}", shown.network);
    ensure!(shown.cpu.is_some() && shown.memory.is_some(), "and its own usage is {shown:?}");

    // A pod whose namespace cannot be entered has its other values, and disturbs no other pod.
    let broken = cx.pod_of(cx.pod_config().own_network()).await?;
    let pin = self::netns(&cx, &broken).await?;
    command("mount", &["--bind", "/dev/null", &pin])?;
    let listed = cx.cri.list_pod_stats(None).await?;
    // DEL needs it.
    command("umount", &[&pin])?;
    let network = |id: &str| {
        let found = listed.iter().find(|it| it.attributes.as_ref().is_some_and(|a| a.id == id))?;
        let linux = found.linux.as_ref()?;
        Some((linux.network.is_some(), linux.cpu.is_some() && linux.memory.is_some()))
    };
    let found = (network(&pod.id), network(&broken.id));
    ensure!(found == (Some((true, true)), Some((false, true))), "network and usage are listed: {found:?}");
    for pod in [pod, host, broken] {
        cx.cri.drop_pod(&pod.id).await?;
    }
    Ok(())
}

async fn containers_are_included(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let running = cx.start(&pod, &cx.sleeper("running")).await?;
    let created = cx.create(&pod, &cx.sleeper("created")).await?;
    cx.run(&pod, &cx.shell("ended", "exit 3")).await?;
    wait::until("a writable layer", secs(10), || async {
        let containers = linux(&cx, &pod.id).await?.containers;
        let filter = api::ContainerStatsFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
        let listed = cx.cri.list_stats(Some(filter)).await?;
        let attributes = |stats: &[api::ContainerStats], only_running: bool| -> Vec<_> {
            let shown = stats.iter().filter(|it| !only_running || it.cpu.is_some());
            shown.map(|it| it.attributes.clone()).collect()
        };
        // The list has only what runs.
        ensure!(
            attributes(&containers, true) == attributes(&listed, false)
                && (containers.len(), listed.len()) == (3, 1),
            "{:?} in the pod's stats, {:?} in the list",
            attributes(&containers, false),
            attributes(&listed, false)
        );
        for stats in &containers {
            let id = &stats.attributes.as_ref().context("no attributes")?.id;
            let has = (stats.cpu.is_some(), stats.memory.is_some(), stats.swap.is_some());
            ensure!(has == (*id == running, *id == running, *id == running), "container {id} has {stats:?}");
        }
        Ok(containers.iter().any(|stats| stats.writable_layer.is_some()).then_some(()))
    })
    .await?;
    // Each is the same as alone.
    let one = cx.cri.stats(&created).await?.context("no stats")?;
    let same = linux(&cx, &pod.id).await?.containers.into_iter().any(|stats| stats == one);
    ensure!(same, "the created container alone has {one:?}");
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

async fn rates_are_those_of_the_last_seconds(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    // Limited to a fifth of a core.
    let busy = cx.shell("busy", "while :; do :; done").with(|c| {
        c.resources().cpu_period = 10_000;
        c.resources().cpu_quota = 2000;
    });
    let busy = cx.start(&pod, &busy).await?;
    let idle = cx.start(&pod, &cx.sleeper("idle")).await?;
    let rates = || async {
        let linux = linux(&cx, &pod.id).await?;
        let rate = |cpu: Option<&api::CpuUsage>| Some(cpu?.usage_nano_cores?.value);
        let of = |id: &str| {
            let container =
                linux.containers.iter().find(|it| it.attributes.as_ref().is_some_and(|a| a.id == id));
            container.and_then(|it| rate(it.cpu.as_ref()))
        };
        anyhow::Ok((rate(linux.cpu.as_ref()), of(&busy), of(&idle)))
    };
    rates().await?;
    // The first rate comes after one second; a pause of the test makes it later, not earlier.
    let first = wait::until("the first rate", secs(10), || async {
        Ok(match rates().await? {
            (Some(pod), Some(busy), Some(idle)) => Some((pod, busy, idle)),
            _ => None,
        })
    })
    .await?;
    let fifth = 20_000_000..=230_000_000;
    let is_fine = |(pod, busy, idle): (u64, u64, u64)| {
        fifth.contains(&busy) && (busy * 9 / 10..=busy + 150_000_000).contains(&pod) && idle < 20_000_000
    };
    ensure!(
        is_fine(first),
        "nano-cores of the pod, a container limited to a fifth, and an idle one: {first:?}"
    );
    // Who else asks does not matter, and neither does a pause of less than a second between two calls.
    for _ in 0..5 {
        let (pod, busy, idle) = rates().await?;
        let found = (pod.context("no rate")?, busy.context("no rate")?, idle.context("no rate")?);
        ensure!(is_fine(found), "nano-cores in the next call: {found:?}");
    }
    // A container that has just started has CPU time, but no rate yet.
    let new = cx.start(&pod, &cx.sleeper("new")).await?;
    let cpu = cx.cri.stats(&new).await?.context("no stats")?.cpu.context("no cpu right after the start")?;
    ensure!(
        cpu.timestamp > 0 && value(cpu.usage_core_nano_seconds, "CPU time")? > 0,
        "right after its start a container has {cpu:?}"
    );
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}
