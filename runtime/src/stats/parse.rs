//! Parses cgroup files of v1 and v2. Pure.

use super::Memory;

/// A higher limit means no limit: v1 shows "none" as the largest multiple of a page in an i64.
const NO_LIMIT: u64 = 1 << 62;

/// The fields of memory.stat that are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MemoryStat {
    pub(super) inactive_file: u64,
    pub(super) anonymous: u64,
    pub(super) faults: u64,
    pub(super) major_faults: u64,
    /// `None` if swap is not accounted.
    pub(super) swap: Option<u64>,
}

/// v1's file has each value twice, `total_` including descendants; v2's has it once, including descendants.
pub(super) fn memory_stat(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::default();
    let v1 = text.lines().any(|line| line.starts_with("total_"));
    for line in text.lines() {
        let Some((key, value)) = line.split_once(' ') else { continue };
        let Ok(value) = value.trim().parse::<u64>() else { continue };
        match (v1, key) {
            (true, "total_inactive_file") | (false, "inactive_file") => stat.inactive_file = value,
            (true, "total_rss") | (false, "anon") => stat.anonymous = value,
            (true, "total_pgfault") | (false, "pgfault") => stat.faults = value,
            (true, "total_pgmajfault") | (false, "pgmajfault") => stat.major_faults = value,
            (true, "total_swap") => stat.swap = Some(value),
            _ => {}
        }
    }
    stat
}

pub(super) fn limit(bytes: u64) -> Option<u64> {
    (bytes < NO_LIMIT).then_some(bytes)
}

pub(super) fn memory(timestamp: i64, usage: u64, limit: Option<u64>, stat: &MemoryStat) -> Memory {
    let working_set = usage.saturating_sub(stat.inactive_file);
    Memory {
        timestamp,
        working_set_bytes: working_set,
        available_bytes: limit.map(|limit| limit.saturating_sub(working_set)),
        usage_bytes: usage,
        rss_bytes: stat.anonymous,
        page_faults: stat.faults,
        major_page_faults: stat.major_faults,
    }
}

/// CPU time in nanoseconds from v2's cpu.stat, which has microseconds.
#[cfg_attr(not(test), expect(dead_code, reason = "hosts with cgroup v2 only are refused at start"))]
pub(super) fn cpu_stat_v2(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    value.trim().parse::<u64>().ok()?.checked_mul(1000)
}

/// A limit of v2: `max`, or bytes.
#[cfg_attr(not(test), expect(dead_code, reason = "hosts with cgroup v2 only are refused at start"))]
pub(super) fn limit_v2(text: &str) -> Option<u64> {
    text.trim().parse().ok().and_then(limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_versions() {
        let v1 = "cache 1\nrss 2\ninactive_file 3\npgfault 4\ntotal_cache 10\ntotal_rss 20\n\
                  total_inactive_file 30\ntotal_pgfault 40\ntotal_pgmajfault 50\ntotal_swap 60\n";
        let want =
            MemoryStat { inactive_file: 30, anonymous: 20, faults: 40, major_faults: 50, swap: Some(60) };
        assert_eq!(memory_stat(v1), want);
        let v2 = "anon 20\nfile 1\ninactive_file 30\npgfault 40\npgmajfault 50\n";
        assert_eq!(memory_stat(v2), MemoryStat { swap: None, ..want });
        assert_eq!(cpu_stat_v2("usage_usec 7\nuser_usec 1\n"), Some(7000));
        assert_eq!((limit_v2("max\n"), limit_v2("4096\n")), (None, Some(4096)));
        assert_eq!((limit(9_223_372_036_854_771_712), limit(4096)), (None, Some(4096)));
    }

    #[test]
    fn working_set_is_never_below_zero() {
        let stat = MemoryStat { inactive_file: 100, ..MemoryStat::default() };
        let few = memory(1, 40, Some(1000), &stat);
        assert_eq!((few.working_set_bytes, few.available_bytes), (0, Some(1000)));
        let over = memory(1, 400, Some(200), &stat);
        assert_eq!((over.working_set_bytes, over.available_bytes), (300, Some(0)));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "[a-z_0-9 \n]{0,200}") {
            let _ = memory_stat(&text);
            let _ = cpu_stat_v2(&text);
            let _ = limit_v2(&text);
        }
    }
}
