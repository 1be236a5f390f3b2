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
    // More entries for this node than are tried.
    let entry = |digit| format!(r#"{{"digest":"sha256:{digit}","platform":{{"architecture":"amd64"}}}}"#);
    let many = ["1", "2", "3", "4", "5", "6"].map(|digit| entry(digit.repeat(64))).join(",");
    let many = format!("{{\"manifests\":[{many}]}}");
    let mut seeds: Vec<Vec<u8>> = vec![[b"\0", many.as_bytes()].concat()];
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

/// For `challenge`: values of the header, one in each line.
pub fn challenge() -> Vec<Vec<u8>> {
    let values = [
        // Docker Hub, GHCR, Harbor, ECR, Nexus, Quay, Artifactory.
        r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
        r#"Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:user/image:pull""#,
        r#"Bearer realm="https://harbor.example/service/token",service="harbor-registry""#,
        r#"Basic realm="https://1.dkr.ecr.eu-central-1.amazonaws.com/",service="ecr.amazonaws.com""#,
        "BASIC realm=\"Sonatype Nexus Repository Manager\"\nBearer realm=\"https://nexus.example/v2/token?account=x\"",
        r#"Bearer realm="https://quay.io/v2/auth",service="quay.io",error="invalid_token",error_description="a, b=c""#,
        r#"Bearer realm="https://a.example:8443/t#x",Basic realm="A \"B\" \\""#,
        "Negotiate YII=, bearer realm = https://a.example/t , SERVICE=s",
        "Basic\tRealm=x,charset=\"UTF-8\"",
        "Bearer realm=\"open",
        "Bearer realm=\"http://169.254.169.254/latest\", scope=, service",
        ",,=,\"=\",Bearer",
    ];
    values.map(|value| value.as_bytes().to_vec()).into()
}

/// For `hosts`: a file.
pub fn hosts() -> Vec<Vec<u8>> {
    let files = [
        // containerd's documentation, and mirrors on the node.
        "server = \"https://docker.io\"\n\n[host.\"https://registry-1.docker.io\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
        "server = \"https://registry-1.docker.io\"  # c\n[host.\"https://public-mirror.example.com\"]\ncapabilities = [\"pull\"]\n\
         [host.\"https://docker-mirror.internal\"]\ncapabilities = [\"pull\", \"resolve\"]\nca = \"docker-mirror.crt\"\n",
        "[host.'http://127.0.0.1:30020']\ncapabilities = ['pull', 'resolve']\ndial_timeout = '200ms'\n\
         [host.'http://127.0.0.1:30021']\ncapabilities = ['PULL', 'push', 'referrers']\ndial_timeout = '1m0.5s'\n",
        "ca = [\"/etc/certs/1-ca.pem\", \"special.pem\"]\nclient = [[\"c.cert\", \"/c.key\"],[\"c.pem\", \"\"]]\nskip_verify = false\n",
        "server = \"https://r.example/v2/cache\"\noverride_path = true\nskip_verify = true\nclient = \"c.pem\"\n\
         [header]\nx-custom-2 = [\"value a\",\"value b\"]\n[host.\"https://m.example:8443\".header]\nauthorization = \"Basic eDp5\"\n",
        "host.\"https://a.example\".skip_verify = true\nhost.\"http://[::1]:5000/x/\".client = [\"a\", \"b\"]\n",
        "[host]\n[host.\"a.example\"]\nskip_verify = true\n[host.\"docker.io\"]\n\"ca\" = []\n",
        "[host.\"https://m.example\".rewrite]\n\"^(.*)$\" = \"x/$1\"\n",
        "server = \"ftp://x\"\nskip_verfy = 1\nhost = { }\n",
        "dial_timeout = \"-1s\"\ncapabilities = 7\n[[host]]\n",
        "\u{feff}server = \"\"\"\nhttps://a\"\"\"\r\n",
    ];
    files.map(|file| file.as_bytes().to_vec()).into()
}

/// For `credentials`: JSON.
pub fn credentials() -> Vec<Vec<u8>> {
    let files = [
        // docker login, a helper, kubelet's secret, Podman and skopeo.
        r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpzZWNyZXQ="},"r.example:5000":{"auth":"bWU6cHc=","email":"a@b"}}}"#,
        r#"{"auths":{"r.example":{}},"credsStore":"desktop","credHelpers":{"r.example:5000":"ecr-login","docker.io":""},"currentContext":"x"}"#,
        r#"{"auths":{"r.example":{"username":"u","password":"p","auth":"dTpw"}}}"#,
        r#"{"auths":{"r.example/team":{"auth":"dDp0"},"r.example/team/app":{"identitytoken":"t"},"*.example":{"registrytoken":"r"}}}"#,
        r#"{"auths":{"http://10.0.0.1/v2/":{"auth":"AAAA"},"10.*.0.1":{"auth":"dTpwAAA="},"docker.io":null}}"#,
        r#"{"HttpHeaders":{"a":"b"},"psFormat":"table","detachKeys":"ctrl-e","proxies":{"default":{"httpProxy":"x"}},"auths":null}"#,
        r#"{"credsStore":"a","credHelpers":{"https://r.example/v1/":"b","r.example":"c"},"auths":{"r.example":{"username":"","password":"p"}}}"#,
        r#"{"auths":{"r.example":"dTpw"}}"#,
        r#"{"r.example":{"auth":"dTpw"}}"#,
        "[]",
    ];
    files.map(|file| file.as_bytes().to_vec()).into()
}

const USTAR: [u8; 8] = *b"ustar\x0000";
const GNU: [u8; 8] = *b"ustar  \0";

/// For `layer`: how it is tried, and an archive. The check sets checksums right.
#[expect(clippy::too_many_lines, reason = "one archive after the other")]
pub fn layer() -> Vec<Vec<u8>> {
    let pax = |records: &[&str]| {
        let text: String = records.iter().map(|record| format!("{} {record}\n", length_of(record))).collect();
        [block(b'x', b"pax", USTAR, text.len(), &[]), padded(text.as_bytes())].concat()
    };
    let file = |name: &[u8], magic, fields: &[(usize, &[u8])], content: &[u8]| {
        [block(b'0', name, magic, content.len(), fields), padded(content)].concat()
    };
    let long =
        |kind: u8, text: &[u8]| [block(kind, b"././@LongLink", GNU, text.len(), &[]), padded(text)].concat();
    let fields: &[(usize, &[u8])] = &[(157, b"target"), (329, b"0000001"), (337, b"0000003")];
    let kinds = (b'1'..=b'7').flat_map(|kind| block(kind, &[b'n', kind], USTAR, 0, fields)).collect();
    let map: &[(usize, &[u8])] = &[
        (386, b"00000000000\0"),
        (398, b"00000000003\0"),
        (410, b"00000010000\0"),
        (422, b"00000000002\0"),
        (483, b"00000020000\0"),
    ];
    let numbers: &[(usize, &[u8])] =
        &[(108, b"\x80\0\0\0\xff\xff\xff\xfe"), (136, &[0xff; 12]), (345, b"07346545000\x0007346545000")];
    let star: &[(usize, &[u8])] = &[(345, b"prefix"), (476, b"07346545000 07346545000 "), (508, b"tar\0")];
    let sparse = ["GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=n", "GNU.sparse.realsize=9"];
    let archives: [Vec<u8>; 13] = [
        [block(b'5', b"./", USTAR, 0, &[]), file(b"a/b", USTAR, &[], b"content"), vec![0; 1024]].concat(),
        kinds,
        [file(b"v7/", [0; 8], &[(156, b"\0")], b""), file(b"/../x", USTAR, &[(345, b"prefix")], b"y")]
            .concat(),
        [
            pax(&["path=a/./b//c", "mtime=-1.5", "uid=4294967294", "gid=-2", "SCHILY.xattr.user.a=b"]),
            file(b"s", USTAR, &[], b"x"),
        ]
        .concat(),
        [
            pax(&["size=3", "SCHILY.xattr.security.capability=\u{1}", "mtime=.25"]),
            block(b'0', b"s", USTAR, 0, &[]),
            padded(b"abc"),
        ]
        .concat(),
        [long(b'L', b"long/name\0"), long(b'K', b"long/target"), block(b'2', b"s", GNU, 0, &[])].concat(),
        [block(b'S', b"sparse", GNU, 5, map), padded(b"abcde"), file(b"after", GNU, &[], b"z")].concat(),
        [pax(&sparse), file(b"x", USTAR, &[], &[padded(b"1\n4\n2\n"), b"ab".to_vec()].concat())].concat(),
        [
            pax(&["GNU.sparse.map=1,2,7,1", "GNU.sparse.size=9", "GNU.sparse.numblocks=2"]),
            file(b"x", USTAR, &[], b"abc"),
        ]
        .concat(),
        [
            pax(&["GNU.sparse.size=9", "GNU.sparse.offset=0", "GNU.sparse.numbytes=1"]),
            file(b"x", USTAR, &[], b"a"),
        ]
        .concat(),
        file(b"base256", GNU, numbers, b"x"),
        file(b"star", USTAR, star, b"x"),
        [
            file(b"a", USTAR, &[], b"1"),
            file(b"a/.wh.b", USTAR, &[], b""),
            file(b"a/.wh..wh..opq", USTAR, &[], b""),
        ]
        .concat(),
    ];
    (0_u8..).zip(archives).map(|(number, archive)| [&[14 * number], &archive[..]].concat()).collect()
}

/// For `unpack`: an archive, whose checksums the check sets right.
pub fn unpack() -> Vec<Vec<u8>> {
    let entry = |kind: u8, name: &[u8], link: &[u8]| block(kind, name, USTAR, 0, &[(157, link)]);
    let file = |name: &[u8]| [block(b'0', name, USTAR, 1, &[]), padded(b"x")].concat();
    let mut seeds: Vec<Vec<u8>> = layer().iter().map(|seed| seed[1..].to_vec()).collect();
    seeds.extend([
        [entry(b'2', b"up", b"../../.."), file(b"up/victim"), entry(b'1', b"hard", b"up/victim")].concat(),
        [entry(b'2', b"a", b"b"), entry(b'2', b"b", b"a"), file(b"a/x")].concat(),
        [
            entry(b'5', b"d/", b""),
            entry(b'2', b"l", b"/d/e"),
            entry(b'5', b"d/e", b""),
            file(b"l/x"),
            file(b"d"),
        ]
        .concat(),
        [file(b"d/.wh.x"), file(b"d/x/y"), file(b"d/.wh..wh..opq"), file(b"d/x/.wh.y"), file(b".wh.d")]
            .concat(),
        [file(b".wh..wh.plnk/1.2"), entry(b'1', b"f", b".wh..wh.plnk/1.2"), entry(b'1', b"g", b"f")].concat(),
    ]);
    seeds
}

/// A header with these fields: offsets and bytes.
fn block(kind: u8, name: &[u8], magic: [u8; 8], size: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut block = vec![0; 512];
    let (size, kind) = (format!("{size:011o}\0"), [kind]);
    let own: [(usize, &[u8]); 6] = [
        (0, name),
        (100, b"0000644\0"),
        (124, size.as_bytes()),
        (136, b"07346545000\0"),
        (156, &kind),
        (257, &magic),
    ];
    for (at, bytes) in own.iter().chain(fields) {
        block[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    block
}

fn padded(content: &[u8]) -> Vec<u8> {
    let mut bytes = content.to_vec();
    bytes.resize(content.len().next_multiple_of(512), 0);
    bytes
}

/// The length of a PAX record, with its own digits, a blank and a line feed.
fn length_of(record: &str) -> usize {
    let rest = record.len() + 2;
    (1..)
        .map(|digits| rest + digits)
        .find(|length| length.to_string().len() + rest == *length)
        .unwrap_or_default()
}
