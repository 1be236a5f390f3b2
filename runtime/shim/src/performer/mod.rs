//! Carries out the lifecycle's actions. It decides nothing: an action that can fail has a result, which is an
//! input.

mod workers;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use model::ContainerId;
use sys::epoll::Epoll;
use wire::{ErrorKind, ExitFacts, Failure};

use crate::conn::Lost;
use crate::descriptors::{Cgroups, Container, Descriptors};
use crate::exit_record::Records;
use crate::failure::{failure, refusal};
use crate::io::output::Buffers;
use crate::lifecycle::{Action, CgroupLook, CgroupState, Happened, Input, Lifecycle, Requester, Serial};
use crate::link::Link;
use crate::{bundle, processes};

/// The initial data of the shim, for workers and files.
pub(crate) struct Given {
    pub(crate) pause_binary: OwnedFd,
    pub(crate) records: Records,
    pub(crate) log_dir: Option<OwnedFd>,
}

/// All kernel objects of the shim.
pub(crate) struct Performer {
    pub(crate) epoll: Epoll,
    pub(crate) link: Link,
    pub(crate) descriptors: Descriptors,
    pub(crate) buffers: Buffers,
    /// Descriptors of the current request.
    pub(crate) incoming: Vec<OwnedFd>,
    pub(crate) given: Given,
    /// Results of actions and other inputs, in order.
    pub(crate) inputs: VecDeque<Input>,
}

impl Performer {
    /// Performs one action. Returns it if it must be performed again after its result was handled.
    #[expect(clippy::too_many_lines, reason = "one match over all actions")]
    pub(crate) fn perform(&mut self, action: Action, lifecycle: &Lifecycle) -> Option<Action> {
        match action {
            Action::Greet => {
                let greeted = self.link.greet(lifecycle.snapshot(), &self.epoll);
                self.unless_lost(greeted);
            }
            Action::Reply { to, reply, fd_of } => {
                let fd = fd_of.and_then(|serial| self.descriptors.worker(serial)).and_then(|w| w.fd.take());
                let sent = self.link.reply(to, reply, fd, &self.epoll);
                self.unless_lost(sent);
            }
            Action::Event(event) => {
                let sent = self.link.event(event, &self.epoll);
                self.unless_lost(sent);
            }
            Action::Fork(serial, fork) => {
                let worker = self.fork(serial, &fork, lifecycle);
                self.result(serial, Happened::Forked(worker));
            }
            Action::ReadPackets(serial) => {
                if self.read_packet(serial) {
                    return Some(action);
                }
                self.result(serial, Happened::PacketsRead);
            }
            Action::DropWorker(serial) => self.drop_worker(serial),
            Action::Signal { pid, signal } => drop(processes::signal(pid, signal)),
            Action::SignalFor { requester, pid, signal } => {
                let outcome = processes::signal(pid, signal).map_err(|error| match error.kind() {
                    io::ErrorKind::InvalidInput => {
                        failure(ErrorKind::Invalid, &format!("signal {signal}"), &error)
                    }
                    _ => failure(ErrorKind::Internal, "kill", &error),
                });
                self.served(requester, outcome);
            }
            Action::Adopt(serial, pid) => {
                let outcome = self.adopt(serial, pid);
                self.result(serial, Happened::Adopted(outcome));
            }
            Action::DropNamespaces(serial) => self.descriptors.drop_namespaces(serial),
            Action::LookAtInit(serial, pid) => {
                self.result(serial, Happened::InitSeen(processes::init_state(pid)));
            }
            Action::LookAtProcess(serial, pid) => {
                self.result(serial, Happened::ProcessSeen(processes::over(pid)));
            }
            Action::KillSessions { container, sessions } => {
                let cgroups = self.descriptors.container(container).map(|of| &of.cgroups);
                let seen = processes::kill_sessions(cgroups, &sessions);
                for (session, (count, over)) in sessions.iter().zip(seen) {
                    self.result(session.exec, Happened::SessionSeen { count, over });
                }
            }
            Action::LookForOom { exec, container } => {
                let container = self.descriptors.container(container);
                let killed = container.is_some_and(|of| processes::was_oom_killed(&of.cgroups));
                self.result(exec, Happened::MemorySeen(killed));
            }
            Action::RemoveFiles(id) => bundle::remove(&id),
            Action::RemoveRecord { requester, container } => {
                let removed = self.given.records.remove(&container);
                let failed =
                    |error: state::Error| refusal(ErrorKind::Internal, "exit record", error.to_string());
                self.served(requester, removed.map_err(failed));
            }
            Action::WriteRecord(serial, id, facts) => self.write_record(serial, &id, &facts),
            Action::Release(serial) => {
                self.drop_worker(serial);
                self.descriptors.drop_namespaces(serial);
                if let Some(mut container) = self.descriptors.drop_container(serial) {
                    container.streams.drop_error_pipe(&self.epoll);
                }
            }
            Action::End => self.link.flush(),
            Action::StartInit(serial, id) => {
                let outcome = self.start_init(serial, &id);
                self.result(serial, Happened::StartSent(outcome));
            }
            Action::WatchOutputs(serial)
            | Action::ReadErrorPipe(serial)
            | Action::DropErrorPipe(serial)
            | Action::KillCgroup(serial)
            | Action::LookAtCgroup(serial, _)
            | Action::FinishOutputs(serial)
            | Action::ReopenLog { serial, .. } => self.perform_on_container(serial, action, lifecycle),
        }
        None
    }

