//! A hundred pods, of which some come and go, while systemd reads its units again and copepod is killed: what stays is not
//! touched, and of what went nothing is left. It takes ten minutes in an emulated guest, so it is a round of its own that
//! runs only if it is named: `make test-vm-node FILTER=crowd`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::json;

use super::manifests::{pod, shell, with};
use super::view::{self, Identity};
use super::{Check, Rig, check};
use crate::cgroup::{self, Driver, Limit, driver};
use crate::expect::ensure;
use crate::isolation::command;
use crate::wait::{self, secs};

/// The check.
pub(super) fn all() -> Vec<Check> {
    vec![check!(pods_churn_while_copepod_is_killed).within(LIMIT)]
}

/// Time limit of the check: more than all that it waits for.
const LIMIT: Duration = secs(900);

/// Pods that stay.
const STAYING: usize = 60;
/// Pods that come or go together.
const BATCH: usize = 10;
/// How many batches are there at any time; with the pods that stay they are a hundred pods.
const BATCHES: usize = 4;
/// For how long batches are replaced. In a guest with the usual slowness of 8 it is ten minutes.
const CHURN: Duration = secs(75);
/// After how long the next batch is replaced if the last one is not ready yet: copepod may be killed so often that a slow
/// machine starts few pods between two kills, and what is half made must be able to go too.
const PACE: Duration = secs(10);
/// How often systemd reads its units again.
const RELOAD: Duration = secs(5);
/// How often copepod is killed.
const KILL: Duration = secs(20);
/// What every container may have.
const MEMORY: u64 = 24 << 20;
const QUOTA: u64 = 20_000;

/// The image of [`shell`].
const IMAGE: &str = "registry.test/busybox:1";

fn staying() -> Vec<String> {
    (0..STAYING).map(|number| format!("stays-{number}")).collect()
}

fn batch(number: usize) -> Vec<String> {
    (0..BATCH).map(|of_batch| format!("goes-{number}-{of_batch}")).collect()
}

fn apply(rig: &Rig, names: &[String]) -> Result<()> {
    let resources = json!({"resources": {
        "requests": {"cpu": "10m", "memory": "8Mi"}, "limits": {"cpu": "200m", "memory": "24Mi"},
    }});
    // The shell that waits for its sleep wakes up for nothing, so that a hundred of them leave the processors to the rest.
    let quiet = shell("main", "trap 'exit 0' TERM; sleep 100000 & wait");
    names.iter().try_for_each(|name| rig.kubelet.apply(&pod(name, json!([with(quiet.clone(), &resources)]))))
}

/// Waits until these pods are ready, and none of those is there any more. kubelet's list of all is long, so it is read seldom.
async fn settled(rig: &Rig, ready: &[String], gone: &[String]) -> Result<()> {
    wait::until("pods to come and go", secs(90), || async {
        tokio::time::sleep(secs(1)).await;
        let all: BTreeMap<String, view::View> = view::all(rig).await?.into_iter().collect();
        let find = |name: &String| all.get(&format!("{name}-node1"));
        for name in ready {
            let seen = find(name).with_context(|| format!("kubelet has no {name}"))?;
            ensure!(seen.phase() == "Running" && seen.is("Ready"), "{name} is {}", seen.status());
        }
        let left: Vec<&String> = gone.iter().filter(|name| find(name).is_some()).collect();
        ensure!(left.is_empty(), "kubelet still has {left:?}");
        Ok(Some(()))
    })
    .await
}

/// The containers of the pods that stay.
async fn identities(rig: &Rig) -> Result<Vec<(String, Vec<Identity>)>> {
    let mut all = view::identities(rig).await?;
    all.retain(|(name, _)| name.starts_with("stays-"));
    Ok(all)
}

/// Has kubelet look after each pod as seldom as it does by default. Without it, a hundred pods every two seconds would take
/// the processors from what is tested.
async fn calm(rig: &Rig) -> Result<()> {
    rig.kubelet.kill(Signal::SIGTERM)?;
    rig.kubelet.reconfigure(&json!({"syncFrequency": "1m"}))?;
    rig.kubelet.launch().await
}

