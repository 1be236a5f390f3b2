//! The tables of docs/registry-members.md: each member of `config.json` and each key of `hosts.toml`, proved by a file
//! with it.

use super::docker_config::{DockerConfig, Malformed, Source};
use super::hosts_file::{self, OUTER_KEYS, Problem, SETTINGS_KEYS};
use super::mirror;
use members::{Member, check, covers, honoured, ignored, markdown, refused};
use serde_json::{Value, json};
use std::path::Path;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/registry-members.md");

/// `HOST` stands for the name of a registry.
const CREDENTIALS: &[Member] = &[
    honoured(
        "/auths",
        "null",
        "Credentials by `host[:port][/path]`, with or without a scheme and `/v1/` or `/v2/`. The best entry is used: a host without `*` before one with it (any characters of one label), then the longest path",
    ),
    honoured(
        "/auths/HOST",
        "null",
        "An entry without credentials counts as absent: Docker leaves such for its helpers",
    ),
    honoured(
        "/auths/HOST/auth",
        "\"eDp5\"",
        "base64 of `user:password`. What is no such text counts as absent",
    ),
    honoured(
        "/auths/HOST/username",
        "\"x\"",
        "Wins over `auth`, as in kubelet's secrets, where both say the same",
    ),
    honoured("/auths/HOST/password", "\"x\"", "With `username`"),
    honoured(
        "/auths/HOST/identitytoken",
        "\"x\"",
        "Refresh token of OAuth2. Preferred to a password, unless the token server has no OAuth2",
    ),
    honoured("/auths/HOST/registrytoken", "\"x\"", "Sent to the registry as its bearer token"),
    ignored("/auths/HOST/email", "\"a@b.example\"", "No registry wants it any more"),
    ignored("/auths/HOST/serveraddress", "\"https://other.example\"", "The entry's name says it"),
    honoured("/credsStore", "\"store\"", "The helper for registries that `credHelpers` does not have"),
    honoured(
        "/credHelpers",
        "{\"HOST\": \"x\"}",
        "Helpers by `host[:port][/path]`, found as the entries of `auths`. The helper is asked first",
    ),
    honoured(
        "/credHelpers/HOST",
        "\"x\"",
        "`docker-credential-<name>` in a folder of the daemon's PATH. Empty: `credsStore`",
    ),
    ignored(
        "/HttpHeaders",
        "{\"X-Any\": \"v\"}",
        "Headers of Docker's client for its daemon. Those for a registry are in `hosts.toml`",
    ),
    ignored(
        "/proxies",
        "{\"default\": {\"httpProxy\": \"http://p.example\"}}",
        "Variables that Docker's client puts into containers. The daemon's proxy is in its environment",
    ),
    ignored("/psFormat", "\"table\"", "How Docker's client prints lists, as the next eleven"),
    ignored("/imagesFormat", "\"table\"", "As `psFormat`"),
    ignored("/networksFormat", "\"table\"", "As `psFormat`"),
    ignored("/pluginsFormat", "\"table\"", "As `psFormat`"),
    ignored("/volumesFormat", "\"table\"", "As `psFormat`"),
    ignored("/statsFormat", "\"table\"", "As `psFormat`"),
    ignored("/serviceInspectFormat", "\"pretty\"", "As `psFormat`"),
    ignored("/servicesFormat", "\"table\"", "As `psFormat`"),
    ignored("/tasksFormat", "\"table\"", "As `psFormat`"),
    ignored("/secretFormat", "\"table\"", "As `psFormat`"),
    ignored("/configFormat", "\"table\"", "As `psFormat`"),
    ignored("/nodesFormat", "\"table\"", "As `psFormat`"),
    ignored("/detachKeys", "\"ctrl-e,e\"", "Keys of Docker's client, whose other settings follow"),
    ignored("/pruneFilters", "[\"label!=keep\"]", "As `detachKeys`"),
    ignored("/currentContext", "\"default\"", "As `detachKeys`"),
    ignored("/cliPluginsExtraDirs", "[\"/x\"]", "As `detachKeys`"),
    ignored("/plugins", "{\"x\": {\"a\": \"b\"}}", "As `detachKeys`"),
    ignored("/aliases", "{\"builder\": \"buildx\"}", "As `detachKeys`"),
    ignored("/features", "{\"x\": \"y\"}", "As `detachKeys`"),
    ignored("/experimental", "\"enabled\"", "As `detachKeys`"),
    ignored("/stackOrchestrator", "\"swarm\"", "As `detachKeys`"),
    ignored(
        "/HOST",
        "{\"auth\": \"eDp5\"}",
        "Docker's file before 2015 (`.dockercfg`, secrets of the type `kubernetes.io/dockercfg`) had no `auths`. kubelet reads these secrets itself",
    ),
];

/// Names in docker/cli's ConfigFile and AuthConfig, in Podman's auth.json (containers-auth.json(5)), and in kubelet's
/// DockerConfigJSON.
const CREDENTIAL_NAMES: [&str; 35] = [
    "/auths",
    "/auths/HOST",
    "/auths/HOST/auth",
    "/auths/HOST/username",
    "/auths/HOST/password",
    "/auths/HOST/identitytoken",
    "/auths/HOST/registrytoken",
    "/auths/HOST/email",
    "/auths/HOST/serveraddress",
    "/credsStore",
    "/credHelpers",
    "/credHelpers/HOST",
    "/HttpHeaders",
    "/proxies",
    "/psFormat",
    "/imagesFormat",
    "/networksFormat",
    "/pluginsFormat",
    "/volumesFormat",
    "/statsFormat",
    "/serviceInspectFormat",
    "/servicesFormat",
    "/tasksFormat",
    "/secretFormat",
    "/configFormat",
    "/nodesFormat",
    "/detachKeys",
    "/pruneFilters",
    "/currentContext",
    "/cliPluginsExtraDirs",
    "/plugins",
    "/aliases",
    "/features",
    "/experimental",
    "/stackOrchestrator",
];

