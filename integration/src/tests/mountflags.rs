//! Flags of volumes: read-only recursively, mount options, huge pages.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;

use super::mounts::{PRIVATE, SHARED, SLAVE, privileged, unmount};
use super::propagation::Playground;
use super::security::id;
use crate::cgroup::{self, Limit};
use crate::context::Context;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::isolation::command;
use crate::proc::mount_options as options;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(read_only_with_the_mounts_below),
        test!(read_only_recursively_is_refused_where_it_cannot_hold),
        test!(mount_options_take_effect).ours(),
        test!(mount_options_do_not_lift_flags_of_the_host).ours(),
        test!(huge_pages_of_a_volume),
        test!(huge_pages_are_limited_or_refused).ours(),
    ]
}

fn recursive(source: &Path, place: &str) -> api::Mount {
    api::Mount {
        container_path: place.to_owned(),
        host_path: source.display().to_string(),
        readonly: true,
        recursive_read_only: true,
        ..Default::default()
    }
}

async fn read_only_with_the_mounts_below(cx: Context) -> Result<()> {
    let ground = Playground::new(&cx, "rro")?;
    let deep = ground.path("v/sub/deep")?;
    super::mounts::tmpfs(&ground.path("v/sub")?)?;
    super::mounts::tmpfs(&deep)?;
    fs::write(deep.join("file"), "host")?;
    let pod = privileged(&cx).await?;
    let source = ground.0.join("v");
    let config = cx.sleeper("one").privileged().mount(&source, "/plain", true, PRIVATE);
    let c = cx.start(&pod, &config.with(|c| c.mounts.push(recursive(&source, "/all")))).await?;
    cx.prints(&c, "cat /all/sub/deep/file", "host").await?;
    for (path, writable) in [
        ("/all/x", false),
        ("/all/sub/x", false),
        ("/all/sub/deep/x", false),
        ("/plain/x", false),
        ("/plain/sub/x", true),
    ] {
        let out = cx.cri.exec(&c, &["/bin/sh", "-c", &format!("echo x > {path}")]).await?;
        ensure!(
            (out.code == 0) == writable && (writable || out.stderr.contains("Read-only")),
            "writing {path}, which must be {}: {out:?}",
            if writable { "possible" } else { "refused" }
        );
    }
    let pid = cx.pid(&c).await.ok().filter(|_| !cx.node.is_foreign());
    for point in ["/all", "/all/sub", "/all/sub/deep"] {
        let Some(pid) = pid else { break };
        let found = options(pid, point)?;
        ensure!(found.contains(&String::from("ro")), "{point} has the options {found:?}");
    }
    // Nothing of the host has changed, and a later mount of the host does not come in.
    fs::write(deep.join("later"), "x")?;
    super::mounts::tmpfs(&ground.path("v/late")?)?;
    fs::write(ground.0.join("v/late/file"), "x")?;
    ensure!(cx.cri.exec(&c, &["ls", "/all/late/file"]).await?.code != 0, "a writable mount came in later");
    let shown: Vec<_> = cx
        .cri
        .container(&c)
        .await?
        .mounts
        .into_iter()
        .map(|mount| (mount.container_path, mount.readonly, mount.recursive_read_only))
        .collect();
    for wanted in [(String::from("/plain"), true, false), (String::from("/all"), true, true)] {
        ensure!(shown.contains(&wanted), "status shows {shown:?} without {wanted:?}");
    }
    Ok(())
}

async fn read_only_recursively_is_refused_where_it_cannot_hold(cx: Context) -> Result<()> {
    let ground = Playground::new(&cx, "rro")?;
    let pod = privileged(&cx).await?;
    let source = ground.path("v")?;
    for (field, readonly, propagation) in
        [("propagation", true, SLAVE), ("propagation", true, SHARED), ("readonly", false, PRIVATE)]
    {
        let mount = api::Mount { readonly, propagation: propagation.into(), ..recursive(&source, "/v") };
        let refused = cx.create(&pod, &cx.sleeper("one").with(|c| c.mounts.push(mount))).await;
        let text = format!("{:#}", refused.err().with_context(|| format!("{propagation:?}: accepted"))?);
        ensure!(
            cx.node.is_foreign() || text.contains(&format!("mounts[0].{field}")),
            "the error does not name {field}: {text}"
        );
    }
    Ok(())
}

/// A volume with a script, a set-uid program and a device node.
fn contents(source: &Path) -> Result<()> {
    fs::write(source.join("script"), "#!/bin/sh\necho ran\n")?;
    fs::set_permissions(source.join("script"), fs::Permissions::from_mode(0o755))?;
    fs::copy("/usr/bin/id", source.join("suid"))?;
    fs::set_permissions(source.join("suid"), fs::Permissions::from_mode(0o4755))?;
    command("mknod", &["-m", "666", &source.join("null").display().to_string(), "c", "1", "3"])?;
    Ok(())
}

