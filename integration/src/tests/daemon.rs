//! Requests and host conditions that may fail one pod but never the daemon; and how pod creation calls plugins.

use std::fs;

use anyhow::{Context as _, Result};
use cri_api::v1::Int64Value;
use cri_api::v1::security_profile::ProfileType;
use serde_json::json;
use tonic::Code;

use super::network::network_becomes;
use crate::context::Context;
use crate::driver::{Driver, driver};
use crate::expect::ensure;
use crate::isolation::command;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _, seccomp};
use crate::wait::{self, secs};
use crate::{cgroup, proc};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(invalid_cgroup_parent_fails_one_pod).ours(),
        test!(root_as_cgroup_parent_works).ours(),
        test!(cgroup_that_cannot_be_created_fails_one_pod).own(),
        test!(unusable_sandbox_profile_fails_one_pod).ours(),
        test!(profile_that_is_not_a_regular_file_is_refused_at_once).ours(),
        test!(error_names_the_log_folder_that_cannot_be_created).ours(),
        test!(out_of_descriptors).own(),
        test!(sysctls_are_set_after_the_plugins).own(),
        test!(sysctls_of_the_pods_interface).ours(),
        test!(cni_status_does_not_run_for_every_pod).own(),
        test!(privileged_on_a_host_with_thousands_of_devices).ours(),
        test!(umask_and_signals_of_the_parent_change_nothing).own(),
    ]
}

/// Checks that the daemon is the same process and still creates pods, containers and execs.
async fn still_serves(cx: &Context, pid: u32) -> Result<()> {
    ensure!(cx.node.pid()? == pid && proc::alive(pid), "the daemon has ended");
    cx.cri.version().await.context("after the request")?;
    let pod = cx.pod().await.context("a pod after the request")?;
    let id = cx.start(&pod, &cx.sleeper("after")).await?;
    cx.cri.sh(&id, "true").await?;
    Ok(cx.cri.drop_pod(&pod.id).await?)
}

async fn invalid_cgroup_parent_fails_one_pod(cx: Context) -> Result<()> {
    let pid = cx.node.pid()?;
    let long = format!("/{}", "k".repeat(300));
    // Files in the root of the hierarchies: what has another name is a cgroup that can be made.
    let files = if cgroup::is_v2() {
        ["/cgroup.threads", "/cpu.stat/x", "/cgroup.procs"]
    } else {
        ["/tasks", "/cpu.shares/x", "/cgroup.procs"]
    };
    for parent in files.into_iter().chain([long.as_str(), "/a\nb"]) {
        let mut config = cx.pod_config();
        parent.clone_into(&mut config.linux.get_or_insert_default().cgroup_parent);
        let refused = wait::timeout(secs(20), cx.cri.run_pod(&config)).await;
        let e = refused.with_context(|| format!("no answer for {parent}"))?;
        let e = e.err().with_context(|| format!("a pod came up in {parent}"))?;
        ensure!(
            e.code() == Code::InvalidArgument && e.message().contains("cgroup_parent"),
            "a pod with the cgroup_parent {parent:?}: {e}"
        );
        for left in cx.cri.pods(None).await? {
            cx.cri.drop_pod(&left.id).await.with_context(|| format!("what {parent} left"))?;
        }
    }
    still_serves(&cx, pid).await
}

async fn root_as_cgroup_parent_works(cx: Context) -> Result<()> {
    let mut config = cx.pod_config();
    "/".clone_into(&mut config.linux.get_or_insert_default().cgroup_parent);
    if driver() == Driver::Systemd {
        // It is no slice.
        let e = cx.cri.run_pod(&config).await.err().context("a pod came up in the root")?;
        ensure!(e.code() == Code::InvalidArgument && e.message().contains("cgroup_parent"), "{e}");
        return Ok(());
    }
    let pod = cx.pod_of(config).await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let memory = cgroup::find("memory", &id).context("the container has no cgroup")?;
    ensure!(
        memory.parent() == cgroup::hierarchy("memory").as_deref(),
        "the container's cgroup is {}, not below the root",
        memory.display()
    );
    ensure!(cgroup::members(&memory).contains(&cx.pid(&id).await?), "init is not in {}", memory.display());
    cx.cri.sh(&id, "true").await?;
    cx.cri.drop_pod(&pod.id).await?;
    ensure!(!memory.exists() && cgroup::find("memory", &pod.id).is_none(), "cgroups are left");
    Ok(())
}

