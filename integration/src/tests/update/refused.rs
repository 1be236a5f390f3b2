//! Updates that are refused, and change nothing.

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, ContainerState};
use tonic::Code;

use super::{MIB, limits, second, shown, sleeper};
use crate::context::Context;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::shapes::ContainerExt as _;

pub(super) fn tests() -> Vec<Test> {
    vec![test!(refused_updates_change_nothing), test!(memory_below_usage_is_refused_with_the_number)]
}

/// An update that must be refused, with this code and all of these parts in its text.
async fn refused(
    cx: &Context,
    id: &str,
    linux: api::LinuxContainerResources,
    code: Code,
    parts: &[&str],
) -> Result<()> {
    let asked = format!("{linux:?}");
    let status = cx.cri.update(id, linux).await.err().with_context(|| format!("{asked} was not refused"))?;
    ensure!(status.code() == code, "{asked}: {status}");
    for part in parts {
        ensure!(status.message().contains(part), "the error of {asked} lacks {part:?}: {}", status.message());
    }
    Ok(())
}

async fn refused_updates_change_nothing(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &sleeper(&cx)).await?;
    let before = (limits(&id)?, shown(&cx, &id).await?);
    let with = |change: fn(&mut api::LinuxContainerResources)| {
        let mut linux = second();
        change(&mut linux);
        linux
    };
    let invalid = Code::InvalidArgument;
    for (linux, parts) in [
        (with(|r| r.cpuset_cpus = String::from("4095")), ["linux.cpuset_cpus", "4095"]),
        (with(|r| r.cpuset_mems = String::from("4095")), ["linux.cpuset_mems", "4095"]),
        (
            with(|r| {
                r.hugepage_limits[0] = api::HugepageLimit { page_size: String::from("4MB"), limit: 4 << 20 }
            }),
            ["linux.hugepage_limits", "4194304"],
        ),
        (
            with(|r| r.unified = [(String::from("memory.high"), String::from("1"))].into()),
            ["linux.unified", "cgroup v1"],
        ),
        (with(|r| r.memory_limit_in_bytes = 4096), ["linux.memory_limit_in_bytes", "4096"]),
        (with(|r| r.memory_swap_limit_in_bytes = 5), ["linux.memory_swap_limit_in_bytes", "5"]),
        (with(|r| r.oom_score_adj = 2000), ["linux.oom_score_adj", "2000"]),
    ] {
        refused(&cx, &id, linux, invalid, &parts).await?;
        ensure!((limits(&id)?, shown(&cx, &id).await?) == before, "a refused update has changed something");
    }
    let swap = api::LinuxContainerResources { memory_swap_limit_in_bytes: 16 * MIB, ..Default::default() };
    refused(&cx, &id, swap, invalid, &["linux.memory_swap_limit_in_bytes", "(33554432)"]).await?;
    cx.prints(&id, "cat /proc/1/oom_score_adj", "800").await?;
    refused(&cx, &"e".repeat(64), second(), Code::NotFound, &[]).await?;
    cx.cri.stop(&id, 0).await?;
    refused(&cx, &id, second(), Code::FailedPrecondition, &["exited", &id]).await?;
    ensure!(shown(&cx, &id).await? == before.1, "a refused update has changed an exited container");
    Ok(())
}

async fn memory_below_usage_is_refused_with_the_number(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    // A string in the shell's memory: it cannot be written back.
    let line = "text=$(head -c 20000000 /dev/zero | tr '\\0' x); echo ${#text}; while :; do sleep 1; done";
    let id = cx
        .start(&pod, &cx.shell("main", line).with(|c| c.resources().memory_limit_in_bytes = 128 * MIB))
        .await?;
    cx.said(&id, "20000000").await?;
    let before = limits(&id)?;
    let less = api::LinuxContainerResources {
        memory_limit_in_bytes: 8 * MIB,
        cpu_shares: 500,
        ..Default::default()
    };
    let status =
        cx.cri.update(&id, less).await.err().context("8 MiB were accepted while 20 MB are in use")?;
    ensure!(status.code() == Code::FailedPrecondition, "{status}");
    let text = status.message();
    let numbers: Vec<i64> =
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    ensure!(
        text.contains("linux.memory_limit_in_bytes: 8388608")
            && numbers.iter().any(|n| (15 * MIB..128 * MIB).contains(n)),
        "the error does not say how much is in use: {text}"
    );
    ensure!(limits(&id)? == before, "it has changed something");
    cx.is_shown(&id, ContainerState::ContainerRunning).await?;
    Ok(())
}
