use super::tar::EntryPath;
use super::*;
use ::tar::{Builder, EntryType, Header};
use proptest::prelude::*;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

mod compression;
mod corrections;
mod dialects;
mod escape;
mod sparse;

/// A tar archive, built entry by entry. The tar crate refuses to write hostile ones.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn raw(mut self, kind: EntryType, name: &[u8], link: &[u8], mode: u32, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(if name.ends_with(b"owned") { 1000 } else { 0 });
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
    fn file(self, name: &str, content: &str) -> Self {
        self.raw(EntryType::Regular, name.as_bytes(), b"", 0o644, content.as_bytes())
    }
    fn dir(self, name: &str) -> Self {
        self.raw(EntryType::Directory, name.as_bytes(), b"", 0o755, b"")
    }
    fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(EntryType::Symlink, name.as_bytes(), target.as_bytes(), 0o777, b"")
    }
    fn link(self, name: &str, target: &str) -> Self {
        self.raw(EntryType::Link, name.as_bytes(), target.as_bytes(), 0o644, b"")
    }
    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length =
                (1..).map(|digits| rest + digits).find(|l| l.to_string().len() + rest == *l).unwrap();
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.raw(EntryType::XHeader, b"pax", b"", 0o644, &text)
    }
    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Where a layer is unpacked.
struct Target {
    outer: tempfile::TempDir,
    folder: PathBuf,
}

/// The layer's folder, in a folder that the layer must not touch.
fn target() -> Target {
    let outer = tempfile::tempdir().unwrap();
    std::fs::write(outer.path().join("victim"), "untouched").unwrap();
    let folder = outer.path().join("layer");
    std::fs::create_dir(&folder).unwrap();
    Target { outer, folder }
}

