//! The mounts of a container: cloning what they show, and attaching them in the container's root. `placement` says who
//! attaches which of them and when; `early` is the worker's part, and `late` that of init.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::symlinkat;
use sys::mount::{self, Attributes, PropagationType};
use wire::{ContainerPlan, MountKind, MountPlan};

use super::filesystems::{Cgroups, create};
use super::images::{self, Images};
use super::nested::{self, Nested};
use super::placement::Place;
use super::scratch::Scratch;
use super::stage::{Step, internal, invalid};
use super::tree::{self, Kind, Links, Root};
use super::users::Users;
use super::volumes::{self, attributes};
use crate::podns::SHM;

/// A mount, with the tree that was cloned for it.
pub(super) struct Mount {
    pub(super) plan: MountPlan,
    pub(super) place: Place,
    pub(super) tree: Option<OwnedFd>,
    /// What to show, if this is a [`MountKind::Cgroup`].
    cgroups: Cgroups,
    /// Cgroup folders to bind below it, by hierarchy.
    leaves: Vec<(String, OwnedFd)>,
    /// The SELinux label of its files, if its file system is a new one; may be empty. Set for init's mounts only
    /// ([`clone_late`]): among the worker's there is no new file system today, and one that `spec` adds there (a tmpfs outside
    /// /dev, /proc and /sys) needs it set in `early::clone`.
    label: String,
}

impl Mount {
    pub(super) fn new(plan: MountPlan, place: Place) -> Self {
        let (cgroups, leaves, label) = (Cgroups::Leaves, Vec::new(), String::new());
        Self { plan, place, tree: None, cgroups, leaves, label }
    }
}

/// Clones the sources of init's mounts, in kubelet's mount namespace; staged ones are attached by the worker.
pub(super) fn clone_late(
    init: &[(Place, MountPlan)],
    container: &ContainerPlan,
    users: Option<Users<'_>>,
) -> Step<Vec<Mount>> {
    let cgroup = &container.cgroup;
    init.iter()
        .map(|(place, plan)| {
            let mut mount = Mount::new(plan.clone(), *place);
            mount.label.clone_from(&container.file_label);
            if *place == Place::Late {
                mount.tree = volumes::clone(plan, users)?;
            }
            if plan.kind == MountKind::Cgroup {
                let clone = |path: &str| {
                    let opened = mount::open_path(Path::new(path))?;
                    let tree = mount::clone(opened.as_fd(), false)?;
                    mount::set_propagation(tree.as_fd(), PropagationType::Private, false)?;
                    Ok(tree)
                };
                mount.cgroups = Cgroups::of(cgroup, container.namespaces.cgroup);
                match mount.cgroups {
                    Cgroups::Leaves => {
                        for member in &cgroup.members {
                            let leaf = clone(&member.path).map_err(internal("cgroup mount", &member.path))?;
                            mount.leaves.push((member.hierarchy.clone(), leaf));
                        }
                    }
                    Cgroups::Own => {}
                    Cgroups::Host => {
                        let host = clone("/sys/fs/cgroup");
                        mount.tree = Some(host.map_err(internal("cgroup mount", "/sys/fs/cgroup"))?);
                    }
                }
            }
            Ok(mount)
        })
        .collect()
}

/// Clones the sources that are in the worker's copy of the pod's namespace: the pod's shm and image volumes.
pub(super) fn clone_here(mounts: &mut [Mount], images: &Images) -> Step<()> {
    for mount in mounts {
        if let Some(tree) = images.clone(&mount.plan)? {
            mount.tree = Some(tree);
        }
        if mount.plan.kind != MountKind::PodShm {
            continue;
        }
        let stage = format!("mount {}", mount.plan.target);
        let shm = mount::open_path(Path::new(SHM)).map_err(internal(&stage, SHM))?;
        let tree = mount::clone(shm.as_fd(), false).map_err(internal(&stage, SHM))?;
        mount::add_attributes(tree.as_fd(), attributes(&mount.plan))
            .map_err(internal(&stage, "mount flags"))?;
        mount.tree = Some(tree);
    }
    Ok(())
}

/// Whether it is the container's own /dev.
pub(super) fn is_own_dev(plan: &MountPlan) -> bool {
    plan.target == "/dev" && matches!(plan.kind, MountKind::Tmpfs { .. })
}

