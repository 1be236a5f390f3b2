//! Exec and attach by client-go, with each of its transports and protocols.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::AsyncWriteExt as _;

use super::sleeper;
use crate::clientgo::{Ended, ExitCodeForm, Session, USUAL, VARIANTS, Variant};
use crate::context::Context;
use crate::expect::ensure;
use crate::logfile::Log;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _};
use crate::streaming::{self, Streams};
use crate::wait::secs;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(clientgo_exec_matrix).ours().limit(120),
        test!(clientgo_exec_of_much).ours().limit(120),
        test!(clientgo_exec_with_a_terminal).ours(),
        test!(clientgo_exec_with_input_held_open).ours(),
        test!(clientgo_exec_that_fails).ours(),
        test!(clientgo_sessions_that_are_lost).own(),
        test!(clientgo_attach_matrix).ours().limit(120),
        test!(clientgo_attach_of_several).ours(),
        test!(clientgo_attach_ends_stdin_once).ours(),
        test!(clientgo_attach_to_a_terminal).ours(),
    ]
}

async fn exec(cx: &Context, id: &str, variant: Variant, line: &str, streams: Streams) -> Result<Session> {
    let url = streaming::exec_with(&cx.cri, id, &["/bin/sh", "-c", line], streams).await?;
    Session::start(&cx.fixture.bin, variant, &url, streams)
}

async fn attach(cx: &Context, id: &str, variant: Variant, streams: Streams) -> Result<Session> {
    let url = streaming::attach_with(&cx.cri, id, streams).await?;
    Session::start(&cx.fixture.bin, variant, &url, streams)
}

/// The session must have ended with this exit code, in the form in which its protocol sends it.
fn code(variant: Variant, ended: &Ended, wanted: i64) -> Result<()> {
    let success = ended.code == Some(0) && ended.error.is_empty();
    let text = ended.code.is_none() && ended.error.contains(&format!("exit code {wanted}"));
    let correct = match variant.exit_code {
        _ if wanted == 0 => success,
        ExitCodeForm::Number => ended.code == Some(wanted),
        ExitCodeForm::Text => text,
        ExitCodeForm::Missing => success,
    };
    ensure!(correct, "{variant:?} gave {ended:?}");
    Ok(())
}

/// Every combination of streams in every variant: the client receives what it requested, and nothing else.
async fn clientgo_exec_matrix(cx: Context) -> Result<()> {
    let id = sleeper(&cx).await?;
    for variant in VARIANTS {
        for streams in Streams::combinations() {
            // Version 1's client waits for the end of an output, and for ever if there is none.
            if variant.exit_code == ExitCodeForm::Missing && !streams.stdout && !streams.stderr {
                continue;
            }
            let file = format!("/tmp/typed{}", shapes::unique());
            // A terminal without a client's input has no end of it.
            let read = if streams.tty && !streams.stdin { "" } else { "read x; " };
            let line = format!("{read}echo \"typed $x\" > {file}; echo out; echo err >&2; exit 7");
            let mut session = exec(&cx, &id, variant, &line, streams).await?;
            if streams.stdin {
                session.send(b"this\n").await?;
            }
            let ended = session.rest().await.with_context(|| format!("{variant:?} {streams:?}"))?;
            let (stdout, stderr) = (ended.text(), String::from_utf8_lossy(&ended.stderr).into_owned());
            let wanted = match (streams.stdout, streams.tty) {
                (false, _) => vec![""],
                (true, false) => vec!["out\n"],
                // The terminal echoes what is typed, before or after the program sets itself up.
                (true, true) => vec!["out\r\nerr\r\n", "this\r\nout\r\nerr\r\n"],
            };
            ensure!(
                wanted.contains(&stdout.as_str()),
                "{variant:?} {streams:?}: standard output is {stdout:?}"
            );
            ensure!(
                (stderr == "err\n") == streams.stderr && (streams.stderr || !stderr.contains("err\n")),
                "{variant:?} {streams:?}: standard error is {stderr:?}"
            );
            code(variant, &ended, 7).with_context(|| format!("{streams:?}"))?;
            let typed = if streams.stdin { "typed this" } else { "typed" };
            cx.prints(&id, &format!("cat {file}"), typed).await?;
        }
    }
    Ok(())
}

