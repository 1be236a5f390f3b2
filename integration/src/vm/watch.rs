//! Watches a guest: passes the output of its command on, and ends it when it is silent or late.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::qemu::Ports;
use crate::wait;

/// How often the guest is looked at.
const STEP: Duration = Duration::from_millis(200);
/// How much of the console is shown after a failure, in bytes.
const SHOWN: usize = 16 << 10;

/// Time limits of a guest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// From its start to its end.
    pub(super) whole: Duration,
    /// Between two bytes of output or console.
    pub(super) silence: Duration,
}

/// Starts the machine and returns the exit code that it reports; an error with the console if it reports none.
pub(super) fn run(mut machine: Command, ports: &Ports, limits: Limits) -> Result<u8> {
    // In a group of its own: Ctrl-C ends this program, and the drop of `Guest` then ends the machine.
    let child = machine.stdout(Stdio::piped()).process_group(0).spawn();
    let mut guest = Guest(child.context("run qemu-system-x86_64 (package qemu-system-x86)")?);
    let output = guest.0.stdout.take().context("qemu has no output")?;
    let passed = Arc::new(AtomicU64::new(0));
    let reader = {
        let passed = Arc::clone(&passed);
        thread::spawn(move || pass_on(output, &passed))
    };
    let ended = until_end(&mut guest, ports, limits, &passed);
    drop(guest);
    // The machine has ended, and with it the pipe.
    if reader.join().is_err() {
        bail!("the reader of the guest's output panicked");
    }
    ended.and_then(|()| result(&fs::read_to_string(&ports.result).unwrap_or_default())).map_err(|e| {
        let console = fs::read(&ports.console).unwrap_or_default();
        let tail = console.get(console.len().saturating_sub(SHOWN)..).unwrap_or_default();
        e.context(format!("the guest's console:\n{}", String::from_utf8_lossy(tail)))
    })
}

/// A machine; ended when dropped.
#[derive(Debug)]
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(wait::ended(&mut self.0, wait::secs(10)));
    }
}

/// Copies the output of the guest's command to ours, and counts its bytes.
fn pass_on(mut output: ChildStdout, passed: &AtomicU64) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count) = output.read(&mut buffer) {
        if count == 0 {
            return;
        }
        passed.fetch_add(count as u64, Ordering::Relaxed);
        let mut out = io::stdout().lock();
        // A reader of ours that has gone does not end the run: its exit code counts.
        drop(out.write_all(buffer.get(..count).unwrap_or_default()).and_then(|()| out.flush()));
    }
}

/// Waits for the machine to end.
fn until_end(guest: &mut Guest, ports: &Ports, limits: Limits, passed: &AtomicU64) -> Result<()> {
    let begun = Instant::now();
    let mut last = (0, begun);
    loop {
        if guest.0.try_wait()?.is_some() {
            return Ok(());
        }
        let console = fs::metadata(&ports.console).map_or(0, |console| console.len());
        let written = console + passed.load(Ordering::Relaxed);
        if written != last.0 {
            last = (written, Instant::now());
            if has_panicked(&fs::read(&ports.console).unwrap_or_default()) {
                bail!("the guest's kernel has panicked");
            }
        }
        if last.1.elapsed() > limits.silence {
            bail!("the guest has written nothing for {:?}", limits.silence);
        }
        if begun.elapsed() > limits.whole {
            bail!("the guest has not ended within {:?}", limits.whole);
        }
        thread::sleep(STEP);
    }
}

/// Whether the kernel says so on the console. It may be in the middle of saying it.
fn has_panicked(console: &[u8]) -> bool {
    String::from_utf8_lossy(console).contains("Kernel panic - not syncing")
}

/// The exit code in what the guest reported.
fn result(line: &str) -> Result<u8> {
    match line.trim() {
        "" => bail!("the guest has ended without an exit code of its command"),
        code => code.parse().with_context(|| format!("the guest reported {code:?} instead of an exit code")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(script: &str, limits: Limits) -> Result<u8> {
        let folder = tempfile::tempdir().unwrap();
        let ports = Ports { console: folder.path().join("console"), result: folder.path().join("result") };
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(&ports.console).arg(&ports.result);
        run(command, &ports, limits)
    }

    const LONG: Limits = Limits { whole: Duration::from_secs(60), silence: Duration::from_secs(60) };

    #[test]
    fn exit_code_is_the_guests() {
        assert_eq!(guest("echo 0 > $2", LONG).unwrap(), 0);
        assert_eq!(guest("echo 7 > $2", LONG).unwrap(), 7);
    }

    #[test]
    fn end_without_an_exit_code_shows_the_console() {
        for script in ["echo last words > $1", "echo last words > $1; echo x > $2"] {
            let error = format!("{:#}", guest(script, LONG).unwrap_err());
            assert!(error.contains("last words\n") && error.contains("exit code"), "{error}");
        }
    }

    #[test]
    fn panic_ends_the_guest() {
        let script = "echo '[1.0] Kernel panic - not syncing: x' > $1; exec sleep 1000";
        assert!(format!("{:#}", guest(script, LONG).unwrap_err()).contains("has panicked"));
    }

    #[test]
    fn silent_and_late_guests_are_ended() {
        let short = Duration::from_millis(1);
        let silent = guest("echo last words > $1; exec sleep 1000", Limits { silence: short, ..LONG });
        assert!(format!("{:#}", silent.unwrap_err()).contains("has written nothing"));
        let late = guest("exec sleep 1000", Limits { whole: short, ..LONG });
        assert!(format!("{:#}", late.unwrap_err()).contains("has not ended"));
    }
}
