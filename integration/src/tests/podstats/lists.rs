//! Which pods have stats, in lists, streams, and over the life of pods and of the daemon.

use std::time::Duration;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use tonic::Code;

use super::{answered, linux, stats, value};
use crate::context::Context;
use crate::expect::ensure;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::PodExt as _;
use crate::wait::{self, secs};

/// Number of pods whose samples are measured.
const SAMPLED: usize = 100;
/// How long they are measured: two samples of each.
const MEASURED: Duration = Duration::from_secs(20);
/// Maximum size in bytes of one part of a streamed list.
const MAX_CHUNK: usize = 1 << 20;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(only_ready_pods_have_values).ours(),
        test!(lists_come_in_parts).own(),
        test!(pods_that_ended_are_forgotten).own().limit(120),
        test!(values_go_on_after_a_restart).own(),
        test!(samples_cost_little).own().limit(180),
    ]
}

async fn only_ready_pods_have_values(cx: Context) -> Result<()> {
    let empty = cx.pod_of(cx.pod_config().own_network().label("app", "a").label("tier", "x")).await?;
    let other = cx.pod_of(cx.pod_config().label("app", "a")).await?;
    let stopped = cx.pod_of(cx.pod_config().label("app", "a")).await?;
    let ended = cx.start(&stopped, &cx.sleeper("ended")).await?;
    cx.cri.stop_pod(&stopped.id).await?;

    // A pod without containers has the values of pause.
    let shown = linux(&cx, &empty.id).await?;
    ensure!(
        shown.cpu.is_some()
            && shown.memory.is_some()
            && shown.network.is_some()
            && shown.containers.is_empty(),
        "a pod without containers has {shown:?}"
    );
    ensure!(value(shown.process.and_then(|it| it.process_count), "process count")? == 0, "it has processes");
    // One that was stopped has only attributes, and so have its containers.
    let shown = stats(&cx, &stopped.id).await?;
    ensure!(
        shown.attributes.is_some_and(|it| it.labels == stopped.config.labels),
        "attributes of a stopped pod"
    );
    let shown = shown.linux.context("no `linux`")?;
    ensure!(
        shown.cpu.is_none() && shown.memory.is_none() && shown.network.is_none() && shown.process.is_none(),
        "a stopped pod has {shown:?}"
    );
    let [container] = shown.containers.as_slice() else {
        anyhow::bail!("its containers: {:?}", shown.containers)
    };
    ensure!(
        container.attributes.as_ref().is_some_and(|it| it.id == ended) && container.cpu.is_none(),
        "its container is {container:?}"
    );

    let filter = |id: &str, labels: &[(&str, &str)]| {
        let label_selector = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Some(api::PodSandboxStatsFilter { id: id.to_owned(), label_selector })
    };
    let (a, b) = (empty.id.as_str(), other.id.as_str());
    for (filter, wanted) in [
        (filter(a, &[]), vec![a]),
        (filter(&a[..20], &[]), vec![a]),
        (filter("", &[("app", "a")]), vec![a, b]),
        (filter("", &[("app", "a"), ("tier", "x")]), vec![a]),
        (filter(b, &[("tier", "x")]), vec![]),
        (filter(&stopped.id, &[]), vec![]),
        (filter(&"e".repeat(64), &[]), vec![]),
    ] {
        let listed = cx.cri.list_pod_stats(filter.clone()).await?;
        ensure!(ids(&listed) == wanted, "{filter:?} gives {:?} instead of {wanted:?}", ids(&listed));
    }
    for filter in [None, filter("", &[])] {
        let listed = cx.cri.list_pod_stats(filter).await?;
        let ids = ids(&listed);
        ensure!(
            ids.contains(&a) && ids.contains(&b) && !ids.contains(&stopped.id.as_str()),
            "all are {ids:?}"
        );
    }
    // kubelet's first call has no id.
    for unknown in ["", &"e".repeat(64)] {
        let code = cx.cri.pod_stats(unknown).await.err().map(|status| status.code());
        ensure!(code == Some(Code::NotFound), "stats of the pod {unknown:?} end with {code:?}");
    }
    for pod in [empty, other, stopped] {
        cx.cri.drop_pod(&pod.id).await?;
    }
    Ok(())
}

