//! The steps of simulated workers, and of the processes that they create.

use super::super::action::Fork;
use super::kernel::Owner;
use super::world::{Packet, World, pick};

impl World {
    /// A worker's next step.
    #[expect(clippy::too_many_lines, reason = "one match over all ways a worker may go")]
    pub(super) fn work(&mut self, place: usize, how: u8) {
        let frozen = self.kernel.frozen.clone();
        let Self { workers, kernel, .. } = self;
        let Some(worker) = workers.get_mut(place) else { return };
        let container = match &worker.fork {
            Fork::Pause => None,
            Fork::Container { .. } => Some(worker.serial),
            Fork::Exec { container } => Some(*container),
        };
        if worker.step > 0 && container.is_some_and(|serial| frozen.contains(&serial)) {
            return;
        }
        // It joins the container's cgroup in its first step.
        if let Some(process) = kernel.processes.get_mut(&worker.pid) {
            process.cgroup = container;
        }
        match (&worker.fork, worker.step, how % 12) {
            (_, 0, 0) | (Fork::Container { .. }, 1, 0) => {
                worker.packets.push_back(Packet::Failed);
                kernel.end(worker.pid, 1);
            }
            (_, 0, 1) => kernel.end(worker.pid, 137),
            (Fork::Container { .. }, 0, 2) => worker.packets.push_back(Packet::Streams(false)),
            (Fork::Container { .. }, 0, 3) => {
                worker.packets.extend([Packet::Streams(true), Packet::Warning]);
            }
            (Fork::Container { .. }, 0, _) => worker.packets.push_back(Packet::Streams(true)),
            // Pause and its packet come together: otherwise only the daemon's kill of the pod's cgroup would
            // find it.
            (Fork::Pause, 0, _) | (Fork::Container { .. } | Fork::Exec { .. }, 1 | 0, _) => {
                if let Some(pid) = kernel.spawn(Owner::Made(worker.serial), container) {
                    worker.made = Some(pid);
                    kernel.will_report(pid, worker.serial);
                    if worker.fork == Fork::Pause {
                        worker.packets.push_back(Packet::Made(pid));
                    }
                } else {
                    worker.packets.push_back(Packet::Failed);
                    kernel.end(worker.pid, 1);
                }
                worker.step = 1;
            }
            (fork, _, _) => {
                if let (Some(pid), 2) = (worker.made, worker.step) {
                    match fork {
                        Fork::Container { .. } => worker.packets.push_back(Packet::Created(pid)),
                        Fork::Exec { .. } => worker.packets.push_back(Packet::Made(pid)),
                        Fork::Pause => {}
                    }
                } else if worker.step > 2 {
                    kernel.end(worker.pid, 0);
                }
            }
        }
        worker.step += 1;
    }

    /// A created process calls execve, or fails to.
    pub(super) fn execve(&mut self, which: u8, works: bool) {
        let waiting = self.waiting();
        let Some(pid) = pick(&waiting, which).copied() else { return };
        let Some(process) = self.kernel.processes.get_mut(&pid) else { return };
        let Owner::Made(serial) = process.owner else { return };
        if works {
            process.executed = true;
            if let Some((_, Some((known, executed)))) = self.containers.get_mut(&serial.0) {
                *executed |= *known == pid;
            }
        } else {
            if let Some(worker) = self.workers.iter_mut().find(|w| w.serial == serial && w.open) {
                worker.packets.push_back(Packet::Failed);
            }
            self.kernel.end(pid, 126);
        }
    }
}
