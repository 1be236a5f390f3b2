//! Creates a container with libcontainer, from a minimal configuration.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use model::{ContainerId, Propagation};
use serde_json::{Value, json};
use wire::{ContainerPlan, MountKind, NamespaceSource};

use super::executor::Init;
use crate::bundle::{bundle, rootfs};
use crate::podns::STATE;
use crate::worker_only::Holders;

/// A namespace that cannot be joined.
#[derive(Debug, thiserror::Error)]
#[error("the plan joins the {kind} namespace of {from}, which is not running")]
pub(crate) struct NoHolder {
    kind: &'static str,
    from: &'static str,
}

/// The minimal configuration for libcontainer. The worker does everything else before, and init in the Executor. The
/// configuration names descriptors of `holders` and `mounts` by number, so they must stay open until init exists.
/// `mounts`: the mount namespace with the container's mounts, which init enters after libcontainer's cgroup step.
///
/// # Errors
/// The plan joins a namespace of a process that is not running.
pub(crate) fn spec(
    plan: &ContainerPlan,
    holders: &Holders,
    mounts: BorrowedFd<'_>,
) -> Result<Value, NoHolder> {
    let named =
        |kind, fd: BorrowedFd<'_>| json!({"type": kind, "path": format!("/proc/self/fd/{}", fd.as_raw_fd())});
    let mut namespaces = vec![named("mount", mounts)];
    let sources = &plan.namespaces;
    if sources.user.is_some() {
        let (kind, from) = ("user", "pause");
        let users =
            holders.pause.as_ref().and_then(|pause| pause.get(kind)).ok_or(NoHolder { kind, from })?;
        namespaces.push(named(kind, users));
    }
    for (kind, file, source) in [
        ("network", "net", &sources.network),
        ("ipc", "ipc", &sources.ipc),
        ("uts", "uts", &sources.uts),
        ("pid", "pid", &sources.pid),
    ] {
        let (holder, from) = match source {
            NamespaceSource::Host => continue,
            NamespaceSource::New => {
                namespaces.push(json!({"type": kind}));
                continue;
            }
            NamespaceSource::Pause => (&holders.pause, "pause"),
            NamespaceSource::Container(_) => (&holders.target, "another container"),
        };
        // If pause has no namespace of this kind, it shares the shim's, and so does the container.
        if let Some(fd) = holder.as_ref().ok_or(NoHolder { kind, from })?.get(file) {
            namespaces.push(named(kind, fd));
        }
    }
    if sources.cgroup {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let shares =
        |kind: &MountKind| matches!(kind, MountKind::Bind { propagation: Propagation::Bidirectional, .. });
    let propagation = if plan.mounts.iter().any(|m| shares(&m.kind)) { "shared" } else { "slave" };
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": {"path": rootfs(&plan.id), "readonly": false},
        "process": {"terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["-"], "env": []},
        "mounts": [],
        "linux": {"namespaces": namespaces, "rootfsPropagation": propagation},
    }))
}

/// Creates init from the bundle, with libcontainer. Returns its pid in the caller's PID namespace. Its parent is the
/// caller's parent.
///
/// # Errors
/// The errors of libcontainer.
pub(crate) fn build(id: &ContainerId, init: Init) -> Result<u32, LibcontainerError> {
    let container = ContainerBuilder::new(id.as_str().to_owned(), SyscallType::default())
        .with_root_path(STATE)?
        .with_executor(init)
        .as_init(bundle(id))
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()?;
    let pid = container.pid().map(nix_pid);
    pid.flatten().ok_or_else(|| LibcontainerError::Other("no pid in the container's state".to_owned()))
}

// Generic, because the pid has a type of libcontainer's own version of nix.
fn nix_pid(pid: impl Into<i32>) -> Option<u32> {
    u32::try_from(pid.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;
    use sys::namespace::Namespaces;

    fn plan(namespaces: wire::NamespacePlan) -> ContainerPlan {
        serde_json::from_value(json!({
            "id": "ab".repeat(32), "pod": "cd".repeat(32), "namespaces": namespaces, "rootfs": {}, "mounts": [],
            "devices": [], "masked_paths": [], "readonly_paths": [], "user": {}, "process": {}, "cgroup": {},
            "privileged": false,
        }))
        .unwrap()
    }

    #[test]
    fn namespaces_come_from_where_the_plan_says() {
        let wanted = wire::NamespacePlan {
            network: NamespaceSource::Pause,
            pid: NamespaceSource::New,
            ..wire::NamespacePlan::default()
        };
        // This process's namespaces are the caller's own: the network is not named.
        let own = Namespaces::of(std::process::id()).unwrap();
        let mounts = sys::namespace::own_mount().unwrap();
        let spec = |wanted: wire::NamespacePlan, holders: Holders| {
            super::spec(&plan(wanted), &holders, mounts.as_fd())
        };
        let made = spec(wanted.clone(), Holders { pause: Some(own), target: None }).unwrap();
        let path = format!("/proc/self/fd/{}", mounts.as_raw_fd());
        assert_eq!(made["linux"]["namespaces"], json!([{"type": "mount", "path": path}, {"type": "pid"}]));
        assert!(spec(wanted, Holders::default()).is_err());
        // Without the user namespace that it asks for, the container would be root of the host.
        let mapping = model::UserMapping { uid: 100_000, gid: 100_000, length: 65_536 };
        let wanted = wire::NamespacePlan { user: Some(mapping), ..wire::NamespacePlan::default() };
        let own = Namespaces::of(std::process::id()).unwrap();
        assert!(spec(wanted, Holders { pause: Some(own), target: None }).is_err());
    }
}
