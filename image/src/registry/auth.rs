//! Credentials and authentication challenges: what to send to which host. Pure; `client` sends it.

use super::mirror::{self, Host};
use super::reach;
use crate::Auth;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::http::uri::Scheme;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The authentication that a 401 response asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    /// A bearer token, which the server at `realm` issues.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// Parses `WWW-Authenticate`. If both are offered, a token is preferred to basic authentication.
pub(crate) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).into_iter().filter_map(|value| value.to_str().ok());
    let mut basic = false;
    for (scheme, mut parameters) in texts.flat_map(challenges) {
        let mut take = |name: &str| {
            let at = parameters.iter().position(|(key, _)| key.eq_ignore_ascii_case(name))?;
            Some(parameters.remove(at).1)
        };
        if scheme.eq_ignore_ascii_case("basic") {
            basic = true;
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = take("realm")
        {
            return Some(Challenge::Bearer { realm, service: take("service"), scope: take("scope") });
        }
    }
    basic.then_some(Challenge::Basic)
}

/// Splits a header into challenges: each scheme with its parameters. One header may have several challenges, and commas
/// separate both challenges and parameters (RFC 9110, 11.6.1). A value is quoted, with `\` before `"`, or not; an
/// unquoted one may contain any character but a comma, because registries send such values.
fn challenges(text: &str) -> Vec<(&str, Vec<(&str, String)>)> {
    let mut found: Vec<(&str, Vec<(&str, String)>)> = Vec::new();
    let mut rest = text;
    loop {
        let (before, after) =
            rest.split_once('=').map_or((rest, None), |(before, after)| (before, Some(after)));
        let mut words: Vec<&str> = before.split([' ', ',', '\t']).filter(|word| !word.is_empty()).collect();
        let key = after.and_then(|_| words.pop());
        found.extend(words.into_iter().map(|scheme| (scheme, Vec::new())));
        let Some(after) = after else { return found };
        let (value, left) = value(after);
        if let (Some(key), Some((_, parameters))) = (key, found.last_mut()) {
            parameters.push((key, value));
        }
        rest = left;
    }
}

/// The value at the start of `text`, and the rest of the text.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.trim_start().strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        return (text[..end].trim().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            _ => value.push(c),
        }
    }
    (value, "")
}

/// Whether a host may receive the credentials of a request. They are for the registry of the image's name, which is also
/// the `server` of `hosts.toml`; with a server address they are for the host that it names. Mirrors must not see those of
/// the registry.
pub(crate) fn may_receive(auth: &Auth, host: &Host, registry: &str) -> bool {
    let wanted = auth.server_address.trim();
    let without_scheme = wanted.split_once("://").map_or(wanted, |(_, rest)| rest);
    let named = without_scheme.split('/').next().unwrap_or_default();
    let named = match named {
        "docker.io" | "index.docker.io" => mirror::own_authority("docker.io"),
        other => other,
    };
    if named.is_empty() || named.eq_ignore_ascii_case(mirror::own_authority(registry)) {
        return host.is_registry;
    }
    named.eq_ignore_ascii_case(&host.authority)
}

/// Whether there is anything to authenticate with.
pub(crate) fn is_usable(auth: &Auth) -> bool {
    !auth.identity_token.is_empty() || !auth.registry_token.is_empty() || user_and_password(auth).is_some()
}

