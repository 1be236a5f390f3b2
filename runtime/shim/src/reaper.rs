//! Reaping whatever ends, and seeing to it that nothing of what ended is left.
//!
//! All children are waited for, not only known ones: orphans of containers that use the host's PID namespace
//! and libcontainer's intermediate processes come to the shim as subreaper.

use wire::{ErrorKind, Event, Failure, Reply};

use crate::container;
use crate::event_loop::Shim;
use crate::job::{self, Kind};
use crate::table::{Container, Phase};

/// Most children remembered that ended before anybody knew of them.
const MAX_STRANGERS: usize = 128;
/// First and longest pause between two looks at a cgroup or session that is being killed.
const FIRST_LOOK_MS: u64 = 1;
const LAST_LOOK_MS: u64 = 256;
/// A code for a process that nobody could wait for.
const LOST: i32 = 255;
/// Code of a container that could not be started.
const START_FAILED: i32 = 128;

/// By kernel number, the same on all architectures.
pub(crate) const SIGKILL: i32 = 9;

/// Children that were reaped while a worker was about to report a pid: the process it made may end first.
#[derive(Debug, Default)]
pub(crate) struct Strangers(Vec<(u32, i32)>);

impl Strangers {
    fn remember(&mut self, pid: u32, code: i32) {
        if self.0.len() >= MAX_STRANGERS {
            self.0.remove(0);
        }
        self.0.push((pid, code));
    }

    /// How a process ended that was only now heard of.
    pub(crate) fn take(&mut self, pid: u32) -> Option<i32> {
        let place = self.0.iter().position(|(known, _)| *known == pid)?;
        Some(self.0.swap_remove(place).1)
    }
}

impl Shim {
    /// Reaps everything that has ended.
    pub(crate) fn reap(&mut self) {
        // First what workers have said, so that fewer children are strangers.
        let serials: Vec<u32> = self.jobs.iter().map(|job| job.serial).collect();
        for serial in serials {
            self.hear(serial);
        }
        while let Ok(Some(ended)) = sys::proc::reap() {
            self.ended(ended.pid, ended.code);
        }
        if self.jobs.is_empty() {
            self.strangers = Strangers::default();
        }
        self.check_stopped();
    }

    fn ended(&mut self, pid: u32, code: i32) {
        if let Some(pause) = self.pause.as_mut().filter(|pause| pause.pid == pid && pause.exited.is_none()) {
            pause.exited = Some(code);
            pause.namespaces = sys::namespace::Namespaces::default();
            self.event(Event::PauseExited { code });
        } else if let Some(place) = self.containers.iter().position(|c| c.pid == pid && c.alive) {
            self.init_ended(place, code);
        } else if let Some(exec) = self.execs.iter_mut().find(|exec| exec.pid == pid && exec.code.is_none()) {
            exec.code = Some(code);
            self.exec_ended();
        } else if let Some(job) = self.jobs.iter_mut().find(|job| job.worker == pid) {
            job.worker = 0;
            let serial = job.serial;
            self.worker_ended(serial, code);
        } else if !self.jobs.is_empty() {
            self.strangers.remember(pid, code);
        }
    }

    /// Tells of execs that have ended, once their start was answered and nobody kills their session.
    pub(crate) fn exec_ended(&mut self) {
        while let Some(place) =
            self.execs.iter().position(|e| e.answered && e.code.is_some() && e.killing.is_none())
        {
            let exec = self.execs.swap_remove(place);
            self.event(Event::ExecExited { exec: exec.id, code: exec.code.unwrap_or(LOST) });
        }
    }

