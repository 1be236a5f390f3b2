//! Black-box tests of copepod: starts the built binaries, speaks CRI to them and judges from outside.
//! `integration test` runs everything, `node-test` puts the real kubelet on top, `demo` is what `make run`
//! shows, `bench` measures. All of it happens in namespaces of its own ([`isolation`]), so that neither a
//! failed test nor an interrupted run can leave a process, a mount, an interface or a firewall rule behind.

mod bench;
mod census;
mod cgroup;
mod cni;
mod compare;
mod config;
mod context;
mod cri;
mod demo;
mod disk;
mod fixture;
mod fuse;
mod hang;
mod http;
mod images;
mod isolation;
mod logfile;
mod node;
mod node_test;
mod proc;
mod registry;
mod runner;
mod shapes;
mod stall;
mod tests;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

/// Black-box tests, demonstration and bench of copepod.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the tests through CRI, each followed by the census.
    Test {
        /// Directory with copepod, copepod-shim and pause.
        #[arg(long)]
        bin_dir: PathBuf,
        /// Run only tests whose name contains this.
        #[arg(long)]
        filter: Option<String>,
        /// Print the names and stop.
        #[arg(long)]
        list: bool,
        /// Judge another runtime's socket: checks the tests themselves. Tests of our own processes are left out.
        #[arg(long)]
        endpoint: Option<PathBuf>,
        /// With --endpoint: the `certs.d` folder of that runtime.
        #[arg(long, requires = "endpoint")]
        certs: Option<PathBuf>,
    },
    /// Run the real kubelet on copepod.
    NodeTest {
        /// Directory with copepod, copepod-shim and pause.
        #[arg(long)]
        bin_dir: PathBuf,
        /// The kubelet binary (`make kubelet`).
        #[arg(long)]
        kubelet: PathBuf,
        /// Run only checks whose name contains this.
        #[arg(long)]
        filter: Option<String>,
        /// Put kubelet on another runtime's socket: checks the checks themselves.
        #[arg(long)]
        endpoint: Option<PathBuf>,
        /// With --endpoint: the `certs.d` folder of that runtime.
        #[arg(long, requires = "endpoint")]
        certs: Option<PathBuf>,
    },
    /// Measure, and print one table.
    Bench {
        /// Directory with copepod, copepod-shim and pause.
        #[arg(long)]
        bin_dir: PathBuf,
        /// A peer to measure beside copepod, as name=socket.
        #[arg(long)]
        endpoint: Vec<String>,
        /// Another build of copepod beside it, as name=directory of its three programs.
        #[arg(long)]
        beside: Vec<String>,
    },
    /// Show one pod from image to removal.
    Demo {
        /// Directory with copepod, copepod-shim and pause.
        #[arg(long)]
        bin_dir: PathBuf,
    },
    /// Internal: answers datagrams on a port with their own content.
    #[command(hide = true)]
    UdpEcho {
        /// The port.
        port: u16,
    },
    /// Internal: PID 1 of the test's own PID namespace.
    #[command(hide = true)]
    Init {
        /// The arguments to run this program with.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("integration: {e:#}");
            ExitCode::from(2)
        }
    }
}

/// `Ok(false)` means that tests failed, an error that they could not be run.
fn run() -> Result<bool> {
    let command = Cli::parse().command;
    if let Command::Init { args } = &command {
        return isolation::init(args);
    }
    if let Command::UdpEcho { port } = command {
        return echo(port);
    }
    if let Command::Test { list: true, filter, .. } = &command {
        runner::list(tests::all(), filter.as_deref());
        return Ok(true);
    }
    if !isolation::inside() {
        return isolation::enter();
    }
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("tokio runtime")?;
    tokio.block_on(async {
        match command {
            Command::Test { bin_dir, filter, endpoint, certs, .. } => {
                let peer = endpoint.map(|socket| node::Peer { socket, certs });
                runner::run(tests::all(), &bin_dir, filter.as_deref(), peer).await
            }
            Command::NodeTest { bin_dir, kubelet, filter, endpoint, certs } => {
                let peer = endpoint.map(|socket| node::Peer { socket, certs });
                node_test::run(&bin_dir, &kubelet, filter.as_deref(), peer).await
            }
            Command::Bench { bin_dir, endpoint, beside } => bench::run(&bin_dir, &beside, &endpoint).await,
            Command::Demo { bin_dir } => demo::run(&bin_dir).await,
            Command::Init { .. } | Command::UdpEcho { .. } => Ok(true),
        }
    })
}

/// Runs in a pod's network namespace, started by nsenter.
fn echo(port: u16) -> Result<bool> {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", port))?;
    let mut buffer = [0_u8; 2048];
    loop {
        let (n, peer) = socket.recv_from(&mut buffer)?;
        socket.send_to(buffer.get(..n).unwrap_or_default(), peer)?;
    }
}
