//! Pressure, which the kernel measures for cgroups of v2.

use anyhow::{Context as _, Result};
use cri_api::v1 as api;

use super::stats;
use crate::cgroup;
use crate::context::Context;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::shapes::ContainerExt as _;
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![test!(pressure_is_that_of_the_cgroups).ours()]
}

/// The averages and the total of both lines of the files of CPU, memory and I/O.
type Lines = Vec<([f64; 3], u64)>;

fn kernel(place: &str) -> Result<Lines> {
    let mut found = Vec::new();
    for file in ["cpu.pressure", "memory.pressure", "io.pressure"] {
        for line in ["some", "full"] {
            found.push(cgroup::pressure(file, line, place)?);
        }
    }
    Ok(found)
}

/// The same of a reply; `None` if it has none of them.
fn told(
    cpu: Option<&api::CpuUsage>,
    memory: Option<&api::MemoryUsage>,
    io: Option<&api::IoUsage>,
) -> Result<Option<Lines>> {
    let psi = [
        cpu.context("no cpu")?.psi.as_ref(),
        memory.context("no memory")?.psi.as_ref(),
        io.and_then(|io| io.psi.as_ref()),
    ];
    ensure!(io.is_none_or(|io| io.timestamp > 0 && io.psi.is_some()), "io is {io:?}");
    if psi.iter().all(Option::is_none) {
        return Ok(None);
    }
    let mut found = Vec::new();
    for psi in psi {
        let psi = psi.context("only some of the resources have pressure")?;
        for line in [&psi.some, &psi.full] {
            let line = line.as_ref().context("a line is missing")?;
            found.push(([line.avg10, line.avg60, line.avg300], line.total));
        }
    }
    Ok(Some(found))
}

/// Whether a reply is what the kernel said before or after it: totals are between, averages are one of both.
fn is_between(told: &Lines, before: &Lines, after: &Lines) -> Result<()> {
    for ((told, before), after) in told.iter().zip(before).zip(after) {
        ensure!(
            (before.1 * 1000..=after.1 * 1000).contains(&told.1),
            "a total of {} ns is not between {} and {} µs",
            told.1,
            before.1,
            after.1
        );
        // The kernel computes the averages every two seconds: there may be one more between.
        ensure!(before.0 != after.0 || told.0 == before.0, "averages are {told:?}, not {before:?}");
    }
    Ok(())
}

async fn pressure_is_that_of_the_cgroups(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let place = pod.config.linux.as_ref().context("no linux")?.cgroup_parent.clone();
    // A loop that gets a tenth of a core waits for the rest of it.
    let busy = cx.shell("busy", "while :; do :; done").with(|c| {
        c.resources().cpu_period = 100_000;
        c.resources().cpu_quota = 10_000;
    });
    let id = cx.start(&pod, &busy).await?;
    let leaf = cgroup::place(&id).context("no cgroup of the container")?;
    let measured = cgroup::has_pressure("/");
    wait::until("a total of waiting for a CPU", secs(30), || async {
        let before = measured.then(|| anyhow::Ok((kernel(&place)?, kernel(&leaf)?))).transpose()?;
        let linux = stats(&cx, &pod.id).await?.linux.context("no `linux`")?;
        let after = measured.then(|| anyhow::Ok((kernel(&place)?, kernel(&leaf)?))).transpose()?;
        let of_pod = told(linux.cpu.as_ref(), linux.memory.as_ref(), linux.io.as_ref())?;
        let listed = linux.containers.first().context("the container is not listed")?;
        let of_container = told(listed.cpu.as_ref(), listed.memory.as_ref(), listed.io.as_ref())?;
        let ((Some(before), Some(after)), (Some(of_pod), Some(of_container))) =
            ((before, after), (&of_pod, &of_container))
        else {
            let has = (of_pod.is_some(), of_container.is_some());
            ensure!(has == (measured, measured), "measured: {measured}; pod and container have it: {has:?}");
            return Ok(Some(()));
        };
        is_between(of_pod, &before.0, &after.0).context("the pod")?;
        is_between(of_container, &before.1, &after.1).context("the container")?;
        let waited = of_container.first().map_or(0, |(_, total)| *total);
        Ok((waited > 100_000_000).then_some(()))
    })
    .await?;
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}
