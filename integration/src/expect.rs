//! Checks whose failure says what was expected, and where in the source.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Fails unless the condition holds. Unlike anyhow's macro of this name, the error has the condition and its place
/// beside the message, so that a message has to say only what was found.
macro_rules! ensure {
    ($condition:expr $(,)?) => {{
        let holds: bool = $condition;
        if !holds {
            anyhow::bail!("expected `{}` ({}:{})", stringify!($condition), file!(), line!());
        }
    }};
    ($condition:expr, $($message:tt)+) => {{
        let holds: bool = $condition;
        if !holds {
            anyhow::bail!(
                "{}\nexpected `{}` ({}:{})",
                format_args!($($message)+),
                stringify!($condition),
                file!(),
                line!()
            );
        }
    }};
}
pub(crate) use ensure;

/// Fails unless the file has exactly this text.
pub(crate) fn file_has(path: &Path, wanted: &str) -> Result<()> {
    let found = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    ensure!(found == wanted, "{} has {found:?} instead of {wanted:?}", path.display());
    Ok(())
}
