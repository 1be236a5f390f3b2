//! Documents as programs write them.

use super::*;
use serde_json::{Value, json};

const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const C: &str = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";

fn read(text: &str) -> Result<Document> {
    document(&Digest::of(text.as_bytes()), "", text.as_bytes(), &Host::of("x86_64", 3))
}

fn parse(json: &Value) -> Result<Document> {
    read(&json.to_string())
}

/// The digests of an index's candidates.
fn candidates(entries: &[Value]) -> Vec<String> {
    let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries});
    match parse(&index) {
        Ok(Document::Index(found)) => found.iter().map(|entry| entry.digest.to_string()).collect(),
        other => panic!("{other:?}"),
    }
}

fn entry(digest: &str, os: &str, arch: &str, variant: &str) -> Value {
    json!({"mediaType": media::OCI_MANIFEST, "digest": digest, "size": 1,
        "platform": {"os": os, "architecture": arch, "variant": variant}})
}

#[test]
fn an_index_leads_to_the_best_images_for_this_processor() {
    assert_eq!(
        candidates(&[
            entry(A, "unknown", "unknown", ""),
            entry(A, "linux", "arm64", "v8"),
            entry(A, "linux", "amd64", "v2"),
            entry(B, "linux", "amd64", ""),
            entry(C, "linux", "amd64", "v3"),
            entry(C, "linux", "amd64", "v4"),
        ]),
        [C, A, B]
    );
    assert_eq!(candidates(&[entry(A, "linux", "386", ""), entry(B, "Linux", "x86_64", "v1")]), [B, A]);
    // Nothing is known of the first, the second needs something that this node may lack.
    let mut special = entry(B, "linux", "amd64", "");
    special["platform"]["os.features"] = json!(["x"]);
    let unknown = json!({"digest": A});
    assert_eq!(candidates(&[unknown.clone(), special.clone(), entry(C, "", "amd64", "")]), [C, A, B]);
    assert_eq!(
        candidates(&[json!({"digest": B, "platform": {}}), json!({"digest": C, "platform": null})]),
        [B, C]
    );
    let five = [A, B, C, A, B].map(|digest| entry(digest, "linux", "amd64", ""));
    assert_eq!(candidates(&five).len(), MAX_CANDIDATES);
}

#[test]
fn artifacts_attestations_and_unknown_algorithms_are_skipped() {
    let mut signature = entry(A, "linux", "amd64", "");
    signature["artifactType"] = "application/vnd.dev.cosign.artifact.sig.v1+json".into();
    let mut image = entry(B, "linux", "amd64", "");
    image["artifactType"] = media::OCI_CONFIG.into();
    let blob = json!({"mediaType": "application/vnd.in-toto+json", "digest": A});
    let old = json!({"mediaType": "application/vnd.docker.distribution.manifest.v1+json", "digest": A});
    let algorithm = entry("blake3:00", "linux", "amd64", "v3");
    assert_eq!(candidates(&[signature.clone(), blob.clone(), old, algorithm.clone(), image]), [B]);
    for (entries, want) in [
        (json!([signature, blob]), "no image for linux/amd64/v3"),
        (json!([algorithm]), "blake3:00"),
        (json!([entry(A, "windows", "amd64", ""), entry(A, "linux", "amd64", "v5")]), "no image for"),
        (json!([]), "no image for"),
    ] {
        let error = parse(&json!({"schemaVersion": 2, "manifests": entries})).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains(want), "{error}");
    }
    assert!(matches!(
        parse(&json!({"mediaType": media::DOCKER_LIST, "manifests": null})),
        Err(Error::Unsupported { .. })
    ));
}

fn manifest() -> Value {
    let layer = "application/vnd.oci.image.layer.v1.tar+zstd";
    json!({"schemaVersion": 2, "config": {"mediaType": media::OCI_CONFIG, "digest": A, "size": 2},
        "layers": [{"mediaType": layer, "digest": B, "size": 3}]})
}

