//! The added layer, which gives implicit folders the attributes that lower layers have.

use super::*;

/// The folders of the layer that is added to these layers (lowest first), as `path mode uid`, sorted.
fn corrected(layers: Vec<Archive>) -> Vec<String> {
    let outer = tempfile::tempdir().unwrap();
    let mut found = Vec::new();
    for (n, archive) in layers.into_iter().enumerate() {
        let folder = outer.path().join(n.to_string());
        std::fs::create_dir(&folder).unwrap();
        let stats = run(&archive.end(), &folder).unwrap();
        found.insert(0, Layer { folder, implicit: stats.implicit > 0 });
    }
    let into = outer.path().join("added");
    std::fs::create_dir(&into).unwrap();
    let added = corrections(&found, &into).unwrap();
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
        added.map_or(0, |(_, stats)| stats.inodes),
        if lines.is_empty() { 0 } else { lines.len() as u64 + 1 }
    );
    lines
}

fn folder(archive: Archive, name: &str, mode: u32) -> Archive {
    archive.raw(EntryType::Directory, name.as_bytes(), b"", mode, b"")
}

#[test]
fn implicit_folders_get_the_attributes_of_lower_layers() {
    let a = Archive::default;
    let none: Vec<String> = Vec::new();
    let base = || folder(folder(folder(a(), "tmp", 0o1777), "home", 0o755), "home/owned", 0o700);
    assert_eq!(
        corrected(vec![base(), a().file("tmp/x", "").file("home/owned/y", "")]),
        ["home 755 0", "home/owned 700 1000", "tmp 1777 0"]
    );
    assert_eq!(corrected(vec![base(), a().file("tmp/x", ""), a().file("tmp/y", "")]), ["tmp 1777 0"]);
    // No layer is needed: the topmost folder is explicit, no layer below has it, the attributes are equal, or there is
    // only one layer.
    assert_eq!(corrected(vec![base(), a().file("tmp/x", ""), folder(a(), "tmp", 0o700)]), none);
    assert_eq!(corrected(vec![a().file("tmp/x", ""), a().file("tmp/y", "")]), none);
    assert_eq!(corrected(vec![a().dir("tmp"), a().file("tmp/y", "")]), none);
    assert_eq!(corrected(vec![a().file("tmp/y", "")]), none);
    assert_eq!(corrected(vec![a().file("tmp/y", ""), base()]), none);
    // Of several explicit folders the topmost counts.
    assert_eq!(
        corrected(vec![folder(a(), "d", 0o700), folder(a(), "d", 0o711), a().file("d/x", "")]),
        ["d 711 0"]
    );
    // Hidden folders do not count.
    assert_eq!(corrected(vec![base(), a().file(".wh.tmp", ""), a().file("tmp/x", "")]), none);
    assert_eq!(corrected(vec![base(), a().file(".wh.tmp", "").file("tmp/x", "")]), none);
    assert_eq!(corrected(vec![base(), a().file("tmp", ""), a().file("tmp/x", "")]), none);
    assert_eq!(
        corrected(vec![base(), a().file("home/.wh..wh..opq", ""), a().file("home/owned/x", "")]),
        none
    );
    assert_eq!(corrected(vec![base(), a().file(".wh.home", ""), a().file("home/owned/x", "")]), none);
    // A folder that replaces a symlink gets the attributes of the symlink's target.
    let link = || folder(a().symlink("var/lock", "/run/lock"), "run/lock", 0o1777);
    assert_eq!(corrected(vec![link(), a().file("var/lock/x", "")]), ["var 755 0", "var/lock 1777 0"]);
    assert_eq!(corrected(vec![a().symlink("l", "nowhere"), a().file("l/x", "")]), none);
    // Below an implicit folder that is right already, in a layer that is not the topmost.
    assert_eq!(
        corrected(vec![folder(a(), "a/b/c", 0o700), a().file("a/b/c/x", ""), a().dir("a/z")]),
        ["a 755 0", "a/b 755 0", "a/b/c 700 0"]
    );
}

