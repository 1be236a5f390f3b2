use super::walk::{Left, Next, Walk};
use super::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

/// Time limit for work in the background. Usually it takes a second, on a busy disk much longer.
const PATIENCE: Duration = Duration::from_secs(120);

fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Creates a tree of 60 levels, some of which have several branches. Returns the number of its entries.
fn bushy(top: &Path) -> u64 {
    fs::create_dir(top).unwrap();
    let (mut at, mut made) = (top.to_owned(), 1);
    for depth in 0..60 {
        for branch in 0..depth % 4 {
            let side = at.join(format!("side-{branch}"));
            fs::create_dir_all(side.join("a/b/c")).unwrap();
            fs::write(side.join("a/file"), "x").unwrap();
            made += 5;
        }
        fs::write(at.join("file"), "x").unwrap();
        at.push("down");
        fs::create_dir(&at).unwrap();
        made += 2;
    }
    made
}

#[test]
fn removes_files_links_and_trees() {
    let room = tempfile::tempdir().unwrap();
    let path = |name: &str| room.path().join(name);
    fs::create_dir(path("kept")).unwrap();
    fs::write(path("kept/file"), "kept").unwrap();
    fs::write(path("file"), "x").unwrap();
    symlink(path("kept"), path("link")).unwrap();
    fs::create_dir_all(path("tree/a/b")).unwrap();
    symlink(path("kept"), path("tree/a/link")).unwrap();
    symlink("/nowhere", path("tree/dangling")).unwrap();
    for name in ["file", "link", "tree", "absent"] {
        remove_path(&path(name)).unwrap();
        assert!(path(name).symlink_metadata().is_err(), "{name}");
    }
    remove_path(&path("no/such/folder")).unwrap();
    assert_eq!(fs::read(path("kept/file")).unwrap(), b"kept");
    let dir = open_folder(room.path()).unwrap();
    for name in ["", ".", "..", "a/b", "/", "kept/../kept"] {
        assert!(matches!(remove(dir.as_fd(), OsStr::new(name)), Err(Error::Name { .. })), "{name}");
    }
    // Symlinks on the way to the parent folder are followed.
    symlink(path("kept"), path("way")).unwrap();
    remove_path(&path("way/file")).unwrap();
    assert!(!path("kept/file").exists());
}

#[test]
fn every_entry_of_a_deep_and_wide_tree_is_found_once() {
    let room = tempfile::tempdir().unwrap();
    let top = room.path().join("tree");
    let made = bushy(&top);
    let usage = usage_path(&top, far()).unwrap();
    assert_eq!((usage.inodes, usage.whole), (made, true));
    remove_path(&top).unwrap();
    assert!(!top.exists());
}

#[test]
fn usage_counts_links_once_and_follows_nothing() {
    let room = tempfile::tempdir().unwrap();
    let upper = room.path().join("upper");
    fs::create_dir_all(upper.join("a/b")).unwrap();
    fs::write(upper.join("a/file"), vec![1; 100_000]).unwrap();
    fs::hard_link(upper.join("a/file"), upper.join("link")).unwrap();
    symlink("/", upper.join("away")).unwrap();
    let found = usage_path(&upper, far()).unwrap();
    assert_eq!(found.inodes, 5, "upper, a, b, file, away");
    assert!((100_000..300_000).contains(&found.bytes), "{found:?}");
    assert!(usage_path(&room.path().join("none"), far()).is_err());
    assert_eq!(usage_path(&upper.join("away"), far()).unwrap().inodes, 1);
}

#[test]
fn usage_ends_at_its_time() {
    let room = tempfile::tempdir().unwrap();
    for number in 0..600 {
        fs::write(room.path().join(number.to_string()), "").unwrap();
    }
    let found = usage_path(room.path(), Instant::now()).unwrap();
    assert!(!found.whole && found.inodes < 600, "{found:?}");
}

