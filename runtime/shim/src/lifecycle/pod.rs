//! The pod: its objects, and the dispatch of inputs.

use model::ContainerId;
use wire::{Reply, Snapshot};

use super::action::{Action, Session};
use super::checks::KILLED_MS;
use super::container::Container;
use super::context::{Context, Time};
use super::exec::Exec;
use super::id::{Requester, Serial};
use super::input::{ContainerInput, ExecInput, Input, PauseInput, WorkerInput};
use super::pause::Pause;
use super::phase::Phase;
use super::worker::{KILL_AGAIN_MS, ReapedEarly};

/// Maximum number of concurrent execs.
pub(crate) const MAX_EXECS: usize = 1024;
/// Maximum number of finished execs with a process that cannot be killed: it is in a frozen cgroup, or hangs in the
/// kernel.
pub(crate) const MAX_LEFTOVERS: usize = 256;

/// The whole state of the shim without descriptors. The tables are lists, not maps: they are short, and their memory
/// can be given back.
#[derive(Debug, Default)]
pub(crate) struct Lifecycle {
    pub(crate) pause: Pause,
    pub(crate) containers: Vec<Container>,
    pub(crate) execs: Vec<Exec>,
    pub(crate) stop: Stop,
    early: ReapedEarly,
    pub(super) last_serial: u32,
    /// SIGTERM was received: exit when no process of the pod is left. A host shutdown sends it to all
    /// processes.
    terminated: bool,
    ended: bool,
    pub(crate) cx: Context,
}

/// The state of stopping the pod.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Not requested.
    #[default]
    No,
    /// The pod is being stopped. At the time `check_at` (monotonic ms) pause and execs that are not reaped are
    /// checked: a tracer may keep them from being reaped. At `kill_at` containers whose init still lives are killed
    /// again: a kill may have had no effect, for lack of a descriptor.
    Stopping { requester: Requester, check_at: u64, kill_at: u64 },
    /// No process is left: exit when the daemon disconnects.
    Stopped,
}

impl Lifecycle {
    /// Handles an input and adds the resulting actions ([`Self::next_action`]).
    pub(crate) fn input(&mut self, time: Time, input: Input) {
        if self.ended {
            // The shim exits: a request or signal that arrived meanwhile must not start anything.
            return;
        }
        self.cx.time = time;
        self.cx.others_work = self.is_busy(None);
        match input {
            Input::Connected(generation) => {
                self.cx.connection = Some(generation);
                self.cx.act(Action::Greet);
            }
            Input::Disconnected(generation) => {
                if self.cx.connection == Some(generation) {
                    self.cx.connection = None;
                    if self.stop == Stop::Stopped {
                        self.end();
                    }
                }
            }
            Input::Request { requester, request, fds } => self.request(requester, request, fds),
            Input::Terminated => self.terminated = true,
            Input::Reaped { pid, code, executed } => self.reaped(pid, code, executed),
            Input::TimerDue => self.timer_due(),
            Input::Served { requester, outcome } => match outcome {
                Ok(()) => self.cx.reply(requester, Reply::Done),
                Err(failure) => self.cx.fail(requester, failure),
            },
            Input::Worker(serial, input) => self.worker_input(serial, input),
            Input::Made { serial, pid, unreaped } => self.made(serial, pid, unreaped),
            Input::Created { serial, reply, pid, unreaped } => {
                let ended = (!unreaped).then(|| self.early.take(pid));
                self.container_input(serial, ContainerInput::Created { reply, pid, ended });
            }
            Input::Adopted(serial, outcome) if self.is_pause(serial) => {
                self.pause.on(PauseInput::Adopted(outcome), &mut self.cx);
            }
            Input::Adopted(serial, outcome) => {
                self.container_input(serial, ContainerInput::Adopted(outcome));
            }
            Input::ProcessChecked(serial, code) if self.is_pause(serial) => {
                self.pause.on(PauseInput::Checked(code), &mut self.cx);
            }
            Input::ProcessChecked(serial, code) => self.exec_input(serial, ExecInput::Checked(code)),
            Input::Container(serial, input) => self.container_input(serial, input),
            Input::Exec(serial, input) => self.exec_input(serial, input),
        }
        self.tidy();
    }

    /// The next action.
    pub(crate) fn next_action(&mut self) -> Option<Action> {
        self.cx.actions.pop_front()
    }

    /// Puts an action before all others.
    pub(crate) fn act_first(&mut self, action: Action) {
        self.cx.actions.push_front(action);
    }

