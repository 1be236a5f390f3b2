use super::*;
use proptest::prelude::*;

/// Literal fields: added to the table, not added, never to be added.
const ADDED: u8 = 0x40;
const NOT_ADDED: u8 = 0x00;
const NEVER_ADDED: u8 = 0x10;

const SENT: &[u8] = b"run%2Fcopepod%2Fcopepod.sock";
const WANTED: &[u8] = b"run-2Fcopepod-2Fcopepod.sock";

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, stream]);
    frame.extend(payload);
    frame
}

/// An integer with a prefix of `bits` bits; `first` has the bits above it.
fn integer(first: u8, bits: u32, value: usize) -> Vec<u8> {
    let most = (1 << bits) - 1;
    if value < most {
        return vec![first | u8::try_from(value).unwrap()];
    }
    let mut bytes = vec![first | u8::try_from(most).unwrap()];
    let mut rest = value - most;
    while rest >= 0x80 {
        bytes.push(u8::try_from(rest % 0x80).unwrap() | 0x80);
        rest /= 0x80;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

/// A string that is not Huffman-coded.
fn string(text: &[u8]) -> Vec<u8> {
    [integer(0, 7, text.len()), text.to_vec()].concat()
}

/// A field whose name and value are literals: the C core sends all its fields so.
fn literal(kind: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    [vec![kind], string(name), string(value)].concat()
}

/// A field with a name of a table.
fn named(kind: u8, index: usize, value: &[u8]) -> Vec<u8> {
    let bits = if kind == ADDED { 6 } else { 4 };
    [integer(kind, bits, index), string(value)].concat()
}

/// The first header block of the C core, for Version.
fn first_block(authority: &[u8]) -> Vec<u8> {
    [
        vec![0x86, 0x83],
        literal(ADDED, b":path", b"/runtime.v1.RuntimeService/Version"),
        literal(ADDED, b":authority", authority),
        literal(ADDED, b"te", b"trailers"),
        literal(ADDED, b"content-type", b"application/grpc"),
        literal(ADDED, b"user-agent", b"grpc-python/1.85.1 grpc-c/54.0.0 (linux; chttp2)"),
        literal(NOT_ADDED, b"x-path", b"/a%2Fb"),
    ]
    .concat()
}

/// What a client sends, up to the frames of its calls.
fn opening() -> Vec<u8> {
    [PREFACE.to_vec(), frame(4, 0, 0, &[0, 4, 0, 0x2f, 0x25, 0x2f]), frame(8, 0, 0, b"\0/%\0")].concat()
}

/// A connection with these frames.
fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
    [opening(), frames.concat()].concat()
}

/// What comes out if the connection is read in these pieces; the last of them has all the rest.
fn scanned(bytes: &[u8], cuts: impl IntoIterator<Item = usize>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut scanner = Scanner::new();
    let mut rest = bytes.as_mut_slice();
    for cut in cuts {
        let (piece, behind) = rest.split_at_mut(cut.min(rest.len()));
        scanner.scan(piece);
        rest = behind;
    }
    scanner.scan(rest);
    bytes
}

/// Checks what comes out for reads of every kind: all at once, in two pieces at every place, byte by byte.
#[track_caller]
fn becomes(sent: &[u8], wanted: &[u8]) {
    for cut in 0..=sent.len() {
        let out = scanned(sent, [cut]);
        assert!(out == wanted, "cut at {cut}: {}", out.escape_ascii());
    }
    assert_eq!(scanned(sent, std::iter::repeat_n(1, sent.len())), wanted);
}

#[test]
fn calls_of_the_c_core() {
    let calls = |authority: &[u8]| {
        // The second call refers to the first one's fields: 62 is the index of the newest one.
        let again = [0x86, 0x83, 0xc2, 0xc1, 0xc0, 0xbf, 0xbe];
        connection(&[
            frame(HEADERS, END_HEADERS, 1, &first_block(authority)),
            frame(0, 1, 1, b"\0\0\0\0\x06\x0a\x04/%/%"),
            frame(HEADERS, END_HEADERS, 3, &again),
            frame(0, 1, 3, b"\0\0\0\0\0"),
            frame(HEADERS, END_HEADERS, 5, &literal(NOT_ADDED, b":authority", authority)),
        ])
    };
    becomes(&calls(SENT), &calls(WANTED));
    becomes(&calls(b"localhost:1"), &calls(b"localhost:1"));
    becomes(&calls(b""), &calls(b""));
    // A length of more than one byte, and the encoding of other clients, which leave the slashes.
    let long = |slash: &str| format!("run{slash}{}", "x".repeat(200)).into_bytes();
    becomes(&calls(&long("/")), &calls(&long("-")));
}

#[test]
fn every_form_of_a_literal() {
    for kind in [ADDED, NOT_ADDED, NEVER_ADDED] {
        let call = |authority: &[u8]| {
            let block = [
                // A new size of the table, which may be an integer of several bytes.
                integer(0x20, 5, 4096),
                named(kind, 1, authority),
                // `:path`, a name of the dynamic table, and a cookie: their values stay.
                named(kind, 4, b"/a%b"),
                named(kind, 62, b"/a%b"),
                literal(kind, b"cookie", b"/a%b"),
                // Names of the same length, and ones that begin alike.
                literal(kind, b":authoritx", b"/a%b"),
                literal(kind, b":authorit", b"/a%b"),
                literal(kind, b":authority%", b"/a%b"),
                literal(kind, b"", b"/a%b"),
                literal(kind, b":authority", authority),
            ];
            connection(&[frame(HEADERS, END_HEADERS, 1, &block.concat())])
        };
        becomes(&call(SENT), &call(WANTED));
    }
}

#[test]
fn huffman_coded_strings_stay() {
    let huffman = |text: &[u8]| [integer(0x80, 7, text.len()), text.to_vec()].concat();
    let block = [
        [vec![0x41], huffman(b"/%/")].concat(),
        [vec![0x40], huffman(b":authority"), string(b"/%/")].concat(),
        [vec![0x40], string(b":authority"), huffman(b"/%/")].concat(),
    ]
    .concat();
    let sent = connection(&[frame(HEADERS, END_HEADERS, 1, &block)]);
    becomes(&sent, &sent);
}

#[test]
fn padding_priority_and_continuations() {
    let calls = |authority: &[u8]| {
        let block = first_block(authority);
        let padded = |flags: u8, stream: u8, before: &[u8]| {
            let payload = [&[6_u8][..], before, block.as_slice(), b"/%/%/%"].concat();
            frame(HEADERS, END_HEADERS | PADDED | flags, stream, &payload)
        };
        let mut frames = vec![
            padded(0, 1, b""),
            padded(PRIORITY, 3, b"/%/%/"),
            frame(HEADERS, END_HEADERS | PRIORITY, 5, &[&b"/%/%/"[..], block.as_slice()].concat()),
            // Nothing but padding, before the block goes on.
            frame(HEADERS, PADDED, 7, b"\x02/%"),
        ];
        // The block in pieces of seven bytes, which cut through its strings.
        let pieces: Vec<&[u8]> = block.chunks(7).collect();
        let (last, others) = pieces.split_last().unwrap();
        frames.extend(others.iter().map(|piece| frame(CONTINUATION, 0, 7, piece)));
        frames.push(frame(CONTINUATION, END_HEADERS, 7, last));
        frames.push(frame(HEADERS, END_HEADERS, 9, &block));
        connection(&frames)
    };
    becomes(&calls(SENT), &calls(WANTED));
}

/// Connections that h2 ends: from the fault on, nothing is changed.
#[test]
fn what_is_not_understood_stays() {
    let good = frame(HEADERS, END_HEADERS, 9, &first_block(SENT));
    let faults: [(&str, Vec<u8>); 8] = [
        ("a block that ends within a field", frame(HEADERS, END_HEADERS, 1, &[0x41, 4, b'x'])),
        ("a CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, &[0x86])),
        ("another frame within a block", [frame(HEADERS, 0, 1, &[0x86]), frame(6, 0, 0, &[0; 8])].concat()),
        ("HEADERS within a block", [frame(HEADERS, 0, 1, &[0x86]), frame(HEADERS, 4, 1, &[0x86])].concat()),
        ("more padding than payload", frame(HEADERS, END_HEADERS | PADDED, 1, b"\x05abc")),
        ("no length of the padding", frame(HEADERS, END_HEADERS | PADDED, 1, b"")),
        ("no priority", frame(HEADERS, END_HEADERS | PRIORITY, 1, b"abc")),
        ("an integer without end", frame(HEADERS, END_HEADERS, 1, &[0xff, 0x80, 0x80, 0x80, 0x80, 0])),
    ];
    for (name, fault) in faults {
        let sent = connection(&[fault, good.clone()]);
        assert_eq!(scanned(&sent, []), sent, "{name}");
        becomes(&sent, &sent);
    }
    let other = [b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n".to_vec(), good].concat();
    becomes(&other, &other);
    becomes(b"GET /a%2Fb HTTP/1.1\r\n\r\n", b"GET /a%2Fb HTTP/1.1\r\n\r\n");
}

/// Strings with many of the bytes that could be replaced.
fn text() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(b"/%:a\x00\xff".as_slice()), 0..200)
}

/// A field as it is sent and as it must come out.
fn field() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let kind = prop::sample::select(vec![ADDED, NOT_ADDED, NEVER_ADDED]);
    let alike = |bytes: Vec<u8>| (bytes.clone(), bytes);
    prop_oneof![
        (0..300_usize).prop_map(move |index| alike(integer(0x80, 7, index))),
        (0..9000_usize).prop_map(move |size| alike(integer(0x20, 5, size))),
        (kind.clone(), 2..300_usize, text())
            .prop_map(move |(kind, index, value)| alike(named(kind, index, &value))),
        (kind.clone(), text(), text())
            .prop_map(move |(kind, name, value)| alike(literal(kind, &name, &value))),
        (kind, any::<bool>(), text()).prop_map(|(kind, literal_name, value)| {
            let repaired: Vec<u8> =
                value.iter().map(|&byte| if matches!(byte, b'/' | b'%') { b'-' } else { byte }).collect();
            let field = |value: &[u8]| {
                if literal_name { literal(kind, b":authority", value) } else { named(kind, 1, value) }
            };
            (field(&value), field(&repaired))
        }),
    ]
}

