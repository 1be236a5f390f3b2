//! Requests of the daemon, and whether they are allowed now.

use model::{ContainerId, ExecId};
use wire::{ErrorKind, MAX_CONTAINERS, Reply, Request};

use super::action::{Action, Fork};
use super::checks::KILLED_MS;
use super::container::Container;
use super::exec::{Exec, ExecRequest};
use super::id::{Requester, Serial};
use super::input::{ContainerInput, ExecInput, PauseInput};
use super::pause::Pause;
use super::phase::Phase;
use super::pod::{Lifecycle, MAX_EXECS, MAX_LEFTOVERS, Stop};
use super::worker::KILL_AGAIN_MS;

impl Lifecycle {
    /// Carries out or refuses a request.
    #[expect(clippy::too_many_lines, reason = "one match over all requests")]
    pub(super) fn request(&mut self, requester: Requester, request: Request, fds: usize) {
        match request {
            Request::StartPause => self.start_pause(requester),
            Request::Create { container, deadline_ms, log, terminal, stdin } => {
                if let Some(pause) = self.may_create(requester, &container) {
                    let serial = self.next_serial();
                    let fork = Fork::Container { log: log.map(|log| log.path), terminal, stdin, pause };
                    let created =
                        Container::create(container, serial, requester, deadline_ms, fork, &mut self.cx);
                    self.containers.push(created);
                }
            }
            Request::Exec { exec, container, deadline_ms } => {
                self.exec(requester, exec, &container, deadline_ms, fds);
            }
            Request::Start { container } => {
                self.container_request(requester, &container, ContainerInput::Start(requester));
            }
            Request::Kill { container, signal, all } => {
                self.container_request(
                    requester,
                    &container,
                    ContainerInput::Kill { requester, signal, all },
                );
            }
            Request::ReopenLog { container } => {
                self.container_request(requester, &container, ContainerInput::ReopenLog(requester));
            }
            Request::Attach { stdout, stderr, .. }
                if fds != 1 + usize::from(stdout) + usize::from(stderr) =>
            {
                let message = "a pipe for the end, and one for each wanted output, are expected";
                self.cx.refuse(requester, ErrorKind::Invalid, "attach", message);
            }
            Request::Attach { container, stdout, stderr, tell_loss } => {
                let input = ContainerInput::Attach { requester, stdout, stderr, tell_loss };
                self.container_request(requester, &container, input);
            }
            Request::CloseStdin { container } => {
                self.container_request(requester, &container, ContainerInput::CloseStdin(requester));
            }
            Request::Forget { container } if self.container_serial(&container).is_none() => {
                self.cx.act(Action::RemoveRecord { requester, container });
            }
            Request::Forget { container } => {
                self.container_request(requester, &container, ContainerInput::Forget(requester));
            }
            Request::KillExec { exec } => self.kill_exec(requester, exec),
            Request::StopPod => self.stop_pod(requester),
            Request::Shutdown if self.lives() => {
                self.cx.refuse(requester, ErrorKind::Busy, "shutdown", "processes of the pod are running");
            }
            Request::Shutdown => {
                self.cx.reply(requester, Reply::Done);
                self.end();
            }
            Request::Unknown => self.cx.refuse(
                requester,
                ErrorKind::Unsupported,
                "request",
                "this shim does not support the request or its descriptors: the pod must be recreated",
            ),
        }
    }

    fn next_serial(&mut self) -> Serial {
        self.last_serial = self.last_serial.wrapping_add(1);
        Serial(self.last_serial)
    }

    fn container_request(&mut self, requester: Requester, id: &ContainerId, input: ContainerInput) {
        match self.container_serial(id) {
            Some(serial) => self.container_input(serial, input),
            None => {
                self.cx.refuse(requester, ErrorKind::NotFound, "container", format!("no container {id}"));
            }
        }
    }

    fn start_pause(&mut self, requester: Requester) {
        if self.pause != Pause::None || self.stop != Stop::No {
            let message = "pause was started, or the pod is being stopped";
            return self.cx.refuse(requester, ErrorKind::WrongState, "pause", message);
        }
        let serial = self.next_serial();
        self.pause.start(serial, requester, &mut self.cx);
    }

