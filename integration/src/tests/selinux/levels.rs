//! The pairs of categories: each pod has its own until it is removed, whatever happens to the daemon.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{enforced, kind, labelled, level, options};
use crate::context::Context;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::shapes::PodExt as _;
use crate::tests::configuration::drop_in;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(pods_have_pairs_of_their_own).own(),
        test!(a_pair_is_kept_over_restarts).own(),
        test!(labels_can_be_switched_off).own(),
    ]
}

/// What verbose status says about SELinux.
async fn shown(cx: &Context) -> Result<Value> {
    let status = cx.cri.status(true).await?;
    Ok(serde_json::from_str(status.info.get("selinux").context("verbose status without selinux")?)?)
}

/// The number of pairs that are in use must be this, at once or when the last removal has ended.
async fn in_use(cx: &Context, wanted: u64) -> Result<()> {
    let what = format!("{wanted} pairs of categories to be in use");
    crate::wait::until(&what, std::time::Duration::from_secs(10), || async {
        let pairs = shown(cx).await?.get("categoryPairs").and_then(Value::as_u64);
        Ok((pairs == Some(wanted)).then_some(()))
    })
    .await
}

async fn pods_have_pairs_of_their_own(cx: Context) -> Result<()> {
    if !enforced(&cx)? {
        return Ok(());
    }
    let status = shown(&cx).await?;
    ensure!(
        status.get("enabled") == Some(&Value::Bool(true)) && status.get("problem") == Some(&Value::Null),
        "verbose status: {status}"
    );
    let (mut pods, mut levels) = (Vec::new(), BTreeSet::new());
    for number in 0..4 {
        let pod = cx.pod().await?;
        let (_, label) = labelled(&cx, &pod, "main", None).await?;
        ensure!(levels.insert(level(&label).to_owned()), "pod {number} has the level of another: {label:?}");
        pods.push(pod);
    }
    in_use(&cx, 4).await?;
    // A level that is asked for may be that of another pod, and counts once.
    let mut config = cx.pod_config();
    config.security().selinux_options = options("", levels.first().context("no level")?);
    let same = cx.pod_of(config).await?;
    in_use(&cx, 4).await?;
    // A sandbox that cannot be started keeps none.
    let mut wrong = cx.pod_config();
    wrong.security().seccomp =
        crate::shapes::seccomp(cri_api::v1::security_profile::ProfileType::Localhost, "/does/not/exist");
    ensure!(cx.cri.run_pod(&wrong).await.is_err(), "a sandbox without its profile was started");
    in_use(&cx, 4).await?;
    for pod in pods {
        cx.cri.stop_pod(&pod.id).await?;
        cx.cri.remove_pod(&pod.id).await?;
    }
    in_use(&cx, 1).await?;
    cx.cri.drop_pod(&same.id).await?;
    in_use(&cx, 0).await
}

async fn a_pair_is_kept_over_restarts(cx: Context) -> Result<()> {
    if !enforced(&cx)? {
        return Ok(());
    }
    let pod = cx.pod().await?;
    let (id, before) = labelled(&cx, &pod, "before", None).await?;
    for crash in [true, false] {
        if crash {
            cx.node.crash().await?
        } else {
            cx.node.restart().await?
        }
        in_use(&cx, 1).await?;
        let (_, after) = labelled(&cx, &pod, &format!("after-{crash}"), None).await?;
        ensure!(after == before, "the label changed from {before:?} to {after:?}");
        cx.prints(&id, "tr -d '\\0' < /proc/self/attr/current", &before).await?;
    }
    let other = cx.pod().await?;
    let (_, found) = labelled(&cx, &other, "other", None).await?;
    ensure!(level(&found) != level(&before), "another pod has the level of {before:?}");
    for pod in [pod, other] {
        cx.cri.drop_pod(&pod.id).await?;
    }
    in_use(&cx, 0).await
}

async fn labels_can_be_switched_off(cx: Context) -> Result<()> {
    if !enforced(&cx)? {
        return Ok(());
    }
    let old = cx.pod().await?;
    let (_, before) = labelled(&cx, &old, "before", None).await?;
    drop_in(&cx, "50-selinux.toml", "enable_selinux = false\n")?;
    cx.node.restart().await?;
    let status = shown(&cx).await?;
    ensure!(status.get("enabled") == Some(&Value::Bool(false)), "verbose status: {status}");
    let pod = cx.pod().await?;
    let (id, found) = labelled(&cx, &pod, "off", options("container_kvm_t", "s0:c1,c2")).await?;
    ensure!(!kind(&found).starts_with("container_"), "switched off, init has the label {found:?}");
    cx.exec_works(&id).await?;
    // A pod that has labels keeps them.
    let (_, after) = labelled(&cx, &old, "after", None).await?;
    ensure!(after == before, "in a pod from before, the label changed from {before:?} to {after:?}");
    for pod in [pod, old] {
        cx.cri.drop_pod(&pod.id).await?;
    }
    Ok(())
}
