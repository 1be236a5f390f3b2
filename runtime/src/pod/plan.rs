//! Writes plans into sealed memfds. The shim passes them to its workers, and does not read them itself.

use crate::error::Error;
use std::os::fd::OwnedFd;

/// A memfd with a plan for a worker. Blocking, but accesses memory only.
pub(crate) fn memfd<T: serde::Serialize>(name: &str, plan: &T) -> Result<OwnedFd, Error> {
    let bytes = serde_json::to_vec(plan).map_err(|error| Error::of(format!("encode {name}"), error))?;
    sys::memfd::create_sealed(name, &bytes)
        .map_err(|error| Error::of(format!("make a memfd for {name}"), error))
}
