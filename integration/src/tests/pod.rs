//! Sandboxes: life, status, lists, namespaces, names.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri_api::v1::{self as api, NamespaceMode, PodSandboxState};
use tonic::Code;

use crate::context::Context;
use crate::isolation::command;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::{proc, wait};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(version_has_every_field),
        test!(status_has_both_conditions),
        test!(runtime_config_says_cgroupfs),
        test!(life_of_a_sandbox),
        test!(attributes_are_echoed),
        test!(filters_combine),
        test!(stop_and_remove_are_idempotent),
        test!(remove_forces_stop),
        test!(prefix_finds_a_pod),
        test!(equal_request_joins).ours(),
        test!(no_linux_part_means_shared_pid),
        test!(hostname_and_resolv_conf),
        test!(shm_is_shared_and_sized),
        test!(pid_modes),
        test!(ipc_modes),
        test!(shim_and_pause_are_protected).ours(),
        test!(pause_reaps_orphans),
        test!(stopped_pod_refuses_containers),
        test!(not_built_yet_is_unimplemented).ours(),
    ]
}

async fn version_has_every_field(cx: Context) -> Result<()> {
    let v = cx.cri.version().await?;
    ensure!(v.version == "0.1.0", "version is `{}`", v.version);
    ensure!(v.runtime_api_version == "v1", "runtime_api_version is `{}`", v.runtime_api_version);
    ensure!(!v.runtime_version.is_empty(), "runtime_version is empty");
    ensure!(cx.node.is_foreign() || v.runtime_name == "copepod", "runtime_name is `{}`", v.runtime_name);
    Ok(())
}

