//! Digests of documents and layers.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};
use std::fmt;

/// A digest, written as `sha256:<64 hex digits>` or `sha512:<128 hex digits>`, also in files. These are the algorithms
/// that the OCI image specification registers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Digest {
    /// By nearly all registries and builders.
    Sha256([u8; 32]),
    /// By some, on request.
    Sha512([u8; 64]),
}

impl Digest {
    /// Length of the longest one as text.
    pub(crate) const MAX_TEXT: usize = "sha512:".len() + 128;

    /// Reads a digest with lower-case digits; other algorithms are refused.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("sha256", hex) => from_hex(hex).map(Self::Sha256),
            ("sha512", hex) => from_hex(hex).map(Self::Sha512),
            _ => None,
        }
    }

    /// The sha256 digest of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::Sha256(Sha256::digest(bytes).into())
    }

    /// Whether this is the digest of these bytes.
    pub(crate) fn is_of(&self, bytes: &[u8]) -> bool {
        self.same_of(bytes) == *self
    }

    /// The digest of these bytes by the algorithm of this one.
    pub(crate) fn same_of(&self, bytes: &[u8]) -> Self {
        match self {
            Self::Sha256(_) => Self::of(bytes),
            Self::Sha512(_) => Self::Sha512(Sha512::digest(bytes).into()),
        }
    }

    /// Computes a digest by the algorithm of this one.
    pub(crate) fn hasher(&self) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::Sha512(_) => Hasher::Sha512(Sha512::new()),
        }
    }

    /// The digest of the bytes that `hasher` has read.
    pub(crate) fn finish(hasher: Sha256) -> Self {
        Self::Sha256(hasher.finalize().into())
    }

    /// The hex digits without the algorithm, which their number tells.
    pub(crate) fn hex(&self) -> String {
        use fmt::Write as _;
        let bytes: &[u8] = match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        };
        bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            // Writing to a string cannot fail.
            write!(text, "{byte:02x}").ok();
            text
        })
    }
}

/// Computes a digest from parts of the bytes.
#[derive(Debug, Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::finish(hasher),
            Self::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

/// Reads `2 * N` lower-case digits.
fn from_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let digits = hex.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let algorithm = match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        };
        write!(f, "{algorithm}:{}", self.hex())
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("a digest must be sha256: or sha512: with 64 or 128 lower-case hex digits")
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_algorithms() {
        let text = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
                    47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";
        let empty = Digest::parse(text).unwrap();
        assert!(empty.is_of(b"") && !empty.is_of(b"x") && empty.to_string() == text);
        assert_eq!(empty.hasher().finish(), empty);
        let mut parts = Digest::of(b"ab").hasher();
        parts.update(b"a");
        parts.update(b"b");
        assert_eq!(parts.finish(), Digest::of(b"ab"));
        assert_eq!(text.len(), Digest::MAX_TEXT);
        for bad in ["", "sha256:", "sha512:00", "sha384:00", &text[..70], &text.replace("sha512", "sha256")] {
            assert_eq!(Digest::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn digests_round_trip(short in any::<[u8; 32]>(), long in any::<[[u8; 32]; 2]>()) {
            for digest in [Digest::Sha256(short), Digest::Sha512(long.concat().try_into().unwrap())] {
                prop_assert_eq!(Digest::parse(&digest.to_string()), Some(digest));
            }
        }
    }
}
