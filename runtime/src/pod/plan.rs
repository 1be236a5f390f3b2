//! Plans travel in sealed memory: the shim passes them on and never reads them.

use crate::error::Error;
use std::os::fd::OwnedFd;

/// A plan as its worker reads it. Blocking (memory only).
pub(crate) fn memfd<T: serde::Serialize>(name: &str, plan: &T) -> Result<OwnedFd, Error> {
    let bytes = serde_json::to_vec(plan).map_err(|error| Error::of(format!("encode {name}"), &error))?;
    sys::memfd::create_sealed(name, &bytes)
        .map_err(|error| Error::of(format!("make a memfd for {name}"), &error))
}
