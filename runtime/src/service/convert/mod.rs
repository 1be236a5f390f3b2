//! Converts CRI messages to `model` types and back.
//!
//! Every request message is destructured without `..`, so that a new CRI field breaks the build until its
//! meaning is decided. What cannot be honoured is refused with the field's full name, the value and a valid
//! value; no field is accepted and then ignored, except where a comment beside it says so.
//!
//! Each rule about requests stands in one place. Here: what a message may say (which fields are required, which
//! exclude each other, what is not implemented, how long and how many values may be). In `spec`: what the kernel
//! accepts (paths, sysctls, limits, capabilities); this module asks it and adds the field to the error. `spec` parses the
//! same values again when it computes a plan, because it reads them from a record, and with the same functions. What
//! else it refuses depends on more than the message, such as the sandbox or the node.

mod container;
mod filter;
mod image;
mod mount;
mod pod;
mod resources;
mod security;
mod sessions;
mod stats;
#[cfg(test)]
mod tests;

pub(super) use container::{container_config, container_item, container_status, exec_sync, image_of};
pub(super) use filter::{ContainerFilter, PodFilter};
pub(super) use image::{image, image_filter, image_fs, image_info, image_name, pull_request};
pub(super) use mount::mounts_out;
pub(super) use pod::{pod_item, pod_status, run_request};
pub(super) use resources::{update_container, update_pod};
pub(super) use security::namespaces_out;
pub(super) use sessions::{attach, exec, port_forward};
pub(super) use stats::{container_stats, pod_stats};

use crate::apparmor::Support;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// Maximum size of the labels, or of the annotations, of one object, in bytes. Kubernetes allows 256 KiB of
/// annotations; a record has at most 8 MiB.
const MAX_MAP: usize = 320 * 1024;
/// Maximum length of an argument or environment string that the kernel accepts, without its NUL (MAX_ARG_STRLEN with
/// 4 KiB pages).
const MAX_ARGUMENT: usize = 128 * 1024 - 1;
/// Maximum number of entries of one repeated field. Kubernetes sets seven variables per service, and a namespace can have
/// thousands.
const MAX_ENTRIES: usize = 64 * 1024;

/// What the host can do, as far as requests may ask for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Host {
    /// AppArmor.
    pub(crate) apparmor: Support,
    /// The kernel can make a mount and all mounts below it read-only.
    pub(crate) recursive_read_only: bool,
}

impl Host {
    /// Reads the rest from the kernel. Blocking.
    pub(crate) fn detect(apparmor: Support) -> Self {
        Self { apparmor, recursive_read_only: sys::mount::can_set_attributes_below() }
    }

    /// Logs what an operator of such a host would not expect.
    pub(crate) fn warn(self) {
        if !self.recursive_read_only {
            tracing::warn!(
                "this kernel cannot make mounts read-only recursively: a volume that asks for it is refused"
            );
        }
    }
}

/// Why a request is refused before anything was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The value is invalid on every host.
    #[error("{object}{field}: {value}: {want}")]
    Invalid {
        /// The object, such as `pod namespace/name: `, or empty.
        object: String,
        /// Full name of the field.
        field: String,
        /// The value, shortened and escaped.
        value: String,
        /// What a valid value is.
        want: String,
    },
    /// A feature that is not implemented; Status does not announce it.
    #[error("{}{object}{field}: {what}", prefix(.reason))]
    NotImplemented {
        /// Reason code that kubelet looks for at the start of the message.
        reason: Option<&'static str>,
        /// The object, as above.
        object: String,
        /// Full name of the field.
        field: String,
        /// What is not implemented.
        what: String,
    },
}

fn prefix(reason: &Option<&'static str>) -> String {
    reason.map(|reason| format!("{reason}: ")).unwrap_or_default()
}

impl Refusal {
    /// Adds the name of the object that the request is about.
    fn about(mut self, name: impl fmt::Display) -> Self {
        let (Self::Invalid { object, .. } | Self::NotImplemented { object, .. }) = &mut self;
        *object = format!("{name}: ");
        self
    }
}

type Result<T> = std::result::Result<T, Refusal>;

/// The name of a field. The full name with its parents is only built for errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'a> {
    parent: Option<&'a Field<'a>>,
    name: &'a str,
    index: Option<usize>,
}

impl<'a> Field<'a> {
    pub(super) const fn root(name: &'a str) -> Self {
        Self { parent: None, name, index: None }
    }