/// Large outputs in both directions at a time, which the client's end of input ends; in one direction with protocols
/// that have no such end.
async fn clientgo_exec_of_much(cx: Context) -> Result<()> {
    let id = sleeper(&cx).await?;
    for variant in VARIANTS {
        let streams = Streams::all(false);
        let Ended { stdout, error, .. } = if variant.ends_input {
            let mut session = exec(&cx, &id, variant, "cat", streams).await?;
            let mut stdin = session.take_stdin()?;
            let writer = tokio::spawn(async move {
                stdin.write_all(&pattern()).await?;
                stdin.shutdown().await
            });
            let ended = session.rest().await.with_context(|| format!("{variant:?}"))?;
            writer.await??;
            ended
        } else {
            let line = "i=0; while [ $i -lt 4096 ]; do echo $i; i=$((i+1)); done | sed p | head -c 8388608";
            let small = exec(&cx, &id, variant, line, streams).await?.rest().await?;
            ensure!(
                small.text().lines().count() == 8192,
                "{variant:?}: {} lines",
                small.text().lines().count()
            );
            exec(&cx, &id, variant, &format!("head -c {MUCH} /dev/zero"), streams).await?.rest().await?
        };
        ensure!(stdout.len() == MUCH && error.is_empty(), "{variant:?}: {} bytes, {error}", stdout.len());
        ensure!(!variant.ends_input || stdout == pattern(), "{variant:?}: other bytes came");
    }
    Ok(())
}

/// Bytes of a large output.
const MUCH: usize = 24 << 20;

/// Bytes whose place can be seen.
fn pattern() -> Vec<u8> {
    (0_u32..).flat_map(u32::to_le_bytes).take(MUCH).collect()
}

async fn clientgo_exec_with_a_terminal(cx: Context) -> Result<()> {
    let id = sleeper(&cx).await?;
    for variant in VARIANTS.into_iter().filter(|variant| variant.sizes) {
        let line = "test -t 0 && test -t 1 && test -t 2 && echo up; while :; do stty size; sleep 0.1; done";
        let url = streaming::exec(&cx.cri, &id, &["/bin/sh", "-c", line], true).await?;
        let mut session = Session::start(&cx.fixture.bin, variant, &url, Streams::all(true))?;
        session.resize(91, 33)?;
        session.until("up").await?;
        session.until("33 91").await.context("the size before the start")?;
        session.resize(120, 40)?;
        session.until("40 120").await.context("the size after it")?;
        session.send(&[3]).await?;
        code(variant, &session.rest().await?, 130).context("Ctrl-C")?;
    }
    Ok(())
}

/// It ends when the process does, although the client's input has not ended.
async fn clientgo_exec_with_input_held_open(cx: Context) -> Result<()> {
    let id = sleeper(&cx).await?;
    for variant in VARIANTS {
        for wanted in [0, 5, 255] {
            let session = exec(&cx, &id, variant, &format!("exit {wanted}"), Streams::all(false)).await?;
            code(variant, &session.rest().await?, wanted)?;
        }
        let killed = exec(&cx, &id, variant, "kill -9 $$", Streams::all(false)).await?;
        code(variant, &killed.rest().await?, 137)?;
    }
    Ok(())
}

