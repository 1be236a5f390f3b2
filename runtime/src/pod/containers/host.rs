//! What a new container needs from the host beside its image: seccomp filter, AppArmor profile, SELinux labels, device
//! nodes. It is looked up before anything is created.

use super::super::context::Context;
use super::super::foreign;
use crate::apparmor::Subject;
use crate::cgroups::host_devices;
use crate::error::Error;
use crate::seccomp::Compiled;
use crate::shims::Client;
use model::{ContainerRecord, PodRecord, SelinuxLabels};
use spec::devices::HostDevice;
use std::sync::Arc;

/// What was found.
pub(super) struct HostParts {
    /// The compiled filter.
    pub(super) seccomp: Option<Arc<Compiled>>,
    /// The name of its AppArmor profile; empty for none.
    pub(super) apparmor: String,
    /// Its SELinux labels; `None` if its pod has none.
    pub(super) selinux: Option<SelinuxLabels>,
    /// The device nodes that the request names. They can be on any file system of the node.
    pub(super) devices: Vec<HostDevice>,
}

/// Reads the profiles and the device nodes that a request names.
///
/// # Errors
/// A profile or a node does not exist or cannot be read; see [`foreign`] for file systems that hang.
pub(super) async fn look_up(
    context: &Arc<Context>,
    client: &Client,
    pod: &PodRecord,
    record: &ContainerRecord,
) -> Result<HostParts, Error> {
    let security = &record.config.security;
    let selinux = context.selinux.container(pod, &security.selinux).await?;
    let pod = record.pod.as_str();
    let seccomp = if security.privileged {
        None
    } else {
        let caps = spec::security::caps(security, context.cap_bounding)?;
        foreign::seccomp(context, pod, &security.seccomp, caps.bounding).await?
    };
    let apparmor = apparmor(context, client, record).await?;
    if record.config.devices.is_empty() && !security.privileged {
        return Ok(HostParts { seccomp, apparmor, selinux, devices: Vec::new() });
    }
    let config = record.config.clone();
    let paths: Vec<&str> = config.devices.iter().map(|device| device.host_path.as_str()).take(4).collect();
    let file =
        format!("devices: host_path {}", if paths.is_empty() { "/dev".to_owned() } else { paths.join(", ") });
    let devices = foreign::read(pod, "devices", file, move || Ok(host_devices::find(&config)?));
    Ok(HostParts { seccomp, apparmor, selinux, devices: devices.await? })
}

/// The name of the container's AppArmor profile; empty for none.
async fn apparmor(context: &Context, client: &Client, record: &ContainerRecord) -> Result<String, Error> {
    let security = &record.config.security;
    let (privileged, asked) = (security.privileged, &security.apparmor);
    let profile = context.apparmor.profile(Subject { privileged, asked, by_default: true }).await?;
    if asked.is_unset() && !profile.is_empty() && !client.applies_apparmor() {
        // Its pod began under an earlier version, without profiles, and must be able to go on. (A profile that the request
        // names is refused by such a shim.)
        tracing::info!(container = %record.id, "this pod's shim is of an earlier version: the container runs without the default AppArmor profile");
        return Ok(String::new());
    }
    Ok(profile)
}
