//! Tokens of the epoll set: a kind and a number.

use crate::lifecycle::Serial;

/// A watched descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watched {
    /// The listening socket.
    Listener,
    /// Signals.
    Signals,
    /// The daemon's connection, by its number.
    Connection(u32),
    /// A worker's socket.
    Worker(Serial),
    /// Standard output of a container, or its terminal.
    Stdout(Serial),
    /// Standard error of a container.
    Stderr(Serial),
    /// Init's start pipe.
    StartPipe(Serial),
}

impl Watched {
    /// Encodes the token for epoll.
    pub(crate) fn token(self) -> u64 {
        let (kind, number) = match self {
            Self::Listener => (0, 0),
            Self::Signals => (1, 0),
            Self::Connection(number) => (2, number),
            Self::Worker(Serial(number)) => (3, number),
            Self::Stdout(Serial(number)) => (4, number),
            Self::Stderr(Serial(number)) => (5, number),
            Self::StartPipe(Serial(number)) => (6, number),
        };
        kind << 32 | u64::from(number)
    }

    /// Decodes a token.
    pub(crate) fn of(token: u64) -> Option<Self> {
        let number = u32::try_from(token & u64::from(u32::MAX)).ok()?;
        Some(match token >> 32 {
            0 => Self::Listener,
            1 => Self::Signals,
            2 => Self::Connection(number),
            3 => Self::Worker(Serial(number)),
            4 => Self::Stdout(Serial(number)),
            5 => Self::Stderr(Serial(number)),
            6 => Self::StartPipe(Serial(number)),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_what_they_were() {
        let serial = Serial(u32::MAX);
        for watched in [
            Watched::Listener,
            Watched::Signals,
            Watched::Connection(7),
            Watched::Worker(serial),
            Watched::Stdout(serial),
            Watched::Stderr(Serial(0)),
            Watched::StartPipe(serial),
        ] {
            assert_eq!(Watched::of(watched.token()), Some(watched));
        }
        assert_eq!(Watched::of(u64::MAX), None);
    }
}
