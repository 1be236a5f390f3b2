//! Namespaces, users, capabilities and profiles, as asked for through CRI.

use serde::{Deserialize, Serialize};

/// CRI `NamespaceMode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// Shared by the pod's containers. The wire's zero value: a message without namespace options
    /// asks for a shared PID namespace.
    #[default]
    Pod,
    /// The container's own.
    Container,
    /// The host's.
    Node,
    /// That of the container named by [`Namespaces::target`].
    Target,
}

/// CRI `NamespaceOption`, echoed in status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespaces {
    /// Pod or Node. UTS follows it.
    pub network: NamespaceMode,
    /// Any mode.
    pub pid: NamespaceMode,
    /// Pod or Node. /dev/shm follows it.
    pub ipc: NamespaceMode,
    /// Container id, only with [`NamespaceMode::Target`].
    pub target: String,
    /// Echoed; any mode but Node is refused until user namespaces are built.
    pub user: Option<UserNamespace>,
}

/// CRI `UserNamespace`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// Pod or Node.
    pub mode: NamespaceMode,
    /// Uid mappings.
    pub uids: Vec<IdMapping>,
    /// Gid mappings.
    pub gids: Vec<IdMapping>,
}

/// CRI `IDMapping`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id on the host.
    pub host_id: u32,
    /// First id in the container.
    pub container_id: u32,
    /// How many.
    pub length: u32,
}

/// CRI `SecurityProfile` for seccomp, after the deprecated string field was folded in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompProfile {
    /// Our own table (`spec::seccomp`).
    RuntimeDefault,
    /// No filter; also what an absent message means.
    #[default]
    Unconfined,
    /// An absolute path of a profile in OCI JSON.
    Localhost(String),
}

/// CRI `SELinuxOption`, kept for echo; refused when set until SELinux is built.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxOptions {
    /// `user` part of the label.
    pub user: String,
    /// `role` part.
    pub role: String,
    /// `type` part.
    pub kind: String,
    /// `level` part.
    pub level: String,
}

/// What the sandbox's own process (pause) gets: CRI `LinuxSandboxSecurityContext`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSecurity {
    /// Which namespaces pause holds.
    pub namespaces: Namespaces,
    /// Uid of pause.
    pub run_as_user: Option<u32>,
    /// Gid of pause; needs a user.
    pub run_as_group: Option<u32>,
    /// Extra groups of pause.
    pub supplemental_groups: Vec<u32>,
    /// Precondition for privileged containers.
    pub privileged: bool,
    /// Pause's root is always read-only; kept for echo.
    pub readonly_rootfs: bool,
    /// Filter of pause.
    pub seccomp: SeccompProfile,
}

/// CRI `Capability`: names without regard to a `CAP_` prefix; `ALL` allowed in add and drop.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Added to the default set.
    pub add: Vec<String>,
    /// Taken from it.
    pub drop: Vec<String>,
    /// Raised in the ambient set as well.
    pub ambient: Vec<String>,
}

/// CRI `SupplementalGroupsPolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupsPolicy {
    /// Groups of the image's /etc/group are added.
    #[default]
    Merge,
    /// Only what was asked for. Refused until it is built.
    Strict,
}

/// Who a container runs as, before the rootfs has been asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserRequest {
    /// Neither CRI nor the image named one: root.
    #[default]
    Root,
    /// CRI `run_as_user`; needs no passwd entry.
    Uid(u32),
    /// CRI `run_as_username`; must be in the image's passwd.
    Name(String),
    /// The image's `User`: `user[:group]`, each a name or a number.
    Image(String),
}

/// What a process runs as: CRI `LinuxContainerUser`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Uid in the container.
    pub uid: u32,
    /// Gid in the container.
    pub gid: u32,
    /// Supplementary groups as given to setgroups, ascending, the primary gid among them.
    pub groups: Vec<u32>,
}

/// CRI `LinuxContainerSecurityContext`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSecurity {
    /// Added and dropped capabilities.
    pub capabilities: Capabilities,
    /// All capabilities, devices, no masks, no confinement.
    pub privileged: bool,
    /// Network and IPC agree with the sandbox's.
    pub namespaces: Namespaces,
    /// Who it runs as.
    pub user: UserRequest,
    /// CRI `run_as_group`; only with a user.
    pub run_as_group: Option<u32>,
    /// Extra groups of init and every exec.
    pub supplemental_groups: Vec<u32>,
    /// Merge or Strict.
    pub groups_policy: GroupsPolicy,
    /// Root file system read-only; mounts stay as asked.
    pub readonly_rootfs: bool,
    /// PR_SET_NO_NEW_PRIVS for init and every exec.
    pub no_new_privs: bool,
    /// Replaces our default list; empty masks nothing.
    pub masked_paths: Vec<String>,
    /// Replaces our default list.
    pub readonly_paths: Vec<String>,
    /// Seccomp; ignored when privileged.
    pub seccomp: SeccompProfile,
}