    /// Init of a container was reaped.
    pub(crate) fn init_ended(&mut self, place: usize, code: i32) {
        // What it said before it ended, while its streams are still known.
        self.hear_exec_error(place);
        let Some(container) = self.containers.get_mut(place) else { return };
        container.alive = false;
        container.namespaces = None;
        container.facts.code = code;
        container.facts.finished_at = sys::proc::now();
        if let Phase::Starting(asker) = container.phase {
            let failure = Failure {
                kind: ErrorKind::StartFailed,
                stage: "start".to_owned(),
                message: container
                    .facts
                    .start_error
                    .clone()
                    .unwrap_or_else(|| "init ended before execve".into()),
                errno: 0,
            };
            container.facts.code = START_FAILED;
            container.facts.start_error = Some(failure.message.clone());
            container.answer_at_end = Some((asker, failure));
        }
        if !matches!(container.phase, Phase::Undoing(_) | Phase::Creating) {
            container.phase = Phase::Ending;
        }
        if !matches!(container.phase, Phase::Creating) {
            container.looks = 0;
            self.look_at(place);
        }
    }

    /// Looks whether a container that ends has left anything, kills it, and finishes when it has not.
    pub(crate) fn look_at(&mut self, place: usize) {
        let busy = self.jobs.iter().any(|job| job.kind != Kind::Pause);
        let Some(container) = self.containers.get_mut(place) else { return };
        if !matches!(container.phase, Phase::Ending | Phase::Undoing(_)) {
            return;
        }
        let undoing = matches!(container.phase, Phase::Undoing(_));
        let strays = if undoing && !busy { self.kill_strays() } else { 0 };
        let Some(container) = self.containers.get_mut(place) else { return };
        if container.alive {
            kill(container.pid, SIGKILL);
        }
        if container.alive || strays > 0 || !is_empty(container) {
            kill_cgroup(container);
            let wait = (FIRST_LOOK_MS << container.looks.min(16)).min(LAST_LOOK_MS);
            container.looks = container.looks.saturating_add(1);
            container.look_again = Some(sys::proc::monotonic_ms() + wait);
            return;
        }
        container.look_again = None;
        self.finish(place);
    }

    /// Nothing of it is left: log, record, event, in this order.
    fn finish(&mut self, place: usize) {
        self.finish_outputs(place);
        let Some(container) = self.containers.get_mut(place) else { return };
        container::forget(&container.id);
        if let Phase::Undoing(failed) = &mut container.phase {
            let failed = failed.take();
            drop(self.containers.swap_remove(place));
            if let Some((asker, failure)) = failed {
                self.reply(asker, Reply::Failed(failure), Vec::new());
            }
        } else {
            container.facts.oom_killed = was_oom_killed(container);
            container.phase = Phase::Exited;
            // What is needed no longer: a dead container is a few hundred bytes until it is forgotten.
            container.cgroups.folders = Vec::new();
            container.exec_error = None;
            container.log = crate::io::output::LogFile::none();
            let (id, facts) = (container.id.clone(), container.facts.clone());
            let answer = container.answer_at_end.take();
            if let Err(error) = self.start.records.write(&id, &facts) {
                self.warn(Some(&id), format!("exit record: {error}"));
            }
            if let Some((asker, failure)) = answer {
                self.reply(asker, Reply::Failed(failure), Vec::new());
            }
            self.event(Event::Exited { container: id, facts });
        }
        self.check_stopped();
    }

    /// What timers are for: deadlines of workers, cgroups and sessions that are being killed.
    pub(crate) fn tick(&mut self) {
        let now = sys::proc::monotonic_ms();
        self.listen(now);
        while let Some(place) = self.containers.iter().position(|c| c.look_again.is_some_and(|at| at <= now))
        {
            if let Some(container) = self.containers.get_mut(place) {
                container.look_again = None;
            }
            self.look_at(place);
        }
        while let Some(serial) = self.jobs.iter().find(|job| job.deadline <= now).map(|job| job.serial) {
            self.late(serial, now);
        }
        let killed: Vec<_> = self
            .execs
            .iter()
            .filter(|exec| exec.killing.is_some_and(|killing| killing.look_again <= now))
            .map(|exec| (exec.id, exec.generation))
            .collect();
        for (id, generation) in killed {
            self.kill_session(id, generation, now);
        }
    }

