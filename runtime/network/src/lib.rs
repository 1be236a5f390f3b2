//! The CNI client: selects the pods' network, runs its plugins, and records which pods need a DEL.
//!
//! Before the first plugin of an ADD runs, everything that DEL needs is written to disk (a lease): the
//! configuration in use, the arguments, the capabilities. So no address is lost by a crash, a changed
//! configuration or a vanished network namespace. Plugins are foreign programs: each has a deadline after
//! which its whole process group is killed, and its output is limited and validated. A daemon that is killed leaves its
//! plugins running: the next one waits for them before it runs DEL for the same pod.

mod attach;
mod bandwidth;
mod conf;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod input;
mod lease;
#[cfg(test)]
mod members;
mod plugin;
mod result;
mod version;

use std::path::PathBuf;
use std::time::Duration;

pub use attach::{Cni, Pace, PendingDel, PendingDels, Released};
pub use bandwidth::{InvalidBandwidth, check_bandwidth};
pub use error::{Error, Failure, Verb};
pub use input::{Attachment, fits_cni_args};
pub use lease::IFNAME;

/// Paths and limits of the client.
#[derive(Debug, Clone)]
pub struct CniConfig {
    /// Folder with `.conflist`, `.conf` and `.json` files; the first by name is used.
    pub conf_dir: PathBuf,
    /// Folders searched for plugin programs, in this order.
    pub bin_dirs: Vec<PathBuf>,
    /// Folder of the leases; must survive a reboot.
    pub cache_dir: PathBuf,
    /// The id of this boot, which is written into the leases.
    pub boot_id: String,
    /// Number of plugin chains that may run at once; at least 1.
    pub max_parallel: usize,
    /// Time limit for an ADD of the whole chain, and for a DEL or STATUS of one plugin; also for the
    /// wait until one of `max_parallel` chains has ended.
    pub timeout: Duration,
}

/// Whether pods can get a network; the CRI condition `NetworkReady`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Name of the loaded network.
    pub network: Option<String>,
    /// The file it was loaded from.
    pub file: Option<PathBuf>,
    /// Why pods cannot get a network; `None` means ready.
    pub problem: Option<String>,
}

impl Readiness {
    /// Whether an ADD can be tried.
    pub fn is_ready(&self) -> bool {
        self.problem.is_none()
    }
}
