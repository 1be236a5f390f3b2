//! Sealed memfds: data that cannot be changed any more.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// A sealed memfd with `bytes`. The name shows in /proc/<pid>/fd.
///
/// # Errors
/// Out of memory or descriptors.
pub fn create_sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    seal(&file)?;
    Ok(file.into())
}

/// Forbids every change of a memfd's content permanently.
///
/// # Errors
/// fcntl(2), F_ADD_SEALS.
pub(crate) fn seal(file: &File) -> io::Result<()> {
    Ok(fcntl_add_seals(file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?)
}

/// Reads a whole file. Its offset, which the receivers of a memfd share, is neither used nor changed.
///
/// # Errors
/// InvalidData if it has more than `cap` bytes; read(2).
pub fn read_all(fd: BorrowedFd<'_>, cap: usize) -> io::Result<Vec<u8>> {
    let file = File::from(fd.try_clone_to_owned()?);
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if size > cap {
        let text = format!("{size} bytes, at most {cap} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn sealed_and_read_twice() {
        let fd = create_sealed("test", b"plan").unwrap();
        for _ in 0..2 {
            assert_eq!(read_all(fd.as_fd(), 4).unwrap(), b"plan");
        }
        assert_eq!(read_all(fd.as_fd(), 3).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(File::from(fd).write_all(b"x").is_err());
    }
}
