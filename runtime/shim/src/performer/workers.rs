//! Workers: their forks, their packets, and the processes that they create.

use std::os::fd::AsFd as _;

use model::ContainerId;
use sys::epoll::Interest;
use sys::namespace::Namespaces;
use wire::{ErrorKind, Failure, Reply};

use super::Performer;
use crate::create::StreamRequest;
use crate::descriptors::{Cgroups, Container};
use crate::failure::{failure, refusal};
use crate::io::output::LogFile;
use crate::lifecycle::{ContainerInput, Fork, Input, Lifecycle, SIGKILL, Serial, WorkerInput};
use crate::packet::{self, Packet, Received};
use crate::streams::Streams;
use crate::tokens::Watched;
use crate::{bundle, forks, processes};

impl Performer {
    pub(super) fn fork(
        &mut self,
        serial: Serial,
        fork: &Fork,
        lifecycle: &Lifecycle,
    ) -> Result<u32, Failure> {
        let fds = std::mem::take(&mut self.incoming);
        let failed = |error| failure(ErrorKind::Internal, "fork", &error);
        let forked = match fork {
            Fork::Pause => forks::pause(&fds, self.from_daemon.pause_binary.as_fd()),
            Fork::Exec { container: of } => {
                let Some((container, namespaces)) = self.descriptors.for_exec(*of) else {
                    return Err(refusal(
                        ErrorKind::Internal,
                        "exec",
                        "the container's namespaces are closed",
                    ));
                };
                let unified = container.cgroups.unified;
                let joined = container.cgroups.joined();
                let joined = joined.map_err(|error| failure(ErrorKind::Internal, "cgroup", &error))?;
                forks::exec(&fds, joined, unified, namespaces, lifecycle.init(*of))
            }
            Fork::Container { log, terminal, stdin, pause } => {
                // First, because a log that cannot be opened is the most likely failure.
                let log = self.open_log(log.as_deref())?;
                let Some(pause) = self.descriptors.namespaces(*pause) else {
                    return Err(refusal(ErrorKind::Internal, "create", "pause's namespaces are closed"));
                };
                let targets = self.descriptors.all_namespaces();
                let targets =
                    targets.filter_map(|(serial, theirs)| Some((lifecycle.container_id(serial)?, theirs)));
                let streams = StreamRequest { terminal: *terminal, stdin: *stdin };
                let forked = forks::container(&fds, streams, pause, targets);
                let cgroups = Cgroups::new(fds.into_iter().skip(2).collect());
                let streams = Streams::new(log, *terminal);
                self.descriptors.add_container(Container { serial, cgroups, streams });
                forked
            }
        };
        let (pid, socket) = forked.map_err(failed)?;
        if let Err(error) = self.epoll.add(socket.as_fd(), Watched::Worker(serial).token(), Interest::READ) {
            drop(processes::signal(pid, SIGKILL));
            return Err(failure(ErrorKind::Internal, "epoll", &error));
        }
        self.descriptors.add_worker(serial, socket);
        Ok(pid)
    }

    fn open_log(&mut self, path: Option<&str>) -> Result<LogFile, Failure> {
        match (path, &mut self.from_daemon.log_folder) {
            (None, _) => Ok(LogFile::none()),
            (Some(path), Some(folder)) => LogFile::open(folder, path)
                .map_err(|error| failure(ErrorKind::Internal, &format!("log {path}"), &error)),
            (Some(path), None) => {
                Err(refusal(ErrorKind::Invalid, "log", format!("{path}: the pod has no log folder")))
            }
        }
    }

    /// Reads one packet of a worker. Returns false if there is none.
    pub(super) fn read_packet(&mut self, serial: Serial) -> bool {
        let Self { descriptors, buffers, .. } = self;
        let Some(worker) = descriptors.worker(serial).filter(|worker| !worker.closed) else { return false };
        let buffer = buffers.reading().get_mut(..packet::MAX_PACKET).unwrap_or_default();
        let received = packet::recv(worker.socket.as_fd(), buffer);
        match received {
            Ok(None) => return false,
            Ok(Some(received)) => self.packet(serial, received),
            Err(error) => {
                let failure = failure(ErrorKind::Internal, "worker", &error);
                self.inputs.push_back(Input::Worker(serial, WorkerInput::Failed(failure)));
                self.close_worker(serial);
            }
        }
        true
    }

