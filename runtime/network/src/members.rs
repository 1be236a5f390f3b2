//! docs/cni-members.md: what is done with every member that the CNI specification (1.1.0 and the results of older versions)
//! and its conventions define. Each row is proved: the member is changed, and what copepod does and what plugins get is
//! compared. The page is compared with the rows; `UPDATE_DOCS=1` writes it.

mod rows;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use model::{Dns, PodId, PortMapping, Protocol};
use serde_json::{Map, Value, json};

use self::rows::{CAPABILITIES, CONFIGURATION, ERRORS, OLD_RESULTS, PARAMETERS, RESULTS};
use crate::conf;
use crate::error::{Error, Verb};
use crate::input::{Attachment, capabilities, cni_args, plugin_input};
use crate::lease::IFNAME;
use crate::plugin;
use crate::result::AddResult;
use crate::version::Version;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cni-members.md");

/// What is done with a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    /// It changes what copepod does.
    Honoured,
    /// Plugins get it as it is, and copepod does not look at it.
    Passed,
    /// It changes nothing, on purpose.
    Ignored,
    /// The value of the proof is an error.
    Refused,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Honoured => "honoured",
            Self::Passed => "passed on",
            Self::Ignored => "ignored",
            Self::Refused => "refused",
        }
    }
}

/// A member, as a path in its base document; the value that the proof sets; and what the page says.
struct Row(&'static str, Status, &'static str, &'static str);

/// What follows from a document: what copepod does, and what plugins get.
type Effect = Result<(Value, Value), String>;

/// The path as the page shows it: `plugins[].type` for `/plugins/0/type`.
fn shown(path: &str) -> String {
    let mut text = String::new();
    for part in path.split('/').skip(1) {
        if part.parse::<usize>().is_ok() {
            text.push_str("[]");
        } else {
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(&part.replace("~1", "/"));
        }
    }
    text
}

/// The paths of all members in `value`, without indexes, as the page shows them.
fn members(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let path = format!("{at}/{}", key.replace('/', "~1"));
                found.insert(shown(&path));
                members(value, &path, found);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                members(value, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

/// Changes the member of each row in `base`, and compares the effects. Every member of `base` must have a row.
fn prove(rows: &[Row], base: &Value, effect: impl Fn(&Value) -> Effect) {
    let (does, gives) = effect(base).expect("the base document is accepted");
    for Row(path, status, value, _) in rows {
        let mut changed = base.clone();
        let new: Value =
            serde_json::from_str(value).unwrap_or_else(|error| panic!("{path}: {value}: {error}"));
        *changed.pointer_mut(path).unwrap_or_else(|| panic!("{path} is not in the base document")) = new;
        assert_ne!(&changed, base, "{path}: the value is the same");
        let found = match effect(&changed) {
            Err(_) => Status::Refused,
            Ok((now, _)) if now != does => Status::Honoured,
            Ok((_, now)) if now != gives => Status::Passed,
            Ok(_) => Status::Ignored,
        };
        assert_eq!(found, *status, "{path} = {value}");
    }
    let mut all = BTreeSet::new();
    members(base, "", &mut all);
    let listed: BTreeSet<String> = rows.iter().map(|Row(path, ..)| shown(path)).collect();
    let missing: Vec<&String> = all.iter().filter(|it| !listed.contains(*it)).collect();
    assert!(missing.is_empty(), "without a row: {missing:?}");
}

#[test]
fn configuration() {
    let base = json!({
        "cniVersion": "1.0.0", "cniVersions": ["1.0.0"], "name": "net", "disableCheck": false, "disableGC": false,
        "loadOnlyInlinedPlugins": false, "other": 1,
        "plugins": [{
            "type": "first", "capabilities": {"portMappings": true}, "runtimeConfig": {"mac": "x"}, "args": {"cni": {}},
            "prevResult": {}, "cni.dev/x": 1, "name": "own", "cniVersion": "0.1.0", "ipMasq": true,
            "ipam": {"type": "host-local", "subnet": "10.0.0.0/24"},
            "dns": {"nameservers": ["10.0.0.1"], "domain": "a", "search": ["b"], "options": ["c"]}, "other": 1,
        }],
    });
    prove(CONFIGURATION, &base, |changed| {
        let added =
            |_: &str| serde_json::from_str(r#"[{"type":"added"}]"#).map_err(|error| error.to_string());
        let network = conf::parse(changed.to_string().as_bytes(), added)?;
        let plugins = network.plugins.iter();
        let asked: Vec<_> = plugins.clone().map(|it| (it.kind(), it.wants("portMappings"))).collect();
        let does = json!([network.name, network.version, network.disable_check, network.disable_gc, asked]);
        let mut gives: Vec<Map<String, Value>> =
            plugins.map(|it| plugin_input(&network, it, None, None)).collect();
        // Those are told by what copepod does.
        for key in ["type", "name", "cniVersion"] {
            gives.iter_mut().for_each(|body| drop(body.remove(key)));
        }
        Ok((does, json!(gives)))
    });
}

fn of_add(changed: &Value) -> Effect {
    let result = AddResult::parse(changed.to_string().as_bytes(), Version::V1_1_0)?;
    Ok((json!(result.ips(IFNAME)), Value::Object(result.raw)))
}

#[test]
fn results() {
    let base = json!({
        "cniVersion": "1.1.0", "other": 1,
        "interfaces": [
            {"name": IFNAME},
            {"name": IFNAME, "mac": "x", "mtu": 1500, "sandbox": "y", "socketPath": "/s", "pciID": "z"},
        ],
        "ips": [
            {"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 1, "version": "4"},
            {"address": "192.0.2.1/24", "interface": 0},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1, "advmss": 2, "priority": 3, "table": 4, "scope": 5}],
        "dns": {"nameservers": ["10.0.0.1"], "domain": "a", "search": ["b"], "options": ["c"]},
    });
    prove(RESULTS, &base, of_add);
    let base = json!({
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}]},
        "ip6": {"ip": "fd00::2/64", "gateway": "fd00::1", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
        "dns": {"nameservers": ["10.0.0.1"], "domain": "a", "search": ["b"], "options": ["c"]},
    });
    prove(OLD_RESULTS, &base, of_add);
}

#[test]
fn errors() {
    let base = json!({"cniVersion": "1.1.0", "code": 100, "msg": "message", "details": "details"});
    prove(ERRORS, &base, |changed| {
        let failure = plugin::exit_failure(ExitStatus::from_raw(256), changed.to_string().as_bytes(), b"");
        let text = failure.to_string();
        let (verb, plugin, network) = (Verb::Add, "p".to_owned(), "n".to_owned());
        let error = Error::Plugin { pod: None, verb, plugin, network, failure: Box::new(failure) };
        Ok((json!([text, error.is_temporary()]), Value::Null))
    });
}

/// Everything of a pod that plugins can get.
fn attachment() -> Attachment {
    let port =
        PortMapping { protocol: Protocol::Sctp, container_port: 1, host_port: 2, host_ip: "::1".into() };
    let list = || vec!["x".to_owned()];
    let limits = [("ingress", "1M"), ("egress", "2M")];
    let annotations =
        limits.iter().map(|(way, limit)| (format!("kubernetes.io/{way}-bandwidth"), (*limit).to_owned()));
    Attachment {
        pod: PodId::from_random([1; 32]),
        name: "web".into(),
        namespace: "shop".into(),
        uid: "u".into(),
        netns: "/run/netns/x".into(),
        ports: vec![port],
        dns: Some(Dns { servers: list(), searches: list(), options: list() }),
        cgroup_parent: "/kubepods/x".into(),
        annotations: annotations.collect(),
    }
}

/// Rows of what copepod gives: those that it gives are exactly those that are honoured.
fn given(rows: &[Row], found: &BTreeSet<String>) {
    let honoured = rows.iter().filter(|Row(_, status, ..)| *status == Status::Honoured);
    let honoured: BTreeSet<String> = honoured.map(|Row(path, ..)| shown(path)).collect();
    assert_eq!(&honoured, found);
}

#[test]
fn capability_arguments_and_cni_args() {
    let pod = attachment();
    let all = capabilities(&pod).unwrap();
    let mut found = BTreeSet::new();
    members(&Value::Object(all), "", &mut found);
    // Their members are the annotations' names.
    found.retain(|path| !path.starts_with("io.kubernetes.cri.pod-annotations."));
    given(CAPABILITIES, &found);
    let args = cni_args(&pod).unwrap();
    let names = args.split(';').map(|pair| format!("CNI_ARGS.{}", pair.split('=').next().unwrap()));
    let variables = ["COMMAND", "CONTAINERID", "NETNS", "IFNAME", "ARGS", "PATH"];
    given(PARAMETERS, &variables.map(|name| format!("CNI_{name}")).into_iter().chain(names).collect());
}

/// One section of the page.
fn table(title: &str, first: &str, rows: &[Row]) -> String {
    let mut text = format!("\n## {title}\n\n| {first} | | |\n| --- | --- | --- |\n");
    for Row(path, status, _, what) in rows {
        text.push_str(&format!("| `{}` | {} | {what} |\n", shown(path), status.word()));
    }
    text
}

#[test]
fn the_page_has_all_rows() {
    let text = [
        rows::INTRODUCTION.to_owned(),
        table("Network configuration", "member", CONFIGURATION),
        table("Parameters of plugins", "variable", PARAMETERS),
        table("Capability arguments (`runtimeConfig`)", "member", CAPABILITIES),
        table("Results of ADD, 0.3.0 to 1.1.0", "member", RESULTS),
        table("Results of ADD, 0.1.0 and 0.2.0", "member", OLD_RESULTS),
        table("Errors", "member", ERRORS),
        rows::COMMANDS.to_owned(),
    ]
    .concat();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PAGE, &text).unwrap();
    }
    let page = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(page == text, "docs/cni-members.md is out of date: run this test with UPDATE_DOCS=1");
}
