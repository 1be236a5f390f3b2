//! What must hold for anything that a registry sends as its challenge, and for any `hosts.toml` and `config.json`: for the
//! fuzz targets `challenge`, `hosts` and `credentials`, and for the test that replays their seeds.

use super::auth::{self, Challenge};
use super::docker_config::{DockerConfig, Source};
use super::hosts_file::{self, Problem};
use super::mirror::{self, Host};
use hyper::Uri;
use hyper::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde_json::{Value, json};
use std::path::Path;
use toml::de::DeValue;

/// Any values of the header WWW-Authenticate, one in each line.
pub(crate) fn challenge(data: &[u8]) {
    let values: Vec<&[u8]> = data.split(|byte| *byte == b'\n').take(8).collect();
    let parse = |values: &[&[u8]]| {
        let values = values.iter().filter_map(|value| HeaderValue::from_bytes(value).ok());
        auth::challenge(&values.map(|value| (WWW_AUTHENTICATE, value)).collect::<HeaderMap>())
    };
    let found = parse(&values);
    // Another challenge before the first one takes nothing away.
    let before = [b"Basic realm=\"a, b=\\\"c\\\"\", ", values[0]].concat();
    if HeaderValue::from_bytes(&before).is_ok_and(|value| value.to_str().is_ok()) {
        let with = parse(&[&[&before[..]], &values[1..]].concat());
        assert_eq!(with, Some(found.clone().unwrap_or(Challenge::Basic)), "behind another challenge");
    }
    let Some(bearer @ Challenge::Bearer { realm, service, scope }) = &found else { return };
    // It is read again from the form that the distribution project documents, alone and between others.
    let parameters = [("realm", Some(realm)), ("service", service.as_ref()), ("scope", scope.as_ref())];
    let given: Vec<(&str, &str)> =
        parameters.iter().filter_map(|(name, value)| Some((*name, value.as_ref()?.as_str()))).collect();
    let quoted = |value: &str| format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""));
    let written = |parts: Vec<String>| format!("BEARER {}", parts.join(", "));
    let plain = written(given.iter().map(|(name, value)| format!("{name}={}", quoted(value))).collect());
    let reversed = written(
        given
            .iter()
            .rev()
            .map(|(name, value)| format!("{} = {}", name.to_uppercase(), quoted(value)))
            .collect(),
    );
    for text in
        [plain.clone(), reversed, format!("Negotiate, {plain}, Basic realm=\"x\""), format!("basic,{plain}")]
    {
        assert_eq!(parse(&[text.as_bytes()]).as_ref(), Some(bearer), "{text}");
    }
    // What is added to the realm's URL leads to no other host, and is there.
    if let Some(url) = auth::realm_url(realm) {
        let pairs: Vec<(&str, &str)> = given.iter().copied().filter(|(name, _)| *name != "realm").collect();
        let asked = auth::with_query(&url, &pairs).expect("a URL with more in its query is one");
        assert_eq!(
            (asked.scheme(), asked.authority(), asked.path()),
            (url.scheme(), url.authority(), url.path())
        );
        assert!(asked.query().is_some_and(|query| query.ends_with(&auth::form(&pairs))), "{asked}");
    }
}

/// The registry whose hosts are configured.
const REGISTRY: &str = "r.example:5000";

/// Any `hosts.toml`.
pub(crate) fn hosts(data: &[u8]) {
    let read = |bytes: &[u8]| {
        let file = hosts_file::parse(bytes)?;
        mirror::configured(file, REGISTRY, Path::new("/certs"))
    };
    let found = match read(data) {
        Ok(found) => found,
        Err(problem) => {
            let text = problem.to_string();
            assert!(text.chars().count() < 1000 && !text.contains(char::is_control), "{text:?}");
            return;
        }
    };
    found.iter().for_each(check_host);
    assert!(found.last().is_some_and(|host| host.is_registry), "the last one is not the registry");
    let shown = |hosts: &[Host]| hosts.iter().map(|host| format!("{host:?}")).collect::<Vec<_>>();
    let same = |bytes: &[u8], with: &str| match read(bytes) {
        Ok(hosts) => assert_eq!(shown(&hosts), shown(&found), "{with}"),
        Err(problem) => panic!("{with}: {problem}"),
    };
    // A mark of the encoding comes first.
    let (mark, rest) = data.split_at(if data.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 });
    same(&[mark, b"# comment\n", rest, b"\n# comment"].concat(), "with comments");
    let unknown = [mark, b"skip_verfy = true\n", rest].concat();
    assert!(matches!(read(&unknown), Err(Problem::UnknownKey { .. })), "an unknown key is accepted");
    // Each setting is that of its own host.
    let text = std::str::from_utf8(data).expect("accepted text");
    let (Ok(table), _) = shallow_toml::parse(text) else { panic!("accepted, but too deep") };
    let is_true = |value: Option<&toml::Spanned<DeValue<'_>>>| {
        value.is_some_and(|value| matches!(value.get_ref(), DeValue::Boolean(true)))
    };
    let mut unverified = usize::from(is_true(table.get("skip_verify")));
    let mut count = 1;
    if let Some(DeValue::Table(hosts)) = table.get("host").map(toml::Spanned::get_ref) {
        count += hosts.len();
        let settings = hosts.values().filter_map(|host| match host.get_ref() {
            DeValue::Table(settings) => Some(settings),
            _ => None,
        });
        unverified += settings.filter(|settings| is_true(settings.get("skip_verify"))).count();
    }
    assert_eq!(found.len(), count);
    assert_eq!(found.iter().filter(|host| host.tls.skip_verify).count(), unverified);
    assert_eq!(found.last().is_some_and(|host| host.tls.skip_verify), is_true(table.get("skip_verify")));
}