impl Target {
    /// Asserts that nothing outside the layer's folder has changed.
    fn untouched(&self) {
        assert_eq!(std::fs::read_to_string(self.outer.path().join("victim")).unwrap(), "untouched");
        let victim = std::fs::metadata(self.outer.path().join("victim")).unwrap();
        assert_eq!((victim.nlink(), victim.mode() & 0o7777 & 0o6000), (1, 0));
        let names = std::fs::read_dir(self.outer.path()).unwrap().count();
        assert_eq!(names, 2, "something was created outside the layer's folder");
    }
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

fn expected(compressed: &[u8], plain: &[u8]) -> Expected {
    Expected {
        image: "r.example/app:v1".to_owned(),
        digest: Digest::of(compressed),
        size: compressed.len() as u64,
        diff_id: Digest::of(plain),
        max_bytes: 64 << 20,
        max_entries: 1000,
    }
}

fn run_with(bytes: &[u8], expected: &Expected, folder: &Path) -> Result<LayerStats> {
    run_in_chunks(1000, bytes, expected, folder)
}

/// Unpacks a layer that arrives in chunks of this many bytes.
fn run_in_chunks(size: usize, bytes: &[u8], expected: &Expected, folder: &Path) -> Result<LayerStats> {
    let (sender, receiver) = async_mpsc::channel(4);
    let parts: Vec<Bytes> = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
    let feeder = thread::spawn(move || {
        for part in parts {
            if sender.blocking_send(part).is_err() {
                break;
            }
        }
    });
    let result = unpack(receiver, expected, folder, &());
    feeder.join().unwrap();
    result
}

fn run(plain: &[u8], folder: &Path) -> Result<LayerStats> {
    let compressed = gzip(plain);
    run_with(&compressed, &expected(&compressed, plain), folder)
}

fn unpacked(plain: &[u8]) -> Target {
    let target = target();
    run(plain, &target.folder).unwrap_or_else(|error| panic!("{error}"));
    target
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    Some(value[..length].to_vec())
}

#[test]
fn every_kind_of_entry_is_unpacked() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let plain = Archive::default()
        .raw(EntryType::Directory, b"./", b"", 0o755, b"")
        .raw(EntryType::Directory, b"tmp/", b"", 0o1777, b"")
        .raw(EntryType::Directory, b"shared/", b"", 0o2775, b"")
        .file("shared/in-setgid", "x")
        .raw(EntryType::Regular, b"suid-owned", b"", 0o4755, b"#!")
        .raw(EntryType::Regular, b"anyone-owned", b"", 0o666, b"x")
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("mtime", b"1500000000.25")])
        .file("capable", "x")
        .symlink("link", "/etc/passwd")
        .link("hard", "suid-owned")
        .raw(EntryType::Char, b"null", b"", 0o666, b"")
        .raw(EntryType::Fifo, b"fifo", b"", 0o600, b"")
        .pax(&[("path", long.as_bytes())])
        .file("short", "long content")
        .end();
    let target = target();
    let stats = run(&plain, &target.folder).unwrap();
    let meta = |name: &str| std::fs::symlink_metadata(target.path(name)).unwrap();
    assert_eq!(meta("tmp").mode() & 0o7777, 0o1777);
    assert_eq!(meta("shared").mode() & 0o7777, 0o2775);
    assert_eq!(meta("shared").mtime(), 1_000_000_000, "a folder's time is set after its content");
    assert_eq!((meta("suid-owned").mode() & 0o7777, meta("suid-owned").uid()), (0o4755, 1000));
    assert_eq!(meta("anyone-owned").mode() & 0o7777, 0o666, "without what the umask takes away");
    assert_eq!(meta("suid-owned").ino(), meta("hard").ino());
    assert_eq!(xattr(&target.path("capable"), "security.capability").unwrap(), capability);
    assert_eq!((meta("capable").mtime(), meta("capable").mtime_nsec()), (1_500_000_000, 250_000_000));
    assert_eq!(std::fs::read_link(target.path("link")).unwrap(), Path::new("/etc/passwd"));
    assert!(meta("null").file_type().is_char_device() && meta("null").rdev() == rustix::fs::makedev(1, 3));
    assert_eq!(meta("null").permissions().mode() & 0o7777, 0o666);
    assert!(meta("fifo").file_type().is_fifo());
    assert_eq!(std::fs::read_to_string(target.path(&long)).unwrap(), "long content");
    assert_eq!(stats.implicit, 1);
    target.untouched();
}

/// Headers of entries without content may state a size; the next header follows at once all the same.
#[test]
fn only_files_have_content() {
    for kind in [
        EntryType::Directory,
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
        EntryType::Symlink,
        EntryType::Link,
    ] {
        let mut archive =
            Archive::default().file("target", "x").raw(kind, b"entry", b"target", 0o644, &[0; 512]);
        // Without the content that `raw` has added.
        archive.0.truncate(archive.0.len() - 512);
        let target = target();
        let result = run(&archive.file("after", "y").end(), &target.folder);
        assert!(result.is_ok(), "{kind:?}: {result:?}");
        assert_eq!(std::fs::read_to_string(target.path("after")).unwrap(), "y", "{kind:?}");
        assert!(std::fs::symlink_metadata(target.path("entry")).is_ok(), "{kind:?}");
    }
}

#[test]
fn whiteouts_become_overlayfs_whiteouts() {
    let plain = Archive::default()
        .dir("a")
        .file("a/.wh..wh..opq", "")
        .file("b/.wh.gone", "")
        .file("b/.wh.new", "")
        .file("b/new", "replaced")
        .file("b/.wh.newdir", "")
        .file("b/newdir/x", "1")
        .file("b/kept", "this layer's own stays")
        .file("b/.wh.kept", "")
        .file("b/.wh..wh.plnk", "")
        .dir("later")
        .file(".wh.later", "")
        .end();
    let target = target();
    run(&plain, &target.folder).unwrap();
    let whiteout = |name: &str| {
        let meta = std::fs::symlink_metadata(target.path(name)).unwrap();
        meta.file_type().is_char_device() && meta.rdev() == 0
    };
    assert!(whiteout("b/gone"));
    assert_eq!(std::fs::read_to_string(target.path("b/new")).unwrap(), "replaced");
    assert_eq!(std::fs::read_to_string(target.path("b/kept")).unwrap(), "this layer's own stays");
    for opaque in ["a", "b/newdir", "later"] {
        assert_eq!(xattr(&target.path(opaque), OPAQUE).as_deref(), Some(&b"y"[..]), "{opaque}");
    }
    assert_eq!(xattr(&target.path("b"), OPAQUE), None);
    let names = std::fs::read_dir(target.path("b")).unwrap();
    assert!(names.map(|n| n.unwrap().file_name()).all(|n| !n.to_string_lossy().starts_with(".wh.")));
}

