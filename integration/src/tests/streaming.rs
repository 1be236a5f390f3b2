//! Exec, attach and port-forward through the streaming server: here by a client that writes its bytes itself, in the modules below
//! by client-go.

mod forward;
mod load;
mod remote;

use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};
use crate::streaming::{self, Client, V4, V5};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    [own_client(), remote::tests(), forward::tests(), load::tests()].concat()
}

fn own_client() -> Vec<Test> {
    vec![
        test!(exec_streams_and_code).ours(),
        test!(exec_with_a_terminal).ours(),
        test!(exec_starts_with_the_terminals_size).ours(),
        test!(exec_of_much).ours(),
        test!(exec_whose_client_vanishes).ours(),
        test!(exec_whose_child_goes_on_writing).ours(),
        test!(exec_in_a_container_that_ends).ours(),
        test!(exec_of_a_missing_program).ours(),
        test!(exec_many).ours(),
        test!(attach_sees_and_writes).ours(),
        test!(attach_ends_stdin_once).ours(),
        test!(attach_to_a_terminal).ours(),
        test!(attach_without_reading).ours(),
        test!(attach_without_an_input).ours(),
        test!(attach_again_after_a_restart).own(),
        test!(url_is_used_once).ours(),
        test!(forward_to_a_pods_network).ours(),
        test!(forward_to_the_hosts_network).ours(),
        test!(forward_to_a_closed_port).ours(),
    ]
}

async fn session(cx: &Context, id: &str, line: &str, tty: bool) -> Result<Client> {
    let url = streaming::exec(&cx.cri, id, &["/bin/sh", "-c", line], tty).await?;
    Client::connect(&url, V5).await
}

async fn sleeper(cx: &Context) -> Result<String> {
    let pod = cx.pod().await?;
    cx.start(&pod, &cx.sleeper("one")).await
}

async fn exec_streams_and_code(cx: Context) -> Result<()> {
    let id = sleeper(&cx).await?;
    let mut client = session(&cx, &id, "cat; echo err >&2; exit 9", false).await?;
    client.send(0, b"hello ").await?;
    client.until("hello ").await.context("while stdin is open")?;
    client.send(0, b"world").await?;
    client.end(0).await?;
    let ended = client.rest().await?;
    ensure!(ended.text() == "world" && ended.stderr == b"err\n", "the exec gave {ended:?}");
    ensure!(ended.code()? == 9, "the status is {}", ended.status);
    let ended = session(&cx, &id, "kill -9 $$", false).await?.rest().await?;
    ensure!(ended.code()? == 137, "the status is {}", ended.status);
    // It ends although stdin is open.
    let ended = session(&cx, &id, "exit 0", false).await?.rest().await?;
    ensure!(ended.code()? == 0, "the status is {}", ended.status);
    Ok(())
}

async fn exec_with_a_terminal(cx: Context) -> Result<()> {
    let id = sleeper(&cx).await?;
    let line = "test -t 0 && test -t 1 && test -t 2 && echo terminal $TERM; read x; stty size; read x; stty size; exit 3";
    let mut client = session(&cx, &id, line, true).await?;
    client.resize(91, 33).await?;
    client.until("terminal xterm").await?;
    client.send(0, b"\n").await?;
    client.until("33 91").await.context("the size before the first byte")?;
    client.resize(120, 40).await?;
    client.send(0, b"\n").await?;
    client.until("40 120").await.context("the size after it")?;
    let ended = client.rest().await?;
    ensure!(ended.code()? == 3, "the status is {}", ended.status);
    // A signal by the terminal.
    let mut client = session(&cx, &id, "echo up; sleep 1000", true).await?;
    client.until("up").await?;
    client.send(0, &[3]).await?;
    let ended = client.rest().await?;
    ensure!(ended.code()? == 130, "Ctrl-C gave {}", ended.status);
    Ok(())
}

/// A program may ask for the size as soon as it runs (<https://github.com/docker/cli/issues/3554>).
async fn exec_starts_with_the_terminals_size(cx: Context) -> Result<()> {
    let id = sleeper(&cx).await?;
    for width in 60..80 {
        let mut client = session(&cx, &id, "exec stty size", true).await?;
        client.resize(width, 33).await?;
        let ended = client.rest().await?;
        ensure!(ended.text().trim() == format!("33 {width}"), "stty says {:?}", ended.text());
    }
    Ok(())
}

