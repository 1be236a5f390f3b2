//! Device programs in the kernel, with the generator of spec, as root. Its own harness: children that begin in a
//! cgroup (CLONE_INTO_CGROUP) want a process of one thread.
//!
//! Needs a mounted cgroup v2, which also a host with v1 has (hybrid); the comparison also v1's device controller.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, PipeReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::fs::{Access, CWD, FileType, Mode, OFlags, access, makedev, mknodat, open};
use spec::devices::{DeviceRule, MAX_NODES, program, rules};
use sys::bpf::{self, attach_devices, replace_devices};
use sys::clone::{Child, Flags, clone3_pidfd};

/// A name and what it does.
type Test = (&'static str, fn(&Room));

/// Every test.
const TESTS: &[Test] = &[
    ("privileged_a_program_decides_from_the_first_instruction_on", a_program_decides),
    ("privileged_the_greatest_program_is_accepted", the_greatest_program_is_accepted),
    ("privileged_errors_say_what_the_kernel_says", errors_say_what_the_kernel_says),
    ("privileged_v1_and_v2_answer_alike", v1_and_v2_answer_alike),
];
const EPERM: u8 = 1;

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let listing = std::env::args().any(|arg| arg == "--list");
    for (name, test) in TESTS {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter)) {
            continue;
        }
        if listing {
            println!("{name}: test");
            continue;
        }
        match hierarchy("cgroup2", "") {
            Some(unified) => {
                test(&Room::new(&unified));
                println!("test {name} ... ok");
            }
            None => println!("test {name} ... ignored: no cgroup v2 is mounted on this host"),
        }
    }
}

/// Where a hierarchy is mounted, by file system type and an option.
fn hierarchy(kind: &str, option: &str) -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    sys::mountinfo::mounts(&text)
        .find(|mount| {
            let has = option.is_empty() || mount.options.split(',').any(|own| own == option);
            mount.kind == kind && mount.root == "/" && has
        })
        .map(|mount| mount.point())
}

/// A cgroup of this test, and a folder for nodes. Both are removed in any case.
struct Room {
    path: PathBuf,
    cgroup: File,
    nodes: tempfile::TempDir,
}

