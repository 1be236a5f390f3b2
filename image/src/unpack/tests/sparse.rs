//! Sparse files in all formats of GNU tar: built here, hostile ones too, and made by GNU tar itself.

use super::*;
use ::tar::{GnuExtSparseHeader, GnuSparseHeader};
use std::process::Command;

/// The content of the file: offset and text of each piece.
const PIECES: [(usize, &str); 3] = [(4096, "first"), (1 << 20, "second"), ((1 << 30) - 4, "last")];
/// Its size with holes, in bytes.
const REAL: u64 = 1 << 30;

fn content() -> String {
    PIECES.iter().map(|(_, text)| *text).collect()
}

/// The map as in PAX 0.1 and 1.0, with numbers separated by `by`.
fn map(by: &str) -> String {
    let numbers: Vec<String> =
        PIECES.iter().flat_map(|(offset, text)| [offset.to_string(), text.len().to_string()]).collect();
    numbers.join(by)
}

/// Writes a number into a field of a header.
fn number(field: &mut [u8], number: u64) {
    // Larger numbers do not fit as octal digits.
    if number >= 1 << 33 {
        field.fill(0);
        let at = field.len() - 8;
        field[at..].copy_from_slice(&number.to_be_bytes());
        field[0] |= 0x80;
        return;
    }
    field.copy_from_slice(format!("{number:0width$o} ", width = field.len() - 1).as_bytes());
}

/// Writes pieces into a map of the old format.
fn fill(entries: &mut [GnuSparseHeader], pieces: &[(u64, u64)]) {
    for (entry, (offset, length)) in entries.iter_mut().zip(pieces) {
        number(&mut entry.offset, *offset);
        number(&mut entry.numbytes, *length);
    }
}

impl Archive {
    /// An entry of type `S`. Each extension has a part of the map, and whether it announces another extension.
    fn old_sparse(
        mut self,
        name: &str,
        real: u64,
        pieces: &[(u64, u64)],
        extensions: &[(&[(u64, u64)], bool)],
        content: &str,
    ) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(EntryType::GNUSparse);
        header.set_mode(0o640);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        let gnu = header.as_gnu_mut().unwrap();
        fill(&mut gnu.sparse, pieces);
        number(&mut gnu.realsize, real);
        gnu.isextended = [u8::from(!extensions.is_empty())];
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        for (pieces, more) in extensions {
            let mut extension = GnuExtSparseHeader::new();
            fill(&mut extension.sparse, pieces);
            extension.isextended = [u8::from(*more)];
            self.0.extend_from_slice(extension.as_bytes());
        }
        self.0.extend_from_slice(content.as_bytes());
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A file of PAX 1.0, whose content begins with `map`.
    fn sparse_1_0(self, real: &str, map: &str, content: &str) -> Self {
        let records: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"d/holes"),
            ("GNU.sparse.realsize", real.as_bytes()),
        ];
        let mut bytes = map.as_bytes().to_vec();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes.extend_from_slice(content.as_bytes());
        self.pax(&records).raw(EntryType::Regular, b"d/GNUSparseFile.7/holes", b"", 0o640, &bytes)
    }

    /// A file of PAX 0.1.
    fn sparse_0_1(self, real: &str, count: &str, map: &str, content: &str) -> Self {
        let records: [(&str, &[u8]); 4] = [
            ("GNU.sparse.size", real.as_bytes()),
            ("GNU.sparse.numblocks", count.as_bytes()),
            ("GNU.sparse.name", b"d/holes"),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        let name = b"d/GNUSparseFile.7/holes";
        self.pax(&records).raw(EntryType::Regular, name, b"", 0o640, content.as_bytes())
    }
}

/// Asserts the file's size, mode, pieces and holes.
fn check(path: &Path, pieces: &[(usize, &str)], real: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::open(path).unwrap();
    let found = file.metadata().unwrap();
    assert_eq!((found.len(), found.mode() & 0o7777), (real, 0o640), "{}", path.display());
    // Each piece has its own block, whatever the file system's block size.
    assert!(found.blocks() * 512 <= pieces.len() as u64 * (64 << 10), "{} blocks", found.blocks());
    let mut end = 0;
    for (offset, text) in pieces {
        let mut bytes = vec![0; text.len()];
        file.read_exact_at(&mut bytes, *offset as u64).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), *text, "{} at {offset}", path.display());
        // Before it there is nothing.
        let length = (offset - end).min(4096);
        let mut before = vec![1; length];
        file.read_exact_at(&mut before, (offset - length) as u64).unwrap();
        assert!(before.iter().all(|byte| *byte == 0), "{} before {offset}", path.display());
        end = offset + text.len();
    }
}