    /// Kills a session's processes; answers when none is left.
    pub(crate) fn kill_session(&mut self, id: model::ExecId, generation: u32, now: u64) {
        let Some(exec) = self.execs.iter_mut().find(|e| e.id == id && e.generation == generation) else {
            return;
        };
        let Some(killing) = &mut exec.killing else { return };
        let session = exec.pid;
        if exec.code.is_none() {
            kill(exec.pid, SIGKILL);
        }
        let mut left = u32::from(exec.code.is_none());
        if let Some(container) = self.containers.iter().find(|c| c.id == exec.container)
            && let Some(folder) = container.cgroups.procs_folder()
        {
            // A folder that is gone has nobody in it.
            drop(sys::cgroup::processes(folder, |pid| {
                let Ok(fd) = sys::pidfd::open(pid) else { return };
                // After the descriptor was had: what is read now is of that process, or it has ended.
                let of_it =
                    sys::proc::stat(pid).is_ok_and(|stat| stat.session == session && stat.state != 'Z');
                if of_it {
                    left += 1;
                    drop(sys::pidfd::send_signal(std::os::fd::AsFd::as_fd(&fd), SIGKILL));
                }
            }));
        }
        if left > 0 && now < killing.until {
            killing.look_again = now + 2;
            return;
        }
        let asker = killing.asker;
        exec.killing = None;
        let reply = if left == 0 {
            Reply::Done
        } else {
            let message = format!("{left} processes of the session do not end");
            Reply::Failed(job::refusal(ErrorKind::Timeout, "kill", message))
        };
        self.reply(asker, reply, Vec::new());
        self.exec_ended();
    }

    /// Kills children that belong to nothing known: what a worker left that was stopped half-way. Returns how
    /// many there are, one if that cannot be said now. Only for when no other worker is at work, whose
    /// children they might be.
    ///
    /// Only those in the shim's own cgroup: what was made after the worker had joined the container's goes with
    /// that, and what is in another container's is an orphan of it, which lives on.
    fn kill_strays(&self) -> usize {
        let known = |pid: u32| {
            self.pause.as_ref().is_some_and(|pause| pause.pid == pid)
                || self.containers.iter().any(|c| c.pid == pid && c.alive)
                || self.execs.iter().any(|exec| exec.pid == pid)
                || self.jobs.iter().any(|job| job.worker == pid)
        };
        let children = match sys::proc::children() {
            Ok(children) => children,
            // A kernel that has no such list.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return 0,
            Err(_) => return 1,
        };
        let strange: Vec<u32> = children.into_iter().filter(|pid| !known(*pid)).collect();
        if strange.is_empty() {
            return 0;
        }
        let Ok(own) = sys::proc::cgroups(std::process::id()) else { return 1 };
        let mut count = 0;
        for pid in strange {
            let ended = sys::proc::stat(pid).is_ok_and(|stat| stat.state == 'Z');
            if ended {
                continue;
            }
            match sys::proc::cgroups(pid) {
                Ok(of_it) if of_it == own => {
                    count += 1;
                    kill(pid, SIGKILL);
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(_) => count += 1,
            }
        }
        count
    }
}

/// Signals a child that was not reaped, so its number is its own.
pub(crate) fn kill(pid: u32, signal: i32) {
    if pid == 0 {
        return;
    }
    if let Ok(fd) = sys::pidfd::open(pid) {
        // It may have ended meanwhile, which is as good.
        drop(sys::pidfd::send_signal(std::os::fd::AsFd::as_fd(&fd), signal));
    }
}

/// SIGKILL to all in a container's cgroup. Errors show by its not getting empty.
pub(crate) fn kill_cgroup(container: &Container) {
    if let Some(folder) = container.cgroups.procs_folder() {
        drop(sys::cgroup::kill_all(folder, container.cgroups.unified));
    }
}

fn is_empty(container: &Container) -> bool {
    // What cannot be read now (out of descriptors) is looked at again.
    container.cgroups.procs_folder().is_none_or(|folder| sys::cgroup::is_empty(folder).unwrap_or(false))
}

pub(crate) fn was_oom_killed(container: &Container) -> bool {
    let file = if container.cgroups.unified { "memory.events" } else { "memory.oom_control" };
    container
        .cgroups
        .memory_folder()
        .is_some_and(|folder| sys::cgroup::flat_key(folder, file, "oom_kill").is_ok_and(|count| count > 0))
}
