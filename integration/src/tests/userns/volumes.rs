//! Volumes of a pod with a user namespace: id-mapped, or refused with the reason.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, MountPropagation};
use nix::mount::{MntFlags, umount2};
use serde_json::json;
use tonic::Code;

use super::confined::mighty;
use super::{LENGTH, ids, inside, mapped, owner};
use crate::context::Context;
use crate::disk::{Disk, Mounted};
use crate::expect::{ensure, file_has};
use crate::images::Recipe;
use crate::images::layer::{Packing, Writer};
use crate::isolation::command;
use crate::runner::{Test, test};
use crate::shapes::ContainerExt as _;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(volumes_are_mapped),
        test!(read_only_with_the_mounts_below),
        test!(image_volumes_are_mapped).ours(),
        test!(mounts_of_the_host_arrive),
        test!(volumes_that_cannot_be_mapped_are_refused).ours(),
        test!(mappings_of_a_volume_are_those_of_the_pod).ours(),
    ]
}

/// A volume, id-mapped as kubelet asks for it.
pub(super) fn volume(config: api::ContainerConfig, from: &Path, at: &str, host: u32) -> api::ContainerConfig {
    config.mount(from, at, false, MountPropagation::PropagationPrivate).with(|c| {
        if let Some(mount) = c.mounts.last_mut() {
            (mount.uid_mappings, mount.gid_mappings) = (ids(host, LENGTH), ids(host, LENGTH));
        }
    })
}

/// Fills a volume as kubelet does with an fsGroup: the folder and its files belong to the group, and new files too.
fn with_group(folder: &Path, group: u32) -> Result<()> {
    fs::write(folder.join("of-root"), "root's\n")?;
    fs::write(folder.join("of-group"), "group's\n")?;
    chown(folder, None, Some(group))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o2775))?;
    chown(folder.join("of-group"), Some(1000), Some(group))?;
    Ok(fs::set_permissions(folder.join("of-group"), fs::Permissions::from_mode(0o660))?)
}

/// On the host, the files of a volume have the owners that they have inside: kubelet and other pods see them so.
async fn volumes_are_mapped(cx: Context) -> Result<()> {
    let (plain, tmpfs, ext4) = (cx.volume("plain")?, cx.volume("tmpfs")?, cx.volume("ext4")?);
    let _tmpfs = Mounted::tmpfs(&tmpfs, "size=1m")?;
    let _disk = Disk::mount(&ext4, 16, 128)?;
    let single = cx.volume("file")?.join("single");
    fs::write(&single, "one\n")?;
    let pod = cx.pod_of(mapped(&cx, 900_000, LENGTH)).await?;
    let mut config = volume(cx.sleeper("main"), &single, "/single", 900_000);
    for (folder, at) in [(&plain, "/plain"), (&tmpfs, "/tmpfs"), (&ext4, "/ext4")] {
        with_group(folder, 2000)?;
        config = volume(config, folder, at, 900_000);
    }
    // A volume on a volume, whose mount point is missing.
    config = volume(config, &cx.volume("nested")?, "/plain/new/nested", 900_000);
    let security = config.security();
    security.run_as_user = Some(api::Int64Value { value: 1234 });
    security.supplemental_groups = vec![2000];
    let id = cx.start(&pod, &config).await?;
    let root = cx.start(&pod, &volume(cx.sleeper("root"), &plain, "/plain", 900_000)).await?;
    for (folder, at) in [(&plain, "/plain"), (&tmpfs, "/tmpfs"), (&ext4, "/ext4")] {
        let list = format!("stat -c %u:%g {at} {at}/of-root {at}/of-group");
        cx.prints(&id, &list, "0:2000\n0:0\n1000:2000").await.with_context(|| at.to_owned())?;
        cx.cri
            .sh(
                &id,
                &format!(
                    "echo made > {at}/made; echo more >> {at}/of-group; ! echo x 2>/dev/null >> {at}/of-root"
                ),
            )
            .await?;
        let found = owner(&folder.join("made"))?;
        ensure!(found == (1234, 2000), "{at}/made belongs to {found:?} on the host");
        file_has(&folder.join("of-group"), "group's\nmore\n")?;
    }
    cx.prints(&id, "stat -c %u:%g /single /plain/new /plain/new/nested", "0:0\n0:2000\n0:0").await?;
    // Root of the container is root on its volumes.
    cx.cri.sh(&root, "echo x >> /plain/of-root; chown 5:6 /plain/made; touch /plain/roots").await?;
    ensure!(
        owner(&plain.join("made"))? == (5, 6) && owner(&plain.join("roots"))? == (0, 2000),
        "what root made"
    );
    // Without mappings the volume is not the pod's.
    let bare = cx.sleeper("bare").mount(&plain, "/plain", false, MountPropagation::PropagationPrivate);
    let bare = cx.start(&pod, &bare).await?;
    cx.prints(
        &bare,
        "stat -c %u:%g /plain/of-root; echo x 2>/dev/null >> /plain/of-root || echo no",
        "65534:65534\nno",
    )
    .await?;
    Ok(())
}

