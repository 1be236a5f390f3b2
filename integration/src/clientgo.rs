//! client-go as a client of exec, attach and port-forward: the program of `integration/clientgo` on the pipes of a test.

use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::expect::ensure;
use crate::isolation::command;
use crate::streaming::Streams;

/// What client-go's fall-back begins with on standard error.
const REFUSED: &[u8] = b"WebSocket was refused\n";
/// Time limit of one step.
const LIMIT: Duration = Duration::from_secs(60);

/// The form in which a protocol sends the exit code of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitCodeForm {
    /// As a number.
    Number,
    /// In a text for people.
    Text,
    /// Not sent: the client of version 1 would drop the output that it has not read yet.
    Missing,
}

/// A transport and a protocol of exec and attach, with what they can do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variant {
    /// spdy, websocket or fallback.
    transport: &'static str,
    /// The only protocol that the client offers; empty: those that client-go offers by itself.
    protocol: &'static str,
    /// Whether the client can end the process's standard input.
    pub(crate) ends_input: bool,
    /// How an exit code other than 0 is sent.
    pub(crate) exit_code: ExitCodeForm,
    /// Whether the client can set the size of a terminal.
    pub(crate) sizes: bool,
}

/// All that client-go has. Left alone, it chooses version 5 for WebSocket and version 4 for SPDY.
pub(crate) const VARIANTS: [Variant; 7] = [
    Variant {
        transport: "spdy",
        protocol: "",
        ends_input: true,
        exit_code: ExitCodeForm::Number,
        sizes: true,
    },
    Variant {
        transport: "websocket",
        protocol: "",
        ends_input: true,
        exit_code: ExitCodeForm::Number,
        sizes: true,
    },
    Variant {
        transport: "fallback",
        protocol: "",
        ends_input: true,
        exit_code: ExitCodeForm::Number,
        sizes: true,
    },
    Variant {
        transport: "websocket",
        protocol: "v4.channel.k8s.io",
        ends_input: false,
        exit_code: ExitCodeForm::Number,
        sizes: true,
    },
    Variant {
        transport: "spdy",
        protocol: "v3.channel.k8s.io",
        ends_input: true,
        exit_code: ExitCodeForm::Text,
        sizes: true,
    },
    Variant {
        transport: "spdy",
        protocol: "v2.channel.k8s.io",
        ends_input: true,
        exit_code: ExitCodeForm::Text,
        sizes: false,
    },
    Variant {
        transport: "spdy",
        protocol: "channel.k8s.io",
        ends_input: false,
        exit_code: ExitCodeForm::Missing,
        sizes: false,
    },
];

/// The three that kubectl and crictl use.
pub(crate) const USUAL: [Variant; 3] = [VARIANTS[0], VARIANTS[1], VARIANTS[2]];

/// How a session ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Standard output that [`Session::until`] has not passed.
    pub(crate) stdout: Vec<u8>,
    /// Standard error: the process's, and what client-go logs.
    pub(crate) stderr: Vec<u8>,
    /// The exit code, if client-go got one.
    pub(crate) code: Option<i64>,
    /// client-go's error; empty after success.
    pub(crate) error: String,
}

impl Ended {
    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// A session of exec or attach.
#[derive(Debug)]
pub(crate) struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    received: Vec<u8>,
    stderr: JoinHandle<std::io::Result<Vec<u8>>>,
    sizes: Option<File>,
    dir: TempDir,
    falls_back: bool,
}

/// The program, in the folder of the built ones.
fn program(bin: &Path) -> Result<PathBuf> {
    let program = bin.join("clientgo");
    ensure!(program.exists(), "{} is missing: run `make clientgo`", program.display());
    Ok(program)
}

