//! Events of pods and containers, for those who have subscribed to them.
//!
//! They follow from what is published (`pod::publish`) and are sent under its lock: in the order of the changes, with the
//! pod as it is after the change, and when List and Status already show that. All subscribers share one buffer, so
//! that a slow one neither delays the node nor costs more than the others.

use crate::clock;
use crate::error::{Error, ErrorKind};
use crate::pod::weight;
use model::{ContainerPhase, ContainerRecord, PodPhase, PodRecord};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::broadcast;

/// Maximum number of subscribers. A node has one, its kubelet, and perhaps a few agents.
const MAX_SUBSCRIBERS: usize = 64;
/// How many events a subscriber may be behind. A pod of one container makes eight from its start to its removal, and
/// kubelet takes them faster than a node can make them. Allocated while there are subscribers.
const BUFFER: usize = 2048;
/// Maximum number of bytes of statuses that the buffer keeps alive, by their weight (`pod::weight`). Events beyond this
/// limit have no statuses. Those of a pod of one container have about 10 KiB: with such pods, a slow subscriber is
/// [`BUFFER`] events behind before the limit is reached.
const MAX_HELD: usize = 64 * 1024 * 1024;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventKind {
    /// It exists now.
    Created,
    /// It runs.
    Started,
    /// It runs no more, or never will.
    Stopped,
    /// It does not exist any more.
    Deleted,
}

/// A change of a pod or container.
#[derive(Debug)]
pub(crate) struct Event {
    /// Id of the container or pod.
    pub(crate) id: Box<str>,
    pub(crate) kind: EventKind,
    /// Nanoseconds since the epoch; larger than those of earlier events, also if the clock was set back.
    pub(crate) created_at: i64,
    /// The pod right after it; `None` if subscribers are behind and too many bytes are kept for them.
    pub(crate) snapshot: Option<Arc<Snapshot>>,
}

/// A pod with its containers at one time. The events of one change share it.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// The pod itself, or the container's; in a pod's Deleted event, as it was before.
    pub(crate) pod: Arc<PodRecord>,
    /// All containers of the pod, oldest first.
    pub(crate) containers: Vec<Arc<ContainerRecord>>,
    /// What it adds to `held`.
    weight: usize,
    held: Arc<AtomicUsize>,
}

impl Snapshot {
    /// `None` if `held` would exceed [`MAX_HELD`]. The caller is the only one who adds to it.
    fn new(
        pod: &Arc<PodRecord>,
        containers: &[Arc<ContainerRecord>],
        held: &Arc<AtomicUsize>,
    ) -> Option<Arc<Self>> {
        let weights = containers.iter().map(|container| weight::of_container(container));
        let weight = weight::of_pod(pod) + weights.sum::<usize>();
        if held.load(Ordering::Relaxed).saturating_add(weight) > MAX_HELD {
            return None;
        }
        held.fetch_add(weight, Ordering::Relaxed);
        let (pod, containers) = (Arc::clone(pod), containers.to_vec());
        Some(Arc::new(Self { pod, containers, weight, held: Arc::clone(held) }))
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.held.fetch_sub(self.weight, Ordering::Relaxed);
    }
}

/// The state of a pod or container, as far as there are events of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Created,
    Running,
    /// Whether it has run before.
    Ended {
        ran: bool,
    },
}

impl State {
    pub(super) fn of_pod(pod: &PodRecord) -> Self {
        match pod.phase {
            PodPhase::Ready => Self::Running,
            // If the pod was published as ready, the state before is Running, and `ran` does not count. Otherwise its launch
            // has failed: it has not run.
            PodPhase::Launching | PodPhase::Stopping | PodPhase::Stopped | PodPhase::Removing => {
                Self::Ended { ran: false }
            }
        }
    }

    pub(super) fn of_container(container: &ContainerRecord) -> Self {
        match container.phase {
            ContainerPhase::Creating | ContainerPhase::Created => Self::Created,
            ContainerPhase::Running => Self::Running,
            ContainerPhase::Exited | ContainerPhase::Removing | ContainerPhase::Unknown => {
                Self::Ended { ran: container.started_at != 0 }
            }
        }
    }
}

