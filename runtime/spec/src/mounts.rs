//! The mounts of a container: defaults and volumes in one list, ordered by depth.

use crate::{Error, path};
use model::{
    ContainerRecord, IdMapping, ImageVolume, Mount, MountOption, NamespaceMode, Namespaces, Propagation,
    UserNamespace,
};
use std::collections::BTreeMap;
use wire::{MountKind, MountPlan};

/// Files of the pod that are bound into its containers; absolute host paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFiles {
    /// Bound at /etc/resolv.conf.
    pub resolv_conf: String,
    /// Bound at /etc/hostname.
    pub hostname: String,
    /// Bound at /etc/hosts if kubelet does not mount one.
    pub hosts: Option<String>,
}

/// Size of the tmpfs on /dev in bytes; it holds only nodes and links.
const DEV_SIZE: u64 = 64 << 20;

/// The layers of images, topmost first, by CRI `Image.id`.
pub type ImageLayers = BTreeMap<String, Vec<String>>;

/// All mounts, ordered by depth of target. If two have the same target, the later one hides the earlier.
pub(crate) fn plan(
    container: &ContainerRecord,
    pod: &Namespaces,
    files: &PodFiles,
    layers: &ImageLayers,
) -> Result<Vec<MountPlan>, Error> {
    let config = &container.config;
    let mut volumes = Vec::with_capacity(config.mounts.len());
    let mut images = container.volume_images.iter();
    for (index, mount) in config.mounts.iter().enumerate() {
        let field = |name: &str| format!("config.mounts[{index}].{name}");
        let (inside, outside) = (&mount.container_path, &mount.host_path);
        let target = path::fold(inside).map_err(Error::about(field("container_path"), inside))?;
        let kind = match &mount.image {
            Some(volume) => image(volume, images.next(), layers, &field)?,
            None => MountKind::Bind {
                source: path::clean(outside).map_err(Error::about(field("host_path"), outside))?,
                propagation: mount.propagation,
            },
        };
        let idmap =
            idmap(mount, pod).map_err(|(name, value, want)| Error::invalid(field(name), value, want))?;
        volumes.push(volume(mount, &target, kind, idmap));
    }
    let mut mounts = defaults(config, pod, files);
    mounts.retain(|default| !volumes.iter().any(|volume| replaces(volume, default)));
    mounts.extend(volumes);
    mounts.sort_by_key(|mount| path::depth(&mount.target));
    Ok(mounts)
}

/// The mount of an image volume; `id` is the image's.
fn image(
    volume: &ImageVolume,
    id: Option<&String>,
    layers: &ImageLayers,
    field: &dyn Fn(&str) -> String,
) -> Result<MountKind, Error> {
    let ImageVolume { image, sub_path } = volume;
    let found = id.and_then(|id| Some((id, layers.get(id)?)));
    let (id, layers) = found.ok_or_else(|| {
        let want = "must be an image of this node whose layers are leased";
        Error::invalid(field("image.image"), &image.image, want)
    })?;
    let sub_path = match sub_path.as_str() {
        "" => String::new(),
        path => path::clean_relative(path).map_err(Error::about(field("image_sub_path"), path))?,
    };
    Ok(MountKind::Image { image: id.clone(), layers: layers.clone(), sub_path })
}

/// A volume with its flags.
fn volume(mount: &Mount, target: &str, kind: MountKind, idmap: bool) -> MountPlan {
    let has = |option| mount.mount_options.contains(&option);
    MountPlan {
        readonly: mount.readonly,
        // Nothing is mounted below an image volume.
        recursive: mount.recursive_read_only && mount.image.is_none(),
        nosuid: has(MountOption::NoSuid),
        nodev: has(MountOption::NoDev),
        noexec: has(MountOption::NoExec),
        // The layers of an image are id-mapped with the container's own, whatever the request says.
        idmap: idmap && mount.image.is_none(),
        ..bare(target, kind)
    }
}

/// Whether a volume is id-mapped: its mappings must be those of the pod. The error is a field, its value, and what it
/// must be.
fn idmap(mount: &Mount, pod: &Namespaces) -> Result<bool, (&'static str, String, &'static str)> {
    let mapping = pod.mapping();
    if mapping.is_some() && mount.propagation == Propagation::Bidirectional {
        let want = "cannot be PROPAGATION_BIDIRECTIONAL in a pod with a user namespace: the kernel lets no mount of \
                    such a pod propagate to the host";
        return Err(("propagation", format!("{:?}", mount.propagation), want));
    }
    let (uids, gids) = (&mount.uid_mappings, &mount.gid_mappings);
    if uids.is_empty() && gids.is_empty() {
        return Ok(false);
    }
    let own = UserNamespace { mode: NamespaceMode::Pod, uids: uids.clone(), gids: gids.clone() }.mapping();
    let from_zero = uids.iter().chain(gids).all(|id| id.container_id == 0);
    let equal = gids.iter().map(|gid| gid.length).eq(uids.iter().map(|uid| uid.length));
    match mapping {
        None => Err(("uidMappings", show(uids, gids), "must be empty in a pod without a user namespace")),
        Some(_) if own == mapping && from_zero && equal => Ok(true),
        Some(_) => Err((
            "uidMappings",
            show(uids, gids),
            "and gidMappings must be those of the sandbox's userns_options, or both empty",
        )),
    }
}

