//! What a worker is told to make. Built by `spec` from checked requests, parsed only in forked workers.
//!
//! A shim outlives an upgrade of the daemon, so a plan may name what its shim does not know. Skipping that
//! would start a container without a part of its confinement; a plan is therefore refused as a whole
//! ([`crate::ErrorKind::Unsupported`]) when it has an unknown field or variant. A field that is added later
//! must not be serialized while it has its default value (`skip_serializing_if`): then shims of before still
//! take plans that do not use it.

use model::{ContainerId, PodId, Propagation, Text, User, UserRequest};
use serde::{Deserialize, Serialize};

use crate::message::{ErrorKind, Failure};

/// Parses a plan, as the worker does that carries it out.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for anything that this build does not know: a container that has less than a
/// later daemon asked for must not start. [`ErrorKind::Invalid`] when it ends in the middle.
pub fn parse_plan<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(json).map_err(|error| {
        // serde_json calls a variant with more than one name a syntax error.
        let (kind, message) = if error.is_data() || error.is_syntax() {
            let message = format!("{error}; this shim cannot carry it out, its pod must be made anew");
            (ErrorKind::Unsupported, message)
        } else {
            (ErrorKind::Invalid, error.to_string())
        };
        Failure { kind, stage: "plan".to_owned(), message, errno: 0 }
    })
}

/// A compiled BPF filter: the bytes of an array of `struct sock_filter`, loaded as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SeccompProgram {
    /// One instruction each, little-endian: code | jt << 16 | jf << 24 | k << 32.
    pub instructions: Vec<u64>,
}

/// Five capability sets as bit masks (bit n = capability n of linux/capability.h).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CapSets {
    /// Bounding.
    pub bounding: u64,
    /// Effective and permitted of a root process; others lose them at execve.
    pub permitted: u64,
    /// Empty unless ambient is asked for.
    pub inheritable: u64,
    /// Ambient.
    pub ambient: u64,
}

/// `setrlimit` by kernel resource number; above the hard limit without CAP_SYS_RESOURCE it is clamped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    /// RLIMIT_* number.
    pub resource: u32,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// A process to become: init's or an exec's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessPlan {
    /// argv; args[0] is looked up in PATH of `env` when it has no slash.
    pub args: Vec<Text>,
    /// `KEY=value`, in order, later ones of a key already folded.
    pub env: Vec<Text>,
    /// Absolute; init's is made when absent.
    pub cwd: String,
    /// With a pty as stdio.
    pub terminal: bool,
    /// Capabilities.
    pub caps: CapSets,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// Filter.
    pub seccomp: Option<SeccompProgram>,
    /// SECCOMP_FILTER_FLAG_* bits that it is loaded with (seccomp(2)). Left out when none is asked for.
    #[serde(skip_serializing_if = "is_zero")]
    pub seccomp_flags: u32,
    /// umask(2) of the process.
    pub umask: u32,
    /// oom_score_adj, clamped when the host forbids it. None leaves the default, 0.
    pub oom_score_adj: Option<i32>,
    /// Limits; those not named are the daemon's own, which it gave to the shim.
    pub rlimits: Vec<Rlimit>,
    /// Name of the session keyring that is joined, or made by the first; empty for one of its own.
    pub keyring: String,
}

impl ProcessPlan {
    /// Sets HOME where the environment has none, or an empty one. Init and the template of execs get it by this.
    pub fn set_home(&mut self, home: &str) {
        self.env.retain(|entry| entry.as_bytes() != b"HOME=");
        if !self.env.iter().any(|entry| entry.as_bytes().starts_with(b"HOME=")) {
            self.env.extend(Text::new(format!("HOME={home}")));
        }
    }
}

fn is_zero(flags: &u32) -> bool {
    *flags == 0
}

/// Who init runs as, to be resolved in the rootfs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UserPlan {
    /// Uid, name or the image's string.
    pub request: UserRequest,
    /// Wins over passwd's gid.
    pub gid: Option<u32>,
    /// Added groups.
    pub supplemental: Vec<u32>,
    /// Add the groups that /etc/group gives the user (policy Merge).
    pub merge_image_groups: bool,
}

/// One folder to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CgroupMember {
    /// v1 controller name or names as the hierarchy is called below /sys/fs/cgroup (`memory`, `cpu,cpuacct`,
    /// `systemd`); empty on v2.
    pub hierarchy: String,
    /// Absolute host path of the folder.
    pub path: String,
}

