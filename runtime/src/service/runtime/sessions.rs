//! Commands in containers, and streams to clients.

use super::super::status::Failure;
use super::super::{Backend, convert};
use cri_api::v1 as cri;
use std::sync::Arc;

/// ExecSync.
pub(super) async fn exec_sync(
    backend: &Backend,
    message: cri::ExecSyncRequest,
) -> Result<cri::ExecSyncResponse, Failure> {
    let (container, cmd, timeout) = convert::exec_sync(message)?;
    let output = backend.node.exec_sync(&container, cmd, timeout).await?;
    Ok(cri::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code })
}

/// Exec.
pub(super) async fn exec(backend: &Backend, message: cri::ExecRequest) -> Result<cri::ExecResponse, Failure> {
    let (container, cmd, streams) = convert::exec(message)?;
    let command = backend.node.exec(&container, cmd, streams).await?;
    let pod = command.pod.clone();
    Ok(cri::ExecResponse { url: backend.urls.exec(pod.as_str(), streams, Box::new(command))? })
}

/// Attach.
pub(super) async fn attach(
    backend: &Backend,
    message: cri::AttachRequest,
) -> Result<cri::AttachResponse, Failure> {
    let (container, streams) = convert::attach(message)?;
    let command = backend.node.attach(&container, streams).await?;
    let pod = command.pod.clone();
    Ok(cri::AttachResponse { url: backend.urls.attach(pod.as_str(), streams, Box::new(command))? })
}

/// PortForward.
pub(super) async fn port_forward(
    backend: &Backend,
    message: cri::PortForwardRequest,
) -> Result<cri::PortForwardResponse, Failure> {
    let (pod, ports) = convert::port_forward(message)?;
    let network = backend.node.network(&pod)?;
    let pod = network.pod.clone();
    Ok(cri::PortForwardResponse { url: backend.urls.forward(pod.as_str(), ports, Arc::new(network))? })
}
