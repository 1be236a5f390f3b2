//! Network configurations: selecting the file that applies, and validating it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Largest configuration file in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Plugins in one chain; real chains have a handful.
const MAX_PLUGINS: usize = 64;
/// Maximum number of entries of the folder that are read.
const MAX_ENTRIES: usize = 10_000;

/// Versions of the CNI specification with compatible result formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Version {
    #[serde(rename = "0.3.0")]
    V0_3_0,
    #[serde(rename = "0.3.1")]
    V0_3_1,
    #[serde(rename = "0.4.0")]
    V0_4_0,
    #[serde(rename = "1.0.0")]
    V1_0_0,
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl Version {
    const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

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

/// Parses one file: a list if it has `plugins`, otherwise a single plugin.
fn parse(
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
        return Err(format!("name {name:?} must be letters, digits, '_', '.' and '-'"));
    }
    let version = version(&body)?;
    let disable_check = flag(&body, "disableCheck")?;
    // CHECK and GC are not run yet, so these flags are only validated, and the first is kept with the lease.
    flag(&body, "disableGC")?;
    let plugins = match body.get("plugins") {
        Some(list) => {
            let mut plugins: Vec<PluginConf> =
                serde_json::from_value(list.clone()).map_err(|error| format!("plugins: {error}"))?;
            if !flag(&body, "loadOnlyInlinedPlugins")? {
                plugins.extend(added_plugins(&name)?);
            }
            plugins
        }
        None => vec![PluginConf::try_from(body)?],
    };
    if plugins.is_empty() || plugins.len() > MAX_PLUGINS {
        return Err(format!("{} plugins; 1 to {MAX_PLUGINS} can be run", plugins.len()));
    }
    Ok(Network { name, version, disable_check, plugins })
}

/// The newest supported version among `cniVersions` and `cniVersion`.
fn version(body: &Map<String, Value>) -> Result<Version, String> {
    let named = body.get("cniVersion").and_then(Value::as_str);
    let listed =
        body.get("cniVersions").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let given: Vec<&str> = named.into_iter().chain(listed).collect();
    given
        .iter()
        .filter_map(|text| Version::parse(text))
        .max()
        .ok_or_else(|| format!("cniVersion {given:?} is not one of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"))
}

/// Reads a boolean; strings are accepted because the reference library accepts them.
fn flag(body: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match body.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(Value::String(text)) if text == "true" => Ok(true),
        Some(Value::String(text)) if text == "false" => Ok(false),
        Some(other) => Err(format!("{key} is {other}, not true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Network, String> {
        parse(text.as_bytes(), |_| Ok(Vec::new()))
    }

    #[test]
    fn lists_and_single_plugins() {
        let list = parsed(
            r#"{"cniVersion":"0.4.0","cniVersions":["1.0.0","9.9.9"],"name":"net","disableCheck":"true",
               "plugins":[{"type":"bridge","ipam":{}},{"type":"portmap","capabilities":{"portMappings":true}}]}"#,
        )
        .unwrap();
        assert_eq!((list.name.as_str(), list.version, list.disable_check), ("net", Version::V1_0_0, true));
        assert!(list.plugins[1].wants("portMappings") && !list.plugins[0].wants("portMappings"));
        let single = parsed(r#"{"cniVersion":"0.3.1","name":"one","type":"bridge"}"#).unwrap();
        assert_eq!((single.version, single.plugins[0].kind()), (Version::V0_3_1, "bridge"));
        let json = serde_json::to_string(&list).unwrap();
        assert_eq!(serde_json::from_str::<Network>(&json).unwrap(), list);
    }

    #[test]
    fn errors_name_the_fault() {
        for (text, word) in [
            ("", "EOF"),
            ("[]", "map"),
            (r#"{"cniVersion":"1.0.0","plugins":[]}"#, "name"),
            (r#"{"cniVersion":"1.0.0","name":"../x","plugins":[]}"#, "../x"),
            (r#"{"name":"n","type":"bridge"}"#, "cniVersion"),
            (r#"{"cniVersion":"2.0.0","name":"n","type":"bridge"}"#, "2.0.0"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "0 plugins"),
            (r#"{"cniVersion":"1.0.0","name":"n"}"#, "type"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../../bin/sh"}]}"#, "../../bin/sh"),
            (r#"{"cniVersion":"1.0.0","name":"n","type":"t","disableGC":3}"#, "disableGC"),
        ] {
            let reason = parsed(text).unwrap_err();
            assert!(reason.contains(word), "{text}: {reason}");
        }
    }

    #[test]
    fn the_first_file_by_name_decides_and_errors_name_it() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert!(load(dir.path()).unwrap_err().contains("no network configuration"));
        assert!(load(&dir.path().join("absent")).unwrap_err().contains("absent"));
        put("README.md", "no");
        put(".00-hidden.conf", "no");
        put("20-b.conf", r#"{"cniVersion":"1.0.0","name":"b","type":"bridge"}"#);
        fs::create_dir(dir.path().join("00.conf")).unwrap();
        assert_eq!(load(dir.path()).unwrap().1.name, "b");
        put("10-a.conflist", r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"}]}"#);
        fs::create_dir(dir.path().join("a")).unwrap();
        put("a/50-more.conf", r#"{"type":"tuning"}"#);
        let (path, network) = load(dir.path()).unwrap();
        assert!(path.ends_with("10-a.conflist"));
        let kinds: Vec<&str> = network.plugins.iter().map(PluginConf::kind).collect();
        assert_eq!(kinds, ["bridge", "tuning"]);
        put("05-broken.json", "{");
        assert!(load(dir.path()).unwrap_err().contains("05-broken.json"));
    }
}
