//! A Debian guest in qemu, because the cgroups, systemd and security modules of a node cannot be those of the machine
//! that builds. `integration/vm` makes its disk; this runs one command in it, or gives a shell.
//!
//! The guest starts from the same disk in every run: qemu drops what it writes. What it needs for one run is on a second
//! disk ([`payload`]), from which a service of the guest (`integration/vm/guest/run`) starts the command. Its output and
//! its exit code come back through two ports of virtio-serial, apart from the console ([`qemu`]). A guest that is silent,
//! that takes too long or that ends without an exit code has failed, and its console is shown ([`watch`]).

mod payload;
mod qemu;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

/// The arguments of `integration vm`.
#[derive(Debug, Args)]
#[group(id = "vm")]
pub(crate) struct Options {
    /// Folder with the guest's disk, vmlinuz and initrd (`make vm-image`).
    #[arg(long)]
    image: PathBuf,
    /// A file or folder for the guest, where it is below /payload; symlinks are copied as symlinks.
    #[arg(long)]
    files: Vec<PathBuf>,
    /// A Debian package that is installed before the command runs.
    #[arg(long)]
    deb: Option<PathBuf>,
    /// What bash runs in the guest, as root and in /payload. Its exit code is that of this program.
    #[arg(long, required_unless_present = "shell")]
    run: Option<String>,
    /// A variable for the command, as NAME=VALUE.
    #[arg(long)]
    env: Vec<String>,
    /// A shell on the guest's console instead. `poweroff` ends it, and so does Ctrl-A X.
    #[arg(long)]
    shell: bool,
    /// Parameters for the guest's kernel.
    #[arg(long, default_value = "")]
    kernel: String,
    /// Time limit of the run in seconds.
    #[arg(long, default_value_t = 3600)]
    limit: u64,
    /// For how many seconds the guest may write nothing.
    #[arg(long, default_value_t = 240)]
    silence: u64,
    /// Memory of the guest in MiB.
    #[arg(long, default_value_t = 4096)]
    memory: u32,
}

/// Runs the guest and returns the exit code of the command; 0 after a shell.
pub(crate) fn run(options: &Options) -> Result<u8> {
    let work = tempfile::tempdir().context("a folder for the run")?;
    let machine = qemu::Machine {
        image: &options.image,
        payload: work.path().join("payload"),
        kernel: &options.kernel,
        memory: options.memory,
        folder: work.path(),
    };
    payload::make(&machine.payload, options)?;
    if options.shell {
        let status = machine.with_shell().status().context("run qemu-system-x86_64")?;
        return Ok(u8::from(!status.success()));
    }
    let limits = watch::Limits {
        whole: Duration::from_secs(options.limit),
        silence: Duration::from_secs(options.silence),
    };
    watch::run(machine.with_ports(), &machine.ports(), limits)
}
