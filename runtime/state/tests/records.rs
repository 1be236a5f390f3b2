//! Records of released and of later versions.

use std::path::{Path, PathBuf};

use model::*;
use state::{Error, file, kind};

/// The content of `pod.1.json`: every field is set, so that no change of its format goes unnoticed.
#[expect(clippy::too_many_lines, reason = "a record with every field")]
fn full_pod() -> PodRecord {
    let s = |t: &str| t.to_owned();
    PodRecord {
        id: PodId::from_random([0xab; 32]),
        config: PodConfig {
            meta: PodMeta { name: s("web-0"), namespace: s("shop"), uid: s("3d4f"), attempt: 2 },
            hostname: s("web-0"),
            log_directory: s("/var/log/pods/shop_web-0_3d4f"),
            dns: Some(Dns {
                servers: vec![s("10.0.0.10")],
                searches: vec![s("svc.local")],
                options: vec![s("ndots:5")],
            }),
            ports: vec![PortMapping {
                protocol: Protocol::Sctp,
                container_port: 80,
                host_port: 8080,
                host_ip: s("::1"),
            }],
            labels: [(s("app"), s("web"))].into(),
            annotations: [(s("note"), s("a \"b\""))].into(),
            cgroup_parent: s("/kubepods/burstable/pod3d4f"),
            sysctls: [(s("net.core.somaxconn"), s("1024"))].into(),
            overhead: Some(Resources { memory_limit: 1 << 20, ..Resources::default() }),
            resources: Some(resources()),
            security: PodSecurity {
                namespaces: Namespaces {
                    network: NamespaceMode::Pod,
                    pid: NamespaceMode::Container,
                    ipc: NamespaceMode::Node,
                    target: s(""),
                    user: Some(UserNamespace {
                        mode: NamespaceMode::Node,
                        uids: vec![map()],
                        gids: vec![map()],
                    }),
                },
                run_as_user: Some(1000),
                run_as_group: Some(1001),
                supplemental_groups: vec![7],
                privileged: true,
                readonly_rootfs: true,
                seccomp: SeccompProfile::Localhost(s("/var/lib/kubelet/seccomp/a.json")),
                apparmor: AppArmorProfile::Unset,
                selinux: SelinuxOptions::default(),
            },
            runtime_handler: s("plain"),
        },
        created_at: 1_700_000_000_000_000_000,
        phase: PodPhase::Stopping,
        scope: s(""),
        ips: vec!["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()],
        netns: s("/run/netns/cni-1"),
        pause_pid: 41,
        shim_pid: 40,
        message: s("it was stopped"),
        updated: None,
        selinux: None,
    }
}
fn map() -> IdMapping {
    IdMapping { host_id: 100_000, container_id: 0, length: 65_536 }
}
fn resources() -> Resources {
    Resources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit: 64 << 20,
        memory_swap_limit: 64 << 20,
        oom_score_adj: 999,
        cpuset_cpus: "0-1".into(),
        cpuset_mems: "0".into(),
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
        unified: [("memory.high".to_owned(), "1".to_owned())].into(),
    }
}
/// The content of `container.1.json`.
#[expect(clippy::too_many_lines, reason = "a record with every field")]
fn full_container() -> ContainerRecord {
    let s = |t: &str| t.to_owned();
    let t = |t: &str| Text::new(t).unwrap();
    ContainerRecord {
        id: ContainerId::from_random([0xcd; 32]),
        pod: PodId::from_random([0xab; 32]),
        config: ContainerConfig {
            meta: ContainerMeta { name: s("web"), attempt: 3 },
            image: ImageSpec {
                image: s("sha256:11"),
                annotations: [(s("k"), s("v"))].into(),
                user_specified_image: s("web:1"),
                runtime_handler: s("plain"),
            },
            command: vec![t("/bin/web")],
            args: vec![t("--port"), Text::new(vec![0xff, 0x80]).unwrap()],
            working_dir: s("/srv"),
            envs: vec![EnvVar { key: s("A"), value: t("1") }],
            mounts: vec![Mount {
                container_path: s("/data"),
                host_path: s("/srv/data"),
                readonly: true,
                selinux_relabel: false,
                propagation: Propagation::HostToContainer,
                uid_mappings: vec![map()],
                gid_mappings: vec![map()],
                ..Mount::default()
            }],
            devices: vec![Device {
                container_path: s("/dev/fuse"),
                host_path: s("/dev/fuse"),
                permissions: s("rw"),
            }],
            labels: [(s("app"), s("web"))].into(),
            annotations: [(s("note"), s("x"))].into(),
            log_path: s("web/3.log"),
            stdin: true,
            stdin_once: true,
            tty: true,
            resources: resources(),
            security: ContainerSecurity {
                capabilities: Capabilities {
                    add: vec![s("NET_ADMIN")],
                    drop: vec![s("ALL")],
                    ambient: vec![s("CHOWN")],
                },
                privileged: false,
                namespaces: Namespaces {
                    network: NamespaceMode::Pod,
                    pid: NamespaceMode::Target,
                    ipc: NamespaceMode::Pod,
                    target: s("cd"),
                    user: None,
                },
                user: UserRequest::Name(s("nobody")),
                run_as_group: Some(5),
                supplemental_groups: vec![6],
                groups_policy: GroupsPolicy::Strict,
                readonly_rootfs: true,
                no_new_privs: true,
                masked_paths: vec![s("/proc/kcore")],
                readonly_paths: vec![s("/proc/sys")],
                seccomp: SeccompProfile::RuntimeDefault,
                apparmor: AppArmorProfile::Unset,
                selinux: SelinuxOptions::default(),
            },
            stop_signal: 15,
        },
        image: ImageOfContainer { id: s("sha256:11"), digested: s("r.test/web@sha256:22") },
        volume_images: Vec::new(),
        created_at: 1_700_000_000_000_000_001,
        started_at: 1_700_000_000_000_000_002,
        phase: ContainerPhase::Exited,
        exit: Some(Exit {
            code: 137,
            finished_at: 1_700_000_000_000_000_003,
            oom_killed: true,
            reason: s("OOMKilled"),
            message: s("m"),
        }),
        pid: 77,
        user: User { uid: 65534, gid: 5, groups: vec![5, 6] },
        log_path: s("/var/log/pods/shop_web-0_3d4f/web/3.log"),
        stop_signal: 15,
        cgroup: s("/kubepods/burstable/pod3d4f/cd"),
        exec_template: Some(
            serde_json::json!({"args": ["/bin/web"], "env": ["A=1", "HOME=/"], "cwd": "/srv"}),
        ),
        asked_env: Vec::new(),
        update: None,
        requested_resources: None,
        update_annotations: [].into(),
    }
}
/// The record in `container.2.json`: the environment is in the template only.
fn second_container() -> ContainerRecord {
    let mut record = full_container();
    record.config.envs = Vec::new();
    ContainerRecord { asked_env: vec![0], ..record }
}
/// The record in `container.3.json`: it was updated before its start, and another update has begun.
fn third_container() -> ContainerRecord {
    let s = |t: &str| t.to_owned();
    ContainerRecord {
        update: Some(Box::new(Update {
            resources: Resources { cpu_shares: 1024, ..Resources::default() },
            annotations: [(s("a"), s("b"))].into(),
        })),
        requested_resources: Some(Box::new(Resources { cpu_shares: 2, ..resources() })),
        update_annotations: [(s("c"), s("d"))].into(),
        ..second_container()
    }
}
/// The record in `pod.2.json`: UpdatePodSandboxResources has sent other values.
fn second_pod() -> PodRecord {
    let updated = PodResources { overhead: None, resources: Some(resources()) };
    PodRecord { updated: Some(Box::new(updated)), ..full_pod() }
}
/// The record in `container.4.json`: it has an image volume, and a volume that is read-only recursively.
fn fourth_container() -> ContainerRecord {
    let mut record = second_container();
    let spec = ImageSpec { image: "data:1".to_owned(), ..ImageSpec::default() };
    record.config.mounts = vec![
        Mount {
            container_path: "/image".to_owned(),
            readonly: true,
            mount_options: vec![MountOption::NoExec, MountOption::NoSuid, MountOption::NoDev],
            image: Some(ImageVolume { image: spec, sub_path: "etc".to_owned() }),
            ..Mount::default()
        },
        Mount {
            container_path: "/all".to_owned(),
            host_path: "/srv/all".to_owned(),
            readonly: true,
            recursive_read_only: true,
            ..Mount::default()
        },
    ];
    ContainerRecord { volume_images: vec!["sha256:33".to_owned()], ..record }
}
/// The record in `container.5.json`: it asks for an AppArmor profile, which its process has.
fn fifth_container() -> ContainerRecord {
    let mut record = second_container();
    record.config.security.apparmor = AppArmorProfile::Localhost("mine".to_owned());
    if let Some(template) = record.exec_template.as_mut().and_then(serde_json::Value::as_object_mut) {
        template.insert("apparmor".to_owned(), "mine".into());
    }
    record
}
/// The record in `pod.3.json`: pause has the default AppArmor profile.
fn third_pod() -> PodRecord {
    let mut record = full_pod();
    record.config.security.apparmor = AppArmorProfile::RuntimeDefault;
    record
}
/// The record in `pod.4.json`: its cgroups are in a scope of systemd.
fn fourth_pod() -> PodRecord {
    let slice = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3d4f.slice";
    PodRecord { scope: format!("{slice}/copepod-abababababababab.scope"), ..full_pod() }
}
/// The record in `pod.5.json`: it asks for parts of an SELinux label, and has labels.
fn fifth_pod() -> PodRecord {
    let mut record = full_pod();
    record.config.security.selinux = SelinuxOptions {
        kind: "web_t".to_owned(),
        level: "s0:c1,c2".to_owned(),
        ..SelinuxOptions::default()
    };
    let labels = SelinuxLabels {
        process: "system_u:system_r:web_t:s0:c1,c2".to_owned(),
        file: "system_u:object_r:container_file_t:s0:c1,c2".to_owned(),
    };
    PodRecord { selinux: Some(labels), ..record }
}
/// The record in `container.6.json`: it asks for the type of its label, which its process has.
fn sixth_container() -> ContainerRecord {
    let mut record = second_container();
    record.config.security.selinux.kind = "web_t".to_owned();
    if let Some(template) = record.exec_template.as_mut().and_then(serde_json::Value::as_object_mut) {
        template.insert("selinux".to_owned(), "system_u:system_r:web_t:s0:c1,c2".into());
    }
    record
}
/// A file in `tests/fixtures`. These are never changed: all later versions must be able to read a release's
/// records.
fn frozen(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn records_of_the_first_format_are_readable() {
    let pod = file::read::<PodRecord>(&frozen("pod.1.json"), kind::POD).unwrap().unwrap();
    assert_eq!(pod.data, full_pod());
    let container = file::read::<ContainerRecord>(&frozen("container.1.json"), kind::CONTAINER);
    assert_eq!(container.unwrap().unwrap().data, full_container());
}

#[test]
fn records_with_the_environment_stored_once_are_readable() {
    let container = file::read::<ContainerRecord>(&frozen("container.2.json"), kind::CONTAINER);
    assert_eq!(container.unwrap().unwrap().data, second_container());
}

#[test]
fn records_of_updated_resources_are_readable() {
    let container = file::read::<ContainerRecord>(&frozen("container.3.json"), kind::CONTAINER);
    assert_eq!(container.unwrap().unwrap().data, third_container());
    let pod = file::read::<PodRecord>(&frozen("pod.2.json"), kind::POD).unwrap().unwrap();
    assert_eq!(pod.data, second_pod());
}

#[test]
fn records_with_image_volumes_are_readable() {
    let container = file::read::<ContainerRecord>(&frozen("container.4.json"), kind::CONTAINER);
    assert_eq!(container.unwrap().unwrap().data, fourth_container());
    // What a container does not use is not written.
    let without = serde_json::to_string(&second_container()).unwrap();
    for name in ["volume_images", "recursive_read_only", "mount_options", "sub_path"] {
        assert!(!without.contains(name), "{name}");
    }
}

#[test]
fn records_with_a_scope_are_readable() {
    let pod = file::read::<PodRecord>(&frozen("pod.4.json"), kind::POD).unwrap().unwrap();
    assert_eq!(pod.data, fourth_pod());
    assert!(!serde_json::to_string(&full_pod()).unwrap().contains("scope"));
}

#[test]
fn records_with_apparmor_profiles_are_readable() {
    let container = file::read::<ContainerRecord>(&frozen("container.5.json"), kind::CONTAINER);
    assert_eq!(container.unwrap().unwrap().data, fifth_container());
    let pod = file::read::<PodRecord>(&frozen("pod.3.json"), kind::POD).unwrap().unwrap();
    assert_eq!(pod.data, third_pod());
    // A request without one is written as before.
    for record in [serde_json::to_string(&second_container()), serde_json::to_string(&full_pod())] {
        assert!(!record.unwrap().contains("apparmor"));
    }
}

#[test]
fn records_with_selinux_labels_are_readable() {
    let container = file::read::<ContainerRecord>(&frozen("container.6.json"), kind::CONTAINER);
    assert_eq!(container.unwrap().unwrap().data, sixth_container());
    let pod = file::read::<PodRecord>(&frozen("pod.5.json"), kind::POD).unwrap().unwrap();
    assert_eq!(pod.data, fifth_pod());
    // `selinux_relabel` of a volume was there before.
    for record in [serde_json::to_string(&second_container()), serde_json::to_string(&full_pod())] {
        assert!(!record.unwrap().contains("\"selinux\""));
    }
}

/// Makes a record of a later version: the fixture with `from` replaced by `to` in its data and a right
/// checksum.
fn later(dir: &Path, name: &str, kind: &str, from: &str, to: &str) -> PathBuf {
    let frozen: serde_json::Value = serde_json::from_slice(&std::fs::read(frozen(name)).unwrap()).unwrap();
    let text = frozen["data"].to_string();
    assert!(text.contains(from), "{text}");
    let data: serde_json::Value = serde_json::from_str(&text.replace(from, to)).unwrap();
    let path = dir.join("record");
    file::write(&path, kind, frozen["boot_id"].as_str().unwrap(), &data, false).unwrap();
    path
}

#[test]
fn a_field_of_a_later_version_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let path =
        later(dir.path(), "pod.1.json", kind::POD, "\"privileged\"", "\"later\":{\"a\":1},\"privileged\"");
    assert_eq!(file::read::<PodRecord>(&path, kind::POD).unwrap().unwrap().data, full_pod());
}

#[test]
fn an_unknown_variant_is_newer_and_not_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let pods = [("\"Sctp\"", "\"Dccp\""), ("\"Stopping\"", "\"Paused\""), ("{\"Localhost\"", "{\"Notify\"")];
    for (from, to) in pods {
        let path = later(dir.path(), "pod.1.json", kind::POD, from, to);
        let error = file::read::<PodRecord>(&path, kind::POD).unwrap_err();
        assert!(matches!(error, Error::Newer { .. }) && !error.is_bad_file(), "{to}: {error}");
        // The fields needed for display can still be read.
        let looked: serde_json::Value = file::look(&path).unwrap();
        assert_eq!(looked["config"]["meta"]["uid"], "3d4f");
    }
    for (from, to) in [("\"HostToContainer\"", "\"Idmapped\""), ("{\"Name\"", "{\"Sid\"")] {
        let path = later(dir.path(), "container.1.json", kind::CONTAINER, from, to);
        let error = file::read::<ContainerRecord>(&path, kind::CONTAINER).unwrap_err();
        assert!(matches!(error, Error::Newer { .. }), "{to}: {error}");
    }
}
