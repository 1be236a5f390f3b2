//! The simulated kernel: processes, pids and cgroups.

use std::collections::BTreeMap;

use super::super::id::Serial;

/// The role of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// Not a child of the shim.
    Bystander,
    /// A worker for this object.
    Worker(Serial),
    /// The process that a worker created: pause, init or that of an exec.
    Made(Serial),
    /// A child of an exec's process, in its session.
    Descendant(Serial),
}

#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) owner: Owner,
    /// Its exit code, once it has ended.
    pub(super) code: Option<i32>,
    /// A tracer is attached, which will not let it be reaped once it has ended.
    pub(super) traced: bool,
    /// SIGKILL is pending, because it is frozen.
    pub(super) killed: bool,
    /// Serial of the container whose cgroup it is in.
    pub(super) cgroup: Option<Serial>,
    pub(super) executed: bool,
}

/// Processes by pid.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) processes: BTreeMap<u32, Process>,
    pub(super) frozen: Vec<Serial>,
    /// The shim has no free descriptor: it can create no process or file and read nothing below /proc and the cgroups.
    pub(super) out_of_descriptors: bool,
    /// Exit files cannot be written.
    pub(super) disk_full: bool,
    /// Pids that a packet which was not read yet names, or will name, and the object of that process.
    unreported: Vec<(u32, Serial)>,
    last: u32,
    max: u32,
}

impl Kernel {
    /// A kernel with this many pids, which are soon reused.
    pub(super) fn new(max: u32) -> Self {
        Self {
            processes: BTreeMap::new(),
            frozen: Vec::new(),
            out_of_descriptors: false,
            disk_full: false,
            unreported: Vec::new(),
            last: 1,
            max,
        }
    }

    /// Creates a process, if a pid is free.
    pub(super) fn spawn(&mut self, owner: Owner, cgroup: Option<Serial>) -> Option<u32> {
        let numbers = (self.last + 1..=self.max).chain(2..=self.last);
        let pid = numbers.into_iter().find(|pid| !self.processes.contains_key(pid))?;
        self.last = pid;
        let process = Process { owner, code: None, traced: false, killed: false, cgroup, executed: false };
        self.processes.insert(pid, process);
        Some(pid)
    }

    /// A packet will report this process of an object.
    pub(super) fn will_report(&mut self, pid: u32, of: Serial) {
        self.unreported.push((pid, of));
    }

    /// The packet was read, or will never be.
    pub(super) fn reported(&mut self, pid: u32, of: Serial) {
        self.unreported.retain(|known| *known != (pid, of));
    }

    pub(super) fn is_child(&self, pid: u32) -> bool {
        self.processes.get(&pid).is_some_and(|process| process.owner != Owner::Bystander)
    }

    pub(super) fn runs(&self, pid: u32) -> bool {
        self.processes.get(&pid).is_some_and(|process| process.code.is_none())
    }

    /// It ends by itself or by a signal.
    pub(super) fn end(&mut self, pid: u32, code: i32) {
        if let Some(process) = self.processes.get_mut(&pid)
            && process.code.is_none()
        {
            process.code = Some(code);
            process.killed = false;
        }
    }

    /// SIGKILL; it is pending in a frozen cgroup.
    pub(super) fn kill(&mut self, pid: u32) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.cgroup.is_some_and(|cgroup| self.frozen.contains(&cgroup)) {
            process.killed = true;
        } else {
            self.end(pid, 137);
        }
    }

    /// SIGKILL to all processes in a cgroup, which is thawed.
    pub(super) fn kill_cgroup(&mut self, cgroup: Serial) {
        self.frozen.retain(|frozen| *frozen != cgroup);
        for pid in self.of(|process| process.cgroup == Some(cgroup)) {
            self.end(pid, 137);
        }
    }

    /// The pids of processes.
    pub(super) fn of(&self, which: impl Fn(&Process) -> bool) -> Vec<u32> {
        self.processes.iter().filter(|(_, process)| which(process)).map(|(pid, _)| *pid).collect()
    }

    /// The process that a worker created for an object.
    pub(super) fn made(&self, serial: Serial) -> Option<u32> {
        self.of(|process| process.owner == Owner::Made(serial)).first().copied()
    }

    /// Children that can be reaped. Not the second child with a pid before the packet that names the first is read:
    /// then the shim could report the exit code of one for the other ([`super::super::worker::ReapedEarly`]).
    pub(super) fn zombies(&self) -> Vec<u32> {
        let zombies = self.processes.iter().filter(|(pid, process)| {
            let second =
                self.unreported.iter().any(|(of, by)| of == *pid && process.owner != Owner::Made(*by));
            process.owner != Owner::Bystander && process.code.is_some() && !process.traced && !second
        });
        zombies.map(|(pid, _)| *pid).collect()
    }

    /// Whether a cgroup has no processes; `skip_unreapable`: except ended ones that a tracer holds.
    pub(super) fn is_empty(&self, cgroup: Serial, skip_unreapable: bool) -> bool {
        self.processes
            .values()
            .filter(|process| process.cgroup == Some(cgroup))
            .all(|process| process.code.is_some() && (skip_unreapable || !process.traced))
    }
}
