//! Mutations that keep the structure of an input, beside those of libFuzzer, which change bytes. Bytes alone hardly ever make
//! one more entry of a list, or two entries of an archive that belong together. A test of the crate runs them.

use std::ops::Range;

/// Numbers from a seed (xorshift).
struct Random(u64);

impl Random {
    fn new(seed: u32) -> Self {
        Self(((u64::from(seed) << 1) | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number below `end`, which must not be 0.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or_default() % end
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// JSON behind a byte that says how it is tried: elements of arrays and members of objects are repeated, copied to others of
/// their kind, and removed. `None` if there are none.
pub fn json(input: &[u8], seed: u32) -> Option<Vec<u8>> {
    let (how, document) = input.split_first()?;
    let (mut random, mut document) = (Random::new(seed), document.to_vec());
    for _ in 0..=random.below(4) {
        let items = items(&document);
        if items.is_empty() {
            return None;
        }
        let (is_member, at) = random.one_of(&items).clone();
        let like: Vec<_> = items.into_iter().filter(|(other, _)| *other == is_member).collect();
        let (_, other) = random.one_of(&like).clone();
        let copied = document[other].to_vec();
        match random.below(4) {
            0 => drop(document.splice(at, copied)),
            1 if document.get(at.end) == Some(&b',') => drop(document.drain(at.start..=at.end)),
            2 => {
                let again = [b",", &document[at.clone()]].concat();
                drop(document.splice(at.end..at.end, again));
            }
            _ => drop(document.splice(at.end..at.end, [b",", &copied[..]].concat())),
        }
    }
    Some([&[*how], &document[..]].concat())
}

/// The elements (`false`) and members (`true`) at any depth. For what is not JSON the result is arbitrary.
fn items(json: &[u8]) -> Vec<(bool, Range<usize>)> {
    let (mut open, mut found) = (Vec::new(), Vec::new());
    let (mut at, mut in_text) = (0, false);
    while at < json.len() {
        match (json[at], in_text) {
            (b'\\', true) => at += 1,
            (b'"', _) => in_text = !in_text,
            (b'{' | b'[', false) => open.push((json[at] == b'{', at + 1)),
            (end @ (b',' | b'}' | b']'), false) => {
                let Some((is_member, from)) = open.pop() else { break };
                if !json[from..at].trim_ascii().is_empty() {
                    found.push((is_member, from..at));
                }
                if end == b',' {
                    open.push((is_member, at + 1));
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

const BLOCK: usize = 512;
const NAME: Range<usize> = 0..100;
const SIZE: Range<usize> = 124..135;
const KIND: usize = 156;
const LINK: Range<usize> = 157..257;
/// Targets of links: `victim` is what the check of `unpack` has beside the folder.
const TARGETS: [&[u8]; 7] = [b"..", b"../..", b"../victim", b"/", b".", b"../layer/a", b".wh.x"];
const KINDS: &[u8] = b"00112255346xgLKS\0";

/// An archive: its entries are copied, removed and moved, and get names, types and targets that have to do with other entries.
/// `None` if it has no entry.
pub fn archive(input: &[u8], seed: u32) -> Option<Vec<u8>> {
    let (mut random, mut entries) = (Random::new(seed), entries(input));
    for _ in 0..=random.below(4) {
        if entries.is_empty() {
            return None;
        }
        let (at, other) = (random.below(entries.len()), random.below(entries.len()));
        let other_name = text(&entries[other][NAME]);
        let entry = &mut entries[at];
        let (own_name, own_link) = (text(&entry[NAME]), text(&entry[LINK]));
        let (parent, last) = match own_name.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => own_name.split_at(slash + 1),
            None => (&b""[..], &own_name[..]),
        };
        match random.below(12) {
            0 => drop(entries.remove(at)),
            1 => entries.swap(at, other),
            2 | 3 => entries.insert(at, entries[other].clone()),
            4 | 5 => put(entry, NAME, &other_name),
            6 => put(entry, NAME, &[&other_name[..], b"/", last].concat()),
            7 => put(entry, NAME, &[parent, *random.one_of(&[&b".wh."[..], b".wh..wh."]), last].concat()),
            8 => put(entry, LINK, &other_name),
            9 => put(entry, LINK, random.one_of::<&[u8]>(&TARGETS)),
            10 => put(entry, LINK, &[b"../", &own_link[..]].concat()),
            _ => entry[KIND] = *random.one_of(KINDS),
        }
    }
    Some(entries.concat())
}

/// [`archive`] behind a byte that says how it is tried.
pub fn archive_with_how(input: &[u8], seed: u32) -> Option<Vec<u8>> {
    let (how, bytes) = input.split_first()?;
    Some([&[*how], &archive(bytes, seed)?[..]].concat())
}

/// The entries with their content, in whole blocks, except for a last one that is cut off.
fn entries(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut left, mut found) = (bytes, Vec::new());
    while left.len() >= BLOCK {
        let digits = text(&left[SIZE]);
        let size = std::str::from_utf8(&digits).ok().and_then(|digits| usize::from_str_radix(digits, 8).ok());
        let has_content = !(b'1'..=b'6').contains(&left[KIND]);
        let length = size.filter(|_| has_content).unwrap_or(0).next_multiple_of(BLOCK);
        let (entry, rest) = left.split_at(left.len().min(BLOCK + length));
        found.push(entry.to_vec());
        left = rest;
    }
    found
}

/// A field without the zeros behind it.
fn text(field: &[u8]) -> Vec<u8> {
    field.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// Writes a field, cut to its length.
fn put(entry: &mut [u8], field: Range<usize>, text: &[u8]) {
    entry[field.clone()].fill(0);
    let length = text.len().min(field.len());
    entry[field.start..field.start + length].copy_from_slice(&text[..length]);
}
