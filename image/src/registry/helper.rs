//! Credential helpers: programs `docker-credential-<name>`, which print credentials for a registry
//! (docker/docker-credential-helpers).

use super::plain_text::one_line;
use crate::Auth;
use crate::lane::blocking;
use child::Process;
use serde::Deserialize;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;
use sys::spawn::{Binary, Program};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Time limit for one answer, and for the wait for other helpers before it ([`RUNNING`]). The helpers of cloud providers ask a
/// server.
const LIMIT: Duration = Duration::from_secs(30);
/// Maximum length of the answer in bytes. Tokens of cloud providers have some 4 KiB.
const MAX_ANSWER: u64 = 64 << 10;
/// Maximum number of characters that an error quotes of what a helper printed.
const MAX_WORDS: usize = 300;
/// Maximum number of helpers that run at once. The others wait.
const MAX_RUNNING: usize = 4;
static RUNNING: Semaphore = Semaphore::const_new(MAX_RUNNING);
/// What helpers print if they have nothing for a registry, with a failure as their exit status.
const NOTHING: &str = "credentials not found";

/// Why a helper did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("{0:?} is not the name of a credential helper")]
    Name(String),
    #[error("{0} is in no folder of PATH")]
    Missing(String),
    #[error("{program} cannot be run")]
    Run { program: String, source: io::Error },
    #[error("{program} has not answered within {} s", LIMIT.as_secs())]
    Hung { program: String },
    #[error(
        "{program} was not started: {MAX_RUNNING} other credential helpers have run for {} s",
        LIMIT.as_secs()
    )]
    Busy { program: String },
    #[error("{program} ended with {status}: {words}")]
    Failed { program: String, status: ExitStatus, words: String },
    #[error("{program} printed no valid answer")]
    Answer { program: String },
}

/// A helper's answer.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Asks a helper for the credentials of `server`. `None` if it has none.
///
/// # Errors
/// It cannot be run, failed, or took too long; it is killed then.
pub(crate) async fn get(helper: &str, server: &str) -> Result<Option<Auth>, Problem> {
    get_from(&std::env::var_os("PATH").unwrap_or_default(), helper, server).await
}

/// As [`get`]; `folders` is a list as in PATH.
async fn get_from(folders: &OsStr, helper: &str, server: &str) -> Result<Option<Auth>, Problem> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if helper.is_empty() || !helper.bytes().all(allowed) {
        return Err(Problem::Name(one_line(helper, MAX_WORDS)));
    }
    let program = format!("docker-credential-{helper}");
    // The semaphore is never closed.
    let Ok(place) = timeout(LIMIT, RUNNING.acquire()).await else { return Err(Problem::Busy { program }) };
    let asked = timeout(LIMIT, ask(folders, &program, server)).await;
    drop(place);
    let Ok(asked) = asked else { return Err(Problem::Hung { program }) };
    let (status, output) = asked?;
    let text = String::from_utf8_lossy(&output);
    if !status.success() {
        if text.contains(NOTHING) {
            return Ok(None);
        }
        return Err(Problem::Failed { program, status, words: one_line(&text, MAX_WORDS) });
    }
    let answer: Answer = serde_json::from_slice(&output).map_err(|_| Problem::Answer { program })?;
    Ok(match answer {
        Answer { secret, .. } if secret.is_empty() => None,
        // The name that stands for a refresh token.
        Answer { username, secret } if username == "<token>" => {
            Some(Auth { identity_token: secret, ..Auth::default() })
        }
        Answer { username, secret } => Some(Auth { username, password: secret, ..Auth::default() }),
    })
}

/// Runs the program to its end, and returns what it printed.
async fn ask(folders: &OsStr, program: &str, server: &str) -> Result<(ExitStatus, Vec<u8>), Problem> {
    let failed = |source| Problem::Run { program: program.to_owned(), source };
    let (folders, name) = (folders.to_owned(), program.to_owned());
    // Finding and executing the program may wait for a disk.
    let started = blocking(move || Ok(start(&folders, &name)))
        .await
        .map_err(|error| failed(io::Error::other(error)))?;
    let Started { mut process, mut input, output } = started?;
    // A helper may end without reading its input.
    input.write_all(server.as_bytes()).await.unwrap_or_default();
    drop(input);
    let mut answer = Vec::new();
    output.take(MAX_ANSWER).read_to_end(&mut answer).await.map_err(failed)?;
    // One that prints more gets SIGPIPE.
    let status = process.wait().await.map_err(failed)?;
    Ok((status, answer))
}

