//! Parses cgroup files of v1, and /proc/net/dev. Pure.

use super::reading::{Interface, Memory, Psi, PsiData, Traffic};

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
