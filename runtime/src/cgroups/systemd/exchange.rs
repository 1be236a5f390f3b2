//! What is said to systemd to make a scope, without I/O: bytes in, bytes out.
//!
//! ```text
//! AUTH EXTERNAL ──► OK ──► BEGIN, Hello, AddMatch, StartTransientUnit ──► its error, or JobRemoved of the scope
//! ```
//! Hello and AddMatch are for the message bus only: on systemd's own socket there is no bus, and each connection gets all
//! signals. The end of the job is known by the unit's name, which no other job has: it contains a part of the pod's random
//! id.

use super::message::{Call, Kind, Malformed, Message};

/// Name and object of systemd on the bus.
const SYSTEMD: &str = "org.freedesktop.systemd1";
const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// Name and object of the bus itself.
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";
/// The signal that a job has ended, with its number, path, unit and result.
const ENDED: (&str, &str) = ("JobRemoved", "uoss");
/// Longest line of the authentication.
const MAX_LINE: usize = 4096;
/// The call whose reply says that the scope's job has begun. Hello and AddMatch have the numbers before it.
const START: u32 = 3;

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// The message bus.
    Bus,
    /// systemd itself.
    Systemd,
}

/// A scope to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scope {
    /// Name of the unit.
    pub(super) unit: String,
    /// Name of the slice that it is in.
    pub(super) slice: String,
    /// What it is, for people.
    pub(super) description: String,
    /// The process that it begins with.
    pub(super) pid: u32,
}

/// Why there is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failed {
    /// The other end refused the authentication.
    #[error("the bus refuses the connection: {0:?}")]
    Rejected(String),
    /// The other end sent an invalid message.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A call failed. `START` is the call for the scope; `by_bus`: the bus itself says so, not who was called.
    #[error("{name}: {text}")]
    Refused { call: u32, by_bus: bool, name: String, text: String },
    /// The job did not make the unit.
    #[error("the result of its job is {result:?}; `journalctl -b -u {unit}` may have the reason")]
    Job { unit: String, result: String },
}

impl Failed {
    /// Whether systemd has refused to make the scope, or failed to. Otherwise the call may not have reached systemd: the bus
    /// itself replies if systemd is not connected (it is executing itself again), if it disconnects before it replies, and if
    /// the bus does not deliver the call (its policy, its limits).
    pub(super) fn is_systemds(&self) -> bool {
        match self {
            Self::Refused { call, by_bus, .. } => *call == START && !by_bus,
            Self::Job { .. } => true,
            Self::Rejected(_) | Self::Malformed(_) => false,
        }
    }

    /// Whether a unit of this name exists.
    pub(super) fn is_existing(&self) -> bool {
        matches!(self, Self::Refused { name, .. } if name == "org.freedesktop.systemd1.UnitExists")
    }
}

/// What the owner of the socket does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Read, and call [`Exchange::receive`].
    Read,
    /// Write these bytes, and then read.
    Write(Vec<u8>),
    /// The scope exists.
    Done,
}

/// One connection, from its first byte to the scope.
#[derive(Debug)]
pub(super) struct Exchange {
    peer: Peer,
    scope: Scope,
    is_authenticated: bool,
    received: Vec<u8>,
}

impl Exchange {
    /// The exchange, and the first bytes to write. `uid` is the effective user of this process.
    pub(super) fn new(peer: Peer, scope: Scope, uid: u32) -> (Self, Vec<u8>) {
        let digits: String = uid.to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        let hello = format!("\0AUTH EXTERNAL {digits}\r\n").into_bytes();
        (Self { peer, scope, is_authenticated: false, received: Vec::new() }, hello)
    }

