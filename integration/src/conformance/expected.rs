//! `conformance/expected.txt`: what critest must report for each of its specs, and which tests of ours assert the same,
//! so that a checkout without critest is held to it as well.
//!
//! One spec a line, its fields separated by ` | `: `pass | spec | tests`; `apparmor` instead of `pass` for a spec that is
//! skipped where the host has no AppArmor, and `selinux` for one that critest does not have where there is no SELinux; or
//! `skip` or `fail` with the reason before the tests, which critest must give itself. Tests are separated by spaces; `-` means
//! none, which a spec that passes may not have.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

use super::report::{Outcome, Spec};
use crate::expect::ensure;

/// The file.
const TEXT: &str = include_str!("../../conformance/expected.txt");

/// What must happen with a spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// It passes.
    Pass,
    /// It passes with AppArmor; on a host without, critest skips it.
    AppArmor,
    /// critest skips it, with this in its reason.
    Skip(&'static str),
    /// It fails, with this in its message.
    Fail(&'static str),
    /// It passes with SELinux; on a host without, critest does not have it.
    SeLinux,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// The spec's full name.
    pub(super) spec: &'static str,
    /// Its result.
    pub(super) wanted: Wanted,
    /// Names of tests, `theme::name`.
    tests: Vec<&'static str>,
}

/// All lines of the file.
pub(super) fn rows() -> Result<Vec<Row>> {
    parse(TEXT)
}

/// The names of the tests in the file, and whatever makes the file unusable, that are not among `known`.
pub(crate) fn missing(known: &[String]) -> Result<Vec<String>> {
    let mut missing: Vec<String> = rows()?
        .into_iter()
        .flat_map(|row| row.tests)
        .filter(|test| !known.iter().any(|name| name == test))
        .map(str::to_owned)
        .collect();
    missing.sort();
    missing.dedup();
    Ok(missing)
}

fn parse(text: &'static str) -> Result<Vec<Row>> {
    let lines = text.lines().zip(1_u32..).filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
    let mut seen = BTreeMap::new();
    lines
        .map(|(line, number)| {
            let row = row(line).with_context(|| format!("expected.txt, line {number}: {line}"))?;
            if let Some(first) = seen.insert(row.spec, number) {
                bail!("expected.txt, line {number}: {} is in line {first} already", row.spec);
            }
            Ok(row)
        })
        .collect()
}

fn row(line: &'static str) -> Result<Row> {
    let fields: Vec<&'static str> = line.split(" | ").collect();
    let (spec, wanted, tests) = match *fields.as_slice() {
        ["pass", spec, tests] => (spec, Wanted::Pass, tests),
        ["apparmor", spec, tests] => (spec, Wanted::AppArmor, tests),
        ["skip", spec, reason, tests] => (spec, Wanted::Skip(reason), tests),
        ["fail", spec, reason, tests] => (spec, Wanted::Fail(reason), tests),
        ["selinux", spec, tests] => (spec, Wanted::SeLinux, tests),
        _ => bail!(
            "neither `pass, apparmor or selinux | spec | tests` nor `skip or fail | spec | reason | tests`"
        ),
    };
    let tests: Vec<&str> = if tests == "-" { Vec::new() } else { tests.split(' ').collect() };
    let may_pass = matches!(wanted, Wanted::Pass | Wanted::AppArmor | Wanted::SeLinux);
    ensure!(!tests.is_empty() || !may_pass, "no test of ours asserts what this spec asserts");
    ensure!(!spec.is_empty() && tests.iter().all(|test| !test.is_empty()), "an empty field");
    Ok(Row { spec, wanted, tests })
}

/// What critest says when it skips a spec for want of AppArmor.
const NO_APPARMOR: &str = "AppArmor is disabled on this host";

/// What a host has, and which specs were run there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    /// Whether it has AppArmor.
    pub(super) apparmor: bool,
    /// Whether it has SELinux.
    pub(super) selinux: bool,
    /// Only specs with this in their names.
    pub(super) focus: &'a str,
}

