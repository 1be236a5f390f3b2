//! Starts drivers: of new pods, for RunPodSandbox, and of pods with records, for the start of the daemon.

use super::context::{Context, random};
use super::driver;
use super::jobs::NodeSupervisor;
use super::registry::{Registry, Reservation};
use crate::error::{Error, ErrorKind};
use model::{ContainerRecord, PodConfig, PodId, PodRecord};
use std::sync::Arc;

/// Number of attempts to get a name that is released while waiting for it.
const TRIES: usize = 3;

/// Reserves the name or joins the request that has it, and waits for the launch.
pub(crate) async fn run(
    context: &Arc<Context>,
    registry: &Arc<Registry>,
    config: PodConfig,
) -> Result<PodId, Error> {
    spec::refuse::pod(&config)?;
    context.root.writable().await?;
    let config = Arc::new(config);
    for _ in 0..TRIES {
        let id = PodId::from_random(random()?);
        let mut launched = match registry.reserve(id, &config)? {
            Reservation::Join(launched) => launched,
            Reservation::New(seat, launched) => {
                let config = PodConfig::clone(&config);
                driver::launch(NodeSupervisor::new(context, registry), Arc::clone(registry), seat, config);
                launched
            }
        };
        // An error: an earlier daemon had left the pod with this name incomplete, and it is gone now.
        if let Ok(ended) = launched.wait_for(Option::is_some).await
            && let Some(outcome) = &*ended
        {
            return outcome.clone();
        }
    }
    Err(Error::new(ErrorKind::Aborted, "the daemon is stopping"))
}

/// Starts the driver of a pod with records, of this boot (`same_boot`) or an earlier one. When this returns, the pod is
/// listed. `leaving`: it is rolled back or removed.
pub(crate) fn adopt(
    context: &Arc<Context>,
    registry: &Arc<Registry>,
    record: PodRecord,
    containers: Vec<ContainerRecord>,
    same_boot: bool,
    leaving: bool,
) {
    driver::adopt(NodeSupervisor::new(context, registry), registry, record, containers, same_boot, leaving);
}
