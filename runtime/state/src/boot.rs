//! The id of the current boot. If a record has another one, its processes cannot be running.

use std::fs;
use std::path::Path;

use crate::Error;

/// The kernel's random id of this boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The id of this boot: 36 characters, hex digits and dashes.
///
/// # Errors
/// /proc cannot be read or has other content.
pub fn id() -> Result<String, Error> {
    let path = Path::new(BOOT_ID);
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let id = text.trim_end();
    if id.len() == 36 && id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        Ok(id.to_owned())
    } else {
        Err(Error::foreign(path, "no boot id"))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn is_stable_within_a_boot() {
        let id = super::id().unwrap();
        assert_eq!(id.len(), 36);
        assert_eq!(id, super::id().unwrap());
    }
}
