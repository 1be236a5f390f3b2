//! Memory of shims and pauses, and leaks after two hundred pods.

use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::census::Census;
use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::PodExt as _;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(twenty_pods_stay_small).own().limit(180),
        test!(two_hundred_pods_leave_nothing).own().limit(240),
    ]
}

/// Memory limit of one shim and its pause together, in KiB (0.3 MiB).
const LIMIT: u64 = 307;

/// Prints the PSS of the daemon and of each pod's shim with its pause, and checks the latter.
async fn measure(cx: &Context, pods: &[(Pod, String)], when: &str) -> Result<()> {
    let (mut sum, mut worst) = (0, 0);
    for (pod, _) in pods {
        let (shim, pause) = (cx.node.shim(&pod.id)?, cx.node.pause(&pod.id)?);
        let both = proc::pss_kib(shim.pid)? + proc::pss_kib(pause.pid)?;
        sum += both;
        worst = worst.max(both);
    }
    let mean = sum / pods.len() as u64;
    println!(
        "      shim and pause, {when}: {mean} KiB each, at most {worst} KiB; daemon {} KiB",
        proc::pss_kib(cx.node.pid()?)?
    );
    ensure!(worst <= LIMIT, "{when}: a shim and its pause have {worst} KiB, the limit is {LIMIT}");
    Ok(())
}

async fn twenty_pods_stay_small(cx: Context) -> Result<()> {
    let mut pods = Vec::new();
    for _ in 0..20 {
        let pod = cx.pod().await?;
        let id = cx.start(&pod, &cx.sleeper("one")).await?;
        pods.push((pod, id));
    }
    for (pod, _) in &pods {
        let shim = cx.node.shim(&pod.id)?;
        let opened = std::fs::OpenOptions::new().write(true).open(format!("/proc/{}/exe", shim.pid));
        ensure!(opened.is_err(), "the binary of shim {} can be opened for writing", shim.pid);
    }
    measure(&cx, &pods, "fresh").await?;
    let work: Vec<_> = pods
        .iter()
        .map(|(_, id)| {
            let (cri, id) = (cx.cri.clone(), id.clone());
            tokio::spawn(async move {
                for _ in 0..100 {
                    let out = cri.exec(&id, &["/bin/true"]).await?;
                    ensure!(out.code == 0, "`true` gave {out:?}");
                }
                Ok(())
            })
        })
        .collect();
    for one in work {
        one.await??;
    }
    measure(&cx, &pods, "after 100 execs in each").await
}

async fn two_hundred_pods_leave_nothing(cx: Context) -> Result<()> {
    cx.need(&Fixture::image("busybox")).await?;
    // The first pod creates permanent objects: the bridge, firewall chains, caches.
    let warm = cx.pod_of(cx.pod_config().own_network()).await?;
    cx.start(&warm, &cx.sleeper("one")).await?;
    cx.cri.drop_pod(&warm.id).await?;
    let before = Census::take(Some(&cx.node));
    let daemon = cx.node.pid()?;
    let (fds, memory) = (proc::fds(daemon)?, proc::pss_kib(daemon)?);
    let start = Instant::now();
    let work: Vec<_> = (0..8)
        .map(|worker| {
            let cx = cx.clone();
            tokio::spawn(async move {
                for n in 0..25 {
                    let config = cx.pod_config();
                    let config = if n % 2 == 0 { config.own_network() } else { config };
                    let pod = cx.pod_of(config).await?;
                    let id = cx.start(&pod, &cx.sleeper("one")).await?;
                    let out = cx.cri.exec(&id, &["/bin/true"]).await?;
                    ensure!(out.code == 0, "worker {worker}, pod {n}: {out:?}");
                    if n % 3 == 0 {
                        cx.cri.stop(&id, 0).await?;
                        cx.cri.remove(&id).await?;
                    }
                    cx.cri.drop_pod(&pod.id).await?;
                }
                Ok(())
            })
        })
        .collect();
    for one in work {
        one.await??;
    }
    println!("      200 pods in {:.1} s", start.elapsed().as_secs_f32());
    before.settle(Some(&cx.node)).await.context("after 200 pods")?;
    crate::wait::until("the daemon's descriptors to be closed", crate::wait::secs(10), || async {
        let now = proc::fds(daemon)?;
        ensure!(now <= fds + 4, "{fds} descriptors before, {now} after");
        Ok(Some(()))
    })
    .await?;
    let now = proc::pss_kib(daemon)?;
    ensure!(now <= memory + 8192, "the daemon grew from {memory} to {now} KiB over 200 pods");
    Ok(())
}