/// What differs between a report and the file, one line each.
pub(super) fn differences(rows: &[Row], specs: &[Spec], scope: Scope<'_>) -> Vec<String> {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.spec.contains(scope.focus)).collect();
    let specs = specs.iter().filter(|spec| spec.name.contains(scope.focus));
    let unknown = specs
        .clone()
        .filter(|spec| !rows.iter().any(|row| row.spec == spec.name))
        .map(|spec| format!("{}: not in expected.txt; {}", spec.name, spec.outcome));
    let different = rows.iter().filter_map(|row| {
        let outcome = specs.clone().find(|spec| spec.name == row.spec).map(|spec| &spec.outcome);
        let wanted = match row.wanted {
            Wanted::AppArmor if !scope.apparmor => Wanted::Skip(NO_APPARMOR),
            Wanted::AppArmor => Wanted::Pass,
            Wanted::SeLinux if scope.selinux => Wanted::Pass,
            other => other,
        };
        let as_wanted = match (wanted, outcome) {
            (Wanted::Pass, Some(Outcome::Passed)) | (Wanted::SeLinux, None) => true,
            (Wanted::Skip(reason), Some(Outcome::Skipped(given)))
            | (Wanted::Fail(reason), Some(Outcome::Failed(given))) => given.contains(reason),
            _ => false,
        };
        let found = outcome.map_or_else(|| String::from("not in critest's report"), ToString::to_string);
        (!as_wanted).then(|| format!("{}: expected {wanted:?}; {found}", row.spec))
    });
    unknown.chain(different).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, outcome: Outcome) -> Spec {
        Spec { name: name.to_owned(), outcome }
    }

    #[test]
    fn every_test_named_in_the_file_exists() {
        let known: Vec<String> = crate::tests::all().into_iter().map(|test| test.name).collect();
        assert_eq!(missing(&known).unwrap(), Vec::<String>::new());
        assert!(!missing(&[]).unwrap().is_empty());
    }

    /// The bar: nothing but the spec that needs the internet fails, and nothing else of this runtime's is skipped.
    #[test]
    fn the_file_demands_what_the_project_promises() {
        let rows = rows().unwrap();
        let count = |wanted: fn(&Wanted) -> bool| rows.iter().filter(|row| wanted(&row.wanted)).count();
        assert!(count(|wanted| *wanted == Wanted::Pass) >= 114);
        assert_eq!(count(|wanted| matches!(wanted, Wanted::Fail(_))), 1);
        let skipped = rows
            .iter()
            .filter(|row| matches!(row.wanted, Wanted::Skip(_) | Wanted::SeLinux | Wanted::AppArmor));
        for row in skipped {
            let known = ["AppArmor", "SELinux", "NRI", "benchmark"];
            assert!(known.iter().any(|part| row.spec.contains(part)), "{}", row.spec);
        }
    }

    #[test]
    fn lines_that_say_too_little_are_refused() {
        let tests = ["a::b", "c::d"].to_vec();
        assert_eq!(row("pass | s | a::b c::d").unwrap(), Row { spec: "s", wanted: Wanted::Pass, tests });
        assert_eq!(row("skip | s | why | -").unwrap().wanted, Wanted::Skip("why"));
        for line in [
            "pass | s | -",
            "pass | s | a::b  c::d",
            "skip | s | a::b",
            "perhaps | s | a::b",
            "pass |  | a::b",
        ] {
            assert!(row(line).is_err(), "{line}");
        }
        assert!(parse("# a comment\n\npass | s | a::b\n").is_ok());
        let twice = parse("pass | s | a::b\nskip | s | why | -\n").unwrap_err().to_string();
        assert!(twice.contains("line 2") && twice.contains("line 1 already"), "{twice}");
    }

    #[test]
    fn every_difference_is_found() {
        let rows = parse(
            "pass | a | t::a\nskip | b | no socket | -\nfail | c | not found | t::c\nselinux | d | t::d\n\
             apparmor | f | t::f\n",
        )
        .unwrap();
        let scope = |apparmor, selinux, focus| Scope { apparmor, selinux, focus };
        let (neither, apparmor) = (scope(false, false, ""), scope(true, false, ""));
        let as_wanted = [
            spec("a", Outcome::Passed),
            spec("b", Outcome::Skipped(String::from("there is no socket"))),
            spec("c", Outcome::Failed(String::from("code = NotFound: not found"))),
        ];
        let with = |outcome: Outcome| [as_wanted.as_slice(), &[spec("f", outcome)]].concat();
        let skipped = || Outcome::Skipped(String::from(NO_APPARMOR));
        assert_eq!(differences(&rows, &with(skipped()), neither), Vec::<String>::new());
        assert_eq!(differences(&rows, &with(Outcome::Passed), apparmor), Vec::<String>::new());
        assert_eq!(differences(&rows, &with(skipped()), apparmor).len(), 1);
        assert_eq!(differences(&rows, &with(Outcome::Passed), neither).len(), 1);
        let other = [
            spec("a", Outcome::Skipped(String::from("no socket"))),
            spec("b", Outcome::Skipped(String::from("not today"))),
            spec("c", Outcome::Passed),
            spec("d", Outcome::Passed),
            spec("e", Outcome::Passed),
        ];
        assert_eq!(differences(&rows, &other, neither).len(), 6);
        assert_eq!(differences(&rows, &[], neither).len(), 4);
        // Of all these, those of SELinux alone.
        assert_eq!(differences(&rows, &other, scope(false, true, "d")), Vec::<String>::new());
        assert_eq!(differences(&rows, &[], scope(false, true, "d")).len(), 1);
    }
}