/// Requests to a host are for that host, whatever its URL in the file.
fn check_host(host: &Host) {
    let url = format!("{}://{}{}/a/b/manifests/v", host.scheme, host.authority, host.path);
    let parsed: Uri = url.parse().unwrap_or_else(|error| panic!("{url}: {error}"));
    assert_eq!(
        parsed.authority().map(|authority| authority.as_str()),
        Some(host.authority.as_str()),
        "{url}"
    );
    assert_eq!(
        (parsed.path(), parsed.query()),
        (format!("{}/a/b/manifests/v", host.path).as_str(), None),
        "{url}"
    );
    assert!(!host.authority.contains('@') && parsed.host().is_some_and(|name| !name.is_empty()), "{url}");
    // A port that is no number would be ignored.
    assert_eq!(parsed.port_u16().is_some(), parsed.host() != Some(host.authority.as_str()), "{url}");
    assert!(host.dial_timeout.is_none_or(|time| !time.is_zero()), "{url}");
    assert!(host.tls.authorities.iter().all(|path| path.is_absolute()), "{:?}", host.tls);
}

/// Repositories for which credentials are looked up.
const REPOSITORIES: [(&str, &str); 4] = [
    ("r.example", "team/app"),
    ("r.example:5000", "a"),
    ("docker.io", "library/busybox"),
    ("10.0.0.1", "x/y/z"),
];

/// Any `config.json`.
pub(crate) fn credentials(data: &[u8]) {
    let Ok(config) = DockerConfig::parse(data) else { return };
    // A number that is too large is no error in a member that is ignored.
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    let parse = |value: &Value| DockerConfig::parse(value.to_string().as_bytes()).expect("accepted before");
    let mut more = value.clone();
    if let Some(members) = more.as_object_mut() {
        members.insert("zz-unknown".to_owned(), json!([[{"auths": 7}]]));
        let auths = members.get_mut("auths").and_then(Value::as_object_mut);
        auths.and_then(|auths| auths.insert("other.invalid".to_owned(), json!({"auth": "bm9ib2R5Ong="})));
    }
    let more = parse(&more);
    for (registry, path) in REPOSITORIES {
        let sources = config.sources(registry, path);
        assert_eq!(sources, parse(&value).sources(registry, path), "printed again");
        assert_eq!(sources, more.sources(registry, path), "with another registry");
        assert!(sources.len() <= 2);
        let upper = registry.to_ascii_uppercase();
        if registry != "docker.io" {
            let helpers =
                |sources: &[Source]| sources.iter().filter(|s| matches!(s, Source::Helper { .. })).count();
            let other = config.sources(&upper, path);
            assert_eq!(helpers(&other), helpers(&sources), "{upper}");
        }
        for source in &sources {
            check_source(source, registry, &value);
        }
    }
    // Nobody gets what is for somebody else.
    for source in config.sources("stranger.invalid", "team/app") {
        check_source(&source, "stranger.invalid", &value);
    }
    assert!(!format!("{config:?}").contains("bm9ib2R5"), "secrets are shown");
}

/// Credentials are those of an entry for this registry; a helper is one that the file names.
fn check_source(source: &Source, registry: &str, config: &Value) {
    match source {
        Source::Helper { helper, server } => {
            let own = config["credHelpers"].as_object().and_then(|helpers| helpers.get(server));
            let is_named = [own, config.get("credsStore")].into_iter().flatten().any(|name| name == helper);
            assert!(!helper.is_empty() && is_named, "{source:?}");
        }
        Source::File(found) => {
            assert!(auth::is_usable(found));
            let auths = config["auths"].as_object().expect("credentials of no entry");
            let host = |key: &str| {
                let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
                rest.split('/').next().unwrap_or_default().to_ascii_lowercase()
            };
            let has =
                |entry: &Value, name: &str, value: &str| entry[name].as_str().unwrap_or_default() == value;
            let fits = auths.iter().any(|(key, entry)| {
                let host = host(key);
                let is_hub = registry == "docker.io" && host.ends_with("docker.io");
                (host == registry || host.contains('*') || is_hub)
                    && has(entry, "auth", &found.auth)
                    && has(entry, "username", &found.username)
                    && has(entry, "password", &found.password)
                    && has(entry, "identitytoken", &found.identity_token)
                    && has(entry, "registrytoken", &found.registry_token)
            });
            assert!(fits, "credentials for {registry} that are of no entry for it");
        }
    }
}
