//! Processes that are started in a confined container have its profile, whatever the container has done.

use std::time::Duration;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;

use super::{AUDIT, Asked, DENY, Loaded, enforced, label};
use crate::context::Context;
use crate::expect::ensure;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::ContainerExt as _;
use crate::wait;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(exec_is_confined).ours(),
        test!(exec_is_confined_with_no_new_privs_and_a_filter).ours(),
        test!(faked_proc_does_not_free_an_exec).ours(),
    ]
}

/// A profile that allows what is needed to lay something over /proc.
const MOUNTS: &str = "copepod-it-mounts";

async fn exec_is_confined(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    if !enforced(&cx) {
        let id = cx.start(&pod, &cx.sleeper("main")).await?;
        return cx.prints(&id, "echo x > /tmp/x; cat /tmp/x", "x").await;
    }
    let _loaded = Loaded::usual()?;
    let config = super::Asked::each(DENY)[0].clone().put(cx.sleeper("main"));
    let id = cx.start(&pod, &config).await?;
    for command in ["echo x > /tmp/x", "sh -c 'echo x > /tmp/x'"] {
        let out = cx.cri.exec(&id, &["/bin/sh", "-c", command]).await?;
        ensure!(out.code != 0 && out.stderr.contains("denied"), "`{command}` was not confined: {out:?}");
    }
    cx.prints(&id, "cut -d' ' -f1 /proc/self/attr/apparmor/current", DENY).await
}

/// Both would forbid the change of the profile if they came first.
async fn exec_is_confined_with_no_new_privs_and_a_filter(cx: Context) -> Result<()> {
    use cri_api::v1::security_profile::ProfileType;
    let pod = cx.pod().await?;
    let enforced = enforced(&cx);
    let _loaded = enforced.then(Loaded::usual).transpose()?;
    let asked = if enforced { Asked::each(AUDIT)[0].clone() } else { Asked::nothing() };
    for (name, user) in [("root", 0), ("user", 1000)] {
        let config = asked.clone().put(cx.sleeper(name)).with(|c| {
            let security = c.security();
            security.no_new_privs = true;
            security.run_as_user = Some(api::Int64Value { value: user });
            security.seccomp = crate::shapes::seccomp(ProfileType::RuntimeDefault, "");
        });
        let id = cx.start(&pod, &config).await?;
        cx.prints(&id, "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | awk '{print $2}'", "1\n2")
            .await?;
        if enforced {
            ensure!(label(cx.pid(&id).await?)? == AUDIT, "{name}: init is not confined");
            cx.prints(&id, "cut -d' ' -f1 /proc/self/attr/apparmor/current", AUDIT).await?;
        }
    }
    Ok(())
}

/// The container lays a folder over /proc in which the file that sets the profile takes anything.
async fn faked_proc_does_not_free_an_exec(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let enforced = enforced(&cx);
    let _loaded = enforced
        .then(|| Loaded::new(&[(MOUNTS, "file,\nnetwork,\ncapability,\nsignal,\nmount,\numount,")]))
        .transpose()?;
    let asked = if enforced { Asked::each(MOUNTS)[0].clone() } else { Asked::nothing() };
    let config = asked.put(cx.sleeper("main")).with(|c| {
        c.security().capabilities =
            Some(api::Capability { add_capabilities: vec![String::from("SYS_ADMIN")], ..Default::default() });
    });
    let id = cx.start(&pod, &config).await?;
    let fake = "mount -t tmpfs fake /proc && for d in thread-self self; do mkdir -p /proc/$d/attr/apparmor && \
                : > /proc/$d/attr/apparmor/exec && : > /proc/$d/attr/exec; done";
    let out = cx.cri.exec(&id, &["/bin/sh", "-c", fake]).await?;
    ensure!(out.code == 0, "the fake: {out:?}");
    // A number that no other process has among its arguments.
    let seconds = format!("9{:05}", crate::shapes::unique());
    let (cri, container, argument) = (cx.cri.clone(), id.clone(), seconds.clone());
    let sleeping = tokio::spawn(async move { cri.exec(&container, &["/bin/sleep", &argument]).await });
    let found = wait::until("the exec to run", Duration::from_secs(20), || async {
        Ok(proc::with_args(&seconds)
            .into_iter()
            .find(|process| process.args == format!("/bin/sleep {seconds}")))
    });
    let process = found.await?;
    if enforced {
        let found = label(process.pid)?;
        ensure!(found == MOUNTS, "behind a faked /proc an exec has the profile {found:?}");
        cx.prints(&id, "cat /proc/thread-self/attr/apparmor/exec", "").await?;
    }
    proc::signal(process.pid, nix::sys::signal::Signal::SIGKILL)?;
    let ended = sleeping.await?.context("the exec")?;
    ensure!(ended.code == 137, "it ended with {ended:?}");
    Ok(())
}
