//! `runtimeSpec` of verbose replies: a pod or container in the form of the OCI runtime specification, in which crictl's
//! users look for namespaces, cgroups, mounts and the process. No program reads it; the shim gets a plan of its own.
//!
//! It is computed from the record, and has what the record has: volumes, but not the mounts that every container has;
//! neither seccomp filters nor device rules. Paths are those of the host, where the container can be reached by them.

use super::super::convert;
use cri_api::v1 as cri;
use model::{ContainerRecord, NamespaceMode, PodPhase, PodRecord, Resources, User, UserMapping};
use serde::Deserialize as _;
use serde_json::{Value, json};
use wire::{CapSets, ProcessPlan};

/// The version of the specification whose form this is.
const VERSION: &str = "1.2.0";

/// The pod's pause process. Its cgroup is a leaf of the pod's; `cgroupsPath` is the pod's, as requested.
pub(super) fn pod(pod: &PodRecord) -> Value {
    let security = &pod.config.security;
    let network = match security.namespaces.network {
        NamespaceMode::Node => None,
        _ => Some(json!({ "type": "network", "path": pod.netns })),
    };
    let own = |kind: &str, mode| (mode != NamespaceMode::Node).then(|| json!({ "type": kind }));
    let uts = own("uts", security.namespaces.network);
    let namespaces = [
        Some(json!({ "type": "mount" })),
        own("pid", security.namespaces.pid),
        own("ipc", security.namespaces.ipc),
        uts,
        network,
        security.namespaces.mapping().map(|_| json!({ "type": "user" })),
    ];
    let (uids, gids) = mappings(pod);
    json!({
        "ociVersion": VERSION,
        "hostname": pod.config.hostname,
        "annotations": pod.config.annotations,
        "linux": {
            "namespaces": namespaces.into_iter().flatten().collect::<Vec<_>>(),
            "uidMappings": uids,
            "gidMappings": gids,
            "cgroupsPath": pod.config.cgroup_parent,
            "sysctl": pod.config.sysctls,
            "resources": pod.config.resources.as_ref().map(resources),
        },
    })
}

/// A container; `pod` is its pod's record, unless that is lost.
pub(super) fn container(container: &ContainerRecord, pod: Option<&PodRecord>) -> Value {
    let config = &container.config;
    let volumes = convert::mounts_out(container);
    let (uids, gids) = pod.map(mappings).unwrap_or_default();
    // The container's root file system is mounted in the container's mount namespace alone.
    let root = if container.pid == 0 { String::new() } else { format!("/proc/{}/root", container.pid) };
    json!({
        "ociVersion": VERSION,
        "process": process(container),
        "root": { "path": root, "readonly": config.security.readonly_rootfs },
        "hostname": pod.map(|pod| &pod.config.hostname),
        "mounts": volumes.iter().map(mount).collect::<Vec<_>>(),
        "annotations": config.annotations,
        "linux": {
            "namespaces": pod.map(|pod| namespaces(container, pod)),
            "uidMappings": uids,
            "gidMappings": gids,
            "cgroupsPath": container.cgroup,
            "resources": resources(&config.resources),
            "maskedPaths": config.security.masked_paths,
            "readonlyPaths": config.security.readonly_paths,
        },
    })
}

/// The namespaces that are not the host's, except the cgroup namespace that a container has on v2, which the record does not
/// say. Those of the pod have pause's path, while the pod is ready; the network's has the path at which it is pinned.
fn namespaces(container: &ContainerRecord, pod: &PodRecord) -> Vec<Value> {
    let own = &container.config.security.namespaces;
    let sandbox = &pod.config.security.namespaces;
    let of_pause = |kind: &str| match pod.phase {
        PodPhase::Ready => json!({ "type": kind, "path": format!("/proc/{}/ns/{kind}", pod.pause_pid) }),
        _ => json!({ "type": kind }),
    };
    let mut list = vec![json!({ "type": "mount" })];
    match own.pid {
        NamespaceMode::Node => {}
        NamespaceMode::Pod if sandbox.pid == NamespaceMode::Node => {}
        NamespaceMode::Pod => list.push(of_pause("pid")),
        NamespaceMode::Container | NamespaceMode::Target => list.push(json!({ "type": "pid" })),
    }
    if sandbox.ipc != NamespaceMode::Node {
        list.push(of_pause("ipc"));
    }
    if sandbox.network != NamespaceMode::Node {
        list.push(of_pause("uts"));
        list.push(json!({ "type": "network", "path": pod.netns }));
    }
    if sandbox.mapping().is_some() {
        list.push(of_pause("user"));
    }
    list
}