/// Simulates a host whose freezer hierarchy, or the only one, is read-only: the pod's cgroup cannot be created in it.
async fn cgroup_that_cannot_be_created_fails_one_pod(cx: Context) -> Result<()> {
    let pid = cx.node.pid()?;
    let freezer = cgroup::hierarchy("freezer");
    let freezer = freezer.context("no freezer hierarchy")?.display().to_string();
    command("mount", &["--bind", &freezer, &freezer])?;
    let refused = async {
        command("mount", &["-o", "remount,bind,ro", &freezer])?;
        let answer = wait::timeout(secs(20), cx.cri.run_pod(&cx.pod_config())).await;
        Ok::<_, anyhow::Error>(answer.context("no answer")?.err())
    }
    .await;
    command("umount", &[&freezer])?;
    let e = refused?.context("a pod came up without its cgroup")?;
    ensure!(e.message().contains("Read-only file system"), "the error does not name the cause: {e}");
    if driver() == Driver::Systemd {
        // systemd has made the pod's scope, and what was made below it could not be removed. So the pod is listed, for kubelet.
        for pod in cx.cri.pods(None).await? {
            cx.cri.drop_pod(&pod.id).await.context("removal of the refused pod")?;
        }
    }
    ensure!(cx.cri.pods(None).await?.is_empty(), "the refused pod is listed");
    still_serves(&cx, pid).await
}

async fn unusable_sandbox_profile_fails_one_pod(cx: Context) -> Result<()> {
    let pid = cx.node.pid()?;
    let dir = cx.volume("profiles")?;
    fs::write(dir.join("text.json"), "not JSON")?;
    fs::create_dir(dir.join("folder.json"))?;
    for name in ["absent.json", "text.json", "folder.json"] {
        let mut config = cx.pod_config();
        let path = dir.join(name).display().to_string();
        config.security().seccomp = seccomp(ProfileType::Localhost, &path);
        let refused = wait::timeout(secs(20), cx.cri.run_pod(&config)).await;
        let e = refused.with_context(|| format!("no answer for {name}"))?;
        let e = e.err().with_context(|| format!("a pod came up with {name}"))?;
        ensure!(
            e.code() == Code::InvalidArgument && e.message().contains(&path),
            "a pod with the seccomp profile {path}: {e}"
        );
    }
    ensure!(cx.cri.pods(None).await?.is_empty(), "a refused pod is listed");
    still_serves(&cx, pid).await
}

/// Opening a FIFO blocks until there is a writer, and opening a device can have any effect.
async fn profile_that_is_not_a_regular_file_is_refused_at_once(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let dir = cx.volume("profiles")?;
    let fifo = dir.join("fifo.json");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    for path in [fifo.as_path(), std::path::Path::new("/dev/zero")] {
        let path = path.display().to_string();
        let config =
            cx.sleeper("one").with(|c| c.security().seccomp = seccomp(ProfileType::Localhost, &path));
        let made = wait::timeout(secs(5), cx.create(&pod, &config)).await;
        // Opens the FIFO for writing, so that a blocked reader ends.
        drop(fs::OpenOptions::new().read(true).write(true).open(&fifo)?);
        let e = made.with_context(|| format!("no answer to a create with the profile {path}"))?;
        let e = e.err().with_context(|| format!("a container was created with the profile {path}"))?;
        ensure!(format!("{e:#}").contains("regular file"), "the profile {path}: {e:#}");
    }
    Ok(())
}

/// The reason why a shim does not start is in the reply, not only in the daemon's log.
async fn error_names_the_log_folder_that_cannot_be_created(cx: Context) -> Result<()> {
    let file = cx.volume("logs")?.join("file");
    fs::write(&file, "")?;
    let mut config = cx.pod_config();
    config.log_directory = file.join("pod").display().to_string();
    // The shim reports the error and ends at once; which of the two the daemon notices first is random.
    for round in 0..40 {
        let e = cx.cri.run_pod(&config).await.err().context("a pod came up below a file")?;
        ensure!(
            e.message().contains("log folder") && e.message().contains("Not a directory"),
            "round {round}: the error does not name the folder and the cause: {e}"
        );
    }
    ensure!(cx.cri.pods(None).await?.is_empty(), "a refused pod is listed");
    Ok(())
}

