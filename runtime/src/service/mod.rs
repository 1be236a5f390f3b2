//! The CRI services: each call is converted, passed to [`Node`] or the image store, and the result converted
//! back.
//!
//! ```text
//! wire ── convert (checks) ──► model ──► Node / ImageStore ──► records ── convert ──► wire
//!              │ Refusal                     │ their errors
//!              └────────────► status (code and text, logged once) ◄──┘
//! ```

mod archives;
mod authority;
mod chunks;
mod connection;
mod convert;
mod deadline;
mod details;
#[cfg(test)]
mod handle_tests;
mod health;
mod image;
mod metrics;
mod runtime;
mod self_probe;
mod server;
mod stats_cache;
mod status;
#[cfg(test)]
mod tests;

use crate::apparmor::AppArmor;
use crate::cgroups;
use crate::config::Config;
use crate::node::Node;
use crate::operations::{Call, TraceId};
use crate::root::Root;
use crate::selinux::Selinux;
use crate::user_namespaces::UserNamespaces;
use ::image::ImageStore;
use network::Cni;
use status::Failure;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use streaming::server::Urls;
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};

pub(crate) use metrics::Metrics;
pub(crate) use self_probe::{SelfProbeError, probe_socket};
pub(crate) use server::Error;
pub(crate) use server::{Socket, serve};
pub(crate) use stats_cache::{StatsCache, sample as sample_stats};

/// The objects that the services use. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Backend {
    /// Pods and containers.
    pub(crate) node: Node,
    /// Images.
    pub(crate) images: ImageStore,
    /// The CNI client.
    pub(crate) cni: Cni,
    /// State of the durable folder.
    pub(crate) root: Root,
    /// Whether pods can have user namespaces.
    pub(crate) user_namespaces: UserNamespaces,
    /// AppArmor.
    pub(crate) apparmor: AppArmor,
    /// SELinux.
    pub(crate) selinux: Selinux,
    /// Stats of containers and pods.
    pub(crate) stats: Arc<StatsCache>,
    /// Metrics of pods and containers.
    pub(crate) metrics: Arc<Metrics>,
    /// Issues the URLs of exec, attach and port-forward.
    pub(crate) urls: Urls,
    /// Who makes the cgroups of new pods.
    pub(crate) cgroup_driver: cgroups::Driver,
    /// Configuration, for verbose status.
    pub(crate) config: watch::Receiver<Arc<Config>>,
}

/// Runs one call within its caller's deadline and logs its result; errors of calls are logged here and
/// nowhere else. `late` says what happens to the work if the deadline passes.
async fn handle<Q, T, F: Future<Output = Result<T, Failure>>>(
    name: &'static str,
    request: Request<Q>,
    late: &'static str,
    work: impl FnOnce(Q) -> F,
) -> Result<Response<T>, Status> {
    let metadata = request.metadata();
    let trace = metadata.get("traceparent").and_then(|text| TraceId::of_traceparent(text.as_bytes()));
    let left = deadline::time_left(metadata);
    let call = Call::new(name, trace);
    let mut running = pin!(call.run(work(request.into_inner())));
    let result = match left {
        None => running.await,
        Some(left) => match tokio::time::timeout(left, running.as_mut()).await {
            Ok(result) => result,
            // The work still exists here, so that the error can say which step it is in.
            Err(_) => Err(Failure::late(left, &call, late)),
        },
    };
    let took_us = u64::try_from(call.took().as_micros()).unwrap_or(u64::MAX);
    match result {
        Ok(reply) => {
            tracing::debug!(parent: call.span(), took_us, "call succeeded");
            Ok(Response::new(reply))
        }
        Err(failure) => {
            let (internal, not_implemented) = (failure.is_internal(), failure.code() == Code::Unimplemented);
            let status = Status::from(failure);
            let (code, error) = (status.code(), status.message());
            if internal {
                tracing::error!(parent: call.span(), took_us, ?code, error, "failed");
            } else if not_implemented {
                // Clients probe for optional calls.
                tracing::debug!(parent: call.span(), took_us, ?code, error, "refused");
            } else {
                tracing::info!(parent: call.span(), took_us, ?code, error, "refused");
            }
            Err(status)
        }
    }
}

/// What happens after the deadline of a call that changes nothing.
const NOTHING_CONTINUES: &str = "nothing was left running";
/// What happens after the deadline of a call whose work belongs to a pod's driver and can be joined.
const WORK_CONTINUES: &str = "the work continues, and an equal request joins it";
/// What happens after the deadline of a call whose work continues but cannot be joined.
const MAY_COMPLETE: &str = "the work may still be completed; the call can be repeated";
