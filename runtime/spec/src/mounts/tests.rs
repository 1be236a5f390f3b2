//! The order of mounts, their flags and mappings, and which default mounts a volume replaces.

use super::*;
use model::{ContainerConfig, ContainerId, ImageSpec, PodId};
use proptest::prelude::*;

fn volume(target: &str) -> Mount {
    Mount { container_path: target.into(), host_path: "/srv/data".into(), ..Mount::default() }
}

/// The mounts of a container without image volumes.
fn plan(config: &ContainerConfig, pod: &Namespaces, files: &PodFiles) -> Result<Vec<MountPlan>, Error> {
    super::plan(&record(config, &[]), pod, files, &ImageLayers::new())
}

fn record(config: &ContainerConfig, images: &[&str]) -> ContainerRecord {
    let (id, pod) = (ContainerId::from_random([2; 32]), PodId::from_random([1; 32]));
    let volume_images = images.iter().map(|id| (*id).to_owned()).collect();
    ContainerRecord { volume_images, ..ContainerRecord::new(id, pod, config.clone(), 1) }
}

fn targets(config: &ContainerConfig) -> Vec<String> {
    let files = PodFiles { resolv_conf: "/r".into(), hostname: "/h".into(), hosts: Some("/e".into()) };
    plan(config, &Namespaces::default(), &files).unwrap().into_iter().map(|mount| mount.target).collect()
}

#[test]
fn defaults_by_depth() {
    let all = targets(&ContainerConfig::default());
    assert_eq!(all[..3], ["/proc", "/dev", "/sys"]);
    assert_eq!(all.last().unwrap(), "/sys/fs/cgroup");
    for target in ["/dev/pts", "/dev/shm", "/dev/mqueue", "/etc/resolv.conf", "/etc/hostname", "/etc/hosts"] {
        assert_eq!(all.iter().filter(|have| *have == target).count(), 1, "{target}");
    }
}

#[test]
fn volumes_replace_defaults() {
    let mounts = vec![
        volume("/etc/hosts"),
        volume("/dev"),
        volume("/dev/termination-log"),
        volume("/a/b/c"),
        volume("/a"),
    ];
    let all = targets(&ContainerConfig { mounts, ..ContainerConfig::default() });
    assert_eq!(
        all,
        [
            "/proc",
            "/sys",
            "/dev",
            "/a",
            "/etc/resolv.conf",
            "/etc/hostname",
            "/etc/hosts",
            "/dev/termination-log",
            "/sys/fs/cgroup",
            "/a/b/c"
        ]
    );
}

#[test]
fn files_below_etc_are_mounted_on_a_volume_there() {
    let with = |volume| targets(&ContainerConfig { mounts: vec![volume], ..ContainerConfig::default() });
    let files = ["/etc/resolv.conf", "/etc/hostname", "/etc/hosts"];
    let all = with(volume("/etc"));
    assert!(files.iter().all(|file| all.contains(&(*file).to_owned())), "{all:?}");
    let shared = with(Mount { propagation: Propagation::Bidirectional, ..volume("/etc") });
    assert!(files.iter().all(|file| !shared.contains(&(*file).to_owned())), "{shared:?}");
    let exact = with(volume("/etc/resolv.conf"));
    assert_eq!(exact.iter().filter(|target| *target == "/etc/resolv.conf").count(), 1);
    assert!(!with(volume("/sys")).contains(&"/sys/fs/cgroup".to_owned()));
}

#[test]
fn dev_and_etc_files_are_not_noexec() {
    let files = PodFiles { resolv_conf: "/r".into(), ..PodFiles::default() };
    let all = plan(&ContainerConfig::default(), &Namespaces::default(), &files).unwrap();
    let noexec = |target: &str| all.iter().find(|mount| mount.target == target).unwrap().noexec;
    assert!(!noexec("/dev") && !noexec("/etc/resolv.conf"));
    assert!(noexec("/proc") && noexec("/sys") && noexec("/dev/shm") && noexec("/dev/mqueue"));
}

