//! Reads one cgroup of v1.

use super::device;
use crate::stats::parse;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Maximum size of a file in bytes. memory.stat has 2 KB; a `blkio` file has 120 bytes for each device.
const MAX_FILE: u64 = 64 << 10;
/// Maximum number of devices of one cgroup. A node has few; each makes ten samples.
const MAX_DEVICES: usize = 64;
/// Maximum number of sizes of huge pages. arm64 has four.
const MAX_PAGE_SIZES: usize = 16;

/// The values of one cgroup. Those that this kernel has no file for are `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    /// CPU.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// The devices with I/O.
    pub io: Vec<DeviceIo>,
    /// Huge pages, by their size.
    pub huge_pages: Vec<HugePages>,
    /// Tasks, threads included: `pids.current`.
    pub tasks: Option<u64>,
    /// `pids.max`; 0 means no limit.
    pub task_limit: Option<u64>,
}

/// CPU time and limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cpu {
    /// CPU time of all cores in nanoseconds: `cpuacct.usage`.
    pub usage: u64,
    /// In user mode, in ticks of a hundredth of a second: `cpuacct.stat`.
    pub user: Option<u64>,
    /// In kernel mode, in the same ticks.
    pub system: Option<u64>,
    /// `cpu.shares`.
    pub shares: Option<u64>,
    /// `cpu.cfs_period_us`.
    pub period: Option<u64>,
    /// `cpu.cfs_quota_us`; `None` without a quota.
    pub quota: Option<u64>,
    /// `cpu.stat`.
    pub throttling: Throttling,
}

/// `cpu.stat`: how the quota was enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Throttling {
    /// Periods that have passed while there was something to run.
    pub periods: Option<u64>,
    /// Those in which the quota was used up.
    pub throttled: Option<u64>,
    /// Nanoseconds for which tasks had to wait.
    pub nanoseconds: Option<u64>,
}

/// Memory. Bytes, unless a field says something else. The values of `memory.stat` are the `total_` ones, which include
/// the cgroups below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Memory {
    /// `memory.usage_in_bytes`.
    pub usage: u64,
    /// Usage without inactive page cache, never below 0.
    pub working_set: u64,
    /// `memory.max_usage_in_bytes`.
    pub max_usage: Option<u64>,
    /// `memory.failcnt`: how often the limit was reached.
    pub failures: Option<u64>,
    /// `memory.kmem.usage_in_bytes`.
    pub kernel: Option<u64>,
    /// Page cache.
    pub cache: Option<u64>,
    /// Anonymous memory.
    pub rss: Option<u64>,
    /// Mapped files.
    pub mapped_file: Option<u64>,
    /// Swap; `None` if the host does not account for it.
    pub swap: Option<u64>,
    /// Page faults of this cgroup alone, and with those below.
    pub faults: [Option<u64>; 2],
    /// The same for page faults that needed I/O.
    pub major_faults: [Option<u64>; 2],
    /// `memory.limit_in_bytes`; `None` without a limit, as the next two.
    pub limit: Option<u64>,
    /// `memory.memsw.limit_in_bytes`: memory and swap together.
    pub swap_limit: Option<u64>,
    /// `memory.soft_limit_in_bytes`.
    pub soft_limit: Option<u64>,
    /// Processes of this cgroup alone that the kernel killed because of a memory limit: `memory.oom_control`.
    pub oom_kills: Option<u64>,
}

/// I/O of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceIo {
    /// Path of the device, such as `/dev/sda`; empty if it does not exist any more.
    pub device: String,
    /// Major and minor number.
    pub number: (u32, u32),
    /// Bytes by operation (`Read`, `Write`, …).
    pub bytes: parse::Operations,
    /// Requests by operation.
    pub requests: parse::Operations,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HugePages {
    /// The size as in the names of the kernel's files, such as `2MB`.
    pub size: String,
    /// In use.
    pub usage: u64,
    /// The most that was in use.
    pub max_usage: Option<u64>,
}

/// One folder of a cgroup; without the hierarchy it has no files.
struct Folder(Option<PathBuf>);

impl Folder {
    /// A file that the kernel always has.
    fn text(&self, name: &str) -> io::Result<String> {
        let folder = self.0.as_deref().ok_or(io::ErrorKind::NotFound)?;
        text(&folder.join(name))
    }

    fn number(&self, name: &str) -> Option<u64> {
        parse::number(&self.text(name).ok()?)
    }

    /// The text of a file, empty if there is none.
    fn optional(&self, name: &str) -> String {
        self.text(name).unwrap_or_default()
    }
}

fn text(path: &Path) -> io::Result<String> {
    let bytes = sys::file::read_capped(File::open(path)?, MAX_FILE)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
}

