//! Memory, and what grows with the number of pods. Only copepod's processes can be measured and restarted, so of other
//! runtimes there is only the time of ListContainerStats.

use std::fs;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tonic::Code;

use super::table::{Measure, Table, Unit};
use super::{Endpoint, PODS, turn};
use crate::context::Pod;
use crate::cri::Answer;
use crate::expect::ensure;
use crate::proc;

/// Kernel memory that grows with processes and namespaces, in KiB: slab, stacks, page tables and per-CPU memory.
fn kernel_kib() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo").context("meminfo")?;
    Ok(["Slab:", "KernelStack:", "PageTables:", "Percpu:"]
        .iter()
        .filter_map(|n| field::<f64>(&text, n))
        .sum())
}

/// What programs can get without swapping, in MiB.
pub(super) fn available_mib() -> Result<usize> {
    let text = fs::read_to_string("/proc/meminfo").context("meminfo")?;
    Ok(field::<usize>(&text, "MemAvailable:").context("meminfo has no MemAvailable")? / 1024)
}

/// A number of meminfo, in KiB.
fn field<T: FromStr>(text: &str, name: &str) -> Option<T> {
    text.lines().find_map(|l| l.strip_prefix(name))?.trim().trim_end_matches(" kB").trim().parse().ok()
}

/// MiB.
pub(super) fn mib(kib: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 KiB")]
    let kib = kib as f64;
    kib / 1024.0
}

/// Rounds. The kernel frees memory late, and how much differs by more than the builds do, so each endpoint is first in
/// turn.
const ROUNDS: usize = 4;
/// Time after which the daemon has returned freed memory to the kernel (one second after large operations).
const CALM: Duration = Duration::from_secs(2);

/// Measures memory without and with pods, the stats of all pods, and a restart of the daemon.
#[expect(clippy::too_many_lines, reason = "one measurement in its order")]
pub(super) async fn measure(all: &[Endpoint], table: &mut Table) -> Result<()> {
    let mut idle = Measure::new("daemon PSS, idle", 8.0, Unit::Mib);
    let mut full = Measure::new("daemon PSS, 20 pods", 10.0, Unit::Mib);
    // The first pod, and the first requests for statistics, map the code that all need.
    let mut grown = Measure::new("daemon PSS, growth by 20 pods after the first", 2.0, Unit::Mib);
    let mut own = Measure::new("PSS per pod, shim and pause", 0.3, Unit::Mib);
    let mut kernel = Measure::new("kernel memory per pod (meminfo)", 0.0, Unit::Mib);
    let mut stats = Measure::new("ListContainerStats, 20 pods", 4.0, Unit::Ms);
    let mut pod_stats = Measure::new("ListPodSandboxStats, 20 pods", 0.0, Unit::Ms);
    let mut restart = Measure::new("daemon restart to List complete, 20 pods", 0.0, Unit::Ms);
    // In every memory cgroup the kernel has tables that grow with the largest number of file systems so far. This
    // round makes them grow, so that they do not count for the endpoint that is measured first.
    for e in all {
        down(e, up(e).await?).await?;
    }
    for e in (0..ROUNDS).flat_map(|round| turn(all, round)) {
        let ours = !e.ctx.node.is_foreign();
        let before = if ours {
            e.ctx.node.restart().await?;
            tokio::time::sleep(CALM).await;
            let without_pods = proc::pss_kib(e.ctx.node.pid()?)?;
            let first = one(e).await?;
            // An older build does not have both, which `calls` notes.
            drop((e.ctx.cri.list_stats(None).await, e.ctx.cri.list_pod_stats(None).await));
            down(e, vec![first]).await?;
            tokio::time::sleep(CALM).await;
            Some((without_pods, proc::pss_kib(e.ctx.node.pid()?)?, kernel_kib()?))
        } else {
            None
        };
        let pods = up(e).await?;
        let cri = &e.ctx.cri;
        calls(e, "ListContainerStats", || cri.list_stats(None), &mut stats, table).await?;
        calls(e, "ListPodSandboxStats", || cri.list_pod_stats(None), &mut pod_stats, table).await?;
        if let Some((without_pods, after_first, slab)) = before {
            tokio::time::sleep(CALM).await;
            let mut total = 0;
            for pod in &pods {
                total += proc::pss_kib(e.ctx.node.shim(&pod.id)?.pid)?
                    + proc::pss_kib(e.ctx.node.pause(&pod.id)?.pid)?;
            }
            #[expect(clippy::cast_precision_loss, reason = "20 pods")]
            let count = PODS as f64;
            idle.add(&e.name, mib(without_pods));
            let now = mib(proc::pss_kib(e.ctx.node.pid()?)?);
            full.add(&e.name, now);
            grown.add(&e.name, now - mib(after_first));
            own.add(&e.name, mib(total) / count);
            kernel.add(&e.name, (kernel_kib()? - slab) / 1024.0 / count);
            for _ in 0..5 {
                e.ctx.node.kill9()?;
                let began = Instant::now();
                e.ctx.node.launch().await?;
                let listed = e.ctx.cri.pods(None).await?.len();
                ensure!(listed == PODS, "{listed} of {PODS} pods after the restart");
                restart.add(&e.name, began.elapsed().as_secs_f64() * 1000.0);
            }
        }
        down(e, pods).await?;
    }
    for m in [stats, pod_stats, idle, full, grown, own, kernel, restart] {
        table.push(m);
    }
    Ok(())
}

/// Measures a call. An endpoint that does not have it, such as an older build, gets a note instead of a figure.
async fn calls<T>(
    e: &Endpoint,
    name: &str,
    call: impl AsyncFn() -> Answer<T>,
    measure: &mut Measure,
    table: &mut Table,
) -> Result<()> {
    for _ in 0..15 {
        let began = Instant::now();
        match call().await {
            Ok(_) => measure.add(&e.name, began.elapsed().as_secs_f64() * 1000.0),
            Err(status) if status.code() == Code::Unimplemented => {
                table.note(format!("{} has no {name}: {}", e.name, status.message()));
                return Ok(());
            }
            Err(status) => return Err(status).with_context(|| format!("{}: {name}", e.name)),
        }
    }
    Ok(())
}

/// Starts a pod with a container.
async fn one(e: &Endpoint) -> Result<Pod> {
    let pod = e.ctx.pod().await?;
    e.ctx.start(&pod, &e.ctx.sleeper("main")).await?;
    Ok(pod)
}

/// Starts the pods that are measured.
async fn up(e: &Endpoint) -> Result<Vec<Pod>> {
    let mut pods = Vec::with_capacity(PODS);
    for _ in 0..PODS {
        pods.push(one(e).await?);
    }
    Ok(pods)
}

async fn down(e: &Endpoint, pods: Vec<Pod>) -> Result<()> {
    for pod in pods {
        e.ctx.cri.drop_pod(&pod.id).await?;
    }
    Ok(())
}
