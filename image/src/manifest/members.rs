//! What is done with every member of the image specification (1.1), of Docker's schema 2 and of the configs that Docker
//! writes: the tables of docs/image-members.md, with their proofs.

use super::json::Object as _;
use super::{Host, RawDescriptor, RawDocument, RawEntry, RawPlatform, config, document};
use crate::error::Result;
use crate::reference::Digest;
use members::{Member, check, covers, honoured, ignored, markdown, paths, refused};
use oci_spec::image as oci;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/image-members.md");
const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const ANOTHER: &str = "\"sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc\"";

const INDEX: &[Member] = &[
    refused(
        "/schemaVersion",
        "3",
        "2, or absent. 1 is refused with the reason: no current program writes it",
    ),
    refused(
        "/mediaType",
        "\"application/vnd.oci.image.manifest.v1+json\"",
        "Must not be that of a manifest; else the members decide what the document is. If absent, the header Content-Type counts",
    ),
    ignored("/artifactType", "\"text/x\"", "An index of artifacts has no entry for this platform"),
    honoured(
        "/manifests",
        "[]",
        "Together with `config` or `layers`, the document is refused: some would read it as a manifest",
    ),
    honoured(
        "/manifests/*/mediaType",
        "\"application/vnd.oci.artifact.manifest.v1+json\"",
        "Entries that are no manifests or indexes of OCI or Docker are skipped. Absent: it may be one",
    ),
    honoured(
        "/manifests/*/digest",
        ANOTHER,
        "sha256 or sha512. The content is verified. An entry with another algorithm is skipped",
    ),
    ignored(
        "/manifests/*/size",
        "9",
        "The digest is enough, and no document may have more than 4 MiB. Real indexes have wrong sizes, which containerd accepts if they are 0",
    ),
    ignored("/manifests/*/urls", "[\"https://x.example/\"]", "Only the registry and its mirrors are asked"),
    ignored(
        "/manifests/*/annotations",
        "{\"vnd.docker.reference.type\": \"attestation-manifest\"}",
        "Attestations of BuildKit are known by their platform, unknown/unknown",
    ),
    ignored("/manifests/*/data", "\"e30=\"", "The registry has the same content"),
    honoured(
        "/manifests/*/artifactType",
        "\"application/vnd.example\"",
        "Artifacts are skipped, unless it is the type of an image's config",
    ),
    honoured(
        "/manifests/*/platform",
        "{\"os\": \"linux\", \"architecture\": \"s390x\"}",
        "Absent, or without an architecture: tried last, and the config tells",
    ),
    honoured(
        "/manifests/*/platform/architecture",
        "\"s390x\"",
        "With Go's names or their synonyms (x86_64, aarch64, i386, armhf, armel), in any case. 386 runs on amd64, and arm on arm64, if there is nothing better",
    ),
    honoured("/manifests/*/platform/os", "\"windows\"", "linux, in any case, or absent"),
    ignored("/manifests/*/platform/os.version", "\"10.0\"", "Only Windows has it"),
    honoured(
        "/manifests/*/platform/os.features",
        "[\"x\"]",
        "An entry that needs any is tried after all others. A list of strings",
    ),
    honoured(
        "/manifests/*/platform/variant",
        "\"v9\"",
        "amd64: v1 to v4, the best one that the processor has; arm: v5 to v8; arm64: v8. Others do not run here",
    ),
    ignored(
        "/manifests/*/platform/features",
        "[\"sse4\"]",
        "Of Docker's manifest lists: features of the processor, which nobody writes. `variant` has them",
    ),
    ignored(
        "/subject",
        "{\"digest\": \"x\"}",
        "What this index says something about; it is no part of an image",
    ),
    ignored("/annotations", "{\"a\": \"b\"}", "Text for people and other programs"),
];

