//! The files of cgroup v1.

use super::super::parse::{self, Charge, MemoryStat, SwapCharge};
use super::file::{Failed, OpenFile};

/// The files of memory and swap.
#[derive(Debug)]
pub(super) struct Files {
    usage: OpenFile,
    stat: OpenFile,
    limit: OpenFile,
    /// Limits memory and swap together.
    swap_limit: Option<OpenFile>,
}

impl Files {
    /// `open` opens a file of a controller.
    pub(super) fn open(open: impl Fn(&str, &str) -> Result<OpenFile, Failed>) -> Result<Self, Failed> {
        Ok(Self {
            usage: open("memory", "memory.usage_in_bytes")?,
            stat: open("memory", "memory.stat")?,
            limit: open("memory", "memory.limit_in_bytes")?,
            swap_limit: open("memory", "memory.memsw.limit_in_bytes").ok(),
        })
    }

    /// Memory and swap.
    pub(super) fn charge(&self) -> Result<Charge, Failed> {
        let usage = self.usage.number()?;
        let stat = self.stat.read(|text| Some(MemoryStat::v1(text)))?;
        let limit = parse::limit(self.limit.number()?);
        let both = self.swap_limit.as_ref().map(OpenFile::number).transpose()?.and_then(parse::limit);
        let swap_limit = both.zip(limit).map(|(both, memory)| both.saturating_sub(memory));
        Ok(Charge {
            usage,
            stat,
            limit,
            swap: stat.swap.map(|usage| SwapCharge { usage, limit: swap_limit }),
        })
    }
}
