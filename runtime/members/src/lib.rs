//! For tests: lists of all members of a foreign format, with what this project does with each.
//!
//! A list is a table in code. [`check`] proves each line of it by an input with that member, [`covers`] compares it with
//! the names that the format's own definition has, and [`document`] keeps a page of docs/ equal to it. So a page cannot
//! say what the code does not do.

use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fmt::{Debug, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// What is done with a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Its value makes a difference.
    Honoured,
    /// No value of it makes a difference, of whatever type it is.
    Ignored,
    /// A document with it is refused.
    Refused,
}

/// One member of a format.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// Where it is: names separated by `/` (`~1` is one in a name), and `*` for each element of a list, as in
    /// `/layers/*/digest`.
    pub path: &'static str,
    /// What is done with it.
    pub used: Use,
    /// A value in JSON that proves it.
    pub probe: &'static str,
    /// What it does, or why it does nothing; in Markdown.
    pub about: &'static str,
}

/// A member whose value makes a difference, such as `probe` instead of what a good document has.
pub const fn honoured(path: &'static str, probe: &'static str, about: &'static str) -> Member {
    Member { path, used: Use::Honoured, probe, about }
}

/// A member that is ignored. `probe` is a value that it has in real documents.
pub const fn ignored(path: &'static str, probe: &'static str, about: &'static str) -> Member {
    Member { path, used: Use::Ignored, probe, about }
}

/// A member with which, if it is `probe`, a document is refused.
pub const fn refused(path: &'static str, probe: &'static str, about: &'static str) -> Member {
    Member { path, used: Use::Refused, probe, about }
}

impl Member {
    /// The path as the page shows it: `layers[].digest`.
    fn shown(&self) -> String {
        self.path.trim_start_matches('/').replace("/*", "[]").replace('/', ".").replace("~1", "/")
    }
}

/// Proves every line of a table. `good` is a document that `read` accepts; a table's line is tried in a copy of it that
/// has the line's member.
///
/// # Panics
/// A line that is not true, or has no place in the document.
pub fn check<T: PartialEq + Debug, E: Debug>(
    good: &Value,
    table: &[Member],
    read: impl Fn(&Value) -> Result<T, E>,
) {
    let without = read(good).unwrap_or_else(|error| panic!("the good document is refused: {error:?}"));
    for member in table {
        let probe: Value = serde_json::from_str(member.probe)
            .unwrap_or_else(|error| panic!("{}: the probe is no JSON: {error}", member.path));
        let try_with = |value: Value| read(&with(good, member.path, value));
        match member.used {
            Use::Honoured => {
                let found = try_with(probe);
                assert!(found.as_ref().ok() != Some(&without), "{} makes no difference", member.path);
            }
            Use::Refused => assert!(try_with(probe).is_err(), "{} is not refused", member.path),
            Use::Ignored => {
                for value in
                    [probe, json!(null), json!(-7), json!(0.5), json!("x"), json!([[]]), json!({"a": []})]
                {
                    let found = try_with(value.clone());
                    let found = found
                        .unwrap_or_else(|error| panic!("{} = {value} is refused: {error:?}", member.path));
                    assert_eq!(found, without, "{} = {value} makes a difference", member.path);
                }
            }
        }
    }
}

/// A copy of `document` in which the member at `path` is `value`.
///
/// # Panics
/// The path leads through something that is no object or list.
pub fn with(document: &Value, path: &str, value: Value) -> Value {
    let mut whole = document.clone();
    let mut place = &mut whole;
    for name in path.trim_start_matches('/').split('/') {
        place = if name == "*" {
            if !place.is_array() {
                *place = json!([]);
            }
            let list = place.as_array_mut().unwrap_or_else(|| panic!("{path}: a list"));
            if list.is_empty() {
                list.push(Value::Null);
            }
            &mut list[0]
        } else {
            if place.is_null() {
                *place = Value::Object(Map::new());
            }
            let members = place.as_object_mut().unwrap_or_else(|| panic!("{path}: {name} is in no object"));
            members.entry(name.replace("~1", "/")).or_insert(Value::Null)
        };
    }
    *place = value;
    whole
}

