//! What the checks of each step, and the end of a sequence, need to know of the world.

use super::super::super::id::Serial;
use super::super::super::phase::Phase;
use super::super::Checked;
use super::super::check::Violation;
use super::super::kernel::Owner;
use super::{Worker, World};

impl World {
    /// Indices of running workers.
    pub(in super::super) fn at_work(&self) -> Vec<usize> {
        let living = self.workers.iter().zip(0..).filter(|(worker, _)| worker.runs(&self.kernel));
        living.map(|(_, place)| place).collect()
    }

    /// Processes that can call execve.
    pub(in super::super) fn waiting(&self) -> Vec<u32> {
        self.kernel.of(|process| {
            let Owner::Made(serial) = process.owner else { return false };
            let frozen = process.cgroup.is_some_and(|cgroup| self.kernel.frozen.contains(&cgroup));
            let may = !self.containers.contains_key(&serial.0) || self.told_to_start.contains(&serial);
            may && !process.executed && process.code.is_none() && !process.traced && !frozen
        })
    }

    /// The exit code of the process that a worker created for an object.
    pub(in super::super) fn code_of(&self, serial: Serial) -> Option<i32> {
        let unreaped = self.kernel.made(serial).and_then(|pid| self.kernel.processes.get(&pid)?.code);
        self.codes.get(&serial.0).copied().or(unreaped)
    }

    /// Workers whose sockets are readable.
    pub(in super::super) fn readable(&self) -> Vec<Serial> {
        let readable = |worker: &&Worker| {
            let eof = !worker.closed && worker.is_at_eof(&self.kernel);
            worker.open && (!worker.packets.is_empty() || eof)
        };
        self.workers.iter().filter(readable).map(|worker| worker.serial).collect()
    }

    pub(in super::super) fn open_sockets(&self) -> Vec<Serial> {
        self.workers.iter().filter(|worker| worker.open).map(|worker| worker.serial).collect()
    }

    pub(in super::super) fn open_pipes(&self) -> u8 {
        u8::try_from(self.told_to_start.len()).unwrap_or(u8::MAX)
    }

    /// Objects in a table must have processes.
    pub(in super::super) fn check_slots(&self) -> Checked {
        for container in &self.life.containers {
            let lives = !self.kernel.of(|process| process.cgroup == Some(container.serial)).is_empty()
                || self.kernel.made(container.serial).is_some();
            if !lives && !matches!(container.phase, Phase::Exited { .. }) {
                return Err(Violation::Slot(format!("nothing lives of {container:?}")));
            }
        }
        for exec in &self.life.execs {
            let own = [Owner::Made(exec.serial), Owner::Worker(exec.serial)];
            if self.kernel.of(|process| own.contains(&process.owner)).is_empty() {
                return Err(Violation::Slot(format!("nothing lives of {exec:?}")));
            }
        }
        let lost = self.containers.iter().find(|(serial, (_, init))| {
            let is_held = self.life.containers.iter().any(|container| container.serial.0 == **serial);
            init.is_some() && !is_held && !self.check.records.contains_key(serial)
        });
        match lost {
            Some(lost) => Err(Violation::Slot(format!("{lost:?} was forgotten before its exit"))),
            None => Ok(()),
        }
    }

    /// Every exit must be reported on the current connection.
    pub(in super::super) fn check_told(&self) -> Checked {
        let over =
            self.life.containers.iter().filter(|container| matches!(container.phase, Phase::Exited { .. }));
        self.check.all_told(self.connection, over.map(|container| (container.id.clone(), container.serial)))
    }
}
