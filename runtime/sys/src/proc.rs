//! What /proc says about processes, and settings of the calling process.

use std::fs;
use std::io;

/// The content of `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// R, S, D, Z and so on.
    pub state: char,
    /// Parent.
    pub parent: u32,
    /// Session, by its leader's pid in the reader's PID namespace.
    pub session: u32,
    /// PF_* flags of its leading thread.
    pub flags: u32,
    /// Threads that are not reaped, its leading one among them.
    pub threads: u32,
    /// When it was started, in clock ticks since the boot. With the pid it identifies the process.
    pub started: u64,
    /// Its status in the format of wait(2), once it has ended or was killed. Only a process that may trace it can see
    /// it.
    pub status: i32,
}

impl Stat {
    /// PF_EXITING.
    const EXITING: u32 = 0x4;
    /// PF_FORKNOEXEC, which execve clears before it closes descriptors.
    const FORKED: u32 = 0x40;

    /// Whether it has called execve since it was forked.
    pub fn has_executed(&self) -> bool {
        self.flags & Self::FORKED == 0
    }

    /// Whether it has ended: it will not run any more, although it may still exist. A tracer can keep it from
    /// disappearing in three ways: it does not wait for the zombie; it holds the killed process at PTRACE_EVENT_EXIT
    /// (the status is SIGKILL then, since Linux 5.17); or it holds another process of the PID namespace whose PID 1
    /// this is, and which waits for that one. A process that hangs in the kernel (D) has not ended, nor has one of
    /// which only the leading thread has ended.
    pub fn is_over(&self) -> bool {
        let killed = self.status & 0x7f == libc::SIGKILL;
        match self.state {
            'Z' | 'X' => killed || self.threads <= 1,
            't' => killed,
            'S' => self.flags & Self::EXITING != 0,
            _ => false,
        }
    }

    /// Its exit code, 128+n for signal n, once it has ended.
    pub fn code(&self) -> i32 {
        match self.status & 0x7f {
            0 => self.status >> 8 & 0xff,
            signal => 128 + signal,
        }
    }
}

/// Reads `/proc/<pid>/stat`.
///
/// # Errors
/// NotFound or ESRCH when the process is gone ([`unless_gone`]).
pub fn stat(pid: u32) -> io::Result<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat")))
}

/// The name is in parentheses and may contain any character; the last closing parenthesis ends it.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(text.get(end + 1..)?).ok()?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    // Fields 7 and 8 are of the terminal; 52 is the last.
    let flags = fields.nth(2)?.parse().ok()?;
    let threads = fields.nth(10).and_then(|field| field.parse().ok()).unwrap_or(1);
    let started = fields.nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
    let status = fields.nth(29).and_then(|field| field.parse().ok()).unwrap_or(0);
    Some(Stat { state, parent, session, flags, threads, started, status })
}

/// The pid of the process that a thread belongs to (Tgid in `/proc/<tid>/status`).
///
/// # Errors
/// NotFound or ESRCH when the thread is gone.
pub(crate) fn process_of(thread: u32) -> io::Result<u32> {
    let text = fs::read(format!("/proc/{thread}/status"))?;
    // The first line has the name, which may have any bytes except a newline.
    let pid = text.split(|byte| *byte == b'\n').find_map(|line| {
        let number = line.strip_prefix(b"Tgid:")?;
        std::str::from_utf8(number).ok()?.trim().parse().ok()
    });
    pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{thread}/status")))
}

/// Pids of the calling thread's children (CONFIG_PROC_CHILDREN), so of all children of a process with one thread.
///
/// # Errors
/// No such file.
pub fn children() -> io::Result<Vec<u32>> {
    let text = fs::read_to_string("/proc/thread-self/children")?;
    Ok(text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// The names (comm, at most 15 bytes) of the children of another process: those that its threads have started. A process
/// that ends meanwhile is left out.
///
/// # Errors
/// No such process, or no such files (CONFIG_PROC_CHILDREN).
pub fn names_of_children(pid: u32) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let children = fs::read_to_string(thread?.path().join("children"));
        let children = unless_gone(children)?.unwrap_or_default();
        for child in children.split_ascii_whitespace() {
            let name = unless_gone(fs::read(format!("/proc/{child}/comm")))?;
            names.extend(name.map(|name| name.strip_suffix(b"\n").map(<[u8]>::to_vec).unwrap_or(name)));
        }
    }
    Ok(names)
}

