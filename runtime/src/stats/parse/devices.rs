//! I/O by device.

use std::collections::BTreeMap;

/// The operations of the block layer, as `blkio` files name them.
const OPERATIONS: [&str; 6] = ["Read", "Write", "Sync", "Async", "Discard", "Total"];

/// Major and minor number of a device.
pub(in crate::stats) type Number = (u32, u32);

/// What is known of one device: the value of each operation.
pub(in crate::stats) type Operations = Vec<(&'static str, u64)>;

/// A `blkio` file of v1 with lines of `major:minor operation value`, by device. The sum in the last line, and operations
/// that no kernel of today knows, are left out; so are devices beyond the first `limit`.
pub(in crate::stats) fn blkio(text: &str, limit: usize) -> BTreeMap<Number, Operations> {
    let mut devices: BTreeMap<Number, Operations> = BTreeMap::new();
    for line in text.lines() {
        let Some((device, operation, value)) = blkio_line(line) else { continue };
        if devices.contains_key(&device) || devices.len() < limit {
            devices.entry(device).or_default().push((operation, value));
        }
    }
    devices
}

fn blkio_line(line: &str) -> Option<(Number, &'static str, u64)> {
    let mut words = line.split_ascii_whitespace();
    let device = device(words.next()?)?;
    let name = words.next()?;
    let operation = OPERATIONS.into_iter().find(|known| *known == name)?;
    Some((device, operation, words.next()?.parse().ok()?))
}

fn device(word: &str) -> Option<Number> {
    let (major, minor) = word.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The content of v2's `io.stat`: bytes and requests by device, and only for reads and writes, which are what cAdvisor
/// shows of it. Devices beyond the first `limit` are left out.
///
/// A line is `major:minor key=value …`. Some kernels begin it with the devices that have no values.
pub(in crate::stats) fn io_stat(text: &str, limit: usize) -> BTreeMap<Number, [Operations; 2]> {
    let mut devices: BTreeMap<Number, [Operations; 2]> = BTreeMap::new();
    for line in text.lines() {
        let mut current = None;
        for word in line.split_ascii_whitespace() {
            let Some((key, value)) = word.split_once('=') else {
                current = device(word);
                continue;
            };
            let Some(current) = current else { continue };
            let (kind, operation) = match key {
                "rbytes" => (0, "Read"),
                "wbytes" => (0, "Write"),
                "rios" => (1, "Read"),
                "wios" => (1, "Write"),
                _ => continue,
            };
            let Ok(value) = value.parse() else { continue };
            if devices.contains_key(&current) || devices.len() < limit {
                devices.entry(current).or_default()[kind].push((operation, value));
            }
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn devices_are_parsed_and_bounded() {
        let text = "8:0 Read 10\n8:0 Write 20\n8:0 Novel 5\n8:0 Total 30\n253:1 Read 7\nTotal 37\nx:y Read 1\n8:0 Read\n";
        let all = blkio(text, 8);
        assert_eq!(all[&(8, 0)], [("Read", 10), ("Write", 20), ("Total", 30)]);
        assert_eq!(all[&(253, 1)], [("Read", 7)]);
        assert_eq!(all.len(), 2);
        let first = blkio(text, 1);
        assert_eq!(first.keys().collect::<Vec<_>>(), [&(8, 0)]);
        assert_eq!(first[&(8, 0)].len(), 3);
    }

    #[test]
    fn io_stat_is_parsed_and_bounded() {
        let text = "8:16 8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=5 dios=6 cost.usage=7\n7:1 \n\
                    253:1 rbytes=x wbytes=3\nrbytes=9\n";
        let all = io_stat(text, 8);
        assert_eq!(all[&(8, 0)], [vec![("Read", 10), ("Write", 20)], vec![("Read", 1), ("Write", 2)]]);
        assert_eq!(all[&(253, 1)], [vec![("Write", 3)], vec![]]);
        assert_eq!(all.len(), 2);
        assert_eq!(io_stat(text, 1).keys().collect::<Vec<_>>(), [&(8, 0)]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "[a-z0-9 =:\n]{0,200}") {
            prop_assert!(io_stat(&text, 2).len() <= 2 && blkio(&text, 2).len() <= 2);
        }
    }
}
