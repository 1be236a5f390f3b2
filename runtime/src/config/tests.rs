use super::*;

fn parse(text: &str) -> Result<Config, Vec<Fault>> {
    Config::parse(text, &Overrides::default())
}

fn faults(text: &str) -> Vec<String> {
    parse(text).expect_err("must be refused").iter().map(ToString::to_string).collect()
}

#[test]
fn default_text_is_the_defaults_and_documents_every_key() {
    let text = Config::default_text();
    assert_eq!(parse(&text).unwrap(), Config::default());
    let mut documented = false;
    for line in text.lines() {
        if line.contains(" = ") && !line.starts_with('#') {
            assert!(documented, "no comment above {line:?}");
        }
        documented = line.starts_with('#');
    }
    // Each default is really in the text: with another value there, the configuration differs.
    for line in text.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')) {
        let (key, value) = line.split_once(" = ").unwrap();
        let other = match value.chars().next().unwrap() {
            '"' if key == "mount_namespace" => "\"self\"",
            '"' if key == "level" => "\"trace\"",
            '"' if key == "format" => "\"json\"",
            '"' => "\"/somewhere/else\"",
            '[' => "[\"/somewhere/else\"]",
            _ => "7",
        };
        let changed = text.replacen(line, &format!("{key} = {other}"), 1);
        assert_ne!(parse(&changed).unwrap(), Config::default(), "{key} has no effect");
    }
}

#[test]
fn values_arrive() {
    let config = parse(
        "root = \"/srv/c//data/\"\nstate = \"/run/c\"\nmount_namespace = \"self\"\n[log]\nlevel = \"debug\"\nformat = \"json\"\n\
         [network]\nbin_dirs = [\"/a\", \"/b\"]\ntimeout_seconds = 0x10\n[binaries]\nshim = \"/x/shim\"\n",
    )
    .unwrap();
    assert_eq!(config.root, Path::new("/srv/c/data"));
    assert_eq!(config.socket, Path::new("/run/c/copepod.sock"));
    assert_eq!(config.mount_namespace, MountNamespace::Own);
    assert_eq!(config.log, Log { level: LogLevel::Debug, format: LogFormat::Json });
    assert_eq!(config.network.bin_dirs, [PathBuf::from("/a"), PathBuf::from("/b")]);
    assert_eq!(config.network.timeout, Duration::from_secs(16));
    assert_eq!(config.binaries, Binaries { shim: Some("/x/shim".into()), pause: None });
}

#[test]
fn all_faults_are_told_at_once_with_their_lines() {
    let told = faults(
        "root = \"relative\"\nsokcet = \"/x\"\n\n[log]\nlevle = \"info\"\nformat = \"xml\"\n[network]\nmax_parallel = 0\nbin_dirs = \"/x\"\n",
    );
    assert_eq!(
        told,
        [
            "line 1: root: \"relative\" must be an absolute path",
            "line 2: sokcet: unknown key; the nearest name is socket",
            "line 5: log.levle: unknown key; the nearest name is log.level",
            "line 6: log.format: \"xml\" must be one of text, json",
            "line 8: network.max_parallel: 0 must be from 1 to 1024",
            "line 9: network.bin_dirs: must be a list of strings, is of type string",
        ]
    );
}

#[test]
fn refuses_what_cannot_be_honoured() {
    for (text, expected) in [
        ("level = \"info\"", "unknown key; the nearest name is log.level"),
        ("[netwrok]\nconf_dir = \"/x\"", "unknown key; the nearest name is network"),
        ("log = 3", "must be a table"),
        ("root = 3", "must be a string"),
        ("something_else_entirely = 1", "`copepod config default` lists all"),
        ("[image]\nmax_parallel_downloads = 99999999999999999999", "must be a whole number"),
        ("[image]\nmax_parallel_downloads = -1", "must be from 1 to 16"),
        ("root = \"/run/copepod/inside\"", "must lie outside root"),
        ("root = \"/\"", "must not be the root"),
        ("root = \"/a/../b\"", "must not contain"),
        ("root = \"/a\\u0000b\"", "absolute path"),
        ("[network]\nbin_dirs = []", "at least one"),
        ("[network]\nbin_dirs = [\"x\"]", "absolute"),
        ("not toml", "line 1: "),
        ("root = \"/a\"\nroot = \"/b\"", "line 2: "),
    ] {
        let told = faults(text).join("\n");
        assert!(told.contains(expected), "{text:?} said {told:?}");
    }
    let long = format!("socket = \"/{}\"", "x".repeat(200));
    assert!(faults(&long)[0].contains("107 bytes"));
}

#[test]
fn command_line_wins_and_is_judged() {
    let overrides = Overrides { root: Some("/srv/r".into()), state: Some("/run/s".into()), socket: None };
    let config = Config::parse("root = \"relative\"", &overrides).unwrap();
    assert_eq!(
        (config.root.as_path(), config.socket.as_path()),
        (Path::new("/srv/r"), Path::new("/run/s/copepod.sock"))
    );
    let overrides = Overrides { socket: Some("here".into()), ..Overrides::default() };
    let told = Config::parse("", &overrides).unwrap_err();
    assert_eq!(told[0].to_string(), "socket: \"here\" must be an absolute path");
}

#[test]
fn a_missing_file_is_an_error_only_when_it_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let error = Config::load(Some(&path), &Overrides::default()).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error}");
    std::fs::write(&path, "[log]\nlevel = \"warn\"\n").unwrap();
    assert_eq!(Config::load(Some(&path), &Overrides::default()).unwrap().log.level, LogLevel::Warn);
    std::fs::write(&path, "#".repeat(usize::try_from(MAX_SIZE).unwrap() + 1)).unwrap();
    assert!(matches!(Config::load(Some(&path), &Overrides::default()), Err(Error::Read { .. })));
}

#[test]
fn companions_are_found_beside_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("copepod");
    let missing = Binaries::default().shim(&own).unwrap_err().to_string();
    assert!(missing.contains("/usr/libexec/copepod/copepod-shim"), "{missing}");
    let beside = folder.path().join("copepod-shim");
    std::fs::write(&beside, "").unwrap();
    assert!(Binaries::default().shim(&own).is_err(), "not executable");
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(Binaries::default().shim(&own).unwrap(), beside);
    let elsewhere = Binaries { shim: Some("/nowhere/shim".into()), pause: None };
    assert!(elsewhere.shim(&own).is_err());
}
