//! The default profile, and apparmor_parser(8), which compiles and loads it. No library does that: the compiler's input and
//! the kernel's format belong to AppArmor's own tools, and other runtimes use them too.

use crate::attempt::{self, Attempt};
use crate::lanes;
use std::ffi::CString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the default profile. The text of a name never changes: with another text, the kernel would keep the old one, as
/// a loaded profile is not loaded again, and running containers would change theirs.
pub(super) const NAME: &str = "copepod-default-v1";
/// Its text. A test holds its checksum.
const TEXT: &str = include_str!("default.profile");
/// What the text means depends on the version of AppArmor's features that it is written for: with later ones, rules for
/// user namespaces and io_uring, among others, would be missing. Parsers from 3.0 on have the file, below their folder.
const ABI: &str = "abi <abi/3.0>,\n";
const ABI_FILE: &str = "/etc/apparmor.d/abi/3.0";
/// Where distributions have the parser.
pub(super) const PARSERS: [&str; 4] = [
    "/usr/sbin/apparmor_parser",
    "/sbin/apparmor_parser",
    "/usr/bin/apparmor_parser",
    "/usr/local/sbin/apparmor_parser",
];
/// Time limit for compiling and loading, which take some 0.1 s.
const LIMIT: Duration = Duration::from_secs(20);

/// Why the profile was not loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum LoadError {
    /// There is no parser.
    #[error("no apparmor_parser at {}: install the package apparmor", PARSERS.join(", "))]
    NoParser,
    /// It was not looked for.
    #[error("the parser could not be started: {0}")]
    Busy(String),
    /// It failed.
    #[error("{} did not load the default profile {NAME}: {problem}", parser.display())]
    Failed {
        /// Its path.
        parser: PathBuf,
        /// What it says, or how it ended.
        problem: String,
    },
}

/// Loads the default profile with the first of these parsers that exists.
///
/// # Errors
/// There is no parser; it failed, or took too long.
pub(super) async fn load_default(parsers: Vec<PathBuf>) -> Result<(), LoadError> {
    let found = lanes::records().run(move || {
        let parser = parsers.into_iter().find(|path| path.exists());
        (parser, text(Path::new(ABI_FILE).exists()))
    });
    match found.await {
        Ok((Some(parser), text)) => load(parser, text).await,
        Ok((None, _)) => Err(LoadError::NoParser),
        Err(error) => Err(LoadError::Busy(error.to_string())),
    }
}

fn text(with_abi: bool) -> String {
    format!("{}{TEXT}", if with_abi { ABI } else { "" })
}

async fn load(parser: PathBuf, text: String) -> Result<(), LoadError> {
    // Replacing, not adding: another process may load it at the same time. Without a cache, whose folder may be read-only.
    let args = [c"--replace", c"--skip-cache", c"--quiet"].map(CString::from).to_vec();
    let ran = async {
        let (input, mut write_end) = io::pipe()?;
        // A pipe holds 64 KiB, so this does not block.
        write_end.write_all(text.as_bytes())?;
        drop(write_end);
        let attempt = Attempt { program: parser.clone(), args, input: Some(input.into()), errors: true };
        attempt::run(attempt, LIMIT).await
    };
    let problem = match ran.await {
        Ok(ran) if ran.succeeded() => return Ok(()),
        Ok(ran) if ran.output.trim().is_empty() => ran.how(),
        Ok(ran) => ran.output.trim().replace('\n', "; "),
        Err(error) => error.to_string(),
    };
    Err(LoadError::Failed { parser, problem })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest as _, Sha256};
    use std::os::unix::fs::PermissionsExt as _;

    /// If this fails: give the profile another name (`-v2`) in `NAME` and in its text, then correct the checksum.
    #[test]
    fn the_text_of_a_name_never_changes() {
        assert_eq!(
            hex(&Sha256::digest(TEXT)),
            "ce3c65bfe5592800b09d1788298c0a6d7df0b3c61a4ad79ea7840d527006c12d"
        );
        assert_eq!(TEXT.matches(NAME).count(), 3, "its head, and its peers");
        assert!(text(true).starts_with("abi <abi/3.0>,\n#") && text(false).starts_with('#'));
        assert!(text(true).len() < 64 << 10, "it is written into a pipe at once");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Loading with a script in place of the parser.
    async fn loaded(script: &str) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let parser = dir.path().join("parser");
        std::fs::write(&parser, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&parser, std::fs::Permissions::from_mode(0o755)).unwrap();
        lanes::start(false);
        load(parser, text(true)).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn the_parser_gets_the_text_and_its_answer_decides() {
        let reads = format!("test \"$1\" = --replace && test \"$(wc -c)\" -eq {}", text(true).len());
        assert_eq!(loaded(&reads).await, Ok(()));
        assert_eq!(loaded("echo Warning >&2").await, Ok(()), "it warns of harmless things");
        let failed = loaded("printf 'syntax error\\nline 2\\n' >&2; exit 1").await.unwrap_err();
        assert!(
            failed.contains("did not load the default profile copepod-default-v1: syntax error; line 2"),
            "{failed}"
        );
        let silent = loaded("exit 3").await.unwrap_err();
        assert!(silent.contains('3'), "{silent}");
    }
}
