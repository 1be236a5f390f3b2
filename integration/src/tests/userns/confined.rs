//! What root of a container in a user namespace may not do, and what it has: network, devices, kernel file systems.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, MountPropagation};

use super::{LENGTH, ids, inside, mapped, owner};
use crate::cgroup::Limit;
use crate::context::Context;
use crate::expect::ensure;
use crate::isolation::command;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};
use crate::{cgroup, proc};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(root_inside_is_nobody_outside),
        test!(processes_stay_in_their_cgroups),
        test!(working_directories_of_descriptors),
        test!(network_of_the_pod),
        test!(devices_shm_queues_and_kernel_files),
    ]
}

/// All capabilities that a container can have: they count in the pod's user namespace only. Without an AppArmor profile,
/// which forbids mounts before the kernel's own rules are asked.
pub(super) fn mighty(config: api::ContainerConfig) -> api::ContainerConfig {
    let mut config = config.without_apparmor();
    config.security().capabilities =
        Some(api::Capability { add_capabilities: vec![String::from("ALL")], ..Default::default() });
    config
}

/// Makes the shell use the programs of util-linux where busybox has some of the same name.
pub(super) const UTIL_LINUX: &str =
    "for p in mount umount unshare prlimit; do eval \"$p() { /usr/bin/$p \\\"\\$@\\\"; }\"; done; ";

/// Each line must fail, because it is refused and not because it has no meaning.
pub(super) async fn all_fail(cx: &Context, id: &str, lines: &[&str]) -> Result<()> {
    for line in lines {
        let out = cx.cri.exec(id, &["/bin/sh", "-c", line]).await?;
        let said = format!("{}{}", out.stdout, out.stderr);
        ensure!(out.code != 0, "`{line}` succeeded: {said}");
        let wrong = ["not found", "unrecognized", "invalid option", "Usage", "syntax error", "bad usage"];
        ensure!(!wrong.iter().any(|text| said.contains(text)), "`{line}` could not be tried: {said}");
    }
    Ok(())
}

