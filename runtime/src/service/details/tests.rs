//! The keys of verbose replies, with a value of each.

use super::*;
use model::{
    AppArmorProfile, Capabilities, ContainerConfig, ContainerId, ContainerMeta, ContainerSecurity, Dns,
    EnvVar, Exit, GroupsPolicy, Mount, Namespaces, PodConfig, PodId, PodMeta, PodSecurity, PortMapping,
    Propagation, Protocol, Resources, SeccompProfile, Text, User, UserRequest,
};
use serde_json::{Value, json};
use wire::{CapSets, ProcessPlan};

fn text(text: &str) -> Text {
    Text::new(text).unwrap()
}

fn pod() -> PodRecord {
    let resources = Resources { memory_limit: 1 << 20, ..Resources::default() };
    let config = PodConfig {
        meta: PodMeta { name: "p".into(), namespace: "n".into(), uid: "u".into(), attempt: 1 },
        hostname: "h".into(),
        log_directory: "/logs".into(),
        dns: Some(Dns { servers: vec!["10.0.0.1".into()], ..Dns::default() }),
        ports: vec![PortMapping {
            protocol: Protocol::Udp,
            container_port: 53,
            host_port: 5353,
            ..PortMapping::default()
        }],
        labels: [("l".into(), "v".into())].into(),
        annotations: [("a".into(), "v".into())].into(),
        cgroup_parent: "/kubepods/pod1".into(),
        sysctls: [("kernel.shm_rmid_forced".into(), "1".into())].into(),
        overhead: Some(Resources { cpu_shares: 2, ..Resources::default() }),
        resources: Some(resources),
        security: PodSecurity {
            namespaces: Namespaces { pid: NamespaceMode::Container, ..Namespaces::default() },
            run_as_user: Some(5),
            supplemental_groups: vec![7],
            privileged: true,
            seccomp: SeccompProfile::Localhost("/p.json".into()),
            apparmor: AppArmorProfile::Localhost("mine".into()),
            ..PodSecurity::default()
        },
        ..PodConfig::default()
    };
    PodRecord {
        phase: PodPhase::Ready,
        ips: vec!["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()],
        netns: "/run/netns/cni-1".into(),
        pause_pid: 41,
        shim_pid: 40,
        ..PodRecord::new(PodId::from_random([1; 32]), config, 1)
    }
}

fn container() -> ContainerRecord {
    let security = ContainerSecurity {
        capabilities: Capabilities { add: vec!["NET_ADMIN".into()], ..Capabilities::default() },
        namespaces: Namespaces { pid: NamespaceMode::Container, ..Namespaces::default() },
        user: UserRequest::Uid(1000),
        groups_policy: GroupsPolicy::Strict,
        readonly_rootfs: true,
        no_new_privs: true,
        masked_paths: vec!["/proc/kcore".into()],
        seccomp: SeccompProfile::RuntimeDefault,
        apparmor: AppArmorProfile::RuntimeDefault,
        ..ContainerSecurity::default()
    };
    let volume = Mount {
        container_path: "/data".into(),
        host_path: "/srv".into(),
        readonly: true,
        propagation: Propagation::HostToContainer,
        ..Mount::default()
    };
    let config = ContainerConfig {
        meta: ContainerMeta { name: "c".into(), attempt: 2 },
        command: vec![text("sleep")],
        envs: vec![EnvVar { key: "K".into(), value: Text::new([0xff]).unwrap() }],
        mounts: vec![volume],
        labels: [("l".into(), "v".into())].into(),
        resources: Resources { cpu_shares: 512, memory_limit: 1 << 30, ..Resources::default() },
        security,
        ..ContainerConfig::default()
    };
    let process = ProcessPlan {
        args: vec![text("sleep"), text("9")],
        env: vec![text("PATH=/bin")],
        cwd: "/srv".into(),
        caps: CapSets { bounding: 1 << 12 | 1, permitted: 1, ..CapSets::default() },
        no_new_privs: true,
        umask: 0o022,
        oom_score_adj: Some(-5),
        ..ProcessPlan::default()
    };
    ContainerRecord {
        phase: ContainerPhase::Running,
        pid: 42,
        user: User { uid: 1000, gid: 1001, groups: vec![1001] },
        cgroup: "/kubepods/pod1/c".into(),
        exec_template: Some(serde_json::to_value(&process).unwrap()),
        exit: Some(Exit::default()),
        ..ContainerRecord::new(ContainerId::from_random([2; 32]), PodId::from_random([1; 32]), config, 1)
    }
}

/// Every `path value` must be in the reply.
fn has(reply: &Value, wanted: &[(&str, Value)]) {
    for (path, value) in wanted {
        assert_eq!(reply.pointer(path), Some(value), "{path} in {reply:#}");
    }
}

#[test]
fn a_pods_keys_are_those_that_users_of_crictl_know() {
    let view = PodView { record: Arc::new(pod()), silent_since: 0 };
    let reply: Value = serde_json::from_str(&pod_info(&view)["info"]).unwrap();
    let wanted = [
        ("/pid", json!(41)),
        ("/processStatus", json!("running")),
        ("/netNamespaceClosed", json!(false)),
        ("/cniResult/Interfaces/eth0/IPConfigs/1/IP", json!("fd00::3")),
        ("/cniResult/Interfaces/eth0/Sandbox", json!("/run/netns/cni-1")),
        ("/overhead/cpu_shares", json!(2)),
        ("/resources/memory_limit_in_bytes", json!(1 << 20)),
        ("/config/metadata", json!({ "name": "p", "namespace": "n", "uid": "u", "attempt": 1 })),
        ("/config/dns_config/servers/0", json!("10.0.0.1")),
        (
            "/config/port_mappings/0",
            json!({ "protocol": 1, "container_port": 53, "host_port": 5353, "host_ip": "" }),
        ),
        ("/config/labels/l", json!("v")),
        ("/config/annotations/a", json!("v")),
        ("/config/log_directory", json!("/logs")),
        ("/config/linux/cgroup_parent", json!("/kubepods/pod1")),
        ("/config/linux/sysctls/kernel.shm_rmid_forced", json!("1")),
        ("/config/linux/security_context/namespace_options/pid", json!(1)),
        ("/config/linux/security_context/run_as_user/value", json!(5)),
        ("/config/linux/security_context/run_as_group", Value::Null),
        ("/config/linux/security_context/supplemental_groups/0", json!(7)),
        ("/config/linux/security_context/privileged", json!(true)),
        ("/config/linux/security_context/seccomp", json!({ "profile_type": 2, "localhost_ref": "/p.json" })),
        ("/config/linux/security_context/apparmor", json!({ "profile_type": 2, "localhost_ref": "mine" })),
        ("/runtimeSpec/hostname", json!("h")),
        ("/runtimeSpec/linux/cgroupsPath", json!("/kubepods/pod1")),
        ("/runtimeSpec/linux/namespaces/4", json!({ "type": "network", "path": "/run/netns/cni-1" })),
        ("/runtimeSpec/linux/resources/memory/limit", json!(1 << 20)),
    ];
    has(&reply, &wanted);
}

#[test]
fn a_pod_of_the_host_network_has_no_network_of_its_own() {
    let mut record = pod();
    record.config.security.namespaces.network = NamespaceMode::Node;
    (record.netns, record.ips, record.phase) = (String::new(), Vec::new(), PodPhase::Stopped);
    let view = PodView { record: Arc::new(record), silent_since: 0 };
    let reply: Value = serde_json::from_str(&pod_info(&view)["info"]).unwrap();
    has(
        &reply,
        &[
            ("/netNamespaceClosed", json!(false)),
            ("/cniResult", Value::Null),
            ("/processStatus", json!("deleted")),
        ],
    );
    let kinds: Vec<&Value> =
        reply["runtimeSpec"]["linux"]["namespaces"].as_array().unwrap().iter().map(|n| &n["type"]).collect();
    assert_eq!(kinds, ["mount", "pid", "ipc"]);
}

#[test]
fn the_user_namespace_of_a_pod_is_shown() {
    let id = |host_id| vec![model::IdMapping { host_id, container_id: 0, length: 10 }];
    let mut record = pod();
    record.config.security.namespaces.user =
        Some(model::UserNamespace { mode: NamespaceMode::Pod, uids: id(500), gids: id(600) });
    let from = |host: u32| json!([{ "containerID": 0, "hostID": host, "size": 10 }]);
    let maps = [("/linux/uidMappings", from(500)), ("/linux/gidMappings", from(600))];
    let (of_pod, of_container) = (oci::pod(&record), oci::container(&container(), Some(&record)));
    has(&of_pod, &maps);
    has(&of_container, &maps);
    has(&of_pod, &[("/linux/namespaces/5", json!({ "type": "user" }))]);
    has(&of_container, &[("/linux/namespaces/5", json!({ "type": "user", "path": "/proc/41/ns/user" }))]);
}

#[test]
fn a_containers_spec_has_its_process_volumes_and_namespaces() {
    let (record, sandbox) = (container(), pod());
    let namespaces = json!([
        { "type": "mount" },
        { "type": "pid" },
        { "type": "ipc", "path": "/proc/41/ns/ipc" },
        { "type": "uts", "path": "/proc/41/ns/uts" },
        { "type": "network", "path": "/run/netns/cni-1" },
    ]);
    let wanted = [
        ("/process/args", json!(["sleep", "9"])),
        ("/process/env", json!(["PATH=/bin"])),
        ("/process/cwd", json!("/srv")),
        ("/process/user", json!({ "uid": 1000, "gid": 1001, "umask": 18, "additionalGids": [1001] })),
        ("/process/capabilities/bounding", json!(["CAP_CHOWN", "CAP_NET_ADMIN"])),
        ("/process/capabilities/effective", json!(["CAP_CHOWN"])),
        ("/process/noNewPrivileges", json!(true)),
        ("/process/oomScoreAdj", json!(-5)),
        ("/root", json!({ "path": "/proc/42/root", "readonly": true })),
        ("/hostname", json!("h")),
        ("/mounts/0/source", json!("/srv")),
        ("/mounts/0/options", json!(["rbind", "rslave", "ro"])),
        ("/linux/namespaces", namespaces),
        ("/linux/cgroupsPath", json!("/kubepods/pod1/c")),
        ("/linux/resources/cpu/shares", json!(512)),
        ("/linux/resources/cpu/quota", Value::Null),
        ("/linux/maskedPaths/0", json!("/proc/kcore")),
    ];
    has(&oci::container(&record, Some(&sandbox)), &wanted);
    // Pause has ended: its number may be another process's now.
    let stopped = PodRecord { phase: PodPhase::Stopped, ..sandbox };
    let spec = oci::container(&ContainerRecord { pid: 0, ..record }, Some(&stopped));
    has(&spec, &[("/root/path", json!("")), ("/linux/namespaces/2", json!({ "type": "ipc" }))]);
    let bare = ContainerRecord { exec_template: None, ..container() };
    has(&oci::container(&bare, None), &[("/process", Value::Null), ("/linux/namespaces", Value::Null)]);
}

#[test]
fn a_containers_configuration_is_what_was_requested() {
    let record = container();
    let wanted = [
        ("/metadata", json!({ "name": "c", "attempt": 2 })),
        ("/command/0", json!("sleep")),
        ("/envs/0", json!({ "key": "K", "value": "\u{fffd}" })),
        ("/labels/l", json!("v")),
        ("/mounts/0/container_path", json!("/data")),
        ("/mounts/0/propagation", json!(1)),
        ("/linux/resources/cpu_shares", json!(512)),
        ("/linux/security_context/run_as_user/value", json!(1000)),
        ("/linux/security_context/run_as_username", json!("")),
        ("/linux/security_context/supplemental_groups_policy", json!(1)),
        ("/linux/security_context/capabilities/add_capabilities/0", json!("NET_ADMIN")),
        ("/linux/security_context/namespace_options/pid", json!(1)),
        ("/linux/security_context/readonly_rootfs", json!(true)),
        ("/linux/security_context/no_new_privs", json!(true)),
        ("/linux/security_context/seccomp/profile_type", json!(0)),
        ("/linux/security_context/apparmor/profile_type", json!(0)),
    ];
    has(&requested::container(&record), &wanted);
    let named = ContainerConfig {
        security: ContainerSecurity { user: UserRequest::Name("www".into()), ..ContainerSecurity::default() },
        ..ContainerConfig::default()
    };
    let wanted = [
        ("/linux/security_context/run_as_user", Value::Null),
        ("/linux/security_context/run_as_username", json!("www")),
        ("/linux/security_context/seccomp/profile_type", json!(1)),
        ("/linux/security_context/apparmor", Value::Null),
    ];
    has(&requested::container(&ContainerRecord { config: named, ..record }), &wanted);
}
