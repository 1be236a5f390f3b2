//! `docs/cri-coverage.md`: what copepod does with every call, message and field of CRI, and which tests assert it.
//!
//! `## Call` begins a call, `### Message` a message or an enum below a call that uses it. Each row of the tables is
//! `| names | status | what copepod does | tests |`. A test is `theme::name` for one of [`crate::tests`], or
//! `folder/file.rs:name` for a unit test. A unit test compares the file with the descriptor that our code is generated
//! from; a run of all tests checks that the named ones did run.

#[cfg(test)]
mod checks;

use std::collections::BTreeSet;

/// The file.
const TEXT: &str = include_str!("../../docs/cri-coverage.md");

/// What begins the row of a call, field or value.
const ROW: &str = "| `";

/// The words between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The black-box tests that the file names and that are not among `known`.
pub(crate) fn missing(known: &[String]) -> Vec<String> {
    let rows = TEXT.lines().filter(|line| line.starts_with(ROW));
    let tests = rows.filter_map(|row| row.trim_end_matches([' ', '|']).rsplit(" | ").next()).flat_map(quoted);
    let black_box: BTreeSet<&str> = tests.filter(|test| !test.contains(".rs:")).collect();
    black_box.into_iter().filter(|test| !known.iter().any(|name| name == test)).map(str::to_owned).collect()
}
