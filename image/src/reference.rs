//! Image references, as a type that is always valid. They are normalised as docker does.

pub(crate) use crate::digest::Digest;

use crate::error::{Error, Result};
use std::fmt;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// The distribution specification's limit on registry and repository together.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;
/// Name, `:`, tag, `@` and the longest digest.
const MAX_REFERENCE: usize = MAX_NAME + 1 + MAX_TAG + 1 + Digest::MAX_TEXT;

/// The part of a reference after the repository: a tag, or the digest of a manifest or index.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Selector {
    /// A tag, which the registry may move to another manifest.
    Tag(String),
    /// A digest, whose content never changes.
    Digest(Digest),
}

/// A normalised image reference: `busybox` becomes `docker.io/library/busybox:latest`. If a name has both a
/// tag and a digest, the digest is used and the tag is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    registry: String,
    repository: String,
    selector: Selector,
}

impl Reference {
    /// Parses and normalises a name as users write it.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let wrong = |reason| Error::InvalidReference { reference: text.chars().take(300).collect(), reason };
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if text.len() > MAX_REFERENCE {
            return Err(wrong("it is too long"));
        }
        // As with docker, so that nobody's repository can be taken for an image of this node.
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong("64 hex digits are the id of an image, not its name"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = Digest::parse(digest).ok_or_else(|| {
                    wrong("the digest must be sha256: or sha512: with 64 or 128 lower-case hex digits")
                })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before it belongs to the host's port.
        let name_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_start..].find(':') {
            Some(colon) => (&rest[..name_start + colon], Some(&rest[name_start + colon + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !valid_tag(tag)) {
            return Err(wrong("a tag is 1 to 128 of [A-Za-z0-9_.-] and does not start with . or -"));
        }
        let (registry, path) = split_registry(name);
        if !valid_host(registry) {
            return Err(wrong("the registry is not a host name with an optional port"));
        }
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("{DEFAULT_NAMESPACE}/{path}")
        } else {
            path.to_owned()
        };
        if !repository.split('/').all(valid_component) {
            return Err(wrong("a repository is made of [a-z0-9] parts joined by . _ __ - or /"));
        }
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(wrong("registry and repository together exceed 255 characters"));
        }
        let selector = match digest {
            Some(digest) => Selector::Digest(digest),
            None => Selector::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
        };
        Ok(Self { registry: registry.to_owned(), repository, selector })
    }

    /// Host and optional port as written; `docker.io` if the name had none, or `index.docker.io`.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    /// The path of the repository in the registry.
    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    /// Registry and repository: the part of the name before tag or digest.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Tag or digest.
    pub(crate) fn selector(&self) -> &Selector {
        &self.selector
    }

    /// `name@digest`, with this digest instead of the reference's own tag or digest.
    pub(crate) fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Selector::Tag(tag) => write!(f, "{}/{}:{tag}", self.registry, self.repository),
            Selector::Digest(digest) => write!(f, "{}/{}@{digest}", self.registry, self.repository),
        }
    }
}

/// Registry and path. The first component is a registry if it has a dot, a port or an upper-case letter, or is
/// `localhost`.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(char::is_uppercase) =>
        {
            (if first == "index.docker.io" { DEFAULT_REGISTRY } else { first }, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn valid_host(host: &str) -> bool {
    let (name, port) = if let Some(v6) = host.strip_prefix('[') {
        let Some((address, rest)) = v6.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match rest.strip_prefix(':') {
            Some(port) => ("v6", Some(port)),
            None if rest.is_empty() => ("v6", None),
            None => return false,
        }
    } else {
        match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        }
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(label)
        && port.is_none_or(|port| {
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
        })
}

/// Runs of `[a-z0-9]`, joined by `.`, `_`, `__` or any number of `-`.
fn valid_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    bytes.split(|b| alphanumeric(*b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

fn valid_tag(tag: &str) -> bool {
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn normalises_as_docker_does() {
        for (given, want) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("docker.io/library/busybox:1", "docker.io/library/busybox:1"),
            ("me/app", "docker.io/me/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/a/b:v1.0", "localhost:5000/a/b:v1.0"),
            ("127.0.0.1:80/a__b-c.d", "127.0.0.1:80/a__b-c.d:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("Example.com/a", "Example.com/a:latest"),
        ] {
            assert_eq!(Reference::parse(given).unwrap().to_string(), want, "{given}");
        }
        let both = format!("quay.io/a/b:tag@sha256:{HEX}");
        assert_eq!(Reference::parse(&both).unwrap().to_string(), format!("quay.io/a/b@sha256:{HEX}"));
    }

    #[test]
    fn refuses_what_is_not_a_reference() {
        for bad in [
            "",
            "Busybox",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a:b:c",
            "a@sha256:12",
            "a@md5:00",
            "host:0/a",
            "host:99999/a",
            "host:/a",
            "-host.x/a",
            "a..b",
            "a___b",
            "a b",
            "a\n",
            "../a",
            "x.y/../a",
            "x.y/",
            "[::g]/a",
            "http://x/y",
            "a?b=c",
            "x.y/a#b",
            "a%2fb",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?} was accepted");
        }
        let upper = format!("a@sha256:{}", HEX.to_uppercase());
        assert!(Reference::parse(&upper).is_err() && Reference::parse(HEX).is_err());
        assert!(Reference::parse(&HEX[1..]).is_ok());
        assert!(Reference::parse(&"a".repeat(5000)).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_round_trips(text in "\\PC{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                let shown = reference.to_string();
                prop_assert_eq!(Reference::parse(&shown).unwrap(), reference);
            }
        }

        #[test]
        fn well_formed_names_are_accepted(
            host in "([a-z0-9]{1,8}\\.){1,2}[a-z]{2,4}(:[1-9][0-9]{1,3})?",
            path in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,5})?(/[a-z0-9]{1,8}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
        ) {
            let text = format!("{host}/{path}:{tag}");
            let host_is_docker = host == "docker.io" || host == "index.docker.io";
            prop_assume!(!host_is_docker);
            prop_assert_eq!(Reference::parse(&text).unwrap().to_string(), text);
        }
    }
}
