use super::*;
use cri_api::v1 as cri;
use model::{
    ContainerId, ContainerPhase, ContainerRecord, Exit, NamespaceMode, PodId, PodPhase, PodRecord,
    SeccompProfile, UserRequest,
};

const PLAIN: Host = Host { apparmor: false, selinux: false };
const GUARDED: Host = Host { apparmor: true, selinux: true };

/// Every field set to something that is accepted.
fn full_pod() -> cri::PodSandboxConfig {
    let resources = || cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 1 << 20,
        oom_score_adj: 100,
        cpuset_cpus: "0-3,8".into(),
        cpuset_mems: "0".into(),
        hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
        unified: [("memory.high".to_owned(), "1".to_owned())].into(),
        memory_swap_limit_in_bytes: 1 << 20,
    };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: "web".into(),
            uid: "7c9b".into(),
            namespace: "default".into(),
            attempt: 2,
        }),
        hostname: "web-0".into(),
        log_directory: "/var/log/pods/default_web_7c9b".into(),
        dns_config: Some(cri::DnsConfig {
            servers: vec!["10.0.0.10".into(), "fe80::1%eth0".into()],
            searches: vec!["svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        }),
        port_mappings: vec![cri::PortMapping {
            protocol: cri::Protocol::Udp.into(),
            container_port: 53,
            host_port: 5353,
            host_ip: "127.0.0.1".into(),
        }],
        labels: [("app".to_owned(), "web".to_owned())].into(),
        annotations: [("note".to_owned(), "bytes\n\u{1}as they are".to_owned())].into(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/burstable/pod7c9b".into(),
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(cri::NamespaceOption {
                    pid: cri::NamespaceMode::Container.into(),
                    userns_options: Some(cri::UserNamespace {
                        mode: cri::NamespaceMode::Node.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                seccomp: Some(cri::SecurityProfile::default()),
                apparmor: Some(cri::SecurityProfile::default()),
                run_as_user: Some(cri::Int64Value { value: 65_534 }),
                run_as_group: Some(cri::Int64Value { value: 65_534 }),
                supplemental_groups: vec![7],
                ..Default::default()
            }),
            sysctls: [("net.ipv4.tcp_syncookies".to_owned(), "1".to_owned())].into(),
            overhead: Some(resources()),
            resources: Some(resources()),
        }),
        windows: None,
    }
}

fn full_container() -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "nginx".into(), attempt: 1 }),
        image: Some(cri::ImageSpec {
            image: "sha256:aa".into(),
            user_specified_image: "registry.local/nginx".into(),
            ..Default::default()
        }),
        command: vec!["nginx".into()],
        args: vec!["-g".into(), "daemon off;".into()],
        working_dir: "/srv".into(),
        envs: vec![cri::KeyValue { key: "RAW".into(), value: vec![0xff, b'='] }],
        mounts: vec![cri::Mount {
            container_path: "/data/".into(),
            host_path: "/srv/data".into(),
            readonly: true,
            propagation: cri::MountPropagation::PropagationHostToContainer.into(),
            ..Default::default()
        }],
        devices: vec![cri::Device {
            container_path: "/dev/x".into(),
            host_path: "/dev/null".into(),
            permissions: "mrw".into(),
        }],
        labels: [("a".to_owned(), "b".to_owned())].into(),
        annotations: [("c".to_owned(), "d".to_owned())].into(),
        log_path: "nginx/0.log".into(),
        stop_signal: cri::Signal::Sigquit.into(),
        linux: Some(cri::LinuxContainerConfig {
            resources: full_pod().linux.unwrap().resources,
            security_context: Some(cri::LinuxContainerSecurityContext {
                capabilities: Some(cri::Capability {
                    add_capabilities: vec!["CAP_NET_ADMIN".into(), "all".into()],
                    drop_capabilities: vec!["net_raw".into()],
                    add_ambient_capabilities: vec!["KILL".into()],
                }),
                run_as_username: "www-data".into(),
                run_as_group: Some(cri::Int64Value { value: 33 }),
                masked_paths: vec!["/proc/kcore".into()],
                seccomp: Some(cri::SecurityProfile { profile_type: 2, localhost_ref: "/p.json".into() }),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

fn pod(change: impl FnOnce(&mut cri::PodSandboxConfig)) -> Result<model::PodConfig> {
    let mut config = full_pod();
    change(&mut config);
    run_request(cri::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() }, PLAIN)
}

fn container_on(
    host: Host,
    change: impl FnOnce(&mut cri::ContainerConfig),
) -> Result<model::ContainerConfig> {
    let mut config = full_container();
    change(&mut config);
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: "p1".into(),
        config: Some(config),
        sandbox_config: None,
    };
    container_config(request, host).map(|(pod, config)| {
        assert_eq!(pod, "p1");
        config
    })
}

fn container(change: impl FnOnce(&mut cri::ContainerConfig)) -> Result<model::ContainerConfig> {
    container_on(PLAIN, change)
}

fn security(change: impl FnOnce(&mut cri::LinuxContainerSecurityContext)) -> Result<model::ContainerConfig> {
    container(|c| change(c.linux.as_mut().unwrap().security_context.as_mut().unwrap()))
}

fn limits(change: impl FnOnce(&mut cri::LinuxContainerResources)) -> Result<model::ContainerConfig> {
    container(|c| change(c.linux.as_mut().unwrap().resources.as_mut().unwrap()))
}

fn mounted(change: impl FnOnce(&mut cri::Mount)) -> Result<model::ContainerConfig> {
    container(|c| change(&mut c.mounts[0]))
}

fn sandbox(change: impl FnOnce(&mut cri::LinuxPodSandboxConfig)) -> Result<model::PodConfig> {
    pod(|p| change(p.linux.as_mut().unwrap()))
}

fn sandbox_security(change: impl FnOnce(&mut cri::LinuxSandboxSecurityContext)) -> Result<model::PodConfig> {
    sandbox(|l| change(l.security_context.as_mut().unwrap()))
}

fn profile(kind: security_profile::ProfileType) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: "x".into() })
}
use cri::security_profile;
use security_profile::ProfileType;