#[test]
fn every_member_of_docker_config() {
    let good = json!({"auths": {"HOST": {"auth": "dTpw"}}});
    let read = |value: &Value| -> Result<Vec<Source>, Malformed> {
        Ok(DockerConfig::parse(value.to_string().as_bytes())?.sources("host", "team/app"))
    };
    check(&good, CREDENTIALS, read);
    covers(CREDENTIALS, CREDENTIAL_NAMES, &["/HOST"]);
    members::document(Path::new(PAGE), "config.json", &markdown(CREDENTIALS));
}

/// `URL` stands for that of a mirror.
const HOSTS: &[Member] = &[
    honoured(
        "/server",
        "\"https://other.example\"",
        "The registry's own URL, asked last, with the registry's credentials. Without it, `https://` and the registry's name",
    ),
    honoured(
        "/capabilities",
        "[\"pull\"]",
        "As those of a mirror; the settings outside of `host` are for the server",
    ),
    honoured("/skip_verify", "true", "As that of a mirror"),
    honoured("/ca", "\"ca.crt\"", "As that of a mirror"),
    honoured("/client", "\"client.pem\"", "As that of a mirror"),
    honoured("/override_path", "true", "As that of a mirror"),
    honoured("/header", "{\"x-any\": \"v\"}", "As that of a mirror"),
    honoured("/dial_timeout", "\"1s\"", "As that of a mirror"),
    refused("/proxy", "\"http://p.example:3128\"", "As that of a mirror"),
    refused("/rewrite", "{\"a\": \"b\"}", "As that of a mirror"),
    honoured("/host", "{}", "Mirrors, asked in the order of the file"),
    honoured("/host/URL", "null", "`http://` or `https://`, host, port and path; https without a scheme"),
    honoured(
        "/host/URL/capabilities",
        "[\"pull\"]",
        "`pull` (blobs, and manifests by digest) and `resolve` (manifests by tag), in any case. `push` and `referrers` mean nothing here, others are refused",
    ),
    honoured(
        "/host/URL/skip_verify",
        "true",
        "Certificates are not verified: that of the host, and those of token servers and storage on the same host or below the same domain. Other hosts that it leads to are verified",
    ),
    honoured(
        "/host/URL/ca",
        "[\"a.pem\"]",
        "A file or a list of files in PEM, trusted beside the system's for this host and for those that it leads to",
    ),
    honoured(
        "/host/URL/client",
        "[[\"c.cert\", \"c.key\"]]",
        "A file with certificate and key, a list of such files, or a list of pairs; the first is used, and only for this host",
    ),
    honoured("/host/URL/override_path", "true", "`/v2` is not added to the path of the URL"),
    honoured(
        "/host/URL/header",
        "{\"x-any\": [\"v\", \"w\"]}",
        "A string or a list of strings each, sent to this host only",
    ),
    honoured("/host/URL/dial_timeout", "\"500ms\"", "Time limit for a TCP connection, from 1 ms to 300 s"),
    refused(
        "/host/URL/proxy",
        "\"http://p.example:3128\"",
        "Of later versions of containerd. The daemon's environment says which hosts are reached by a proxy",
    ),
    refused("/host/URL/rewrite", "{\"a\": \"b\"}", "Only k3s and RKE2 have it"),
];

#[test]
fn every_key_of_hosts_toml() {
    let good = json!({"server": "https://r.example", "host": {"URL": {"capabilities": ["pull", "resolve"]}}});
    let read = |value: &Value| -> Result<Vec<String>, Problem> {
        let file = hosts_file::parse(toml(value).as_bytes())?;
        let hosts = mirror::configured(file, "r.example", Path::new("/certs"))?;
        Ok(hosts.iter().map(|host| format!("{host:?}")).collect())
    };
    check(&good, HOSTS, read);
    let of_settings = SETTINGS_KEYS.iter().flat_map(|key| [format!("/{key}"), format!("/host/URL/{key}")]);
    let names: Vec<String> = OUTER_KEYS.iter().map(|key| format!("/{key}")).chain(of_settings).collect();
    let more = ["/host/URL", "/proxy", "/rewrite", "/host/URL/proxy", "/host/URL/rewrite"];
    covers(HOSTS, names.iter().map(String::as_str), &more);
    members::document(Path::new(PAGE), "hosts.toml", &markdown(HOSTS));
}

/// The members of an object as TOML. Strings and lists are the same in JSON; there is no null.
fn toml(value: &Value) -> String {
    fn inline(value: &Value) -> String {
        match value {
            Value::Object(members) => format!("{{ {} }}", pairs(members).join(", ")),
            other => other.to_string(),
        }
    }
    fn pairs(members: &serde_json::Map<String, Value>) -> Vec<String> {
        let members = members.iter().filter(|(_, value)| !value.is_null());
        members.map(|(key, value)| format!("{key:?} = {}", inline(value))).collect()
    }
    value.as_object().map(|members| pairs(members).join("\n")).unwrap_or_default()
}