async fn clientgo_exec_that_fails(cx: Context) -> Result<()> {
    for variant in VARIANTS {
        let id = sleeper(&cx).await?;
        let url = streaming::exec(&cx.cri, &id, &["/no/such/program"], false).await?;
        let streams = Streams::all(false);
        let ended = Session::start(&cx.fixture.bin, variant, &url, streams)?.rest().await?;
        let named = ended.error.contains("/no/such/program") && ended.code.is_none();
        ensure!(named || variant.exit_code == ExitCodeForm::Missing, "{variant:?} gave {ended:?}");
        // The container ends in the middle of the session.
        let mut session = exec(&cx, &id, variant, "echo up; sleep 1000", streams).await?;
        session.until("up").await?;
        cx.cri.stop(&id, 0).await?;
        code(variant, &session.rest().await?, 137)?;
    }
    Ok(())
}

/// What is lost because the daemon stops, or is killed, has not succeeded: client-go takes an empty error stream for success
/// (<https://github.com/kubernetes/kubernetes/issues/73056>).
async fn clientgo_sessions_that_are_lost(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.shell("one", "while :; do echo tick; sleep 0.1; done")).await?;
    let streams = Streams { stdin: false, ..Streams::all(false) };
    for variant in USUAL {
        for killed in [false, true] {
            let mut command = exec(&cx, &id, variant, "echo up; sleep 1000", streams).await?;
            command.until("up").await?;
            let mut attached = attach(&cx, &id, variant, streams).await?;
            attached.until("tick").await?;
            if killed {
                cx.node.crash().await?;
            } else {
                cx.node.restart().await?;
            }
            for (what, session) in [("exec", command), ("attach", attached)] {
                let ended = session.rest().await?;
                let failed = ended.code.is_none() && !ended.error.is_empty();
                ensure!(failed, "{what}, {variant:?}, the daemon was killed: {killed}: {ended:?}");
            }
        }
    }
    cx.exec_works(&id).await
}

/// A container that answers each line that it reads.
async fn answering(cx: &Context, tty: bool, once: bool) -> Result<String> {
    let pod = cx.pod().await?;
    let line = "echo up; while read x; do echo got $x; echo error $x >&2; done; echo over; exit 4";
    let config = cx.shell("one", line).with(|c| {
        c.stdin = true;
        c.stdin_once = once;
        c.tty = tty;
    });
    let id = cx.start(&pod, &config).await?;
    cx.said(&id, "up").await?;
    Ok(id)
}

/// Types a line into the container every now and then, until a session has ended its wait.
async fn while_typing<T>(
    cx: &Context,
    id: &str,
    tty: bool,
    word: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let streams = Streams { stdin: true, stdout: false, stderr: false, tty };
    let mut typist = attach(cx, id, USUAL[0], streams).await?;
    let line = format!("{word}\n");
    let mut work = std::pin::pin!(work);
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            () = tokio::time::sleep(Duration::from_millis(100)) => typist.send(line.as_bytes()).await?,
        }
    };
    typist.kill().await?;
    result
}

/// Every combination of streams in every variant: each client receives what it requested, and that it disconnects
/// changes nothing.
async fn clientgo_attach_matrix(cx: Context) -> Result<()> {
    for tty in [false, true] {
        let id = answering(&cx, tty, false).await?;
        for variant in VARIANTS {
            for streams in Streams::combinations().into_iter().filter(|streams| streams.tty == tty) {
                let word = format!("w{}", shapes::unique());
                let what = || format!("{variant:?} {streams:?}");
                let mut session = attach(&cx, &id, variant, streams).await?;
                match (streams.stdin, streams.stdout) {
                    (true, true) => {
                        session.send(format!("{word}\n").as_bytes()).await?;
                        session.until(&format!("got {word}")).await.with_context(what)?;
                    }
                    (true, false) => {
                        session.send(format!("{word}\n").as_bytes()).await?;
                        cx.said(&id, &format!("got {word}")).await.with_context(what)?;
                    }
                    (false, true) => {
                        let text = format!("got {word}");
                        while_typing(&cx, &id, tty, &word, session.until(&text)).await.with_context(what)?;
                    }
                    (false, false) => {}
                }
                session.kill().await?;
            }
        }
        cx.exec_works(&id).await?;
        // Every client receives the output up to the end.
        let mut sessions = Vec::new();
        for variant in VARIANTS {
            let mut session = attach(&cx, &id, variant, Streams::all(tty)).await?;
            session.send(b"last\n").await?;
            session.until("got last").await?;
            sessions.push((variant, session));
        }
        cx.cri.stop(&id, 0).await?;
        for (variant, session) in sessions {
            let ended = session.rest().await?;
            ensure!(ended.code == Some(0) && ended.error.is_empty(), "{variant:?} gave {ended:?}");
            let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
            ensure!(stderr.contains("error last\n") != tty, "{variant:?}: standard error is {stderr:?}");
        }
    }
    Ok(())
}

