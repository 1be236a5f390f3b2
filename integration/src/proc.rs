//! The process table, read from /proc of the tests' PID namespace.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::driver::{Driver, driver};

/// Whether this host's kernel confines processes by AppArmor.
pub(crate) fn has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
}

/// Whether the kernel has an SELinux policy.
pub(crate) fn has_selinux() -> bool {
    fs::exists("/sys/fs/selinux/enforce").unwrap_or(false)
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its pid in the tests' PID namespace.
    pub(crate) pid: u32,
    /// Its parent's pid.
    pub(crate) parent: u32,
    /// The kernel's name of it (comm), at most 15 bytes.
    pub(crate) comm: String,
    /// State letter: R, S, D, Z...
    pub(crate) state: char,
    /// Its arguments, joined by spaces; empty for a zombie.
    pub(crate) args: String,
}

/// All processes of the run; those that vanish while being read are skipped. Without a PID namespace of the run
/// ([`crate::isolation`]), those are the descendants of this process's parent.
pub(crate) fn all() -> Vec<Process> {
    let found = listed();
    match driver() {
        Driver::Cgroupfs => found,
        Driver::Systemd => descendants(found, std::os::unix::process::parent_id()),
    }
}

/// Those of the processes that are below `root`.
fn descendants(all: Vec<Process>, root: u32) -> Vec<Process> {
    let parents: BTreeMap<u32, u32> = all.iter().map(|p| (p.pid, p.parent)).collect();
    let below = |process: &Process| {
        let mut above = process.parent;
        // A process that ends meanwhile may make a circle of pids that are used again.
        for _ in 0..parents.len() {
            if above == root {
                return true;
            }
            match parents.get(&above) {
                Some(next) => above = *next,
                None => return false,
            }
        }
        false
    };
    all.into_iter().filter(|process| below(process)).collect()
}

/// What /proc lists.
fn listed() -> Vec<Process> {
    let Ok(dir) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found: Vec<Process> =
        dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).filter_map(one).collect();
    found.sort_by_key(|p| p.pid);
    found
}

/// One process, if it exists.
pub(crate) fn one(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    let comm = head.split_once('(')?.1.to_owned();
    let mut fields = tail.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let args =
        args.split(|b| *b == 0).map(String::from_utf8_lossy).collect::<Vec<_>>().join(" ").trim().to_owned();
    Some(Process { pid, parent, comm, state, args })
}

/// Whether the process exists and is not a zombie.
pub(crate) fn alive(pid: u32) -> bool {
    one(pid).is_some_and(|p| p.state != 'Z')
}

/// Processes whose arguments contain `text`.
pub(crate) fn with_args(text: &str) -> Vec<Process> {
    all().into_iter().filter(|p| p.args.contains(text)).collect()
}

/// Direct children of a process.
pub(crate) fn children(pid: u32) -> Vec<Process> {
    all().into_iter().filter(|p| p.parent == pid).collect()
}

/// `Name: value` lines of /proc/PID/status.
pub(crate) fn status(pid: u32) -> Result<BTreeMap<String, String>> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("status of {pid}"))?;
    Ok(text
        .lines()
        .filter_map(|l| l.split_once(':'))
        .map(|(k, v)| (k.to_owned(), v.trim().to_owned()))
        .collect())
}

/// Proportional set size of a process in KiB (smaps_rollup).
pub(crate) fn pss_kib(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("smaps_rollup of {pid}"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).context("no Pss line")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

/// Peak of a process's resident set, in KiB (VmHWM).
pub(crate) fn peak_kib(pid: u32) -> Result<u64> {
    let status = status(pid)?;
    Ok(status.get("VmHWM").context("no VmHWM")?.trim_end_matches(" kB").trim().parse()?)
}

/// CPU time of all threads that a process has now, in nanoseconds.
pub(crate) fn cpu_ns(pid: u32) -> Result<u64> {
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that has ended meanwhile is not counted.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        total += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(total)
}

/// CPU time of a process in seconds: of all threads, also of those that have ended, without its children.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    ticks(pid, 2)
}

