//! Memory on cgroup v2: what kubelet asks for in `unified` (protection and throttling of its gate MemoryQoS, swap,
//! memory.oom.group), the limit of processes, and the values with which it decides on evictions.
//!
//! kubelet computes them in `kuberuntime_container_linux.go` (containers) and in its package cm (pods, classes).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::kubepods::Class;
use super::manifests::{pod, shell, with, with_spec};
use super::qos::parent_of_a_hungry_child;
use super::view;
use super::{Check, Rig, check};
use crate::cgroup::{self, Driver, Usage, driver};
use crate::expect::ensure;
use crate::isolation::command;
use crate::wait::{self, secs};

/// The check, which runs last: it starts kubelet with another configuration.
pub(crate) fn all() -> Vec<Check> {
    vec![check!(memory_swap_and_signals_on_v2)]
}

/// Bytes of swap that the host has during the check.
const SWAP: usize = 64 << 20;
/// Processes that a pod may have.
const PIDS: u64 = 100;
/// Where between request and limit kubelet begins to throttle a container, in quarters: a fraction without rounding errors.
const THROTTLE: u64 = 3;

/// A file that the host swaps to until this is dropped.
struct Swap(PathBuf);

impl Swap {
    fn on(folder: &Path) -> Result<Self> {
        let path = folder.join("swap");
        fs::write(&path, vec![0; SWAP])?;
        let this = Self(path);
        let file = this.0.display().to_string();
        command("chmod", &["0600", &file])?;
        command("mkswap", &[&file])?;
        command("swapon", &[&file])?;
        Ok(this)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        drop(command("swapoff", &[&self.0.display().to_string()]));
        drop(fs::remove_file(&self.0));
    }
}

async fn memory_swap_and_signals_on_v2(rig: &Rig) -> Result<()> {
    if !cgroup::is_v2() {
        println!("      not checked: kubelet asks for none of this on cgroup v1");
        return Ok(());
    }
    rig.kubelet.remove_all(rig).await?;
    rig.kubelet.kill(Signal::SIGTERM)?;
    let swap = Swap::on(&rig.node.paths.dir)?;
    let plain = rig.kubelet.reconfigure(&json!({
        "memoryReservationPolicy": "TieredReservation", "memoryThrottlingFactor": 0.75,
        "memorySwap": {"swapBehavior": "LimitedSwap"}, "podPidsLimit": PIDS, "singleProcessOOMKill": true,
    }))?;
    rig.kubelet.launch().await?;
    let checked = checks(rig).await;
    rig.kubelet.remove_all(rig).await?;
    rig.kubelet.kill(Signal::SIGTERM)?;
    rig.kubelet.reconfigure(&plain)?;
    drop(swap);
    rig.kubelet.launch().await?;
    checked
}

