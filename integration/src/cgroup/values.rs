//! Limits and usage of a cgroup by their meaning: the same calls read the files of v1 and of v2.
//!
//! Limits are numbers in the units of CRI (LinuxContainerResources); no limit is `None`. CPU weights are the exception:
//! v2 keeps no shares, so that [`shares`] says which number [`limit`] reads for them on this host.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{find, folder, is_v2, place};

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Microseconds of CPU time in a period.
    CpuQuota,
    /// The period, in microseconds.
    CpuPeriod,
    /// The share of the CPU, as [`shares`] has it.
    CpuShares,
    /// Bytes of memory.
    Memory,
    /// Bytes of memory and swap together.
    MemoryAndSwap,
    /// Processes and threads.
    Pids,
    /// Bytes in huge pages of 2 MiB.
    HugePages,
}

use Limit::{CpuPeriod, CpuQuota, CpuShares, HugePages, Memory, MemoryAndSwap, Pids};

/// What v1 shows for "no limit" of memory: the largest multiple of a page.
const V1_UNLIMITED: u64 = 9_223_372_036_854_771_712;

/// A limit of the cgroup whose last path element is `leaf`.
pub(crate) fn limit(what: Limit, leaf: &str) -> Result<Option<u64>> {
    limit_at(what, &place(leaf).with_context(|| format!("no cgroup called {leaf}"))?)
}

/// A limit of the cgroup at `path`, as in /proc/PID/cgroup.
pub(crate) fn limit_at(what: Limit, path: &str) -> Result<Option<u64>> {
    let word = |controller: &str, file: &str, index: usize| -> Result<Option<u64>> {
        let file = folder(controller, path)?.join(file);
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        number(text.split_whitespace().nth(index).unwrap_or_default())
            .with_context(|| format!("{} has {text:?}", file.display()))
    };
    if !is_v2() {
        let (controller, file) = v1_file(what);
        return word(controller, file, 0);
    }
    let file = v2_file(what);
    let controller = file.split('.').next().unwrap_or_default();
    let found = word(controller, file, usize::from(what == CpuPeriod))?;
    if what != MemoryAndSwap {
        return Ok(found);
    }
    // v2 limits swap alone.
    Ok(found.zip(limit_at(Memory, path)?).map(|(swap, memory)| memory + swap))
}

/// Where v1 has a limit: controller and file.
fn v1_file(what: Limit) -> (&'static str, &'static str) {
    match what {
        CpuQuota => ("cpu", "cpu.cfs_quota_us"),
        CpuPeriod => ("cpu", "cpu.cfs_period_us"),
        CpuShares => ("cpu", "cpu.shares"),
        Memory => ("memory", "memory.limit_in_bytes"),
        MemoryAndSwap => ("memory", "memory.memsw.limit_in_bytes"),
        Pids => ("pids", "pids.max"),
        HugePages => ("hugetlb", "hugetlb.2MB.limit_in_bytes"),
    }
}

/// The file in which v2 has a limit; its first word is the name of the controller.
fn v2_file(what: Limit) -> &'static str {
    match what {
        CpuQuota | CpuPeriod => "cpu.max",
        CpuShares => "cpu.weight",
        Memory => "memory.max",
        MemoryAndSwap => "memory.swap.max",
        Pids => "pids.max",
        HugePages => "hugetlb.2MB.max",
    }
}

/// The file in which a container sees one of its own limits.
pub(crate) fn inside(what: Limit) -> String {
    let (controller, file) = v1_file(what);
    if is_v2() {
        format!("/sys/fs/cgroup/{}", v2_file(what))
    } else {
        format!("/sys/fs/cgroup/{controller}/{file}")
    }
}

/// The number in a file; `None` is no limit.
fn number(word: &str) -> Result<Option<u64>> {
    if matches!(word, "max" | "-1") {
        return Ok(None);
    }
    Ok(Some(word.parse()?).filter(|number| *number < V1_UNLIMITED))
}

/// What [`limit`] reads where `number` shares are in force: on v2 the weight that kubelet converts them to
/// (`getCPUWeight` of its cgroup manager).
pub(crate) fn shares(number: u64) -> u64 {
    if is_v2() { weight(number) } else { number }
}

fn weight(shares: u64) -> u64 {
    if shares >= 262_144 { 10_000 } else { 1 + shares.saturating_sub(2) * 9999 / 262_142 }
}

/// Sets a limit of the cgroup at `path` beside copepod, in the units in which [`limit_at`] reads it.
pub(crate) fn set(what: Limit, path: &str, value: u64) -> Result<()> {
    let (controller, file) = match (is_v2(), what) {
        (false, what) => v1_file(what),
        (true, CpuShares) => ("cpu", v2_file(what)),
        (true, Memory) => ("memory", v2_file(what)),
        (true, _) => anyhow::bail!("no test sets {what:?} on v2"),
    };
    let file = folder(controller, path)?.join(file);
    fs::write(&file, value.to_string()).with_context(|| format!("{value} to {}", file.display()))
}

