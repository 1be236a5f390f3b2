//! CRI `Mount` as requested; returned unchanged in status.

use crate::IdMapping;
use serde::{Deserialize, Serialize};

/// CRI `MountPropagation`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// No mount is propagated after the container was created.
    #[default]
    Private,
    /// Mounts made by the host appear in the container.
    HostToContainer,
    /// Mounts are propagated in both directions.
    Bidirectional,
}

/// A volume of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Absolute path in the container, as requested: it may have `..` and empty components.
    pub container_path: String,
    /// Absolute path on the host; created as a folder (0755) if missing.
    pub host_path: String,
    /// The mount itself is read-only; mounts below it are not.
    pub readonly: bool,
    /// CRI `selinux_relabel`; has no effect without SELinux.
    pub selinux_relabel: bool,
    /// Mount propagation.
    pub propagation: Propagation,
    /// Uid mappings: none, or the one of the pod's user namespace.
    pub uid_mappings: Vec<IdMapping>,
    /// Gid mappings, likewise.
    pub gid_mappings: Vec<IdMapping>,
}
