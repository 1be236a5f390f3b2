//! A pod with `hostUsers: false`.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::manifests::{pod, probe, shell, with, with_spec};
use super::view::{self, View};
use super::{Check, Rig, check};
use crate::cgroup;
use crate::disk::Disk;
use crate::expect::ensure;
use crate::isolation::command;
use crate::wait::{self, secs};

/// The checks in the order they run.
pub(crate) fn all() -> Vec<Check> {
    vec![check!(user_namespace)]
}

/// The owner of volumes: an fsGroup is set by kubelet on the first two alone, so the test sets it on the others.
const GROUP: u32 = 2000;

/// Volumes of kubelet's disk, memory, a folder of the host and an ext4, in a container of a user and in one of root with
/// CAP_SYS_ADMIN; the logs tell what they see and what they may do.
fn manifest(host: &Path, ext4: &Path) -> Value {
    let places = json!([
        {"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"}, {"name": "host", "mountPath": "/host"},
        {"name": "ext4", "mountPath": "/ext4"}, {"name": "disk", "mountPath": "/sub", "subPath": "deep/er"},
    ]);
    let mounts = json!({
        "volumeMounts": places,
        "securityContext": {"runAsUser": 1234},
        "livenessProbe": with(
            probe(json!({"exec": {"command": ["/bin/sh", "-c", "test $(id -u) = 1234 && test -e /disk/made"]}})),
            &json!({"initialDelaySeconds": 2}),
        ),
    });
    let script = "echo map $(cat /proc/self/uid_map); id; for v in /disk /memory /ext4 /sub; do echo x > $v/made; stat -c '%u:%g %n' $v $v/made; done; \
                  stat -c '%u:%g %n' /host/of-root /etc/hosts; for v in / /memory /ext4; do grep -o \" $v [a-z0-9]* \" /proc/mounts; done; \
                  ls / > /dev/termination-log && echo termination; trap 'exit 0' TERM; while :; do sleep 0.2; done";
    // The default AppArmor profile would forbid mounts before the kernel's own rules are asked.
    let root = json!({"volumeMounts": places, "securityContext": {
        "runAsUser": 0, "capabilities": {"add": ["SYS_ADMIN", "MKNOD"]}, "appArmorProfile": {"type": "Unconfined"},
    }});
    let may = "mount -t tmpfs none /mnt && echo may mount; touch /ext4/of-pods-root /disk/of-pods-root && echo may write; \
               chown 5:6 /ext4/of-pods-root && echo may chown; \
               may() { (eval \"$2\") 2>/dev/null && echo MAY $1 || echo may not $1; }; \
               may unmount 'umount /ext4'; may remount 'mount -o remount,bind,rw /sys'; may mknod 'mknod /tmp/x b 7 0'; \
               may set 'exec 3>>/proc/sys/kernel/core_pattern'; may cgroup 'mkdir /sys/fs/cgroup/memory/x || mkdir /sys/fs/cgroup/x'; \
               echo map $(cat /proc/self/uid_map); echo end; trap 'exit 0' TERM; while :; do sleep 0.2; done";
    with_spec(
        pod("users", json!([with(shell("main", script), &mounts), with(shell("root", may), &root)])),
        &json!({
            "hostUsers": false, "securityContext": {"fsGroup": GROUP},
            "volumes": [
                {"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}}, {"name": "host", "hostPath": {"path": host}},
                {"name": "ext4", "hostPath": {"path": ext4}},
            ],
        }),
    )
}

/// What a container of the pod has logged, once the log has this line.
async fn logged(rig: &Rig, container: &str, end: &str) -> Result<String> {
    wait::until(&format!("the log of {container}"), secs(40), || async {
        let log = rig.kubelet.container_log("default", "users-node1", container, "")?;
        Ok(log.lines().any(|l| l == end).then_some(log))
    })
    .await
}

fn owner(path: &Path) -> Result<(u32, u32)> {
    let found = fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok((found.uid(), found.gid()))
}

/// The mapping that kubelet has chosen, as the kernel shows it; volumes of a disk, memory, the host and an ext4 with an
/// fsGroup, as they are seen inside and outside; what root inside may do; execs: of a probe, and through kubelet.
async fn user_namespace(rig: &Rig) -> Result<()> {
    // An earlier check has done this, unless only this one runs.
    rig.node.network.install()?;
    let host = rig.node.paths.dir.join("users-volume");
    fs::create_dir_all(&host)?;
    fs::write(host.join("of-root"), "host content\n")?;
    let ext4 = rig.node.paths.dir.join("users-ext4");
    fs::create_dir_all(&ext4)?;
    let _disk = Disk::mount(&ext4, 16, 128)?;
    chown(&ext4, None, Some(GROUP))?;
    fs::set_permissions(&ext4, fs::Permissions::from_mode(0o2775))?;
    rig.kubelet.apply(&manifest(&host, &ext4))?;
    let seen = view::ready(rig, "users").await?;
    let first = inside(rig).await?;
    outside(rig, &seen, &ext4, first).await?;
    refused_volume(rig).await?;
    // Several probes have run in this time.
    tokio::time::sleep(secs(3)).await;
    let later = view::ready(rig, "users").await?;
    ensure!(later.restarts("main")? == 0, "a probe failed: {}", later.status());
    rig.kubelet.delete("users")?;
    wait::until("the pod's end", secs(40), || async {
        Ok(view::find(rig, "users").await?.is_none().then_some(()))
    })
    .await
}

/// What the pod's containers see and may do. Returns the first id of the pod on the host.
async fn inside(rig: &Rig) -> Result<u32> {
    let log = logged(rig, "main", "termination").await?;
    let map = log.lines().find_map(|l| l.strip_prefix("map ")).context("no map")?;
    let words: Vec<u32> = map.split(' ').map(str::parse).collect::<std::result::Result<_, _>>()?;
    let [0, first, 65_536] = words[..] else { anyhow::bail!("the map is {map}") };
    ensure!(first >= 65_536 && first % 65_536 == 0, "kubelet's range begins at {first}");
    for wanted in [
        "uid=1234 ",
        "2000",
        "1234:2000 /disk/made",
        "1234:2000 /memory/made",
        "1234:2000 /ext4/made",
        "0:2000 /ext4\n",
        "0:0 /host/of-root",
        "0:0 /etc/hosts",
        " / overlay ",
        " /memory tmpfs ",
        " /ext4 ext4 ",
    ] {
        ensure!(log.contains(wanted), "no {wanted:?} in {log}");
    }
    let may = logged(rig, "root", "end").await?;
    ensure!(may.contains(&format!("map {map}\n")), "another map in the pod's other container: {may}");
    for wanted in ["may mount", "may write", "may chown"] {
        ensure!(may.lines().any(|l| l == wanted), "no {wanted:?} in {may}");
    }
    for what in ["unmount", "remount", "mknod", "set", "cgroup"] {
        ensure!(may.lines().any(|l| l == format!("may not {what}")), "root inside may {what}: {may}");
    }
    Ok(first)
}

/// On the host, volumes have the owners that they have inside, and processes those of the map.
async fn outside(rig: &Rig, seen: &View, ext4: &Path, first: u32) -> Result<()> {
    ensure!(owner(&ext4.join("made"))? == (1234, GROUP), "the owner outside of what a user made");
    ensure!(owner(&ext4.join("of-pods-root"))? == (5, 6), "the owner outside of what root gave away");
    let place = rig.node.paths.dir.display().to_string();
    let found = command("find", &[&place, "-path", "*empty-dir/disk/of-pods-root"])?;
    ensure!(owner(Path::new(found.trim()))? == (0, GROUP), "the owner outside of what root made: {found:?}");
    for (container, uid) in [("main", first + 1234), ("root", first)] {
        let id = seen.container_id(container)?;
        let pid = cgroup::members(&cgroup::find("memory", &id).context("no cgroup")?)
            .into_iter()
            .next()
            .context("no process")?;
        let ids = crate::proc::status(pid)?.get("Uid").cloned().unwrap_or_default();
        ensure!(ids.starts_with(&format!("{uid}\t")), "{container} has the ids {ids} on the host");
        let out = rig.node.cri.sh(&id, "cat /proc/self/uid_map | tr -s ' '; id -u").await?;
        let inside = uid - first;
        ensure!(out.trim() == format!("0 {first} 65536\n{inside}"), "an exec in {container} printed {out:?}");
    }
    Ok(())
}

/// A volume on an overlay, which the kernel cannot id-map: the pod's status says so.
async fn refused_volume(rig: &Rig) -> Result<()> {
    let folder = rig.node.paths.dir.join("users-overlay");
    for name in ["lower", "upper", "work", "at"] {
        fs::create_dir_all(folder.join(name))?;
    }
    let path = |name: &str| folder.join(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", path("lower"), path("upper"), path("work"));
    command("mount", &["-t", "overlay", "-o", &options, "overlay", &path("at")])?;
    let outcome = async {
        let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
        rig.kubelet.apply(&with_spec(
            pod("overlaid", json!([with(shell("main", "sleep 100000"), &mounts)])),
            &json!({"hostUsers": false, "volumes": [{"name": "v", "hostPath": {"path": path("at")}}]}),
        ))?;
        wait::until("the reason of the refusal", secs(60), || async {
            let Some(view) = view::find(rig, "overlaid").await? else { return Ok(None) };
            let text = view.status();
            Ok((text.contains("overlay") && text.contains("cannot id-map")).then_some(()))
        })
        .await?;
        rig.kubelet.delete("overlaid")?;
        wait::until("the end of the refused pod", secs(60), || async {
            Ok(view::find(rig, "overlaid").await?.is_none().then_some(()))
        })
        .await
    };
    let outcome = outcome.await;
    command("umount", &["--lazy", &path("at")])?;
    outcome
}
