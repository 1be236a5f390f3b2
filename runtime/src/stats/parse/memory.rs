//! What cgroups are charged for: memory and swap.

use super::super::reading::{Memory, Psi, Swap};
use super::number;

/// A higher limit means no limit: v1 shows "none" as the largest multiple of a page in an i64.
const NO_LIMIT: u64 = 1 << 62;

/// A limit of memory, in bytes; `None` means no limit.
pub(in crate::stats) fn limit(bytes: u64) -> Option<u64> {
    (bytes < NO_LIMIT).then_some(bytes)
}

/// The values of memory.stat that are used, in bytes or as a count. They include the cgroups below, except element 0 of
/// `faults` and `major_faults`. `None`: the file lacks it, as swap on a host that does not account for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::stats) struct MemoryStat {
    /// Page cache.
    pub(in crate::stats) cache: Option<u64>,
    /// Anonymous memory.
    pub(in crate::stats) rss: Option<u64>,
    /// Mapped files.
    pub(in crate::stats) mapped_file: Option<u64>,
    /// Page cache that was not used lately.
    pub(in crate::stats) inactive_file: Option<u64>,
    /// Memory of the kernel. v1 has a file for it.
    pub(in crate::stats) kernel: Option<u64>,
    /// Swap. v2 has a file for it.
    pub(in crate::stats) swap: Option<u64>,
    /// Page faults of this cgroup alone (v2: the same as the next), and with those below.
    pub(in crate::stats) faults: [Option<u64>; 2],
    /// The same for page faults that needed I/O.
    pub(in crate::stats) major_faults: [Option<u64>; 2],
}

impl MemoryStat {
    /// The content of v1's memory.stat, which has each value twice: those with `total_` include the cgroups below.
    pub(in crate::stats) fn v1(text: &str) -> Self {
        let mut stat = Self::default();
        for (key, value) in lines(text) {
            *match key {
                "total_cache" => &mut stat.cache,
                "total_rss" => &mut stat.rss,
                "total_mapped_file" => &mut stat.mapped_file,
                "total_inactive_file" => &mut stat.inactive_file,
                "total_swap" => &mut stat.swap,
                "pgfault" => &mut stat.faults[0],
                "total_pgfault" => &mut stat.faults[1],
                "pgmajfault" => &mut stat.major_faults[0],
                "total_pgmajfault" => &mut stat.major_faults[1],
                _ => continue,
            } = number(value);
        }
        stat
    }

    /// The content of v2's memory.stat, whose values include the cgroups below.
    pub(in crate::stats) fn v2(text: &str) -> Self {
        let mut stat = Self::default();
        for (key, value) in lines(text) {
            *match key {
                "file" => &mut stat.cache,
                "anon" => &mut stat.rss,
                "file_mapped" => &mut stat.mapped_file,
                "inactive_file" => &mut stat.inactive_file,
                "kernel" => &mut stat.kernel,
                "pgfault" => &mut stat.faults[1],
                "pgmajfault" => &mut stat.major_faults[1],
                _ => continue,
            } = number(value);
        }
        (stat.faults[0], stat.major_faults[0]) = (stat.faults[1], stat.major_faults[1]);
        stat
    }

    /// `usage` without inactive page cache, never below 0.
    pub(in crate::stats) fn working_set(&self, usage: u64) -> u64 {
        usage.saturating_sub(self.inactive_file.unwrap_or(0))
    }
}

fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.split_once(' '))
}

/// Memory and swap that a cgroup is charged for, with the cgroups below, and its own limits. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::stats) struct Charge {
    /// Memory in use, page cache included.
    pub(in crate::stats) usage: u64,
    pub(in crate::stats) stat: MemoryStat,
    /// Limit of memory.
    pub(in crate::stats) limit: Option<u64>,
    /// `None` if the host does not account for swap.
    pub(in crate::stats) swap: Option<SwapCharge>,
}

/// Swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::stats) struct SwapCharge {
    /// Swap in use.
    pub(in crate::stats) usage: u64,
    /// Limit of swap alone.
    pub(in crate::stats) limit: Option<u64>,
}

impl Charge {
    /// The part of memory.
    pub(in crate::stats) fn memory(&self, timestamp: i64, psi: Option<Psi>) -> Memory {
        let Self { usage, stat, limit, swap: _ } = self;
        let working_set = stat.working_set(*usage);
        Memory {
            timestamp,
            working_set_bytes: working_set,
            available_bytes: limit.map(|limit| limit.saturating_sub(working_set)),
            usage_bytes: *usage,
            rss_bytes: stat.rss.unwrap_or(0),
            page_faults: stat.faults[1].unwrap_or(0),
            major_page_faults: stat.major_faults[1].unwrap_or(0),
            psi,
        }
    }

    /// The part of swap.
    pub(in crate::stats) fn swap(&self, timestamp: i64) -> Option<Swap> {
        self.swap.map(|SwapCharge { usage, limit }| Swap {
            timestamp,
            swap_available_bytes: limit.map(|limit| limit.saturating_sub(usage)),
            swap_usage_bytes: usage,
        })
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
        let want = MemoryStat {
            cache: Some(10),
            rss: Some(20),
            inactive_file: Some(30),
            faults: [Some(4), Some(40)],
            major_faults: [None, Some(50)],
            ..MemoryStat::default()
        };
        assert_eq!(MemoryStat::v1(text), want);
        let swap = format!("{text}total_swap 60\n");
        assert_eq!(MemoryStat::v1(&swap), MemoryStat { swap: Some(60), ..want });
        assert_eq!((limit(9_223_372_036_854_771_712), limit(4096)), (None, Some(4096)));
    }

    /// Older kernels have fewer keys; `kernel` is there since Linux 5.18.
    #[test]
    fn keys_of_v2() {
        let text = "anon 1\nanon_thp 2\nfile 3\nfile_mapped 4\nkernel_stack 5\ninactive_file 6\npgfault 7\n";
        let want = MemoryStat {
            cache: Some(3),
            rss: Some(1),
            mapped_file: Some(4),
            inactive_file: Some(6),
            faults: [Some(7); 2],
            ..MemoryStat::default()
        };
        assert_eq!(MemoryStat::v2(text), want);
        assert_eq!(MemoryStat::v2(&format!("{text}kernel 8\n")), MemoryStat { kernel: Some(8), ..want });
    }

    fn charge(usage: u64, limit: u64) -> Charge {
        let stat = MemoryStat { inactive_file: Some(100), ..MemoryStat::default() };
        Charge { usage, stat, limit: Some(limit), swap: Some(SwapCharge { usage, limit: Some(limit) }) }
    }

    #[test]
    fn nothing_is_below_zero() {
        let few = charge(40, 1000).memory(1, None);
        assert_eq!((few.working_set_bytes, few.available_bytes), (0, Some(1000)));
        let over = charge(400, 200).memory(1, None);
        assert_eq!((over.working_set_bytes, over.available_bytes), (300, Some(0)));
        let swap = |usage, limit| charge(usage, limit).swap(1).unwrap().swap_available_bytes;
        assert_eq!((swap(40, 1000), swap(400, 200)), (Some(960), Some(0)));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "[a-z_0-9 =.:\n]{0,200}") {
            let _ = MemoryStat::v1(&text);
            let _ = MemoryStat::v2(&text);
        }
    }
}
