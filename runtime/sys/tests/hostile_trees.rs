//! Removal of hostile trees. Needs root, for mounts. The tests run one after another in one process, so that
//! its memory and descriptors can be limited: 16 MiB more than at rest, 64 descriptors.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, linkat, mkdirat, openat, renameat_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sys::mount::{self, Attributes, PropagationType};
use sys::tree::{self, Error};

/// Bytes of memory that a removal may need.
const MEMORY: u64 = 16 << 20;

#[test]
fn hostile_trees_are_removed_and_nothing_else() {
    sys::namespace::unshare_mount().unwrap();
    mount::change(Path::new("/"), PropagationType::Private, true).unwrap();
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: before.maximum }).unwrap();
    for (name, case) in [
        ("ten thousand levels", ten_thousand_levels as fn(&Path)),
        ("more levels than are remembered", more_levels_than_are_remembered),
        ("long names", long_names),
        ("a million names", a_million_names),
        ("mounts", mounts_are_not_entered),
        ("a link for a folder", a_link_is_swapped_in),
        ("folders that move", folders_move_out),
        ("immutable", immutable_files),
        ("no descriptor left", few_descriptors),
    ] {
        let room = tempfile::tempdir().unwrap();
        let start = Instant::now();
        case(room.path());
        println!("{name}: {:.1?}", start.elapsed());
    }
}

/// Runs `work` and checks its peak memory.
fn measured<T>(work: impl FnOnce() -> T) -> T {
    // "5" sets the peak to what is in use (proc_pid_clear_refs(5)).
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak();
    let outcome = work();
    let took = peak().saturating_sub(before);
    assert!(took <= MEMORY, "{took} bytes of memory");
    outcome
}

fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

fn folder(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// Creates `levels` nested folders below `top`.
fn chain(top: &Path, name: &str, levels: u32) {
    fs::create_dir(top).unwrap();
    let mut at = folder(top);
    for _ in 0..levels {
        mkdirat(&at, name, Mode::RWXU).unwrap();
        at = openat(&at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    }
    rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
}

fn gone(tree: &Path) {
    assert!(tree.symlink_metadata().is_err(), "{} is still there", tree.display());
}

fn ten_thousand_levels(room: &Path) {
    let tree = room.join("tree");
    chain(&tree, "d", 10_000);
    let usage = measured(|| tree::usage_path(&tree, far()).unwrap());
    assert_eq!((usage.inodes, usage.whole), (10_002, true));
    measured(|| tree::remove_path(&tree).unwrap());
    gone(&tree);
}

fn more_levels_than_are_remembered(room: &Path) {
    let tree = room.join("tree");
    chain(&tree, "d", 20_000);
    // It may end early, because the top folders are forgotten, but it must end.
    let usage = measured(|| tree::usage_path(&tree, far()).unwrap());
    assert!(usage.inodes >= 20_000, "{usage:?}");
    measured(|| tree::remove_path(&tree).unwrap());
    gone(&tree);
}

fn long_names(room: &Path) {
    let tree = room.join("tree");
    chain(&tree, &"n".repeat(255), 3_000);
    measured(|| tree::remove_path(&tree).unwrap());
    gone(&tree);
}

/// A million names in one folder: hard links, which are faster to create than files and equal for a folder.
fn a_million_names(room: &Path) {
    let tree = room.join("tree");
    fs::create_dir(&tree).unwrap();
    let at = folder(&tree);
    let mut file = String::new();
    for number in 0..1_000_000_u32 {
        let name = format!("file-{number}");
        // ext4 allows at most 65,000 links per file.
        if number % 50_000 == 0 {
            fs::write(tree.join(&name), "x").unwrap();
            file = name;
        } else {
            linkat(&at, &file, &at, &name, rustix::fs::AtFlags::empty()).unwrap();
        }
    }
    let usage = measured(|| tree::usage_path(&tree, far()).unwrap());
    assert_eq!((usage.inodes, usage.whole), (21, true));
    measured(|| tree::remove_path(&tree).unwrap());
    gone(&tree);
}

fn mounts_are_not_entered(room: &Path) {
    let (tree, host) = (room.join("tree"), room.join("host"));
    for path in ["tree/a/tmpfs", "tree/b/bind", "tree/c/gone", "tree/d/e", "host/deep/er"] {
        fs::create_dir_all(room.join(path)).unwrap();
    }
    for path in ["host/file", "host/deep/er/file", "tree/d/file", "tree/c/file"] {
        fs::write(room.join(path), "kept").unwrap();
    }
    let tmpfs = mount::tmpfs(0o755, 1 << 20, Attributes::default()).unwrap();
    mount::attach_at(tmpfs.as_fd(), &tree.join("a/tmpfs")).unwrap();
    fs::write(tree.join("a/tmpfs/file"), "kept").unwrap();
    // A mount of the same file system: the device number does not differ.
    let bind = |from: &Path, to: &Path| {
        let clone = mount::clone(mount::open_path(from).unwrap().as_fd(), true).unwrap();
        mount::attach_at(clone.as_fd(), to).unwrap();
    };
    bind(&host, &tree.join("b/bind"));
    bind(&host.join("file"), &tree.join("d/file"));
    let inodes = tree::usage_path(&tree, far()).unwrap().inodes;
    assert!(inodes <= 11, "{inodes}: mounts were counted");
    let error = tree::remove_path(&tree).unwrap_err();
    assert!(matches!(error, Error::Mounted { .. }), "{error}");
    assert!(error.to_string().contains(room.to_str().unwrap()), "{error}");
    for path in ["host/file", "host/deep/er/file", "tree/a/tmpfs/file", "tree/b/bind/file", "tree/d/file"] {
        assert_eq!(fs::read(room.join(path)).unwrap(), b"kept", "{path}");
    }
    // Parts without mounts were removed.
    gone(&tree.join("c"));
    gone(&tree.join("d/e"));
    // The top folder of the tree.
    assert!(matches!(tree::remove_path(&tree.join("b/bind")), Err(Error::Mounted { .. })));
    assert!(matches!(tree::remove_path(&tree.join("d/file")), Err(Error::Mounted { .. })));
    for path in ["a/tmpfs", "b/bind", "d/file"] {
        mount::detach(&tree.join(path)).unwrap();
    }
    tree::remove_path(&tree).unwrap();
    gone(&tree);
    assert_eq!(fs::read(host.join("deep/er/file")).unwrap(), b"kept");
}

fn a_link_is_swapped_in(room: &Path) {
    let outside = room.join("outside");
    fs::create_dir_all(outside.join("deep/er")).unwrap();
    fs::write(outside.join("deep/er/file"), "kept").unwrap();
    let links = room.join("links");
    fs::create_dir(&links).unwrap();
    for round in 0..200 {
        let tree = room.join("tree");
        fs::create_dir_all(tree.join("a/x/deep/er")).unwrap();
        fs::create_dir_all(tree.join("a/y/deep")).unwrap();
        let link = links.join(round.to_string());
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        let (at, held, stop) = (folder(&tree.join("a")), folder(&links), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Fails once either is removed.
                    let name = round.to_string();
                    if renameat_with(&at, "x", &held, &name, RenameFlags::EXCHANGE).is_err() {
                        break;
                    }
                }
            });
            let removed = tree::remove_path(&tree);
            stop.store(true, Ordering::Relaxed);
            removed.unwrap();
        });
        gone(&tree);
        assert_eq!(fs::read(outside.join("deep/er/file")).unwrap(), b"kept", "round {round}");
    }
}

