//! Records that cannot be used: what the disk does not give, what a later version wrote, what is too large. Each
//! costs its object's management and nothing else.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use cri_api::v1::{ContainerState, PodSandboxState};
use nix::sys::stat::{Mode, SFlag, mknod};
use serde_json::Value;

use crate::context::{Context, Pod};
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(unreadable_pod_record_costs_its_management_alone).own(),
        test!(unreadable_container_record_costs_its_management_alone).own(),
        test!(pod_record_of_a_later_version_keeps_its_pod).own(),
        test!(container_record_of_a_later_version_keeps_its_container).own(),
        test!(record_of_a_later_format_keeps_its_pod).own(),
        test!(oversized_record_keeps_its_pod).own(),
        test!(environment_of_two_thousand_services).own(),
        test!(environment_is_kept_once).own(),
        test!(too_large_a_container_is_refused_before_it_is_made),
        test!(exit_that_could_not_be_recorded_survives_stop_and_crash).own(),
        test!(image_index_of_a_later_version_is_kept).own(),
        test!(cni_lease_of_a_later_version_is_kept).own(),
    ]
}

/// Runs a pod with a sleeping container; returns the container's id and pid.
async fn running(cx: &Context) -> Result<(Pod, String, u32)> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("main")).await?;
    let pid = cx.pid(&id).await?;
    Ok((pod, id, pid))
}

fn pod_record(cx: &Context, id: &str) -> PathBuf {
    cx.node.paths.root.join("pods").join(id).join("record")
}

fn container_record(cx: &Context, id: &str) -> PathBuf {
    cx.node.paths.root.join("containers").join(id).join("record")
}

