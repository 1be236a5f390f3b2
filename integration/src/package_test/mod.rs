//! `integration package-test`: the Debian package on a machine with systemd, through its whole life and with pods that run
//! all the time. It installs and purges the package on the machine itself, so it is for a virtual machine that is thrown
//! away.
//!
//! | step | what it shows |
//! | --- | --- |
//! | install | the service runs and is enabled, files have the right modes |
//! | upgrade, downgrade | a new daemon, the same pods; the administrator's configuration stays |
//! | restart under load, kill -9, the watchdog | nothing that runs is lost |
//! | a faulty configuration | the service fails with the reason, and works again once the fault is mended |
//! | disable and stop | pods run without the daemon, in their cgroups, and are managed again |
//! | remove, install again | pods run without the daemon and are managed again |
//! | purge | with pods: their state stays; without: nothing is left |

mod faults;
mod machine;
mod pods;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::expect::ensure;
use crate::isolation::command;
use crate::wait::secs;
use machine::{LIMIT, Machine, mode};
use pods::Pods;

/// What the administrator may write for the unit.
const ENVIRONMENT: &str = "/etc/default/copepod";

/// Two packages of different versions, of the same programs or others.
#[derive(Debug)]
pub(crate) struct Packages<'a> {
    /// The lower version.
    pub(crate) old: &'a Path,
    /// The higher version.
    pub(crate) new: &'a Path,
}

/// Runs all steps; the first that fails is the error.
pub(crate) async fn run(packages: &Packages<'_>) -> Result<bool> {
    let machine = Machine::new()?;
    let outcome = steps(&machine, packages).await;
    if outcome.is_err() {
        println!("{}", machine.journal(60));
    }
    outcome.map(|()| true)
}

/// Prints a step's name with the time that it took.
async fn step<T>(name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let begun = Instant::now();
    let result = work.await.with_context(|| name.to_owned())?;
    println!("ok   {:6.1} s  {name}", begun.elapsed().as_secs_f32());
    Ok(result)
}

#[expect(clippy::too_many_lines, reason = "the life of a package, in its order")]
async fn steps(machine: &Machine, packages: &Packages<'_>) -> Result<()> {
    step("install", async { install(machine, packages.old).await }).await?;
    let mut pods = step("pods", Pods::start(machine)).await?;
    step("reload", faults::reload(machine)).await?;
    step("upgrade with pods", async {
        // A file of the administrator: dpkg must neither ask nor replace it.
        machine.configure("# mine\n")?;
        changed(machine, packages.new, &pods).await
    })
    .await?;
    step("restart under load", faults::restart_under_load(machine, &pods)).await?;
    step("kill -9", faults::killed(machine, &pods)).await?;
    step("the watchdog", faults::hangs(machine, &pods)).await?;
    step("a faulty configuration", faults::misconfigured(machine, &pods)).await?;
    step("downgrade with pods", async {
        changed(machine, packages.old, &pods).await?;
        ensure!(machine.configuration()?.starts_with("# mine\n"), "the configuration was replaced");
        Ok(())
    })
    .await?;
    step("disable and stop with pods", async {
        command("systemctl", &["disable", "--now", "copepod.service"])?;
        pods.run_without_daemon().await?;
        command("systemctl", &["enable", "--now", "copepod.service"])?;
        machine.answers(LIMIT).await?;
        pods.are_unharmed().await
    })
    .await?;
    step("remove with pods", async {
        command("dpkg", &["--remove", "copepod"])?;
        ensure!(!Path::new("/usr/bin/copepod").exists() && machine.configuration()?.contains("# mine"));
        pods.run_without_daemon().await
    })
    .await?;
    step("install again", async {
        machine.install(packages.new).await?;
        pods.are_unharmed().await
    })
    .await?;
    step("purge with pods", async {
        let said = machine.purge()?;
        ensure!(said.contains("pods are running"), "the purge does not say so: {said}");
        ensure!(!Path::new("/etc/copepod").exists() && Path::new("/var/lib/copepod/pods").is_dir());
        pods.run_without_daemon().await
    })
    .await?;
    step("removal of the pods", async {
        machine.install(packages.new).await?;
        pods.are_unharmed().await?;
        pods.remove_all().await
    })
    .await?;
    step("purge", async {
        std::fs::write(ENVIRONMENT, "HTTPS_PROXY=http://user:secret@proxy.example:3128\n")?;
        machine.purge()?;
        for left in [
            "/etc/copepod",
            ENVIRONMENT,
            "/var/lib/copepod",
            "/run/copepod",
            "/usr/libexec/copepod",
            "/usr/bin/copepod",
        ] {
            ensure!(!Path::new(left).exists(), "{left} is left");
        }
        ensure!(crate::proc::with_args("copepod-shim").is_empty(), "a shim is left");
        let known = command("systemctl", &["list-unit-files", "--no-legend", "copepod.service"]);
        ensure!(!known.unwrap_or_default().contains("enabled"), "the unit is left");
        Ok(())
    })
    .await
}

/// Another version of the package, with another daemon and the same pods.
async fn changed(machine: &Machine, package: &Path, pods: &Pods) -> Result<()> {
    let before = machine.main_pid()?;
    machine.install(package).await?;
    ensure!(machine.main_pid()? != before, "the daemon was not restarted");
    pods.are_unharmed().await?;
    pods.one_more().await
}

async fn install(machine: &Machine, package: &Path) -> Result<()> {
    machine.install(package).await?;
    for (property, wanted) in [
        ("Type", "notify"),
        ("UnitFileState", "enabled"),
        ("KillMode", "process"),
        ("Delegate", "yes"),
        ("OOMPolicy", "continue"),
        ("OOMScoreAdjust", "-999"),
        ("WatchdogUSec", "1min"),
        ("NRestarts", "0"),
    ] {
        let found = machine.property(property)?;
        ensure!(found == wanted, "{property} is {found} instead of {wanted}");
    }
    command("systemd-analyze", &["verify", "--man=no", "copepod.service"])?;
    let pid = machine.main_pid()?;
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    ensure!(score.trim() == "-999", "oom_score_adj of the daemon is {score}");
    for (path, wanted) in [
        ("/run/copepod", 0o711),
        ("/run/copepod/copepod.sock", 0o660),
        ("/var/lib/copepod", 0o700),
        ("/etc/copepod/config.toml", 0o644),
        ("/usr/libexec/copepod/pause", 0o755),
        ("/usr/share/bash-completion/completions/copepod", 0o644),
    ] {
        let found = mode(path)?;
        ensure!(found == wanted, "{path} has mode {found:o} instead of {wanted:o}");
    }
    // Small machines tell dpkg not to unpack documents (path-exclude), so the package's list is read.
    let files = command("dpkg", &["--listfiles", "copepod"])?;
    for file in [
        "man/man8/copepod.8.gz",
        "man/man8/copepod-config.8.gz",
        "doc/copepod/copyright",
        "doc/copepod/licences.txt.gz",
    ] {
        ensure!(
            files.lines().any(|it| it == format!("/usr/share/{file}")),
            "{file} is not in the package: {files}"
        );
    }
    command("copepod", &["config", "check"])?;
    let status = machine.property("StatusText")?;
    ensure!(status.contains("/run/copepod/copepod.sock"), "the status is {status:?}");
    machine.answers(secs(5)).await
}