async fn mount_options_take_effect(cx: Context) -> Result<()> {
    let source = cx.volume("options")?;
    contents(&source)?;
    let pod = cx.pod().await?;
    for (name, given) in [
        ("none", vec![]),
        ("noexec", vec!["noexec"]),
        ("nosuid", vec!["nosuid"]),
        ("nodev", vec!["nodev"]),
        ("all", vec!["nodev", "noexec", "nosuid"]),
    ] {
        let given: Vec<String> = given.into_iter().map(str::to_owned).collect();
        let config = shapes::container(name, &Fixture::image("tools"), &["/bin/sleep", "100000"]);
        let config = config.mount(&source, "/v", false, PRIVATE).with(|c| {
            c.mounts[0].mount_options = given.clone();
            c.security().run_as_user = id(1000);
        });
        let c = cx.start(&pod, &config).await?;
        let has = |option: &str| given.iter().any(|have| have == option);
        let script = cx.cri.exec(&c, &["/v/script"]).await;
        let ran = script.is_ok_and(|out| out.code == 0);
        ensure!(ran != has("noexec"), "{name}: running a script: {ran}");
        if !has("noexec") {
            let shown = cx.cri.sh(&c, "/v/suid").await?;
            ensure!(shown.contains("euid=0") != has("nosuid"), "{name}: a set-uid program says {shown}");
        }
        let opened = cx.cri.exec(&c, &["/bin/sh", "-c", "echo > /v/null"]).await?.code == 0;
        ensure!(opened != has("nodev"), "{name}: opening a device: {opened}");
        let shown = options(cx.pid(&c).await?, "/v")?;
        for option in ["noexec", "nosuid", "nodev"] {
            ensure!(
                shown.iter().any(|have| have == option) == has(option),
                "{name}: the mount has {shown:?}"
            );
        }
        let status = cx.cri.container(&c).await?.mounts;
        let echoed = status.first().map(|mount| mount.mount_options.clone());
        ensure!(echoed.as_ref() == Some(&given), "{name}: status shows {echoed:?}");
    }
    let unknown = cx.sleeper("unknown").mount(&source, "/v", false, PRIVATE).with(|c| {
        c.mounts[0].mount_options = vec![String::from("suid")];
    });
    let text = format!("{:#}", cx.create(&pod, &unknown).await.err().context("suid was accepted")?);
    ensure!(text.contains("mount_options[0]") && text.contains("nosuid"), "{text}");
    Ok(())
}

/// What the host mounted with a flag keeps it, whatever the request says.
async fn mount_options_do_not_lift_flags_of_the_host(cx: Context) -> Result<()> {
    let ground = Playground::new(&cx, "flags")?;
    let place = ground.path("v")?;
    command("mount", &["-t", "tmpfs", "-o", "nosuid,nodev", "tmpfs", &place.display().to_string()])?;
    let pod = cx.pod().await?;
    let config = cx.sleeper("one").mount(&place, "/v", false, PRIVATE).with(|c| {
        c.mounts[0].mount_options = vec![String::from("noexec")];
    });
    let c = cx.start(&pod, &config).await?;
    let shown = options(cx.pid(&c).await?, "/v")?;
    for option in ["noexec", "nosuid", "nodev"] {
        ensure!(shown.iter().any(|have| have == option), "{option} is missing: {shown:?}");
    }
    Ok(())
}

/// kubelet mounts huge pages on the host and gives them to the container like any other volume.
async fn huge_pages_of_a_volume(cx: Context) -> Result<()> {
    let place = cx.volume("hugepages")?;
    command("mount", &["-t", "hugetlbfs", "-o", "pagesize=2M", "none", &place.display().to_string()])?;
    let looked = async {
        let pod = cx.pod().await?;
        let limit = |size: &str| api::HugepageLimit { page_size: size.to_owned(), limit: 0 };
        let config = cx.sleeper("one").mount(&place, "/dev/hugepages", false, PRIVATE).with(|c| {
            c.resources().hugepage_limits = vec![limit("2MB"), limit("1GB")];
        });
        let c = cx.start(&pod, &config).await?;
        let shown = cx.cri.sh(&c, "grep ' /dev/hugepages ' /proc/mounts; touch /dev/hugepages/file").await?;
        ensure!(shown.contains(" hugetlbfs ") && shown.contains("pagesize=2M"), "it has {shown:?} there");
        ensure!(place.join("file").exists(), "it is not the host's");
        // Without the volume there is none: a container gets no huge pages that nobody asked for.
        let plain = cx.start(&pod, &cx.sleeper("plain")).await?;
        cx.prints(&plain, "ls -d /dev/hugepages 2>/dev/null || echo none", "none").await
    }
    .await;
    // The pod's clone of it is in the container's namespace alone, so it can be unmounted now.
    looked.and(unmount(&place))
}

/// A limit other than zero is written, or refused where the host has no file for it: it is never skipped.
async fn huge_pages_are_limited_or_refused(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = cx.sleeper("one").with(|c| {
        c.resources().hugepage_limits =
            vec![api::HugepageLimit { page_size: String::from("2MB"), limit: 4 << 20 }];
    });
    let made = cx.create(&pod, &config).await;
    if crate::metrics::has_huge_pages() {
        let limit = cgroup::limit(Limit::HugePages, &made?)?;
        ensure!(limit == Some(4 << 20), "the limit of huge pages is {limit:?}");
    } else {
        let text = format!("{:#}", made.err().context("a limit was accepted that the host cannot keep")?);
        ensure!(text.contains("hugepage_limits") && text.contains("hugetlb"), "{text}");
    }
    Ok(())
}
