//! Converts security contexts: namespaces, users, capabilities, profiles.

use super::{Field, Host, Result};
use crate::apparmor::Support;
use cri_api::v1 as cri;
use cri_api::v1::security_profile::ProfileType;
use model::{
    AppArmorProfile, Capabilities, ContainerSecurity, GroupsPolicy, IdMapping, NamespaceMode, Namespaces,
    PodSecurity, SeccompProfile, SelinuxOptions, UserNamespace, UserRequest,
};

/// What the deprecated strings put before the name of a profile of the node.
const LOCALHOST: &str = "localhost/";

/// The security context of pause. If it is absent, every field has protobuf's default (0 or empty), so the
/// containers share the pod's PID namespace.
#[expect(deprecated, reason = "deprecated fields are still sent, and validated")]
pub(super) fn pod_security(
    field: &Field<'_>,
    given: Option<cri::LinuxSandboxSecurityContext>,
    host: Host,
) -> Result<PodSecurity> {
    let cri::LinuxSandboxSecurityContext {
        namespace_options,
        selinux_options,
        run_as_user,
        run_as_group,
        readonly_rootfs,
        supplemental_groups,
        supplemental_groups_policy,
        privileged,
        seccomp,
        apparmor,
        seccomp_profile_path,
    } = given.unwrap_or_default();
    let selinux = selinux(&field.at("selinux_options"), selinux_options)?;
    // Both policies mean the same: pause has no image whose groups could be added.
    groups_policy(&field.at("supplemental_groups_policy"), supplemental_groups_policy)?;
    let apparmor = apparmor_profile(&field.at("apparmor"), apparmor, privileged, host)?;
    let run_as_user = run_as_user.map(|uid| id(&field.at("run_as_user"), uid.value)).transpose()?;
    if run_as_user.is_none()
        && let Some(gid) = &run_as_group
    {
        return Err(field.at("run_as_group").invalid(gid.value, "needs run_as_user"));
    }
    let namespaces = namespaces(&field.at("namespace_options"), namespace_options)?;
    if namespaces.pid == NamespaceMode::Target {
        return Err(field
            .at("namespace_options")
            .at("pid")
            .invalid("TARGET", "a sandbox takes POD, CONTAINER or NODE"));
    }
    Ok(PodSecurity {
        namespaces,
        run_as_user,
        run_as_group: run_as_group.map(|gid| id(&field.at("run_as_group"), gid.value)).transpose()?,
        supplemental_groups: groups(field, supplemental_groups)?,
        privileged,
        readonly_rootfs,
        seccomp: seccomp_profile(field, seccomp, seccomp_profile_path)?,
        apparmor,
        selinux,
    })
}

fn user(field: &Field<'_>, uid: Option<cri::Int64Value>, name: String) -> Result<UserRequest> {
    match (uid, name) {
        (None, name) if name.is_empty() => Ok(UserRequest::Root),
        // The name is looked up in the image's passwd and group files. Colons and newlines end their fields, and commas
        // separate the members of a group.
        (None, name) if name.contains([':', '\n', '\0', ',']) || name.len() > 256 => {
            Err(field.at("run_as_username").invalid(name, "must be a user name"))
        }
        (None, name) => Ok(UserRequest::Name(name)),
        (Some(uid), name) if name.is_empty() => {
            Ok(UserRequest::Uid(id(&field.at("run_as_user"), uid.value)?))
        }
        (Some(_), name) => {
            Err(field.at("run_as_username").invalid(name, "must be empty when run_as_user is set"))
        }
    }
}

