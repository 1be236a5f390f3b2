//! Sorts the mounts of the plan: who attaches a mount, when, and in which mount namespace.
//!
//! ```text
//!                 worker, in            worker, in a copy              init, in that copy,
//!                 kubelet's namespace   of the pod's namespace         after libcontainer's part (`late`)
//! Place::Early    cloned                attached in the root
//! Place::Staged   cloned                attached in the scratch root   moved to its target in the root
//! Place::Late     cloned, if a bind                                    created if no bind, attached in the root
//! the pod's shm, images                 cloned here instead            attached by whom their place says
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
//! - Volumes on a Bidirectional volume at /dev are early although they are below /dev: the worker finds them when it opens
//!   their targets, as all that lie on a Bidirectional volume, and puts them into the scratch root for init (`nested`).
//! - Bidirectional volumes are staged and come last, because a mount on one appears on the host. All their targets are
//!   opened before the first is attached, and nothing but [`nested`] ones is mounted after them.

use std::path::Path;

use model::Propagation;
use wire::{ContainerPlan, Failure, MountKind, MountPlan};

use super::stage::{Step, invalid};
use super::{nested, tree, volumes};

/// Paths whose mounts init attaches.
const LATE: [&str; 3] = [DEV, "/proc", "/sys"];
/// The container's /dev, or a volume in its place. kubelet mounts a file for the termination message on it.
const DEV: &str = "/dev";
/// Names below /proc that refer to a process, in addition to pids.
const OF_PROCESSES: [&str; 2] = ["self", "thread-self"];

/// Who attaches a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The worker, at its target. Or, if that turns out to lie on a Bidirectional volume when it is opened
    /// (`early::attach`), in the scratch root, under an index after those of `Staged`; init moves it (`nested`).
    Early,
    /// The worker, in the scratch root under this index; init moves it.
    Staged(usize),
    /// Init.
    Late,
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

/// Whether volumes can lie on a Bidirectional volume at this path. False at and below /proc and /sys, and below /dev: init
/// mounts there first, so the worker cannot tell where such a path leads.
pub(super) fn takes_volumes(target: &str) -> bool {
    !is_late(target) || Path::new(target) == Path::new(DEV)
}

/// Whether it is a volume that can be attached on a private copy of the Bidirectional volume at `above`.
fn is_nested(mount: &MountPlan, above: &str) -> bool {
    let is_volume = matches!(mount.kind, MountKind::Bind { .. } | MountKind::Image { .. });
    is_volume && !is_shared(mount) && takes_volumes(above)
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
        let above = shared.iter().find(|above| tree::is_at_or_below(target, above));
        let nests = above.is_some_and(|above| is_nested(mount, above));
        if let Some(above) = above.filter(|_| !nests && (late || bidirectional)) {
            return Err(nested::on_shared(&stage, above));
        }
        if bidirectional {
            shared.push(target);
        }
        let place = match ((late && !nests) || bidirectional, volumes::propagates(mount)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(target: &str, propagation: Propagation) -> MountPlan {
        MountPlan::new(target, MountKind::Bind { source: "/x".to_owned(), propagation })
    }

    /// Where these mounts are attached, by the worker and by init.
    fn places(mounts: Vec<MountPlan>) -> Step<[Vec<(String, Place)>; 2]> {
        let mut plan: ContainerPlan = serde_json::from_value(serde_json::json!({
            "id": "ab".repeat(32), "pod": "cd".repeat(32), "namespaces": {}, "rootfs": {}, "mounts": [],
            "devices": [], "masked_paths": [], "readonly_paths": [], "user": {}, "process": {}, "cgroup": {},
            "privileged": false,
        }))
        .unwrap();
        plan.mounts = mounts;
        let Split { worker, init } = split(&plan)?;
        let named =
            |all: Vec<(Place, MountPlan)>| all.into_iter().map(|(place, it)| (it.target, place)).collect();
        Ok([worker, init].map(named))
    }

    #[test]
    fn volumes_on_a_bidirectional_dev_are_the_workers() {
        let dev = || bind("/dev", Propagation::Bidirectional);
        for propagation in [Propagation::Private, Propagation::HostToContainer] {
            let [worker, init] = places(vec![dev(), bind("/dev/termination-log", propagation)]).unwrap();
            let staged = ("/dev".to_owned(), Place::Staged(1));
            assert_eq!(worker, [staged.clone(), ("/dev/termination-log".to_owned(), Place::Early)]);
            assert_eq!(init, [staged]);
        }
        for other in [
            bind("/dev/x", Propagation::Bidirectional),
            MountPlan::new("/dev/pts", MountKind::Devpts),
            MountPlan::new("/dev/mqueue", MountKind::Mqueue),
        ] {
            places(vec![dev(), other]).unwrap_err();
        }
        for (above, below) in [("/sys", "/sys/x"), ("/dev/x", "/dev/x/y")] {
            let mounts = vec![bind(above, Propagation::Bidirectional), bind(below, Propagation::Private)];
            places(mounts).unwrap_err();
        }
    }

    #[test]
    fn volumes_on_other_mounts_at_dev_are_inits() {
        for propagation in [Propagation::Private, Propagation::HostToContainer] {
            let [_, init] =
                places(vec![bind("/dev", propagation), bind("/dev/x", Propagation::Private)]).unwrap();
            assert_eq!(init.last(), Some(&("/dev/x".to_owned(), Place::Late)));
        }
    }
}
