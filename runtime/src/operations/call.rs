//! The calls of clients.

use super::entry::{Entry, Kind, Subject};
use super::table;
use super::trace::TraceId;
use futures_util::poll;
use model::{ContainerRecord, PodId, PodMeta, PodRecord};
use progress::{Entered, Place};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::timeout;
use tracing::{Instrument as _, Span};

/// How long a call takes until a line is logged about it. The next lines follow after twice the time of the last.
const LONG: Duration = Duration::from_secs(30);

tokio::task_local! {
    static CURRENT: Arc<Entry>;
}

/// A call.
#[derive(Debug)]
pub(crate) struct Call(Arc<Entry>);

impl Call {
    /// `name`: that of the CRI call.
    pub(crate) fn new(name: &'static str, trace: Option<TraceId>) -> Self {
        Self(Arc::new(Entry::new(Kind::Call, name, trace, Subject::default())))
    }

    /// Does the work of the call. If it has to wait, it is listed, and lines are logged within the call's span.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let scoped = CURRENT.scope(Arc::clone(&self.0), self.0.progress.clone().scope(work));
        let mut scoped = pin!(scoped);
        if let Poll::Ready(done) = poll!(scoped.as_mut()) {
            return done;
        }
        let _listed = table::list(&self.0);
        let waiting = async {
            let mut pause = LONG;
            loop {
                if let Ok(done) = timeout(pause, scoped.as_mut()).await {
                    return done;
                }
                let place = self.place();
                let stage = place.as_ref().map_or("unknown", |place| place.steps.as_str());
                let for_s = place.as_ref().map_or(0, |place| place.took.as_secs());
                tracing::info!(stage, for_s, took_s = self.0.began.elapsed().as_secs(), "still under way");
                pause = pause.saturating_mul(2);
            }
        };
        waiting.instrument(self.span().clone()).await
    }

    /// Where it is; `None` if it is in no named step.
    pub(crate) fn place(&self) -> Option<Place> {
        table::place_of_call(&self.0)
    }

    /// What it is about.
    pub(crate) fn subject(&self) -> Subject {
        self.0.subject()
    }

    /// How long it has taken.
    pub(crate) fn took(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// Its span: for lines about it.
    pub(crate) fn span(&self) -> &Span {
        self.0.span()
    }
}

/// Tells what the current call is about. Outside of a call it does nothing.
fn about(known: impl FnOnce() -> Subject) {
    // An error means that there is no call.
    CURRENT.try_with(|call| call.about(known())).unwrap_or_default();
}

/// The current call is about a pod that is not created yet, and has no id unless an equal request has begun it.
pub(crate) fn about_new_pod(meta: &PodMeta, id: Option<&PodId>) {
    about(|| Subject { pod_name: Some(name_of(meta)), pod: id.cloned(), ..Subject::default() });
}

/// The current call is about a pod.
pub(crate) fn about_pod(pod: &PodRecord) {
    about_new_pod(&pod.config.meta, Some(&pod.id));
}

/// The current call creates a container with this name in a pod.
pub(crate) fn about_new_container(pod: &PodRecord, name: &str) {
    about_pod(pod);
    about(|| Subject { container_name: Some(name.to_owned()), ..Subject::default() });
}

/// The current call is about a container of a pod.
pub(crate) fn about_container(pod: Option<&PodRecord>, container: &ContainerRecord) {
    about(|| Subject {
        pod_name: pod.map(|pod| name_of(&pod.config.meta)),
        pod: Some(container.pod.clone()),
        container_name: Some(container.config.meta.name.clone()),
        container: Some(container.id.clone()),
        image: None,
    });
}

/// The current call is about an image, as the client names it.
pub(crate) fn about_image(name: &str) {
    about(|| Subject { image: Some(name.to_owned()), ..Subject::default() });
}

fn name_of(meta: &PodMeta) -> (String, String) {
    (meta.namespace.clone(), meta.name.clone())
}

/// The current call waits for a pod's driver until the result is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Awaiting {
    call: Option<Arc<Entry>>,
    /// Shown if the driver has no job for the call's subject.
    _step: Entered,
}

/// The current call waits for a pod's driver.
pub(crate) fn await_driver() -> Awaiting {
    let call = CURRENT.try_with(Arc::clone).ok();
    if let Some(call) = &call {
        call.begin_await();
    }
    Awaiting { call, _step: progress::enter("wait for the pod's driver", "") }
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        if let Some(call) = &self.call {
            call.end_await();
        }
    }
}