/// Pods that start at once reach RLIMIT_NOFILE: some fail, the daemon survives, and later everything works.
async fn out_of_descriptors(cx: Context) -> Result<()> {
    let pid = cx.node.pid()?;
    let limit = |n: &str| command("prlimit", &["--pid", &pid.to_string(), &format!("--nofile={n}")]);
    let open = proc::fds(pid)?;
    for spare in [6, 20, 40, 60, 80, 100] {
        limit(&format!("{}:", open + spare))?;
        let pods: Vec<_> = (0..24)
            .map(|_| {
                let cx = cx.clone();
                tokio::spawn(async move { cx.cri.run_pod(&cx.pod_config()).await })
            })
            .collect();
        for pod in pods {
            // Which of them succeed is random.
            drop(wait::timeout(secs(40), pod).await.context("no answer to RunPodSandbox")?);
        }
        ensure!(
            cx.node.pid()? == pid && proc::alive(pid),
            "the daemon has ended when it could open {spare} more descriptors"
        );
        limit("4096:")?;
        cx.node.emptied().await?;
        ensure!(cx.cri.pods(None).await?.is_empty(), "a removed pod is listed");
    }
    still_serves(&cx, pid).await
}

/// Calico's ADD clears ip_forward. In a pod that requests ip_forward it is set nevertheless, as with containerd.
async fn sysctls_are_set_after_the_plugins(cx: Context) -> Result<()> {
    let body = "[ \"$CNI_COMMAND\" = ADD ] && nsenter --net=\"$CNI_NETNS\" sh -c 'echo 0 > /proc/sys/net/ipv4/ip_forward'\nexec /usr/lib/cni/bridge";
    cx.node.network.script("clears", body)?;
    cx.node.network.uninstall()?;
    let plugins = json!([{
        "type": "clears", "bridge": cx.node.network.bridge, "isGateway": true,
        "ipam": {"type": "host-local", "dataDir": cx.node.network.leases,
                 "ranges": [[{"subnet": format!("{}.0/24", cx.node.network.prefix)}]]},
    }]);
    network_becomes(&cx, false).await?;
    cx.node.network.conflist("10-clears.conflist", &plugins)?;
    network_becomes(&cx, true).await?;
    for (asked, want) in [(Some("1"), "1"), (None, "0")] {
        let mut config = cx.pod_config().own_network();
        let sysctls = &mut config.linux.get_or_insert_default().sysctls;
        sysctls.extend(asked.map(|value| (String::from("net.ipv4.ip_forward"), value.to_owned())));
        let pod = cx.pod_of(config).await?;
        let id = cx.start(&pod, &cx.sleeper("one")).await?;
        let seen = cx.cri.sh(&id, "cat /proc/sys/net/ipv4/ip_forward").await?;
        ensure!(seen == want, "ip_forward is {seen} instead of {want} in a pod that asks for {asked:?}");
        cx.cri.drop_pod(&pod.id).await?;
    }
    Ok(())
}

async fn sysctls_of_the_pods_interface(cx: Context) -> Result<()> {
    let wanted = [
        ("net.ipv4.conf.eth0.rp_filter", "2", "net/ipv4/conf/eth0/rp_filter"),
        ("net/ipv4/conf/eth0/log_martians", "1", "net/ipv4/conf/eth0/log_martians"),
        // Not a sysctl of an interface, nor of the network at all.
        ("net.ipv4.ip_local_port_range", "10000\t20000", "net/ipv4/ip_local_port_range"),
        ("kernel.shmmax", "1048576", "kernel/shmmax"),
    ];
    let mut config = cx.pod_config().own_network();
    let sysctls = &mut config.linux.get_or_insert_default().sysctls;
    sysctls.extend(wanted.map(|(name, value, _)| (name.to_owned(), value.to_owned())));
    let pod = cx.pod_of(config).await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    for (name, value, path) in wanted {
        let seen = cx.cri.sh(&id, &format!("cat /proc/sys/{path}")).await?;
        ensure!(seen == value, "{name} is {seen:?} instead of {value:?}");
    }
    // A sysctl that does not exist fails the pod, which is then removed with its address.
    let before = cx.node.network.leased();
    let mut config = cx.pod_config().own_network();
    let sysctls = &mut config.linux.get_or_insert_default().sysctls;
    sysctls.insert(String::from("net.ipv4.conf.nosuch.rp_filter"), String::from("2"));
    let e = cx.cri.run_pod(&config).await.err().context("a pod with an unknown sysctl")?;
    ensure!(e.message().contains("nosuch"), "the error does not name the sysctl: {e}");
    ensure!(cx.node.network.leased() == before, "its address is still leased");
    Ok(())
}

