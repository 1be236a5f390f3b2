//! TLS to one host: its trusted CAs, the client certificate, and the configuration of rustls.

use crate::error::{Error, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// How the host's certificate is verified, and the client certificate to present.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) skip_verify: bool,
    /// PEM files of CAs that are trusted in addition to the system's.
    pub(crate) authorities: Vec<PathBuf>,
    /// PEM files of client certificate and key; without a second file, the first has both. Only the first pair
    /// is used, because rustls presents one certificate.
    pub(crate) clients: Vec<(PathBuf, Option<PathBuf>)>,
}

impl Tls {
    /// The files of a folder without `hosts.toml`: CAs in `*.crt`, client certificates in `*.cert` and their
    /// keys in `*.key`.
    pub(super) fn of_folder(folder: &Path) -> Result<Self> {
        let mut tls = Self::default();
        for entry in fs::read_dir(folder).map_err(Error::configuration(folder))? {
            let path = entry.map_err(Error::configuration(folder))?.path();
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

    /// The configuration of rustls. Blocks: reads the certificates.
    pub(crate) fn client_config(&self) -> Result<ClientConfig> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::unsupported("TLS", error))?;
        let verified = if self.skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnything(provider)))
        } else {
            let trusted = self.trusted()?;
            let roots = Arc::new(roots(&trusted)?);
            let usual = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
            let usual = usual.map_err(|error| Error::unsupported("TLS", error))?;
            let own = trusted.into_iter().map(|(certificate, _)| certificate).collect();
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinning { usual, own }))
        };
        let Some((certificate, key)) = self.clients.first() else {
            return Ok(verified.with_no_client_auth());
        };
        let key = key.as_ref().unwrap_or(certificate);
        let chain =
            certificates::certificates(&read(certificate)?).map_err(Error::configuration(certificate))?;
        let private = certificates::private_key(&read(key)?).map_err(Error::configuration(key))?;
        verified.with_client_auth_cert(chain, private).map_err(Error::configuration(key))
    }

    /// The configured certificates, each with its file.
    fn trusted(&self) -> Result<Vec<(CertificateDer<'static>, &Path)>> {
        let mut trusted = Vec::new();
        for path in &self.authorities {
            let found = certificates::certificates(&read(path)?).map_err(Error::configuration(path))?;
            trusted.extend(found.into_iter().map(|certificate| (certificate, path.as_path())));
        }
        Ok(trusted)
    }
}

/// The system's CAs and the configured ones.
fn roots(trusted: &[(CertificateDer<'static>, &Path)]) -> Result<RootCertStore> {
    let mut roots = system_roots();
    for (certificate, path) in trusted {
        roots.add(certificate.clone()).map_err(Error::configuration(path))?;
    }
    Ok(roots)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    certificates::read(path).map_err(Error::configuration(path))
}

/// Loaded once: changes of the system's store take effect when the daemon is restarted.
fn system_roots() -> RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    let load = || {
        let found = rustls_native_certs::load_native_certs();
        for error in found.errors {
            tracing::warn!(%error, "cannot load a certificate of the system's store");
        }
        let mut roots = RootCertStore::empty();
        let (_, ignored) = roots.add_parsable_certificates(found.certs);
        tracing::debug!(authorities = roots.len(), ignored, "system certificate store loaded");
        roots
    };
    ROOTS.get_or_init(load).clone()
}

/// The usual verifier, which also accepts a server whose certificate is itself one of the configured ones, although it
/// is a CA's: what `openssl req -x509` makes, and Docker's documentation with it. Go and OpenSSL accept that too.
#[derive(Debug)]
struct Pinning {
    usual: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Pinning {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let error = match self.usual.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            Err(error) if self.own.contains(end_entity) => error,
            result => return result,
        };
        // webpki checks the dates before that, and the name after it. A test asserts both.
        if !is_ca_as_end_entity(&error) {
            return Err(error);
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Whether a verification failed because the server's certificate is a CA's.
fn is_ca_as_end_entity(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) = error else {
        return false;
    };
    cause.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity)
}

/// The verifier for `skip_verify`. Content that is fetched by digest is still verified by its digest.
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
    use std::time::Duration;

    #[test]
    fn errors_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let none = folder.path().join("none.pem");
        let empty = folder.path().join("empty.pem");
        fs::write(&empty, "no certificate").unwrap();
        // Reading a device could have any effect, or never end.
        for path in [none, empty, PathBuf::from("/dev/zero")] {
            let authority = Tls { authorities: vec![path.clone()], ..Tls::default() };
            let client = Tls { clients: vec![(path.clone(), None)], ..Tls::default() };
            for tls in [authority, client] {
                let error = tls.client_config().unwrap_err();
                assert!(
                    matches!(&error, Error::Configuration { path: named, .. } if *named == path),
                    "{error}"
                );
            }
        }
    }

    /// A self-signed certificate, made as Docker's documentation does.
    fn self_signed(folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(format!("{name}.crt"));
        let made = std::process::Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-subj", "/CN=ignored", "-addext", &format!("subjectAltName=DNS:{name}")])
            .args(["-keyout", "/dev/null", "-out"])
            .arg(&path)
            .output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        path
    }

    #[test]
    fn a_self_signed_ca_is_accepted_if_it_is_configured() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (self_signed(folder.path(), "r.example"), self_signed(folder.path(), "x.example"));
        let verify = |served: &Path, trusted: &Path, name: &str, now: Duration| {
            let tls = Tls { authorities: vec![trusted.to_owned()], ..Tls::default() };
            let trusted = tls.trusted().unwrap();
            let roots = Arc::new(roots(&trusted).unwrap());
            let provider = Arc::new(ring::default_provider());
            let usual = WebPkiServerVerifier::builder_with_provider(roots, provider).build().unwrap();
            let own = trusted.into_iter().map(|(certificate, _)| certificate).collect();
            let served = certificates::certificates(&fs::read(served).unwrap()).unwrap();
            let (name, now) = (ServerName::try_from(name).unwrap(), UnixTime::since_unix_epoch(now));
            Pinning { usual, own }.verify_server_cert(&served[0], &[], &name, &[], now).map(drop)
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let day = Duration::from_secs(24 * 3600);
        verify(&one, &one, "r.example", now).unwrap();
        let failed = |result: Result<(), rustls::Error>| match result.unwrap_err() {
            rustls::Error::InvalidCertificate(error) => error,
            other => panic!("{other}"),
        };
        let error = failed(verify(&one, &one, "other.example", now));
        assert!(matches!(error, CertificateError::NotValidForNameContext { .. }), "{error:?}");
        let error = failed(verify(&one, &one, "r.example", now + 3 * day));
        assert!(matches!(error, CertificateError::ExpiredContext { .. }), "{error:?}");
        let error = failed(verify(&one, &one, "r.example", now - day));
        assert!(matches!(error, CertificateError::NotValidYetContext { .. }), "{error:?}");
        // Not the configured one.
        failed(verify(&one, &other, "r.example", now));
    }

    #[test]
    fn certificates_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.crt", "a.crt", "c.cert", "c.key", "other"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let path = |name: &str| folder.path().join(name);
        let tls = Tls::of_folder(folder.path()).unwrap();
        assert_eq!(tls.authorities, [path("a.crt"), path("b.crt")]);
        assert_eq!(tls.clients, [(path("c.cert"), Some(path("c.key")))]);
    }
}
