//! The link to the shim: up, down and dialled again, or found dead.
//!
//! While the shim's process lives it is dialled for ever, however long it is silent, and its pod goes on: the
//! daemon alone does not end it. Only StopPodSandbox and RemovePodSandbox do.

use super::{Driver, Outcome, later};
use crate::error::{Error, ErrorKind};
use crate::lanes;
use crate::pod::teardown::{self, Ended};
use crate::pod::{Context, containers, now};
use crate::shims::dial::{self, Dialled};
use crate::shims::{Client, Connection};
use model::{ContainerId, Exit, PodId, PodPhase};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use wire::Event;

/// How long the first greeting may take; commands of the pod wait for it after a restart.
pub(crate) const GREETING: Duration = Duration::from_secs(3);
/// How long later ones may take. A shim that goes on is heard at once, for the connection waits in its queue.
const LONG_GREETING: Duration = Duration::from_secs(30);
/// Pauses before a shim is dialled again.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a driver has of its shim.
#[derive(Debug)]
pub(crate) enum Link {
    /// It answers.
    Up {
        /// For requests.
        client: Client,
        /// Ends with the connection.
        events: mpsc::Receiver<Event>,
    },
    /// It lives, or may, and is being dialled.
    Down {
        /// Since when, nanoseconds since the epoch.
        since: i64,
        /// How often it was dialled in vain.
        tries: u32,
        /// Why it could not be asked, for people.
        why: String,
    },
    /// There is none any more.
    None,
}

impl Link {
    /// Down from now on.
    pub(crate) fn down(why: &str) -> Self {
        Self::Down { since: now(), tries: 0, why: why.to_owned() }
    }

    /// Since when the shim is silent, nanoseconds since the epoch; 0 when it is not.
    pub(crate) fn silent_since(&self) -> i64 {
        match self {
            Self::Down { since, tries: 1.., .. } => *since,
            Self::Down { .. } | Self::Up { .. } | Self::None => 0,
        }
    }

    /// For requests, while it is up.
    pub(crate) fn client(&self) -> Option<Client> {
        match self {
            Self::Up { client, .. } => Some(client.clone()),
            Self::Down { .. } | Self::None => None,
        }
    }

    /// The next event; `None` when the connection has ended. Pending without one.
    pub(super) async fn event(&mut self) -> Option<Event> {
        match self {
            Self::Up { events, .. } => events.recv().await,
            Self::Down { .. } | Self::None => std::future::pending().await,
        }
    }

    /// An event that has come already.
    pub(super) fn try_event(&mut self) -> Option<Event> {
        match self {
            Self::Up { events, .. } => events.try_recv().ok(),
            Self::Down { .. } | Self::None => None,
        }
    }
}

/// How long ago a time was, nanoseconds since the epoch.
fn age(since: i64) -> Duration {
    Duration::from_nanos(u64::try_from(now() - since).unwrap_or(0))
}

/// What asking a shim has brought.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(super) shim: Dialled,
    /// Exit records that it has left, with the time of the start.
    pub(super) exits: BTreeMap<ContainerId, (Exit, i64)>,
    /// False when the pod is of another boot.
    pub(super) same_boot: bool,
}

impl Answer {
    /// Nothing of another boot lives.
    pub(crate) fn of_another_boot() -> Self {
        Self { shim: Dialled::Gone, exits: BTreeMap::new(), same_boot: false }
    }
}

/// Dials a pod's shim, `pid` by the record, and reads the exit records it has left.
pub(crate) async fn ask(context: &Arc<Context>, pod: &PodId, pid: u32, limit: Duration) -> Answer {
    let shim = dial::dial(&context.layout, pod, pid, limit).await;
    let (theirs, id) = (Arc::clone(context), pod.clone());
    let read = move || Ok(teardown::exits(&theirs, &id));
    let exits = lanes::run(lanes::kill(), pod.as_str(), "read exit records", read).await.unwrap_or_default();
    let exits = exits.into_iter().map(|(id, facts)| (id, (containers::exit_of(&facts), facts.started_at)));
    Answer { shim, exits: exits.collect(), same_boot: true }
}