async fn status_has_both_conditions(cx: Context) -> Result<()> {
    let r = cx.cri.status(true).await?;
    let status = r.status.context("no status")?;
    for kind in ["RuntimeReady", "NetworkReady"] {
        let c = status.conditions.iter().find(|c| c.r#type == kind).with_context(|| format!("no {kind}"))?;
        ensure!(c.status, "{kind} is false: {} {}", c.reason, c.message);
    }
    if !cx.node.is_foreign() {
        let handler = r.runtime_handlers.iter().find(|h| h.name.is_empty()).context("no nameless handler")?;
        let f = handler.features.unwrap_or_default();
        ensure!(
            !f.user_namespaces && !f.recursive_read_only_mounts,
            "a feature is announced that is not there: {f:?}"
        );
        let f = r.features.unwrap_or_default();
        ensure!(!f.supplemental_groups_policy, "SupplementalGroupsPolicy is announced");
    }
    for (key, value) in r.info.iter().filter(|_| !cx.node.is_foreign()) {
        let parsed: std::result::Result<serde_json::Value, _> = serde_json::from_str(value);
        ensure!(parsed.is_ok(), "info[{key}] is not JSON: {value}");
    }
    Ok(())
}

async fn runtime_config_says_cgroupfs(cx: Context) -> Result<()> {
    if cx.node.is_foreign() {
        return Ok(());
    }
    let r = cx.cri.runtime.clone().runtime_config(api::RuntimeConfigRequest {}).await?.into_inner();
    ensure!(r.linux.context("no linux part")?.cgroup_driver() == api::CgroupDriver::Cgroupfs);
    let network = api::NetworkConfig { pod_cidr: String::from("10.1.0.0/16") };
    let config = api::RuntimeConfig { network_config: Some(network) };
    cx.cri
        .runtime
        .clone()
        .update_runtime_config(api::UpdateRuntimeConfigRequest { runtime_config: Some(config) })
        .await?;
    Ok(())
}

async fn life_of_a_sandbox(cx: Context) -> Result<()> {
    let config = cx.pod_config().own_network();
    let pod = cx.pod_of(config).await?;
    let status = cx.cri.pod_status(&pod.id).await?.status.context("no status")?;
    ensure!(status.state() == PodSandboxState::SandboxReady, "state is {:?}", status.state());
    ensure!(status.created_at > 1_700_000_000_000_000_000, "created_at is {}", status.created_at);
    let ip = status.network.map(|n| n.ip).unwrap_or_default();
    ensure!(ip.parse::<std::net::IpAddr>().is_ok(), "ip is `{ip}`");
    cx.cri.stop_pod(&pod.id).await?;
    let status = cx.cri.pod_status(&pod.id).await?.status.context("no status")?;
    ensure!(status.state() == PodSandboxState::SandboxNotready, "stopped, but {:?}", status.state());
    cx.cri.remove_pod(&pod.id).await?;
    let gone = cx.cri.pod_status(&pod.id).await.err().context("a removed pod has a status")?;
    ensure!(gone.code() == Code::NotFound, "{gone}");
    ensure!(!cx.cri.pods(None).await?.iter().any(|p| p.id == pod.id), "a removed pod is listed");
    Ok(())
}

async fn attributes_are_echoed(cx: Context) -> Result<()> {
    let mut config = cx.pod_config().label("io.kubernetes.pod.name", "x y\u{e4}").label("empty", "");
    config.annotations.insert(String::from("raw"), String::from("{\"a\": [1]}\n  indented"));
    let meta = config.metadata.as_mut().context("metadata")?;
    meta.attempt = 7;
    let pod = cx.pod_of(config.clone()).await?;
    let status = cx.cri.pod_status(&pod.id).await?.status.context("no status")?;
    ensure!(status.metadata == config.metadata, "metadata: {:?}", status.metadata);
    ensure!(
        status.labels == config.labels && status.annotations == config.annotations,
        "labels or annotations changed: {status:?}"
    );
    let options =
        status.linux.and_then(|l| l.namespaces).and_then(|n| n.options).context("no namespace options")?;
    let asked =
        config.linux.and_then(|l| l.security_context).and_then(|s| s.namespace_options).context("asked")?;
    ensure!(
        options.network == asked.network && options.pid == asked.pid && options.ipc == asked.ipc,
        "options: {options:?}"
    );
    let listed = cx.cri.pods(None).await?.into_iter().find(|p| p.id == pod.id).context("not listed")?;
    ensure!(
        listed.metadata == config.metadata
            && listed.labels == config.labels
            && listed.annotations == config.annotations
    );
    ensure!(listed.created_at == status.created_at, "created_at differs between list and status");
    Ok(())
}

async fn filters_combine(cx: Context) -> Result<()> {
    let one = cx.pod_of(cx.pod_config().label("app", "one").label("tier", "x")).await?;
    let two = cx.pod_of(cx.pod_config().label("app", "two").label("tier", "x")).await?;
    cx.cri.stop_pod(&two.id).await?;
    let ids = |filter: api::PodSandboxFilter| {
        let cx = cx.clone();
        async move {
            let mut ids: Vec<String> = cx.cri.pods(Some(filter)).await?.into_iter().map(|p| p.id).collect();
            ids.sort();
            Ok::<_, anyhow::Error>(ids)
        }
    };
    let labels =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let both =
        ids(api::PodSandboxFilter { label_selector: labels(&[("tier", "x")]), ..Default::default() }).await?;
    ensure!(both.len() == 2, "tier=x gives {both:?}");
    let first = ids(api::PodSandboxFilter {
        label_selector: labels(&[("tier", "x"), ("app", "one")]),
        ..Default::default()
    })
    .await?;
    ensure!(first == [one.id.clone()], "tier=x,app=one gives {first:?}");
    let state = Some(api::PodSandboxStateValue { state: PodSandboxState::SandboxNotready.into() });
    let stopped =
        ids(api::PodSandboxFilter { state, label_selector: labels(&[("tier", "x")]), ..Default::default() })
            .await?;
    ensure!(stopped == [two.id.clone()], "NOTREADY gives {stopped:?}");
    let none = ids(api::PodSandboxFilter { id: one.id.clone(), state, ..Default::default() }).await?;
    ensure!(none.is_empty(), "id and state must both hold: {none:?}");
    let prefix = one.id.get(..13).unwrap_or_default().to_owned();
    let by_prefix = ids(api::PodSandboxFilter { id: prefix, ..Default::default() }).await?;
    ensure!(by_prefix == [one.id], "prefix gives {by_prefix:?}");
    Ok(())
}

async fn stop_and_remove_are_idempotent(cx: Context) -> Result<()> {
    let absent = "0".repeat(64);
    cx.cri.stop_pod(&absent).await.context("stop an unknown pod")?;
    cx.cri.remove_pod(&absent).await.context("remove an unknown pod")?;
    let pod = cx.pod().await?;
    for _ in 0..2 {
        cx.cri.stop_pod(&pod.id).await?;
    }
    for _ in 0..2 {
        cx.cri.remove_pod(&pod.id).await?;
    }
    Ok(())
}

async fn remove_forces_stop(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    cx.cri.remove_pod(&pod.id).await?;
    let gone = cx.cri.container(&id).await.err().context("its container is still there")?;
    ensure!(gone.downcast_ref::<tonic::Status>().is_some_and(|s| s.code() == Code::NotFound), "{gone:#}");
    Ok(())
}

async fn prefix_finds_a_pod(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let prefix = pod.id.get(..13).unwrap_or_default();
    let status = cx.cri.pod_status(prefix).await?.status.context("no status")?;
    ensure!(status.id == pod.id, "{}", status.id);
    cx.cri.drop_pod(prefix).await?;
    Ok(())
}

/// A client whose call timed out asks again: the second call must not fail on the first one's name.
async fn equal_request_joins(cx: Context) -> Result<()> {
    let config = cx.pod_config().own_network();
    let (a, b, c) = tokio::join!(cx.cri.run_pod(&config), cx.cri.run_pod(&config), cx.cri.run_pod(&config));
    let (a, b, c) = (a?, b?, c?);
    ensure!(a == b && b == c, "three equal requests made {a}, {b}, {c}");
    let again = cx.cri.run_pod(&config).await?;
    ensure!(again == a, "a later equal request made {again}");
    Ok(())
}

async fn no_linux_part_means_shared_pid(cx: Context) -> Result<()> {
    let mut config = cx.pod_config();
    config.hostname = String::from("plain");
    config.linux = None;
    let pod = cx.pod_of(config).await?;
    let mut container = cx.sleeper("one");
    container.linux = None;
    let id = cx.create_as_is(&pod, &container).await?;
    cx.cri.start(&id).await?;
    let first = cx.cri.sh(&id, "cat /proc/1/comm; ls -d /proc/[0-9]* | wc -l").await?;
    ensure!(
        !first.starts_with("sleep"),
        "the container is PID 1, but NamespaceOption POD is the zero value: {first}"
    );
    Ok(())
}

async fn hostname_and_resolv_conf(cx: Context) -> Result<()> {
    let mut config = cx.pod_config().own_network();
    config.hostname = String::from("named-by-cri");
    config.dns_config = Some(api::DnsConfig {
        servers: vec![String::from("10.10.10.10"), String::from("fd00::10")],
        searches: vec![String::from("svc.cluster.local"), String::from("cluster.local")],
        options: vec![String::from("ndots:5")],
    });
    let pod = cx.pod_of(config).await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    ensure!(cx.cri.sh(&id, "hostname").await? == "named-by-cri");
    ensure!(cx.cri.sh(&id, "cat /etc/hostname").await? == "named-by-cri");
    ensure!(cx.cri.sh(&id, "echo $HOSTNAME").await? == "named-by-cri", "no HOSTNAME variable");
    let text = cx.cri.sh(&id, "cat /etc/resolv.conf").await?;
    let lines: Vec<&str> = text.lines().collect();
    let mut expected = vec![
        "nameserver 10.10.10.10",
        "nameserver fd00::10",
        "options ndots:5",
        "search svc.cluster.local cluster.local",
    ];
    let mut sorted = lines.clone();
    sorted.sort_unstable();
    expected.sort_unstable();
    ensure!(sorted == expected, "resolv.conf is {lines:?}");
    let empty = cx.pod_of(cx.pod_config().own_network()).await?;
    let id = cx.start(&empty, &cx.sleeper("one")).await?;
    let host = std::fs::read_to_string("/etc/resolv.conf")?;
    ensure!(
        cx.cri.sh(&id, "cat /etc/resolv.conf").await? == host.trim(),
        "without dns_config it is the host's"
    );
    Ok(())
}

async fn shm_is_shared_and_sized(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let one = cx.start(&pod, &cx.sleeper("one")).await?;
    let two = cx.start(&pod, &cx.sleeper("two")).await?;
    cx.cri.sh(&one, "echo shared > /dev/shm/file").await?;
    ensure!(cx.cri.sh(&two, "cat /dev/shm/file").await? == "shared");
    let kib: u64 = cx.cri.sh(&one, "df -k /dev/shm | tail -1 | awk '{print $2}'").await?.parse()?;
    ensure!(kib == 64 * 1024, "/dev/shm has {kib} KiB");
    let options = cx.cri.sh(&one, "grep ' /dev/shm ' /proc/self/mounts").await?;
    for option in ["noexec", "nosuid", "nodev", "rw"] {
        ensure!(options.contains(option), "/dev/shm without {option}: {options}");
    }
    ensure!(!std::path::Path::new("/dev/shm/file").exists(), "the pod got the host's /dev/shm");
    Ok(())
}

async fn pid_modes(cx: Context) -> Result<()> {
    let shared = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let one = cx.start(&shared, &cx.sleeper("one")).await?;
    let two = cx.start(&shared, &cx.sleeper("two")).await?;
    let seen = cx.cri.sh(&one, "ps -o pid,args").await?;
    ensure!(seen.matches("sleep 100000").count() == 2, "shared PID namespace shows {seen}");
    ensure!(
        !seen.lines().any(|l| l.trim().starts_with("1 ") && l.contains("sleep")),
        "pause is PID 1: {seen}"
    );
    let mut target = cx.sleeper("target");
    let own = cx.pod().await?;
    let main = cx.start(&own, &cx.sleeper("main")).await?;
    let options = target.security().namespace_options.get_or_insert_default();
    options.pid = NamespaceMode::Target.into();
    options.target_id.clone_from(&main);
    let debugger = cx.create_as_is(&own, &target).await?;
    cx.cri.start(&debugger).await?;
    let seen = cx.cri.sh(&debugger, "ps -o pid,args").await?;
    ensure!(
        seen.matches("sleep 100000").count() == 2
            && seen.lines().any(|l| l.trim().starts_with("1 ") && l.contains("sleep")),
        "TARGET shows {seen}"
    );
    let alone = cx.cri.sh(&cx.start(&own, &cx.sleeper("alone")).await?, "ps -o pid,args").await?;
    ensure!(alone.matches("sleep 100000").count() == 1, "CONTAINER shows {alone}");
    let mut host = cx.pod_config();
    host.namespaces().pid = NamespaceMode::Node.into();
    let host = cx.pod_of(host).await?;
    let id = cx.start(&host, &cx.sleeper("host")).await?;
    if !cx.node.is_foreign() {
        let seen = cx.cri.sh(&id, "cat /proc/1/cmdline | tr '\\0' ' '").await?;
        ensure!(seen.contains("init"), "hostPID: PID 1 is {seen}");
    }
    drop(two);
    Ok(())
}

async fn ipc_modes(cx: Context) -> Result<()> {
    let id = command("ipcmk", &["-M", "4096"])?;
    let number = id.split_whitespace().last().unwrap_or_default().to_owned();
    let looked = async {
        let mut host = cx.pod_config();
        host.namespaces().ipc = NamespaceMode::Node.into();
        let host = cx.pod_of(host).await?;
        let seen = cx.cri.sh(&cx.start(&host, &cx.sleeper("host")).await?, "cat /proc/sysvipc/shm").await?;
        ensure!(
            cx.node.is_foreign() || seen.split_whitespace().any(|w| w == number),
            "host IPC does not show {number}: {seen}"
        );
        let own = cx.pod().await?;
        let seen = cx.cri.sh(&cx.start(&own, &cx.sleeper("own")).await?, "cat /proc/sysvipc/shm").await?;
        ensure!(!seen.split_whitespace().any(|w| w == number), "own IPC shows the host's: {seen}");
        Ok(())
    }
    .await;
    command("ipcrm", &["-m", &number])?;
    looked
}

async fn shim_and_pause_are_protected(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let (shim, pause) = (cx.node.shim(&pod.id)?, cx.node.pause(&pod.id)?);
    let status = proc::status(shim.pid)?;
    ensure!(
        status.get("Threads").map(String::as_str) == Some("1"),
        "the shim has {:?} threads",
        status.get("Threads")
    );
    for process in [&shim, &pause] {
        let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid))?;
        ensure!(!cgroups.contains("kubepods"), "{} lives below kubepods: {cgroups}", process.comm);
    }
    let caps = proc::status(pause.pid)?;
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        ensure!(
            caps.get(set).is_some_and(|v| v.trim_start_matches('0').is_empty()),
            "pause has {set} {:?}",
            caps.get(set)
        );
    }
    let exe = std::fs::read_link(format!("/proc/{}/exe", shim.pid))?;
    // Sealed: nobody, root included, can write the running shim through /proc.
    let opened = std::fs::OpenOptions::new().write(true).open(format!("/proc/{}/exe", shim.pid));
    ensure!(opened.is_err(), "the shim's binary {} can be opened for writing", exe.display());
    let root = std::fs::read_dir(format!("/proc/{}/root", pause.pid))?
        .flatten()
        .map(|e| e.file_name())
        .collect::<Vec<_>>();
    ensure!(!root.iter().any(|n| n == "etc" || n == "usr"), "pause sees a file system: {root:?}");
    Ok(())
}

