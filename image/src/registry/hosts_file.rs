//! Parses `hosts.toml`, containerd's format for the hosts that serve a registry. Pure: accesses no file.
//! Unknown keys are ignored, as containerd does, and returned.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Keys outside of the settings.
const OUTER_KEYS: [&str; 2] = ["server", "host"];
/// Keys of [`Settings`].
const SETTINGS_KEYS: [&str; 6] = ["capabilities", "skip_verify", "ca", "client", "override_path", "header"];
/// Maximum number of unknown keys that are returned, and of characters of each.
const MAX_UNKNOWN: usize = 16;
const MAX_KEY: usize = 200;

/// What is wrong with a `hosts.toml`.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("it is not UTF-8")]
    NotUtf8,
    /// Not TOML, or a value of the wrong type.
    #[error("{}{message}", place(*line))]
    Toml { line: Option<usize>, message: String },
    #[error("key {key:?} is nested more than {} levels deep", shallow_toml::MAX_DEPTH)]
    TooDeep { key: String },
    #[error("host {host:?} is not a URL")]
    NotAUrl { host: String },
    #[error("host {host:?} is neither http nor https")]
    Scheme { host: String },
    #[error("host {host:?} must have a host name, and must not have a user or a query")]
    Authority { host: String },
    #[error("capability {capability:?} is none of pull, resolve, push")]
    Capability { capability: String },
    #[error("client must be a file, or a list of files and pairs of certificate and key")]
    Client,
    #[error("{name:?} is not a valid header name")]
    HeaderName { name: String },
    #[error("the value of header {name:?} is not valid")]
    HeaderValue { name: String },
}

fn place(line: Option<usize>) -> String {
    line.map(|line| format!("line {line}: ")).unwrap_or_default()
}

/// A parsed file.
pub(super) struct HostsFile {
    /// `server`: the registry's own URL.
    pub(super) server: Option<String>,
    /// Settings of the server: the keys outside of `host`.
    pub(super) own: Settings,
    /// URL and settings of each mirror, in the order of the file.
    pub(super) mirrors: Vec<(String, Settings)>,
    /// The first [`MAX_UNKNOWN`] keys that are ignored, with the host that they belong to.
    pub(super) unknown: Vec<String>,
}

/// Settings of one host; [`SETTINGS_KEYS`] lists the same keys.
#[derive(Deserialize)]
pub(super) struct Settings {
    pub(super) capabilities: Option<Vec<String>>,
    #[serde(default)]
    pub(super) skip_verify: bool,
    pub(super) ca: Option<OneOrMany<PathBuf>>,
    pub(super) client: Option<OneOrMany<Client>>,
    #[serde(default)]
    pub(super) override_path: bool,
    #[serde(default)]
    pub(super) header: BTreeMap<String, OneOrMany<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(super) fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// A client certificate.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Client {
    /// One file with certificate and key.
    Combined(PathBuf),
    /// Certificate and key. A pair without a key, or with an empty one, is a combined file.
    Pair(Vec<PathBuf>),
}

/// The keys outside of the settings.
#[derive(Deserialize)]
struct Hosts {
    server: Option<String>,
    /// Spanned, because a map does not keep the order of the file.
    #[serde(default)]
    host: BTreeMap<Spanned<String>, Settings>,
}

/// Parses the content of the file.
pub(super) fn parse(bytes: &[u8]) -> Result<HostsFile, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|_| Problem::NotUtf8)?;
    let (table, errors) = shallow_toml::parse(text);
    let table = table.map_err(|key| Problem::TooDeep { key: key.into_inner() })?;
    let wrong = |error: &toml::de::Error| {
        let line = |start| 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
        let line = error.span().map(|span| line(span.start));
        Problem::Toml { line, message: error.message().to_owned() }
    };
    if let Some(error) = errors.first() {
        return Err(wrong(error));
    }
    let unknown = unknown_keys(&table);
    // Both types ignore the keys of the other.
    let deserializer = |table| toml::Deserializer::from(Spanned::new(0..0, table));
    let own = Settings::deserialize(deserializer(table.clone())).map_err(|error| wrong(&error))?;
    let hosts = Hosts::deserialize(deserializer(table)).map_err(|error| wrong(&error))?;
    let mut mirrors: Vec<_> = hosts.host.into_iter().collect();
    mirrors.sort_by_key(|(url, _)| url.span().start);
    let mirrors = mirrors.into_iter().map(|(url, settings)| (url.into_inner(), settings)).collect();
    Ok(HostsFile { server: hosts.server, own, mirrors, unknown })
}

/// The keys that neither type knows.
fn unknown_keys(table: &DeTable<'_>) -> Vec<String> {
    let unknown_in = |table: &DeTable<'_>, known: &[&str]| -> Vec<String> {
        let keys = table.keys().map(|key| key.get_ref().to_string());
        keys.filter(|key| !known.contains(&key.as_str())).collect()
    };
    let mut unknown = unknown_in(table, &[&OUTER_KEYS[..], &SETTINGS_KEYS[..]].concat());
    if let Some(DeValue::Table(hosts)) = table.get("host").map(Spanned::get_ref) {
        for (url, settings) in hosts {
            if let DeValue::Table(settings) = settings.get_ref() {
                let keys = unknown_in(settings, &SETTINGS_KEYS);
                unknown.extend(keys.iter().map(|key| format!("{key} of host {}", url.get_ref())));
            }
        }
    }
    unknown.truncate(MAX_UNKNOWN);
    unknown.iter().map(|key| key.chars().take(MAX_KEY).collect()).collect()
}
