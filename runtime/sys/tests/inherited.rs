//! Descriptors that were inherited by execve. The only test of its process, because they can be claimed only once.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
use sys::fds::Inherited;

#[test]
fn only_descriptors_without_owner_are_claimed_and_only_once() {
    let owned = File::open("/dev/null").unwrap();
    // Like inherited ones: open, without close-on-exec, and without an owner in this program.
    let [taken, left] = [(); 2].map(|()| {
        let file = File::open("/dev/null").unwrap();
        fcntl_setfd(&file, FdFlags::empty()).unwrap();
        let number = file.as_raw_fd();
        std::mem::forget(file);
        number
    });
    // Beyond those that may be claimed.
    let beyond = fcntl_dupfd_cloexec(&owned, 100).unwrap();
    fcntl_setfd(&beyond, FdFlags::empty()).unwrap();
    let mut inherited = Inherited::claim(64).unwrap();
    let fd = inherited.take(taken).unwrap();
    assert_eq!(fd.as_raw_fd(), taken);
    assert!(fcntl_getfd(&fd).unwrap().contains(FdFlags::CLOEXEC));
    for number in [taken, owned.as_raw_fd(), 1, -1] {
        let refused = inherited.take(number).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(9), "{number}");
    }
    assert!(inherited.take(beyond.as_raw_fd()).is_err());
    assert!(fcntl_getfd(&beyond).unwrap().contains(FdFlags::CLOEXEC));
    drop(inherited);
    let open = |number: i32| std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
    assert!(!open(left) && open(taken) && open(1));
    assert_eq!(Inherited::claim(64).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
}
