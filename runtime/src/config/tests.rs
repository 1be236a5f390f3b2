use super::*;
use std::os::unix::fs::PermissionsExt as _;

fn parse(text: &str) -> Result<Config, Vec<Fault>> {
    Config::parse(text, &Overrides::default())
}

fn faults(text: &str) -> Vec<String> {
    parse(text).expect_err("must be refused").iter().map(ToString::to_string).collect()
}

/// A value other than the default for each line of the default text that sets a key.
fn changes() -> Vec<(String, String)> {
    let text = Config::default_text();
    let (mut table, mut changes) = (String::new(), Vec::new());
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table = format!("{name}.");
        } else if let Some((key, value)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            let other = match value.chars().next().unwrap() {
                '"' if key == "mount_namespace" => "\"self\"",
                '"' if key == "cgroup_driver" => "\"cgroupfs\"",
                '"' if key == "apparmor" => "\"off\"",
                '"' if key == "enable_selinux" => "false",
                '"' if key == "level" => "\"trace\"",
                '"' if key == "format" => "\"json\"",
                '"' if key == "address" => "\"[::1]:10010\"",
                '"' => "\"/somewhere/else\"",
                '[' if key == "pinned" => "[\"docker.io/library/*\"]",
                '[' => "[\"/somewhere/else\"]",
                _ => "7",
            };
            changes.push((format!("{table}{key}"), text.replacen(line, &format!("{key} = {other}"), 1)));
        }
    }
    changes
}

#[test]
fn default_text_is_the_defaults_and_documents_every_key() {
    let text = Config::default_text();
    assert!(!toml::from_str::<toml::Table>(&text).unwrap().is_empty());
    assert_eq!(parse(&text).unwrap(), Config::default());
    let mut documented = false;
    for line in text.lines() {
        if line.contains(" = ") && !line.starts_with('#') {
            assert!(documented, "no comment above {line:?}");
        }
        documented = line.starts_with('#');
        assert!(line.len() <= 100, "{line}");
    }
}

#[test]
fn every_key_has_an_effect_and_its_changes_are_reported() {
    let changes = changes();
    assert_eq!(
        changes.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(),
        keys::KEYS.map(|key| key.name)
    );
    for (key, text) in changes {
        // The two files of TLS are given together.
        let pair = ["streaming.tls_certificate", "streaming.tls_key"];
        let paired = pair.contains(&key.as_str());
        let text = if paired {
            text.replace("tls_certificate = \"\"", "tls_certificate = \"/c\"")
                .replace("tls_key = \"\"", "tls_key = \"/k\"")
        } else {
            text
        };
        let (old, new) = (Config::default(), parse(&text).unwrap());
        let told = old.reload(&new);
        let listed = keys::KEYS.iter().find(|listed| listed.name == key).unwrap();
        // The socket follows the state folder.
        let mut expected = if paired { pair.to_vec() } else { vec![listed.name] };
        expected.extend((key == "state").then_some("socket"));
        let (taken, left) = if listed.reloads {
            (told.changed, told.need_restart)
        } else {
            (told.need_restart, told.changed)
        };
        assert_eq!((taken, left), (expected, vec![]), "{key}");
        assert_eq!(told.config == new, listed.reloads, "{key}");
    }
}

/// A new key without a value in `by_key`, or one that verbose Status does not show, fails here. That each value is its
/// key's is shown by `every_key_has_an_effect_and_its_changes_are_reported`.
#[test]
fn values_by_key_are_those_of_the_file() {
    let given = Config::default().by_key();
    assert_eq!(given.clone().map(|(key, _)| key), keys::KEYS.map(|key| key.name));
    let json = Config::default().to_json();
    assert_eq!(json["rootDir"], "/var/lib/copepod");
    assert_eq!(json["streaming"]["tlsCertificate"], serde_json::Value::Null);
    assert_eq!(json["image"]["maxParallelDownloads"], 4);
    let leaves = |value: &serde_json::Value| value.as_object().map_or(1, serde_json::Map::len);
    assert_eq!(json.as_object().unwrap().values().map(leaves).sum::<usize>(), keys::KEYS.len());
}

/// `UPDATE_DOCS=1 cargo test -p runtime config` writes the table.
#[test]
fn the_document_has_every_key() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- keys: begin -->\n", "<!-- keys: end -->");
    let (before, rest) = text.split_once(begin).expect("the table's begin is marked");
    let (_, after) = rest.split_once(end).expect("the table's end is marked");
    let right = format!("{before}{begin}{}{end}{after}", keys::reference());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &right).unwrap();
    } else {
        assert!(text == right, "docs/configuration.md is out of date: run this test with UPDATE_DOCS=1");
    }
}

