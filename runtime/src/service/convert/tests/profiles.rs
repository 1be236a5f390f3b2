//! Security profiles and labels of pods, which have the rules of containers.

use super::*;

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

    let confined = |host, kind| pod_on(host, |s| s.apparmor = profile(kind));
    for host in [PLAIN, GUARDED] {
        assert!(confined(host, ProfileType::Unconfined).is_ok());
        refused(confined(host, ProfileType::Localhost), &["security_context.apparmor.localhost_ref"]);
    }
    assert!(confined(PLAIN, ProfileType::RuntimeDefault).is_ok());
    refused(confined(GUARDED, ProfileType::RuntimeDefault), &["security_context.apparmor.profile_type"]);
}

#[test]
fn every_part_of_a_label_is_refused() {
    for (name, change) in [
        ("user", (|label| label.user = "x".into()) as fn(&mut cri::SeLinuxOption)),
        ("role", |label| label.role = "x".into()),
        ("type", |label| label.r#type = "x".into()),
        ("level", |label| label.level = "x".into()),
    ] {
        let mut label = cri::SeLinuxOption::default();
        change(&mut label);
        let field = format!("selinux_options.{name}");
        refused(security(|s| s.selinux_options = Some(label.clone())), &[&field, "not implemented"]);
        refused(sandbox_security(|s| s.selinux_options = Some(label)), &[&field, "not implemented"]);
    }
}