/// As [`all_fail`], with the programs of util-linux.
pub(super) async fn refused(cx: &Context, id: &str, lines: &[&str]) -> Result<()> {
    let lines: Vec<String> = lines.iter().map(|line| format!("{UTIL_LINUX}{line}")).collect();
    all_fail(cx, id, &lines.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// With every capability.
async fn root_inside_is_nobody_outside(cx: Context) -> Result<()> {
    let secret = cx.volume("secret")?;
    fs::write(secret.join("file"), "the host's\n")?;
    fs::set_permissions(secret.join("file"), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    std::os::unix::fs::symlink("/host/file", secret.join("link"))?;
    let pod = cx.pod_of(mapped(&cx, 1_100_000, LENGTH)).await?;
    let config = mighty(shapes::container("main", "registry.test/tools:1", &["/bin/sleep", "100000"]));
    cx.need("registry.test/tools:1").await?;
    // Not id-mapped: a part of the host that root of the host owns.
    let id =
        cx.start(&pod, &config.mount(&secret, "/host", false, MountPropagation::PropagationPrivate)).await?;
    let pid = cx.pid(&id).await?;
    let status = proc::status(pid)?;
    ensure!(
        status.get("Uid").is_some_and(|u| u.starts_with("1100000\t")),
        "init's user is {:?}",
        status.get("Uid")
    );
    all_fail(
        &cx,
        &id,
        &[
            // Devices and the host's file systems.
            "mknod /tmp/disk b 254 0",
            "mknod /tmp/mem c 1 1",
            "mkdir -p /tmp/m && mount -t ext4 /dev/vda /tmp/m",
            "mount -t devtmpfs none /tmp/m",
            "mount -t debugfs none /tmp/m",
            "mount -o remount,rw /sys/fs/cgroup",
            // Settings of the host.
            "echo 1 > /proc/sys/vm/swappiness",
            "echo x > /proc/sys/kernel/core_pattern",
            "echo b > /proc/sysrq-trigger",
            "echo 1 > /sys/kernel/mm/ksm/run",
            // Files of the host and of other users, by name, by link, and by taking them.
            "cat /host/file",
            "cat /host/link",
            "echo x >> /host/file",
            "chown 0:0 /host/file",
            "chown 0:0 /host/link",
            "chown -h 0:0 /host/link",
            "chmod 777 /host/file",
            "touch /host/new",
            // Limits and priority above what the host allows.
            "n=$(($(ulimit -Hn) + 1)); prlimit --pid $$ --nofile=$n:$n",
            "renice -n -5 -p $$",
            "echo -900 > /proc/self/oom_score_adj",
            // The mapping cannot be changed.
            "echo '0 0 1' > /proc/self/uid_map",
            "echo '0 0 1' > /proc/1/uid_map",
        ],
    )
    .await?;
    ensure!(
        owner(&secret.join("file"))? == (0, 0) && owner(&secret.join("link"))? == (0, 0),
        "owners on the host"
    );
    let same = fs::read_to_string(secret.join("file"))?;
    ensure!(same == "the host's\n", "the host's file has {same:?}");
    // On the host, the ids of the pod's root are those of nobody: they may signal none of its processes.
    let host = std::process::id().to_string();
    let out = std::process::Command::new("setpriv")
        .args(["--reuid=1100000", "--regid=1100000", "--clear-groups", "kill", "-0", &host])
        .stderr(std::process::Stdio::null())
        .status()?;
    ensure!(!out.success(), "the ids of the pod's root may signal processes of the host");
    // What it may do inside: users, groups (setgroups is allowed), mounts of its own.
    cx.cri
        .sh(&id, "/usr/bin/setpriv --reuid=7 --regid=8 --groups=9,10 /usr/bin/id && mount -t tmpfs none /mnt && touch /mnt/x && umount /mnt && hostname renamed")
        .await?;
    // /proc/self/exe of an exec is the container's program, never the shim or its binary (CVE-2019-5736).
    let exe = cx.cri.sh(&id, "for p in /proc/[0-9]*; do readlink $p/exe; done; ls -l /proc/self/fd").await?;
    ensure!(!exe.contains("copepod"), "the runtime's files are visible: {exe}");
    Ok(())
}

/// CVE-2025-47291: processes of a pod with a user namespace outside of their cgroups.
async fn processes_stay_in_their_cgroups(cx: Context) -> Result<()> {
    let pod = cx.pod_of(mapped(&cx, 1_300_000, LENGTH)).await?;
    let mut config = cx.sleeper("main");
    config.resources().memory_limit_in_bytes = 64 << 20;
    let id = cx.start(&pod, &config).await?;
    let pid = cx.pid(&id).await?;
    let limit = cgroup::limit(Limit::Memory, &id)?;
    ensure!(limit == Some(64 << 20), "the memory limit is {limit:?}");
    // The exec's pid on the host is not known, so it stays and the cgroup lists it.
    let exec = cx.cri.sh(&id, "sleep 1000 >/dev/null 2>&1 & echo here").await?;
    ensure!(exec == "here", "the exec wrote {exec:?}");
    for controller in ["memory", "pids", "devices", "freezer", "cpu"] {
        let path = cgroup::of_process(controller, pid)?;
        ensure!(path.ends_with(&id), "init is in {path}");
        let members = cgroup::members(&cgroup::folder(controller, &path)?);
        ensure!(members.contains(&pid) && members.len() == 2, "init and an exec are {pid} in {members:?}");
    }
    let file = cgroup::inside(Limit::Memory);
    let folder = Path::new(&file).parent().context("no folder")?.display();
    let lines =
        ["cgroup.procs", "tasks"].map(|file| format!("test -e {folder}/{file} && echo $$ > {folder}/{file}"));
    let write = format!("echo 1g > {file}");
    all_fail(&cx, &id, &[lines[0].as_str(), lines[1].as_str(), write.as_str()]).await
}

/// CVE-2024-21626: a working directory that is a descriptor which the runtime has open. It is refused, or in the container.
async fn working_directories_of_descriptors(cx: Context) -> Result<()> {
    let pod = cx.pod_of(mapped(&cx, 1_740_000, LENGTH)).await?;
    let climb = "d=.; n=0; while [ $n -lt 40 ]; do d=$d/..; n=$((n+1)); done; [ $(stat -c %d:%i $d) = $(stat -c %d:%i /) ] && echo inside || echo outside";
    for number in 3..24 {
        let config = cx
            .shell(&format!("fd{number}"), climb)
            .with(|c| c.working_dir = format!("/proc/self/fd/{number}"));
        if let Ok(id) = cx.start(&pod, &config).await {
            cx.said(&id, "inside").await?;
        }
    }
    // The script works.
    cx.outputs(&pod, &cx.shell("root", climb), "inside\n").await
}

async fn network_of_the_pod(cx: Context) -> Result<()> {
    let mut config = mapped(&cx, 1_400_000, LENGTH).port(api::Protocol::Tcp, 80, 0);
    if let Some(linux) = config.linux.as_mut() {
        for (name, value) in [
            ("net.ipv4.tcp_syncookies", "0"),
            ("net.ipv4.ping_group_range", "5 10"),
            ("kernel.msgmax", "4096"),
            ("kernel.shm_rmid_forced", "1"),
            ("kernel.domainname", "pods.test"),
            ("fs.mqueue.msg_max", "17"),
        ] {
            linux.sysctls.insert(name.to_owned(), value.to_owned());
        }
    }
    let pod = cx.pod_of(config).await?;
    let id = cx.start(&pod, &cx.sleeper("main")).await?;
    let address = super::super::network::ip(&cx, &pod).await?;
    let shown = cx.cri.sh(&id, "ip -4 addr show eth0; ip route; ip addr show lo").await?;
    ensure!(shown.contains(&format!("inet {address}/24")) && shown.contains("default via"), "{shown}");
    ensure!(shown.contains("127.0.0.1/8"), "lo is down: {shown}");
    let read = "cd /proc/sys; cat net/ipv4/tcp_syncookies net/ipv4/ping_group_range net/ipv4/ip_unprivileged_port_start kernel/msgmax kernel/shm_rmid_forced kernel/domainname fs/mqueue/msg_max | tr '\\t' ' '";
    cx.prints(&id, read, "0\n5 10\n0\n4096\n1\npods.test\n17").await?;
    cx.prints(&id, "hostname; cat /etc/hostname", &format!("{0}\n{0}", pod.config.hostname)).await?;
    // Without a request, every group of the pod may ping.
    let plain = cx.pod_of(mapped(&cx, 1_500_000, LENGTH)).await?;
    let nobody = |mut config: api::ContainerConfig| {
        config.security().run_as_user = Some(api::Int64Value { value: 65_534 });
        config
    };
    let user = cx.start(&plain, &nobody(cx.sleeper("main"))).await?;
    cx.prints(&user, "cat /proc/sys/net/ipv4/ping_group_range | tr '\\t' ' '", "0 65535").await?;
    let pid = cx.pid(&user).await?.to_string();
    let enter = ["--target", &pid, "--user", "--net", "--setuid", "65534", "--setgid", "65534"];
    // A socket with which ping needs no capability (AF_INET, SOCK_DGRAM, IPPROTO_ICMP).
    let socket = ["perl", "-e", "socket(my $s, 2, 2, 1) or die \"$!\""];
    command("nsenter", &[&enter[..], &socket[..]].concat())?;
    // With the capability, the network is the container's to configure; without it, it is not.
    let admin = cx.start(&plain, &mighty(cx.sleeper("admin"))).await?;
    cx.cri.sh(&admin, "ip link add dummy7 type dummy && ip link del dummy7").await.or_else(|error| {
        // A kernel without dummy devices.
        if format!("{error:#}").contains("not supported") { Ok(String::new()) } else { Err(error) }
    })?;
    cx.cri.sh(&admin, "ip addr add 198.51.100.7/32 dev lo").await?;
    all_fail(&cx, &user, &["ip addr add 198.51.100.8/32 dev lo"]).await
}

async fn devices_shm_queues_and_kernel_files(cx: Context) -> Result<()> {
    let pod = cx.pod_of(mapped(&cx, 1_600_000, LENGTH).shared_pid()).await?;
    let log = cx.volume("log")?.join("termination");
    fs::write(&log, "")?;
    fs::set_permissions(&log, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    let config = mighty(cx.sleeper("main"))
        .mount(&log, "/dev/termination-log", false, MountPropagation::PropagationPrivate)
        .with(|c| {
            if let Some(mount) = c.mounts.last_mut() {
                (mount.uid_mappings, mount.gid_mappings) = (ids(1_600_000, LENGTH), ids(1_600_000, LENGTH));
            }
            let device = |name: &str| api::Device {
                container_path: format!("/dev/{name}"),
                host_path: String::from("/dev/fuse"),
                permissions: String::from("rwm"),
            };
            if Path::new("/dev/fuse").exists() {
                c.devices.push(device("fuse"));
            }
        });
    let id = cx.start(&pod, &config).await?;
    let other = cx.start(&pod, &cx.sleeper("other")).await?;
    cx.cri.sh(&id, "echo end > /dev/termination-log; echo x > /dev/shm/shared; echo x > /dev/null; head -c 8 /dev/urandom /dev/zero | wc -c").await?;
    ensure!(fs::read_to_string(&log)? == "end\n", "the termination message did not arrive");
    cx.prints(
        &other,
        "cat /dev/shm/shared; stat -c '%u:%g %a' /dev/shm /dev/mqueue /dev/null /dev/pts /dev",
        "x\n0:0 1777\n0:0 1777\n0:0 666\n0:0 755\n0:0 755",
    )
    .await?;
    let pid = cx.pid(&id).await?;
    if Path::new("/dev/fuse").exists() {
        let wanted = owner(Path::new("/dev/fuse"))?;
        ensure!(owner(&inside(pid, "dev/fuse"))? == wanted, "a device of the host has another owner");
    }
    let mounts = cx.cri.sh(&id, "cat /proc/mounts").await?;
    for (place, words) in [
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/dev/mqueue", "mqueue"),
        ("/dev/pts", "devpts"),
        ("/sys/fs/cgroup", if cgroup::is_v2() { "cgroup2" } else { "tmpfs" }),
    ] {
        let line = mounts.lines().find(|l| l.split(' ').nth(1) == Some(place));
        ensure!(line.is_some_and(|l| l.contains(words)), "{place}: {line:?}");
    }
    ensure!(
        mounts.lines().any(|l| l.starts_with("sysfs /sys ") && l.contains(" ro,")),
        "/sys is not read-only: {mounts}"
    );
    // The pod's processes are all that /proc shows; pause is PID 1, without privileges.
    cx.prints(
        &id,
        "cat /proc/1/comm; tr -s '\\t ' ' ' < /proc/1/status | grep -E '^(Uid|CapBnd|Seccomp):'",
        "pause\nUid: 65535 65535 65535 65535\nCapBnd: 0000000000000000\nSeccomp: 2",
    )
    .await?;
    Ok(())
}