    /// Takes bytes that were received.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<Next, Failed> {
        self.received.extend_from_slice(bytes);
        if !self.is_authenticated {
            return self.authenticate();
        }
        let mut read = 0;
        let mut next = Next::Read;
        while next == Next::Read
            && let Some((message, length)) = Message::parse(self.received.get(read..).unwrap_or_default())?
        {
            next = self.understand(&message)?;
            read += length;
        }
        self.received.drain(..read);
        Ok(next)
    }

    fn authenticate(&mut self) -> Result<Next, Failed> {
        let Some(end) = self.received.windows(2).position(|two| two == b"\r\n") else {
            return if self.received.len() > MAX_LINE { Err(self.rejected()) } else { Ok(Next::Read) };
        };
        // Nothing follows before BEGIN.
        if !self.received.starts_with(b"OK ") || end > MAX_LINE {
            return Err(self.rejected());
        }
        self.received.drain(..end + 2);
        self.is_authenticated = true;
        let mut bytes = b"BEGIN\r\n".to_vec();
        if self.peer == Peer::Bus {
            bytes.extend(bus_call(START - 2, "Hello", "").bytes(|_| {}));
            let rule = format!(
                "type='signal',sender='{SYSTEMD}',path='{SYSTEMD_PATH}',interface='{MANAGER}',member='{}',arg2='{}'",
                ENDED.0, self.scope.unit
            );
            bytes.extend(bus_call(START - 1, "AddMatch", "s").bytes(|body| body.text(&rule)));
        }
        bytes.extend(self.start());
        Ok(Next::Write(bytes))
    }

    fn rejected(&self) -> Failed {
        let line = self.received.split(|byte| *byte == b'\r').next().unwrap_or_default();
        Failed::Rejected(
            String::from_utf8_lossy(line.get(..MAX_LINE.min(line.len())).unwrap_or_default()).into_owned(),
        )
    }

    /// StartTransientUnit (org.freedesktop.systemd1(5)).
    fn start(&self) -> Vec<u8> {
        let Scope { unit, slice, description, pid } = &self.scope;
        let call = Call {
            serial: START,
            destination: SYSTEMD,
            path: SYSTEMD_PATH,
            interface: MANAGER,
            member: "StartTransientUnit",
            signature: "ssa(sv)a(sa(sv))",
        };
        call.bytes(|body| {
            body.text(unit);
            body.text("replace");
            body.array(8, |all| {
                all.property("Description", "s", |value| value.text(description));
                all.property("Slice", "s", |value| value.text(slice));
                all.property("PIDs", "au", |value| value.array(4, |pids| pids.u32(*pid)));
                all.property("Delegate", "b", |value| value.bool(true));
                all.property("CollectMode", "s", |value| value.text("inactive-or-failed"));
                // As with runc: a pod does not take part in the order of a shutdown.
                all.property("DefaultDependencies", "b", |value| value.bool(false));
                // Protection (cgroup v2, Memory) reaches a container only as far as each level above it is protected, unless
                // the hierarchy is mounted with memory_recursiveprot. kubelet protects the pod's slice and the container:
                // the scope between them must pass on all that the slice has.
                for file in ["MemoryMin", "MemoryLow"] {
                    all.property(file, "t", |value| value.u64(u64::MAX));
                }
                // DefaultTasksMax= is for units that nobody has limited, and the pod's slice has kubelet's limit.
                all.property("TasksMax", "t", |value| value.u64(u64::MAX));
            });
            body.array(8, |_| {});
        })
    }

    fn understand(&self, message: &Message<'_>) -> Result<Next, Failed> {
        match message.kind {
            Kind::Error if (1..=START).contains(&message.reply_to) => {
                let text = if message.signature.starts_with('s') { message.arguments().text()? } else { "" };
                Err(Failed::Refused {
                    call: message.reply_to,
                    by_bus: message.sender == BUS,
                    name: message.error.to_owned(),
                    text: text.to_owned(),
                })
            }
            Kind::Signal if (message.member, message.signature) == ENDED => self.ended(message),
            _ => Ok(Next::Read),
        }
    }

    fn ended(&self, message: &Message<'_>) -> Result<Next, Failed> {
        let mut arguments = message.arguments();
        arguments.u32()?;
        arguments.text()?;
        let (unit, result) = (arguments.text()?, arguments.text()?);
        match (unit == self.scope.unit, result) {
            (false, _) => Ok(Next::Read),
            (true, "done") => Ok(Next::Done),
            (true, _) => Err(Failed::Job { unit: unit.to_owned(), result: result.to_owned() }),
        }
    }
}

fn bus_call<'a>(serial: u32, member: &'a str, signature: &'a str) -> Call<'a> {
    Call { serial, destination: BUS, path: BUS_PATH, interface: BUS, member, signature }
}

#[cfg(test)]
mod tests;
