//! Resources, OOM kills and stats of containers.

use anyhow::{Context as _, Result, bail};
use cri_api::v1 as api;
use tonic::Code;

use crate::cgroup::Limit;
use crate::context::Context;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};
use crate::wait::{self, secs};
use crate::{cgroup, proc};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(oom_kill_is_reported),
        test!(resources_reach_the_cgroup),
        test!(oom_score_is_set),
        test!(whole_cgroup_dies_with_init),
        test!(stats_are_measured),
        test!(stats_are_filtered),
        test!(listed_stats_are_of_what_runs).ours(),
        test!(many_containers_in_parallel).limit(120),
    ]
}

async fn oom_kill_is_reported(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let direct = shapes::container(
        "direct",
        &Fixture::image("busybox"),
        &["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=10"],
    )
    .with(|c| c.resources().memory_limit_in_bytes = 15 << 20);
    let s = cx.run(&pod, &direct).await?;
    ensure!(
        s.exit_code == 137 && s.reason == "OOMKilled",
        "an OOM kill of init is shown with code {}, reason {} and message {}",
        s.exit_code,
        s.reason,
        s.message
    );
    // The shell survives dd: the reason must be OOMKilled also if only a child was killed.
    let config = cx
        .shell("oom", "dd if=/dev/zero of=/dev/null bs=64M count=1; exit $?")
        .with(|c| c.resources().memory_limit_in_bytes = 15 << 20);
    let s = cx.run(&pod, &config).await?;
    ensure!(s.exit_code == 137, "dd in a shell ended with {}", s.exit_code);
    ensure!(s.reason == "OOMKilled", "the reason of a child's OOM kill is {}", s.reason);
    Ok(())
}

async fn resources_reach_the_cgroup(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = cx.sleeper("limited").with(|c| {
        *c.resources() = api::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 20_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            cpuset_cpus: String::from("0"),
            ..Default::default()
        }
    });
    let id = cx.start(&pod, &config).await?;
    for (limit, expected) in [
        (Limit::CpuShares, cgroup::shares(512)),
        (Limit::CpuQuota, 20_000),
        (Limit::CpuPeriod, 100_000),
        (Limit::Memory, 64 << 20),
    ] {
        let value = cgroup::limit(limit, &id)?;
        ensure!(value == Some(expected), "{limit:?} is {value:?}, not {expected}");
    }
    let [cpus, _] = cgroup::cpus_and_nodes(&id)?;
    ensure!(cpus == "0", "its CPUs are {cpus}");
    let parent = pod.config.linux.as_ref().map(|l| l.cgroup_parent.clone()).unwrap_or_default();
    let dir = cgroup::find("memory", &id).context("no memory cgroup")?;
    let expected = cgroup::leaf(&parent, &pod.id, &id);
    ensure!(cgroup::place(&id) == Some(expected), "leaf is {}", dir.display());
    let below: Vec<_> =
        std::fs::read_dir(&dir)?.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).collect();
    ensure!(below.is_empty(), "cgroups below the container's: {below:?}");
    let file = cgroup::inside(Limit::Memory);
    let inside = cx.cri.sh(&id, &format!("cat {file}")).await?;
    ensure!(inside == "67108864", "the container sees a limit of {inside}");
    let written = cx.cri.exec(&id, &["/bin/sh", "-c", &format!("echo 1 > {file}")]).await?;
    ensure!(written.code != 0, "the container could write its own cgroup");
    let resources =
        cx.cri.container(&id).await?.resources.and_then(|r| r.linux).context("status has no resources")?;
    ensure!(
        resources.memory_limit_in_bytes == 64 << 20
            && resources.cpu_quota == 20_000
            && resources.cpu_shares == 512,
        "the status has the resources {resources:?}"
    );
    Ok(())
}

async fn oom_score_is_set(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one").with(|c| c.resources().oom_score_adj = 900)).await?;
    let seen = cx.cri.sh(&id, "cat /proc/1/oom_score_adj; cat /proc/self/oom_score_adj").await?;
    ensure!(seen == "900\n900", "init and exec have {seen:?}");
    // Without CAP_SYS_RESOURCE a value that the host does not allow is raised to the lowest allowed one, not refused.
    let low = cx.start(&pod, &cx.sleeper("two").with(|c| c.resources().oom_score_adj = -997)).await?;
    let seen: i32 = cx.cri.sh(&low, "cat /proc/1/oom_score_adj").await?.parse()?;
    let allowed = if proc::may_lower_oom_score()? { -997..=-997 } else { -997..=0 };
    ensure!(allowed.contains(&seen), "a requested -997 became {seen}, not in {allowed:?}");
    Ok(())
}

async fn whole_cgroup_dies_with_init(cx: Context) -> Result<()> {
    let mark = format!("3{:05}", shapes::unique());
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let line = format!(
        "(setsid sh -c 'touch /tmp/runs; exec sleep {mark}' &); until [ -e /tmp/runs ]; do sleep 0.02; done; exit 5"
    );
    let id = cx.start(&pod, &cx.shell("one", &line)).await?;
    let s = cx.cri.wait_exit(&id, secs(10)).await?;
    ensure!(s.exit_code == 5, "exit code {}", s.exit_code);
    ensure!(
        proc::with_args(&format!("sleep {mark}")).is_empty(),
        "a child outlived its container in the shared PID namespace"
    );
    Ok(())
}