/// `None` for an error that means that the process does not exist any more (NotFound, ESRCH).
///
/// # Errors
/// All other errors.
pub fn unless_gone<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The content of `/proc/<pid>/cgroup`: one line per hierarchy.
///
/// # Errors
/// NotFound or ESRCH when the process is gone ([`unless_gone`]).
pub fn cgroups(pid: u32) -> io::Result<Vec<u8>> {
    fs::read(format!("/proc/{pid}/cgroup"))
}

/// The paths in the content of `/proc/<pid>/cgroup` (cgroups(7)), one per hierarchy.
pub fn cgroup_paths(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2))
}

/// Makes this process the subreaper of its descendants.
///
/// # Errors
/// prctl(2).
pub fn become_subreaper() -> io::Result<()> {
    // Any pid sets the attribute; `None` clears it.
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Sets whether others of the same user may trace this process and read its memory.
///
/// # Errors
/// prctl(2).
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    use rustix::process::DumpableBehavior::{Dumpable, NotDumpable};
    Ok(rustix::process::set_dumpable_behavior(if dumpable { Dumpable } else { NotDumpable })?)
}

/// setsid(2). No effect if the process leads its session already.
pub fn new_session() {
    // It fails only for the leader of a process group; the callers lead either none or their own session.
    let _ = rustix::process::setsid();
}

/// Sets this process's oom_score_adj, or the nearest allowed value: without CAP_SYS_RESOURCE it cannot be lower than
/// the value that was last set by a process with this capability. Returns the value in effect.
///
/// # Errors
/// No /proc; a value outside -1000..=1000.
pub fn set_oom_score_adj(wanted: i32) -> io::Result<i32> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let read = || fs::read_to_string(FILE)?.trim().parse().map_err(io::Error::other);
    nearest_oom_score_adj(wanted, read, |value| write_in_place(FILE, value.to_string().as_bytes()))
}

/// oom_score_adj of another process.
///
/// # Errors
/// NotFound or ESRCH when the process is gone ([`unless_gone`]).
pub fn oom_score_adj(pid: u32) -> io::Result<i32> {
    fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim().parse().map_err(io::Error::other)
}

/// Writes the wanted oom_score_adj, or the nearest value that the kernel allows; returns the value in effect.
pub(crate) fn nearest_oom_score_adj(
    wanted: i32,
    read: impl Fn() -> io::Result<i32>,
    write: impl Fn(i32) -> io::Result<()>,
) -> io::Result<i32> {
    let set = |value: i32| match write(value) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => Ok(false),
        Err(error) => Err(error),
    };
    if set(wanted)? {
        return Ok(wanted);
    }
    // The kernel does not show the lowest allowed value. It is above `wanted` and not above the current value.
    let mut current = read()?;
    let mut refused = wanted;
    // Usually the current value is the lowest allowed one: the first write, of one less, is refused then. Otherwise this
    // is a binary search.
    let mut next = current - 1;
    while current - refused > 1 {
        if set(next)? {
            current = next;
        } else {
            refused = next;
        }
        next = refused + (current - refused) / 2;
    }
    Ok(current)
}

/// Sets which kinds of mappings a core dump of this process and its children contains, as a mask (core(5)).
///
/// # Errors
/// No /proc; a kernel without core dumps.
pub fn set_coredump_filter(mask: u32) -> io::Result<()> {
    write_in_place("/proc/self/coredump_filter", format!("{mask:#x}").as_bytes())
}

