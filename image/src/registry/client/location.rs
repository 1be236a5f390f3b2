//! The target of a redirect (RFC 9110, 10.2.2; RFC 3986, 5.2). Pure.

use crate::registry::reach;
use hyper::Uri;

/// The URL that `location`, a header's value in a response to a request for `from`, means: absolute or relative.
/// `None` if it is not the URL of a host by http or https, or has a user.
pub(super) fn target(from: &Uri, location: &str) -> Option<Uri> {
    // A fragment is not sent to the server.
    let text = location.split('#').next().filter(|text| !text.is_empty())?;
    let (scheme, authority) = (from.scheme_str()?, from.authority()?.as_str());
    let full = if has_scheme(text) {
        text.to_owned()
    } else if text.starts_with("//") {
        format!("{scheme}:{text}")
    } else if text.starts_with('/') {
        format!("{scheme}://{authority}{text}")
    } else if text.starts_with('?') {
        format!("{scheme}://{authority}{}{text}", from.path())
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{text}")
    };
    let parsed: Uri = full.parse().ok()?;
    let (scheme, authority) = (parsed.scheme_str()?, parsed.authority()?.as_str());
    let has_host = parsed.host().is_some_and(|host| !host.is_empty());
    if !matches!(scheme, "http" | "https")
        || authority.contains('@')
        || !has_host
        || !reach::has_valid_port(authority)
    {
        return None;
    }
    let query = parsed.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("{scheme}://{authority}{}{query}", without_dots(parsed.path())).parse().ok()
}

/// Whether a reference begins with a scheme and its colon.
fn has_scheme(text: &str) -> bool {
    let is_of_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(is_of_scheme)
    })
}

/// A path without `.` and `..`: at the root, `..` is ignored.
fn without_dots(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let mut ends_in_folder = false;
    for part in path.strip_prefix('/').unwrap_or(path).split('/') {
        ends_in_folder = matches!(part, "." | "..");
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if ends_in_folder && !parts.is_empty() {
        parts.push("");
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::target;

    #[test]
    fn references() {
        let from = "https://r.example:5000/v2/a/blobs/sha256:00?ns=x".parse().unwrap();
        for (location, expected) in [
            ("http://s.example/x?y=z#frag", "http://s.example/x?y=z"),
            ("HTTPS://s.example", "https://s.example/"),
            ("//s.example:8443/x", "https://s.example:8443/x"),
            ("/x//y/", "https://r.example:5000/x//y/"),
            ("/x/../../y?a=/../b", "https://r.example:5000/y?a=/../b"),
            ("../x", "https://r.example:5000/v2/a/x"),
            ("../../../../../x/.", "https://r.example:5000/x/"),
            ("..", "https://r.example:5000/v2/a/"),
            ("x/y?z", "https://r.example:5000/v2/a/blobs/x/y?z"),
            ("./sha256:11", "https://r.example:5000/v2/a/blobs/sha256:11"),
            ("?other", "https://r.example:5000/v2/a/blobs/sha256:00?other"),
            ("/%2e%2e/x", "https://r.example:5000/%2e%2e/x"),
        ] {
            assert_eq!(
                target(&from, location).map(|url| url.to_string()).as_deref(),
                Some(expected),
                "{location}"
            );
        }
        for location in [
            "",
            "#x",
            "ftp://s.example/",
            "mailto:x",
            "sha256:11",
            "https://",
            "https:///x",
            "https://u@s.example/",
            "https://u:p@s.example/",
            "//",
            "https://s.example:99999/",
            "https://s.example:x/",
            "a b",
            "http://[::1/",
        ] {
            assert_eq!(target(&from, location), None, "{location}");
        }
    }
}
