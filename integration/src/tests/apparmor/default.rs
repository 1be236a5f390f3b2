//! The default profile: who gets it, what it forbids, when it is loaded.

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use cri_api::v1::security_profile::ProfileType;
use std::fs::File;
use std::io::Read as _;

use super::{Asked, DEFAULT, POLICY, enforced, label, labelled, remove};
use crate::context::Context;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};
use crate::tests::configuration::drop_in;
use crate::tests::userns;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(who_gets_the_default_profile).ours(),
        test!(default_profile_guards_the_node).ours(),
        test!(containers_of_a_pod_signal_each_other).ours(),
        test!(root_of_a_user_namespace_is_confined).ours(),
        test!(default_profile_is_loaded_once).own(),
        test!(default_profile_that_was_removed_is_loaded_again).own(),
        test!(switched_off_by_configuration).own(),
    ]
}

/// Everything but "unconfined", if not privileged.
fn by_default() -> [(&'static str, Asked); 3] {
    [
        ("nothing", Asked::nothing()),
        ("message", Asked::message(ProfileType::RuntimeDefault, "")),
        ("string", Asked::string("runtime/default")),
    ]
}

async fn who_gets_the_default_profile(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().privileged()).await?;
    let enforced = enforced(&cx);
    let unconfined = [
        ("un-message", Asked::message(ProfileType::Unconfined, "")),
        ("un-string", Asked::string("unconfined")),
    ];
    for (name, asked) in by_default().into_iter().chain(unconfined) {
        for privileged in [false, true] {
            let config = asked.clone().put(cx.sleeper(&format!("{name}-{privileged}")));
            let id = cx.start(&pod, &if privileged { config.privileged() } else { config }).await?;
            if !enforced {
                cx.exec_works(&id).await?;
                continue;
            }
            let wanted = if privileged || name.starts_with("un-") { "unconfined" } else { DEFAULT };
            let found = label(cx.pid(&id).await?)?;
            ensure!(found == wanted, "{name}, privileged: {privileged}: {found:?} instead of {wanted:?}");
            let inside = cx.cri.sh(&id, "cut -d' ' -f1 /proc/self/attr/apparmor/current").await?;
            ensure!(inside == wanted, "{name}, privileged: {privileged}: an exec has {inside:?}");
        }
    }
    let status = cx.cri.status(true).await?;
    let info: serde_json::Value =
        serde_json::from_str(status.info.get("appArmor").context("Status says nothing of AppArmor")?)?;
    ensure!(info["enabled"] == enforced && info["problem"].is_null(), "Status says {info}");
    ensure!(info["defaultProfile"] == serde_json::json!(enforced.then_some(DEFAULT)), "Status says {info}");
    Ok(())
}

/// With all capabilities, a file system for the process tree without masks, and no filter.
fn mighty(mut config: api::ContainerConfig, asked: Asked) -> api::ContainerConfig {
    config.security().capabilities =
        Some(api::Capability { add_capabilities: vec![String::from("ALL")], ..Default::default() });
    asked.put(config)
}

/// A container that may write /proc/sys and mount, but for the profile.
async fn default_profile_guards_the_node(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let enforced = enforced(&cx);
    let denied = [
        // Opened for appending only: nothing is changed where it is allowed.
        ": >> /proc/sys/kernel/domainname",
        ": >> /proc/sys/kernel/core_pattern",
        ": >> /proc/sys/vm/swappiness",
        ": >> /proc/sysrq-trigger",
        ": >> /proc/irq/default_smp_affinity",
        "head -c 1 /proc/kcore | grep -q .",
        "mkdir -p /tmp/m && mount -t tmpfs t /tmp/m",
        "mkdir -p /tmp/b && mount -o bind /etc /tmp/b",
    ];
    let allowed = [
        ": >> /proc/self/comm",
        ": >> /proc/sys/kernel/shmmax",
        "echo x > /tmp/x && cat /tmp/x",
        "cat /proc/sys/kernel/core_pattern /proc/1/comm > /dev/null",
        "sleep 100 & kill $!",
        "chown 1:1 /tmp/x && chroot / true",
    ];
    let config = mighty(cx.sleeper("default"), Asked::nothing());
    let default = cx.start(&pod, &config).await?;
    let config = mighty(cx.sleeper("unconfined"), Asked::message(ProfileType::Unconfined, ""));
    let unconfined = cx.start(&pod, &config).await?;
    for line in denied {
        let out = cx.cri.exec(&default, &["/bin/sh", "-c", line]).await?;
        let other = cx.cri.exec(&unconfined, &["/bin/sh", "-c", line]).await?;
        if enforced {
            let said = &out.stderr;
            ensure!(
                out.code != 0 && said.contains("ermission denied"),
                "`{line}` under the profile: {out:?}"
            );
            // Without the profile it works, or fails for a reason of this kernel.
            ensure!(!other.stderr.contains("ermission denied"), "`{line}` without a profile: {other:?}");
        } else {
            ensure!(out.code == other.code, "`{line}` differs without AppArmor: {out:?}, {other:?}");
        }
    }
    for line in allowed {
        let out = cx.cri.exec(&default, &["/bin/sh", "-c", line]).await?;
        ensure!(out.code == 0, "`{line}` under the default profile: {out:?}");
    }
    Ok(())
}