/// Frames, of one block or of something else, as they are sent and as they must come out.
fn frames() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let other = (0..12_u8, any::<u8>(), text())
        .prop_filter("no header block", |(kind, ..)| !matches!(*kind, HEADERS | CONTINUATION))
        .prop_map(|(kind, flags, payload)| {
            let frame = frame(kind, flags, 1, &payload);
            (frame.clone(), frame)
        });
    let block = (prop::collection::vec(field(), 0..6), 1..100_usize, any::<Option<u8>>(), any::<bool>())
        .prop_map(|(fields, size, padding, priority)| {
            let blocks: (Vec<_>, Vec<_>) = fields.into_iter().unzip();
            let framed = |block: Vec<u8>| {
                let mut pieces = block.chunks(size);
                let first = pieces.next().unwrap_or_default();
                let mut flags = 0;
                let mut payload = Vec::new();
                if let Some(padding) = padding {
                    flags |= PADDED;
                    payload.push(padding);
                }
                if priority {
                    flags |= PRIORITY;
                    payload.extend(b"%/%/%");
                }
                payload.extend(first);
                payload.extend(std::iter::repeat_n(b'%', usize::from(padding.unwrap_or(0))));
                let mut frames = frame(HEADERS, flags, 1, &payload);
                frames.extend(pieces.flat_map(|piece| frame(CONTINUATION, 0, 1, piece)));
                frames.extend(frame(CONTINUATION, END_HEADERS, 1, &[]));
                frames
            };
            (framed(blocks.0.concat()), framed(blocks.1.concat()))
        });
    prop_oneof![other, block]
}

