//! Results of one version written in another.
//!
//! Until 0.2.0 a result has one address of each family, with its own routes (`ip4`, `ip6`); since 0.3.0 it has the lists
//! `interfaces`, `ips` and `routes`. Since 1.0.0 an address has no `version`.

use serde_json::{Map, Value, json};

use crate::version::Version;

/// The members of `ip4` and `ip6`, and the family as 0.3.0 writes it.
const FAMILIES: [(&str, &str); 2] = [("ip4", "4"), ("ip6", "6")];

/// The members that results have since 0.3.0.
const LISTS: [&str; 3] = ["interfaces", "ips", "routes"];

/// Writes a result of 0.1.0 or 0.2.0 with the lists of 0.3.0. Its other members stay.
///
/// # Errors
/// A member has another type.
pub(super) fn to_lists(mut old: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    // Unknown to these versions, whatever they are.
    for later in LISTS {
        old.remove(later);
    }
    for (member, family) in FAMILIES {
        let mut given = match old.remove(member) {
            None | Some(Value::Null) => continue,
            Some(Value::Object(given)) => given,
            Some(other) => return Err(format!("{member} is {other}, not an object")),
        };
        let address = given.remove("ip").filter(|ip| !ip.is_null());
        let address = address.ok_or_else(|| format!("{member} has no \"ip\""))?;
        let mut ip = Map::new();
        ip.insert("version".to_owned(), family.into());
        ip.insert("address".to_owned(), address);
        if let Some(gateway) = given.remove("gateway").filter(|it| !it.is_null()) {
            ip.insert("gateway".to_owned(), gateway);
        }
        ips.push(Value::Object(ip));
        match given.remove("routes") {
            None | Some(Value::Null) => {}
            Some(Value::Array(more)) => routes.extend(more),
            Some(other) => return Err(format!("routes of {member} are {other}, not a list")),
        }
    }
    if !ips.is_empty() {
        old.insert("ips".to_owned(), ips.into());
    }
    if !routes.is_empty() {
        old.insert("routes".to_owned(), routes.into());
    }
    Ok(old)
}

/// Writes a result with lists in `version`.
pub(super) fn from_lists(mut raw: Map<String, Value>, version: Version) -> Map<String, Value> {
    raw.insert("cniVersion".to_owned(), version.as_str().into());
    if version.has_one_ip_per_family() {
        return to_one_ip_per_family(raw);
    }
    for ip in raw.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(ip) = ip.as_object_mut() else { continue };
        if version >= Version::V1_0_0 {
            ip.remove("version");
        } else {
            // A null counts as absent.
            let six = has_colon(ip.get("address"));
            ip.insert("version".to_owned(), if six { "6" } else { "4" }.into());
        }
    }
    raw
}

/// The first address of each family; what else 0.2.0 cannot express is left out.
fn to_one_ip_per_family(mut raw: Map<String, Value>) -> Map<String, Value> {
    let list = |value: Option<Value>| match value {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    };
    let (ips, routes) = (list(raw.remove("ips")), list(raw.remove("routes")));
    raw.remove("interfaces");
    for (member, family) in FAMILIES {
        raw.remove(member);
        let six = family == "6";
        let Some(ip) = ips.iter().find(|ip| ip.is_object() && has_colon(ip.get("address")) == six) else {
            continue;
        };
        let own: Vec<&Value> = routes.iter().filter(|route| has_colon(route.get("dst")) == six).collect();
        let mut given = json!({ "ip": ip["address"] });
        if let Some(gateway) = ip.get("gateway").filter(|it| !it.is_null()) {
            given["gateway"] = gateway.clone();
        }
        if !own.is_empty() {
            given["routes"] = json!(own);
        }
        raw.insert(member.to_owned(), given);
    }
    raw
}

/// Whether an address or a prefix is one of IPv6.
fn has_colon(address: Option<&Value>) -> bool {
    address.and_then(Value::as_str).is_some_and(|text| text.contains(':'))
}
