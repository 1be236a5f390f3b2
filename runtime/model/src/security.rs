//! Namespaces, users, capabilities and profiles as requested through CRI.

use serde::{Deserialize, Serialize};

/// CRI `NamespaceMode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// Shared by the pod's containers. This is the enum's zero value: a request without namespace options
    /// asks for a shared PID namespace.
    #[default]
    Pod,
    /// The container has its own.
    Container,
    /// The host's is used.
    Node,
    /// That of the container named by [`Namespaces::target`] is used.
    Target,
}

/// CRI `NamespaceOption`; returned in status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespaces {
    /// Network: Pod or Node. UTS follows it.
    pub network: NamespaceMode,
    /// PID: any mode.
    pub pid: NamespaceMode,
    /// IPC: Pod or Node. /dev/shm follows it.
    pub ipc: NamespaceMode,
    /// Container id; set only with [`NamespaceMode::Target`].
    pub target: String,
    /// User namespace, Pod or Node; returned in status.
    pub user: Option<UserNamespace>,
}

impl Namespaces {
    /// The mapping of the user namespace; `None` if it is the host's.
    pub fn mapping(&self) -> Option<UserMapping> {
        self.user.as_ref().and_then(UserNamespace::mapping)
    }
}

/// CRI `UserNamespace`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// Pod or Node.
    pub mode: NamespaceMode,
    /// Uid mappings; exactly one with the mode Pod, none with Node.
    pub uids: Vec<IdMapping>,
    /// Gid mappings, as many, of the same length.
    pub gids: Vec<IdMapping>,
}

impl UserNamespace {
    /// The mapping; `None` with the mode Node.
    pub fn mapping(&self) -> Option<UserMapping> {
        match (self.mode, self.uids.as_slice(), self.gids.as_slice()) {
            (NamespaceMode::Pod, [uid], [gid]) => {
                Some(UserMapping { uid: uid.host_id, gid: gid.host_id, length: uid.length })
            }
            _ => None,
        }
    }
}

/// The mapping of a pod's user namespace: the ids 0 to `length` - 1 inside are those from `uid` and `gid` on, on the
/// host. Root inside is therefore `uid` and `gid` on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserMapping {
    /// Uid of root on the host.
    pub uid: u32,
    /// Gid of root on the host.
    pub gid: u32,
    /// Number of uids, and of gids.
    pub length: u32,
}

impl UserMapping {
    /// The host's uid of one inside; `None` if it is not mapped.
    pub fn host_uid(self, inside: u32) -> Option<u32> {
        (inside < self.length).then(|| self.uid.checked_add(inside)).flatten()
    }

    /// The host's gid of one inside; `None` if it is not mapped.
    pub fn host_gid(self, inside: u32) -> Option<u32> {
        (inside < self.length).then(|| self.gid.checked_add(inside)).flatten()
    }
}

/// CRI `IDMapping`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id on the host.
    pub host_id: u32,
    /// First id in the container.
    pub container_id: u32,
    /// Number of ids.
    pub length: u32,
}

/// CRI `SecurityProfile` for seccomp, with the deprecated string field converted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompProfile {
    /// RuntimeDefault: our own table (`spec::seccomp`).
    RuntimeDefault,
    /// No filter; also if the message is absent.
    #[default]
    Unconfined,
    /// Localhost: absolute path of a profile in OCI JSON.
    Localhost(String),
}

/// CRI `SecurityProfile` for AppArmor, with the deprecated string field converted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmorProfile {
    /// The request has none: a container gets the default profile where the node has it, pause gets none.
    #[default]
    Unset,
    /// RuntimeDefault: the default profile; none if privileged.
    RuntimeDefault,
    /// No profile.
    Unconfined,
    /// Localhost: the name of a profile that the kernel has.
    Localhost(String),
}

impl AppArmorProfile {
    /// Whether the request has none.
    pub fn is_unset(&self) -> bool {
        *self == Self::Unset
    }
}

/// CRI `SELinuxOption`: replaces parts of the label that a process would get; an empty part replaces nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SelinuxOptions {
    /// SELinux user, such as `system_u`.
    pub user: String,
    /// Role, such as `system_r`.
    pub role: String,
    /// Type (domain) of the process, such as `container_t`. Files keep theirs.
    #[serde(rename = "type")]
    pub kind: String,
    /// Level, such as `s0:c1,c2`.
    pub level: String,
}