/// The refusal's text must hold all of `parts`: the field's name, the value, what would be right.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let text = result.expect_err("must be refused").to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

fn pod_record(config: model::PodConfig) -> PodRecord {
    PodRecord {
        id: PodId::from_random([1; 32]),
        config,
        created_at: 42,
        phase: PodPhase::Ready,
        ips: vec!["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        netns: String::new(),
        pause_pid: 7,
        shim_pid: 6,
        message: String::new(),
    }
}

fn container_record(config: model::ContainerConfig) -> ContainerRecord {
    ContainerRecord {
        id: ContainerId::from_random([2; 32]),
        pod: PodId::from_random([1; 32]),
        config,
        image: model::ImageOfContainer {
            id: "sha256:aa".into(),
            digested: "registry.local/nginx@sha256:bb".into(),
        },
        created_at: 43,
        started_at: 44,
        phase: ContainerPhase::Exited,
        exit: Some(Exit {
            code: 137,
            finished_at: 45,
            oom_killed: true,
            reason: "OOMKilled".into(),
            message: String::new(),
        }),
        pid: 0,
        user: model::User { uid: 33, gid: 33, groups: vec![33, 44] },
        log_path: "/var/log/pods/x/nginx/0.log".into(),
        stop_signal: 3,
        cgroup: String::new(),
        exec_template: None,
    }
}

#[test]
fn pod_round_trip() {
    let asked = full_pod();
    let record = pod_record(pod(|_| {}).unwrap());
    let status = pod_status(&record);
    assert_eq!(status.metadata, asked.metadata);
    assert_eq!((status.labels, status.annotations), (asked.labels, asked.annotations));
    let echoed = status.linux.unwrap().namespaces.unwrap().options;
    assert_eq!(echoed, asked.linux.clone().unwrap().security_context.unwrap().namespace_options);
    let network = status.network.unwrap();
    assert_eq!((network.ip.as_str(), network.additional_ips[0].ip.as_str()), ("10.88.0.2", "fd00::2"));
    let overhead = record.config.overhead.as_ref().map(resources::resources_out);
    assert_eq!(overhead, asked.linux.unwrap().overhead);
    assert_eq!(record.config.security.seccomp, SeccompProfile::RuntimeDefault);
    assert_eq!(
        (record.config.ports[0].host_port, record.config.ports[0].protocol),
        (5353, model::Protocol::Udp)
    );
    assert_eq!(record.config.dns.unwrap().servers[1], "fe80::1%eth0");
}

#[test]
fn a_pod_without_linux_section_shares_the_pid_namespace() {
    let config = pod(|p| p.linux = None).unwrap();
    assert_eq!(config.security.namespaces.pid, NamespaceMode::Pod);
    assert_eq!(config.security.seccomp, SeccompProfile::Unconfined);
    assert_eq!(config.security.namespaces.user, None);
}

#[test]
fn addresses_are_shown_only_while_the_pod_is_ready() {
    let mut record = pod_record(pod(|_| {}).unwrap());
    record.phase = PodPhase::Stopping;
    let status = pod_status(&record);
    assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
    assert_eq!(status.network.unwrap(), cri::PodSandboxNetworkStatus::default());
    assert_eq!(pod_item(&record).state(), cri::PodSandboxState::SandboxNotready);
}

#[test]
fn container_round_trip() {
    let asked = full_container();
    let record = container_record(container(|_| {}).unwrap());
    let status = container_status(&record, "/nowhere");
    assert_eq!(status.metadata, asked.metadata);
    assert_eq!(status.mounts, asked.mounts, "kubelet finds its volumes by these strings");
    assert_eq!(status.resources.unwrap().linux, asked.linux.unwrap().resources);
    assert_eq!((status.labels, status.annotations), (asked.labels, asked.annotations));
    assert_eq!(status.stop_signal, asked.stop_signal);
    assert_eq!((status.exit_code, status.reason.as_str(), status.finished_at), (137, "OOMKilled", 45));
    assert_eq!(status.image.unwrap().image, "registry.local/nginx", "asked by id: people see the name");
    assert_eq!(
        (status.image_id.as_str(), status.image_ref.as_str()),
        ("sha256:aa", "registry.local/nginx@sha256:bb")
    );
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (33, 33, vec![33, 44]));
    let item = container_item(&record);
    assert_eq!((item.image_id, item.image_ref), (status.image_id, status.image_ref));
    let config = record.config;
    assert_eq!(config.security.user, UserRequest::Name("www-data".into()));
    assert_eq!(config.security.capabilities.add, ["NET_ADMIN", "ALL"]);
    assert_eq!(config.envs[0].value.as_bytes(), [0xff, b'=']);
    assert_eq!(config.security.seccomp, SeccompProfile::Localhost("/p.json".into()));
}

