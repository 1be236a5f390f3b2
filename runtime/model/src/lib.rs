//! Data types of pods and containers: identifiers, validated requests, states and records.
//!
//! This crate is pure: no I/O, no clock, no async. The daemon's `service/convert` makes these types from CRI messages
//! and validates them, with the rules of `spec`. `state` writes [`PodRecord`] and [`ContainerRecord`], which hold enough
//! to answer List and Status without other sources.

mod container;
mod ids;
mod image;
mod mount;
mod pod;
pub mod reconcile;
mod resources;
mod security;
mod text;
pub mod transition;

pub use container::{
    ContainerConfig, ContainerMeta, ContainerPhase, ContainerRecord, Device, EnvVar, Exit, ImageOfContainer,
};
pub use ids::{ContainerId, ExecId, IdError, PodId};
pub use image::{ImageSpec, ImageVolume};
pub use mount::{Mount, MountOption, Propagation};
pub use pod::{Dns, PodConfig, PodMeta, PodPhase, PodRecord, PortMapping, Protocol};
pub use resources::{HugepageLimit, PodResources, Resources, Update};
pub use security::{
    AppArmorProfile, Capabilities, ContainerSecurity, GroupsPolicy, IdMapping, NamespaceMode, Namespaces,
    PodSecurity, SeccompProfile, SelinuxLabels, SelinuxOptions, User, UserMapping, UserNamespace,
    UserRequest,
};
pub use text::Text;