const MANIFEST: &[Member] = &[
    refused(
        "/schemaVersion",
        "3",
        "2, or absent. 1 is refused with the reason: no current program writes it",
    ),
    refused(
        "/mediaType",
        "\"application/vnd.oci.image.index.v1+json\"",
        "Must not be that of an index; else the members decide what the document is. If absent, the header Content-Type counts",
    ),
    ignored("/artifactType", "\"text/x\"", "The type of the config decides"),
    refused("/fsLayers", "[]", "Of Docker's schema 1, as is `history`"),
    honoured("/config", "null", "Must be there"),
    refused(
        "/config/mediaType",
        "\"application/vnd.oci.empty.v1+json\"",
        "That of OCI or Docker; or `application/octet-stream`, `application/json`, `text/html`, `text/plain` or none, of old pushes. With any other it is an artifact: a Helm chart, a plugin, a signature",
    ),
    honoured("/config/digest", ANOTHER, "sha256 or sha512. It becomes the image's id"),
    honoured("/config/size", "7", "At most 4 MiB"),
    ignored("/config/urls", "[\"https://x.example/\"]", "Only the registry and its mirrors are asked"),
    ignored("/config/annotations", "{\"a\": \"b\"}", "Text for people and other programs"),
    ignored("/config/data", "\"e30=\"", "The registry has the same content"),
    ignored("/config/platform", "{\"os\": \"windows\"}", "The config itself has it"),
    ignored("/config/artifactType", "\"text/x\"", "Meant for entries of indexes"),
    honoured(
        "/layers",
        "null",
        "Lowest first. Absent: none. At most 128, as many as the config has `rootfs.diff_ids`",
    ),
    refused(
        "/layers/*/mediaType",
        "\"application/vnd.oci.image.layer.v1.tar+gzip+encrypted\"",
        "tar, with or without gzip or zstd, of OCI or Docker, also if called foreign or nondistributable; or no more than an archive or bytes (`application/octet-stream`, `application/gzip` and the like, or none). The content tells how it is compressed. Encrypted layers and file systems in one file (EROFS, Nydus) are refused",
    ),
    honoured("/layers/*/digest", ANOTHER, "sha256 or sha512"),
    honoured("/layers/*/size", "7", "The transfer ends, or fails, after so many bytes"),
    ignored(
        "/layers/*/urls",
        "[\"https://x.example/\"]",
        "Only the registry and its mirrors are asked: a node should not call addresses that an image names. Base layers of Windows had them, when registries were not allowed to have these",
    ),
    ignored(
        "/layers/*/annotations",
        "{\"containerd.io/snapshot/stargz/toc.digest\": \"x\"}",
        "eStargz and zstd:chunked are read as the plain archives that they are too",
    ),
    ignored("/layers/*/data", "\"e30=\"", "The registry has the same content"),
    ignored("/layers/*/platform", "{\"os\": \"windows\"}", "The image's config has it"),
    ignored("/layers/*/artifactType", "\"text/x\"", "Meant for entries of indexes"),
    ignored("/subject", "{\"digest\": \"x\"}", "What this image says something about; it is no part of it"),
    ignored("/annotations", "{\"a\": \"b\"}", "Text for people and other programs"),
];

