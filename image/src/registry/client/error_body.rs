//! What a registry, a token server or a proxy says in the body of an error response. Pure.

use crate::registry::plain_text::one_line;
use serde_json::Value;

/// Maximum bytes that are read of a body.
pub(super) const MAX_BYTES: usize = 4 << 10;
/// Maximum characters that are shown.
const MAX_SHOWN: usize = 600;
/// Maximum number of errors in one body that are shown.
const MAX_ERRORS: usize = 4;

/// The words in a body, in one line; empty if there are none. The distribution specification has `errors` with `code`
/// and `message`; token servers have `error` with `error_description` (RFC 6749), and Docker Hub's has `details`. A page
/// in HTML says nothing that the status does not.
pub(super) fn text(body: &[u8]) -> String {
    // Azure's storage, to which registries redirect, writes a mark before its XML, which may contain parts of the URL.
    let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
    let text = String::from_utf8_lossy(body);
    let said = match serde_json::from_str::<Value>(&text) {
        Ok(value) => in_json(&value),
        // Nothing of a document that is cut off, and nothing of markup.
        Err(_) if text.trim_start().starts_with(['{', '[', '<']) => String::new(),
        Err(_) => text.into_owned(),
    };
    one_line(&said, MAX_SHOWN)
}

/// `what`, and what the registry says about it.
pub(super) fn after(what: &str, words: &str) -> String {
    if words.is_empty() { what.to_owned() } else { format!("{what}: {words}") }
}

fn in_json(value: &Value) -> String {
    let text = |value: &Value, keys: [&str; 2]| -> String {
        let texts = keys.iter().filter_map(|key| value.get(key)?.as_str()).filter(|text| !text.is_empty());
        texts.collect::<Vec<_>>().join(": ")
    };
    if let Some(errors) = value.get("errors").and_then(Value::as_array) {
        let texts = errors.iter().take(MAX_ERRORS).map(|error| text(error, ["code", "message"]));
        return texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    }
    let said = text(value, ["error", "error_description"]);
    if said.is_empty() { text(value, ["message", "details"]) } else { said }
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn bodies_of_registries() {
        for (body, expected) in [
            // distribution, Docker Hub, GHCR, Harbor
            (
                r#"{"errors":[{"code":"DENIED","message":"access\nis denied","detail":{"x":1}}]}"#,
                "DENIED: access is denied",
            ),
            (r#"{"errors":[{"code":"A","message":""},{"code":"B","message":"b"},{}]}"#, "A; B: b"),
            // Artifactory: status is a number
            (r#"{"errors":[{"status":403,"message":"Forbidden"}]}"#, "Forbidden"),
            // OAuth2
            (r#"{"error":"invalid_grant","error_description":"expired"}"#, "invalid_grant: expired"),
            // Docker Hub's token server
            (r#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            (r#"{"message":"rate limit"}"#, "rate limit"),
            ("Service Unavailable\r\n", "Service Unavailable"),
            ("<html><body>502 Bad Gateway</body></html>", ""),
            (r#"{"errors":[{"code":"CUT"#, ""),
            (r#"{"errors":7}"#, ""),
            ("\u{feff}<?xml version=\"1.0\"?><Error><Code>AuthenticationFailed</Code></Error>", ""),
            ("{}", ""),
            ("[]", ""),
            ("", ""),
        ] {
            assert_eq!(text(body.as_bytes()), expected, "{body}");
        }
        assert_eq!(text(b"\x1b[2J\xff\x00danger"), "[2J\u{fffd} danger");
        assert!(text(&[b'x'; 4096]).chars().count() <= 601);
        assert_eq!(text(&[b'['; 4096]), "");
    }
}