async fn pause_reaps_orphans(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    cx.cri.sh(&id, "for i in 1 2 3 4 5; do (sleep 0.2 &) ; done").await?;
    wait::until("no zombie in the pod", Duration::from_secs(5), || async {
        let seen = cx.cri.sh(&id, "sleep 0.3; ps -o stat,comm").await?;
        Ok((!seen.lines().any(|l| l.starts_with('Z'))).then_some(()))
    })
    .await
}

async fn stopped_pod_refuses_containers(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    cx.need(&crate::fixture::Fixture::image("busybox")).await?;
    cx.cri.stop_pod(&pod.id).await?;
    let refused = cx.cri.create(&pod.id, &cx.sleeper("late").like(&pod.config), &pod.config).await;
    ensure!(refused.is_err(), "a container was created in a stopped pod");
    ensure!(cx.cri.containers(None).await?.iter().all(|c| c.pod_sandbox_id != pod.id), "and is listed");
    Ok(())
}

async fn not_built_yet_is_unimplemented(cx: Context) -> Result<()> {
    let code = cx
        .cri
        .runtime
        .clone()
        .list_metric_descriptors(api::ListMetricDescriptorsRequest {})
        .await
        .map(|_| ())
        .err()
        .map(|s| s.code());
    ensure!(code == Some(Code::Unimplemented), "ListMetricDescriptors: {code:?}");
    let code = cx
        .cri
        .runtime
        .clone()
        .pod_sandbox_stats(api::PodSandboxStatsRequest { pod_sandbox_id: String::new() })
        .await
        .map(|_| ())
        .err()
        .map(|s| s.code());
    ensure!(code == Some(Code::Unimplemented), "PodSandboxStats, which kubelet probes: {code:?}");
    Ok(())
}