const CONFIG: &[Member] = &[
    ignored("/created", "\"2024-01-01T00:00:00Z\"", "Shown by `crictl inspecti`, with the whole document"),
    ignored("/author", "\"x\"", "Shown by `crictl inspecti`"),
    honoured(
        "/architecture",
        "\"s390x\"",
        "Decides about an image that no index has named for this node. Otherwise another one is only logged: builders often write that of their own machine",
    ),
    refused("/os", "\"windows\"", "linux, in any case, or absent"),
    ignored("/os.version", "\"10.0\"", "Only Windows has it"),
    ignored("/os.features", "[\"x\"]", "No features of Linux are defined"),
    honoured("/variant", "\"v9\"", "As `architecture`"),
    honoured("/config", "null", "Absent: the request must have a command"),
    honoured(
        "/config/User",
        "\"www\"",
        "`user`, `user:group`, `uid` or `uid:gid`; absent means root. The request's user wins",
    ),
    ignored(
        "/config/ExposedPorts",
        "{\"80/tcp\": {}}",
        "They open nothing; the ports of a pod are those of its request",
    ),
    honoured(
        "/config/Env",
        "[\"A=c\"]",
        "Below the request's variables, above HOSTNAME and the default PATH. Entries without `=` are ignored",
    ),
    honoured(
        "/config/Entrypoint",
        "[\"/x\"]",
        "A list, or one string. A list of one empty string counts as absent",
    ),
    honoured("/config/Cmd", "\"x\"", "A list, or one string"),
    honoured(
        "/config/Volumes",
        "{\"/w\": {}}",
        "Folders of the container's own, writable also if its root is not; their content is deleted with the container",
    ),
    honoured(
        "/config/WorkingDir",
        "\"w\"",
        "Created if missing; a relative one is below the root. The request's wins",
    ),
    honoured(
        "/config/Labels",
        "{\"l\": \"2\"}",
        "Shown by `crictl inspecti`; the labels of a container are those of its request",
    ),
    honoured(
        "/config/StopSignal",
        "\"SIGINT\"",
        "By name or number; absent means SIGTERM. The request's wins",
    ),
    ignored("/config/ArgsEscaped", "true", "Only Windows has it"),
    ignored(
        "/config/Memory",
        "1024",
        "Of Docker's configs before 2016, as the next three; limits are those of the request",
    ),
    ignored("/config/MemorySwap", "1024", "As `Memory`"),
    ignored("/config/CpuShares", "8", "As `Memory`"),
    ignored("/config/Cpuset", "\"0\"", "As `Memory`"),
    ignored("/config/Image", "\"sha256:0\"", "The image that this one was built from"),
    ignored("/config/Hostname", "\"x\"", "Of the container that this image was built in, as the next eight"),
    ignored("/config/Domainname", "\"x\"", "As `Hostname`"),
    ignored("/config/AttachStdin", "true", "As `Hostname`"),
    ignored("/config/AttachStdout", "true", "As `Hostname`"),
    ignored("/config/AttachStderr", "true", "As `Hostname`"),
    ignored("/config/Tty", "true", "As `Hostname`"),
    ignored("/config/OpenStdin", "true", "As `Hostname`"),
    ignored("/config/StdinOnce", "true", "As `Hostname`"),
    ignored("/config/MacAddress", "\"02:42:ac:11:00:02\"", "As `Hostname`"),
    ignored("/config/NetworkDisabled", "true", "The network is the pod's"),
    ignored(
        "/config/Healthcheck",
        "{\"Test\": [\"CMD\", \"x\"], \"Interval\": 1}",
        "kubelet has probes, which the pod names",
    ),
    ignored("/config/OnBuild", "[\"RUN x\"]", "For builders"),
    ignored("/config/Shell", "[\"/bin/sh\", \"-c\"]", "For builders"),
    ignored("/config/StopTimeout", "3", "kubelet says how long a container has"),
    ignored("/rootfs/type", "\"layers+base\"", "Always `layers`, but for old images of Windows"),
    honoured(
        "/rootfs/diff_ids",
        "[]",
        "sha256 or sha512, lowest first. Each layer's uncompressed content is verified",
    ),
    honoured("/rootfs", "null", "Without `diff_ids`, the image must have no layers"),
    ignored(
        "/history",
        "[{\"empty_layer\": true}]",
        "How the image was built. Whether a layer is empty shows in the manifest, which has none for it",
    ),
    ignored("/history/*/created", "\"2024-01-01T00:00:00Z\"", "As `history`"),
    ignored("/history/*/created_by", "\"RUN x\"", "As `history`"),
    ignored("/history/*/author", "\"x\"", "As `history`"),
    ignored("/history/*/comment", "\"x\"", "As `history`"),
    ignored("/history/*/empty_layer", "false", "As `history`"),
    ignored("/id", "\"x\"", "Of Docker's first format, as the next seven; the image's id is its digest"),
    ignored("/parent", "\"x\"", "As `id`"),
    ignored("/comment", "\"x\"", "As `id`"),
    ignored("/container", "\"x\"", "As `id`"),
    ignored("/container_config", "{\"Cmd\": [\"x\"]}", "As `id`: the container of the last build step"),
    ignored("/docker_version", "\"1\"", "As `id`"),
    ignored("/Size", "1", "As `id`"),
    ignored("/throwaway", "true", "As `id`"),
    ignored("/moby.buildkit.buildinfo.v1", "\"x\"", "For BuildKit, as the next two"),
    ignored("/moby.buildkit.cache.v0", "\"x\"", "As the one before"),
    ignored("/moby.buildkit.buildconfig", "\"x\"", "As the ones before"),
];

