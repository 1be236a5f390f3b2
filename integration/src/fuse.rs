//! FUSE file systems that hang, like a disk or an NFS server that has failed. [`Hang`] has no server: every access
//! hangs. [`Stuck`] responds to look-ups but never to reads: it has one folder with one executable file, served
//! through /dev/fuse (linux/fuse.h, protocol 7.31), and reads of the file hang until it is unmounted.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Larger than any request: the kernel requires space for a write of the allowed size and its header.
const BUFFER: usize = 1 << 18;
/// Inode number of the file; the folder has 1.
const FILE: u64 = 2;

/// FUSE_READ.
const READ: u64 = 15;

/// Mounts a FUSE file system at a folder; returns the device by which it is served.
fn mounted(dir: &Path, kind: &str) -> Result<File> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("open /dev/fuse")?;
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    mount(Some("copepod-test"), dir, Some(kind), MsFlags::empty(), Some(data.as_str()))
        .with_context(|| format!("mount FUSE at {}", dir.display()))?;
    Ok(device)
}

/// A file system without a server. Every access below it hangs until this is dropped, and then fails.
#[derive(Debug)]
pub(crate) struct Hang {
    dir: PathBuf,
    device: Option<File>,
}

impl Hang {
    /// Mounts it over a folder, which is created if it is missing.
    pub(crate) fn mount(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned(), device: Some(mounted(dir, "fuse")?) })
    }

    /// A path below the mount.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        // Closing the device ends the connection and all waiting accesses.
        drop(self.device.take());
        umount2(&self.dir, MntFlags::MNT_DETACH).unwrap_or_default();
    }
}

/// A file system whose reads hang. Dropping it ends all waiting requests with errors.
#[derive(Debug)]
pub(crate) struct Stuck {
    dir: PathBuf,
    reads: Arc<AtomicUsize>,
}

impl Stuck {
    /// Mounts it over a folder.
    pub(crate) fn mount(dir: &Path) -> Result<Self> {
        let device = mounted(dir, "fuse.stuck")?;
        // The thread ends with the mount: its next read fails with ENODEV.
        let reads = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&reads);
        std::thread::spawn(move || serve(&device, &counted));
        Ok(Self { dir: dir.to_owned(), reads })
    }

    /// Whether a process has asked for the content of the file. The process's state alone does not show it: a process
    /// that waits for a look-up is in state D too.
    pub(crate) fn is_read(&self) -> bool {
        self.reads.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        // Forced, so that waiting requests end first; the folder may still be in use.
        umount2(&self.dir, MntFlags::MNT_FORCE).unwrap_or_default();
        umount2(&self.dir, MntFlags::MNT_DETACH).unwrap_or_default();
    }
}

fn serve(mut device: &File, reads: &AtomicUsize) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(length) = device.read(&mut buffer) {
        let request = buffer.get(..length).unwrap_or_default();
        let (opcode, unique, node) =
            (number::<4>(request, 4), number::<8>(request, 8), number::<8>(request, 16));
        if opcode == READ {
            reads.fetch_add(1, Ordering::Relaxed);
        }
        let answer = match opcode {
            // FORGET, BATCH_FORGET and INTERRUPT have no reply; READ gets none.
            2 | 42 | 36 | READ => continue,
            // INIT: 7.31, small writes, no options.
            26 => Ok([le(7, 4), le(31, 4), le(0, 4), le(0, 4), le(0, 4), le(4096, 4), le(1, 4), le(0, 36)]
                .concat()),
            // LOOKUP of any name.
            1 => Ok([le(FILE, 8), le(0, 8), le(1, 8), le(1, 8), le(0, 8), attributes(FILE)].concat()),
            // GETATTR
            3 => Ok([le(1, 8), le(0, 8), attributes(node)].concat()),
            // OPEN, OPENDIR
            14 | 27 => Ok(le(0, 16)),
            // READDIR of an empty folder, RELEASE, RELEASEDIR, FLUSH
            28 | 18 | 29 | 25 => Ok(Vec::new()),
            _ => Err(nix::errno::Errno::ENOSYS),
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(error) => ((error as i32).wrapping_neg(), Vec::new()),
        };
        let length = u64::try_from(16 + body.len()).unwrap_or_default();
        let error = error.to_le_bytes().to_vec();
        if device.write_all(&[le(length, 4), error, le(unique, 8), body].concat()).is_err() {
            // A request that was interrupted meanwhile expects no reply.
            continue;
        }
    }
}

/// `struct fuse_attr`: a folder, or an executable file of one page.
fn attributes(node: u64) -> Vec<u8> {
    let mode = if node == FILE { 0o100_755 } else { 0o040_755 };
    [le(node, 8), le(4096, 8), le(8, 8), le(0, 36), le(mode, 4), le(1, 4), le(0, 12), le(4096, 4), le(0, 4)]
        .concat()
}

/// A little-endian number, padded to `length` bytes.
fn le(value: u64, length: usize) -> Vec<u8> {
    let mut bytes = value.to_le_bytes().to_vec();
    bytes.resize(length, 0);
    bytes
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + N)
        .unwrap_or_default()
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}
