//! A small ext4 file system of its own for a node's root, which can be filled and broken.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};

use crate::isolation::command;

/// Mounted at a folder; unmounted, and its image removed, when dropped.
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
        // Nothing kept for root: the daemon is root, and would use it.
        command("mkfs.ext4", &["-q", "-m", "0", "-N", &count, &place]).context("make an ext4")?;
        let disk = Self { at: at.to_owned(), image };
        command("mount", &["-o", "loop", &place, &at.display().to_string()]).context("mount an ext4")?;
        Ok(disk)
    }

    /// Fills it to the last block.
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
        // Delayed allocation is over then: what was promised is taken.
        Ok(file.sync_all()?)
    }

    /// Makes empty files until there is no inode left.
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
        bail!("inodes do not run out")
    }

    /// Gives back what was filled.
    pub(crate) fn free(&self) -> Result<()> {
        drop(fs::remove_file(self.at.join("fill")));
        drop(fs::remove_dir_all(self.at.join("fill.d")));
        Ok(())
    }

    /// Makes it what the kernel makes of a file system after an error of its disk: it reads, and writes nothing.
    pub(crate) fn abort(&self) -> Result<()> {
        // mount(8) says that the remount failed, which is the point of it.
        drop(command("mount", &["-o", "remount,abort", &self.at.display().to_string()]));
        let wrote = File::create(self.at.join("still-writable"));
        ensure!(wrote.is_err(), "the file system still takes files after `remount,abort`");
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(&self.at, MntFlags::MNT_DETACH).unwrap_or_default();
        drop(fs::remove_file(&self.image));
    }
}
