//! File systems that tests mount: a small ext4 for a node's root, which can be filled and broken, and others that
//! lie over a folder for a while.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::expect::ensure;
use crate::isolation::command;

/// Mounted at a folder. On drop it is unmounted and its image removed.
#[derive(Debug)]
pub(crate) struct Disk {
    at: PathBuf,
    image: PathBuf,
}

impl Disk {
    /// Mounts a new file system of this many MiB and inodes at a folder.
    pub(crate) fn mount(at: &Path, mib: u64, inodes: u32) -> Result<Self> {
        let image = at.with_added_extension("ext4");
        File::create(&image)?.set_len(mib << 20)?;
        let (place, count) = (image.display().to_string(), inodes.to_string());
        // No reserved blocks: the daemon runs as root and could use them.
        command("mkfs.ext4", &["-q", "-m", "0", "-N", &count, &place]).context("make an ext4")?;
        let disk = Self { at: at.to_owned(), image };
        command("mount", &["-o", "loop", &place, &at.display().to_string()]).context("mount an ext4")?;
        Ok(disk)
    }

    /// Replaces the file system by a copy of its device, as after a repair. Whoever still uses the original does not write to
    /// the copy.
    pub(crate) fn copied(self) -> Result<Self> {
        let copy = self.at.with_added_extension("copy.ext4");
        fs::copy(&self.image, &copy).context("copy the image of an ext4")?;
        let at = self.at.clone();
        drop(self);
        let disk = Self { at: at.clone(), image: copy };
        let place = disk.image.display().to_string();
        command("mount", &["-o", "loop", &place, &at.display().to_string()])
            .context("mount a copy of an ext4")?;
        Ok(disk)
    }

    /// Fills all blocks.
    pub(crate) fn fill_bytes(&self) -> Result<()> {
        let mut file = File::create(self.at.join("fill"))?;
        let mut block = vec![1; 1 << 16];
        loop {
            match file.write(&block) {
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::StorageFull && block.len() > 1 => {
                    block.truncate(block.len() / 2);
                }
                Err(e) if e.kind() == std::io::ErrorKind::StorageFull => break,
                Err(e) => return Err(e.into()),
            }
        }
        // The sync ends delayed allocation, so that reserved blocks are really allocated.
        Ok(file.sync_all()?)
    }

    /// Creates empty files until no inode is left.
    pub(crate) fn fill_inodes(&self) -> Result<()> {
        let dir = self.at.join("fill.d");
        fs::create_dir_all(&dir)?;
        for n in 0..10_000_000_u64 {
            match File::create(dir.join(n.to_string())) {
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
        bail!("the file system has too many inodes to fill")
    }

    /// Removes the filling files.
    pub(crate) fn free(&self) -> Result<()> {
        drop(fs::remove_file(self.at.join("fill")));
        drop(fs::remove_dir_all(self.at.join("fill.d")));
        Ok(())
    }

    /// Puts the file system into the state after a disk error, in which it takes no writes; returns whether it can be read. It
    /// can, but with Linux 6.6 to 6.14 only if no file is open for writing.
    pub(crate) fn abort(&self) -> Result<bool> {
        let place = self.at.display().to_string();
        // The same for who uses it.
        let set_read_only = || command("mount", &["-o", "remount,ro", &place]).is_ok();
        let stays_readable = can_be_read_after_an_error()?;
        let readable = stays_readable || set_read_only();
        if stays_readable || !readable {
            self.fail();
        }
        let wrote = File::create(self.at.join("still-writable"));
        ensure!(wrote.is_err(), "the file system still takes files after an error");
        Ok(readable)
    }

    /// Has ext4 do what it does when it finds an error.
    fn fail(&self) {
        // mount(8) reports that the remount failed, which is expected.
        drop(command("mount", &["-o", "remount,abort", &self.at.display().to_string()]));
    }
}

/// Whether ext4 is read-only after an error, as its documentation says. Linux 6.6 to 6.14 refuse to read it too.
fn can_be_read_after_an_error() -> Result<bool> {
    let folder = tempfile::tempdir()?;
    let at = folder.path().join("at");
    fs::create_dir(&at)?;
    let disk = Disk::mount(&at, 16, 64)?;
    fs::write(at.join("file"), "content")?;
    disk.fail();
    Ok(fs::read(at.join("file")).is_ok())
}

/// A file system over a folder; unmounted on drop.
#[derive(Debug)]
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// A tmpfs over a folder, which is created if it is missing. `options` are those of tmpfs(5).
    pub(crate) fn tmpfs(at: &Path, options: &str) -> Result<Self> {
        fs::create_dir_all(at)?;
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options))
            .with_context(|| format!("mount a tmpfs at {}", at.display()))?;
        Ok(Self(at.to_owned()))
    }

    /// The hierarchy of a cgroup v1 controller. It fails if the controller is in another hierarchy, or not in the kernel.
    pub(crate) fn v1(controller: &str, at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        mount(Some("cgroup"), at, Some("cgroup"), MsFlags::empty(), Some(controller))
            .with_context(|| format!("mount the hierarchy of {controller} at {}", at.display()))?;
        Ok(Self(at.to_owned()))
    }

    /// A bind mount of a file or folder.
    pub(crate) fn bind(from: &Path, at: &Path) -> Result<Self> {
        mount(Some(from), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("bind-mount {} at {}", from.display(), at.display()))?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap_or_default();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(&self.at, MntFlags::MNT_DETACH).unwrap_or_default();
        drop(fs::remove_file(&self.image));
    }
}
