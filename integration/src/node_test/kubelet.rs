//! A standalone kubelet: its configuration, process and manifests, and the clean-up after it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};

use super::{Rig, kubepods};
use crate::expect::ensure;
use crate::http::Http;
use crate::isolation::command;
use crate::machine::Machine;
use crate::node::Node;
use crate::registry::free_port;
use crate::{proc, wait};

/// A kubelet.
#[derive(Debug)]
pub(crate) struct Kubelet {
    binary: PathBuf,
    dir: PathBuf,
    /// The folder of manifests.
    pub(crate) manifests: PathBuf,
    /// The folder of pods' logs.
    pub(crate) logs: PathBuf,
    machine: Arc<Machine>,
    /// The address at which it listens.
    address: &'static str,
    read_only: u16,
    secure: u16,
    http: Http,
    child: Mutex<Option<Child>>,
    /// The kubeconfig, if it is in a cluster.
    cluster: Option<PathBuf>,
    /// The folders of [`COVERED`] that did not exist on the host.
    made: Vec<&'static str>,
}

/// Folders of the host that kubelet writes to regardless of its configuration: certificates, the device
/// plugins' socket, and links to container logs. A tmpfs is mounted over each, so that nothing is left and
/// kubelet finds nothing of an earlier run.
const COVERED: [&str; 2] = ["/var/lib/kubelet", "/var/log/containers"];

/// Kernel settings that kubelet changes, with the host's values; they belong to no namespace.
static SETTINGS: LazyLock<Vec<(&str, String)>> = LazyLock::new(|| {
    CHANGED.iter().filter_map(|file| Some((*file, fs::read_to_string(file).ok()?))).collect()
});

const CHANGED: [&str; 6] = [
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/keys/root_maxbytes",
];

impl Kubelet {
    /// Writes the configuration and starts kubelet, without a cluster or, by a kubeconfig, in one; returns when it lists pods.
    /// `gates` are feature gates to turn on.
    pub(crate) async fn start(
        binary: &Path,
        node: &Node,
        gates: &[&str],
        cluster: Option<&Path>,
    ) -> Result<Self> {
        let binary = fs::canonicalize(binary)
            .with_context(|| format!("{} (build it with `make kubelet`)", binary.display()))?;
        let dir = node.paths.dir.join("kubelet");
        let made = COVERED.into_iter().filter(|place| !Path::new(place).exists()).collect();
        for place in COVERED {
            fs::create_dir_all(place)?;
        }
        LazyLock::force(&SETTINGS);
        let machine = Arc::clone(&node.machine);
        let this = Self {
            binary,
            manifests: dir.join("manifests"),
            logs: dir.join("pod-logs"),
            address: if cluster.is_some() { machine.address } else { "127.0.0.1" },
            machine,
            read_only: free_port()?,
            secure: free_port()?,
            http: Http::new(),
            child: Mutex::new(None),
            cluster: cluster.map(Path::to_owned),
            made,
            dir,
        };
        for made in [&this.manifests, &this.logs, &this.dir.join("root")] {
            fs::create_dir_all(made)?;
        }
        fs::write(this.dir.join("config.json"), this.config(node, gates)?.to_string())?;
        this.cover()?;
        this.launch().await?;
        Ok(this)
    }

