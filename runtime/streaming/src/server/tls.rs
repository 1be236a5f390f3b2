//! The server's certificate, which is read again when its files have changed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use pool::{Lane, Size};
use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio_rustls::TlsAcceptor;

/// Without HTTP/2, in which nothing can be upgraded.
const PROTOCOL: &[u8] = b"http/1.1";

/// Its thread is not kept, because the files are read once a minute; if it cannot be started, the certificate stays as it
/// is. More than one read waits only where a process has several servers, as tests have.
static LANE: LazyLock<Lane> = LazyLock::new(|| {
    Lane::new(Size { name: "certificate", kept_threads: 0, max_threads: 1, max_per_owner: 1, max_queued: 64 })
});

/// The lane that reads the files of certificates, which can hang on any file system of the node.
pub(super) fn lane() -> &'static Lane {
    &LANE
}

/// Files of a certificate, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The server's certificate, followed by the intermediate certificates.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// A file does not contain what it should.
    #[error("cannot use {0}")]
    Pem(PathBuf, #[source] certificates::Error),
    /// The two do not belong together, or are of a kind that is not supported.
    #[error("the certificate of {chain} cannot be used with the key of {key}")]
    Pair {
        /// The certificate's file.
        chain: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
}

/// The configuration of new connections.
#[derive(Debug)]
pub(super) struct Tls {
    files: Certificate,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    read: Contents,
    config: Arc<ServerConfig>,
}

/// What the files have.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl Tls {
    /// Reads the files. Blocks.
    pub(super) fn new(files: Certificate) -> Result<Self, TlsError> {
        let read = Contents::read(&files)?;
        let config = read.config(&files)?;
        Ok(Self { files, current: Mutex::new(Current { read, config }) })
    }

    /// Reads the files again, on [`lane`]. If they are not usable, as while someone replaces one after the other, the
    /// earlier certificate stays.
    pub(super) async fn refresh(self: Arc<Self>) {
        if let Err(error) = lane().run(move || self.refresh_blocking()).await {
            tracing::warn!(%error, "the streaming certificate was not read again; it is tried again in a minute");
        }
    }

    fn refresh_blocking(&self) {
        let refreshed = Contents::read(&self.files).and_then(|read| {
            if self.lock().read == read {
                return Ok(false);
            }
            let config = read.config(&self.files)?;
            *self.lock() = Current { read, config };
            Ok(true)
        });
        match refreshed {
            Ok(false) => {}
            Ok(true) => tracing::info!(chain = %self.files.chain.display(), "new streaming certificate"),
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the streaming certificate is not usable; the one that was read before stays in use"
            ),
        }
    }

    /// For one connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.lock().config))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    fn read(files: &Certificate) -> Result<Self, TlsError> {
        let read =
            |path: &Path| certificates::read(path).map_err(|error| TlsError::Read(path.to_owned(), error));
        Ok(Self { chain: read(&files.chain)?, key: read(&files.key)? })
    }

    fn config(&self, files: &Certificate) -> Result<Arc<ServerConfig>, TlsError> {
        let Certificate { chain, key } = files;
        let certificates =
            certificates::certificates(&self.chain).map_err(|error| TlsError::Pem(chain.clone(), error))?;
        let private =
            certificates::private_key(&self.key).map_err(|error| TlsError::Pem(key.clone(), error))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, private))
            .map_err(|source| TlsError::Pair { chain: chain.clone(), key: key.clone(), source })?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Arc::new(config))
    }
}
