//! A container's init and exec'd processes equal those of Debian's runc in what a program can
//! read about itself in /proc and in its environment.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;

use crate::compare::{self, Case};
use crate::context::Context;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(root),
        test!(root_no_new_privs),
        test!(user_with_groups),
        test!(user_no_new_privs),
        test!(privileged),
        test!(limited),
    ]
}

async fn root(cx: Context) -> Result<()> {
    same(&cx, &Case::default()).await
}

async fn root_no_new_privs(cx: Context) -> Result<()> {
    same(&cx, &Case { no_new_privs: true, ..Case::default() }).await
}

async fn user_with_groups(cx: Context) -> Result<()> {
    same(&cx, &Case { user: Some((1000, 1000, vec![1234, 5678])), ..Case::default() }).await
}

async fn user_no_new_privs(cx: Context) -> Result<()> {
    same(&cx, &Case { user: Some((1000, 1000, vec![1234, 5678])), no_new_privs: true, ..Case::default() })
        .await
}

async fn privileged(cx: Context) -> Result<()> {
    same(&cx, &Case { privileged: true, ..Case::default() }).await
}

async fn limited(cx: Context) -> Result<()> {
    same(&cx, &Case { oom_score_adj: 777, ..Case::default() }).await
}

/// Compares init and an exec of a container with those of a runc container.
async fn same(cx: &Context, case: &Case) -> Result<()> {
    let pod_config = cx.pod_config();
    same_in(cx, case, if case.privileged { pod_config.privileged() } else { pod_config }).await
}

/// Like [`same`], in a pod with this configuration.
pub(super) async fn same_in(cx: &Context, case: &Case, pod: api::PodSandboxConfig) -> Result<()> {
    let pod = cx.pod_of(pod).await?;
    let mut config =
        shapes::container("dump", &Fixture::image("busybox"), &["/bin/sh", "-c", &compare::script(true)])
            .env("MINE", "a b");
    config.working_dir = String::from("/tmp");
    config.resources().oom_score_adj = case.oom_score_adj;
    let security = config.security();
    security.no_new_privs = case.no_new_privs;
    security.privileged = case.privileged;
    if let Some((uid, gid, groups)) = &case.user {
        security.run_as_user = Some(api::Int64Value { value: i64::from(*uid) });
        security.run_as_group = Some(api::Int64Value { value: i64::from(*gid) });
        security.supplemental_groups = groups.iter().map(|g| i64::from(*g)).collect();
    }
    let id = cx.start(&pod, &config).await?;
    let path = cx.cri.container(&id).await?.log_path;
    let text = wait::until("init's report", secs(10), || async {
        let log = crate::logfile::Log::read(&path)?.text(None);
        Ok(log.contains(compare::END).then_some(log))
    })
    .await?;
    let ours_init = compare::parse(&text, &id);
    let out = cx.cri.exec(&id, &["/bin/sh", "-c", &compare::script(false)]).await?;
    ensure!(out.code == 0, "the exec's report ended with {out:?}");
    let ours_exec = compare::parse(&out.stdout, &id);
    let parent = pod.config.linux.as_ref().map(|l| l.cgroup_parent.clone()).unwrap_or_default();
    let reference = compare::runc(cx, case, &parent).await.context("the reference, Debian's runc")?;
    are_equal("init", &ours_init, &reference.init)?;
    are_equal("exec", &ours_exec, &reference.exec)
}

/// Fails with all facts that are not equal.
fn are_equal(what: &str, ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>) -> Result<()> {
    ensure!(theirs.len() > 40, "runc's {what} reported only {} facts", theirs.len());
    let names: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let differences: Vec<String> = names
        .into_iter()
        .filter(|n| ours.get(*n) != theirs.get(*n))
        .map(|n| format!("{n}: ours {:?}, runc's {:?}", ours.get(n), theirs.get(n)))
        .collect();
    ensure!(differences.is_empty(), "{what} differs from runc's in\n  {}", differences.join("\n  "));
    Ok(())
}
