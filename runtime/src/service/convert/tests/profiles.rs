//! Security profiles and labels of pods, which have the rules of containers.

use super::*;
use crate::apparmor::Support;
use model::AppArmorProfile;

/// A host whose operator has switched AppArmor off.
const OFF: Host = Host { apparmor: Support::Off, recursive_read_only: false };

/// A pod on this host with a changed security context.
fn pod_on(
    host: Host,
    change: impl FnOnce(&mut cri::LinuxSandboxSecurityContext),
) -> Result<model::PodSecurity> {
    let mut config = full_pod();
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    (security.seccomp, security.apparmor) = (None, None);
    change(security);
    let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    run_request(request, host).map(|config| config.security)
}

#[test]
#[expect(deprecated, reason = "the deprecated form is validated too")]
fn profiles_of_a_sandbox() {
    let old = |text: &str, message| {
        pod_on(PLAIN, |s| (s.seccomp_profile_path, s.seccomp) = (text.into(), message)).map(|s| s.seccomp)
    };
    assert_eq!(old("", None).unwrap(), SeccompProfile::Unconfined);
    assert_eq!(old("runtime/default", None).unwrap(), SeccompProfile::RuntimeDefault);
    assert_eq!(old("localhost//p", None).unwrap(), SeccompProfile::Localhost("/p".into()));
    assert_eq!(old("runtime/default", profile(ProfileType::Unconfined)).unwrap(), SeccompProfile::Unconfined);
    refused(old("nonsense", None), &["security_context.seccomp_profile_path: \"nonsense\""]);
}

fn with(kind: ProfileType, name: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() })
}

/// kubelet sends no profile for a pod that states none, and an ordinary pod must start on every host.
#[test]
fn pods_without_an_apparmor_profile_start_on_every_host() {
    for host in [PLAIN, OFF, GUARDED] {
        assert_eq!(pod_on(host, |s| s.apparmor = None).unwrap().apparmor, AppArmorProfile::Unset);
        // The fixture has neither the profile nor its deprecated form.
        let config = container_on(host, |_| ()).unwrap();
        assert_eq!(config.security.apparmor, AppArmorProfile::Unset, "{host:?}");
    }
}

#[test]
fn apparmor_profiles_of_pods_and_containers() {
    let of_container = |host, given: &Option<cri::SecurityProfile>| {
        let change = |s: &mut cri::LinuxContainerSecurityContext| s.apparmor = given.clone();
        container_on(host, |c| change(c.linux.as_mut().unwrap().security_context.as_mut().unwrap()))
            .map(|config| config.security.apparmor)
    };
    let of_pod = |host, given: &Option<cri::SecurityProfile>| {
        pod_on(host, |s| s.apparmor = given.clone()).map(|security| security.apparmor)
    };
    for read in [&of_container as &dyn Fn(Host, &_) -> Result<AppArmorProfile>, &of_pod] {
        for host in [PLAIN, OFF, GUARDED] {
            let unconfined = read(host, &with(ProfileType::Unconfined, "")).unwrap();
            assert_eq!(unconfined, AppArmorProfile::Unconfined);
            for kind in [ProfileType::RuntimeDefault, ProfileType::Unconfined] {
                refused(read(host, &with(kind, "x")), &["apparmor.localhost_ref", "must be empty"]);
            }
        }
        let (default, named) = (with(ProfileType::RuntimeDefault, ""), with(ProfileType::Localhost, "mine"));
        // Without AppArmor there is no default profile to apply.
        assert_eq!(read(PLAIN, &default).unwrap(), AppArmorProfile::RuntimeDefault);
        assert_eq!(read(GUARDED, &default).unwrap(), AppArmorProfile::RuntimeDefault);
        refused(read(OFF, &default), &["apparmor.profile_type", "switched off"]);
        for name in ["mine", "localhost/mine"] {
            let read = read(GUARDED, &with(ProfileType::Localhost, name)).unwrap();
            assert_eq!(read, AppArmorProfile::Localhost("mine".into()));
        }
        refused(read(PLAIN, &named), &["apparmor.localhost_ref", "no AppArmor", "mine"]);
        refused(read(OFF, &named), &["apparmor.localhost_ref", "switched off", "mine"]);
        for name in ["", "localhost/", "a\nb", " a", &"x".repeat(2049)] {
            let field = ["apparmor.localhost_ref", "must be the name of a profile"];
            refused(read(GUARDED, &with(ProfileType::Localhost, name)), &field);
        }
    }
    let privileged = |host| {
        container_on(host, |c| {
            let security = c.linux.as_mut().unwrap().security_context.as_mut().unwrap();
            (security.privileged, security.apparmor) = (true, with(ProfileType::RuntimeDefault, ""));
        })
    };
    assert!(privileged(OFF).is_ok(), "it would not be confined with AppArmor either");
}

#[test]
#[expect(deprecated, reason = "the deprecated form is validated too")]
fn the_deprecated_apparmor_string_is_used_only_without_the_message() {
    let old = |text: &str, message: Option<cri::SecurityProfile>| {
        container_on(GUARDED, |c| {
            let security = c.linux.as_mut().unwrap().security_context.as_mut().unwrap();
            (security.apparmor_profile, security.apparmor) = (text.into(), message);
        })
        .map(|config| config.security.apparmor)
    };
    for (text, wanted) in [
        ("", AppArmorProfile::Unset),
        ("runtime/default", AppArmorProfile::RuntimeDefault),
        ("docker/default", AppArmorProfile::RuntimeDefault),
        ("unconfined", AppArmorProfile::Unconfined),
        ("localhost/mine", AppArmorProfile::Localhost("mine".into())),
        ("localhost//usr/bin/x", AppArmorProfile::Localhost("/usr/bin/x".into())),
    ] {
        assert_eq!(old(text, None).unwrap(), wanted, "{text}");
        assert_eq!(old(text, with(ProfileType::Unconfined, "")).unwrap(), AppArmorProfile::Unconfined);
    }
    refused(old("mine", None), &["apparmor_profile: \"mine\""]);
    assert!(old("mine", with(ProfileType::Unconfined, "")).is_ok(), "it does not count");
}

#[test]
fn labels_have_parts_that_are_checked() {
    let label = |user: &str, role: &str, kind: &str, level: &str| cri::SeLinuxOption {
        user: user.into(),
        role: role.into(),
        r#type: kind.into(),
        level: level.into(),
    };
    let full = label("system_u", "system_r", "svirt_lxc_net_t", "s0:c4,c5");
    let wanted = model::SelinuxOptions {
        user: "system_u".into(),
        role: "system_r".into(),
        kind: "svirt_lxc_net_t".into(),
        level: "s0:c4,c5".into(),
    };
    assert_eq!(security(|s| s.selinux_options = Some(full.clone())).unwrap().security.selinux, wanted);
    assert_eq!(sandbox_security(|s| s.selinux_options = Some(full)).unwrap().security.selinux, wanted);
    assert!(security(|s| s.selinux_options = None).unwrap().security.selinux.is_empty());
    for (name, wrong) in [
        ("user", label("a:b", "", "", "")),
        ("role", label("", "a\nb", "", "")),
        ("type", label("", "", "spc t", "")),
        ("level", label("", "", "", "s0,c4,c5")),
    ] {
        let field = format!("selinux_options.{name}");
        refused(security(|s| s.selinux_options = Some(wrong.clone())), &[&field, "must be"]);
        refused(sandbox_security(|s| s.selinux_options = Some(wrong)), &[&field, "must be"]);
    }
}
