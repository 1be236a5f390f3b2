//! Which hosts serve a registry's images, in which order: containerd's `certs.d/<host>/hosts.toml`.
//!
//! The folder of a registry with a port is `<host>_<port>_` or `<host>:<port>`, that of a registry without one is
//! `<host>`; if there is none, it is `_default`. The mirrors of `hosts.toml` are asked in the order of the file, the
//! `server` last. A folder without `hosts.toml` may have CA certificates as `*.crt`, and client certificates as
//! `*.cert` with `*.key`.

use super::hosts_file::{self, Client, Clients, HostsFile, MAX_KEY, OneOrMany, Problem, Settings};
use super::plain_text::one_line;
use super::reach;
use super::tls::Tls;
use crate::error::{Error, Result};
use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Maximum size of a `hosts.toml`. One with a hundred mirrors is far smaller.
const MAX_FILE: u64 = 1 << 20;

/// The host of Docker Hub's API.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// One host to ask: a mirror, or the registry itself.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) scheme: &'static str,
    pub(crate) authority: String,
    /// The registry itself or the `server` that stands for it, not a mirror. So it gets the registry's credentials.
    pub(crate) is_registry: bool,
    /// Its URL is in `hosts.toml`. That of any other host was made from the image's name.
    pub(crate) is_configured: bool,
    /// The path before `/<repository>/manifests/`, usually `/v2`.
    pub(crate) path: String,
    /// Capability `pull`: serves blobs, and manifests by digest.
    pub(crate) pull: bool,
    /// Capability `resolve`: serves manifests by tag.
    pub(crate) resolve: bool,
    /// Time limit for a TCP connection, if it is configured.
    pub(crate) dial_timeout: Option<Duration>,
    /// Headers for this host only; they may contain credentials.
    pub(crate) headers: Headers,
    pub(crate) tls: Tls,
}

/// Headers from the configuration. Debug output hides their values.
#[derive(Clone, Default)]
pub(crate) struct Headers(pub(crate) Vec<(HeaderName, HeaderValue)>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// The hosts of a registry, in the order to ask them. Blocks.
pub(crate) fn hosts(certs_dir: &Path, registry: &str) -> Result<Vec<Host>> {
    let folders = folder_names(registry).into_iter().map(|name| certs_dir.join(name));
    let Some(folder) = folders.into_iter().find(|path| path.is_dir()) else {
        return Ok(vec![Host::of_registry(registry)]);
    };
    let path = folder.join("hosts.toml");
    match sys::beneath::regular(&path).and_then(|file| sys::file::read_capped(file, MAX_FILE)) {
        Ok(bytes) => {
            let configured = hosts_file::parse(&bytes).and_then(|file| configured(file, registry, &folder));
            configured.map_err(Error::configuration(&path))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut host = Host::of_registry(registry);
            host.tls = Tls::of_folder(&folder)?;
            if host.tls != Tls::default() {
                host.scheme = "https";
            }
            Ok(vec![host])
        }
        Err(error) => Err(Error::configuration(&path)(error)),
    }
}

/// The hosts of a `hosts.toml` in `folder`.
pub(super) fn configured(file: HostsFile, registry: &str, folder: &Path) -> Result<Vec<Host>, Problem> {
    let mut hosts = Vec::new();
    for (url, settings) in file.mirrors {
        let mut host = Host::at(&url, settings.override_path)?.configure(settings, folder)?;
        // Docker Hub's API may be listed as a host of docker.io.
        host.is_registry = host.authority.eq_ignore_ascii_case(own_authority(registry));
        hosts.push(host);
    }
    let server = match &file.server {
        Some(url) => Host { is_registry: true, ..Host::at(url, file.own.override_path)? },
        None => Host::of_registry(registry),
    };
    hosts.push(server.configure(file.own, folder)?);
    Ok(hosts)
}

/// Names of the folders that may configure a registry, the most specific one first.
fn folder_names(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':')
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([registry.to_owned(), "_default".to_owned()]);
    names
}