fn ids(stats: &[api::PodSandboxStats]) -> Vec<&str> {
    stats.iter().filter_map(|it| Some(it.attributes.as_ref()?.id.as_str())).collect()
}

async fn lists_come_in_parts(cx: Context) -> Result<()> {
    let mut pods = Vec::new();
    for _ in 0..5 {
        let mut config = cx.pod_config();
        config.annotations.insert("large".to_owned(), "x".repeat(300 << 10));
        let pod = cx.pod_of(config).await?;
        cx.start(&pod, &cx.sleeper("one")).await?;
        pods.push(pod);
    }
    let request = api::StreamPodSandboxStatsRequest { filter: None };
    // A larger reply is an error.
    let mut client = cx.cri.runtime.clone().max_decoding_message_size(MAX_CHUNK);
    let mut replies = client.stream_pod_sandbox_stats(request).await?.into_inner();
    let (mut streamed, mut parts) = (Vec::new(), 0);
    while let Some(reply) = replies.message().await? {
        ensure!(!reply.pod_sandbox_stats.is_empty(), "a reply without stats");
        streamed.extend(reply.pod_sandbox_stats);
        parts += 1;
    }
    let listed = cx.cri.list_pod_stats(None).await?;
    ensure!(
        parts == 2 && ids(&streamed) == ids(&listed) && listed.len() == 5,
        "{parts} replies with {:?}",
        ids(&streamed)
    );
    for (stats, pod) in streamed.iter().zip(&pods) {
        let linux = stats.linux.as_ref().context("no `linux`")?;
        let container = linux.containers.first().context("no container")?;
        ensure!(
            stats.attributes.as_ref().is_some_and(|it| it.annotations == pod.config.annotations)
                && linux.cpu.is_some()
                && container.cpu.is_some(),
            "values of pod {} are missing in the stream",
            pod.id
        );
    }
    let filter = Some(api::PodSandboxStatsFilter { id: pods[3].id.clone(), ..Default::default() });
    let request = api::StreamPodSandboxStatsRequest { filter };
    let mut replies = cx.cri.runtime.clone().stream_pod_sandbox_stats(request).await?.into_inner();
    let reply = replies.message().await?.context("no reply")?;
    ensure!(ids(&reply.pod_sandbox_stats) == [pods[3].id.as_str()], "{:?}", ids(&reply.pod_sandbox_stats));
    ensure!(replies.message().await?.is_none(), "a second reply with one pod");
    for pod in pods {
        cx.cri.drop_pod(&pod.id).await?;
    }
    // An empty list has no reply.
    let request = api::StreamPodSandboxStatsRequest { filter: None };
    let mut replies = cx.cri.runtime.clone().stream_pod_sandbox_stats(request).await?.into_inner();
    ensure!(replies.message().await?.is_none(), "a reply without pods");
    Ok(())
}

