//! A pod's namespaces, and the processes that hold them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, NamespaceMode};

use crate::context::Context;
use crate::expect::ensure;
use crate::isolation::command;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::{proc, wait};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(no_linux_part_means_shared_pid),
        test!(hostname_and_resolv_conf),
        test!(shm_is_shared_and_sized),
        test!(pid_modes),
        test!(ipc_modes),
        test!(user_namespace_modes),
        test!(shim_and_pause_are_protected).ours(),
        test!(pause_reaps_orphans),
    ]
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
    // The zero value of NamespaceOption.pid is POD.
    let first = cx.cri.sh(&id, "cat /proc/1/comm").await?;
    ensure!(first != "sleep", "the container's process is PID 1, so the PID namespace is not shared");
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
    cx.prints(&id, "hostname", "named-by-cri").await?;
    cx.prints(&id, "cat /etc/hostname", "named-by-cri").await?;
    cx.prints(&id, "echo $HOSTNAME", "named-by-cri").await.context("no HOSTNAME variable")?;
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
    let host = std::fs::read_to_string("/etc/resolv.conf")?;
    for dns_config in [None, Some(api::DnsConfig::default())] {
        let pod = cx.pod_of(api::PodSandboxConfig { dns_config, ..cx.pod_config().own_network() }).await?;
        let id = cx.start(&pod, &cx.sleeper("one")).await?;
        let same = cx.prints(&id, "cat /etc/resolv.conf", host.trim()).await;
        same.context("without dns_config, or with an empty one, it is the host's")?;
    }
    Ok(())
}

async fn shm_is_shared_and_sized(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let one = cx.start(&pod, &cx.sleeper("one")).await?;
    let two = cx.start(&pod, &cx.sleeper("two")).await?;
    cx.cri.sh(&one, "echo shared > /dev/shm/file").await?;
    cx.prints(&two, "cat /dev/shm/file", "shared").await?;
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
    cx.start(&shared, &cx.sleeper("two")).await?;
    let seen = cx.cri.sh(&one, "ps -o pid,args").await?;
    ensure!(seen.matches("sleep 100000").count() == 2, "POD: a container sees {seen}");
    ensure!(
        !seen.lines().any(|l| l.trim().starts_with("1 ") && l.contains("sleep")),
        "POD: a container's process is PID 1: {seen}"
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
        "TARGET: the container sees {seen}"
    );
    let alone = cx.cri.sh(&cx.start(&own, &cx.sleeper("alone")).await?, "ps -o pid,args").await?;
    ensure!(alone.matches("sleep 100000").count() == 1, "CONTAINER: the container sees {alone}");
    let mut host = cx.pod_config();
    host.namespaces().pid = NamespaceMode::Node.into();
    let host = cx.pod_of(host).await?;
    let id = cx.start(&host, &cx.sleeper("host")).await?;
    if !cx.node.is_foreign() {
        let seen = cx.cri.sh(&id, "cat /proc/1/cmdline | tr '\\0' ' '").await?;
        // PID 1 of the tests' namespace is `integration init`.
        ensure!(seen.contains("init"), "NODE: PID 1 is {seen}");
    }
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
        "the shim has {:?} threads instead of one",
        status.get("Threads")
    );
    for process in [&shim, &pause] {
        let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid))?;
        ensure!(!cgroups.contains("kubepods"), "{} is below kubepods: {cgroups}", process.comm);
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
    // Not even root can write to the running shim's binary through /proc.
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
    // Only the container's own sleep may be left, and no zombie.
    wait::until("the orphans to be reaped", Duration::from_secs(20), || async {
        let seen = cx.cri.sh(&id, "ps -o stat,comm").await?;
        let left = seen.lines().filter(|l| l.starts_with('Z') || l.trim_end().ends_with(" sleep")).count();
        ensure!(left == 1, "{left} zombies and sleeps are among\n{seen}");
        Ok(Some(()))
    })
    .await
}

/// The mode NODE is the host's user namespace, as without options; a user namespace of a container is refused.
async fn user_namespace_modes(cx: Context) -> Result<()> {
    let with = |mode: NamespaceMode| {
        let mut config = cx.pod_config();
        let options = api::UserNamespace { mode: mode.into(), ..Default::default() };
        config.namespaces().userns_options = Some(options);
        config
    };
    let pod = cx.pod_of(with(NamespaceMode::Node)).await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let host = std::fs::read_to_string("/proc/self/uid_map")?;
    cx.prints(&id, "cat /proc/self/uid_map", host.trim()).await?;
    for mode in [NamespaceMode::Container, NamespaceMode::Target] {
        let refused = cx.cri.run_pod(&with(mode)).await.err();
        let refused = refused.with_context(|| format!("a user namespace of mode {mode:?} was accepted"))?;
        ensure!(
            cx.node.is_foreign() || refused.message().contains("userns_options.mode"),
            "the error does not name the field: {refused}"
        );
    }
    Ok(())
}