/// User and password: from their own fields, or from the combined `auth` field.
pub(crate) fn user_and_password(auth: &Auth) -> Option<(String, String)> {
    if !auth.username.is_empty() {
        return Some((auth.username.clone(), auth.password.clone()));
    }
    let decoded = STANDARD.decode(auth.auth.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    // Docker's own tool pads the field with NUL bytes.
    Some((user.to_owned(), password.trim_matches('\0').to_owned()))
}

/// An Authorization header for basic authentication; `None` if it would not be a valid header.
pub(crate) fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    secret(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

/// An Authorization header with a token; `None` if it would not be a valid header.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    secret(&format!("Bearer {token}"))
}

/// Marked as sensitive, so that debug output hides it.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Everything except the unreserved characters of RFC 3986, 2.3.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Encodes pairs as `a=b&c=d`, for a query or a form. Values are percent-encoded.
pub(crate) fn form(pairs: &[(&str, &str)]) -> String {
    let pairs = pairs.iter().map(|(key, value)| format!("{key}={}", utf8_percent_encode(value, ESCAPED)));
    pairs.collect::<Vec<_>>().join("&")
}

/// The URL of a token server. `None` if a challenge's realm is not the URL of a host by http or https, or has a user.
pub(crate) fn realm_url(realm: &str) -> Option<Uri> {
    let url: Uri = realm.parse().ok()?;
    let authority = url.authority()?.as_str();
    let has_host = url.host().is_some_and(|host| !host.is_empty());
    let is_valid = has_host && !authority.contains('@') && reach::has_valid_port(authority);
    (is_valid && matches!(url.scheme_str(), Some("http" | "https"))).then_some(url)
}

/// The realm of a registry with TLS, itself with TLS if it is on the registry's own host and no other port than that: behind
/// a proxy that ends TLS, Harbor, Artifactory and others take their own URL for one of http.
pub(crate) fn with_own_tls(realm: Uri, registry: &str) -> Uri {
    let own = registry.strip_suffix(":443").unwrap_or(registry);
    let is_own = realm.authority().is_some_and(|realm| realm.as_str().eq_ignore_ascii_case(own));
    if !is_own || realm.scheme_str() != Some("http") {
        return realm;
    }
    let mut parts = realm.clone().into_parts();
    parts.scheme = Some(Scheme::HTTPS);
    Uri::from_parts(parts).unwrap_or(realm)
}

/// A URL with these pairs in its query, behind those that it has; `None` if that would be no URL.
pub(crate) fn with_query(url: &Uri, pairs: &[(&str, &str)]) -> Option<Uri> {
    let joint = if url.query().is_some() { '&' } else { '?' };
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let path = format!("{path}{joint}{}", form(pairs));
    Uri::builder()
        .scheme(url.scheme_str()?)
        .authority(url.authority()?.as_str())
        .path_and_query(path)
        .build()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_realm_on_the_registrys_own_host_has_its_tls() {
        let secured = |realm: &str, registry| with_own_tls(realm_url(realm).unwrap(), registry).to_string();
        for registry in ["Reg.example", "reg.example:443"] {
            assert_eq!(secured("http://reg.example/t?a=b", registry), "https://reg.example/t?a=b");
        }
        for (realm, registry) in [
            ("http://reg.example:8080/t", "reg.example"),
            ("http://reg.example/t", "reg.example:5000"),
            ("http://auth.reg.example/t", "reg.example"),
            ("https://reg.example/t", "reg.example"),
        ] {
            assert_eq!(secured(realm, registry), realm);
        }
    }

    #[test]
    fn urls_of_token_servers() {
        for (realm, expected) in [
            ("https://a/t", "https://a/t?scope=x%3Ay"),
            ("http://a:80", "http://a:80/?scope=x%3Ay"),
            ("https://a/t?b=c", "https://a/t?b=c&scope=x%3Ay"),
            // A fragment would hide what follows it.
            ("https://a/t#here", "https://a/t?scope=x%3Ay"),
        ] {
            let url = realm_url(realm).and_then(|url| with_query(&url, &[("scope", "x:y")]));
            assert_eq!(url.map(|url| url.to_string()).as_deref(), Some(expected));
        }
        for realm in [
            "",
            "/t",
            "a/t",
            "ftp://a/t",
            "https:///t",
            "https://u@a/t",
            "https://a:99999/t",
            "https://a:x/t",
        ] {
            assert_eq!(realm_url(realm), None, "{realm}");
        }
    }

    fn headers(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (WWW_AUTHENTICATE, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn challenges() {
        let found = challenge(&headers(&[
            "Basic realm=\"x\"",
            "Bearer realm=\"https://a/t?x=1,2\",service=\"s \\\"q\\\"\", scope=repository:a/b:pull",
        ]));
        let want = Challenge::Bearer {
            realm: "https://a/t?x=1,2".into(),
            service: Some("s \"q\"".into()),
            scope: Some("repository:a/b:pull".into()),
        };
        assert_eq!(found, Some(want));
        assert_eq!(challenge(&headers(&["basic"])), Some(Challenge::Basic));
        // Several in one header, in any order, with parameters and without.
        let token =
            Some(Challenge::Bearer { realm: "https://a/t".into(), service: Some("s".into()), scope: None });
        for one in [
            "Basic realm=\"x, y=z\", Bearer realm=\"https://a/t\",service=s",
            "Negotiate, Bearer realm=\"https://a/t\" , service=\"s\", Basic realm=x",
            "Basic,bearer\trealm = https://a/t, service = s",
        ] {
            assert_eq!(challenge(&headers(&[one])), token, "{one}");
        }
        assert_eq!(
            challenge(&headers(&["Negotiate abc==, Basic realm=Our Registry"])),
            Some(Challenge::Basic)
        );
        assert_eq!(challenge(&headers(&["Negotiate", "Bearer service=\"x\""])), None);
        assert_eq!(challenge(&headers(&["Bearer realm=\"open"])).map(|c| c != Challenge::Basic), Some(true));
    }

    #[test]
    fn credentials_go_to_their_host_only() {
        let receives = |auth: &Auth, authority: &str, registry: &str| {
            may_receive(auth, &Host::at_authority(authority, registry), registry)
        };
        let open = Auth { username: "u".into(), ..Auth::default() };
        assert!(receives(&open, "registry-1.docker.io", "docker.io"));
        assert!(receives(&open, "r.example:5000", "r.example:5000"));
        assert!(!receives(&open, "mirror.example", "r.example:5000"));
        assert!(!receives(&open, "r.example", "r.example:5000"));
        let bound = Auth { server_address: "https://mirror.example/v1/".into(), ..open };
        assert!(receives(&bound, "mirror.example", "docker.io"));
        assert!(!receives(&bound, "registry-1.docker.io", "docker.io"));
        let hub = Auth { server_address: "https://index.docker.io/v1/".into(), ..Auth::default() };
        assert!(receives(&hub, "registry-1.docker.io", "docker.io"));
        // The server of hosts.toml is the registry, wherever it is.
        let server = Host { is_registry: true, ..Host::at_authority("elsewhere.example", "r.example") };
        for named in ["", "r.example", "https://r.example/v2/", "elsewhere.example"] {
            let auth = Auth { server_address: named.into(), ..Auth::default() };
            assert!(may_receive(&auth, &server, "r.example"), "{named}");
        }
        let other = Auth { server_address: "other.example".into(), ..Auth::default() };
        assert!(!may_receive(&other, &server, "r.example"));
    }

    #[test]
    fn combined_field_and_secrecy() {
        let auth = Auth { auth: STANDARD.encode("me:p:w"), ..Auth::default() };
        assert_eq!(user_and_password(&auth), Some(("me".into(), "p:w".into())));
        assert_eq!(user_and_password(&Auth { auth: "!".into(), ..Auth::default() }), None);
        let shown =
            format!("{:?}", Auth { password: "hunter2".into(), identity_token: "tok".into(), ..auth });
        assert!(!shown.contains("hunter2") && !shown.contains("tok") && !shown.contains("bWU6"));
        assert!(!format!("{:?}", basic("a", "b").unwrap()).contains("YTpi"));
        assert_eq!(form(&[("a", "b c"), ("d", "é/:")]), "a=b%20c&d=%C3%A9%2F%3A");
    }
}