/// KUBELET.md H1.
#[test]
fn log_path_in_status_is_always_absolute() {
    let mut record = container_record(container(|c| c.log_path = String::new()).unwrap());
    record.log_path = String::new();
    let status = container_status(&record, "/run/copepod/silent/log");
    assert_eq!(status.log_path, "/run/copepod/silent/log");
    record.log_path = "relative".into();
    assert!(container_status(&record, "/run/copepod/silent/log").log_path.starts_with('/'));
}

/// KUBELET.md H5: status must not fail for anything that is listed.
#[test]
fn status_needs_nothing_but_the_record() {
    let mut record = container_record(model::ContainerConfig::default());
    record.exit = None;
    record.image.digested = String::new();
    record.phase = ContainerPhase::Created;
    let status = container_status(&record, "/nowhere");
    assert_eq!(status.image_ref, "sha256:aa");
    assert_eq!((status.finished_at, status.exit_code), (0, 0));
    assert_eq!(status.stop_signal(), cri::Signal::Sigquit);
    assert!(status.user.is_some() && status.resources.is_some() && status.image.is_some());
}

#[test]
fn refuses_wrong_pods() {
    refused(run_request(cri::RunPodSandboxRequest::default(), PLAIN), &["config: absent: must be set"]);
    let kata = cri::RunPodSandboxRequest { config: Some(full_pod()), runtime_handler: "kata".into() };
    refused(
        run_request(kata, PLAIN),
        &["pod \"default\"/\"web\": runtime_handler: \"kata\"", "unknown handler"],
    );
    refused(pod(|p| p.metadata = None), &["config.metadata: absent"]);
    for bad in ["", "a;b", "a=b", "a b", "a\nb", "a/b", &"x".repeat(254)] {
        refused(pod(|p| p.metadata.as_mut().unwrap().namespace = bad.into()), &["config.metadata.namespace"]);
    }
    for bad in ["with space", "a\nb", &"x".repeat(65)] {
        refused(pod(|p| p.hostname = bad.into()), &["config.hostname", "at most 64"]);
    }
    for bad in ["relative", "/a/../b", "/a\0b"] {
        refused(pod(|p| p.log_directory = bad.into()), &["config.log_directory", "absolute path"]);
    }
    refused(
        pod(|p| p.dns_config.as_mut().unwrap().servers[0] = "dns.example".into()),
        &["servers[0]", "IP address"],
    );
    refused(
        pod(|p| p.dns_config.as_mut().unwrap().options[0] = "a\nnameserver 6.6.6.6".into()),
        &["options[0]", "one word"],
    );
    refused(
        pod(|p| p.dns_config.as_mut().unwrap().searches = vec!["x".into(); 65]),
        &["searches", "65 entries"],
    );
    refused(pod(|p| p.port_mappings[0].protocol = 9), &["port_mappings[0].protocol: 9", "TCP, UDP, SCTP"]);
    refused(pod(|p| p.port_mappings[0].host_port = 65_536), &["host_port: 65536", "0 to 65535"]);
    refused(pod(|p| p.port_mappings[0].container_port = 0), &["container_port: 0", "1 to 65535"]);
    refused(
        pod(|p| p.port_mappings[0].host_ip = "localhost".into()),
        &["host_ip: \"localhost\"", "IP address"],
    );
    refused(
        pod(|p| p.annotations.insert("k".into(), "x".repeat(MAX_MAP)).map_or((), drop)),
        &["config.annotations", "at most"],
    );
    refused(
        sandbox(|l| l.cgroup_parent = "kubepods.slice".into()),
        &["linux.cgroup_parent: \"kubepods.slice\"", "/kubepods"],
    );
    refused(sandbox(|l| l.cgroup_parent = "/a/../..".into()), &["linux.cgroup_parent"]);
}

