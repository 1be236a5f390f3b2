//! Plans: what a worker has to create. `spec` computes them from validated requests; only forked workers
//! parse them.
//!
//! A shim outlives upgrades of the daemon, so a plan may contain something that its shim does not know. If the shim
//! skipped that, a container could start without part of its confinement. A plan with an unknown field or variant is
//! therefore refused as a whole ([`crate::ErrorKind::Unsupported`]). The exception is [`User`], which replies and records
//! have too: unknown fields in it are skipped, so what confines a process's user becomes a field of the plan beside it. A
//! field that is added later must not be serialized with its default value (`skip_serializing_if`), so that older shims
//! accept plans that do not use it.

use model::{ContainerId, PodId, Propagation, Text, User, UserMapping, UserRequest};
use serde::{Deserialize, Serialize};

use crate::failure::{ErrorKind, Failure};

/// Parses a plan, in the worker that carries it out.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for unknown content: a container must not start with less confinement than the
/// daemon requested. The same for a missing field; [`ErrorKind::Invalid`] if the JSON is cut off.
pub fn parse_plan<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(json).map_err(|error| {
        // serde_json reports a variant with more than one name as a syntax error.
        let (kind, message) = if error.is_data() || error.is_syntax() {
            let message = format!("{error}; this pod's shim is too old for it: recreate the pod");
            (ErrorKind::Unsupported, message)
        } else {
            (ErrorKind::Invalid, error.to_string())
        };
        Failure { kind, stage: "plan".to_owned(), message, errno: 0 }
    })
}

/// A compiled BPF filter: the bytes of an array of `struct sock_filter`, loaded unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SeccompProgram {
    /// One instruction per entry, little-endian: code | jt << 16 | jf << 24 | k << 32.
    pub instructions: Vec<u64>,
}

/// Capability sets as bit masks (bit n = capability n of linux/capability.h). The effective set equals the permitted one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CapSets {
    /// Bounding.
    pub bounding: u64,
    /// Permitted set until execve. After it, a process that is not root has the ambient set and what its program file
    /// grants (capabilities(7)).
    pub permitted: u64,
    /// Inheritable set; empty unless ambient capabilities are requested.
    pub inheritable: u64,
    /// Ambient set.
    pub ambient: u64,
}

/// A `setrlimit` by kernel resource number; limited to the hard limit without CAP_SYS_RESOURCE.
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

/// The process to become: init or an exec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessPlan {
    /// argv; args[0] is looked up in the PATH of `env` if it has no slash.
    pub args: Vec<Text>,
    /// `KEY=value` in order, without duplicate keys.
    pub env: Vec<Text>,
    /// Absolute working directory; init's is created if missing.
    pub cwd: String,
    /// Stdio is a pty.
    pub terminal: bool,
    /// Capabilities.
    pub caps: CapSets,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// Filter.
    pub seccomp: Option<SeccompProgram>,
    /// SECCOMP_FILTER_FLAG_* bits for loading it (seccomp(2)); not serialized if 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub seccomp_flags: u32,
    /// Name of the AppArmor profile that execve changes to; not serialized if empty, which leaves the process with the
    /// profile of the shim. (Feature `apparmor`.)
    #[serde(skip_serializing_if = "String::is_empty")]
    pub apparmor: String,
    /// SELinux label that execve changes to, and label of the session keyring; not serialized if empty, which leaves the
    /// choice to the policy. (Feature `selinux`.)
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selinux: String,
    /// umask(2) of the process.
    pub umask: u32,
    /// oom_score_adj, raised if the host does not allow this value; `None` means 0.
    pub oom_score_adj: Option<i32>,
    /// Resource limits; the others are those of the daemon, which the shim inherited.
    pub rlimits: Vec<Rlimit>,
    /// Name of the session keyring, which is joined or created; empty for an anonymous one.
    pub keyring: String,
}

impl ProcessPlan {
    /// Sets HOME if the environment has none or an empty one; used for init and for the template of execs.
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

fn is_false(flag: &bool) -> bool {
    !flag
}

/// The user of init, to be looked up in the image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UserPlan {
    /// Uid, name, or the image's string.
    pub request: UserRequest,
    /// Gid; overrides the one in passwd.
    pub gid: Option<u32>,
    /// Additional groups.
    pub supplemental: Vec<u32>,
    /// Also add the user's groups in /etc/group (policy Merge).
    pub merge_image_groups: bool,
}

