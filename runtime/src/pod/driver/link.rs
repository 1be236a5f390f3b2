//! The link to the shim: lost, dialled again, or found dead.

use super::{Driver, Outcome};
use crate::pod::teardown::{self, Ended};
use crate::restore;
use model::PodPhase;
use std::sync::Arc;

impl Driver {
    /// Asks a silent shim again; commands that need it are refused meanwhile.
    pub(crate) fn ask_later(&mut self) {
        self.silence += 1;
        let (context, pod, silence) = (Arc::clone(&self.context), self.record.id.clone(), self.silence);
        self.jobs.spawn(async move {
            Outcome::Dialled(Box::new(restore::ask_later(context, pod, silence).await))
        });
    }

    /// The connection ended. Wanted, when the pod is being stopped; else the shim is dialled again, or dead.
    pub(super) fn link_lost(&mut self) {
        self.events = None;
        if self.ending || self.record.phase == PodPhase::Stopped {
            return;
        }
        let Some(client) = self.client.take() else { return };
        let (context, pod) = (Arc::clone(&self.context), self.record.id.clone());
        self.jobs.spawn(async move {
            Outcome::Dialled(Box::new(restore::dial_again(&context, &pod, client).await))
        });
    }

    /// What the shim says after the connection was lost, or after the daemon's restart.
    pub(crate) fn dialled(&mut self, answer: restore::Answer) {
        // A stop that came meanwhile needs no shim.
        if self.ending || self.removing {
            return;
        }
        restore::apply(self, answer);
    }

    /// The shim is dead: kills what it left.
    pub(crate) fn bury(&mut self) {
        self.client = None;
        self.events = None;
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
