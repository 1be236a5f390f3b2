//! Carries out the lifecycle's actions. It decides nothing: an action that can fail has a result, which is an
//! input.

mod workers;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use model::ContainerId;
use sys::epoll::Epoll;
use wire::{ErrorKind, ExitFacts, Failure};

use crate::conn::Lost;
use crate::descriptors::{Cgroups, Container, Descriptors};
use crate::exit_record::Records;
use crate::failure::{failure, refusal};
use crate::io::folder::LogFolder;
use crate::io::output::Buffers;
use crate::lifecycle::{
    Action, CgroupCheck, CgroupState, ContainerInput, ExecInput, Input, Lifecycle, Requester, Serial,
    WorkerInput,
};
use crate::link::Link;
use crate::{bundle, processes};

/// What the shim keeps of its start: descriptors that the daemon passed, and the log folder that it named.
pub(crate) struct FromDaemon {
    pub(crate) pause_binary: OwnedFd,
    pub(crate) records: Records,
    pub(crate) log_folder: Option<LogFolder>,
}

/// All kernel objects of the shim.
pub(crate) struct Performer {
    pub(crate) epoll: Epoll,
    pub(crate) link: Link,
    pub(crate) descriptors: Descriptors,
    pub(crate) buffers: Buffers,
    /// Descriptors of the current request.
    pub(crate) incoming: Vec<OwnedFd>,
    /// For the reply to an attach: the container's stdin, or its terminal's master.
    pub(crate) attach_fd: Option<OwnedFd>,
    pub(crate) from_daemon: FromDaemon,
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
                self.close_if_lost(greeted);
            }
            Action::Reply { to, reply, fd_of } => {
                let fd = fd_of.and_then(|serial| self.descriptors.worker(serial)).and_then(|w| w.fd.take());
                let fd = fd.or_else(|| self.attach_fd.take());
                let sent = self.link.reply(to, reply, fd, &self.epoll);
                self.close_if_lost(sent);
            }
            Action::Event(event) => {
                let sent = self.link.event(event, &self.epoll);
                self.close_if_lost(sent);
            }
            Action::Fork(serial, fork) => {
                let forked = self.fork(serial, &fork, lifecycle);
                self.inputs.push_back(Input::Worker(serial, WorkerInput::Forked(forked)));
            }
            Action::ReadPackets(serial) => {
                if self.read_packet(serial) {
                    return Some(action);
                }
                self.inputs.push_back(Input::Worker(serial, WorkerInput::PacketsRead));
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
                self.inputs.push_back(Input::Adopted(serial, outcome));
            }
            Action::DropNamespaces(serial) => self.descriptors.drop_namespaces(serial),
            Action::CheckInit(serial, pid) => {
                self.result(serial, ContainerInput::InitChecked(processes::init_state(pid)));
            }
            Action::CheckProcess(serial, pid) => {
                self.inputs.push_back(Input::ProcessChecked(serial, processes::code_if_over(pid)));
            }
            Action::KillSessions { container, sessions } => {
                let cgroups = self.descriptors.container(container).map(|of| &of.cgroups);
                let results = processes::kill_sessions(cgroups, &sessions);
                for (session, (count, leader)) in sessions.iter().zip(results) {
                    self.inputs
                        .push_back(Input::Exec(session.exec, ExecInput::SessionKilled { count, leader }));
                }
            }
            Action::CheckOom { exec, container } => {
                let container = self.descriptors.container(container);
                let killed = container.is_some_and(|of| processes::was_oom_killed(&of.cgroups));
                self.inputs.push_back(Input::Exec(exec, ExecInput::OomChecked(killed)));
            }
            Action::RemoveFiles(id) => bundle::remove(&id),
            Action::RemoveRecord { requester, container } => {
                let removed = self.from_daemon.records.remove(&container);
                let failed =
                    |error: state::Error| refusal(ErrorKind::Internal, "exit file", error.to_string());
                self.served(requester, removed.map_err(failed));
            }
            Action::WriteRecord(serial, id, facts) => self.write_record(serial, &id, &facts),
            Action::Release(serial) => {
                self.drop_worker(serial);
                self.descriptors.drop_namespaces(serial);
                if let Some(mut container) = self.descriptors.drop_container(serial) {
                    container.streams.drop_start_pipe(&self.epoll);
                }
            }
            Action::End => self.link.flush(),
            Action::StartInit(serial, id) => {
                let outcome = self.start_init(serial, &id);
                self.result(serial, ContainerInput::StartSent(outcome));
            }
            Action::WatchOutputs(serial)
            | Action::ReadStartPipe(serial)
            | Action::DropStartPipe(serial)
            | Action::KillCgroup(serial)
            | Action::CheckCgroup(serial, _)
            | Action::FinishOutputs(serial)
            | Action::ReopenLog { serial, .. }
            | Action::Attach { serial, .. }
            | Action::CloseStdin { serial, .. } => self.perform_on_container(serial, action, lifecycle),
        }
        None
    }

    fn perform_on_container(&mut self, serial: Serial, action: Action, lifecycle: &Lifecycle) {
        let Self { epoll, descriptors, buffers, incoming, attach_fd, from_daemon, .. } = self;
        let Some(container) = descriptors.container_mut(serial) else {
            // Not expected: a container has descriptors as long as it is checked. Without them it must not be checked
            // for ever.
            if let Action::CheckCgroup(..) = action {
                let state = CgroupState { empty: true, ..CgroupState::default() };
                self.result(serial, ContainerInput::CgroupChecked(state));
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
            Action::ReadStartPipe(_) => {
                let read = streams.read_start_pipe(epoll, true);
                self.result(serial, ContainerInput::StartPipe { error: read.error, closed: read.closed });
            }
            Action::DropStartPipe(_) => streams.drop_start_pipe(epoll),
            Action::KillCgroup(_) => processes::kill_cgroup(cgroups),
            Action::CheckCgroup(_, check) => {
                let state = check_cgroup(cgroups, check, lifecycle);
                self.result(serial, ContainerInput::CgroupChecked(state));
            }
            Action::ReopenLog { requester, .. } => {
                let reopened = match &mut from_daemon.log_folder {
                    Some(folder) => streams.reopen_log(folder),
                    None => Ok(()),
                };
                self.served(requester, reopened.map_err(|error| failure(ErrorKind::Internal, "log", &error)));
            }
            Action::Attach { requester, stdout, stderr, tell_loss, .. } => {
                let attached = streams.attach(std::mem::take(incoming), [stdout, stderr], tell_loss);
                let outcome = attached.map(|fd| *attach_fd = fd);
                self.served(requester, outcome);
            }
            Action::CloseStdin { requester, .. } => {
                streams.close_stdin();
                self.served(requester, Ok(()));
            }
            _ => {}
        }
    }

    // Results.

    fn result(&mut self, container: Serial, input: ContainerInput) {
        self.inputs.push_back(Input::Container(container, input));
    }

    fn served(&mut self, requester: Requester, outcome: Result<(), Failure>) {
        self.inputs.push_back(Input::Served { requester, outcome });
    }

    /// Closes the connection if sending, reading or decoding failed, for example because the daemon does not read.
    pub(crate) fn close_if_lost(&mut self, sent: Result<(), Lost>) {
        if let Err(lost) = sent
            && let Some(generation) = self.link.hang_up(&lost, &self.epoll)
        {
            self.inputs.push_back(Input::Disconnected(generation));
        }
    }

    /// Sends a warning about a container's log.
    pub(crate) fn warn(&mut self, serial: Serial, warning: Option<String>, lifecycle: &Lifecycle) {
        if let Some((text, id)) = warning.zip(lifecycle.container_id(serial)) {
            let sent = self.link.warn(id, text, &self.epoll);
            self.close_if_lost(sent);
        }
    }

    fn write_record(&mut self, serial: Serial, id: &ContainerId, facts: &ExitFacts) {
        let written = self.from_daemon.records.write(id, facts).map_err(|error| error.to_string());
        self.result(serial, ContainerInput::Recorded(written));
    }
}

fn check_cgroup(cgroups: &Cgroups, check: CgroupCheck, lifecycle: &Lifecycle) -> CgroupState {
    let init_over = check.init.is_some_and(|pid| processes::code_if_over(pid).is_some());
    let strays = check.strays && processes::kill_strays(|pid| lifecycle.knows(pid));
    let empty = processes::is_empty(cgroups, check.skip_unreapable);
    CgroupState { empty, oom_killed: empty && processes::was_oom_killed(cgroups), strays, init_over }
}