#[test]
fn sysctls_are_the_pods_own() {
    let set = |key: &str, node: bool| {
        sandbox(|l| {
            l.sysctls = [(key.to_owned(), "1".to_owned())].into();
            let options = l.security_context.as_mut().unwrap().namespace_options.as_mut().unwrap();
            if node {
                options.network = cri::NamespaceMode::Node.into();
                options.ipc = cri::NamespaceMode::Node.into();
            }
        })
    };
    for good in ["net.ipv4.ip_forward", "kernel.shm_rmid_forced", "fs.mqueue.msg_max"] {
        assert_eq!(set(good, false).unwrap().sysctls.keys().next().unwrap(), good);
        refused(set(good, true), &["sysctls", good, "host's"]);
    }
    let vlan = set("net/ipv4/conf/eth0.100/rp_filter", false).unwrap();
    assert_eq!(vlan.sysctls.keys().next().unwrap(), "net.ipv4.conf.eth0/100.rp_filter");
    for bad in [
        "vm.swappiness",
        "kernel.panic",
        "kernel.hostname",
        "net",
        "net..x",
        "net.//.x",
        "net./etc.x",
        "net.a b",
    ] {
        refused(set(bad, false), &["config.linux.sysctls"]);
    }
    refused(sandbox(|l| l.sysctls = [("net.x".to_owned(), "1\n2".to_owned())].into()), &["one line"]);
}

#[test]
fn refuses_wrong_sandbox_security() {
    refused(
        sandbox_security(|s| s.run_as_user = None),
        &["security_context.run_as_group", "needs run_as_user"],
    );
    refused(sandbox_security(|s| s.run_as_user = Some(cri::Int64Value { value: -1 })), &["run_as_user: -1"]);
    refused(
        sandbox_security(|s| s.run_as_group = Some(cri::Int64Value { value: 1 << 32 })),
        &["run_as_group"],
    );
    refused(
        sandbox_security(|s| s.supplemental_groups = vec![0, i64::from(u32::MAX)]),
        &["supplemental_groups[1]"],
    );
    refused(
        sandbox_security(|s| s.supplemental_groups_policy = 1),
        &["supplemental_groups_policy", "not built"],
    );
    refused(
        sandbox_security(|s| s.supplemental_groups_policy = 7),
        &["supplemental_groups_policy: 7", "Merge, Strict"],
    );
    let options = |change: fn(&mut cri::NamespaceOption)| {
        sandbox_security(|s| change(s.namespace_options.as_mut().unwrap()))
    };
    refused(
        options(|o| o.network = cri::NamespaceMode::Container.into()),
        &["namespace_options.network: Container", "POD, NODE"],
    );
    refused(options(|o| o.ipc = cri::NamespaceMode::Target.into()), &["namespace_options.ipc"]);
    refused(options(|o| o.pid = 4), &["namespace_options.pid: 4"]);
    refused(options(|o| o.pid = cri::NamespaceMode::Target.into()), &["target_id: absent"]);
    refused(options(|o| (o.pid, o.target_id) = (3, "x".into())), &["namespace_options.pid"]);
    refused(options(|o| o.target_id = "x".into()), &["target_id: \"x\"", "must be empty"]);
    for mode in [cri::NamespaceMode::Container, cri::NamespaceMode::Target] {
        refused(
            sandbox_security(|s| {
                let options = s.namespace_options.as_mut().unwrap();
                options.userns_options.as_mut().unwrap().mode = mode.into();
            }),
            &["userns_options.mode", "POD, NODE"],
        );
    }
}

