//! Parses TOML of a limited depth, and finds the name that a misspelt key was meant to be.
//!
//! serde recurses into nested values, and dropping them recurses too. A text of dotted keys can nest thousands of
//! levels, which the parser accepts, and which overflows the 512 KiB stack of a lane's thread. So the depth is checked,
//! and a text that is too deep is dropped, without recursion.

use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

/// Maximum levels of tables and arrays in an entry. The keys of our files have at most five.
pub const MAX_DEPTH: usize = 16;

/// The table of a text, or the first of its keys that is nested more than [`MAX_DEPTH`] levels deep; and the errors of
/// its syntax. With such errors the table is what could be read.
pub fn parse(text: &str) -> (Result<DeTable<'_>, Spanned<String>>, Vec<Error>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let table = table.into_inner();
    let deep = table.iter().find(|(_, value)| !is_within(MAX_DEPTH, value.get_ref()));
    let deep = deep.map(|(key, _)| Spanned::new(key.span(), key.get_ref().to_string()));
    let parsed = match deep {
        None => Ok(table),
        Some(key) => {
            dismantle(table);
            Err(key)
        }
    };
    (parsed, errors)
}

/// Maximum number of edits (strsim's optimal string alignment) between a misspelt name and the suggested one.
const MAX_DISTANCE: usize = 3;
/// Maximum length in bytes of a name that is compared: a key can have a megabyte.
const MAX_COMPARED: usize = 64;

/// The name that was probably meant by one that is not among `names`.
pub fn nearest<'a>(given: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if given.len() > MAX_COMPARED {
        return None;
    }
    let distances = names.into_iter().map(|name| (strsim::osa_distance(given, name), name));
    let near = distances.filter(|(distance, name)| *distance <= MAX_DISTANCE.min(name.len() / 2));
    near.min().map(|(_, name)| name)
}

/// Whether a value has at most `levels` levels of tables and arrays. Recurses no deeper than that.
fn is_within(levels: usize, value: &DeValue<'_>) -> bool {
    match value {
        DeValue::Table(table) => {
            levels > 0 && table.values().all(|value| is_within(levels - 1, value.get_ref()))
        }
        DeValue::Array(array) => {
            levels > 0 && array.iter().all(|value| is_within(levels - 1, value.get_ref()))
        }
        _ => true,
    }
}

/// Drops a table of any depth without recursion.
fn dismantle(table: DeTable<'_>) {
    let mut rest = vec![DeValue::Table(table)];
    while let Some(value) = rest.pop() {
        match value {
            DeValue::Table(table) => rest.extend(table.into_iter().map(|(_, value)| value.into_inner())),
            DeValue::Array(array) => rest.extend(array.into_iter().map(Spanned::into_inner)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_limited_and_the_key_is_named() {
        let deepest = format!("a = {}1{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        assert!(parse(&deepest).0.is_ok());
        for value in [format!("[{}]", &deepest[4..]), format!("{{ {} = 1 }}", ["b"; MAX_DEPTH + 1].join("."))]
        {
            let key = parse(&format!("x = 1\na = {value}")).0.unwrap_err();
            assert_eq!((key.span(), key.into_inner()), (6..7, "a".to_owned()));
        }
    }

    #[test]
    fn what_is_readable_beside_an_error_is_returned() {
        let (table, errors) = parse("a = 1\nb = \n");
        assert!(table.unwrap().contains_key("a"));
        assert!(!errors.is_empty());
    }
}
