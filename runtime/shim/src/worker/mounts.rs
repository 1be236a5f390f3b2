//! Attaching what the plan lists. /dev, /proc, /sys and whatever depends on the container's namespaces are
//! put together by init, after libcontainer has made the root its root ("late"): that way proc, sysfs and
//! mqueue show the right namespaces, libcontainer never sees a cgroup mount, and it cannot write into a /dev
//! of the host's. All other mounts are attached by the worker ("early"), where the host's mount table can be
//! watched.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use model::Propagation;
use rustix::fs::{OFlags, symlinkat};
use sys::mount::{self, Attributes, Option_, Pass};
use wire::{CgroupPlan, ContainerPlan, MountKind, MountPlan};

use super::stage::{Step, internal, invalid};
use super::tree::{self, Kind};
use super::volumes::{self, attributes};
use crate::podns::SHM;

/// Times that early mounts are made anew because the host's table changed.
const ATTEMPTS: usize = 10;
/// Trees that init puts together.
const LATE: [&str; 3] = ["/dev", "/proc", "/sys"];

/// A mount to make, with the tree that was cloned for it.
pub(super) struct Prepared {
    pub(super) plan: MountPlan,
    pub(super) tree: Option<OwnedFd>,
    /// Cgroup folders to bind below it, by hierarchy.
    pub(super) leaves: Vec<(String, OwnedFd)>,
}

/// The plan's mounts, in order, by who attaches them.
pub(super) struct Split {
    pub(super) early: Vec<MountPlan>,
    pub(super) late: Vec<MountPlan>,
}

/// Sorts mounts and refuses what cannot be attached.
pub(super) fn split(plan: &ContainerPlan) -> Step<Split> {
    let mut split = Split { early: Vec::new(), late: Vec::new() };
    let mut shared: Vec<&str> = Vec::new();
    for mount in &plan.mounts {
        let target = mount.target.as_str();
        let stage = format!("mount {target}");
        if !target.starts_with('/') || tree::is_at_or_below("/", target) {
            return Err(invalid(&stage, "a mount's target must be absolute and below /"));
        }
        if let Some(above) = shared.iter().find(|above| tree::is_at_or_below(target, above)) {
            return Err(invalid(
                &stage,
                format!("it lies on the Bidirectional volume {above} and would appear on the host"),
            ));
        }
        if matches!(&mount.kind, MountKind::Bind { propagation: Propagation::Bidirectional, .. }) {
            shared.push(target);
        }
        let of_namespace = matches!(
            mount.kind,
            MountKind::Proc | MountKind::Sysfs | MountKind::Cgroup | MountKind::Devpts | MountKind::Mqueue
        );
        let below = |top: &str| tree::is_at_or_below(target, top);
        let late = of_namespace || LATE.into_iter().any(below) || split.late.iter().any(|m| below(&m.target));
        if late { &mut split.late } else { &mut split.early }.push(mount.clone());
    }
    Ok(split)
}

/// Clones what late mounts need. In the namespace that kubelet lives in.
pub(super) fn clone_late(
    late: &[MountPlan],
    cgroup: &CgroupPlan,
    own_cgroup_namespace: bool,
) -> Step<Vec<Prepared>> {
    late.iter()
        .map(|plan| {
            let mut prepared =
                Prepared { plan: plan.clone(), tree: volumes::clone(plan)?, leaves: Vec::new() };
            if plan.kind == MountKind::Cgroup {
                let clone = |path: &str| {
                    let opened = mount::open_path(Path::new(path))?;
                    let tree = mount::clone(opened.as_fd(), false)?;
                    mount::set_propagation(tree.as_fd(), Pass::Private, false)?;
                    Ok(tree)
                };
                if !cgroup.unified {
                    for member in &cgroup.members {
                        let leaf = clone(&member.path).map_err(internal("cgroup mount", &member.path))?;
                        prepared.leaves.push((member.hierarchy.clone(), leaf));
                    }
                } else if !own_cgroup_namespace {
                    // A new cgroup2 mount without a namespace of its own would change the host's options.
                    prepared.tree =
                        Some(clone("/sys/fs/cgroup").map_err(internal("cgroup mount", "/sys/fs/cgroup"))?);
                }
            }
            Ok(prepared)
        })
        .collect()
}