/// The events of a change. If a container ends before its start is published, it has both.
pub(super) fn of_change(before: Option<State>, now: State) -> &'static [EventKind] {
    use EventKind::{Created, Started, Stopped};
    match (before, now) {
        (None, State::Created) => &[Created],
        (None, State::Running) => &[Created, Started],
        (None, State::Ended { ran: true }) => &[Created, Started, Stopped],
        (None, State::Ended { ran: false }) => &[Created, Stopped],
        (Some(State::Created), State::Running) => &[Started],
        (Some(State::Created), State::Ended { ran: true }) => &[Started, Stopped],
        (Some(State::Created), State::Ended { ran: false }) | (Some(State::Running), State::Ended { .. }) => {
            &[Stopped]
        }
        // Something else has changed.
        (Some(_), _) => &[],
    }
}

/// Sends events to the subscribers.
#[derive(Debug, Default)]
pub(super) struct Feed {
    /// `None` while nobody has subscribed.
    subscribers: Option<broadcast::Sender<Arc<Event>>>,
    /// The latest time that [`Self::stamp`] has returned.
    latest: i64,
    /// Weight of all snapshots of events that some subscriber has not taken yet, or is sending.
    held: Arc<AtomicUsize>,
    closed: bool,
}

impl Feed {
    /// Whether there are subscribers. Without any, the buffer is freed.
    pub(super) fn is_followed(&mut self) -> bool {
        drop(self.subscribers.take_if(|subscribers| subscribers.receiver_count() == 0));
        self.subscribers.is_some()
    }

    /// The time of an event: nanoseconds since the epoch, larger than all before.
    fn stamp(&mut self) -> i64 {
        self.latest = clock::now().max(self.latest.saturating_add(1));
        self.latest
    }

    /// Sends the events of one change; does not block.
    pub(super) fn send(
        &mut self,
        kinds: &[EventKind],
        id: &str,
        pod: &Arc<PodRecord>,
        containers: &[Arc<ContainerRecord>],
    ) {
        let snapshot = Snapshot::new(pod, containers, &self.held);
        for kind in kinds.iter().copied() {
            let created_at = self.stamp();
            let event = Event { id: id.into(), kind, created_at, snapshot: snapshot.clone() };
            if let Some(subscribers) = &self.subscribers {
                // An error means that the last subscriber has just gone.
                drop(subscribers.send(Arc::new(event)));
            }
        }
    }

    /// A new subscriber, of the events from now on.
    ///
    /// # Errors
    /// ResourceExhausted if there are too many; Unavailable once the feed is closed.
    pub(super) fn subscribe(&mut self) -> Result<Events, Error> {
        if self.closed {
            return Err(stopping());
        }
        let subscribers = self.subscribers.get_or_insert_with(|| broadcast::Sender::new(BUFFER));
        if subscribers.receiver_count() >= MAX_SUBSCRIBERS {
            let text =
                format!("there are {MAX_SUBSCRIBERS} subscribers of events, the limit: end another one");
            return Err(Error::new(ErrorKind::ResourceExhausted, text));
        }
        Ok(Events(subscribers.subscribe()))
    }

    /// Ends all subscriptions, and refuses new ones.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.subscribers = None;
    }
}

/// The events of one subscriber.
#[derive(Debug)]
pub(crate) struct Events(broadcast::Receiver<Arc<Event>>);

impl Events {
    /// Waits for the next event.
    ///
    /// # Errors
    /// Aborted if the subscriber was too slow and has missed events; Unavailable if the daemon is stopping. After both,
    /// the subscriber must list and subscribe again.
    pub(crate) async fn next(&mut self) -> Result<Arc<Event>, Error> {
        self.0.recv().await.map_err(|error| match error {
            broadcast::error::RecvError::Lagged(missed) => {
                let text = format!(
                    "this subscriber has missed {missed} events, because it was more than {BUFFER} behind: list, and \
                     subscribe again"
                );
                Error::new(ErrorKind::Aborted, text)
            }
            broadcast::error::RecvError::Closed => stopping(),
        })
    }
}