/// Compares a table with the names that the format's definition has.
///
/// # Panics
/// The table has no line for one of `names`, two for one, or one for a member that is neither there nor among `more`,
/// which are those of other definitions.
pub fn covers<'a>(table: &[Member], names: impl IntoIterator<Item = &'a str>, more: &[&str]) {
    let mut listed = BTreeSet::new();
    for member in table {
        assert!(listed.insert(member.path), "{} is listed twice", member.path);
    }
    let names: BTreeSet<&str> = names.into_iter().collect();
    let missing: Vec<_> = names.difference(&listed).collect();
    assert!(missing.is_empty(), "not listed: {missing:?}");
    let unknown: Vec<_> =
        listed.iter().filter(|path| !names.contains(*path) && !more.contains(path)).collect();
    assert!(unknown.is_empty(), "listed, but no member: {unknown:?}");
}

/// The paths of all members of a document, for [`covers`], with `*` for lists.
pub fn paths(document: &Value) -> BTreeSet<String> {
    fn walk(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    let path = format!("{path}/{}", name.replace('/', "~1"));
                    walk(value, &path, found);
                    found.insert(path);
                }
            }
            Value::Array(list) => list.iter().for_each(|value| walk(value, &format!("{path}/*"), found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    walk(document, "", &mut found);
    found
}

/// A table in Markdown.
pub fn markdown(table: &[Member]) -> String {
    let mut text =
        String::from("| member | use | what it does, or why it does nothing |\n| --- | --- | --- |\n");
    for member in table {
        let used = match member.used {
            Use::Honoured => "honoured",
            Use::Ignored => "ignored",
            Use::Refused => "refused",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| `{}` | {used} | {} |", member.shown(), member.about);
    }
    text
}

/// Compares a section of a page with what it should be: the text between `<!-- name: begin -->` and
/// `<!-- name: end -->`. With `UPDATE_DOCS` in the environment, it is written.
///
/// # Panics
/// The page cannot be read, has no such section, or another text in it.
pub fn document(page: &Path, name: &str, text: &str) {
    // A page has several sections, whose tests run side by side.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let shown = page.display();
    let whole = std::fs::read_to_string(page).unwrap_or_else(|error| panic!("{shown}: {error}"));
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
    let (before, rest) = whole.split_once(&begin).unwrap_or_else(|| panic!("{shown}: no {begin}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{shown}: no {end}"));
    let right = format!("{before}{begin}{text}{end}{after}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(page, &right).unwrap_or_else(|error| panic!("{shown}: {error}"));
    } else {
        assert!(whole == right, "{shown}: {name} is out of date: run this test with UPDATE_DOCS=1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `list[].known` as a number.
    fn read(document: &Value) -> Result<i64, String> {
        let known = document.pointer("/list/0/known");
        known.and_then(Value::as_i64).ok_or_else(|| "no number".to_owned())
    }

    fn holds(member: Member) -> bool {
        let good = json!({"list": [{"known": 1}]});
        std::panic::catch_unwind(|| check(&good, &[member], read)).is_ok()
    }

    #[test]
    fn lines_that_are_not_true_are_found() {
        assert!(holds(honoured("/list/*/known", "2", "")) && holds(refused("/list/*/known", "\"x\"", "")));
        assert!(holds(ignored("/list/*/other", "2", "")) && holds(ignored("/more/of/it", "2", "")));
        assert!(!holds(honoured("/list/*/known", "1", "")) && !holds(honoured("/list/*/other", "2", "")));
        assert!(!holds(ignored("/list/*/known", "1", "")) && !holds(refused("/list/*/known", "2", "")));
        assert!(
            !holds(ignored("/list/*/known/in/number", "1", ""))
                && !holds(ignored("/list/*/other", "no JSON", ""))
        );
    }

    #[test]
    fn tables_are_compared_with_names() {
        let table = [honoured("/a/*/b", "1", "does it"), ignored("/c", "1", "not that")];
        let compare = |names: &[&str], more: &[&str]| {
            std::panic::catch_unwind(|| covers(&table, names.iter().copied(), more)).is_ok()
        };
        assert!(compare(&["/a/*/b", "/c"], &[]) && compare(&["/c"], &["/a/*/b"]));
        assert!(!compare(&["/a/*/b"], &[]) && !compare(&["/a/*/b", "/c", "/d"], &[]));
        assert_eq!(paths(&json!({"a": [{"b": 1}]})).into_iter().collect::<Vec<_>>(), ["/a", "/a/*/b"]);
        let twice = [table[0], table[0]];
        assert!(std::panic::catch_unwind(|| covers(&twice, [], &["/a/*/b"])).is_err());
        assert!(
            markdown(&table).ends_with("| `a[].b` | honoured | does it |\n| `c` | ignored | not that |\n")
        );
    }
}