const OPAQUE: &str = "trusted.overlay.opaque";

#[test]
fn overlay_attributes_of_the_image_are_dropped() {
    let plain = Archive::default()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/other"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"x"),
            ("SCHILY.xattr.user.kept", b""),
        ])
        .dir("d")
        .end();
    let target = target();
    run(&plain, &target.folder).unwrap();
    for name in ["trusted.overlay.redirect", OPAQUE, "user.overlay.opaque", "security.selinux"] {
        assert_eq!(xattr(&target.path("d"), name), None, "{name}");
    }
    assert_eq!(xattr(&target.path("d"), "user.kept"), Some(Vec::new()));
}

#[test]
fn limits_are_enforced() {
    let many = (0..20).fold(Archive::default(), |archive, n| archive.file(&format!("f{n}"), "")).end();
    // Three entries, and sixty implicit folders.
    let implicit = ["a", "b", "c"].iter().fold(Archive::default(), |archive, name| {
        archive.file(&format!("{}f", format!("{name}/").repeat(20)), "")
    });
    let implicit = implicit.end();
    let bomb = Archive::default().file("zeros", &"\0".repeat(1 << 20)).end();
    let long = vec![b'a'; 2 << 20];
    let pax = Archive::default().raw(EntryType::XHeader, b"pax", b"", 0o644, &long).end();
    let name = Archive::default().raw(EntryType::GNULongName, b"l", b"", 0o644, &long).end();
    let deep = Archive::default().pax(&[("path", "a/".repeat(300).as_bytes())]).file("x", "").end();
    let target = target();
    let small = |plain: &[u8]| {
        let compressed = gzip(plain);
        let expected = Expected { max_entries: 10, max_bytes: 512 << 10, ..expected(&compressed, plain) };
        run_with(&compressed, &expected, &target.folder)
    };
    assert!(matches!(small(&many), Err(Error::TooLarge { unit: "entries", .. })));
    assert!(matches!(small(&implicit), Err(Error::TooLarge { unit: "entries", .. })));
    assert!(matches!(small(&bomb), Err(Error::TooLarge { unit: "unpacked bytes", .. })));
    for plain in [pax, name, deep] {
        assert!(matches!(run(&plain, &target.folder), Err(Error::Corrupt { .. })));
    }
}

#[test]
fn digests_sizes_and_truncation() {
    let plain = Archive::default().file("f", &"content ".repeat(10_000)).end();
    for compressed in [gzip(&plain), zstd::bulk::compress(&plain, 3).unwrap(), plain.clone()] {
        let good = expected(&compressed, &plain);
        let fresh = || {
            let target = target();
            let path = target.folder.clone();
            (target, path)
        };
        let (_keep, path) = fresh();
        run_with(&compressed, &good, &path).unwrap();
        let other = Digest::of(b"other");
        for bad in [
            Expected { digest: other, ..good.clone() },
            Expected { diff_id: other, ..good.clone() },
            Expected { size: good.size + 1, ..good.clone() },
            Expected { size: good.size - 1, ..good.clone() },
        ] {
            let (_keep, path) = fresh();
            assert!(matches!(run_with(&compressed, &bad, &path), Err(Error::Corrupt { .. })));
        }
        for cut in [0, 1, 10, compressed.len() / 2, compressed.len() - 1] {
            let (_keep, path) = fresh();
            let result = run_with(&compressed[..cut], &good, &path);
            assert!(matches!(result, Err(Error::Corrupt { .. })), "cut at {cut}: {result:?}");
        }
        let mut flipped = compressed.clone();
        flipped[compressed.len() / 2] ^= 1;
        let (_keep, path) = fresh();
        assert!(matches!(run_with(&flipped, &good, &path), Err(Error::Corrupt { .. })));
    }
}