impl Room {
    fn new(hierarchy: &Path) -> Self {
        let path = hierarchy.join(format!("copepod-test-{}-devices", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self { cgroup: File::open(&path).unwrap(), path, nodes: tempfile::tempdir().unwrap() }
    }

    /// Creates a node for the tests, outside the cgroup, and returns its path.
    fn node(&self, kind: char, major: u32, minor: u32) -> PathBuf {
        let path = self.nodes.path().join(format!("{kind}-{major}-{minor}"));
        make_node(&path, kind, major, minor).unwrap();
        path
    }

    /// Runs `work` in a process that begins in the cgroup, and returns what it returned.
    fn child(&self, work: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
        let (mut results, mut writer) = io::pipe().unwrap();
        let child = clone3_pidfd(Flags::NEWUTS, Some(self.cgroup.as_fd()), || {
            writer.write_all(&work()).map_or(1, |()| 0)
        });
        drop(writer);
        let mut found = Vec::new();
        results.read_to_end(&mut found).unwrap();
        assert_eq!(Running(child.unwrap()).reap(), 0);
        found
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let removed = fs::remove_dir(&self.path);
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

/// A child, which is killed if the test fails before it has ended.
struct Running(Child);

impl Running {
    /// Waits for it; its exit status.
    fn reap(&self) -> i32 {
        let pid = rustix::process::Pid::from_raw(self.0.pid.cast_signed()).unwrap();
        let ended = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        ended.unwrap().unwrap().1.exit_status().unwrap_or(-1)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() && sys::pidfd::send_signal(self.0.pidfd.as_fd(), 9).is_ok() {
            self.reap();
        }
    }
}

fn make_node(path: &Path, kind: char, major: u32, minor: u32) -> rustix::io::Result<()> {
    let kind = if kind == 'c' { FileType::CharacterDevice } else { FileType::BlockDevice };
    mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, makedev(major, minor))
}

/// The kernel's error number, 0 for none. All that occur are below 256.
fn errno<T>(result: rustix::io::Result<T>) -> u8 {
    result.map_or_else(|error| u8::try_from(error.raw_os_error()).unwrap_or(u8::MAX), |_| 0)
}

fn rule(allow: bool, kind: char, major: Option<u32>, minor: Option<u32>, access: &str) -> DeviceRule {
    DeviceRule { allow, kind, major, minor, access: access.to_owned() }
}

fn instructions(rules: &[DeviceRule]) -> Vec<u64> {
    program(rules).unwrap().instructions().to_vec()
}

fn wait_for_byte(reader: &mut PipeReader) {
    reader.read_exact(&mut [0]).unwrap();
}

/// A program that is attached before a process joins decides about its first open; one that replaces it decides
/// about its next. Creating nodes is allowed by the rules of every container.
fn a_program_decides(room: &Room) {
    let kmsg = room.node('c', 1, 11);
    let default = rules(&[], false, &[]).unwrap();
    let begun = std::time::Instant::now();
    attach_devices(room.cgroup.as_fd(), &instructions(&default)).unwrap();
    println!("a container's program was made, verified and attached in {:.1?}", begun.elapsed());
    let made = room.nodes.path().join("made");
    let look = || {
        let open = |path: &Path| errno(open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()));
        let new = errno(make_node(&made, 'b', 7, 0));
        let used = open(&made);
        drop(fs::remove_file(&made));
        vec![open(Path::new("/dev/null")), open(Path::new("/dev/full")), open(&kmsg), new, used]
    };
    let strict = [0, 0, EPERM, 0, EPERM];
    assert_eq!(room.child(look), strict);

    // A process that runs on, while another program takes over: /dev/kmsg is allowed, /dev/full no more.
    let mut wider = default;
    wider.extend([rule(true, 'c', Some(1), Some(11), "rw"), rule(false, 'c', Some(1), Some(7), "rwm")]);
    let (mut results, mut report) = io::pipe().unwrap();
    let (mut go, mut say) = io::pipe().unwrap();
    let running = clone3_pidfd(Flags::NEWUTS, Some(room.cgroup.as_fd()), || {
        report.write_all(&look()).unwrap();
        wait_for_byte(&mut go);
        report.write_all(&look()).map_or(1, |()| 0)
    });
    let running = Running(running.unwrap());
    drop(report);
    let mut found = [0; 5];
    results.read_exact(&mut found).unwrap();
    assert_eq!(found, strict);
    replace_devices(room.cgroup.as_fd(), &instructions(&wider)).unwrap();
    say.write_all(b"x").unwrap();
    results.read_exact(&mut found).unwrap();
    assert_eq!(found, [0, EPERM, 0, 0, EPERM]);
    assert_eq!(running.reap(), 0);

    // All programs of a cgroup must allow; replacing leaves one.
    attach_devices(room.cgroup.as_fd(), &instructions(&rules(&[], false, &[]).unwrap())).unwrap();
    assert_eq!(room.child(look), [0, EPERM, EPERM, 0, EPERM]);
    replace_devices(room.cgroup.as_fd(), &instructions(&wider)).unwrap();
    assert_eq!(room.child(look), [0, EPERM, 0, 0, EPERM]);
    replace_devices(room.cgroup.as_fd(), &instructions(&[rule(false, 'a', None, None, "rwm")])).unwrap();
    assert_eq!(room.child(look), [EPERM; 4].into_iter().chain([2]).collect::<Vec<u8>>());
}

/// As many single devices as a container may have.
fn the_greatest_program_is_accepted(room: &Room) {
    let single = |n: usize| rule(true, 'b', Some(253), Some(u32::try_from(2 * n).unwrap()), "rw");
    let mut list = rules(&[], false, &[]).unwrap();
    list.extend((0..MAX_NODES).map(single));
    let instructions = instructions(&list);
    let begun = std::time::Instant::now();
    attach_devices(room.cgroup.as_fd(), &instructions).unwrap();
    println!("{} instructions were verified and attached in {:.1?}", instructions.len(), begun.elapsed());
    let [allowed, denied] = [2, 3].map(|minor| room.node('b', 253, minor));
    let found = room.child(|| {
        [&allowed, &denied].map(|node| errno(access(node, Access::READ_OK | Access::WRITE_OK))).to_vec()
    });
    assert_eq!(found, [0, EPERM]);
}

fn errors_say_what_the_kernel_says(room: &Room) {
    // exit, without a result
    let error = attach_devices(room.cgroup.as_fd(), &[0x95]).unwrap_err();
    assert!(matches!(error, bpf::Error::Load { instructions: 1, .. }), "{error:?}");
    assert_eq!(error.kernel().raw_os_error(), Some(13), "{error}");
    assert!(error.to_string().contains("R0"), "{error}");
    // r0 = 1; exit; r0 = 1; exit: the second half is not reached.
    let [set, exit] = [0x1_0000_00b4, 0x95];
    let error = attach_devices(room.cgroup.as_fd(), &[set, exit, set, exit]).unwrap_err();
    assert!(error.to_string().contains("unreachable"), "{error}");
    assert!(error.to_string().len() < 4096, "{error}");
    let folder = File::open(room.nodes.path()).unwrap();
    let error = attach_devices(folder.as_fd(), &[set, exit]).unwrap_err();
    assert!(matches!(error, bpf::Error::Attach(_)), "{error:?}");
    assert_eq!(error.kernel().raw_os_error(), Some(9), "{error}");
    assert!(matches!(replace_devices(folder.as_fd(), &[set, exit]), Err(bpf::Error::Find(_))));
    // None of them was attached.
    assert_eq!(room.child(|| vec![errno(open("/dev/null", OFlags::RDWR, Mode::empty()))]), [0]);
}

/// What a process sees of some nodes: access(2) with all modes, and mknod(2).
fn probe(nodes: &[(PathBuf, char, u32, u32)], new: &Path) -> Vec<u8> {
    let modes = [Access::EXISTS, Access::READ_OK, Access::WRITE_OK, Access::READ_OK | Access::WRITE_OK];
    let mut found = Vec::new();
    for (path, kind, major, minor) in nodes {
        found.extend(modes.map(|mode| errno(access(path, mode))));
        found.push(errno(make_node(new, *kind, *major, *minor)));
        drop(fs::remove_file(new));
    }
    found
}

/// Random lists, written to a real v1 cgroup and attached as a program to a v2 one.
fn v1_and_v2_answer_alike(room: &Room) {
    let Some(v1) = hierarchy("cgroup", "devices") else {
        println!("nothing is compared: this host has no device controller of cgroup v1");
        return;
    };
    let mut nodes = Vec::new();
    for kind in ['b', 'c'] {
        for (major, minor) in (1..4).flat_map(|major| (0..4).map(move |minor| (major, minor))) {
            nodes.push((room.node(kind, major, minor), kind, major, minor));
        }
    }
    let new = room.nodes.path().join("new");
    let number = || prop_oneof![4 => (1u32..4).prop_map(Some), 1 => Just(None)];
    let kind = prop_oneof![1 => Just('a'), 8 => Just('b'), 8 => Just('c')];
    let access = prop::sample::select(vec!["r", "w", "m", "rw", "wm", "rm", "rwm"]);
    let one = (any::<bool>(), kind, number(), number(), access)
        .prop_map(|(allow, kind, major, minor, access)| rule(allow, kind, major, minor, access));
    let lists = prop::collection::vec(one, 0..16);
    let mut runner = TestRunner::new(Config { cases: 100, failure_persistence: None, ..Config::default() });
    let (refused, all) = (Cell::new(0), Cell::new(0));
    let compared = runner.run(&lists, |list| {
        let v1_room = Room::new(&v1);
        for rule in &list {
            let file = if rule.allow { "devices.allow" } else { "devices.deny" };
            fs::write(v1_room.path.join(file), rule.to_string()).unwrap();
        }
        replace_devices(room.cgroup.as_fd(), &instructions(&list)).unwrap();
        let expected = in_v1(&v1_room, || probe(&nodes, &new));
        let found = room.child(|| probe(&nodes, &new));
        prop_assert_eq!(found.len(), nodes.len() * 5);
        all.set(all.get() + found.len());
        refused.set(refused.get() + found.iter().filter(|errno| **errno == EPERM).count());
        prop_assert_eq!(found, expected);
        Ok(())
    });
    compared.unwrap();
    let (refused, all) = (refused.get(), all.get());
    println!("v1 and v2 gave the same {all} answers, {refused} of them EPERM");
    assert!(all / 10 < refused && refused < all / 10 * 9, "{refused} of {all}");
}

/// Like [`Room::child`] for a cgroup of v1, which a process cannot begin in.
fn in_v1(room: &Room, work: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let (mut results, mut writer) = io::pipe().unwrap();
    let child = clone3_pidfd(Flags::NEWUTS, None, || {
        sys::cgroup::join(room.cgroup.as_fd(), false).unwrap();
        writer.write_all(&work()).map_or(1, |()| 0)
    });
    drop(writer);
    let mut found = Vec::new();
    results.read_to_end(&mut found).unwrap();
    assert_eq!(Running(child.unwrap()).reap(), 0);
    found
}