/// Cgroups of a process. The frame carries one open folder descriptor a member, in this order; the
/// daemon has made them and written all limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CgroupPlan {
    /// True on a v2-only host: one member, joined by CLONE_INTO_CGROUP.
    pub unified: bool,
    /// What to join.
    pub members: Vec<CgroupMember>,
}

/// Where a namespace comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceSource {
    /// The shim's, which is the host's (but for mounts).
    #[default]
    Host,
    /// A new one.
    New,
    /// The one pause holds.
    Pause,
    /// That of another container's init.
    Container(ContainerId),
}

/// Namespaces of a container; mount is always new, cgroup new on v2 unless privileged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NamespacePlan {
    /// Host or Pause.
    pub network: NamespaceSource,
    /// Host or Pause.
    pub ipc: NamespaceSource,
    /// Host or Pause.
    pub uts: NamespaceSource,
    /// Any.
    pub pid: NamespaceSource,
    /// A new cgroup namespace (v2).
    pub cgroup: bool,
}

/// The root file system: overlay of layers below a store, with a read-write folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RootfsPlan {
    /// Absolute host path of the layer store.
    pub store: String,
    /// Names below it, topmost first. May be empty (an image without layers).
    pub layers: Vec<String>,
    /// Absolute host path of a folder that holds `upper` and `work`.
    pub rw: String,
    /// Mount it read-only in the end.
    pub readonly: bool,
    /// Folders made (0755) when absent: the image's VOLUMEs, clean absolute paths.
    pub folders: Vec<String>,
    /// Overlay option `volatile`: no sync, so the upper folder is worthless after a crash of the host.
    pub volatile: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum MountKind {
    /// A host path, cloned in kubelet's mount namespace. Made as a directory (0755) when absent.
    Bind {
        /// Absolute path; symlinks are followed on the host.
        source: String,
        /// How mounts pass.
        propagation: Propagation,
    },
    /// A file of ours (resolv.conf, hostname, hosts), bound like a private volume, but never made.
    File {
        /// Absolute host path.
        source: String,
    },
    /// The pod's /dev/shm.
    PodShm,
    /// procfs of the container's PID namespace.
    Proc,
    /// sysfs of its network namespace.
    Sysfs,
    /// Its own cgroup: v1 a tmpfs with the leaf of each hierarchy bound in it, v2 a cgroup2 mount.
    Cgroup,
    /// tmpfs.
    Tmpfs {
        /// Octal, for example 0o755.
        mode: u32,
        /// Bytes; 0 for the kernel's default.
        size: u64,
    },
    /// A devpts instance of its own.
    Devpts,
    /// mqueue of its IPC namespace.
    Mqueue,
}

/// A mount of the container. The plan lists them in the order they are made: defaults and volumes
/// together, by depth of target, so nothing hides what was attached below it before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountPlan {
    /// Clean absolute path in the container.
    pub target: String,
    /// What.
    pub kind: MountKind,
    /// Mount flags.
    pub readonly: bool,
    /// MOUNT_ATTR_NOSUID.
    pub nosuid: bool,
    /// MOUNT_ATTR_NODEV.
    pub nodev: bool,
    /// MOUNT_ATTR_NOEXEC.
    pub noexec: bool,
}

/// A device node to make (or, where mknod is refused, to bind) in the container's /dev.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: String,
    /// 'c', 'b' or 'p'.
    pub kind: char,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Where output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPlan {
    /// Below the pod's log directory; components are checked by the shim (RESOLVE_BENEATH, no symlinks).
    pub path: String,
}

/// A container to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerPlan {
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodId,
    /// Namespaces.
    pub namespaces: NamespacePlan,
    /// Root file system.
    pub rootfs: RootfsPlan,
    /// Mounts, in order.
    pub mounts: Vec<MountPlan>,
    /// Device nodes beyond the standard six.
    pub devices: Vec<DeviceNode>,
    /// Made unreadable: files by /dev/null, directories by an empty read-only tmpfs. Absent ones are skipped.
    pub masked_paths: Vec<String>,
    /// Made read-only.
    pub readonly_paths: Vec<String>,
    /// Who.
    pub user: UserPlan,
    /// What.
    pub process: ProcessPlan,
    /// Cgroups.
    pub cgroup: CgroupPlan,
    /// The container may see and change everything: /sys and cgroups writable, host devices.
    pub privileged: bool,
}

/// A process to start in a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecPlan {
    /// What.
    pub process: ProcessPlan,
    /// As which user: that of init.
    pub user: User,
}

