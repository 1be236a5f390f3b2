//! RunPodSandbox: finds or starts the driver of a pod name.

use super::context::{Context, random};
use super::driver;
use super::registry::{Registry, Reservation};
use crate::error::{Error, ErrorKind};
use model::{PodConfig, PodId};
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
                driver::launch(Arc::clone(context), Arc::clone(registry), seat, config);
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