/// In a pod with one PID namespace: those with the default profile may signal each other, but not a process without one.
async fn containers_of_a_pod_signal_each_other(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let enforced = enforced(&cx);
    let sender = cx.start(&pod, &cx.sleeper("sender")).await?;
    for (name, asked) in
        [("peer", Asked::nothing()), ("unconfined", Asked::message(ProfileType::Unconfined, ""))]
    {
        let other = cx
            .start(
                &pod,
                &asked.put(shapes::container(
                    name,
                    &crate::fixture::Fixture::image("busybox"),
                    &["/bin/sleep", &format!("7{}", name.len())],
                )),
            )
            .await?;
        let line = format!(
            "for p in /proc/[0-9]*; do [ \"$(tr '\\0' ' ' < $p/cmdline)\" = '/bin/sleep 7{} ' ] || continue; \
             kill ${{p#/proc/}}; exit; done; exit 9",
            name.len()
        );
        let out = cx.cri.exec(&sender, &["/bin/sh", "-c", &line]).await?;
        if enforced && name == "unconfined" {
            ensure!(out.code == 1 && out.stderr.contains("denied"), "a signal to it: {out:?}");
            cx.exec_works(&other).await?;
        } else {
            ensure!(out.code == 0, "a signal to {name}: {out:?}");
            cx.cri.wait_exit(&other, std::time::Duration::from_secs(10)).await?;
        }
    }
    // The runtime's own signals arrive.
    cx.cri.stop(&sender, 0).await?;
    Ok(())
}

async fn root_of_a_user_namespace_is_confined(cx: Context) -> Result<()> {
    let pod = cx.pod_of(userns::mapped(&cx, 1_900_000, 65_536)).await?;
    let id = cx.start(&pod, &cx.sleeper("mapped")).await?;
    if enforced(&cx) {
        let found = label(cx.pid(&id).await?)?;
        ensure!(found == DEFAULT, "its init has the profile {found:?}");
        cx.prints(&id, "cut -d' ' -f1 /proc/self/attr/apparmor/current", DEFAULT).await?;
    }
    cx.exec_works(&id).await
}

/// The kernel counts changes of its policy.
fn revision() -> Result<String> {
    let path = format!("{POLICY}/revision");
    // In one read: a second one waits for a change.
    let mut text = [0; 64];
    let length = File::open(&path).and_then(|mut file| file.read(&mut text)).context(path)?;
    Ok(String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned())
}

/// A restarted daemon finds it loaded, and containers keep it, also for later execs.
async fn default_profile_is_loaded_once(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    if !enforced(&cx) {
        let id = cx.start(&pod, &cx.sleeper("main")).await?;
        cx.node.restart().await?;
        return cx.exec_works(&id).await;
    }
    let (id, _) = labelled(&cx, &pod, "main", Asked::nothing()).await?;
    let before = revision()?;
    cx.node.restart().await?;
    cx.node.crash().await?;
    let (other, found) = labelled(&cx, &pod, "other", Asked::nothing()).await?;
    ensure!(revision()? == before, "the profile was loaded again");
    ensure!(found == DEFAULT, "after a restart a container has the profile {found:?}");
    for id in [id, other] {
        ensure!(label(cx.pid(&id).await?)? == DEFAULT, "container {id} has lost its profile");
        cx.prints(&id, "cut -d' ' -f1 /proc/self/attr/apparmor/current", DEFAULT).await?;
    }
    Ok(())
}

/// As tools that remove all profiles without a file do.
async fn default_profile_that_was_removed_is_loaded_again(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    if !enforced(&cx) {
        cx.start(&pod, &cx.sleeper("main")).await?;
        return Ok(());
    }
    let (old, _) = labelled(&cx, &pod, "old", Asked::nothing()).await?;
    remove(DEFAULT)?;
    // Its processes are confined no longer, so that nothing new may start in it.
    let out = cx.cri.exec(&old, &["/bin/true"]).await;
    let error = format!("{:#}", out.err().context("an exec without the profile that its container has")?);
    ensure!(error.contains(DEFAULT) && error.contains("loaded"), "{error}");
    let (_, found) = labelled(&cx, &pod, "new", Asked::nothing()).await?;
    ensure!(found == DEFAULT, "a new container has the profile {found:?}");
    cx.prints(&old, "cut -d' ' -f1 /proc/self/attr/apparmor/current", DEFAULT).await
}

async fn switched_off_by_configuration(cx: Context) -> Result<()> {
    let enforced = enforced(&cx);
    drop_in(&cx, "10-apparmor.toml", "apparmor = \"off\"\n")?;
    cx.node.restart().await?;
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("nothing")).await?;
    cx.exec_works(&id).await?;
    let named = Asked::message(ProfileType::Localhost, DEFAULT);
    ensure!(cx.create(&pod, &named.put(cx.sleeper("named"))).await.is_err(), "a named profile was accepted");
    if enforced {
        ensure!(label(cx.pid(&id).await?)? == "unconfined", "it has a profile");
        let default = Asked::message(ProfileType::RuntimeDefault, "");
        let refused = cx.create(&pod, &default.put(cx.sleeper("refused"))).await;
        let error = format!("{:#}", refused.err().context("RuntimeDefault was accepted")?);
        ensure!(error.contains("switched off"), "{error}");
        ensure!(cx.node.last_log(200).contains("switched off"), "the log does not say it");
    }
    Ok(())
}