/// A volume that is id-mapped, and read-only together with a mount below it, which keeps the host's owners. Root of the
/// container cannot lift that with CAP_SYS_ADMIN.
async fn read_only_with_the_mounts_below(cx: Context) -> Result<()> {
    let host = cx.volume("rro")?;
    fs::create_dir(host.join("sub"))?;
    let _below = Mounted::tmpfs(&host.join("sub"), "size=1m,mode=0777")?;
    fs::write(host.join("top"), "x")?;
    let pod = cx.pod_of(mapped(&cx, 900_000, LENGTH)).await?;
    let config = volume(cx.sleeper("main"), &host, "/v", 900_000).with(|c| {
        c.mounts.iter_mut().for_each(|m| (m.readonly, m.recursive_read_only) = (true, true));
    });
    let id = cx.start(&pod, &mighty(config)).await?;
    cx.prints(&id, "stat -c %u:%g /v /v/top /v/sub", "0:0\n0:0\n65534:65534").await?;
    for line in ["echo x > /v/new", "echo x > /v/sub/new"] {
        let out = cx.cri.exec(&id, &["/bin/sh", "-c", line]).await?;
        ensure!(out.code != 0 && out.stderr.contains("Read-only"), "`{line}` gave {out:?}");
    }
    for place in ["/v", "/v/sub"] {
        let line = format!("mount -o remount,bind,rw {place} && echo x > {place}/new");
        let out = cx.cri.exec(&id, &["/bin/sh", "-c", &line]).await?;
        ensure!(out.code != 0, "{place} was made writable");
    }
    Ok(())
}

/// kubelet sends the pod's mappings for image volumes too; without them the owners are the same.
async fn image_volumes_are_mapped(cx: Context) -> Result<()> {
    let mut layer = Writer::new();
    layer.file("data/file", 0o600, b"data\n")?;
    let layers = [layer.finish(Packing::Gzip)?];
    let mut images = Vec::new();
    for (kind, recipe) in
        [("single", Recipe::new(&layers, json!({}))), ("empty", Recipe::new(&[], json!({})))]
    {
        let name = format!("{}-{kind}", cx.name);
        cx.fixture.registry.push(&name, "1", &recipe.build()).await?;
        let image = format!("registry.test/{name}:1");
        cx.need(&image).await?;
        images.push(image);
    }
    let many = crate::fixture::Fixture::image("whiteouts");
    cx.need(&many).await?;
    let image = |image: &str, place: &str, sub_path: &str| api::Mount {
        container_path: place.to_owned(),
        readonly: true,
        image: Some(api::ImageSpec { image: image.to_owned(), ..Default::default() }),
        image_sub_path: sub_path.to_owned(),
        uid_mappings: ids(900_000, LENGTH),
        gid_mappings: ids(900_000, LENGTH),
        ..Default::default()
    };
    let pod = cx.pod_of(mapped(&cx, 900_000, LENGTH)).await?;
    let bare =
        api::Mount { uid_mappings: Vec::new(), gid_mappings: Vec::new(), ..image(&images[0], "/bare", "") };
    let late = image(&images[0], "/dev/image", "data");
    let mounts =
        vec![image(&images[0], "/s", ""), image(&images[1], "/e", ""), image(&many, "/m", "w"), bare, late];
    let id = cx.start(&pod, &cx.sleeper("main").with(|c| c.mounts.extend(mounts))).await?;
    // The file can be read by its owner alone.
    cx.prints(&id, "cat /s/data/file /bare/data/file /dev/image/file", "data\ndata\ndata").await?;
    let list = "stat -c %u:%g /s /s/data/file /e /m/owned /bare/data/file /dev/image/file";
    cx.prints(&id, list, "0:0\n0:0\n0:0\n1234:5678\n0:0\n0:0").await?;
    for path in ["/s/x", "/e/x", "/m/x", "/dev/image/x"] {
        let out = cx.cri.exec(&id, &["/bin/sh", "-c", &format!("echo > {path}")]).await?;
        ensure!(out.code != 0 && out.stderr.contains("Read-only"), "{path} was written: {out:?}");
    }
    let pid = cx.pid(&id).await?;
    let found = owner(&inside(pid, "s/data/file"))?;
    ensure!(found == (900_000, 900_000), "the file belongs to {found:?} as the host sees it");
    Ok(())
}