async fn stats_are_measured(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.shell("busy", "dd if=/dev/zero of=/tmp/file bs=1M count=8 2>/dev/null; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; sleep 1000")).await?;
    let s = cx.cri.stats(&id).await?.context("no stats")?;
    let attributes = s.attributes.context("no attributes: kubelet would panic")?;
    ensure!(
        attributes.id == id && attributes.metadata.as_ref().is_some_and(|m| m.name == "busy"),
        "container {id} has the attributes {attributes:?}"
    );
    ensure!(s.cpu.is_some_and(|c| c.timestamp > 0), "no CPU timestamp right after the start");
    ensure!(s.memory.is_some_and(|m| m.timestamp > 0), "no memory timestamp right after the start");
    wait::until("cpu, memory and disk use to show", secs(20), || async {
        let s = cx.cri.stats(&id).await?.context("no stats")?;
        let cpu = s.cpu.and_then(|c| c.usage_core_nano_seconds).map_or(0, |v| v.value);
        let memory = s.memory.and_then(|m| m.working_set_bytes).map_or(0, |v| v.value);
        let layer = s.writable_layer.context("no writable layer")?;
        let mountpoint = layer.fs_id.map(|f| f.mountpoint).unwrap_or_default();
        ensure!(
            std::path::Path::new(&mountpoint).exists(),
            "mount point `{mountpoint}` does not exist: kubelet's summary fails"
        );
        let used = layer.used_bytes.map_or(0, |v| v.value);
        ensure!(
            cpu > 10_000_000 && memory > 0 && used >= 8 << 20,
            "{cpu} ns of CPU time, {memory} bytes of memory and {used} bytes on disk"
        );
        Ok(Some(()))
    })
    .await
}

async fn stats_are_filtered(cx: Context) -> Result<()> {
    let (a, b) = (cx.pod().await?, cx.pod().await?);
    let mut labelled = cx.sleeper("one");
    labelled.labels.insert(String::from("k"), String::from("v"));
    let one = cx.start(&a, &labelled).await?;
    let two = cx.start(&a, &cx.sleeper("two")).await?;
    let three = cx.start(&b, &cx.sleeper("three")).await?;
    let ids = |list: Vec<api::ContainerStats>| -> Vec<String> {
        list.into_iter().filter_map(|s| s.attributes.map(|x| x.id)).collect()
    };
    let all = ids(cx.cri.list_stats(None).await?);
    ensure!([&one, &two, &three].iter().all(|id| all.contains(id)), "nil filter gives {all:?}");
    let by_pod = ids(cx
        .cri
        .list_stats(Some(api::ContainerStatsFilter { pod_sandbox_id: a.id, ..Default::default() }))
        .await?);
    ensure!(by_pod.len() == 2 && by_pod.contains(&one) && by_pod.contains(&two), "by pod: {by_pod:?}");
    let label = [(String::from("k"), String::from("v"))].into();
    let by_label = ids(cx
        .cri
        .list_stats(Some(api::ContainerStatsFilter { label_selector: label, ..Default::default() }))
        .await?);
    ensure!(by_label == [one], "by label: {by_label:?}");
    let unknown = cx.cri.stats(&"e".repeat(64)).await.err().context("stats of an unknown container")?;
    ensure!(unknown.code() == Code::NotFound, "the stats of an unknown container: {unknown}");
    Ok(())
}

/// Before kubelet lowers a memory limit, it reads the usage from this list, by the container's name alone. An entry without
/// usage, such as that of the container before its restart, makes it refuse: "missing container memory usage".
async fn listed_stats_are_of_what_runs(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    cx.run(&pod, &cx.shell("main", "exit 1")).await?;
    let mut again = cx.sleeper("main");
    again.metadata.get_or_insert_default().attempt = 1;
    let again = cx.start(&pod, &again).await?;
    cx.create(&pod, &cx.sleeper("created")).await?;
    let filter = api::ContainerStatsFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let listed = cx.cri.list_stats(Some(filter.clone())).await?;
    let request = api::StreamContainerStatsRequest { filter: Some(filter) };
    let mut replies = cx.cri.runtime.clone().stream_container_stats(request).await?.into_inner();
    let streamed = replies.message().await?.context("no streamed stats")?.container_stats;
    for stats in [listed, streamed] {
        let [only] = stats.as_slice() else { bail!("stats of {} containers: {stats:?}", stats.len()) };
        ensure!(
            only.attributes.as_ref().is_some_and(|it| it.id == again)
                && only.memory.as_ref().is_some_and(|it| it.usage_bytes.is_some()),
            "the restarted container has {only:?}"
        );
    }
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

async fn many_containers_in_parallel(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    cx.need(&Fixture::image("busybox")).await?;
    let mut work = Vec::new();
    for n in 0..30 {
        let (cx, pod) = (cx.clone(), pod.clone());
        work.push(tokio::spawn(async move {
            let config = cx.shell(&format!("same-prefix-{n}"), &format!("echo number {n}; exit {n}"));
            let s = cx.run(&pod, &config).await?;
            ensure!(s.exit_code == n, "container {n} ended with {}", s.exit_code);
            let text = crate::logfile::Log::read(&s.log_path)?.text(None);
            ensure!(text == format!("number {n}\n"), "the log of container {n} is {text:?}");
            Ok(())
        }));
    }
    for one in work {
        one.await??;
    }
    Ok(())
}
