//! Pinned images: those that kubelet must not remove to free space.

use crate::reference::Reference;

/// Maximum length of a pattern, in bytes: more than any name has.
const MAX_PATTERN: usize = 1024;

fn has_wildcard(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// Whether a text is a pattern or a valid name.
pub(crate) fn is_pattern(text: &str) -> bool {
    if has_wildcard(text) { text.len() <= MAX_PATTERN } else { Reference::parse(text).is_ok() }
}

/// Names and patterns of pinned images.
#[derive(Debug, Default)]
pub(crate) struct Pinned {
    patterns: Vec<String>,
}

impl Pinned {
    /// A text without `*` and `?` is a name as users write it, and is normalised.
    pub(crate) fn new(patterns: &[String]) -> Self {
        let whole = |text: &String| {
            let name = if has_wildcard(text) { None } else { Reference::parse(text).ok() };
            name.map_or_else(|| text.clone(), |name| name.to_string())
        };
        Self { patterns: patterns.iter().map(whole).collect() }
    }

    /// Whether an image with this normalised name is pinned.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.patterns.iter().any(|pattern| matches(pattern.as_bytes(), name.as_bytes()))
    }
}

/// Whether a pattern describes the whole text. `*` is any number of bytes, also of `/`; `?` is one byte. Takes at most
/// the product of both lengths.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    // Where to go on if the rest does not fit: behind the last `*`, which then takes one more byte.
    let mut retry = None;
    while read < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                at += 1;
                retry = Some((at, read));
            }
            Some(letter) if *letter == b'?' || *letter == text[read] => {
                at += 1;
                read += 1;
            }
            _ => {
                let Some((after, taken)) = retry else { return false };
                (at, read) = (after, taken + 1);
                retry = Some((after, read));
            }
        }
    }
    pattern[at..].iter().all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_and_patterns_cover_whole_names() {
        let pinned = |patterns: &[&str]| {
            Pinned::new(&patterns.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
        };
        let pause = "registry.k8s.io/pause:3.10";
        for yes in
            [pause, "registry.k8s.io/*", "*/pause:*", "*pause*", "*", "registry.k8s.io/pause:3.1?", "**0"]
        {
            assert!(pinned(&["busybox", yes]).has(pause), "{yes}");
        }
        for no in ["", "pause", "registry.k8s.io", "registry.k8s.io/pause", "k8s.io/*", "*/pause", "?", "*1"]
        {
            assert!(!pinned(&[no]).has(pause), "{no}");
        }
        assert!(pinned(&["busybox"]).has("docker.io/library/busybox:latest"));
        assert!(!Pinned::default().has(pause));
        assert!(is_pattern("busybox") && is_pattern("*") && !is_pattern("") && !is_pattern("Busybox"));
        assert!(!is_pattern(&"*".repeat(2000)));
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = "*a".repeat(200);
        assert!(!Pinned::new(&[pattern + "b"]).has(&"a".repeat(400)));
    }
}
