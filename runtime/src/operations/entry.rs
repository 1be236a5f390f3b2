//! One operation: a call or a job.

use super::trace::TraceId;
use model::{ContainerId, PodId};
use progress::{Place, Progress};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::time::Instant;
use tracing::Span;
use tracing::field::{Empty, display};

/// What an operation is about, as far as that is known. It becomes known while a call is handled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    /// The pod's namespace and name.
    pub(crate) pod_name: Option<(String, String)>,
    /// The pod.
    pub(crate) pod: Option<PodId>,
    /// The container's name.
    pub(crate) container_name: Option<String>,
    /// The container.
    pub(crate) container: Option<ContainerId>,
    /// The image, as the client names it.
    pub(crate) image: Option<String>,
}

impl Subject {
    /// Adds what `other` knows.
    fn add(&mut self, other: Self) {
        let Self { pod_name, pod, container_name, container, image } = other;
        let own = std::mem::take(self);
        *self = Self {
            pod_name: pod_name.or(own.pod_name),
            pod: pod.or(own.pod),
            container_name: container_name.or(own.container_name),
            container: container.or(own.container),
            image: image.or(own.image),
        };
    }

    /// Whether it is a container.
    pub(crate) fn of_container(&self) -> bool {
        self.container.is_some() || self.container_name.is_some()
    }

    /// Records what is known as fields of a span.
    pub(crate) fn record(&self, span: &Span) {
        let Self { pod_name, pod, container_name, container, image } = self;
        if let Some((namespace, name)) = pod_name {
            span.record("namespace", namespace.as_str()).record("pod_name", name.as_str());
        }
        if let Some(pod) = pod {
            span.record("pod", display(pod));
        }
        if let Some(name) = container_name {
            span.record("container_name", name.as_str());
        }
        if let Some(container) = container {
            span.record("container", display(container));
        }
        if let Some(image) = image {
            span.record("image", image.as_str());
        }
    }
}

/// For users: `pod default/web, id 12…, container app, id 34…`.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod_name, pod, container_name, container, image } = self;
        let mut parts: Vec<String> = Vec::new();
        match (pod_name, pod) {
            (Some((namespace, name)), Some(pod)) => parts.push(format!("pod {namespace}/{name}, id {pod}")),
            (Some((namespace, name)), None) => parts.push(format!("pod {namespace}/{name}")),
            (None, Some(pod)) => parts.push(format!("pod {pod}")),
            (None, None) => {}
        }
        match (container_name, container) {
            (Some(name), Some(id)) => parts.push(format!("container {name}, id {id}")),
            (Some(name), None) => parts.push(format!("container {name}")),
            (None, Some(id)) => parts.push(format!("container {id}")),
            (None, None) => {}
        }
        parts.extend(image.as_ref().map(|image| format!("image {image}")));
        f.write_str(&parts.join(", "))
    }
}

/// Whose operation it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A client's.
    Call,
    /// A pod's driver's.
    Job,
}

/// An operation.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// The name of the CRI call, or what the job does.
    pub(super) what: &'static str,
    pub(super) began: Instant,
    pub(super) trace: Option<TraceId>,
    pub(super) progress: Progress,
    subject: Mutex<Subject>,
    /// How often it waits for a pod's driver now.
    awaits_driver: AtomicUsize,
    /// Created when it is needed.
    span: OnceLock<Span>,
}

impl Entry {
    pub(super) fn new(kind: Kind, what: &'static str, trace: Option<TraceId>, subject: Subject) -> Self {
        Self {
            kind,
            what,
            began: Instant::now(),
            trace,
            progress: Progress::default(),
            subject: Mutex::new(subject),
            awaits_driver: AtomicUsize::new(0),
            span: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Subject> {
        // Every change replaces the whole value.
        self.subject.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subject(&self) -> Subject {
        self.lock().clone()
    }

    /// Adds to the subject what has become known.
    pub(super) fn about(&self, known: Subject) {
        if let Some(span) = self.span.get() {
            known.record(span);
        }
        self.lock().add(known);
    }

    /// Whether the operation is about the same pod, and about the same container if both are about one.
    pub(super) fn shares(&self, other: &Subject) -> bool {
        let own = self.lock();
        let differ =
            |pair: (Option<&str>, Option<&str>)| matches!(pair, (Some(one), Some(another)) if one != another);
        let ids = (own.container.as_ref(), other.container.as_ref());
        let containers = match ids {
            (Some(one), Some(another)) => one == another,
            // A container that is created has no id in its call yet.
            _ => !differ((own.container_name.as_deref(), other.container_name.as_deref())),
        };
        own.pod.is_some() && own.pod == other.pod && containers
    }

    /// Whether it is about a container.
    pub(super) fn of_container(&self) -> bool {
        self.lock().of_container()
    }

    pub(super) fn awaits_driver(&self) -> bool {
        self.awaits_driver.load(Ordering::Relaxed) > 0
    }

    pub(super) fn begin_await(&self) {
        self.awaits_driver.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end_await(&self) {
        self.awaits_driver.fetch_sub(1, Ordering::Relaxed);
    }

    /// What it does and the steps that it is in.
    pub(super) fn place_of_job(&self) -> Place {
        let whole = Place { steps: self.what.to_owned(), took: self.began.elapsed(), advice: "" };
        match self.progress.place() {
            Some(place) => whole.with(place),
            None => whole,
        }
    }

    /// The span of a call, for all lines that are logged while it is handled. Its level is the highest, so that every
    /// line that is logged has it.
    pub(super) fn span(&self) -> &Span {
        self.span.get_or_init(|| {
            let span = tracing::error_span!(
                parent: None, "call",
                call = self.what, trace = self.trace.map(display),
                namespace = Empty, pod_name = Empty, pod = Empty,
                container_name = Empty, container = Empty, image = Empty,
            );
            self.subject().record(&span);
            span
        })
    }
}
