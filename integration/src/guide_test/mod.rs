//! `integration guide-test`: executes docs/kubernetes.md on this machine, and then reboots it. It installs packages and
//! changes the machine, so it is for a virtual machine that is thrown away, and that runs the same command again after the
//! reboot (`integration/vm/guest/run`).
//!
//! | boot | what it shows |
//! | --- | --- |
//! | first | the page's commands, in their order, end in a running pod; the pod is in the slices that systemd has for kubelet |
//! | second | kubelet starts the pods again; addresses, scopes and namespaces are those of running pods, and no more |
//! | | without manifests nothing is left |

mod leftovers;
mod local;
mod page;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::cri::Cri;
use crate::expect::ensure;
use crate::http::Http;
use crate::isolation::command;
use crate::wait::{self, secs};
use page::{Block, Kind};

/// What the test keeps over the reboot: the containers of the first boot.
const STATE: &str = "/var/lib/copepod-guide-test/containers";
/// Where the page puts manifests.
const MANIFESTS: &str = "/etc/kubernetes/manifests";
/// kubelet's list of pods, as the page has configured it.
const PODS: &str = "http://127.0.0.1:10255/pods";
/// Pods beside that of the page, and whether they have a network of their own. The manifest of the last one is removed just
/// before the reboot, so that kubelet finds a pod that it does not know.
const BESIDE: [(&str, bool); 3] = [("on-host", false), ("addressed", true), ("forgotten", true)];
/// The pod of the page.
const OF_PAGE: &str = "web";
/// Time limit for pods to run. Machines without KVM are slow.
const LIMIT: std::time::Duration = secs(120);

/// What the page is tried with.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    /// The page.
    pub(crate) page: &'a Path,
    /// The package of copepod; its folder is where the page's commands are run.
    pub(crate) package: &'a Path,
    /// The kubelet binary.
    pub(crate) kubelet: &'a Path,
}

/// Runs the part of this boot. The first one ends with a reboot, and never returns if nothing fails.
pub(crate) async fn run(inputs: &Inputs<'_>) -> Result<bool> {
    ensure!(Path::new("/run/systemd/system").is_dir(), "this test needs systemd as process 1");
    let outcome = if Path::new(STATE).exists() {
        after_reboot().await
    } else {
        ensure!(
            !Path::new("/usr/bin/copepod").exists() && !Path::new("/var/lib/kubelet").exists(),
            "this machine has copepod or kubelet, which this test would destroy; use a virtual machine"
        );
        from_page(inputs).await
    };
    if outcome.is_err() {
        let units = ["--no-pager", "--lines", "60", "--unit", "copepod", "--unit", "kubelet"];
        println!("{}", command("journalctl", &units).unwrap_or_else(|error| format!("{error:#}")));
    }
    outcome.map(|()| true)
}

/// Prints a step's name with the time that it took.
async fn step<T>(name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let begun = Instant::now();
    let result = work.await.with_context(|| name.to_owned())?;
    println!("ok   {:6.1} s  {name}", begun.elapsed().as_secs_f32());
    Ok(result)
}

async fn from_page(inputs: &Inputs<'_>) -> Result<()> {
    let text = fs::read_to_string(inputs.page).with_context(|| inputs.page.display().to_string())?;
    let blocks = page::blocks(&text)?;
    let work = tempfile::Builder::new().prefix("copepod-guide-test-").tempdir_in("/var/lib")?;
    let folder = fs::canonicalize(inputs.package)?.parent().context("the package has no folder")?.to_owned();
    let _registry = step("what stands in for the network", async {
        local::packages(work.path(), inputs.kubelet)?;
        // Packages of Debian need no index, because they are installed; kubelet's does.
        command("apt-get", &["update"])?;
        local::docker_io(work.path()).await
    })
    .await?;
    for block in &blocks {
        let place = format!("{}:{}", inputs.page.display(), block.line);
        match block.kind {
            Kind::Run => step(&place, async { execute(block, &folder) }).await?,
            Kind::Network => println!("     replaced  {place}"),
        }
    }
    step("the pod is where systemd and kubelet have it", placed()).await?;
    step("pods beside it", async {
        for (name, own_network) in BESIDE {
            fs::write(manifest(name), pod(name, own_network).to_string())?;
        }
        running(&[OF_PAGE, BESIDE[0].0, BESIDE[1].0, BESIDE[2].0]).await
    })
    .await
    .map(drop)?;
    let before = running(&[OF_PAGE]).await?;
    fs::create_dir_all(Path::new(STATE).parent().context("no folder")?)?;
    let containers: Vec<&str> = before.iter().map(|it| it.container.as_str()).collect();
    fs::write(STATE, containers.join("\n"))?;
    fs::remove_file(manifest(BESIDE[2].0))?;
    println!("     the machine reboots");
    command("systemctl", &["reboot"])?;
    tokio::time::sleep(wait::longer(secs(120))).await;
    bail!("the machine was not rebooted")
}

