//! Which proxy a request goes through. The rules are those of Go's `golang.org/x/net/http/httpproxy`, which containerd,
//! CRI-O and Docker follow, with curl's ALL_PROXY beside them. Pure.

use super::auth;
use super::reach;
use hyper::Uri;
use hyper::header::HeaderValue;
use percent_encoding::percent_decode_str;
use std::fmt;
use std::net::IpAddr;

/// The proxies for requests to registries, from the variables of the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    /// Hosts that are connected to directly.
    exceptions: Vec<Exception>,
}

/// A variable of the environment does not contain a proxy's URL. The text has no value, which may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} is not the URL of a proxy: {reason}")]
pub struct InvalidProxy {
    /// Its name.
    pub variable: &'static str,
    /// What is wrong with it.
    pub reason: &'static str,
}

const FORM: &str = "it must be [http|https|socks5|socks5h://][user:password@]host[:port]";
/// Maximum length in bytes of a user's name and of a password for SOCKS5: one byte says it (RFC 1929).
const MAX_SOCKS_LOGIN: usize = 255;

/// A proxy. Debug output hides the credentials.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) kind: Kind,
    /// Where it listens: scheme, host and port. Without credentials, so that it can be shown.
    pub(crate) uri: Uri,
    /// User and password.
    pub(crate) login: Option<(String, String)>,
}

/// The protocol that a proxy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Http,
    /// HTTP over TLS.
    Https,
    /// SOCKS5. The proxy resolves names.
    Socks5,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.uri.authority().map_or("", |authority| authority.as_str()))
    }
}

impl Proxy {
    /// The Proxy-Authorization header; `None` without credentials.
    pub(crate) fn authorization(&self) -> Option<HeaderValue> {
        let (user, password) = self.login.as_ref()?;
        auth::basic(user, password)
    }

    /// Parses the value of a variable. Without a scheme, it is http.
    fn parse(value: &str) -> Result<Self, &'static str> {
        let full = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
        // What follows the host is ignored, and a Uri accepts no fragment.
        let url: Uri = full.split(['#', '?']).next().and_then(|url| url.parse().ok()).ok_or(FORM)?;
        let (kind, scheme, default_port) = match url.scheme_str() {
            Some("http") => (Kind::Http, "http", 80),
            Some("https") => (Kind::Https, "https", 443),
            Some("socks5" | "socks5h") => (Kind::Socks5, "socks5", 1080),
            _ => return Err(FORM),
        };
        let authority = url.authority().map(|authority| authority.as_str()).ok_or(FORM)?;
        let (login, place) =
            authority.rsplit_once('@').map_or((None, authority), |(login, place)| (Some(login), place));
        let login = login.map(|login| {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            let plain = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
            (plain(user), plain(password))
        });
        let is_too_long =
            |(user, password): &(String, String)| user.len().max(password.len()) > MAX_SOCKS_LOGIN;
        if kind == Kind::Socks5 && login.as_ref().is_some_and(is_too_long) {
            return Err("SOCKS5 has no room for a user or a password of more than 255 bytes");
        }
        // As in Go, nothing after the colon is the default.
        let place = place.strip_suffix(':').unwrap_or(place);
        if !reach::has_valid_port(place) {
            return Err("its port is not a number from 1 to 65535");
        }
        let host = url.host().filter(|host| !host.is_empty()).ok_or(FORM)?;
        let authority = format!("{host}:{}", url.port_u16().unwrap_or(default_port));
        let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build();
        Ok(Self { kind, uri: uri.map_err(|_| FORM)?, login })
    }
}

/// An entry of NO_PROXY.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    Everything,
    /// The addresses whose first bits are equal.
    Network(IpAddr, u32),
    Address(IpAddr, Option<u16>),
    /// Names that end with `suffix`, which begins with a dot; with `whole`, also the name without that dot.
    Domain {
        suffix: String,
        whole: bool,
        port: Option<u16>,
    },
}

impl Proxies {
    /// Reads HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY of the process. If a variable is not set or empty, the same
    /// name in lower case is read. ALL_PROXY is for those of HTTP_PROXY and HTTPS_PROXY that are missing.
    ///
    /// # Errors
    /// A variable is not the URL of a proxy.
    pub fn from_environment() -> Result<Self, InvalidProxy> {
        Self::from_variables(|name| std::env::var_os(name)?.into_string().ok())
    }