/// One cgroup folder to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CgroupMember {
    /// Name of the v1 hierarchy below /sys/fs/cgroup (`memory`, `cpu,cpuacct`, `systemd`); empty on v2.
    pub hierarchy: String,
    /// Absolute host path of the folder.
    pub path: String,
}

/// Cgroups of a process. The frame carries one open folder descriptor per member, in this order. The daemon
/// has created them and written all limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CgroupPlan {
    /// The cgroups are of v2: there is one member.
    pub unified: bool,
    /// The folders to join.
    pub members: Vec<CgroupMember>,
}

/// The source of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceSource {
    /// The shim's, which is the host's (except for mounts).
    #[default]
    Host,
    /// A new one.
    New,
    /// The one of pause.
    Pause,
    /// The one of another container's init.
    Container(ContainerId),
}

/// Namespaces of a container. The mount namespace is always new; the cgroup namespace is new on v2 unless
/// privileged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NamespacePlan {
    /// Network: Host or Pause.
    pub network: NamespaceSource,
    /// IPC: Host or Pause.
    pub ipc: NamespaceSource,
    /// UTS: Host or Pause.
    pub uts: NamespaceSource,
    /// PID: any.
    pub pid: NamespaceSource,
    /// A new cgroup namespace (v2).
    pub cgroup: bool,
    /// The user namespace is pause's, which has this mapping; `None` for the shim's, which is the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<UserMapping>,
}

/// What one layer of an image is on this node. All places that use layers match on it, so that another form, such as a file
/// system image or a layer that is fetched when it is read, has its place: it becomes a variant, which is written as an
/// object and sent to shims that know it (a feature of the protocol).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum LayerSource {
    /// The folder into which the layer was unpacked: its name below [`RootfsPlan::store`], written as text.
    Folder(String),
}

impl From<String> for LayerSource {
    fn from(folder: String) -> Self {
        Self::Folder(folder)
    }
}

impl From<LayerSource> for String {
    fn from(layer: LayerSource) -> Self {
        match layer {
            LayerSource::Folder(folder) => folder,
        }
    }
}

/// The root file system: an overlay of image layers with a writable folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RootfsPlan {
    /// Absolute host path of the folder of layers.
    pub store: String,
    /// Topmost first; empty for an image without layers.
    pub layers: Vec<LayerSource>,
    /// Absolute host path of the folder that contains `upper` and `work`.
    pub rw: String,
    /// Make the root read-only.
    pub readonly: bool,
    /// Folders that are created (0755) if missing: the image's VOLUMEs, clean absolute paths.
    pub folders: Vec<String>,
    /// Overlay option `volatile`: no sync, so the upper folder is unusable after a crash of the host.
    pub volatile: bool,
}

/// The type of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum MountKind {
    /// A host path, cloned in kubelet's mount namespace; created as a folder (0755) if missing.
    Bind {
        /// Absolute path; symlinks on the host are followed.
        source: String,
        /// Mount propagation.
        propagation: Propagation,
    },
    /// A file of ours (resolv.conf, hostname, hosts), bound like a private volume but never created.
    File {
        /// Absolute host path.
        source: String,
    },
    /// An image, without a writable layer: read-only by itself. Not known to shims before image volumes.
    Image {
        /// Its id, for errors.
        image: String,
        /// Topmost first; empty for an image without layers.
        layers: Vec<LayerSource>,
        /// The file or folder in it that is mounted, clean and relative; empty for its root. Symlinks are followed within
        /// the image.
        sub_path: String,
    },
    /// The pod's /dev/shm.
    PodShm,
    /// procfs of the container's PID namespace.
    Proc,
    /// sysfs of its network namespace.
    Sysfs,
    /// The container's own cgroup: on v1 a tmpfs with the leaf of each hierarchy bound in it, on v2 a cgroup2
    /// mount. On v2 without a cgroup namespace of its own, the host's /sys/fs/cgroup.
    Cgroup,
    /// tmpfs.
    Tmpfs {
        /// Octal, for example 0o755.
        mode: u32,
        /// Bytes; 0 for the kernel's default.
        size: u64,
    },
    /// A new devpts instance.
    Devpts,
    /// mqueue of its IPC namespace.
    Mqueue,
}

