//! Records that cannot be used because they are unreadable, of a later version or too large: their object is listed but
//! not managed, and nothing else is affected. Records of large containers, and an exit that cannot be recorded.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use cri_api::v1::{ContainerState, PodSandboxState};
use nix::sys::stat::{Mode, SFlag, mknod};
use serde_json::Value;

use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::proc;
use crate::record::rewrite;
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
        test!(new_attempts_are_newer_also_if_the_clock_was_set_back).own(),
        test!(environment_of_two_thousand_services).own(),
        test!(environment_is_stored_once).own(),
        test!(too_large_container_is_refused_before_it_is_created),
        test!(exit_that_could_not_be_recorded_survives_stop_and_crash).own(),
        test!(exit_on_a_hung_disk_is_reported_and_survives_a_crash).own(),
        test!(image_index_of_a_later_version_is_kept).own(),
        test!(cni_lease_of_a_later_version_is_kept).own(),
    ]
}

fn pod_record(cx: &Context, id: &str) -> PathBuf {
    cx.node.paths.root.join("pods").join(id).join("record")
}

fn container_record(cx: &Context, id: &str) -> PathBuf {
    cx.node.paths.root.join("containers").join(id).join("record")
}

/// Makes a record unreadable, as a bad sector would: in its place is a device without a driver, on which open(2) fails.
/// Returns the path of the saved record.
fn unreadable(record: &Path) -> Result<PathBuf> {
    let saved = record.with_extension("saved");
    fs::rename(record, &saved)?;
    mknod(record, SFlag::S_IFCHR, Mode::S_IRUSR, nix::sys::stat::makedev(240, 1))
        .context("make a device node")?;
    ensure!(fs::read(record).is_err(), "the device node can be read, so this test shows nothing");
    Ok(saved)
}

/// Checks that the pod is listed, refuses all commands and still runs, and that another pod is served.
async fn pod_is_kept(cx: &Context, pod: &Pod, container: &str, pid: u32, other: &str) -> Result<()> {
    cx.exec_works(other).await.context("another pod is not served")?;
    let listed = cx.cri.pods(None).await?;
    let shown = listed.iter().find(|it| it.id == pod.id).context("the pod is not listed")?;
    ensure!(
        shown.state() == PodSandboxState::SandboxNotready && shown.created_at > 0,
        "a pod that is not managed is listed as {shown:?}"
    );
    let status = cx.cri.pod_status(&pod.id).await?;
    ensure!(
        status.info.values().any(|info| info.contains(&pod.id)),
        "the verbose status is {:?}",
        status.info
    );
    cx.is_shown(container, ContainerState::ContainerUnknown).await?;
    refuses_commands(cx, container).await?;
    for (what, answer) in [
        ("StopPodSandbox", cx.cri.stop_pod(&pod.id).await),
        ("RemovePodSandbox", cx.cri.remove_pod(&pod.id).await),
        (
            "CreateContainer",
            cx.cri.create(&pod.id, &cx.sleeper("new").like(&pod.config), &pod.config).await.map(drop),
        ),
    ] {
        let error = answer.err().with_context(|| format!("{what} succeeded"))?;
        ensure!(error.message().contains("is not managed"), "{what} was answered with {error}");
    }
    ensure!(proc::alive(pid), "the process {pid} of its container was killed");
    Ok(())
}

/// All commands on the container must fail because it is not managed.
async fn refuses_commands(cx: &Context, container: &str) -> Result<()> {
    for (what, answer) in [
        ("StopContainer", cx.cri.stop(container, 0).await),
        ("RemoveContainer", cx.cri.remove(container).await),
        ("StartContainer", cx.cri.start(container).await),
        ("ReopenContainerLog", cx.cri.reopen_log(container).await),
        ("ExecSync", cx.cri.exec_sync(container, &["/bin/true"], 5).await.map(drop)),
    ] {
        let error = answer.err().with_context(|| format!("{what} succeeded"))?;
        ensure!(error.message().contains("is not managed"), "{what} was answered with {error}");
    }
    Ok(())
}

