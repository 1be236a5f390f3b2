//! A file system that does not respond: FUSE without a server. It stands for a hung disk or NFS server.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Every access below the mount hangs until this is dropped, and then fails.
#[derive(Debug)]
pub(crate) struct Hang {
    place: PathBuf,
    device: Option<File>,
}

impl Hang {
    /// Mounts it on a new folder.
    pub(crate) fn new(place: &Path) -> Result<Self> {
        std::fs::create_dir_all(place)?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("open /dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        mount(Some("hung"), place, Some("fuse"), MsFlags::empty(), Some(options.as_str()))
            .context("mount a FUSE file system")?;
        Ok(Self { place: place.to_owned(), device: Some(device) })
    }

    /// A path below the mount.
    pub(crate) fn path(&self, name: &str) -> String {
        self.place.join(name).display().to_string()
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        // Closing the device ends the connection and all waiting accesses.
        drop(self.device.take());
        umount2(&self.place, MntFlags::MNT_DETACH).unwrap_or_default();
    }
}
