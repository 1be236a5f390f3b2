use super::*;

fn parsed(text: &str) -> Result<Network, String> {
    parse(text.as_bytes(), |_| Ok(Vec::new()))
}

fn kinds(network: &Network) -> Vec<&str> {
    network.plugins.iter().map(PluginConf::kind).collect()
}

#[test]
fn lists_and_single_plugins() {
    let list = parsed(
        r#"{"cniVersion":"0.4.0","cniVersions":["1.0.0","9.9.9"],"name":"net","disableCheck":"True","disableGC":true,
           "plugins":[{"type":"bridge","ipam":{}},{"type":"portmap","capabilities":{"portMappings":true}}]}"#,
    )
    .unwrap();
    assert_eq!((list.name.as_str(), list.version), ("net", Version::V1_0_0));
    assert!(list.disable_check && list.disable_gc);
    assert!(list.plugins[1].wants("portMappings") && !list.plugins[0].wants("portMappings"));
    let single = parsed(r#"{"cniVersion":"0.3.1","name":"one","type":"bridge"}"#).unwrap();
    assert_eq!((single.version, kinds(&single)), (Version::V0_3_1, vec!["bridge"]));
    assert!(!single.disable_check && !single.disable_gc);
    let json = serde_json::to_string(&list).unwrap();
    assert_eq!(serde_json::from_str::<Network>(&json).unwrap(), list);
}

/// Versions are chosen as the reference library chooses them.
#[test]
fn the_newest_known_version_is_used_and_none_is_the_first() {
    for (given, expected) in [
        (r#""name":"n""#, Some(Version::V0_1_0)),
        (r#""cniVersion":"""#, Some(Version::V0_1_0)),
        (r#""cniVersion":null,"cniVersions":[]"#, Some(Version::V0_1_0)),
        (r#""cniVersion":"0.2.0""#, Some(Version::V0_2_0)),
        (r#""cniVersion":"0.3.0""#, Some(Version::V0_3_0)),
        (r#""cniVersion":"0.4.0","cniVersions":["0.3.1","1.1.0","1.0.0"]"#, Some(Version::V1_1_0)),
        (r#""cniVersion":"2.0.0","cniVersions":["1.0.0"]"#, Some(Version::V1_0_0)),
        (r#""cniVersions":["0.4.0"]"#, Some(Version::V0_4_0)),
        (r#""cniVersion":"2.0.0""#, None),
        (r#""cniVersion":"1.0""#, None),
        (r#""cniVersion":1"#, None),
        (r#""cniVersions":"1.0.0""#, None),
        (r#""cniVersions":[1]"#, None),
    ] {
        let text = format!(r#"{{"name":"n","type":"bridge",{given}}}"#);
        assert_eq!(parsed(&text).map(|network| network.version).ok(), expected, "{given}");
    }
}

#[test]
fn errors_name_the_fault() {
    for (text, word) in [
        ("", "EOF"),
        ("[]", "map"),
        (r#"{"cniVersion":"1.0.0","plugins":[]}"#, "name"),
        (r#"{"cniVersion":"1.0.0","name":7,"plugins":[]}"#, "name"),
        (r#"{"cniVersion":"1.0.0","name":"../x","plugins":[]}"#, "../x"),
        (r#"{"cniVersion":"2.0.0","name":"n","type":"bridge"}"#, "2.0.0"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "0 plugins"),
        (r#"{"cniVersion":"1.0.0","name":"n"}"#, "n/*.conf"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":null}"#, "plugins"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"ipam":{}}]}"#, "type"),
        (r#"{"cniVersion":"1.0.0","name":"n","loadOnlyInlinedPlugins":true}"#, "loadOnlyInlinedPlugins"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../../bin/sh"}]}"#, "../../bin/sh"),
        (r#"{"cniVersion":"1.0.0","name":"n","type":"t","disableGC":3}"#, "disableGC"),
        (r#"{"cniVersion":"1.0.0","name":"n","type":"t","disableCheck":"yes"}"#, "disableCheck"),
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
    let (path, network) = load(dir.path()).unwrap();
    assert!(path.ends_with("10-a.conflist"));
    assert_eq!(kinds(&network), ["bridge"]);
    put("05-broken.json", "{");
    assert!(load(dir.path()).unwrap_err().contains("05-broken.json"));
}

/// Plugins in files of a folder with the network's name (CNI 1.1).
#[test]
fn plugins_of_the_networks_folder_are_added() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let list = |more: &str| put("10-a.conflist", &format!(r#"{{"cniVersion":"1.1.0","name":"a"{more}}}"#));
    let loaded = || load(dir.path()).map(|(_, network)| kinds(&network).join(" "));
    list("");
    assert!(loaded().unwrap_err().contains("0 plugins"));
    fs::create_dir(dir.path().join("a")).unwrap();
    put("a/50-more.conf", r#"{"type":"tuning"}"#);
    put("a/20-first.conf", r#"{"type":"bridge"}"#);
    put("a/10-other.conflist", r#"{"type":"no"}"#);
    assert_eq!(loaded().unwrap(), "bridge tuning");
    list(r#","plugins":[{"type":"ptp"}]"#);
    assert_eq!(loaded().unwrap(), "ptp bridge tuning");
    list(r#","plugins":[{"type":"ptp"}],"loadOnlyInlinedPlugins":true"#);
    assert_eq!(loaded().unwrap(), "ptp");
    list(r#","loadOnlyInlinedPlugins":"true""#);
    assert!(loaded().unwrap_err().contains("loadOnlyInlinedPlugins"));
    // A single plugin is no list.
    list(r#","type":"macvlan""#);
    assert_eq!(loaded().unwrap(), "macvlan");
    list("");
    put("a/60-bad.conf", r#"{"ipam":{}}"#);
    assert!(loaded().unwrap_err().contains("60-bad.conf"));
}
