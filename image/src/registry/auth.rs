//! Credentials and authentication challenges. Pure: decides what to send to which host; `client` sends it.

use crate::Auth;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use std::fmt::Write as _;

/// What a 401 response asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    /// A token from the server at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// Parses `WWW-Authenticate`. If both are offered, a token is preferred to basic authentication.
pub(crate) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = false;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            basic = true;
        } else if scheme.eq_ignore_ascii_case("bearer") {
            let mut parameters = parameters(rest);
            let mut take = |name: &str| {
                let at = parameters.iter().position(|(key, _)| key.eq_ignore_ascii_case(name))?;
                Some(parameters.swap_remove(at).1)
            };
            if let Some(realm) = take("realm") {
                return Some(Challenge::Bearer { realm, service: take("service"), scope: take("scope") });
            }
        }
    }
    basic.then_some(Challenge::Basic)
}

/// Parses `key=value` and `key="quoted \" value"`, separated by commas.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',', '\t']).to_owned();
        let mut value = String::new();
        if let Some(quoted) = after.trim_start().strip_prefix('"') {
            let mut chars = quoted.char_indices();
            let mut end = quoted.len();
            while let Some((at, c)) = chars.next() {
                match c {
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                    _ => value.push(c),
                }
            }
            rest = &quoted[end..];
        } else {
            let end = after.find(',').unwrap_or(after.len());
            value.push_str(after[..end].trim());
            rest = &after[end..];
        }
        found.push((key, value));
    }
    found
}

/// Whether these credentials may be sent to a host. Credentials without a server address are for the
/// reference's registry alone: a mirror must not learn them.
pub(crate) fn entitled(auth: &Auth, authority: &str, registry: &str) -> bool {
    let wanted = auth.server_address.trim();
    if wanted.is_empty() {
        return authority.eq_ignore_ascii_case(super::mirror::own_authority(registry));
    }
    let without_scheme = wanted.split_once("://").map_or(wanted, |(_, rest)| rest);
    let host = without_scheme.split('/').next().unwrap_or_default();
    let host = match host {
        "docker.io" | "index.docker.io" => super::mirror::own_authority("docker.io"),
        other => other,
    };
    host.eq_ignore_ascii_case(authority)
}

/// User and password, from their own fields or from the combined one.
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

pub(crate) fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    secret(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    secret(&format!("Bearer {token}"))
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Encodes pairs as `a=b&c=d`, percent-escaped.
pub(crate) fn form(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (key, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(key);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                text.push(char::from(byte));
            } else {
                // Writing to a string cannot fail.
                write!(text, "%{byte:02X}").ok();
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(challenge(&headers(&["Negotiate", "Bearer service=\"x\""])), None);
        assert_eq!(challenge(&headers(&["Bearer realm=\"open"])).map(|c| c != Challenge::Basic), Some(true));
    }

    #[test]
    fn credentials_go_to_their_host_only() {
        let open = Auth { username: "u".into(), ..Auth::default() };
        assert!(entitled(&open, "registry-1.docker.io", "docker.io"));
        assert!(entitled(&open, "r.example:5000", "r.example:5000"));
        assert!(!entitled(&open, "mirror.example", "r.example:5000"));
        assert!(!entitled(&open, "r.example", "r.example:5000"));
        let bound = Auth { server_address: "https://mirror.example/v1/".into(), ..open };
        assert!(entitled(&bound, "mirror.example", "docker.io"));
        assert!(!entitled(&bound, "registry-1.docker.io", "docker.io"));
        let hub = Auth { server_address: "https://index.docker.io/v1/".into(), ..Auth::default() };
        assert!(entitled(&hub, "registry-1.docker.io", "docker.io"));
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
