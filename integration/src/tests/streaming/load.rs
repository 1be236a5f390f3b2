//! Many sessions at a time, and clients that vanish or stop: what is left of them afterwards.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;

use super::forward::Server;
use crate::census::Census;
use crate::clientgo::{Cut, Forwarder, Session, USUAL};
use crate::context::{Context, Pod};
use crate::echo;
use crate::expect::ensure;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::streaming::{self, Client, Streams, V4, V5};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(load_by_clientgo_leaves_nothing).own().limit(180),
        test!(clients_that_vanish_leave_nothing).own().limit(300),
        test!(refused_clients_keep_nobody_out).own().limit(120),
    ]
}

/// Connections of one port-forward at a time.
const CONNECTIONS: usize = 100;
/// Execs at a time.
const EXECS: usize = 50;
/// Most KiB by which the daemon and its shims may have grown afterwards, each.
const GROWTH: u64 = 1024;
/// Time in which the daemon notices that a client has vanished without a word: its 150 s, and what closing takes.
const VANISHED: Duration = secs(160);
/// Connections without a valid URL: more than the server has sessions (1,024), and so few that the kernel's queue (128)
/// takes the rest if the server accepts no more. Then the next client connects, and waits.
const REFUSED: usize = 1100;
/// The server's port in the pod.
const PORT: u16 = 7004;

/// A pod with a container that answers, and a server in its network.
struct Rig {
    cx: Context,
    pod: Pod,
    id: String,
    _server: Server,
    before: Census,
    /// PSS in KiB and descriptors of the daemon, PSS of the shim.
    daemon: (u64, usize),
    shim: u64,
}

impl Rig {
    /// Measures after one session of each kind, which makes the daemon's permanent objects.
    async fn new(cx: Context) -> Result<Self> {
        let pod = cx.pod_of(cx.pod_config().own_network()).await?;
        let line = "while read x; do echo got $x; done";
        let id = cx.start(&pod, &cx.shell("one", line).with(|c| c.stdin = true)).await?;
        let pid = cx.node.pause(&pod.id)?.pid;
        let server = Server::start(pid, SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)), false).await?;
        let warm = |client: Client| client.rest();
        let url = streaming::exec(&cx.cri, &id, &["/bin/true"], false).await?;
        warm(Client::connect(&url, V5).await?).await?;
        drop(Client::connect(&streaming::attach(&cx.cri, &id, false).await?, V5).await?);
        drop(Client::connect(&streaming::forward(&cx.cri, &pod.id, PORT).await?, V4).await?);
        tokio::time::sleep(secs(5)).await;
        let daemon = cx.node.pid()?;
        let daemon = (proc::pss_kib(daemon)?, proc::fds(daemon)?);
        let shim = proc::pss_kib(cx.node.shim(&pod.id)?.pid)?;
        let before = Census::take(Some(&cx.node));
        Ok(Self { cx, pod, id, _server: server, before, daemon, shim })
    }

    /// A session of the byte-level client.
    async fn exec(&self, line: &str) -> Result<Client> {
        let url = streaming::exec(&self.cx.cri, &self.id, &["/bin/sh", "-c", line], false).await?;
        Client::connect(&url, V5).await
    }

    /// Everything is as before, within 30 s.
    async fn settled(&self) -> Result<()> {
        let (daemon, shim) = (self.cx.node.pid()?, self.cx.node.shim(&self.pod.id)?.pid);
        wait::until("the memory and descriptors of the sessions to be returned", secs(30), || async {
            let now = (proc::pss_kib(daemon)?, proc::fds(daemon)?);
            let of_shim = proc::pss_kib(shim)?;
            ensure!(
                now.0 <= self.daemon.0 + GROWTH && of_shim <= self.shim + GROWTH,
                "PSS: daemon {} KiB after {}, shim {of_shim} KiB after {}",
                now.0,
                self.daemon.0,
                self.shim
            );
            // The connection of this test's own CRI client may have been opened since.
            ensure!(
                now.1 <= self.daemon.1 + 2,
                "the daemon has {} descriptors after {}",
                now.1,
                self.daemon.1
            );
            Ok(Some(()))
        })
        .await?;
        let daemon = proc::pss_kib(daemon)?;
        println!(
            "      PSS before and after: daemon {} and {daemon} KiB, shim {} and {} KiB",
            self.daemon.0,
            self.shim,
            proc::pss_kib(shim)?
        );
        self.before.settle(Some(&self.cx.node)).await?;
        self.cx.exec_works(&self.id).await
    }
}