#[test]
fn the_compression_is_found_in_chunks_of_any_size() {
    let plain = Archive::default().file("f", "content").end();
    for (name, compressed) in
        [("gzip", gzip(&plain)), ("zstd", zstd::bulk::compress(&plain, 3).unwrap()), ("plain", plain.clone())]
    {
        for size in 1..=5 {
            let target = target();
            let result = run_in_chunks(size, &compressed, &expected(&compressed, &plain), &target.folder);
            assert!(result.is_ok(), "{name} in chunks of {size}: {result:?}");
            assert_eq!(std::fs::read_to_string(target.path("f")).unwrap(), "content");
        }
    }
}

#[test]
fn streams_that_are_shorter_than_a_header_are_named() {
    for (bytes, told) in [
        (&b"\x1f\x8b"[..], "gzip stream: "),
        (&b"\x28\xb5"[..], "archive: it ends within an entry's header"),
        (&b"ab"[..], "archive: it ends within an entry's header"),
        // All four bytes of the magic, and no frame.
        (ZSTD_MAGIC, "zstd stream: "),
    ] {
        for size in [1, 2, 4] {
            let target = target();
            let error = run_in_chunks(size, bytes, &expected(bytes, bytes), &target.folder).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, Error::Corrupt { .. }) && text.contains(told), "{bytes:?}: {text}");
            assert!(text.contains(&Digest::of(bytes).to_string()), "{text}");
        }
    }
    // Nothing arrives of a layer that is not empty.
    let (target, plain) = (target(), Archive::default().file("f", "content").end());
    let error = run_with(b"", &expected(&plain, &plain), &target.folder).unwrap_err();
    assert!(error.to_string().contains(&format!("0 bytes instead of {}", plain.len())), "{error}");
}

#[test]
fn a_failed_write_names_image_and_layer() {
    let expected = expected(b"x", b"x");
    let full = super::apply::ApplyError::System {
        entry: "/etc/passwd".to_owned(),
        action: "create",
        source: rustix::io::Errno::NOSPC,
    };
    let error = layer_error(&expected, full, Path::new("/store/ingest/7"));
    let text = error.to_string();
    for part in ["r.example/app:v1", &expected.digest.to_string(), "create", "/store/ingest/7/etc/passwd"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(error.is_full());
}

#[test]
fn archives_of_the_tar_crate_are_read() {
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o600);
    let name = "n".repeat(180);
    builder.append_data(&mut header, format!("some/{name}"), &b"abc"[..]).unwrap();
    builder.append_link(&mut header.clone(), "symlink", "t".repeat(150)).ok();
    let plain = builder.into_inner().unwrap();
    let target = target();
    run(&plain, &target.folder).unwrap();
    assert_eq!(std::fs::read_to_string(target.path(&format!("some/{name}"))).unwrap(), "abc");
}

proptest! {
    #[test]
    fn parsed_paths_stay_inside(raw in proptest::collection::vec(any::<u8>(), 0..60)) {
        if let Ok(path) = EntryPath::parse(&raw) {
            for part in path.components() {
                prop_assert!(!part.is_empty() && part != b"." && part != b"..");
                prop_assert!(!part.contains(&b'/') && !part.contains(&0));
            }
        }
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let mut reader = super::tar::Reader::new(&bytes[..]);
        while let Ok(Some(_)) = reader.next() {}
    }
}