/// The sum of the first `fields` of utime, stime, cutime and cstime of a process, in seconds.
fn ticks(pid: u32, fields: usize) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("stat of {pid}"))?;
    let (_, tail) = stat.rsplit_once(')').context("no command in stat")?;
    // They begin with the 14th field of all, in ticks of a hundredth second (USER_HZ).
    let ticks = tail.split_whitespace().skip(11).take(fields).map(str::parse::<u32>);
    let ticks = ticks.sum::<std::result::Result<u32, _>>()?;
    Ok(f64::from(ticks) / 100.0)
}

/// CPU time of a process and of those of its children that have ended, in seconds.
pub(crate) fn cpu_seconds_with_children(pid: u32) -> Result<f64> {
    ticks(pid, 4)
}

/// CPU time that all processors have spent on anything, in seconds.
pub(crate) fn machine_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    // user, nice, system, idle, iowait, irq, softirq: without the fourth and the fifth (proc_stat(5)).
    let busy = fields
        .take(7)
        .enumerate()
        .filter(|(at, _)| !matches!(at, 3 | 4))
        .map(|(_, field)| field.parse::<f64>());
    Ok(busy.sum::<std::result::Result<f64, _>>()? / 100.0)
}

/// Starts a new peak of a process's resident set ([`peak_kib`]; proc_pid_clear_refs(5)).
pub(crate) fn forget_peak(pid: u32) -> Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").with_context(|| format!("clear_refs of {pid}"))
}

/// Number of threads of a process.
pub(crate) fn threads(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("threads of {pid}"))?.count())
}

/// Whether this process has CAP_SYS_RESOURCE, without which an oom_score_adj cannot be set below the lowest value that
/// a process with it has allowed.
pub(crate) fn may_lower_oom_score() -> Result<bool> {
    let effective = status(std::process::id())?.get("CapEff").context("no CapEff")?.clone();
    Ok(u64::from_str_radix(&effective, 16)? >> 24 & 1 == 1)
}

/// Number of open file descriptors.
pub(crate) fn fds(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd")).with_context(|| format!("fds of {pid}"))?.count())
}

/// Whether the process has this file open.
pub(crate) fn has_open(pid: u32, path: &Path) -> bool {
    let Ok(dir) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    dir.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == path))
}

/// Number of containers whose init was sent the start request and has not accepted it yet: connections in the queue
/// of the socket on which it listens (/proc/net/unix, state SS_CONNECTING).
pub(crate) fn unanswered_starts() -> usize {
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let words = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words
        .filter(|w| w.get(5) == Some(&"02") && w.last().is_some_and(|it| it.ends_with("notify.sock")))
        .count()
}

/// Starts a program that reads nothing and writes all that it says to the file `log`.
pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Child> {
    let file = fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
    let started = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn();
    started.with_context(|| format!("start {}", command.get_program().display()))
}

/// Sends a signal; a process that has ended is not an error.
pub(crate) fn signal(pid: u32, signal: nix::sys::signal::Signal) -> Result<()> {
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid)?), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("kill {pid}")),
    }
}

/// The options of the mount at `point` that a process sees, from its /proc/PID/mountinfo.
pub(crate) fn mount_options(pid: u32, point: &str) -> Result<Vec<String>> {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some(point));
    let options = line.and_then(|line| line.split(' ').nth(5));
    Ok(options.with_context(|| format!("no mount at {point}"))?.split(',').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_those_below_the_root() {
        let process =
            |pid, parent| Process { pid, parent, comm: String::new(), state: 'S', args: String::new() };
        let all = [(1, 0), (2, 1), (3, 2), (4, 3), (5, 1), (6, 7), (7, 6)]
            .map(|(pid, parent)| process(pid, parent));
        let below: Vec<u32> = descendants(all.to_vec(), 2).iter().map(|p| p.pid).collect();
        assert_eq!(below, [3, 4]);
    }
}
