//! Rate and cost of the streaming server: exec and port-forward of many bytes.
//!
//! Each is measured with client-go, which is what kubectl streams with, and with a client that does no work for a byte
//! ([`spdy::Client`]): client-go spends more on a byte than a runtime may. The cost is the CPU time of the runtime's own
//! processes: the daemon, and those whose arguments name the pod or the container (copepod-shim, containerd-shim, conmon).
//! Programs that live for milliseconds (runc) are not counted, nor are the client and the workload.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::time::timeout;
use tonic::Code;

use super::table::{Measure, Table, Unit};
use super::{Endpoint, spdy, turn};
use crate::clientgo;
use crate::context::Pod;
use crate::echo;
use crate::expect::ensure;
use crate::proc;
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::streaming::{self, Streams};
use cri_api::v1::{self as api, MountPropagation};

/// Rounds: odd, for the median.
const ROUNDS: usize = 5;
/// Bytes of one transfer.
const BYTES: u64 = 1 << 30;
/// Port of the server in the pod.
const PORT: u16 = 7000;
/// How long a server in the pod may take to listen.
const LISTEN: Duration = Duration::from_secs(10);

/// What is transferred, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// `cat` of a file.
    Exec,
    /// A port sends.
    Download,
    /// A port receives, and answers when it has everything.
    Upload,
}

/// A row of rates and one of costs.
struct Rows {
    load: Load,
    /// client-go's transport; `None` is our own client.
    transport: Option<&'static str>,
    rate: Measure,
    cpu: Measure,
}

impl Rows {
    fn new(load: Load, transport: Option<&'static str>, rate: &'static str, cpu: &'static str) -> Self {
        let (rate, cpu) =
            (Measure::new(rate, 0.0, Unit::MibPerSecond), Measure::new(cpu, 0.0, Unit::Seconds));
        Self { load, transport, rate, cpu }
    }
}

/// A pod on which an endpoint is measured. The server in it ends with this.
struct Target<'e> {
    endpoint: &'e Endpoint,
    pod: Pod,
    container: String,
    daemon: u32,
    _server: Child,
}

/// Measures all loads.
pub(super) async fn measure(all: &[Endpoint], table: &mut Table) -> Result<()> {
    // On a tmpfs, and without content: a read costs the workload as little as possible.
    let file = Path::new("/run/bench-bytes");
    fs::create_dir_all(file)?;
    fs::File::create(file.join("zeros"))?.set_len(BYTES)?;
    let mut rows = [
        Rows::new(Load::Exec, None, "exec cat 1 GiB, SPDY", "its CPU"),
        Rows::new(Load::Exec, Some("spdy"), "exec cat 1 GiB, client-go, SPDY", "its CPU"),
        Rows::new(Load::Exec, Some("websocket"), "exec cat 1 GiB, client-go, WebSocket", "its CPU"),
        Rows::new(Load::Download, None, "port-forward 1 GiB down, SPDY", "its CPU"),
        Rows::new(Load::Download, Some("spdy"), "port-forward 1 GiB down, client-go, SPDY", "its CPU"),
        Rows::new(Load::Upload, None, "port-forward 1 GiB up, SPDY", "its CPU"),
        Rows::new(Load::Upload, Some("spdy"), "port-forward 1 GiB up, client-go, SPDY", "its CPU"),
    ];
    let mut targets = Vec::new();
    for endpoint in all {
        if let Some(message) = unbuilt(endpoint).await {
            table.note(format!("{} has no streams: {message}", endpoint.name));
            continue;
        }
        let target = Target::new(endpoint, file).await;
        targets.push(target.with_context(|| format!("{}: pod for streams", endpoint.name))?);
    }
    for round in 0..ROUNDS {
        for Rows { load, transport, rate, cpu } in &mut rows {
            for target in turn(&targets, round) {
                let name = &target.endpoint.name;
                let (mib, seconds) = target
                    .transfer(*load, *transport)
                    .await
                    .with_context(|| format!("{name}: {load:?} by {}", transport.unwrap_or("our client")))?;
                rate.add(name, mib);
                cpu.add(name, seconds);
            }
        }
    }
    for Target { endpoint, pod, .. } in targets {
        endpoint.ctx.cri.drop_pod(&pod.id).await?;
    }
    for Rows { rate, cpu, .. } in rows {
        table.push(rate);
        table.push(cpu);
    }
    Ok(fs::remove_dir_all(file)?)
}