    /// As [`Proxies::from_environment`], with another source of variables.
    ///
    /// # Errors
    /// A variable is not the URL of a proxy.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, InvalidProxy> {
        let value = |name: &str| {
            let given = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
            given(name).or_else(|| given(&name.to_ascii_lowercase()))
        };
        let proxy = |variable: &'static str| match value(variable) {
            None => Ok(None),
            Some(value) => {
                Proxy::parse(value.trim()).map(Some).map_err(|reason| InvalidProxy { variable, reason })
            }
        };
        let all = proxy("ALL_PROXY")?;
        let no_proxy = value("NO_PROXY").unwrap_or_default();
        Ok(Self {
            http: proxy("HTTP_PROXY")?.or_else(|| all.clone()),
            https: proxy("HTTPS_PROXY")?.or(all),
            exceptions: no_proxy.split(',').filter_map(Exception::parse).collect(),
        })
    }

    /// Whether any proxy is reached by TLS.
    pub(crate) fn any_by_tls(&self) -> bool {
        [&self.http, &self.https].into_iter().flatten().any(|proxy| proxy.kind == Kind::Https)
    }

    /// The proxy for a request; `None` if its host is connected to directly, as loopback addresses always are.
    pub(crate) fn of(&self, target: &Uri) -> Option<&Proxy> {
        let (proxy, default_port) = match target.scheme_str()? {
            "http" => (self.http.as_ref()?, 80),
            "https" => (self.https.as_ref()?, 443),
            _ => return None,
        };
        let host = target.host()?.trim_matches(['[', ']']).to_ascii_lowercase();
        let port = target.port_u16().unwrap_or(default_port);
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return None;
        }
        let direct = self.exceptions.iter().any(|exception| exception.matches(&host, address, port));
        (!direct).then_some(proxy)
    }
}

impl Exception {
    /// `None` for an empty entry.
    fn parse(entry: &str) -> Option<Self> {
        let entry = entry.trim().to_ascii_lowercase();
        if entry == "*" {
            return Some(Self::Everything);
        }
        if let Some((address, bits)) = entry.split_once('/')
            && let (Ok(address), Ok(bits)) = (address.parse::<IpAddr>(), bits.parse::<u32>())
            && bits <= bits_of(address)
        {
            // As in Go, a network of IPv6 that has only IPv4 addresses is that network of IPv4.
            return Some(match address.to_canonical() {
                v4 @ IpAddr::V4(_) if address.is_ipv6() && bits >= 96 => Self::Network(v4, bits - 96),
                _ => Self::Network(address, bits),
            });
        }
        // The colons of an IPv6 address without brackets separate no port.
        let with_port = entry.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
        let (host, port) = match with_port {
            // A port that is no number matches nothing, as in Go.
            Some((host, port)) => (host, Some(port.parse().unwrap_or(0))),
            None => (entry.as_str(), None),
        };
        let host = host.trim_matches(['[', ']']);
        if let Ok(address) = host.parse::<IpAddr>() {
            return Some(Self::Address(address.to_canonical(), port));
        }
        let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
        match host.strip_prefix('.') {
            _ if host.is_empty() => None,
            Some(_) => Some(Self::Domain { suffix: host.to_owned(), whole: false, port }),
            None => Some(Self::Domain { suffix: format!(".{host}"), whole: true, port }),
        }
    }

    fn matches(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        match self {
            Self::Everything => true,
            Self::Network(network, bits) => address.is_some_and(|it| is_within(it, *network, *bits)),
            Self::Address(wanted, of) => address == Some(*wanted) && of.is_none_or(|of| of == port),
            Self::Domain { suffix, whole, port: of } => {
                let named = host.ends_with(suffix) || (*whole && host == &suffix[1..]);
                named && of.is_none_or(|of| of == port)
            }
        }
    }
}