/// The uids and the gids of the pod's user namespace; null without one.
fn mappings(pod: &PodRecord) -> (Value, Value) {
    let Some(UserMapping { uid, gid, length }) = pod.config.security.namespaces.mapping() else {
        return Default::default();
    };
    let from = |host: u32| json!([{ "containerID": 0, "hostID": host, "size": length }]);
    (from(uid), from(gid))
}

/// init's process; null until the container is created.
fn process(container: &ContainerRecord) -> Value {
    let plan = container.exec_template.as_ref().and_then(|kept| ProcessPlan::deserialize(kept).ok());
    let Some(plan) = plan else { return Value::Null };
    let texts = |list: &[model::Text]| {
        list.iter().map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned()).collect::<Vec<_>>()
    };
    let User { uid, gid, groups } = &container.user;
    let CapSets { bounding, permitted, inheritable, ambient } = plan.caps;
    json!({
        "terminal": plan.terminal,
        "user": { "uid": uid, "gid": gid, "umask": plan.umask, "additionalGids": groups },
        "args": texts(&plan.args),
        "env": texts(&plan.env),
        "cwd": plan.cwd,
        "capabilities": {
            "bounding": capabilities(bounding),
            "effective": capabilities(permitted),
            "permitted": capabilities(permitted),
            "inheritable": capabilities(inheritable),
            "ambient": capabilities(ambient),
        },
        "noNewPrivileges": plan.no_new_privs,
        "oomScoreAdj": plan.oom_score_adj,
        "apparmorProfile": plan.apparmor,
        "selinuxLabel": plan.selinux,
    })
}

fn capabilities(mask: u64) -> Vec<String> {
    spec::security::names(mask).map(|name| format!("CAP_{name}")).collect()
}

/// 0 and empty, which mean "not set", are null.
fn resources(resources: &Resources) -> Value {
    let set = |value: i64| (value != 0).then_some(value);
    let list = |list: &str| (!list.is_empty()).then(|| list.to_owned());
    let pages = resources.hugepage_limits.iter();
    json!({
        "cpu": {
            "shares": set(resources.cpu_shares),
            "quota": set(resources.cpu_quota),
            "period": set(resources.cpu_period),
            "cpus": list(&resources.cpuset_cpus),
            "mems": list(&resources.cpuset_mems),
        },
        "memory": { "limit": set(resources.memory_limit), "swap": set(resources.memory_swap_limit) },
        "hugepageLimits": pages.map(|page| json!({ "pageSize": page.page_size, "limit": page.limit })).collect::<Vec<_>>(),
        "unified": resources.unified,
    })
}

/// A volume. That of an image has the image's id as its source.
fn mount(mount: &cri::Mount) -> Value {
    let propagation = match mount.propagation() {
        cri::MountPropagation::PropagationPrivate => "rprivate",
        cri::MountPropagation::PropagationHostToContainer => "rslave",
        cri::MountPropagation::PropagationBidirectional => "rshared",
    };
    let writable = match (mount.readonly, mount.recursive_read_only) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    };
    let own = mount.mount_options.iter().map(String::as_str);
    let options: Vec<&str> = ["rbind", propagation, writable].into_iter().chain(own).collect();
    json!({
        "destination": mount.container_path,
        "type": "bind",
        "source": mount.image.as_ref().map_or(&mount.host_path, |image| &image.image),
        "options": options,
    })
}
