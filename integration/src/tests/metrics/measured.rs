//! What the kernel measures on some hosts only: pressure and block I/O.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use super::{limited, pod_leaf};
use crate::cgroup;
use crate::context::Context;
use crate::expect::ensure;
use crate::metrics::{self, Samples};
use crate::runner::{Test, test};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![test!(pressure_of_pod_and_container).ours(), test!(io_of_the_container).ours()]
}

async fn pressure_of_pod_and_container(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &limited(&cx, "while :; do :; done")).await?;
    let places =
        [cgroup::place(&id).context("no cgroup")?, cgroup::place(&pod_leaf(&pod)?).context("no pod")?];
    if !cgroup::has_pressure("/") {
        let samples = Samples::of_cri(&cx.cri).await?;
        let found = samples.0.iter().find(|it| it.name.starts_with("container_pressure"));
        ensure!(found.is_none(), "this host measures no pressure, but there is {found:?}");
        return Ok(());
    }
    wait::until("a second of waiting for a CPU", secs(60), || async {
        let kernel = || -> Result<Vec<u64>> {
            let all = metrics::PRESSURE.iter().flat_map(|it| places.iter().map(move |place| (it, place)));
            all.map(|((_, file, line), place)| Ok(cgroup::pressure(file, line, place)?.1 / 1_000_000))
                .collect()
        };
        let (before, samples, after) = (kernel()?, Samples::of_cri(&cx.cri).await?, kernel()?);
        let names = metrics::PRESSURE.iter().flat_map(|it| [&id, &pod.id].map(|name| (it.0, name)));
        for (((metric, name), before), after) in names.zip(&before).zip(&after) {
            let value = samples.one(metric, &[("name", name)])?;
            let range = *before as f64..=*after as f64;
            ensure!(
                range.contains(&value),
                "{metric} of {name} is {value}, the kernel said {before} and {after}"
            );
        }
        Ok(samples.one(metrics::PRESSURE[0].0, &[("name", &id)]).ok().filter(|seconds| *seconds >= 1.0))
    })
    .await?;
    Ok(())
}

/// The kernel counts it always on v2, and on v1 with some I/O schedulers or limits.
async fn io_of_the_container(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line = "dd if=/dev/zero of=/file bs=1M count=4 2>/dev/null; echo quiet; exec sleep 1000";
    let id = cx.start(&pod, &cx.shell("writer", line)).await?;
    cx.said(&id, "quiet").await?;
    // Its root file system is a volatile overlay, in which fsync(2) does nothing.
    nix::unistd::sync();
    // A disk, and not a file system in memory.
    let disk = nix::sys::stat::major(nix::sys::stat::stat(&cx.node.paths.root)?.st_dev) != 0;
    let expected = if cgroup::is_v2() && disk { 4 << 20 } else { 0 };
    wait::until("bytes of I/O that are what the kernel says", secs(20), || async {
        let before = metrics::io(&id)?;
        let samples = Samples::of_cri(&cx.cri).await?;
        if before != metrics::io(&id)? {
            return Ok(None);
        }
        let of_container = samples.all("container_blkio_device_usage_total", &[("name", &id)]);
        let labels = ["major", "minor", "operation"];
        let found: Result<BTreeMap<[String; 3], u64>> = of_container
            .iter()
            .map(|sample| {
                let label = |key| sample.labels.get(key).cloned().with_context(|| format!("no {key}"));
                let [major, minor, operation] = labels;
                // CRI's values are whole numbers.
                let value = sample.value.to_string().parse()?;
                Ok(([label(major)?, label(minor)?, label(operation)?], value))
            })
            .collect();
        ensure!(found? == before, "I/O is {of_container:?}, the kernel says {before:?}");
        for ([major, minor, operation], bytes) in &before {
            let name = match operation.as_str() {
                "Read" => "container_fs_reads_bytes_total",
                "Write" => "container_fs_writes_bytes_total",
                _ => continue,
            };
            let device = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"))?;
            let device = format!("/dev/{}", device.file_name().context("no name")?.display());
            let value = samples.one(name, &[("name", &id), ("device", &device)])?;
            ensure!(value == *bytes as f64, "{name} of {device} is {value}, not {bytes}");
        }
        let written: u64 = before.iter().filter(|(key, _)| key[2] == "Write").map(|(_, bytes)| bytes).sum();
        ensure!(written >= expected, "{written} bytes were written, at least {expected} were expected");
        Ok(Some(()))
    })
    .await?;
    Ok(())
}