    /// Frees the capacity of the action queue beyond this number of entries.
    pub(crate) fn shrink(&mut self, keep: usize) {
        if self.cx.actions.capacity() > keep {
            self.cx.actions.shrink_to(keep);
        }
    }

    /// The id of the container with this serial.
    pub(crate) fn container_id(&self, serial: Serial) -> Option<&ContainerId> {
        self.containers.iter().find(|container| container.serial == serial).map(|container| &container.id)
    }

    /// The pid of the init of the container with this serial; 0 if it has none.
    pub(crate) fn init(&self, serial: Serial) -> u32 {
        self.containers.iter().find(|container| container.serial == serial).map_or(0, |of| of.phase.pid())
    }

    /// The serial of the container with this id.
    pub(crate) fn container_serial(&self, id: &ContainerId) -> Option<Serial> {
        self.containers.iter().find(|container| container.id == *id).map(|container| container.serial)
    }

    /// When [`Input::TimerDue`] is due (monotonic ms).
    pub(crate) fn timer(&self) -> Option<u64> {
        let containers = self.containers.iter().filter_map(|container| container.phase.timer());
        let stop = match self.stop {
            Stop::Stopping { check_at, kill_at, .. } => Some(check_at.min(kill_at)),
            Stop::No | Stop::Stopped => None,
        };
        let execs = self.execs.iter().filter_map(Exec::timer);
        containers.chain(execs).chain(self.pause.timer()).chain(stop).min()
    }

    /// The snapshot for a daemon that connects.
    pub(crate) fn snapshot(&self) -> impl Iterator<Item = Snapshot> {
        let containers = self.containers.iter().map(Container::snapshot);
        let execs = self.execs.iter().filter(|exec| exec.is_listed()).map(Exec::snapshot);
        self.pause.snapshot().into_iter().chain(containers).chain(execs)
    }

    /// Whether a process of the pod is left.
    pub(crate) fn lives(&self) -> bool {
        self.pause.lives()
            || self.containers.iter().any(|c| !matches!(c.phase, Phase::Exited { .. }))
            || self.execs.iter().any(Exec::lives)
    }

    /// Whether this child, which is not reaped, belongs to pause, a container or an exec.
    pub(crate) fn knows(&self, pid: u32) -> bool {
        self.pause.reaped(pid, 0).is_some()
            || self.containers.iter().any(|c| c.reaped(pid, 0, None).is_some())
            || self.execs.iter().any(|exec| exec.reaped(pid, 0).is_some())
    }

    /// Whether this child is an init that was told to start. Then the caller finds out whether it has called execve, before
    /// it is reaped.
    pub(crate) fn is_starting(&self, pid: u32) -> bool {
        self.containers.iter().any(|c| matches!(&c.phase, Phase::Starting { init, .. } if init.pid == pid))
    }

    fn is_pause(&self, serial: Serial) -> bool {
        self.pause.serial() == Some(serial)
    }

    /// A worker has created pause or the process of an exec.
    fn made(&mut self, serial: Serial, pid: u32, unreaped: bool) {
        let ended = (!unreaped).then(|| self.early.take(pid));
        if self.is_pause(serial) {
            self.pause.on(PauseInput::Made { pid, ended }, &mut self.cx);
        } else {
            self.exec_input(serial, ExecInput::Made { pid, ended });
        }
    }

    fn worker_input(&mut self, serial: Serial, input: WorkerInput) {
        if self.is_pause(serial) {
            self.pause.on(PauseInput::Worker(input), &mut self.cx);
        } else if self.containers.iter().any(|container| container.serial == serial) {
            self.container_input(serial, ContainerInput::Worker(input));
        } else {
            self.exec_input(serial, ExecInput::Worker(input));
        }
    }

    pub(super) fn container_input(&mut self, serial: Serial, input: ContainerInput) {
        self.cx.others_work = self.is_busy(Some(serial));
        let Some(container) = self.containers.iter_mut().find(|c| c.serial == serial) else { return };
        let ran = matches!(container.phase, Phase::Running { .. });
        let earlier = self.cx.actions.len();
        container.on(input, &mut self.cx);
        if ran && !matches!(container.phase, Phase::Running { .. }) {
            // Before the cgroup is checked: no worker may join it after it was found empty.
            let end = self.cx.actions.split_off(earlier);
            for exec in self.execs.iter_mut().filter(|exec| exec.container == serial) {
                exec.on(ExecInput::ContainerEnded, false, &mut self.cx);
            }
            self.cx.actions.extend(end);
        }
    }

    pub(super) fn exec_input(&mut self, serial: Serial, input: ExecInput) {
        let Some(exec) = self.execs.iter_mut().find(|exec| exec.serial == serial) else { return };
        let is_up = self.containers.iter().any(|c| c.serial == exec.container && c.phase.is_up());
        exec.on(input, is_up, &mut self.cx);
    }

