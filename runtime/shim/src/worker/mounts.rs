//! Attaches the mounts of the plan. Who attaches a mount, when, and in which mount namespace:
//!
//! ```text
//!                 worker, in            worker, in its own copy        init, in its copy of that,
//!                 kubelet's namespace   of the pod's namespace         after libcontainer's part (`late`)
//! Place::Early    cloned                attached in the root
//! Place::Staged   cloned                attached in the scratch root   moved to its target in the root
//! Place::Late     cloned, if a bind                                    created if no bind, attached in the root
//! the pod's shm, images                 cloned                         attached in the root
//! then:                                                                masked and read-only paths (`hide`), and
//! Bidirectional   cloned                attached in the scratch root   moved to its target in the root
//! mounts on those cloned                attached in the scratch root   moved onto them (`nested`)
//!                 └─ repeated if the host's mounts changed ──┘
//! ```
//! - Early are the mounts that need nothing of the container's namespaces, so most volumes.
//! - Late are those at or below /dev, /proc and /sys, those that show the container's namespaces (proc, sysfs, mqueue,
//!   devpts, cgroups), and those below another late one.
//! - Staged are late ones that receive mounts from the host: they must be attached while the host's mount table is
//!   watched. A mount that is moved receives them all the time.
//! - Bidirectional volumes are staged and come last, because a mount on one appears on the host. All their targets are
//!   opened before the first is attached, and nothing but [`nested`] ones is mounted after them.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use model::Propagation;
use rustix::fs::symlinkat;
use sys::mount::{self, Attributes, PropagationType};
use wire::{CgroupPlan, ContainerPlan, Failure, MountKind, MountPlan};

use super::filesystems::{Cgroups, create};
use super::images::{self, Images};
use super::nested::{self, Nested};
use super::scratch::Scratch;
use super::stage::{Step, internal, invalid, show_volume};
use super::tree::{self, Kind, Links, Root};
use super::users::Users;
use super::volumes::{self, PATIENCE, attributes};
use crate::podns::SHM;

/// Paths whose mounts init attaches.
const LATE: [&str; 3] = ["/dev", "/proc", "/sys"];
/// Names below /proc that refer to a process, in addition to pids.
const OF_PROCESSES: [&str; 2] = ["self", "thread-self"];

/// Who attaches a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The worker, at its target.
    Early,
    /// The worker, in the scratch root under this index; init moves it.
    Staged(usize),
    /// Init.
    Late,
}

/// A mount, with the tree that was cloned for it.
pub(super) struct Mount {
    pub(super) plan: MountPlan,
    place: Place,
    tree: Option<OwnedFd>,
    /// What to show, if this is a [`MountKind::Cgroup`].
    cgroups: Cgroups,
    /// Cgroup folders to bind below it, by hierarchy.
    leaves: Vec<(String, OwnedFd)>,
}

impl Mount {
    fn new(plan: MountPlan, place: Place) -> Self {
        Self { plan, place, tree: None, cgroups: Cgroups::Leaves, leaves: Vec::new() }
    }
}

/// The plan's mounts in order, by who attaches them.
pub(super) struct Split {
    /// Attached by the worker: early and staged ones.
    pub(super) worker: Vec<(Place, MountPlan)>,
    /// Attached by init: late and staged ones, the Bidirectional last.
    pub(super) init: Vec<(Place, MountPlan)>,
}

/// Whether it is at or below a path of [`LATE`].
fn is_late(target: &str) -> bool {
    LATE.into_iter().any(|top| tree::is_at_or_below(target, top))
}

/// Whether mounts on it appear on the host.
pub(super) fn is_shared(plan: &MountPlan) -> bool {
    matches!(&plan.kind, MountKind::Bind { propagation: Propagation::Bidirectional, .. })
}

