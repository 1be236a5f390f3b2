//! Status returns what was requested, and every field that kubelet dereferences is set.

use super::*;

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
fn mounts_are_shown_as_requested_and_images_by_their_ids() {
    let image = |name: &str, written: &str| {
        let (image, user_specified_image) = (name.to_owned(), written.to_owned());
        Some(cri::ImageSpec { image, user_specified_image, ..Default::default() })
    };
    let mount = |path: &str, image| cri::Mount {
        container_path: path.to_owned(),
        readonly: true,
        image,
        image_sub_path: "etc".into(),
        mount_options: vec!["nodev".into()],
        ..Default::default()
    };
    let host = cri::Mount {
        container_path: "/h".into(),
        host_path: "/srv".into(),
        readonly: true,
        recursive_read_only: true,
        ..Default::default()
    };
    let asked = vec![mount("/a", image("sha256:a", "data:1")), host, mount("/b", image("data:2", ""))];
    let mut record = container_record(container(|c| c.mounts = asked.clone()).unwrap());
    record.volume_images = vec!["sha256:a".into(), "sha256:b".into()];
    let shown = container_status(&record, || "/nowhere".to_owned()).mounts;
    let mut wanted = asked.clone();
    wanted[0].image.as_mut().unwrap().image_ref = "sha256:a".into();
    // kubelet compares ids, so an image that was named otherwise is shown by its id too.
    let second = wanted[2].image.as_mut().unwrap();
    (second.image, second.image_ref) = ("sha256:b".into(), "sha256:b".into());
    second.user_specified_image = "data:2".into();
    assert_eq!(shown, wanted);
}