async fn exec_of_much(cx: Context) -> Result<()> {
    let id = sleeper(&cx).await?;
    let count = 256 << 20;
    let ended = session(&cx, &id, &format!("head -c {count} /dev/zero"), false).await?.rest().await?;
    ensure!(ended.stdout.len() == count, "{} bytes of {count} came", ended.stdout.len());
    ensure!(ended.stdout.iter().all(|byte| *byte == 0), "other bytes came");
    Ok(())
}

async fn exec_whose_client_vanishes(cx: Context) -> Result<()> {
    let id = sleeper(&cx).await?;
    for tty in [false, true] {
        let mark = format!("6{:05}", shapes::unique());
        let mut client = session(&cx, &id, &format!("echo up; cat; : {mark}"), tty).await?;
        client.until("up").await?;
        ensure!(!proc::with_args(&mark).is_empty(), "it runs");
        drop(client);
        wait::until_true("the command to end", secs(20), || proc::with_args(&mark).is_empty()).await?;
    }
    cx.exec_works(&id).await
}

/// As `tail -f log & exit`, while the log grows (<https://github.com/moby/moby/issues/33039>).
async fn exec_whose_child_goes_on_writing(cx: Context) -> Result<()> {
    let id = sleeper(&cx).await?;
    for child in ["while :; do echo more; sleep 0.02; done", "yes"] {
        let start = Instant::now();
        let line = format!("echo first; ({child}) & exit 4");
        let ended = session(&cx, &id, &line, false).await?.rest().await?;
        ensure!(ended.code()? == 4, "{child}: the status is {}", ended.status);
        ensure!(ended.stdout.starts_with(b"first\n"), "{child}: what the command wrote is missing");
        ensure!(start.elapsed() < wait::longer(secs(10)), "{child}: it took {:?}", start.elapsed());
    }
    Ok(())
}

async fn exec_in_a_container_that_ends(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let mut client = session(&cx, &id, "echo up; sleep 1000", false).await?;
    client.until("up").await?;
    let unused = streaming::exec(&cx.cri, &id, &["/bin/true"], false).await?;
    cx.cri.stop(&id, 0).await?;
    let ended = client.rest().await?;
    ensure!(ended.code()? == 137, "the status is {}", ended.status);
    let late = Client::connect(&unused, V5).await?.rest().await?;
    ensure!(late.status["status"] == "Failure", "the status is {}", late.status);
    let refused = streaming::exec(&cx.cri, &id, &["/bin/true"], false).await;
    let code = refused.err().map(|status| status.code());
    ensure!(code == Some(tonic::Code::FailedPrecondition), "Exec was answered with {code:?}");
    Ok(())
}

async fn exec_of_a_missing_program(cx: Context) -> Result<()> {
    let id = sleeper(&cx).await?;
    let url = streaming::exec(&cx.cri, &id, &["/no/such/program"], false).await?;
    let ended = Client::connect(&url, V5).await?.rest().await?;
    let message = ended.status["message"].as_str().unwrap_or_default();
    ensure!(message.contains("/no/such/program"), "the status is {}", ended.status);
    Ok(())
}

async fn exec_many(cx: Context) -> Result<()> {
    let id = sleeper(&cx).await?;
    let mut clients = Vec::new();
    for number in 0..50 {
        let mut client = session(&cx, &id, &format!("cat; exit {number}"), number % 2 == 1).await?;
        client.send(0, format!("exec {number}\n").as_bytes()).await?;
        clients.push(client);
    }
    for (number, mut client) in clients.into_iter().enumerate() {
        client.until(&format!("exec {number}")).await?;
        // A terminal's end of input is a character.
        let terminal = number % 2 == 1;
        if terminal {
            client.send(0, &[4]).await?;
        } else {
            client.end(0).await?;
        }
        let ended = client.rest().await?;
        ensure!(ended.code()? == i64::try_from(number)?, "exec {number} ended with {}", ended.status);
    }
    Ok(())
}

async fn attached(cx: &Context, id: &str, tty: bool) -> Result<Client> {
    Client::connect(&streaming::attach(&cx.cri, id, tty).await?, V5).await
}

