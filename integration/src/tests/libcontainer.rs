//! One test for each known bug of libcontainer that could affect containers, except those that other files cover
//! (exec's seccomp filter, noNewPrivileges with a filter, propagation, the caller's oom score).

use std::process::Command;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;

use crate::context::Context;
use crate::expect::ensure;
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
        let bad = cx.sleeper(&format!("b{n}")).mount(
            std::path::Path::new("/proc/self"),
            "/proc/../proc/x/y",
            false,
            api::MountPropagation::PropagationPrivate,
        );
        if let Ok(id) = cx.create(&pod, &bad).await {
            cx.cri.remove(&id).await?;
        }
    }
    wait::until("the shim to have no more than before", secs(5), || async {
        let (now, left) = (proc::fds(shim)?, proc::children(shim));
        ensure!(now <= fds && left.len() <= children, "descriptors {fds} then {now}; children {left:?}");
        Ok(Some(()))
    })
    .await?;
    cx.exec_works(&keep).await?;
    Ok(())
}

async fn execs_leave_nothing_in_the_shim(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    cx.cri.sh(&id, "true").await?;
    let shim = cx.node.shim(&pod.id)?.pid;
    let files = || -> Result<usize> {
        let found = Command::new("find").arg(format!("/proc/{shim}/root/")).arg("-xdev").output()?;
        let count = found.stdout.split(|b| *b == b'\n').count();
        // The shim's root itself is found always.
        ensure!(count > 1, "find found nothing: {}", String::from_utf8_lossy(&found.stderr));
        Ok(count)
    };
    let (fds, count) = (proc::fds(shim)?, files()?);
    for _ in 0..50 {
        cx.cri.sh(&id, "true").await?;
    }
    ensure!(
        cx.cri.exec_sync(&id, &["sleep", "100"], 1).await.is_err(),
        "an exec outlasted its time-out of 1 s"
    );
    wait::until("the shim to have no more than before", secs(5), || async {
        let (now, files) = (proc::fds(shim)?, files()?);
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
    let now = facts()?;
    ensure!(
        now == before,
        "a create changed the shim's oom score, SigIgn or folder from {before:?} to {now:?}"
    );
    Ok(())
}

async fn program_that_only_root_may_run(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = shapes::container("one", &Fixture::image("whiteouts"), &["/x/private", "a b"]);
    cx.outputs(&pod, &config, "private program: /x/private a b\n")
        .await
        .context("a program of mode 0700 as root")?;
    let denied = shapes::container("two", &Fixture::image("whiteouts"), &["/x/private"])
        .with(|c| c.security().run_as_user = Some(api::Int64Value { value: 1000 }));
    let id = cx.create(&pod, &denied).await?;
    if cx.cri.start(&id).await.is_ok() {
        // execve(2) itself is allowed while CAP_DAC_OVERRIDE is in the effective set, as it is by default, with
        // runc as with copepod; the program then runs without it, and its shell may not read the script.
        let s = cx.cri.wait_exit(&id, secs(10)).await?;
        let log = crate::logfile::Log::read(&s.log_path)?;
        ensure!(s.exit_code != 0, "another user ran a program of mode 0700: {s:?}");
        ensure!(
            log.text(Some("stdout")).is_empty(),
            "another user's shell read the script: {}",
            log.text(None)
        );
    }
    // Without that capability execve fails, and so does the start.
    let mut powerless = denied.clone().with(|c| {
        c.security().capabilities =
            Some(api::Capability { drop_capabilities: vec![String::from("ALL")], ..Default::default() });
    });
    powerless.metadata = Some(api::ContainerMetadata { name: String::from("three"), attempt: 0 });
    let id = cx.create(&pod, &powerless).await?;
    let error =
        cx.cri.start(&id).await.err().context("a program of mode 0700 started without CAP_DAC_OVERRIDE")?;
    ensure!(error.message().contains("ermission denied"), "the error does not give the cause: {error}");
    Ok(())
}

async fn program_without_path_variable(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    // This image sets no PATH.
    let config = shapes::container("one", &Fixture::image("number-1"), &["echo", "found"]);
    cx.outputs(&pod, &config, "found\n").await?;
    Ok(())
}

async fn environment_keeps_order_and_last_value(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = shapes::container(
        "one",
        &Fixture::image("busybox"),
        // The second command keeps the shell from replacing itself: /proc/self was opened for it, and ends with its memory.
        &["/bin/sh", "-c", "tr '\\0' '\\n' < /proc/self/environ; sleep 0"],
    );
    let config = config.env("ZULU", "1").env("ALPHA", "2").env("MIKE", "3").env("ALPHA", "last");
    let text = cx.output(&pod, &config).await?;
    let names: Vec<&str> =
        text.lines().filter(|l| ["ZULU=", "ALPHA=", "MIKE="].iter().any(|n| l.starts_with(n))).collect();
    ensure!(
        names.iter().filter(|l| l.starts_with("ALPHA=")).collect::<Vec<_>>() == [&"ALPHA=last"],
        "of a variable that is given twice the last value does not hold: {names:?}"
    );
    let others: Vec<_> = names.into_iter().filter(|l| !l.starts_with("ALPHA=")).collect();
    ensure!(others == ["ZULU=1", "MIKE=3"], "the other variables are {others:?}");
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
    // kubelet always sends a limit for every page size.
    let id = cx.start(&pod, &config).await.context("a container with limits of huge pages")?;
    cx.exec_works(&id).await?;
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
