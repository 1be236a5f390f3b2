//! The files of cgroup v2.

use super::super::parse::{self, Charge, MemoryStat, SwapCharge};
use super::file::{Failed, OpenFile};

/// The files of memory and swap.
#[derive(Debug)]
pub(super) struct Files {
    usage: OpenFile,
    stat: OpenFile,
    limit: OpenFile,
    /// Usage and limit. The kernel has both or none (`swapaccount=0`, or built without swap).
    swap: Option<(OpenFile, OpenFile)>,
}

impl Files {
    /// `open` opens a file of a controller.
    pub(super) fn open(open: impl Fn(&str, &str) -> Result<OpenFile, Failed>) -> Result<Self, Failed> {
        let memory = |name: &str| open("memory", name);
        Ok(Self {
            usage: memory("memory.current")?,
            stat: memory("memory.stat")?,
            limit: memory("memory.max")?,
            swap: memory("memory.swap.current").ok().zip(memory("memory.swap.max").ok()),
        })
    }

    /// Memory and swap.
    pub(super) fn charge(&self) -> Result<Charge, Failed> {
        let usage = self.usage.number()?;
        let stat = self.stat.read(|text| Some(MemoryStat::v2(text)))?;
        let limit = parse::limit(self.limit.number()?);
        let swap = |(usage, limit): &(OpenFile, OpenFile)| {
            Ok::<_, Failed>(SwapCharge { usage: usage.number()?, limit: parse::limit(limit.number()?) })
        };
        Ok(Charge { usage, stat, limit, swap: self.swap.as_ref().map(swap).transpose()? })
    }
}