/// 100 connections of one port-forward, each way; then 50 execs and 50 attached clients. All of a kind are open before
/// one ends.
async fn load_by_clientgo_leaves_nothing(cx: Context) -> Result<()> {
    let rig = Rig::new(cx).await?;
    let (cx, bin) = (&rig.cx, &rig.cx.fixture.bin);
    for variant in USUAL {
        let url = streaming::forward(&cx.cri, &rig.pod.id, PORT).await?;
        let forwarder = Forwarder::start(bin, variant, &url, PORT).await?;
        forward_many(&forwarder).await.with_context(|| format!("{variant:?}"))?;
        forwarder.end().await?;
    }
    let mut sessions = Vec::new();
    for number in 0..EXECS {
        let (tty, variant) = (number % 2 == 1, USUAL[number % USUAL.len()]);
        let line = format!("echo up {number}; read x; echo $x; exit {number}");
        let url = streaming::exec(&cx.cri, &rig.id, &["/bin/sh", "-c", &line], tty).await?;
        sessions.push((variant, Session::start(bin, variant, &url, Streams::all(tty))?));
    }
    for (number, (_, session)) in sessions.iter_mut().enumerate() {
        session.until(&format!("up {number}")).await?;
    }
    for (number, (variant, mut session)) in sessions.into_iter().enumerate() {
        session.send(format!("word {number}\n").as_bytes()).await?;
        let ended = session.rest().await?;
        ensure!(ended.text().contains(&format!("word {number}")), "exec {number}, {variant:?}: {ended:?}");
        ensure!(ended.code == Some(i64::try_from(number)?), "exec {number}, {variant:?}: {ended:?}");
    }
    rig.settled().await
}

async fn forward_many(forwarder: &Forwarder) -> Result<()> {
    let mut open = Vec::new();
    for number in 0..CONNECTIONS {
        let mut socket = forwarder.connect().await?;
        socket.write_all(&[u8::try_from(number)?]).await?;
        open.push(socket);
    }
    for (number, socket) in open.iter_mut().enumerate() {
        let byte = wait::timeout(secs(20), socket.read_u8()).await;
        let byte = byte.with_context(|| format!("connection {number} of {CONNECTIONS}"))??;
        ensure!(usize::from(byte) == number, "connection {number} has {byte}");
    }
    let mut all = JoinSet::new();
    for (number, socket) in open.into_iter().enumerate() {
        all.spawn(async move {
            let bytes = vec![u8::try_from(number)?; 256 << 10];
            let (mut read, mut write) = socket.into_split();
            let sent = bytes.clone();
            let writer = tokio::spawn(async move {
                write.write_all(&sent).await?;
                write.shutdown().await
            });
            let mut got = Vec::new();
            read.read_to_end(&mut got).await?;
            writer.await??;
            ensure!(got.len() == bytes.len() + echo::LAST.len(), "connection {number}: {} bytes", got.len());
            ensure!(got.starts_with(&bytes), "connection {number} has other bytes");
            Ok(())
        });
    }
    while let Some(one) = all.join_next().await {
        one??;
    }
    Ok(())
}

