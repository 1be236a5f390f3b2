//! kubectl as a user runs it, on pipes or in a terminal. Every call is printed with its exit code: the run's output is
//! a transcript.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::expect::ensure;

/// Time limit of one command.
const LIMIT: Duration = Duration::from_secs(90);

/// A kubectl with its kubeconfig.
#[derive(Debug, Clone)]
pub(crate) struct Kubectl {
    program: PathBuf,
    config: PathBuf,
    home: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Exit code.
    pub(crate) code: Option<i32>,
    /// Standard output.
    pub(crate) stdout: Vec<u8>,
    /// Standard error as text.
    pub(crate) stderr: String,
}

impl Ended {
    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Kubectl {
    /// kubectl with a kubeconfig and a home folder.
    pub(crate) fn new(program: PathBuf, config: PathBuf, home: PathBuf) -> Self {
        Self { program, config, home }
    }

    /// The command, with variables of its own.
    pub(crate) fn command(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).envs(variables.iter().copied());
        command.env("KUBECONFIG", &self.config).env("HOME", &self.home).kill_on_drop(true);
        command
    }

    /// Runs it to its end with this input, whatever its exit code is.
    pub(crate) async fn run_with(
        &self,
        arguments: &[&str],
        input: &[u8],
        variables: &[(&str, &str)],
    ) -> Result<Ended> {
        let mut command = self.command(arguments, variables);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start kubectl")?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        let input = input.to_vec();
        let writer = tokio::spawn(async move {
            // A command that reads nothing closes its input.
            drop(stdin.write_all(&input).await);
        });
        let line = arguments.join(" ");
        let ended = timeout(LIMIT, child.wait_with_output()).await;
        let ended = ended.with_context(|| format!("kubectl {line} has not ended within {LIMIT:?}"))??;
        writer.await?;
        let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
        Ok(Ended { code: ended.status.code(), stdout: ended.stdout, stderr })
    }

    /// Runs it to its end with this input, and prints it.
    pub(crate) async fn run(&self, arguments: &[&str], input: &[u8]) -> Result<Ended> {
        let begun = Instant::now();
        let ended = self.run_with(arguments, input, &[]).await?;
        transcribe(arguments, &[], ended.code);
        println!("        {:.2} s", begun.elapsed().as_secs_f32());
        Ok(ended)
    }

    /// Standard output of a command that must succeed.
    pub(crate) async fn ok(&self, arguments: &[&str]) -> Result<String> {
        let ended = self.run(arguments, &[]).await?;
        ensure!(ended.code == Some(0), "kubectl {}: {ended:?}", arguments.join(" "));
        Ok(ended.text())
    }

    /// Like [`Self::ok`], without a line in the transcript: for what is repeated.
    pub(crate) async fn quiet(&self, arguments: &[&str]) -> Result<String> {
        let ended = self.run_with(arguments, &[], &[]).await?;
        ensure!(ended.code == Some(0), "kubectl {}: {ended:?}", arguments.join(" "));
        Ok(ended.text())
    }

    /// Creates or changes objects.
    pub(crate) async fn apply(&self, objects: &Value) -> Result<()> {
        let ended = self.run(&["apply", "-f", "-"], objects.to_string().as_bytes()).await?;
        ensure!(ended.code == Some(0), "kubectl apply: {ended:?}");
        Ok(())
    }

    /// Starts it in a terminal of this size.
    pub(crate) fn terminal(&self, arguments: &[&str], width: u16, height: u16) -> Result<Terminal> {
        use rustix::pty;
        let flags = pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY | pty::OpenptFlags::CLOEXEC;
        let master = pty::openpt(flags)?;
        pty::grantpt(&master)?;
        pty::unlockpt(&master)?;
        let name = pty::ptsname(&master, Vec::new())?;
        let slave = File::options().read(true).write(true).open(name.to_str()?)?;
        resize(&master, width, height)?;
        let inner = self.command(arguments, &[]);
        // A session of its own, whose terminal this is: otherwise nobody tells kubectl of a new size. setsid leads no
        // process group here, so it becomes kubectl.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(&self.program).args(arguments);
        command.envs(inner.as_std().get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.env("TERM", "xterm").kill_on_drop(true);
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
        let child = command.spawn().context("run setsid (package util-linux)")?;
        let mut reader = File::from(master.try_clone()?);
        let (shown, screen) = mpsc::channel(64);
        // It ends when kubectl has, and every copy of the terminal is closed: reading then fails with EIO.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if shown.blocking_send(buffer.get(..count).unwrap_or_default().to_vec()).is_err() {
                    return;
                }
            }
        });
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        Ok(Terminal { child, master, screen, received: Vec::new(), arguments })
    }
}

/// Prints a command and its exit code.
pub(crate) fn transcribe(arguments: &[&str], variables: &[(&str, &str)], code: Option<i32>) {
    let variables: String = variables.iter().map(|(key, value)| format!("{key}={value} ")).collect();
    let code = code.map_or_else(|| String::from("killed"), |code| format!("exit code {code}"));
    println!("      $ {variables}kubectl {}   # {code}", arguments.join(" "));
}

fn resize(master: &OwnedFd, width: u16, height: u16) -> Result<()> {
    let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size)?;
    Ok(())
}

/// kubectl in a terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    child: Child,
    master: OwnedFd,
    screen: mpsc::Receiver<Vec<u8>>,
    received: Vec<u8>,
    arguments: Vec<String>,
}

impl Terminal {
    /// Types.
    pub(crate) fn send(&self, text: &str) -> Result<()> {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let count = rustix::io::write(&self.master, rest)?;
            rest = rest.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Sets the terminal's size.
    pub(crate) fn resize(&self, width: u16, height: u16) -> Result<()> {
        resize(&self.master, width, height)
    }

    /// Reads until the terminal has shown `text`; what is before it is dropped.
    pub(crate) async fn until(&mut self, text: &str) -> Result<()> {
        loop {
            if let Some(at) = self.received.windows(text.len()).position(|part| part == text.as_bytes()) {
                self.received.drain(..at + text.len());
                return Ok(());
            }
            let bytes = timeout(LIMIT, self.screen.recv()).await.ok().flatten();
            ensure!(
                bytes.is_some(),
                "the terminal shows no {text:?} but {:?}",
                String::from_utf8_lossy(&self.received)
            );
            self.received.extend(bytes.unwrap_or_default());
        }
    }

    /// Reads to the end; the exit code.
    pub(crate) async fn ended(mut self) -> Result<Option<i32>> {
        let read = async { while self.screen.recv().await.is_some() {} };
        timeout(LIMIT, read).await.context("kubectl does not close its terminal")?;
        let status = timeout(LIMIT, self.child.wait()).await.context("kubectl does not end")??;
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        transcribe(&arguments, &[], status.code());
        Ok(status.code())
    }

    /// Kills kubectl: the terminal is hung up.
    pub(crate) async fn kill(mut self) -> Result<()> {
        self.child.kill().await?;
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        transcribe(&arguments, &[], None);
        Ok(())
    }
}
