//! Medians and ratios: one row per measurement, one column per endpoint. The first column has percentiles, and a mark
//! if the budget is missed. The others have a ratio: with `(2.0x)` the endpoint takes twice as long or as much as the
//! first one, or has half its rate.

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
        values.get(values.len() / 2).copied()
    }
}

/// All measurements of a run.
#[derive(Debug)]
pub(super) struct Table {
    endpoints: Vec<String>,
    rows: Vec<Measure>,
}

impl Table {
    /// An empty table; ratios are relative to the first endpoint.
    pub(super) fn new(endpoints: Vec<String>) -> Self {
        Self { endpoints, rows: Vec::new() }
    }

    /// Adds a row.
    pub(super) fn push(&mut self, measure: Measure) {
        self.rows.push(measure);
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
        Ok(())
    }
}
