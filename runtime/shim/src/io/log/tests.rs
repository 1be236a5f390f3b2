use super::*;
use proptest::prelude::*;

const STAMP: &str = "2023-11-14T22:13:20.000000000Z";

fn stamp() -> Stamp {
    Stamp::new(1_700_000_000_000_000_000)
}

/// The log file for input in `chunks`, and the sizes of the writes.
fn log(chunks: &[&[u8]], terminal: bool) -> (Vec<u8>, Vec<usize>) {
    let (mut file, mut sizes) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; MIN_BUFFER];
    let mut lines = Lines::new(Stream::Stdout, terminal);
    let mut batch = Batch::new(&mut buffer, |bytes| {
        file.extend_from_slice(bytes);
        sizes.push(bytes.len());
    });
    for chunk in chunks {
        lines.push(chunk, &stamp(), &mut batch);
    }
    lines.finish(&stamp(), &mut batch);
    batch.flush();
    assert_eq!(lines.carry.capacity(), 0);
    (file, sizes)
}

/// Reads the log as a reader would: P adds no newline, F does.
fn reassemble(file: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        let (line, newline) = line.split_at(line.len() - 1);
        assert_eq!(newline, b"\n");
        let (header, content) = line.split_at(HEADER);
        assert!(content.len() <= MAX_CONTENT);
        assert_eq!(&header[..38], format!("{STAMP} stdout ").as_bytes());
        text.extend_from_slice(content);
        match &header[38..] {
            b"F " => text.push(b'\n'),
            b"P " => {}
            other => panic!("{other:?}"),
        }
    }
    text
}

#[test]
fn complete_and_incomplete_lines() {
    let (file, sizes) = log(&[b"a\n\nbc", b"d\ne"], false);
    let want = ["F a", "F ", "F bcd", "P e"].map(|rest| format!("{STAMP} stdout {rest}\n")).concat();
    assert_eq!(String::from_utf8(file).unwrap(), want);
    assert_eq!(sizes.len(), 1);
}

#[test]
fn cut_at_16_kib_and_not_before() {
    for (len, tags) in
        [(MAX_CONTENT, "F"), (MAX_CONTENT + 1, "PF"), (2 * MAX_CONTENT, "PF"), (2 * MAX_CONTENT + 1, "PPF")]
    {
        let mut text = vec![b'x'; len];
        text.push(b'\n');
        let (file, _) = log(&[&text], false);
        let got: String =
            file.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| char::from(l[38])).collect();
        assert_eq!(got, tags, "{len}");
        assert_eq!(reassemble(&file), text);
    }
}

#[test]
fn carriage_returns_added_by_terminals_are_removed() {
    let (file, _) = log(&[b"a\r", b"\nb\r\rc\r\n\r\n"], true);
    assert_eq!(reassemble(&file), b"a\nb\r\rc\n\n");
    assert_eq!(reassemble(&log(&[b"a\r\n"], false).0), b"a\r\n");
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => proptest::collection::vec(any::<u8>(), 0..50),
        4 => Just(b"\n".to_vec()),
        2 => (0usize..5).prop_map(|more| vec![b'x'; MAX_CONTENT - 2 + more]),
        1 => Just(b"\r\n".to_vec()),
    ];
    proptest::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_chunking_gives_the_same_file(text in text(), cuts in proptest::collection::vec(1usize..20_000, 1..30), terminal: bool) {
        let mut chunks = Vec::new();
        let (mut rest, mut cuts) = (text.as_slice(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            chunks.push(now);
            rest = later;
        }
        let (file, sizes) = log(&chunks, terminal);
        prop_assert_eq!(&file, &log(&[&text], terminal).0);
        prop_assert!(sizes.iter().all(|size| *size <= MIN_BUFFER));
        if !terminal {
            prop_assert_eq!(reassemble(&file), text);
        }
    }
}
