//! The pods that run during all steps. Each writes numbered lines, so that a lost line or a new process is noticed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use serde_json::json;

use crate::cni::Network;
use crate::config;
use crate::cri::Cri;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::images::catalog;
use crate::logfile::Log;
use crate::proc;
use crate::registry::Registry;
use crate::shapes::{self, ContainerExt as _, PodExt as _};
use crate::wait::{self, secs};

use super::machine::Machine;

/// Where the pods' logs are.
const LOGS: &str = "/var/log/pods";
/// The program of a container.
const COUNTS: &str = "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.1; done";

/// A pod with one container.
#[derive(Debug)]
struct Pod {
    id: String,
    container: String,
    /// Its init.
    pid: u32,
    address: String,
    log: PathBuf,
    /// The cgroups of its init, as /proc shows them.
    cgroups: String,
}

/// The pods, and what they need.
#[derive(Debug)]
pub(super) struct Pods {
    cri: Cri,
    running: Vec<Pod>,
    /// Number of pods that must be listed.
    listed: usize,
    registry: Registry,
    work: tempfile::TempDir,
}

impl Pods {
    /// Starts a registry with one image, configures the pod network, and starts a pod of each kind.
    pub(super) async fn start(machine: &Machine) -> Result<Self> {
        let work = tempfile::Builder::new().prefix("copepod-package-test-").tempdir_in("/var/lib")?;
        let registry = Registry::start(work.path()).await?;
        let layers = tokio::task::spawn_blocking(catalog::layers).await??;
        let images = catalog::all(&layers)?;
        let entry = images.iter().find(|it| it.name == "busybox" && it.tag == "1").context("no busybox")?;
        registry.push(entry.name, entry.tag, &entry.image).await?;
        let mut this = Self { cri: machine.cri.clone(), running: Vec::new(), listed: 0, registry, work };
        this.configure().await?;
        for own_network in [false, true] {
            let pod = this.pod("kept", own_network).await?;
            this.running.push(pod);
        }
        this.listed = this.running.len();
        this.are_unharmed().await?;
        Ok(this)
    }

    /// Mirrors of the registry and the pod network; a purge deletes the first.
    async fn configure(&self) -> Result<()> {
        config::hosts(Path::new("/etc/copepod/certs.d"), &self.registry, "127.0.0.1")?;
        let network = Network { conf_dir: "/etc/cni/net.d".into(), ..Network::new(self.work.path(), 7)? };
        std::fs::create_dir_all(&network.conf_dir)?;
        let plugins = json!([{
            "type": "bridge", "bridge": network.bridge, "isGateway": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": format!("{}.0/24", network.prefix)}]]},
        }]);
        network.conflist("10-test.conflist", &plugins)?;
        wait::until("the pod network", secs(60), || async {
            Ok(self.cri.condition("NetworkReady").await?.status.then_some(()))
        })
        .await
    }

    /// A pod with a container that writes numbered lines.
    async fn pod(&self, name: &str, own_network: bool) -> Result<Pod> {
        let mut config = shapes::pod(name, Path::new(LOGS));
        // The daemon's own parent: the node decides whether slices or folders are below it.
        config.linux.get_or_insert_default().cgroup_parent.clear();
        if own_network {
            config = config.own_network();
        }
        let image = Fixture::image("busybox");
        if self.cri.image(&image).await?.is_none() {
            self.cri.pull(&image).await?;
        }
        let id = self.cri.run_pod(&config).await?;
        let made = shapes::container(name, &image, &["/bin/sh", "-c", COUNTS]).like(&config);
        let container = self.cri.create(&id, &made, &config).await?;
        self.cri.start(&container).await?;
        let pid = pid(&self.cri, &container).await?;
        let address = address(&self.cri, &id).await?;
        ensure!(address.is_empty() != own_network, "the address is {address:?}");
        let log = self.cri.container(&container).await?.log_path.into();
        let cgroups = cgroups(pid)?;
        Ok(Pod { id, container, pid, address, log, cgroups })
    }

    /// The daemon knows the pods and their processes, which are the ones of the start, and can work with them.
    pub(super) async fn are_unharmed(&self) -> Result<()> {
        let listed = self.cri.pods(None).await?;
        ensure!(listed.len() == self.listed, "{} pods are listed instead of {}", listed.len(), self.listed);
        for Pod { id, container, pid: init, address: ip, .. } in &self.running {
            let found = pid(&self.cri, container).await?;
            ensure!(found == *init && proc::alive(*init), "init of {container} is {found} instead of {init}");
            let found = address(&self.cri, id).await?;
            ensure!(found == *ip, "the address of {id} is {found} instead of {ip}");
            let said = self.cri.sh(container, "echo in").await?;
            ensure!(said == "in", "an exec in {container} printed {said:?}");
            let state = self.cri.container(container).await?.state();
            ensure!(state == api::ContainerState::ContainerRunning, "{container} is {state:?}");
        }
        self.write_all_lines().await
    }

