//! Refuses requests that use features which are in the model but not implemented, so that no field is accepted
//! and then ignored. Fields that the model does not have are refused where CRI messages are converted
//! (`service/convert` of the daemon).

use crate::Error;
use model::{ContainerConfig, GroupsPolicy, IdMapping, NamespaceMode, Namespaces, PodConfig};

const USER_NAMESPACES: &str = "user namespaces are not implemented yet: leave the field out or use mode NODE";

/// Refuses unimplemented features in a sandbox's request.
pub fn pod(config: &PodConfig) -> Result<(), Error> {
    if !config.runtime_handler.is_empty() {
        let want = "only the default handler \"\" exists";
        return Err(Error::unsupported("runtime_handler", &config.runtime_handler, want));
    }
    namespaces("linux.security_context.namespace_options", &config.security.namespaces)
}

/// Refuses unimplemented features in a container's request.
pub fn container(config: &ContainerConfig) -> Result<(), Error> {
    namespaces("linux.security_context.namespace_options", &config.security.namespaces)?;
    if config.security.groups_policy == GroupsPolicy::Strict {
        let field = "linux.security_context.supplemental_groups_policy";
        return Err(Error::unsupported(field, "Strict", "only the policy Merge is implemented"));
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
        mode => {
            let field = format!("{field}.userns_options.mode");
            Err(Error::unsupported(field, format!("{mode:?}"), USER_NAMESPACES))
        }
    }
}

fn mappings(field: &str, mappings: &[IdMapping]) -> Result<(), Error> {
    match mappings.first() {
        None => Ok(()),
        Some(first) => Err(Error::unsupported(field, format!("{first:?}"), USER_NAMESPACES)),
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
