//! Medians and ratios: one row per measurement, one column per endpoint. The first column has percentiles, and a mark
//! if the budget is missed. The others have a ratio: with `(2.0x)` the endpoint takes twice as long or as much as the
//! first one, or has half its rate.

use std::collections::BTreeSet;
use std::fmt;

/// The unit of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Milliseconds; less is better.
    Ms,
    /// Seconds of CPU time; less is better.
    Seconds,
    /// MiB; less is better.
    Mib,
    /// MiB per second; more is better.
    MibPerSecond,
    /// Pods per second; more is better.
    PerSecond,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Ms => "ms",
            Self::Seconds => "s",
            Self::Mib => "MiB",
            Self::MibPerSecond => "MiB/s",
            Self::PerSecond => "/s",
        }
    }

    fn more_is_better(self) -> bool {
        matches!(self, Self::MibPerSecond | Self::PerSecond)
    }
}

/// Samples of one measurement.
#[derive(Debug)]
pub(super) struct Measure {
    name: &'static str,
    /// The budget, in `unit`; 0 if there is none.
    budget: f64,
    unit: Unit,
    samples: Vec<(String, Vec<f64>)>,
}

impl Measure {
    /// A measurement without samples.
    pub(super) fn new(name: &'static str, budget: f64, unit: Unit) -> Self {
        Self { name, budget, unit, samples: Vec::new() }
    }

    /// Adds a sample of an endpoint.
    pub(super) fn add(&mut self, endpoint: &str, value: f64) {
        match self.samples.iter_mut().find(|(name, _)| name == endpoint) {
            Some((_, values)) => values.push(value),
            None => self.samples.push((endpoint.to_owned(), vec![value])),
        }
    }

    /// Sorted samples of an endpoint.
    fn sorted(&self, endpoint: &str) -> Vec<f64> {
        let mut values = self
            .samples
            .iter()
            .find(|(name, _)| name == endpoint)
            .map(|(_, v)| v.clone())
            .unwrap_or_default();
        values.sort_by(f64::total_cmp);
        values
    }

    fn median(&self, endpoint: &str) -> Option<f64> {
        let values = self.sorted(endpoint);
        // With an even number the mean of the two in the middle; otherwise whoever is first in every other round would get only
        // the costs of being first.
        let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
        Some(f64::midpoint(*low, *high))
    }
}

/// All measurements of a run.
#[derive(Debug)]
pub(super) struct Table {
    endpoints: Vec<String>,
    rows: Vec<Measure>,
    notes: BTreeSet<String>,
}

impl Table {
    /// An empty table; ratios are relative to the first endpoint.
    pub(super) fn new(endpoints: Vec<String>) -> Self {
        Self { endpoints, rows: Vec::new(), notes: BTreeSet::new() }
    }

    /// Adds a row.
    pub(super) fn push(&mut self, measure: Measure) {
        self.rows.push(measure);
    }

    /// Adds a line below the rows, such as why a figure is missing. Equal ones are printed once.
    pub(super) fn note(&mut self, line: String) {
        self.notes.insert(line);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<44}{:>12}{:>7}", "median [p10-p90]", "budget", "")?;
        for name in &self.endpoints {
            write!(f, "{name:>28}")?;
        }
        writeln!(f)?;
        let first = self.endpoints.first().map_or("", String::as_str);
        for row in &self.rows {
            let budget = if row.budget > 0.0 { format!("{:.1}", row.budget) } else { String::from("-") };
            write!(f, "{:<44}{budget:>12} {:<6}", row.name, row.unit.name())?;
            let base = row.median(first);
            for name in &self.endpoints {
                let values = row.sorted(name);
                let at = |part: usize| {
                    values.get(values.len() * part / 10).or(values.last()).copied().unwrap_or(f64::NAN)
                };
                match (row.median(name), base) {
                    (None, _) => write!(f, "{:>28}", "-")?,
                    (Some(median), Some(base)) if name != first => {
                        let times = if row.unit.more_is_better() { base / median } else { median / base };
                        write!(f, "{:>28}", format!("{median:.2} ({times:.1}x)"))?;
                    }
                    (Some(median), _) => {
                        let missed = row.budget > 0.0 && (median > row.budget) != row.unit.more_is_better();
                        let mark = if missed { " MISSED" } else { "" };
                        write!(f, "{:>28}", format!("{median:.2} [{:.2}-{:.2}]{mark}", at(1), at(9)))?;
                    }
                }
            }
            writeln!(f)?;
        }
        self.notes.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_first_in_every_other_round_does_not_decide_the_median() {
        let mut measure = Measure::new("pull", 0.0, Unit::Ms);
        for (one, other) in [(6.0, 3.0), (3.0, 6.0), (6.0, 3.0), (3.0, 6.0)] {
            measure.add("one", one);
            measure.add("other", other);
        }
        assert_eq!((measure.median("one"), measure.median("other")), (Some(4.5), Some(4.5)));
        measure.add("one", 7.0);
        assert_eq!((measure.median("one"), measure.median("absent")), (Some(6.0), None));
    }

    #[test]
    fn a_missing_figure_has_a_note() {
        let mut table = Table::new(vec!["one".to_owned(), "other".to_owned()]);
        let mut measure = Measure::new("call", 0.0, Unit::Ms);
        measure.add("one", 2.0);
        table.push(measure);
        table.note("other has no call".to_owned());
        table.note("other has no call".to_owned());
        let text = table.to_string();
        assert!(text.lines().any(|line| line.starts_with("call") && line.ends_with(" -")), "{text}");
        assert_eq!(text.matches("other has no call").count(), 1, "{text}");
    }
}
