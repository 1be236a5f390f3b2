//! Texts into one configuration: defaults, above them the main file, the drop-in files, the command line.
//!
//! serde stops at the first value that is wrong. So each text is tried above the defaults; the entry that the error
//! points at is told and taken out, and the rest is tried again, until nothing is wrong. What is right of all texts is
//! merged, key by key, the later one winning.

use super::error::Fault;
use super::files::{Origin, Source};
use super::{Config, Overrides, keys};
use serde::Deserialize as _;
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Most faults of one text that are told: a wrong file, not a misspelt key.
const MAX_FAULTS: usize = 64;

/// Where each key was set last: origin and offset.
type Places<'a> = BTreeMap<String, (&'a Source, usize)>;

/// All `sources` in one, or all that is wrong with them. What the command line overrides is not looked at.
pub(super) fn read(mut sources: Vec<Source>, overrides: &Overrides) -> Result<Config, Vec<Fault>> {
    let text =
        overrides.given().map(|(key, value)| format!("{key} = {}\n", toml::Value::from(value))).collect();
    sources.push(Source { origin: Origin::CommandLine, text });
    let defaults = keys::default_text();
    let defaults = DeTable::parse_recoverable(&defaults).0.into_inner();
    let (mut merged, mut places, mut faults) = (defaults.clone(), Places::new(), Vec::new());
    for source in &sources {
        let (table, errors) = DeTable::parse_recoverable(&source.text);
        if !errors.is_empty() {
            let told = errors.iter().take(MAX_FAULTS);
            faults.extend(told.map(|error| {
                let offset = error.span().map(|span| span.start);
                source.fault(offset, String::new(), error.message().to_owned())
            }));
            continue;
        }
        let mut table = table.into_inner();
        if !matches!(source.origin, Origin::CommandLine) {
            overrides.given().for_each(|(key, _)| drop(table.remove(key)));
        }
        let mut wrong = Vec::new();
        take_unknown("", &mut table, &mut wrong);
        take_invalid(&defaults, &mut table, &mut wrong);
        wrong.sort_by_key(|wrong| wrong.offset);
        faults.extend(wrong.into_iter().map(|it| source.fault(Some(it.offset), it.key, it.problem)));
        note_places("", &table, source, &mut places);
        merge(&mut merged, table);
    }
    // Nothing that is wrong is left in it, so this is the configuration, or one where defaults stand for what is wrong.
    let mut config = match deserialize(merged) {
        Ok(config) => config,
        Err(error) if faults.is_empty() => {
            return Err(vec![Fault {
                file: None,
                line: None,
                key: String::new(),
                problem: error.message().to_owned(),
            }]);
        }
        Err(_) => return Err(faults),
    };
    for (key, problem) in config.settle() {
        // What is said of a default that stands for a wrong value is not worth telling.
        if !faults.iter().any(|fault| ["root", "state", "socket"].contains(&fault.key.as_str())) {
            let fault = match places.get(key) {
                Some((source, offset)) => source.fault(Some(*offset), key.to_owned(), problem),
                None => Fault { file: None, line: None, key: key.to_owned(), problem },
            };
            faults.push(fault);
        }
    }
    if faults.is_empty() { Ok(config) } else { Err(faults) }
}

fn deserialize(table: DeTable<'_>) -> Result<Config, toml::de::Error> {
    Config::deserialize(toml::Deserializer::from(Spanned::new(0..0, table)))
}

/// An entry that was taken out.
struct Wrong {
    offset: usize,
    key: String,
    problem: String,
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

/// Takes out of `table` what is not in the list of keys.
fn take_unknown(prefix: &str, table: &mut DeTable<'_>, wrong: &mut Vec<Wrong>) {
    let mut gone = Vec::new();
    for (name, value) in table.iter_mut() {
        let key = join(prefix, name.get_ref());
        match value.get_mut() {
            DeValue::Table(inner) if keys::is_table(&key) => take_unknown(&key, inner, wrong),
            _ if keys::is_table(&key) || keys::is_key(&key) => {}
            _ => gone.push((name.get_ref().to_string(), name.span().start, key)),
        }
    }
    for (name, offset, key) in gone {
        table.remove(name.as_str());
        if wrong.len() < MAX_FAULTS {
            wrong.push(Wrong { offset, problem: keys::unknown(&key), key });
        }
    }
}

/// Takes out of `table` what serde refuses. After so many faults the rest is not looked at any more.
fn take_invalid(defaults: &DeTable<'_>, table: &mut DeTable<'_>, wrong: &mut Vec<Wrong>) {
    for _ in 0..MAX_FAULTS {
        let mut whole = defaults.clone();
        merge(&mut whole, table.clone());
        let Err(error) = deserialize(whole) else { return };
        // Without a place nothing can be taken out, and the next try would say the same.
        let Some((key, offset)) = error.span().and_then(|span| take_entry("", table, &span)) else {
            wrong.push(Wrong { offset: 0, key: String::new(), problem: error.message().to_owned() });
            break;
        };
        wrong.push(Wrong { offset, key, problem: error.message().to_owned() });
    }
    table.clear();
}

/// Takes the innermost entry out whose value holds `span`. Answers with its name and where that stands.
fn take_entry(prefix: &str, table: &mut DeTable<'_>, span: &Range<usize>) -> Option<(String, usize)> {
    let mut found = None;
    for (name, value) in table.iter_mut() {
        let (key, place) = (join(prefix, name.get_ref()), value.span());
        // A table's own span is that of its header: its entries lie outside.
        if let DeValue::Table(inner) = value.get_mut()
            && let Some(taken) = take_entry(&key, inner, span)
        {
            return Some(taken);
        }
        if place.start <= span.start && span.end <= place.end {
            found = Some((name.get_ref().to_string(), key, name.span().start));
            break;
        }
    }
    let (name, key, offset) = found?;
    table.remove(name.as_str());
    Some((key, offset))
}

fn note_places<'a>(prefix: &str, table: &DeTable<'_>, source: &'a Source, places: &mut Places<'a>) {
    for (name, value) in table {
        let key = join(prefix, name.get_ref());
        if let DeValue::Table(inner) = value.get_ref() {
            note_places(&key, inner, source, places);
        }
        places.insert(key, (source, name.span().start));
    }
}

/// Lays `above` over `below`: tables entry by entry, anything else as a whole.
fn merge<'a>(below: &mut DeTable<'a>, above: DeTable<'a>) {
    for (name, value) in above {
        let (span, value) = (value.span(), value.into_inner());
        match (below.get_mut(&name).map(Spanned::get_mut), value) {
            (Some(DeValue::Table(below)), DeValue::Table(above)) => merge(below, above),
            (_, value) => drop(below.insert(name, Spanned::new(span, value))),
        }
    }
}
