//! The invariants.

use std::collections::{BTreeMap, BTreeSet};

use model::ContainerId;
use wire::{ContainerState, ExitFacts, Reply, Request, Snapshot};

use super::super::id::{Requester, Serial};

/// A violation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Violation {
    /// A request got no reply, although its connection exists and everything is at rest.
    LostReply(String),
    /// A reply without a request, or a second reply.
    ExtraReply(String),
    /// An exit was reported twice on a connection, or never.
    Exit(String),
    /// An exit was reported before its file was written, or with other content.
    Unrecorded(String),
    /// A signal to a pid that is not that of an unreaped child.
    WrongKill(String),
    /// SIGKILL to a process without a reason.
    EarlyKill(String),
    /// An object stays in a table without processes, or leaves it while it has some.
    Slot(String),
    /// A snapshot is wrong.
    Listing(String),
    /// The shim exits while a process of the pod is left.
    EarlyEnd(String),
    /// It does not come to rest.
    Restless(String),
}

/// The daemon's view: its requests, and the messages it got.
#[derive(Debug, Default)]
pub(super) struct Checker {
    asked: BTreeMap<(u32, u64), String>,
    answered: BTreeSet<(u32, u64)>,
    /// Exit files, by the container's serial; also those that could not be written.
    pub(super) records: BTreeMap<u32, ExitFacts>,
    /// Containers whose exit file could not be written, until a warning says so.
    unwritten: BTreeSet<u32>,
    /// Reported exits, by connection and serial.
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
            return Err(Violation::ExtraReply(format!("{to:?} {reply:?} {:?}", self.asked.get(&key))));
        }
        Ok(())
    }

    /// Everything is at rest.
    pub(super) fn all_answered(&self, connection: Option<u32>) -> Result<(), Violation> {
        let lost = self
            .asked
            .iter()
            .find(|(key, _)| connection == Some(key.0) && !self.answered.contains(key))
            .map(|(key, request)| format!("{key:?} {request}"));
        lost.map_or(Ok(()), |lost| Err(Violation::LostReply(lost)))
    }

    /// An exit file was written, or could not be.
    pub(super) fn recorded(&mut self, serial: Serial, facts: ExitFacts, written: bool) {
        self.records.insert(serial.0, facts);
        if !written {
            self.unwritten.insert(serial.0);
        }
    }

    pub(super) fn is_unwritten(&self, serial: Serial) -> bool {
        self.unwritten.contains(&serial.0)
    }

    pub(super) fn warned(&mut self, serial: Option<Serial>) {
        if let Some(serial) = serial {
            self.unwritten.remove(&serial.0);
        }
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

    /// Compares one entry of a snapshot with the facts. `init`: the adopted pid of the container's init, and
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

    /// Whether the exit of every ended container was reported on this connection.
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