/// The CPUs and the memory nodes that a cgroup may use, as lists of the kernel ("0-1"): what is set for it, or, where v2
/// has nothing set, what it has from above.
pub(crate) fn cpus_and_nodes(leaf: &str) -> Result<[String; 2]> {
    let dir = find("cpuset", leaf).with_context(|| format!("no cpuset cgroup called {leaf}"))?;
    let read = |name: &str| -> Result<String> {
        let text = fs::read_to_string(dir.join(name)).with_context(|| format!("{name} of {leaf}"))?;
        Ok(text.trim().to_owned())
    };
    let effective = |name: &str| -> Result<String> {
        let own = read(name)?;
        if own.is_empty() { read(&format!("{name}.effective")) } else { Ok(own) }
    };
    Ok([effective("cpuset.cpus")?, effective("cpuset.mems")?])
}

/// What a cgroup has used; those of memory are from memory.stat where they have no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Usage {
    /// CPU time in nanoseconds. v2 counts microseconds.
    Cpu,
    /// Bytes of memory.
    Memory,
    /// Bytes of files that were not used recently, which do not count for a working set.
    InactiveFile,
    /// Bytes of anonymous memory.
    Anonymous,
    /// Page faults.
    Faults,
    /// Page faults that read from a disk.
    MajorFaults,
    /// Bytes in swap.
    Swap,
}

/// A usage of the cgroup at `path`.
pub(crate) fn usage_at(what: Usage, path: &str) -> Result<u64> {
    let (controller, file, key, factor) = source(what, is_v2());
    let file = folder(controller, path)?.join(file);
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let value = if key.is_empty() { Some(text.trim()) } else { keyed(&text, key) };
    let value = value.with_context(|| format!("no {key} in {}", file.display()))?;
    Ok(value.parse::<u64>().with_context(|| format!("{} has {value:?}", file.display()))? * factor)
}

/// A usage of the cgroup whose last path element is `leaf`.
pub(crate) fn usage(what: Usage, leaf: &str) -> Result<u64> {
    usage_at(what, &place(leaf).with_context(|| format!("no cgroup called {leaf}"))?)
}

/// The value in a line `key value`.
pub(crate) fn keyed<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).map(str::trim)
}

/// Controller, file, key of the line, and by what the number is multiplied.
fn source(what: Usage, v2: bool) -> (&'static str, &'static str, &'static str, u64) {
    match (what, v2) {
        (Usage::Cpu, false) => ("cpuacct", "cpuacct.usage", "", 1),
        (Usage::Cpu, true) => ("cpu", "cpu.stat", "usage_usec", 1000),
        (Usage::Memory, false) => ("memory", "memory.usage_in_bytes", "", 1),
        (Usage::Memory, true) => ("memory", "memory.current", "", 1),
        (Usage::InactiveFile, false) => ("memory", "memory.stat", "total_inactive_file", 1),
        (Usage::InactiveFile, true) => ("memory", "memory.stat", "inactive_file", 1),
        (Usage::Anonymous, false) => ("memory", "memory.stat", "total_rss", 1),
        (Usage::Anonymous, true) => ("memory", "memory.stat", "anon", 1),
        (Usage::Faults, false) => ("memory", "memory.stat", "total_pgfault", 1),
        (Usage::Faults, true) => ("memory", "memory.stat", "pgfault", 1),
        (Usage::MajorFaults, false) => ("memory", "memory.stat", "total_pgmajfault", 1),
        (Usage::MajorFaults, true) => ("memory", "memory.stat", "pgmajfault", 1),
        (Usage::Swap, false) => ("memory", "memory.stat", "total_swap", 1),
        (Usage::Swap, true) => ("memory", "memory.swap.current", "", 1),
    }
}

/// A file for the pressure of a resource in the cgroup at `path`, if the kernel counts it.
pub(crate) fn has_pressure(path: &str) -> bool {
    folder("cpu", path).is_ok_and(|dir: std::path::PathBuf| Path::new(&dir).join("cpu.pressure").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_none() {
        for word in ["max", "-1", "9223372036854771712", "18446744073709551615"] {
            assert_eq!(number(word).unwrap(), None, "{word}");
        }
        assert_eq!(number("67108864").unwrap(), Some(64 << 20));
        assert!(number("").is_err() && number("x").is_err());
    }

    #[test]
    fn shares_become_weights_as_kubelet_converts_them() {
        for (shares, expected) in [(0, 1), (2, 1), (102, 4), (512, 20), (1024, 39), (262_144, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn lines_are_found_by_their_whole_key() {
        let text = "total_rss_huge 1\ntotal_rss 22\n";
        assert_eq!((keyed(text, "total_rss"), keyed(text, "rss")), (Some("22"), None));
    }
}
