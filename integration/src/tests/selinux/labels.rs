//! The labels of a container's processes and of the files that it sees.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use cri_api::v1 as api;

use super::{enforced, file_label, is_pair, kind, label, labelled, level, options};
use crate::context::Context;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(processes_have_the_label_of_their_pod).ours(),
        test!(files_have_the_label_of_their_pod),
        test!(labels_that_are_asked_for).ours(),
        test!(wrong_labels_are_refused),
        test!(privileged_containers_are_not_confined).ours(),
        test!(confined_containers_work),
    ]
}

async fn processes_have_the_label_of_their_pod(cx: Context) -> Result<()> {
    if !enforced(&cx)? {
        return Ok(());
    }
    let pod = cx.pod().await?;
    let (first, own) = labelled(&cx, &pod, "one", None).await?;
    let (_, second) = labelled(&cx, &pod, "two", options("", "")).await?;
    ensure!(own.starts_with("system_u:system_r:container_t:"), "init has the label {own:?}");
    is_pair(level(&own))?;
    ensure!(own == second, "two containers of a pod have the labels {own:?} and {second:?}");
    cx.prints(&first, "tr -d '\\0' < /proc/self/attr/current", &own).await?;
    let pause = label(cx.node.pause(&pod.id)?.pid)?;
    ensure!(pause == own, "pause has the label {pause:?} instead of {own:?}");
    // With no_new_privs and a filter, which could forbid the change of the label if they came first.
    let guarded = cx.sleeper("guarded").with(|c| {
        let security = c.security();
        (security.no_new_privs, security.run_as_user) = (true, Some(api::Int64Value { value: 1000 }));
        let kind = api::security_profile::ProfileType::RuntimeDefault;
        security.seccomp = crate::shapes::seccomp(kind, "");
    });
    let id = cx.start(&pod, &guarded).await?;
    let found = label(cx.pid(&id).await?)?;
    ensure!(found == own, "with no_new_privs init has the label {found:?}");
    cx.prints(&id, "tr -d '\\0' < /proc/self/attr/current", &own).await
}

async fn files_have_the_label_of_their_pod(cx: Context) -> Result<()> {
    if !enforced(&cx)? {
        return Ok(());
    }
    let pod = cx.pod().await?;
    let (id, own) = labelled(&cx, &pod, "one", None).await?;
    let wanted = format!("system_u:object_r:container_file_t:{}", level(&own));
    let root = PathBuf::from(format!("/proc/{}/root", cx.pid(&id).await?));
    for name in [
        "",
        "bin/busybox",
        "dev",
        "dev/null",
        "dev/shm",
        "dev/pts",
        "etc/hosts",
        "etc/resolv.conf",
        "etc/hostname",
    ] {
        let found = file_label(&root.join(name))?;
        ensure!(found == wanted, "/{name} has the label {found:?} instead of {wanted:?}");
    }
    // critest looks for it in the mounts of PID 1, which is pause if the pod shares its PID namespace.
    let context = format!("context={wanted}");
    let quoted = format!("context=\"{wanted}\"");
    for pid in [cx.pid(&id).await?, cx.node.pause(&pod.id)?.pid] {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
        ensure!(
            mounts.contains(&context) || mounts.contains(&quoted),
            "no mount of process {pid} has the option {quoted}: {mounts}"
        );
    }
    Ok(())
}

async fn labels_that_are_asked_for(cx: Context) -> Result<()> {
    if !enforced(&cx)? {
        return Ok(());
    }
    let pod = cx.pod().await?;
    let (_, own) = labelled(&cx, &pod, "own", None).await?;
    let full = Some(api::SeLinuxOption {
        user: String::from("system_u"),
        role: String::from("system_r"),
        r#type: String::from("svirt_lxc_net_t"),
        level: String::from("s0:c5,c4"),
    });
    let (id, found) = labelled(&cx, &pod, "full", full).await?;
    // The policy knows the type by another name, and a level has its categories in their order.
    ensure!(found == "system_u:system_r:container_t:s0:c4,c5", "with all parts init has {found:?}");
    for line in ["touch /foo", "cat /etc/hosts /etc/resolv.conf /etc/hostname > /copy", "echo x > /dev/null"]
    {
        cx.cri.sh(&id, line).await?;
    }
    let (id, found) = labelled(&cx, &pod, "level", options("", "s0")).await?;
    ensure!(found == "system_u:system_r:container_t:s0", "with a level init has {found:?}");
    cx.cri.sh(&id, "touch /foo").await?;
    let (_, found) = labelled(&cx, &pod, "type", options("container_kvm_t", "")).await?;
    ensure!(
        kind(&found) == "container_kvm_t" && level(&found) == level(&own),
        "with a type init has {found:?}; the pod's level is that of {own:?}"
    );
    let mut config = cx.pod_config();
    config.security().selinux_options = options("", "s0:c7,c9");
    let pod = cx.pod_of(config).await?;
    let (_, found) = labelled(&cx, &pod, "inherits", None).await?;
    ensure!(level(&found) == "s0:c7,c9", "in a pod with a level init has {found:?}");
    Ok(())
}

