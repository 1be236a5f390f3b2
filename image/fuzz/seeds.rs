//! Inputs to begin with: documents in the shapes of the programs that write them, and those that are meant to mislead.
//! A test of the crate replays them.

const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// With the digests in place of `$A` and `$B`.
fn filled(text: &str) -> Vec<u8> {
    text.replace("$A", A).replace("$B", B).into_bytes()
}

/// For `manifest`: the number of a content type, and JSON.
pub fn manifest() -> Vec<Vec<u8>> {
    let documents = [
        // BuildKit: an image, and its attestation.
        r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[
            {"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"$A","size":1,"platform":{"architecture":"amd64","os":"linux"}},
            {"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"$B","size":1,"annotations":
                {"vnd.docker.reference.digest":"$A","vnd.docker.reference.type":"attestation-manifest"},"platform":{"architecture":"unknown","os":"unknown"}}]}"#,
        // Docker.
        r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",
            "config":{"mediaType":"application/vnd.docker.container.image.v1+json","size":7,"digest":"$A"},
            "layers":[{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","size":9,"digest":"$B"}]}"#,
        r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[
            {"mediaType":"application/vnd.docker.distribution.manifest.v2+json","size":1,"digest":"$A","platform":{"architecture":"amd64","os":"linux","variant":"v3"}},
            {"mediaType":"application/vnd.docker.distribution.manifest.v2+json","size":1,"digest":"$B","platform":{"architecture":"arm","os":"linux","variant":"v7"}}]}"#,
        // Docker before 1.10.
        r#"{"schemaVersion":1,"name":"a/b","tag":"v","architecture":"amd64","fsLayers":[{"blobSum":"$A"}],"history":[{"v1Compatibility":"{}"}],"signatures":[]}"#,
        // Go's nil slices, and names in another case.
        r#"{"SchemaVersion":2,"Config":{"MediaType":"application/octet-stream","Digest":"$A","Size":2},"Layers":null,"manifests":null}"#,
        // Members that occur twice.
        r#"{"schemaVersion":1,"schemaVersion":2,"config":null,"config":{"digest":"$B","size":1.0e0},"config":{"digest":"$A"},"layers":[],"layers":[{"digest":"$B"}]}"#,
        // An artifact.
        r#"{"schemaVersion":2,"artifactType":"x/y","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"$A","size":2,"data":"e30="},"layers":[],"subject":{"digest":"$B"}}"#,
        // Manifest and index in one.
        r#"{"schemaVersion":2,"config":{"digest":"$A","size":2},"layers":[],"manifests":[{"digest":"$B"}]}"#,
        r#"{"manifests":[{"digest":"$A"},{"digest":"$B","platform":{}},null,{"platform":{"os":"LINUX","architecture":"x86_64","os.features":["a"]}}]}"#,
        "{\"\\u017fchemaVer\u{17f}ion\":2,\"lAyErs\":[[[[{}]]]]}",
        "[[[[[[[[",
    ];
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for (number, text) in (0_u8..).zip(documents) {
        seeds.push([&[number % 5], &filled(text)[..]].concat());
    }
    seeds
}

/// For `config`: JSON.
pub fn config() -> Vec<Vec<u8>> {
    let configs = [
        r#"{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z","config":{"Env":["PATH=/bin"],"Entrypoint":["/bin/sh","-c"],
            "Cmd":["true"],"User":"1000:1000","WorkingDir":"/w","Volumes":{"/v":{}},"ExposedPorts":{"80/tcp":{}},"Labels":{"a":"b"},"StopSignal":"SIGQUIT",
            "Healthcheck":{"Test":["NONE"]},"OnBuild":null},"rootfs":{"type":"layers","diff_ids":["$A","$B"]},"history":[{"created_by":"x","empty_layer":true}]}"#,
        r#"{"container_config":{"Hostname":"x","Cmd":null},"config":{"Hostname":"x","AttachStdin":false,"Tty":false,"Cmd":null,"Entrypoint":[""]},
            "docker_version":"1.9","rootfs":{"diff_ids":null}}"#,
        r#"{"OS":"Linux","ARCHITECTURE":"aarch64","variant":"v8","config":null,"rootfs":null,"history":null}"#,
        r#"{"config":{"Entrypoint":"/run","Cmd":"x"},"config":{"Env":["A"],"Env":null,"Volumes":{"a":1},"Volumes":{"b":[]}}}"#,
        r#"{"os":"windows","os.version":"10.0","architecture":"amd64","config":{"ArgsEscaped":true}}"#,
        r#"{"config":{"User":"4294967295:-1","StopSignal":"-1"},"rootfs":{"diff_ids":["md5:00"]}}"#,
        "null",
        "{\"config\":{\"User\":\"\\ud800\",\"Labels\":{\"\u{0}\":null}}}",
    ];
    let mut seeds: Vec<Vec<u8>> = configs.map(filled).into();
    seeds.push(b"{\"config\":{\"User\":\"\xff\xfe\"}}".to_vec());
    seeds
}

/// For `reference`: a name.
pub fn reference() -> Vec<Vec<u8>> {
    let names = [
        "busybox",
        "index.docker.io/library/busybox:1.37",
        "registry.example:5000/a/b__c/d-e.f:v1.0_x",
        "[::1]:5000/a@$A",
        "localhost/a:latest@$B",
        "Host.example/../a",
        "a/b/../../c:..",
        "x.y/a%2f..?b=c#d",
        "user@host/a",
        "http://x/y",
        "a:443/b@sha512:00",
    ];
    names.map(filled).into()
}
