//! No layer changes anything outside its folder.

use super::*;

#[test]
fn nothing_escapes() {
    let outside = "../victim";
    let a = Archive::default;
    let cases: Vec<(&str, Archive)> = vec![
        ("symlinks in a circle", a().symlink("a", "b").symlink("b", "a").file("a/x", "x")),
        ("symlink to itself", a().symlink("a", "a/a").file("a/x", "x")),
        ("symlink to a file as parent", a().file("f", "x").symlink("l", "f").file("l/x", "x")),
        ("symlinks deeper than the limit", {
            let long = format!("{}x", "d/".repeat(200));
            a().pax(&[("linkpath", long.as_bytes())])
                .symlink("l", "x")
                .file(&format!("l/{}x", "e/".repeat(45)), "x")
                .pax(&[("path", format!("l/{}x", "e/".repeat(100)).as_bytes())])
                .file("x", "x")
        }),
        ("hard link outside", a().link("l", outside).file("l", "overwritten")),
        ("absolute hard link", a().link("l", "/etc/passwd")),
        ("hard link through a symlink", a().symlink("out", "..").link("l", "out/victim")),
        ("hard link to a folder", a().dir("d").link("l", "d")),
        ("hard link to nothing", a().link("l", "nothing")),
        ("hard link to a whiteout", a().file(".wh.w", "").link("l", "w")),
        ("whiteout of dot dot", a().file(".wh...", "")),
        ("whiteout of dot", a().dir("d").file("d/.wh..", "")),
        ("whiteout without name", a().file(".wh.", "")),
        ("file as parent", a().file("f", "x").file("f/g", "x")),
        ("device as parent", a().raw(EntryType::Char, b"n", b"", 0o666, b"").file("n/x", "x")),
        ("link path outside", a().pax(&[("linkpath", b"../victim")]).link("l", "x")),
        ("unknown type", a().raw(EntryType::new(b'Z'), b"x", b"", 0o644, b"")),
        ("huge owner", a().pax(&[("uid", b"4294967296")]).file("x", "x")),
        ("owner minus one", a().pax(&[("gid", b"4294967295")]).file("x", "x")),
    ];
    for (name, archive) in cases {
        let target = target();
        let error = run(&archive.end(), &target.folder);
        assert!(matches!(error, Err(Error::Corrupt { .. })), "{name}: {error:?}");
        target.untouched();
    }
}

/// The kernel's work for an archive grows with its entries, whatever its symlinks are.
#[test]
fn symlinks_do_not_multiply_the_work() {
    let target = target();
    let mut archive = Archive::default().dir("d").pax(&[("linkpath", "d/../".repeat(800).as_bytes())]);
    archive = archive.symlink("l", "x");
    for number in 0..20 {
        archive = archive.pax(&[("path", format!("{}{number}", "l/".repeat(250)).as_bytes())]).file("x", "");
    }
    let error = run(&archive.end(), &target.folder).unwrap_err();
    assert!(error.to_string().contains("too many symlinks"), "{error}");
    // Other archives have one or two on the way to a file.
    let mut archive = Archive::default().symlink("lib", "usr/lib").symlink("usr/lib", "../opt/a/b/c/d/lib");
    for number in 0..900 {
        archive = archive.file(&format!("lib/{number}"), "");
    }
    run(&archive.end(), &self::target().folder).unwrap();
}

