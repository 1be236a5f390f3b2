//! Workers: their forks, their packets, and the processes that they create.

use std::os::fd::AsFd as _;

use model::ContainerId;
use sys::epoll::Interest;
use sys::namespace::Namespaces;
use wire::{ErrorKind, Failure, Reply};

use super::Performer;
use crate::create::Streams as Wanted;
use crate::descriptors::{Cgroups, Container};
use crate::failure::{failure, refusal};
use crate::io::output::LogFile;
use crate::lifecycle::{Fork, Happened, Input, Lifecycle, SIGKILL, Serial};
use crate::packet::{self, Packet};
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
            Fork::Pause => forks::pause(&fds, self.given.pause_binary.as_fd()),
            Fork::Exec { container } => {
                let namespaces = self.descriptors.namespaces(*container);
                let Some((container, namespaces)) = self.descriptors.container(*container).zip(namespaces)
                else {
                    return Err(refusal(
                        ErrorKind::Internal,
                        "exec",
                        "the container's namespaces are closed",
                    ));
                };
                forks::exec(&fds, &container.cgroups, namespaces)
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
                let wanted = Wanted { terminal: *terminal, stdin: *stdin };
                let forked = forks::container(&fds, wanted, pause, targets);
                let folders = fds.into_iter().skip(2).collect();
                let cgroups = Cgroups { folders, ..Cgroups::default() };
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

    fn open_log(&self, path: Option<&str>) -> Result<LogFile, Failure> {
        match (path, &self.given.log_dir) {
            (None, _) => Ok(LogFile::none()),
            (Some(path), Some(dir)) => LogFile::open(dir.as_fd(), path)
                .map_err(|error| failure(ErrorKind::Internal, &format!("log {path}"), &error)),
            (Some(path), None) => {
                Err(refusal(ErrorKind::Invalid, "log", format!("{path}: the pod has no log folder")))
            }
        }
    }

    /// Reads one packet of a worker. Returns false if there is none.
    pub(super) fn read_packet(&mut self, serial: Serial) -> bool {
        let Self { descriptors, buffers, epoll, .. } = self;
        let Some(worker) = descriptors.worker(serial).filter(|worker| !worker.closed) else { return false };
        let mut fds = Vec::new();
        let buffer = buffers.reading().get_mut(..packet::MAX_PACKET).unwrap_or_default();
        let packet = packet::recv(worker.socket.as_fd(), buffer, &mut fds);
        let input = match packet {
            Ok(None) => return false,
            Ok(Some(Packet::Made(pid))) => {
                worker.fd = fds.pop();
                Input::Made { serial, pid, is_child: processes::is_child(pid) }
            }
            Ok(Some(Packet::Prepared(prepared))) => {
                let outcome = descriptors.container_mut(serial).map_or(Ok(()), |container| {
                    let Cgroups { unified, memory, freezer, roams, .. } = &mut container.cgroups;
                    (*unified, *memory) = (prepared.unified, prepared.memory);
                    (*freezer, *roams) = (prepared.freezer, prepared.roams);
                    container.streams.prepared(fds)
                });
                Input::Of(serial, Happened::Prepared(outcome))
            }
            Ok(Some(Packet::Warning(text))) => Input::Of(serial, Happened::Warning(text)),
            Ok(Some(Packet::Reply(reply))) => match reply {
                Reply::Created { pid, .. } => {
                    Input::Created { serial, reply, pid, is_child: processes::is_child(pid) }
                }
                _ => {
                    let wrong = refusal(ErrorKind::Internal, "worker", "a packet of the wrong kind");
                    Input::Of(serial, Happened::Failed(wrong))
                }
            },
            Ok(Some(Packet::Failed(failure))) => Input::Of(serial, Happened::Failed(failure)),
            Ok(Some(Packet::End)) => {
                worker.closed = true;
                drop(epoll.remove(worker.socket.as_fd()));
                Input::Of(serial, Happened::Closed)
            }
            Err(error) => {
                worker.closed = true;
                drop(epoll.remove(worker.socket.as_fd()));
                let failure = failure(ErrorKind::Internal, "worker", &error);
                self.inputs.push_back(Input::Of(serial, Happened::Failed(failure)));
                Input::Of(serial, Happened::Closed)
            }
        };
        self.inputs.push_back(input);
        true
    }

    pub(super) fn drop_worker(&mut self, serial: Serial) {
        if let Some(worker) = self.descriptors.drop_worker(serial) {
            // The entry may have been removed at the worker's end.
            drop(self.epoll.remove(worker.socket.as_fd()));
        }
    }

    /// Opens the namespaces of a process before it is started, so that they are those it was created with.
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
        container.streams.watch_error_pipe(&self.epoll, serial).map_err(failed("epoll"))?;
        let started = bundle::start(id).map_err(failed("start"));
        if started.is_err() {
            container.streams.unwatch_error_pipe(&self.epoll);
        }
        started
    }
}
