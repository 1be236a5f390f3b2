//! The pause binary alone, with any signal state that a parent can leave.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};

use crate::context::Context;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::{proc, wait};

/// Time limit of each step.
const SOON: Duration = Duration::from_secs(10);

/// SigBlk of /proc/PID/status while it waits: everything but SIGKILL and SIGSTOP, which cannot be blocked, and
/// SIGINT, SIGTERM and SIGCHLD, which the kernel unblocks as long as sigtimedwait(2) waits for them.
const WAITING: &str = "fffffffffffabefd";

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(binary_is_small_and_static).ours(),
        test!(exits_with_status_0_whatever_it_inherits).ours(),
        test!(signal_before_its_first_instruction_counts).ours(),
        test!(reaps_as_an_ordinary_process).ours(),
        test!(exits_as_pid_1).ours(),
    ]
}

fn start(program: &str, args: &[&str]) -> Result<(Child, u32)> {
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let pid = child.id().context("it has ended already")?;
    Ok((child, pid))
}

fn pause(cx: &Context) -> Result<String> {
    cx.fixture.bin.join("pause").into_os_string().into_string().ok().context("the folder's name is not UTF-8")
}

/// Waits until `pid` runs pause and waits for signals.
async fn waiting(pid: u32) -> Result<()> {
    wait::until_true(&format!("process {pid} to run pause and to wait for signals"), SOON, || {
        proc::status(pid).is_ok_and(|status| {
            let is = |key: &str, value: &str| status.get(key).is_some_and(|it| it == value);
            is("Name", "pause") && is("SigBlk", WAITING)
        })
    })
    .await
}

/// Waits until pause has exited, which must be with status 0.
async fn exited_with_0(child: &mut Child) -> Result<()> {
    let status = wait::timeout(SOON, child.wait()).await.context("pause has not exited within 10 s")??;
    ensure!(status.code() == Some(0), "pause exited with {status}");
    Ok(())
}

async fn binary_is_small_and_static(cx: Context) -> Result<()> {
    let bytes = std::fs::read(pause(&cx)?)?;
    ensure!(bytes.len() < 4096, "pause has {} bytes", bytes.len());
    ensure!(!bytes.windows(4).any(|part| part == b"/ld-"), "pause names a dynamic loader");
    Ok(())
}

async fn exits_with_status_0_whatever_it_inherits(cx: Context) -> Result<()> {
    let pause = pause(&cx)?;
    for inherited in ["--default-signal", "--block-signal", "--ignore-signal"] {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let (mut child, pid) = start("env", &[inherited, &pause])?;
            waiting(pid).await?;
            let others = [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGPIPE, Signal::SIGQUIT];
            for other in others {
                proc::signal(pid, other)?;
            }
            // A signal is pending when kill(2) returns, and a blocked one stays pending.
            let status = proc::status(pid)?;
            let pending = status.get("ShdPnd").context("no ShdPnd: one of the other signals ended pause")?;
            let pending = u64::from_str_radix(pending, 16)?;
            for other in others {
                let bit = 1 << (other as i32 - 1);
                ensure!(pending & bit != 0, "{inherited}: {other} was not blocked; pending are {pending:x}");
            }
            ensure!(child.try_wait()?.is_none(), "{inherited}: one of {others:?} ended pause");
            proc::signal(pid, signal)?;
            exited_with_0(&mut child).await.with_context(|| format!("{inherited}, {signal}"))?;
        }
    }
    Ok(())
}

async fn signal_before_its_first_instruction_counts(cx: Context) -> Result<()> {
    let script = format!("kill -TERM $$; exec {}", pause(&cx)?);
    let (mut child, _) = start("env", &["--block-signal=TERM", "sh", "-c", &script])?;
    exited_with_0(&mut child).await
}

async fn reaps_as_an_ordinary_process(cx: Context) -> Result<()> {
    let script = format!("sleep 0.1 & sleep 0.2 & exec {}", pause(&cx)?);
    let (mut child, pid) = start("env", &["--block-signal", "sh", "-c", &script])?;
    waiting(pid).await?;
    wait::until_true("all children to be reaped", SOON, || proc::children(pid).is_empty()).await?;
    proc::signal(pid, Signal::SIGTERM)?;
    exited_with_0(&mut child).await
}

async fn exits_as_pid_1(cx: Context) -> Result<()> {
    let pause = pause(&cx)?;
    for inherited in ["--default-signal", "--ignore-signal", "--block-signal"] {
        let (mut outer, pid) =
            start("unshare", &["--pid", "--fork", "--kill-child", "--", "env", inherited, &pause])?;
        let init = wait::until("unshare to have a child", SOON, || async move {
            Ok(proc::children(pid).first().map(|child| child.pid))
        })
        .await?;
        waiting(init).await?;
        proc::signal(init, Signal::SIGTERM)?;
        // unshare exits with its child's status.
        exited_with_0(&mut outer).await.context(inherited)?;
    }
    Ok(())
}