impl Session {
    /// Starts client-go with a URL that was issued for these streams.
    pub(crate) fn start(bin: &Path, variant: Variant, url: &str, streams: Streams) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut command = Command::new(program(bin)?);
        command.args([
            "remote",
            "--url",
            url,
            "--transport",
            variant.transport,
            "--protocol",
            variant.protocol,
        ]);
        command.arg("--result").arg(dir.path().join("result"));
        let flags = [
            ("--stdin", streams.stdin),
            ("--stdout", streams.stdout),
            ("--stderr", streams.stderr),
            ("--tty", streams.tty),
        ];
        command.args(flags.iter().filter(|(_, on)| *on).map(|(flag, _)| flag));
        let mut sizes = None;
        if streams.tty && variant.sizes {
            let fifo = dir.path().join("sizes");
            crate::isolation::command("mkfifo", &[&fifo.display().to_string()])?;
            // Also for reading, so that it can be opened, and written to, before client-go has it open.
            sizes = Some(File::options().read(true).write(true).open(&fifo)?);
            command.arg("--sizes").arg(&fifo);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("start clientgo")?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().context("no standard output")?);
        let mut errors = child.stderr.take().context("no standard error")?;
        let stderr = tokio::spawn(async move {
            let mut bytes = Vec::new();
            errors.read_to_end(&mut bytes).await?;
            Ok(bytes)
        });
        let falls_back = variant.transport == "fallback";
        Ok(Self { child, stdin, stdout, received: Vec::new(), stderr, sizes, dir, falls_back })
    }

    /// Sends bytes.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().context("standard input has ended")?;
        timeout(LIMIT, stdin.write_all(bytes)).await.context("client-go takes nothing")??;
        Ok(())
    }

    /// Ends standard input.
    pub(crate) fn end(&mut self) {
        self.stdin = None;
    }

    /// Takes standard input out, so that it can be written to while output is read.
    pub(crate) fn take_stdin(&mut self) -> Result<ChildStdin> {
        self.stdin.take().context("standard input has ended")
    }

    /// Sets the terminal's size.
    pub(crate) fn resize(&mut self, width: u16, height: u16) -> Result<()> {
        let sizes = self.sizes.as_mut().context("this session has no sizes")?;
        writeln!(sizes, "{width} {height}")?;
        Ok(())
    }

    /// Reads until standard output has had `text`; what is before it is dropped.
    pub(crate) async fn until(&mut self, text: &str) -> Result<()> {
        loop {
            if let Some(at) = self.received.windows(text.len()).position(|part| part == text.as_bytes()) {
                self.received.drain(..at + text.len());
                return Ok(());
            }
            let mut buffer = [0; 4096];
            let count =
                timeout(LIMIT, self.stdout.read(&mut buffer)).await.with_context(|| self.without(text))??;
            ensure!(count > 0, "it ended: {}", self.without(text));
            self.received.extend_from_slice(buffer.get(..count).unwrap_or_default());
        }
    }

    fn without(&self, text: &str) -> String {
        format!("no {text:?} but {:?}", String::from_utf8_lossy(&self.received))
    }

    /// Reads to the end. Standard input stays open unless it was ended or taken.
    pub(crate) async fn rest(mut self) -> Result<Ended> {
        let mut stdout = std::mem::take(&mut self.received);
        timeout(LIMIT, self.stdout.read_to_end(&mut stdout)).await.context("output does not end")??;
        let held = self.stdin.take();
        let status = timeout(LIMIT, self.child.wait()).await.context("client-go does not end")??;
        drop(held);
        let mut stderr = timeout(LIMIT, self.stderr).await.context("standard error does not end")???;
        if self.falls_back {
            ensure!(stderr.starts_with(REFUSED), "WebSocket was not tried: {stderr:?}");
            stderr.drain(..REFUSED.len());
        }
        ensure!(status.success(), "client-go ended with {status}: {}", String::from_utf8_lossy(&stderr));
        let result: serde_json::Value =
            serde_json::from_slice(&std::fs::read(self.dir.path().join("result"))?)?;
        let error = result["error"].as_str().context("the result has no error")?.to_owned();
        Ok(Ended { stdout, stderr, code: result["code"].as_i64(), error })
    }

    /// The process, for signals.
    pub(crate) fn pid(&self) -> Result<u32> {
        self.child.id().context("client-go has ended")
    }

    /// Kills client-go.
    pub(crate) async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}

/// A port of 127.0.0.1 whose connections client-go forwards.
#[derive(Debug)]
pub(crate) struct Forwarder {
    child: Child,
    /// The port.
    pub(crate) port: u16,
}

