//! Terminals that nobody has open for a moment: their log, their signals and their cost. Log lines that are lost.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use cri_api::v1::NamespaceMode;

use crate::context::Context;
use crate::disk::Mounted;
use crate::expect::ensure;
use crate::logfile::Log;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::wait::secs;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(terminal_closed_for_a_moment_is_logged_on),
        test!(terminal_may_be_closed_again_and_again),
        test!(closing_the_terminal_hangs_up_nobody),
        test!(closing_the_terminal_hangs_up_nobody_of_the_host),
        test!(closed_terminal_costs_no_time).ours(),
        test!(terminal_is_read_to_its_end),
        test!(lost_lines_leave_a_mark),
        test!(carriage_returns_are_the_programs_own),
    ]
}

/// Redirects the shell's streams, so that no process of the container has the terminal open. The container can open it
/// again as /dev/console.
const ELSEWHERE: &str = "exec </dev/null >/tmp/elsewhere 2>&1";

async fn terminal_closed_for_a_moment_is_logged_on(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line = format!("echo before; {ELSEWHERE}; sleep 0.5; echo after >/dev/console; sleep 0.1");
    let s = cx.run(&pod, &cx.shell("one", &line).terminal()).await?;
    ensure!(s.exit_code == 0, "ended with {}", s.exit_code);
    let text = Log::read(&s.log_path)?.text(None);
    ensure!(text == "before\nafter\n", "the log is {text:?}");
    Ok(())
}

async fn terminal_may_be_closed_again_and_again(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line = format!("{ELSEWHERE}; for i in 1 2 3 4 5 6 7 8 9; do echo $i >/dev/console; sleep 0.05; done");
    let s = cx.run(&pod, &cx.shell("one", &line).terminal()).await?;
    let text = Log::read(&s.log_path)?.text(None);
    ensure!(text == "1\n2\n3\n4\n5\n6\n7\n8\n9\n", "the log is {text:?}");
    Ok(())
}

async fn closing_the_terminal_hangs_up_nobody(cx: Context) -> Result<()> {
    // PID 1 of a namespace would ignore a SIGHUP, so init must not be it. A SIGHUP would arrive in the half second
    // before the exit.
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let s = cx.run(&pod, &cx.shell("one", &format!("{ELSEWHERE}; sleep 0.5; exit 7")).terminal()).await?;
    ensure!(s.exit_code == 7, "ended with {} instead of 7", s.exit_code);
    Ok(())
}

async fn closing_the_terminal_hangs_up_nobody_of_the_host(cx: Context) -> Result<()> {
    let mut config = cx.pod_config();
    config.namespaces().pid = NamespaceMode::Node.into();
    let pod = cx.pod_of(config).await?;
    let s = cx.run(&pod, &cx.shell("one", &format!("{ELSEWHERE}; sleep 0.5; exit 7")).terminal()).await?;
    ensure!(s.exit_code == 7, "ended with {} instead of 7", s.exit_code);
    Ok(())
}

/// User and system time of a process, in clock ticks.
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok()).context("short stat");
    Ok(field(11)? + field(12)?)
}

async fn closed_terminal_costs_no_time(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line = format!("{ELSEWHERE}; echo closed > /tmp/state; exec sleep 1000");
    let id = cx.start(&pod, &cx.shell("one", &line).terminal()).await?;
    cx.cri.sh(&id, "until [ -e /tmp/state ]; do sleep 0.01; done").await?;
    let shim = cx.node.shim(&pod.id)?.pid;
    let before = ticks(shim)?;
    // A loop without a pause would use the CPU for the whole second. An idle shim uses none, however long the sleep
    // takes.
    tokio::time::sleep(secs(1)).await;
    let took = ticks(shim)? - before;
    ensure!(took < 20, "the shim used {took} clock ticks (10 ms each) of CPU time within a second");
    Ok(())
}

async fn terminal_is_read_to_its_end(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let s = cx.run(&pod, &cx.shell("one", "seq 1 3000").terminal()).await?;
    let text = Log::read(&s.log_path)?.text(None);
    let wanted: String = (1..=3000).map(|n| format!("{n}\n")).collect();
    ensure!(text == wanted, "the log has {} bytes of the {} that were written", text.len(), wanted.len());
    Ok(())
}

async fn lost_lines_leave_a_mark(cx: Context) -> Result<()> {
    let config = cx.pod_config();
    let folder = Path::new(&config.log_directory).to_owned();
    let _disk = Mounted::tmpfs(&folder, "size=256k,mode=755")?;
    let filler = folder.join("filler");
    fs::write(&filler, vec![0; 128 << 10])?;
    let pod = cx.pod_of(config).await?;
    let line = "i=0; while [ $i -lt 4000 ]; do echo a line with the number $i; i=$((i+1)); done; touch /tmp/full; \
                until [ -e /tmp/go ]; do sleep 0.02; done; echo last";
    let id = cx.start(&pod, &cx.shell("one", line)).await?;
    cx.cri.sh(&id, "until [ -e /tmp/full ]; do sleep 0.02; done").await?;
    let path = cx.cri.container(&id).await?.log_path;
    // By now lines are lost: those that do not fit into the pipe do not fit on the disk either.
    fs::remove_file(&filler)?;
    cx.cri.sh(&id, "touch /tmp/go").await?;
    cx.cri.wait_exit(&id, secs(20)).await?;
    let log = Log::read(&path)?;
    let marks: Vec<u64> = log
        .lines
        .iter()
        .filter(|line| line.stream == "stderr")
        .filter_map(|line| {
            let text = String::from_utf8_lossy(&line.content).into_owned();
            text.strip_prefix("[copepod: ")?.split(' ').next()?.parse().ok()
        })
        .collect();
    ensure!(!marks.is_empty(), "the log of {} lines has no mark of lost ones", log.lines.len());
    let there = log.text(Some("stdout")).lines().count() as u64;
    ensure!(
        there + marks.iter().sum::<u64>() == 4001,
        "of 4001 lines {there} are in the log, and its marks count {marks:?} lost ones"
    );
    ensure!(
        log.text(Some("stdout")).ends_with("last\n"),
        "a line that was written once there was space is lost"
    );
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

async fn carriage_returns_are_the_programs_own(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let s = cx.run(&pod, &cx.shell("one", "printf 'dos\\r\\n10%%\\r20%%\\n'")).await?;
    let bytes = Log::read(&s.log_path)?.bytes(None);
    ensure!(bytes == b"dos\r\n10%\r20%\n", "the log has {:?}", String::from_utf8_lossy(&bytes));
    Ok(())
}
