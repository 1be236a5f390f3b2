//! Relabelled volumes: who can access them, and what is not relabelled.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;

use super::{enforced, file_label, label, level};
use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::isolation::command;
use crate::runner::{Test, test};
use crate::shapes::ContainerExt as _;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(relabelled_volumes_belong_to_one_pod),
        test!(a_volume_that_fits_is_not_walked).ours(),
        test!(folders_of_the_node_keep_their_labels).ours(),
    ]
}

/// A sleeping container with a volume at /v.
fn with_volume(cx: &Context, name: &str, volume: &Path, selinux_relabel: bool) -> api::ContainerConfig {
    let mount = api::Mount {
        container_path: String::from("/v"),
        host_path: volume.display().to_string(),
        selinux_relabel,
        ..Default::default()
    };
    cx.sleeper(name).with(|c| c.mounts.push(mount))
}

async fn start(cx: &Context, pod: &Pod, name: &str, volume: &Path, relabel: bool) -> Result<String> {
    cx.start(pod, &with_volume(cx, name, volume, relabel)).await
}

async fn denied(cx: &Context, id: &str, line: &str) -> Result<()> {
    let out = cx.cri.exec(id, &["/bin/sh", "-c", line]).await?;
    ensure!(out.code != 0 && out.stderr.contains("denied"), "`{line}` was not denied: {out:?}");
    Ok(())
}

async fn relabelled_volumes_belong_to_one_pod(cx: Context) -> Result<()> {
    if !enforced(&cx)? {
        return Ok(());
    }
    let (volume, outside) = (cx.volume("v")?, cx.volume("outside")?.join("file"));
    fs::create_dir_all(volume.join("a/b"))?;
    for path in [volume.join("a/b/file"), volume.join("top"), outside.clone()] {
        fs::write(path, "secret\n")?;
    }
    std::os::unix::fs::symlink(&outside, volume.join("link"))?;
    let before = file_label(&outside)?;
    let pod = cx.pod().await?;
    // A volume of the host that nobody relabels is the host's. The policy lets containers read much of /var/lib.
    command("chcon", &["-R", "system_u:object_r:shadow_t:s0", &volume.display().to_string()])?;
    let plain = start(&cx, &pod, "plain", &volume, false).await?;
    denied(&cx, &plain, "cat /v/top").await?;
    let owner = start(&cx, &pod, "owner", &volume, true).await?;
    cx.prints(&owner, "cat /v/a/b/file /v/top; echo new > /v/a/new", "secret\nsecret").await?;
    let own = label(cx.pid(&owner).await?)?;
    let wanted = format!("system_u:object_r:container_file_t:{}", level(&own));
    for name in ["", "a", "a/b", "a/b/file", "a/new", "top"] {
        let found = file_label(&volume.join(name))?;
        ensure!(found == wanted, "{name:?} of the volume has the label {found:?} instead of {wanted:?}");
    }
    let after = file_label(&outside)?;
    ensure!(after == before, "the target of a symlink was relabelled from {before:?} to {after:?}");
    let other = cx.pod().await?;
    let intruder = start(&cx, &other, "intruder", &volume, false).await?;
    for line in ["cat /v/top", "ls /v", "echo x > /v/a/new"] {
        denied(&cx, &intruder, line).await?;
    }
    // It belongs to the pod that it was relabelled for last.
    start(&cx, &other, "taker", &volume, true).await?;
    cx.prints(&intruder, "cat /v/top", "secret").await?;
    denied(&cx, &owner, "cat /v/top").await
}

/// A label of its own deep in a volume that has the pod's label at its top stays: nothing below is looked at.
async fn a_volume_that_fits_is_not_walked(cx: Context) -> Result<()> {
    if !enforced(&cx)? {
        return Ok(());
    }
    let (volume, pod) = (cx.volume("v")?, cx.pod().await?);
    fs::create_dir(volume.join("a"))?;
    fs::write(volume.join("a/file"), "")?;
    start(&cx, &pod, "one", &volume, true).await?;
    let own = "system_u:object_r:container_ro_file_t:s0";
    command("chcon", &[own, &volume.join("a/file").display().to_string()])?;
    start(&cx, &pod, "two", &volume, true).await?;
    let found = file_label(&volume.join("a/file"))?;
    ensure!(found == own, "a file in a volume that fits was relabelled to {found:?}");
    // With another label at its top, it is walked to its end.
    command("chcon", &[own, &volume.join("a").display().to_string()])?;
    command("chcon", &[own, &volume.display().to_string()])?;
    let id = start(&cx, &pod, "three", &volume, true).await?;
    cx.cri.sh(&id, "echo x > /v/a/file").await?;
    Ok(())
}

async fn folders_of_the_node_keep_their_labels(cx: Context) -> Result<()> {
    if !enforced(&cx)? {
        return Ok(());
    }
    let pod = cx.pod().await?;
    for folder in ["/", "/etc", "/usr", "/var/lib", "/usr/../etc/."] {
        let before = file_label(Path::new(folder))?;
        let refused = cx.create(&pod, &with_volume(&cx, "refused", Path::new(folder), true)).await;
        let error = format!("{:#}", refused.err().with_context(|| format!("{folder} was relabelled"))?);
        ensure!(error.contains("SELinux") || error.contains("host_path"), "{folder}: {error}");
        let after = file_label(Path::new(folder))?;
        ensure!(before == after, "{folder}: the label changed from {before:?} to {after:?}");
    }
    // An unconfined container needs no label, and gives none.
    let volume = cx.volume("v")?;
    let before = file_label(&volume)?;
    let pod = cx.pod_of(crate::shapes::PodExt::privileged(cx.pod_config())).await?;
    let id = cx.start(&pod, &with_volume(&cx, "privileged", &volume, true).privileged()).await?;
    cx.cri.sh(&id, "echo x > /v/file").await?;
    let after = file_label(&volume)?;
    ensure!(before == after, "a privileged container has changed the label from {before:?} to {after:?}");
    Ok(())
}
