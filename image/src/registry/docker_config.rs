//! Docker's `config.json`, and with it `auth.json` of Podman and CRI-O (containers-auth.json(5)) and the file of
//! kubelet's credential keyring: credentials of the node by registry, in it or from helpers. Pure.

use super::auth;
use crate::Auth;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;

/// What Docker's tools call the entry of Docker Hub.
const HUB_ENTRY: &str = "https://index.docker.io/v1/";

/// The members that matter; all others are settings of Docker's client, and ignored.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DockerConfig {
    #[serde(default)]
    auths: Option<BTreeMap<String, Option<Entry>>>,
    /// The helper for registries that `cred_helpers` does not have.
    creds_store: Option<String>,
    /// Helpers by registry.
    #[serde(default)]
    cred_helpers: Option<BTreeMap<String, String>>,
}

/// Credentials of one registry.
#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// Debug output has no secrets.
impl fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerConfig").finish_non_exhaustive()
    }
}

/// The file is no such JSON. The text has no value of it: serde's would show a password of the wrong type.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not the JSON of Docker's config.json, or a value of the wrong type, at line {line}, column {column}"
)]
pub(crate) struct Malformed {
    line: usize,
    column: usize,
}

/// Where a registry's credentials are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    File(Auth),
    /// The program `docker-credential-<helper>`, which is asked for `server`.
    Helper {
        helper: String,
        server: String,
    },
}

impl DockerConfig {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        serde_json::from_slice(bytes)
            .map_err(|error| Malformed { line: error.line(), column: error.column() })
    }

    /// Where the credentials for a repository may be, in the order to ask: the helper of the registry, or, only if it has
    /// none, the helper for all others; then the file itself. `registry` is a name with an optional port, `path` the
    /// repository.
    pub(crate) fn sources(&self, registry: &str, path: &str) -> Vec<Source> {
        let mut sources = Vec::new();
        let own_helper = self.cred_helpers.as_ref().and_then(|helpers| best(helpers, registry, path));
        if let Some((server, helper)) = own_helper.filter(|(_, helper)| !helper.is_empty()) {
            sources.push(Source::Helper { helper: helper.clone(), server: server.to_owned() });
        } else if let Some(helper) = self.creds_store.as_ref().filter(|helper| !helper.is_empty()) {
            let server = if hub(registry) == "docker.io" { HUB_ENTRY } else { registry };
            sources.push(Source::Helper { helper: helper.clone(), server: server.to_owned() });
        }
        // Docker's client leaves empty entries for credentials that its helper has.
        let with_content = self.auths.iter().flatten().filter_map(|(key, entry)| {
            let auth = entry.as_ref()?.auth();
            auth::is_usable(&auth).then_some((key.clone(), auth))
        });
        let entries: BTreeMap<String, Auth> = with_content.collect();
        sources.extend(best(&entries, registry, path).map(|(_, auth)| Source::File(auth.clone())));
        sources
    }
}

impl Entry {
    fn auth(&self) -> Auth {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Auth {
            username: text(&self.username),
            password: text(&self.password),
            auth: text(&self.auth),
            server_address: String::new(),
            identity_token: text(&self.identitytoken),
            registry_token: text(&self.registrytoken),
        }
    }
}

/// The entry that fits best: a host without wildcards first, then the longest path.
fn best<'a, T>(entries: &'a BTreeMap<String, T>, registry: &str, path: &str) -> Option<(&'a str, &'a T)> {
    let fitting = entries.iter().filter_map(|(key, value)| {
        let (host, prefix) = split(key);
        let is_below = prefix.is_empty() || path.strip_prefix(prefix).is_some_and(starts_new_segment);
        let rank = (!host.contains('*'), prefix.len());
        (is_below && matches_host(host, hub(registry))).then_some((rank, key.as_str(), value))
    });
    fitting.max_by_key(|(rank, ..)| *rank).map(|(_, key, value)| (key, value))
}

fn starts_new_segment(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('/')
}

/// Host and path of an entry's key: `host[:port][/path]`. Docker writes URLs of the API, whose version is no path.
fn split(key: &str) -> (&str, &str) {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest).trim_end_matches('/');
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    (hub(host), path)
}

