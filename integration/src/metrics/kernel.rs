//! What the kernel says of a cgroup, by the metric that shows it.

use std::fs;

use anyhow::{Context as _, Result};

use super::Samples;
use crate::cgroup::{self, Usage, keyed};
use crate::expect::ensure;

/// Places of values in [`kernel`].
pub(crate) const USAGE: usize = 12;
/// The last one.
pub(crate) const WORKING_SET: usize = 27;

/// Where the kernel has the values: a metric with its own labels, then its place on v1 and on v2. A place is a controller,
/// a file, the key of a line (`-`: the first word of the file, `+`: the second), and what the number is divided by.
const SOURCES: &str = "
cpu_usage_seconds_total cpu=total | cpuacct cpuacct.usage - 1000000000 | cpu cpu.stat usage_usec 1000000
cpu_user_seconds_total | cpuacct cpuacct.stat user 100 | cpu cpu.stat user_usec 1000000
cpu_system_seconds_total | cpuacct cpuacct.stat system 100 | cpu cpu.stat system_usec 1000000
cpu_cfs_periods_total | cpu cpu.stat nr_periods 1 | cpu cpu.stat nr_periods 1
cpu_cfs_throttled_periods_total | cpu cpu.stat nr_throttled 1 | cpu cpu.stat nr_throttled 1
cpu_cfs_throttled_seconds_total | cpu cpu.stat throttled_time 1000000000 | cpu cpu.stat throttled_usec 1000000
memory_cache | memory memory.stat total_cache 1 | memory memory.stat file 1
memory_rss | memory memory.stat total_rss 1 | memory memory.stat anon 1
memory_mapped_file | memory memory.stat total_mapped_file 1 | memory memory.stat file_mapped 1
memory_swap | memory memory.stat total_swap 1 | memory memory.swap.current - 1
memory_kernel_usage | memory memory.kmem.usage_in_bytes - 1 | memory memory.stat kernel 1
memory_failcnt | memory memory.failcnt - 1 | memory memory.events max 1
memory_usage_bytes | memory memory.usage_in_bytes - 1 | memory memory.current - 1
memory_max_usage_bytes | memory memory.max_usage_in_bytes - 1 | memory memory.peak - 1
memory_failures_total failure_type=pgfault scope=container | memory memory.stat pgfault 1 | memory memory.stat pgfault 1
memory_failures_total failure_type=pgfault scope=hierarchy | memory memory.stat total_pgfault 1 | memory memory.stat pgfault 1
memory_failures_total failure_type=pgmajfault scope=container | memory memory.stat pgmajfault 1 | memory memory.stat pgmajfault 1
memory_failures_total failure_type=pgmajfault scope=hierarchy | memory memory.stat total_pgmajfault 1 | memory memory.stat pgmajfault 1
oom_events_total | memory memory.oom_control oom_kill 1 | memory memory.events oom_kill 1
threads | pids pids.current - 1 | pids pids.current - 1
threads_max | pids pids.max - 1 | pids pids.max - 1
spec_cpu_period | cpu cpu.cfs_period_us - 1 | cpu cpu.max + 1
spec_cpu_quota | cpu cpu.cfs_quota_us - 1 | cpu cpu.max - 1
spec_cpu_shares | cpu cpu.shares - 1 | cpu cpu.weight - 1
spec_memory_limit_bytes | memory memory.limit_in_bytes - 1 | memory memory.max - 1
spec_memory_swap_limit_bytes | memory memory.memsw.limit_in_bytes - 1 | memory memory.swap.max - 1
spec_memory_reservation_limit_bytes | memory memory.soft_limit_in_bytes - 1 | memory memory.low - 1
";

/// A line of [`SOURCES`], for one version.
#[derive(Debug)]
struct Source {
    name: &'static str,
    labels: Vec<(&'static str, &'static str)>,
    controller: &'static str,
    file: &'static str,
    key: &'static str,
    divisor: u64,
}

