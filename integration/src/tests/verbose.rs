//! Verbose replies: the keys that crictl's users read, with the values that are seen from outside (docs/crictl.md).

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use nix::sys::stat::stat;
use serde_json::{Value, json};

use crate::context::{Context, Pod};
use crate::expect::{ensure, file_has};
use crate::fixture::Fixture;
use crate::images;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::wait;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(a_pods_info).ours(),
        test!(a_containers_info).ours(),
        test!(an_images_info).ours(),
        test!(the_runtimes_info).own(),
    ]
}

/// The JSON under `info`.
fn parsed(info: &HashMap<String, String>) -> Result<Value> {
    Ok(serde_json::from_str(info.get("info").context("the verbose reply has no key `info`")?)?)
}

/// Every value must be at its path (RFC 6901).
fn has(reply: &Value, wanted: &[(&str, Value)]) -> Result<()> {
    for (path, value) in wanted {
        let found = reply.pointer(path);
        ensure!(found == Some(value), "{path} is {found:?} instead of {value}");
    }
    Ok(())
}

/// The path of a namespace in a `runtimeSpec` must lead to the namespace of this process.
fn is_namespace_of(spec: &Value, kind: &str, pid: u32) -> Result<()> {
    let namespaces = spec.pointer("/linux/namespaces").and_then(Value::as_array).context("no namespaces")?;
    let entry =
        namespaces.iter().find(|n| n["type"] == kind).with_context(|| format!("no {kind} namespace"))?;
    let path = entry["path"].as_str().with_context(|| format!("the {kind} namespace has no path"))?;
    let file = if kind == "network" { "net" } else { kind };
    let (named, own) = (stat(path)?, stat(format!("/proc/{pid}/ns/{file}").as_str())?);
    ensure!(
        (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino),
        "{path} is not the {kind} namespace of process {pid}"
    );
    Ok(())
}

/// A pod with its own network and a memory limit.
async fn limited(cx: &Context) -> Result<Pod> {
    let mut config = cx.pod_config().own_network().label("k", "v");
    let resources = api::LinuxContainerResources { memory_limit_in_bytes: 1 << 30, ..Default::default() };
    config.linux.get_or_insert_default().resources = Some(resources);
    cx.pod_of(config).await
}

async fn a_pods_info(cx: Context) -> Result<()> {
    let pod = limited(&cx).await?;
    let container = cx.start(&pod, &cx.sleeper("one")).await?;
    let reply = cx.cri.pod_status(&pod.id).await?;
    let info = parsed(&reply.info)?;
    let status = reply.status.context("no status")?;
    let address = status.network.context("no network")?.ip;
    let (meta, linux) =
        (pod.config.metadata.clone().unwrap_or_default(), pod.config.linux.clone().unwrap_or_default());
    has(
        &info,
        &[
            ("/pid", json!(cx.node.pause(&pod.id)?.pid)),
            ("/shimPid", json!(cx.node.shim(&pod.id)?.pid)),
            ("/processStatus", json!("running")),
            ("/netNamespaceClosed", json!(false)),
            ("/cniResult/Interfaces/eth0/IPConfigs/0/IP", json!(address)),
            ("/resources/memory_limit_in_bytes", json!(1 << 30)),
            ("/config/metadata/name", json!(meta.name)),
            ("/config/metadata/uid", json!(meta.uid)),
            ("/config/labels/k", json!("v")),
            ("/config/linux/cgroup_parent", json!(linux.cgroup_parent)),
            ("/config/linux/security_context/namespace_options/network", json!(0)),
            ("/runtimeSpec/linux/cgroupsPath", json!(linux.cgroup_parent)),
        ],
    )?;
    is_namespace_of(&info["runtimeSpec"], "network", cx.pid(&container).await?)?;
    cx.cri.stop_pod(&pod.id).await?;
    let stopped = parsed(&cx.cri.pod_status(&pod.id).await?.info)?;
    has(&stopped, &[("/processStatus", json!("deleted")), ("/netNamespaceClosed", json!(true))])
}