fn index() -> Value {
    let image = "application/vnd.oci.image.manifest.v1+json";
    let entry = |digest: &str| json!({"mediaType": image, "digest": digest, "size": 2, "platform": {"os": "linux", "architecture": std::env::consts::ARCH}});
    json!({"schemaVersion": 2, "manifests": [entry(A), entry(B)]})
}

fn manifest() -> Value {
    json!({"schemaVersion": 2, "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": A, "size": 2},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": B, "size": 3}]})
}

fn image_config() -> Value {
    json!({"architecture": std::env::consts::ARCH, "os": "linux", "config": {"Env": ["A=b"], "Labels": {"l": "1"},
        "Volumes": {"/u": {}}, "Healthcheck": {}, "ExposedPorts": {}}, "rootfs": {"type": "layers", "diff_ids": [A]}})
}

fn read(value: &Value) -> Result<String> {
    let bytes = serde_json::to_vec(value).unwrap();
    document(&Digest::of(b""), "", &bytes, &Host::this()).map(|document| format!("{document:?}"))
}

#[test]
fn every_member_of_an_index_and_a_manifest() {
    check(&index(), INDEX, read);
    check(&manifest(), MANIFEST, read);
    members::document(Path::new(PAGE), "index", &markdown(INDEX));
    members::document(Path::new(PAGE), "manifest", &markdown(MANIFEST));
}

#[test]
fn every_member_of_a_config() {
    let read = |value: &Value| {
        let bytes = serde_json::to_vec(value).unwrap();
        config(&Digest::of(b""), &bytes).map(|config| format!("{config:?}"))
    };
    check(&image_config(), CONFIG, read);
    members::document(Path::new(PAGE), "config", &markdown(CONFIG));
}

/// The names that `oci_spec` has, which has a type for each object of the specification, are in the tables.
#[test]
#[expect(clippy::too_many_lines, reason = "one line for each member")]
fn no_member_of_the_specification_is_missing() {
    let names = |value: Value| -> Vec<String> { paths(&value).into_iter().collect() };
    let compare = |table: &[Member], names: &[String], more: &[&str]| {
        covers(table, names.iter().map(String::as_str), more)
    };
    let platform = oci::PlatformBuilder::default()
        .architecture("amd64")
        .os("linux")
        .os_version("1")
        .os_features(vec!["x".to_owned()])
        .variant("v2")
        .build()
        .unwrap();
    let annotations = HashMap::<String, String>::new();
    let descriptor = |media_type: oci::MediaType, platform: Option<oci::Platform>| {
        let digest = A.parse::<oci::Digest>().unwrap();
        let mut of = oci::DescriptorBuilder::default()
            .media_type(media_type)
            .digest(digest)
            .size(2_u64)
            .urls(vec!["https://x".to_owned()])
            .annotations(annotations.clone())
            .data("e30=".to_owned())
            .artifact_type("x/y")
            .build()
            .unwrap();
        of.set_platform(platform);
        of
    };
    let subject = || {
        oci::DescriptorBuilder::default()
            .media_type("x/y")
            .digest(A.parse::<oci::Digest>().unwrap())
            .size(2_u64)
            .build()
            .unwrap()
    };
    let index = oci::ImageIndexBuilder::default()
        .schema_version(2_u32)
        .media_type(oci::MediaType::ImageIndex)
        .artifact_type("x/y")
        .manifests(vec![descriptor(oci::MediaType::ImageManifest, Some(platform))])
        .subject(subject())
        .annotations(annotations.clone())
        .build()
        .unwrap();
    let without_subject = |names: Vec<String>| -> Vec<String> {
        names.into_iter().filter(|name| !name.starts_with("/subject/")).collect()
    };
    let of_docker = ["/manifests/*/platform/features"];
    // In oci-spec 0.10 two members of a platform have other names than in the specification.
    let right =
        |name: String| name.replace("/os_version", "/os.version").replace("/os_features", "/os.features");
    let of_index = without_subject(names(serde_json::to_value(index).unwrap()));
    compare(INDEX, &of_index.into_iter().map(right).collect::<Vec<_>>(), &of_docker);
    let manifest = oci::ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(oci::MediaType::ImageManifest)
        .artifact_type("x/y")
        .config(descriptor(oci::MediaType::ImageConfig, None))
        .layers(vec![descriptor(oci::MediaType::ImageLayer, None)])
        .subject(subject())
        .annotations(annotations)
        .build()
        .unwrap();
    let more = ["/config/platform", "/layers/*/platform", "/fsLayers"];
    compare(MANIFEST, &without_subject(names(serde_json::to_value(manifest).unwrap())), &more);
    let process = oci::ConfigBuilder::default()
        .user("u".to_owned())
        .exposed_ports(Vec::new())
        .env(vec!["A=b".to_owned()])
        .entrypoint(vec!["x".to_owned()])
        .cmd(vec!["x".to_owned()])
        .volumes(Vec::new())
        .working_dir("/".to_owned())
        .labels(HashMap::new())
        .stop_signal("SIGINT".to_owned())
        .build()
        .unwrap();
    let step = oci::HistoryBuilder::default()
        .created("2024-01-01T00:00:00Z")
        .author("x")
        .created_by("x")
        .comment("x")
        .empty_layer(true)
        .build()
        .unwrap();
    let config = oci::ImageConfigurationBuilder::default()
        .created("2024-01-01T00:00:00Z")
        .author("x")
        .architecture("amd64")
        .os("linux")
        .os_version("1")
        .os_features(vec!["x".to_owned()])
        .variant("v2")
        .config(process)
        .rootfs(oci::RootFsBuilder::default().typ("layers").diff_ids(vec![A.to_owned()]).build().unwrap())
        .history(vec![step])
        .build()
        .unwrap();
    let known: BTreeSet<String> = paths(&serde_json::to_value(config).unwrap());
    let of_docker: Vec<&str> =
        CONFIG.iter().map(|member| member.path).filter(|path| !known.contains(*path)).collect();
    assert!(of_docker.contains(&"/config/Healthcheck") && of_docker.len() < 40, "{of_docker:?}");
    compare(CONFIG, &known.iter().cloned().collect::<Vec<_>>(), &of_docker);
}

/// What is read is what the tables call honoured or refused, at any depth.
#[test]
fn the_tables_have_all_that_is_read() {
    let used = |table: &[Member], prefix: &str, name: &str| {
        let path = format!("{prefix}/{name}");
        table.iter().any(|member| member.path == path && member.used != members::Use::Ignored)
    };
    let mut read: BTreeMap<&str, bool> = BTreeMap::new();
    for name in RawDocument::MEMBERS {
        read.insert(name, used(INDEX, "", name) || used(MANIFEST, "", name));
    }
    for name in RawDescriptor::MEMBERS {
        read.insert(name, used(MANIFEST, "/config", name) && used(MANIFEST, "/layers/*", name));
    }
    for name in RawEntry::MEMBERS {
        read.insert(name, used(INDEX, "/manifests/*", name));
    }
    for name in RawPlatform::MEMBERS {
        read.insert(name, used(INDEX, "/manifests/*/platform", name));
    }
    let unlisted: Vec<_> = read.iter().filter(|(_, listed)| !**listed).map(|(name, _)| *name).collect();
    assert!(unlisted.is_empty(), "read, but not listed: {unlisted:?}");
}
