//! What happens to a service: reloads, restarts, a crash, a hang, a configuration with a fault. Pods must not notice.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::expect::ensure;
use crate::isolation::command;
use crate::proc;
use crate::wait::{self, secs};

use super::machine::{LIMIT, Machine};
use super::pods::Pods;

/// Restarts under load.
const RESTARTS: u64 = 8;
/// A drop-in file of the unit with a short period of the watchdog: the packaged one would be a minute's wait.
const DROP_IN: &str = "/run/systemd/system/copepod.service.d/test.conf";

fn systemctl(verb: &str) -> Result<String> {
    command("systemctl", &[verb, "copepod.service"])
}

/// Systemd sees the end of the reload, and the daemon is the same.
pub(super) async fn reload(machine: &Machine) -> Result<()> {
    let pid = machine.main_pid()?;
    systemctl("reload")?;
    wait::until("the reload", LIMIT, || async {
        let (state, text) = (machine.property("ActiveState")?, machine.property("StatusText")?);
        Ok((state == "active" && text.contains("was reloaded")).then_some(()))
    })
    .await?;
    ensure!(machine.main_pid()? == pid, "the daemon was replaced");
    Ok(())
}

pub(super) async fn restart_under_load(machine: &Machine, pods: &Pods) -> Result<()> {
    let stop = AtomicBool::new(false);
    let restarts = async {
        let restarted = async {
            for round in 0..RESTARTS {
                // At another moment of the calls in each round.
                tokio::time::sleep(std::time::Duration::from_millis(500 + 130 * round)).await;
                let before = machine.main_pid()?;
                // It does not block this thread: the load goes on.
                let mut restart = tokio::process::Command::new("systemctl");
                let status = restart.args(["restart", "copepod.service"]).status().await?;
                ensure!(status.success(), "systemctl restart: {status}");
                ensure!(machine.main_pid()? != before, "the daemon is the same");
            }
            Ok(())
        }
        .await;
        stop.store(true, Ordering::Relaxed);
        restarted
    };
    let (restarted, one, two, three) = tokio::join!(
        restarts,
        pods.load("loadone", &stop),
        pods.load("loadtwo", &stop),
        pods.load("loadthree", &stop)
    );
    restarted?;
    let calls = one? + two? + three?;
    println!("     {RESTARTS} restarts beside {calls} calls that succeeded");
    ensure!(machine.property("NRestarts")? == "0", "the daemon ended by itself");
    pods.are_unharmed().await
}

/// Systemd starts another daemon at once.
pub(super) async fn killed(machine: &Machine, pods: &Pods) -> Result<()> {
    let pid = machine.main_pid()?;
    proc::signal(pid, Signal::SIGKILL)?;
    machine.replaced(pid, LIMIT).await?;
    pods.are_unharmed().await
}

/// A daemon that hangs is replaced. SIGSTOP stands for a hang of all threads.
pub(super) async fn hangs(machine: &Machine, pods: &Pods) -> Result<()> {
    let folder = std::path::Path::new(DROP_IN).parent().context("no folder")?;
    fs::create_dir_all(folder)?;
    fs::write(DROP_IN, "[Service]\nWatchdogSec=10\n")?;
    command("systemctl", &["daemon-reload"])?;
    systemctl("restart")?;
    let pid = machine.main_pid()?;
    // Three periods: it is fed.
    tokio::time::sleep(secs(30)).await;
    ensure!(machine.main_pid()? == pid, "a daemon that works was replaced: {}", machine.journal(20));
    proc::signal(pid, Signal::SIGSTOP)?;
    machine.replaced(pid, LIMIT).await?;
    ensure!(machine.journal(40).contains("watchdog"), "the journal does not name the watchdog");
    pods.are_unharmed().await?;
    fs::remove_file(DROP_IN)?;
    fs::remove_dir(folder)?;
    command("systemctl", &["daemon-reload"])?;
    systemctl("restart")?;
    machine.answers(LIMIT).await
}

/// The daemon says what is wrong, systemd does not give up, and no command is needed once it is mended.
pub(super) async fn misconfigured(machine: &Machine, pods: &Pods) -> Result<()> {
    let text = machine.configuration()?;
    machine.configure("nonsense = 1\n")?;
    let refused = systemctl("restart");
    ensure!(refused.is_err(), "a restart with a faulty configuration succeeded");
    // More starts than systemd allows within ten seconds by default.
    wait::until("eight starts", LIMIT, || async {
        Ok((machine.property("NRestarts")?.parse::<u32>()? >= 8).then_some(()))
    })
    .await?;
    ensure!(machine.journal(20).contains("nonsense"), "the journal does not name the fault");
    pods.run_without_daemon().await?;
    machine.set_configuration(&text)?;
    wait::until("the service", LIMIT, || async {
        Ok((machine.property("ActiveState")? == "active").then_some(()))
    })
    .await?;
    pods.are_unharmed().await
}
