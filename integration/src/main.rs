//! Black-box tests of copepod: they start the built binaries, call CRI, and check the results from outside.
//! `integration test` runs the tests, `node-test` runs the real kubelet on copepod, `kubectl-test` kubectl in a cluster of
//! one such node, `cluster-test` a whole control plane with two of them, `conformance` runs critest, `demo` is `make run`,
//! `bench` measures, and `layout` traces the daemon for the linker; `vm` runs any of them in a Debian guest. All but `vm`,
//! `package-test` and `guide-test`, which install packages on the machine itself, run in private namespaces
//! ([`isolation`]), so that neither a failed test nor an interrupted run leaves a process, mount, interface or firewall
//! rule behind.

mod bench;
mod census;
mod cgroup;
mod clientgo;
mod cluster_test;
mod cni;
mod compare;
mod config;
mod conformance;
mod context;
mod coverage;
mod cri;
mod demo;
mod disk;
mod driver;
mod echo;
mod expect;
mod fixture;
mod fuse;
mod gate;
mod guide_test;
mod http;
mod images;
mod isolation;
mod kubectl_test;
mod layout;
mod logfile;
mod machine;
mod made;
mod metrics;
mod node;
mod node_test;
mod package_test;
mod proc;
mod record;
mod registry;
mod repeat;
mod runner;
mod shapes;
mod stall;
mod streaming;
mod tests;
mod vm;
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

