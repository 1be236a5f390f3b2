//! What the fuzz targets (`image/fuzz`) check of any bytes, and the replay of their seeds as a test.

use crate::manifest::{self, Host};
use crate::reference::{Digest, Reference, Selector};
use std::fmt::Debug;

/// Headers that a registry may send for a document.
const CONTENT_TYPES: [&str; 5] = [
    "",
    "application/json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json; charset=utf-8",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// Any manifest or index: the first byte is the number of a content type. The names' case, members that nobody knows and
/// a repetition of all members change nothing.
pub fn document(data: &[u8]) {
    let Some((kind, json)) = data.split_first() else { return };
    let kind = CONTENT_TYPES[usize::from(*kind) % CONTENT_TYPES.len()];
    let (host, digest) = (Host::this(), Digest::of(b""));
    let read = |json: &[u8]| manifest::document(&digest, kind, json, &host);
    same(read(json), read(&other_case(json)), "names in another case");
    same(read(json), read(&more_members(json)), "unknown members");
    if let (Ok(once), Some(twice)) = (read(json), twice(json)) {
        same(Ok(once), read(&twice), "all members twice");
    }
    if let Ok(manifest::Document::Index(candidates)) = read(json) {
        assert!((1..=4).contains(&candidates.len()), "{} candidates", candidates.len());
    }
}

/// Any config.
pub fn config(json: &[u8]) {
    let id = Digest::of(b"");
    let read = |json: &[u8]| manifest::config(&id, json);
    let Ok(config) = read(json) else {
        assert!(
            manifest::config_document(&id, json.to_vec()).is_none(),
            "a document of a config that is refused"
        );
        return;
    };
    if let Some(twice) = twice(json) {
        same(Ok(config), read(&twice), "all members twice");
    }
    let Ok(config) = read(json) else { panic!("read once and then not again") };
    let replaced = String::from_utf8_lossy(json).into_owned();
    same(read(json), read(replaced.as_bytes()), "replaced bytes");
    let (uid, name) = manifest::user(&config.process.user);
    assert!(uid.is_some() != name.is_some(), "user {:?}", config.process.user);
    drop(config.check_platform(&id, &Host::this()));
    if let Some(document) = manifest::config_document(&id, json.to_vec()) {
        assert_eq!(document.chain_id.is_empty(), config.diff_ids.is_empty(), "a chain id without layers");
    }
}

/// Any archive as a layer's.
pub fn layer(data: &[u8]) {
    crate::unpack::properties::archive(data);
}

/// Any archive, unpacked into a temporary folder. Needs root.
pub fn unpack(data: &[u8]) {
    crate::unpack::properties::unpacked(data);
}

/// Any values of the header WWW-Authenticate, one in each line.
pub fn challenge(data: &[u8]) {
    crate::registry::properties::challenge(data);
}

/// Any `hosts.toml`.
pub fn hosts(data: &[u8]) {
    crate::registry::properties::hosts(data);
}

/// Any `config.json` of Docker.
pub fn credentials(data: &[u8]) {
    crate::registry::properties::credentials(data);
}

/// Any text as an image's name.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(reference) = Reference::parse(text) else { return };
    let shown = reference.to_string();
    assert_eq!(Reference::parse(&shown).ok().as_ref(), Some(&reference), "{text:?} is shown as {shown:?}");
    let selector = match reference.selector() {
        Selector::Tag(tag) => tag.clone(),
        Selector::Digest(digest) => digest.to_string(),
    };
    // Nothing in a name changes the host or the path that is asked.
    let (host, path) = (reference.registry(), format!("/v2/{}/manifests/{selector}", reference.repository()));
    let url: hyper::Uri = format!("https://{host}{path}").parse().expect("a name makes a URL");
    assert_eq!(
        (url.authority().map(|host| host.as_str()), url.path(), url.query()),
        (Some(host), path.as_str(), None)
    );
    assert!(!path.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")), "{path}");
}

fn same<T: Debug, E: Debug>(one: Result<T, E>, other: Result<T, E>, with: &str) {
    match (one, other) {
        (Ok(one), Ok(other)) => assert_eq!(format!("{one:?}"), format!("{other:?}"), "{with}"),
        (Err(_), Err(_)) => {}
        (one, other) => panic!("{with}: {one:?} and {other:?}"),
    }
}

/// Calls `on_name` for every member's name without escapes, and `on_open` behind every `{`, with the next byte that is
/// no space. What is no JSON may come out as anything.
fn walk(json: &[u8], mut on_name: impl FnMut(usize, usize), mut on_open: impl FnMut(usize, u8)) {
    let next =
        |from: usize| json[from..].iter().copied().find(|byte| !byte.is_ascii_whitespace()).unwrap_or(0);
    let (mut at, mut quote, mut escapes) = (0, None, false);
    while at < json.len() {
        match (json[at], quote) {
            (b'\\', Some(_)) => {
                escapes = true;
                at += 1;
            }
            (b'"', Some(from)) => {
                if !escapes && next(at + 1) == b':' {
                    on_name(from, at);
                }
                quote = None;
            }
            (b'"', None) => (quote, escapes) = (Some(at + 1), false),
            (b'{', None) => on_open(at + 1, next(at + 1)),
            _ => {}
        }
        at += 1;
    }
}

fn other_case(json: &[u8]) -> Vec<u8> {
    let mut out = json.to_vec();
    let swap = |byte: &mut u8| *byte ^= if byte.is_ascii_alphabetic() { 0x20 } else { 0 };
    walk(json, |from, to| out[from..to].iter_mut().for_each(swap), |_, _| {});
    out
}

fn more_members(json: &[u8]) -> Vec<u8> {
    let (mut out, mut done) = (Vec::new(), 0);
    walk(
        json,
        |_, _| {},
        |at, next| {
            out.extend_from_slice(&json[done..at]);
            out.extend_from_slice(if next == b'}' { b"\"zz\":0" } else { b"\"zz\":0," });
            done = at;
        },
    );
    out.extend_from_slice(&json[done..]);
    out
}

/// An object with all its members twice.
fn twice(json: &[u8]) -> Option<Vec<u8>> {
    let members = json.trim_ascii().strip_prefix(b"{")?.strip_suffix(b"}")?;
    (!members.trim_ascii().is_empty()).then(|| [b"{", members, b",", members, b"}"].concat())
}

#[cfg(test)]
#[path = "../fuzz/seeds.rs"]
#[expect(unreachable_pub, reason = "the crate of the fuzz targets has this module too")]
mod seeds;

#[cfg(test)]
#[path = "../fuzz/mutate.rs"]
#[expect(unreachable_pub, reason = "the crate of the fuzz targets has this module too")]
mod mutate;

#[cfg(test)]
mod tests {
    use super::{mutate, seeds};

    #[test]
    fn seeds_of_the_fuzz_targets() {
        for (seeds, check) in [
            (seeds::manifest(), super::document as fn(&[u8])),
            (seeds::config(), super::config),
            (seeds::reference(), super::reference),
            (seeds::layer(), super::layer),
            (seeds::unpack(), super::unpack),
            (seeds::challenge(), super::challenge),
            (seeds::hosts(), super::hosts),
            (seeds::credentials(), super::credentials),
        ] {
            assert!(seeds.len() > 5);
            seeds.iter().for_each(|seed| check(seed));
        }
    }

    #[test]
    fn the_changes_are_those_that_are_meant() {
        let json = br#"{"a":{"b\"":1,"c" :"d"},"e":{ }}"#;
        assert_eq!(super::other_case(json), br#"{"A":{"b\"":1,"C" :"d"},"E":{ }}"#);
        assert_eq!(super::more_members(json), br#"{"zz":0,"a":{"zz":0,"b\"":1,"c" :"d"},"e":{"zz":0 }}"#);
        assert_eq!(super::twice(br#" {"a":1} "#).unwrap(), br#"{"a":1,"a":1}"#);
        assert_eq!(super::twice(b"{ }"), None);
    }

    #[test]
    fn mutations_keep_the_structure_and_the_checks() {
        let is_json = |bytes: &[u8]| serde_json::from_slice::<serde::de::IgnoredAny>(&bytes[1..]).is_ok();
        let (mut changed, mut most) = (0, 0);
        for (number, seed) in (0..).zip(seeds::manifest()) {
            for round in 0..50 {
                let Some(mutant) = mutate::json(&seed, number * 1000 + round) else { continue };
                assert!(is_json(&mutant) || !is_json(&seed), "{}", mutant.escape_ascii());
                most = most.max(mutant.len() / seed.len());
                changed += usize::from(mutant != seed);
                super::document(&mutant);
            }
        }
        assert!(changed > 300 && most > 1, "{changed} mutants, {most} times the length");
        let mut entries = 0;
        for (number, seed) in (0..).zip(seeds::layer()) {
            for round in 0..50 {
                let Some(mutant) = mutate::archive_with_how(&seed, number * 1000 + round) else { continue };
                assert_eq!(mutant.len() % 512, 1);
                entries += usize::from(mutant != seed);
                super::layer(&mutant);
            }
        }
        assert!(entries > 300, "{entries} mutants");
    }
}