/// The security context of a container.
#[expect(deprecated, reason = "deprecated fields are still sent, and validated")]
pub(super) fn container_security(
    field: &Field<'_>,
    given: Option<cri::LinuxContainerSecurityContext>,
    host: Host,
) -> Result<ContainerSecurity> {
    let cri::LinuxContainerSecurityContext {
        capabilities,
        privileged,
        namespace_options,
        selinux_options,
        run_as_user,
        run_as_group,
        run_as_username,
        readonly_rootfs,
        supplemental_groups,
        supplemental_groups_policy,
        no_new_privs,
        masked_paths,
        readonly_paths,
        seccomp,
        apparmor,
        apparmor_profile: apparmor_string,
        seccomp_profile_path,
    } = given.unwrap_or_default();
    let selinux = selinux(&field.at("selinux_options"), selinux_options)?;
    let apparmor = match apparmor {
        Some(profile) => Some(profile),
        None => profile_of_string(&field.at("apparmor_profile"), apparmor_string)?,
    };
    let apparmor = apparmor_profile(&field.at("apparmor"), apparmor, privileged, host)?;
    let user = user(field, run_as_user, run_as_username)?;
    if user == UserRequest::Root
        && let Some(gid) = &run_as_group
    {
        return Err(field.at("run_as_group").invalid(gid.value, "needs run_as_user or run_as_username"));
    }
    Ok(ContainerSecurity {
        capabilities: capability_sets(&field.at("capabilities"), capabilities)?,
        privileged,
        namespaces: namespaces(&field.at("namespace_options"), namespace_options)?,
        user,
        run_as_group: run_as_group.map(|gid| id(&field.at("run_as_group"), gid.value)).transpose()?,
        supplemental_groups: groups(field, supplemental_groups)?,
        groups_policy: groups_policy(&field.at("supplemental_groups_policy"), supplemental_groups_policy)?,
        readonly_rootfs,
        no_new_privs,
        masked_paths: super::each(field, "masked_paths", masked_paths, super::absolute)?,
        readonly_paths: super::each(field, "readonly_paths", readonly_paths, super::absolute)?,
        seccomp: seccomp_profile(field, seccomp, seccomp_profile_path)?,
        apparmor,
        selinux,
    })
}

/// A uid or gid: 32 bits, except the all-ones value, which means "unchanged" to the kernel.
fn id(field: &Field<'_>, value: i64) -> Result<u32> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(field.invalid(value, format!("must be 0 to {}", u32::MAX - 1))),
    }
}

fn groups(field: &Field<'_>, given: Vec<i64>) -> Result<Vec<u32>> {
    super::each(field, "supplemental_groups", given, id)
}

fn groups_policy(field: &Field<'_>, value: i32) -> Result<GroupsPolicy> {
    match super::choice(field, value, "Merge, Strict")? {
        cri::SupplementalGroupsPolicy::Merge => Ok(GroupsPolicy::Merge),
        cri::SupplementalGroupsPolicy::Strict => Ok(GroupsPolicy::Strict),
    }
}