#[test]
fn every_format_is_unpacked_with_its_holes() {
    let (real, content) = (REAL.to_string(), content());
    let pieces = PIECES.map(|(offset, text)| (offset as u64, text.len() as u64));
    let mut records: Vec<(&str, Vec<u8>)> =
        vec![("GNU.sparse.size", real.clone().into()), ("GNU.sparse.numblocks", b"3".to_vec())];
    for (offset, length) in pieces {
        records.push(("GNU.sparse.offset", offset.to_string().into()));
        records.push(("GNU.sparse.numbytes", length.to_string().into()));
    }
    let records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (*key, value.as_slice())).collect();
    let a = Archive::default;
    let formats = [
        ("old", a().old_sparse("d/holes", REAL, &pieces, &[], &content)),
        ("old, extended", a().old_sparse("d/holes", REAL, &pieces[..1], &[(&pieces[1..], false)], &content)),
        (
            "old, extended twice",
            a().old_sparse(
                "d/holes",
                REAL,
                &pieces[..1],
                &[(&pieces[1..2], true), (&pieces[2..], false)],
                &content,
            ),
        ),
        ("PAX 0.0", a().pax(&records).raw(EntryType::Regular, b"d/holes", b"", 0o640, content.as_bytes())),
        ("PAX 0.1", a().sparse_0_1(&real, "3", &map(","), &content)),
        ("PAX 1.0", a().sparse_1_0(&real, &format!("3\n{}\n", map("\n")), &content)),
    ];
    for (name, archive) in formats {
        let target = target();
        // The next entry is read correctly.
        let stats = run(&archive.file("after", "behind it").end(), &target.folder);
        let stats = stats.unwrap_or_else(|error| panic!("{name}: {error}"));
        check(&target.path("d/holes"), &PIECES, REAL);
        assert_eq!(std::fs::read_to_string(target.path("after")).unwrap(), "behind it", "{name}");
        assert!(!target.path("d/GNUSparseFile.7").exists(), "{name}");
        // The disk usage, not the file size.
        assert!(stats.bytes < 1 << 20, "{name}: {} bytes", stats.bytes);
        target.untouched();
    }
}