#[test]
fn refuses_what_is_not_built() {
    refused(
        sandbox_security(|s| {
            let options = s.namespace_options.as_mut().unwrap();
            options.userns_options.as_mut().unwrap().mode = cri::NamespaceMode::Pod.into();
        }),
        &["userns_options.mode", "user namespaces are not built yet"],
    );
    refused(security(|s| s.supplemental_groups_policy = 1), &["supplemental_groups_policy", "Strict"]);
    let label = cri::SeLinuxOption { level: "s0:c1,c2".into(), ..Default::default() };
    refused(
        security(|s| s.selinux_options = Some(label.clone())),
        &["selinux_options.level", "SELinux is not built"],
    );
    refused(sandbox_security(|s| s.selinux_options = Some(label)), &["selinux_options.level"]);
    assert!(security(|s| s.selinux_options = Some(cri::SeLinuxOption::default())).is_ok());
    refused(
        container(|c| c.cdi_devices = vec![cri::CdiDevice { name: "v/c=1".into() }]),
        &["CDI_devices[0]", "not built"],
    );
    refused(
        mounted(|m| m.uid_mappings = vec![cri::IdMapping::default()]),
        &["mounts[0].uidMappings", "not built"],
    );
    refused(
        mounted(|m| m.gid_mappings = vec![cri::IdMapping::default()]),
        &["mounts[0].gidMappings", "not built"],
    );
    refused(mounted(|m| m.mount_options = vec!["noexec".into()]), &["mount_options[0]", "not built"]);
    refused(
        mounted(|m| m.mount_options = vec!["suid".into()]),
        &["mount_options[0]: \"suid\"", "noexec, nosuid or nodev"],
    );
    // The words that kubelet looks for stand first, before the object's name.
    let image = Some(cri::ImageSpec { image: "sha256:cc".into(), ..Default::default() });
    let text = mounted(|m| m.image = image).unwrap_err().to_string();
    assert!(text.starts_with("ImageVolumeMountFailed: container \"nginx\""), "{text}");
    let text = mounted(|m| (m.recursive_read_only, m.propagation) = (true, 0)).unwrap_err().to_string();
    assert!(text.starts_with("RROUnsupported: "), "{text}");
}

#[test]
fn apparmor_is_refused_only_where_it_would_be_ignored() {
    let with = |host, profile| {
        container_on(host, |c| {
            c.linux.as_mut().unwrap().security_context.as_mut().unwrap().apparmor = profile
        })
    };
    for host in [PLAIN, GUARDED] {
        assert!(with(host, None).is_ok());
        assert!(with(host, profile(ProfileType::Unconfined)).is_ok());
        refused(with(host, profile(ProfileType::Localhost)), &["apparmor.localhost_ref", "not built"]);
    }
    assert!(with(PLAIN, profile(ProfileType::RuntimeDefault)).is_ok());
    refused(
        with(GUARDED, profile(ProfileType::RuntimeDefault)),
        &["apparmor.profile_type", "this host enforces it"],
    );
    #[expect(deprecated, reason = "the old spelling is judged too")]
    let old = |text: &str| security(|s| s.apparmor_profile = text.into());
    assert!(old("runtime/default").is_ok() && old("unconfined").is_ok());
    refused(old("localhost/mine"), &["apparmor", "mine"]);
    refused(old("mine"), &["apparmor_profile: \"mine\""]);
    let relabelled = |host| container_on(host, |c| c.mounts[0].selinux_relabel = true);
    assert!(relabelled(PLAIN).is_ok());
    refused(relabelled(GUARDED), &["selinux_relabel", "SELinux"]);
}

#[test]
#[expect(deprecated, reason = "the old spelling is judged too")]
fn the_old_seccomp_string_counts_only_without_the_message() {
    let old = |text: &str, message: bool| {
        security(|s| {
            s.seccomp_profile_path = text.into();
            if !message {
                s.seccomp = None;
            }
        })
        .map(|c| c.security.seccomp)
    };
    assert_eq!(old("unconfined", true).unwrap(), SeccompProfile::Localhost("/p.json".into()));
    assert_eq!(old("", false).unwrap(), SeccompProfile::Unconfined);
    assert_eq!(old("runtime/default", false).unwrap(), SeccompProfile::RuntimeDefault);
    assert_eq!(old("localhost//p", false).unwrap(), SeccompProfile::Localhost("/p".into()));
    refused(old("localhost/relative", false), &["seccomp.localhost_ref", "absolute"]);
    refused(old("nonsense", false), &["seccomp_profile_path: \"nonsense\""]);
    refused(security(|s| s.seccomp.as_mut().unwrap().profile_type = 3), &["seccomp.profile_type: 3"]);
}

