//! Merges the texts into one configuration: defaults, then the main file, the drop-in files and the command line.
//!
//! serde stops at the first invalid value. To report all of them, each text is deserialized on top of the defaults; the
//! entry that the error points at is reported and removed, and the rest is tried again. The valid entries of all texts
//! are then merged key by key; later texts win.

use super::error::Fault;
use super::files::{Origin, Source};
use super::{Config, Overrides, keys};
use serde::Deserialize as _;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Maximum number of faults that are reported. A file with more is probably not a configuration.
const MAX_FAULTS: usize = 64;
/// Where each key was set last: the text and the offset in it.
type Places<'a> = BTreeMap<String, (&'a Source, usize)>;

/// Merges `sources`. Values that the command line overrides are not checked.
///
/// # Errors
/// Everything that is wrong with any of them, at most [`MAX_FAULTS`] faults.
pub(super) fn read(mut sources: Vec<Source>, overrides: &Overrides) -> Result<Config, Vec<Fault>> {
    sources.push(Source { origin: Origin::CommandLine, text: String::new() });
    let defaults = keys::default_text();
    let defaults = DeTable::parse_recoverable(&defaults).0.into_inner();
    let (mut merged, mut places, mut faults) = (defaults.clone(), Places::new(), Vec::new());
    for source in &sources {
        let mut table = match source.origin {
            Origin::CommandLine => command_line(overrides),
            Origin::File(_) | Origin::Text => match parse(source) {
                Ok(mut table) => {
                    for (key, _) in overrides.given() {
                        table.remove(key);
                    }
                    table
                }
                Err(wrong) => {
                    faults.extend(wrong);
                    continue;
                }
            },
        };
        let mut wrong = Vec::new();
        take_unknown("", &mut table, &mut wrong);
        if !table.is_empty() {
            take_invalid(&defaults, &mut table, &mut wrong);
        }
        wrong.sort_by_key(|wrong| wrong.offset);
        faults.extend(wrong.into_iter().map(|it| source.fault(Some(it.offset), it.key, it.problem)));
        note_places("", &table, source, &mut places);
        merge(&mut merged, table);
    }
    let mut config = match deserialize(merged) {
        Ok(config) => config,
        // Cannot happen, because only valid entries were merged.
        Err(error) if faults.is_empty() => return Err(vec![Fault::unplaced("", error.message())]),
        Err(_) => return Err(faults),
    };
    // An invalid path was replaced by its default; a contradiction with a default would be misleading.
    if !faults.iter().any(|fault| {
        fault.key.starts_with("streaming.tls_") || ["root", "state", "socket"].contains(&fault.key.as_str())
    }) {
        faults.extend(config.complete().into_iter().map(|(keys, problem)| {
            let set = keys.iter().find_map(|key| Some((key, places.get(*key)?)));
            match set {
                Some((key, (source, offset))) => source.fault(Some(*offset), (*key).to_owned(), problem),
                None => Fault::unplaced(keys[0], &problem),
            }
        }));
    }
    faults.truncate(MAX_FAULTS);
    if faults.is_empty() { Ok(config) } else { Err(faults) }
}

/// The options of the command line as a table. They have no text, so their positions in the list are used as offsets.
fn command_line(overrides: &Overrides) -> DeTable<'_> {
    let entry = |(number, (key, value))| {
        let place = number..number + 1;
        let value = DeValue::String(Cow::Borrowed(value));
        (Spanned::new(place.clone(), Cow::Borrowed(key)), Spanned::new(place, value))
    };
    overrides.given().enumerate().map(entry).collect()
}

/// # Errors
/// What is wrong with the syntax, or the first entry that is nested too deeply.
fn parse(source: &Source) -> Result<DeTable<'_>, Vec<Fault>> {
    let (table, errors) = shallow_toml::parse(&source.text);
    let deep = match table {
        Ok(table) if errors.is_empty() => return Ok(table),
        Ok(_) => None,
        Err(key) => {
            let problem = format!("nested more than {} levels deep", shallow_toml::MAX_DEPTH);
            Some(source.fault(Some(key.span().start), key.into_inner(), problem))
        }
    };
    let syntax = errors.iter().take(MAX_FAULTS).map(|error| {
        let offset = error.span().map(|span| span.start);
        source.fault(offset, String::new(), error.message().to_owned())
    });
    Err(syntax.chain(deep).collect())
}