/// HostToContainer works in a user namespace; what arrives keeps the host's owners, as with runc.
async fn mounts_of_the_host_arrive(cx: Context) -> Result<()> {
    let host = cx.volume("host")?;
    fs::create_dir(host.join("later"))?;
    let config = volume(cx.sleeper("main"), &host, "/host", 900_000).with(|c| {
        c.mounts.iter_mut().for_each(|m| m.set_propagation(MountPropagation::PropagationHostToContainer))
    });
    let pod = cx.pod_of(mapped(&cx, 900_000, LENGTH)).await?;
    let id = cx.start(&pod, &config).await?;
    let pid = cx.pid(&id).await?;
    let mounted = Mounted::tmpfs(&host.join("later"), "size=1m")?;
    fs::write(host.join("later/file"), "arrived\n")?;
    cx.prints(&id, "cat /host/later/file", "arrived").await?;
    drop(mounted);
    ensure!(!inside(pid, "host/later/file").exists(), "the host's unmount did not arrive");
    // The kernel lets no mount of such a pod propagate to the host, so a request for that is refused.
    let both = volume(cx.sleeper("both"), &host, "/host", 900_000).with(|c| {
        c.mounts.iter_mut().for_each(|m| m.set_propagation(MountPropagation::PropagationBidirectional))
    });
    let error = cx.create(&pod, &both).await.err().context("Bidirectional was accepted")?;
    ensure!(format!("{error:#}").contains("PROPAGATION_BIDIRECTIONAL"), "{error:#}");
    Ok(())
}

async fn volumes_that_cannot_be_mapped_are_refused(cx: Context) -> Result<()> {
    let folder = cx.volume("overlay")?;
    for name in ["lower", "upper", "work", "at"] {
        fs::create_dir(folder.join(name))?;
    }
    let path = |name: &str| folder.join(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", path("lower"), path("upper"), path("work"));
    let at = folder.join("at");
    command("mount", &["-t", "overlay", "-o", &options, "overlay", &path("at")])?;
    let pod = cx.pod_of(mapped(&cx, 900_000, LENGTH)).await?;
    let outcome = async {
        for (source, kind) in [(at.as_path(), "overlay"), (Path::new("/sys/kernel"), "sysfs")] {
            let config = volume(cx.sleeper("main"), source, "/v", 900_000).like(&pod.config);
            let created = cx.cri.create(&pod.id, &config, &pod.config);
            let error = created.await.err().with_context(|| format!("a volume on {kind} was accepted"))?;
            let text = error.message();
            let shown = source.display().to_string();
            ensure!(error.code() == Code::InvalidArgument, "{kind}: {error:?}");
            for part in [shown.as_str(), kind, "cannot id-map", "hostUsers: true"] {
                ensure!(text.contains(part), "{kind}: the error does not name {part:?}: {text}");
            }
        }
        anyhow::Ok(())
    };
    cx.need("registry.test/busybox:1").await?;
    let outcome = outcome.await;
    umount2(&at, MntFlags::MNT_DETACH)?;
    outcome?;
    // Nothing of the refused containers is left.
    ensure!(
        cx.cri.containers(None).await?.iter().all(|c| c.pod_sandbox_id != pod.id),
        "a refused container is listed"
    );
    Ok(())
}

async fn mappings_of_a_volume_are_those_of_the_pod(cx: Context) -> Result<()> {
    let folder = cx.volume("v")?;
    let pod = cx.pod_of(mapped(&cx, 900_000, LENGTH)).await?;
    let plain = cx.pod().await?;
    let refused = async |pod: &crate::context::Pod, config: &api::ContainerConfig| {
        let error = cx.create(pod, config).await.err().context("other mappings were accepted")?;
        ensure!(format!("{error:#}").contains("uidMappings"), "{error:#}");
        anyhow::Ok(())
    };
    refused(&pod, &volume(cx.sleeper("other"), &folder, "/v", 100_000)).await?;
    refused(&plain, &volume(cx.sleeper("plain"), &folder, "/v", 900_000)).await?;
    let half = volume(cx.sleeper("half"), &folder, "/v", 900_000)
        .with(|c| c.mounts.iter_mut().for_each(|m| m.gid_mappings.clear()));
    refused(&pod, &half).await
}