/// Executes a block as a reader would who stops at the first error.
fn execute(block: &Block, folder: &Path) -> Result<()> {
    let script = format!("{{\n{}}} 2>&1", block.commands);
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", &script]).current_dir(folder).stdin(Stdio::null());
    shell.env("DEBIAN_FRONTEND", "noninteractive");
    let out = shell.output().context("run bash")?;
    let said = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success(), "{}: {said}", out.status);
    for line in said.lines().rev().take(8).collect::<Vec<_>>().into_iter().rev() {
        println!("        {line}");
    }
    Ok(())
}

fn manifest(name: &str) -> PathBuf {
    Path::new(MANIFESTS).join(format!("{name}.json"))
}

fn pod(name: &str, own_network: bool) -> Value {
    let line = "trap 'exit 0' TERM; sleep 100000 & wait";
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "hostNetwork": !own_network, "terminationGracePeriodSeconds": 2,
            "containers": [{"name": "main", "image": "docker.io/library/busybox:1", "command": ["/bin/sh", "-c", line]}],
        },
    })
}

/// A running pod as kubelet shows it.
#[derive(Debug)]
pub(super) struct Running {
    /// The name in its manifest.
    pub(super) name: String,
    /// Its first container, without `copepod://`.
    pub(super) container: String,
    /// Its address; that of the node, or none, with the node's network.
    pub(super) address: String,
    /// Whether it has the node's network.
    pub(super) on_host: bool,
}

fn seen(pod: &Value) -> Option<Running> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    // kubelet adds the node's name to those of static pods.
    let node = format!("-{}", text("/spec/nodeName"));
    let ready = pod.pointer("/status/containerStatuses/0/ready") == Some(&json!(true));
    let (_, container) = text("/status/containerStatuses/0/containerID").split_once("://")?;
    (text("/status/phase") == "Running" && ready).then(|| Running {
        name: text("/metadata/name").trim_end_matches(&node).to_owned(),
        container: container.to_owned(),
        address: text("/status/podIP").to_owned(),
        on_host: pod.pointer("/spec/hostNetwork") == Some(&json!(true)),
    })
}

/// Waits until these pods run, and returns all that do.
async fn running(names: &[&str]) -> Result<Vec<Running>> {
    let http = Http::new();
    wait::until(&format!("the pods {names:?}"), LIMIT, || async {
        let list: Value = serde_json::from_str(&http.get(PODS).await?)?;
        let pods = list.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        let found: Vec<Running> = pods.iter().filter_map(seen).collect();
        let missing: Vec<_> = names.iter().filter(|name| found.iter().all(|it| it.name != **name)).collect();
        ensure!(missing.is_empty(), "{missing:?} do not run: {pods:?}");
        Ok(Some(found))
    })
    .await
}

/// kubelet has taken the driver from copepod, and the pod's container is in a scope of copepod's in a slice of kubelet's.
async fn placed() -> Result<()> {
    let found = running(&[OF_PAGE]).await?;
    let web = found.first().context("no pod")?;
    let cgroup = crate::cgroup::place(&web.container).context("the container has no cgroup")?;
    let words: Vec<&str> = cgroup.split('/').collect();
    let ["", "kubepods.slice", "kubepods-burstable.slice", slice, scope, container] = words[..] else {
        bail!("the container's cgroup is {cgroup}")
    };
    ensure!(slice.starts_with("kubepods-burstable-pod") && scope.starts_with("copepod-"), "{cgroup}");
    ensure!(container == web.container, "{cgroup}");
    let state = command("systemctl", &["is-active", slice, scope])?;
    ensure!(state.lines().all(|line| line == "active"), "{state}");
    Ok(())
}

async fn after_reboot() -> Result<()> {
    let before = fs::read_to_string(STATE)?;
    let cri = Cri::connect(Path::new("/run/copepod/copepod.sock"))?;
    let names = [OF_PAGE, BESIDE[0].0, BESIDE[1].0];
    let found = step("pods after the reboot", running(&names)).await?;
    ensure!(found.len() == names.len(), "other pods run: {found:?}");
    for pod in &found {
        ensure!(!before.contains(&pod.container), "{pod:?} is that of the first boot");
    }
    let http = Http::new();
    let page = wait::until("the page of the pod", LIMIT, || async {
        http.get("http://127.0.0.1:8080/").await.map(Some)
    });
    let said = step("the pod answers", page).await?;
    ensure!(said.contains("hello"), "it says {said}");
    step("no more than the pods need", leftovers::only_of(&cri, &found)).await?;
    step("the forgotten pod is removed", async {
        wait::until("kubelet to remove it", secs(180), || async {
            let pods = cri.pods(None).await?;
            let known = |name: &str| names.iter().any(|it| name.starts_with(it));
            let other = pods.iter().find(|it| it.metadata.as_ref().is_some_and(|it| !known(&it.name)));
            ensure!(other.is_none(), "{other:?} is listed");
            Ok(Some(()))
        })
        .await
    })
    .await?;
    step("nothing without pods", async {
        for entry in fs::read_dir(MANIFESTS)? {
            fs::remove_file(entry?.path())?;
        }
        leftovers::nothing(&cri).await
    })
    .await
}