/// What an endpoint says that has no streaming server, such as an older build.
async fn unbuilt(endpoint: &Endpoint) -> Option<String> {
    let request = api::ExecRequest { cmd: vec![String::from("true")], stdout: true, ..Default::default() };
    let refused = endpoint.ctx.cri.runtime.clone().exec(request).await.err()?;
    (refused.code() == Code::Unimplemented).then(|| refused.message().to_owned())
}

impl<'e> Target<'e> {
    async fn new(endpoint: &'e Endpoint, file: &Path) -> Result<Self> {
        let ctx = &endpoint.ctx;
        let pod = ctx.pod_of(ctx.pod_config().own_network()).await?;
        let sleeper = ctx.sleeper("main").mount(file, "/in", true, MountPropagation::PropagationPrivate);
        let container = ctx.start(&pod, &sleeper).await?;
        let address = format!("127.0.0.1:{PORT}");
        let mut server =
            echo::start(ctx.pid(&container).await?, &["tcp-bulk", &address, &BYTES.to_string()])?;
        let said = server.stdout.as_mut().context("no standard output")?;
        let mut line = String::new();
        let listens = timeout(LISTEN, BufReader::new(said).read_line(&mut line)).await;
        listens.context("the server in the pod does not listen")??;
        let daemon = UnixStream::connect(&ctx.node.paths.socket).await?.peer_cred()?.pid();
        let daemon = daemon.context("the daemon's pid")?.try_into()?;
        Ok(Self { endpoint, pod, container, daemon, _server: server })
    }

    /// CPU seconds of the runtime's processes for this pod until now.
    fn cpu(&self) -> Result<f64> {
        let named = |text: &str| proc::with_args(text).into_iter().map(|process| process.pid);
        let mut pids: Vec<u32> = named(&self.pod.id).chain(named(&self.container)).collect();
        if !self.endpoint.ctx.node.is_foreign() {
            pids.push(self.endpoint.ctx.node.shim(&self.pod.id)?.pid);
        }
        pids.push(self.daemon);
        pids.sort_unstable();
        pids.dedup();
        pids.retain(|pid| *pid != std::process::id());
        // One that has ended since is not counted.
        Ok(pids.into_iter().filter_map(|pid| proc::cpu_seconds(pid).ok()).sum())
    }

    /// MiB per second of one transfer, and the CPU seconds of the runtime.
    async fn transfer(&self, load: Load, transport: Option<&'static str>) -> Result<(f64, f64)> {
        let ctx = &self.endpoint.ctx;
        let output = Streams { stdin: false, stdout: true, stderr: false, tty: false };
        let url = match load {
            Load::Exec => {
                streaming::exec_with(&ctx.cri, &self.container, &["/bin/cat", "/in/zeros"], output).await?
            }
            Load::Download | Load::Upload => streaming::forward(&ctx.cri, &self.pod.id, PORT).await?,
        };
        let before = self.cpu()?;
        let seconds = match (transport, load) {
            (None, _) => tokio::task::spawn_blocking(move || ours(load, &url)).await??,
            (Some(transport), Load::Exec) => {
                // containerd does not know version 5, which is client-go's choice for WebSocket.
                let options = ["--stdout", "--protocol", "v4.channel.k8s.io"];
                clientgo::bulk(&ctx.fixture.bin, "remote", &url, transport, &options, BYTES).await?
            }
            (Some(transport), load) => {
                let port = PORT.to_string();
                let up = BYTES.to_string();
                let (first, send, receive) = match load {
                    Load::Upload => ("u", up.as_str(), 1),
                    _ => ("d", "0", BYTES),
                };
                let options = ["--port", port.as_str(), "--first", first, "--send", send];
                clientgo::bulk(&ctx.fixture.bin, "connect", &url, transport, &options, receive).await?
            }
        };
        let cpu = self.cpu()? - before;
        #[expect(clippy::cast_precision_loss, reason = "MiB need no more digits")]
        let mib = (BYTES >> 20) as f64;
        Ok((mib / seconds, cpu))
    }
}

/// One transfer by our client, in seconds.
fn ours(load: Load, url: &str) -> Result<f64> {
    if load == Load::Exec {
        let mut client = spdy::Client::exec(url)?;
        client.accepted()?;
        let began = Instant::now();
        client.receive(BYTES)?;
        return Ok(began.elapsed().as_secs_f64());
    }
    let mut client = spdy::Client::forward(url, PORT)?;
    client.accepted()?;
    let began = Instant::now();
    if load == Load::Upload {
        client.say(b"u")?;
        client.send(BYTES)?;
        client.receive(1)?;
    } else {
        client.say(b"d")?;
        client.receive(BYTES)?;
    }
    let took = began.elapsed().as_secs_f64();
    ensure!(took > 0.0, "a transfer in no time");
    Ok(took)
}
