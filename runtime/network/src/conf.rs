//! Network configurations: selecting the file that applies, and validating it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::version::Version;

/// Largest configuration file in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Plugins in one chain; real chains have a handful.
const MAX_PLUGINS: usize = 64;
/// Maximum number of entries of the folder that are read.
const MAX_ENTRIES: usize = 10_000;

/// One plugin's configuration: an object whose `type` is a plain file name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub(crate) struct PluginConf {
    kind: String,
    body: Map<String, Value>,
}

impl PluginConf {
    /// The `type`: the name of the plugin's program.
    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    /// All keys of the configuration.
    pub(crate) fn body(&self) -> &Map<String, Value> {
        &self.body
    }

    /// Whether the configuration asks for the capability `name`.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.body.get("capabilities").and_then(|wanted| wanted.get(name)) == Some(&Value::Bool(true))
    }
}

impl TryFrom<Map<String, Value>> for PluginConf {
    type Error = String;

    fn try_from(body: Map<String, Value>) -> Result<Self, String> {
        let kind = body.get("type").and_then(Value::as_str).ok_or("a plugin has no \"type\"")?.to_owned();
        // The type is joined to a folder and executed.
        if kind.is_empty() || kind.starts_with('.') || kind.contains(['/', '\0']) || kind.len() > 255 {
            return Err(format!("plugin type {kind:?} is not a file name"));
        }
        Ok(Self { kind, body })
    }
}

impl From<PluginConf> for Map<String, Value> {
    fn from(conf: PluginConf) -> Self {
        conf.body
    }
}

/// A network: a chain of plugins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) version: Version,
    #[serde(default)]
    pub(crate) disable_check: bool,
    #[serde(default)]
    pub(crate) disable_gc: bool,
    pub(crate) plugins: Vec<PluginConf>,
}

/// Returns the network of `dir` and its file. The first file by name is used, even if it is invalid: falling
/// back to a later one would put pods on a network that nobody chose.
///
/// # Errors
/// A sentence that names the folder or the file.
pub(crate) fn load(dir: &Path) -> Result<(PathBuf, Network), String> {
    let Some(path) = candidates(dir)?.into_iter().next() else {
        return Err(format!("no network configuration in {}", dir.display()));
    };
    let network = read(&path).and_then(|bytes| parse(&bytes, |name| added_plugins(dir, name)));
    network.map_err(|reason| format!("{}: {reason}", path.display())).map(|network| (path, network))
}

/// Configuration files in `dir`, sorted by name.
fn candidates(dir: &Path) -> Result<BTreeSet<PathBuf>, String> {
    list(dir, &["conflist", "conf", "json"]).map_err(|error| format!("{}: {error}", dir.display()))
}

fn list(dir: &Path, endings: &[&str]) -> std::io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir)?.take(MAX_ENTRIES) {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let fits = path.extension().and_then(|ending| ending.to_str()).is_some_and(|e| endings.contains(&e));
        if fits && !hidden && !path.is_dir() {
            found.insert(path);
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let read = sys::beneath::regular(path).and_then(|file| sys::file::read_capped(file, MAX_FILE));
    read.map_err(|error| error.to_string())
}

/// Plugins that other packages add to network `name` as files in a folder of that name (CNI 1.1).
fn added_plugins(dir: &Path, name: &str) -> Result<Vec<PluginConf>, String> {
    let dir = dir.join(name);
    let files = match list(&dir, &["conf"]) {
        Ok(files) => files,
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(format!("{}: {error}", dir.display())),
    };
    files
        .into_iter()
        .map(|path| {
            let conf =
                read(&path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| e.to_string()));
            conf.map_err(|reason| format!("{}: {reason}", path.display()))
        })
        .collect()
}

/// Parses one file: a single plugin if it has a `type` and no `plugins`, otherwise a list, whose plugins may all be files
/// in the network's own folder.
pub(crate) fn parse(
    bytes: &[u8],
    added_plugins: impl FnOnce(&str) -> Result<Vec<PluginConf>, String>,
) -> Result<Network, String> {
    let body: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let name = body.get("name").and_then(Value::as_str).ok_or("it has no \"name\"")?.to_owned();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if !name.bytes().all(plain)
        || !name.starts_with(|first: char| first.is_ascii_alphanumeric())
        || name.len() > 255
    {
        return Err(format!(
            "name {name:?} must be 1 to 255 letters, digits, '_', '.' and '-', and begin with a letter or a digit"
        ));
    }
    let version = version(&body)?;
    let (disable_check, disable_gc) = (flag(&body, "disableCheck")?, flag(&body, "disableGC")?);
    let only_inlined = flag(&body, "loadOnlyInlinedPlugins")?;
    let inlined: Option<Vec<PluginConf>> = match body.get("plugins") {
        Some(list) => {
            Some(serde_json::from_value(list.clone()).map_err(|error| format!("plugins: {error}"))?)
        }
        None => None,
    };
    let plugins = match inlined {
        None if only_inlined => {
            return Err("loadOnlyInlinedPlugins is true, but it has no \"plugins\"".to_owned());
        }
        Some(inlined) if only_inlined => inlined,
        None if body.contains_key("type") => vec![PluginConf::try_from(body)?],
        inlined => {
            let mut plugins = inlined.unwrap_or_default();
            plugins.extend(added_plugins(&name)?);
            plugins
        }
    };
    if plugins.is_empty() || plugins.len() > MAX_PLUGINS {
        return Err(format!(
            "{} plugins in its \"plugins\" and in files {name}/*.conf beside it; 1 to {MAX_PLUGINS} can be run",
            plugins.len()
        ));
    }
    Ok(Network { name, version, disable_check, disable_gc, plugins })
}

/// The newest supported version among `cniVersions` and `cniVersion`. A configuration without a version is one of 0.1.0.
fn version(body: &Map<String, Value>) -> Result<Version, String> {
    let text = |value: &Value| {
        value.as_str().map(str::to_owned).ok_or_else(|| format!("cniVersion {value} is not a text"))
    };
    let mut given = Vec::new();
    match body.get("cniVersion") {
        None | Some(Value::Null) => {}
        Some(named) => given.push(text(named)?),
    }
    match body.get("cniVersions") {
        None | Some(Value::Null) => {}
        Some(Value::Array(listed)) => {
            for listed in listed {
                given.push(text(listed)?);
            }
        }
        Some(other) => return Err(format!("cniVersions is {other}, not a list")),
    }
    given.retain(|text| !text.is_empty());
    if given.is_empty() {
        return Ok(Version::V0_1_0);
    }
    let known = given.iter().filter_map(|text| Version::parse(text)).max();
    known.ok_or_else(|| format!("cniVersion {given:?} is not one of {}", Version::known()))
}

/// Reads a boolean. The reference library also accepts texts in any case.
fn flag(body: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match body.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("{key} is {other}, not true or false")),
    }
}

#[cfg(test)]
mod tests;
