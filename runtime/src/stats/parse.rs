//! Parses cgroup files of both versions and files of /proc. Pure.

use super::reading::{Interface, Psi, PsiData, Traffic};

mod devices;
mod memory;

pub(super) use devices::{Number, Operations, blkio, io_stat};
pub(super) use memory::{Charge, MemoryStat, SwapCharge, limit};

/// The value of a line `key value`.
pub(super) fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The number in a file. A negative one (no quota) is `None`.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number in a file of v2, which has the word `max` where there is no limit: the largest number.
pub(super) fn number_or_max(text: &str) -> Option<u64> {
    if text.trim() == "max" { Some(u64::MAX) } else { number(text) }
}

/// The value of a line `key microseconds`, in nanoseconds.
pub(super) fn microseconds_of(text: &str, key: &str) -> Option<u64> {
    Some(value_of(text, key)?.saturating_mul(1000))
}

/// `pids.max`: 0 stands for no limit, as in cAdvisor's metric.
pub(super) fn task_limit(text: &str) -> Option<u64> {
    if text.trim() == "max" { Some(0) } else { number(text) }
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

/// The soft limit of open files in `/proc/<pid>/limits`; `None` if it is unlimited.
pub(super) fn open_files(text: &str) -> Option<u64> {
    let values = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    values.split_ascii_whitespace().next()?.parse().ok()
}

/// The page size in the name of a file such as `hugetlb.2MB.current`, whose last part is `last`. The files of reservations
/// (`rsvd`) and of NUMA nodes have other names.
pub(super) fn page_size<'a>(name: &'a str, last: &str) -> Option<&'a str> {
    let size = name.strip_prefix("hugetlb.")?.strip_suffix(last)?.strip_suffix('.')?;
    (!size.contains('.')).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn files_are_parsed() {
        let stat = "nr_periods 12\nnr_throttled 3\nthrottled_time 45\n";
        assert_eq!(value_of(stat, "nr_periods"), Some(12));
        assert_eq!(value_of(stat, "nr"), None);
        assert_eq!(number("-1\n"), None);
        assert_eq!(number("20000\n"), Some(20_000));
        assert_eq!(["max\n", "20000\n", "-1"].map(number_or_max), [Some(u64::MAX), Some(20_000), None]);
        assert_eq!(microseconds_of("usage_usec 7\nuser_usec 3\n", "user_usec"), Some(3000));
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
        assert_eq!(sizes.map(|name| page_size(name, "usage_in_bytes")), [Some("2MB"), None, None]);
        let sizes =
            ["hugetlb.1GB.current", "hugetlb.1GB.rsvd.current", "hugetlb.1GB.events", "memory.current"];
        assert_eq!(sizes.map(|name| page_size(name, "current")), [Some("1GB"), None, None, None]);
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
            let _ = psi(&text);
            drop(net_dev(&text));
        }
    }
}