fn bits_of(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Whether the first `bits` of both are equal.
fn is_within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            (one.to_bits() ^ other.to_bits()).checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            (one.to_bits() ^ other.to_bits()).checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, InvalidProxy> {
        Proxies::from_variables(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    /// The proxy of a URL, as `host:port`; empty if it is connected to directly.
    fn of(proxies: &Proxies, url: &str) -> String {
        proxies.of(&url.parse().unwrap()).map(ToString::to_string).unwrap_or_default()
    }

    #[test]
    fn variables_in_both_cases() {
        let found =
            proxies(&[("HTTP_PROXY", "one:3128"), ("http_proxy", "two"), ("https_proxy", "https://three")]);
        let found = found.unwrap();
        assert_eq!(of(&found, "http://r.example/v2/"), "one:3128");
        assert_eq!(of(&found, "https://r.example/v2/"), "three:443");
        let found = proxies(&[("HTTP_PROXY", ""), ("all_proxy", "socks5h://four")]).unwrap();
        for url in ["http://r.example", "https://r.example"] {
            assert_eq!(of(&found, url), "four:1080");
        }
        assert_eq!(of(&proxies(&[]).unwrap(), "https://r.example"), "");
    }

    #[test]
    fn credentials_are_read_and_hidden() {
        let found = proxies(&[("HTTPS_PROXY", "http://us%40er:p%3Aw@proxy.example:8080/path?x#y")]).unwrap();
        let proxy = found.of(&"https://r.example".parse().unwrap()).unwrap();
        assert_eq!(proxy.login, Some(("us@er".into(), "p:w".into())));
        assert_eq!(proxy.authorization().unwrap(), "Basic dXNAZXI6cDp3");
        let shown = format!("{found:?} {proxy}");
        assert!(shown.contains("proxy.example:8080") && !shown.contains("p:w"), "{shown}");
        assert!(!shown.contains("dXNAZXI6cDp3"), "{shown}");
    }

    #[test]
    fn values_that_are_no_proxy_are_refused_without_showing_them() {
        for value in ["ftp://proxy.example", "http://", "http://user:hunter2@", "hunter2 hunter2", "://x"] {
            let error = proxies(&[("https_proxy", value)]).unwrap_err();
            assert_eq!(error.variable, "HTTPS_PROXY", "{value}");
            assert!(!error.to_string().contains("hunter2"));
        }
        for port in ["http", "99999", "0", "-1", "80x"] {
            let error = proxies(&[("HTTP_PROXY", &format!("http://user:hunter2@proxy.example:{port}/"))])
                .unwrap_err();
            let expected = "HTTP_PROXY is not the URL of a proxy: its port is not a number from 1 to 65535";
            assert_eq!(error.to_string(), expected);
        }
        let found = proxies(&[("HTTP_PROXY", "http://[fd00::1]:/")]).unwrap();
        assert_eq!(of(&found, "http://r.example"), "[fd00::1]:80");
    }

    #[test]
    fn socks_has_no_room_for_long_credentials() {
        for (user, password, is_valid) in [(255, 255, true), (256, 1, false), (1, 256, false)] {
            let login = format!("{}:{}", "u".repeat(user), "p".repeat(password));
            let found = proxies(&[("ALL_PROXY", &format!("socks5://{login}@proxy.example"))]);
            assert_eq!(found.is_ok(), is_valid, "{user} {password}");
            if let Err(error) = found {
                assert!(error.to_string().contains("more than 255 bytes"), "{error}");
            }
            proxies(&[("ALL_PROXY", &format!("http://{login}@proxy.example"))]).unwrap();
        }
    }

    /// The cases follow the documentation and the rules of httpproxy.
    #[test]
    fn exceptions() {
        let direct = |no_proxy: &str, url: &str| {
            let found = proxies(&[("ALL_PROXY", "proxy"), ("NO_PROXY", no_proxy)]).unwrap();
            of(&found, url).is_empty()
        };
        for (no_proxy, url, expected) in [
            ("", "https://localhost:5000", true),
            ("", "http://127.8.8.8", true),
            ("", "https://[::1]:5000", true),
            ("", "https://10.0.0.1", false),
            ("*", "https://r.example", true),
            (" , r.example ,", "https://r.example", true),
            ("r.example", "https://R.Example", true),
            ("r.example", "https://a.b.r.example", true),
            ("r.example", "https://other-r.example", false),
            (".r.example", "https://r.example", false),
            (".r.example", "https://a.r.example", true),
            ("*.r.example", "https://a.r.example", true),
            ("*.r.example", "https://r.example", false),
            ("r.example:443", "https://r.example", true),
            ("r.example:80", "http://a.r.example", true),
            ("r.example:5000", "https://r.example", false),
            ("r.example:none", "https://r.example", false),
            ("10.0.0.1", "https://10.0.0.1:5000", true),
            ("10.0.0.1:5000", "https://10.0.0.1:5000", true),
            ("10.0.0.1:5000", "https://10.0.0.1", false),
            ("10.0.0.0/8", "https://10.200.0.1", true),
            ("10.0.0.0/8", "https://11.0.0.1", false),
            ("10.1.2.3/0", "https://200.0.0.1", true),
            ("10.0.0.0/33", "https://10.0.0.1", false),
            ("10.0.0.0/8", "https://r.example", false),
            ("fd00::/8", "https://[fd12::1]:5000", true),
            ("fd00::/8", "https://[fe80::1]", false),
            ("::/0", "https://10.0.0.1", false),
            ("fd00::1", "https://[fd00::1]:5000", true),
            ("[fd00::1]", "https://[fd00::1]", true),
            ("[fd00::1]:5000", "https://[fd00::1]:5000", true),
            ("[fd00::1]:5001", "https://[fd00::1]:5000", false),
            ("::ffff:10.0.0.1", "https://10.0.0.1", true),
            ("::ffff:0:0/96", "https://10.0.0.1", true),
            ("::ffff:0:0/96", "https://[fd00::1]", false),
            ("::ffff:10.0.0.0/104", "https://10.0.0.1", true),
            ("::ffff:10.0.0.0/104", "https://11.0.0.1", false),
            ("::ffff:0:0/95", "https://10.0.0.1", false),
            (":5000,.", "https://r.example:5000", false),
        ] {
            assert_eq!(direct(no_proxy, url), expected, "{no_proxy:?} {url}");
        }
    }
}
