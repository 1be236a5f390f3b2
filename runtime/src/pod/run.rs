//! RunPodSandbox: from a name to a driver.

use super::context::{Context, random};
use super::driver;
use super::registry::{Registry, Reservation};
use crate::error::{Error, ErrorKind};
use model::{PodConfig, PodId};
use std::sync::Arc;

/// How often a name is tried for that becomes free while one waits for it.
const TRIES: usize = 3;

/// RunPodSandbox: reserves the name, or joins who has it, and waits for the launch.
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
        // An error: the pod that had the name was left half-made by an earlier daemon, and is gone now.
        if let Ok(ended) = launched.wait_for(Option::is_some).await
            && let Some(outcome) = &*ended
        {
            return outcome.clone();
        }
    }
    Err(Error::new(ErrorKind::Aborted, "the daemon is stopping"))
}
