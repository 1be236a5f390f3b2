//! What must hold for any bytes that a plugin prints and any configuration file: for the fuzz targets, and for the test that
//! replays their corpus.

use serde_json::Value;

use crate::conf::{self, Network};
use crate::input::{gc_input, plugin_input};
use crate::lease::IFNAME;
use crate::plugin;
use crate::result::AddResult;
use crate::version::Version;

fn holds(holds: bool, what: impl Fn() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Without the numbers that are no integers of 64 bits: printed and read again, their last digit may differ.
fn exact(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => Value::Null,
        Value::Array(list) => list.into_iter().map(exact).collect(),
        Value::Object(object) => object.into_iter().map(|(key, value)| (key, exact(value))).collect(),
        other => other,
    }
}

/// Parses what a plugin has printed for ADD, as a network of each version would. Returns whether any accepts it.
///
/// # Errors
/// What does not hold.
pub fn result(bytes: &[u8]) -> Result<bool, String> {
    let shown = plugin::excerpt(bytes);
    holds(shown.chars().count() <= 401 && !shown.contains(char::is_control), || {
        format!("excerpt {shown:?}")
    })?;
    let mut accepted = false;
    for version in Version::ALL {
        let Ok(parsed) = AddResult::parse(bytes, version) else { continue };
        accepted = true;
        let raw = || format!("in {version:?}: {:?}", parsed.raw);
        holds(parsed.raw.get("cniVersion") == Some(&version.as_str().into()), raw)?;
        let ips = parsed.ips(IFNAME);
        holds(ips.len() <= 64 && ips.iter().all(|ip| !ip.is_unspecified() && !ip.is_multicast()), raw)?;
        let mut unique = ips.clone();
        unique.sort();
        unique.dedup();
        holds(unique.len() == ips.len(), raw)?;
        // The next plugin's version of it is a result that means the same.
        let printed = Value::Object(parsed.raw.clone()).to_string();
        for next in Version::ALL {
            let again = AddResult::parse(printed.as_bytes(), next)
                .map_err(|error| format!("{} is no result for {next:?}: {error}", raw()))?;
            let same = || exact(again.raw.clone().into()) == exact(parsed.raw.clone().into());
            holds(next != version || same(), || format!("{} becomes {:?}", raw(), again.raw))?;
            let lossless = !version.has_one_ip_per_family();
            holds(!lossless || again.ips(IFNAME) == ips, || {
                format!("{} gives {:?}", raw(), again.ips(IFNAME))
            })?;
        }
    }
    Ok(accepted)
}

/// Parses a configuration file. Returns whether it is accepted.
///
/// # Errors
/// What does not hold.
pub fn configuration(bytes: &[u8]) -> Result<bool, String> {
    let Ok(network) = conf::parse(bytes, |_| Ok(Vec::new())) else { return Ok(false) };
    let shown = || format!("{network:?}");
    holds(!network.name.contains(['/', '\0']) && !network.name.starts_with('.'), shown)?;
    holds((1..=64).contains(&network.plugins.len()), shown)?;
    let kept = serde_json::to_vec(&network).map_err(|error| error.to_string())?;
    let read: Network = serde_json::from_slice(&kept).map_err(|error| format!("{}: {error}", shown()))?;
    let same = serde_json::to_value(&read).ok().map(exact) == serde_json::to_value(&network).ok().map(exact);
    holds(same, || format!("{} becomes {read:?}", shown()))?;
    for plugin in &network.plugins {
        let kind = plugin.kind();
        holds(!kind.is_empty() && !kind.contains(['/', '\0']) && !kind.starts_with('.'), shown)?;
        let input = plugin_input(&network, plugin, None, None);
        holds(input.get("name") == Some(&network.name.as_str().into()), shown)?;
        holds(input.get("cniVersion") == Some(&network.version.as_str().into()), shown)?;
        holds(!input.keys().any(|key| key.starts_with("cni.dev/")), shown)?;
        holds(gc_input(&network, plugin, &[]).contains_key("cni.dev/valid-attachments"), shown)?;
    }
    Ok(true)
}
