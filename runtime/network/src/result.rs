//! Results of plugins, of CNI 0.1.0 to 1.1.0.
//!
//! Null counts as absent for every member, as in the reference library: plugins written in Go print it for empty lists.

mod convert;

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::version::Version;

/// Maximum number of addresses of one pod; two are usual.
const MAX_IPS: usize = 64;

/// A validated result. `raw` is passed on to the next plugin in the chain.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct AddResult {
    /// The result in the network's version.
    pub(crate) raw: Map<String, Value>,
    shape: Shape,
}

/// What is read of a result of version 0.3.0 or later.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
struct Shape {
    #[serde(default)]
    interfaces: Option<Vec<Option<Interface>>>,
    #[serde(default)]
    ips: Option<Vec<Option<Ip>>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Interface {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Ip {
    address: String,
    #[serde(default)]
    interface: Option<i64>,
}

impl AddResult {
    /// Parses the output of an ADD. A result in another version is converted to the network's version,
    /// because the next plugin gets it as `prevResult`. Without a version it has the network's.
    pub(crate) fn parse(bytes: &[u8], version: Version) -> Result<Self, String> {
        let raw: Option<Map<String, Value>> =
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let raw = raw.unwrap_or_default();
        // The reference library treats a version that is not a text as absent.
        let given = match raw.get("cniVersion").and_then(Value::as_str).filter(|text| !text.is_empty()) {
            Some(text) => Version::parse(text)
                .ok_or_else(|| format!("cniVersion {text:?} is not one of {}", Version::known()))?,
            None => version,
        };
        let lists = if given.has_one_ip_per_family() { convert::to_lists(raw)? } else { raw };
        let shape: Shape =
            serde_json::from_value(Value::Object(lists.clone())).map_err(|error| error.to_string())?;
        addresses(&shape, |_| true)?;
        Ok(Self { raw: convert::from_lists(lists, version), shape })
    }

    /// Addresses of the pod's interface `ifname`, in the plugin's order, without duplicates. One without an interface is
    /// taken for the pod's.
    pub(crate) fn ips(&self, ifname: &str) -> Vec<IpAddr> {
        let named = |interface: &Interface| interface.name.as_deref() == Some(ifname);
        let in_pod =
            |interface: &Interface| interface.sandbox.as_deref().is_some_and(|sandbox| !sandbox.is_empty());
        let found = addresses(&self.shape, |it| named(it) && in_pod(it)).unwrap_or_default();
        // Some plugins do not tell where their interface is. The host may have one of the same name, so this is tried
        // second.
        if found.is_empty() { addresses(&self.shape, named).unwrap_or_default() } else { found }
    }
}

/// Addresses of the interfaces that `wanted` chooses, and those without an interface.
fn addresses(shape: &Shape, wanted: impl Fn(&Interface) -> bool) -> Result<Vec<IpAddr>, String> {
    let interfaces = shape.interfaces.as_deref().unwrap_or_default();
    let ips = shape.ips.as_deref().unwrap_or_default();
    if ips.len() > MAX_IPS {
        return Err(format!("{} addresses, more than {MAX_IPS}", ips.len()));
    }
    let mut found = Vec::new();
    for ip in ips.iter().flatten() {
        let parsed = address(&ip.address)
            .ok_or_else(|| format!("address {:?} is not in CIDR notation", ip.address))?;
        let matches = match ip.interface {
            None => true,
            Some(index) => {
                let interface = usize::try_from(index).ok().and_then(|index| interfaces.get(index));
                let interface =
                    interface.ok_or_else(|| format!("address {}: no interface {index}", ip.address))?;
                interface.as_ref().is_some_and(&wanted)
            }
        };
        if matches && !found.contains(&parsed) {
            found.push(parsed);
        }
    }
    Ok(found)
}

/// The address of a CIDR such as `10.0.0.2/24`.
fn address(cidr: &str) -> Option<IpAddr> {
    let (address, length) = cidr.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let length: u8 = length.parse().ok()?;
    let usable = !address.is_unspecified() && !address.is_multicast();
    (usable && length <= if address.is_ipv4() { 32 } else { 128 }).then_some(address)
}

#[cfg(test)]
mod tests;