    /// Pause's serial, if a container may be created.
    fn may_create(&mut self, requester: Requester, id: &ContainerId) -> Option<Serial> {
        let (kind, message) = match self.pause.running() {
            Some(_) if self.container_serial(id).is_some() => {
                (ErrorKind::WrongState, format!("container {id} exists"))
            }
            Some(_) if self.containers.len() >= MAX_CONTAINERS => (
                ErrorKind::Exhausted,
                format!("the pod has {MAX_CONTAINERS} containers, exited ones included: remove some first"),
            ),
            Some(serial) if self.stop == Stop::No => return Some(serial),
            _ => (ErrorKind::WrongState, "pause is not running, or the pod is being stopped".to_owned()),
        };
        self.cx.refuse(requester, kind, "create", message);
        None
    }

    fn exec(
        &mut self,
        requester: Requester,
        id: ExecId,
        container_id: &ContainerId,
        deadline_ms: Option<u64>,
        fds: usize,
    ) {
        let listed = self.execs.iter().filter(|exec| exec.is_listed()).count();
        let same =
            |exec: &&Exec| exec.is_listed() && exec.id == id && exec.generation == requester.generation;
        let container = self.containers.iter().find(|container| container.id == *container_id);
        let (kind, stage, message) = if fds != 1 && fds != 4 {
            (ErrorKind::Invalid, "exec", "a plan, and three streams or none, are expected".to_owned())
        } else if self.execs.iter().any(|exec| same(&exec)) {
            (ErrorKind::WrongState, "exec", format!("exec {} exists", id.0))
        } else if listed >= MAX_EXECS {
            let message = format!("{MAX_EXECS} execs are running in the pod: some must end first");
            (ErrorKind::Exhausted, "exec", message)
        } else if self.execs.len() - listed >= MAX_LEFTOVERS {
            let message = format!(
                "{MAX_LEFTOVERS} processes of failed execs cannot be killed: a container has frozen itself, or \
                 they hang in the kernel"
            );
            (ErrorKind::Exhausted, "exec", message)
        } else {
            match container {
                Some(_) if self.stop != Stop::No => {
                    (ErrorKind::WrongState, "exec", "the pod is being stopped".to_owned())
                }
                None => (ErrorKind::NotFound, "container", format!("no container {container_id}")),
                Some(Container { phase: Phase::Running { .. }, serial, .. }) => {
                    let (container, container_id) = (*serial, container_id.clone());
                    let wanted = ExecRequest { id, requester, container, container_id, deadline_ms };
                    let serial = self.next_serial();
                    self.execs.push(Exec::start(serial, wanted, &mut self.cx));
                    return;
                }
                Some(_) => {
                    (ErrorKind::WrongState, "exec", format!("container {container_id} is not running"))
                }
            }
        };
        self.cx.refuse(requester, kind, stage, message);
    }

    fn kill_exec(&mut self, requester: Requester, id: ExecId) {
        // Execs of this connection first; the daemon knows those of an earlier one by the id in the snapshot.
        let find = |own: bool| {
            let mut listed = self.execs.iter().filter(|exec| exec.is_listed() && exec.id == id);
            listed.find(|exec| !own || exec.generation == requester.generation).map(|exec| exec.serial)
        };
        match find(true).or_else(|| find(false)) {
            Some(serial) => self.exec_input(serial, ExecInput::KillSession(requester)),
            None => self.cx.reply(requester, Reply::Done),
        }
    }

    fn stop_pod(&mut self, requester: Requester) {
        // A second request replaces the first, whose daemon has gone or timed out.
        if let Stop::Stopping { requester: first, .. } = self.stop {
            self.cx.refuse(
                first,
                ErrorKind::Busy,
                "stop",
                "a later request to stop the pod replaced this one",
            );
        }
        let now = self.cx.time.ms;
        self.stop = Stop::Stopping { requester, check_at: now + KILLED_MS, kill_at: now + KILL_AGAIN_MS };
        for container in &mut self.containers {
            container.on(ContainerInput::Stop, &mut self.cx);
        }
        let execs: Vec<Serial> = self.execs.iter().map(|exec| exec.serial).collect();
        for serial in execs {
            self.exec_input(serial, ExecInput::Stop);
        }
        self.pause.on(PauseInput::Stop, &mut self.cx);
    }
}
