//! Checks whose errors contain what was expected and the place in the source.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Returns an error unless the condition is true. Unlike the error of anyhow's macro of this name, it contains the
/// condition and its place in the source besides the message, so a message needs to say only what was found.
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

/// Returns an error unless the file has exactly this text.
pub(crate) fn file_has(path: &Path, wanted: &str) -> Result<()> {
    let found = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    ensure!(found == wanted, "{} has {found:?} instead of {wanted:?}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_one(number: u32) -> Result<()> {
        ensure!(number == 1);
        Ok(())
    }

    fn is_two(number: u32) -> Result<()> {
        ensure!(number == 2, "the number is {number}");
        Ok(())
    }

    #[test]
    fn an_error_has_the_message_the_condition_and_its_place() {
        is_one(1).unwrap();
        is_two(2).unwrap();
        let error = is_one(2).unwrap_err().to_string();
        assert!(error.starts_with("expected `number == 1` (") && error.contains(file!()), "{error}");
        let error = is_two(1).unwrap_err().to_string();
        assert!(error.starts_with("the number is 1\nexpected `number == 2` ("), "{error}");
    }

    #[test]
    fn a_file_must_exist_and_have_exactly_the_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert!(format!("{:#}", file_has(&path, "").unwrap_err()).contains("No such file"));
        std::fs::write(&path, "text\n").unwrap();
        file_has(&path, "text\n").unwrap();
        for wanted in ["", "text", "text\n\n"] {
            let error = file_has(&path, wanted).unwrap_err().to_string();
            assert!(error.contains("has \"text\\n\" instead of"), "{error}");
        }
    }
}
