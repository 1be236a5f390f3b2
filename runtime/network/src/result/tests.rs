use super::*;

const BRIDGE: &str = r#"{"cniVersion":"0.4.0",
    "interfaces":[{"name":"cni0","mac":"a"},{"name":"veth1"},{"name":"eth0","sandbox":"/run/netns/x"}],
    "ips":[{"version":"4","interface":2,"address":"10.1.0.5/16","gateway":"10.1.0.1"},
           {"version":"6","interface":2,"address":"fd00::5/64"},
           {"version":"4","interface":0,"address":"10.1.0.1/16"}],
    "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0","gw":"fd00::1"}],"dns":{},"later":1}"#;

fn ips(text: &str, version: Version) -> Vec<String> {
    let result = AddResult::parse(text.as_bytes(), version).unwrap_or_else(|error| panic!("{text}: {error}"));
    result.ips("eth0").iter().map(ToString::to_string).collect()
}

#[test]
fn addresses_of_the_pods_interface_in_order() {
    assert_eq!(ips(BRIDGE, Version::V0_4_0), ["10.1.0.5", "fd00::5"]);
    let answer = AddResult::parse(BRIDGE.as_bytes(), Version::V0_4_0).unwrap();
    assert_eq!(answer.ips("net1"), Vec::<IpAddr>::new());
    assert_eq!(answer.raw["later"], 1);
    assert_eq!(ips(r#"{"ips":[{"address":"10.0.0.9/8"}]}"#, Version::V1_0_0), ["10.0.0.9"]);
}

/// As plugins print them. The reference library takes all of these.
#[test]
fn results_of_real_plugins() {
    for (text, expected) in [
        // Calico and others before 1.0: an empty version, and null for empty lists.
        (
            r#"{"cniVersion":"","interfaces":null,"ips":[{"version":"4","address":"10.0.0.1/32"}],"dns":{}}"#,
            "10.0.0.1",
        ),
        (
            r#"{"cniVersion":null,"ips":[{"address":"10.0.0.1/8","interface":null,"gateway":null}]}"#,
            "10.0.0.1",
        ),
        (r#"{"cniVersion":7,"ips":[{"address":"10.0.0.1/8"}],"routes":null,"dns":null}"#, "10.0.0.1"),
        (r#"{"ips":[null,{"address":"10.0.0.1/8"}],"interfaces":[null]}"#, "10.0.0.1"),
        // Azure: an interface without a sandbox.
        (r#"{"interfaces":[{"name":"eth0"}],"ips":[{"address":"10.0.0.1/8","interface":0}]}"#, "10.0.0.1"),
        // aws-vpc-cni: the host's side has the second-last index.
        (
            r#"{"interfaces":[{"name":"eni1"},{"name":"eth0","sandbox":"/proc/1/ns/net"}],
             "ips":[{"version":"4","address":"10.0.0.1/32","interface":1}]}"#,
            "10.0.0.1",
        ),
        // The host's eth0 is not the pod's.
        (
            r#"{"interfaces":[{"name":"eth0","sandbox":""},{"name":"eth0","sandbox":"x"}],
             "ips":[{"address":"192.0.2.1/24","interface":0},{"address":"10.0.0.1/8","interface":1}]}"#,
            "10.0.0.1",
        ),
        // Members of 1.1.0 in a network of any version.
        (
            r#"{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"x","mtu":1400,"socketPath":"/s","pciID":"0"}],
             "ips":[{"address":"fd00::1/64","interface":0}],"routes":[{"dst":"::/0","mtu":1400,"table":7}]}"#,
            "fd00::1",
        ),
        // No address: ADD reports it.
        ("null", ""),
        ("{}", ""),
        (r#"{"cniVersion":"1.0.0","dns":{}}"#, ""),
    ] {
        for version in [Version::V0_3_1, Version::V1_0_0, Version::V1_1_0] {
            let expected: Vec<&str> = Some(expected).filter(|it| !it.is_empty()).into_iter().collect();
            assert_eq!(ips(text, version), expected, "{text}");
        }
    }
}

#[test]
fn results_are_converted_to_the_networks_version() {
    let newer = AddResult::parse(BRIDGE.as_bytes(), Version::V1_1_0).unwrap();
    assert_eq!(newer.raw["cniVersion"], "1.1.0");
    assert!(newer.raw["ips"][0].get("version").is_none());
    let text = serde_json::to_vec(&newer.raw).unwrap();
    let older = AddResult::parse(&text, Version::V0_3_1).unwrap();
    assert_eq!(
        (&older.raw["ips"][0]["version"], &older.raw["ips"][1]["version"]),
        (&"4".into(), &"6".into())
    );
}

#[test]
fn results_with_one_address_per_family() {
    let old = r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.1/8","gateway":"10.0.0.254","routes":[{"dst":"0.0.0.0/0"}]},
        "ip6":{"ip":"fd00::1/64"},"dns":{"nameservers":["10.0.0.53"]}}"#;
    for version in Version::ALL {
        assert_eq!(ips(old, version), ["10.0.0.1", "fd00::1"], "{version:?}");
    }
    let newer = AddResult::parse(old.as_bytes(), Version::V0_4_0).unwrap().raw;
    let expected = serde_json::json!({
        "cniVersion": "0.4.0",
        "ips": [
            {"version": "4", "address": "10.0.0.1/8", "gateway": "10.0.0.254"},
            {"version": "6", "address": "fd00::1/64"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["10.0.0.53"]},
    });
    assert_eq!(Value::Object(newer), expected);
    // Members of the other kind of version are unknown to it, whatever they are.
    assert_eq!(
        ips(r#"{"cniVersion":"0.2.0","ips":7,"ip4":{"ip":"10.0.0.1/8"}}"#, Version::V1_0_0),
        ["10.0.0.1"]
    );
    assert_eq!(ips(r#"{"cniVersion":"1.0.0","ip4":7,"ips":[]}"#, Version::V0_2_0), [""; 0]);
    // A result without a version in a network without one.
    let bare = r#"{"ip4":{"ip":"10.0.0.1/8"},"ip6":null}"#;
    assert_eq!(ips(bare, Version::V0_1_0), ["10.0.0.1"]);
    // Back again: what a plugin of a network of 0.2.0 gets after one that printed lists.
    let older = AddResult::parse(BRIDGE.as_bytes(), Version::V0_2_0).unwrap();
    assert_eq!(older.ips("eth0").len(), 2);
    let expected = serde_json::json!({
        "cniVersion": "0.2.0", "dns": {}, "later": 1,
        "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
        "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
    });
    assert_eq!(Value::Object(older.raw), expected);
}

proptest::proptest! {
    #[test]
    fn a_result_with_changed_bytes_never_panics(
        changes in proptest::collection::vec((0..BRIDGE.len(), proptest::prelude::any::<u8>()), 0..4),
        version in 0..Version::ALL.len(),
    ) {
        let mut bytes = BRIDGE.as_bytes().to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok(answer) = AddResult::parse(&bytes, Version::ALL[version]) {
            // Three are given; one whose `interface` lost its name is taken for the pod's.
            proptest::prop_assert!(answer.ips("eth0").len() <= 3);
        }
    }
}

#[test]
fn invalid_results_are_refused() {
    for text in [
        "",
        "[]",
        "hello",
        r#"{"ips":[]} {}"#,
        r#"{"ips":7}"#,
        r#"{"ips":[{}]}"#,
        r#"{"ips":[{"address":"10.0.0.1"}]}"#,
        r#"{"ips":[{"address":"10.0.0.1/33"}]}"#,
        r#"{"ips":[{"address":"0.0.0.0/0"}]}"#,
        r#"{"ips":[{"address":"10.0.0.1/8","interface":0}]}"#,
        r#"{"ips":[{"address":"10.0.0.1/8","interface":-1}]}"#,
        r#"{"cniVersion":"0.5.0","ips":[]}"#,
        r#"{"cniVersion":"0.2.0","ip4":{}}"#,
        r#"{"cniVersion":"0.2.0","ip4":"10.0.0.1/8"}"#,
        r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.1"}}"#,
        r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.1/8","routes":{}}}"#,
    ] {
        assert!(AddResult::parse(text.as_bytes(), Version::V1_0_0).is_err(), "{text}");
    }
    let many = vec![serde_json::json!({"address": "10.0.0.1/8"}); MAX_IPS + 1];
    let many = serde_json::json!({ "ips": many }).to_string();
    assert!(AddResult::parse(many.as_bytes(), Version::V1_0_0).unwrap_err().contains("more than"));
}