/// The subcommand.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the tests through CRI, each followed by the census.
    Test {
        /// Directory with copepod, copepod-shim, pause, grpcio and clientgo (`make build grpcio clientgo`).
        #[arg(long)]
        bin_dir: PathBuf,
        /// Run only tests whose name contains this, or one of several words with commas between them.
        #[arg(long)]
        filter: Option<String>,
        /// Print the names and stop.
        #[arg(long)]
        list: bool,
        /// Run against another runtime's socket, to validate the tests. Tests that need copepod's processes
        /// are skipped.
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
        /// Run only checks whose name contains this, or those of one round: `default`, or `gates` for that with kubelet's
        /// feature gates for CRI. The round `crowd`, a hundred pods for minutes, runs only so.
        #[arg(long)]
        filter: Option<String>,
        /// Run kubelet on another runtime's socket, to validate the checks.
        #[arg(long)]
        endpoint: Option<PathBuf>,
        /// With --endpoint: the `certs.d` folder of that runtime.
        #[arg(long, requires = "endpoint")]
        certs: Option<PathBuf>,
    },
    /// Run kubectl through a control plane and the real kubelet on copepod.
    KubectlTest {
        /// Directory with copepod, copepod-shim and pause.
        #[arg(long)]
        bin_dir: PathBuf,
        /// The kubelet binary (`make kubelet`).
        #[arg(long)]
        kubelet: PathBuf,
        /// Directory with etcd, kube-apiserver, metrics-server and kubectl (`make cluster`).
        #[arg(long)]
        cluster: PathBuf,
        /// Run only checks whose name contains this, and the first ones, which start the pods.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Run the controllers and the scheduler of Kubernetes with two nodes of copepod.
    ClusterTest {
        /// Directory with copepod, copepod-shim and pause.
        #[arg(long)]
        bin_dir: PathBuf,
        /// The kubelet binary (`make kubelet`).
        #[arg(long)]
        kubelet: PathBuf,
        /// Directory with the control plane's programs and kubectl (`make cluster`).
        #[arg(long)]
        cluster: PathBuf,
        /// Run only checks whose name contains this.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Measure, and print one table.
    Bench {
        /// Directory with copepod, copepod-shim and pause.
        #[arg(long)]
        bin_dir: PathBuf,
        /// Another runtime to measure, as name=socket or name=socket,certs.d: the folder in which its registries are
        /// configured.
        #[arg(long)]
        endpoint: Vec<String>,
        /// Another build of copepod to measure, as name=directory of its three programs.
        #[arg(long)]
        beside: Vec<String>,
        /// A program of containerd, which is started to measure pulls beside it.
        #[arg(long)]
        containerd: Option<PathBuf>,
        /// Measure only groups whose name contains this: pods, execs, logs, streams, memory, pulls.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Run critest on copepod and compare every spec with conformance/expected.txt.
    Conformance {
        /// Directory with copepod, copepod-shim and pause.
        #[arg(long)]
        bin_dir: PathBuf,
        /// The critest binary of a cri-tools release.
        #[arg(long)]
        critest: PathBuf,
        /// Seed of critest's order of specs; another one for every run if absent.
        #[arg(long)]
        seed: Option<u32>,
        /// Run only specs whose name contains this word.
        #[arg(long, default_value = "")]
        focus: String,
        /// Folder for critest's outputs and reports.
        #[arg(long)]
        reports: PathBuf,
    },
    /// Run a command in a Debian guest, or a shell.
    Vm(vm::Options),
    /// Trace the daemon and write the linker script that places what it executes together.
    Layout(layout::Arguments),
    /// Show one pod from image to removal.
    Demo {
        /// Directory with copepod, copepod-shim and pause.
        #[arg(long)]
        bin_dir: PathBuf,
    },
    /// Install, upgrade and purge the Debian package on this machine, which should be a virtual one.
    PackageTest {
        /// The package (`make deb`).
        #[arg(long)]
        old: PathBuf,
        /// Another one with a higher version (`make deb DEB_VERSION=9-1`).
        #[arg(long)]
        new: PathBuf,
    },
    /// Execute docs/kubernetes.md on this machine, which should be a virtual one, and reboot it. Run it again after that.
    GuideTest {
        /// The page.
        #[arg(long)]
        page: PathBuf,
        /// The package of copepod (`make deb`).
        #[arg(long)]
        package: PathBuf,
        /// The kubelet binary (`make kubelet`).
        #[arg(long)]
        kubelet: PathBuf,
    },
    /// Internal: sends every UDP datagram that it receives on a port back.
    #[command(hide = true)]
    UdpEcho {
        /// The port.
        port: u16,
    },
    /// Internal: serves TCP connections of an address.
    #[command(hide = true)]
    TcpEcho {
        /// Where to listen.
        address: std::net::SocketAddr,
        /// Greet and end this direction first, and then print how many bytes came.
        #[arg(long)]
        first: bool,
    },
    /// Internal: sends or receives many bytes on TCP connections of an address.
    #[command(hide = true)]
    TcpBulk {
        /// Where to listen.
        address: std::net::SocketAddr,
        /// How many bytes.
        bytes: u64,
    },
    /// Internal: runs a program and records which of its functions are executed.
    #[command(hide = true)]
    Trace(layout::trace::Arguments),
    /// Internal: PID 1 of the tests' PID namespace.
    #[command(hide = true)]
    Init {
        /// The arguments for this program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("integration: {e:#}");
            ExitCode::from(2)
        }
    }
}

/// The exit code: 1 if tests failed. An error means that they could not be run.
fn run() -> Result<u8> {
    let command = Cli::parse().command;
    if let Command::Vm(options) = &command {
        return vm::run(options);
    }
    run_tests(command).map(|passed| u8::from(!passed))
}

/// `Ok(false)` means that tests failed.
#[expect(clippy::too_many_lines, reason = "every command is named once")]
fn run_tests(command: Command) -> Result<bool> {
    if let Command::Init { args } = &command {
        return isolation::init(args);
    }
    if let Command::UdpEcho { port } = command {
        return echo::udp(port);
    }
    if let Command::TcpEcho { address, first } = command {
        return echo::tcp(address, first);
    }
    if let Command::TcpBulk { address, bytes } = command {
        return echo::bulk(address, bytes);
    }
    if let Command::Trace(arguments) = &command {
        return layout::trace::run(arguments);
    }
    if let Command::Test { list: true, filter, .. } = &command {
        runner::list(tests::all(), filter.as_deref());
        return Ok(true);
    }
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().enable_all().build().context("tokio runtime");
    if let Command::PackageTest { old, new } = &command {
        return runtime()?.block_on(package_test::run(&package_test::Packages { old, new }));
    }
    if let Command::GuideTest { page, package, kubelet } = &command {
        return runtime()?.block_on(guide_test::run(&guide_test::Inputs { page, package, kubelet }));
    }
    if !isolation::inside() {
        return isolation::enter();
    }
    let tokio = runtime()?;
    let outcome = tokio.block_on(async {
        match command {
            Command::Test { bin_dir, filter, endpoint, certs, .. } => {
                let peer = endpoint.map(|socket| node::Peer { socket, certs });
                runner::run(tests::all(), &bin_dir, filter.as_deref(), peer).await
            }
            Command::NodeTest { bin_dir, kubelet, filter, endpoint, certs } => {
                let peer = endpoint.map(|socket| node::Peer { socket, certs });
                node_test::run(&bin_dir, &kubelet, filter.as_deref(), peer).await
            }
            Command::KubectlTest { bin_dir, kubelet, cluster, filter } => {
                kubectl_test::run(&bin_dir, &kubelet, &cluster, filter.as_deref()).await
            }
            Command::ClusterTest { bin_dir, kubelet, cluster, filter } => {
                cluster_test::run(&bin_dir, &kubelet, &cluster, filter.as_deref()).await
            }
            Command::Bench { bin_dir, endpoint, beside, containerd, filter } => {
                let containerd = containerd.as_deref();
                let others = bench::Others { beside: &beside, endpoints: &endpoint, containerd };
                bench::run(&bin_dir, &others, filter.as_deref()).await
            }
            Command::Conformance { bin_dir, critest, seed, focus, reports } => {
                let request =
                    conformance::Request { critest: &critest, seed, focus: &focus, reports: &reports };
                conformance::run(&bin_dir, &request).await
            }
            Command::Layout(arguments) => layout::run(&arguments).await,
            Command::Demo { bin_dir } => demo::run(&bin_dir).await,
            Command::PackageTest { .. }
            | Command::GuideTest { .. }
            | Command::Init { .. }
            | Command::Trace(_)
            | Command::Vm(_)
            | Command::UdpEcho { .. }
            | Command::TcpEcho { .. }
            | Command::TcpBulk { .. } => Ok(true),
        }
    });
    // A failed test may leave a thread in a blocking call; it must not keep the run from ending.
    tokio.shutdown_timeout(wait::secs(10));
    outcome
}