/// The parts of a label. Whether the policy knows them is asked later, and only where there is one.
fn selinux(field: &Field<'_>, given: Option<cri::SeLinuxOption>) -> Result<SelinuxOptions> {
    let cri::SeLinuxOption { user, role, r#type, level } = given.unwrap_or_default();
    for (name, value) in [("user", &user), ("role", &role), ("type", &r#type)] {
        if !value.is_empty() && !spec::selinux::is_part(value) {
            let want = "must be 1 to 128 letters, digits, '_', '-' and '.'";
            return Err(field.at(name).invalid(value, want));
        }
    }
    if !level.is_empty() && !spec::selinux::is_level(&level) {
        let want = "must be a level, such as s0, s0:c1,c2 or s0-s0:c0.c1023, with sensitivities up to 15 and categories \
                    up to 1023";
        return Err(field.at("level").invalid(level, want));
    }
    Ok(SelinuxOptions { user, role, kind: r#type, level })
}

/// The AppArmor profile of a request; [`crate::apparmor`] says what becomes of it. A profile that the host cannot apply is
/// refused, except RuntimeDefault on a host without AppArmor, where there is none to apply.
fn apparmor_profile(
    field: &Field<'_>,
    given: Option<cri::SecurityProfile>,
    privileged: bool,
    host: Host,
) -> Result<AppArmorProfile> {
    let Some(cri::SecurityProfile { profile_type, localhost_ref }) = given else {
        return Ok(AppArmorProfile::Unset);
    };
    let kind =
        super::choice(&field.at("profile_type"), profile_type, "RuntimeDefault, Unconfined, Localhost")?;
    let reference = field.at("localhost_ref");
    if kind != ProfileType::Localhost && !localhost_ref.is_empty() {
        return Err(reference.invalid(localhost_ref, "must be empty unless profile_type is Localhost"));
    }
    const OFF: &str = "AppArmor is switched off in this node's configuration (apparmor = \"off\")";
    match (kind, host.apparmor) {
        (ProfileType::Unconfined, _) => Ok(AppArmorProfile::Unconfined),
        (ProfileType::RuntimeDefault, Support::Off) if !privileged => {
            let what = format!("{OFF}, so the container would not be confined as asked");
            Err(field.at("profile_type").not_implemented(what))
        }
        (ProfileType::RuntimeDefault, _) => Ok(AppArmorProfile::RuntimeDefault),
        (ProfileType::Localhost, Support::On) => {
            Ok(AppArmorProfile::Localhost(profile_name(&reference, localhost_ref)?))
        }
        (ProfileType::Localhost, support) => {
            let why = if support == Support::Off { OFF } else { "this node has no AppArmor" };
            Err(reference.not_implemented(format!("{why}: profile {localhost_ref:?} cannot be applied")))
        }
    }
}

/// The name of a loaded profile. The prefix of the deprecated string is accepted here too, as with other runtimes.
fn profile_name(field: &Field<'_>, given: String) -> Result<String> {
    let name = given.strip_prefix(LOCALHOST).unwrap_or(&given);
    if name.is_empty()
        || name.len() > sys::apparmor::MAX_NAME
        || name.trim() != name
        || name.contains(char::is_control)
    {
        let most = sys::apparmor::MAX_NAME;
        return Err(field.invalid(given, format!("must be the name of a profile, 1 to {most} bytes")));
    }
    Ok(name.to_owned())
}

fn seccomp_profile(
    field: &Field<'_>,
    given: Option<cri::SecurityProfile>,
    deprecated: String,
) -> Result<SeccompProfile> {
    let profile = match given {
        Some(profile) => Some(profile),
        None => profile_of_string(&field.at("seccomp_profile_path"), deprecated)?,
    };
    let Some(cri::SecurityProfile { profile_type, localhost_ref }) = profile else {
        return Ok(SeccompProfile::Unconfined);
    };
    let field = field.at("seccomp");
    match super::choice(&field.at("profile_type"), profile_type, "RuntimeDefault, Unconfined, Localhost")? {
        ProfileType::RuntimeDefault => Ok(SeccompProfile::RuntimeDefault),
        ProfileType::Unconfined => Ok(SeccompProfile::Unconfined),
        ProfileType::Localhost => {
            Ok(SeccompProfile::Localhost(super::absolute(&field.at("localhost_ref"), localhost_ref)?))
        }
    }
}

/// The deprecated string form of a profile, used only if the message is absent.
fn profile_of_string(field: &Field<'_>, text: String) -> Result<Option<cri::SecurityProfile>> {
    let profile = |kind: ProfileType, localhost_ref: &str| {
        Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: localhost_ref.to_owned() })
    };
    match text.as_str() {
        "" => Ok(None),
        "runtime/default" | "docker/default" => Ok(profile(ProfileType::RuntimeDefault, "")),
        "unconfined" => Ok(profile(ProfileType::Unconfined, "")),
        _ => match text.strip_prefix(LOCALHOST) {
            Some(name) => Ok(profile(ProfileType::Localhost, name)),
            None => Err(field.invalid(text, "must be runtime/default, unconfined or localhost/<profile>")),
        },
    }
}

fn mode(field: &Field<'_>, value: i32, allowed: &[NamespaceMode], want: &str) -> Result<NamespaceMode> {
    let mode = match super::choice(field, value, want)? {
        cri::NamespaceMode::Pod => NamespaceMode::Pod,
        cri::NamespaceMode::Container => NamespaceMode::Container,
        cri::NamespaceMode::Node => NamespaceMode::Node,
        cri::NamespaceMode::Target => NamespaceMode::Target,
    };
    if allowed.contains(&mode) {
        Ok(mode)
    } else {
        Err(field.invalid(format_args!("{mode:?}"), format!("must be one of {want}")))
    }
}

fn namespaces(field: &Field<'_>, given: Option<cri::NamespaceOption>) -> Result<Namespaces> {
    use NamespaceMode::{Container, Node, Pod, Target};
    let cri::NamespaceOption { network, pid, ipc, target_id, userns_options } = given.unwrap_or_default();
    let pid = mode(&field.at("pid"), pid, &[Pod, Container, Node, Target], "POD, CONTAINER, NODE, TARGET")?;
    match (pid, target_id.is_empty()) {
        (Target, true) => return Err(field.at("target_id").missing()),
        (Target, false) | (_, true) => {}
        (_, false) => {
            return Err(field.at("target_id").invalid(target_id, "must be empty unless pid is TARGET"));
        }
    }
    let namespaces = Namespaces {
        network: mode(&field.at("network"), network, &[Pod, Node], "POD, NODE")?,
        pid,
        ipc: mode(&field.at("ipc"), ipc, &[Pod, Node], "POD, NODE")?,
        target: target_id,
        user: user_namespace(&field.at("userns_options"), userns_options)?,
    };
    let Namespaces { network, pid, ipc, .. } = namespaces;
    if namespaces.mapping().is_some() {
        for (name, mode) in [("network", network), ("pid", pid), ("ipc", ipc)] {
            if mode == Node {
                return Err(field
                    .at(name)
                    .invalid("NODE", "must not be NODE in a pod with a user namespace"));
            }
        }
    }
    Ok(namespaces)
}

fn user_namespace(field: &Field<'_>, given: Option<cri::UserNamespace>) -> Result<Option<UserNamespace>> {
    let Some(cri::UserNamespace { mode: wanted, uids, gids }) = given else {
        return Ok(None);
    };
    let mode = mode(&field.at("mode"), wanted, &[NamespaceMode::Pod, NamespaceMode::Node], "POD, NODE")?;
    if mode == NamespaceMode::Pod {
        let (uids, gids) = (only_mapping(field, "uids", uids)?, only_mapping(field, "gids", gids)?);
        if uids.length != gids.length {
            return Err(field
                .at("gids")
                .invalid(gids.length, format!("must have the length of uids, {}", uids.length)));
        }
        return Ok(Some(UserNamespace { mode, uids: vec![uids], gids: vec![gids] }));
    }
    // The host's user namespace has no mappings.
    for (name, list) in [("uids", &uids), ("gids", &gids)] {
        if let Some(mapping) = list.first() {
            return Err(field.at(name).invalid(mapping, "must be empty with the mode NODE"));
        }
    }
    Ok(Some(UserNamespace { mode, uids: Vec::new(), gids: Vec::new() }))
}

/// The mapping of a user namespace: one, as kubelet sends it, from root on, to ids without the host's root and below the
/// value that means "unchanged" to the kernel.
fn only_mapping(field: &Field<'_>, name: &str, given: Vec<cri::IdMapping>) -> Result<IdMapping> {
    let [cri::IdMapping { host_id, container_id, length }] = given.as_slice() else {
        return Err(field
            .at(name)
            .invalid(format_args!("{} mappings", given.len()), "must be exactly one mapping"));
    };
    let (field, host_id, container_id, length) = (field.entry(name, 0), *host_id, *container_id, *length);
    if container_id != 0 {
        return Err(field
            .at("container_id")
            .invalid(container_id, "must be 0, so that root inside is mapped"));
    }
    if host_id == 0 {
        return Err(field
            .at("host_id")
            .invalid(host_id, "must not be 0: root inside would be the host's root"));
    }
    if length == 0 || host_id.checked_add(length).is_none() {
        let want = format!("must be at least 1, and host_id + length at most {}", u32::MAX);
        return Err(field.at("length").invalid(length, want));
    }
    Ok(IdMapping { host_id, container_id, length })
}

pub(super) fn mapping_in(given: cri::IdMapping) -> IdMapping {
    let cri::IdMapping { host_id, container_id, length } = given;
    IdMapping { host_id, container_id, length }
}

fn capability_sets(field: &Field<'_>, given: Option<cri::Capability>) -> Result<Capabilities> {
    let cri::Capability { add_capabilities, drop_capabilities, add_ambient_capabilities } =
        given.unwrap_or_default();
    let list = |name: &str, list, all: bool| {
        super::each(field, name, list, |field, text: String| match spec::security::canonical(&text) {
            Some(name) => Ok(name.to_owned()),
            None if all && spec::security::is_all(&text) => Ok("ALL".to_owned()),
            None => Err(field.invalid(text, "must be the name of a Linux capability, for example NET_ADMIN")),
        })
    };
    Ok(Capabilities {
        add: list("add_capabilities", add_capabilities, true)?,
        drop: list("drop_capabilities", drop_capabilities, true)?,
        ambient: list("add_ambient_capabilities", add_ambient_capabilities, false)?,
    })
}

fn mode_out(mode: NamespaceMode) -> i32 {
    match mode {
        NamespaceMode::Pod => cri::NamespaceMode::Pod,
        NamespaceMode::Container => cri::NamespaceMode::Container,
        NamespaceMode::Node => cri::NamespaceMode::Node,
        NamespaceMode::Target => cri::NamespaceMode::Target,
    }
    .into()
}

pub(super) fn mapping_out(mapping: &IdMapping) -> cri::IdMapping {
    let IdMapping { host_id, container_id, length } = *mapping;
    cri::IdMapping { host_id, container_id, length }
}

/// The namespaces as requested, which status must return.
pub(crate) fn namespaces_out(namespaces: &Namespaces) -> cri::NamespaceOption {
    let Namespaces { network, pid, ipc, target, user } = namespaces;
    cri::NamespaceOption {
        network: mode_out(*network),
        pid: mode_out(*pid),
        ipc: mode_out(*ipc),
        target_id: target.clone(),
        userns_options: user.as_ref().map(|UserNamespace { mode, uids, gids }| cri::UserNamespace {
            mode: mode_out(*mode),
            uids: uids.iter().map(mapping_out).collect(),
            gids: gids.iter().map(mapping_out).collect(),
        }),
    }
}
