//! Tar archives of all formats: fields written here, and archives of the tools that write them.

use super::*;
use std::process::Command;

/// A header, field by field.
struct Raw(Header);

impl Raw {
    fn new(kind: u8, name: &[u8]) -> Self {
        let mut header = Header::new_old();
        header.set_mode(0o640);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        Self(header).put(0, name).put(156, &[kind])
    }
    /// A header with the magic and version of a format.
    fn with_magic(kind: u8, name: &[u8], magic: &[u8; 8]) -> Self {
        Self::new(kind, name).put(257, magic)
    }
    fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0.as_mut_bytes()[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
}

impl Archive {
    /// An entry with this header, whose size and checksum are set here.
    fn header(mut self, raw: Raw, content: &str) -> Self {
        let mut header = raw.0;
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content.as_bytes());
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
}

const USTAR: &[u8; 8] = b"ustar\x0000";
const GNU: &[u8; 8] = b"ustar  \0";

fn read(target: &Target, name: &str) -> String {
    std::fs::read_to_string(target.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn mtime(target: &Target, name: &str) -> (i64, i64) {
    let meta = std::fs::symlink_metadata(target.path(name)).unwrap();
    (meta.mtime(), meta.mtime_nsec())
}

#[test]
fn names_of_every_format() {
    let prefix = format!("{}/{}", "p".repeat(100), "q".repeat(30));
    let long = "n".repeat(100);
    let plain = Archive::default()
        .header(Raw::new(0, b"v7"), "a")
        .header(Raw::new(0, b"v7-folder/"), "")
        .header(Raw::new(b'0', b"file-with-slash/"), "content")
        .header(Raw::with_magic(b'0', b"f", USTAR).put(345, b"ustar"), "b")
        .header(Raw::with_magic(b'0', b"f", b"ustar\0\0\0").put(345, b"other-version"), "c")
        .header(Raw::with_magic(b'0', long.as_bytes(), USTAR).put(345, prefix.as_bytes()), "d")
        // star: a prefix of all its 131 bytes, then two times, and its mark.
        .header(
            Raw::with_magic(b'0', b"star", USTAR)
                .put(345, prefix.as_bytes())
                .put(476, b"07346545000 07346545000 ")
                .put(508, b"tar\0"),
            "e",
        )
        // GNU: two times in the place of the prefix.
        .header(Raw::with_magic(b'0', b"gnu", GNU).put(345, b"07346545000\x0007346545000\0"), "f")
        // Go before 1.8: a prefix in a GNU header.
        .header(Raw::with_magic(b'0', b"f", GNU).put(345, b"go17/prefix"), "g")
        .end();
    assert_eq!(prefix.len(), 131);
    let target = unpacked(&plain);
    for (name, content) in [
        ("v7", "a"),
        ("file-with-slash", "content"),
        ("ustar/f", "b"),
        ("other-version/f", "c"),
        (&format!("{prefix}/{long}"), "d"),
        (&format!("{prefix}/star"), "e"),
        ("gnu", "f"),
        ("go17/prefix/f", "g"),
    ] {
        assert_eq!(read(&target, name), content, "{name}");
    }
    assert!(target.path("v7-folder").is_dir());
    assert!(!target.path("f").exists());
}

#[test]
fn numbers_of_every_format() {
    let negative = |number: i64| -> Vec<u8> { [&[0xff; 4][..], &number.to_be_bytes()].concat() };
    let plain = Archive::default()
        // Blanks and NULs around the digits.
        .header(Raw::new(b'0', b"blanks").put(100, b"   640 \0").put(108, b"\0\0   7 \0"), "x")
        .header(Raw::with_magic(b'0', b"old", GNU).put(136, &negative(-86_400)), "x")
        .header(
            Raw::with_magic(b'0', b"big", GNU)
                .put(108, b"\x80\0\0\0\xff\xff\xff\xfe")
                .put(116, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe])
                .put(136, b"\x80\0\0\0\0\0\0\x02\0\0\0\0"),
            "x",
        )
        .header(Raw::with_magic(b'3', b"device", USTAR).put(329, b"0000001\x000000005\0"), "")
        .header(Raw::with_magic(b'6', b"fifo", USTAR).put(329, b"not numb"), "")
        .end();
    let target = unpacked(&plain);
    let meta = |name: &str| std::fs::symlink_metadata(target.path(name)).unwrap();
    assert_eq!((meta("blanks").mode() & 0o7777, meta("blanks").uid()), (0o640, 7));
    assert_eq!(mtime(&target, "old"), (-86_400, 0));
    assert_eq!((meta("big").uid(), meta("big").gid()), (u32::MAX - 1, u32::MAX - 1));
    assert_eq!(mtime(&target, "big"), (1 << 33, 0));
    assert_eq!(meta("device").rdev(), rustix::fs::makedev(1, 5));
    assert!(meta("fifo").file_type().is_fifo());
    let minus_one = [0xff; 8];
    let beyond = b"\x80\0\0\x01\0\0\0\0";
    for (field, bytes) in
        [(108, &minus_one), (116, &minus_one), (108, beyond), (100, b"rw-r--r-"), (124, b"-0000001")]
    {
        let raw = Raw::with_magic(b'0', b"x", GNU);
        let bad = Archive::default().header(raw, "").0;
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&bad[..512]);
        header.as_mut_bytes()[field..field + 8].copy_from_slice(bytes);
        header.set_cksum();
        let target = target_of_refused(header.as_bytes());
        target.untouched();
    }
}

fn target_of_refused(plain: &[u8]) -> Target {
    let target = target();
    let result = run(plain, &target.folder);
    assert!(matches!(result, Err(Error::Corrupt { .. })), "{result:?}");
    target
}

#[test]
fn a_checksum_of_signed_bytes_is_right() {
    let name = "\u{fc}\u{fc}";
    let mut archive = Archive::default().header(Raw::new(b'0', name.as_bytes()), "");
    let octal = std::str::from_utf8(&archive.0[148..156]).unwrap().trim_matches(['\0', ' ']).to_owned();
    let unsigned = i64::from_str_radix(&octal, 8).unwrap();
    // Each of the four bytes is negative.
    for (sum, right) in [(unsigned, true), (unsigned - 4 * 256, true), (unsigned - 1, false)] {
        archive.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let target = target();
        assert_eq!(run(&archive.0, &target.folder).is_ok(), right, "{sum}");
    }
}

#[test]
fn extensions_apply_to_the_next_entry_only() {
    let x = |archive: Archive, records: &[(&str, &[u8])]| archive.pax(records);
    let a = x(Archive::default(), &[("path", b"first"), ("mtime", b"1.5")]);
    // A second extended header replaces the first one.
    let a = x(a, &[("path", b"second")]).file("x", "2");
    let a = a.file("plain", "3");
    // GNU's name overrides that of PAX, whichever comes first.
    let a = x(a.raw(EntryType::GNULongName, b"././@LongLink", b"", 0, b"gnu\0junk"), &[("path", b"pax")])
        .file("x", "4");
    let a = a.raw(EntryType::GNULongLink, b"././@LongLink", b"", 0, b"target\0").symlink("link", "x");
    // Times before 1970, and without seconds.
    let a = x(a, &[("mtime", b"-1.5")]).file("negative", "5");
    let a = x(a, &[("mtime", b".5"), ("uid", b""), ("comment", b"a=b")]).file("half", "6");
    // Global records are ignored, and extensions before them too.
    let a = x(a, &[("path", b"lost")]).raw(
        EntryType::XGlobalHeader,
        b"pax_global_header",
        b"",
        0,
        b"12 path=all\n",
    );
    let target = unpacked(&a.file("after", "7").end());
    for (name, content) in [("second", "2"), ("plain", "3"), ("gnu", "4"), ("after", "7")] {
        assert_eq!(read(&target, name), content);
    }
    assert_eq!(mtime(&target, "second"), (1_000_000_000, 0));
    assert_eq!(mtime(&target, "negative"), (-2, 500_000_000));
    assert_eq!(mtime(&target, "half"), (0, 500_000_000));
    assert_eq!(std::fs::read_link(target.path("link")).unwrap(), Path::new("target"));
    let mut names: Vec<_> =
        std::fs::read_dir(&target.folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["after", "gnu", "half", "link", "negative", "plain", "second"]);
}

#[test]
fn the_end_may_be_marked_in_any_way_or_not_at_all() {
    let whole = || Archive::default().file("a", "first").file("b", "last");
    let bytes = whole().0;
    let with = |end: &[u8]| [&bytes[..], end].concat();
    for (name, plain) in [
        ("no mark", bytes.clone()),
        ("no padding of the last file", bytes[..bytes.len() - 508].to_vec()),
        ("a part of the padding", bytes[..bytes.len() - 100].to_vec()),
        ("one block", with(&[0; 512])),
        ("a tape's record", with(&[0; 10240])),
        ("garbage after two blocks", with(&[&[0; 1024][..], b"garbage of any length"].concat())),
        ("another archive after it", with(&[&[0; 1024][..], &Archive::default().file("c", "").0].concat())),
    ] {
        let target = unpacked(&plain);
        assert_eq!(
            (read(&target, "a"), read(&target, "b")),
            ("first".to_owned(), "last".to_owned()),
            "{name}"
        );
        assert_eq!(std::fs::read_dir(&target.folder).unwrap().count(), 2, "{name}");
    }
    for cut in [bytes.len() - 509, bytes.len() - 512, bytes.len() - 513, 100] {
        target_of_refused(&bytes[..cut]);
    }
}

/// Docker of the time of aufs stored files with several links in `.wh..wh.plnk`.
#[test]
fn metadata_of_aufs_is_left_out_and_its_links_are_kept() {
    let plain = Archive::default()
        .file(".wh..wh.aufs", "")
        .dir(".wh..wh.orph")
        .file(".wh..wh.orph/deleted", "old")
        .dir(".wh..wh.plnk")
        .file(".wh..wh.plnk/301.1234", "shared")
        .link("usr/bin/a", ".wh..wh.plnk/301.1234")
        .link("usr/bin/b", "/.wh..wh.plnk/301.1234")
        .end();
    let target = unpacked(&plain);
    assert_eq!(
        (read(&target, "usr/bin/a"), read(&target, "usr/bin/b")),
        ("shared".to_owned(), "shared".to_owned())
    );
    assert_eq!(std::fs::metadata(target.path("usr/bin/a")).unwrap().nlink(), 2);
    let names: Vec<_> = std::fs::read_dir(&target.folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["usr"]);
}

/// A name that fits ustar's prefix and name, but not v7's name.
fn long_name() -> String {
    format!("d/{}/{}", "p".repeat(60), "n".repeat(60))
}

/// A folder with entries of all kinds that tools can write.
fn source_tree() -> tempfile::TempDir {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    std::fs::create_dir_all(at("d/e")).unwrap();
    std::fs::write(at("d/e/file"), "content").unwrap();
    std::fs::hard_link(at("d/e/file"), at("d/hard")).unwrap();
    std::os::unix::fs::symlink("e/file", at("d/link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("d/fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    std::os::unix::fs::chown(at("d/e"), Some(1234), Some(5678)).unwrap();
    std::fs::set_permissions(at("d/e"), std::fs::Permissions::from_mode(0o2750)).unwrap();
    let long = at(&long_name());
    std::fs::create_dir(long.parent().unwrap()).unwrap();
    std::fs::write(long, "long").unwrap();
    source
}

/// What tools wrote is what was there.
#[test]
fn archives_of_every_tool_and_format_are_unpacked() {
    let (source, long) = (source_tree(), long_name());
    let at = |name: &str| source.path().join(name);
    let tools: [(&str, &[&str], bool); 9] = [
        ("tar", &["--format=v7"], false),
        ("tar", &["--format=oldgnu"], true),
        ("tar", &["--format=gnu"], true),
        ("tar", &["--format=ustar"], true),
        ("tar", &["--format=posix"], true),
        ("bsdtar", &["--format=v7tar"], false),
        ("bsdtar", &["--format=ustar"], true),
        ("bsdtar", &["--format=gnutar"], true),
        ("bsdtar", &["--format=pax"], true),
    ];
    for (tool, format, has_long) in tools {
        let what = format!("{tool} {}", format.join(" "));
        let command = |folder: &str| {
            let mut command = Command::new(tool);
            let output = command
                .arg("-c")
                .args(format)
                .args(["-f", "-", "-C"])
                .arg(source.path())
                .arg(folder)
                .output();
            output.unwrap_or_else(|error| panic!("{what}: {error}; `make deps` installs it"))
        };
        // v7 has no fifos, and no long names: the tools warn, and leave them out.
        let output = command(".");
        assert!(output.status.success() || !has_long, "{what}: {}", String::from_utf8_lossy(&output.stderr));
        let target = unpacked(&output.stdout);
        assert_eq!(read(&target, "d/e/file"), "content", "{what}");
        let meta = |name: &str| std::fs::symlink_metadata(target.path(name)).unwrap();
        assert_eq!(meta("d/e/file").ino(), meta("d/hard").ino(), "{what}");
        assert_eq!(std::fs::read_link(target.path("d/link")).unwrap(), Path::new("e/file"), "{what}");
        let folder = meta("d/e");
        assert_eq!((folder.mode() & 0o7777, folder.uid(), folder.gid()), (0o2750, 1234, 5678), "{what}");
        assert_eq!(folder.mtime(), std::fs::metadata(at("d/e")).unwrap().mtime(), "{what}");
        if has_long {
            assert_eq!(read(&target, &long), "long", "{what}");
            assert!(meta("d/fifo").file_type().is_fifo(), "{what}");
        }
    }
}