#[test]
fn values_are_those_of_the_text() {
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
fn all_faults_are_reported_at_once_with_their_lines() {
    let told = faults(
        "root = \"relative\"\nsokcet = \"/x\"\n\n[log]\nlevle = \"info\"\nformat = \"xml\"\n[network]\nmax_parallel = 0\nbin_dirs = \"/x\"\nconf_dir = \"/ok\"\n\
         timeout_seconds = 1.5\n[image]\nmax_parallel_downloads = \"4\"\n[handlers.runc]\n[registry.\"docker.io\"]\nmirror = \"x\"\n",
    );
    assert_eq!(
        told,
        [
            "line 1: root: \"relative\" must be an absolute path",
            "line 2: sokcet: unknown key; the nearest name is socket",
            "line 5: log.levle: unknown key; the nearest name is log.level",
            "line 6: log.format: \"xml\" must be one of text, json",
            "line 8: network.max_parallel: 0 must be from 1 to 1024",
            "line 9: network.bin_dirs: invalid type: string \"/x\", expected a list of strings",
            "line 11: network.timeout_seconds: invalid type: floating point `1.5`, expected a whole number",
            "line 13: image.max_parallel_downloads: invalid type: string \"4\", expected a whole number",
            "line 14: handlers.runc: runtime handlers are not supported yet: all pods run under the built-in one",
            "line 15: registry.\"docker.io\": registries are not configured here yet: write <host>/hosts.toml in image.certs_dir",
        ]
    );
}

#[test]
fn refuses_what_cannot_be_honoured() {
    for (text, expected) in [
        ("level = \"info\"", "unknown key; the nearest name is log.level"),
        ("[netwrok]\nconf_dir = \"/x\"", "line 1: netwrok: unknown key; the nearest name is network"),
        ("[handler.runc]", "line 1: handler: unknown key; the nearest name is handlers"),
        ("log = 3", "line 1: log: invalid type: integer, expected a table"),
        ("log = [\"info\", \"text\"]", "line 1: log: invalid type: array, expected a table"),
        ("[[log]]\nlevel = \"info\"", "line 1: log: invalid type: array, expected a table"),
        ("[log.level]\nx = 1", "line 1: log.level: invalid type: map, expected a string"),
        ("\"log.level\" = \"info\"", "line 1: \"log.level\": unknown key; the nearest name is log.level"),
        ("[handlers]\n\"a.b\" = {}", "line 2: handlers.\"a.b\": runtime handlers are not supported yet"),
        ("handlers = 3", "line 1: handlers: invalid type: integer, expected a table"),
        ("handlers.runc.path = \"/x\"", "line 1: handlers.runc: runtime handlers are not supported yet"),
        ("handlers = { runc = {} }", "line 1: handlers.runc: runtime handlers are not supported yet"),
        ("root = 3", "line 1: root: invalid type: integer `3`, expected a string"),
        ("[log]\nlevel = true", "line 2: log.level: invalid type: boolean `true`, expected a string"),
        ("log.level = {}", "line 1: log.level: invalid type: map, expected a string"),
        ("something_else_entirely = 1", "`copepod config default` lists all"),
        (
            "[image]\nmax_parallel_downloads = 99999999999999999999",
            "99999999999999999999 must be from 1 to 16",
        ),
        ("[image]\nmax_parallel_downloads = -1", "must be from 1 to 16"),
        (
            "root = \"/run/copepod/inside\"",
            "line 1: root: root (/run/copepod/inside) and state (/run/copepod) must not contain each other",
        ),
        (
            "\nstate = \"/var/lib/copepod/run\"",
            "line 2: state: root (/var/lib/copepod) and state (/var/lib/copepod/run) must not contain each other",
        ),
        ("root = \"/\"", "must not be the root"),
        ("root = \"/a/../b\"", "must not contain"),
        ("root = \"/a\\u0000b\"", "absolute path"),
        ("[network]\nbin_dirs = []", "at least one"),
        ("[network]\nbin_dirs = [\"x\"]", "line 2: network.bin_dirs: \"x\" must be an absolute path"),
        (
            "[network]\nbin_dirs = [\"/x\",\n 3]",
            "network.bin_dirs: invalid type: integer `3`, expected a string",
        ),
        ("not toml", "line 1: "),
        ("root = \"/a\"\nroot = \"/b\"", "line 2: "),
    ] {
        let told = faults(text).join("\n");
        assert!(told.contains(expected), "{text:?} said {told:?}");
        assert!(told.lines().all(|line| line.starts_with("line ")), "{text:?} said {told:?}");
    }
    let long = format!("socket = \"/{}\"", "x".repeat(200));
    assert!(faults(&long)[0].contains("107 bytes"));
}

#[test]
fn a_certificate_and_its_key_are_given_together() {
    for key in ["tls_key", "tls_certificate"] {
        let told = faults(&format!("[streaming]\n{key} = \"/x\"")).join("\n");
        let expected = format!("line 2: streaming.{key}: streaming.tls_certificate and streaming.tls_key");
        assert!(told.starts_with(&expected), "{told}");
    }
}

/// In a file of another program everything is wrong: the first faults are enough.
#[test]
fn only_the_first_faults_are_reported() {
    let unknown: String = (0..10_000).map(|n| format!("key{n} = {n}\n")).collect();
    assert_eq!(faults(&unknown).len(), 64);
    let invalid: String = (0..10_000).map(|n| format!("[handlers.h{n}]\n")).collect();
    assert_eq!(faults(&invalid).len(), 64);
}

#[test]
fn command_line_wins_and_is_checked() {
    let overrides = Overrides { root: Some("/srv/r".into()), state: Some("/run/s".into()), socket: None };
    let config = Config::parse("root = \"relative\"", &overrides).unwrap();
    assert_eq!(
        (config.root.as_path(), config.socket.as_path()),
        (Path::new("/srv/r"), Path::new("/run/s/copepod.sock"))
    );
    let overrides = Overrides { socket: Some("here".into()), ..Overrides::default() };
    let told = Config::parse("", &overrides).unwrap_err();
    assert_eq!(told[0].to_string(), "socket: \"here\" must be an absolute path");
    let overrides = Overrides { root: Some("/a\"\nstate = \"/b".into()), ..Overrides::default() };
    assert_eq!(Config::parse("", &overrides).unwrap().root, Path::new("/a\"\nstate = \"/b"));
}

#[test]
fn a_missing_file_is_an_error_only_when_it_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let load = || Config::load(Some(&path), &Overrides::default());
    assert!(matches!(load().unwrap_err(), Error::Read { .. }));
    std::fs::write(&path, "[log]\nlevel = \"warn\"\n").unwrap();
    assert_eq!(load().unwrap().log.level, LogLevel::Warn);
    std::fs::write(&path, "#".repeat(usize::try_from(files::MAX_SIZE).unwrap() + 1)).unwrap();
    assert!(matches!(load().unwrap_err(), Error::Read { .. }));
}

