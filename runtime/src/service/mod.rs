//! The CRI services: each call converts, asks [`Node`] or the image store, and converts back.
//!
//! ```text
//! wire ── convert (judges) ──► model ──► Node / ImageStore ──► records ── convert ──► wire
//!              │ Refusal                     │ their errors
//!              └────────────► status (code and text, logged once) ◄──┘
//! ```

mod convert;
mod deadline;
mod figures;
mod health;
mod image;
mod runtime;
mod server;
mod status;
#[cfg(test)]
mod tests;

use crate::config::Config;
use crate::node::Node;
use crate::root::Root;
use ::image::ImageStore;
use network::Cni;
use status::Failure;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Code, Response, Status};

pub(crate) use figures::Figures;
pub use server::Error;
pub(crate) use server::{Socket, serve};

/// What the services answer from. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Backend {
    /// Pods and containers.
    pub(crate) node: Node,
    /// Images.
    pub(crate) images: ImageStore,
    /// Networks.
    pub(crate) cni: Cni,
    /// The durable folder.
    pub(crate) root: Root,
    /// Stats.
    pub(crate) figures: Arc<Figures>,
    /// The configuration that holds, for verbose status.
    pub(crate) config: watch::Receiver<Arc<Config>>,
}

/// Runs the work of one call within its caller's deadline, and logs how it ended: the one place where an
/// error of a call is logged. `late` says what becomes of work that the deadline cut off.
async fn answer<T>(
    call: &'static str,
    metadata: &MetadataMap,
    late: &'static str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<Response<T>, Status> {
    let began = Instant::now();
    let result = match deadline::of(metadata) {
        None => work.await,
        Some(left) => match tokio::time::timeout(left, work).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Deadline(left, late)),
        },
    };
    let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    match result {
        Ok(reply) => {
            tracing::debug!(call, took_us, "answered");
            Ok(Response::new(reply))
        }
        Err(failure) => {
            let (ours, not_built) = (failure.is_our_fault(), failure.code() == Code::Unimplemented);
            let status = Status::from(failure);
            let (code, error) = (status.code(), status.message());
            if ours {
                tracing::error!(call, took_us, ?code, error, "failed");
            } else if not_built {
                // Clients probe for calls they can do without.
                tracing::debug!(call, took_us, ?code, error, "refused");
            } else {
                tracing::info!(call, took_us, ?code, error, "refused");
            }
            Err(status)
        }
    }
}

/// Nothing goes on after the deadline.
const STOPS: &str = "nothing was left running";
/// The work is the driver's own.
const GOES_ON: &str = "the work goes on, and an equal request joins it";
