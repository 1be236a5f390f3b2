//! Volumes that show cgroup file systems of the host, as those of node-exporter, cAdvisor and kind do. libcontainer makes
//! cgroups of its own in every v1 hierarchy that it finds mounted, and moves init there: outside of the container's
//! limits and device rules, in cgroups that nobody removes.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, MountPropagation};

use super::mounts::{PRIVATE, SHARED, SLAVE, privileged};
use super::userns::mapped;
use crate::cgroup::{self, Limit};
use crate::context::{Context, Pod};
use crate::disk::Mounted;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::shapes::ContainerExt as _;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(hosts_cgroups_as_a_volume),
        test!(one_hierarchy_as_a_volume),
        test!(controller_of_v1_beside_the_hosts_cgroups),
        test!(hosts_root_as_a_volume),
        test!(hosts_sys_as_a_volume),
        test!(hosts_sys_at_sys),
        test!(both_ways_and_with_a_nested_volume),
        test!(in_a_user_namespace).ours(),
    ]
}

/// The host's cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";
/// The containers' limit of memory, in bytes.
const LIMIT: i64 = 48 << 20;
/// Init opens /dev/kmsg for writing, by a device node of its own, so that the device rules alone decide.
const LINE: &str = "mknod /tmp/kmsg c 1 11; (: > /tmp/kmsg) 2> /tmp/said; touch /tmp/done; exec sleep 100000";

/// A container with a limit of memory.
fn limited(cx: &Context, name: &str) -> api::ContainerConfig {
    cx.shell(name, LINE).with(|c| c.resources().memory_limit_in_bytes = LIMIT)
}

/// A volume of the host.
fn volume(host: &str, at: &str, readonly: bool, propagation: MountPropagation) -> api::Mount {
    let (host_path, container_path) = (host.to_owned(), at.to_owned());
    api::Mount { host_path, container_path, readonly, propagation: propagation.into(), ..Default::default() }
}

/// The cgroups of a process, with its container's id replaced.
fn cgroups_of(pid: u32, id: &str) -> Result<String> {
    let path = format!("/proc/{pid}/cgroup");
    Ok(fs::read_to_string(&path).with_context(|| path)?.replace(id, "ID"))
}

/// A container without volumes, and what the others are compared with.
struct Plain<'a> {
    cx: &'a Context,
    pod: Pod,
    cgroups: String,
}

impl<'a> Plain<'a> {
    async fn start(cx: &'a Context, pod: Pod) -> Result<Self> {
        let id = cx.start(&pod, &limited(cx, "plain")).await?;
        let cgroups = cgroups_of(cx.pid(&id).await?, &id)?;
        ensure!(cgroups.contains("ID"), "the container without volumes has the cgroups {cgroups}");
        Ok(Self { cx, pod, cgroups })
    }

    /// Starts a container that differs from this one in its volumes, and checks its cgroups. Returns its id.
    async fn with(&self, config: api::ContainerConfig) -> Result<String> {
        let (cx, name) = (self.cx, config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default());
        let id = cx.start(&self.pod, &config).await.with_context(|| name.clone())?;
        let pid = cx.pid(&id).await?;
        let found = cgroups_of(pid, &id)?;
        ensure!(found == self.cgroups, "{name}: its cgroups are\n{found}instead of\n{}", self.cgroups);
        let own = cgroup::of_process("memory", pid)?;
        let limit = cgroup::limit_at(Limit::Memory, &own)?;
        ensure!(limit == u64::try_from(LIMIT).ok(), "{name}: {own} has the limit {limit:?}");
        for path in cgroup::all(|path| path.contains(&id)) {
            ensure!(path.ends_with(&own), "{name}: there is the cgroup {path} beside {own}");
        }
        Ok(id)
    }

    /// As [`Plain::with`], for a container that is not privileged, with these volumes.
    async fn with_volumes(&self, name: &str, mounts: Vec<api::Mount>) -> Result<String> {
        let id = self.with(limited(self.cx, name).with(|c| c.mounts = mounts)).await?;
        let said = "until [ -e /tmp/done ]; do sleep 0.01; done; cat /tmp/said";
        let said = self.cx.cri.sh(&id, said).await?;
        ensure!(
            said.contains("not permitted"),
            "{name}: init opened a device that it was not given: {said:?}"
        );
        Ok(id)
    }
}

/// Fails unless the container sees the host's cgroups at this path.
async fn sees_cgroups(cx: &Context, id: &str, at: &str) -> Result<()> {
    let kind = if cgroup::is_v2() { "cgroup2" } else { "cgroup" };
    let below = format!("awk '$3 == \"{kind}\" && index($2, \"{at}\") == 1' /proc/mounts");
    let seen = cx.cri.sh(id, &below).await?;
    ensure!(!seen.is_empty(), "the container sees no {kind} at {at}");
    Ok(())
}

