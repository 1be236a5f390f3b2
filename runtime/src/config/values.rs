//! Functions with which serde deserializes and checks the value of a key. Errors contain the value and what is expected;
//! `super::read` adds the key and the line.

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// An absolute path without `..`.
pub(super) fn path<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    absolute(&String::deserialize(from)?).map_err(D::Error::custom)
}

/// As [`path`]; an empty string is `None`.
pub(super) fn optional_path<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    let given = String::deserialize(from)?;
    if given.is_empty() { Ok(None) } else { absolute(&given).map(Some).map_err(D::Error::custom) }
}

/// As [`path`]; an empty string is an empty path.
pub(super) fn path_or_empty<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    optional_path(from).map(Option::unwrap_or_default)
}

/// A list of at least one path.
pub(super) fn paths<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
    let given = from.deserialize_seq(List)?;
    if given.is_empty() {
        return Err(D::Error::custom("must name at least one folder"));
    }
    given.iter().map(|path| absolute(path)).collect::<Result<_, _>>().map_err(D::Error::custom)
}

/// Names of images, or patterns of them.
pub(super) fn image_patterns<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let given = from.deserialize_seq(List)?;
    match given.iter().find(|pattern| !image::ImageStore::is_pattern(pattern)) {
        Some(wrong) => Err(D::Error::custom(format_args!(
            "{wrong:?} must be the name of an image, such as \"busybox:1.37\", or a pattern with * or ? of its whole name, such as \"docker.io/library/busybox:*\""
        ))),
        None => Ok(given),
    }
}

fn absolute(given: &str) -> Result<PathBuf, String> {
    let path = Path::new(given);
    if !path.is_absolute() || given.contains('\0') {
        Err(format!("{given:?} must be an absolute path"))
    } else if path.components().any(|part| part == Component::ParentDir) {
        Err(format!("{given:?} must not contain \"..\""))
    } else if path.parent().is_none() {
        Err(format!("{given:?} must not be the root of the file system"))
    } else {
        Ok(path.components().collect())
    }
}

/// A whole number from `MIN` to `MAX`.
pub(super) fn number<'de, D: Deserializer<'de>, const MIN: u16, const MAX: u16>(
    from: D,
) -> Result<usize, D::Error> {
    bounded(from.deserialize_i64(Whole)?, MIN, MAX).map(usize::from).map_err(D::Error::custom)
}

/// From `MIN` to `MAX` whole seconds.
pub(super) fn seconds<'de, D: Deserializer<'de>, const MIN: u16, const MAX: u16>(
    from: D,
) -> Result<Duration, D::Error> {
    let seconds = bounded(from.deserialize_i64(Whole)?, MIN, MAX).map_err(D::Error::custom)?;
    Ok(Duration::from_secs(seconds.into()))
}

/// From 1 to `MAX` whole seconds; 0 is `None`.
pub(super) fn seconds_or_never<'de, D: Deserializer<'de>, const MAX: u16>(
    from: D,
) -> Result<Option<Duration>, D::Error> {
    Ok(Some(seconds::<D, 0, MAX>(from)?).filter(|time| !time.is_zero()))
}

/// The address of a socket that clients can connect to.
pub(super) fn address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let given = String::deserialize(from)?;
    match given.parse::<SocketAddr>() {
        Ok(address) if !address.ip().is_unspecified() => Ok(address),
        Ok(_) => Err(D::Error::custom(format_args!(
            "{given:?} must name one address: it is part of the URLs that clients get"
        ))),
        Err(_) => Err(D::Error::custom(format_args!(
            "{given:?} must be an IP address and a port, for example 127.0.0.1:0 or [::1]:0"
        ))),
    }
}

fn bounded(given: i128, min: u16, max: u16) -> Result<u16, String> {
    match u16::try_from(given) {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("{given} must be from {min} to {max}")),
    }
}

/// A type whose values are written as words.
pub(super) trait Word: Copy + 'static {
    /// Every word with its value.
    const WORDS: &'static [(&'static str, Self)];
}

/// The word of a value.
pub(super) fn word_of<T: Word + PartialEq>(value: T) -> &'static str {
    T::WORDS.iter().find(|(_, of)| *of == value).map_or("", |(word, _)| *word)
}

/// One of [`Word::WORDS`].
pub(super) fn word<'de, D: Deserializer<'de>, T: Word>(from: D) -> Result<T, D::Error> {
    value_of(&String::deserialize(from)?).map_err(D::Error::custom)
}

/// As [`word`]; `true` and `false` may be written without quotation marks.
pub(super) fn word_or_flag<'de, D: Deserializer<'de>, T: Word>(from: D) -> Result<T, D::Error> {
    value_of(&from.deserialize_any(WordOrFlag)?).map_err(D::Error::custom)
}

fn value_of<T: Word>(given: &str) -> Result<T, String> {
    T::WORDS.iter().find(|(word, _)| *word == given).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = T::WORDS.iter().map(|(word, _)| *word).collect();
        format!("{given:?} must be one of {}", words.join(", "))
    })
}

// These visitors exist for their errors: those of serde's own name types of Rust ("expected i64").

struct WordOrFlag;

impl Visitor<'_> for WordOrFlag {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, true or false")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<String, E> {
        Ok(value.to_owned())
    }
}

struct Whole;

impl Visitor<'_> for Whole {
    type Value = i128;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<i128, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<i128, E> {
        Ok(value.into())
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<i128, E> {
        Ok(value)
    }
}

struct List;

impl<'de> Visitor<'de> for List {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<String>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(list)
    }
}
