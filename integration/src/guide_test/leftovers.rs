//! What pods need on a machine, counted beside the pods that run.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use cri_api::v1::PodSandboxState;

use super::{LIMIT, Running};
use crate::cri::Cri;
use crate::expect::ensure;
use crate::isolation::command;
use crate::{proc, wait};

/// host-local's leases of the page's network.
const LEASES: &str = "/var/lib/cni/networks/pods";

/// Names of the entries of a folder; none if it does not exist.
fn names(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The leased addresses.
fn leases() -> BTreeSet<String> {
    names(LEASES).into_iter().filter(|name| name.parse::<IpAddr>().is_ok()).collect()
}

/// copepod's scopes that systemd has.
fn scopes() -> Result<usize> {
    let list = ["list-units", "--all", "--no-legend", "--plain", "--type=scope", "copepod-*"];
    Ok(command("systemctl", &list)?.lines().count())
}

/// Mounts with a text in their line.
fn mounts(text: &str) -> Result<usize> {
    Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().filter(|line| line.contains(text)).count())
}

/// kubelet's slices of pods.
fn slices() -> usize {
    crate::cgroup::all(|path| path.ends_with(".slice") && path.contains("-pod")).len()
}

fn shims() -> usize {
    proc::all().iter().filter(|it| it.comm.starts_with("copepod-shim")).count()
}

/// Addresses, namespaces, scopes, slices and shims are those of the running pods, and no pod that runs is unknown to kubelet.
pub(super) async fn only_of(cri: &Cri, running: &[Running]) -> Result<()> {
    let connected: BTreeSet<String> =
        running.iter().filter(|it| !it.on_host).map(|it| it.address.clone()).collect();
    wait::until("things of ended pods to be gone", LIMIT, || async {
        let leased = leases();
        ensure!(leased == connected, "{leased:?} are leased, and {connected:?} used");
        let pins = names("/run/netns");
        ensure!(pins.len() == connected.len(), "pinned are {pins:?}");
        for (what, found) in [("scopes", scopes()?), ("slices", slices()), ("shims", shims())] {
            ensure!(found == running.len(), "{} pods have {found} {what}", running.len());
        }
        // A pod has one writable layer for its container.
        let layers = mounts(" - overlay ")?;
        ensure!(layers == 0 || layers == running.len(), "{layers} overlays are mounted on the host");
        let ready = cri.pods(None).await?;
        let ready = ready.iter().filter(|it| it.state() == PodSandboxState::SandboxReady).count();
        ensure!(ready == running.len(), "{ready} pods are ready");
        Ok(Some(()))
    })
    .await
}

/// Once kubelet has stopped all pods and they are removed, nothing of them is left.
pub(super) async fn nothing(cri: &Cri) -> Result<()> {
    only_of(cri, &[]).await?;
    // kubelet keeps the last dead container of each pod for a while.
    for pod in cri.pods(None).await? {
        cri.drop_pod(&pod.id).await?;
    }
    wait::until("files of pods to be gone", LIMIT, || async {
        for folder in [
            "/var/lib/copepod/pods",
            "/var/lib/copepod/containers",
            "/var/lib/copepod/network",
            "/run/copepod/shims",
        ] {
            let left = names(folder);
            ensure!(left.is_empty(), "{folder} has {left:?}");
        }
        let left = mounts("/var/lib/copepod/")? + mounts("/run/copepod/")?;
        ensure!(left == 0, "{left} mounts are left");
        Ok(Some(()))
    })
    .await?;
    ensure!(Path::new("/run/copepod/copepod.sock").exists(), "the daemon has no socket");
    Ok(())
}