    fn at(&'a self, name: &'a str) -> Field<'a> {
        Field { parent: Some(self), name, index: None }
    }

    fn entry(&'a self, name: &'a str, index: usize) -> Field<'a> {
        Field { parent: Some(self), name, index: Some(index) }
    }

    fn invalid(&self, value: impl fmt::Debug, want: impl Into<String>) -> Refusal {
        let (field, value) = (self.to_string(), shorten(format!("{value:?}")));
        Refusal::Invalid { object: String::new(), field, value, want: want.into() }
    }

    fn missing(&self) -> Refusal {
        let (field, want) = (self.to_string(), "must be set".to_owned());
        Refusal::Invalid { object: String::new(), field, value: "absent".to_owned(), want }
    }

    fn not_implemented(&self, what: impl Into<String>) -> Refusal {
        Refusal::NotImplemented {
            reason: None,
            object: String::new(),
            field: self.to_string(),
            what: what.into(),
        }
    }

    /// Like [`Field::not_implemented`], with a reason code that kubelet looks for.
    fn not_implemented_as(&self, reason: &'static str, what: impl Into<String>) -> Refusal {
        let (field, what) = (self.to_string(), what.into());
        Refusal::NotImplemented { reason: Some(reason), object: String::new(), field, what }
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(f, "{parent}.")?;
        }
        f.write_str(self.name)?;
        self.index.map_or(Ok(()), |index| write!(f, "[{index}]"))
    }
}

/// Messages repeat values, which may be hostile; they are cut to this length.
fn shorten(mut value: String) -> String {
    const MAX_VALUE: usize = 160;
    if let Some((cut, _)) = value.char_indices().nth(MAX_VALUE) {
        value.truncate(cut);
        value.push('…');
    }
    value
}

/// A string without control characters: a newline could forge a line in a file or a log.
fn plain(field: &Field<'_>, text: String) -> Result<String> {
    if text.chars().any(char::is_control) {
        return Err(field.invalid(text, "must not contain control characters"));
    }
    Ok(text)
}

/// Part of an object's name. It is used in messages and, for a pod, in CNI_ARGS; not in file names.
fn name(field: &Field<'_>, text: String) -> Result<String> {
    let forbidden = |c: char| c.is_control() || c.is_whitespace() || c == '/';
    let fits = (1..=253).contains(&text.len()) && network::fits_cni_args(&text);
    if !fits || text.chars().any(forbidden) {
        return Err(field.invalid(
            text,
            "must be 1 to 253 bytes without white space, control characters, ';', '=' and '/'",
        ));
    }
    Ok(text)
}

/// An absolute path without `..`. It is kept as written: status must return it unchanged.
fn absolute(field: &Field<'_>, path: String) -> Result<String> {
    match spec::path::clean(&path) {
        Ok(_) => Ok(path),
        Err(want) => Err(field.invalid(path, want)),
    }
}

/// Like [`absolute`], or empty.
fn absolute_or_empty(field: &Field<'_>, path: String) -> Result<String> {
    if path.is_empty() { Ok(path) } else { absolute(field, path) }
}

/// Labels or annotations; kept unchanged.
fn map(field: &Field<'_>, map: HashMap<String, String>) -> Result<BTreeMap<String, String>> {
    map_within(MAX_MAP, field, map)
}

/// Like [`map`], with another limit in bytes.
fn map_within(
    limit: usize,
    field: &Field<'_>,
    map: HashMap<String, String>,
) -> Result<BTreeMap<String, String>> {
    let size: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > limit {
        return Err(field.invalid(format_args!("{size} bytes"), format!("must have at most {limit} bytes")));
    }
    Ok(map.into_iter().collect())
}

fn unmap(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Refuses a list that is too long.
fn at_most(field: &Field<'_>, entries: usize, max: usize) -> Result<()> {
    if entries <= max {
        return Ok(());
    }
    Err(field.invalid(format_args!("{entries} entries"), format!("must have at most {max} entries")))
}

/// Converts at most [`MAX_ENTRIES`] entries, each with its own field name.
fn each<T, U>(
    parent: &Field<'_>,
    list_name: &str,
    list: Vec<T>,
    convert: impl Fn(&Field<'_>, T) -> Result<U>,
) -> Result<Vec<U>> {
    at_most(&parent.at(list_name), list.len(), MAX_ENTRIES)?;
    list.into_iter().enumerate().map(|(i, item)| convert(&parent.entry(list_name, i), item)).collect()
}

/// The value of an enum, for which protobuf allows any number.
fn choice<E: TryFrom<i32>>(field: &Field<'_>, value: i32, want: &str) -> Result<E> {
    E::try_from(value).map_err(|_| field.invalid(value, format!("must be one of {want}")))
}
