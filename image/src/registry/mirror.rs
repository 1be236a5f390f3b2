//! Which hosts serve a registry's images, in which order: containerd's `certs.d/<host>/hosts.toml`.
//!
//! The folders `<host>_<port>_`, `<host>:<port>` and `<host>` are tried, then `_default`. Hosts are asked in
//! the order of the file, the `server` last. A folder without `hosts.toml` may hold CA certificates as
//! `*.crt`, and client certificates as `*.cert` with `*.key`.

use crate::error::{Error, Result};
use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// A hosts.toml with a hundred mirrors is far smaller.
const MAX_CONFIG: u64 = 1 << 20;

/// The host of Docker Hub's API.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// One host to ask.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Scheme and authority, with the path before `/<repository>/manifests/`.
    pub(crate) scheme: &'static str,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) pull: bool,
    pub(crate) resolve: bool,
    /// Headers for this host only; they may hold credentials.
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

/// How the host's certificate is verified, and the client certificates to present.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) skip_verify: bool,
    pub(crate) authorities: Vec<PathBuf>,
    pub(crate) clients: Vec<(PathBuf, Option<PathBuf>)>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    Both(PathBuf),
    Pair(Vec<PathBuf>),
}

#[derive(Deserialize, Default)]
struct RawHost {
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    skip_verify: bool,
    ca: Option<OneOrMany<PathBuf>>,
    client: Option<OneOrMany<Client>>,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany<String>>,
}

#[derive(Deserialize, Default)]
struct RawFile {
    server: Option<String>,
    #[serde(flatten)]
    own: RawHost,
}

/// Parsed separately: with `flatten`, errors would not tell the line in the file.
#[derive(Deserialize, Default)]
struct RawHosts {
    #[serde(default)]
    host: BTreeMap<toml::Spanned<String>, RawHost>,
}

/// The hosts of a registry, in the order to ask them. Blocks.
pub(crate) fn hosts(certs_dir: &Path, registry: &str) -> Result<Vec<Host>> {
    let Some(folder) =
        candidates(registry).into_iter().map(|name| certs_dir.join(name)).find(|path| path.is_dir())
    else {
        return Ok(vec![server(registry)]);
    };
    let path = folder.join("hosts.toml");
    let wrong = |reason: String| Error::Configuration { path: path.clone(), reason };
    let read = sys::beneath::regular(&path).and_then(|file| sys::file::read_capped(file, MAX_CONFIG));
    let text = match read {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8".to_owned()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut server = server(registry);
            server.tls = certificates_beside(&folder)?;
            if server.tls != Tls::default() {
                server.scheme = "https";
            }
            return Ok(vec![server]);
        }
        Err(error) => return Err(wrong(error.to_string())),
    };
    let file: RawFile = toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
    let mirrors: RawHosts = toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
    let mut in_order: Vec<_> = mirrors.host.into_iter().collect();
    in_order.sort_by_key(|(url, _)| url.span().start);
    let mut hosts = Vec::new();
    for (url, raw) in in_order {
        hosts.push(host(url.get_ref(), raw, &folder).map_err(&wrong)?);
    }
    hosts.push(match file.server {
        Some(url) => host(&url, file.own, &folder).map_err(&wrong)?,
        None => configure(server(registry), file.own, &folder).map_err(&wrong)?,
    });
    Ok(hosts)
}

fn candidates(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':')
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([registry.to_owned(), "_default".to_owned()]);
    names
}

/// The registry itself. One on a loopback address is accessed by http unless its port is 443.
fn server(registry: &str) -> Host {
    let authority = if registry == "docker.io" { DOCKER_HUB } else { registry };
    let scheme = if is_loopback(authority) && !authority.ends_with(":443") { "http" } else { "https" };
    Host {
        scheme,
        authority: authority.to_owned(),
        path: "/v2".to_owned(),
        pull: true,
        resolve: true,
        headers: Headers::default(),
        tls: Tls::default(),
    }
}

/// The host that may receive the credentials of a registry.
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

fn host(url: &str, raw: RawHost, folder: &Path) -> Result<Host, String> {
    let full = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let uri: Uri = full.parse().map_err(|_| format!("host {url:?} is not a URL"))?;
    let scheme = match uri.scheme_str() {
        Some("http") => "http",
        Some("https") => "https",
        _ => return Err(format!("host {url:?} is neither http nor https")),
    };
    let authority = uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
    if authority.is_empty() || authority.contains('@') || uri.query().is_some() {
        return Err(format!("host {url:?} needs a host name, and takes neither user nor query"));
    }
    let given = uri.path().trim_end_matches('/');
    let path =
        if raw.override_path || given.ends_with("/v2") { given.to_owned() } else { format!("{given}/v2") };
    let plain = Host { scheme, authority, path, ..server("unused") };
    configure(plain, raw, folder)
}