#[test]
fn flags_follow_the_security_context() {
    let files = PodFiles { resolv_conf: "/r".into(), ..PodFiles::default() };
    let find = |config: &ContainerConfig, pod: &Namespaces, target: &str| {
        plan(config, pod, &files).unwrap().into_iter().find(|mount| mount.target == target).unwrap()
    };
    let mut config = ContainerConfig::default();
    let pod = Namespaces::default();
    assert!(find(&config, &pod, "/sys").readonly && find(&config, &pod, "/sys/fs/cgroup").readonly);
    assert!(!find(&config, &pod, "/etc/resolv.conf").readonly);
    config.security.privileged = true;
    config.security.readonly_rootfs = true;
    assert!(!find(&config, &pod, "/sys").readonly && !find(&config, &pod, "/sys/fs/cgroup").readonly);
    assert!(find(&config, &pod, "/etc/resolv.conf").readonly);
    let host_ipc = Namespaces { ipc: NamespaceMode::Node, ..Namespaces::default() };
    let shm = find(&config, &host_ipc, "/dev/shm");
    assert_eq!(shm.kind, MountKind::Bind { source: "/dev/shm".into(), propagation: Propagation::Private });
    assert_eq!(find(&config, &pod, "/dev/shm").kind, MountKind::PodShm);
}

#[test]
fn refuses_bad_paths() {
    for (target, source) in [("a", "/a"), ("/a", ""), ("/a", "rel"), ("/a", "/b/../c")] {
        let mount = Mount { container_path: target.into(), host_path: source.into(), ..Mount::default() };
        let config = ContainerConfig { mounts: vec![mount], ..ContainerConfig::default() };
        let refused = plan(&config, &Namespaces::default(), &PodFiles::default());
        assert!(refused.is_err(), "{target} {source}");
    }
}

#[test]
fn images_are_found_by_the_order_of_their_volumes() {
    let image = |name: &str, sub_path: &str| {
        let image = ImageSpec { image: name.to_owned(), ..ImageSpec::default() };
        let image = Some(ImageVolume { image, sub_path: sub_path.to_owned() });
        let (readonly, recursive_read_only) = (true, true);
        Mount { host_path: String::new(), image, readonly, recursive_read_only, ..volume("/i") }
    };
    let mounts = vec![image("a", "./x//y/"), volume("/v"), image("b", "")];
    let config = ContainerConfig { mounts, ..ContainerConfig::default() };
    let layers = ImageLayers::from([
        ("sha256:a".to_owned(), vec!["2".to_owned().into(), "1".to_owned().into()]),
        ("sha256:b".to_owned(), Vec::new()),
    ]);
    let planned = |images: &[&str]| {
        super::plan(&record(&config, images), &Namespaces::default(), &PodFiles::default(), &layers)
    };
    let mounts = planned(&["sha256:a", "sha256:b"]).unwrap();
    let found: Vec<_> = mounts.iter().filter(|mount| mount.target == "/i").collect();
    let of = |image: &str, layers: &[&str], sub_path: &str| MountKind::Image {
        image: image.to_owned(),
        layers: layers.iter().map(|layer| (*layer).to_owned().into()).collect(),
        sub_path: sub_path.to_owned(),
    };
    let wanted = [of("sha256:a", &["2", "1"], "x/y"), of("sha256:b", &[], "")];
    assert_eq!([&found[0].kind, &found[1].kind], [&wanted[0], &wanted[1]]);
    assert!(found.iter().all(|mount| mount.readonly && !mount.recursive));
    for images in [&["sha256:a"][..], &["sha256:a", "sha256:gone"], &[]] {
        let refused = planned(images).unwrap_err();
        assert!(refused.field().ends_with(".image.image"), "{refused}");
    }
    let escaping = ContainerConfig { mounts: vec![image("a", "../x")], ..ContainerConfig::default() };
    let refused =
        super::plan(&record(&escaping, &["sha256:a"]), &Namespaces::default(), &PodFiles::default(), &layers);
    assert_eq!(refused.unwrap_err().field(), "config.mounts[0].image_sub_path");
}