#[test]
fn container_round_trip() {
    let asked = full_container();
    let record = container_record(container(|_| {}).unwrap());
    let status = container_status(&record, || "/nowhere".to_owned());
    assert_eq!(status.metadata, asked.metadata);
    assert_eq!(status.mounts, asked.mounts, "kubelet finds its volumes by these strings");
    assert_eq!(status.resources.unwrap().linux, asked.linux.unwrap().resources);
    assert_eq!((status.labels, status.annotations), (asked.labels, asked.annotations));
    assert_eq!(status.stop_signal, asked.stop_signal);
    assert_eq!((status.exit_code, status.reason.as_str(), status.finished_at), (137, "OOMKilled", 45));
    assert_eq!(status.image.unwrap().image, "registry.local/nginx", "requested by id: status shows the name");
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

/// kubelet removes whatever matches `<log_path>*`.
#[test]
fn log_path_in_status_is_always_absolute() {
    let mut record = container_record(container(|c| c.log_path = String::new()).unwrap());
    record.log_path = String::new();
    let status = container_status(&record, || "/run/copepod/silent/log".to_owned());
    assert_eq!(status.log_path, "/run/copepod/silent/log");
    record.log_path = "relative".into();
    assert!(container_status(&record, || "/run/copepod/silent/log".to_owned()).log_path.starts_with('/'));
}

/// Status must not fail for any listed container.
#[test]
fn status_needs_nothing_but_the_record() {
    let mut record = container_record(model::ContainerConfig::default());
    record.exit = None;
    record.image.digested = String::new();
    record.phase = ContainerPhase::Created;
    let status = container_status(&record, || "/nowhere".to_owned());
    assert_eq!(status.image_ref, "sha256:aa");
    assert_eq!((status.finished_at, status.exit_code), (0, 0));
    assert_eq!(status.stop_signal(), cri::Signal::Sigquit);
    assert!(status.user.is_some() && status.resources.is_some() && status.image.is_some());
}

#[test]
fn all_conditions_of_a_filter_must_hold() {
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
    let running = ContainerRecord { phase: ContainerPhase::Running, ..record.clone() };
    assert!(ContainerFilter::for_stats(None).matches(&running));
    assert!(!ContainerFilter::for_stats(None).matches(&record), "stats of a container that has exited");
}

/// kubelet dereferences these without a check.
#[test]
fn stats_always_carry_attributes() {
    let record = container_record(container(|_| {}).unwrap());
    let without = container_stats(&record, None, std::path::Path::new("/store"));
    let attributes = without.attributes.unwrap();
    assert_eq!(attributes.metadata.unwrap().name, "nginx");
    assert_eq!((attributes.id, attributes.labels["a"].as_str()), (record.id.to_string(), "b"));
    assert!(without.cpu.is_none() && without.memory.is_none() && without.writable_layer.is_none());
}

#[test]
fn stats_are_converted() {
    use crate::stats::{ContainerStats, Cpu, Memory, Swap, WritableLayer};
    let record = container_record(container(|_| {}).unwrap());
    let stats = ContainerStats {
        cpu: Cpu { timestamp: 1, usage_core_nano_seconds: 2, usage_nano_cores: None, psi: None },
        memory: Memory {
            timestamp: 3,
            working_set_bytes: 4,
            available_bytes: None,
            usage_bytes: 5,
            rss_bytes: 6,
            page_faults: 7,
            major_page_faults: 8,
            psi: None,
        },
        swap: Some(Swap { timestamp: 9, swap_available_bytes: Some(10), swap_usage_bytes: 11 }),
        io: None,
        writable_layer: Some(WritableLayer { timestamp: 12, used_bytes: 13, inodes_used: 14 }),
        pids: None,
    };
    let stats = container_stats(&record, Some(&stats), std::path::Path::new("/store"));
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
    // kubelet calls stat on it, so it must not be a folder of the container.
    assert_eq!(layer.fs_id.unwrap().mountpoint, "/store");
    assert_eq!((layer.used_bytes.unwrap().value, layer.inodes_used.unwrap().value), (13, 14));
}

/// kubelet dereferences `attributes`, `linux`, and `default_interface` if there is a network.
#[test]
#[expect(clippy::too_many_lines, reason = "a message with every field")]
fn stats_of_pods_are_converted() {
    use crate::stats::{
        Cpu, Interface, Io, Memory, Network, PodStats, PodUsage, Processes, Psi, PsiData, Traffic,
    };
    let mut record = model::PodRecord::new(PodId::from_random([3; 32]), model::PodConfig::default(), 5);
    record.config.labels.insert("a".into(), "b".into());
    record.config.annotations.insert("c".into(), "d".into());
    let without = pod_stats(&record, PodStats::default(), Vec::new());
    let attributes = without.attributes.unwrap();
    assert_eq!((attributes.id, attributes.labels["a"].as_str()), (record.id.to_string(), "b"));
    assert!(attributes.metadata.is_some() && attributes.annotations["c"] == "d" && without.windows.is_none());
    assert_eq!(without.linux, Some(cri::LinuxPodSandboxStats::default()));

    let line = |n: u32| PsiData { total: n.into(), avg10: n.into(), avg60: 0.5, avg300: 0.25 };
    let psi = |n| Some(Psi { full: line(n), some: line(n + 1) });
    let interface = |name: &str, n| Interface {
        name: name.into(),
        rx: Traffic { bytes: n, packets: 0, errors: n + 1, dropped: 0 },
        tx: Traffic { bytes: n + 2, packets: 0, errors: n + 3, dropped: 0 },
    };
    let memory = Memory {
        timestamp: 3,
        working_set_bytes: 4,
        available_bytes: Some(5),
        usage_bytes: 6,
        rss_bytes: 7,
        page_faults: 8,
        major_page_faults: 9,
        psi: psi(20),
    };
    let stats = PodStats {
        usage: Some(PodUsage {
            cpu: Cpu { timestamp: 1, usage_core_nano_seconds: 2, usage_nano_cores: Some(3), psi: psi(10) },
            memory,
            swap: None,
            io: psi(30).map(|psi| Io { timestamp: 11, psi }),
            pids: Some(99),
        }),
        network: Some(Network {
            timestamp: 12,
            interfaces: vec![interface("net1", 100), interface("eth0", 200)],
            default: 1,
        }),
        processes: Some(Processes { timestamp: 13, count: 14 }),
    };
    let container = container_record(container(|_| {}).unwrap());
    let container = container_stats(&container, None, std::path::Path::new("/store"));
    let linux = pod_stats(&record, stats, vec![container.clone()]).linux.unwrap();
    let number = |value: Option<cri::UInt64Value>| value.unwrap().value;
    let pressure = |psi: Option<cri::PsiStats>| {
        let psi = psi.unwrap();
        let (full, some) = (psi.full.unwrap(), psi.some.unwrap());
        assert_eq!((full.avg60, full.avg300, some.avg10), (0.5, 0.25, full.avg10 + 1.0));
        (full.total, some.total)
    };
    let cpu = linux.cpu.unwrap();
    assert_eq!((cpu.timestamp, number(cpu.usage_core_nano_seconds), number(cpu.usage_nano_cores)), (1, 2, 3));
    assert_eq!(pressure(cpu.psi), (10, 11));
    let memory = linux.memory.unwrap();
    assert_eq!(
        (memory.timestamp, number(memory.working_set_bytes), number(memory.available_bytes)),
        (3, 4, 5)
    );
    assert_eq!((number(memory.usage_bytes), number(memory.rss_bytes)), (6, 7));
    assert_eq!((number(memory.page_faults), number(memory.major_page_faults)), (8, 9));
    assert_eq!(pressure(memory.psi), (20, 21));
    let io = linux.io.unwrap();
    assert_eq!((io.timestamp, pressure(io.psi)), (11, (30, 31)));
    let process = linux.process.unwrap();
    assert_eq!((process.timestamp, number(process.process_count)), (13, 14));
    assert_eq!(linux.containers, [container]);
    let network = linux.network.unwrap();
    let [net1, eth0] = network.interfaces.as_slice() else { panic!("{network:?}") };
    assert_eq!((network.timestamp, network.default_interface.as_ref()), (12, Some(eth0)));
    assert_eq!((net1.name.as_str(), eth0.name.as_str()), ("net1", "eth0"));
    assert_eq!((number(eth0.rx_bytes), number(eth0.rx_errors)), (200, 201));
    assert_eq!((number(eth0.tx_bytes), number(eth0.tx_errors)), (202, 203));
}

/// kubelet calls stat on the folder and dereferences the values without a check.
#[test]
fn image_file_system_is_an_existing_folder_with_values() {
    let folder = tempfile::tempdir().unwrap();
    let none = ::image::Usage { bytes: 0, inodes: 0 };
    let reply = image_fs(folder.path(), &none, &none);
    for filesystem in reply.image_filesystems.iter().chain(&reply.container_filesystems) {
        assert_eq!(filesystem.used_bytes, Some(cri::UInt64Value { value: 0 }), "zero, not absent");
        assert!(filesystem.inodes_used.is_some() && filesystem.timestamp > 0);
        assert!(std::path::Path::new(&filesystem.fs_id.as_ref().unwrap().mountpoint).is_dir());
    }
    assert_eq!((reply.image_filesystems.len(), reply.container_filesystems.len()), (1, 1));
    let written = ::image::Usage { bytes: 7, inodes: 2 };
    let reply = image_fs(folder.path(), &none, &written);
    let [images, containers] = [&reply.image_filesystems[0], &reply.container_filesystems[0]];
    assert_eq!((images.used_bytes.unwrap().value, images.inodes_used.unwrap().value), (0, 0));
    assert_eq!((containers.used_bytes.unwrap().value, containers.inodes_used.unwrap().value), (7, 2));
    assert_eq!(images.fs_id, containers.fs_id, "two mount points are two file systems to kubelet");
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
            password: "p".into(),
            auth: "a".into(),
            server_address: "s".into(),
            identity_token: "i".into(),
            registry_token: "t".into(),
        }),
        sandbox_config: Some(full_pod()),
    })
    .unwrap();
    let auth = auth.unwrap();
    assert_eq!(name, "r.local/x");
    let given = [auth.username, auth.password, auth.auth, auth.server_address, auth.identity_token];
    assert_eq!(
        (given.as_slice(), auth.registry_token.as_str()),
        (["u", "p", "a", "s", "i"].map(String::from).as_slice(), "t")
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
