//! The mounts of a container: defaults and volumes in one list, ordered by depth.

use crate::{Error, path, selinux};
use model::{
    ContainerRecord, IdMapping, ImageVolume, Mount, MountOption, NamespaceMode, Namespaces, PodRecord,
    Propagation, SelinuxLabels, UserNamespace,
};
use std::collections::BTreeMap;
use wire::{LayerSource, MountKind, MountPlan};

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
pub type ImageLayers = BTreeMap<String, Vec<LayerSource>>;

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

/// Says which sources get a label of the container's. Volumes get that of its files, if they are to be relabelled and the
/// container is confined. Our files below /etc have the pod's label already.
pub(crate) fn labelled(
    mut mounts: Vec<MountPlan>,
    container: &ContainerRecord,
    pod: &PodRecord,
    labels: &SelinuxLabels,
) -> Vec<MountPlan> {
    let security = &container.config.security;
    let of_pod = pod.selinux.as_ref().map(|labels| labels.file.as_str()).unwrap_or_default();
    let asks = |source: &str, mount: &Mount| {
        mount.selinux_relabel && path::clean(&mount.host_path).is_ok_and(|path| path == source)
    };
    for mount in &mut mounts {
        let label = match &mount.kind {
            _ if labels.file.is_empty() => None,
            MountKind::Bind { source, .. } => {
                let asked = container.config.mounts.iter().any(|mount| asks(source, mount));
                let confined = !security.privileged && selinux::relabels(&labels.process);
                (asked && confined).then(|| labels.file.clone())
            }
            MountKind::File { .. } => selinux::of_shared_files(of_pod, &labels.file),
            _ => None,
        };
        mount.relabel = label.unwrap_or_default();
    }
    mounts
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
        ..MountPlan::new(target, kind)
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

/// The mounts that every container has unless a volume replaces them.
fn defaults(config: &model::ContainerConfig, pod: &Namespaces, files: &PodFiles) -> Vec<MountPlan> {
    let security = &config.security;
    let restricted = |target: &str, kind| MountPlan {
        nosuid: true,
        nodev: true,
        noexec: true,
        ..MountPlan::new(target, kind)
    };
    let readonly = !security.privileged;
    let mut mounts = vec![
        restricted("/proc", MountKind::Proc),
        // Not noexec, because programs map /dev/zero executable.
        MountPlan {
            nosuid: true,
            ..MountPlan::new("/dev", MountKind::Tmpfs { mode: 0o755, size: DEV_SIZE })
        },
        MountPlan { readonly, ..restricted("/sys", MountKind::Sysfs) },
        MountPlan { nosuid: true, noexec: true, ..MountPlan::new("/dev/pts", MountKind::Devpts) },
        restricted("/dev/mqueue", MountKind::Mqueue),
        MountPlan { readonly, ..restricted("/sys/fs/cgroup", MountKind::Cgroup) },
    ];
    // With the host's IPC namespace it is the host's /dev/shm, with the flags that it has on the host.
    mounts.push(match pod.ipc {
        NamespaceMode::Node => {
            let propagation = model::Propagation::Private;
            MountPlan::new("/dev/shm", MountKind::Bind { source: "/dev/shm".to_owned(), propagation })
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
        let flags = MountPlan { nosuid: true, nodev: true, idmap, ..MountPlan::new(target, kind) };
        mounts.push(MountPlan { readonly: security.readonly_rootfs, ..flags });
    }
    mounts
}

#[cfg(test)]
mod tests;
