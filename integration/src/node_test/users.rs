//! A pod with `hostUsers: false`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::manifests::{pod, shell, with, with_spec};
use super::{Check, Rig, check, view};
use crate::cgroup;
use crate::expect::ensure;
use crate::wait::{self, secs};

/// The checks in the order they run.
pub(crate) fn all() -> Vec<Check> {
    vec![check!(user_namespace)]
}

/// Three kinds of volumes with an fsGroup; the log tells what the pod sees.
fn manifest(host: &Path) -> Value {
    let mounts = json!({
        "volumeMounts": [
            {"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"}, {"name": "host", "mountPath": "/host"},
            {"name": "disk", "mountPath": "/sub", "subPath": "deep/er"},
        ],
        "securityContext": {"runAsUser": 1234},
        "livenessProbe": {"exec": {"command": ["/bin/sh", "-c", "test $(id -u) = 1234 && test -e /disk/made"]}, "periodSeconds": 1, "initialDelaySeconds": 2},
    });
    let script = "echo map $(cat /proc/self/uid_map); id; for v in /disk /memory /sub; do echo x > $v/made; stat -c '%u:%g %n' $v $v/made; done; \
                  stat -c '%u:%g %n' /host/of-root /etc/hosts; ls / > /dev/termination-log && echo termination; \
                  trap 'exit 0' TERM; while :; do sleep 0.2; done";
    with_spec(
        pod("users", json!([with(shell("main", script), &mounts)])),
        &json!({
            "hostUsers": false, "securityContext": {"fsGroup": 2000},
            "volumes": [{"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}}, {"name": "host", "hostPath": {"path": host}}],
        }),
    )
}

/// The mapping that kubelet has chosen, as the kernel shows it; volumes of a disk, memory and the host with an fsGroup; a
/// probe, which is an exec.
async fn user_namespace(rig: &Rig) -> Result<()> {
    // An earlier check has done this, unless only this one runs.
    rig.node.network.install()?;
    let host = rig.node.paths.dir.join("users-volume");
    fs::create_dir_all(&host)?;
    fs::write(host.join("of-root"), "host content\n")?;
    rig.kubelet.apply(&manifest(&host))?;
    let seen = view::ready(rig, "users").await?;
    let log = wait::until("the log of users", secs(40), || async {
        let log = rig.kubelet.container_log("default", "users-node1", "main", "")?;
        Ok(log.contains("termination").then_some(log))
    })
    .await?;
    let map = log.lines().find_map(|l| l.strip_prefix("map ")).context("no map")?;
    let words: Vec<u32> = map.split(' ').map(str::parse).collect::<std::result::Result<_, _>>()?;
    let [0, first, 65_536] = words[..] else { anyhow::bail!("the map is {map}") };
    ensure!(first >= 65_536 && first % 65_536 == 0, "kubelet's range begins at {first}");
    for wanted in [
        "uid=1234 ",
        "2000",
        "1234:2000 /disk/made",
        "1234:2000 /memory/made",
        "0:0 /host/of-root",
        "0:0 /etc/hosts",
    ] {
        ensure!(log.contains(wanted), "no {wanted:?} in {log}");
    }
    let id = seen.container_id("main")?;
    let pid = cgroup::members(&cgroup::find("memory", &id).context("no cgroup")?)
        .into_iter()
        .next()
        .context("no process")?;
    let uid = crate::proc::status(pid)?.get("Uid").cloned().unwrap_or_default();
    ensure!(uid.starts_with(&format!("{}\t", first + 1234)), "the process has the ids {uid} on the host");
    // Several probes run in this time.
    tokio::time::sleep(secs(4)).await;
    let later = view::ready(rig, "users").await?;
    ensure!(later.restarts("main")? == 0, "a probe failed: {}", later.status());
    rig.kubelet.delete("users")
}
