//! Privileged containers in a pod with a user namespace: privileged in it, nobody outside.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, MountPropagation};

use super::confined::{UTIL_LINUX, refused};
use super::volumes::volume;
use super::{LENGTH, mapped};
use crate::compare::Case;
use crate::context::Context;
use crate::expect::ensure;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(privileged_root_gains_nothing_outside),
        test!(privileged_root_is_root_inside),
        test!(privileged_equals_runcs),
        test!(privileged_volumes).ours(),
    ]
}

fn privileged(host: u32, cx: &Context) -> api::PodSandboxConfig {
    mapped(cx, host, LENGTH).privileged()
}

fn tools() -> api::ContainerConfig {
    shapes::container("main", "registry.test/tools:1", &["/bin/sleep", "100000"]).privileged()
}

/// A block device of the host, whose owner is root and which others may not read.
fn disk() -> Result<Option<String>> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    for entry in fs::read_dir("/dev")? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.file_type().is_block_device() && meta.uid() == 0 && meta.permissions().mode() & 0o6 == 0 {
            return Ok(entry.file_name().into_string().ok());
        }
    }
    Ok(None)
}

async fn privileged_root_gains_nothing_outside(cx: Context) -> Result<()> {
    cx.need("registry.test/tools:1").await?;
    let secret = cx.volume("secret")?;
    fs::write(secret.join("file"), "the host's\n")?;
    fs::set_permissions(secret.join("file"), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let pod = cx.pod_of(privileged(1_700_000, &cx)).await?;
    let config = tools().mount(&secret, "/host", false, MountPropagation::PropagationPrivate);
    let id = cx.start(&pod, &config).await?;
    let mut lines: Vec<String> = [
        // Devices: none can be made.
        "mknod /tmp/disk b 254 0",
        "mknod /tmp/mem c 1 1",
        "mknod /dev/mem2 c 1 1",
        "test -c /dev/mem && exec 3< /dev/mem",
        "test -c /dev/port && exec 3<> /dev/port",
        "mount -t devtmpfs none /mnt",
        // sysfs and proc are writable, but their files belong to the host's root. They are opened only: a test that fails
        // must not change the host.
        "exec 3>> /sys/kernel/mm/ksm/run",
        "exec 3>> /sys/power/state",
        "exec 3>> /sys/kernel/uevent_helper",
        "exec 3>> /proc/sysrq-trigger",
        "exec 3>> /proc/sys/kernel/core_pattern",
        "exec 3>> /proc/sys/kernel/modprobe",
        "exec 3>> /proc/sys/vm/swappiness",
        "exec 3< /proc/kcore",
        "mount -t debugfs none /mnt",
        "mount -t tracefs none /mnt",
        // Limits, priority, the mapping.
        "n=$(($(ulimit -Hn) + 1)); prlimit --pid $$ --nofile=$n:$n",
        "renice -n -5 -p $$",
        "echo -900 > /proc/self/oom_score_adj",
        "echo '0 0 1' > /proc/self/uid_map",
        // Files of the host's root.
        "cat /host/file",
        "chown 0:0 /host/file",
        "touch /host/new",
    ]
    .map(String::from)
    .to_vec();
    // Cgroups: those of the container, and (CVE-2022-0492) a hierarchy that it mounts in a cgroup namespace of its own.
    // On v2 there is one, and no release_agent.
    let v1 = ["memory", "devices", "pids", "freezer"].map(|it| (format!("/sys/fs/cgroup/{it}"), it));
    for (at, controller) in v1.into_iter().chain([(String::from("/sys/fs/cgroup"), "memory")]) {
        if !Path::new(&at).join("cgroup.procs").exists() {
            continue;
        }
        lines.extend(
            ["cgroup.procs", "tasks"].map(|file| format!("test -e {at}/{file} && exec 3>> {at}/{file}")),
        );
        lines.push(format!("mkdir {at}/new"));
        for kind in [format!("cgroup -o {controller}"), String::from("cgroup2")] {
            lines.push(format!(
                "mkdir -p /tmp/c; unshare --cgroup --mount sh -c 'mount -t {kind} none /tmp/c && {{ (exec 3>> /tmp/c/release_agent) || (exec 3>> /tmp/c/cgroup.procs) || mkdir /tmp/c/new; }}'"
            ));
        }
    }
    lines.push(String::from(
        "test -e /sys/fs/cgroup/devices/devices.allow && exec 3>> /sys/fs/cgroup/devices/devices.allow",
    ));
    if let Some(disk) = disk()? {
        // The node is there, as for any privileged container, with the host's owner.
        cx.prints(&id, &format!("stat -c %u:%F /dev/{disk}"), "65534:block special file").await?;
        lines.push(format!("exec 3< /dev/{disk}"));
        lines.push(format!("exec 3<> /dev/{disk}"));
        lines.push(format!("chmod 666 /dev/{disk}"));
        lines.push(format!("chown 0 /dev/{disk}"));
        lines.push(format!("mount -t ext4 /dev/{disk} /mnt"));
    }
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    refused(&cx, &id, &lines).await?;
    ensure!(fs::read_to_string(secret.join("file"))? == "the host's\n", "the host's file was changed");
    ensure!(!secret.join("new").exists(), "a file was created on the host");
    // It sees the pod's processes alone.
    let exe = cx.cri.sh(&id, "for p in /proc/[0-9]*; do readlink $p/exe; done").await?;
    ensure!(!exe.contains("copepod"), "the runtime's files are visible: {exe}");
    Ok(())
}

async fn privileged_root_is_root_inside(cx: Context) -> Result<()> {
    cx.need("registry.test/tools:1").await?;
    let pod = cx.pod_of(privileged(1_710_000, &cx)).await?;
    let id = cx.start(&pod, &tools()).await?;
    let pid = cx.pid(&id).await?;
    let (own, host) = (proc::status(pid)?, proc::status(std::process::id())?);
    ensure!(own.get("CapEff") == host.get("CapBnd"), "CapEff is {:?}", own.get("CapEff"));
    ensure!(own.get("Seccomp").is_some_and(|s| s == "0"), "it has a filter: {:?}", own.get("Seccomp"));
    ensure!(own.get("Uid").is_some_and(|u| u.starts_with("1710000\t")), "its ids are {:?}", own.get("Uid"));
    let mounts = cx.cri.sh(&id, "cat /proc/mounts").await?;
    ensure!(!mounts.lines().any(|l| l.contains(" /proc/")), "something is mounted below /proc: {mounts}");
    ensure!(mounts.lines().any(|l| l.contains(" /sys sysfs rw")), "/sys is not writable: {mounts}");
    for line in [
        "mount -t tmpfs none /mnt && umount /mnt",
        "unshare --pid --fork --mount mount -t proc proc /proc",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "ip link set lo mtu 1400 && ip addr add 198.51.100.7/32 dev lo",
        "hostname renamed",
        "unshare --cgroup --mount true",
        "head -c 1 /dev/zero | wc -c && : > /dev/null",
    ] {
        cx.cri.sh(&id, &format!("{UTIL_LINUX}{line}")).await.with_context(|| line.to_owned())?;
    }
    Ok(())
}

async fn privileged_equals_runcs(cx: Context) -> Result<()> {
    let case = Case { privileged: true, mapping: Some(1_720_000), ..Case::default() };
    super::super::same_as_runc::same_in(&cx, &case, privileged(1_720_000, &cx)).await
}

/// Its volumes are locked, and none propagates to the host.
async fn privileged_volumes(cx: Context) -> Result<()> {
    cx.need("registry.test/tools:1").await?;
    let folder = cx.volume("v")?;
    fs::write(folder.join("file"), "ours\n")?;
    let pod = cx.pod_of(privileged(1_730_000, &cx)).await?;
    let config = volume(volume(tools(), &folder, "/v", 1_730_000), &folder, "/dev/v", 1_730_000)
        .with(|c| c.mounts.iter_mut().for_each(|m| m.readonly = true));
    let id = cx.start(&pod, &config).await?;
    let lines = ["/v", "/dev/v"].map(|at| {
        [format!("umount {at}"), format!("mount -o remount,bind,rw {at}"), format!("echo x > {at}/file")]
    });
    let lines: Vec<&str> = lines.iter().flatten().map(String::as_str).collect();
    refused(&cx, &id, &lines).await?;
    let both = volume(tools(), &folder, "/v", 1_730_000).with(|c| {
        if let Some(metadata) = &mut c.metadata {
            metadata.name = String::from("both");
        }
        c.mounts.iter_mut().for_each(|m| m.set_propagation(MountPropagation::PropagationBidirectional));
    });
    let error = cx.create(&pod, &both).await.err().context("Bidirectional was accepted")?;
    ensure!(format!("{error:#}").contains("PROPAGATION_BIDIRECTIONAL"), "{error:#}");
    Ok(())
}