fn sources(v2: bool) -> Result<Vec<Source>> {
    let line = |line: &'static str| -> Option<Source> {
        let columns: Vec<Vec<&str>> =
            line.split('|').map(|column| column.split_whitespace().collect()).collect();
        let [metric, v1, of_v2] = columns.try_into().ok()?;
        let (name, labels) = metric.split_first()?;
        let [controller, file, key, divisor] = (if v2 { of_v2 } else { v1 }).try_into().ok()?;
        let labels = labels.iter().map(|label| label.split_once('=')).collect::<Option<_>>()?;
        Some(Source { name, labels, controller, file, key, divisor: divisor.parse().ok()? })
    };
    SOURCES.trim().lines().map(|text| line(text).with_context(|| format!("wrong: {text}"))).collect()
}

/// The number of a key in a file. No limit is 0.
fn number(text: &str, key: &str) -> Result<u64> {
    let value = match key {
        "-" => text.split_whitespace().next(),
        "+" => text.split_whitespace().nth(1),
        key => keyed(text, key),
    };
    match value.with_context(|| format!("no {key} in {text}"))? {
        "max" | "-1" => Ok(0),
        value => Ok(value.parse::<u64>().map(|it| if it >= 1 << 62 { 0 } else { it })?),
    }
}

/// The shares that cAdvisor shows for a weight: back by the conversion of the shares, so that they are not those that
/// were asked for.
fn shares(weight: u64) -> u64 {
    2 + weight.saturating_sub(1) * 262_142 / 9999
}

/// What the kernel says of a cgroup, whose last path element is `leaf`; in the order of [`SOURCES`], and the working set.
pub(crate) fn kernel(leaf: &str) -> Result<Vec<u64>> {
    let place = cgroup::place(leaf).with_context(|| format!("no cgroup called {leaf}"))?;
    let v2 = cgroup::is_v2();
    let mut values = Vec::new();
    for Source { name, controller, file, key, divisor, .. } in sources(v2)? {
        let file = cgroup::folder(controller, &place)?.join(file);
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let value = number(&text, key).with_context(|| format!("{name}: {}", file.display()))? / divisor;
        values.push(if v2 && name == "spec_cpu_shares" { shares(value) } else { value });
    }
    let usage = cgroup::usage_at(Usage::Memory, &place)?;
    values.push(usage.saturating_sub(cgroup::usage_at(Usage::InactiveFile, &place)?));
    Ok(values)
}

/// Checks the samples with these labels against what the kernel said before and after them. `skip` are names without
/// their prefix that there must not be.
pub(crate) fn equal(
    samples: &Samples,
    labels: &[(&str, &str)],
    [before, after]: [&[u64]; 2],
    skip: &[&str],
) -> Result<()> {
    let metrics = sources(cgroup::is_v2())?.into_iter().map(|source| (source.name, source.labels));
    let metrics = metrics.chain([("memory_working_set_bytes", Vec::new())]);
    for ((name, own), (before, after)) in metrics.zip(before.iter().zip(after)) {
        let full = format!("container_{name}");
        let labels: Vec<(&str, &str)> = labels.iter().copied().chain(own).collect();
        if skip.contains(&name) {
            ensure!(samples.all(&full, &labels).is_empty(), "{full} has {:?}", samples.all(&full, &labels));
            continue;
        }
        let value = samples.one(&full, &labels)?;
        let (low, high) = (before.min(after), before.max(after));
        ensure!(
            (*low as f64..=*high as f64).contains(&value),
            "{full} with {labels:?} is {value}, but the kernel said {before} before and {after} after"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_right() {
        for v2 in [false, true] {
            let sources = sources(v2).unwrap();
            assert_eq!(sources.len(), WORKING_SET);
            assert_eq!(sources.get(USAGE).map(|source| source.name), Some("memory_usage_bytes"));
        }
    }

    #[test]
    fn numbers_are_found() {
        assert_eq!(number("user 12\nsystem 3\n", "system").unwrap(), 3);
        assert_eq!((number("max 5", "-").unwrap(), number("-1\n", "-").unwrap()), (0, 0));
        assert_eq!((number("9223372036854771712", "-").unwrap(), number("max 5\n", "+").unwrap()), (0, 5));
        assert!(number("user 12", "us").is_err());
    }
}
