//! Reaping whatever ends, and seeing to it that nothing of what ended is left.
//!
//! All children are waited for, not only known ones: orphans of containers that use the host's PID namespace
//! and libcontainer's intermediate processes come to the shim as subreaper.

use wire::{ErrorKind, Event, Failure, Reply};

use crate::container;
use crate::event_loop::{Shim, take_start_error};
use crate::job::{self, Kind};
use crate::server::KILL_SESSION_MS;
use crate::table::{Asker, Container, Exec, Killing, Phase};

/// Most children remembered that ended before anybody knew of them: 32 KiB, while a worker is at work only.
const MAX_STRANGERS: usize = 4096;
/// First and longest pause between two looks at a cgroup or session that is being killed.
const FIRST_LOOK_MS: u64 = 1;
const LAST_LOOK_MS: u64 = 256;
/// Pause between two looks at an init that is to call execve.
pub(crate) const START_LOOK_MS: u64 = 250;
/// After so many looks (10 s) at which it was stopped by somebody, despite SIGCONT, it is killed.
const MOST_STOPPED: u32 = 40;
/// Pause between two looks at a process that was killed and is not reaped yet.
pub(crate) const KILLED_LOOK_MS: u64 = 100;
/// Looks at a killed session or cgroup that its processes have for being reaped, before it is asked what keeps them.
const REAPING_LOOKS: u32 = 7;
/// Longest wait of one kill for a v1 cgroup to freeze; output of other containers waits as well.
const FREEZE: std::time::Duration = std::time::Duration::from_millis(20);
/// A code for a process that nobody could wait for.
const LOST: i32 = 255;
/// Code of a container that could not be started.
const START_FAILED: i32 = 128;

/// By kernel number, the same on all architectures.
pub(crate) const SIGKILL: i32 = 9;
const SIGCONT: i32 = 18;
/// Code of a process that was killed.
pub(crate) const KILLED: i32 = 128 + SIGKILL;

/// Milliseconds until the next look at what is being killed, after so many looks.
fn pause_after(looks: u32) -> u64 {
    (FIRST_LOOK_MS << looks.min(16)).min(LAST_LOOK_MS)
}

/// How a child that was not reaped has ended, if it is over ([`sys::proc::Stat::is_over`]).
fn over(pid: u32) -> Option<i32> {
    sys::proc::stat(pid).ok().filter(sys::proc::Stat::is_over).map(|stat| stat.code())
}

/// Children that were reaped while a worker was about to report a pid: the process it made may end first.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    ended: Vec<(u32, i32)>,
    /// Some more have ended than are remembered.
    lost: bool,
}

impl Strangers {
    fn remember(&mut self, pid: u32, code: i32) {
        if self.ended.len() < MAX_STRANGERS {
            self.ended.push((pid, code));
        } else {
            self.lost = true;
        }
    }

    /// How a process ended that was only now heard of; None while it is our child. Its number must not be used for
    /// anything before this was asked.
    pub(crate) fn take(&mut self, pid: u32) -> Option<i32> {
        self.take_or(pid, |pid| sys::proc::stat(pid).is_ok_and(|stat| stat.parent == std::process::id()))
    }

    fn take_or(&mut self, pid: u32, is_child: impl FnOnce(u32) -> bool) -> Option<i32> {
        if let Some(place) = self.ended.iter().position(|(known, _)| *known == pid) {
            return Some(self.ended.swap_remove(place).1);
        }
        (self.lost && !is_child(pid)).then_some(LOST)
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
        loop {
            let mut executed = None;
            let containers = &self.containers;
            let ended = sys::wait::reap(|pid| {
                if containers.iter().any(|c| c.pid == pid && matches!(c.phase, Phase::Starting(_))) {
                    executed = sys::proc::stat(pid).ok().map(|stat| stat.has_executed());
                }
            });
            let Ok(Some(ended)) = ended else { break };
            self.ended(ended.pid, ended.code, executed);
        }
        if self.jobs.is_empty() {
            self.strangers = Strangers::default();
        }
        self.check_stopped();
    }