proptest! {
    /// On a valid connection, read in any pieces, exactly the values of `:authority` change.
    #[test]
    fn only_values_of_authority_change(
        frames in prop::collection::vec(frames(), 0..8),
        cuts in prop::collection::vec(0..60_usize, 0..40),
    ) {
        let (sent, wanted): (Vec<_>, Vec<_>) = frames.into_iter().unzip();
        prop_assert_eq!(scanned(&connection(&sent), cuts), connection(&wanted));
    }

    /// No bytes make it panic, and it never does more than replace the two characters.
    #[test]
    fn any_bytes(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0..10_u8, Just(b'/')], 0..400),
        cuts in prop::collection::vec(0..60_usize, 0..20),
        damaged in any::<prop::sample::Index>(),
        valid in any::<bool>(),
    ) {
        let mut sent = connection(&[if valid {
            frame(HEADERS, END_HEADERS, 1, &first_block(SENT))
        } else {
            Vec::new()
        }]);
        let at = damaged.index(sent.len());
        drop(sent.splice(at..at, bytes));
        let out = scanned(&sent, cuts.iter().copied());
        prop_assert_eq!(out.len(), sent.len());
        for (from, to) in sent.iter().zip(&out) {
            prop_assert!(from == to || (matches!(*from, b'/' | b'%') && *to == b'-'));
        }
        prop_assert_eq!(scanned(&sent, []), out);
    }
}