/// Reads the cgroup whose folder in the hierarchy of a controller is `folder(controller)`. The required files are read
/// last: if these can be read, the cgroup existed all the time, and no value is missing because it was removed.
pub(super) fn read(folder: &dyn Fn(&str) -> Option<PathBuf>) -> io::Result<Group> {
    let at = |controller: &str| Folder(folder(controller));
    let (io, huge_pages) = (devices(&at("blkio")), huge_pages(&at("hugetlb")));
    let pids = at("pids");
    let (tasks, task_limit) = (pids.number("pids.current"), parse::task_limit(&pids.optional("pids.max")));
    let cpu = cpu(&at("cpu"), &at("cpuacct"))?;
    let memory = memory(&at("memory"))?;
    Ok(Group { cpu, memory, io, huge_pages, tasks, task_limit })
}

fn cpu(cpu: &Folder, cpuacct: &Folder) -> io::Result<Cpu> {
    let (split, throttling) = (cpuacct.optional("cpuacct.stat"), cpu.optional("cpu.stat"));
    let throttling = |key| parse::value_of(&throttling, key);
    let usage = cpuacct.text("cpuacct.usage")?;
    Ok(Cpu {
        usage: required("cpuacct.usage", parse::number(&usage))?,
        user: parse::value_of(&split, "user"),
        system: parse::value_of(&split, "system"),
        shares: cpu.number("cpu.shares"),
        period: cpu.number("cpu.cfs_period_us"),
        // -1 without a quota, which is not a number here.
        quota: cpu.number("cpu.cfs_quota_us"),
        throttling: Throttling {
            periods: throttling("nr_periods"),
            throttled: throttling("nr_throttled"),
            nanoseconds: throttling("throttled_time"),
        },
    })
}

fn memory(memory: &Folder) -> io::Result<Memory> {
    let oom = memory.optional("memory.oom_control");
    let number = |name: &str| memory.number(name);
    let (max_usage, failures) = (number("memory.max_usage_in_bytes"), number("memory.failcnt"));
    let kernel = number("memory.kmem.usage_in_bytes");
    let limit = |name: &str| number(name).and_then(parse::limit);
    let (bytes, soft_limit) = (limit("memory.limit_in_bytes"), limit("memory.soft_limit_in_bytes"));
    let swap_limit = limit("memory.memsw.limit_in_bytes");
    let stat = parse::memory_stat(&memory.text("memory.stat")?);
    let usage = required("memory.usage_in_bytes", parse::number(&memory.text("memory.usage_in_bytes")?))?;
    Ok(Memory {
        usage,
        working_set: stat.working_set(usage),
        max_usage,
        failures,
        kernel,
        cache: stat.cache,
        rss: stat.rss,
        mapped_file: stat.mapped_file,
        swap: stat.swap,
        faults: stat.faults,
        major_faults: stat.major_faults,
        limit: bytes,
        swap_limit,
        soft_limit,
        oom_kills: parse::value_of(&oom, "oom_kill"),
    })
}

fn required(name: &str, value: Option<u64>) -> io::Result<u64> {
    value.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{name} is not a number")))
}

/// I/O by device. The I/O scheduler bfq counts for its devices. For the others the kernel counts while it throttles, in
/// files of the same form; since Linux 6.10 only while some cgroup has a limit for the device. So both may be empty.
fn devices(blkio: &Folder) -> Vec<DeviceIo> {
    let read = |kind: &str, what: &str| {
        parse::devices(&blkio.optional(&format!("blkio.{kind}.{what}_recursive")), MAX_DEVICES)
    };
    let mut bytes = read("bfq", "io_service_bytes");
    let mut requests = read("bfq", "io_serviced");
    if bytes.is_empty() && requests.is_empty() {
        bytes = read("throttle", "io_service_bytes");
        requests = read("throttle", "io_serviced");
    }
    bytes
        .into_iter()
        .map(|(number, bytes)| DeviceIo {
            device: device::block(number.0, number.1).unwrap_or_default(),
            number,
            bytes,
            requests: requests.remove(&number).unwrap_or_default(),
        })
        .collect()
}

fn huge_pages(hugetlb: &Folder) -> Vec<HugePages> {
    let Some(entries) = hugetlb.0.as_deref().and_then(|folder| std::fs::read_dir(folder).ok()) else {
        return Vec::new();
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut sizes: Vec<HugePages> = names
        .filter_map(|name| {
            let size = parse::page_size(&name)?.to_owned();
            let max_usage = hugetlb.number(&format!("hugetlb.{size}.max_usage_in_bytes"));
            Some(HugePages { usage: hugetlb.number(&name)?, size, max_usage })
        })
        .take(MAX_PAGE_SIZES)
        .collect();
    sizes.sort_by(|a, b| a.size.cmp(&b.size));
    sizes
}