#[test]
fn drop_in_files_win_key_by_key_in_the_order_of_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let drop_ins = folder.path().join("conf.d");
    std::fs::create_dir(&drop_ins).unwrap();
    std::fs::write(&path, "[log]\nlevel = \"warn\"\nformat = \"json\"\n").unwrap();
    for (name, text) in [
        ("90-late.toml", "[log]\nlevel = \"debug\"\n"),
        ("10-early.toml", "root = \"/early\"\n[log]\nlevel = \"error\"\n[network]\nmax_parallel = 7\n"),
        ("99-hidden.toml~", "nonsense"),
        (".99-hidden.toml", "nonsense"),
    ] {
        std::fs::write(drop_ins.join(name), text).unwrap();
    }
    let config = Config::load(Some(&path), &Overrides::default()).unwrap();
    assert_eq!(config.log, Log { level: LogLevel::Debug, format: LogFormat::Json });
    assert_eq!((config.root.as_path(), config.network.max_parallel), (Path::new("/early"), 7));
    // Each fault names its file, also one of a value that a later file replaces.
    std::fs::write(&path, "\n[log]\nlevel = 3\n").unwrap();
    std::fs::write(drop_ins.join("20-bad.toml"), "\n\nlog.formt = \"text\"").unwrap();
    std::fs::write(drop_ins.join("30-state.toml"), "\n\n\nstate = \"/early/run\"").unwrap();
    let Error::Invalid(faults) = Config::load(Some(&path), &Overrides::default()).unwrap_err() else {
        panic!("read and wrong")
    };
    let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
    let here = folder.path().display();
    assert_eq!(
        told,
        [
            format!("{here}/config.toml, line 3: log.level: invalid type: integer `3`, expected a string"),
            format!(
                "{here}/conf.d/20-bad.toml, line 3: log.formt: unknown key; the nearest name is log.format"
            ),
            format!(
                "{here}/conf.d/30-state.toml, line 4: state: root (/early) and state (/early/run) must not contain each other"
            ),
        ]
    );
    std::fs::create_dir(drop_ins.join("40-folder.toml")).unwrap();
    let error = Config::load(Some(&path), &Overrides::default()).unwrap_err();
    assert!(error.to_string().contains("40-folder.toml"), "{error}");
    for n in 0..300 {
        std::fs::write(drop_ins.join(format!("{n}.toml")), "").unwrap();
    }
    assert!(matches!(Config::load(Some(&path), &Overrides::default()).unwrap_err(), Error::TooMany { .. }));
}

#[test]
fn shim_and_pause_are_found_beside_the_daemon() {
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

/// The deepest text that the parser accepts. A reload reads it on a lane, whose threads have a stack of 512 KiB.
#[test]
fn a_deep_text_is_refused_on_a_small_stack() {
    let dotted = vec!["a"; 79].join(".");
    for depth in [1, 10, 70] {
        for table in ["x", "handlers", "handlers.runc", "log", "network.bin_dirs"] {
            let value = format!("{{ {dotted} = ").repeat(depth) + "1" + &" }".repeat(depth);
            let array = "[".repeat(depth) + &value + &"]".repeat(depth);
            for value in [value, array] {
                let text = format!("{table}.y = {value}\n");
                let read = move || assert!(!faults(&text).is_empty());
                std::thread::Builder::new().stack_size(512 << 10).spawn(read).unwrap().join().unwrap();
            }
        }
    }
}
