//! What must hold, whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use model::ContainerId;
use wire::{ContainerState, ExitFacts, Reply, Request, Snapshot};

use super::super::id::{Requester, Serial};

/// What did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Violation {
    /// A request was not answered though its connection lives and all has come to rest.
    LostAnswer(String),
    /// An answer to nobody's request, or a second one.
    ExtraAnswer(String),
    /// An exit was told twice on a connection, or never.
    Exit(String),
    /// An exit was told before its record was written, or with other facts.
    Unrecorded(String),
    /// A signal to a number that is not that of an unreaped child.
    WrongKill(String),
    /// SIGKILL to something that nobody wanted killed.
    EarlyKill(String),
    /// Something stays in a table though nothing of it lives, or leaves it while something does.
    Slot(String),
    /// A listing that says what is not so.
    Listing(String),
    /// The shim ends while something of the pod lives.
    EarlyEnd(String),
    /// It does not come to rest.
    Restless(String),
}

/// The daemon's view: what it asked for and what it was told.
#[derive(Debug, Default)]
pub(super) struct Checker {
    asked: BTreeMap<(u32, u64), String>,
    answered: BTreeSet<(u32, u64)>,
    /// Exit records as they lie in the folder, by the container's serial.
    pub(super) records: BTreeMap<u32, ExitFacts>,
    /// Exits told, by connection and serial.
    told: BTreeSet<(u32, u32)>,
    exec_told: BTreeSet<u64>,
}

impl Checker {
    pub(super) fn asked(&mut self, requester: Requester, request: &Request) {
        self.asked.insert((requester.generation, requester.id), format!("{request:?}"));
    }

    pub(super) fn answered(
        &mut self,
        connection: Option<u32>,
        to: Requester,
        reply: &Reply,
    ) -> Result<(), Violation> {
        let key = (to.generation, to.id);
        let known = self.asked.contains_key(&key) && connection == Some(to.generation);
        if !known || !self.answered.insert(key) {
            return Err(Violation::ExtraAnswer(format!("{to:?} {reply:?} {:?}", self.asked.get(&key))));
        }
        Ok(())
    }

    /// All has come to rest.
    pub(super) fn all_answered(&self, connection: Option<u32>) -> Result<(), Violation> {
        let lost = self
            .asked
            .iter()
            .find(|(key, _)| connection == Some(key.0) && !self.answered.contains(key))
            .map(|(key, request)| format!("{key:?} {request}"));
        lost.map_or(Ok(()), |lost| Err(Violation::LostAnswer(lost)))
    }

    pub(super) fn exited(
        &mut self,
        connection: Option<u32>,
        serial: Serial,
        facts: &ExitFacts,
    ) -> Result<(), Violation> {
        let Some(connection) = connection else {
            return Err(Violation::Exit(format!("{serial:?} is told to nobody")));
        };
        if self.records.get(&serial.0) != Some(facts) {
            let record = self.records.get(&serial.0);
            return Err(Violation::Unrecorded(format!("{serial:?}: {facts:?}, the record is {record:?}")));
        }
        if !self.told.insert((connection, serial.0)) {
            return Err(Violation::Exit(format!("{serial:?} is told twice on connection {connection}")));
        }
        Ok(())
    }

    pub(super) fn exec_exited(&mut self, exec: u64) -> Result<(), Violation> {
        if !self.exec_told.insert(exec) {
            return Err(Violation::Exit(format!("exec {exec} is told twice")));
        }
        Ok(())
    }

    /// One entry of a listing, beside what is so. `init`: the number that the container's init was adopted with, and
    /// whether that has called execve.
    pub(super) fn listed(
        &mut self,
        connection: u32,
        entry: &Snapshot,
        serial: Option<Serial>,
        init: Option<(u32, bool)>,
    ) -> Result<(), Violation> {
        let Snapshot::Container { state, pid, .. } = entry else { return Ok(()) };
        let wrong = |why: &str| Err(Violation::Listing(format!("{why}: {entry:?}, init {init:?}")));
        let Some(serial) = serial else { return wrong("nobody asked for it") };
        let recorded = self.records.get(&serial.0);
        if let ContainerState::Exited(facts) = state {
            return self.exited(Some(connection), serial, facts);
        }
        if recorded.is_some() {
            return wrong("its exit is recorded");
        }
        match (state, init) {
            (ContainerState::Creating, None) => Ok(()),
            (ContainerState::Created, Some((made, _))) if made == *pid => Ok(()),
            (ContainerState::Running { started_at }, Some((made, true)))
                if made == *pid && *started_at > 0 =>
            {
                Ok(())
            }
            _ => wrong("it is not so"),
        }
    }

    /// Whether every container that is over was told so on this connection.
    pub(super) fn all_told(
        &self,
        connection: Option<u32>,
        over: impl Iterator<Item = (ContainerId, Serial)>,
    ) -> Result<(), Violation> {
        for (id, serial) in over {
            if let Some(connection) = connection
                && !self.told.contains(&(connection, serial.0))
            {
                return Err(Violation::Exit(format!("{id} is not told")));
            }
        }
        Ok(())
    }
}