/// A mount of the container. The plan lists mounts in the order of mounting: defaults and volumes together,
/// by depth of target, so that no mount hides an earlier one below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountPlan {
    /// Clean absolute path in the container.
    pub target: String,
    /// Type.
    pub kind: MountKind,
    /// Mount flags.
    pub readonly: bool,
    /// With `readonly`: all mounts below a [`MountKind::Bind`] are read-only too. Not serialized if false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub recursive: bool,
    /// MOUNT_ATTR_NOSUID.
    pub nosuid: bool,
    /// MOUNT_ATTR_NODEV.
    pub nodev: bool,
    /// MOUNT_ATTR_NOEXEC.
    pub noexec: bool,
    /// Only for sources on the host: the mount is id-mapped with the pod's user namespace, so that root inside owns what
    /// root owns on the host. Mounts below the source keep the host's owners, as with runc. Image volumes are mapped with
    /// the layer store instead.
    #[serde(default, skip_serializing_if = "is_false")]
    pub idmap: bool,
    /// Only for sources on the host: the SELinux label that the source gets, with everything in it that is on the same file
    /// system; not serialized if empty. (Feature `selinux`.)
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub relabel: String,
}

impl MountPlan {
    /// A mount without flags.
    #[must_use]
    pub fn new(target: &str, kind: MountKind) -> Self {
        Self {
            target: target.to_owned(),
            kind,
            readonly: false,
            recursive: false,
            nosuid: false,
            nodev: false,
            noexec: false,
            idmap: false,
            relabel: String::new(),
        }
    }
}

/// A device node to create in the container, usually below /dev.
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

/// The log file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPlan {
    /// Path below the pod's log directory; the shim opens it with RESOLVE_BENEATH and without symlinks.
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
    /// Device nodes in addition to the six standard ones.
    pub devices: Vec<DeviceNode>,
    /// Paths to mask: files with the null device, folders with an empty read-only one. Missing paths are skipped.
    pub masked_paths: Vec<String>,
    /// Paths to make read-only. Missing paths are skipped.
    pub readonly_paths: Vec<String>,
    /// User of init.
    pub user: UserPlan,
    /// The process.
    pub process: ProcessPlan,
    /// Cgroups.
    pub cgroup: CgroupPlan,
    /// The container is privileged: /sys and cgroups are writable, and it has the host's devices.
    pub privileged: bool,
    /// SELinux label of all files in its root file system, its image volumes and its own file systems (mount option
    /// `context`); not serialized if empty. (Feature `selinux`.)
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file_label: String,
}

/// A process to start in a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecPlan {
    /// The process.
    pub process: ProcessPlan,
    /// User, which is that of init.
    pub user: User,
    /// The mapping of the container's user namespace, if it has one ([`NamespacePlan::user`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping: Option<UserMapping>,
    /// The first size of its terminal. (Feature `terminal-size`.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<TerminalSize>,
}

/// The size of a terminal, in characters (`struct winsize`, ioctl_tty(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// The plan of pause.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PausePlan {
    /// Create a network namespace (otherwise the host's is used).
    pub network: bool,
    /// Create an IPC namespace, with its own /dev/shm.
    pub ipc: bool,
    /// Create a UTS namespace.
    pub uts: bool,
    /// Create a PID namespace (for NamespaceMode Pod and Container, not for Node).
    pub pid: bool,
    /// Create a user namespace with this mapping. It owns the other new namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mapping: Option<UserMapping>,
    /// Host name; empty leaves it unchanged.
    pub hostname: String,
    /// `(path below /proc/sys, value)`; validated to be namespaced. If one cannot be set, the pod fails.
    pub sysctls: Vec<(String, String)>,
    /// Defaults in the same format, which are set after those of `sysctls` that are of the UTS namespace and before all
    /// others, so none of them may be of the UTS namespace. Errors are ignored, because the pod does not ask for them.
    pub default_sysctls: Vec<(String, String)>,
    /// Uid, gid and groups.
    pub user: User,
    /// Filter.
    pub seccomp: Option<SeccompProgram>,
    /// As [`ProcessPlan::apparmor`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub apparmor: String,
    /// As [`ProcessPlan::selinux`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selinux: String,
    /// SELinux label of pause's root and of the files in the pod's /dev/shm; not serialized if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub file_label: String,
    /// oom_score_adj, raised if the host does not allow this value.
    pub oom_score_adj: i32,
    /// Cgroups.
    pub cgroup: CgroupPlan,
    /// Size of the pod's /dev/shm, bytes.
    pub shm_size: u64,
}

#[cfg(test)]
mod tests;