/// A container that says what it reads.
async fn listener(cx: &Context, once: bool) -> Result<String> {
    let pod = cx.pod().await?;
    let line = "echo up; while read x; do echo got $x; echo error $x >&2; done; echo over; exit 4";
    let config = cx.shell("one", line).with(|c| {
        c.stdin = true;
        c.stdin_once = once;
    });
    let id = cx.start(&pod, &config).await?;
    cx.said(&id, "up").await?;
    Ok(id)
}

async fn attach_sees_and_writes(cx: Context) -> Result<()> {
    let id = listener(&cx, false).await?;
    let (mut first, mut second) = (attached(&cx, &id, false).await?, attached(&cx, &id, false).await?);
    // An answer to its own line shows that a client is attached.
    first.send(0, b"one\n").await?;
    first.until("got one").await?;
    second.send(0, b"two\n").await?;
    second.until("got two").await?;
    first.until("got two").await?;
    first.send(0, b"both\n").await?;
    second.until("got both").await?;
    first.until("got both").await?;
    // The end of a client's input, and a client that leaves, are not the container's end.
    first.end(0).await?;
    drop(second);
    let mut third = attached(&cx, &id, false).await?;
    third.send(0, b"three\n").await?;
    first.until("got three").await?;
    cx.said(&id, "error three").await.context("the log")?;
    cx.cri.stop(&id, 0).await?;
    let ended = first.rest().await?;
    ensure!(ended.status["status"] == "Success", "the status is {}", ended.status);
    // What the container says of the line before may come after the client has attached.
    let stderr = String::from_utf8_lossy(&third.rest().await?.stderr).into_owned();
    let alone = stderr.ends_with("error three\n") && !stderr.contains("got");
    ensure!(alone, "stderr is a channel of its own, and has {stderr:?}");
    Ok(())
}

async fn attach_ends_stdin_once(cx: Context) -> Result<()> {
    let id = listener(&cx, true).await?;
    let mut client = attached(&cx, &id, false).await?;
    client.send(0, b"one\n").await?;
    client.until("got one").await?;
    client.end(0).await?;
    let ended = client.rest().await?;
    ensure!(ended.text() == "over\n" && ended.status["status"] == "Success", "attach gave {ended:?}");
    cx.cri.wait_exit(&id, secs(20)).await?;
    cx.exited_with(&id, 4).await?;
    // Also if it closes the connection without a close frame, and another client is attached.
    let id = listener(&cx, true).await?;
    let (first, mut second) = (attached(&cx, &id, false).await?, attached(&cx, &id, false).await?);
    second.send(0, b"two\n").await?;
    second.until("got two").await?;
    drop(first);
    let ended = second.rest().await?;
    ensure!(ended.status["status"] == "Success", "the other's status is {}", ended.status);
    cx.cri.wait_exit(&id, secs(20)).await?;
    cx.exited_with(&id, 4).await
}

async fn attach_to_a_terminal(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line = "echo up; while read x; do stty size; done";
    let config = cx.shell("one", line).terminal().with(|c| c.stdin = true);
    let id = cx.start(&pod, &config).await?;
    cx.said(&id, "up").await?;
    let mut client = attached(&cx, &id, true).await?;
    client.resize(91, 33).await?;
    client.send(0, b"\n").await?;
    client.until("33 91").await?;
    client.resize(120, 40).await?;
    client.send(0, b"\n").await?;
    client.until("40 120").await?;
    // An end of file by the terminal.
    client.send(0, &[4]).await?;
    let ended = client.rest().await?;
    ensure!(ended.status["status"] == "Success", "the status is {}", ended.status);
    Ok(())
}

/// A client that does not read must not delay the container, its log or another client, and is told what it has missed.
async fn attach_without_reading(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line =
        "read x; dd if=/dev/zero bs=8000 count=4000 | tr '\\0' x; sleep 1; echo; echo finished; sleep 100000";
    let id = cx.start(&pod, &cx.shell("one", line).with(|c| c.stdin = true)).await?;
    let (slow, mut fast) = (attached(&cx, &id, false).await?, attached(&cx, &id, false).await?);
    fast.send(0, b"\n").await?;
    fast.until("finished").await?;
    cx.said(&id, "finished").await?;
    cx.exec_works(&id).await?;
    cx.cri.stop(&id, 0).await?;
    let ended = slow.rest().await?;
    let message = ended.status["message"].as_str().unwrap_or_default();
    ensure!(message.contains("output was dropped"), "the slow client's status is {}", ended.status);
    Ok(())
}

