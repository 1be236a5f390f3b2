//! Layers that can also be read in parts: other runtimes load them lazily, and here they are layers like others.

use super::archive::{Dialect, archive, entry};
use super::image::{Layer, check, gzip};
use super::model::{Item, all_at, apply, file, folder, symlink};

fn content() -> Vec<Item> {
    all_at(
        1_600_000_000,
        vec![
            folder("etc/"),
            file("etc/name", &"name ".repeat(2000)),
            folder("usr/"),
            folder("usr/bin/").mode(0o711).owner(5, 6),
            file("usr/bin/tool", "tool").mode(0o755),
            symlink("bin", "usr/bin"),
        ],
    )
}

/// An empty gzip member with an extra field.
fn member_with_extra(extra: &[u8]) -> Vec<u8> {
    let length = u16::try_from(extra.len()).unwrap().to_le_bytes();
    let head = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255];
    // An empty stored block, the checksum and the length of nothing.
    let body = [1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
    [&head[..], &length, extra, &body].concat()
}

/// eStargz (stargz-snapshotter `estargz/build.go`, `gzip.go`): a landmark, each entry in a gzip member of its own, then a
/// table of contents as an entry, and a footer: an empty member whose extra field has the table's offset.
#[tokio::test]
async fn estargz() {
    let landmark = file(".no.prefetch.landmark", "\u{f}");
    let items: Vec<Item> = [landmark].into_iter().chain(content()).collect();
    let mut table = vec![file("stargz.index.json", r#"{"version":1,"entries":[]}"#).mode(0o444)];
    let (mut plain, mut blob) = (Vec::new(), Vec::new());
    for item in &items {
        let bytes = entry(Dialect::Go, item);
        blob.extend(gzip(&bytes));
        plain.extend(bytes);
    }
    let offset = blob.len();
    let bytes = archive(Dialect::Go, &table);
    blob.extend(gzip(&bytes));
    plain.extend(bytes);
    // Subfield "SG", 22 bytes.
    let footer = [&b"SG\x16\0"[..], format!("{offset:016x}STARGZ").as_bytes()].concat();
    blob.extend(member_with_extra(&footer));
    assert_eq!(
        blob.len() - blob.iter().rposition(|byte| *byte == b'Z').unwrap(),
        14,
        "the footer ends the blob"
    );
    let mut all = items.clone();
    all.append(&mut table);
    check("eStargz", &[Layer { plain, blob, suffix: "+gzip" }], &apply(&[&all])).await;
}

/// The same with zstd (stargz-snapshotter `estargz/zstdchunked`): a frame for each entry, the table and the footer in
/// skippable frames.
#[tokio::test]
async fn estargz_of_zstd() {
    let items = content();
    let (mut plain, mut blob) = (Vec::new(), Vec::new());
    for item in &items {
        let bytes = entry(Dialect::Go, item);
        blob.extend(zstd::bulk::compress(&bytes, 3).unwrap());
        plain.extend(bytes);
    }
    let end = vec![0; 1024];
    blob.extend(zstd::bulk::compress(&end, 3).unwrap());
    plain.extend(end);
    for skipped in [zstd::bulk::compress(b"{\"version\":1}", 3).unwrap(), vec![0x47; 64]] {
        blob.extend([0x50, 0x2a, 0x4d, 0x18]);
        blob.extend(u32::try_from(skipped.len()).unwrap().to_le_bytes());
        blob.extend(skipped);
    }
    check("eStargz of zstd", &[Layer { plain, blob, suffix: "+zstd" }], &apply(&[&items])).await;
}

/// nydus-zran (nydus `nydusify convert --oci-ref`, nydus-snapshotter `pkg/converter`): the layers of the original image,
/// and one more with nydus' metadata, which other runtimes unpack as any layer.
#[tokio::test]
async fn nydus_zran() {
    let base = content();
    let metadata = vec![folder("image/"), file("image/image.boot", &"\u{0}RAFS".repeat(900)).mode(0o444)];
    let layers = [&base, &metadata].map(|items| Layer::gzip(archive(Dialect::Go, items)));
    check("nydus-zran", &layers, &apply(&[&base, &metadata])).await;
}

/// pzstd, and zstd of several threads: a skippable frame with the compressed size before each frame.
#[tokio::test]
async fn pzstd() {
    let items = content();
    let plain = archive(Dialect::Go, &items);
    let mut blob = Vec::new();
    for part in plain.chunks(2000) {
        let frame = zstd::bulk::compress(part, 3).unwrap();
        blob.extend([0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0]);
        blob.extend(u32::try_from(frame.len()).unwrap().to_le_bytes());
        blob.extend(frame);
    }
    check("pzstd", &[Layer { plain, blob, suffix: "+zstd" }], &apply(&[&items])).await;
}