/// Sessions whose client is killed, is stopped, resets, stops reading or is cut off, while bytes flow.
async fn clients_that_vanish_leave_nothing(cx: Context) -> Result<()> {
    let rig = Rig::new(cx).await?;
    let (cx, bin) = (&rig.cx, &rig.cx.fixture.bin);
    let flood = "while :; do echo a line of the flood; done";
    // A process without output shows nobody that its client has gone; the server's pings do.
    let silent = [rig.exec("echo up; cat").await?, rig.exec("echo up; cat").await?];
    let mut cuts = Vec::new();
    for mut client in silent {
        client.until("up").await?;
        cuts.push((Cut::new(client.port()?)?, client));
    }
    for round in 0..10 {
        let mut client = rig.exec(flood).await?;
        client.until("flood").await?;
        match round % 3 {
            0 => client.reset()?,
            1 => drop(client),
            _ => cuts.push((Cut::new(client.port()?)?, client)),
        }
        let url = streaming::forward(&cx.cri, &rig.pod.id, PORT).await?;
        let mut client = Client::connect(&url, V4).await?;
        client.send(0, &[0; 16 << 10]).await?;
        client.next().await?;
        client.reset()?;
        let url = streaming::attach(&cx.cri, &rig.id, false).await?;
        let mut client = Client::connect(&url, V5).await?;
        client.send(0, b"line\n").await?;
        client.until("got line").await?;
        client.reset()?;
    }
    // client-go, killed while it is stopped: its socket is full of what it has not read.
    let mut stopped = Vec::new();
    for variant in USUAL {
        let url = streaming::exec(&cx.cri, &rig.id, &["/bin/sh", "-c", flood], false).await?;
        let mut session = Session::start(bin, variant, &url, Streams::all(false))?;
        session.until("flood").await?;
        proc::signal(session.pid()?, Signal::SIGSTOP)?;
        stopped.push(session);
    }
    // One that reads no more, and lives.
    let mut deaf = rig.exec(flood).await?;
    deaf.until("flood").await?;
    tokio::time::sleep(secs(3)).await;
    cx.exec_works(&rig.id).await.context("beside clients that do not read")?;
    let pss = proc::pss_kib(cx.node.pid()?)?;
    println!("      daemon with clients that do not read: {} KiB more", pss.saturating_sub(rig.daemon.0));
    for session in stopped {
        session.kill().await?;
    }
    // The sockets of clients that were cut off: closing them sends what does not arrive.
    let cuts: Vec<Cut> = cuts.into_iter().map(|(cut, _client)| cut).collect();
    let floods = || proc::with_args("line of the flood").len();
    let began = Instant::now();
    wait::until_true("the commands of clients that vanished to end", VANISHED, || floods() <= 1).await?;
    let idle = || proc::with_args("echo up; cat").len();
    let left = VANISHED.saturating_sub(began.elapsed());
    wait::until_true("the commands of silent clients to end", left, || idle() == 0).await?;
    println!("      clients that were cut off: noticed after {:?}", began.elapsed());
    // Without the daemon's own look the kernel would end them, after 15 minutes. On a slow host its timers are no slower.
    ensure!(began.elapsed() < secs(600), "only the kernel noticed clients that were cut off");
    // Longer than that the one that does not read was there.
    ensure!(floods() == 1, "{} commands of the client that only does not read", floods());
    deaf.until("flood").await.context("a client that reads again")?;
    drop(deaf);
    wait::until_true("its command to end", secs(20), || floods() == 0).await?;
    drop(cuts);
    rig.settled().await
}

/// Clients without a valid URL that are refused and stay connected, as any process on the node can be.
async fn refused_clients_keep_nobody_out(cx: Context) -> Result<()> {
    let rig = Rig::new(cx).await?;
    let url = streaming::exec(&rig.cx.cri, &rig.id, &["/bin/true"], false).await?;
    let rest = url.strip_prefix("http://").context("no http URL")?;
    let (address, _) = rest.split_once('/').context("no path")?;
    let (host, port) = address.rsplit_once(':').context("no port")?;
    // In a shell of their own, as their descriptors may be more than this program's soft limit.
    let script = format!(
        "ulimit -Sn 4096; for i in $(seq {REFUSED}); do exec {{fd}}<>/dev/tcp/{host}/{port}; \
         printf 'GET /exec/AAAAAAAAAAAAAAAAAAAAAA HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&$fd; done; echo all; read -r"
    );
    let mut refused = Command::new("bash")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut line = String::new();
    let stdout = refused.stdout.take().context("no stdout")?;
    wait::timeout(secs(30), BufReader::new(stdout).read_line(&mut line)).await??;
    ensure!(line == "all\n", "the shell says {line:?}");
    let exec = async { Client::connect(&url, V5).await?.rest().await };
    let ended = wait::timeout(secs(5), exec).await.context("beside clients that were refused")??;
    ensure!(ended.code()? == 0, "the status is {}", ended.status);
    drop(refused.stdin.take());
    refused.wait().await?;
    rig.settled().await
}
