//! Parses cgroup files of v1 and files of /proc. Pure.

use super::reading::{Interface, Memory, Psi, PsiData, Traffic};
use std::collections::BTreeMap;

/// A higher limit means no limit: the kernel shows "none" as the largest multiple of a page in an i64.
const NO_LIMIT: u64 = 1 << 62;

/// The operations of the block layer, as `blkio` files name them.
const OPERATIONS: [&str; 6] = ["Read", "Write", "Sync", "Async", "Discard", "Total"];

/// The value of a line `key value`.
pub(super) fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A file with one number. Negative ones (no quota) are `None`.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// `pids.max`: 0 stands for no limit, as in cAdvisor's metric.
pub(super) fn task_limit(text: &str) -> Option<u64> {
    if text.trim() == "max" { Some(0) } else { number(text) }
}

/// The values of memory.stat that are used. The file has each twice; the one with `total_` includes the cgroups below.
/// `None`: the file lacks it, as swap on a host that does not account for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MemoryStat {
    /// Page cache, with the cgroups below, as all up to `swap`. Bytes.
    pub(super) cache: Option<u64>,
    /// Anonymous memory.
    pub(super) rss: Option<u64>,
    /// Mapped files.
    pub(super) mapped_file: Option<u64>,
    /// Page cache that was not used lately.
    pub(super) inactive_file: Option<u64>,
    /// Swap.
    pub(super) swap: Option<u64>,
    /// Page faults of this cgroup alone, and with those below.
    pub(super) faults: [Option<u64>; 2],
    /// The same for page faults that needed I/O.
    pub(super) major_faults: [Option<u64>; 2],
}

/// The content of memory.stat.
pub(super) fn memory_stat(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(' ') else { continue };
        let field = match key {
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
        };
        *field = number(value);
    }
    stat
}

impl MemoryStat {
    /// `usage` without inactive page cache, never below 0.
    pub(super) fn working_set(&self, usage: u64) -> u64 {
        usage.saturating_sub(self.inactive_file.unwrap_or(0))
    }
}

/// A limit of memory, in bytes; `None` means no limit.
pub(super) fn limit(bytes: u64) -> Option<u64> {
    (bytes < NO_LIMIT).then_some(bytes)
}

pub(super) fn memory(timestamp: i64, usage: u64, limit: Option<u64>, stat: &MemoryStat) -> Memory {
    let working_set = stat.working_set(usage);
    Memory {
        timestamp,
        working_set_bytes: working_set,
        available_bytes: limit.map(|limit| limit.saturating_sub(working_set)),
        usage_bytes: usage,
        rss_bytes: stat.rss.unwrap_or(0),
        page_faults: stat.faults[1].unwrap_or(0),
        major_page_faults: stat.major_faults[1].unwrap_or(0),
        psi: None,
    }
}

/// A pressure file; `None` if its line `some` is missing or cannot be read.
pub(super) fn psi(text: &str) -> Option<Psi> {
    let line = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let value = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let average = |name: &str| value(name)?.parse::<f64>().ok().filter(|share| share.is_finite());
        Some(PsiData {
            total: value("total")?.trim().parse::<u64>().ok()?.saturating_mul(1000),
            avg10: average("avg10")?,
            avg60: average("avg60")?,
            avg300: average("avg300")?,
        })
    };
    Some(Psi { some: line("some")?, full: line("full").unwrap_or_default() })
}

/// The interfaces in /proc/net/dev except `lo`: two lines of headers, then one line per interface, with eight numbers for
/// each direction. Lines that are incomplete, as the last one of a text that was cut off, are left out.
pub(super) fn net_dev(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let name = name.trim();
        let numbers: Vec<u64> =
            numbers.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        let &[rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, ref sent @ ..] = numbers.as_slice()
        else {
            return None;
        };
        let &[tx_bytes, tx_packets, tx_errors, tx_dropped, _, _, _, _] = sent else { return None };
        (name != "lo" && !name.is_empty()).then(|| Interface {
            name: name.to_owned(),
            rx: Traffic { bytes: rx_bytes, packets: rx_packets, errors: rx_errors, dropped: rx_dropped },
            tx: Traffic { bytes: tx_bytes, packets: tx_packets, errors: tx_errors, dropped: tx_dropped },
        })
    };
    // Only the last line can lack its end.
    text.split_inclusive('\n').skip(2).filter_map(|line| interface(line.strip_suffix('\n')?)).collect()
}

