//! The user namespace of a container, which is pause's. The worker stays in the host's: it id-maps what is mounted, and
//! creates files as root inside.

use std::fs::File;
use std::os::fd::BorrowedFd;

use model::{User, UserMapping};
use rustix::io::Errno;
use sys::mount;
use wire::ContainerPlan;

use super::stage::{Step, internal, invalid};
use crate::worker_only::Holders;

const STAGE: &str = "user namespace";

/// A pod's user namespace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Users<'f> {
    mapping: UserMapping,
    namespace: BorrowedFd<'f>,
}

impl<'f> Users<'f> {
    /// The one that the plan asks for; `None` for the host's.
    pub(super) fn of(plan: &ContainerPlan, holders: &'f Holders) -> Step<Option<Self>> {
        let pause = holders.pause.as_ref().and_then(|pause| pause.get("user"));
        match (plan.namespaces.user, pause) {
            (None, None) => Ok(None),
            (Some(mapping), Some(namespace)) => Ok(Some(Self { mapping, namespace })),
            // The container would have more privileges than asked for, or files that belong to nobody.
            (Some(_), None) => Err(invalid(STAGE, "the plan asks for one, and pause has none")),
            (None, Some(_)) => Err(invalid(STAGE, "pause has one, and the plan asks for none")),
        }
    }

    /// The namespace.
    pub(super) fn namespace(self) -> BorrowedFd<'f> {
        self.namespace
    }

    /// Runs `work` so that what it creates belongs to root of the container.
    pub(super) fn as_root<T>(users: Option<Self>, work: impl FnOnce() -> Step<T>) -> Step<T> {
        let Some(Self { mapping, .. }) = users else { return work() };
        sys::userns::with_file_ids(mapping.uid, mapping.gid, work).map_err(internal(STAGE, "ids of root"))?
    }

    /// The uid on the host of the container's user. Fails if one of its ids is not mapped.
    pub(super) fn host_uid(self, user: &User) -> Step<u32> {
        let Self { mapping, .. } = self;
        let last = mapping.length.saturating_sub(1);
        let refused = |kind: &str, id: u32| {
            invalid(
                "user",
                format!("{kind} {id} is not mapped in the pod's user namespace, which has 0 to {last}"),
            )
        };
        if let Some(group) = user.groups.iter().find(|group| mapping.host_gid(**group).is_none()) {
            return Err(refused("group", *group));
        }
        mapping.host_gid(user.gid).ok_or_else(|| refused("group", user.gid))?;
        mapping.host_uid(user.uid).ok_or_else(|| refused("user", user.uid))
    }

    /// Id-maps a detached tree that was cloned from `path` (opened as `source`), in the mount namespace that has it.
    pub(super) fn idmap(
        self,
        tree: BorrowedFd<'_>,
        source: BorrowedFd<'_>,
        path: &str,
        stage: &str,
    ) -> Step<()> {
        match mount::idmap(tree, self.namespace) {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                let kind = file_system(source).unwrap_or_else(|| "a file system".to_owned());
                Err(invalid(
                    stage,
                    format!(
                        "{path} is on {kind}, which this kernel cannot id-map for the pod's user namespace: use a file \
                         system that it can (ext4, xfs, btrfs, tmpfs and others), or run the pod in the host's user \
                         namespace (hostUsers: true)"
                    ),
                ))
            }
            done => done.map_err(internal(stage, format!("id-mapping {path} for the pod's user namespace"))),
        }
    }
}

/// The type of the file system of an opened file.
fn file_system(source: BorrowedFd<'_>) -> Option<String> {
    let id = mount::mount_id(source).ok()?;
    let text = File::open("/proc/self/mountinfo").and_then(sys::mountinfo::read).ok()?;
    sys::mountinfo::mounts(&text).find(|mount| mount.id == id).map(|mount| mount.kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn ids_that_are_not_mapped_are_refused() {
        let file = File::open("/proc/self/ns/user").unwrap();
        let mapping = UserMapping { uid: 100_000, gid: 200_000, length: 1000 };
        let users = Users { mapping, namespace: file.as_fd() };
        let user = |uid, gid, groups: &[u32]| User { uid, gid, groups: groups.to_vec() };
        assert_eq!(users.host_uid(&user(999, 999, &[0, 999])).unwrap(), 100_999);
        for (wrong, name) in [
            (user(1000, 0, &[0]), "user 1000"),
            (user(0, 1000, &[0]), "group 1000"),
            (user(0, 0, &[0, 4000]), "group 4000"),
        ] {
            let failure = users.host_uid(&wrong).unwrap_err();
            assert!(failure.message.contains(name) && failure.message.contains("0 to 999"), "{failure:?}");
        }
    }

    #[test]
    fn the_file_system_of_a_file_has_a_name() {
        let proc = File::open("/proc/self/status").unwrap();
        assert_eq!(file_system(proc.as_fd()).unwrap(), "proc");
    }
}
