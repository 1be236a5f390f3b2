//! Records of copepod (runtime/state/src/file.rs), changed while it does not run.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Rewrites a record as a later version could have written it: changed data, correct checksum.
pub(crate) fn rewrite(path: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut record: Value = serde_json::from_slice(&fs::read(path)?)?;
    change(record.get_mut("data").context("no data")?);
    Ok(fs::write(path, sealed(&mut record)?)?)
}

/// The bytes of a record whose data was changed.
pub(crate) fn sealed(record: &mut Value) -> Result<Vec<u8>> {
    let part = |key: &str| record.get(key).and_then(Value::as_str).map(str::to_owned).context("no text");
    let (kind, boot, data) = (part("kind")?, part("boot_id")?, record["data"].to_string());
    let mut sum: u64 = 0xcbf2_9ce4_8422_2325;
    for text in [kind, boot, data] {
        for byte in text.bytes().chain([0]) {
            sum = (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    record["sum"] = format!("{sum:016x}").into();
    Ok(record.to_string().into_bytes())
}