impl Driver {
    pub(crate) fn attach(&mut self, connection: Connection) {
        if let Link::Down { since, tries, .. } = &self.link
            && *tries > 0
        {
            let silent = age(*since);
            tracing::info!(pod = %self.record.id, ?silent, "shim answers again");
        }
        self.record.shim_pid = connection.client.pid();
        self.link = Link::Up { client: connection.client, events: connection.events };
    }

    /// For requests.
    pub(super) fn shim(&self) -> Result<Client, Error> {
        self.link.client().ok_or_else(|| {
            let Link::Down { since, why, .. } = &self.link else {
                let text = format!("pod {}: its shim is gone", self.record.id);
                return Error::new(ErrorKind::Unavailable, text);
            };
            let silent = age(*since);
            let text = format!(
                "pod {}: its shim (pid {}) has not answered for {silent:.1?}: {why}",
                self.record.id, self.record.shim_pid
            );
            Error::new(ErrorKind::Unavailable, text)
        })
    }

    /// The connection ended. Wanted, when the pod is being stopped; else the shim is dialled again.
    pub(super) fn link_lost(&mut self) {
        if self.ending || self.record.phase == PodPhase::Stopped {
            // The job that stops it has a client of its own.
            self.link = Link::None;
            return;
        }
        self.link = Link::down("the connection was lost");
        self.publish();
        self.dial();
    }

    /// Dials a shim that is down, after a pause that grows with each time in vain.
    pub(super) fn dial(&mut self) {
        let Link::Down { tries, .. } = &mut self.link else { return };
        let pause = later(FIRST_PAUSE, *tries, LONGEST_PAUSE);
        let limit = if *tries == 0 { GREETING } else { LONG_GREETING };
        *tries = tries.saturating_add(1);
        let (context, pod, pid) = (Arc::clone(&self.context), self.record.id.clone(), self.record.shim_pid);
        self.waits.spawn(async move {
            tokio::time::sleep(pause).await;
            Outcome::Dialled(Box::new(ask(&context, &pod, pid, limit).await))
        });
    }

    /// The shim was dialled in vain: the pod stays as it was, and says so.
    pub(super) fn note_silence(&mut self, said: String) {
        let Link::Down { tries, why, .. } = &mut self.link else { return };
        *tries = (*tries).max(1);
        // Once when it begins, then when the reason changes.
        if *tries == 1 || *why != said {
            tracing::warn!(
                pod = %self.record.id, shim = self.record.shim_pid, why = said,
                "shim does not answer: its pod goes on, and it is dialled until it does or its process ends"
            );
        }
        *why = said;
        self.publish();
    }

    /// What the shim says after the connection was lost, or after the daemon's restart.
    pub(crate) fn dialled(&mut self, answer: Answer) {
        if self.ending || self.removing {
            // A stop that came meanwhile needs no shim. Should it fail, the shim is still being dialled.
            return self.dial();
        }
        if matches!(self.link, Link::Down { .. }) {
            self.apply(answer);
        }
    }

    /// The shim is dead: kills what it left.
    pub(super) fn bury(&mut self) {
        self.link = Link::None;
        self.ending = true;
        let (context, record, leaves) = (Arc::clone(&self.context), self.record.clone(), self.leaves());
        self.jobs
            .spawn(async move { Outcome::Buried(teardown::kill(&context, &record, None, leaves).await) });
    }

    /// Nothing of it lives any more: says so, then gives back what it had.
    pub(super) fn buried(&mut self, ended: Ended) {
        self.ending = false;
        for error in &ended.errors {
            tracing::error!(pod = %self.record.id, %error, "left by a dead shim");
        }
        self.settle_exits(&ended.exits, "its end was not seen: its shim is gone");
        self.begin_stop();
    }
}