fn layers(document: Result<Document>) -> Vec<(String, u64)> {
    match document {
        Ok(Document::Manifest { layers, .. }) => {
            layers.iter().map(|layer| (layer.digest.to_string(), layer.size)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_nulls_and_numbers_are_read_as_go_reads_them() {
    let one = [(B.to_owned(), 3)];
    assert_eq!(layers(parse(&manifest())), one);
    let text = manifest().to_string();
    for (from, to) in [
        ("\"schemaVersion\":2", "\"SCHEMAVERSION\":2"),
        ("\"schemaVersion\":2", "\"\\u017fchemaVer\u{17f}ion\":2"),
        ("\"schemaVersion\":2", "\"manifests\":null"),
        ("\"schemaVersion\":2", "\"schemaVersion\":null"),
        ("\"schemaVersion\":2", "\"schemaVersion\":2.0"),
        ("\"schemaVersion\":2", "\"schemaVersion\":2e0,\"x\":[[],{\"y\":1e999}]"),
        ("\"schemaVersion\":2", "\"mediaType\":null,\"mediaType\":\"\""),
        ("\"digest\":\"sha256:bbb", "\"digest\":\"x\",\"DIGEST\":\"sha256:bbb"),
        ("\"size\":3", "\"size\":4,\"size\":3,\"size\":null"),
        ("\"layers\":[", "\"layers\":[null,null,{\"digest\":7}],\"layers\":["),
        ("\"config\":{", "\"config\":{\"size\":1},\"config\":null,\"Config\":{"),
    ] {
        let other = text.replacen(from, to, 1);
        assert_ne!(other, text);
        if to.contains("\"digest\":7") {
            // Also of a list that counts no more, all must be right.
            assert!(matches!(read(&other), Err(Error::Corrupt { .. })), "{other}");
            continue;
        }
        assert_eq!(layers(read(&other)), one, "{other}");
    }
    let mut empty = manifest();
    empty["layers"] = Value::Null;
    assert_eq!(layers(parse(&empty)), []);
    // An object that occurs twice is changed by the second.
    let twice = text.replacen("\"layers\"", "\"config\":{\"size\":9},\"layers\"", 1);
    let Ok(Document::Manifest { config, .. }) = read(&twice) else { panic!("{twice}") };
    assert_eq!((config.digest.to_string(), config.size), (A.to_owned(), 9));
}

#[test]
fn ambiguous_and_foreign_documents_are_refused() {
    let (config, layer) = (manifest()["config"].clone(), manifest()["layers"][0].clone());
    for bad in [
        json!({"schemaVersion": 2, "config": config, "layers": [layer], "manifests": []}),
        json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "config": config, "layers": [layer]}),
        json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "manifests": [layer]}),
        json!({"schemaVersion": 3, "config": config, "layers": [layer]}),
        json!({"schemaVersion": 2, "layers": [layer]}),
        json!({"schemaVersion": 2, "config": config, "layers": [{"mediaType": "text/plain", "digest": B, "size": 3}]}),
        json!({"schemaVersion": 2, "config": {"digest": "sha384:00", "size": 2}, "layers": []}),
        json!({"schemaVersion": 2, "config": {"digest": A, "size": -1}, "layers": []}),
        json!({"schemaVersion": 2, "config": {"digest": A, "size": 0.5}, "layers": []}),
        json!({"schemaVersion": 2, "config": {"digest": A, "size": 1e300}, "layers": []}),
        json!({"schemaVersion": "2", "config": config, "layers": [layer]}),
        json!({"schemaVersion": 2, "config": [], "layers": []}),
        json!([]),
        json!(null),
        json!({"mediaType": "application/vnd.oci.artifact.manifest.v1+json", "blobs": []}),
    ] {
        let error = parse(&bad).map(|document| format!("{document:?}")).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. } | Error::Corrupt { .. }), "{bad}: {error}");
    }
    for text in ["", "{", "{}x", "\u{feff}{}", "<html>"] {
        assert!(matches!(read(text), Err(Error::Corrupt { .. })), "{text}");
    }
    for schema_1 in [
        json!({"schemaVersion": 1, "name": "a/b", "tag": "v", "fsLayers": [], "history": [], "signatures": []}),
        json!({"fsLayers": [{"blobSum": A}]}),
        json!({"mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws"}),
    ] {
        let error = parse(&schema_1).unwrap_err().to_string();
        assert!(error.contains("schema 1") && error.contains("skopeo copy"), "{error}");
    }
}

#[test]
fn configs_and_layers_of_old_pushes_are_those_of_images() {
    let with = |config: &str, layer: &str| {
        let mut manifest = manifest();
        manifest["config"]["mediaType"] = config.into();
        manifest["layers"][0]["mediaType"] = layer.into();
        parse(&manifest)
    };
    let tar = "application/vnd.docker.image.rootfs.diff.tar";
    for good in [
        "",
        media::OCI_CONFIG,
        media::DOCKER_CONFIG,
        "application/octet-stream",
        "application/json",
        "text/html; charset=utf-8",
    ] {
        assert!(with(good, tar).is_ok(), "{good}");
    }
    for bad in
        ["application/vnd.docker.plugin.v1+json", "application/vnd.cncf.helm.config.v1+json", "text", "json"]
    {
        assert!(matches!(with(bad, tar), Err(Error::Unsupported { .. })), "{bad}");
    }
    for good in [
        "",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/octet-stream",
        "application/x-gzip",
    ] {
        assert!(with("", good).is_ok(), "{good}");
    }
    for bad in [
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.erofs.layer.v1",
        "application/vnd.oci.image.layer.nydus.blob.v1",
        "application/vnd.oci.empty.v1+json",
        "text/plain",
    ] {
        assert!(matches!(with("", bad), Err(Error::Unsupported { .. })), "{bad}");
    }
}

fn image(json: &str) -> Result<Config> {
    config(&Digest::of(json.as_bytes()), json.as_bytes())
}