fn deserialize(table: DeTable<'_>) -> Result<Config, toml::de::Error> {
    Config::deserialize(toml::Deserializer::from(Spanned::new(0..0, table)))
}

/// An entry that was removed because it is wrong.
struct Wrong {
    offset: usize,
    key: String,
    problem: String,
}

/// The full name of a key, in quotes where TOML needs them.
fn join(prefix: &str, name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let quoted = name.is_empty() || !name.bytes().all(bare);
    let name = if quoted { format!("{name:?}") } else { name.to_owned() };
    if prefix.is_empty() { name } else { format!("{prefix}.{name}") }
}

/// Removes from `table` what is not in the list of keys, and what stands in the place of a table. (serde would accept a
/// list with the values of the table's keys in their order.)
fn take_unknown(prefix: &str, table: &mut DeTable<'_>, wrong: &mut Vec<Wrong>) {
    let mut taken = Vec::new();
    for (name, value) in table.iter_mut() {
        let key = join(prefix, name.get_ref());
        let problem = match value.get_mut() {
            DeValue::Table(inner) if keys::is_table(&key) => {
                take_unknown(&key, inner, wrong);
                continue;
            }
            other if keys::is_table(&key) => format!("invalid type: {}, expected a table", other.type_str()),
            _ if keys::is_key(&key) => continue,
            // Not reported, so its text is not needed.
            _ if taken.len() >= MAX_FAULTS => String::new(),
            _ => keys::unknown(&key),
        };
        taken.push((name.get_ref().to_string(), Wrong { offset: name.span().start, key, problem }));
    }
    for (name, reported) in taken {
        table.remove(name.as_str());
        if wrong.len() < MAX_FAULTS {
            wrong.push(reported);
        }
    }
}

/// Removes from `table` what serde refuses; after [`MAX_FAULTS`] entries, everything that is left.
fn take_invalid(defaults: &DeTable<'_>, table: &mut DeTable<'_>, wrong: &mut Vec<Wrong>) {
    for _ in 0..MAX_FAULTS {
        let mut whole = defaults.clone();
        merge(&mut whole, table.clone());
        let Err(error) = deserialize(whole) else { return };
        let Some((key, offset)) = error.span().and_then(|span| take_entry("", table, &span)) else {
            // Nothing can be removed without a place, and the next try would fail in the same way.
            wrong.push(Wrong { offset: 0, key: String::new(), problem: error.message().to_owned() });
            break;
        };
        wrong.push(Wrong { offset, key, problem: error.message().to_owned() });
    }
    table.clear();
}

/// Removes the innermost entry whose name or value contains `span`. Returns its key and the offset of its name.
fn take_entry(prefix: &str, table: &mut DeTable<'_>, span: &Range<usize>) -> Option<(String, usize)> {
    let contains = |place: Range<usize>| place.start <= span.start && span.end <= place.end;
    let mut found = None;
    for (name, value) in table.iter_mut() {
        let (key, place) = (join(prefix, name.get_ref()), value.span());
        // The span of a table is that of its header, so its entries lie outside it and are searched first.
        if let DeValue::Table(inner) = value.get_mut()
            && let Some(taken) = take_entry(&key, inner, span)
        {
            return Some(taken);
        }
        if contains(place) || contains(name.span()) {
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

/// Merges `above` into `below`: tables entry by entry, anything else as a whole.
fn merge<'a>(below: &mut DeTable<'a>, above: DeTable<'a>) {
    for (name, value) in above {
        let (span, value) = (value.span(), value.into_inner());
        match (below.get_mut(&name).map(Spanned::get_mut), value) {
            (Some(DeValue::Table(below)), DeValue::Table(above)) => merge(below, above),
            (_, value) => drop(below.insert(name, Spanned::new(span, value))),
        }
    }
}
