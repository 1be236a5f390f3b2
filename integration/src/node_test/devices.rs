//! A device plugin: what it gives for a device is in the container of the pod that asked for it, and the next pod that asks is
//! refused by kubelet.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::manifests::{pod, sleeper, with, with_spec};
use super::plugin::{Given, Plugin, RESOURCE, v1beta1};
use super::view;
use super::{Check, Rig, check};
use crate::expect::ensure;

/// The check.
pub(crate) fn all() -> Vec<Check> {
    vec![check!(device_plugin_gives_its_device)]
}

/// A device that containers do not have by default, that every host has, and that does nothing when it is opened.
const DEVICE: &str = "/dev/loop-control";

/// A pod that asks for a device.
fn asks(name: &str) -> Value {
    let container = with(sleeper("main"), &json!({"resources": {"limits": {RESOURCE: "1"}}}));
    with_spec(pod(name, json!([container])), &json!({"hostNetwork": true}))
}

async fn device_plugin_gives_its_device(rig: &Rig) -> Result<()> {
    let library = rig.node.paths.dir.join("plugin-library");
    fs::create_dir_all(&library)?;
    fs::write(library.join("driver"), "a library of the host")?;
    let library = library.display().to_string();
    let _plugin = Plugin::start(Given {
        envs: HashMap::from([("THING_VISIBLE".into(), "the only one".into())]),
        mounts: vec![v1beta1::Mount {
            container_path: "/opt/thing".into(),
            host_path: library,
            read_only: true,
        }],
        devices: vec![v1beta1::DeviceSpec {
            container_path: "/dev/things/first".into(),
            host_path: DEVICE.into(),
            permissions: "r".into(),
        }],
        annotations: HashMap::from([("copepod.test/given".into(), "by the plugin".into())]),
    })
    .await?;
    rig.kubelet.apply(&asks("has-device"))?;
    let id = view::ready(rig, "has-device").await?.container_id("main")?;
    has_it(rig, &id).await?;
    rig.kubelet.apply(&asks("has-none"))?;
    let refused = view::until(rig, "has-none", "refused", 60, |v| v.phase() == "Failed").await?;
    ensure!(refused.status().contains(RESOURCE), "it is refused for {}", refused.status());
    rig.node.crash().await?;
    has_it(rig, &id).await.context("after copepod was killed")?;
    rig.kubelet.delete("has-none")?;
    rig.kubelet.delete("has-device")
}

/// Device, variable, mount and annotation are in the container as the plugin gave them.
async fn has_it(rig: &Rig, id: &str) -> Result<()> {
    let node = &rig.node.cri;
    let of_host = fs::metadata(DEVICE).context(DEVICE)?;
    let number = std::os::unix::fs::MetadataExt::rdev(&of_host);
    let wanted = format!("{:x}:{:x}", nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let found = node.sh(id, "test -c /dev/things/first && stat -c %t:%T /dev/things/first").await?;
    ensure!(found == wanted, "the device is {found}, not {wanted}");
    node.sh(id, "exec 3</dev/things/first").await.context("read the device")?;
    // The plugin gave it to be read only.
    let written = node.sh(id, "(exec 3>/dev/things/first) 2>&1 || true").await?;
    ensure!(written.contains("Operation not permitted"), "writing to the device says {written:?}");
    let visible = node.sh(id, "echo $THING_VISIBLE").await?;
    ensure!(visible == "the only one", "the variable is {visible:?}");
    let read = node.sh(id, "cat /opt/thing/driver").await?;
    ensure!(read == "a library of the host", "the mount has {read:?}");
    let changed = node.sh(id, "touch /opt/thing/new 2>&1 || true").await?;
    ensure!(changed.contains("Read-only file system"), "writing to the mount says {changed:?}");
    let annotations = node.container(id).await?.annotations;
    let given = annotations.get("copepod.test/given").map(String::as_str);
    ensure!(given == Some("by the plugin"), "the annotations are {annotations:?}");
    Ok(())
}