#[test]
fn refuses_wrong_containers() {
    refused(container(|c| c.metadata = None), &["config.metadata: absent"]);
    refused(container(|c| c.metadata.as_mut().unwrap().name = String::new()), &["config.metadata.name"]);
    refused(container(|c| c.image = None), &["container \"nginx\" of pod \"p1\": config.image: absent"]);
    refused(container(|c| c.image.as_mut().unwrap().image = String::new()), &["config.image.image: absent"]);
    refused(
        container(|c| c.image.as_mut().unwrap().runtime_handler = "x".into()),
        &["config.image.runtime_handler"],
    );
    refused(container(|c| c.command = vec!["a\0b".into()]), &["config.command[0]", "NUL"]);
    refused(container(|c| c.args[1] = "x".repeat(MAX_ARGUMENT + 1)), &["config.args[1]: 131072 bytes"]);
    refused(container(|c| c.args = vec![String::new(); MAX_ENTRIES + 1]), &["config.args: 65537 entries"]);
    refused(container(|c| c.working_dir = "srv".into()), &["config.working_dir: \"srv\""]);
    refused(container(|c| c.envs[0].key = "A=B".into()), &["envs[0].key: \"A=B\""]);
    refused(container(|c| c.envs[0].value = b"a\0".to_vec()), &["envs[0].value"]);
    for bad in ["/abs.log", "../x.log", "a/../../x", "dir/", "a\0b"] {
        refused(
            container(|c| c.log_path = bad.into()),
            &["config.log_path", "below the sandbox's log_directory"],
        );
    }
    refused(container(|c| c.stop_signal = 66), &["config.stop_signal: 66"]);
    for bad in ["", "x", "rwx", "rwmr"] {
        refused(container(|c| c.devices[0].permissions = bad.into()), &["devices[0].permissions"]);
    }
    refused(container(|c| c.devices[0].host_path = "dev/x".into()), &["devices[0].host_path"]);
}

#[test]
fn refuses_wrong_mounts() {
    for bad in ["", "data", "/a/../b", "/", "/./"] {
        refused(mounted(|m| m.container_path = bad.into()), &["config.mounts[0].container_path"]);
    }
    refused(mounted(|m| m.host_path = String::new()), &["config.mounts[0].host_path"]);
    refused(mounted(|m| m.propagation = 3), &["mounts[0].propagation: 3"]);
    refused(mounted(|m| m.image_sub_path = "x".into()), &["mounts[0].image_sub_path"]);
    refused(mounted(|m| m.recursive_read_only = true), &["mounts[0].propagation", "PRIVATE"]);
    refused(mounted(|m| (m.recursive_read_only, m.readonly) = (true, false)), &["mounts[0].readonly: false"]);
}

#[test]
fn refuses_wrong_container_security() {
    refused(
        security(|s| s.run_as_user = Some(cri::Int64Value { value: 1 })),
        &["run_as_username: \"www-data\""],
    );
    refused(security(|s| s.run_as_username = String::new()), &["run_as_group", "needs run_as_user"]);
    refused(security(|s| s.run_as_username = "a:b".into()), &["run_as_username: \"a:b\""]);
    refused(security(|s| s.masked_paths = vec!["proc".into()]), &["masked_paths[0]"]);
    refused(security(|s| s.readonly_paths = vec!["/a/..".into()]), &["readonly_paths[0]"]);
    let caps = |change: fn(&mut cri::Capability)| security(|s| change(s.capabilities.as_mut().unwrap()));
    refused(
        caps(|c| c.add_capabilities[0] = "NET_ADMN".into()),
        &["capabilities.add_capabilities[0]: \"NET_ADMN\""],
    );
    refused(caps(|c| c.add_ambient_capabilities[0] = "ALL".into()), &["add_ambient_capabilities[0]"]);
}

#[test]
fn refuses_wrong_limits() {
    refused(limits(|r| r.cpu_period = 999), &["resources.cpu_period: 999"]);
    refused(limits(|r| r.cpu_quota = 999), &["resources.cpu_quota: 999"]);
    assert!(limits(|r| r.cpu_quota = -1).is_ok());
    refused(limits(|r| r.cpu_shares = -1), &["resources.cpu_shares: -1"]);
    refused(limits(|r| r.memory_limit_in_bytes = -1), &["memory_limit_in_bytes: -1"]);
    refused(limits(|r| r.memory_swap_limit_in_bytes = 5), &["memory_swap_limit_in_bytes: 5", "1048576"]);
    refused(limits(|r| r.oom_score_adj = 1001), &["oom_score_adj: 1001"]);
    for bad in ["a", "1-", "-1", "1,,2", "1-2-3", "999999"] {
        refused(limits(|r| r.cpuset_cpus = bad.into()), &["resources.cpuset_cpus"]);
    }
    for bad in ["", "MB", "2M", "2mb", "x2MB", "2MBMB"] {
        refused(limits(|r| r.hugepage_limits[0].page_size = bad.into()), &["hugepage_limits[0].page_size"]);
    }
    for bad in ["../memory.max", "memory", "a/b.c", ".x"] {
        refused(limits(|r| r.unified = [(bad.to_owned(), String::new())].into()), &["resources.unified"]);
    }
    refused(limits(|r| r.unified = [("io.max".to_owned(), "a\nb".to_owned())].into()), &["one line"]);
}

