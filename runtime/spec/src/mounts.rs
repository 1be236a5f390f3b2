//! The mounts of a container: defaults and volumes in one list, ordered by depth.

use crate::{Error, path};
use model::{ContainerConfig, NamespaceMode, Namespaces};
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

/// All mounts, ordered by depth of target. If two have the same target, the later one hides the earlier.
pub(crate) fn plan(
    config: &ContainerConfig,
    pod: &Namespaces,
    files: &PodFiles,
) -> Result<Vec<MountPlan>, Error> {
    let mut volumes = Vec::with_capacity(config.mounts.len());
    for (index, mount) in config.mounts.iter().enumerate() {
        let field = |name: &str| format!("config.mounts[{index}].{name}");
        let (inside, outside) = (&mount.container_path, &mount.host_path);
        let target = path::fold(inside).map_err(Error::about(field("container_path"), inside))?;
        let source = path::clean(outside).map_err(Error::about(field("host_path"), outside))?;
        let kind = MountKind::Bind { source, propagation: mount.propagation };
        volumes.push(MountPlan { readonly: mount.readonly, ..bare(&target, kind) });
    }
    let mut mounts = defaults(config, pod, files);
    mounts.retain(|default| !volumes.iter().any(|volume| replaces(volume, default)));
    mounts.extend(volumes);
    mounts.sort_by_key(|mount| path::depth(&mount.target));
    Ok(mounts)
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
    MountPlan { target: target.to_owned(), kind, readonly: false, nosuid: false, nodev: false, noexec: false }
}

/// The mounts that every container has unless a volume replaces them.
fn defaults(config: &ContainerConfig, pod: &Namespaces, files: &PodFiles) -> Vec<MountPlan> {
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
        let flags = MountPlan { nosuid: true, nodev: true, ..bare(target, kind) };
        mounts.push(MountPlan { readonly: security.readonly_rootfs, ..flags });
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Mount, Propagation};
    use proptest::prelude::*;

    fn volume(target: &str) -> Mount {
        Mount { container_path: target.into(), host_path: "/srv/data".into(), ..Mount::default() }
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