/// kubelet sends mappings for all volumes of such a pod. The layers of an image are id-mapped without them.
#[test]
fn mappings_of_image_volumes_are_those_of_the_pod() {
    let users = pod(500).user.unwrap();
    let image = ImageSpec { image: "a".to_owned(), ..ImageSpec::default() };
    let mapped = Mount {
        host_path: String::new(),
        image: Some(ImageVolume { image, sub_path: String::new() }),
        readonly: true,
        uid_mappings: users.uids.clone(),
        gid_mappings: users.gids,
        ..volume("/i")
    };
    let config = ContainerConfig { mounts: vec![mapped], ..ContainerConfig::default() };
    let layers = ImageLayers::from([("sha256:a".to_owned(), vec!["1".to_owned().into()])]);
    let planned =
        |pod: &Namespaces| super::plan(&record(&config, &["sha256:a"]), pod, &PodFiles::default(), &layers);
    let made = planned(&pod(500)).unwrap();
    assert!(made.iter().any(|mount| mount.target == "/i" && !mount.idmap));
    for other in [pod(501), Namespaces::default()] {
        assert_eq!(planned(&other).unwrap_err().field(), "config.mounts[0].uidMappings");
    }
}

#[test]
fn options_and_recursion_reach_the_plan() {
    let mount = Mount {
        readonly: true,
        recursive_read_only: true,
        mount_options: vec![MountOption::NoExec, MountOption::NoDev],
        ..volume("/v")
    };
    let config = ContainerConfig { mounts: vec![mount], ..ContainerConfig::default() };
    let mounts = plan(&config, &Namespaces::default(), &PodFiles::default()).unwrap();
    let made = mounts.iter().find(|mount| mount.target == "/v").unwrap();
    assert!(made.readonly && made.recursive && made.noexec && made.nodev && !made.nosuid);
}

fn pod(host_id: u32) -> Namespaces {
    let all = || vec![IdMapping { host_id, container_id: 0, length: 100 }];
    let user = UserNamespace { mode: NamespaceMode::Pod, uids: all(), gids: all() };
    Namespaces { user: Some(user), ..Namespaces::default() }
}

#[test]
fn volumes_are_mapped_as_the_pod_is() {
    let with = |mount: Mount, pod: &Namespaces| {
        let config = ContainerConfig { mounts: vec![mount], ..ContainerConfig::default() };
        let files = PodFiles { resolv_conf: "/r".into(), hostname: "/h".into(), hosts: None };
        plan(&config, pod, &files)
    };
    let users = pod(500).user.unwrap();
    let mapped = Mount { uid_mappings: users.uids.clone(), gid_mappings: users.gids.clone(), ..volume("/v") };
    let idmapped = |mounts: Vec<MountPlan>| -> Vec<String> {
        mounts.into_iter().filter(|mount| mount.idmap).map(|mount| mount.target).collect()
    };
    // Our own files are the pod's, whatever the request says of volumes.
    let own = ["/etc/resolv.conf", "/etc/hostname"];
    assert_eq!(idmapped(with(mapped.clone(), &pod(500)).unwrap()), ["/v", own[0], own[1]]);
    assert_eq!(idmapped(with(volume("/v"), &pod(500)).unwrap()), own);
    assert!(idmapped(with(volume("/v"), &Namespaces::default()).unwrap()).is_empty());
    for (mount, pod) in [
        (mapped.clone(), Namespaces::default()),
        (mapped.clone(), pod(501)),
        (Mount { gid_mappings: Vec::new(), ..mapped.clone() }, pod(500)),
        (Mount { uid_mappings: Vec::new(), ..mapped.clone() }, pod(500)),
        (Mount { uid_mappings: vec![users.uids[0]; 2], ..mapped.clone() }, pod(500)),
    ] {
        assert_eq!(with(mount, &pod).unwrap_err().field(), "config.mounts[0].uidMappings");
    }
    let all = Mount { readonly: true, recursive_read_only: true, ..mapped.clone() };
    let made = with(all, &pod(500)).unwrap();
    assert!(made.iter().any(|mount| mount.target == "/v" && mount.idmap && mount.recursive));
    let both = Mount { propagation: Propagation::Bidirectional, ..volume("/v") };
    assert_eq!(with(both.clone(), &pod(500)).unwrap_err().field(), "config.mounts[0].propagation");
    assert!(with(both, &Namespaces::default()).is_ok());
}

proptest! {
    #[test]
    fn parents_come_before_children(paths in proptest::collection::vec("/[a-c](/[a-c]){0,3}", 0..12)) {
        let mounts = paths.iter().map(|path| volume(path)).collect();
        let all = targets(&ContainerConfig { mounts, ..ContainerConfig::default() });
        for (at, target) in all.iter().enumerate() {
            let hidden = all[..at].iter().any(|before| before != target && path::is_at_or_below(before, target));
            prop_assert!(!hidden, "{:?}", all);
        }
    }
}