/// What a `blkio` file says of one device: the value of each operation.
pub(super) type Operations = Vec<(&'static str, u64)>;

/// A `blkio` file with lines of `major:minor operation value`, by device. The sum in the last line, and operations that
/// no kernel of today knows, are left out; so are devices beyond the first `limit`.
pub(super) fn devices(text: &str, limit: usize) -> BTreeMap<(u32, u32), Operations> {
    let mut devices: BTreeMap<(u32, u32), Operations> = BTreeMap::new();
    for line in text.lines() {
        let Some((device, operation, value)) = device_line(line) else { continue };
        if devices.contains_key(&device) || devices.len() < limit {
            devices.entry(device).or_default().push((operation, value));
        }
    }
    devices
}

fn device_line(line: &str) -> Option<((u32, u32), &'static str, u64)> {
    let mut words = line.split_ascii_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let name = words.next()?;
    let operation = OPERATIONS.into_iter().find(|known| *known == name)?;
    Some(((major.parse().ok()?, minor.parse().ok()?), operation, words.next()?.parse().ok()?))
}

/// The soft limit of open files in `/proc/<pid>/limits`; `None` if it is unlimited.
pub(super) fn open_files(text: &str) -> Option<u64> {
    let values = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    values.split_ascii_whitespace().next()?.parse().ok()
}

/// The page size in the name of a file such as `hugetlb.2MB.usage_in_bytes`. The files of reservations (`rsvd`) and of
/// NUMA nodes have other names.
pub(super) fn page_size(name: &str) -> Option<&str> {
    name.strip_prefix("hugetlb.")?.strip_suffix(".usage_in_bytes").filter(|size| !size.contains('.'))
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
        assert_eq!(memory_stat(text), want);
        let swap = format!("{text}total_swap 60\n");
        assert_eq!(memory_stat(&swap), MemoryStat { swap: Some(60), ..want });
        assert_eq!((limit(9_223_372_036_854_771_712), limit(4096)), (None, Some(4096)));
    }

    #[test]
    fn files_are_parsed() {
        let stat = "nr_periods 12\nnr_throttled 3\nthrottled_time 45\n";
        assert_eq!(value_of(stat, "nr_periods"), Some(12));
        assert_eq!(value_of(stat, "nr"), None);
        assert_eq!(number("-1\n"), None);
        assert_eq!(number("20000\n"), Some(20_000));
        assert_eq!((task_limit("max\n"), task_limit("7\n"), task_limit("")), (Some(0), Some(7), None));
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 4096                 files     \n";
        assert_eq!(open_files(limits), Some(1024));
        assert_eq!(open_files(&limits.replace("1024", "unlimited")), None);
        let sizes = [
            "hugetlb.2MB.usage_in_bytes",
            "hugetlb.2MB.rsvd.usage_in_bytes",
            "hugetlb.2MB.max_usage_in_bytes",
        ];
        assert_eq!(sizes.map(page_size), [Some("2MB"), None, None]);
    }

    #[test]
    fn devices_are_parsed_and_bounded() {
        let text = "8:0 Read 10\n8:0 Write 20\n8:0 Novel 5\n8:0 Total 30\n253:1 Read 7\nTotal 37\nx:y Read 1\n8:0 Read\n";
        let all = devices(text, 8);
        assert_eq!(all[&(8, 0)], [("Read", 10), ("Write", 20), ("Total", 30)]);
        assert_eq!(all[&(253, 1)], [("Read", 7)]);
        assert_eq!(all.len(), 2);
        let first = devices(text, 1);
        assert_eq!(first.keys().collect::<Vec<_>>(), [&(8, 0)]);
        assert_eq!(first[&(8, 0)].len(), 3);
    }

    #[test]
    fn working_set_is_never_below_zero() {
        let stat = MemoryStat { inactive_file: Some(100), ..MemoryStat::default() };
        let few = memory(1, 40, Some(1000), &stat);
        assert_eq!((few.working_set_bytes, few.available_bytes), (0, Some(1000)));
        let over = memory(1, 400, Some(200), &stat);
        assert_eq!((over.working_set_bytes, over.available_bytes), (300, Some(0)));
    }

    #[test]
    fn pressure_has_nanoseconds() {
        let some = "some avg10=1.50 avg60=0.25 avg300=0.00 total=123\n";
        let both = format!("{some}full avg10=0.00 avg60=0.10 avg300=100.00 total=7\n");
        let want = PsiData { total: 123_000, avg10: 1.5, avg60: 0.25, avg300: 0.0 };
        let full = PsiData { total: 7000, avg10: 0.0, avg60: 0.1, avg300: 100.0 };
        assert_eq!(psi(&both), Some(Psi { some: want, full }));
        assert_eq!(psi(some), Some(Psi { some: want, full: PsiData::default() }), "before Linux 5.13");
        for bad in [
            "",
            "full avg10=0.00 avg60=0.10 avg300=1.00 total=7\n",
            "some avg10=x avg60=0 avg300=0 total=1\n",
        ] {
            assert_eq!(psi(bad), None, "{bad}");
        }
        let most = psi("some avg10=0 avg60=0 avg300=0 total=18446744073709551615\n").unwrap();
        assert_eq!(most.some.total, u64::MAX);
    }

    const NET_DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    1       2    3    4    5     6          7         8        9      10   11   12   13    14      15         16
  eth0:101 102 103 104 105 106 107 108 109 110 111 112 113 114 115 116
net1.20@x: 18446744073709551615 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0
";

    #[test]
    fn interfaces_without_loopback() {
        let read = net_dev(NET_DEV);
        let [eth0, net1] = read.as_slice() else { panic!("{read:?}") };
        assert_eq!((eth0.name.as_str(), net1.name.as_str()), ("eth0", "net1.20@x"));
        assert_eq!(eth0.rx, Traffic { bytes: 101, packets: 102, errors: 103, dropped: 104 });
        assert_eq!(eth0.tx, Traffic { bytes: 109, packets: 110, errors: 111, dropped: 112 });
        assert_eq!((net1.rx.bytes, net1.tx.bytes), (u64::MAX, 1));
    }

    /// A text that is cut off anywhere has only whole interfaces with right values.
    #[test]
    fn a_text_that_is_cut_off() {
        let whole = net_dev(NET_DEV);
        for end in 0..NET_DEV.len() {
            let read = net_dev(&NET_DEV[..end]);
            assert_eq!(read, whole[..read.len()], "{end}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "[a-z_0-9 =.:\n]{0,200}") {
            let _ = memory_stat(&text);
            let _ = psi(&text);
            drop(net_dev(&text));
        }
    }
}