#[test]
fn filters_are_joined_with_and() {
    let pod_record = pod_record(pod(|_| {}).unwrap());
    let filter = |id: &str, state: Option<i32>, label: &str| {
        PodFilter::new(Some(cri::PodSandboxFilter {
            id: id.into(),
            state: state.map(|state| cri::PodSandboxStateValue { state }),
            label_selector: [("app".to_owned(), label.to_owned())].into(),
        }))
        .unwrap()
        .matches(&pod_record)
    };
    assert!(PodFilter::new(None).unwrap().matches(&pod_record));
    assert!(filter("0101", Some(0), "web") && filter("", None, "web"));
    assert!(!filter("02", Some(0), "web") && !filter("01", Some(1), "web") && !filter("01", Some(0), "db"));
    let unknown =
        cri::PodSandboxFilter { state: Some(cri::PodSandboxStateValue { state: 9 }), ..Default::default() };
    refused(PodFilter::new(Some(unknown)), &["filter.state: 9", "SANDBOX_READY"]);

    let record = container_record(container(|_| {}).unwrap());
    let filter = |id: &str, pod: &str, state: i32| {
        ContainerFilter::new(Some(cri::ContainerFilter {
            id: id.into(),
            state: Some(cri::ContainerStateValue { state }),
            pod_sandbox_id: pod.into(),
            label_selector: [("a".to_owned(), "b".to_owned())].into(),
        }))
        .unwrap()
        .matches(&record)
    };
    assert!(filter("0202", "0101", 2) && !filter("0202", "0202", 2) && !filter("0202", "0101", 1));
    assert!(ContainerFilter::new(None).unwrap().matches(&record));
    assert!(ContainerFilter::for_stats(None).matches(&record));
}

#[test]
fn exec_requests_are_judged() {
    let request = |cmd: &[&str], timeout| cri::ExecSyncRequest {
        container_id: "c".into(),
        cmd: cmd.iter().map(|s| (*s).to_owned()).collect(),
        timeout,
    };
    let (id, cmd, timeout) = exec_sync(request(&["true"], 3)).unwrap();
    assert_eq!((id.as_str(), cmd.len(), timeout), ("c", 1, 3));
    refused(exec_sync(request(&[], 0)), &["cmd: absent"]);
    refused(exec_sync(request(&["a\0"], 0)), &["cmd[0]"]);
    refused(exec_sync(request(&["true"], -1)), &["timeout: -1"]);
}

#[test]
fn hostile_values_are_shortened_and_escaped() {
    let name = "\u{1b}[31m\n".repeat(10_000);
    let text = container(|c| c.working_dir = name).unwrap_err().to_string();
    assert!(text.len() < 600 && !text.contains(['\n', '\u{1b}']), "{text:?}");
}

/// KUBELET.md H3: kubelet dereferences these without looking.
#[test]
fn stats_always_carry_attributes() {
    let record = container_record(container(|_| {}).unwrap());
    let without = container_stats(&record, None, None, std::path::Path::new("/store"));
    let attributes = without.attributes.unwrap();
    assert_eq!(attributes.metadata.unwrap().name, "nginx");
    assert_eq!((attributes.id, attributes.labels["a"].as_str()), (record.id.to_string(), "b"));
    assert!(without.cpu.is_none() && without.memory.is_none() && without.writable_layer.is_none());
}

