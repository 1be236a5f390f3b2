//! The ids of pods and containers that the tests have made. An object of the host whose name has one of them is theirs,
//! wherever it is.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Length of an id in hex digits.
const LENGTH: usize = 64;

/// The ids; a run makes some thousands.
static IDS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Keeps the id of a pod or a container.
pub(crate) fn add(id: &str) {
    IDS.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
}

/// Whether a path has the id of one of them, as a name or in one.
pub(crate) fn is_named_in(path: &str) -> bool {
    let mut ids = path.split(|c: char| !c.is_ascii_hexdigit()).filter(|run| run.len() == LENGTH).peekable();
    if ids.peek().is_none() {
        return false;
    }
    let known = IDS.lock().unwrap_or_else(PoisonError::into_inner);
    ids.any(|id| known.contains(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_names() {
        let (made, other) = ("0a".repeat(32), "0b".repeat(32));
        add(&made);
        for path in
            [format!("/x/{made}"), format!("/:engine:{made}/y"), format!("/slice/engine-{made}.scope")]
        {
            assert!(is_named_in(&path), "{path}");
        }
        for path in
            [format!("/x/{other}"), format!("/x/{made}0"), format!("/x/{}", &made[1..]), String::from("/")]
        {
            assert!(!is_named_in(&path), "{path}");
        }
    }
}
