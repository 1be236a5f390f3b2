//! The files of one cgroup, read with pread(2). Which they are is decided when they are opened, by the version of the
//! host's cgroups.

use super::rate::Samples;
use super::reading::{Cpu, Io, PodUsage};
use super::{lock, parse};
use crate::cgroups::Cgroups;
use crate::clock::now;
use file::OpenFile;
use spec::resources::Version;
use std::sync::Mutex;
use std::time::Instant;

mod file;
mod pressure;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

pub(super) use file::Failed;
pub(super) use pressure::is_measured as measures_pressure;

/// The open files of a cgroup.
#[derive(Debug)]
pub(super) struct CgroupFiles {
    cpu: CpuFile,
    accounts: Accounts,
    pids: Option<OpenFile>,
    pressure: pressure::Files,
}

/// The file with the CPU time.
#[derive(Debug)]
pub(super) struct CpuFile {
    version: Version,
    file: OpenFile,
}

/// The other files that differ between the versions.
#[derive(Debug)]
enum Accounts {
    V1(v1::Files),
    V2(v2::Files),
}

/// Opens the file `name` of a cgroup in the hierarchy of `controller`.
fn open_file(cgroups: &Cgroups, cgroup: &str, controller: &str, name: &str) -> Result<OpenFile, Failed> {
    OpenFile::open(cgroups.folder(controller, cgroup).unwrap_or_default().join(name))
}

impl CpuFile {
    /// Opens the file of a cgroup.
    pub(super) fn open(cgroups: &Cgroups, cgroup: &str) -> Result<Self, Failed> {
        Self::opened_by(|controller, name| open_file(cgroups, cgroup, controller, name), cgroups.version())
    }

    /// `open` opens a file of a controller.
    fn opened_by(
        open: impl Fn(&str, &str) -> Result<OpenFile, Failed>,
        version: Version,
    ) -> Result<Self, Failed> {
        let name = match version {
            Version::V1 => "cpuacct.usage",
            Version::V2 => "cpu.stat",
        };
        Ok(Self { version, file: open("cpuacct", name)? })
    }

    /// CPU time in nanoseconds.
    fn read(&self) -> Result<u64, Failed> {
        match self.version {
            Version::V1 => self.file.number(),
            Version::V2 => self.file.read(|text| parse::microseconds_of(text, "usage_usec")),
        }
    }

    /// Takes a sample of the CPU time.
    pub(super) fn sample(&self, samples: &Mutex<Samples>) -> Result<(), Failed> {
        let usage = self.read()?;
        lock(samples).take(Instant::now(), usage);
        Ok(())
    }
}

impl CgroupFiles {
    /// Opens the files of a cgroup. `has_pressure`: [`measures_pressure`].
    pub(super) fn open(cgroups: &Cgroups, cgroup: &str, has_pressure: bool) -> Result<Self, Failed> {
        let open = |controller: &str, name: &str| open_file(cgroups, cgroup, controller, name);
        Self::opened_by(open, cgroups.version(), has_pressure)
    }

    /// `open` opens a file of a controller.
    fn opened_by(
        open: impl Fn(&str, &str) -> Result<OpenFile, Failed>,
        version: Version,
        has_pressure: bool,
    ) -> Result<Self, Failed> {
        Ok(Self {
            cpu: CpuFile::opened_by(&open, version)?,
            accounts: match version {
                Version::V1 => Accounts::V1(v1::Files::open(&open)?),
                Version::V2 => Accounts::V2(v2::Files::open(&open)?),
            },
            pids: open("pids", "pids.current").ok(),
            pressure: if has_pressure { pressure::Files::open(&open) } else { pressure::Files::default() },
        })
    }

    /// The file with the CPU time.
    pub(super) fn cpu(&self) -> &CpuFile {
        &self.cpu
    }

    /// Reads all files, and takes a sample of the CPU time.
    pub(super) fn read(&self, samples: &Mutex<Samples>) -> Result<PodUsage, Failed> {
        let timestamp = now();
        let usage = self.cpu.read()?;
        let usage_nano_cores = lock(samples).rate(Instant::now(), usage);
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
