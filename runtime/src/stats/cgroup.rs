//! The files of one cgroup. They stay open while the cgroup is attached and are read with pread(2): opening a file takes
//! twice as long as reading it.

use super::parse;
use super::rate::Samples;
use super::reading::{Cpu, Io, PodUsage, Psi, Swap};
use crate::cgroups::Cgroups;
use crate::clock::now;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Maximum size in bytes of a cgroup file that is read. memory.stat has 2 KB.
const MAX_FILE: usize = 16 << 10;

/// The files of an attached cgroup, and its CPU samples.
#[derive(Debug)]
pub(super) struct CgroupFiles {
    cpu: OpenFile,
    memory_usage: OpenFile,
    memory_stat: OpenFile,
    memory_limit: OpenFile,
    swap_limit: Option<OpenFile>,
    pids: Option<OpenFile>,
    pressure: Option<Pressure>,
    samples: Mutex<Samples>,
}

/// Pressure files.
#[derive(Debug)]
struct Pressure {
    cpu: OpenFile,
    memory: OpenFile,
    io: OpenFile,
}

/// An open cgroup file, with its path for errors.
#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    file: File,
}

/// A file that could not be opened or read.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) file: PathBuf,
    pub(super) source: io::Error,
}

/// Whether cgroups have pressure files. Of v1 kernels, only those of some distributions have them.
pub(super) fn has_pressure(cgroups: &Cgroups) -> bool {
    cgroups.folder("cpuacct", "/").is_some_and(|root| root.join("cpu.pressure").exists())
}

impl CgroupFiles {
    /// Opens the files of a cgroup. `has_pressure`: [`has_pressure`].
    pub(super) fn open(cgroups: &Cgroups, cgroup: &str, has_pressure: bool) -> Result<Self, Failed> {
        let open = |controller: &str, name: &str| {
            let path = cgroups.folder(controller, cgroup).unwrap_or_default().join(name);
            match File::open(&path) {
                Ok(file) => Ok(OpenFile { path, file }),
                Err(source) => Err(Failed { file: path, source }),
            }
        };
        let pressure = |name: &str| open("cpuacct", name);
        Ok(Self {
            cpu: open("cpuacct", "cpuacct.usage")?,
            memory_usage: open("memory", "memory.usage_in_bytes")?,
            memory_stat: open("memory", "memory.stat")?,
            memory_limit: open("memory", "memory.limit_in_bytes")?,
            swap_limit: open("memory", "memory.memsw.limit_in_bytes").ok(),
            pids: open("pids", "pids.current").ok(),
            pressure: if has_pressure {
                Some(Pressure {
                    cpu: pressure("cpu.pressure")?,
                    memory: pressure("memory.pressure")?,
                    io: pressure("io.pressure")?,
                })
            } else {
                None
            },
            samples: Mutex::default(),
        })
    }

    fn samples(&self) -> std::sync::MutexGuard<'_, Samples> {
        // No panic can leave samples half-changed.
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a sample of the CPU time.
    pub(super) fn sample(&self) -> Result<(), Failed> {
        let usage = self.cpu.number()?;
        self.samples().take(Instant::now(), usage);
        Ok(())
    }

    /// Reads all files.
    pub(super) fn read(&self) -> Result<PodUsage, Failed> {
        let timestamp = now();
        let usage = self.cpu.number()?;
        let usage_nano_cores = self.samples().rate(Instant::now(), usage);
        let memory_usage = self.memory_usage.number()?;
        let stat = parse::memory_stat(&self.memory_stat.text()?);
        let limit = parse::limit(self.memory_limit.number()?);
        let swap_limit = self.swap_limit.as_ref().map(OpenFile::number).transpose()?;
        let pressure =
            |file: fn(&Pressure) -> &OpenFile| self.pressure.as_ref().and_then(|it| file(it).psi());
        let mut memory = parse::memory(timestamp, memory_usage, limit, &stat);
        memory.psi = pressure(|it| &it.memory);
        Ok(PodUsage {
            cpu: Cpu {
                timestamp,
                usage_core_nano_seconds: usage,
                usage_nano_cores,
                psi: pressure(|it| &it.cpu),
            },
            memory,
            swap: stat.swap.map(|used| {
                let total = swap_limit.and_then(parse::limit);
                let room = total.zip(limit).map(|(total, limit)| total.saturating_sub(limit));
                Swap {
                    timestamp,
                    swap_available_bytes: room.map(|room| room.saturating_sub(used)),
                    swap_usage_bytes: used,
                }
            }),
            io: pressure(|it| &it.io).map(|psi| Io { timestamp, psi }),
            pids: self.pids.as_ref().map(OpenFile::number).transpose()?,
        })
    }
}

impl OpenFile {
    fn text(&self) -> Result<String, Failed> {
        read_whole(&self.file).map_err(|source| self.failed(source))
    }

    fn number(&self) -> Result<u64, Failed> {
        let text = self.text()?;
        parse::number(&text).ok_or_else(|| {
            let source = io::Error::new(io::ErrorKind::InvalidData, format!("{:.40} is not a number", text));
            self.failed(source)
        })
    }

    /// `None` also if the kernel was started with psi=0: then these files exist, but reading them fails.
    fn psi(&self) -> Option<Psi> {
        parse::psi(&self.text().ok()?)
    }

    fn failed(&self, source: io::Error) -> Failed {
        Failed { file: Path::to_owned(&self.path), source }
    }
}

/// Reads a kernel file from its beginning, even if it was read before. A cgroup file is one record of a seq_file, so a
/// read that returns less than the buffer's size returned all of it. A second read, to find the end, would make the
/// kernel format the whole text again.
fn read_whole(file: &File) -> io::Result<String> {
    let mut bytes = vec![0; 4096];
    loop {
        let length = file.read_at(&mut bytes, 0)?;
        if length < bytes.len() {
            bytes.truncate(length);
            break;
        }
        if length >= MAX_FILE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than 16 KiB"));
        }
        bytes.resize(MAX_FILE, 0);
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
}