#[test]
fn configs_with_nulls_words_and_users() {
    let json = r#"{"architecture":"","OS":"linux","created":"yesterday","config":{"Cmd":null,"Env":["A=b",null],
        "User":"www-data:1","Volumes":{"/v":{},"/w":null},"Entrypoint":"/run me","Labels":{"a":null},"Healthcheck":7},
        "rootfs":{"type":"layers","diff_ids":null}}"#;
    let config = image(json).unwrap();
    assert_eq!(config.process.env, ["A=b", ""]);
    assert_eq!(config.process.volumes, ["/v", "/w"]);
    assert_eq!(config.process.entrypoint, ["/run me"]);
    assert_eq!(config.process.labels["a"], "");
    assert!(config.process.cmd.is_empty() && config.diff_ids.is_empty());
    for empty in ["{}", "null", r#"{"config":null,"rootfs":null}"#] {
        assert_eq!(image(empty).unwrap().process, crate::ImageConfig::default(), "{empty}");
    }
    for bad in
        [r#"{"config":{"Env":"A=b"}}"#, r#"{"config":{"User":0}}"#, r#"{"rootfs":{"diff_ids":["md5:00"]}}"#]
    {
        assert!(matches!(image(bad), Err(Error::Corrupt { .. })), "{bad}");
    }
    assert_eq!(user("www-data:1"), (None, Some("www-data".into())));
    assert_eq!(user(""), (Some(0), None));
    assert_eq!(user("1002:1003"), (Some(1002), None));
    assert_eq!(user("4294967296"), (None, Some("4294967296".into())));
    assert_eq!(user("+5"), (None, Some("+5".into())));
}

#[test]
fn the_platform_of_a_config_counts_if_no_index_has_one() {
    let (host, id) = (Host::of("x86_64", 2), Digest::of(b""));
    for good in
        ["{}", r#"{"architecture":"X86_64","variant":"v2"}"#, r#"{"os":"LINUX","architecture":"i386"}"#]
    {
        image(good).unwrap().check_platform(&id, &host).unwrap();
    }
    for other in [r#"{"architecture":"s390x"}"#, r#"{"architecture":"amd64","variant":"v3"}"#] {
        let error = image(other).unwrap().check_platform(&id, &host).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
    for foreign in [r#"{"os":"windows","architecture":"amd64"}"#, r#"{"os":"macOS"}"#] {
        assert!(matches!(image(foreign), Err(Error::Unsupported { .. })), "{foreign}");
    }
}

#[test]
fn hostile_documents_cost_little() {
    let many = format!("{{\"manifests\":[{}{{}}]}}", "{},".repeat(json::MAX_ITEMS));
    let error = read(&many).unwrap_err().to_string();
    assert!(error.contains("more than 16384 elements"), "{error}");
    let names = (0..=json::MAX_ITEMS).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(",");
    let error = image(&format!("{{\"config\":{{\"Volumes\":{{{names}}}}}}}")).unwrap_err().to_string();
    assert!(error.contains("more than 16384 members"), "{error}");
    let deep = |levels: usize| format!("{{\"x\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
    assert!(image(&deep(9_999)).is_ok());
    let error = image(&deep(10_000)).unwrap_err().to_string();
    assert!(error.contains("10000 levels"), "{error}");
    let text = r#"{"x":"[[[[\"[[[[","config":{"User":"u"}}"#;
    assert_eq!(image(text).unwrap().process.user, "u");
    // What is not UTF-8 is replaced, as by Go.
    let bytes = b"{\"config\":{\"User\":\"\xff\"}}";
    assert_eq!(config(&Digest::of(bytes), bytes).unwrap().process.user, "\u{fffd}");
}

/// Why the documents are read into types of our own. Once their bytes are limited, `oci_spec` could read them; but not
/// those that real programs write.
#[test]
fn oci_spec_refuses_what_go_and_we_read() {
    let strict = |text: &str| serde_json::from_str::<oci_spec::image::ImageManifest>(text).is_ok();
    let text = manifest().to_string();
    assert!(strict(&text));
    for (from, to) in [
        (",\"schemaVersion\":2", ""),
        ("\"layers\":[", "\"layers\":null,\"x\":["),
        ("\"mediaType\":\"application/vnd.oci.image.config.v1+json\",", ""),
        ("\"config\":{", "\"Config\":{"),
        ("\"size\":3", "\"size\":3,\"size\":3"),
    ] {
        let other = text.replacen(from, to, 1);
        assert!(other != text && !strict(&other) && read(&other).is_ok(), "{other}");
    }
    let strict = |text: &str| serde_json::from_str::<oci_spec::image::ImageConfiguration>(text).is_ok();
    let base = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    assert!(strict(base));
    for text in [
        r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":null}}"#,
        r#"{"architecture":"amd64","os":"linux","rootfs":{"diff_ids":[]}}"#,
        r#"{"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#,
        r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":{"Entrypoint":"/x"}}"#,
    ] {
        assert!(!strict(text) && image(text).is_ok(), "{text}");
    }
}