impl Forwarder {
    /// Starts client-go with a URL of PortForward.
    pub(crate) async fn start(bin: &Path, variant: Variant, url: &str, port: u16) -> Result<Self> {
        let mut child = Command::new(program(bin)?)
            .args(["forward", "--url", url, "--transport", variant.transport, "--port", &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start clientgo")?;
        let mut stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut line = String::new();
        timeout(LIMIT, stdout.read_line(&mut line)).await.context("client-go does not listen")??;
        let port = line.trim().parse().with_context(|| format!("client-go's port is {line:?}"))?;
        Ok(Self { child, port })
    }

    /// A connection that is forwarded.
    pub(crate) async fn connect(&self) -> Result<TcpStream> {
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?)
    }

    /// Ends it as kubectl does by Ctrl-C.
    pub(crate) async fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = timeout(LIMIT, self.child.wait()).await.context("client-go does not end")??;
        ensure!(status.success(), "client-go ended with {status}");
        Ok(())
    }

    /// Waits for its end, which must be a failure.
    pub(crate) async fn failed(mut self) -> Result<()> {
        let _open = self.child.stdin.take();
        let status = timeout(LIMIT, self.child.wait()).await.context("client-go does not end")??;
        ensure!(!status.success(), "client-go ended with {status}");
        Ok(())
    }
}

/// One connection to a port through client-go's streams, each direction of which ends by itself. Returns what the port
/// sent; fails if the error stream has something.
pub(crate) async fn connection(
    bin: &Path,
    variant: Variant,
    url: &str,
    port: u16,
    sent: Vec<u8>,
) -> Result<Vec<u8>> {
    let mut child = Command::new(program(bin)?)
        .args(["connect", "--url", url, "--transport", variant.transport, "--port", &port.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start clientgo")?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (mut stdin, mut stdout) = (stdin.context("no input")?, stdout.context("no output")?);
    let mut got = Vec::new();
    // First what the port sends, to its end, and then what it gets.
    timeout(LIMIT, stdout.read_to_end(&mut got)).await.context("the port's direction does not end")??;
    timeout(LIMIT, stdin.write_all(&sent)).await.context("client-go takes nothing")??;
    drop(stdin);
    let ended = timeout(LIMIT, child.wait_with_output()).await.context("client-go does not end")??;
    if !ended.status.success() {
        bail!("client-go ended with {}: {}", ended.status, String::from_utf8_lossy(&ended.stderr));
    }
    Ok(got)
}

/// One transfer of which client-go drops what it receives; returns how many seconds it took. `options` are those of the
/// command `what`; as many bytes as `wanted` must come.
pub(crate) async fn bulk(
    bin: &Path,
    what: &str,
    url: &str,
    transport: &str,
    options: &[&str],
    wanted: u64,
) -> Result<f64> {
    let result = tempfile::NamedTempFile::new()?;
    let output = Command::new(program(bin)?)
        .args([what, "--url", url, "--transport", transport, "--discard", "--result"])
        .arg(result.path())
        .args(options)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ended = timeout(LIMIT, output).await.context("client-go does not end")??;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(ended.status.success(), "client-go ended with {}: {said}", ended.status);
    let result: serde_json::Value = serde_json::from_slice(&std::fs::read(result.path())?)?;
    ensure!(result["error"] == "", "client-go says {}", result["error"]);
    ensure!(result["bytes"] == wanted, "{} bytes came, not {wanted}", result["bytes"]);
    result["seconds"].as_f64().context("the result has no seconds")
}

/// Until it is dropped, packets from a local port do not arrive: to the server, the client vanishes without closing its
/// connection.
#[derive(Debug)]
pub(crate) struct Cut(u16);

impl Cut {
    /// Cuts a port off.
    pub(crate) fn new(port: u16) -> Result<Self> {
        rule("-I", port)?;
        Ok(Self(port))
    }
}

fn rule(action: &str, port: u16) -> Result<()> {
    command("iptables", &[action, "INPUT", "-p", "tcp", "--sport", &port.to_string(), "-j", "DROP"]).map(drop)
}

impl Drop for Cut {
    fn drop(&mut self) {
        drop(rule("-D", self.0));
    }
}
