//! Header blocks in HPACK (RFC 7541), read only as far as it takes to find a literal `:authority`.

/// The field's name.
const NAME: &[u8] = b":authority";
/// Its first entry in the static table (RFC 7541, appendix A), which has the name.
const INDEX: usize = 1;
/// Bit of a string's first byte: the string is Huffman-coded.
const HUFFMAN: u8 = 0x80;
/// Bits of an integer that each byte after the first one has, and the bit that says that another follows.
const BITS: u32 = 7;
const MORE: u8 = 0x80;
/// An integer has at most four bytes after the first one, as in h2, so it always fits.
const LAST_SHIFT: u32 = 3 * BITS;

/// A reader of the header blocks of one direction of a connection. Blocks may be given in any pieces.
#[derive(Debug)]
pub(super) struct Fields(At);

/// What the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// The first byte of a field.
    Field,
    /// A later byte of an integer.
    Integer { of: Integer, value: usize, shift: u32 },
    /// The first byte of a string's length.
    Length(Text),
    /// A byte of a string, of which this many are left (never 0).
    Text(Text, usize),
}

/// What an integer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Integer {
    /// The index of a whole field, or a size of the dynamic table: its field ends with it.
    Whole,
    /// The index of a literal field's name; 0 if the name is a literal too.
    Name,
    /// The length of a string.
    Length { text: Text, huffman: bool },
}

/// A string of a literal field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    /// The name; whether it has the length of [`NAME`] and has been equal to it so far.
    Name { equal: bool },
    /// The value; whether it is that of `:authority`, not Huffman-coded.
    Value { authority: bool },
}

impl Fields {
    /// At the start of a connection.
    pub(super) fn new() -> Self {
        Self(At::Field)
    }

    /// Whether what was read ends with the end of a field, as a header block does.
    pub(super) fn is_complete(&self) -> bool {
        self.0 == At::Field
    }

    /// Reads the next bytes and repairs those that belong to the value of `:authority`. `None` if they are not HPACK.
    pub(super) fn read(&mut self, mut block: &mut [u8]) -> Option<()> {
        while let Some(first) = block.first().copied() {
            let used = match self.0 {
                At::Text(text, left) => self.text(text, left, block),
                At::Field => {
                    self.0 = field(first);
                    1
                }
                At::Length(text) => {
                    let huffman = first & HUFFMAN != 0;
                    self.0 = begin(Integer::Length { text, huffman }, first, BITS);
                    1
                }
                At::Integer { of, value, shift } => {
                    let value = value + (usize::from(first & !MORE) << shift);
                    self.0 = match first & MORE {
                        0 => end(of, value),
                        _ if shift == LAST_SHIFT => return None,
                        _ => At::Integer { of, value, shift: shift + BITS },
                    };
                    1
                }
            };
            block = &mut block[used..];
        }
        Some(())
    }

    /// Reads bytes of a string, of which `left` are to come; returns how many they are.
    fn text(&mut self, text: Text, left: usize, block: &mut [u8]) -> usize {
        let used = left.min(block.len());
        let here = &mut block[..used];
        let text = match text {
            Text::Name { equal: true } => Text::Name { equal: NAME[NAME.len() - left..].starts_with(here) },
            Text::Value { authority: true } => {
                here.iter_mut().for_each(repair);
                text
            }
            Text::Name { equal: false } | Text::Value { authority: false } => text,
        };
        self.0 = rest(text, left - used);
        used
    }
}

/// Replaces the two bytes that a socket's path has and an authority may not have.
fn repair(byte: &mut u8) {
    if matches!(byte, b'%' | b'/') {
        *byte = b'-';
    }
}

/// After the first byte of a field (RFC 7541, section 6).
fn field(first: u8) -> At {
    match first {
        // An indexed field.
        0x80.. => begin(Integer::Whole, first, 7),
        // A literal that is added to the table.
        0x40..=0x7f => begin(Integer::Name, first, 6),
        // A new size of the table.
        0x20..=0x3f => begin(Integer::Whole, first, 5),
        // A literal that is not added, or must never be.
        0x00..=0x1f => begin(Integer::Name, first, 4),
    }
}

/// After the first byte of an integer, which has `bits` bits of it.
fn begin(of: Integer, first: u8, bits: u32) -> At {
    let most = (1_usize << bits) - 1;
    match usize::from(first) & most {
        value if value < most => end(of, value),
        value => At::Integer { of, value, shift: 0 },
    }
}

/// After an integer.
fn end(of: Integer, value: usize) -> At {
    match (of, value) {
        (Integer::Whole, _) => At::Field,
        (Integer::Name, 0) => At::Length(Text::Name { equal: false }),
        (Integer::Name, index) => At::Length(Text::Value { authority: index == INDEX }),
        (Integer::Length { text: Text::Name { .. }, huffman }, length) => {
            rest(Text::Name { equal: !huffman && length == NAME.len() }, length)
        }
        (Integer::Length { text: Text::Value { authority }, huffman }, length) => {
            rest(Text::Value { authority: authority && !huffman }, length)
        }
    }
}

/// In a string of which `left` bytes are to come.
fn rest(text: Text, left: usize) -> At {
    match (text, left) {
        (Text::Name { equal }, 0) => At::Length(Text::Value { authority: equal }),
        (Text::Value { .. }, 0) => At::Field,
        (text, left) => At::Text(text, left),
    }
}