async fn pods_churn_while_copepod_is_killed(rig: &Rig) -> Result<()> {
    rig.node.network.install()?;
    calm(rig).await?;
    // kubelet would ask for it a hundred times.
    rig.node.cri.pull(IMAGE).await?;
    let begun = Instant::now();
    let all: Vec<String> = staying().into_iter().chain((0..BATCHES).flat_map(batch)).collect();
    // All at once would take longer on an emulated machine than the shim of a pod may take to reply.
    for some in all.chunks(2 * BATCH) {
        apply(rig, some)?;
        settled(rig, some, &[]).await?;
    }
    println!("      {} pods are ready after {:.0} s", all.len(), begun.elapsed().as_secs_f32());
    let before = identities(rig).await?;
    ensure!(before.len() == STAYING, "kubelet lists {} pods that stay", before.len());
    let over = AtomicBool::new(false);
    let ended = |work: Result<usize>| {
        over.store(true, Ordering::Relaxed);
        work
    };
    let (batches, kills, reloads) = tokio::join!(
        async { ended(replace(rig, &over).await) },
        async { ended(kill(rig, &over).await) },
        async { ended(reload(&over).await) },
    );
    let (batches, kills, reloads) = (batches?, kills?, reloads?);
    println!("      {} pods went, {kills} kills of copepod, {reloads} reloads of systemd", batches * BATCH);
    ensure!(batches > 0 && kills > 2, "{batches} batches in {kills} kills are no test");
    let gone: Vec<String> = (0..batches).flat_map(batch).collect();
    let there: Vec<String> =
        staying().into_iter().chain((batches..batches + BATCHES).flat_map(batch)).collect();
    settled(rig, &there, &gone).await?;
    let after = identities(rig).await?;
    ensure!(after == before, "containers changed from\n{before:?}\nto\n{after:?}");
    for (name, containers) in after {
        for (_, id, _) in containers {
            let id = id.split("://").nth(1).context("an id without a scheme")?;
            let found = [cgroup::limit(Limit::Memory, id)?, cgroup::limit(Limit::CpuQuota, id)?];
            ensure!(found == [Some(MEMORY), Some(QUOTA)], "{name} has the limits {found:?}");
        }
    }
    rig.kubelet.remove_all(rig).await?;
    no_scope_is_left().await
}

/// Replaces the oldest batch by a new one until the time is over; returns how many it replaced.
async fn replace(rig: &Rig, over: &AtomicBool) -> Result<usize> {
    let end = Instant::now() + wait::longer(CHURN);
    let mut replaced = 0;
    while Instant::now() < end && !over.load(Ordering::Relaxed) {
        let (old, new) = (batch(replaced), batch(replaced + BATCHES));
        old.iter().try_for_each(|name| rig.kubelet.delete(name))?;
        apply(rig, &new)?;
        // What is not settled in time is settled after the churn.
        if let Ok(done) = wait::timeout(PACE, settled(rig, &new, &old)).await {
            done?;
        }
        replaced += 1;
    }
    Ok(replaced)
}

/// Kills copepod again and again; returns how often. It runs at the end.
async fn kill(rig: &Rig, over: &AtomicBool) -> Result<usize> {
    let mut kills = 0;
    while pause(KILL, over).await {
        rig.node.crash().await?;
        kills += 1;
    }
    Ok(kills)
}

/// Has systemd read its units again and again; returns how often. Without it there is nothing to do.
async fn reload(over: &AtomicBool) -> Result<usize> {
    let mut reloads = 0;
    while pause(RELOAD, over).await {
        if driver() == Driver::Systemd {
            let done = tokio::process::Command::new("systemctl").arg("daemon-reload").output().await;
            let done = done.context("run systemctl")?;
            ensure!(done.status.success(), "daemon-reload: {}", String::from_utf8_lossy(&done.stderr));
            reloads += 1;
        }
    }
    Ok(reloads)
}

/// Sleeps for this long; false if it was over before that.
async fn pause(long: Duration, over: &AtomicBool) -> bool {
    let end = Instant::now() + long;
    while Instant::now() < end && !over.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    !over.load(Ordering::Relaxed)
}

/// The cgroups are the census's affair; systemd must have forgotten the units too.
async fn no_scope_is_left() -> Result<()> {
    if driver() != Driver::Systemd {
        return Ok(());
    }
    wait::until("systemd to forget the scopes", secs(20), || async {
        let list = ["list-units", "--all", "--plain", "--no-legend", "copepod-*.scope"];
        let left = command("systemctl", &list)?;
        ensure!(left.trim().is_empty(), "it has\n{left}");
        Ok(Some(()))
    })
    .await
}
