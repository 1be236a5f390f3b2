//! Builders of pod and container configurations: what kubelet would send, with changes for a test.

use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use cri_api::v1::{self as api, MountPropagation, NamespaceMode};

use crate::cgroup::{self, Driver};

/// Environment variable with [`CGROUP_PARENT`]. The process outside of the namespaces chooses the name, because it removes
/// the cgroups at the end; it passes it on in this variable.
pub(crate) const CGROUP_VARIABLE: &str = "COPEPOD_TEST_CGROUPS";

/// The parent cgroup of all pods of this run; no other run uses it.
pub(crate) static CGROUP_PARENT: LazyLock<String> = LazyLock::new(|| {
    if let Ok(given) = std::env::var(CGROUP_VARIABLE) {
        return given;
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let number = now.as_micros() & 0xffff_ffff;
    match cgroup::driver() {
        Driver::Cgroupfs => format!("/copepod-it-{number:x}"),
        // To systemd, a hyphen is a level.
        Driver::Systemd => format!("/copepodit{number:x}.slice"),
    }
});

/// A cgroup directly below [`CGROUP_PARENT`], named as kubelet names those of pods and QoS classes: with systemd, a slice's
/// name begins with that of the slice above. `name` has no hyphen.
pub(crate) fn below_parent(name: &str) -> String {
    let parent = CGROUP_PARENT.as_str();
    match cgroup::driver() {
        Driver::Cgroupfs => format!("{parent}/{name}"),
        Driver::Systemd => {
            let above = parent.trim_start_matches('/').trim_end_matches(".slice");
            format!("{parent}/{above}-{name}.slice")
        }
    }
}

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A number that is unique in this run.
pub(crate) fn unique() -> u32 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A pod with the host network and a PID namespace per container, as kubelet requests it.
pub(crate) fn pod(name: &str, logs: &Path) -> api::PodSandboxConfig {
    let uid = format!("uid{:06}", unique());
    let log_directory = logs.join(format!("it_{name}_{uid}")).display().to_string();
    let linux = api::LinuxPodSandboxConfig {
        cgroup_parent: below_parent(&format!("pod{uid}")),
        security_context: Some(api::LinuxSandboxSecurityContext {
            namespace_options: Some(api::NamespaceOption {
                network: NamespaceMode::Node.into(),
                pid: NamespaceMode::Container.into(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    api::PodSandboxConfig {
        metadata: Some(api::PodSandboxMetadata {
            name: name.to_owned(),
            uid,
            namespace: String::from("it"),
            attempt: 0,
        }),
        log_directory,
        linux: Some(linux),
        ..Default::default()
    }
}

/// A container with a log file and default security.
pub(crate) fn container(name: &str, image: &str, command: &[&str]) -> api::ContainerConfig {
    api::ContainerConfig {
        metadata: Some(api::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(api::ImageSpec { image: image.to_owned(), ..Default::default() }),
        command: command.iter().map(|s| (*s).to_owned()).collect(),
        log_path: format!("{name}/0.log"),
        linux: Some(api::LinuxContainerConfig {
            security_context: Some(api::LinuxContainerSecurityContext {
                namespace_options: Some(api::NamespaceOption {
                    network: NamespaceMode::Node.into(),
                    pid: NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Changes to a pod, chained.
pub(crate) trait PodExt: Sized {
    /// The security context, created if missing.
    fn security(&mut self) -> &mut api::LinuxSandboxSecurityContext;
    /// The namespace options, created if missing.
    fn namespaces(&mut self) -> &mut api::NamespaceOption;
    /// The pod gets its own network namespace, set up by CNI.
    fn own_network(self) -> Self;
    /// Containers share one PID namespace.
    fn shared_pid(self) -> Self;
    /// A host port, mapped by portmap.
    fn port(self, protocol: api::Protocol, container: i32, host: i32) -> Self;
    /// A label.
    fn label(self, key: &str, value: &str) -> Self;
    /// Allows privileged containers.
    fn privileged(self) -> Self;
}

impl PodExt for api::PodSandboxConfig {
    fn security(&mut self) -> &mut api::LinuxSandboxSecurityContext {
        self.linux.get_or_insert_default().security_context.get_or_insert_default()
    }
    fn namespaces(&mut self) -> &mut api::NamespaceOption {
        self.security().namespace_options.get_or_insert_default()
    }
    fn own_network(mut self) -> Self {
        self.namespaces().network = NamespaceMode::Pod.into();
        if self.hostname.is_empty() {
            self.hostname = self.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
        }
        self
    }
    fn shared_pid(mut self) -> Self {
        self.namespaces().pid = NamespaceMode::Pod.into();
        self
    }
    fn port(mut self, protocol: api::Protocol, container: i32, host: i32) -> Self {
        self.port_mappings.push(api::PortMapping {
            protocol: protocol.into(),
            container_port: container,
            host_port: host,
            host_ip: String::new(),
        });
        self
    }
    fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }
    fn privileged(mut self) -> Self {
        self.security().privileged = true;
        self
    }
}

/// Changes to a container, chained.
pub(crate) trait ContainerExt: Sized {
    /// The security context, created if missing.
    fn security(&mut self) -> &mut api::LinuxContainerSecurityContext;
    /// Not confined by AppArmor, on hosts that have it: for what its default profile forbids, such as mounts and tracing.
    fn without_apparmor(self) -> Self;
    /// Has this capability beside the default ones, and adds no other.
    fn with_capability(self, name: &str) -> Self;
    /// The resources, created if missing.
    fn resources(&mut self) -> &mut api::LinuxContainerResources;
    /// Uses the pod's namespace options, which its containers must repeat.
    fn like(self, pod: &api::PodSandboxConfig) -> Self;
    /// A bind mount.
    fn mount(self, host: &Path, container: &str, readonly: bool, propagation: MountPropagation) -> Self;
    /// A variable.
    fn env(self, key: &str, value: &str) -> Self;
    /// Privileged.
    fn privileged(self) -> Self;
    /// A terminal.
    fn terminal(self) -> Self;
    /// Any other change.
    fn with(self, change: impl FnOnce(&mut Self)) -> Self;
}

impl ContainerExt for api::ContainerConfig {
    fn security(&mut self) -> &mut api::LinuxContainerSecurityContext {
        self.linux.get_or_insert_default().security_context.get_or_insert_default()
    }
    fn without_apparmor(mut self) -> Self {
        self.security().apparmor = seccomp(api::security_profile::ProfileType::Unconfined, "");
        self
    }
    fn with_capability(mut self, name: &str) -> Self {
        let add_capabilities = vec![name.to_owned()];
        self.security().capabilities = Some(api::Capability { add_capabilities, ..Default::default() });
        self
    }
    fn resources(&mut self) -> &mut api::LinuxContainerResources {
        self.linux.get_or_insert_default().resources.get_or_insert_default()
    }
    fn like(mut self, pod: &api::PodSandboxConfig) -> Self {
        let options = pod
            .linux
            .as_ref()
            .and_then(|l| l.security_context.as_ref())
            .and_then(|s| s.namespace_options.clone());
        self.security().namespace_options = options;
        self
    }
    fn mount(mut self, host: &Path, container: &str, readonly: bool, propagation: MountPropagation) -> Self {
        self.mounts.push(api::Mount {
            container_path: container.to_owned(),
            host_path: host.display().to_string(),
            readonly,
            propagation: propagation.into(),
            ..Default::default()
        });
        self
    }
    fn env(mut self, key: &str, value: &str) -> Self {
        self.envs.push(api::KeyValue { key: key.to_owned(), value: value.as_bytes().to_vec() });
        self
    }
    fn privileged(mut self) -> Self {
        self.security().privileged = true;
        self
    }
    fn terminal(mut self) -> Self {
        self.tty = true;
        self
    }
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

/// A seccomp profile of the given kind.
pub(crate) fn seccomp(
    kind: api::security_profile::ProfileType,
    reference: &str,
) -> Option<api::SecurityProfile> {
    Some(api::SecurityProfile { profile_type: kind.into(), localhost_ref: reference.to_owned() })
}
