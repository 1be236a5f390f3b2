//! CRI `Mount` as requested; returned unchanged in status.

use crate::{IdMapping, ImageVolume};
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

/// CRI `Mount.mount_options`: one flag of mount(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::enum_variant_names, reason = "the names of mount(8)")]
pub enum MountOption {
    /// `noexec`.
    NoExec,
    /// `nosuid`.
    NoSuid,
    /// `nodev`.
    NoDev,
}

impl MountOption {
    /// Its name in CRI and mount(8).
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoExec => "noexec",
            Self::NoSuid => "nosuid",
            Self::NoDev => "nodev",
        }
    }

    /// The option with this name.
    pub fn find(name: &str) -> Option<Self> {
        [Self::NoExec, Self::NoSuid, Self::NoDev].into_iter().find(|option| option.name() == name)
    }
}

/// A volume of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Absolute path in the container, as requested: it may have `..` and empty components.
    pub container_path: String,
    /// Absolute path on the host; created as a folder (0755) if missing. Empty with an image.
    pub host_path: String,
    /// The mount itself is read-only; mounts below it only with `recursive_read_only`.
    pub readonly: bool,
    /// All mounts below it are read-only too; only with `readonly` and [`Propagation::Private`].
    #[serde(skip_serializing_if = "is_false")]
    pub recursive_read_only: bool,
    /// Options of the mount itself, as requested; mounts below it do not get them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mount_options: Vec<MountOption>,
    /// The image that is mounted instead of `host_path`; always with `readonly` and [`Propagation::Private`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageVolume>,
    /// CRI `selinux_relabel`: the source gets the label of the container's files; has no effect without SELinux.
    pub selinux_relabel: bool,
    /// Mount propagation.
    pub propagation: Propagation,
    /// Uid mappings: none, or the one of the pod's user namespace.
    pub uid_mappings: Vec<IdMapping>,
    /// Gid mappings, likewise.
    pub gid_mappings: Vec<IdMapping>,
}

// serde calls it with a reference.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde needs")]
fn is_false(value: &bool) -> bool {
    !value
}
