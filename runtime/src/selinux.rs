//! SELinux: the labels of pods and containers.
//!
//! | | processes | files |
//! | --- | --- | --- |
//! | pod | the policy's label for containers, with a pair of categories that no other pod has | likewise |
//! | container | the pod's labels if the request names nothing; otherwise the policy's, with the pod's level and the parts that it names | the pod's if the request names nothing; otherwise the policy's, with the level of the processes and the user that the request names; role and type stay the policy's |
//! | privileged | what the policy makes of an execve without a label | as above |
//!
//! `spec::selinux` computes labels, `pairs` keeps the pods apart, the pod's record keeps its labels, and shims apply them. On
//! a node without SELinux, or where the configuration has switched it off, requests for labels mean nothing, as with
//! containerd: they replace parts of a label that does not exist.

mod pairs;

pub(crate) use pairs::Reserved;

use crate::config::Enabled;
use crate::error::{Error, ErrorKind};
use crate::lanes;
use model::{PodRecord, SelinuxLabels, SelinuxOptions};
use pairs::{Pairs, Random};
use spec::selinux::{Defaults, Label, level_of};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The node's choice of a policy.
const CONFIG: &str = "/etc/selinux/config";
/// The folder of policies.
const POLICIES: &str = "/etc/selinux";
/// Labels for containers that an administrator has put in place of the policy's; other runtimes read it first too.
const OVERRIDE: &str = "/usr/share/containers/selinux/contexts";
/// Maximum size of these files in bytes; they have some hundred.
const MAX_FILE: u64 = 64 << 10;
/// The field of requests, for errors.
const FIELD: &str = "config.linux.security_context.selinux_options";

/// What the node has.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Support {
    /// The kernel has no SELinux, or no policy. True if the configuration wants one.
    Absent(bool),
    /// The configuration has switched it off, on a node that has it.
    Off,
    /// The policy does not know containers, or its file cannot be read: why.
    Unusable(String),
    /// Pods and containers are labelled.
    On(Defaults),
}

/// SELinux on this node. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Selinux {
    support: Arc<Support>,
    pairs: Pairs,
}

impl Selinux {
    /// What the node has and the configuration allows. Blocking.
    pub(crate) fn detect(wanted: Enabled) -> Self {
        let support = match (sys::selinux::is_enabled(), wanted) {
            (false, _) => Support::Absent(wanted == Enabled::True),
            (true, Enabled::False) => Support::Off,
            (true, Enabled::Auto | Enabled::True) => match defaults() {
                Ok(defaults) => Support::On(defaults),
                Err(problem) => Support::Unusable(problem),
            },
        };
        Self::with(support)
    }

    /// A node without SELinux.
    #[cfg(test)]
    pub(crate) fn absent() -> Self {
        Self::with(Support::Absent(false))
    }

    fn with(support: Support) -> Self {
        Self { support: Arc::new(support), pairs: Pairs::default() }
    }

    /// Logs what an operator would not expect.
    pub(crate) fn log(&self) {
        match &*self.support {
            Support::Absent(false) => {}
            Support::Absent(true) => tracing::warn!(
                "enable_selinux = true in the configuration, but the kernel has no SELinux, or no policy is loaded: pods have no labels"
            ),
            Support::Off => tracing::warn!(
                "SELinux is switched off in the configuration (enable_selinux): pods have no labels of their own, and requests for labels are ignored"
            ),
            Support::Unusable(problem) => tracing::error!(
                %problem,
                "this node has SELinux, but its policy has no labels for containers: pods run without, and those that ask for a label are refused"
            ),
            Support::On(defaults) => {
                tracing::info!(process = %defaults.process, file = %defaults.file, "pods have SELinux labels");
            }
        }
    }

    /// Whether pods get labels.
    pub(crate) fn is_on(&self) -> bool {
        matches!(*self.support, Support::On(_))
    }

    /// The label of processes that name none, without categories.
    pub(crate) fn default_label(&self) -> Option<String> {
        match &*self.support {
            Support::On(defaults) => Some(defaults.process.to_string()),
            _ => None,
        }
    }

    /// Why pods get no labels on a node that has SELinux.
    pub(crate) fn problem(&self) -> Option<&str> {
        match &*self.support {
            Support::Unusable(problem) => Some(problem),
            _ => None,
        }
    }

    /// The number of pairs of categories that pods have.
    pub(crate) fn pairs_in_use(&self) -> usize {
        self.pairs.in_use()
    }