/// The authority of a registry's own API, as opposed to that of a mirror.
pub(crate) fn own_authority(registry: &str) -> &str {
    if registry == "docker.io" { DOCKER_HUB } else { registry }
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl Host {
    fn new(scheme: &'static str, authority: String, path: String) -> Self {
        Self {
            scheme,
            authority,
            is_registry: false,
            is_configured: false,
            path,
            pull: true,
            resolve: true,
            dial_timeout: None,
            headers: Headers::default(),
            tls: Tls::default(),
        }
    }

    /// The registry itself. One on a loopback address is accessed by http unless its port is 443.
    fn of_registry(registry: &str) -> Self {
        let authority = own_authority(registry);
        let scheme = if is_loopback(authority) && !authority.ends_with(":443") { "http" } else { "https" };
        Self { is_registry: true, ..Self::new(scheme, authority.to_owned(), "/v2".to_owned()) }
    }

    /// A host for tests: the registry itself if it has its authority.
    #[cfg(test)]
    pub(crate) fn at_authority(authority: &str, registry: &str) -> Self {
        let is_registry = authority == own_authority(registry);
        Self { is_registry, ..Self::new("https", authority.to_owned(), "/v2".to_owned()) }
    }

    /// The host at a URL of the configuration; https if it has no scheme. `/v2` is added to its path unless
    /// `override_path` is set.
    fn at(url: &str, override_path: bool) -> Result<Self, Problem> {
        let host = || one_line(url, MAX_KEY);
        let full = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let uri: Uri = full.parse().map_err(|_| Problem::NotAUrl { host: host() })?;
        let scheme = match uri.scheme_str() {
            Some("http") => "http",
            Some("https") => "https",
            _ => return Err(Problem::Scheme { host: host() }),
        };
        let authority = uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
        let is_host = !authority.contains('@') && reach::has_valid_port(&authority);
        if uri.host().is_none_or(str::is_empty) || !is_host || uri.query().is_some() {
            return Err(Problem::Authority { host: host() });
        }
        // Docker Hub's name does not serve its API.
        let authority = own_authority(&authority).to_owned();
        let path = uri.path().trim_end_matches('/');
        let path =
            if override_path || path.ends_with("/v2") { path.to_owned() } else { format!("{path}/v2") };
        Ok(Self { is_configured: true, ..Self::new(scheme, authority, path) })
    }

    /// Applies settings. Relative paths in them start at `folder`.
    fn configure(mut self, settings: Settings, folder: &Path) -> Result<Self, Problem> {
        if let Some(capabilities) = settings.capabilities {
            // In any case, as containerd 2 reads them. What a pull does not need is accepted.
            let lower: Vec<_> = capabilities.iter().map(|name| name.to_ascii_lowercase()).collect();
            let known = ["pull", "resolve", "push", "referrers"];
            if let Some(at) = lower.iter().position(|name| !known.contains(&name.as_str())) {
                return Err(Problem::Capability { capability: one_line(&capabilities[at], MAX_KEY) });
            }
            self.pull = lower.iter().any(|name| name == "pull");
            self.resolve = lower.iter().any(|name| name == "resolve");
        }
        if let Some(time) = &settings.dial_timeout {
            self.dial_timeout = hosts_file::duration(time).map(Some)?;
        }
        self.tls.skip_verify = settings.skip_verify;
        let authorities = settings.ca.map(OneOrMany::into_vec).unwrap_or_default();
        self.tls.authorities = authorities.into_iter().map(|path| folder.join(path)).collect();
        for client in settings.client.map(Clients::into_vec).unwrap_or_default() {
            self.tls.clients.push(match client {
                Client::Combined(path) => (folder.join(path), None),
                Client::Pair(paths) => match paths.as_slice() {
                    [both] => (folder.join(both), None),
                    [certificate, key] if key.as_os_str().is_empty() => (folder.join(certificate), None),
                    [certificate, key] => (folder.join(certificate), Some(folder.join(key))),
                    _ => return Err(Problem::Client),
                },
            });
        }
        for (name, values) in settings.header {
            let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
                return Err(Problem::HeaderName { name: one_line(&name, MAX_KEY) });
            };
            for value in values.into_vec() {
                let Ok(mut value) = HeaderValue::from_str(&value) else {
                    return Err(Problem::HeaderValue { name: one_line(&name, MAX_KEY) });
                };
                value.set_sensitive(true);
                self.headers.0.push((header.clone(), value));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(certs: &Path, folder: &str, text: &str) {
        let folder = certs.join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("hosts.toml"), text).unwrap();
    }

    /// What is wrong with a `hosts.toml` with this text. The error must name the file.
    fn problem(text: &str) -> String {
        let certs = tempfile::tempdir().unwrap();
        write(certs.path(), "r.example", text);
        match hosts(certs.path(), "r.example").unwrap_err() {
            Error::Configuration { path, source } if path == certs.path().join("r.example/hosts.toml") => {
                source.to_string()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_configuration_the_registry_is_asked() {
        let none = Path::new("/nonexistent");
        for (registry, scheme, authority) in [
            ("docker.io", "https", "registry-1.docker.io"),
            ("quay.io", "https", "quay.io"),
            ("localhost:5000", "http", "localhost:5000"),
            ("127.0.0.1:443", "https", "127.0.0.1:443"),
            ("127.0.0.2", "http", "127.0.0.2"),
            ("[::1]:5000", "http", "[::1]:5000"),
            ("10.0.0.1:5000", "https", "10.0.0.1:5000"),
        ] {
            let found = hosts(none, registry).unwrap();
            assert_eq!((found[0].scheme, found[0].authority.as_str()), (scheme, authority));
            assert_eq!((found.len(), found[0].path.as_str()), (1, "/v2"));
        }
    }

    #[test]
    fn mirrors_in_file_order_then_the_server() {
        let certs = tempfile::tempdir().unwrap();
        write(
            certs.path(),
            "docker.io",
            r#"
            server = "https://upstream.example"
            skip_verify = true
            [host."https://z.example/cache"]
              capabilities = ["pull"]
              ca = "z.pem"
            [host."http://a.example:5000/own/path"]
              override_path = true
              client = [["c.pem", "k.pem"]]
              [host."http://a.example:5000/own/path".header]
                x-one = ["1", "2"]
            "#,
        );
        let found = hosts(certs.path(), "docker.io").unwrap();
        let shown: Vec<_> =
            found.iter().map(|h| format!("{}://{}{}", h.scheme, h.authority, h.path)).collect();
        assert_eq!(
            shown,
            ["https://z.example/cache/v2", "http://a.example:5000/own/path", "https://upstream.example/v2"]
        );
        assert!(found[0].pull && !found[0].resolve && found[1].resolve);
        assert_eq!(found[0].tls.authorities, [certs.path().join("docker.io/z.pem")]);
        assert_eq!(found[1].headers.0.len(), 2);
        assert!(found[2].tls.skip_verify && !found[0].tls.skip_verify);
    }

    #[test]
    fn folders_by_port_and_default() {
        let certs = tempfile::tempdir().unwrap();
        write(certs.path(), "r.example_5000_", "server = \"http://port\"");
        write(certs.path(), "_default", "[host.\"http://mirror\"]\n");
        assert_eq!(hosts(certs.path(), "r.example:5000").unwrap()[0].authority, "port");
        let fallback = hosts(certs.path(), "other.example").unwrap();
        assert_eq!(
            (fallback[0].authority.as_str(), fallback[1].authority.as_str()),
            ("mirror", "other.example")
        );
    }

    #[test]
    fn problems_are_named() {
        for (text, expected) in [
            ("\nserver = ", "line 2: "),
            ("skip_verify = 7", "line 1: invalid type"),
            ("\n\n[host.\"https://m\"]\ncapabilities = 1", "line 4: "),
            ("server = \"ftp://x\"", "neither http nor https"),
            ("[host.\"https://u@x\"]", "neither user nor query"),
            ("[host.\"https://x:99999\"]", "a port from 1 to 65535"),
            ("server = \"https://x:http\"", "a port from 1 to 65535"),
            ("server = \"https://:443\"", "must have a host name"),
            ("proxy = \"http://p:3128\"", "key \"proxy\" is not supported: HTTPS_PROXY"),
            ("capabilities = [\"fly\"]", "\"fly\" is none of"),
            ("dial_timeout = \"soon\"", "dial_timeout \"soon\" must be a time"),
            ("dial_timeout = \"0s\"", "dial_timeout \"0s\" must be a time"),
            ("dial_timeout = 1", "line 1: invalid type"),
            ("client = [[\"a\", \"b\", \"c\"]]", "pairs of certificate and key"),
            ("[header]\n\"a b\" = \"c\"", "\"a b\" is not a valid header name"),
            ("[header]\na = \"\\n\"", "the value of header \"a\""),
        ] {
            let problem = problem(text);
            assert!(problem.contains(expected), "{text}: {problem}");
        }
        let certs = tempfile::tempdir().unwrap();
        fs::create_dir_all(certs.path().join("r.example/hosts.toml")).unwrap();
        assert!(matches!(hosts(certs.path(), "r.example"), Err(Error::Configuration { .. })));
    }

    /// Every key of containerd's documentation, in each of its forms.
    #[test]
    fn all_documented_keys_are_accepted() {
        let certs = tempfile::tempdir().unwrap();
        let text = r#"
            server = "https://r.example"
            capabilities = ["Pull", "RESOLVE", "push", "referrers"]
            skip_verify = true
            ca = ["ca.pem", "/etc/certs/special.pem"]
            client = [["a.cert", "a.key"], ["b.pem", ""]]
            override_path = false
            dial_timeout = "1s"
            [header]
            x-any = "v"
            [host."https://m.example"]
            capabilities = ["pull"]
            client = "client.pem"
            [host."https://m.example".header]
            x-other = ["v", "w"]
            [host."https://n.example/v2/upstream"]
            override_path = true
            client = ["c.pem", "d.pem"]
            dial_timeout = "1m0.5s"
        "#;
        write(certs.path(), "r.example", text);
        let found = hosts(certs.path(), "r.example").unwrap();
        let names: Vec<_> = found.iter().map(|host| host.authority.as_str()).collect();
        assert_eq!(names, ["m.example", "n.example", "r.example"]);
        assert!(found[2].pull && found[2].resolve && found[2].is_registry && !found[0].is_registry);
        assert_eq!(found[1].path, "/v2/upstream");
        assert_eq!(
            [found[0].dial_timeout, found[1].dial_timeout, found[2].dial_timeout],
            [None, Some(Duration::from_millis(60_500)), Some(Duration::from_secs(1))]
        );
        assert_eq!(found[2].tls.authorities.len(), 2);
        assert_eq!(
            [found[0].tls.clients.len(), found[1].tls.clients.len(), found[2].tls.clients.len()],
            [1, 2, 2]
        );
    }

    #[test]
    fn the_page_on_registries_has_all_keys() {
        let page = include_str!("../../../docs/registries.md");
        for key in hosts_file::OUTER_KEYS.iter().chain(&hosts_file::SETTINGS_KEYS) {
            let row = page.lines().any(|line| {
                line.starts_with(&format!("| `{key}`")) || line.starts_with(&format!("| `[{key}"))
            });
            assert!(row, "{key} is missing");
        }
    }

    #[test]
    fn docker_hub_has_several_names() {
        let certs = tempfile::tempdir().unwrap();
        // As in containerd's documentation.
        let text =
            "server = \"https://docker.io\"\n[host.\"https://registry-1.docker.io\"]\n[host.\"https://m\"]";
        write(certs.path(), "docker.io", text);
        let found = hosts(certs.path(), "docker.io").unwrap();
        let shown: Vec<_> = found.iter().map(|host| (host.authority.as_str(), host.is_registry)).collect();
        assert_eq!(shown, [("registry-1.docker.io", true), ("m", false), ("registry-1.docker.io", true)]);
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest_one() {
        for (text, expected) in [
            ("servre = 1", "key \"servre\" is not known; the nearest one is server"),
            (
                "[host.\"https://m\"]\nskip_verfy = true",
                "key \"skip_verfy\" of host https://m is not known; the nearest one is skip_verify",
            ),
            (
                "[host.\"https://m\".rewrite]\na = \"b\"",
                "\"rewrite\" of host https://m is not supported: only k3s and RKE2 have it",
            ),
            ("[hosts.\"https://m\"]", "the nearest one is host"),
            ("[host.\"https://m\"]\nserver = \"x\"", "\"server\" of host https://m is not known"),
            ("something_else = 1", "\"something_else\" is not known; there are server, host, capabilities"),
        ] {
            let problem = problem(text);
            assert!(problem.contains(expected), "{text}: {problem}");
        }
        let long = problem(&format!("k{} = 1\n", "x".repeat(3000)));
        assert!(long.len() < 500, "{long}");
    }

    /// The file is read on a lane, whose threads have a stack of 512 KiB.
    #[test]
    fn deep_files_are_refused_on_a_small_stack() {
        let dotted = vec!["a"; 79].join(".");
        let braces = |depth: usize| {
            format!("x.y = {}1{}", format!("{{ {dotted} = ").repeat(depth), " }".repeat(depth))
        };
        let brackets = |depth: usize| format!("x = {}{}", "[".repeat(depth), "]".repeat(depth));
        let texts = [
            brackets(17),
            brackets(79),
            brackets(100_000),
            "x = ".to_owned() + &"[".repeat(100_000),
            format!("[host.\"https://m\"]\nx = {}{}", "[".repeat(79), "]".repeat(79)),
            format!("[{dotted}]\n{}", braces(70)),
            braces(1),
            braces(70),
        ];
        for text in texts {
            let shown: String = text.chars().take(40).collect();
            let read = move || problem(&text);
            let thread = std::thread::Builder::new().stack_size(512 << 10).spawn(read).unwrap();
            let problem = thread.join().unwrap();
            let expected = ["levels deep", "recurs"];
            assert!(expected.iter().any(|words| problem.contains(words)), "{shown}: {problem}");
        }
    }
}