    /// Processes run, with their limits, and write their logs although there is no daemon.
    pub(super) async fn run_without_daemon(&self) -> Result<()> {
        ensure!(self.cri.version().await.is_err(), "a daemon answers");
        for pod in &self.running {
            ensure!(proc::alive(pod.pid), "init of {} has ended", pod.container);
        }
        self.write_all_lines().await?;
        for pod in &self.running {
            let found = cgroups(pod.pid)?;
            ensure!(found == pod.cgroups, "the cgroups were\n{}and are\n{found}", pod.cgroups);
        }
        Ok(())
    }

    /// Each log has the lines 1 to n, without a gap, and grows.
    async fn write_all_lines(&self) -> Result<()> {
        for Pod { log: path, .. } in &self.running {
            let lines = || -> Result<usize> {
                let text = Log::read(path)?.text(None);
                let mut count = 0;
                for line in text.lines() {
                    count += 1;
                    ensure!(
                        line == format!("line {count}"),
                        "line {count} of {} is {line:?}",
                        path.display()
                    );
                }
                Ok(count)
            };
            let before = lines()?;
            wait::until("another line", secs(30), || async { Ok((lines()? > before).then_some(())) }).await?;
        }
        Ok(())
    }

    /// A pod that is started and removed.
    pub(super) async fn one_more(&self) -> Result<()> {
        let pod = self.pod("more", true).await?;
        self.cri.stop(&pod.container, 0).await?;
        Ok(self.cri.drop_pod(&pod.id).await?)
    }

    /// Removes all pods; nothing of them may be left.
    pub(super) async fn remove_all(&mut self) -> Result<()> {
        for pod in std::mem::take(&mut self.running) {
            self.cri.drop_pod(&pod.id).await?;
            ensure!(!proc::alive(pod.pid), "init of {} runs", pod.container);
        }
        ensure!(self.cri.pods(None).await?.is_empty(), "pods are listed");
        self.listed = 0;
        let pins = std::fs::read_dir("/run/netns").map_or(0, Iterator::count);
        ensure!(pins == 0, "{pins} network namespaces are pinned");
        ensure!(shims() == 0, "{} shims run", shims());
        std::fs::remove_file("/etc/cni/net.d/10-test.conflist")?;
        Ok(())
    }

    /// Starts, uses and removes one container after another in a pod of its own until `stop`. Calls may fail while the
    /// daemon is restarted; what they have made must be gone once the pod is removed. Returns the number of calls that
    /// succeeded.
    pub(super) async fn load(&self, name: &str, stop: &AtomicBool) -> Result<usize> {
        let (mut config, image) = (shapes::pod(name, Path::new(LOGS)), Fixture::image("busybox"));
        config.linux.get_or_insert_default().cgroup_parent.clear();
        let mut calls = 0;
        let id = self.retried("RunPodSandbox", || self.cri.run_pod(&config)).await?;
        while !stop.load(Ordering::Relaxed) {
            let made =
                shapes::container(&format!("{name}{calls}"), &image, &["/bin/sleep", "1000"]).like(&config);
            // Names and requests are the same when a call is repeated, so nothing is made twice.
            let container = self.retried("CreateContainer", || self.cri.create(&id, &made, &config)).await?;
            calls += 1;
            // A start whose reply was lost is FailedPrecondition when it is repeated.
            drop(self.cri.start(&container).await);
            calls += usize::from(self.cri.sh(&container, "true").await.is_ok());
            self.retried("RemoveContainer", || self.cri.remove(&container)).await?;
            calls += 1;
        }
        self.retried("removal of the pod", || self.cri.drop_pod(&id)).await?;
        Ok(calls)
    }

    /// Repeats a call until it succeeds.
    async fn retried<T, F: Future<Output = Result<T, tonic::Status>>>(
        &self,
        what: &str,
        call: impl Fn() -> F,
    ) -> Result<T> {
        wait::until(what, super::machine::LIMIT, || async { Ok(Some(call().await?)) }).await
    }
}

/// The cgroups of a process.
fn cgroups(pid: u32) -> Result<String> {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).context("the cgroups of init")
}

/// Number of shims on the machine.
fn shims() -> usize {
    proc::all().iter().filter(|it| it.comm == "copepod-shim").count()
}

/// The pid of a container's init.
async fn pid(cri: &Cri, container: &str) -> Result<u32> {
    let info = cri.container_response(container).await?.info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("no verbose info")?)?;
    Ok(u32::try_from(info.get("pid").and_then(serde_json::Value::as_u64).context("no pid")?)?)
}

/// The pod's address; empty with the host's network.
async fn address(cri: &Cri, pod: &str) -> Result<String> {
    let status = cri.pod_status(pod).await?.status.context("no status")?;
    Ok(status.network.map(|it| it.ip).unwrap_or_default())
}
