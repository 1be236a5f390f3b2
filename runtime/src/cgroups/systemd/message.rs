//! Messages of D-Bus as bytes (dbus.freedesktop.org, "D-Bus Specification", Message Protocol): those that a client of
//! systemd's manager sends, and what it has to understand of the others. Little-endian, as every host of ours is.

/// Longest message that is accepted. Those that are waited for have some hundred bytes; on systemd's own socket it also
/// reports changes of other units, with some thousand.
pub(super) const MAX: usize = 1 << 20;
/// Bytes before the header's fields.
const FIXED: usize = 16;

/// Flag of a call: if the destination is not on the bus, the bus says so at once, and does not wait for it to be started.
const NO_AUTO_START: u8 = 2;

/// What is not a message that this client understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bus sent what is not a D-Bus message: {0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// Appends values in D-Bus's format. Alignment counts from the start of the buffer.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        while !self.0.len().is_multiple_of(to) {
            self.0.push(0);
        }
    }

    /// `y`.
    fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    /// `u`.
    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    /// `t`.
    pub(super) fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_le_bytes());
    }

    /// `b`.
    pub(super) fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    /// `s` and `o`. No text of ours is near 4 GiB or has a NUL byte.
    pub(super) fn text(&mut self, value: &str) {
        self.u32(length(value.len()));
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    /// `g`, and the signature of a variant.
    pub(super) fn signature(&mut self, value: &str) {
        self.byte(u8::try_from(value.len()).unwrap_or_default());
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    /// An array whose elements are aligned to `alignment` bytes, which `elements` appends.
    pub(super) fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let place = self.0.len() - 4;
        // The padding before the first element does not count.
        self.align(alignment);
        let start = self.0.len();
        elements(self);
        let bytes = length(self.0.len() - start).to_le_bytes();
        if let Some(place) = self.0.get_mut(place..place + 4) {
            place.copy_from_slice(&bytes);
        }
    }

    /// `(sv)`: a property, whose value has this signature and is appended by `value`.
    pub(super) fn property(&mut self, name: &str, signature: &str, value: impl FnOnce(&mut Self)) {
        self.align(8);
        self.text(name);
        self.signature(signature);
        value(self);
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A method call.
pub(super) struct Call<'a> {
    /// Not 0, and another one for each call of a connection.
    pub(super) serial: u32,
    /// The service.
    pub(super) destination: &'a str,
    /// The object.
    pub(super) path: &'a str,
    /// The interface.
    pub(super) interface: &'a str,
    /// The method.
    pub(super) member: &'a str,
    /// Signature of the arguments.
    pub(super) signature: &'a str,
}

impl Call<'_> {
    /// The call's bytes; `arguments` appends the arguments.
    pub(super) fn bytes(&self, arguments: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut body = Writer::default();
        arguments(&mut body);
        let mut message = Writer::default();
        // A call of version 1.
        message.0.extend([b'l', 1, NO_AUTO_START, 1]);
        message.u32(length(body.0.len()));
        message.u32(self.serial);
        let texts = [
            (1, "o", self.path),
            (2, "s", self.interface),
            (3, "s", self.member),
            (6, "s", self.destination),
        ];
        message.array(8, |fields| {
            for (code, signature, text) in texts {
                fields.align(8);
                fields.byte(code);
                fields.signature(signature);
                fields.text(text);
            }
            if !self.signature.is_empty() {
                fields.align(8);
                fields.byte(8);
                fields.signature("g");
                fields.signature(self.signature);
            }
        });
        message.align(8);
        message.0.extend(body.0);
        message.0
    }
}