    fn ended(&mut self, pid: u32, code: i32, executed: Option<bool>) {
        if let Some(pause) = self.pause.as_mut().filter(|pause| pause.pid == pid && pause.exited.is_none()) {
            pause.exited = Some(code);
            pause.namespaces = sys::namespace::Namespaces::default();
            self.event(Event::PauseExited { code });
        } else if let Some(place) = self.containers.iter().position(|c| c.pid == pid && c.alive) {
            self.init_ended(place, code, executed);
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

    /// Init of a container was reaped, or is over and cannot be. `executed`: whether it had called execve, where
    /// that is known.
    pub(crate) fn init_ended(&mut self, place: usize, code: i32, executed: Option<bool>) {
        // What it said before it ended, while its streams are still known. It need not be told of its execve: the
        // pipe's other holders (a worker's intermediate process) may not have let go of it yet.
        self.hear_exec_error(place, executed);
        if executed == Some(true) {
            self.started(place);
        }
        self.drop_exec_error(place);
        let Some(container) = self.containers.get_mut(place) else { return };
        container.alive = false;
        container.namespaces = None;
        container.facts.code = code;
        container.facts.finished_at = sys::clock::now();
        if let Phase::Starting(asker) = container.phase {
            take_start_error(container);
            let message = container.facts.start_error.take().unwrap_or_else(|| {
                let memory = if was_oom_killed(container) { ": its memory limit is too small" } else { "" };
                format!("init ended with code {code} before execve{memory}")
            });
            container.facts.code = START_FAILED;
            container.facts.start_error = Some(message.clone());
            let failure =
                Failure { kind: ErrorKind::StartFailed, stage: "start".to_owned(), message, errno: 0 };
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

    /// What a container's timer is for.
    fn look(&mut self, place: usize) {
        let Some(container) = self.containers.get(place) else { return };
        match container.phase {
            Phase::Ending | Phase::Undoing(_) => self.look_at(place),
            _ if container.alive && container.killed => self.look_at_killed(place),
            Phase::Starting(_) => self.look_at_start(place),
            _ => {}
        }
    }

    /// Init was told to call execve. Somebody who shares its PID namespace may have stopped it.
    fn look_at_start(&mut self, place: usize) {
        let Some(container) = self.containers.get_mut(place) else { return };
        container.look_again = Some(sys::clock::monotonic_ms() + START_LOOK_MS);
        let Ok(stat) = sys::proc::stat(container.pid) else { return };
        // Its pipe would have said so, had another process not opened it too.
        if stat.has_executed() {
            self.drop_exec_error(place);
            self.started(place);
            return;
        }
        match stat.state {
            'T' => kill(container.pid, SIGCONT),
            't' => {}
            _ => return,
        }
        container.looks += 1;
        if container.looks > MOST_STOPPED {
            let message = "init was stopped or traced by another process before execve, and was killed";
            container.facts.start_error = Some(message.to_owned());
            kill_cgroup(container);
            kill(container.pid, SIGKILL);
            container.was_killed();
        }
    }

    /// SIGKILL was sent to init. Who traces it can keep it from being reaped for ever; it is over all the same.
    fn look_at_killed(&mut self, place: usize) {
        let Some(container) = self.containers.get_mut(place) else { return };
        container.look_again = Some(sys::clock::monotonic_ms() + KILLED_LOOK_MS);
        let Ok(stat) = sys::proc::stat(container.pid) else { return };
        if !stat.is_over() {
            return;
        }
        // What can be reaped is, before the next look.
        container.looks += 1;
        if container.looks > 1 {
            container.look_again = None;
            self.init_ended(place, stat.code(), Some(stat.has_executed()));
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
        let patient = container.looks >= REAPING_LOOKS;
        if container.alive {
            kill(container.pid, SIGKILL);
            container.alive = !(patient && over(container.pid).is_some());
        }
        if container.alive || strays > 0 || !is_empty(container, patient) {
            kill_cgroup(container);
            let wait = pause_after(container.looks);
            container.looks = container.looks.saturating_add(1);
            container.look_again = Some(sys::clock::monotonic_ms() + wait);
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
        let now = sys::clock::monotonic_ms();
        self.listen(now);
        while let Some(place) = self.containers.iter().position(|c| c.look_again.is_some_and(|at| at <= now))
        {
            if let Some(container) = self.containers.get_mut(place) {
                container.look_again = None;
            }
            self.look(place);
        }
        while let Some(serial) = self.jobs.iter().find(|job| job.deadline <= now).map(|job| job.serial) {
            self.late(serial, now);
        }
        for exec in self.execs.iter_mut().filter(|exec| exec.deadline.is_some_and(|at| at <= now)) {
            begin_kill(exec, None, now);
        }
        self.kill_sessions(now);
        self.look_at_stopped(now);
    }

    /// Pause and execs of a stopped pod that a tracer keeps from being reaped are over all the same.
    fn look_at_stopped(&mut self, now: u64) {
        if self.stop_look.is_none_or(|at| at > now) {
            return;
        }
        if self.stopping.is_none() {
            self.stop_look = None;
            return;
        }
        self.stop_look = Some(now + KILLED_LOOK_MS);
        if let Some(pause) = self.pause.as_mut().filter(|pause| pause.exited.is_none())
            && let Some(code) = over(pause.pid)
        {
            pause.exited = Some(code);
            self.event(Event::PauseExited { code });
        }
        for exec in self.execs.iter_mut().filter(|exec| exec.code.is_none() && exec.pid != 0) {
            exec.code = over(exec.pid);
        }
        self.exec_ended();
        self.check_stopped();
    }

    /// Kills the processes of sessions; answers for those of which none is left. The sessions of one container are
    /// looked for together: however many there are, its processes are listed once a time.
    fn kill_sessions(&mut self, now: u64) {
        let due = |exec: &Exec| exec.killing.is_some_and(|killing| killing.look_again <= now);
        while let Some(id) = self.execs.iter().find(|exec| due(exec)).map(|exec| exec.container.clone()) {
            let of_it = |exec: &&Exec| exec.container == id && due(exec);
            // Session, and how many processes it has.
            let mut left: Vec<(u32, u32)> =
                self.execs.iter().filter(of_it).map(|exec| (exec.pid, 0)).collect();
            left.sort_unstable();
            let container = self.containers.iter().find(|container| container.id == id);
            if let Some(folder) = container.and_then(|container| container.cgroups.procs_folder()) {
                // A folder that is gone has nobody in it.
                drop(sys::cgroup::processes(folder, |pid| {
                    let Ok(fd) = sys::pidfd::open(pid) else { return };
                    // After the descriptor was opened: what is read now is of that process, or it has ended.
                    let Ok(stat) = sys::proc::stat(pid) else { return };
                    let Ok(found) = left.binary_search_by_key(&stat.session, |(session, _)| *session) else {
                        return;
                    };
                    if let Some((_, count)) = left.get_mut(found).filter(|_| !stat.is_over()) {
                        *count += 1;
                        drop(sys::pidfd::send_signal(std::os::fd::AsFd::as_fd(&fd), SIGKILL));
                    }
                }));
            }
            let mut answers = Vec::new();
            for exec in self.execs.iter_mut().filter(|exec| exec.container == id && due(exec)) {
                let Some(killing) = &mut exec.killing else { continue };
                let found = left.binary_search_by_key(&exec.pid, |(session, _)| *session).ok();
                let mut count = found.and_then(|found| left.get(found)).map_or(0, |(_, count)| *count);
                if exec.code.is_none() {
                    kill(exec.pid, SIGKILL);
                    // What can be reaped is, after the first looks.
                    exec.code = over(exec.pid).filter(|_| killing.looks >= REAPING_LOOKS);
                    if exec.code.is_none() {
                        count = count.max(1);
                    }
                }
                if count > 0 && now < killing.until {
                    killing.look_again = now + pause_after(killing.looks);
                    killing.looks = killing.looks.saturating_add(1);
                    continue;
                }
                let reply = if count == 0 {
                    Reply::Done
                } else {
                    // Its place is for others; what is left of it ends with the container.
                    exec.code.get_or_insert(KILLED);
                    let message = format!("{count} processes of the session do not end");
                    Reply::Failed(job::refusal(ErrorKind::Timeout, "kill", message))
                };
                answers.push((killing.asker, reply));
                exec.killing = None;
            }
            for (asker, reply) in answers {
                if let Some(asker) = asker {
                    self.reply(asker, reply, Vec::new());
                }
            }
        }
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

/// Begins to kill a session, for whoever asked or because its deadline has passed: at the end of this turn,
/// together with others of its container. One that is being killed already goes on so.
pub(crate) fn begin_kill(exec: &mut Exec, asker: Option<Asker>, now: u64) {
    exec.deadline = None;
    if exec.killing.is_some() {
        return;
    }
    let (look_again, until) = match exec.pid {
        // As soon as its pid is known. Not its worker: what that has made and not told yet would be known to
        // nobody.
        0 => (u64::MAX, u64::MAX),
        _ => (now, now + KILL_SESSION_MS),
    };
    exec.killing = Some(Killing { asker, look_again, until, looks: 0 });
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
    let cgroups = &container.cgroups;
    let folders = cgroups.folders_with_processes();
    drop(sys::cgroup::kill_all(&folders, cgroups.freezer_folder(), cgroups.unified, FREEZE));
}

/// Whether nobody is in it. `patient`: those that a tracer holds on their way out count as gone.
fn is_empty(container: &Container, patient: bool) -> bool {
    container.cgroups.folders_with_processes().into_iter().all(|folder| {
        // What cannot be read now (out of descriptors) is looked at again.
        sys::cgroup::is_empty(folder).unwrap_or(false)
            || patient && sys::cgroup::only_held(folder).unwrap_or(false)
    })
}

pub(crate) fn was_oom_killed(container: &Container) -> bool {
    let file = if container.cgroups.unified { "memory.events" } else { "memory.oom_control" };
    container
        .cgroups
        .memory_folder()
        .is_some_and(|folder| sys::cgroup::flat_key(folder, file, "oom_kill").is_ok_and(|count| count > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_ended_unseen_is_never_taken_for_alive() {
        let mut strangers = Strangers::default();
        for pid in 1..=u32::try_from(MAX_STRANGERS).unwrap() + 50 {
            strangers.remember(pid, 3);
        }
        assert_eq!(strangers.take_or(7, |_| false), Some(3));
        let forgotten = u32::try_from(MAX_STRANGERS).unwrap() + 7;
        assert_eq!(strangers.take_or(forgotten, |_| false), Some(LOST));
        assert_eq!(strangers.take_or(forgotten, |_| true), None);
        let mut few = Strangers::default();
        few.remember(4, 0);
        assert_eq!((few.take_or(5, |_| false), few.take_or(4, |_| false)), (None, Some(0)));
    }
}