/// What is typed to a container without a standard input is dropped, and its output comes all the same.
async fn attach_without_an_input(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line = "read x && echo got $x; echo none; while :; do echo tick; sleep 0.05; done";
    let id = cx.start(&pod, &cx.shell("one", line)).await?;
    cx.said(&id, "none").await.context("its standard input is open")?;
    let mut client = attached(&cx, &id, false).await?;
    client.send(0, b"typed\n").await?;
    client.until("tick").await?;
    client.end(0).await?;
    client.until("tick").await?;
    cx.cri.stop(&id, 0).await?;
    let ended = client.rest().await?;
    ensure!(
        ended.status["status"] == "Success" && !ended.text().contains("typed"),
        "the attach ended with {ended:?}"
    );
    Ok(())
}

async fn attach_again_after_a_restart(cx: Context) -> Result<()> {
    let id = listener(&cx, false).await?;
    let mut client = attached(&cx, &id, false).await?;
    client.send(0, b"one\n").await?;
    client.until("got one").await?;
    cx.node.crash().await?;
    let mut client = attached(&cx, &id, false).await?;
    client.send(0, b"two\n").await?;
    client.until("got two").await
}

async fn url_is_used_once(cx: Context) -> Result<()> {
    let id = sleeper(&cx).await?;
    let url = streaming::exec(&cx.cri, &id, &["/bin/true"], false).await?;
    Client::connect(&url, V5).await?.rest().await?;
    let again = Client::connect(&url, V5).await.err().context("a URL was used twice")?;
    ensure!(format!("{again:#}").contains("HTTP/1.1 404 "), "{again:#}");
    Ok(())
}

/// A container that serves one connection: it greets, and then answers what it gets.
async fn server(cx: &Context, pod: &Pod, port: u16) -> Result<()> {
    let line = format!("mkfifo /tmp/back; (echo greeting; cat /tmp/back) | nc -l -p {port} > /tmp/back");
    let id = cx.start(pod, &cx.shell("server", &line)).await?;
    let listening = format!("cat /proc/net/tcp /proc/net/tcp6 | grep -q ':{port:04X} .* 0A '");
    wait::until("the server to listen", secs(20), || async {
        Ok((cx.cri.exec(&id, &["/bin/sh", "-c", &listening]).await?.code == 0).then_some(()))
    })
    .await
}

async fn talks(cx: &Context, pod: &Pod, port: u16) -> Result<()> {
    let url = streaming::forward(&cx.cri, &pod.id, port).await?;
    let mut client = Client::connect(&url, V4).await?;
    let first = client.next().await?.context("no first message")?;
    ensure!(first == (0, port.to_le_bytes().to_vec()), "the first message is {first:?}");
    let first = client.next().await?.context("no second message")?;
    ensure!(first == (1, port.to_le_bytes().to_vec()), "the second message is {first:?}");
    let mut got = Vec::new();
    client.send(0, b"echo\n").await?;
    while got != b"greeting\necho\n" {
        let (channel, bytes) = client.next().await?.with_context(|| format!("it closed after {got:?}"))?;
        ensure!(channel == 0, "on channel {channel}: {}", String::from_utf8_lossy(&bytes));
        got.extend(bytes);
    }
    Ok(())
}

async fn forward_to_a_pods_network(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    server(&cx, &pod, 7777).await?;
    talks(&cx, &pod, 7777).await
}

async fn forward_to_the_hosts_network(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let port = crate::registry::free_port()?;
    server(&cx, &pod, port).await?;
    talks(&cx, &pod, port).await
}

async fn forward_to_a_closed_port(cx: Context) -> Result<()> {
    // No container is needed.
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let url = streaming::forward(&cx.cri, &pod.id, 9).await?;
    let mut client = Client::connect(&url, V4).await?;
    let (mut channel, mut bytes) = (0, Vec::new());
    for _ in 0..3 {
        (channel, bytes) = client.next().await?.context("it closed")?;
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    ensure!(channel == 1 && text.contains("port 9"), "on channel {channel}: {text}");
    ensure!(client.next().await?.is_none(), "it did not close");
    cx.cri.stop_pod(&pod.id).await?;
    let code = streaming::forward(&cx.cri, &pod.id, 9).await.err().map(|status| status.code());
    ensure!(code == Some(tonic::Code::FailedPrecondition), "PortForward was answered with {code:?}");
    Ok(())
}
