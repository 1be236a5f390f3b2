//! exec and attach by kubectl.

use anyhow::{Context as _, Result};

use super::Cluster;
use super::kubectl::transcribe;
use crate::expect::ensure;
use crate::node_test::{Check, check};
use crate::proc;
use crate::wait::{self, secs};

/// The checks in the order they run.
pub(super) fn all() -> Vec<Check<Cluster>> {
    vec![
        check!(exec_tells_output_and_code),
        check!(exec_takes_input),
        check!(exec_has_a_terminal),
        check!(exec_ends_with_kubectl),
        check!(attach_sees_and_writes),
        check!(attach_has_a_terminal),
        check!(attach_ends_stdin_once),
    ]
}

/// kubectl's variable that decides between WebSocket and SPDY, with both values.
const WEBSOCKETS: [(&str, &str); 2] =
    [("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "true"), ("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")];

async fn exec_tells_output_and_code(cluster: &Cluster) -> Result<()> {
    for variable in WEBSOCKETS {
        for code in [0, 7, 137] {
            let end = if code == 137 { String::from("kill -9 $$") } else { format!("exit {code}") };
            let line = format!("echo out; echo err >&2; {end}");
            let arguments = ["exec", "shell", "-c", "main", "--", "/bin/sh", "-c", line.as_str()];
            let ended = cluster.kubectl.run_with(&arguments, &[], &[variable]).await?;
            transcribe(&arguments, &[variable], ended.code);
            ensure!(ended.code == Some(code) && ended.text() == "out\n", "{ended:?}");
            ensure!(ended.stderr.starts_with("err\n"), "{ended:?}");
        }
        let missing =
            cluster.kubectl.run_with(&["exec", "shell", "--", "/no/such"], &[], &[variable]).await?;
        ensure!(missing.code == Some(1) && missing.stderr.contains("/no/such"), "{missing:?}");
    }
    let none = cluster.kubectl.run(&["exec", "shell", "-c", "none", "--", "true"], &[]).await?;
    ensure!(none.code == Some(1) && none.stderr.contains("container none"), "{none:?}");
    Ok(())
}

async fn exec_takes_input(cluster: &Cluster) -> Result<()> {
    let bytes: Vec<u8> = (0_u32..2 << 20).flat_map(u32::to_le_bytes).collect();
    for variable in WEBSOCKETS {
        let arguments = ["exec", "-i", "shell", "-c", "main", "--", "cat"];
        let ended = cluster.kubectl.run_with(&arguments, &bytes, &[variable]).await?;
        transcribe(&arguments, &[variable], ended.code);
        ensure!(ended.code == Some(0), "{}", ended.stderr);
        ensure!(ended.stdout == bytes, "{} of {} bytes came, or others", ended.stdout.len(), bytes.len());
    }
    Ok(())
}

async fn exec_has_a_terminal(cluster: &Cluster) -> Result<()> {
    let arguments = ["exec", "-it", "shell", "-c", "main", "--", "/bin/sh"];
    let mut terminal = cluster.kubectl.terminal(&arguments, 91, 33)?;
    terminal.until("# ").await?;
    terminal.send("tty; while :; do stty size; sleep 0.2; done\n")?;
    terminal.until("/dev/pts/0").await?;
    terminal.until("33 91").await.context("the size at the start")?;
    terminal.resize(120, 40)?;
    terminal.until("40 120").await.context("the size after a change")?;
    // Ctrl-C ends the loop, and not the shell.
    terminal.send("\u{3}")?;
    terminal.until("# ").await?;
    terminal.send("exit 9\n")?;
    let code = terminal.ended().await?;
    ensure!(code == Some(9), "kubectl ended with {code:?}");
    Ok(())
}

async fn exec_ends_with_kubectl(cluster: &Cluster) -> Result<()> {
    let line = "echo up; cat; : vanishing";
    let arguments = ["exec", "-it", "shell", "-c", "main", "--", "/bin/sh", "-c", line];
    let mut terminal = cluster.kubectl.terminal(&arguments, 80, 24)?;
    terminal.until("up").await?;
    let runs = || proc::with_args(": vanishing").iter().any(|p| p.comm == "sh" || p.comm == "busybox");
    ensure!(runs(), "it does not run");
    terminal.kill().await?;
    wait::until_true("the command to end", secs(20), || !runs()).await
}

async fn attach_sees_and_writes(cluster: &Cluster) -> Result<()> {
    for variable in WEBSOCKETS {
        // The client's end of input is not the container's: kubectl ends with the time limit, which kills it.
        let mut first = cluster.kubectl.terminal(&["attach", "-i", "stdin"], 80, 24)?;
        first.until("If you don't see a command prompt").await?;
        first.send("one\n")?;
        first.until("got one").await.with_context(|| format!("{variable:?}"))?;
        let mut second = cluster.kubectl.terminal(&["attach", "-i", "stdin"], 80, 24)?;
        second.until("If you don't see a command prompt").await?;
        second.send("two\n")?;
        second.until("got two").await?;
        first.until("got two").await.context("the other client sees it")?;
        second.kill().await?;
        first.send("three\n")?;
        first.until("got three").await?;
        first.kill().await?;
    }
    let log = cluster.kubectl.ok(&["logs", "stdin"]).await?;
    ensure!(log.matches("got three\n").count() == 2, "the log is {log:?}");
    let restarts = "jsonpath={.status.containerStatuses[0].restartCount}";
    let restarts = cluster.kubectl.ok(&["get", "pod", "stdin", "-o", restarts]).await?;
    ensure!(restarts == "0", "the container was restarted {restarts} times");
    Ok(())
}

async fn attach_has_a_terminal(cluster: &Cluster) -> Result<()> {
    let mut terminal = cluster.kubectl.terminal(&["attach", "-it", "terminal"], 91, 33)?;
    terminal.until("If you don't see a command prompt").await?;
    terminal.send("one\n")?;
    terminal.until("got one").await?;
    let size = ["exec", "terminal", "--", "/bin/sh", "-c", "stty size < /proc/1/fd/0"];
    wait::until("the terminal's size", secs(20), || async {
        let found = cluster.kubectl.quiet(&size).await?;
        ensure!(found == "33 91\n", "it is {found:?}");
        Ok(Some(()))
    })
    .await?;
    terminal.resize(120, 40)?;
    wait::until("the terminal's new size", secs(20), || async {
        let found = cluster.kubectl.quiet(&size).await?;
        ensure!(found == "40 120\n", "it is {found:?}");
        Ok(Some(()))
    })
    .await?;
    terminal.kill().await
}

async fn attach_ends_stdin_once(cluster: &Cluster) -> Result<()> {
    let ended = cluster.kubectl.run(&["attach", "-i", "once"], b"one\ntwo\n").await?;
    ensure!(ended.code == Some(0) && ended.text().ends_with("got two\nover\n"), "{ended:?}");
    let phase = "jsonpath={.status.phase}";
    wait::until("the pod's end", secs(30), || async {
        let phase = cluster.kubectl.quiet(&["get", "pod", "once", "-o", phase]).await?;
        ensure!(phase == "Succeeded", "it is {phase}");
        Ok(Some(()))
    })
    .await
}
