//! The requested configuration of a pod or container as JSON in CRI's own form: the field names of api.proto, and enums
//! as numbers. Verbose replies of containerd have it under `config`, so scripts with crictl know these names.

use super::super::convert;
use cri_api::v1 as cri;
use cri_api::v1::security_profile::ProfileType;
use model::{
    AppArmorProfile, ContainerRecord, Dns, PodConfig, PortMapping, Protocol, Resources, SeccompProfile,
    SelinuxOptions, UserRequest,
};
use serde_json::{Value, json};

/// CRI `PodSandboxConfig`.
pub(super) fn pod(config: &PodConfig) -> Value {
    let security = &config.security;
    let dns = |Dns { servers, searches, options }: &Dns| json!({ "servers": servers, "searches": searches, "options": options });
    json!({
        "metadata": {
            "name": config.meta.name,
            "uid": config.meta.uid,
            "namespace": config.meta.namespace,
            "attempt": config.meta.attempt,
        },
        "hostname": config.hostname,
        "log_directory": config.log_directory,
        "dns_config": config.dns.as_ref().map(dns),
        "port_mappings": config.ports.iter().map(port).collect::<Vec<_>>(),
        "labels": config.labels,
        "annotations": config.annotations,
        "linux": {
            "cgroup_parent": config.cgroup_parent,
            "sysctls": config.sysctls,
            "overhead": config.overhead.as_ref().map(resources),
            "resources": config.resources.as_ref().map(resources),
            "security_context": {
                "namespace_options": namespaces(&convert::namespaces_out(&security.namespaces)),
                "run_as_user": security.run_as_user.map(number),
                "run_as_group": security.run_as_group.map(number),
                "readonly_rootfs": security.readonly_rootfs,
                "supplemental_groups": security.supplemental_groups,
                "privileged": security.privileged,
                "seccomp": seccomp(&security.seccomp),
                "apparmor": apparmor(&security.apparmor),
                "selinux_options": selinux(&security.selinux),
            },
        },
    })
}

/// CRI `ContainerConfig`, with the requested variables, which the record stores elsewhere. What is not UTF-8 is shown
/// with U+FFFD.
pub(super) fn container(record: &ContainerRecord) -> Value {
    let (config, envs) = (&record.config, spec::exec::requested_env(record));
    let texts = |list: &[model::Text]| list.iter().map(text).collect::<Vec<_>>();
    let device = |device: &model::Device| {
        json!({
            "container_path": device.container_path,
            "host_path": device.host_path,
            "permissions": device.permissions,
        })
    };
    json!({
        "metadata": { "name": config.meta.name, "attempt": config.meta.attempt },
        "image": {
            "image": config.image.image,
            "annotations": config.image.annotations,
            "user_specified_image": config.image.user_specified_image,
            "runtime_handler": config.image.runtime_handler,
        },
        "command": texts(&config.command),
        "args": texts(&config.args),
        "working_dir": config.working_dir,
        "envs": envs.iter().map(|var| json!({ "key": var.key, "value": text(&var.value) })).collect::<Vec<_>>(),
        "mounts": convert::mounts_out(record).iter().map(mount).collect::<Vec<_>>(),
        "devices": config.devices.iter().map(device).collect::<Vec<_>>(),
        "labels": config.labels,
        "annotations": config.annotations,
        "log_path": config.log_path,
        "stdin": config.stdin,
        "stdin_once": config.stdin_once,
        "tty": config.tty,
        "stop_signal": config.stop_signal,
        "linux": {
            "resources": resources(&config.resources),
            "security_context": security(&config.security),
        },
    })
}

fn groups_policy(policy: model::GroupsPolicy) -> i32 {
    i32::from(match policy {
        model::GroupsPolicy::Merge => cri::SupplementalGroupsPolicy::Merge,
        model::GroupsPolicy::Strict => cri::SupplementalGroupsPolicy::Strict,
    })
}

fn security(security: &model::ContainerSecurity) -> Value {
    let capabilities = &security.capabilities;
    let (uid, name) = match &security.user {
        UserRequest::Uid(uid) => (Some(*uid), ""),
        UserRequest::Name(name) => (None, name.as_str()),
        UserRequest::Root | UserRequest::Image(_) => (None, ""),
    };
    json!({
        "capabilities": {
            "add_capabilities": capabilities.add,
            "drop_capabilities": capabilities.drop,
            "add_ambient_capabilities": capabilities.ambient,
        },
        "privileged": security.privileged,
        "namespace_options": namespaces(&convert::namespaces_out(&security.namespaces)),
        "run_as_user": uid.map(number),
        "run_as_group": security.run_as_group.map(number),
        "run_as_username": name,
        "readonly_rootfs": security.readonly_rootfs,
        "supplemental_groups": security.supplemental_groups,
        "supplemental_groups_policy": groups_policy(security.groups_policy),
        "no_new_privs": security.no_new_privs,
        "masked_paths": security.masked_paths,
        "readonly_paths": security.readonly_paths,
        "seccomp": seccomp(&security.seccomp),
        "apparmor": apparmor(&security.apparmor),
        "selinux_options": selinux(&security.selinux),
    })
}