#[test]
fn a_file_of_one_hole_has_no_content() {
    let formats = [
        Archive::default().old_sparse("d/holes", REAL, &[(REAL, 0)], &[], ""),
        Archive::default().sparse_0_1(&REAL.to_string(), "1", &format!("{REAL},0"), ""),
        Archive::default().sparse_1_0(&REAL.to_string(), "0\n", ""),
    ];
    for archive in formats {
        let target = target();
        run(&archive.file("after", "x").end(), &target.folder).unwrap();
        check(&target.path("d/holes"), &[], REAL);
        assert!(target.path("after").exists());
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn invalid_maps_are_refused() {
    let a = Archive::default;
    let with = |records: &[(&str, &[u8])]| a().pax(records).file("x", "x");
    let one = |map: &str, content: &str| a().sparse_1_0("100", map, content);
    let many: String = (0..=super::super::sparse::MAX_PIECES).map(|n| format!("{n}\n0\n")).collect();
    let nothing: [(&[(u64, u64)], bool); 1] = [(&[], true)];
    let cases = [
        ("no size", with(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")])),
        ("no map", with(&[("GNU.sparse.size", b"100")])),
        ("unknown format", with(&[("GNU.sparse.major", b"2"), ("GNU.sparse.realsize", b"100")])),
        ("length before offset", with(&[("GNU.sparse.size", b"9"), ("GNU.sparse.numbytes", b"1")])),
        (
            "offset without length",
            with(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,1"), ("GNU.sparse.offset", b"1")]),
        ),
        ("a sparse folder", a().pax(&[("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"0,0")]).dir("x")),
        (
            "a sparse link",
            a().pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,0")]).symlink("x", "y"),
        ),
        ("other count", a().sparse_0_1("100", "2", "0,1", "x")),
        ("odd numbers", a().sparse_0_1("100", "1", "0,1,2", "x")),
        ("no number", a().sparse_0_1("100", "1", "0,x", "x")),
        ("more content than the map has", a().sparse_0_1("100", "1", "0,1", "xx")),
        ("less content than the map has", a().sparse_0_1("100", "1", "0,2", "x")),
        ("out of order", a().sparse_0_1("100", "2", "50,1,0,1", "xx")),
        ("overlap", a().sparse_0_1("100", "2", "0,2,1,1", "xxx")),
        ("beyond its size", a().sparse_0_1("100", "1", "100,1", "x")),
        ("beyond 64 bits", a().sparse_0_1("100", "1", "18446744073709551615,1", "x")),
        ("too large", a().sparse_0_1("17592186044417", "1", "0,1", "x")),
        ("size beyond 64 bits", a().sparse_0_1("18446744073709551616", "1", "0,1", "x")),
        ("1.0 without end", one("1\n0\n", "")),
        ("1.0 with fewer numbers than it states", one("2\n0\n1\n", "x")),
        ("1.0 with letters", one("one\n", "")),
        ("1.0 with an empty line", one("\n", "")),
        ("1.0 with a number beyond 64 bits", one("99999999999999999999\n", "")),
        ("1.0 with too many pieces", one(&format!("65537\n{many}"), "")),
        ("1.0 with a huge count", one("18446744073709551615\n0\n1\n", "x")),
        ("1.0 that exceeds the archive", a().sparse_1_0("100", "1\n0\n1\n", "")),
        ("old, beyond its size", a().old_sparse("x", 10, &[(10, 1)], &[], "x")),
        ("old, too large", a().old_sparse("x", 1 << 45, &[(0, 1)], &[], "x")),
        ("old, extended by nothing", a().old_sparse("x", 10, &[(0, 1)], &nothing, "x")),
        ("old, extended beyond the archive", {
            let mut cut = a().old_sparse("x", 10, &[(0, 1)], &[(&[(2, 0)][..], true)], "");
            cut.0.truncate(1024);
            cut
        }),
    ];
    for (name, archive) in cases {
        let target = target();
        let error = run(&archive.0, &target.folder);
        assert!(matches!(error, Err(Error::Corrupt { .. })), "{name}: {error:?}");
        target.untouched();
    }
}

#[test]
fn archives_of_gnu_tar_are_unpacked() {
    use std::os::unix::fs::FileExt as _;
    let source = tempfile::tempdir().unwrap();
    // More pieces than fit in a header of the old format or in one of its extensions.
    let pieces: Vec<(usize, String)> =
        (0..40).map(|n| (n * (1 << 20) + 4096, format!("piece {n}"))).collect();
    let real = 64 << 20;
    let long = format!("{}/{}", "folder".repeat(20), "name".repeat(30));
    for name in ["holes", &long] {
        let path = source.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        for (offset, text) in &pieces {
            file.write_all_at(text.as_bytes(), *offset as u64).unwrap();
        }
        file.set_len(real).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    }
    std::fs::write(source.path().join("z-after"), "behind it").unwrap();
    let formats: [&[&str]; 4] = [
        &["--format=gnu"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ];
    for format in formats {
        let output = Command::new("tar")
            .args(["--create", "--sparse", "--sort=name", "--owner=0", "--group=0"])
            .args(format)
            .arg("--directory")
            .arg(source.path())
            .arg(".")
            .output()
            .expect("GNU tar");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.len() < 4 << 20, "{format:?}: tar made no sparse archive");
        let target = target();
        run(&output.stdout, &target.folder).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        for name in ["holes", &long] {
            // tar lists whole blocks, so the pieces are larger than the text.
            let file = std::fs::File::open(target.path(name)).unwrap();
            assert_eq!(file.metadata().unwrap().len(), real, "{format:?}");
            assert_eq!(
                std::fs::read(target.path(name)).unwrap(),
                std::fs::read(source.path().join(name)).unwrap(),
                "{format:?}"
            );
            assert!(file.metadata().unwrap().blocks() * 512 < real / 8, "{format:?}: the holes are filled");
        }
        assert_eq!(std::fs::read_to_string(target.path("z-after")).unwrap(), "behind it", "{format:?}");
    }
}