/// Names and links that would leave the layer's root are resolved within it.
#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn names_and_symlinks_start_at_the_layers_root() {
    let a = Archive::default;
    let inside: Vec<(&str, Archive, &str)> = vec![
        ("dot dot", a().file("../copepod-x", "x"), "copepod-x"),
        ("dot dot within", a().dir("a").file("a/../../copepod-x", "x"), "copepod-x"),
        (
            "dot dot after a symlink removes the symlink's name",
            a().symlink("a", "b/c").file("a/../copepod-x", "x"),
            "copepod-x",
        ),
        ("long path of dot dot", a().pax(&[("path", b"a/../../copepod-x")]).file("x", "x"), "copepod-x"),
        ("absolute", a().file("/tmp/copepod-x", "x"), "tmp/copepod-x"),
        ("absolute folder", a().dir("/").dir("/opt/").file("/opt/copepod-x", "x"), "opt/copepod-x"),
        ("many slashes", a().file("//opt///copepod-x", "x"), "opt/copepod-x"),
        ("symlink parent", a().symlink("out", "..").file("out/copepod-x", "x"), "copepod-x"),
        ("absolute symlink parent", a().symlink("out", "/tmp").file("out/copepod-x", "x"), "tmp/copepod-x"),
        ("symlink to the root", a().symlink("dot", ".").file("dot/copepod-x", "x"), "copepod-x"),
        ("dangling symlink parent", a().symlink("l", "u/l").file("l/d/copepod-x", "x"), "u/l/d/copepod-x"),
        ("chain", a().symlink("a", "b").symlink("b", "c/d").file("a/copepod-x", "x"), "c/d/copepod-x"),
        (
            "symlink in a symlinked folder",
            a().symlink("s/p/n", "../../store/n").symlink("app", "s/p").file("app/n/copepod-x", "x"),
            "store/n/copepod-x",
        ),
        (
            "climbing symlink",
            a().symlink("l", "../../../../../etc").file("l/copepod-x", "x"),
            "etc/copepod-x",
        ),
        (
            "hard link through a symlink",
            a().file("usr/lib/f", "x").symlink("lib", "usr/lib").link("lib/copepod-x", "lib/f"),
            "usr/lib/copepod-x",
        ),
        ("absolute hard link", a().file("f", "x").link("d/copepod-x", "/f"), "d/copepod-x"),
        ("climbing hard link", a().file("f", "x").link("copepod-x", "../../f"), "copepod-x"),
        (
            "hard link to itself by two names",
            a().file("u/copepod-x", "x").symlink("l", "u").link("u/copepod-x", "l/copepod-x"),
            "u/copepod-x",
        ),
        (
            "root as a symlink",
            a().raw(EntryType::Symlink, b".", b"/", 0o777, b"").file("copepod-x", "x"),
            "copepod-x",
        ),
        ("folder over a symlink", a().symlink("d", "/tmp").dir("d").file("d/copepod-x", "x"), "d/copepod-x"),
    ];
    for (name, archive, place) in inside {
        let target = target();
        run(&archive.end(), &target.folder).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(
            std::fs::symlink_metadata(target.path(place)).is_ok_and(|m| m.is_file()),
            "{name}: not at {place}"
        );
        assert_eq!(std::fs::read_to_string(target.path(place)).unwrap(), "x", "{name}");
        target.untouched();
        for outside in ["/copepod-x", "/tmp/copepod-x", "/etc/copepod-x", "/opt/copepod-x"] {
            assert!(!Path::new(outside).exists(), "{name}: {outside}");
        }
    }
    let others = a()
        .dir("u")
        .symlink("l", "u")
        .file("l/.wh.gone", "")
        .file("l/o/.wh..wh..opq", "")
        .symlink("out", "..")
        .file("out/.wh.victim", "")
        .raw(EntryType::Fifo, b"l/fifo", b"", 0o600, b"");
    let target = target();
    run(&others.end(), &target.folder).unwrap();
    let meta = |name: &str| std::fs::symlink_metadata(target.path(name)).unwrap();
    assert!(meta("u/gone").file_type().is_char_device() && meta("victim").file_type().is_char_device());
    assert!(meta("u/fifo").file_type().is_fifo());
    assert_eq!(xattr(&target.path("u/o"), OPAQUE).as_deref(), Some(&b"y"[..]));
    target.untouched();
}

#[test]
fn a_folder_reached_by_a_symlink_keeps_its_own_attributes() {
    let plain = Archive::default()
        .symlink("l", "u")
        .raw(EntryType::Directory, b"l/d/", b"", 0o2750, b"")
        .file("l/d/f", "x")
        .raw(EntryType::Directory, b"u/", b"", 0o700, b"")
        .end();
    let target = target();
    let stats = run(&plain, &target.folder).unwrap();
    let mode = |name: &str| std::fs::symlink_metadata(target.path(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("u/d"), mode("u")), (0o2750, 0o700));
    assert_eq!(std::fs::metadata(target.path("u/d")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(stats.implicit, 0, "a later entry made it explicit");
    assert_eq!(xattr(&target.path("u"), super::super::whiteout::IMPLICIT_XATTR), None);
}

#[test]
fn replacing_a_symlink_does_not_follow_it() {
    let plain = Archive::default()
        .symlink("f", "../victim")
        .file("f", "inside")
        .symlink("d", "..")
        .dir("d")
        .file("d/x", "1")
        .dir("tree")
        .symlink("tree/up", "../..")
        .file("tree", "a file now")
        .symlink("n", "../victim")
        .raw(EntryType::Fifo, b"n", b"", 0o600, b"")
        .end();
    let target = target();
    run(&plain, &target.folder).unwrap();
    target.untouched();
    assert_eq!(std::fs::read_to_string(target.path("f")).unwrap(), "inside");
    assert_eq!(std::fs::read_to_string(target.path("tree")).unwrap(), "a file now");
    assert!(std::fs::symlink_metadata(target.path("d")).unwrap().is_dir());
}

fn piece() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[ab]",
        Just("..".to_owned()),
        Just(".".to_owned()),
        Just(".wh.a".to_owned()),
        Just(".wh..wh..opq".to_owned()),
        Just(String::new())
    ];
    proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// There are only a few names, so that entries replace and lead through each other.
    #[test]
    fn no_sequence_of_entries_escapes(entries in proptest::collection::vec((0..6u8, piece(), piece()), 1..12)) {
        let archive = entries.iter().fold(Archive::default(), |archive, (kind, name, other)| match kind {
            0 => archive.file(name, "x"),
            1 => archive.dir(name),
            2 => archive.symlink(name, if other.is_empty() { ".." } else { other }),
            3 => archive.link(name, other),
            4 => archive.raw(EntryType::Fifo, name.as_bytes(), b"", 0o600, b""),
            _ => archive.symlink(name, "../victim"),
        });
        let target = target();
        drop(run(&archive.end(), &target.folder));
        target.untouched();
    }
}