/// Sorts mounts and refuses those that cannot be attached.
pub(super) fn split(plan: &ContainerPlan) -> Step<Split> {
    let mut split = Split { worker: Vec::new(), init: Vec::new() };
    let mut shared: Vec<&str> = Vec::new();
    let mut last = Vec::new();
    let mut staged = 0;
    for mount in &plan.mounts {
        let target = mount.target.as_str();
        let stage = format!("mount {target}");
        if !target.starts_with('/') || tree::is_at_or_below("/", target) {
            return Err(invalid(&stage, "a mount's target must be absolute and below /"));
        }
        refuse_processes(mount)?;
        let of_namespace = matches!(
            mount.kind,
            MountKind::Proc | MountKind::Sysfs | MountKind::Cgroup | MountKind::Devpts | MountKind::Mqueue
        );
        let below = |top: &str| tree::is_at_or_below(target, top);
        let late = of_namespace || is_late(target) || split.init.iter().any(|(_, m)| below(&m.target));
        let bidirectional = is_shared(mount);
        if let Some(above) = shared.iter().find(|above| tree::is_at_or_below(target, above))
            && (late || bidirectional)
        {
            return Err(nested::on_shared(&stage, above));
        }
        if bidirectional {
            shared.push(target);
        }
        let place = match (late || bidirectional, volumes::propagates(mount)) {
            (false, _) => Place::Early,
            (true, false) => Place::Late,
            // Init could not move it: the kernel has locked it.
            (true, true) if plan.namespaces.user.is_some() => {
                return Err(cannot_move(&stage));
            }
            (true, true) => {
                staged += 1;
                Place::Staged(staged)
            }
        };
        if place != Place::Late {
            split.worker.push((place, mount.clone()));
        }
        match place {
            Place::Early => {}
            _ if bidirectional => last.push((place, mount.clone())),
            _ => split.init.push((place, mount.clone())),
        }
    }
    split.init.extend(last);
    Ok(split)
}

/// The failure of a staged mount in a user namespace.
fn cannot_move(stage: &str) -> Failure {
    invalid(
        stage,
        "in a pod with a user namespace, a volume at or below /dev, /proc or /sys cannot receive mounts from the host \
         (HostToContainer)",
    )
}

/// A volume on a process's folder in /proc would deceive code that writes there to confine the process
/// (CVE-2019-16884, CVE-2019-19921).
fn refuse_processes(mount: &MountPlan) -> Step<()> {
    let Some(below) = mount.target.strip_prefix("/proc/") else { return Ok(()) };
    let first = below.split('/').next().unwrap_or_default();
    if OF_PROCESSES.contains(&first) || first.bytes().all(|byte| byte.is_ascii_digit()) {
        let stage = format!("mount {}", mount.target);
        return Err(invalid(&stage, "nothing can be mounted on a process's own folder in /proc"));
    }
    Ok(())
}