/// A walk that is deeper than its open folders goes up through `..`. If the tree was moved, that must not lead out.
#[test]
fn a_folder_that_was_moved_away_does_not_lead_out() {
    let room = tempfile::tempdir().unwrap();
    let outside = room.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("file"), "kept").unwrap();
    let deep: PathBuf = std::iter::once("tree").chain(std::iter::repeat_n("d", 40)).collect();
    fs::create_dir_all(room.path().join(&deep)).unwrap();
    let dir = open_folder(room.path()).unwrap();
    let mut walk = Walk::open(dir.as_fd(), c"tree").unwrap();
    while let Some(entry) = walk.read() {
        walk.enter(entry.unwrap().file_name()).unwrap();
    }
    // This is the top one of the open folders, so its parent must be opened again.
    let moved: PathBuf = std::iter::once("tree").chain(std::iter::repeat_n("d", 25)).collect();
    fs::rename(room.path().join(moved), outside.join("moved")).unwrap();
    for _ in 0..15 {
        assert!(matches!(walk.leave(Next::Same), Left::Parent { name: Some(_) }));
    }
    assert!(matches!(walk.leave(Next::Same), Left::Lost));
    remove_path(&room.path().join("tree")).unwrap();
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"kept");
    assert!(outside.join("moved").exists());
}

#[test]
fn trash_takes_at_once_and_empties_itself() {
    let room = tempfile::tempdir().unwrap();
    let path = |name: &str| room.path().join(name);
    let report = |error: &Error| panic!("{error}");
    let trash = Trash::new(path("trash"), report);
    bushy(&path("tree"));
    fs::write(path("file"), "x").unwrap();
    for name in ["tree", "file", "absent"] {
        trash.take(&path(name)).unwrap();
        assert!(!path(name).exists(), "{name}");
    }
    until("an empty trash", || fs::read_dir(path("trash")).unwrap().count() == 0);
    // What an earlier process left there, and in a folder of incomplete files.
    bushy(&path("trash/left"));
    fs::create_dir(path("made")).unwrap();
    bushy(&path("made/left"));
    let own = path("made").join(trash.unique_name());
    fs::write(&own, "x").unwrap();
    let trash = Trash::resting(path("trash"), report);
    let mine = path("made").join(trash.unique_name());
    fs::write(&mine, "x").unwrap();
    assert!(path("trash/left").exists() && own.exists());
    trash.leftovers(path("made"));
    until("both to be swept", || {
        fs::read_dir(path("trash")).unwrap().count() == 0 && fs::read_dir(path("made")).unwrap().count() == 1
    });
    assert!(mine.exists() && !own.exists());
    bushy(&path("trash/left"));
    drop(Trash::new(path("trash"), report));
    until("the start of another process", || fs::read_dir(path("trash")).unwrap().count() == 0);
}

#[test]
fn waiting_for_the_trash_frees_its_space() {
    let room = tempfile::tempdir().unwrap();
    let (tree, folder) = (room.path().join("tree"), room.path().join("trash"));
    fs::create_dir(&tree).unwrap();
    for number in 0..20_000 {
        fs::write(tree.join(number.to_string()), "").unwrap();
    }
    let trash = Trash::new(folder.clone(), |error| panic!("{error}"));
    trash.take(&tree).unwrap();
    trash.wait(Duration::from_secs(60));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    // It does not wait if there is nothing to do.
    trash.wait(Duration::from_secs(3600));
}

#[test]
fn a_held_value_is_dropped_after_the_removal() {
    use std::sync::mpsc::{RecvTimeoutError, channel};
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let trash = Trash::new(path("trash"), |error| panic!("{error}"));
    let mut ends = Vec::new();
    for number in 0..20 {
        let tree = path(&number.to_string());
        bushy(&tree);
        let (guard, end) = channel::<()>();
        trash.take_holding(&tree, guard).unwrap();
        ends.push(end);
    }
    for end in ends {
        assert_eq!(end.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    }
    assert_eq!(fs::read_dir(path("trash")).unwrap().count(), 0);
    // A path that does not exist is not an error.
    let (guard, end) = channel::<()>();
    trash.take_holding(&path("absent"), guard).unwrap();
    assert_eq!(end.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
}
