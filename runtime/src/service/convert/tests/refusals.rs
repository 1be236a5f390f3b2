//! Every refusal names the field, the value and a valid value.

use super::*;

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
    for (bad, want) in [("relative", "absolute path"), ("/a/../b", "\"..\""), ("/a\0b", "NUL")] {
        refused(pod(|p| p.log_directory = bad.into()), &["config.log_directory", want]);
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
        sandbox(|l| l.cgroup_parent = "kubepods/x.slice".into()),
        &["linux.cgroup_parent: \"kubepods/x.slice\"", "/kubepods"],
    );
    refused(sandbox(|l| l.cgroup_parent = "/a/../..".into()), &["linux.cgroup_parent"]);
    let long = format!("/{}", "k".repeat(256));
    refused(sandbox(|l| l.cgroup_parent = long), &["linux.cgroup_parent", "255 bytes"]);
}

#[test]
fn only_sysctls_of_the_pods_namespaces_are_accepted() {
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
    for good in ["net.ipv4.ip_forward", "kernel.shm_rmid_forced", "fs.mqueue.msg_max", "kernel.domainname"] {
        assert_eq!(set(good, false).unwrap().sysctls.keys().next().unwrap(), good);
        refused(set(good, true), &["sysctls", good, "host's"]);
    }
    let vlan = set("net/ipv4/conf/eth0.100/rp_filter", false).unwrap();
    assert_eq!(vlan.sysctls.keys().next().unwrap(), "net.ipv4.conf.eth0/100.rp_filter");
    for bad in ["vm.swappiness", "kernel.panic", "kernel.hostname", "net", "net..x", "net.a b"] {
        refused(set(bad, false), &["config.linux.sysctls", bad]);
    }
    for bad in ["1\n2", &"x".repeat(4096)] {
        refused(sandbox(|l| l.sysctls = [("net.x".to_owned(), bad.to_owned())].into()), &["one line"]);
    }
    let many = (0..257).map(|number| (format!("net.{number}"), "1".to_owned())).collect();
    refused(sandbox(|l| l.sysctls = many), &["config.linux.sysctls: 257 entries"]);
    // One of the values would win, and nobody knows which.
    for value in ["0", "1"] {
        let both = ["net/ipv4/ip_forward", "net.ipv4.ip_forward"];
        let sysctls = both.iter().zip(["0", value]).map(|(key, value)| ((*key).to_owned(), value.to_owned()));
        let twice = sandbox(|l| l.sysctls = sysctls.collect());
        refused(twice, &["config.linux.sysctls", both[0], both[1], "only one"]);
    }
}

#[test]
fn limits_of_the_bandwidth_are_quantities() {
    let limited = |name: &str, value: &str, node: bool| {
        pod(|p| {
            p.annotations.insert(name.to_owned(), value.to_owned());
            if node {
                let security = p.linux.as_mut().unwrap().security_context.as_mut().unwrap();
                security.namespace_options.as_mut().unwrap().network = cri::NamespaceMode::Node.into();
                p.linux.as_mut().unwrap().sysctls.clear();
            }
        })
    };
    for name in ["kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"] {
        assert_eq!(limited(name, "10M", false).unwrap().annotations[name], "10M");
        refused(limited(name, "10 Mbit", false), &["config.annotations", name, "\"10 Mbit\"", "10M"]);
        refused(limited(name, "999", false), &[name, "\"999\"", "from 1k"]);
        // Nothing limits the host's network, so the annotation has no meaning there.
        assert!(limited(name, "10 Mbit", true).is_ok());
    }
}