/// Clones the sources of init's mounts, in kubelet's mount namespace; staged ones are attached by the worker.
pub(super) fn clone_late(
    init: &[(Place, MountPlan)],
    cgroup: &CgroupPlan,
    own_cgroup_namespace: bool,
    users: Option<Users<'_>>,
) -> Step<Vec<Mount>> {
    init.iter()
        .map(|(place, plan)| {
            let mut mount = Mount::new(plan.clone(), *place);
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
                mount.cgroups = Cgroups::of(cgroup, own_cgroup_namespace);
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
    let tree = create(&mount.plan, mount.cgroups).map_err(internal("mount /dev", "new file system"))?;
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
    let target = place_for(root, &tree, &mount.plan)?;
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
        let target = place_for(root, &tree, &mount.plan)?;
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
        (None, _) => create(&mount.plan, mount.cgroups).map_err(internal(&stage, "new file system")),
    }
}

/// Opens the target of a mount in the container's root; it is created if missing.
fn place_for(root: &Root, tree: &OwnedFd, plan: &MountPlan) -> Step<OwnedFd> {
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

/// The namespaces of a create: the two mount namespaces between which the worker switches.
pub(super) struct Namespaces<'a> {
    pub(super) kubelet: BorrowedFd<'a>,
    pub(super) own: BorrowedFd<'a>,
    /// The container's user namespace, for id-mapped volumes.
    pub(super) users: Option<Users<'a>>,
}

/// Clones the sources of the worker's mounts, in kubelet's mount namespace.
pub(super) fn clone_early(worker: &[(Place, MountPlan)], users: Option<Users<'_>>) -> Step<Vec<Mount>> {
    let prepare = |(place, plan): &(Place, MountPlan)| {
        Ok(Mount { tree: volumes::clone(plan, users)?, ..Mount::new(plan.clone(), *place) })
    };
    worker.iter().map(prepare).collect()
}

fn detach(attached: Vec<OwnedFd>) -> Step<()> {
    for tree in attached.iter().rev() {
        // Make it private first: detaching a shared tree unmounts the submounts of its peers, including the host's.
        mount::set_propagation(tree.as_fd(), PropagationType::Private, true)
            .map_err(internal("volumes", "making private"))?;
        mount::detach_fd(tree.as_fd()).map_err(internal("volumes", "detaching"))?;
    }
    Ok(())
}

/// Attaches the worker's mounts. If any of them receives mounts from the host, and the host's mount table changed
/// meanwhile, all of it is repeated.
pub(super) fn attach_early(
    root: &Root,
    scratch: &Scratch,
    worker: &[(Place, MountPlan)],
    mut mounts: Vec<Mount>,
    images: &Images,
    table: &volumes::Table,
    namespaces: &Namespaces<'_>,
) -> Step<Vec<Nested>> {
    let staged = worker.iter().filter(|(place, _)| matches!(place, Place::Staged(_))).count();
    let propagating: Vec<&str> =
        worker.iter().filter(|(_, p)| volumes::propagates(p)).map(|(_, p)| p.target.as_str()).collect();
    let begun = Instant::now();
    let mut attempts: u32 = 0;
    while attempts == 0 || begun.elapsed() < PATIENCE {
        attempts += 1;
        clone_here(&mut mounts, images)?;
        let mut attached = Vec::with_capacity(mounts.len());
        let mut shared = nested::Shared::default();
        let mut nested: Vec<Nested> = Vec::new();
        // The target of one may be on another.
        for mount in mounts.iter_mut().inspect(|mount| show_volume(&mount.plan.target)) {
            attached.push(match mount.place {
                Place::Staged(index) => {
                    // A mount on a volume at or below /dev, /proc or /sys is late as well, or `split` has refused it.
                    if is_shared(&mount.plan)
                        && !is_late(&mount.plan.target)
                        && let Some(place) = resolved(root, mount)?
                    {
                        shared.add(&mount.plan.target, place)?;
                    }
                    attach_staged(scratch, mount, index)?
                }
                Place::Early | Place::Late => match below_shared(&shared, root, mount)? {
                    None => attach(root, scratch, mount)?,
                    Some((onto, below)) => {
                        let index = staged + nested.len() + 1;
                        let tree = attach_staged(scratch, mount, index)?;
                        nested.push(Nested { target: mount.plan.target.clone(), index, onto, below });
                        tree
                    }
                },
            });
        }
        if propagating.is_empty() || !table.changed()? {
            return Ok(nested);
        }
        detach(attached)?;
        sys::namespace::enter_mount(namespaces.kubelet)
            .map_err(internal("volumes", "kubelet's mount namespace"))?;
        let again = clone_early(worker, namespaces.users);
        sys::namespace::enter_mount(namespaces.own).map_err(internal("volumes", "own mount namespace"))?;
        mounts = again?;
    }
    Err(internal(
        "volumes",
        format!(
            "the host's mounts changed in each of {attempts} attempts, for {PATIENCE:?}, while these were attached: {}",
            propagating.join(", ")
        ),
    )(std::io::ErrorKind::ResourceBusy.into()))
}

/// The path in the root to which a volume's target resolves now.
fn resolved(root: &Root, mount: &Mount) -> Step<Option<PathBuf>> {
    let Some(tree) = &mount.tree else { return Ok(None) };
    let place = place_for(root, tree, &mount.plan)?;
    let stage = format!("mount {}", mount.plan.target);
    nested::resolved(root, place.as_fd()).map_err(internal(&stage, "its place"))
}

/// The Bidirectional volume that contains the target of a volume, and the path in it. `None` also for our own files
/// below /etc: such a volume hides them.
fn below_shared(shared: &nested::Shared, root: &Root, mount: &Mount) -> Step<Option<(String, PathBuf)>> {
    if shared.is_empty() || !matches!(mount.plan.kind, MountKind::Bind { .. } | MountKind::Image { .. }) {
        return Ok(None);
    }
    Ok(resolved(root, mount)?.and_then(|place| shared.below(&place)))
}

/// Attaches a volume in the scratch root, where it receives the host's mounts until init moves it.
fn attach_staged(scratch: &Scratch, mount: &mut Mount, index: usize) -> Step<OwnedFd> {
    let stage = format!("mount {}", mount.plan.target);
    let tree = mount.tree.take().ok_or_else(|| invalid(&stage, "a staged mount without a source"))?;
    let attach = || {
        let target = scratch.stage(index, tree::kind(tree.as_fd())?)?;
        mount::attach(tree.as_fd(), target.as_fd())
    };
    attach().map_err(internal(&stage, "staging"))?;
    Ok(tree)
}
