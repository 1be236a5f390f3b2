//! Shows a container as an OCI runtime spec, for the verbose `info` of ContainerStatus: tools look for
//! `runtimeSpec` there. It is computed from the records for display only; no container is created from it.

use crate::mounts::{self, PodFiles};
use crate::{Error, container, security};
use model::{ContainerRecord, PodRecord, Propagation, Resources};
use oci_spec::runtime::Spec;
use serde_json::{Map, Value, json};
use wire::{MountKind, MountPlan, NamespaceSource, ProcessPlan};

/// Computes the spec. `files` are the pod's, and `unified` tells whether the host has only cgroup v2. The
/// filter and device nodes are left out, because the records do not hold them.
pub fn view(
    pod: &PodRecord,
    record: &ContainerRecord,
    files: &PodFiles,
    unified: bool,
) -> Result<Spec, Error> {
    let config = &record.config;
    let asked = &config.security;
    let process = match &record.exec_template {
        Some(kept) => serde_json::from_value::<ProcessPlan>(kept.clone())
            .map_err(|error| Error::invalid("record exec_template", error.to_string(), "a process plan"))?,
        None => ProcessPlan::default(),
    };
    let mounts = mounts::plan(config, &pod.config.security.namespaces, files)?;
    let mounts: Vec<Value> = mounts.iter().map(mount).collect();
    let hidden = |list: &Vec<String>| if asked.privileged { json!([]) } else { json!(list) };
    let spec = json!({
        "ociVersion": oci_spec::runtime::VERSION,
        "root": { "path": "rootfs", "readonly": asked.readonly_rootfs },
        "hostname": pod.config.hostname,
        "process": process_value(record, &process),
        "mounts": mounts,
        "annotations": config.annotations,
        "linux": {
            "cgroupsPath": record.cgroup,
            "namespaces": namespaces(pod, record, unified)?,
            "resources": resources(&config.resources),
            "maskedPaths": hidden(&asked.masked_paths),
            "readonlyPaths": hidden(&asked.readonly_paths),
        },
    });
    serde_json::from_value(spec).map_err(|error| Error::invalid("OCI view", error.to_string(), "an OCI Spec"))
}

fn process_value(record: &ContainerRecord, process: &ProcessPlan) -> Value {
    let words = |list: &[model::Text]| list.iter().map(model::Text::to_string_lossy).collect::<Vec<_>>();
    let caps = process.caps;
    json!({
        "terminal": record.config.tty,
        "user": {
            "uid": record.user.uid,
            "gid": record.user.gid,
            "additionalGids": record.user.groups,
            "umask": process.umask,
        },
        "args": words(&process.args),
        "env": words(&process.env),
        "cwd": process.cwd,
        "capabilities": {
            "bounding": security::names(caps.bounding),
            "effective": security::names(caps.permitted),
            "permitted": security::names(caps.permitted),
            "inheritable": security::names(caps.inheritable),
            "ambient": security::names(caps.ambient),
        },
        "noNewPrivileges": process.no_new_privs,
        "oomScoreAdj": process.oom_score_adj,
    })
}

fn mount(mount: &MountPlan) -> Value {
    let (kind, source) = match &mount.kind {
        MountKind::Bind { source, .. } | MountKind::File { source } => ("bind", source.as_str()),
        MountKind::PodShm => ("tmpfs", "shm"),
        MountKind::Proc => ("proc", "proc"),
        MountKind::Sysfs => ("sysfs", "sysfs"),
        MountKind::Cgroup => ("cgroup", "cgroup"),
        MountKind::Tmpfs { .. } => ("tmpfs", "tmpfs"),
        MountKind::Devpts => ("devpts", "devpts"),
        MountKind::Mqueue => ("mqueue", "mqueue"),
    };
    let mut options = vec![if mount.readonly { "ro" } else { "rw" }.to_owned()];
    let flags = [(mount.nosuid, "nosuid"), (mount.nodev, "nodev"), (mount.noexec, "noexec")];
    options.extend(flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_owned()));
    match &mount.kind {
        MountKind::Bind { propagation, .. } => {
            let name = match propagation {
                Propagation::Private => "rprivate",
                Propagation::HostToContainer => "rslave",
                Propagation::Bidirectional => "rshared",
            };
            options.extend(["rbind".to_owned(), name.to_owned()]);
        }
        MountKind::File { .. } => options.extend(["bind".to_owned(), "rprivate".to_owned()]),
        MountKind::Tmpfs { mode, size } => {
            options.push(format!("mode={mode:o}"));
            if *size > 0 {
                options.push(format!("size={size}"));
            }
        }
        _ => {}
    }
    json!({ "destination": mount.target, "type": kind, "source": source, "options": options })
}