async fn wrong_labels_are_refused(cx: Context) -> Result<()> {
    if !enforced(&cx)? {
        return Ok(());
    }
    let pod = cx.pod().await?;
    for wrong in [
        options("svirt_lxc_net_t", "s0,c4,c5"),
        options("", "s3:c1"),
        options("no_such_t", ""),
        options("a b", ""),
    ] {
        let config = cx.sleeper("refused").with(|c| c.security().selinux_options = wrong.clone());
        ensure!(cx.create(&pod, &config).await.is_err(), "{wrong:?} was accepted");
        let mut config = cx.pod_config();
        config.security().selinux_options = wrong.clone();
        ensure!(cx.cri.run_pod(&config).await.is_err(), "a sandbox with {wrong:?} was accepted");
    }
    let listed = cx.cri.containers(None).await?;
    ensure!(listed.is_empty(), "a refused container is listed: {listed:?}");
    Ok(())
}

async fn privileged_containers_are_not_confined(cx: Context) -> Result<()> {
    if !enforced(&cx)? {
        return Ok(());
    }
    let pod = cx.pod_of(cx.pod_config().privileged()).await?;
    for (name, asked) in [("nothing", None), ("level", options("", "s0:c1,c2"))] {
        let config = cx.sleeper(name).privileged().with(|c| c.security().selinux_options = asked);
        let id = cx.start(&pod, &config).await?;
        let found = label(cx.pid(&id).await?)?;
        ensure!(kind(&found) == "spc_t", "{name}: a privileged init has the label {found:?}");
        let inside = cx.cri.sh(&id, "tr -d '\\0' < /proc/self/attr/current; touch /foo").await?;
        ensure!(inside == found, "{name}: an exec has {inside:?} instead of {found:?}");
    }
    // The other containers of the pod have its label.
    let (_, found) = labelled(&cx, &pod, "confined", None).await?;
    ensure!(kind(&found) == "container_t", "a container of a privileged pod has {found:?}");
    is_pair(level(&found))
}

/// What programs need of /dev, of the pod's IPC and of their terminals.
async fn confined_containers_work(cx: Context) -> Result<()> {
    if !enforced(&cx)? {
        return Ok(());
    }
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("main")).await?;
    for line in [
        "echo x > /dev/null && head -c 4 /dev/urandom > /random",
        "echo x > /dev/shm/file && rm /dev/shm/file",
        "touch /dev/mqueue/queue && rm /dev/mqueue/queue",
        "mkdir /folder && ln -s /folder /link && cp /bin/busybox /folder/ && /link/busybox true",
        "ls /proc/1 > /dev/null && cat /proc/self/cgroup > /dev/null",
        "echo out; echo err >&2; echo x > /dev/stdout",
    ] {
        cx.cri.sh(&id, line).await?;
    }
    let terminal = cx.shell("terminal", "test -t 0 && echo \"on $(tty)\"; sleep 1000").terminal();
    let terminal = cx.start(&pod, &terminal).await?;
    cx.said(&terminal, "on /dev/pts/0").await?;
    // Another pod's processes are out of reach, whatever namespaces are shared.
    let mut config = cx.pod_config();
    config.namespaces().pid = api::NamespaceMode::Node.into();
    let other = cx.pod_of(config).await?;
    let spy = cx.start(&other, &cx.sleeper("spy")).await?;
    let line = format!("cat /proc/{}/environ", cx.pid(&id).await?);
    let tried = cx.cri.exec(&spy, &["/bin/sh", "-c", &line]).await?;
    ensure!(tried.code != 0 && tried.stderr.contains("denied"), "`{line}` gave {tried:?}");
    Ok(())
}
