//! The text of an error with its causes, on one line: for replies, log lines, and errors that have a text in place of a
//! source.

use std::error::Error;

/// The message of an error, followed by those of its causes. A cause that the text already contains is left out, because
/// some crates' messages include their source.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt;

    #[derive(Debug)]
    struct Step(&'static str, Option<Box<Step>>);

    impl fmt::Display for Step {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Step {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|step| step as _)
        }
    }

    #[test]
    fn causes_follow_and_are_not_repeated() {
        let step = |text, cause| Step(text, Some(Box::new(cause)));
        assert_eq!(with_causes(&Step("a", None)), "a");
        let chain = step("cannot pull", step("request failed: reset", step("reset", Step("by peer", None))));
        assert_eq!(with_causes(&chain), "cannot pull: request failed: reset: by peer");
    }
}