async fn checks(rig: &Rig) -> Result<()> {
    // A shell that has some memory, and then does nothing.
    let quiet = shell(
        "main",
        "x=$(head -c 8000000 /dev/zero | tr '\\0' x); trap 'exit 0' TERM; echo ready; sleep 100000 & wait",
    );
    let apply = |name: &str, resources: Value| {
        let container = with(quiet.clone(), &json!({"resources": resources}));
        rig.kubelet.apply(&with_spec(pod(name, json!([container])), &json!({"hostNetwork": true})))
    };
    let all = json!({"cpu": "200m", "memory": "64Mi"});
    apply("protected", json!({"requests": all, "limits": all}))?;
    apply(
        "throttled",
        json!({"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"cpu": "300m", "memory": "128Mi"}}),
    )?;
    apply("plain", json!({}))?;
    rig.kubelet.apply(&parent_of_a_hungry_child("survives"))?;
    let wanted = wanted(rig).await?;
    wait::until("the values of cgroups", secs(60), || async { has(&wanted).map(Some) }).await?;
    if driver() == Driver::Systemd {
        // It writes the properties of its units again, and not more than those.
        command("systemctl", &["daemon-reload"])?;
        has(&wanted).context("after a daemon-reload")?;
    }
    let survivor = view::ready(rig, "survives").await?;
    wait::until("a container whose child was killed", secs(60), || async {
        let log = rig.kubelet.container_log("default", "survives-node1", "main", "")?;
        Ok(log.contains("the parent is alive").then_some(()))
    })
    .await?;
    let path = cgroup::place(&survivor.container_id("main")?).context("no cgroup")?;
    let events = file(&path, "memory.events")?;
    ensure!(cgroup::keyed(&events, "oom_kill") == Some("1"), "the kernel counted {events}");
    ensure!(view::ready(rig, "survives").await?.restarts("main")? == 0, "it was restarted");
    nothing_is_swapped(rig).await?;
    signals(rig).await
}

/// A file of the cgroup at `path`.
fn file(path: &str, name: &str) -> Result<String> {
    let file = cgroup::folder("memory", path)?.join(name);
    Ok(fs::read_to_string(&file).with_context(|| file.display().to_string())?.trim().to_owned())
}

/// Files by their path below the root of cgroups, with the content that they must have.
type Files = BTreeMap<String, String>;

fn has(wanted: &Files) -> Result<()> {
    let mut wrong = Vec::new();
    for (path, content) in wanted {
        let (folder, name) = path.rsplit_once('/').context("a path without a folder")?;
        let found = file(folder, name)?;
        if found != *content {
            wrong.push(format!("{path} is {found}, not {content}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The host's memory in bytes, as kubelet reads it at its start.
fn host_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = cgroup::keyed(&text, "MemTotal:").context("no MemTotal in /proc/meminfo")?;
    Ok(line.trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// The values of the pods' containers, the pods and the classes.
#[expect(clippy::too_many_lines, reason = "one table")]
async fn wanted(rig: &Rig) -> Result<Files> {
    let memory = host_memory()?;
    let request = 32_u64 << 20;
    // The kernel keeps whole pages.
    let pages = |bytes: u64| (bytes & !4095).to_string();
    let high = |request: u64, limit: u64| pages(request + (limit - request) * THROTTLE / 4);
    let (weight, mib) = (|shares| cgroup::shares(shares).to_string(), |count: u64| (count << 20).to_string());
    let mut files = Files::new();
    for (name, class, pod, container) in [
        (
            "protected",
            Class::Guaranteed,
            vec![
                ("cpu.weight", weight(204)),
                ("cpu.max", "20000 100000".into()),
                ("memory.max", mib(64)),
                ("memory.min", mib(64)),
                ("memory.low", "0".into()),
            ],
            vec![
                ("cpu.weight", weight(204)),
                ("cpu.max", "20000 100000".into()),
                ("memory.max", mib(64)),
                ("memory.min", mib(64)),
                ("memory.low", "0".into()),
                ("memory.high", "max".into()),
                ("memory.swap.max", "0".into()),
            ],
        ),
        (
            "throttled",
            Class::Burstable,
            vec![
                ("cpu.weight", weight(102)),
                ("cpu.max", "30000 100000".into()),
                ("memory.max", mib(128)),
                ("memory.min", "0".into()),
                ("memory.low", mib(32)),
            ],
            vec![
                ("cpu.weight", weight(102)),
                ("cpu.max", "30000 100000".into()),
                ("memory.max", mib(128)),
                ("memory.min", "0".into()),
                ("memory.low", mib(32)),
                ("memory.high", high(request, 128 << 20)),
                // LimitedSwap would give a pod of the API server a part. Static pods count as critical, and never swap.
                ("memory.swap.max", "0".into()),
            ],
        ),
        (
            "plain",
            Class::BestEffort,
            vec![("cpu.weight", weight(2)), ("memory.max", "max".into()), ("memory.low", "0".into())],
            vec![
                ("cpu.weight", weight(2)),
                ("cpu.max", "max 100000".into()),
                ("memory.max", "max".into()),
                ("memory.min", "0".into()),
                ("memory.low", "0".into()),
                ("memory.high", high(0, memory)),
                ("memory.swap.max", "0".into()),
            ],
        ),
    ] {
        let seen = view::ready(rig, name).await?;
        let (of_pod, of_container) = (
            class.pod(&seen.uid()),
            cgroup::place(&seen.container_id("main")?).with_context(|| format!("{name} has no cgroup"))?,
        );
        ensure!(of_container.starts_with(&format!("{of_pod}/")), "{of_container} is not below {of_pod}");
        let all = pod.into_iter().map(|it| (&of_pod, it));
        let all = all.chain(container.into_iter().map(|it| (&of_container, it)));
        files.extend(all.map(|(folder, (name, value))| (format!("{folder}/{name}"), value)));
        files.insert(format!("{of_pod}/pids.max"), PIDS.to_string());
        files.insert(format!("{of_container}/pids.max"), "max".to_owned());
        files.insert(format!("{of_container}/memory.oom.group"), "0".to_owned());
    }
    // That of the container whose child is killed requests 20 MiB too: its limit.
    let burstable = Class::Burstable.place();
    files.insert(format!("{burstable}/memory.low"), mib(52));
    files.insert(format!("{}/memory.min", Class::Guaranteed.place()), mib(64 + 52));
    Ok(files)
}

/// The kernel is told to take memory away from containers; none may write it to the swap.
async fn nothing_is_swapped(rig: &Rig) -> Result<()> {
    for name in ["plain", "throttled"] {
        let id = view::ready(rig, name).await?.container_id("main")?;
        let path = cgroup::place(&id).context("no cgroup")?;
        let reclaim = cgroup::folder("memory", &path)?.join("memory.reclaim");
        // EAGAIN says that there was less to take.
        drop(fs::write(&reclaim, "4M"));
        let swapped = cgroup::usage_at(Usage::Swap, &path)?;
        ensure!(swapped == 0, "{name} has {swapped} bytes in the swap");
    }
    Ok(())
}

fn number(value: &Value, pointer: &str) -> Result<u64> {
    value.pointer(pointer).and_then(Value::as_u64).with_context(|| format!("no {pointer} in {value}"))
}

/// What kubelet evicts pods by is what the kernel says: memory of all pods, of one pod and of a container, their swap, the
/// images' disk, and processes.
async fn signals(rig: &Rig) -> Result<()> {
    let seen = view::ready(rig, "throttled").await?;
    let container = cgroup::place(&seen.container_id("main")?).context("no cgroup")?;
    let paths = [container, Class::Burstable.pod(&seen.uid()), Class::Guaranteed.place()];
    let disk = nix::sys::statvfs::statvfs(&rig.node.paths.root)?;
    wait::until("a summary that is what the cgroups say", secs(60), || async {
        let read = || -> Result<Vec<[u64; 2]>> {
            let one = |path: &String| -> Result<[u64; 2]> {
                let inactive = cgroup::usage_at(Usage::InactiveFile, path)?;
                let memory = cgroup::usage_at(Usage::Memory, path)?.saturating_sub(inactive);
                Ok([memory, cgroup::usage_at(Usage::Swap, path)?])
            };
            paths.iter().map(one).collect()
        };
        let before = read()?;
        let summary = rig.kubelet.summary()?;
        let after = read()?;
        let list =
            |pointer: &str| summary.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
        let pod = list("/pods")
            .into_iter()
            .find(|it| it.pointer("/podRef/name") == Some(&json!("throttled-node1")))
            .context("no pod throttled")?;
        let all = list("/node/systemContainers")
            .into_iter()
            .find(|it| it.pointer("/name") == Some(&json!("pods")))
            .context("no values of all pods")?;
        let container = pod.pointer("/containers/0").context("no container")?;
        for (index, it) in [container, &pod, &all].into_iter().enumerate() {
            let found = [number(it, "/memory/workingSetBytes")?, number(it, "/swap/swapUsageBytes")?];
            for (value, found) in found.into_iter().enumerate() {
                let of = |all: &[[u64; 2]]| all.get(index).and_then(|it| it.get(value)).copied().unwrap_or(0);
                let (low, high) = (of(&before).min(of(&after)), of(&before).max(of(&after)));
                ensure!((low..=high).contains(&found), "value {value} is {found}, not {low} to {high}: {it}");
            }
        }
        let images = rig.node.cri.image_fs().await?.image_filesystems.first().and_then(|it| it.used_bytes);
        let used = number(&summary, "/node/runtime/imageFs/usedBytes")?;
        ensure!(images.is_some_and(|it| it.value == used), "the images have {used} bytes, not {images:?}");
        let capacity = number(&summary, "/node/runtime/imageFs/capacityBytes")?;
        ensure!(capacity == disk.blocks() * disk.fragment_size(), "their disk has {capacity} bytes");
        let (most, now) =
            (number(&summary, "/node/rlimit/maxpid")?, number(&summary, "/node/rlimit/curproc")?);
        ensure!(now > 0 && now < most, "{now} of {most} processes");
        Ok(Some(()))
    })
    .await
}