/// The container's own namespaces and those it joins; the host's are left out, as OCI specifies.
fn namespaces(pod: &PodRecord, record: &ContainerRecord, unified: bool) -> Result<Vec<Value>, Error> {
    let plan = container::namespaces(&record.config, pod, unified)?;
    let mut list = vec![json!({ "type": "mount" })];
    let four = [
        ("network", "net", plan.network),
        ("ipc", "ipc", plan.ipc),
        ("uts", "uts", plan.uts),
        ("pid", "pid", plan.pid),
    ];
    for (kind, file, source) in four {
        match source {
            NamespaceSource::Host => {}
            NamespaceSource::New | NamespaceSource::Container(_) => list.push(json!({ "type": kind })),
            NamespaceSource::Pause if pod.pause_pid == 0 => list.push(json!({ "type": kind })),
            NamespaceSource::Pause => {
                list.push(json!({ "type": kind, "path": format!("/proc/{}/ns/{file}", pod.pause_pid) }));
            }
        }
    }
    if plan.cgroup {
        list.push(json!({ "type": "cgroup" }));
    }
    Ok(list)
}

fn resources(resources: &Resources) -> Value {
    let set = |pairs: &[(&str, i64)]| {
        let set = pairs.iter().filter(|(_, value)| *value != 0);
        set.map(|(name, value)| ((*name).to_owned(), json!(value))).collect::<Map<_, _>>()
    };
    let positive = |value: i64| value.max(0);
    let mut cpu = set(&[
        ("shares", positive(resources.cpu_shares)),
        ("quota", resources.cpu_quota),
        ("period", positive(resources.cpu_period)),
    ]);
    for (name, list) in [("cpus", &resources.cpuset_cpus), ("mems", &resources.cpuset_mems)] {
        if !list.is_empty() {
            cpu.insert(name.to_owned(), json!(list));
        }
    }
    let huge: Vec<Value> = resources
        .hugepage_limits
        .iter()
        .map(|huge| json!({ "pageSize": huge.page_size, "limit": i64::try_from(huge.limit).unwrap_or(i64::MAX) }))
        .collect();
    json!({
        "cpu": cpu,
        "memory": set(&[("limit", resources.memory_limit), ("swap", resources.memory_swap_limit)]),
        "hugepageLimits": huge,
        "unified": resources.unified,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{
        ContainerConfig, ContainerId, ContainerPhase, HugepageLimit, Mount, PodConfig, PodId, PodPhase, Text,
        User,
    };
    use wire::CapSets;

    #[test]
    fn record_is_shown_as_a_spec() {
        let pod = PodRecord {
            phase: PodPhase::Ready,
            pause_pid: 77,
            ..PodRecord::new(
                PodId::from_random([1; 32]),
                PodConfig { hostname: "web-0".into(), ..PodConfig::default() },
                1,
            )
        };
        let mut config = ContainerConfig::default();
        config.security.masked_paths = vec!["/proc/kcore".into()];
        config.resources.memory_limit = 1 << 20;
        config.resources.cpu_shares = 2;
        config.resources.hugepage_limits = vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }];
        config.mounts = vec![Mount {
            container_path: "/data".into(),
            host_path: "/srv".into(),
            readonly: true,
            ..Mount::default()
        }];
        let process = ProcessPlan {
            args: vec![Text::new("sleep").unwrap()],
            cwd: "/".into(),
            caps: CapSets { bounding: 1, permitted: 1, ..CapSets::default() },
            ..ProcessPlan::default()
        };
        let record = ContainerRecord {
            phase: ContainerPhase::Running,
            pid: 99,
            user: User { uid: 1000, gid: 1000, groups: vec![2000] },
            stop_signal: 15,
            cgroup: "/kubepods/pod1/x".into(),
            exec_template: serde_json::to_value(&process).ok(),
            ..ContainerRecord::new(ContainerId::from_random([2; 32]), pod.id.clone(), config, 1)
        };
        let spec = serde_json::to_value(view(&pod, &record, &PodFiles::default(), false).unwrap()).unwrap();
        assert_eq!(spec["process"]["args"], json!(["sleep"]));
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([2000]));
        assert_eq!(spec["process"]["capabilities"]["effective"], json!(["CAP_CHOWN"]));
        assert_eq!(spec["linux"]["cgroupsPath"], json!("/kubepods/pod1/x"));
        assert_eq!(spec["linux"]["maskedPaths"], json!(["/proc/kcore"]));
        assert_eq!(spec["linux"]["resources"]["memory"]["limit"], json!(1 << 20));
        let net = json!({ "type": "network", "path": "/proc/77/ns/net" });
        assert!(spec["linux"]["namespaces"].as_array().unwrap().contains(&net), "{spec}");
        let data = spec["mounts"].as_array().unwrap().iter().find(|m| m["destination"] == "/data").unwrap();
        assert_eq!(data["options"], json!(["ro", "rbind", "rprivate"]));
    }
}