    /// Turns a packet into inputs, and keeps its descriptors.
    fn packet(&mut self, serial: Serial, received: Received) {
        let Received { packet, fds, lost_fds } = received;
        let lost =
            || refusal(ErrorKind::Internal, "worker", "the shim has no free descriptor for what it sent");
        let input = match packet {
            Packet::Made(pid) => {
                let mut fds = fds.into_iter();
                let unreaped = processes::is_unreaped(fds.next(), pid);
                if let Some(worker) = self.descriptors.worker(serial) {
                    worker.fd = fds.next();
                }
                self.inputs.push_back(Input::Made { serial, pid, unreaped });
                if !lost_fds {
                    return;
                }
                Input::Worker(serial, WorkerInput::Failed(lost()))
            }
            Packet::Init => {
                if let Some(worker) = self.descriptors.worker(serial) {
                    worker.init = fds.into_iter().next();
                }
                return;
            }
            Packet::Streams(_) if lost_fds => {
                Input::Container(serial, ContainerInput::StreamsReceived(Err(lost())))
            }
            Packet::Streams(uses) => {
                let container = self.descriptors.container_mut(serial);
                let outcome = container.map_or(Ok(()), |container| container.receive(&uses, fds));
                Input::Container(serial, ContainerInput::StreamsReceived(outcome))
            }
            Packet::Warning(text) => Input::Worker(serial, WorkerInput::Warning(text)),
            Packet::Reply(reply) => match reply {
                Reply::Created { pid, .. } => {
                    let init = self.descriptors.worker(serial).and_then(|worker| worker.init.take());
                    Input::Created { serial, reply, pid, unreaped: processes::is_unreaped(init, pid) }
                }
                _ => {
                    let wrong = refusal(ErrorKind::Internal, "worker", "a packet of the wrong kind");
                    Input::Worker(serial, WorkerInput::Failed(wrong))
                }
            },
            Packet::Failed(failure) => Input::Worker(serial, WorkerInput::Failed(failure)),
            Packet::End => return self.close_worker(serial),
        };
        self.inputs.push_back(input);
    }

    /// Stops reading a worker's socket.
    fn close_worker(&mut self, serial: Serial) {
        let Self { descriptors, epoll, .. } = self;
        if let Some(worker) = descriptors.worker(serial) {
            worker.closed = true;
            drop(epoll.remove(worker.socket.as_fd()));
        }
        self.inputs.push_back(Input::Worker(serial, WorkerInput::Closed));
    }

    pub(super) fn drop_worker(&mut self, serial: Serial) {
        if let Some(worker) = self.descriptors.drop_worker(serial) {
            // The entry may have been removed at the worker's end.
            drop(self.epoll.remove(worker.socket.as_fd()));
        }
    }

    /// Opens the namespaces of pause, or of an init that waits: no program of the container has run in it that could have
    /// changed them. Also receives a container's terminal.
    pub(super) fn adopt(&mut self, serial: Serial, pid: Option<u32>) -> Result<(), Failure> {
        if let Some(pid) = pid {
            let failed = |error| failure(ErrorKind::Internal, &format!("namespaces of {pid}"), &error);
            self.descriptors.add_namespaces(serial, Namespaces::of(pid).map_err(failed)?);
        }
        match self.descriptors.container_mut(serial) {
            Some(container) => container.streams.take_terminal(),
            None => Ok(()),
        }
    }

    /// Starts init, which waits. If that fails, it can be tried again.
    pub(super) fn start_init(&mut self, serial: Serial, id: &ContainerId) -> Result<(), Failure> {
        let failed = |stage| move |error| failure(ErrorKind::Internal, stage, &error);
        let Some(container) = self.descriptors.container(serial) else { return Ok(()) };
        // First, because a failure after init was told to start would be reported for a container that runs.
        container.streams.watch_start_pipe(&self.epoll, serial).map_err(failed("epoll"))?;
        let started = bundle::start(id).map_err(failed("start"));
        if started.is_err() {
            container.streams.unwatch_start_pipe(&self.epoll);
        }
        started
    }
}
