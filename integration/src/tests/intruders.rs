//! Who shares something with a container, or made its image, and means harm: the runtime's own parts stay out of
//! reach, and what they are given costs them a bounded amount.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use cri_api::v1::{self as api, ContainerState};
use serde_json::json;
use tar::EntryType::Directory;

use super::escape::image_with;
use crate::context::Context;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::wait::secs;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(waiting_init_cannot_be_looked_into),
        test!(flooded_report_holds_neither_start_nor_shim),
        test!(folders_named_again_and_again_cost_no_memory).own(),
    ]
}

/// Sets `p` to the pid of the init that waits.
const FIND: &str =
    "p=$(grep -lx copepod-init /proc/[0-9]*/comm | head -n 1 | cut -d / -f 3); [ -n \"$p\" ] || exit 9";

async fn waiting_init_cannot_be_looked_into(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let beside = cx.start(&pod, &cx.sleeper("beside")).await?;
    let waits = cx.create(&pod, &cx.sleeper("waits")).await?;
    // Following one is what the kernel asks for: names alone can be listed by any root.
    let opens = "for f in /proc/$p/fd/*; do [ -e $f ] && echo open; done; echo done";
    let seen = cx.cri.sh(&beside, &format!("{FIND}; {opens}")).await?;
    ensure!(seen == "done", "its descriptors can be opened by its neighbour: {seen}");
    cx.cri.start(&waits).await?;
    // What it has become is an ordinary process.
    let line = format!("p=$(grep -lx sleep /proc/[0-9]*/comm | tail -n 1 | cut -d / -f 3); {opens}");
    ensure!(cx.cri.sh(&beside, &line).await?.starts_with("open"), "it cannot be looked into once it runs");
    Ok(())
}

async fn flooded_report_holds_neither_start_nor_shim(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    // Who may trace can open its descriptors whatever is done.
    let config = cx.sleeper("beside").with(|c| {
        c.security().capabilities =
            Some(api::Capability { add_capabilities: vec!["SYS_PTRACE".to_owned()], ..Default::default() });
    });
    let beside = cx.start(&pod, &config).await?;
    let waits = cx.create(&pod, &cx.sleeper("waits")).await?;
    let line = format!(
        "{FIND}; for f in /proc/$p/fd/*; do n=${{f##*/}}; [ $n -gt 2 ] && [ -p $f ] || continue; \
         (trap '' PIPE; exec 7>$f; yes >&7 2>/dev/null; sleep 100000 7>&7) >/dev/null 2>&1 & echo $n; done"
    );
    let taken = cx.cri.sh(&beside, &line).await?;
    ensure!(!taken.is_empty(), "no pipe of the waiting init could be opened: this test tries nothing");
    let start = Instant::now();
    cx.cri.start(&waits).await.context("start of a container whose report others hold")?;
    ensure!(start.elapsed() < secs(10), "the start took {:?}", start.elapsed());
    let shown = cx.cri.container(&waits).await?.state();
    ensure!(shown == ContainerState::ContainerRunning, "it is shown as {shown:?}");
    ensure!(cx.cri.sh(&waits, "echo lives").await? == "lives");
    let start = Instant::now();
    cx.cri.stop_pod(&pod.id).await?;
    ensure!(start.elapsed() < secs(10), "the stop took {:?}", start.elapsed());
    Ok(())
}

async fn folders_named_again_and_again_cost_no_memory(cx: Context) -> Result<()> {
    const ENTRIES: usize = 40_000;
    let pid = cx.node.pid()?;
    let name = "a/".repeat(250);
    let before = resident(pid)?;
    image_with_pull(&cx, &name, ENTRIES).await?;
    let peak = resident(pid)?;
    println!("      {ENTRIES} entries of 250 levels: {} MiB, before {} MiB", peak >> 10, before >> 10);
    ensure!(peak - before < 128 << 10, "{ENTRIES} entries of one folder took {} MiB", (peak - before) >> 10);
    Ok(())
}

async fn image_with_pull(cx: &Context, name: &str, entries: usize) -> Result<()> {
    let image = image_with(cx, json!({"Cmd": ["/bin/sh"]}), |w| {
        for _ in 0..entries {
            w.pax(&[("path", name)])?;
            w.raw(Directory, "a/", "", 0o755, (0, 0), b"")?;
        }
        Ok(())
    })
    .await?;
    cx.cri.pull(&image).await?;
    Ok(())
}

/// Most memory that a process ever had, KiB.
fn resident(pid: u32) -> Result<u64> {
    let status = proc::status(pid)?;
    Ok(status.get("VmHWM").context("VmHWM")?.trim_end_matches(" kB").trim().parse()?)
}