fn stopping() -> Error {
    Error::new(ErrorKind::Unavailable, "the daemon is stopping: list, and subscribe again, when it is back")
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{PodConfig, PodId};

    /// Sends a pod's event.
    fn send(feed: &mut Feed) {
        let id = PodId::from_random([1; 32]);
        let pod = Arc::new(PodRecord::new(id, PodConfig::default(), 1));
        assert!(feed.is_followed());
        feed.send(&[EventKind::Started], pod.id.as_str(), &pod, &[]);
    }

    #[tokio::test]
    async fn a_slow_subscriber_is_ended_and_the_others_go_on() {
        let mut feed = Feed::default();
        let (mut slow, mut fast) = (feed.subscribe().unwrap(), feed.subscribe().unwrap());
        let mut latest = 0;
        for _ in 0..BUFFER + 3 {
            send(&mut feed);
            let event = fast.next().await.unwrap();
            assert!(event.created_at > latest, "{event:?}");
            latest = event.created_at;
        }
        let error = slow.next().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Aborted);
        assert!(error.text().contains("missed 3 events"), "{}", error.text());
        // A status that is read now is newer than the last event.
        assert!(feed.stamp() > latest);
    }

    #[tokio::test]
    async fn a_slow_subscriber_keeps_a_bounded_number_of_bytes() {
        let mut feed = Feed::default();
        let (mut slow, mut fast) = (feed.subscribe().unwrap(), feed.subscribe().unwrap());
        let labels = [("label".to_owned(), "x".repeat(MAX_HELD / 4))].into();
        let config = PodConfig { labels, ..PodConfig::default() };
        let pod = Arc::new(PodRecord::new(PodId::from_random([1; 32]), config, 1));
        let mut complete = Vec::new();
        for _ in 0..5 {
            feed.send(&[EventKind::Created, EventKind::Started], pod.id.as_str(), &pod, &[]);
            for _ in 0..2 {
                complete.push(fast.next().await.unwrap().snapshot.is_some());
            }
        }
        assert_eq!(complete, [[true; 6].as_slice(), &[false; 4]].concat());
        assert!(feed.held.load(Ordering::Relaxed) <= MAX_HELD);
        // Each event arrives, and those that were taken make room.
        for _ in 0..10 {
            slow.next().await.unwrap();
        }
        assert_eq!(feed.held.load(Ordering::Relaxed), 0);
        feed.send(&[EventKind::Stopped], pod.id.as_str(), &pod, &[]);
        assert!(slow.next().await.unwrap().snapshot.is_some());
    }

    #[tokio::test]
    async fn subscribers_are_bounded_and_end_with_the_daemon() {
        let mut feed = Feed::default();
        assert!(!feed.is_followed());
        let mut all: Vec<Events> = (0..MAX_SUBSCRIBERS).map(|_| feed.subscribe().unwrap()).collect();
        assert_eq!(feed.subscribe().unwrap_err().kind, ErrorKind::ResourceExhausted);
        drop(all.pop());
        assert!(feed.subscribe().is_ok(), "one has gone");
        let mut last = all.pop().unwrap();
        drop(all);
        send(&mut feed);
        feed.close();
        assert_eq!(feed.subscribe().unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(last.next().await.unwrap().kind, EventKind::Started);
        assert_eq!(last.next().await.unwrap_err().kind, ErrorKind::Unavailable);
        assert!(!feed.is_followed());
        // Without subscribers there is no buffer.
        let mut feed = Feed::default();
        drop(feed.subscribe().unwrap());
        assert!(!feed.is_followed() && feed.subscribers.is_none());
    }

    #[test]
    fn every_change_has_its_events() {
        use EventKind::{Created, Started, Stopped};
        let (ran, never_ran) = (State::Ended { ran: true }, State::Ended { ran: false });
        let steps = |states: &[State]| -> Vec<EventKind> {
            let before = std::iter::once(None).chain(states.iter().copied().map(Some));
            before.zip(states).flat_map(|(before, now)| of_change(before, *now)).copied().collect()
        };
        let whole = [Created, Started, Stopped];
        // Also if states were not published one by one.
        assert_eq!(steps(&[State::Created, State::Running, ran]), whole);
        assert_eq!(steps(&[State::Created, ran]), whole);
        assert_eq!(steps(&[State::Running, ran]), whole);
        assert_eq!(steps(&[ran]), whole);
        assert_eq!(steps(&[State::Created, never_ran]), [Created, Stopped]);
        // A pod whose failed launch could not be undone.
        assert_eq!(steps(&[never_ran]), [Created, Stopped]);
        // Published again without a change of state; a shim that takes a start back.
        assert_eq!(steps(&[State::Running, State::Running, never_ran, never_ran]), whole);
        assert_eq!(steps(&[State::Running, State::Created]), [Created, Started]);
    }
}
