//! Certificates and private keys in PEM files, for both sides of TLS: registries (`image`) and the streaming server.

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io;
use std::path::Path;

/// Maximum size of a file in bytes. The system's bundle of all CAs has 220 KB.
const MAX_FILE: u64 = 4 << 20;

/// A file does not contain what it should.
#[derive(Debug, thiserror::Error)]
#[error("it has no {what} in PEM")]
pub struct Error {
    what: &'static str,
    source: pem::Error,
}

/// Reads a file, which may be replaced by an administrator at any time. Blocks for the disk only, not on a FIFO.
///
/// # Errors
/// InvalidInput if it is not a regular file, FileTooLarge above 4 MiB, the errors of open(2) and read(2).
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    sys::file::read_capped(sys::beneath::regular(path)?, MAX_FILE)
}

/// The certificates of a file, in its order; at least one.
///
/// # Errors
/// There is none, or one is malformed.
pub fn certificates(content: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let failed = |source| Error { what: "certificate", source };
    let found: Vec<_> = CertificateDer::pem_slice_iter(content).collect::<Result<_, _>>().map_err(failed)?;
    if found.is_empty() { Err(failed(pem::Error::NoItemsFound)) } else { Ok(found) }
}

/// The first private key of a file.
///
/// # Errors
/// There is none, or it is malformed.
pub fn private_key(content: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(content).map_err(|source| Error { what: "private key", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    const KEY: &[u8] = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";

    #[test]
    fn items_are_found_among_others() {
        let both = [CERTIFICATE, b"a comment\n", KEY, CERTIFICATE].concat();
        assert_eq!(certificates(&both).unwrap().len(), 2);
        assert!(private_key(&both).is_ok());
    }

    #[test]
    fn files_without_the_item_are_refused() {
        assert_eq!(certificates(KEY).unwrap_err().to_string(), "it has no certificate in PEM");
        assert_eq!(private_key(CERTIFICATE).unwrap_err().to_string(), "it has no private key in PEM");
        assert!(certificates(b"").is_err());
        assert!(certificates(b"-----BEGIN CERTIFICATE-----\nAAAA\n").is_err(), "cut off");
    }

    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(read(Path::new("/dev/zero")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(read(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
