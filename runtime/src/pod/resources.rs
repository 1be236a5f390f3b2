//! The work of UpdateContainerResources: the container's cgroup, and oom_score_adj of its processes.

use super::context::Context;
use super::recorder::Recorder;
use crate::error::{Error, ErrorKind};
use crate::{failpoint, lanes};
use model::{ContainerRecord, Resources};
use std::sync::Arc;

/// Records an update that has begun, and applies it. After an error nothing is changed, unless the error says so.
///
/// The record is written first, so that the next daemon can settle an update whose end this one did not record.
pub(super) async fn update(
    context: &Arc<Context>,
    record: &Arc<ContainerRecord>,
    recorder: &Arc<Recorder<ContainerRecord>>,
) -> Result<(), Error> {
    let recorded = recorder.persist(context, true).await;
    recorded.map_err(|error| error.context("nothing was changed, because the update cannot be recorded"))?;
    failpoint::hit("update.recorded");
    let done = on_lane(context, record, |context, record, update| {
        let skipped = context.cgroups.update(&record.cgroup, &record.config.resources, update)?;
        if !skipped.is_empty() {
            tracing::info!(container = %record.id, ?skipped, "skipped limits that this host has no files for");
        }
        if update.oom_score_adj != 0 {
            set_oom_score_adj(context, record, update.oom_score_adj);
        }
        Ok(())
    })
    .await;
    failpoint::hit("update.applied");
    done
}

/// Finds out whether the update in a record of an earlier daemon was applied; undoes it if it was not, or only in part.
/// Ok if it was.
pub(super) async fn settle(context: &Arc<Context>, record: &Arc<ContainerRecord>) -> Result<(), Error> {
    let settled = on_lane(context, record, |context, record, update| {
        let old = &record.config.resources;
        let applied = context.cgroups.settle(&record.cgroup, old, update)?;
        if update.oom_score_adj != 0 {
            let adj = if applied { update.oom_score_adj } else { old.oom_score_adj };
            set_oom_score_adj(context, record, adj);
        }
        Ok(applied)
    });
    match settled.await {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(Error::new(ErrorKind::Aborted, "the daemon ended during the update, which was undone"))
        }
        Err(error) => {
            tracing::error!(container = %record.id, error = %error.text(), "cannot undo an update during which the daemon had ended: until the next update some limits may be those of the request");
            Err(error)
        }
    }
}

/// Runs the work on a lane whose work may hang: the kernel writes memory that is to be reclaimed to any file system.
async fn on_lane<T: Send + 'static>(
    context: &Arc<Context>,
    record: &Arc<ContainerRecord>,
    work: impl FnOnce(&Context, &ContainerRecord, &Resources) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (context, record) = (Arc::clone(context), Arc::clone(record));
    let pod = record.pod.clone();
    let work = move || {
        let update = record.update.as_ref();
        let update = update.ok_or_else(|| Error::internal("bug in copepod: the record has no update"))?;
        work(&context, &record, &update.resources)
    };
    lanes::run(lanes::foreign(), pod.as_str(), "change the container's limits", work).await
}

/// A value that the host does not allow is raised, as on create. Other failures do not fail the update: its limits are in
/// force, and oom_score_adj only influences which process the kernel kills when memory runs out.
fn set_oom_score_adj(context: &Context, record: &ContainerRecord, adj: i64) {
    // A request's value is one of `spec::resources::OOM_SCORE_ADJS`.
    let adj = i32::try_from(adj).unwrap_or_default();
    match context.cgroups.set_oom_score_adj(&record.cgroup, record.pid, adj) {
        Ok(Some(set)) if set != adj => {
            tracing::warn!(container = %record.id, wanted = adj, set, "this host does not allow the wanted oom_score_adj: the nearest allowed value is set");
        }
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(container = %record.id, wanted = adj, %error, "cannot set oom_score_adj")
        }
    }
}
