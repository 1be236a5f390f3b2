//! Data types of pods and containers: identifiers, validated requests, states and records.
//!
//! This crate is pure: no I/O, no clock, no async. CRI messages become these types in the daemon's
//! `service/convert` (the only place that validates requests); records of [`PodRecord`] and
//! [`ContainerRecord`] are written by `state` and hold enough to answer List and Status without other sources.

mod container;
mod ids;
mod mount;
mod pod;
pub mod reconcile;
mod resources;
mod security;
mod text;
pub mod transition;

pub use container::{
    ContainerConfig, ContainerMeta, ContainerPhase, ContainerRecord, Device, EnvVar, Exit, ImageOfContainer,
    ImageSpec,
};
pub use ids::{ContainerId, ExecId, IdError, PodId};
pub use mount::{Mount, Propagation};
pub use pod::{Dns, PodConfig, PodMeta, PodPhase, PodRecord, PortMapping, Protocol};
pub use resources::{HugepageLimit, Resources};
pub use security::{
    Capabilities, ContainerSecurity, GroupsPolicy, IdMapping, NamespaceMode, Namespaces, PodSecurity,
    SeccompProfile, User, UserNamespace, UserRequest,
};
pub use text::Text;