/// STATUS determines the node's readiness. It must not run for each pod, which would double the number of plugin
/// runs.
async fn cni_status_does_not_run_for_every_pod(cx: Context) -> Result<()> {
    const PODS: usize = 8;
    let seen = cx.node.paths.dir.join("status");
    let body = format!(
        "if [ \"$CNI_COMMAND\" = STATUS ]; then cat > /dev/null; echo once >> {}; exit 0; fi\n\
         cat > /dev/null\n\
         [ \"$CNI_COMMAND\" = ADD ] && echo '{{\"cniVersion\":\"1.1.0\",\"ips\":[{{\"address\":\"10.9.8.7/24\"}}]}}'; exit 0",
        seen.display()
    );
    cx.node.network.script("counts", &body)?;
    cx.node.network.uninstall()?;
    // Otherwise the old network's readiness would be taken for the new one's.
    network_becomes(&cx, false).await?;
    let list = json!({"cniVersion": "1.1.0", "name": "counted", "plugins": [{"type": "counts"}]});
    fs::write(cx.node.network.conf_dir.join("10-counts.conflist"), list.to_string())?;
    network_becomes(&cx, true).await?;
    let count = || fs::read_to_string(&seen).unwrap_or_default().lines().count();
    let (before, start) = (count(), std::time::Instant::now());
    for _ in 0..PODS {
        let pod = cx.pod_of(cx.pod_config().own_network()).await?;
        cx.cri.drop_pod(&pod.id).await?;
    }
    // The folder is read every ten seconds, and after every change.
    let looks = start.elapsed().as_secs() / 10 + 2;
    let asked = count() - before;
    ensure!(
        u64::try_from(asked)? <= looks,
        "STATUS ran {asked} times, not at most {looks}, for {PODS} pods in {:?}",
        start.elapsed()
    );
    ensure!(before > 0, "STATUS never ran");
    Ok(())
}

/// Simulates a host in a storage network, where each path to each disk is a device node.
async fn privileged_on_a_host_with_thousands_of_devices(cx: Context) -> Result<()> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    const NODES: usize = 4500;
    let place = std::path::Path::new("/dev/cpt-many");
    fs::create_dir_all(place)?;
    command("mount", &["-t", "tmpfs", "tmpfs", &place.display().to_string()])?;
    let made = async {
        for n in 0..NODES {
            mknod(
                &place.join(format!("null{n}")),
                SFlag::S_IFCHR,
                Mode::from_bits_truncate(0o666),
                makedev(1, 3),
            )?;
        }
        let pod = cx.pod_of(cx.pod_config().privileged()).await?;
        let id = cx.start(&pod, &cx.sleeper("one").privileged()).await.context("a privileged container")?;
        let seen = cx.cri.sh(&id, "ls /dev/cpt-many | wc -l; echo x > /dev/cpt-many/null4499").await?;
        ensure!(seen == NODES.to_string(), "{seen} of {NODES} device nodes are in the container");
        Ok::<_, anyhow::Error>(cx.cri.drop_pod(&pod.id).await?)
    }
    .await;
    command("umount", &[&place.display().to_string()])?;
    fs::remove_dir(place)?;
    made
}

/// As in a unit with UMask=0077, or below a program that reaps its children by ignoring SIGCHLD.
async fn umask_and_signals_of_the_parent_change_nothing(cx: Context) -> Result<()> {
    cx.node.terminate().await?;
    let (program, args) = cx.node.program();
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", "umask 077; trap '' CHLD; exec \"$0\" \"$@\""]).arg(program).args(args);
    cx.node.launch_by(command).await?;
    let pod = cx.pod_of(cx.pod_config().own_network()).await.context("a plugin cannot be waited for")?;
    let mut config =
        cx.shell("one", "cat /etc/hosts /etc/resolv.conf > /dev/null && stat -c %a / /dev /etc/hosts");
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.run_as_user = Some(Int64Value { value: 1000 });
    cx.outputs(&pod, &config, "755\n755\n644\n").await
}