/// Reads values; alignment counts from the start of `bytes`.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(count).ok_or(Malformed("a length"))?;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed("it is too short"))?;
        self.at = end;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<(), Malformed> {
        self.take(self.at.next_multiple_of(to) - self.at).map(drop)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.take(1)?.first().copied().ok_or(Malformed("it is too short"))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.align(4)?;
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed("it is too short"))?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn size(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.u32()?).map_err(|_| Malformed("a length"))
    }

    /// `s` and `o`.
    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        let length = self.size()?;
        self.text_of(length)
    }

    fn signature(&mut self) -> Result<&'a str, Malformed> {
        let length = self.byte()?;
        self.text_of(length.into())
    }

    fn text_of(&mut self, length: usize) -> Result<&'a str, Malformed> {
        let text = self.take(length)?;
        self.take(1)?;
        std::str::from_utf8(text).map_err(|_| Malformed("a text is not UTF-8"))
    }
}

/// What kind of message it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The result of a call.
    Reply,
    /// The error of a call.
    Error,
    /// A signal.
    Signal,
    /// A call to us, or a kind that is not known.
    Other,
}

/// A message that was received.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) kind: Kind,
    /// The call that is answered; 0 for none.
    pub(super) reply_to: u32,
    /// Name of a signal; empty for none.
    pub(super) member: &'a str,
    /// Name of an error; empty for none.
    pub(super) error: &'a str,
    /// Name of the connection that sent it, which the bus fills in; empty on systemd's own socket.
    pub(super) sender: &'a str,
    /// Signature of the body.
    pub(super) signature: &'a str,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The first message in `bytes`, and its length. `None` if it is not complete yet.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let Some(fixed) = bytes.get(..FIXED) else { return Ok(None) };
        let mut reader = Reader { bytes: fixed, at: 0 };
        let (endian, kind) = (reader.byte()?, reader.byte()?);
        if endian != b'l' {
            return Err(Malformed("it is not little-endian"));
        }
        reader.take(2)?;
        let (body, _serial, fields) = (reader.size()?, reader.u32()?, reader.size()?);
        if body > MAX || fields > MAX {
            return Err(Malformed("it is longer than a mebibyte"));
        }
        let head = (FIXED + fields).next_multiple_of(8);
        let Some(whole) = bytes.get(..head + body) else { return Ok(None) };
        let kind = match kind {
            2 => Kind::Reply,
            3 => Kind::Error,
            4 => Kind::Signal,
            _ => Kind::Other,
        };
        let body = whole.get(head..).unwrap_or_default();
        let mut message = Self { kind, reply_to: 0, member: "", error: "", sender: "", signature: "", body };
        let fields = whole.get(..FIXED + fields).unwrap_or_default();
        message.fields(&mut Reader { bytes: fields, at: FIXED })?;
        Ok(Some((message, whole.len())))
    }

    fn fields(&mut self, reader: &mut Reader<'a>) -> Result<(), Malformed> {
        while reader.at < reader.bytes.len() {
            reader.align(8)?;
            let (code, signature) = (reader.byte()?, reader.signature()?);
            match (code, signature) {
                (3, "s") => self.member = reader.text()?,
                (4, "s") => self.error = reader.text()?,
                (5, "u") => self.reply_to = reader.u32()?,
                (7, "s") => self.sender = reader.text()?,
                (8, "g") => self.signature = reader.signature()?,
                (_, "s" | "o") => drop(reader.text()?),
                (_, "g") => drop(reader.signature()?),
                (_, "u") => drop(reader.u32()?),
                _ => return Err(Malformed("a field of the header has an unknown type")),
            }
        }
        Ok(())
    }

    /// Reads the arguments.
    pub(super) fn arguments(&self) -> Reader<'a> {
        Reader { bytes: self.body, at: 0 }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A message as another program sends it. `fields` appends fields of its header, by [`field`] and [`number`].
    pub(in super::super) fn message(
        kind: u8,
        signature: &str,
        fields: impl FnOnce(&mut Writer),
        body: impl FnOnce(&mut Writer),
    ) -> Vec<u8> {
        let (mut message, mut arguments) = (Writer::default(), Writer::default());
        body(&mut arguments);
        message.0.extend([b'l', kind, 1, 1]);
        message.u32(length(arguments.0.len()));
        message.u32(9);
        message.array(8, |all| {
            fields(all);
            all.align(8);
            all.byte(8);
            all.signature("g");
            all.signature(signature);
        });
        message.align(8);
        message.0.extend(arguments.0);
        message.0
    }

    /// A field of a header that is a text.
    pub(in super::super) fn field(writer: &mut Writer, code: u8, text: &str) {
        writer.align(8);
        writer.byte(code);
        writer.signature("s");
        writer.text(text);
    }

    /// A field of a header that is a number.
    pub(in super::super) fn number(writer: &mut Writer, code: u8, number: u32) {
        writer.align(8);
        writer.byte(code);
        writer.signature("u");
        writer.u32(number);
    }

    const CALL: Call<'static> = Call {
        serial: 7,
        destination: "a.b",
        path: "/a",
        interface: "a.b.C",
        member: "Do",
        signature: "sau",
    };

    fn call() -> Vec<u8> {
        CALL.bytes(|body| {
            body.text("xyz");
            body.array(4, |pids| {
                pids.u32(1);
                pids.u32(2);
            });
        })
    }

    #[test]
    fn a_call_has_the_bytes_of_the_specification() {
        let bytes = call();
        // Endianness, method call, flags, version; 20 bytes of arguments; the serial.
        assert_eq!(bytes[..12], [b'l', 1, NO_AUTO_START, 1, 20, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[16..28], [1, 1, b'o', 0, 2, 0, 0, 0, b'/', b'a', 0, 0]);
        let body = &bytes[bytes.len() - 20..];
        assert_eq!(body, [3, 0, 0, 0, b'x', b'y', b'z', 0, 8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
        assert!((bytes.len() - 20).is_multiple_of(8));
    }

    #[test]
    fn properties_are_aligned_to_eight_bytes() {
        let mut writer = Writer::default();
        writer.array(8, |all| {
            all.property("A", "b", |value| value.bool(true));
            all.property("Max", "t", |value| value.u64(u64::MAX));
        });
        let mut expected = vec![40, 0, 0, 0, 0, 0, 0, 0];
        expected.extend([1, 0, 0, 0, b'A', 0, 1, b'b', 0, 0, 0, 0, 1, 0, 0, 0]);
        expected.extend([3, 0, 0, 0, b'M', b'a', b'x', 0, 1, b't', 0, 0, 0, 0, 0, 0]);
        expected.extend([0xff; 8]);
        assert_eq!(writer.0, expected);
    }

    #[test]
    fn a_message_is_read_once_it_is_complete() {
        let bytes = [call(), vec![0xff; 3]].concat();
        let length = bytes.len() - 3;
        for end in 0..length {
            assert_eq!(Message::parse(&bytes[..end]), Ok(None), "{end}");
        }
        let (message, read) = Message::parse(&bytes).unwrap().unwrap();
        assert_eq!(
            (read, message.kind, message.member, message.signature),
            (length, Kind::Other, "Do", "sau")
        );
        let mut arguments = message.arguments();
        assert_eq!((arguments.text(), arguments.u32()), (Ok("xyz"), Ok(8)));
        assert_eq!((arguments.u32(), arguments.u32()), (Ok(1), Ok(2)));
        assert!(arguments.u32().is_err());
    }

    /// Whatever comes, it is an error or a message, and never more than there is.
    #[test]
    fn no_bytes_are_trusted() {
        let good = call();
        for place in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[place] = value;
                if let Ok(Some((message, read))) = Message::parse(&bad) {
                    assert!(read <= bad.len());
                    let mut arguments = message.arguments();
                    while arguments.text().is_ok() {}
                }
            }
        }
        let mut endless = good;
        endless[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Message::parse(&endless), Err(Malformed("it is longer than a mebibyte")));
    }
}
