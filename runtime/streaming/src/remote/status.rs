//! How a session ended, as the error stream says it.

use serde::Serialize;

/// Maximum size of a failure's text in bytes: its JSON form, in which a byte can take six, still fits one frame.
const MAX_TEXT: usize = 8 * 1024;

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The process exited with 0, or what was attached to has ended.
    Success,
    /// The process exited with this code; 128 and the signal's number if a signal killed it.
    Exit(u8),
    /// The process could not be started, or what became of it is not known.
    Failed(String),
}

/// A metav1.Status, as far as clients read it.
#[derive(Serialize)]
struct Status<'a> {
    status: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

/// A metav1.StatusDetails.
#[derive(Serialize)]
struct Details {
    causes: [Cause; 1],
}

/// A metav1.StatusCause, whose type is called reason on the wire.
#[derive(Serialize)]
struct Cause {
    reason: &'static str,
    message: String,
}

impl Outcome {
    /// What versions 1 to 3 send: nothing if all went well.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Success | Self::Exit(0) => None,
            Self::Exit(code) => Some(format!("command terminated with exit code {code}")),
            Self::Failed(why) => Some(shorten(why).to_owned()),
        }
    }

    /// What later versions send.
    pub(crate) fn json(&self) -> Vec<u8> {
        let message = self.text().unwrap_or_default();
        let (status, reason, details, code) = match self {
            Self::Success | Self::Exit(0) => ("Success", "", None, None),
            Self::Exit(code) => {
                let cause = Cause { reason: "ExitCode", message: code.to_string() };
                ("Failure", "NonZeroExitCode", Some(Details { causes: [cause] }), None)
            }
            Self::Failed(_) => ("Failure", "InternalError", None, Some(500)),
        };
        let status = Status { status, message: &message, reason, details, code };
        // Strings and numbers only: this cannot fail.
        serde_json::to_vec(&status).unwrap_or_default()
    }
}

/// The beginning of `text`, cut between characters.
fn shorten(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_what_go_reads() {
        let json = |outcome: Outcome| String::from_utf8(outcome.json()).unwrap();
        assert_eq!(json(Outcome::Success), r#"{"status":"Success"}"#);
        assert_eq!(json(Outcome::Exit(0)), r#"{"status":"Success"}"#);
        assert_eq!(
            json(Outcome::Exit(3)),
            r#"{"status":"Failure","message":"command terminated with exit code 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#
        );
        assert_eq!(
            json(Outcome::Failed("no \"sh\"".into())),
            r#"{"status":"Failure","message":"no \"sh\"","reason":"InternalError","code":500}"#
        );
    }

    #[test]
    fn text_is_silent_on_success() {
        assert_eq!(Outcome::Success.text(), None);
        assert_eq!(Outcome::Exit(0).text(), None);
        assert_eq!(Outcome::Exit(137).text().unwrap(), "command terminated with exit code 137");
    }

    #[test]
    fn longest_failure_fits_a_frame() {
        let worst = Outcome::Failed("\u{1}".repeat(100_000));
        assert!(worst.json().len() < crate::MAX_PAYLOAD);
        let wide = Outcome::Failed("€".repeat(100_000)).text().unwrap();
        assert!(wide.len() <= MAX_TEXT && wide.chars().all(|c| c == '€'));
    }
}