/// The sandbox's process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PausePlan {
    /// A new network namespace (else the host's).
    pub network: bool,
    /// A new IPC namespace, with a /dev/shm of its own.
    pub ipc: bool,
    /// A new UTS namespace.
    pub uts: bool,
    /// A new PID namespace (for NamespaceMode Pod and Container; not for Node).
    pub pid: bool,
    /// Host name to set; empty leaves it.
    pub hostname: String,
    /// `(path below /proc/sys, value)`, checked to be namespaced. Without one there is no pod.
    pub sysctls: Vec<(String, String)>,
    /// The same, set before them where the kernel can: nobody has asked for these.
    pub default_sysctls: Vec<(String, String)>,
    /// Uid, gid and groups.
    pub user: User,
    /// Filter.
    pub seccomp: Option<SeccompProgram>,
    /// oom_score_adj, clamped.
    pub oom_score_adj: i32,
    /// Cgroups.
    pub cgroup: CgroupPlan,
    /// Size of the pod's /dev/shm, bytes.
    pub shm_size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn container() -> ContainerPlan {
        let mount = |target: &str, kind| MountPlan {
            target: target.into(),
            kind,
            readonly: false,
            nosuid: false,
            nodev: false,
            noexec: false,
        };
        ContainerPlan {
            id: "ab".repeat(32).parse().unwrap(),
            pod: "cd".repeat(32).parse().unwrap(),
            namespaces: NamespacePlan::default(),
            rootfs: RootfsPlan::default(),
            mounts: vec![
                mount("/a", MountKind::Bind { source: "/x".into(), propagation: Propagation::Private }),
                mount("/b", MountKind::Tmpfs { mode: 0o755, size: 0 }),
                mount("/c", MountKind::Proc),
            ],
            devices: vec![DeviceNode {
                path: "/dev/fuse".into(),
                kind: 'c',
                major: 10,
                minor: 229,
                mode: 0o666,
                uid: 0,
                gid: 0,
            }],
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            user: UserPlan::default(),
            process: ProcessPlan {
                seccomp: Some(SeccompProgram { instructions: vec![1] }),
                rlimits: vec![Rlimit { resource: 7, soft: 1, hard: 2 }],
                ..ProcessPlan::default()
            },
            cgroup: CgroupPlan {
                unified: false,
                members: vec![CgroupMember { hierarchy: "memory".into(), path: "/x".into() }],
            },
            privileged: false,
        }
    }

    /// Every object inside a value, by its path.
    fn objects(value: &Value, at: String, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.push(at.clone());
                fields.iter().for_each(|(name, inner)| objects(inner, format!("{at}/{name}"), found));
            }
            Value::Array(items) => items
                .iter()
                .enumerate()
                .for_each(|(place, inner)| objects(inner, format!("{at}/{place}"), found)),
            _ => {}
        }
    }

    #[test]
    fn a_field_more_anywhere_in_a_plan_is_refused() {
        let plan = serde_json::to_value(container()).unwrap();
        assert_eq!(serde_json::from_value::<ContainerPlan>(plan.clone()).unwrap(), container());
        let mut places = Vec::new();
        objects(&plan, String::new(), &mut places);
        assert!(places.len() > 14, "{places:?}");
        for place in places {
            let mut with = plan.clone();
            let fields = with.pointer_mut(&place).and_then(Value::as_object_mut).unwrap();
            fields.insert("apparmor".to_owned(), json!("confined"));
            let failure = parse_plan::<ContainerPlan>(with.to_string().as_bytes()).unwrap_err();
            assert_eq!(failure.kind, ErrorKind::Unsupported, "a field more in {place:?}");
        }
        let mut exec = json!({"process": {}, "user": {"uid": 0, "gid": 0, "groups": []}});
        assert!(serde_json::from_value::<ExecPlan>(exec.clone()).is_ok());
        exec["selinux"] = json!(1);
        assert!(serde_json::from_value::<ExecPlan>(exec).is_err());
        assert!(serde_json::from_value::<PausePlan>(json!({"uts": true})).is_ok());
        assert!(serde_json::from_value::<PausePlan>(json!({"uts": true, "user_namespace": true})).is_err());
    }

    #[test]
    fn a_variant_more_in_a_plan_is_refused() {
        for (place, value) in [
            ("/mounts/2/kind", json!("Image")),
            ("/mounts/2/kind", json!({"Image": {"id": "x"}})),
            ("/namespaces/pid", json!("Session")),
            ("/mounts/0/kind/Bind/propagation", json!("Unbindable")),
        ] {
            let mut plan = serde_json::to_value(container()).unwrap();
            *plan.pointer_mut(place).unwrap() = value.clone();
            assert!(serde_json::from_value::<ContainerPlan>(plan).is_err(), "{value} at {place}");
        }
    }
}
