//! Parses `hosts.toml`, containerd's format for the hosts that serve a registry. Pure: accesses no file.
//! containerd ignores keys that it does not know. Here they are refused: a misspelt `ca` or `skip_verify` would show
//! only as a failure of TLS.

use super::plain_text::one_line;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Keys outside of the settings.
pub(super) const OUTER_KEYS: [&str; 2] = ["server", "host"];
/// Keys of [`Settings`].
pub(super) const SETTINGS_KEYS: [&str; 7] =
    ["capabilities", "skip_verify", "ca", "client", "override_path", "header", "dial_timeout"];
/// Maximum characters of a key or value in an error.
pub(super) const MAX_KEY: usize = 60;
/// Maximum characters of what the parser says about a value, which it quotes.
const MAX_MESSAGE: usize = 300;
/// Maximum time for a connection: after that the kernel has given up (tcp_syn_retries).
const MAX_DIAL: Duration = Duration::from_secs(300);

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
    #[error(
        "host {host:?} must have a host name, a port from 1 to 65535 or none, and neither user nor query"
    )]
    Authority { host: String },
    #[error("capability {capability:?} is none of pull, resolve, push, referrers")]
    Capability { capability: String },
    /// With the host that it belongs to, and what may have been meant.
    #[error("key {key:?}{place} is not known; {hint}")]
    UnknownKey { key: String, place: String, hint: String },
    #[error("key \"rewrite\"{place} is not supported: only k3s and RKE2 have it")]
    Rewrite { place: String },
    #[error(
        "key \"proxy\"{place} is not supported: HTTPS_PROXY and NO_PROXY of the daemon's environment say it"
    )]
    Proxy { place: String },
    #[error("dial_timeout {time:?} must be a time such as \"1s\" or \"500ms\", of at most {} s", MAX_DIAL.as_secs())]
    Time { time: String },
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
}

/// Settings of one host; [`SETTINGS_KEYS`] lists the same keys.
#[derive(Deserialize)]
pub(super) struct Settings {
    pub(super) capabilities: Option<Vec<String>>,
    #[serde(default)]
    pub(super) skip_verify: bool,
    pub(super) ca: Option<OneOrMany<PathBuf>>,
    pub(super) client: Option<Clients>,
    #[serde(default)]
    pub(super) override_path: bool,
    #[serde(default)]
    pub(super) header: BTreeMap<String, OneOrMany<String>>,
    pub(super) dial_timeout: Option<String>,
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

/// Client certificates: a file, or a list of files and pairs.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Clients {
    One(PathBuf),
    Many(Vec<Client>),
}

impl Clients {
    pub(super) fn into_vec(self) -> Vec<Client> {
        match self {
            Self::One(path) => vec![Client::Combined(path)],
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
    let table = table.map_err(|key| Problem::TooDeep { key: one_line(&key.into_inner(), MAX_KEY) })?;
    let wrong = |error: &toml::de::Error| {
        let line = |start| 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
        let line = error.span().map(|span| line(span.start));
        Problem::Toml { line, message: one_line(error.message(), MAX_MESSAGE) }
    };
    if let Some(error) = errors.first() {
        return Err(wrong(error));
    }
    check_keys(&table)?;
    // Both types ignore the keys of the other.
    let deserializer = |table| toml::Deserializer::from(Spanned::new(0..0, table));
    let own = Settings::deserialize(deserializer(table.clone())).map_err(|error| wrong(&error))?;
    let hosts = Hosts::deserialize(deserializer(table)).map_err(|error| wrong(&error))?;
    let mut mirrors: Vec<_> = hosts.host.into_iter().collect();
    mirrors.sort_by_key(|(url, _)| url.span().start);
    let mirrors = mirrors.into_iter().map(|(url, settings)| (url.into_inner(), settings)).collect();
    Ok(HostsFile { server: hosts.server, own, mirrors })
}

/// Fails for a key that neither type knows.
fn check_keys(table: &DeTable<'_>) -> Result<(), Problem> {
    let check = |table: &DeTable<'_>, known: &[&str], place: &str| {
        let unknown = table.keys().map(|key| key.get_ref()).find(|key| !known.contains(&key.as_ref()));
        unknown.map_or(Ok(()), |key| Err(unknown_key(key, known, place)))
    };
    check(table, &[&OUTER_KEYS[..], &SETTINGS_KEYS[..]].concat(), "")?;
    if let Some(DeValue::Table(hosts)) = table.get("host").map(Spanned::get_ref) {
        for (url, settings) in hosts {
            if let DeValue::Table(settings) = settings.get_ref() {
                let url = one_line(url.get_ref(), MAX_KEY);
                check(settings, &SETTINGS_KEYS, &format!(" of host {url}"))?;
            }
        }
    }
    Ok(())
}

fn unknown_key(key: &str, known: &[&str], place: &str) -> Problem {
    let (key, place) = (one_line(key, MAX_KEY), place.to_owned());
    match key.as_str() {
        "rewrite" => return Problem::Rewrite { place },
        "proxy" => return Problem::Proxy { place },
        _ => {}
    }
    let hint = match shallow_toml::nearest(&key, known.iter().copied()) {
        Some(name) => format!("the nearest one is {name}"),
        None => format!("there are {}", known.join(", ")),
    };
    Problem::UnknownKey { key, place, hint }
}

/// A time as Go writes it: decimal numbers, each with its unit, such as `1m0.5s`. From one millisecond to [`MAX_DIAL`].
pub(super) fn duration(text: &str) -> Result<Duration, Problem> {
    let wrong = || Problem::Time { time: text.chars().take(MAX_KEY).collect() };
    let mut rest = text.trim_start_matches('+');
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        rest = &rest[end..];
        total += number * unit;
    }
    let time = Duration::try_from_secs_f64(total).map_err(|_| wrong())?;
    let allowed = Duration::from_millis(1)..=MAX_DIAL;
    if allowed.contains(&time) { Ok(time) } else { Err(wrong()) }
}