    /// The labels of a new pod; `None` if pods have none on this node.
    ///
    /// # Errors
    /// InvalidArgument: the policy does not know the label. FailedPrecondition: the node has no labels for containers.
    pub(crate) async fn pod(
        &self,
        asked: &SelinuxOptions,
        random: &Random,
    ) -> Result<Option<Reserved>, Error> {
        let defaults = match &*self.support {
            Support::On(defaults) => defaults,
            Support::Unusable(problem) if !asked.is_empty() => return Err(unusable(problem)),
            Support::Absent(_) | Support::Off | Support::Unusable(_) => return Ok(None),
        };
        if asked.level.is_empty() && !defaults.process.level().is_empty() {
            let taken = self.pairs.take(random, |level| defaults.labels(asked, level));
            let taken: Reserved = taken.ok_or_else(|| {
                Error::new(ErrorKind::ResourceExhausted, "all pairs of SELinux categories are in use")
            })?;
            let labels = checked(taken.labels().clone()).await?;
            return Ok(Some(taken.relabelled(labels)));
        }
        let labels = checked(defaults.labels(asked, "")).await?;
        Ok(Some(self.pairs.reserve(labels)))
    }

    /// Reserves the pair of a pod that an earlier daemon has started.
    pub(crate) fn restored(&self, pod: &PodRecord) -> Option<Reserved> {
        pod.selinux.clone().map(|labels| self.pairs.reserve(labels))
    }

    /// The labels of a container; `None` if its pod has none.
    ///
    /// # Errors
    /// As [`Self::pod`]. FailedPrecondition: the pod was started without labels.
    pub(crate) async fn container(
        &self,
        pod: &PodRecord,
        asked: &SelinuxOptions,
    ) -> Result<Option<SelinuxLabels>, Error> {
        let Some(of_pod) = &pod.selinux else {
            return match &*self.support {
                Support::On(_) if !asked.is_empty() => {
                    let text = format!("{FIELD}: this pod was started without SELinux labels: recreate it");
                    Err(Error::new(ErrorKind::FailedPrecondition, text))
                }
                Support::Unusable(problem) if !asked.is_empty() => Err(unusable(problem)),
                _ => Ok(None),
            };
        };
        if asked.is_empty() {
            return Ok(Some(of_pod.clone()));
        }
        let labels = match &*self.support {
            Support::On(defaults) => defaults.labels(asked, level_of(&of_pod.process)),
            // The pod was started when it was on.
            _ => match (Label::parse(&of_pod.process), Label::parse(&of_pod.file)) {
                (Some(process), Some(file)) => {
                    Defaults { process, file }.labels(asked, level_of(&of_pod.process))
                }
                _ => return Err(Error::internal(format!("the pod's labels are damaged: {of_pod:?}"))),
            },
        };
        checked(labels).await.map(Some)
    }
}

fn unusable(problem: &str) -> Error {
    Error::new(
        ErrorKind::FailedPrecondition,
        format!("{FIELD}: this node has no labels for containers: {problem}"),
    )
}

/// The labels as the kernel writes them.
async fn checked(labels: SelinuxLabels) -> Result<SelinuxLabels, Error> {
    let _step = progress::enter("check the SELinux labels", "");
    let SelinuxLabels { process, file } = labels;
    let canonical = move || {
        let ask = |label: String| sys::selinux::canonical(&label).map_err(|error| (label, error));
        Ok(SelinuxLabels { process: ask(process)?, file: ask(file)? })
    };
    let unknown = |(label, error): (String, io::Error)| {
        let kind = match error.kind() {
            io::ErrorKind::InvalidInput => ErrorKind::InvalidArgument,
            _ => ErrorKind::Internal,
        };
        Error::new(kind, format!("{FIELD}: the node's policy does not take the label {label:?}: {error}"))
    };
    lanes::exec().run(canonical).await?.map_err(unknown)
}

/// The labels for containers of the node's policy. The error is a text.
fn defaults() -> Result<Defaults, String> {
    defaults_in(Path::new(CONFIG), Path::new(POLICIES), Path::new(OVERRIDE))
}

fn defaults_in(config: &Path, policies: &Path, over: &Path) -> Result<Defaults, String> {
    let path = match over.exists() {
        true => over.to_owned(),
        false => contexts(&read(config)?, policies)
            .ok_or_else(|| format!("{} has no SELINUXTYPE", config.display()))?,
    };
    Defaults::parse(&read(&path)?).ok_or_else(|| {
        format!(
            "{} has no labels `process` and `file`: the policy needs its module for containers",
            path.display()
        )
    })
}

/// The policy's file with labels for containers (selinux_lxc_contexts_path(3)).
fn contexts(config: &str, policies: &Path) -> Option<PathBuf> {
    let mut kinds = config.lines().filter_map(|line| line.trim().strip_prefix("SELINUXTYPE="));
    let kind = kinds.next_back()?.trim();
    let plain = !kind.is_empty() && !kind.starts_with('.') && !kind.contains('/');
    plain.then(|| policies.join(kind).join("contexts/lxc_contexts"))
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    read.map(|_| text).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