/// Several clients see the same; one whose input ends, and one that leaves, change nothing for the others.
async fn clientgo_attach_of_several(cx: Context) -> Result<()> {
    let id = answering(&cx, false, false).await?;
    let mut sessions = Vec::new();
    for variant in USUAL {
        let mut session = attach(&cx, &id, variant, Streams::all(false)).await?;
        let word = format!("first{}", shapes::unique());
        session.send(format!("{word}\n").as_bytes()).await?;
        session.until(&format!("got {word}")).await?;
        sessions.push(session);
    }
    for round in 0..USUAL.len() {
        let word = format!("round{round}");
        sessions[round].send(format!("{word}\n").as_bytes()).await?;
        for session in &mut sessions {
            session.until(&format!("got {word}")).await?;
        }
    }
    sessions[0].end();
    sessions.remove(1).kill().await?;
    // Time in which an end would arrive.
    tokio::time::sleep(Duration::from_millis(500)).await;
    sessions[1].send(b"again\n").await?;
    for session in &mut sessions {
        session.until("got again").await?;
    }
    cx.cri.stop(&id, 0).await?;
    for session in sessions {
        let ended = session.rest().await?;
        ensure!(ended.code == Some(0), "attach gave {ended:?}");
    }
    let log = Log::read(&cx.cri.container(&id).await?.log_path)?.text(Some("stdout"));
    let again = log.lines().filter(|line| *line == "got again").count();
    ensure!(again == 1, "the log has {again} such lines: {log}");
    Ok(())
}

async fn clientgo_attach_ends_stdin_once(cx: Context) -> Result<()> {
    for variant in VARIANTS {
        let id = answering(&cx, false, true).await?;
        let mut session = attach(&cx, &id, variant, Streams::all(false)).await?;
        session.send(b"one\n").await?;
        session.until("got one").await?;
        if variant.ends_input {
            session.end();
            let ended = session.rest().await?;
            ensure!(ended.text() == "\nover\n" && ended.code == Some(0), "{variant:?} gave {ended:?}");
        } else {
            session.kill().await?;
        }
        cx.cri.wait_exit(&id, secs(20)).await?;
        cx.exited_with(&id, 4).await?;
    }
    Ok(())
}

async fn clientgo_attach_to_a_terminal(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line = "echo up; while :; do stty size; sleep 0.1; done";
    let id = cx.start(&pod, &cx.shell("one", line).terminal().with(|c| c.stdin = true)).await?;
    cx.said(&id, "up").await?;
    for variant in VARIANTS.into_iter().filter(|variant| variant.sizes) {
        let mut session = attach(&cx, &id, variant, Streams::all(true)).await?;
        let width = 60 + u16::try_from(shapes::unique() % 100)?;
        session.resize(width, 33)?;
        session.until(&format!("33 {width}\r\n")).await?;
        session.resize(width, 40)?;
        session.until(&format!("40 {width}\r\n")).await?;
        session.kill().await?;
    }
    // Ctrl-C ends the container's process, and so the session.
    let mut session = attach(&cx, &id, USUAL[0], Streams::all(true)).await?;
    session.send(&[3]).await?;
    let ended = session.rest().await?;
    ensure!(ended.code == Some(0), "attach gave {ended:?}");
    cx.cri.wait_exit(&id, secs(10)).await?;
    cx.exited_with(&id, 130).await
}