#[test]
fn equal_corrections_have_equal_ids() {
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
        let added = corrections(&[layer(top, true), layer(low, false)], &into).unwrap().unwrap();
        assert_eq!(std::fs::metadata(into.join("d")).unwrap().mtime(), 1_000_000_000);
        added.0
    };
    assert_eq!(of(0o700, "one"), of(0o700, "two"));
    assert_ne!(of(0o700, "three"), of(0o701, "four"));
}

/// One layer under two images with different bases: each image gets its own corrections, and the layer stays as it is.
#[test]
fn owner_mode_time_and_attributes_are_those_of_each_base() {
    let outer = tempfile::tempdir().unwrap();
    let unpack = |name: &str, archive: Archive| {
        let folder = outer.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let stats = run(&archive.end(), &folder).unwrap();
        Layer { folder, implicit: stats.implicit > 0 }
    };
    // Version 2, and an entry for the owner, the user 7, the group, the mask and others.
    let acl: Vec<u8> =
        [(1, 7, u32::MAX), (2, 5, 7), (4, 5, u32::MAX), (0x10, 5, u32::MAX), (0x20, 0, u32::MAX)]
            .iter()
            .flat_map(|(tag, allowed, id): &(u16, u16, u32)| {
                [&tag.to_le_bytes()[..], &allowed.to_le_bytes(), &id.to_le_bytes()].concat()
            })
            .collect();
    let acl = [&2_u32.to_le_bytes()[..], &acl].concat();
    let base = |value: &[u8], mode: u32| {
        let records = [
            ("SCHILY.xattr.user.key", value),
            ("SCHILY.xattr.system.posix_acl_default", acl.as_slice()),
            ("mtime", b"7.5"),
        ];
        folder(Archive::default().pax(&records), "d/owned", mode)
    };
    let shared = || Archive::default().file("d/owned/x", "x");
    let bases = [("first", &b"one"[..], 0o2750), ("second", b"two", 0o1711)];
    for (name, value, mode) in bases {
        let low = unpack(name, base(value, mode));
        let folder = outer.path().join("shared");
        let top = if folder.exists() { Layer { folder, implicit: true } } else { unpack("shared", shared()) };
        let into = outer.path().join(format!("{name}-added"));
        std::fs::create_dir(&into).unwrap();
        corrections(&[top, low], &into).unwrap().unwrap();
        let (low, added) = (outer.path().join(name).join("d/owned"), into.join("d/owned"));
        let attributes = |path: &Path| {
            let meta = std::fs::metadata(path).unwrap();
            let time = (meta.mtime(), meta.mtime_nsec());
            let xattrs = ["user.key", "system.posix_acl_default"].map(|name| xattr(path, name));
            (meta.mode(), meta.uid(), meta.gid(), time, xattrs)
        };
        assert_eq!(attributes(&added), attributes(&low), "{name}");
        assert_eq!(xattr(&added, "user.key").as_deref(), Some(value));
        let shared = std::fs::metadata(outer.path().join("shared/d/owned")).unwrap();
        assert_eq!((shared.mode() & 0o7777, shared.uid()), (0o755, 0), "{name}");
        assert_eq!(xattr(&outer.path().join("shared/d/owned"), "user.key"), None);
    }
}

/// The walk runs on a lane, whose threads have a stack of 512 KiB.
#[test]
fn the_deepest_folders_need_no_larger_stack() {
    let outer = tempfile::tempdir().unwrap();
    let [low, top, into] = ["low", "top", "into"].map(|part| outer.path().join(part));
    for folder in [&low, &top, &into] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let deepest = "d/".repeat(255);
    let archive = || Archive::default().pax(&[("path", format!("{deepest}x").as_bytes())]).file("x", "");
    let explicit = Archive::default().pax(&[("path", deepest.as_bytes())]).dir("x");
    run(&folder(explicit, "d", 0o700).end(), &low).unwrap();
    run(&archive().end(), &top).unwrap();
    let layers = [Layer { folder: top, implicit: true }, Layer { folder: low, implicit: true }];
    let walk = move || corrections(&layers, &into).unwrap();
    let thread = std::thread::Builder::new().stack_size(512 << 10).spawn(walk).unwrap();
    let (_, stats) = thread.join().unwrap().unwrap();
    assert_eq!(stats.inodes, 2, "the root, and `d` with mode 700");
}