/// The files of containers that have ended are closed without another call for stats. Those of pods do not stay open, but
/// pods are sampled too.
async fn pods_that_ended_are_forgotten(cx: Context) -> Result<()> {
    let daemon = cx.node.pid()?;
    let open = || {
        let Ok(files) = std::fs::read_dir(format!("/proc/{daemon}/fd")) else { return usize::MAX };
        let targets = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        targets.filter(|target| target.starts_with("/sys/fs/cgroup")).count()
    };
    let idle = cx.pod().await?;
    let (first, _, _) = cx.sleeping(cx.pod_config()).await?;
    ensure!(open() == 0, "{} cgroup files are open before the first call for stats", open());
    cx.cri
        .list_pod_stats(Some(api::PodSandboxStatsFilter { id: idle.id.clone(), ..Default::default() }))
        .await?;
    ensure!(open() == 0, "{} cgroup files of a pod stay open after a call for stats", open());
    cx.cri.list_pod_stats(None).await?;
    let per_container = open();
    ensure!(per_container > 0, "no cgroup files of a container stay open after a call for stats");
    // The sampler opens the files of what is new, so that it has a rate at the first call.
    let (second, id, _) = cx.sleeping(cx.pod_config()).await?;
    wait::until_true("the files of a new container", secs(25), || open() == 2 * per_container).await?;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let cpu = linux(&cx, &second.id).await?.cpu.context("no cpu of the pod")?;
    ensure!(cpu.usage_nano_cores.is_some(), "a pod that was sampled has no rate at the first call: {cpu:?}");
    let cpu = cx.cri.stats(&id).await?.context("no stats")?.cpu.context("no cpu")?;
    ensure!(
        cpu.usage_nano_cores.is_some(),
        "a container that was sampled has no rate at the first call: {cpu:?}"
    );
    for pod in [idle, first, second] {
        cx.cri.drop_pod(&pod.id).await?;
    }
    wait::until_true("the files of ended containers to be closed", secs(25), || open() == 0).await
}

async fn values_go_on_after_a_restart(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let id = cx
        .start(&pod, &cx.shell("busy", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; sleep 1000"))
        .await?;
    let cpu_of = |linux: &api::LinuxPodSandboxStats| {
        let cpu = linux.cpu.context("no cpu")?;
        value(cpu.usage_core_nano_seconds, "CPU time").map(|total| (total, cpu.usage_nano_cores.is_some()))
    };
    let before = linux(&cx, &pod.id).await?;
    let network = answered(before.network.as_ref().context("no network")?)?;
    cx.node.crash().await?;
    // Complete in the first answer.
    let after = linux(&cx, &pod.id).await?;
    ensure!(cpu_of(&after)?.0 >= cpu_of(&before)?.0, "the CPU time has fallen: {before:?}, {after:?}");
    ensure!(after.memory.is_some() && after.process.is_some(), "after the restart: {after:?}");
    let now = answered(after.network.as_ref().context("no network after the restart")?)?;
    let grown = now.iter().zip(&network).all(|(now, before)| {
        now.0 == before.0 && now.1.iter().zip(&before.1).all(|(now, before)| now >= before)
    });
    ensure!(grown && now.len() == network.len(), "counters of the network: {network:?}, {now:?}");
    let container = cx.cri.stats(&id).await?.context("no stats")?;
    ensure!(container.cpu.is_some() && container.memory.is_some(), "after the restart: {container:?}");
    wait::until("a rate after the restart", secs(10), || async {
        Ok(cpu_of(&linux(&cx, &pod.id).await?)?.1.then_some(()))
    })
    .await?;
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// Samples of 100 pods with a container each use at most a thousandth of a core.
async fn samples_cost_little(cx: Context) -> Result<()> {
    let mut pods = Vec::new();
    for _ in 0..SAMPLED {
        pods.push(cx.sleeping(cx.pod_config()).await?.0);
    }
    let daemon = cx.node.pid()?;
    let used = || async {
        // Memory that was freed is returned to the kernel a second after the last large call.
        tokio::time::sleep(secs(3)).await;
        let before = proc::cpu_ns(daemon)?;
        tokio::time::sleep(MEASURED).await;
        anyhow::Ok(Duration::from_nanos(proc::cpu_ns(daemon)?.saturating_sub(before)))
    };
    let without = used().await?;
    cx.cri.list_pod_stats(None).await?;
    let with = used().await?;
    println!(
        "in {MEASURED:?} an idle daemon with {SAMPLED} pods used {without:?} of CPU time, with samples {with:?}"
    );
    ensure!(
        with.saturating_sub(without) <= wait::longer(MEASURED) / 1000,
        "samples of {SAMPLED} pods: {with:?}, without {without:?}"
    );
    for pod in pods {
        cx.cri.drop_pod(&pod.id).await?;
    }
    Ok(())
}