/// Rewrites a record as a later version could have written it: changed data, correct checksum
/// (runtime/state/src/file.rs).
fn rewrite(path: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut record: Value = serde_json::from_slice(&fs::read(path)?)?;
    change(record.get_mut("data").context("no data")?);
    let part = |key: &str| record.get(key).and_then(Value::as_str).map(str::to_owned).context("no text");
    let (kind, boot, data) = (part("kind")?, part("boot_id")?, record["data"].to_string());
    let mut sum: u64 = 0xcbf2_9ce4_8422_2325;
    for text in [kind, boot, data] {
        for byte in text.bytes().chain([0]) {
            sum = (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    record["sum"] = format!("{sum:016x}").into();
    Ok(fs::write(path, record.to_string())?)
}

/// Puts a thing in place of a record that open(2) fails on, as a bad sector would make it fail: a device without
/// a driver. Returns where the record is meanwhile.
fn unreadable(record: &Path) -> Result<PathBuf> {
    let saved = record.with_extension("saved");
    fs::rename(record, &saved)?;
    mknod(record, SFlag::S_IFCHR, Mode::S_IRUSR, nix::sys::stat::makedev(240, 1))
        .context("make a device node")?;
    ensure!(fs::read(record).is_err(), "the node opens");
    Ok(saved)
}

/// The pod is shown and refuses everything; its process lives; another pod is served.
async fn pod_is_kept(cx: &Context, pod: &Pod, container: &str, pid: u32, other: &str) -> Result<()> {
    ensure!(cx.cri.sh(other, "echo in").await? == "in", "another pod is not served");
    let listed = cx.cri.pods(None).await?;
    let shown = listed.iter().find(|it| it.id == pod.id).context("the pod is not listed")?;
    ensure!(shown.state() == PodSandboxState::SandboxNotready && shown.created_at > 0, "{shown:?}");
    let status = cx.cri.pod_status(&pod.id).await?;
    ensure!(status.info.values().any(|info| info.contains(&pod.id)), "no verbose status");
    let shown = cx.cri.container(container).await?;
    ensure!(shown.state() == ContainerState::ContainerUnknown, "its container is {:?}", shown.state());
    refuse(cx, container).await?;
    for (what, answer) in [
        ("StopPodSandbox", cx.cri.stop_pod(&pod.id).await),
        ("RemovePodSandbox", cx.cri.remove_pod(&pod.id).await),
        (
            "CreateContainer",
            cx.cri.create(&pod.id, &cx.sleeper("new").like(&pod.config), &pod.config).await.map(drop),
        ),
    ] {
        let error = answer.err().with_context(|| format!("{what} was answered with success"))?;
        ensure!(error.message().contains("is not managed"), "{what}: {error}");
    }
    ensure!(proc::alive(pid), "its container was killed");
    Ok(())
}

async fn refuse(cx: &Context, container: &str) -> Result<()> {
    for (what, answer) in [
        ("StopContainer", cx.cri.stop(container, 0).await),
        ("RemoveContainer", cx.cri.remove(container).await),
        ("StartContainer", cx.cri.start(container).await),
        ("ReopenContainerLog", cx.cri.reopen_log(container).await),
        ("ExecSync", cx.cri.exec_sync(container, &["/bin/true"], 5).await.map(drop)),
    ] {
        let error = answer.err().with_context(|| format!("{what} was answered with success"))?;
        ensure!(error.message().contains("is not managed"), "{what}: {error}");
    }
    Ok(())
}

/// Once its record is readable again, the pod is managed as before.
async fn pod_is_back(cx: &Context, pod: &Pod, container: &str, pid: u32) -> Result<()> {
    let status = cx.cri.pod_status(&pod.id).await?.status.context("status")?;
    ensure!(status.state() == PodSandboxState::SandboxReady, "{:?}", status.state());
    wait::until("the shim to be dialled", secs(10), || async {
        Ok((cx.cri.sh(container, "echo in").await? == "in").then_some(()))
    })
    .await?;
    ensure!(cx.pid(container).await? == pid && proc::alive(pid), "another process");
    Ok(cx.cri.drop_pod(&pod.id).await?)
}

async fn unreadable_pod_record_costs_its_management_alone(cx: Context) -> Result<()> {
    let (good, other, _) = running(&cx).await?;
    let (bad, id, pid) = running(&cx).await?;
    cx.node.kill9()?;
    let saved = unreadable(&pod_record(&cx, &bad.id))?;
    let outcome = async {
        cx.node.launch().await.context("one unreadable record must not stop the daemon")?;
        pod_is_kept(&cx, &bad, &id, pid, &other).await
    }
    .await;
    cx.node.kill9()?;
    fs::rename(saved, pod_record(&cx, &bad.id))?;
    cx.node.launch().await?;
    outcome?;
    pod_is_back(&cx, &bad, &id, pid).await?;
    cx.cri.drop_pod(&good.id).await?;
    Ok(())
}

async fn unreadable_container_record_costs_its_management_alone(cx: Context) -> Result<()> {
    let (pod, id, pid) = running(&cx).await?;
    let sibling = cx.start(&pod, &cx.sleeper("sibling")).await?;
    cx.node.kill9()?;
    let saved = unreadable(&container_record(&cx, &id))?;
    let outcome = async {
        cx.node.launch().await.context("one unreadable record must not stop the daemon")?;
        container_is_kept(&cx, &id, pid, &sibling).await
    }
    .await;
    cx.node.kill9()?;
    fs::rename(saved, container_record(&cx, &id))?;
    cx.node.launch().await?;
    outcome?;
    pod_is_back(&cx, &pod, &id, pid).await
}

/// The shim holds it, and its pod is managed: it must not be taken for an orphan.
async fn container_is_kept(cx: &Context, id: &str, pid: u32, sibling: &str) -> Result<()> {
    // From here on the shim's snapshot has been applied.
    wait::until("the shim to be dialled", secs(10), || async {
        Ok((cx.cri.sh(sibling, "echo in").await? == "in").then_some(()))
    })
    .await?;
    let listed = cx.cri.containers(None).await?;
    let shown = listed.iter().find(|it| it.id == *id).context("the container is not listed")?;
    ensure!(shown.state() == ContainerState::ContainerUnknown, "{:?}", shown.state());
    refuse(cx, id).await?;
    ensure!(proc::alive(pid), "it was killed");
    Ok(())
}

async fn pod_record_of_a_later_version_keeps_its_pod(cx: Context) -> Result<()> {
    later_pod(&cx, |path| {
        rewrite(path, |data| data["config"]["security"]["namespaces"]["pid"] = "Shared".into())
    })
    .await
}

async fn record_of_a_later_format_keeps_its_pod(cx: Context) -> Result<()> {
    later_pod(&cx, |path| {
        let text = fs::read_to_string(path)?;
        Ok(fs::write(path, text.replacen("\"version\":1", "\"version\":2", 1))?)
    })
    .await
}

async fn oversized_record_keeps_its_pod(cx: Context) -> Result<()> {
    later_pod(&cx, |path| {
        let mut text = fs::read_to_string(path)?;
        text.extend(std::iter::repeat_n(' ', 9 << 20));
        Ok(fs::write(path, text)?)
    })
    .await
}

/// Puts back a record that must be there still, and gives the outcome of what was looked at meanwhile.
async fn back_to(cx: &Context, record: &Path, before: &[u8], outcome: Result<()>) -> Result<()> {
    cx.node.kill9()?;
    if !record.exists() {
        bail!("the record is gone: {outcome:?}");
    }
    fs::write(record, before)?;
    cx.node.launch().await?;
    outcome
}

async fn later_pod(cx: &Context, change: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (good, other, _) = running(cx).await?;
    let (later, id, pid) = running(cx).await?;
    cx.node.kill9()?;
    let record = pod_record(cx, &later.id);
    let before = fs::read(&record)?;
    change(&record)?;
    let changed = fs::read(&record)?;
    cx.node.launch().await?;
    let outcome = pod_is_kept(cx, &later, &id, pid, &other).await;
    let after = fs::read(&record);
    back_to(cx, &record, &before, outcome).await?;
    ensure!(after? == changed, "the record was touched");
    pod_is_back(cx, &later, &id, pid).await?;
    cx.cri.drop_pod(&good.id).await?;
    Ok(())
}

async fn container_record_of_a_later_version_keeps_its_container(cx: Context) -> Result<()> {
    let (pod, id, pid) = running(&cx).await?;
    let sibling = cx.start(&pod, &cx.sleeper("sibling")).await?;
    cx.node.kill9()?;
    let record = container_record(&cx, &id);
    let before = fs::read(&record)?;
    rewrite(&record, |data| data["config"]["security"]["seccomp"] = serde_json::json!({"Notify": "/run/s"}))?;
    cx.node.launch().await?;
    let outcome = async {
        container_is_kept(&cx, &id, pid, &sibling).await?;
        // The readable fields are shown: kubelet recognises the container by its labels and name.
        let shown = cx.cri.container(&id).await?;
        ensure!(shown.metadata.as_ref().is_some_and(|meta| meta.name == "main"), "{:?}", shown.metadata);
        let listed = cx.cri.containers(None).await?;
        ensure!(listed.iter().any(|it| it.id == id && it.pod_sandbox_id == pod.id), "it lost its pod");
        Ok(())
    }
    .await;
    back_to(&cx, &record, &before, outcome).await?;
    pod_is_back(&cx, &pod, &id, pid).await
}

/// Service links set seven variables per service in every container of a namespace.
async fn environment_of_two_thousand_services(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let mut config = cx.shell("main", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done");
    for service in 0..2000 {
        for name in [
            "SERVICE_HOST",
            "SERVICE_PORT",
            "PORT",
            "PORT_80_TCP",
            "PORT_80_TCP_PROTO",
            "PORT_80_TCP_PORT",
            "PORT_80_TCP_ADDR",
        ] {
            config = config.env(&format!("SVC_{service:04}_{name}"), "tcp://10.96.100.200:80");
        }
    }
    let id = cx.start(&pod, &config).await.context("a container in a namespace of 2000 services")?;
    cx.said(&id, "ready").await?;
    let count = "env | grep -c '^SVC_'";
    ensure!(cx.cri.sh(&id, count).await? == "14000", "variables of an exec");
    cx.node.crash().await?;
    wait::until("the shim to be dialled", secs(10), || async {
        Ok((cx.cri.sh(&id, count).await? == "14000").then_some(()))
    })
    .await?;
    cx.cri.stop(&id, 10).await?;
    ensure!(cx.cri.container(&id).await?.exit_code == 7);
    cx.node.crash().await?;
    ensure!(cx.cri.container(&id).await?.exit_code == 7, "the exit was not recorded");
    Ok(())
}

/// The variables of `config.envs` that verbose status shows.
async fn shown_env(cx: &Context, id: &str) -> Result<Vec<(String, String)>> {
    let info = cx.cri.container_response(id).await?.info;
    let info: Value = serde_json::from_str(info.get("info").context("no verbose status")?)?;
    let envs = info.pointer("/config/envs").and_then(Value::as_array).context("no envs in the status")?;
    let text = |var: &Value, key: &str| var.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(envs.iter().map(|var| (text(var, "key"), text(var, "value"))).collect())
}

/// It can be megabytes. Earlier versions kept it in the configuration too: such a record serves as before.
async fn environment_is_kept_once(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = cx.sleeper("main").env("ONCE", "marked value").env("PATH", "/bin:/own");
    let id = cx.start(&pod, &config).await?;
    let want: Vec<(String, String)> =
        [("ONCE", "marked value"), ("PATH", "/bin:/own")].map(|(k, v)| (k.into(), v.into())).into();
    let record = container_record(&cx, &id);
    let text = fs::read_to_string(&record)?;
    ensure!(text.matches("marked value").count() == 1, "the record: {text}");
    ensure!(shown_env(&cx, &id).await? == want, "{:?}", shown_env(&cx, &id).await?);
    cx.node.kill9()?;
    rewrite(&record, |data| {
        let envs: Vec<Value> =
            want.iter().map(|(key, value)| serde_json::json!({ "key": key, "value": value })).collect();
        data["config"]["envs"] = envs.into();
        data.as_object_mut().map(|data| data.remove("asked_env"));
    })?;
    cx.node.launch().await?;
    wait::until("an exec with the environment of an older record", secs(10), || async {
        Ok((cx.cri.sh(&id, "echo $ONCE, $PATH").await? == "marked value, /bin:/own").then_some(()))
    })
    .await?;
    ensure!(shown_env(&cx, &id).await? == want, "{:?}", shown_env(&cx, &id).await?);
    Ok(())
}

async fn too_large_a_container_is_refused_before_it_is_made(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let mut config = cx.sleeper("main");
    for n in 0..90 {
        config = config.env(&format!("A{n}"), &"x".repeat(100_000));
    }
    let error = cx.create(&pod, &config).await.err().context("a record of 9 MB was accepted")?;
    ensure!(format!("{error:#}").contains("may have at most"), "{error:#}");
    ensure!(cx.cri.containers(None).await?.iter().all(|it| it.pod_sandbox_id != pod.id), "it is listed");
    cx.start(&pod, &cx.sleeper("main")).await.context("the name is free")?;
    Ok(())
}

/// The shim's exit file is the only copy of the exit code until the record is written.
async fn exit_that_could_not_be_recorded_survives_stop_and_crash(cx: Context) -> Result<()> {
    let (pod, id, _) = running(&cx).await?;
    // A folder at the path of the temporary file, so that no write succeeds.
    let obstacle = container_record(&cx, &id).with_file_name(".record.new");
    fs::create_dir(&obstacle)?;
    cx.cri.stop_pod(&pod.id).await.context("a stop must not depend on the disk")?;
    cx.node.kill9()?;
    fs::remove_dir(&obstacle)?;
    cx.node.launch().await?;
    let status = cx.cri.wait_exit(&id, secs(10)).await?;
    ensure!(status.exit_code == 137, "the exit code became {} ({})", status.exit_code, status.message);
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

async fn image_index_of_a_later_version_is_kept(cx: Context) -> Result<()> {
    let name = crate::fixture::Fixture::image("busybox");
    cx.cri.pull(&name).await?;
    let images = cx.cri.images().await?;
    cx.node.kill9()?;
    let path = cx.node.paths.root.join("images/index.json");
    let before = fs::read(&path)?;
    let mut index: Value = serde_json::from_slice(&before)?;
    index["version"] = 2.into();
    index["images"]
        .as_array_mut()
        .context("images")?
        .push(serde_json::json!({"artifact": "of another shape"}));
    fs::write(&path, index.to_string())?;
    let changed = fs::read(&path)?;
    cx.node.launch().await?;
    let outcome = async {
        ensure!(cx.cri.images().await? == images, "images that this version understands are not listed");
        let pod = cx.pod().await?;
        cx.start(&pod, &cx.sleeper("main")).await.context("a container of an image that is there")?;
        for (what, answer) in [
            ("PullImage", cx.cri.pull(&crate::fixture::Fixture::image("tools")).await.map(drop)),
            ("RemoveImage", cx.cri.remove_image(&name).await),
        ] {
            let error = answer.err().with_context(|| format!("{what} was answered with success"))?;
            ensure!(error.message().contains("later version"), "{what}: {error}");
        }
        Ok(cx.cri.drop_pod(&pod.id).await?)
    }
    .await;
    let after = fs::read(&path);
    cx.node.kill9()?;
    fs::write(&path, before)?;
    cx.node.launch().await?;
    outcome?;
    ensure!(after? == changed, "the index was touched");
    ensure!(cx.cri.images().await? == images, "images were lost");
    Ok(())
}

async fn cni_lease_of_a_later_version_is_kept(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let path = cx.node.paths.root.join("network").join(&pod.id);
    let before = fs::read(&path)?;
    let mut lease: Value = serde_json::from_slice(&before)?;
    lease["version"] = 2.into();
    fs::write(&path, lease.to_string())?;
    let error = cx.cri.stop_pod(&pod.id).await.err();
    fs::write(&path, before)?;
    let error = error.context("the address of a later version's lease was given up")?;
    ensure!(error.message().contains("later copepod"), "{error}");
    cx.cri.drop_pod(&pod.id).await?;
    ensure!(cx.node.network.leased().is_empty(), "the address leaked");
    Ok(())
}