async fn a_containers_info(cx: Context) -> Result<()> {
    let pod = limited(&cx).await?;
    let config = cx
        .sleeper("one")
        .env("KEY", "value")
        .mount(&cx.volume("data")?, "/data", true, api::MountPropagation::PropagationPrivate)
        .with(|c| {
            c.resources().cpu_shares = 512;
            c.security().run_as_user = Some(api::Int64Value { value: 1000 });
            c.security().no_new_privs = true;
        });
    let id = cx.start(&pod, &config).await?;
    let info = parsed(&cx.cri.container_response(&id).await?.info)?;
    let volume = config.mounts.first().map(|m| m.host_path.clone());
    has(
        &info,
        &[
            ("/sandboxID", json!(pod.id)),
            ("/removing", json!(false)),
            ("/snapshotter", json!("overlayfs")),
            ("/snapshotKey", json!(id)),
            ("/privileged", json!(false)),
            ("/config/metadata/name", json!("one")),
            ("/config/envs/0", json!({ "key": "KEY", "value": "value" })),
            ("/config/mounts/0/host_path", json!(volume)),
            ("/config/linux/resources/cpu_shares", json!(512)),
            ("/config/linux/security_context/run_as_user/value", json!(1000)),
            ("/runtimeSpec/process/args", json!(["/bin/sleep", "100000"])),
            ("/runtimeSpec/process/user/uid", json!(1000)),
            ("/runtimeSpec/process/noNewPrivileges", json!(true)),
            ("/runtimeSpec/mounts/0/source", json!(volume)),
            ("/runtimeSpec/linux/resources/cpu/shares", json!(512)),
        ],
    )?;
    let pid = u32::try_from(info["pid"].as_u64().context("no pid")?)?;
    file_has(Path::new(&format!("/proc/{pid}/comm")), "sleep\n")?;
    for kind in ["network", "ipc", "uts"] {
        is_namespace_of(&info["runtimeSpec"], kind, pid)?;
    }
    let text = |path: &str| info.pointer(path).and_then(Value::as_str).with_context(|| format!("no {path}"));
    file_has(&Path::new(text("/runtimeSpec/root/path")?).join("etc/marker"), "from the image\n")?;
    let cgroup = text("/runtimeSpec/linux/cgroupsPath")?;
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    ensure!(
        groups.contains(&format!(":{cgroup}\n")),
        "{cgroup} is not the cgroup of process {pid}: {groups}"
    );
    Ok(())
}

async fn an_images_info(cx: Context) -> Result<()> {
    let name = Fixture::image("nginx");
    cx.need(&name).await?;
    let request = api::ImageStatusRequest {
        image: Some(api::ImageSpec { image: name, ..Default::default() }),
        verbose: true,
    };
    let info = parsed(&cx.cri.images.clone().image_status(request).await?.into_inner().info)?;
    let layers = &cx.fixture.layers;
    let ids = [&layers.busybox.diff_id, &layers.nginx.diff_id];
    has(
        &info,
        &[
            ("/chainID", json!(images::digest(format!("{} {}", ids[0], ids[1]).as_bytes()))),
            ("/imageSpec/architecture", json!("amd64")),
            ("/imageSpec/os", json!("linux")),
            ("/imageSpec/created", json!("2026-01-01T00:00:00Z")),
            ("/imageSpec/rootfs/diff_ids", json!(ids)),
            ("/imageSpec/history/0/created_by", json!("copepod tests")),
            ("/imageSpec/config/Entrypoint/0", json!("/usr/sbin/nginx")),
            ("/imageSpec/config/StopSignal", json!("SIGQUIT")),
        ],
    )
}

async fn the_runtimes_info(cx: Context) -> Result<()> {
    let status = cx.cri.status(true).await?;
    let key = |key: &str| status.info.get(key).cloned().with_context(|| format!("no key {key}"));
    ensure!(key("lastCNILoadStatus")? == "OK", "lastCNILoadStatus is {}", key("lastCNILoadStatus")?);
    let cni: Value = serde_json::from_str(&key("cniconfig")?)?;
    has(
        &cni,
        &[
            ("/PluginConfDir", json!(cx.node.network.conf_dir)),
            ("/PluginDirs/0", json!(cx.node.network.bin_dir)),
            ("/Networks/0/Config/Name", json!(format!("net-{}", cx.node.network.bridge))),
        ],
    )?;
    let config: Value = serde_json::from_str(&key("config")?)?;
    has(
        &config,
        &[
            ("/rootDir", json!(cx.node.paths.root)),
            ("/stateDir", json!(cx.node.paths.run)),
            ("/streaming/tlsCertificate", Value::Null),
        ],
    )?;
    cx.node.network.uninstall()?;
    wait::until("lastCNILoadStatus to say why there is no network", wait::secs(10), || async {
        let status = cx.cri.status(true).await?;
        let last = status.info.get("lastCNILoadStatus").cloned().unwrap_or_default();
        let condition = cx.cri.condition("NetworkReady").await?;
        Ok((!condition.status && last == condition.message).then_some(()))
    })
    .await
}
