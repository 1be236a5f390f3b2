//! Time stamps of log lines: RFC 3339 in UTC with nanoseconds, always 30 bytes.

/// A formatted moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp([u8; Self::LEN]);

impl Stamp {
    /// `2026-01-02T03:04:05.123456789Z`.
    pub(crate) const LEN: usize = 30;

    /// Formats nanoseconds since the epoch; years are taken modulo 10000.
    pub(crate) fn new(nanoseconds: i64) -> Self {
        let (seconds, fraction) =
            (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        let mut bytes = [0; Self::LEN];
        let fields = [
            (year, 4, b'-'),
            (month, 2, b'-'),
            (day, 2, b'T'),
            (second / 3600, 2, b':'),
            (second / 60 % 60, 2, b':'),
            (second % 60, 2, b'.'),
            (fraction, 9, b'Z'),
        ];
        let mut rest = bytes.as_mut_slice();
        for (mut value, digits, end) in fields {
            let Some((place, after)) = rest.split_at_mut_checked(digits + 1) else { break };
            let mut backwards = place.iter_mut().rev();
            if let Some(last) = backwards.next() {
                *last = end;
            }
            for digit in backwards {
                *digit = b'0' + u8::try_from(value.rem_euclid(10)).unwrap_or(0);
                value = value.div_euclid(10);
            }
            rest = after;
        }
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Years are counted from
/// March in cycles of 400, so that leap days come last.
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_IN_400_YEARS: i64 = 146_097;
    const FROM_MARCH_OF_YEAR_0: i64 = 719_468;
    let days = days + FROM_MARCH_OF_YEAR_0;
    let cycle = days.div_euclid(DAYS_IN_400_YEARS);
    let day = days.rem_euclid(DAYS_IN_400_YEARS);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let in_month = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (cycle * 400 + year + next_year, month, in_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (1_709_251_199, 999_999_999, "2024-02-29T23:59:59.999999999Z"),
            (1_735_689_600, 120_000_000, "2025-01-01T00:00:00.120000000Z"),
            (4_107_542_399, 0, "2100-02-28T23:59:59.000000000Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
            (-1, 0, "1969-12-31T23:59:59.000000000Z"),
        ] {
            let stamp = Stamp::new(seconds * 1_000_000_000 + nanoseconds);
            assert_eq!(std::str::from_utf8(stamp.as_bytes()).unwrap(), text);
        }
    }
}