/// CRI `Int64Value`.
fn number(value: u32) -> Value {
    json!({ "value": value })
}

fn text(text: &model::Text) -> String {
    String::from_utf8_lossy(text.as_bytes()).into_owned()
}

fn port(port: &PortMapping) -> Value {
    let protocol = match port.protocol {
        Protocol::Tcp => cri::Protocol::Tcp,
        Protocol::Udp => cri::Protocol::Udp,
        Protocol::Sctp => cri::Protocol::Sctp,
    };
    json!({
        "protocol": i32::from(protocol),
        "container_port": port.container_port,
        "host_port": port.host_port,
        "host_ip": port.host_ip,
    })
}

/// CRI `LinuxContainerResources`.
pub(super) fn resources(resources: &Resources) -> Value {
    let pages = resources.hugepage_limits.iter();
    json!({
        "cpu_period": resources.cpu_period,
        "cpu_quota": resources.cpu_quota,
        "cpu_shares": resources.cpu_shares,
        "memory_limit_in_bytes": resources.memory_limit,
        "memory_swap_limit_in_bytes": resources.memory_swap_limit,
        "oom_score_adj": resources.oom_score_adj,
        "cpuset_cpus": resources.cpuset_cpus,
        "cpuset_mems": resources.cpuset_mems,
        "hugepage_limits": pages.map(|page| json!({ "page_size": page.page_size, "limit": page.limit })).collect::<Vec<_>>(),
        "unified": resources.unified,
    })
}

fn mappings(list: &[cri::IdMapping]) -> Value {
    let mapping = |mapping: &cri::IdMapping| json!({ "host_id": mapping.host_id, "container_id": mapping.container_id, "length": mapping.length });
    list.iter().map(mapping).collect()
}

fn namespaces(options: &cri::NamespaceOption) -> Value {
    let user = |user: &cri::UserNamespace| json!({ "mode": user.mode, "uids": mappings(&user.uids), "gids": mappings(&user.gids) });
    json!({
        "network": options.network,
        "pid": options.pid,
        "ipc": options.ipc,
        "target_id": options.target_id,
        "userns_options": options.userns_options.as_ref().map(user),
    })
}

/// Null if the request has none.
fn apparmor(profile: &AppArmorProfile) -> Value {
    let (kind, reference) = match profile {
        AppArmorProfile::Unset => return Value::Null,
        AppArmorProfile::RuntimeDefault => (ProfileType::RuntimeDefault, ""),
        AppArmorProfile::Unconfined => (ProfileType::Unconfined, ""),
        AppArmorProfile::Localhost(name) => (ProfileType::Localhost, name.as_str()),
    };
    json!({ "profile_type": i32::from(kind), "localhost_ref": reference })
}

/// CRI `SELinuxOption`.
fn selinux(options: &SelinuxOptions) -> Value {
    let SelinuxOptions { user, role, kind, level } = options;
    match options.is_empty() {
        true => Value::Null,
        false => json!({ "user": user, "role": role, "type": kind, "level": level }),
    }
}

fn seccomp(profile: &SeccompProfile) -> Value {
    let (kind, reference) = match profile {
        SeccompProfile::RuntimeDefault => (ProfileType::RuntimeDefault, ""),
        SeccompProfile::Unconfined => (ProfileType::Unconfined, ""),
        SeccompProfile::Localhost(path) => (ProfileType::Localhost, path.as_str()),
    };
    json!({ "profile_type": i32::from(kind), "localhost_ref": reference })
}

fn mount(mount: &cri::Mount) -> Value {
    json!({
        "container_path": mount.container_path,
        "host_path": mount.host_path,
        "readonly": mount.readonly,
        "selinux_relabel": mount.selinux_relabel,
        "propagation": mount.propagation,
        "uidMappings": mappings(&mount.uid_mappings),
        "gidMappings": mappings(&mount.gid_mappings),
        "recursive_read_only": mount.recursive_read_only,
        "image": mount.image.as_ref().map(|image| json!({ "image": image.image })),
        "image_sub_path": mount.image_sub_path,
        "mount_options": mount.mount_options,
    })
}