async fn hosts_cgroups_as_a_volume(cx: Context) -> Result<()> {
    let plain = Plain::start(&cx, cx.pod().await?).await?;
    let recursive = api::Mount { recursive_read_only: true, ..volume(CGROUPS, "/host", true, PRIVATE) };
    for (name, mount) in [
        ("writable", volume(CGROUPS, "/host", false, PRIVATE)),
        ("read-only", volume(CGROUPS, "/host", true, PRIVATE)),
        ("recursively", recursive),
        ("slave", volume(CGROUPS, "/host", true, SLAVE)),
    ] {
        let id = plain.with_volumes(name, vec![mount]).await?;
        sees_cgroups(&cx, &id, "/host").await.context(name)?;
    }
    Ok(())
}

/// libcontainer knows a hierarchy by the last name of the path where it is mounted.
async fn one_hierarchy_as_a_volume(cx: Context) -> Result<()> {
    let plain = Plain::start(&cx, cx.pod().await?).await?;
    let memory = cgroup::hierarchy("memory").context("no hierarchy has memory")?.display().to_string();
    let id = plain.with_volumes("named", vec![volume(&memory, "/data/memory", true, PRIVATE)]).await?;
    sees_cgroups(&cx, &id, "/data/memory").await
}

/// Also on a host of v2, somebody may have mounted a controller of v1.
async fn controller_of_v1_beside_the_hosts_cgroups(cx: Context) -> Result<()> {
    let folder = cx.volume("classes")?;
    let place = folder.join("net_cls");
    let mounted = match Mounted::v1("net_cls", &place) {
        Ok(mounted) => mounted,
        Err(e) => {
            println!("      {}: not checked: {e:#}", cx.name);
            return Ok(());
        }
    };
    let plain = Plain::start(&cx, cx.pod().await?).await?;
    let folder = folder.display().to_string();
    for (name, propagation) in [("private", PRIVATE), ("slave", SLAVE)] {
        let id = plain.with_volumes(name, vec![volume(&folder, "/data", false, propagation)]).await?;
        cx.prints(&id, "awk '$2 == \"/data/net_cls\" { print $3 }' /proc/mounts", "cgroup").await?;
        let made = fs::read_dir(&place)?.flatten().find(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
        ensure!(made.is_none(), "{name}: there is {made:?} in the hierarchy");
    }
    drop(mounted);
    Ok(())
}

async fn hosts_root_as_a_volume(cx: Context) -> Result<()> {
    show_cgroups(&cx, "/", "/host/root", "/host/root/sys/fs/cgroup").await
}

async fn hosts_sys_as_a_volume(cx: Context) -> Result<()> {
    show_cgroups(&cx, "/sys", "/host/sys", "/host/sys/fs/cgroup").await
}

/// A volume at `target` in which the host's cgroups are found at `cgroups`.
async fn show_cgroups(cx: &Context, source: &str, target: &str, cgroups: &str) -> Result<()> {
    let plain = Plain::start(cx, cx.pod().await?).await?;
    for (name, propagation) in [("private", PRIVATE), ("slave", SLAVE)] {
        let id = plain.with_volumes(name, vec![volume(source, target, true, propagation)]).await?;
        sees_cgroups(cx, &id, cgroups).await.context(name)?;
    }
    Ok(())
}

/// Such volumes are attached by init, but one that receives mounts of the host is staged by the worker.
async fn hosts_sys_at_sys(cx: Context) -> Result<()> {
    let plain = Plain::start(&cx, cx.pod().await?).await?;
    for (name, propagation) in [("private", PRIVATE), ("slave", SLAVE)] {
        plain.with_volumes(name, vec![volume("/sys", "/sys", true, propagation)]).await?;
    }
    Ok(())
}

/// A Bidirectional volume, and a volume on it.
async fn both_ways_and_with_a_nested_volume(cx: Context) -> Result<()> {
    let plain = Plain::start(&cx, privileged(&cx).await?).await?;
    let outer = cx.volume("outer")?;
    fs::write(outer.join("file"), "outer")?;
    let config = limited(&cx, "both").privileged().mount(Path::new(CGROUPS), "/host", false, SHARED);
    let id = plain.with(config).await?;
    sees_cgroups(&cx, &id, "/host").await?;
    let config = limited(&cx, "nested")
        .privileged()
        .mount(Path::new(CGROUPS), "/v/nested", false, SLAVE)
        .mount(&outer, "/v", false, PRIVATE);
    let id = plain.with(config).await?;
    sees_cgroups(&cx, &id, "/v/nested").await?;
    cx.prints(&id, "cat /v/file", "outer").await
}

/// A volume without mappings: the kernel cannot id-map a cgroup file system.
async fn in_a_user_namespace(cx: Context) -> Result<()> {
    let plain = Plain::start(&cx, cx.pod_of(mapped(&cx, 700_000, 65_536)).await?).await?;
    for (name, propagation) in [("private", PRIVATE), ("slave", SLAVE)] {
        let config = limited(&cx, name).mount(Path::new(CGROUPS), "/host", true, propagation);
        let id = plain.with(config).await?;
        sees_cgroups(&cx, &id, "/host").await.context(name)?;
        cx.exec_works(&id).await?;
    }
    Ok(())
}
