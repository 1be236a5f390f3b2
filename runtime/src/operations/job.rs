//! The jobs of pods' drivers.

use super::entry::{Entry, Kind, Subject};
use super::table;
use std::sync::Arc;

/// Does a job that is listed until it has ended. `what` it does, for users.
pub(crate) async fn job<T>(what: &'static str, subject: Subject, work: impl Future<Output = T>) -> T {
    let entry = Arc::new(Entry::new(Kind::Job, what, None, subject));
    let _listed = table::list(&entry);
    entry.progress.clone().scope(work).await
}
