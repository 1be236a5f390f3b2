//! Whatever a registry, a helper or an operator writes: it is read or refused, and nothing panics.

use super::docker_config::DockerConfig;
use super::plain_text::one_line;
use super::proxy::Proxies;
use super::{hosts_file, properties};
use hyper::Uri;
use proptest::prelude::*;

/// Text made of these pieces and of any characters.
fn text(pieces: &'static [&'static str]) -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => prop::sample::select(pieces).prop_map(ToOwned::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn challenges(
        values in prop::collection::vec(
            text(&["Bearer", "basic", "Negotiate", " ", ",", "=", "\"", "\\", "realm", "service", "scope", "x", "\t"]),
            0..4,
        ),
    ) {
        properties::challenge(values.join("\n").as_bytes());
    }

    #[test]
    fn hosts_toml(
        text in text(&[
            "server", "[host.\"https://m\"]", "[host", "header", "]", "\n", " = ", "\"https://r\"", "\"", "ca",
            "client", "capabilities", "dial_timeout", "\"1s\"", "[", "true", "7", "{", "}", ",", ".",
        ]),
    ) {
        properties::hosts(text.as_bytes());
        if let Ok(time) = hosts_file::duration(&text) {
            prop_assert!(!time.is_zero());
        }
    }

    #[test]
    fn docker_configs(
        text in text(&[
            "{", "}", "\"auths\":", "\"credsStore\":", "\"credHelpers\":", "\"r.example\":", "\"*.example/a\":",
            "\"auth\":", "\"dXNlcjpw\"", "\"x\"", ",", "null", "\"username\":",
        ]),
        registry in text(&["r", ".", "example", ":", "5000", "*", "docker.io"]),
        path in text(&["a", "/", "b"]),
    ) {
        properties::credentials(text.as_bytes());
        // Any key of an entry may be compared with any registry.
        let entry = serde_json::json!({"auths": {&text: {"auth": "dXNlcjpw"}, &registry: {"auth": "dXNlcjpw"}}});
        let config = DockerConfig::parse(entry.to_string().as_bytes()).unwrap();
        prop_assert!(config.sources(&registry, &path).len() <= 1);
    }

    #[test]
    fn proxies(
        all in text(&["http", "socks5h", "://", "user", ":", "@", "p", ".", "example", "3128", "[", "]", "/", "%41"]),
        no in text(&["r.example", "10.0.0.1", "/", "8", ",", " ", "*", ".", ":", "5000", "[", "]", "fd00::1"]),
        host in text(&["r", ".", "example", "10.0.0.1", "[fd00::1]", ":", "5000"]),
    ) {
        let variable = |name: &str| match name {
            "ALL_PROXY" => Some(all.clone()),
            "NO_PROXY" => Some(no.clone()),
            _ => None,
        };
        if let Ok(proxies) = Proxies::from_variables(variable)
            && let Ok(target) = format!("https://{host}/v2/").parse::<Uri>()
            && let Some(proxy) = proxies.of(&target)
        {
            prop_assert!(!proxy.to_string().contains('@'));
        }
    }

    #[test]
    fn lines(text in any::<String>(), max in 0_usize..50) {
        let line = one_line(&text, max);
        prop_assert!(line.chars().count() <= max + 1 && !line.chars().any(char::is_control));
    }
}