impl SelinuxOptions {
    /// Whether the request replaces nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The SELinux labels of a pod, or of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxLabels {
    /// The label of its processes, `user:role:type:level`. A privileged one has a label only for its level: its processes
    /// get the one that the policy chooses.
    pub process: String,
    /// The label of its files: of its root file system and of the volumes that are relabelled for it.
    pub file: String,
}

/// Security context of the sandbox's own process (pause): CRI `LinuxSandboxSecurityContext`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSecurity {
    /// Namespaces of pause.
    pub namespaces: Namespaces,
    /// Uid of pause.
    pub run_as_user: Option<u32>,
    /// Gid of pause; requires a uid.
    pub run_as_group: Option<u32>,
    /// Supplementary groups of pause.
    pub supplemental_groups: Vec<u32>,
    /// Required by privileged containers.
    pub privileged: bool,
    /// Without effect: pause's root is always read-only.
    pub readonly_rootfs: bool,
    /// Seccomp profile of pause.
    pub seccomp: SeccompProfile,
    /// AppArmor profile of pause.
    #[serde(skip_serializing_if = "AppArmorProfile::is_unset")]
    pub apparmor: AppArmorProfile,
    /// SELinux label of the pod.
    #[serde(skip_serializing_if = "SelinuxOptions::is_empty")]
    pub selinux: SelinuxOptions,
}

/// CRI `Capability`: names without `CAP_`; `ALL` is allowed in add and drop.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Added to the default set.
    pub add: Vec<String>,
    /// Removed from it.
    pub drop: Vec<String>,
    /// Also raised in the ambient set.
    pub ambient: Vec<String>,
}

/// CRI `SupplementalGroupsPolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupsPolicy {
    /// Groups in the image's /etc/group are added.
    #[default]
    Merge,
    /// Only the requested groups, and the primary one.
    Strict,
}

/// The user of a container as requested, before it is looked up in the image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserRequest {
    /// CRI names none: the image's `User`, or root if the image has none either.
    #[default]
    Root,
    /// CRI `run_as_user`; requires no passwd entry.
    Uid(u32),
    /// CRI `run_as_username`; must be in the image's passwd.
    Name(String),
    /// The image's `User`: `user[:group]`, each a name or a number.
    Image(String),
}

/// The user of a process: CRI `LinuxContainerUser`. It is part of plans for shims, where an older shim skips a field that is
/// added here (`wire::plan`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Uid in the container.
    pub uid: u32,
    /// Gid in the container.
    pub gid: u32,
    /// Supplementary groups as given to setgroups, ascending, including the primary gid.
    pub groups: Vec<u32>,
}

/// CRI `LinuxContainerSecurityContext`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSecurity {
    /// Added and dropped capabilities.
    pub capabilities: Capabilities,
    /// All capabilities and devices, no masked paths, no seccomp filter.
    pub privileged: bool,
    /// Network and IPC must agree with the sandbox's.
    pub namespaces: Namespaces,
    /// The requested user.
    pub user: UserRequest,
    /// CRI `run_as_group`; requires a user.
    pub run_as_group: Option<u32>,
    /// Supplementary groups of init and every exec.
    pub supplemental_groups: Vec<u32>,
    /// Merge or Strict.
    pub groups_policy: GroupsPolicy,
    /// Root file system is read-only; mounts are not affected.
    pub readonly_rootfs: bool,
    /// PR_SET_NO_NEW_PRIVS for init and every exec.
    pub no_new_privs: bool,
    /// Masked paths: exactly these are hidden, none if it is empty (kubelet sends the usual list). Ignored if privileged.
    pub masked_paths: Vec<String>,
    /// Read-only paths: exactly these, none if it is empty. Ignored if privileged.
    pub readonly_paths: Vec<String>,
    /// Seccomp profile; ignored if privileged.
    pub seccomp: SeccompProfile,
    /// AppArmor profile of init and every exec.
    #[serde(skip_serializing_if = "AppArmorProfile::is_unset")]
    pub apparmor: AppArmorProfile,
    /// SELinux label of init and every exec; the pod's if empty.
    #[serde(skip_serializing_if = "SelinuxOptions::is_empty")]
    pub selinux: SelinuxOptions,
}
