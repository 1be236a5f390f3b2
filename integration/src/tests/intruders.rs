//! Hostile containers and images: the runtime's own processes stay out of their reach, and hostile input uses a
//! bounded amount of resources.

use std::time::Instant;

use anyhow::{Context as _, Result};
use cri_api::v1::ContainerState;
use serde_json::json;
use tar::EntryType::Directory;

use super::escape::image_with;
use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(waiting_init_cannot_be_inspected),
        test!(waiting_init_shows_no_process_of_the_host),
        test!(flooded_error_pipe_blocks_neither_start_nor_shim),
        test!(repeated_folder_entries_need_no_memory).own(),
    ]
}

/// Sets the shell variable `p` to the pid of the waiting init.
const FIND: &str =
    "p=$(grep -lx copepod-init /proc/[0-9]*/comm | head -n 1 | cut -d / -f 3); [ -n \"$p\" ] || exit 9";

async fn waiting_init_cannot_be_inspected(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let beside = cx.start(&pod, &cx.sleeper("beside")).await?;
    let waits = cx.create(&pod, &cx.sleeper("waits")).await?;
    // Access is checked when a link is followed; any root user can list the names.
    let opens = "for f in /proc/$p/fd/*; do [ -e $f ] && echo open; done; echo done";
    let seen = cx.cri.sh(&beside, &format!("{FIND}; {opens}")).await?;
    ensure!(seen == "done", "another container can open descriptors of the waiting init: {seen}");
    cx.cri.start(&waits).await?;
    // After execve it is an ordinary process.
    let line = format!("p=$(grep -lx sleep /proc/[0-9]*/comm | tail -n 1 | cut -d / -f 3); {opens}");
    let seen = cx.cri.sh(&beside, &line).await?;
    ensure!(
        seen.starts_with("open"),
        "the same check finds nothing open after execve, so it shows nothing: {seen}"
    );
    Ok(())
}

/// A container whose processes may trace those of its pod, and one beside it whose init waits. A process that may trace it can
/// open its descriptors in any case.
async fn beside_a_waiting_init(cx: &Context) -> Result<(Pod, String, String)> {
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let tracer = cx.sleeper("tracer").without_apparmor().with_capability("SYS_PTRACE");
    let tracer = cx.start(&pod, &tracer).await?;
    let waits = cx.create(&pod, &cx.sleeper("waits")).await?;
    Ok((pod, tracer, waits))
}

/// A process that may trace the waiting init can open its descriptors, as the init itself can for the path of its program:
/// none may lead to a procfs of the host, whose `1/root` is the host's root.
async fn waiting_init_shows_no_process_of_the_host(cx: Context) -> Result<()> {
    let (_, tracer, waits) = beside_a_waiting_init(&cx).await?;
    let look = format!(
        "{FIND}; for f in /proc/$p/fd/*; do [ -e $f ] && n=$((n + 1)); [ -d $f ] && echo $f: $(ls $f/1/root/ $f); done; \
         [ $n -gt 3 ] && echo done"
    );
    let seen = cx.cri.sh(&tracer, &look).await?;
    ensure!(seen == "done", "folders are open in the waiting init: {seen}");
    cx.cri.start(&waits).await?;
    cx.exec_works(&waits).await
}

async fn flooded_error_pipe_blocks_neither_start_nor_shim(cx: Context) -> Result<()> {
    let (pod, beside, waits) = beside_a_waiting_init(&cx).await?;
    let line = format!(
        "{FIND}; for f in /proc/$p/fd/*; do n=${{f##*/}}; [ $n -gt 2 ] && [ -p $f ] || continue; \
         (trap '' PIPE; exec 7>$f; yes >&7 2>/dev/null; sleep 100000 7>&7) >/dev/null 2>&1 & echo $n; done"
    );
    let taken = cx.cri.sh(&beside, &line).await?;
    ensure!(!taken.is_empty(), "no pipe of the waiting init could be opened, so this test shows nothing");
    let start = Instant::now();
    cx.cri.start(&waits).await.context("start of a container whose error pipe another process has open")?;
    ensure!(start.elapsed() < wait::longer(secs(10)), "the start took {:?}", start.elapsed());
    cx.is_shown(&waits, ContainerState::ContainerRunning).await?;
    cx.exec_works(&waits).await?;
    let start = Instant::now();
    cx.cri.stop_pod(&pod.id).await?;
    ensure!(start.elapsed() < wait::longer(secs(10)), "the stop took {:?}", start.elapsed());
    Ok(())
}

async fn repeated_folder_entries_need_no_memory(cx: Context) -> Result<()> {
    const ENTRIES: usize = 40_000;
    let pid = cx.node.pid()?;
    let name = "a/".repeat(250);
    let before = proc::peak_kib(pid)?;
    let image = image_with(&cx, json!({"Cmd": ["/bin/sh"]}), |w| {
        for _ in 0..ENTRIES {
            w.pax(&[("path", &name)])?;
            w.raw(Directory, "a/", "", 0o755, (0, 0), b"")?;
        }
        Ok(())
    })
    .await?;
    cx.cri.pull(&image).await?;
    let peak = proc::peak_kib(pid)?;
    println!("      {ENTRIES} entries of 250 levels: peak {} MiB, before {} MiB", peak >> 10, before >> 10);
    ensure!(peak - before < 128 << 10, "{ENTRIES} entries of one folder took {} MiB", (peak - before) >> 10);
    Ok(())
}