/// One name for all of Docker Hub.
fn hub(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

/// Whether a host fits a pattern: both have equally many labels and the same port, and `*` in a label of the pattern
/// stands for any characters (kubelet's rule).
fn matches_host(pattern: &str, host: &str) -> bool {
    let (pattern, host) = (pattern.to_ascii_lowercase(), host.to_ascii_lowercase());
    if !pattern.contains('*') {
        return pattern == host;
    }
    let port = |text: &str| text.rsplit_once(':').map(|(_, port)| port.to_owned());
    if port(&pattern) != port(&host) {
        return false;
    }
    let labels = |text: &str| -> Vec<String> {
        let name = text.rsplit_once(':').map_or(text, |(name, _)| name);
        name.split('.').map(ToOwned::to_owned).collect()
    };
    let (patterns, labels) = (labels(&pattern), labels(&host));
    patterns.len() == labels.len()
        && patterns.iter().zip(&labels).all(|(pattern, label)| matches_label(pattern, label))
}

fn matches_label(pattern: &str, label: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == label };
    let Some(mut left) = label.strip_prefix(start) else { return false };
    // Each part between two wildcards at its first place; the last one at the end.
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user_of(sources: &[Source]) -> Vec<String> {
        let shown = |source: &Source| match source {
            Source::File(auth) => {
                auth::user_and_password(auth).map_or_else(|| "token".to_owned(), |(user, _)| user)
            }
            Source::Helper { helper, server } => format!("{helper} {server}"),
        };
        sources.iter().map(shown).collect()
    }

    fn config(value: &serde_json::Value) -> DockerConfig {
        DockerConfig::parse(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_best_entry_is_used() {
        let user = |name: &str| serde_json::json!({"username": name, "password": "p"});
        let config = config(&serde_json::json!({
            "auths": {
                "https://index.docker.io/v1/": user("hub"),
                "r.example:5000": user("port"),
                "r.example": user("host"),
                "r.example/team": user("team"),
                "r.example/team/app": user("app"),
                "http://old.example/v2": user("old"),
                "*.wild.example": user("wild"),
                "exact.wild.example": user("exact"),
                "a*c.*.wild.example:5000": user("labels"),
                "empty.example": {},
                "null.example": null,
                // user:secret
                "joint.example": {"auth": "dXNlcjpzZWNyZXQ=", "email": "x@example"},
                "token.example": {"identitytoken": "t"},
            },
            "HttpHeaders": {"x": "y"}, "psFormat": "table", "unknown": [[[]]],
        }));
        for (registry, path, expected) in [
            ("docker.io", "library/busybox", "hub"),
            ("r.example:5000", "team/app", "port"),
            ("r.example", "other/app", "host"),
            ("R.example", "team2/app", "host"),
            ("r.example", "team/other", "team"),
            ("r.example", "team/app", "app"),
            ("r.example", "team/app/deep", "app"),
            ("old.example", "a", "old"),
            ("one.wild.example", "a", "wild"),
            ("exact.wild.example", "a", "exact"),
            ("abbc.x.wild.example:5000", "a", "labels"),
            ("joint.example", "a", "user"),
            ("token.example", "a", "token"),
        ] {
            assert_eq!(user_of(&config.sources(registry, path)), [expected], "{registry}/{path}");
        }
        for registry in ["wild.example", "a.b.wild.example", "ab.x.wild.example:5000", "empty.example"] {
            assert!(config.sources(registry, "a").is_empty(), "{registry}");
        }
        for registry in ["null.example", "r.example:5001", "example", ""] {
            assert!(config.sources(registry, "a").is_empty(), "{registry}");
        }
    }

    #[test]
    fn helpers_come_before_the_file() {
        let config = config(&serde_json::json!({
            "auths": {"r.example": {"username": "u", "password": "p"}, "store.example": {}},
            "credsStore": "store",
            "credHelpers": {"r.example": "own", "docker.io": "hub", "none.example": ""},
        }));
        for (registry, expected) in [
            ("r.example", vec!["own r.example", "u"]),
            ("store.example", vec!["store store.example"]),
            ("docker.io", vec!["hub docker.io"]),
            ("none.example", vec!["store none.example"]),
        ] {
            assert_eq!(user_of(&config.sources(registry, "a")), expected);
        }
        let hub = DockerConfig { creds_store: Some("store".into()), ..DockerConfig::default() };
        assert_eq!(user_of(&hub.sources("docker.io", "a")), [format!("store {HUB_ENTRY}")]);
    }

    #[test]
    fn files_that_are_not_of_this_format() {
        for text in ["", "[]", "{\"auths\": 1}", "{\"auths\": {\"x\": \"y\"}}", "{\"credsStore\": 1}"] {
            assert!(DockerConfig::parse(text.as_bytes()).is_err(), "{text}");
        }
        for text in [
            "{\"auths\": {\"r.example\": {\"password\": 271828}}}",
            "{\"auths\": {\"r.example\": \"a271828\"}}",
        ] {
            let error = DockerConfig::parse(text.as_bytes()).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("line 1") && !shown.contains("271828"), "{shown}");
        }
        assert!(DockerConfig::parse(&[b'['; 1 << 20]).is_err());
        assert!(
            DockerConfig::parse(b"{\"auths\": null, \"credHelpers\": null, \"credsStore\": null}").is_ok()
        );
    }
}