    /// Mounts what hides the host's folders; after a reboot of the machine, it must be done again.
    pub(crate) fn cover(&self) -> Result<()> {
        for place in COVERED {
            self.machine.run("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", place])?;
        }
        Ok(())
    }

    fn config(&self, node: &Node, gates: &[&str]) -> Result<Value> {
        let gates: Map<String, Value> = gates.iter().map(|gate| ((*gate).to_owned(), json!(true))).collect();
        let mut config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            // kubelet follows the driver that the runtime names (RuntimeConfig), and not this one.
            "failCgroupV1": false, "failSwapOn": false, "cgroupDriver": "cgroupfs", "cgroupRoot": self.machine.cgroup_root,
            "containerRuntimeEndpoint": format!("unix://{}", node.paths.socket.display()),
            "staticPodPath": self.manifests, "podLogsDir": self.logs, "fileCheckFrequency": "1s", "syncFrequency": "2s",
            // The fill level of the host's disk must not matter: no image is collected and no pod evicted.
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "resolvConf": "/etc/resolv.conf", "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"}, "enableServer": true,
            // The API server connects to the node's address.
            "address": self.address, "port": self.secure,
            "readOnlyPort": self.read_only, "healthzPort": free_port()?, "containerLogMaxSize": "20Ki", "containerLogMaxFiles": 20,
            "containerLogMonitorInterval": "3s", "runtimeRequestTimeout": format!("{}s", wait::longer(wait::secs(30)).as_secs()), "serializeImagePulls": false, "maxPods": 200,
            "clusterDNS": ["10.96.0.10"], "clusterDomain": "cluster.local",
            "volumePluginDir": self.dir.join("volume-plugins"), "shutdownGracePeriod": "0s", "memorySwap": {},
        });
        config["featureGates"] = Value::Object(gates);
        Ok(config)
    }

    /// Starts the process.
    pub(crate) async fn launch(&self) -> Result<()> {
        self.launch_with(&[]).await
    }

    /// Like [`Self::launch`], with more flags.
    pub(crate) async fn launch_with(&self, flags: &[&str]) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file())?;
        let child = self
            .machine
            .command(&self.binary)
            .arg("--config")
            .arg(self.dir.join("config.json"))
            .arg("--root-dir")
            .arg(self.dir.join("root"))
            .args(["--hostname-override", self.machine.name, "--node-ip", self.machine.address, "--v", "2"])
            .args(flags)
            .args(self.cluster.iter().flat_map(|file| [Path::new("--kubeconfig"), file.as_path()]))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start kubelet")?;
        if let Ok(mut slot) = self.child.lock() {
            *slot = Some(child);
        }
        wait::until("kubelet's /pods", Duration::from_secs(60), || async {
            let ended =
                self.child.lock().ok().and_then(|mut c| c.as_mut().and_then(|c| c.try_wait().ok().flatten()));
            if let Some(status) = ended {
                bail!("kubelet ended with {status}: {}", self.last_log(8));
            }
            self.pods().await.map(Some)
        })
        .await
        .with_context(|| format!("kubelet's log ends with {}", self.last_log(8)))?;
        Ok(())
    }

    /// Changes keys of the configuration for the next start, and returns the previous values: null for a key that was not
    /// set, and to remove one. kubelet refuses to start with the state of another CPU manager policy, so that is removed.
    pub(crate) fn reconfigure(&self, keys: &Value) -> Result<Value> {
        let file = self.dir.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file)?)?;
        let (all, keys) = (config.as_object_mut(), keys.as_object());
        let (all, keys) = all.zip(keys).context("a configuration is an object")?;
        let mut before = serde_json::Map::new();
        for (key, value) in keys {
            let old = if value.is_null() { all.remove(key) } else { all.insert(key.clone(), value.clone()) };
            before.insert(key.clone(), old.unwrap_or(Value::Null));
        }
        fs::write(&file, config.to_string())?;
        match fs::remove_file(self.dir.join("root/cpu_manager_state")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(Value::Object(before)),
        }
    }

    /// Sends SIGKILL or SIGTERM to kubelet; returns when it has ended.
    pub(crate) fn kill(&self, signal: Signal) -> Result<()> {
        let child = self.child.lock().map_err(|_| anyhow::anyhow!("kubelet slot poisoned"))?.take();
        if let Some(mut child) = child {
            proc::signal(child.id(), signal)?;
            wait::ended(&mut child, Duration::from_secs(30))
                .with_context(|| format!("kubelet after {signal}"))?;
        }
        Ok(())
    }

    /// Whether a process is running.
    pub(crate) fn running(&self) -> bool {
        let mut slot = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        slot.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Kills the process.
    pub(crate) fn stop(&self) {
        drop(self.kill(Signal::SIGKILL));
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("kubelet.log")
    }

    /// Everything that kubelet has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn last_log(&self, lines: usize) -> String {
        let text = self.log();
        let all: Vec<&str> = text.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }

    /// Its PodList.
    pub(crate) async fn pods(&self) -> Result<Value> {
        let text = self.http.get(&format!("http://{}:{}/pods", self.address, self.read_only)).await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// A container's log, fetched from kubelet's TLS port as `kubectl logs` does.
    pub(crate) fn container_log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        query: &str,
    ) -> Result<String> {
        self.get(&format!("containerLogs/{namespace}/{pod}/{container}{query}"))
    }

    /// kubelet's summary, which `kubectl top` and the eviction manager use.
    pub(crate) fn summary(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.get("stats/summary")?)?)
    }

    /// kubelet's own metrics.
    pub(crate) fn metrics(&self) -> Result<String> {
        self.get("metrics")
    }

    /// The metrics of containers, which dashboards use.
    pub(crate) fn cadvisor_metrics(&self) -> Result<String> {
        self.get("metrics/cadvisor")
    }

    /// The metrics of CPU and memory, which the metrics server uses.
    pub(crate) fn resource_metrics(&self) -> Result<String> {
        self.get("metrics/resource")
    }

    /// What kubelet's TLS port answers. Its certificate is self-signed.
    fn get(&self, path: &str) -> Result<String> {
        let url = format!("https://{}:{}/{path}", self.address, self.secure);
        command("curl", &["-sS", "--insecure", "--fail-with-body", "--max-time", "20", &url])
    }

    /// Writes a manifest into kubelet's folder.
    pub(crate) fn apply(&self, pod: &Value) -> Result<()> {
        let name =
            pod.pointer("/metadata/name").and_then(Value::as_str).context("a manifest without a name")?;
        // Written elsewhere and renamed: in the watched folder, kubelet could read half of it.
        let new = self.dir.join("new-manifest");
        fs::write(&new, serde_json::to_vec_pretty(pod)?)?;
        fs::rename(new, self.manifests.join(format!("{name}.json")))?;
        Ok(())
    }

    /// Removes a manifest.
    pub(crate) fn delete(&self, name: &str) -> Result<()> {
        fs::remove_file(self.manifests.join(format!("{name}.json")))
            .with_context(|| format!("manifest {name}"))
    }

    /// Removes all manifests and waits until no pod is ready any more.
    pub(crate) async fn remove_all(&self, rig: &Rig) -> Result<()> {
        for entry in fs::read_dir(&self.manifests)? {
            fs::remove_file(entry?.path())?;
        }
        wait::until("kubelet to stop every pod", Duration::from_secs(90), || async {
            let left = rig.node.cri.pods(None).await?;
            let running =
                left.iter().filter(|p| p.state() == cri_api::v1::PodSandboxState::SandboxReady).count();
            ensure!(running == 0, "{running} pods are still ready");
            Ok(Some(()))
        })
        .await
    }

    /// Removes what kubelet leaves by design: mounts in its root folder, kubepods cgroups, changed kernel
    /// settings and the tmpfs mounts over its folders. Nothing else.
    pub(crate) fn clean_up(&self) {
        for (file, value) in SETTINGS.iter() {
            drop(fs::write(file, value));
        }
        let root = self.dir.display().to_string();
        let text = fs::read_to_string(self.machine.mountinfo()).unwrap_or_default();
        let mut places: Vec<&str> = text
            .lines()
            .filter_map(|l| l.split(' ').nth(4))
            .filter(|p| p.starts_with(&root) || COVERED.contains(p))
            .collect();
        places.sort_by_key(|p| std::cmp::Reverse(p.len()));
        for place in places {
            drop(self.machine.run("umount", &["--lazy", place]));
        }
        for place in &self.made {
            drop(fs::remove_dir(place));
        }
        kubepods::remove(&self.machine.cgroup_root);
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.stop();
        self.clean_up();
    }
}