fn configure(mut host: Host, raw: RawHost, folder: &Path) -> Result<Host, String> {
    if let Some(capabilities) = &raw.capabilities {
        for name in capabilities {
            if !matches!(name.as_str(), "pull" | "resolve" | "push") {
                return Err(format!("capability {name:?} is none of pull, resolve, push"));
            }
        }
        host.pull = capabilities.iter().any(|name| name == "pull");
        host.resolve = capabilities.iter().any(|name| name == "resolve");
    }
    host.tls.skip_verify = raw.skip_verify;
    host.tls.authorities = many(raw.ca).into_iter().map(|path| folder.join(path)).collect();
    for client in many(raw.client) {
        host.tls.clients.push(match client {
            Client::Both(path) => (folder.join(path), None),
            Client::Pair(paths) => match paths.as_slice() {
                [both] => (folder.join(both), None),
                [certificate, key] if key.as_os_str().is_empty() => (folder.join(certificate), None),
                [certificate, key] => (folder.join(certificate), Some(folder.join(key))),
                _ => return Err("client takes a file, or pairs of certificate and key".to_owned()),
            },
        });
    }
    for (name, values) in raw.header {
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("header name {name:?}"))?;
        for value in many(Some(values)) {
            let mut value = HeaderValue::from_str(&value).map_err(|_| format!("value of header {name:?}"))?;
            value.set_sensitive(true);
            host.headers.0.push((header.clone(), value));
        }
    }
    Ok(host)
}

fn many<T>(given: Option<OneOrMany<T>>) -> Vec<T> {
    match given {
        None => Vec::new(),
        Some(OneOrMany::One(one)) => vec![one],
        Some(OneOrMany::Many(many)) => many,
    }
}

fn certificates_beside(folder: &Path) -> Result<Tls> {
    let unreadable =
        |error: std::io::Error| Error::Configuration { path: folder.to_owned(), reason: error.to_string() };
    let mut tls = Tls::default();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.authorities.push(path),
            Some("cert") => tls.clients.push((path.clone(), Some(path.with_extension("key")))),
            _ => {}
        }
    }
    tls.authorities.sort();
    tls.clients.sort();
    Ok(tls)
}

/// The TLS client configuration. Blocks: reads the system's CA certificates, unless verification is off.
pub(crate) fn tls_config(tls: &Tls) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::unsupported("TLS", error))?;
    let verified = if tls.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnything(provider)))
    } else {
        let mut roots = system_roots();
        for path in &tls.authorities {
            let wrong = |reason: String| Error::Configuration { path: path.clone(), reason };
            let mut found = false;
            for certificate in
                CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?
            {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
                found = true;
            }
            if !found {
                return Err(wrong("it holds no certificate".to_owned()));
            }
        }
        builder.with_root_certificates(roots)
    };
    let Some((certificate, key)) = tls.clients.first() else { return Ok(verified.with_no_client_auth()) };
    let key = key.as_ref().unwrap_or(certificate);
    let wrong = |path: &Path, reason: String| Error::Configuration { path: path.to_owned(), reason };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| wrong(certificate, error.to_string()))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error.to_string()))?;
    verified.with_client_auth_cert(chain, private).map_err(|error| wrong(key, error.to_string()))
}

/// Read once: changes to the system's store take effect at the next restart, as with other daemons.
fn system_roots() -> RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    let load = || {
        let found = rustls_native_certs::load_native_certs();
        for error in found.errors {
            tracing::warn!(%error, "system certificate store");
        }
        let mut roots = RootCertStore::empty();
        let (_, ignored) = roots.add_parsable_certificates(found.certs);
        tracing::debug!(authorities = roots.len(), ignored, "system certificate store");
        roots
    };
    ROOTS.get_or_init(load).clone()
}

/// For `skip_verify`. Content that is fetched by digest is still verified.
#[derive(Debug)]
struct TrustAnything(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(certs: &Path, folder: &str, text: &str) {
        let folder = certs.join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("hosts.toml"), text).unwrap();
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
    fn faults_name_the_file() {
        let certs = tempfile::tempdir().unwrap();
        for text in
            ["server = ", "server = \"ftp://x\"", "[host.\"https://u@x\"]", "capabilities = [\"fly\"]"]
        {
            write(certs.path(), "r.example", text);
            let error = hosts(certs.path(), "r.example").unwrap_err();
            assert!(
                matches!(&error, Error::Configuration { path, .. } if path.ends_with("hosts.toml")),
                "{text}"
            );
        }
        let missing = Tls { authorities: vec![certs.path().join("none.pem")], ..Tls::default() };
        assert!(matches!(tls_config(&missing), Err(Error::Configuration { .. })));
    }
}