/// Clones what is taken from the pod's namespace. In the worker's copy of it.
pub(super) fn clone_from_pod(mounts: &mut [Prepared]) -> Step<()> {
    for mount in mounts.iter_mut().filter(|m| m.plan.kind == MountKind::PodShm) {
        let stage = format!("mount {}", mount.plan.target);
        let shm = mount::open_path(Path::new(SHM)).map_err(internal(&stage, SHM))?;
        let tree = mount::clone(shm.as_fd(), false).map_err(internal(&stage, SHM))?;
        mount::add_attributes(tree.as_fd(), attributes(&mount.plan))
            .map_err(internal(&stage, "mount flags"))?;
        mount.tree = Some(tree);
    }
    Ok(())
}

/// Attaches one mount and returns it.
pub(super) fn attach(root: BorrowedFd<'_>, mount: &mut Prepared) -> Step<OwnedFd> {
    let stage = format!("mount {}", mount.plan.target);
    let tree = match mount.tree.take() {
        Some(tree) => tree,
        None => create(&mount.plan).map_err(internal(&stage, "new file system"))?,
    };
    let kind = tree::kind(tree.as_fd()).map_err(internal(&stage, "its root"))?;
    let target = tree::make(root, &mount.plan.target, kind).map_err(internal(&stage, "mount point"))?;
    mount::attach(tree.as_fd(), target.as_fd()).map_err(internal(&stage, "attaching"))?;
    if !mount.leaves.is_empty() {
        attach_leaves(&tree, mount).map_err(internal(&stage, "cgroups"))?;
    }
    Ok(tree)
}

fn create(plan: &MountPlan) -> std::io::Result<OwnedFd> {
    let attributes = attributes(plan);
    match &plan.kind {
        MountKind::Proc => mount::create("proc", &[Option_::Value("source", "proc")], attributes),
        MountKind::Sysfs => mount::create("sysfs", &[Option_::Value("source", "sysfs")], attributes),
        MountKind::Mqueue => mount::create("mqueue", &[Option_::Value("source", "mqueue")], attributes),
        MountKind::Devpts => {
            let options = [
                Option_::Value("source", "devpts"),
                Option_::Flag("newinstance"),
                Option_::Value("ptmxmode", "0666"),
                Option_::Value("mode", "0620"),
                // The group tty in every distribution.
                Option_::Value("gid", "5"),
            ];
            mount::create("devpts", &options, attributes)
        }
        MountKind::Tmpfs { mode, size } => mount::tmpfs(*mode, *size, attributes),
        // v1 (the leaves follow; read-only when they are in place), or v2 with a namespace of its own.
        MountKind::Cgroup if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() => {
            mount::create("cgroup2", &[Option_::Value("source", "cgroup")], attributes)
        }
        MountKind::Cgroup => mount::tmpfs(0o755, 1 << 20, Attributes { readonly: false, ..attributes }),
        MountKind::PodShm | MountKind::Bind { .. } | MountKind::File { .. } => {
            Err(std::io::Error::other("nothing was cloned for it"))
        }
    }
}

/// Binds the container's folder of each v1 hierarchy, with the short names of those that share one.
fn attach_leaves(tmpfs: &OwnedFd, mount: &mut Prepared) -> std::io::Result<()> {
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

/// The two namespaces the worker goes back and forth between.
pub(super) struct Namespaces<'a> {
    pub(super) kubelet: BorrowedFd<'a>,
    pub(super) own: BorrowedFd<'a>,
}