/// A running helper with our ends of its pipes. It is killed on drop.
struct Started {
    process: Process,
    input: pipe::Sender,
    output: pipe::Receiver,
}

/// Finds the program and starts it. Blocks; must be called within the runtime, which the pipes need.
fn start(folders: &OsStr, program: &str) -> Result<Started, Problem> {
    let candidates = std::env::split_paths(folders).filter(|folder| folder.is_absolute());
    let path = candidates.map(|folder| folder.join(program)).find(|path| path.is_file());
    let path = path.ok_or_else(|| Problem::Missing(program.to_owned()))?;
    spawn(path).map_err(|source| Problem::Run { program: program.to_owned(), source })
}

fn spawn(path: PathBuf) -> io::Result<Started> {
    let path = CString::new(path.into_os_string().into_vec())?;
    let ((stdin, input), (output, stdout)) = (io::pipe()?, io::pipe()?);
    let process = sys::spawn::spawn(&Program {
        binary: Binary::Path(&path),
        args: &[path.clone(), c"get".to_owned()],
        env: &child::environment(child::inherited())?,
        stdio: [Some(stdin.as_fd()), Some(stdout.as_fd()), Some(io::stderr().as_fd())],
        fds: &[],
        cgroup: None,
    });
    let process = Process::new(process?)?;
    let input = pipe::Sender::from_owned_fd(input.into())?;
    Ok(Started { process, input, output: pipe::Receiver::from_owned_fd(output.into())? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    /// The answer of a shell script to `r.example`.
    async fn answer(script: &str) -> Result<Option<Auth>, Problem> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker-credential-test");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        get_from(folder.path().as_os_str(), "test", "r.example").await
    }

    #[tokio::test]
    async fn answers() {
        let user = answer(
            "read -r server; printf '{\"ServerURL\":\"%s\",\"Username\":\"%s\",\"Secret\":\"s\"}' \"$1\" \"$server\"",
        );
        let auth = user.await.unwrap().unwrap();
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("r.example", "s"));
        let token = answer("echo '{\"Username\":\"<token>\",\"Secret\":\"t\"}'").await.unwrap().unwrap();
        assert_eq!((token.identity_token.as_str(), token.username.as_str()), ("t", ""));
        for nothing in [
            "echo '{\"Username\":\"\",\"Secret\":\"\"}'",
            "echo 'credentials not found in native keychain'; exit 1",
        ] {
            assert_eq!(answer(nothing).await.unwrap(), None, "{nothing}");
        }
    }

    /// The clock is paused: it jumps to the time limit.
    #[tokio::test(start_paused = true)]
    async fn a_helper_that_was_not_started_is_not_called_slow() {
        let _all = RUNNING.acquire_many(4).await.unwrap();
        let problem = answer("exit 0").await.unwrap_err();
        assert_eq!(
            problem.to_string(),
            "docker-credential-test was not started: 4 other credential helpers have run for 30 s"
        );
    }

    #[tokio::test]
    async fn failures() {
        for (script, expected) in [
            ("printf 'no\\033[31m login'; exit 3", "ended with exit status: 3: no [31m login"),
            ("echo secret", "printed no valid answer"),
            ("exec yes", "docker-credential-test"),
            ("kill -9 $$", "ended with signal: 9"),
        ] {
            let problem = answer(script).await.unwrap_err().to_string();
            assert!(problem.contains(expected) && !problem.contains("secret"), "{script}: {problem}");
        }
        let missing = get_from(OsStr::new("/nonexistent:relative"), "test", "x").await.unwrap_err();
        assert_eq!(missing.to_string(), "docker-credential-test is in no folder of PATH");
        for name in ["", "../x", "a/b", "a b"] {
            assert!(matches!(get(name, "x").await, Err(Problem::Name(_))), "{name}");
        }
    }
}
