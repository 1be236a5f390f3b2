//! Fixtures: requests with every field set to a valid value; tests make one field invalid.

use super::*;
use crate::apparmor::Support;
use cri_api::v1 as cri;
use model::{
    ContainerId, ContainerPhase, ContainerRecord, Exit, NamespaceMode, PodId, PodPhase, PodRecord,
    SeccompProfile, UserRequest,
};

const PLAIN: Host = Host { apparmor: Support::Absent, recursive_read_only: true };
const GUARDED: Host = Host { apparmor: Support::On, recursive_read_only: false };

/// Every field is set to a valid value.
#[expect(clippy::too_many_lines, reason = "a message with every field")]
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
            mount_options: vec!["nosuid".into(), "noexec".into()],
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
    container_config(request, host).map(|(pod, config, privileged)| {
        assert_eq!((pod.as_str(), privileged), ("p1", false));
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

/// The refusal's text must contain all of `parts`: the field's name, the value, a valid value.
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
        scope: String::new(),
        selinux: None,
        ips: vec!["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        netns: String::new(),
        pause_pid: 7,
        shim_pid: 6,
        message: String::new(),
        updated: None,
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
        volume_images: Vec::new(),
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
        asked_env: Vec::new(),
        update: None,
        requested_resources: None,
        update_annotations: [].into(),
    }
}

mod hostile;
mod profiles;
mod refusals;
mod replies;
mod updates;