/// Deep folders are moved out of the tree while they are emptied; other entries there must stay.
fn folders_move_out(room: &Path) {
    let outside = room.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "kept").unwrap();
    for round in 0..50 {
        let tree = room.join("tree");
        chain(&tree, "d", 60);
        let middle: std::path::PathBuf = std::iter::repeat_n("d", 30).collect();
        let stop = AtomicBool::new(false);
        let moved = outside.join("moved");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    drop(fs::rename(tree.join(&middle), &moved));
                    drop(fs::rename(&moved, tree.join("back")));
                }
            });
            let removed = tree::remove_path(&tree);
            stop.store(true, Ordering::Relaxed);
            if let Err(error) = removed {
                assert!(matches!(error, Error::Changing { .. }), "{error}");
            }
        });
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"kept", "round {round}");
        tree::remove_path(&tree).unwrap();
        tree::remove_path(&moved).unwrap();
    }
}

fn immutable_files(room: &Path) {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let tree = room.join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/b/file"), "x").unwrap();
    for path in ["a/b/file", "a/b", "a", ""] {
        let file = fs::File::open(tree.join(path)).unwrap();
        let Ok(flags) = ioctl_getflags(&file) else {
            println!("immutable: the file system has no such attribute");
            break;
        };
        ioctl_setflags(&file, flags | IFlags::IMMUTABLE).unwrap();
        assert!(fs::remove_dir(tree.join("a/b")).is_err());
    }
    tree::remove_path(&tree).unwrap();
    gone(&tree);
}

fn few_descriptors(room: &Path) {
    let tree = room.join("tree");
    chain(&tree, "d", 1_000);
    let dir = folder(room);
    let mut taken = Vec::new();
    while let Ok(fd) = dir.try_clone() {
        taken.push(fd);
    }
    // Some for the test harness, and six for the walk.
    taken.truncate(taken.len() - 6);
    let removed = tree::remove(dir.as_fd(), OsStr::new("tree"));
    drop(taken);
    removed.unwrap();
    gone(&tree);
}
