//! The files of one cgroup. They stay open while the cgroup is attached and are read with pread(2): opening a file takes
//! twice as long as reading it. Which they are is decided when they are opened, by the version of the host's cgroups.

use super::rate::Samples;
use super::reading::{Cpu, Io, PodUsage};
use crate::cgroups::Cgroups;
use crate::clock::now;
use file::OpenFile;
use spec::resources::Version;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

mod file;
mod pressure;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

pub(super) use file::Failed;
pub(super) use pressure::is_measured as measures_pressure;

/// The files of an attached cgroup, and its CPU samples.
#[derive(Debug)]
pub(super) struct CgroupFiles {
    accounts: Accounts,
    pids: Option<OpenFile>,
    pressure: pressure::Files,
    samples: Mutex<Samples>,
}

/// The files that differ between the versions.
#[derive(Debug)]
enum Accounts {
    V1(v1::Files),
    V2(v2::Files),
}

impl CgroupFiles {
    /// Opens the files of a cgroup. `has_pressure`: [`measures_pressure`].
    pub(super) fn open(cgroups: &Cgroups, cgroup: &str, has_pressure: bool) -> Result<Self, Failed> {
        let open = |controller: &str, name: &str| {
            OpenFile::open(cgroups.folder(controller, cgroup).unwrap_or_default().join(name))
        };
        Self::opened_by(open, cgroups.version(), has_pressure)
    }

    /// `open` opens a file of a controller.
    fn opened_by(
        open: impl Fn(&str, &str) -> Result<OpenFile, Failed>,
        version: Version,
        has_pressure: bool,
    ) -> Result<Self, Failed> {
        Ok(Self {
            accounts: match version {
                Version::V1 => Accounts::V1(v1::Files::open(&open)?),
                Version::V2 => Accounts::V2(v2::Files::open(&open)?),
            },
            pids: open("pids", "pids.current").ok(),
            pressure: if has_pressure { pressure::Files::open(&open) } else { pressure::Files::default() },
            samples: Mutex::default(),
        })
    }

    fn samples(&self) -> MutexGuard<'_, Samples> {
        // No panic can leave samples half-changed.
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cpu(&self) -> Result<u64, Failed> {
        match &self.accounts {
            Accounts::V1(files) => files.cpu(),
            Accounts::V2(files) => files.cpu(),
        }
    }

    /// Takes a sample of the CPU time.
    pub(super) fn sample(&self) -> Result<(), Failed> {
        let usage = self.cpu()?;
        self.samples().take(Instant::now(), usage);
        Ok(())
    }

    /// Reads all files.
    pub(super) fn read(&self) -> Result<PodUsage, Failed> {
        let timestamp = now();
        let usage = self.cpu()?;
        let usage_nano_cores = self.samples().rate(Instant::now(), usage);
        let charge = match &self.accounts {
            Accounts::V1(files) => files.charge()?,
            Accounts::V2(files) => files.charge()?,
        };
        let psi = self.pressure.cpu();
        Ok(PodUsage {
            cpu: Cpu { timestamp, usage_core_nano_seconds: usage, usage_nano_cores, psi },
            memory: charge.memory(timestamp, self.pressure.memory()),
            swap: charge.swap(timestamp),
            io: self.pressure.io().map(|psi| Io { timestamp, psi }),
            pids: self.pids.as_ref().map(OpenFile::number).transpose()?,
        })
    }
}
