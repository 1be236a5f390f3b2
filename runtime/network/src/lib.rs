//! The CNI client: which network pods get, running its plugins, and what is owed to them until DEL.
//!
//! Before the first plugin of an ADD runs, everything that its DEL will need is on disk (a lease): the
//! configuration as it was, the arguments, the capabilities. So a crash, a changed configuration or a vanished
//! network namespace never loses an address. Plugins are foreign programs: each has a deadline after which its
//! whole process group is killed, and its output is capped and judged before it is believed.

mod attach;
mod conf;
mod error;
mod lease;
mod plugin;
mod result;

use std::path::PathBuf;
use std::time::Duration;

pub use attach::{Attachment, Cni};
pub use error::{Error, Failure, Verb};

/// Where things are and how much may run at once.
#[derive(Debug, Clone)]
pub struct CniConfig {
    /// Folder with `.conflist`, `.conf` and `.json` files; the first by name is the network.
    pub conf_dir: PathBuf,
    /// Folders searched for plugin programs, in this order.
    pub bin_dirs: Vec<PathBuf>,
    /// Folder of the leases; survives a reboot.
    pub cache_dir: PathBuf,
    /// Chains of plugins that run at once; at least 1.
    pub max_parallel: usize,
    /// Longest time for an ADD or CHECK of the whole chain, and for a DEL, STATUS or GC of one plugin; also the
    /// longest wait for a place among `max_parallel`.
    pub timeout: Duration,
}

/// Whether pods can get a network, as the CRI condition `NetworkReady` says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Name of the network that is loaded.
    pub network: Option<String>,
    /// File it came from.
    pub file: Option<PathBuf>,
    /// Why pods cannot have a network; `None` means ready.
    pub problem: Option<String>,
}

impl Readiness {
    /// Ready to ADD.
    pub fn is_ready(&self) -> bool {
        self.problem.is_none()
    }
}