    fn perform_on_container(&mut self, serial: Serial, action: Action, lifecycle: &Lifecycle) {
        let Self { epoll, descriptors, buffers, .. } = self;
        let Some(container) = descriptors.container_mut(serial) else {
            // A container has descriptors as long as it is checked. If it had none, it must not wait forever.
            if let Action::LookAtCgroup(..) = action {
                let state = CgroupState { empty: true, ..CgroupState::default() };
                self.result(serial, Happened::CgroupSeen(state));
            }
            return;
        };
        let Container { cgroups, streams, .. } = container;
        match action {
            Action::WatchOutputs(_) => {
                let watched = streams.watch_outputs(epoll, serial);
                let warning = watched.err().map(|error| format!("streams: {error}"));
                self.warn(serial, warning, lifecycle);
            }
            Action::FinishOutputs(_) => {
                let warning = streams.finish(epoll, buffers);
                self.warn(serial, warning, lifecycle);
            }
            Action::ReadErrorPipe(_) => {
                let said = streams.read_error_pipe(epoll, true);
                self.result(serial, Happened::ErrorPipe { said: said.message, closed: said.closed });
            }
            Action::DropErrorPipe(_) => streams.drop_error_pipe(epoll),
            Action::KillCgroup(_) => processes::kill_cgroup(cgroups),
            Action::LookAtCgroup(_, look) => {
                let state = look_at_cgroup(cgroups, look, lifecycle);
                self.result(serial, Happened::CgroupSeen(state));
            }
            Action::ReopenLog { requester, .. } => {
                let reopened = match &self.given.log_dir {
                    Some(dir) => streams.reopen_log(dir.as_fd()),
                    None => Ok(()),
                };
                self.served(requester, reopened.map_err(|error| failure(ErrorKind::Internal, "log", &error)));
            }
            _ => {}
        }
    }

    // Results.

    fn result(&mut self, serial: Serial, happened: Happened) {
        self.inputs.push_back(Input::Of(serial, happened));
    }

    fn served(&mut self, requester: Requester, outcome: Result<(), Failure>) {
        self.inputs.push_back(Input::Served { requester, outcome });
    }

    /// Closes the connection after an error, for example if the daemon does not read.
    pub(crate) fn unless_lost(&mut self, sent: Result<(), Lost>) {
        if let Err(_lost) = sent
            && let Some(generation) = self.link.hang_up(&self.epoll)
        {
            self.inputs.push_back(Input::Disconnected(generation));
        }
    }

    /// Sends a warning about a container's log.
    pub(crate) fn warn(&mut self, serial: Serial, warning: Option<String>, lifecycle: &Lifecycle) {
        if let Some((text, id)) = warning.zip(lifecycle.container_id(serial)) {
            let sent = self.link.warn(id, text, &self.epoll);
            self.unless_lost(sent);
        }
    }

    fn write_record(&mut self, serial: Serial, id: &ContainerId, facts: &ExitFacts) {
        let written = self.given.records.write(id, facts).map_err(|error| error.to_string());
        self.result(serial, Happened::Recorded(written));
    }
}

fn look_at_cgroup(cgroups: &Cgroups, look: CgroupLook, lifecycle: &Lifecycle) -> CgroupState {
    let init_over = look.init.is_some_and(|pid| processes::over(pid).is_some());
    let strays = look.strays && processes::kill_strays(|pid| lifecycle.knows(pid));
    let empty = processes::is_empty(cgroups, look.patient);
    CgroupState { empty, oom_killed: empty && processes::was_oom_killed(cgroups), strays, init_over }
}
