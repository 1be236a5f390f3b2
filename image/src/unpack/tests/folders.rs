//! The added layer, which gives folders without an entry the attributes that lower layers have.

use super::*;

/// Takes layers as archives, lowest first, and returns the folders of the added layer as `path mode uid`,
/// sorted.
fn differing(layers: Vec<Archive>) -> Vec<String> {
    let outer = tempfile::tempdir().unwrap();
    let mut found = Vec::new();
    for (n, archive) in layers.into_iter().enumerate() {
        let folder = outer.path().join(n.to_string());
        std::fs::create_dir(&folder).unwrap();
        let made = run(&archive.end(), &folder).unwrap();
        found.insert(0, Layer { folder, implicit: made.implicit > 0 });
    }
    let into = outer.path().join("folders");
    std::fs::create_dir(&into).unwrap();
    let made = folders(&found, &into).unwrap();
    let mut lines = Vec::new();
    let mut todo = vec![into.clone()];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            assert!(meta.is_dir());
            let name = path.strip_prefix(&into).unwrap().display().to_string();
            lines.push(format!("{name} {:o} {}", meta.mode() & 0o7777, meta.uid()));
            todo.push(path);
        }
    }
    lines.sort();
    assert_eq!(
        made.map_or(0, |(_, made)| made.inodes),
        if lines.is_empty() { 0 } else { lines.len() as u64 + 1 }
    );
    lines
}

fn folder(archive: Archive, name: &str, mode: u32) -> Archive {
    archive.raw(EntryType::Directory, name.as_bytes(), b"", mode, b"")
}

#[test]
fn folders_without_an_entry_get_the_attributes_of_lower_layers() {
    let a = Archive::default;
    let none: Vec<String> = Vec::new();
    let base = || folder(folder(folder(a(), "tmp", 0o1777), "home", 0o755), "home/owned", 0o700);
    assert_eq!(
        differing(vec![base(), a().file("tmp/x", "").file("home/owned/y", "")]),
        ["home 755 0", "home/owned 700 1000", "tmp 1777 0"]
    );
    assert_eq!(differing(vec![base(), a().file("tmp/x", ""), a().file("tmp/y", "")]), ["tmp 1777 0"]);
    // No layer is needed: the upper folder has an entry, nothing lies below, the attributes are equal, or
    // there is one layer.
    assert_eq!(differing(vec![base(), a().file("tmp/x", ""), folder(a(), "tmp", 0o700)]), none);
    assert_eq!(differing(vec![a().file("tmp/x", ""), a().file("tmp/y", "")]), none);
    assert_eq!(differing(vec![a().dir("tmp"), a().file("tmp/y", "")]), none);
    assert_eq!(differing(vec![a().file("tmp/y", "")]), none);
    assert_eq!(differing(vec![a().file("tmp/y", ""), base()]), none);
    // The topmost explicit entry wins.
    assert_eq!(
        differing(vec![folder(a(), "d", 0o700), folder(a(), "d", 0o711), a().file("d/x", "")]),
        ["d 711 0"]
    );
    // Hidden folders supply no attributes.
    assert_eq!(differing(vec![base(), a().file(".wh.tmp", ""), a().file("tmp/x", "")]), none);
    assert_eq!(differing(vec![base(), a().file(".wh.tmp", "").file("tmp/x", "")]), none);
    assert_eq!(differing(vec![base(), a().file("tmp", ""), a().file("tmp/x", "")]), none);
    assert_eq!(
        differing(vec![base(), a().file("home/.wh..wh..opq", ""), a().file("home/owned/x", "")]),
        none
    );
    assert_eq!(differing(vec![base(), a().file(".wh.home", ""), a().file("home/owned/x", "")]), none);
    // A folder that replaces a symlink gets the attributes of the symlink's target.
    let link = || folder(a().symlink("var/lock", "/run/lock"), "run/lock", 0o1777);
    assert_eq!(differing(vec![link(), a().file("var/lock/x", "")]), ["var 755 0", "var/lock 1777 0"]);
    assert_eq!(differing(vec![a().symlink("l", "nowhere"), a().file("l/x", "")]), none);
    // Below an implicit folder that is right already, in a layer that is not the topmost.
    assert_eq!(
        differing(vec![folder(a(), "a/b/c", 0o700), a().file("a/b/c/x", ""), a().dir("a/z")]),
        ["a 755 0", "a/b 755 0", "a/b/c 700 0"]
    );
}

#[test]
fn equal_folders_have_equal_digests() {
    let outer = tempfile::tempdir().unwrap();
    let of = |mode: u32, name: &str| {
        let at = outer.path().join(name);
        let [low, top, into] = ["low", "top", "into"].map(|part| at.join(part));
        for folder in [&low, &top, &into] {
            std::fs::create_dir_all(folder).unwrap();
        }
        run(&folder(Archive::default(), "d", mode).end(), &low).unwrap();
        run(&Archive::default().file("d/x", name).end(), &top).unwrap();
        let layer = |folder: PathBuf, implicit| Layer { folder, implicit };
        let made = folders(&[layer(top, true), layer(low, false)], &into).unwrap().unwrap();
        assert_eq!(std::fs::metadata(into.join("d")).unwrap().mtime(), 1_000_000_000);
        made.0
    };
    assert_eq!(of(0o700, "one"), of(0o700, "two"));
    assert_ne!(of(0o700, "three"), of(0o701, "four"));
}
