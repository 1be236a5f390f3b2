//! CRI fields that are understood but not implemented. Each has one refusal, so that no field is accepted and
//! then ignored. Fields that the model does not have are refused where CRI messages are converted.

use crate::Error;
use model::{ContainerConfig, GroupsPolicy, IdMapping, NamespaceMode, Namespaces, PodConfig};

/// A feature that is not implemented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotImplemented {
    /// `userns_options` with mode POD; id mappings of mounts.
    UserNamespaces,
    /// `recursive_read_only` mounts.
    RecursiveReadOnly,
    /// `supplemental_groups_policy` Strict.
    StrictGroups,
    /// AppArmor profiles, except RuntimeDefault on a host without AppArmor, and Unconfined.
    AppArmor,
    /// SELinux labels.
    Selinux,
    /// Mounts of images.
    ImageVolumes,
    /// `mount_options`.
    MountOptions,
    /// `CDI_devices`.
    Cdi,
    /// Runtime handlers other than the default.
    RuntimeHandler,
    /// Windows messages.
    Windows,
}

impl NotImplemented {
    /// The refusal of a field's value.
    pub fn refuse(self, field: &str, value: &str) -> Error {
        let want = match self {
            Self::UserNamespaces => {
                "user namespaces are not implemented yet: leave the field out or use mode NODE"
            }
            Self::RecursiveReadOnly => {
                "recursive read-only mounts are not implemented yet: use readonly only"
            }
            Self::StrictGroups => "only the policy Merge is implemented",
            Self::AppArmor => "AppArmor is not implemented yet: use RuntimeDefault or Unconfined",
            Self::Selinux => "SELinux labels are not implemented yet: leave them out",
            Self::ImageVolumes => "image volumes are not implemented yet",
            Self::MountOptions => "mount options are not implemented yet (the feature is not announced)",
            Self::Cdi => "CDI devices are not implemented yet",
            Self::RuntimeHandler => "only the default handler \"\" exists",
            Self::Windows => "this is a Linux runtime",
        };
        Error::unsupported(field, value, want)
    }
}

/// Refuses unimplemented features in a sandbox's request.
pub fn pod(config: &PodConfig) -> Result<(), Error> {
    if !config.runtime_handler.is_empty() {
        return Err(NotImplemented::RuntimeHandler.refuse("runtime_handler", &config.runtime_handler));
    }
    namespaces("linux.security_context.namespace_options", &config.security.namespaces)
}

/// Refuses unimplemented features in a container's request.
pub fn container(config: &ContainerConfig) -> Result<(), Error> {
    namespaces("linux.security_context.namespace_options", &config.security.namespaces)?;
    if config.security.groups_policy == GroupsPolicy::Strict {
        let field = "linux.security_context.supplemental_groups_policy";
        return Err(NotImplemented::StrictGroups.refuse(field, "Strict"));
    }
    for (index, mount) in config.mounts.iter().enumerate() {
        mappings(&format!("mounts[{index}].uidMappings"), &mount.uid_mappings)?;
        mappings(&format!("mounts[{index}].gidMappings"), &mount.gid_mappings)?;
    }
    Ok(())
}

fn namespaces(field: &str, options: &Namespaces) -> Result<(), Error> {
    let Some(user) = &options.user else { return Ok(()) };
    match user.mode {
        NamespaceMode::Node if user.uids.is_empty() && user.gids.is_empty() => Ok(()),
        NamespaceMode::Node => Err(Error::invalid(
            format!("{field}.userns_options"),
            "NODE with mappings",
            "mode NODE takes no mappings",
        )),
        mode => Err(NotImplemented::UserNamespaces
            .refuse(&format!("{field}.userns_options.mode"), &format!("{mode:?}"))),
    }
}

fn mappings(field: &str, mappings: &[IdMapping]) -> Result<(), Error> {
    match mappings.first() {
        None => Ok(()),
        Some(first) => Err(NotImplemented::UserNamespaces.refuse(field, &format!("{first:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use model::{Mount, UserNamespace};

    #[test]
    fn refuses_by_field() {
        let mut config = ContainerConfig::default();
        assert_eq!(container(&config), Ok(()));
        config.security.groups_policy = GroupsPolicy::Strict;
        let error = container(&config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.field().ends_with("supplemental_groups_policy"), "{error}");

        let mut config = ContainerConfig::default();
        config.mounts.push(Mount { uid_mappings: vec![IdMapping::default()], ..Mount::default() });
        assert_eq!(container(&config).unwrap_err().field(), "mounts[0].uidMappings");

        let mut config = PodConfig::default();
        let mut user = UserNamespace { mode: NamespaceMode::Node, ..UserNamespace::default() };
        config.security.namespaces.user = Some(user.clone());
        assert_eq!(pod(&config), Ok(()));
        user.mode = NamespaceMode::Pod;
        config.security.namespaces.user = Some(user);
        assert!(pod(&config).is_err());
        config = PodConfig { runtime_handler: "kata".into(), ..PodConfig::default() };
        assert_eq!(pod(&config).unwrap_err().field(), "runtime_handler");
    }
}