#[test]
fn stats_arrive() {
    use crate::stats::{ContainerStats, Cpu, Memory, Swap, WritableLayer};
    let record = container_record(container(|_| {}).unwrap());
    let figures = ContainerStats {
        cpu: Cpu { timestamp: 1, usage_core_nano_seconds: 2, usage_nano_cores: None },
        memory: Memory {
            timestamp: 3,
            working_set_bytes: 4,
            available_bytes: None,
            usage_bytes: 5,
            rss_bytes: 6,
            page_faults: 7,
            major_page_faults: 8,
        },
        swap: Some(Swap { timestamp: 9, swap_available_bytes: Some(10), swap_usage_bytes: 11 }),
        writable_layer: None,
        pids: None,
    };
    let layer = WritableLayer { timestamp: 12, used_bytes: 13, inodes_used: 14 };
    let stats = container_stats(&record, Some(&figures), Some(&layer), std::path::Path::new("/store"));
    let (cpu, memory) = (stats.cpu.unwrap(), stats.memory.unwrap());
    assert_eq!(
        (cpu.timestamp, cpu.usage_core_nano_seconds.unwrap().value, cpu.usage_nano_cores),
        (1, 2, None)
    );
    assert_eq!((memory.usage_bytes.unwrap().value, memory.available_bytes), (5, None));
    assert_eq!((memory.working_set_bytes.unwrap().value, memory.rss_bytes.unwrap().value), (4, 6));
    assert_eq!((memory.page_faults.unwrap().value, memory.major_page_faults.unwrap().value), (7, 8));
    let swap = stats.swap.unwrap();
    assert_eq!((swap.swap_available_bytes.unwrap().value, swap.swap_usage_bytes.unwrap().value), (10, 11));
    let layer = stats.writable_layer.unwrap();
    // KUBELET.md H4: never a folder of the container.
    assert_eq!(layer.fs_id.unwrap().mountpoint, "/store");
    assert_eq!((layer.used_bytes.unwrap().value, layer.inodes_used.unwrap().value), (13, 14));
}

/// KUBELET.md H3 and H4.
#[test]
fn image_file_system_is_a_folder_that_is_there_with_figures() {
    let folder = tempfile::tempdir().unwrap();
    let reply = image_fs(folder.path(), &::image::Usage { bytes: 0, inodes: 0 });
    for filesystem in reply.image_filesystems.iter().chain(&reply.container_filesystems) {
        assert_eq!(filesystem.used_bytes, Some(cri::UInt64Value { value: 0 }), "zero, not absent");
        assert!(filesystem.inodes_used.is_some() && filesystem.timestamp > 0);
        assert!(std::path::Path::new(&filesystem.fs_id.as_ref().unwrap().mountpoint).is_dir());
    }
    assert_eq!((reply.image_filesystems.len(), reply.container_filesystems.len()), (1, 1));
}

#[test]
fn images() {
    let record = ::image::ImageRecord {
        id: "sha256:aa".into(),
        repo_tags: vec!["r.local/x:1".into()],
        repo_digests: vec!["r.local/x@sha256:bb".into()],
        size: 0,
        uid: None,
        username: Some("www-data".into()),
        config: ::image::ImageConfig::default(),
        layers: Vec::new(),
        layers_dir: "/l".into(),
        pinned: true,
    };
    let wire = image::image(&record);
    assert_eq!(
        (wire.id.as_str(), wire.size, wire.uid, wire.username.as_str()),
        ("sha256:aa", 1, None, "www-data")
    );
    assert!(wire.pinned && wire.repo_tags.len() == 1 && wire.repo_digests.len() == 1);
    let root = image::image(&::image::ImageRecord { uid: Some(0), username: None, ..record });
    assert_eq!((root.uid.unwrap().value, root.username.as_str()), (0, ""));

    let spec = |name: &str| Some(cri::ImageSpec { image: name.into(), ..Default::default() });
    let (name, auth) = pull_request(cri::PullImageRequest {
        image: spec("r.local/x"),
        auth: Some(cri::AuthConfig {
            username: "u".into(),
            registry_token: "t".into(),
            ..Default::default()
        }),
        sandbox_config: Some(full_pod()),
    })
    .unwrap();
    let auth = auth.unwrap();
    assert_eq!(
        (name.as_str(), auth.username.as_str(), auth.registry_token.as_str()),
        ("r.local/x", "u", "t")
    );
    refused(image_name(None), &["image: absent"]);
    refused(image_name(spec("")), &["image.image: absent"]);
    refused(image_name(spec("a\nb")), &["image.image", "control characters"]);
    let other = cri::ImageSpec { image: "x".into(), runtime_handler: "kata".into(), ..Default::default() };
    refused(image_name(Some(other)), &["image.runtime_handler: \"kata\""]);
    assert_eq!(image_filter(None).unwrap(), None);
    assert_eq!(image_filter(Some(cri::ImageFilter { image: spec("") })).unwrap(), None);
    assert_eq!(image_filter(Some(cri::ImageFilter { image: spec("x") })).unwrap().as_deref(), Some("x"));
}
