//! Parses cgroup files of v1. Pure.

use super::Memory;

/// A higher limit means no limit: the kernel shows "none" as the largest multiple of a page in an i64.
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

/// The file has each value twice; the one with `total_` includes the cgroups below.
pub(super) fn memory_stat(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(' ') else { continue };
        let Ok(value) = value.trim().parse::<u64>() else { continue };
        match key {
            "total_inactive_file" => stat.inactive_file = value,
            "total_rss" => stat.anonymous = value,
            "total_pgfault" => stat.faults = value,
            "total_pgmajfault" => stat.major_faults = value,
            "total_swap" => stat.swap = Some(value),
            _ => {}
        }
    }
    stat
}

/// `None` means no limit.
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
        psi: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn totals_and_limits() {
        let text = "cache 1\nrss 2\ninactive_file 3\npgfault 4\ntotal_cache 10\ntotal_rss 20\n\
                    total_inactive_file 30\ntotal_pgfault 40\ntotal_pgmajfault 50\n";
        let want = MemoryStat { inactive_file: 30, anonymous: 20, faults: 40, major_faults: 50, swap: None };
        assert_eq!(memory_stat(text), want);
        let swap = format!("{text}total_swap 60\n");
        assert_eq!(memory_stat(&swap), MemoryStat { swap: Some(60), ..want });
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
        }
    }
}