/// Makes `ps` show `name` for this process, as its name (cut to 15 bytes) and as its command line. The arguments in
/// memory are overwritten, so this is for forked children, whose memory is a copy.
///
/// # Errors
/// No /proc.
pub fn set_title(name: &std::ffi::CStr) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    /// Bytes of the arguments that are overwritten at most. Those of our programs have some hundred.
    const MAX_ARGUMENTS: usize = 1 << 16;
    rustix::thread::set_name(name)?;
    // Where the arguments are: fields 48 and 49 of /proc/PID/stat (proc_pid_stat(5)).
    let stat = fs::read("/proc/self/stat")?;
    let numbers = || io::Error::new(io::ErrorKind::InvalidData, "/proc/self/stat");
    let after_name = stat.iter().rposition(|byte| *byte == b')').ok_or_else(numbers)? + 1;
    let text = std::str::from_utf8(stat.get(after_name..).unwrap_or_default()).map_err(|_| numbers())?;
    let mut fields = text.split_ascii_whitespace().skip(45).map_while(|field| field.parse::<u64>().ok());
    let (Some(start), Some(end)) = (fields.next(), fields.next()) else { return Err(numbers()) };
    let length = usize::try_from(end.saturating_sub(start)).unwrap_or(0).min(MAX_ARGUMENTS);
    if length == 0 {
        return Ok(());
    }
    // The last byte stays 0: the kernel would otherwise show what follows in memory.
    let name = name.to_bytes();
    let name = name.get(..length - 1).unwrap_or(name);
    let mut line = vec![0; length];
    line.iter_mut().zip(name).for_each(|(byte, of_name)| *byte = *of_name);
    // By /proc/self/mem, which fails for an address that is not mapped, where a pointer would crash. Only argv points
    // there.
    fs::OpenOptions::new().write(true).open("/proc/self/mem")?.write_all_at(&line, start)
}

/// Writes a setting below /proc/sys; `name` with dots or slashes, as sysctl(8) takes both.
///
/// # Errors
/// InvalidInput for a name that leads out of /proc/sys; the errors of the system calls.
pub fn write_sysctl(name: &str, value: &str) -> io::Result<()> {
    // If a name has slashes, its dots belong to interface names.
    let name = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    if name.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is not a sysctl")));
    }
    write_in_place(&format!("/proc/sys/{name}"), value.as_bytes())
}

fn write_in_place(path: &str, bytes: &[u8]) -> io::Result<()> {
    use io::Write as _;
    fs::OpenOptions::new().write(true).open(path)?.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_hostile_names() {
        let stat = parse_stat(b"12 (a) R 1 (x) S 7 9 5 0 -1 4194368 1 2").unwrap();
        assert_eq!(
            stat,
            Stat { state: 'S', parent: 7, session: 5, flags: 0x40_0040, threads: 1, started: 0, status: 0 }
        );
        assert!(!stat.has_executed() && !stat.is_over());
        // Made by a kernel: a killed process that its tracer holds at PTRACE_EVENT_EXIT, and the PID 1 that waits.
        let killed = b"27273 (sleep) t 27271 27271 8570 0 -1 4195336 136 0 0 0 0 0 0 0 20 0 1 0 272502 2990080 412 18446744073709551615 94033208614912 94033208632841 140730992334512 140730992333992 140606371529987 0 0 6 0 1 0 0 17 0 0 0 0 0 0 94033208646928 94033208648192 94033842724864 140730992339657 140730992339667 140730992339667 140730992340969 9";
        let killed = parse_stat(killed).unwrap();
        assert!(
            killed.is_over() && killed.code() == 137 && killed.has_executed() && killed.started == 272_502
        );
        let waits = Stat { state: 'S', flags: 4_195_596, ..killed };
        assert!(waits.is_over() && !Stat { flags: 0, ..waits }.is_over());
        // Its leading thread has ended, another runs on.
        let lives = Stat { state: 'Z', threads: 2, status: 0, ..killed };
        assert!(!lives.is_over() && Stat { threads: 1, ..lives }.is_over());
        assert_eq!(parse_stat(b"12 a S"), None);
        let own = super::stat(std::process::id()).unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert!(own.has_executed() && !own.is_over());
    }

    #[test]
    fn a_zombie_says_how_it_ended() {
        for (line, code) in [("exit 3", 3), ("kill -9 $$", 137)] {
            let mut child = std::process::Command::new("/bin/sh").args(["-c", line]).spawn().unwrap();
            let seen = loop {
                let seen = super::stat(child.id()).unwrap();
                if seen.is_over() {
                    break seen;
                }
                std::thread::yield_now();
            };
            assert_eq!((seen.state, seen.code(), seen.has_executed()), ('Z', code, true), "{line}");
            child.wait().unwrap();
        }
    }
}
