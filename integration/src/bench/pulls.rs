//! First pulls: of a large image, and of one whose layers are tiny. Each runtime has a file system of its own, made for
//! this, on which nothing is deleted: ext4 looks long for inodes that were not deleted lately.
//!
//! The first pull of a round costs more: a virtual machine may have given free memory back to its host, and getting it again
//! takes half of a pull's CPU time. So before each pull memory is taken and freed ([`touch`]), everything was read from the
//! registry once and written to the disk, and each endpoint is in each place of the order equally often.

use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{Context as _, Result};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::table::{Measure, Table, Unit};
use super::{Endpoint, turn};
use crate::disk::Disk;
use crate::expect::ensure;
use crate::images::large::Numbered;
use crate::node::Node;
use crate::proc;

/// Least number of rounds with the large image, and with the tiny layers.
const LARGE: usize = 3;
const TINY: usize = 10;
/// Memory that a pull of the large image uses, in MiB, nearly all of it for the pages of files; the other's is small.
const LARGE_MIB: usize = 1200;
const TINY_MIB: usize = 32;
/// Maximum number of endpoints. The file systems have room for one round per endpoint.
const MAX_ENDPOINTS: usize = 6;
/// Size of a new file system in MiB, and its inodes, for all images together.
pub(super) const DISK: (u64, u32) = (MAX_ENDPOINTS as u64 * 1200 + 2048, 300_000);

/// Measures pulls on the endpoints.
pub(super) async fn measure(all: &[&Endpoint], table: &mut Table) -> Result<()> {
    ensure!(all.len() <= MAX_ENDPOINTS, "pulls can be measured on at most {MAX_ENDPOINTS} endpoints");
    let mut disks = Vec::new();
    for e in all.iter().filter(|e| !e.ctx.node.is_foreign()) {
        disks.push(Fresh::mount(&e.ctx.node).await?);
    }
    let measured = rounds(all, table).await;
    for disk in disks {
        disk.unmount().await?;
    }
    measured
}

async fn rounds(all: &[&Endpoint], table: &mut Table) -> Result<()> {
    let large = tokio::task::spawn_blocking(Numbered::large).await??;
    let mut wall = Measure::new("first pull, 5 layers, 904 MiB", 0.0, Unit::Ms);
    let mut cpu = Measure::new("same, CPU", 0.0, Unit::Seconds);
    let mut peak = Measure::new("same, peak memory", 48.0, Unit::Mib);
    let mut durable = Measure::new("same, with a sync(2) after it", 0.0, Unit::Ms);
    let mut machine = Measure::new("same, CPU of the whole machine", 0.0, Unit::Seconds);
    for round in 0..LARGE.next_multiple_of(all.len()) {
        for (e, pulled) in pulls(all, ("bench/large", LARGE_MIB), &large, round).await? {
            wall.add(&e.name, pulled.ms);
            durable.add(&e.name, pulled.durable_ms);
            machine.add(&e.name, pulled.machine);
            if let Some((seconds, mib)) = pulled.cost {
                cpu.add(&e.name, seconds);
                peak.add(&e.name, mib);
            }
        }
    }
    drop(large);
    let tiny = Numbered::tiny()?;
    let mut small = Measure::new("first pull, 12 tiny layers", 0.0, Unit::Ms);
    for round in 0..TINY.next_multiple_of(all.len()) {
        for (e, pulled) in pulls(all, ("bench/tiny", TINY_MIB), &tiny, round).await? {
            small.add(&e.name, pulled.ms);
        }
    }
    for measure in [wall, cpu, peak, durable, machine, small] {
        table.push(measure);
    }
    Ok(())
}

/// One pull.
struct Pulled {
    ms: f64,
    /// With what was written reaching the disk: not every runtime does that itself.
    durable_ms: f64,
    /// CPU seconds of all processes and of the kernel until then, the registry's among them.
    machine: f64,
    /// CPU seconds, and the peak of the resident set in MiB; `None` if the process cannot be found.
    cost: Option<(f64, f64)>,
}

/// Takes so many MiB of memory, or half of what is available, and frees them: the next one who needs memory gets them.
fn touch(mib: usize) -> Result<()> {
    let mib = mib.min(super::memory::available_mib()? / 2);
    drop(std::hint::black_box(vec![1_u8; mib << 20]));
    Ok(())
}

/// One round: each endpoint pulls the same new image, which needs so many MiB of memory.
async fn pulls<'a>(
    all: &[&'a Endpoint],
    (name, mib): (&str, usize),
    images: &Numbered,
    round: usize,
) -> Result<Vec<(&'a Endpoint, Pulled)>> {
    let image = images.image(round as u64)?;
    let tag = (round + 1).to_string();
    let mut pulled = Vec::new();
    for (at, e) in turn(all, round).enumerate() {
        if at == 0 {
            let registry = &e.ctx.fixture.registry;
            registry.push(name, &tag, &image).await?;
            registry.read(name, &image).await?;
        }
        // What others have written does not count.
        tokio::task::spawn_blocking(move || {
            nix::unistd::sync();
            touch(mib)
        })
        .await??;
        let reference = format!("registry.test/{name}:{tag}");
        pulled.push((*e, pull(e, &reference).await.with_context(|| format!("{}: {reference}", e.name))?));
    }
    Ok(pulled)
}

async fn pull(e: &Endpoint, reference: &str) -> Result<Pulled> {
    let pid = pid(&e.ctx.node)?;
    let before = pid.map(proc::cpu_seconds_with_children).transpose()?;
    pid.map(proc::forget_peak).transpose()?;
    let machine = proc::machine_cpu_seconds()?;
    let began = Instant::now();
    e.ctx.cri.pull(reference).await?;
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    let cost = match (pid, before) {
        (Some(pid), Some(before)) => {
            let peak = super::memory::mib(proc::peak_kib(pid)?);
            Some((proc::cpu_seconds_with_children(pid)? - before, peak))
        }
        _ => None,
    };
    tokio::task::spawn_blocking(nix::unistd::sync).await?;
    let durable_ms = began.elapsed().as_secs_f64() * 1000.0;
    Ok(Pulled { ms, durable_ms, machine: proc::machine_cpu_seconds()? - machine, cost })
}

/// The process that listens on a node's socket; `None` if it is in another PID namespace.
fn pid(node: &Node) -> Result<Option<u32>> {
    if !node.is_foreign() {
        return node.pid().map(Some);
    }
    let socket = &node.paths.socket;
    let socket = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    Ok(u32::try_from(getsockopt(&socket, PeerCredentials)?.pid()).ok().filter(|pid| *pid != 0))
}

/// A node whose root is a new ext4 for a while.
struct Fresh<'a> {
    node: &'a Node,
    disk: Disk,
}

impl<'a> Fresh<'a> {
    async fn mount(node: &'a Node) -> Result<Self> {
        node.terminate().await?;
        let disk = Disk::mount(&node.paths.root, DISK.0, DISK.1)?;
        node.launch().await?;
        Ok(Self { node, disk })
    }

    async fn unmount(self) -> Result<()> {
        self.node.terminate().await?;
        drop(self.disk);
        self.node.launch().await
    }
}