/// Creates the container's own /dev in the worker and fills it.
pub(super) fn create_dev(mounts: &mut [Mount], fill: impl FnOnce(BorrowedFd<'_>) -> Step<()>) -> Step<()> {
    let Some(mount) = mounts.iter_mut().find(|mount| is_own_dev(&mount.plan)) else { return Ok(()) };
    let tree = create(&mount.plan, mount.cgroups, &mount.label);
    let tree = tree.map_err(internal("mount /dev", "new file system"))?;
    fill(tree.as_fd())?;
    mount.tree = Some(tree);
    Ok(())
}

/// Attaches one mount at its target in the root and returns it.
pub(super) fn attach(root: &Root, scratch: &Scratch, mount: &mut Mount) -> Step<OwnedFd> {
    let attached = attach_one(root, scratch, mount);
    match mount.plan.kind {
        MountKind::Image { .. } => attached.map_err(images::failed),
        _ => attached,
    }
}

fn attach_one(root: &Root, scratch: &Scratch, mount: &mut Mount) -> Step<OwnedFd> {
    let stage = format!("mount {}", mount.plan.target);
    let tree = tree_of(scratch, mount)?;
    let target = target(root, &tree, &mount.plan)?;
    if mount.plan.target == "/proc" && !is_procfs(&tree).map_err(internal(&stage, "its file system"))? {
        return Err(invalid(&stage, "only a proc file system can be mounted there"));
    }
    mount::attach(tree.as_fd(), target.as_fd()).map_err(internal(&stage, "attaching"))?;
    if !mount.leaves.is_empty() {
        attach_leaves(&tree, mount).map_err(internal(&stage, "cgroups"))?;
    }
    Ok(tree)
}

/// Attaches Bidirectional volumes, after everything else, with the volumes that are nested in them.
pub(super) fn attach_shared(
    root: &Root,
    scratch: &Scratch,
    mounts: Vec<Mount>,
    nested: &[Nested],
) -> Step<()> {
    let mut opened: Vec<(OwnedFd, OwnedFd, mount::Identity)> = Vec::with_capacity(mounts.len());
    let mut targets = Vec::with_capacity(mounts.len());
    for mut mount in mounts {
        let stage = format!("mount {}", mount.plan.target);
        let tree = tree_of(scratch, &mut mount)?;
        let target = target(root, &tree, &mount.plan)?;
        let identity = mount::identity(target.as_fd()).map_err(internal(&stage, "mount point"))?;
        // The kernel would mount the second one on the first one, so it would appear on the host.
        if opened.iter().any(|(.., other)| *other == identity) {
            return Err(invalid(
                &stage,
                "its target is the same place as that of another Bidirectional volume",
            ));
        }
        opened.push((tree, target, identity));
        targets.push(mount.plan.target);
    }
    for ((tree, place, _), target) in opened.iter().zip(&targets) {
        let on_it: Vec<&Nested> = nested.iter().filter(|it| it.onto == *target).collect();
        if on_it.is_empty() {
            mount::attach(tree.as_fd(), place.as_fd()).map_err(internal("volumes", "attaching"))?;
        } else {
            nested::attach(root, scratch, tree, place.as_fd(), &on_it)?;
        }
    }
    Ok(())
}

/// Whether it is a proc file system. Programs, and the code that confines them, trust what is at /proc.
fn is_procfs(tree: &OwnedFd) -> std::io::Result<bool> {
    Ok(rustix::fs::fstatfs(tree)?.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// The tree to attach: cloned before, staged in the scratch root, or created now.
fn tree_of(scratch: &Scratch, mount: &mut Mount) -> Step<OwnedFd> {
    let stage = format!("mount {}", mount.plan.target);
    match (mount.tree.take(), mount.place) {
        (Some(tree), _) => Ok(tree),
        (None, Place::Staged(index)) => scratch.staged(index).map_err(internal(&stage, "staged volume")),
        (None, _) => {
            let created = create(&mount.plan, mount.cgroups, &mount.label);
            created.map_err(internal(&stage, "new file system"))
        }
    }
}

/// Opens the target of a mount in the container's root; it is created if missing.
pub(super) fn target(root: &Root, tree: &OwnedFd, plan: &MountPlan) -> Step<OwnedFd> {
    let stage = format!("mount {}", plan.target);
    let kind = tree::kind(tree.as_fd()).map_err(internal(&stage, "its root"))?;
    // For volumes and our files below /etc the image's symlinks are followed, as by every runtime. They are refused for
    // our own file systems, which confine the container: the image could decide what they hide.
    let links = match plan.kind {
        MountKind::Bind { .. } | MountKind::Image { .. } | MountKind::File { .. } => Links::Follow,
        _ => Links::Refuse,
    };
    root.mount_point(&plan.target, kind, links).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidInput if e.raw_os_error().is_none() => invalid(&stage, e),
        _ => internal(&stage, "mount point")(e),
    })
}

/// Binds the container's folder of each v1 hierarchy, and adds the short names of co-mounted controllers.
fn attach_leaves(tmpfs: &OwnedFd, mount: &mut Mount) -> std::io::Result<()> {
    for (hierarchy, leaf) in mount.leaves.drain(..) {
        let target = tree::make(tmpfs.as_fd(), &format!("/{hierarchy}"), Kind::Directory)?;
        mount::add_attributes(leaf.as_fd(), attributes(&mount.plan))?;
        mount::attach(leaf.as_fd(), target.as_fd())?;
        if hierarchy.contains(',') {
            for name in hierarchy.split(',') {
                symlinkat(hierarchy.as_str(), tmpfs, name)?;
            }
        }
    }
    mount::add_attributes(
        tmpfs.as_fd(),
        Attributes { readonly: mount.plan.readonly, ..Attributes::default() },
    )
}