/// Clones the early mounts' sources. In the namespace that kubelet lives in.
pub(super) fn clone_early(early: &[MountPlan]) -> Step<Vec<Prepared>> {
    let prepare = |plan: &MountPlan| {
        Ok(Prepared { plan: plan.clone(), tree: volumes::clone(plan)?, leaves: Vec::new() })
    };
    early.iter().map(prepare).collect()
}

/// Attaches the early mounts, anew as long as the host's table changes meanwhile and any of them minds.
pub(super) fn attach_early(
    root: BorrowedFd<'_>,
    early: &[MountPlan],
    mut prepared: Vec<Prepared>,
    table: &volumes::Table,
    namespaces: &Namespaces<'_>,
) -> Step<()> {
    let minds: Vec<&str> =
        early.iter().filter(|p| volumes::propagates(p)).map(|p| p.target.as_str()).collect();
    for _ in 0..ATTEMPTS {
        clone_from_pod(&mut prepared)?;
        let mut attached = Vec::with_capacity(prepared.len());
        for mount in &mut prepared {
            attached.push(attach(root, mount)?);
        }
        if minds.is_empty() || !table.changed()? {
            return Ok(());
        }
        for tree in attached.iter().rev() {
            // Private first: detaching a shared tree takes the submounts of its peers along, the host's.
            mount::set_propagation(tree.as_fd(), Pass::Private, true)
                .map_err(internal("volumes", "making private"))?;
            mount::detach_fd(tree.as_fd()).map_err(internal("volumes", "detaching"))?;
        }
        drop(attached);
        sys::namespace::enter_mount(namespaces.kubelet)
            .map_err(internal("volumes", "kubelet's mount namespace"))?;
        let again = clone_early(early);
        sys::namespace::enter_mount(namespaces.own).map_err(internal("volumes", "own mount namespace"))?;
        prepared = again?;
    }
    Err(internal(
        "volumes",
        format!("the host's mounts changed {ATTEMPTS} times while these were attached: {}", minds.join(", ")),
    )(std::io::ErrorKind::ResourceBusy.into()))
}

/// Hides paths: a file behind /dev/null, a directory behind an empty read-only tmpfs. In init.
pub(crate) fn mask(root: BorrowedFd<'_>, paths: &[String]) -> Step<()> {
    let stage = "masked paths";
    for path in paths {
        let Some(target) = existing(root, path).map_err(internal(stage, path))? else { continue };
        let over = match tree::kind(target.as_fd()).map_err(internal(stage, path))? {
            Kind::Directory => {
                let all = Attributes { readonly: true, nosuid: true, nodev: true, noexec: true };
                mount::tmpfs(0o755, 4096, all)
            }
            Kind::File => null(root),
        };
        let over = over.map_err(internal(stage, path))?;
        mount::attach(over.as_fd(), target.as_fd()).map_err(internal(stage, path))?;
    }
    Ok(())
}

/// Makes paths read-only. In init.
pub(crate) fn protect(root: BorrowedFd<'_>, paths: &[String]) -> Step<()> {
    let stage = "read-only paths";
    for path in paths {
        let Some(target) = existing(root, path).map_err(internal(stage, path))? else { continue };
        let over = mount::clone(target.as_fd(), true).map_err(internal(stage, path))?;
        let readonly = Attributes { readonly: true, ..Attributes::default() };
        mount::add_attributes(over.as_fd(), readonly).map_err(internal(stage, path))?;
        mount::attach(over.as_fd(), target.as_fd()).map_err(internal(stage, path))?;
    }
    Ok(())
}

fn existing(root: BorrowedFd<'_>, path: &str) -> std::io::Result<Option<OwnedFd>> {
    match tree::open(root, path, OFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// A mount of the container's /dev/null, if it is the real one: an image must not choose what hides.
fn null(root: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    let null = tree::open(root, "/dev/null", OFlags::NOFOLLOW)?;
    if rustix::fs::fstat(&null)?.st_rdev != rustix::fs::makedev(1, 3) {
        return Err(std::io::Error::other("/dev/null is not the null device"));
    }
    mount::clone(null.as_fd(), false)
}