fn show(uids: &[IdMapping], gids: &[IdMapping]) -> String {
    format!("uids {uids:?}, gids {gids:?}")
}

/// Whether a volume replaces a default mount. It does on the same target. A volume on /dev or /sys also
/// replaces the defaults below it, as with CRI-O: the container sees what was requested. Our files below /etc
/// are mounted onto a volume there, as with containerd and CRI-O; otherwise a container with a volume on /etc
/// would have no DNS. They are left out if the mount would appear on the host as well.
fn replaces(volume: &MountPlan, default: &MountPlan) -> bool {
    if volume.target == default.target {
        return true;
    }
    let shared =
        matches!(&volume.kind, MountKind::Bind { propagation: model::Propagation::Bidirectional, .. });
    let stays = matches!(default.kind, MountKind::File { .. }) && !shared;
    path::is_at_or_below(&default.target, &volume.target) && !stays
}

/// A mount without flags.
fn bare(target: &str, kind: MountKind) -> MountPlan {
    MountPlan {
        target: target.to_owned(),
        kind,
        readonly: false,
        recursive: false,
        nosuid: false,
        nodev: false,
        noexec: false,
        idmap: false,
    }
}

/// The mounts that every container has unless a volume replaces them.
fn defaults(config: &model::ContainerConfig, pod: &Namespaces, files: &PodFiles) -> Vec<MountPlan> {
    let security = &config.security;
    let restricted =
        |target: &str, kind| MountPlan { nosuid: true, nodev: true, noexec: true, ..bare(target, kind) };
    let readonly = !security.privileged;
    let mut mounts = vec![
        restricted("/proc", MountKind::Proc),
        // Not noexec, because programs map /dev/zero executable.
        MountPlan { nosuid: true, ..bare("/dev", MountKind::Tmpfs { mode: 0o755, size: DEV_SIZE }) },
        MountPlan { readonly, ..restricted("/sys", MountKind::Sysfs) },
        MountPlan { nosuid: true, noexec: true, ..bare("/dev/pts", MountKind::Devpts) },
        restricted("/dev/mqueue", MountKind::Mqueue),
        MountPlan { readonly, ..restricted("/sys/fs/cgroup", MountKind::Cgroup) },
    ];
    // With the host's IPC namespace it is the host's /dev/shm, with the flags that it has on the host.
    mounts.push(match pod.ipc {
        NamespaceMode::Node => {
            let propagation = model::Propagation::Private;
            bare("/dev/shm", MountKind::Bind { source: "/dev/shm".to_owned(), propagation })
        }
        _ => restricted("/dev/shm", MountKind::PodShm),
    });
    let hosts = files.hosts.as_deref().unwrap_or_default();
    let own = [
        ("/etc/resolv.conf", files.resolv_conf.as_str()),
        ("/etc/hostname", &files.hostname),
        ("/etc/hosts", hosts),
    ];
    for (target, source) in own.into_iter().filter(|(_, source)| !source.is_empty()) {
        let kind = MountKind::File { source: source.to_owned() };
        let idmap = pod.mapping().is_some();
        let flags = MountPlan { nosuid: true, nodev: true, idmap, ..bare(target, kind) };
        mounts.push(MountPlan { readonly: security.readonly_rootfs, ..flags });
    }
    mounts
}

#[cfg(test)]
mod tests {
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
        for target in
            ["/dev/pts", "/dev/shm", "/dev/mqueue", "/etc/resolv.conf", "/etc/hostname", "/etc/hosts"]
        {
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
        assert_eq!(
            shm.kind,
            MountKind::Bind { source: "/dev/shm".into(), propagation: Propagation::Private }
        );
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
            ("sha256:a".to_owned(), vec!["2".to_owned(), "1".to_owned()]),
            ("sha256:b".to_owned(), Vec::new()),
        ]);
        let planned = |images: &[&str]| {
            super::plan(&record(&config, images), &Namespaces::default(), &PodFiles::default(), &layers)
        };
        let mounts = planned(&["sha256:a", "sha256:b"]).unwrap();
        let found: Vec<_> = mounts.iter().filter(|mount| mount.target == "/i").collect();
        let of = |image: &str, layers: &[&str], sub_path: &str| MountKind::Image {
            image: image.to_owned(),
            layers: layers.iter().map(|layer| (*layer).to_owned()).collect(),
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
        let refused = super::plan(
            &record(&escaping, &["sha256:a"]),
            &Namespaces::default(),
            &PodFiles::default(),
            &layers,
        );
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
        let layers = ImageLayers::from([("sha256:a".to_owned(), vec!["1".to_owned()])]);
        let planned = |pod: &Namespaces| {
            super::plan(&record(&config, &["sha256:a"]), pod, &PodFiles::default(), &layers)
        };
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
        let mapped =
            Mount { uid_mappings: users.uids.clone(), gid_mappings: users.gids.clone(), ..volume("/v") };
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
}
