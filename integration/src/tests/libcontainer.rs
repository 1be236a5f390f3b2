//! One test for each known bug of libcontainer that could affect containers, except those that other files cover
//! (exec's seccomp filter, noNewPrivileges with a filter, propagation, the caller's oom score).

use anyhow::{Context as _, Result, ensure};
use cri_api::v1 as api;

use crate::context::Context;
use crate::fixture::Fixture;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(failed_creates_leave_nothing_in_the_shim).ours(),
        test!(execs_leave_nothing_in_the_shim).ours(),
        test!(shim_keeps_its_own_attributes).ours(),
        test!(program_that_only_root_may_run),
        test!(program_without_path_variable),
        test!(environment_keeps_order_and_last_value),
        test!(hugepage_limits_without_the_controller),
        test!(error_keeps_its_cause),
        test!(no_groups_leak_from_the_caller),
    ]
}

async fn failed_creates_leave_nothing_in_the_shim(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let shim = cx.node.shim(&pod.id)?.pid;
    let keep = cx.start(&pod, &cx.sleeper("keep")).await?;
    let (fds, children) = (proc::fds(shim)?, proc::children(shim).len());
    for n in 0..20 {
        let missing = shapes::container(&format!("m{n}"), &Fixture::image("busybox"), &["/no/such/program"]);
        if let Ok(id) = cx.create(&pod, &missing).await {
            ensure!(cx.cri.start(&id).await.is_err(), "a missing program started");
            cx.cri.remove(&id).await?;
        }
        let private = std::path::Path::new("/proc/self");
        let bad = cx.sleeper(&format!("b{n}")).mount(
            private,
            "/proc/../proc/x/y",
            false,
            api::MountPropagation::PropagationPrivate,
        );
        if let Ok(id) = cx.create(&pod, &bad).await {
            cx.cri.remove(&id).await?;
        }
    }
    wait::until("the shim to be as before", secs(5), || async {
        let (now, left) = (proc::fds(shim)?, proc::children(shim));
        ensure!(now <= fds && left.len() <= children, "descriptors {fds} then {now}; children {left:?}");
        Ok(Some(()))
    })
    .await?;
    ensure!(cx.cri.sh(&keep, "echo in").await? == "in");
    Ok(())
}

async fn execs_leave_nothing_in_the_shim(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    cx.cri.sh(&id, "true").await?;
    let shim = cx.node.shim(&pod.id)?.pid;
    let files =
        || std::process::Command::new("find").arg(format!("/proc/{shim}/root/")).args(["-xdev"]).output();
    let (fds, count) = (proc::fds(shim)?, files()?.stdout.split(|b| *b == b'\n').count());
    for _ in 0..50 {
        cx.cri.sh(&id, "true").await?;
    }
    ensure!(cx.cri.exec_sync(&id, &["sleep", "100"], 1).await.is_err());
    wait::until("the shim to be as before", secs(5), || async {
        let (now, files) = (proc::fds(shim)?, files()?.stdout.split(|b| *b == b'\n').count());
        ensure!(now <= fds && files <= count, "descriptors {fds} then {now}, files {count} then {files}");
        Ok(Some(()))
    })
    .await
}

async fn shim_keeps_its_own_attributes(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let shim = cx.node.shim(&pod.id)?.pid;
    let facts = || -> Result<(String, String, std::path::PathBuf)> {
        Ok((
            std::fs::read_to_string(format!("/proc/{shim}/oom_score_adj"))?,
            proc::status(shim)?.get("SigIgn").cloned().unwrap_or_default(),
            std::fs::read_link(format!("/proc/{shim}/cwd"))?,
        ))
    };
    let before = facts()?;
    let id = cx.start(&pod, &cx.sleeper("one").with(|c| c.resources().oom_score_adj = 800)).await?;
    cx.cri.sh(&id, "true").await?;
    ensure!(facts()? == before, "a create changed the shim from {before:?} to {:?}", facts()?);
    Ok(())
}

