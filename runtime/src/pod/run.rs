//! Starts drivers: of new pods, for RunPodSandbox, and of pods with records, for the start of the daemon.

use super::context::{Context, random};
use super::driver::{self, Granted};
use super::jobs::NodeSupervisor;
use super::registry::{Registry, Reservation};
use crate::error::{Error, ErrorKind};
use crate::operations;
use model::{ContainerRecord, PodConfig, PodId, PodRecord};
use std::sync::Arc;

/// Maximum number of attempts to reserve a name. One fails if the pod that has the name is removed meanwhile.
const TRIES: usize = 3;

/// RunPodSandbox: reserves the name, or joins an equal call that has it, and waits for the launch.
pub(crate) async fn run(
    context: &Arc<Context>,
    registry: &Arc<Registry>,
    config: PodConfig,
) -> Result<PodId, Error> {
    operations::about_new_pod(&config.meta, None);
    context.root.writable().await?;
    let config = Arc::new(config);
    for _ in 0..TRIES {
        let id = PodId::from_random(random()?);
        // Refuses a parent that is not for this driver.
        let scope = context.cgroups.scope(&config, &id)?;
        // Given back if another call has the name.
        let selinux = context.selinux.pod(&config.security.selinux, &random()?).await?;
        let mut reply = match registry.reserve(id, &config)? {
            Reservation::Join(id, reply) => {
                operations::about_new_pod(&config.meta, Some(&id));
                reply
            }
            Reservation::New(channels, reply) => {
                operations::about_new_pod(&config.meta, Some(&channels.id));
                let config = PodConfig::clone(&config);
                driver::launch(
                    NodeSupervisor::new(context, registry),
                    Arc::clone(registry),
                    channels,
                    config,
                    Granted { scope, selinux },
                );
                reply
            }
        };
        let _awaiting = operations::await_driver();
        // An error means that the driver ended without a result: it has removed a pod that an earlier daemon had left
        // incomplete, so that the name is free now.
        if let Ok(given) = reply.wait_for(Option::is_some).await
            && let Some(outcome) = &*given
        {
            return outcome.clone();
        }
    }
    let text = "the pod that has this name is being removed, or the daemon is stopping: try again";
    Err(Error::new(ErrorKind::Aborted, text))
}

/// Starts the driver of a pod that has records, of this boot (`same_boot`) or an earlier one. When this returns, the
/// pod is listed, unless the daemon removes it (`leaving`).
pub(crate) fn adopt(
    context: &Arc<Context>,
    registry: &Arc<Registry>,
    record: PodRecord,
    containers: Vec<ContainerRecord>,
    same_boot: bool,
    leaving: bool,
) {
    let selinux = context.selinux.restored(&record);
    let supervisor = NodeSupervisor::new(context, registry);
    driver::adopt(supervisor, registry, record, containers, same_boot, leaving, selinux);
}
