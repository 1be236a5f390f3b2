//! The daemon itself: version, conditions and configuration.

use super::super::{Backend, convert::Host, health, status::Failure};
use crate::operations;
use cri_api::v1 as cri;

/// Version.
pub(super) async fn version(_: cri::VersionRequest) -> Result<cri::VersionResponse, Failure> {
    Ok(health::version())
}

/// Status.
pub(super) async fn status(
    backend: &Backend,
    host: Host,
    cri::StatusRequest { verbose }: cri::StatusRequest,
) -> Result<cri::StatusResponse, Failure> {
    let Backend { cni, config, root, user_namespaces, apparmor, selinux, cgroup_driver, .. } = backend;
    let measured = health::Features {
        user_namespaces: user_namespaces.problem(),
        recursive_read_only: host.recursive_read_only,
        apparmor,
        selinux,
        cgroup_driver: *cgroup_driver,
    };
    let verbose = verbose.then(operations::under_way);
    let root = root.problem();
    let mut reply =
        health::status(&cni.readiness(), root.as_ref(), measured, &config.borrow(), verbose.as_ref());
    if verbose.is_some() {
        reply.info.insert("networkReleases".to_owned(), health::releases(&cni.pending_dels()).to_string());
    }
    Ok(reply)
}

/// RuntimeConfig.
pub(super) async fn config(
    backend: &Backend,
    _: cri::RuntimeConfigRequest,
) -> Result<cri::RuntimeConfigResponse, Failure> {
    Ok(health::runtime_config(backend.cgroup_driver))
}

/// UpdateRuntimeConfig.
pub(super) async fn update_config(
    cri::UpdateRuntimeConfigRequest { runtime_config }: cri::UpdateRuntimeConfigRequest,
) -> Result<cri::UpdateRuntimeConfigResponse, Failure> {
    // The pod CIDR is configured in the CNI configuration, but kubelet expects this call to succeed.
    let cidr = runtime_config.and_then(|cri::RuntimeConfig { network_config }| network_config);
    if let Some(cri::NetworkConfig { pod_cidr }) = cidr {
        tracing::info!(
            pod_cidr,
            "kubelet sent a pod CIDR; it is ignored, as the CNI configuration assigns addresses"
        );
    }
    Ok(cri::UpdateRuntimeConfigResponse {})
}
