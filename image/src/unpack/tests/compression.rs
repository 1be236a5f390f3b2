//! Streams of several parts, and what may be before and after them.

use super::*;

/// A zstd frame that decoders skip.
fn skippable(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_le_bytes();
    [&[0x50 | kind, 0x2a, 0x4d, 0x18][..], &length, content].concat()
}

#[test]
fn several_parts_are_one_archive() {
    let plain = Archive::default().file("f", &"content ".repeat(1000)).file("g", "last").end();
    let (front, back) = plain.split_at(3000);
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).unwrap();
    let empty = gzip(b"");
    let streams: [(&str, Vec<u8>); 8] = [
        ("gzip members", [gzip(front), gzip(back)].concat()),
        ("an empty member first", [&empty, &empty, &gzip(&plain)[..]].concat()),
        ("an empty member between and at the end", [&gzip(front), &empty, &gzip(back), &empty[..]].concat()),
        ("gzip and zeros", [&gzip(&plain)[..], &[0; 1500]].concat()),
        ("gzip and other bytes", [&gzip(&plain)[..], b"\x1f"].concat()),
        ("zstd frames", [zstd(front), zstd(back)].concat()),
        (
            "skippable frames",
            [skippable(0, b"\x02\0\0\0"), zstd(front), skippable(15, b""), zstd(back)].concat(),
        ),
        ("skippable frame at the end", [zstd(&plain), skippable(14, &[7; 100])].concat()),
    ];
    for (name, stream) in streams {
        for size in [1, 7, 1000] {
            let target = target();
            let result = run_in_chunks(size, &stream, &expected(&stream, &plain), &target.folder);
            assert!(result.is_ok(), "{name} in chunks of {size}: {result:?}");
            assert_eq!(std::fs::read_to_string(target.path("g")).unwrap(), "last", "{name}");
        }
    }
}

#[test]
fn a_damaged_later_member_is_refused() {
    let plain = Archive::default().file("f", &"content ".repeat(1000)).end();
    let (front, back) = plain.split_at(3000);
    let second = gzip(back);
    let mut flipped = second.clone();
    let crc = flipped.len() - 6;
    flipped[crc] ^= 1;
    for end in [&flipped[..], &second[..second.len() - 9], &second[..5]] {
        let stream = [&gzip(front)[..], end].concat();
        let target = target();
        let result = run_with(&stream, &expected(&stream, &plain), &target.folder);
        assert!(matches!(result, Err(Error::Corrupt { .. })), "{result:?}");
    }
}

#[test]
fn a_stream_of_skippable_frames_is_an_empty_layer() {
    let stream = skippable(3, b"nothing");
    let target = target();
    let stats = run_with(&stream, &expected(&stream, b""), &target.folder).unwrap();
    assert_eq!(stats.inodes, 0);
}

#[test]
fn gzip_headers_may_have_every_field() {
    let plain = Archive::default().file("f", "content").end();
    let header = flate2::GzBuilder::new().extra([7; 300]).filename("layer.tar").comment("x".repeat(2000));
    let mut encoder = header.write(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain).unwrap();
    let mut stream = encoder.finish().unwrap();
    let end = 10 + 2 + 300 + "layer.tar".len() + 1 + 2000 + 1;
    // A checksum of the header, which flate2 does not write, and a reserved flag.
    stream.splice(end..end, [1, 2]);
    stream[3] |= 0x42;
    for size in [1, 7, 1000] {
        let target = target();
        let result = run_in_chunks(size, &stream, &expected(&stream, &plain), &target.folder);
        assert!(result.is_ok(), "chunks of {size}: {result:?}");
        assert_eq!(std::fs::read_to_string(target.path("f")).unwrap(), "content");
    }
    for cut in [3, 9, 11, 200, 315, 1000, end + 1, end + 5] {
        let target = target();
        let result = run_with(&stream[..cut], &expected(&stream[..cut], &plain), &target.folder);
        assert!(matches!(result, Err(Error::Corrupt { .. })), "cut at {cut}: {result:?}");
    }
    stream[2] = 7;
    let target = target();
    let result = run_with(&stream, &expected(&stream, &plain), &target.folder);
    assert!(matches!(result, Err(Error::Corrupt { .. })), "{result:?}");
}
