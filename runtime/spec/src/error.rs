//! Errors of this crate: why a request is refused.

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The value is invalid (gRPC InvalidArgument).
    Invalid,
    /// The value is valid, but not implemented or not possible on this node (gRPC Unimplemented).
    Unsupported,
}

/// A refused field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The value is invalid.
    #[error("{field}: {value:?}: {want}")]
    Invalid {
        /// CRI name of the field, with the messages that contain it, separated by dots.
        field: String,
        /// The value, cut to 200 characters.
        value: String,
        /// What a valid value is: "must be …".
        want: String,
    },
    /// The value is valid, but not supported.
    #[error("{field}: {value:?} is not supported: {want}")]
    Unsupported {
        /// CRI name of the field.
        field: String,
        /// The value, cut to 200 characters.
        value: String,
        /// What is missing, or what is supported.
        want: String,
    },
}

impl Error {
    /// An [`Error::Invalid`]; a long value is cut.
    pub fn invalid(field: impl Into<String>, value: impl AsRef<str>, want: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), value: cut(value.as_ref()), want: want.into() }
    }

    /// Adds field and value to the error of a function that only knows what a valid value is, such as those of
    /// [`path`](crate::path): for `map_err`.
    pub fn about(field: impl Into<String>, value: &str) -> impl FnOnce(&'static str) -> Self {
        move |want| Self::invalid(field, value, want)
    }

    /// An [`Error::Unsupported`]; a long value is cut.
    pub fn unsupported(field: impl Into<String>, value: impl AsRef<str>, want: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into(), value: cut(value.as_ref()), want: want.into() }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. } => ErrorKind::Invalid,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
        }
    }

    /// CRI name of the refused field.
    #[cfg(test)]
    pub(crate) fn field(&self) -> &str {
        match self {
            Self::Invalid { field, .. } | Self::Unsupported { field, .. } => field,
        }
    }
}

/// Values come from clients and appear in messages and logs, so they are kept short.
fn cut(value: &str) -> String {
    const MAX_VALUE: usize = 200;
    let mut short: String = value.chars().take(MAX_VALUE).collect();
    if short.len() < value.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_field_and_cuts_value() {
        let error = Error::invalid("config.linux.sysctls", "x".repeat(5000), "must be a name");
        assert_eq!(error.field(), "config.linux.sysctls");
        assert!(error.to_string().len() < 300, "{error}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let error = Error::about("config.log_path", "/a")("must be a relative path");
        assert_eq!(error.to_string(), "config.log_path: \"/a\": must be a relative path");
    }
}
