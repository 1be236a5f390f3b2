//! CRI `Mount`, as asked for: status echoes exactly these.

use crate::IdMapping;
use serde::{Deserialize, Serialize};

/// CRI `MountPropagation`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Nothing passes after the container was made.
    #[default]
    Private,
    /// Mounts made by the host appear in the container.
    HostToContainer,
    /// And those of the container on the host.
    Bidirectional,
}

/// A volume of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Clean absolute path in the container.
    pub container_path: String,
    /// Absolute path on the host; made as a directory (0755) when absent.
    pub host_path: String,
    /// Read-only, the top mount alone.
    pub readonly: bool,
    /// CRI `selinux_relabel`; without SELinux it has nothing to do.
    pub selinux_relabel: bool,
    /// How mounts pass.
    pub propagation: Propagation,
    /// Refused when not empty, until user namespaces are built.
    pub uid_mappings: Vec<IdMapping>,
    /// Refused when not empty.
    pub gid_mappings: Vec<IdMapping>,
}
