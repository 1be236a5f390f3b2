//! Identifiers. Other programs parse them, so they are 64 lower-case hex digits without '-': kubelet's log
//! symlinks end in `-<id>.log`, and cAdvisor and agents recognise a container by a cgroup of 64 hex digits.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a string is not a valid identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} id must be 64 lower-case hex digits, got {given:?}")]
pub struct IdError {
    kind: &'static str,
    given: String,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// An id from 32 random bytes.
            pub fn from_random(bytes: [u8; 32]) -> Self {
                use fmt::Write as _;
                let mut hex = String::with_capacity(64);
                for byte in bytes {
                    // Writing to a String cannot fail.
                    let _ = write!(hex, "{byte:02x}");
                }
                Self(hex.into_boxed_str())
            }

            /// The 64 digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(given: String) -> Result<Self, IdError> {
                let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if given.len() == 64 && given.bytes().all(hex) {
                    Ok(Self(given.into_boxed_str()))
                } else {
                    let given = given.chars().take(80).collect();
                    Err(IdError { kind: $kind, given })
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

hex_id!(
    /// A pod sandbox (CRI `pod_sandbox_id`).
    PodId, "pod sandbox"
);
hex_id!(
    /// A container (CRI `container_id`).
    ContainerId, "container"
);

/// An exec, numbered by the daemon; unique per shim connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExecId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_64_lower_hex() {
        let id = PodId::from_random([0xab; 32]);
        assert_eq!(id.as_str(), "ab".repeat(32));
        assert_eq!(id.as_str().parse::<PodId>().unwrap(), id);
        let (upper, odd) = ("AB".repeat(32), "g".repeat(64));
        for bad in ["", "ab", upper.as_str(), odd.as_str(), "../../etc/passwd"] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad}");
        }
    }
}
