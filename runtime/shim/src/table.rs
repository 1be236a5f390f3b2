//! What the shim holds: pause, containers, execs. Lists, not maps: they are short, and give memory back.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use model::{ContainerId, ExecId};
use sys::namespace::Namespaces;
use wire::{ContainerState, ExitFacts, Failure};

use crate::io::output::{LogFile, Output};

/// Most execs at once.
pub(crate) const MAX_EXECS: usize = 1024;

/// Longest start error that is kept, as JSON writes it. With it a snapshot of full tables fits what may wait for a
/// daemon (`conn::MAX_QUEUED`).
pub(crate) const MAX_START_ERROR: usize = 1024;

/// The beginning of a text that takes at most [`MAX_START_ERROR`] bytes as a JSON string, quotes not counted.
pub(crate) fn cut_start_error(text: &str) -> String {
    let mut room = MAX_START_ERROR;
    let fits = text.chars().take_while(|c| {
        let size = match c {
            '"' | '\\' => 2,
            c if c.is_ascii_control() => 6,
            c => c.len_utf8(),
        };
        room.checked_sub(size).inspect(|left| room = *left).is_some()
    });
    fits.collect()
}

/// Whom to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asker {
    /// The connection it came on.
    pub(crate) generation: u32,
    /// Its number there.
    pub(crate) id: u64,
}

/// The sandbox's process.
#[derive(Debug)]
pub(crate) struct Pause {
    pub(crate) pid: u32,
    pub(crate) exited: Option<i32>,
    /// Those that it was made in, until it exits.
    pub(crate) namespaces: Namespaces,
}

/// Where a container is, with what is needed only there.
#[derive(Debug)]
pub(crate) enum Phase {
    /// A worker makes it.
    Creating,
    /// Init waits.
    Created,
    /// Init was told to go on; its execve is awaited.
    Starting(Asker),
    /// Init has exec'd.
    Running,
    /// Init is gone; what it left in its cgroup is being killed.
    Ending,
    /// Creation failed; what it left is being killed, then the asker gets the failure.
    Undoing(Option<(Asker, Failure)>),
    /// Over.
    Exited,
}

/// The cgroup folders of a container, and which of them are for what.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    pub(crate) folders: Vec<OwnedFd>,
    pub(crate) unified: bool,
    /// Place of the memory hierarchy.
    pub(crate) memory: Option<usize>,
    /// Place of the freezer hierarchy.
    pub(crate) freezer: Option<usize>,
    /// Its processes may change cgroups, so one may have left some hierarchies and stayed in others.
    pub(crate) roams: bool,
}

impl Cgroups {
    /// Where to look for its processes.
    pub(crate) fn folders_with_processes(&self) -> Vec<BorrowedFd<'_>> {
        if self.roams {
            self.folders.iter().map(|fd| fd.as_fd()).collect()
        } else {
            self.procs_folder().into_iter().collect()
        }
    }

    /// Its folder in v1's freezer hierarchy.
    pub(crate) fn freezer_folder(&self) -> Option<BorrowedFd<'_>> {
        self.freezer.and_then(|place| self.folders.get(place)).map(|fd| fd.as_fd())
    }

    /// Where its processes are listed, frozen and killed.
    pub(crate) fn procs_folder(&self) -> Option<BorrowedFd<'_>> {
        let place = self.freezer.unwrap_or(0);
        self.folders.get(place).or(self.folders.first()).map(|fd| fd.as_fd())
    }

    pub(crate) fn memory_folder(&self) -> Option<BorrowedFd<'_>> {
        self.memory.and_then(|place| self.folders.get(place)).map(|fd| fd.as_fd())
    }
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    /// Names it in epoll tokens; never used twice.
    pub(crate) serial: u32,
    pub(crate) phase: Phase,
    /// Init's; 0 until it is known.
    pub(crate) pid: u32,
    /// Init was not reaped.
    pub(crate) alive: bool,
    /// Those that init was made in, while it lives: they hold the container's mounts.
    pub(crate) namespaces: Option<Namespaces>,
    pub(crate) facts: ExitFacts,
    pub(crate) cgroups: Cgroups,
    pub(crate) log: LogFile,
    /// stdout and stderr, or the terminal.
    pub(crate) outputs: [Option<Output>; 2],
    /// Kept open so that the container sees no end of its input.
    pub(crate) stdin: Option<OwnedFd>,
    /// Its streams are a terminal.
    pub(crate) terminal: bool,
    /// Ends when init has exec'd; says why when it could not.
    pub(crate) exec_error: Option<OwnedFd>,
    pub(crate) error_bytes: Vec<u8>,
    /// Who asked for a start that failed, told when it is over.
    pub(crate) answer_at_end: Option<(Asker, Failure)>,
    /// When to look at it again (monotonic ms), and how often that was done: at its cgroup once init has ended, at
    /// init while it starts or was killed.
    pub(crate) look_again: Option<u64>,
    pub(crate) looks: u32,
    /// SIGKILL was sent to init.
    pub(crate) killed: bool,
}

impl Container {
    pub(crate) fn new(id: ContainerId, serial: u32, folders: Vec<OwnedFd>) -> Self {
        Self {
            id,
            serial,
            phase: Phase::Creating,
            pid: 0,
            alive: false,
            namespaces: None,
            facts: ExitFacts::default(),
            cgroups: Cgroups { folders, ..Cgroups::default() },
            log: LogFile::none(),
            outputs: [None, None],
            stdin: None,
            terminal: false,
            exec_error: None,
            error_bytes: Vec::new(),
            answer_at_end: None,
            look_again: None,
            looks: 0,
            killed: false,
        }
    }

    /// As the daemon is told.
    pub(crate) fn state(&self) -> ContainerState {
        match self.phase {
            Phase::Creating | Phase::Undoing(_) => ContainerState::Creating,
            Phase::Created | Phase::Starting(_) => ContainerState::Created,
            Phase::Running => ContainerState::Running { started_at: self.facts.started_at },
            // Not over before its cgroup is empty.
            Phase::Ending if self.facts.started_at > 0 => {
                ContainerState::Running { started_at: self.facts.started_at }
            }
            Phase::Ending => ContainerState::Created,
            Phase::Exited => ContainerState::Exited(self.facts.clone()),
        }
    }

    /// Notes that init was sent SIGKILL, and has it looked at should it not be reaped soon.
    pub(crate) fn was_killed(&mut self) {
        if !self.killed && !matches!(self.phase, Phase::Ending | Phase::Undoing(_)) {
            self.looks = 0;
            self.look_again = Some(sys::clock::monotonic_ms() + crate::reaper::KILLED_LOOK_MS);
        }
        self.killed = true;
    }

    /// Whether nothing of it runs.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Exited)
    }
}

/// A process started in a container.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) id: ExecId,
    pub(crate) generation: u32,
    pub(crate) container: ContainerId,
    /// 0 until it is known.
    pub(crate) pid: u32,
    /// Was reaped.
    pub(crate) code: Option<i32>,
    /// Its start was answered.
    pub(crate) answered: bool,
    /// When its session is to be killed (monotonic ms).
    pub(crate) deadline: Option<u64>,
    /// Who wants its session killed, and when to look again (monotonic ms) and until when.
    pub(crate) killing: Option<Killing>,
}

/// A session being killed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Killing {
    /// None when its deadline has passed.
    pub(crate) asker: Option<Asker>,
    /// Never while its pid is awaited.
    pub(crate) look_again: u64,
    pub(crate) until: u64,
    /// How often it was looked at.
    pub(crate) looks: u32,
}