async fn program_that_only_root_may_run(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = shapes::container("one", &Fixture::image("whiteouts"), &["/x/private", "a b"]);
    let text = cx.output(&pod, &config).await.context("root runs a program of mode 0700")?;
    ensure!(text == "private program: /x/private a b\n", "{text}");
    let denied = shapes::container("two", &Fixture::image("whiteouts"), &["/x/private"])
        .with(|c| c.security().run_as_user = Some(api::Int64Value { value: 1000 }));
    let id = cx.create(&pod, &denied).await?;
    if cx.cri.start(&id).await.is_ok() {
        // execve(2) itself is allowed while CAP_DAC_OVERRIDE is in the effective set, as it is by default, with
        // runc as with copepod; the program then runs without it, and its shell may not read the script.
        let s = cx.cri.wait_exit(&id, secs(10)).await?;
        let log = crate::logfile::Log::read(&s.log_path)?;
        ensure!(s.exit_code != 0, "somebody else's start must fail: {s:?}");
        ensure!(log.text(Some("stdout")).is_empty(), "somebody else read it: {}", log.text(None));
    }
    // Without that capability execve fails, and so does the start.
    let mut powerless = denied.clone().with(|c| {
        c.security().capabilities =
            Some(api::Capability { drop_capabilities: vec![String::from("ALL")], ..Default::default() });
    });
    powerless.metadata = Some(api::ContainerMetadata { name: String::from("three"), attempt: 0 });
    let id = cx.create(&pod, &powerless).await?;
    let error = cx.cri.start(&id).await.err().context("a start without the right to execute")?;
    ensure!(error.message().contains("ermission denied"), "{error}");
    Ok(())
}

async fn program_without_path_variable(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    // This image sets no PATH.
    let config = shapes::container("one", &Fixture::image("number-1"), &["echo", "found"]);
    ensure!(cx.output(&pod, &config).await? == "found\n");
    Ok(())
}

async fn environment_keeps_order_and_last_value(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = shapes::container(
        "one",
        &Fixture::image("busybox"),
        &["/bin/sh", "-c", "tr '\\0' '\\n' < /proc/self/environ; sleep 0"],
    );
    let config = config.env("ZULU", "1").env("ALPHA", "2").env("MIKE", "3").env("ALPHA", "last");
    let text = cx.output(&pod, &config).await?;
    let names: Vec<&str> =
        text.lines().filter(|l| ["ZULU=", "ALPHA=", "MIKE="].iter().any(|n| l.starts_with(n))).collect();
    ensure!(
        names.iter().filter(|l| l.starts_with("ALPHA=")).collect::<Vec<_>>() == [&"ALPHA=last"],
        "{names:?}"
    );
    let at = |name: &str| names.iter().position(|l| l.starts_with(name));
    ensure!(at("ZULU=") < at("MIKE="), "the order changed: {names:?}");
    Ok(())
}

async fn hugepage_limits_without_the_controller(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = cx.sleeper("one").with(|c| {
        c.resources().hugepage_limits = ["2MB", "1GB"]
            .iter()
            .map(|size| api::HugepageLimit { page_size: (*size).to_owned(), limit: 0 })
            .collect();
    });
    let id = cx.start(&pod, &config).await.context("kubelet sends a limit for every page size, always")?;
    ensure!(cx.cri.sh(&id, "echo in").await? == "in");
    Ok(())
}

async fn error_keeps_its_cause(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let file = cx.volume("v")?.join("file");
    std::fs::write(&file, "x")?;
    // A path below a file: the mount is impossible, and the error must say where and why.
    let config =
        cx.sleeper("one").mount(&file, "/etc/marker/below", false, api::MountPropagation::PropagationPrivate);
    let e = match cx.create(&pod, &config).await {
        Err(e) => format!("{e:#}"),
        Ok(id) => cx.cri.start(&id).await.err().context("a mount below a file succeeded")?.to_string(),
    };
    ensure!(e.contains("/etc/marker"), "the error does not name the target: {e}");
    ensure!(e.to_lowercase().contains("not a directory"), "the error does not give the cause: {e}");
    Ok(())
}

async fn no_groups_leak_from_the_caller(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = cx.sleeper("one").with(|c| {
        c.security().run_as_user = Some(api::Int64Value { value: 4321 });
        c.security().run_as_group = Some(api::Int64Value { value: 4321 });
    });
    let id = cx.start(&pod, &config).await?;
    for whose in ["1", "self"] {
        let line = cx.cri.sh(&id, &format!("grep ^Groups: /proc/{whose}/status")).await?;
        let groups: Vec<&str> = line.split_whitespace().skip(1).filter(|g| *g != "4321").collect();
        ensure!(groups.is_empty(), "groups of {whose} that nobody asked for: {groups:?}");
    }
    Ok(())
}
