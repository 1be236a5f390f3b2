//! Results of plugins, of CNI 0.3.0 to 1.1.0. These versions differ in details only.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::conf::Version;

/// Maximum number of addresses of one pod; two are usual.
const MAX_IPS: usize = 64;

/// A validated result. `raw` is passed on to the next plugin in the chain.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AddResult {
    /// The result in the network's version.
    pub(crate) raw: Map<String, Value>,
}

#[derive(Deserialize)]
struct Shape {
    #[serde(default, rename = "cniVersion")]
    version: Option<String>,
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
    #[serde(default)]
    ips: Option<Vec<Ip>>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    #[serde(default)]
    interface: Option<i64>,
}

impl AddResult {
    /// Parses the output of an ADD. A result in another version is converted to the network's version,
    /// because the next plugin gets it as `prevResult`.
    pub(crate) fn parse(bytes: &[u8], version: Version) -> Result<Self, String> {
        let mut raw: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let shape: Shape =
            serde_json::from_value(Value::Object(raw.clone())).map_err(|error| error.to_string())?;
        if let Some(given) = &shape.version
            && Version::parse(given).is_none()
        {
            return Err(format!("cniVersion {given:?} is not one of 0.3.0 to 1.1.0"));
        }
        addresses(&shape, None)?;
        raw.insert("cniVersion".to_owned(), version.as_str().into());
        for ip in raw.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(ip) = ip.as_object_mut() else { continue };
            if version >= Version::V1_0_0 {
                ip.remove("version");
            } else if !ip.contains_key("version") {
                let six = ip.get("address").and_then(Value::as_str).is_some_and(|text| text.contains(':'));
                ip.insert("version".to_owned(), if six { "6" } else { "4" }.into());
            }
        }
        Ok(Self { raw })
    }

    /// Addresses of the pod's interface `ifname`, in the plugin's order, without duplicates.
    pub(crate) fn ips(&self, ifname: &str) -> Result<Vec<IpAddr>, String> {
        let shape: Shape =
            serde_json::from_value(Value::Object(self.raw.clone())).map_err(|error| error.to_string())?;
        addresses(&shape, Some(ifname))
    }
}

/// Addresses of `ifname` in the pod, or all addresses. One without an interface is taken for the pod's.
fn addresses(shape: &Shape, ifname: Option<&str>) -> Result<Vec<IpAddr>, String> {
    let interfaces = shape.interfaces.as_deref().unwrap_or_default();
    let ips = shape.ips.as_deref().unwrap_or_default();
    if ips.len() > MAX_IPS {
        return Err(format!("{} addresses, more than {MAX_IPS}", ips.len()));
    }
    let mut found = Vec::new();
    for ip in ips {
        let parsed = address(&ip.address)
            .ok_or_else(|| format!("address {:?} is not in CIDR notation", ip.address))?;
        let matches = match ip.interface {
            None => true,
            Some(index) => {
                let interface = usize::try_from(index).ok().and_then(|index| interfaces.get(index));
                let interface =
                    interface.ok_or_else(|| format!("address {}: no interface {index}", ip.address))?;
                let in_pod = interface.sandbox.as_deref().is_some_and(|sandbox| !sandbox.is_empty());
                ifname.is_none_or(|ifname| in_pod && interface.name == ifname)
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
mod tests {
    use super::*;

    const BRIDGE: &str = r#"{"cniVersion":"0.4.0",
        "interfaces":[{"name":"cni0","mac":"a"},{"name":"veth1"},{"name":"eth0","sandbox":"/run/netns/x"}],
        "ips":[{"version":"4","interface":2,"address":"10.1.0.5/16","gateway":"10.1.0.1"},
               {"version":"6","interface":2,"address":"fd00::5/64"},
               {"version":"4","interface":0,"address":"10.1.0.1/16"}],
        "routes":[{"dst":"0.0.0.0/0"}],"dns":{},"later":1}"#;

    #[test]
    fn addresses_of_the_pods_interface_in_order() {
        let answer = AddResult::parse(BRIDGE.as_bytes(), Version::V0_4_0).unwrap();
        let expected: Vec<IpAddr> = vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        assert_eq!(answer.ips("eth0").unwrap(), expected);
        assert_eq!(answer.ips("net1").unwrap(), Vec::<IpAddr>::new());
        assert_eq!(answer.raw["later"], 1);
        let bare = AddResult::parse(br#"{"ips":[{"address":"10.0.0.9/8"}]}"#, Version::V1_0_0).unwrap();
        assert_eq!(bare.ips("eth0").unwrap(), ["10.0.0.9".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn results_are_converted_to_the_networks_version() {
        let newer = AddResult::parse(BRIDGE.as_bytes(), Version::V1_1_0).unwrap();
        assert_eq!(newer.raw["cniVersion"], "1.1.0");
        assert!(newer.raw["ips"][0].get("version").is_none());
        let text = serde_json::to_vec(&newer.raw).unwrap();
        let older = AddResult::parse(&text, Version::V0_3_1).unwrap();
        assert_eq!(
            (&older.raw["ips"][0]["version"], &older.raw["ips"][1]["version"]),
            (&"4".into(), &"6".into())
        );
    }

    proptest::proptest! {
        #[test]
        fn a_result_with_changed_bytes_never_panics(
            changes in proptest::collection::vec((0..BRIDGE.len(), proptest::prelude::any::<u8>()), 0..4),
        ) {
            let mut bytes = BRIDGE.as_bytes().to_vec();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            if let Ok(answer) = AddResult::parse(&bytes, Version::V1_0_0) {
                // Three are given; one whose `interface` lost its name is taken for the pod's.
                proptest::prop_assert!(answer.ips("eth0").unwrap().len() <= 3);
            }
        }
    }

    #[test]
    fn invalid_results_are_refused() {
        for text in [
            "",
            "null",
            "[]",
            "hello",
            r#"{"ips":7}"#,
            r#"{"ips":[{"address":"10.0.0.1"}]}"#,
            r#"{"ips":[{"address":"10.0.0.1/33"}]}"#,
            r#"{"ips":[{"address":"0.0.0.0/0"}]}"#,
            r#"{"ips":[{"address":"10.0.0.1/8","interface":0}]}"#,
            r#"{"ips":[{"address":"10.0.0.1/8","interface":-1}]}"#,
            r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.1/8"}}"#,
        ] {
            assert!(AddResult::parse(text.as_bytes(), Version::V1_0_0).is_err(), "{text}");
        }
    }
}