    fn reaped(&mut self, pid: u32, code: i32, executed: Option<bool>) {
        if let Some(input) = self.pause.reaped(pid, code) {
            return self.pause.on(input, &mut self.cx);
        }
        let container = self.containers.iter().find_map(|c| Some((c.serial, c.reaped(pid, code, executed)?)));
        if let Some((serial, input)) = container {
            return self.container_input(serial, input);
        }
        let exec = self.execs.iter().find_map(|exec| Some((exec.serial, exec.reaped(pid, code)?)));
        match exec {
            Some((serial, input)) => self.exec_input(serial, input),
            None if self.is_busy(None) || self.pause.is_starting() => self.early.remember(pid, code),
            None => {}
        }
    }

    /// Whether a worker of a container or an exec is running, except that of `besides`.
    fn is_busy(&self, besides: Option<Serial>) -> bool {
        let other = |serial| besides != Some(serial);
        self.containers.iter().any(|c| matches!(c.phase, Phase::Creating(_)) && other(c.serial))
            || self.execs.iter().any(|exec| exec.is_starting() && other(exec.serial))
    }

    fn timer_due(&mut self) {
        let now = self.cx.time.ms;
        if self.pause.timer().is_some_and(|at| at <= now) {
            self.pause.on(PauseInput::Due, &mut self.cx);
        }
        for container in &mut self.containers {
            if container.phase.timer().is_some_and(|at| at <= now) {
                container.on(ContainerInput::Due, &mut self.cx);
            }
        }
        let due: Vec<Serial> = self.execs.iter().filter(|e| is_due(e, now)).map(|e| e.serial).collect();
        for serial in due {
            self.exec_input(serial, ExecInput::Due);
        }
        self.kill_sessions(now);
        self.continue_stop(now);
    }

    /// The sessions of one container are killed together, so that its processes are listed once.
    fn kill_sessions(&mut self, now: u64) {
        let mut due: Vec<(Serial, Session)> =
            self.execs.iter().filter_map(|exec| Some((exec.container, exec.session_due(now)?))).collect();
        due.sort_unstable_by_key(|(container, _)| *container);
        for group in due.chunk_by(|(one, _), (other, _)| one == other) {
            let Some((container, _)) = group.first() else { continue };
            let sessions = group.iter().map(|(_, session)| *session).collect();
            self.cx.act(Action::KillSessions { container: *container, sessions });
        }
    }

    /// Repeats the kills and checks of [`Stop::Stopping`].
    fn continue_stop(&mut self, now: u64) {
        let Stop::Stopping { check_at, kill_at, .. } = &mut self.stop else { return };
        if *kill_at <= now {
            *kill_at = now + KILL_AGAIN_MS;
            for container in self.containers.iter_mut().filter(|c| c.phase.has_init()) {
                container.on(ContainerInput::Stop, &mut self.cx);
            }
        }
        if *check_at > now {
            return;
        }
        *check_at = now + KILLED_MS;
        if let Pause::Running { serial, pid } = self.pause {
            self.cx.act(Action::CheckProcess(serial, pid));
        }
        for exec in &self.execs {
            if let Some(pid) = exec.unreaped() {
                self.cx.act(Action::CheckProcess(exec.serial, pid));
            }
        }
    }

    /// After each input: removes ended objects from the tables, and replies to the request that stops the
    /// pod.
    fn tidy(&mut self) {
        let before = self.containers.len();
        self.containers.retain(|container| container.phase != Phase::Gone);
        if self.containers.len() < before {
            self.containers.shrink_to_fit();
        }
        let cx = &mut self.cx;
        self.execs.retain(|exec| {
            let stays = exec.phase != super::exec::Phase::Gone;
            if !stays {
                cx.act(Action::Release(exec.serial));
            }
            stays
        });
        if self.execs.is_empty() && self.execs.capacity() > 16 {
            self.execs = Vec::new();
        }
        if !self.early.is_empty() && !self.is_busy(None) && !self.pause.is_starting() {
            self.early.clear();
        }
        if let Stop::Stopping { requester, .. } = self.stop
            && !self.lives()
        {
            self.stop = Stop::Stopped;
            self.cx.reply(requester, Reply::Done);
        }
        if self.terminated && !self.lives() {
            self.end();
        }
    }

    pub(super) fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.cx.act(Action::End);
        }
    }
}

fn is_due(exec: &Exec, now: u64) -> bool {
    exec.timer().is_some_and(|at| at <= now)
}