/// Waits until an exec works, which shows that the daemon has applied the shim's snapshot.
async fn connected(cx: &Context, container: &str) -> Result<()> {
    wait::until("the daemon to connect to the shim", secs(10), || async {
        cx.exec_works(container).await.map(Some)
    })
    .await
}

/// Once its record is readable again, the pod is managed as before.
async fn pod_is_back(cx: &Context, pod: &Pod, container: &str, pid: u32) -> Result<()> {
    cx.pod_is_shown(&pod.id, PodSandboxState::SandboxReady).await?;
    connected(cx, container).await?;
    ensure!(
        cx.pid(container).await? == pid && proc::alive(pid),
        "the container's process is not {pid} any more"
    );
    Ok(cx.cri.drop_pod(&pod.id).await?)
}

async fn unreadable_pod_record_costs_its_management_alone(cx: Context) -> Result<()> {
    let (good, other, _) = cx.sleeping(cx.pod_config()).await?;
    let (bad, id, pid) = cx.sleeping(cx.pod_config()).await?;
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
    let (pod, id, pid) = cx.sleeping(cx.pod_config()).await?;
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

/// Checks that the container is listed, refuses all commands and still runs. Its pod is managed and its shim reports it,
/// so the daemon could take it for one without a record and kill it.
async fn container_is_kept(cx: &Context, id: &str, pid: u32, sibling: &str) -> Result<()> {
    connected(cx, sibling).await?;
    let listed = cx.cri.containers(None).await?;
    let shown = listed.iter().find(|it| it.id == *id).context("the container is not listed")?;
    ensure!(shown.state() == ContainerState::ContainerUnknown, "it is listed as {:?}", shown.state());
    refuses_commands(cx, id).await?;
    ensure!(proc::alive(pid), "its process {pid} was killed");
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

/// Restores a record, which the daemon must not have removed, and returns the given outcome.
async fn restored(cx: &Context, record: &Path, before: &[u8], outcome: Result<()>) -> Result<()> {
    cx.node.kill9()?;
    if !record.exists() {
        bail!("the daemon removed the record; before that: {outcome:?}");
    }
    fs::write(record, before)?;
    cx.node.launch().await?;
    outcome
}

async fn later_pod(cx: &Context, change: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (good, other, _) = cx.sleeping(cx.pod_config()).await?;
    let (later, id, pid) = cx.sleeping(cx.pod_config()).await?;
    cx.node.kill9()?;
    let record = pod_record(cx, &later.id);
    let before = fs::read(&record)?;
    change(&record)?;
    let changed = fs::read(&record)?;
    cx.node.launch().await?;
    let outcome = pod_is_kept(cx, &later, &id, pid, &other).await;
    let after = fs::read(&record);
    restored(cx, &record, &before, outcome).await?;
    ensure!(after? == changed, "the daemon changed the record");
    pod_is_back(cx, &later, &id, pid).await?;
    cx.cri.drop_pod(&good.id).await?;
    Ok(())
}

async fn container_record_of_a_later_version_keeps_its_container(cx: Context) -> Result<()> {
    let (pod, id, pid) = cx.sleeping(cx.pod_config()).await?;
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
        ensure!(
            shown.metadata.as_ref().is_some_and(|meta| meta.name == "main"),
            "its metadata is shown as {:?}",
            shown.metadata
        );
        let listed = cx.cri.containers(None).await?;
        ensure!(
            listed.iter().any(|it| it.id == id && it.pod_sandbox_id == pod.id),
            "it is not listed with its pod {}: {listed:?}",
            pod.id
        );
        Ok(())
    }
    .await;
    restored(&cx, &record, &before, outcome).await?;
    pod_is_back(&cx, &pod, &id, pid).await
}

/// kubelet takes the newest container of a name, and the newest attempt of a pod, for the current one. If that is one that
/// has ended, it starts another one for ever. The clock of a test cannot be set, so the earlier attempts are from the
/// future.
async fn new_attempts_are_newer_also_if_the_clock_was_set_back(cx: Context) -> Result<()> {
    let (pod, stopped) = (cx.pod().await?, cx.pod().await?);
    let first = cx.run(&pod, &cx.shell("main", "exit 1")).await?;
    cx.cri.stop_pod(&stopped.id).await?;
    cx.node.terminate().await?;
    for record in [container_record(&cx, &first.id), pod_record(&cx, &stopped.id)] {
        rewrite(&record, |data| {
            let created_at = data["created_at"].as_i64().unwrap_or_default();
            data["created_at"] = (created_at + 3_600_000_000_000).into();
        })?;
    }
    cx.node.launch().await?;
    let mut again = cx.sleeper("main");
    again.metadata.get_or_insert_default().attempt = 1;
    let again = cx.start(&pod, &again).await?;
    let (before, after) = (cx.cri.container(&first.id).await?, cx.cri.container(&again).await?);
    ensure!(after.created_at > before.created_at, "{after:?} is not newer than {before:?}");
    let mut config = stopped.config.clone();
    config.metadata.get_or_insert_default().attempt = 1;
    let second = cx.pod_of(config).await?;
    let created_at = async |id: &str| {
        let status = cx.cri.pod_status(id).await?.status.context("no status")?;
        anyhow::Ok(status.created_at)
    };
    let (before, after) = (created_at(&stopped.id).await?, created_at(&second.id).await?);
    ensure!(after > before, "the second attempt of a pod was created at {after}, the first one at {before}");
    for pod in [pod, stopped, second] {
        cx.cri.drop_pod(&pod.id).await?;
    }
    Ok(())
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
    cx.prints(&id, count, "14000").await.context("variables of an exec")?;
    cx.node.crash().await?;
    wait::until("the daemon to connect to the shim", secs(10), || async {
        cx.prints(&id, count, "14000").await.map(Some)
    })
    .await?;
    cx.cri.stop(&id, 10).await?;
    cx.exited_with(&id, 7).await?;
    cx.node.crash().await?;
    cx.exited_with(&id, 7).await.context("the exit was not recorded")?;
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

/// The environment may have megabytes, so a record has it once. Earlier builds stored it in the configuration too; the
/// container of such a record works as before.
async fn environment_is_stored_once(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = cx.sleeper("main").env("ONCE", "marked value").env("PATH", "/bin:/own");
    let id = cx.start(&pod, &config).await?;
    let want: Vec<(String, String)> =
        [("ONCE", "marked value"), ("PATH", "/bin:/own")].map(|(k, v)| (k.into(), v.into())).into();
    let record = container_record(&cx, &id);
    let text = fs::read_to_string(&record)?;
    ensure!(text.matches("marked value").count() == 1, "the environment is not once in the record {text}");
    let shown = shown_env(&cx, &id).await?;
    ensure!(shown == want, "the status shows the environment {shown:?} instead of {want:?}");
    cx.node.kill9()?;
    rewrite(&record, |data| {
        let envs: Vec<Value> =
            want.iter().map(|(key, value)| serde_json::json!({ "key": key, "value": value })).collect();
        data["config"]["envs"] = envs.into();
        data.as_object_mut().map(|data| data.remove("asked_env"));
    })?;
    cx.node.launch().await?;
    wait::until("an exec with the environment of an older record", secs(10), || async {
        cx.prints(&id, "echo $ONCE, $PATH", "marked value, /bin:/own").await.map(Some)
    })
    .await?;
    let shown = shown_env(&cx, &id).await?;
    ensure!(shown == want, "of an older record the status shows {shown:?} instead of {want:?}");
    Ok(())
}

async fn too_large_container_is_refused_before_it_is_created(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let mut config = cx.sleeper("main");
    for n in 0..90 {
        config = config.env(&format!("A{n}"), &"x".repeat(100_000));
    }
    let error = cx.create(&pod, &config).await.err().context("a record of 9 MB was accepted")?;
    ensure!(
        format!("{error:#}").contains("may have at most"),
        "the error does not give the limit: {error:#}"
    );
    let listed = cx.cri.containers(None).await?;
    ensure!(
        listed.iter().all(|it| it.pod_sandbox_id != pod.id),
        "the refused container is listed: {listed:?}"
    );
    cx.start(&pod, &cx.sleeper("main")).await.context("a container of the refused one's name")?;
    Ok(())
}

/// The shim's exit file is the only copy of the exit code until the record is written.
async fn exit_that_could_not_be_recorded_survives_stop_and_crash(cx: Context) -> Result<()> {
    let (pod, id, _) = cx.sleeping(cx.pod_config()).await?;
    // A folder at the path of the temporary file, so that no write succeeds.
    let obstacle = container_record(&cx, &id).with_file_name(".record.new");
    fs::create_dir(&obstacle)?;
    cx.cri.stop_pod(&pod.id).await.context("StopPodSandbox while the exit cannot be recorded")?;
    cx.node.kill9()?;
    fs::remove_dir(&obstacle)?;
    cx.node.launch().await?;
    let status = cx.cri.wait_exit(&id, secs(10)).await?;
    ensure!(status.exit_code == 137, "the exit code became {} ({})", status.exit_code, status.message);
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// A FIFO at the path of the temporary file simulates a disk that hangs: open(2) waits for a reader.
async fn exit_on_a_hung_disk_is_reported_and_survives_a_crash(cx: Context) -> Result<()> {
    let (other, healthy, _) = cx.sleeping(cx.pod_config()).await?;
    let (pod, id, _) = cx.sleeping(cx.pod_config()).await?;
    let fifo = container_record(&cx, &id).with_file_name(".record.new");
    mknod(&fifo, SFlag::S_IFIFO, Mode::S_IRUSR | Mode::S_IWUSR, 0).context("make a FIFO")?;
    let stopped = wait::timeout(secs(20), cx.cri.stop(&id, 0)).await;
    stopped.context("StopContainer waits for the disk")??;
    cx.exited_with(&id, 137).await?;
    cx.exec_works(&healthy).await?;
    cx.cri.stop(&healthy, 0).await.context("StopContainer of another pod")?;
    cx.node.kill9()?;
    fs::remove_file(&fifo)?;
    cx.node.launch().await?;
    let status = cx.cri.wait_exit(&id, secs(10)).await?;
    ensure!(status.exit_code == 137, "the exit code became {} ({})", status.exit_code, status.message);
    for pod in [pod, other] {
        cx.cri.drop_pod(&pod.id).await?;
    }
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
            let error = answer.err().with_context(|| format!("{what} succeeded"))?;
            ensure!(error.message().contains("later version"), "{what} was answered with {error}");
        }
        Ok(cx.cri.drop_pod(&pod.id).await?)
    }
    .await;
    let after = fs::read(&path);
    cx.node.kill9()?;
    fs::write(&path, before)?;
    cx.node.launch().await?;
    outcome?;
    ensure!(after? == changed, "the daemon changed the index");
    ensure!(cx.cri.images().await? == images, "with the index of this version other images are listed");
    Ok(())
}

async fn cni_lease_of_a_later_version_is_kept(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let path = cx.node.paths.root.join("network").join(&pod.id);
    let before = fs::read(&path)?;
    let mut lease: Value = serde_json::from_slice(&before)?;
    lease["version"] = 2.into();
    let later = lease.to_string();
    fs::write(&path, &later)?;
    // The pod ends, and DEL stays due: only a later copepod can read what it needs.
    cx.cri.drop_pod(&pod.id).await.context("the end of a pod with a lease of a later version")?;
    ensure!(fs::read_to_string(&path)? == later, "the lease was changed");
    ensure!(!cx.node.network.leased().is_empty(), "the address is free without a DEL");
    let shown = super::plugins::releases(&cx).await?.to_string();
    ensure!(
        shown.contains(&pod.id) && shown.contains("later version of copepod"),
        "verbose Status shows {shown}"
    );
    fs::write(&path, before)?;
    wait::until_true("DEL to be repeated", secs(60), || cx.node.network.leased().is_empty()).await?;
    ensure!(cx.node.network.leased().is_empty(), "the address leaked");
    Ok(())
}