#[test]
fn refuses_wrong_sandbox_security() {
    refused(
        sandbox_security(|s| s.run_as_user = None),
        &["security_context.run_as_group: 65534", "needs run_as_user"],
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

/// As kubelet sends it, with a change.
fn with_users(
    change: impl FnOnce(&mut cri::NamespaceOption, &mut cri::UserNamespace),
) -> Result<model::PodConfig> {
    sandbox_security(|s| {
        let options = s.namespace_options.as_mut().unwrap();
        let all = || vec![cri::IdMapping { host_id: 65_536, container_id: 0, length: 65_536 }];
        let mut users = cri::UserNamespace { mode: cri::NamespaceMode::Pod.into(), uids: all(), gids: all() };
        change(options, &mut users);
        options.userns_options = Some(users);
    })
}

#[test]
fn mappings_of_user_namespaces() {
    let made = with_users(|_, _| {}).unwrap().security.namespaces.mapping().unwrap();
    assert_eq!((made.uid, made.gid, made.length), (65_536, 65_536, 65_536));
    let uids = |change: fn(&mut cri::IdMapping)| with_users(|_, users| change(&mut users.uids[0]));
    refused(uids(|m| m.host_id = 0), &["userns_options.uids[0].host_id: 0", "the host's root"]);
    refused(uids(|m| m.container_id = 1), &["uids[0].container_id: 1", "must be 0"]);
    refused(uids(|m| m.length = 0), &["uids[0].length: 0", "at least 1"]);
    refused(uids(|m| m.host_id = u32::MAX), &["uids[0].length", "at most 4294967295"]);
    refused(uids(|m| m.length = 10), &["gids", "must have the length of uids, 10"]);
    assert!(uids(|m| (m.host_id, m.length) = (u32::MAX - 65_536, 65_536)).is_ok());
    refused(with_users(|_, users| users.uids.clear()), &["uids", "0 mappings", "exactly one"]);
    refused(with_users(|_, users| users.gids.push(users.gids[0])), &["gids", "2 mappings"]);
    refused(
        with_users(|_, users| users.mode = cri::NamespaceMode::Node.into()),
        &["userns_options.uids", "must be empty with the mode NODE"],
    );
    for (name, change) in [
        ("network", (|o| o.network = 2) as fn(&mut cri::NamespaceOption)),
        ("pid", |o| o.pid = 2),
        ("ipc", |o| o.ipc = 2),
    ] {
        refused(with_users(|options, _| change(options)), &[name, "must not be NODE"]);
    }
    // As kubelet, containerd and CRI-O, which let a privileged container have a user namespace.
    let privileged = sandbox_security(|s| {
        let all = || vec![cri::IdMapping { host_id: 65_536, container_id: 0, length: 65_536 }];
        let users = cri::UserNamespace { mode: cri::NamespaceMode::Pod.into(), uids: all(), gids: all() };
        s.namespace_options.as_mut().unwrap().userns_options = Some(users);
        s.privileged = true;
    });
    let security = privileged.unwrap().security;
    assert!(security.privileged && security.namespaces.mapping().is_some());
    let mapped =
        mounted(|m| m.uid_mappings = vec![cri::IdMapping { host_id: 7, container_id: 8, length: 9 }]);
    let mapping = mapped.unwrap().mounts[0].uid_mappings[0];
    assert_eq!((mapping.host_id, mapping.container_id, mapping.length), (7, 8, 9));
}

#[test]
fn refuses_what_is_not_implemented() {
    refused(
        container(|c| c.cdi_devices = vec![cri::CdiDevice { name: "v/c=1".into() }]),
        &["CDI_devices[0]", "not implemented"],
    );
    // The reason code that kubelet looks for comes first, before the object's name.
    let recursive = |host| {
        container_on(host, |c| (c.mounts[0].recursive_read_only, c.mounts[0].propagation) = (true, 0))
            .map(|config| config.mounts[0].recursive_read_only)
    };
    let text = recursive(GUARDED).unwrap_err().to_string();
    assert!(text.starts_with("RROUnsupported: container \"nginx\""), "{text}");
    assert_eq!(recursive(PLAIN), Ok(true));
}

#[test]
fn policies_of_groups() {
    let policy =
        |number| security(|s| s.supplemental_groups_policy = number).map(|c| c.security.groups_policy);
    assert_eq!((policy(0), policy(1)), (Ok(model::GroupsPolicy::Merge), Ok(model::GroupsPolicy::Strict)));
    refused(policy(2), &["supplemental_groups_policy: 2", "Merge, Strict"]);
    // pause has no image: both policies give it the groups of the request.
    let groups = |number| sandbox_security(|s| s.supplemental_groups_policy = number);
    assert_eq!(groups(1).unwrap().security.supplemental_groups, [7]);
    assert_eq!(groups(1), groups(0));
}

/// A volume of an image, changed.
fn image_volume(change: impl FnOnce(&mut cri::Mount)) -> Result<model::ContainerConfig> {
    mounted(|m| {
        let spec = cri::ImageSpec {
            image: "sha256:cc".into(),
            user_specified_image: "registry.local/data:1".into(),
            annotations: [("a".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        };
        m.image = Some(spec);
        m.image_sub_path = "sub//path/".into();
        (m.host_path, m.propagation) = (String::new(), 0);
        change(m);
    })
}

#[test]
fn image_volumes_are_read_only_and_have_no_other_source() {
    let made = image_volume(|_| {}).unwrap().mounts.remove(0);
    let volume = made.image.unwrap();
    assert_eq!((volume.image.image.as_str(), volume.sub_path.as_str()), ("sha256:cc", "sub//path/"));
    assert!(made.readonly && made.host_path.is_empty());
    refused(image_volume(|m| m.readonly = false), &["mounts[0].readonly: false", "true with an image"]);
    refused(image_volume(|m| m.host_path = "/x".into()), &["mounts[0].host_path: \"/x\"", "must be empty"]);
    for propagation in [1, 2] {
        refused(
            image_volume(|m| m.propagation = propagation),
            &["mounts[0].propagation", "PRIVATE with an image"],
        );
    }
    for bad in ["/etc", "..", "a/../../b", "a\0", "."] {
        refused(image_volume(|m| m.image_sub_path = bad.into()), &["mounts[0].image_sub_path"]);
    }
    refused(
        image_volume(|m| m.image.as_mut().unwrap().image = String::new()),
        &["mounts[0].image.image: absent"],
    );
    refused(
        image_volume(|m| m.image.as_mut().unwrap().runtime_handler = "kata".into()),
        &["mounts[0].image.runtime_handler", "unknown handler"],
    );
    assert!(image_volume(|m| m.recursive_read_only = true).is_ok(), "nothing is mounted below it");
    // An empty message is no image.
    refused(
        image_volume(|m| (m.image, m.image_sub_path) = (Some(cri::ImageSpec::default()), String::new())),
        &["mounts[0].host_path"],
    );
}

#[test]
fn relabelling_is_the_same_on_every_host() {
    for host in [PLAIN, GUARDED] {
        let made = container_on(host, |c| c.mounts[0].selinux_relabel = true).unwrap();
        assert!(made.mounts[0].selinux_relabel);
    }
}

#[test]
#[expect(deprecated, reason = "the deprecated form is validated too")]
fn the_deprecated_seccomp_string_is_used_only_without_the_message() {
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
    assert_eq!(container(|c| c.working_dir = "/a/../b".into()).unwrap().working_dir, "/a/../b");
    refused(container(|c| c.envs[0].key = "A=B".into()), &["envs[0].key: \"A=B\""]);
    refused(container(|c| c.envs[0].value = b"a\0".to_vec()), &["envs[0].value"]);
    for bad in ["/abs.log", "../x.log", "a/../../x", "dir/", "a\0b", "."] {
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
    refused(container(|c| c.devices[0].container_path = "x".into()), &["devices[0].container_path"]);
    assert!(container(|c| c.devices[0].container_path.clear()).is_ok(), "the path on the host");
}

#[test]
fn refuses_wrong_mounts() {
    for bad in ["", "data", "/", "/./", "/a/..", "/a\0"] {
        refused(mounted(|m| m.container_path = bad.into()), &["config.mounts[0].container_path"]);
    }
    // Kubernetes allows it, and kubelet looks for the path as it wrote it.
    let climbing = mounted(|m| m.container_path = "/a/../b".into()).unwrap();
    assert_eq!(climbing.mounts[0].container_path, "/a/../b");
    refused(container(|c| c.mounts = vec![c.mounts[0].clone(); 1025]), &["config.mounts: 1025 entries"]);
    refused(mounted(|m| m.host_path = String::new()), &["config.mounts[0].host_path"]);
    refused(mounted(|m| m.propagation = 3), &["mounts[0].propagation: 3"]);
    refused(mounted(|m| m.image_sub_path = "x".into()), &["mounts[0].image_sub_path"]);
    for bad in ["suid", "ro", "", "noexec,nodev"] {
        refused(
            mounted(|m| m.mount_options = vec!["nodev".into(), bad.into()]),
            &["mounts[0].mount_options[1]", "noexec, nosuid or nodev"],
        );
    }
    refused(
        mounted(|m| m.mount_options = vec!["nodev".into(); 17]),
        &["mounts[0].mount_options: 17 entries"],
    );
    refused(mounted(|m| m.recursive_read_only = true), &["mounts[0].propagation", "PRIVATE"]);
    refused(mounted(|m| (m.recursive_read_only, m.readonly) = (true, false)), &["mounts[0].readonly: false"]);
}

#[test]
fn refuses_wrong_container_security() {
    refused(
        security(|s| s.run_as_user = Some(cri::Int64Value { value: 1 })),
        &["run_as_username: \"www-data\""],
    );
    refused(security(|s| s.run_as_username = String::new()), &["run_as_group: 33", "needs run_as_user"]);
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
    refused(limits(|r| r.memory_limit_in_bytes = -2), &["memory_limit_in_bytes: -2"]);
    let unlimited = limits(|r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (-1, 0)).unwrap();
    assert_eq!(unlimited.resources.memory_limit, -1);
    for (memory, swap) in [(1 << 20, 5), (0, 1 << 20), (-1, 1 << 20), (1 << 20, -2)] {
        let wrong = limits(|r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (memory, swap));
        let (field, limit) = (format!("memory_swap_limit_in_bytes: {swap}"), format!("({memory})"));
        refused(wrong, &[field.as_str(), limit.as_str()]);
    }
    for bad in [1001, -1001, i64::MIN] {
        refused(limits(|r| r.oom_score_adj = bad), &["oom_score_adj"]);
    }
    // No process could start with less. A pod's overhead may be less.
    let little = 1_048_575;
    let wrong = limits(|r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (little, 0));
    refused(wrong, &["config.linux.resources.memory_limit_in_bytes: 1048575", "1048576"]);
    assert!(sandbox(|l| l.overhead.as_mut().unwrap().memory_limit_in_bytes = little).is_ok());
    for bad in ["a", "1-", "-1", "1,,2", "1-2-3", "999999"] {
        refused(limits(|r| r.cpuset_cpus = bad.into()), &["resources.cpuset_cpus"]);
    }
    for bad in ["", "MB", "2M", "2mb", "x2MB", "2MBMB", "12345678KB"] {
        refused(limits(|r| r.hugepage_limits[0].page_size = bad.into()), &["hugepage_limits[0].page_size"]);
    }
    let unified = |file: &str, value: &str| {
        limits(|r| r.unified = [(file.to_owned(), value.to_owned())].into()).map(|config| config.resources)
    };
    for bad in ["../memory.max", "memory", "a/b.c", ".x", "cgroup.procs"] {
        refused(unified(bad, ""), &["resources.unified", bad]);
    }
    assert!(unified("hugetlb.2MB.max", "0").is_ok(), "the kernel's names have capitals");
    for bad in ["a\nb", &"x".repeat(4097)] {
        refused(unified("io.max", bad), &["resources.unified", "one line"]);
    }
    let many = (0..129).map(|number| (format!("x.{number}"), String::new())).collect();
    refused(limits(|r| r.unified = many), &["resources.unified: 129 entries"]);
}

#[test]
fn exec_requests_are_validated() {
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
