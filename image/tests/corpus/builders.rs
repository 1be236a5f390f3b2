//! Builders that are not run here: their layers, written as their source does it.

use super::archive::{Dialect, archive};
use super::image::{Layer, check};
use super::model::{Item, all_at, apply, empty, file, folder, link, symlink};

/// Attributes of programs with CAP_NET_BIND_SERVICE, as vfs_cap_data version 2.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A base of a distribution: a root entry, a merged /usr, folders with attributes of their own.
fn base() -> Vec<Item> {
    all_at(
        1_600_000_000,
        vec![
            folder("./"),
            symlink("bin", "usr/bin"),
            folder("etc/"),
            file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
            file("etc/removed", "old"),
            folder("home/"),
            folder("home/app/").mode(0o700).owner(1000, 1000),
            folder("opt/"),
            folder("opt/old/"),
            file("opt/old/file", "old"),
            folder("run/"),
            folder("tmp/").mode(0o1777),
            folder("usr/"),
            folder("usr/bin/"),
            file("usr/bin/su", "program").mode(0o4755),
            folder("usr/share/").owner(0, 50).mode(0o2775),
            folder("var/"),
            symlink("var/run", "/run"),
        ],
    )
}

/// Pulls an image of these layers, lowest first, and compares it.
async fn image(name: &str, dialect: Dialect, layers: &[Vec<Item>]) {
    let wanted = apply(&layers.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let layers: Vec<_> = layers.iter().map(|items| Layer::gzip(archive(dialect, items))).collect();
    check(name, &layers, &wanted).await;
}

/// BuildKit writes differences with containerd (`pkg/archive/tar.go`, ChangeWriter): PAX, parents of what changed,
/// fractions of seconds, whiteouts without attributes. WORKDIR of a folder that is there makes an empty layer, each time
/// the same (moby/buildkit#6543).
#[tokio::test]
async fn buildkit() {
    let run = vec![
        folder("etc/").at(1_700_000_000, 5),
        empty("etc/.wh.removed"),
        folder("usr/").at(1_600_000_000, 0),
        folder("usr/bin/").at(1_700_000_001, 123_456_789),
        file("usr/bin/server", "server")
            .mode(0o755)
            .at(1_700_000_001, 500_000_000)
            .xattr("security.capability", CAPABILITY),
        link("usr/bin/alias", "usr/bin/server").mode(0o755).at(1_700_000_001, 500_000_000),
        symlink("usr/bin/link", "server").at(1_700_000_002, 1),
    ];
    // COPY --link: a layer of its own, without entries for the parents.
    let copied = vec![
        file("home/app/config", "a=b").owner(1000, 1000).at(1_700_000_003, 0),
        file("tmp/x", "x").at(1_700_000_003, 0),
        folder("opt/old/").at(1_700_000_003, 0),
        empty("opt/old/.wh..wh..opq"),
        file("opt/old/new", "new"),
    ];
    image("BuildKit", Dialect::GoPax, &[base(), Vec::new(), run, Vec::new(), copied, Vec::new()]).await;
}

/// Docker's classic builder (moby/go-archive `changes.go`, ExportChanges): one layer for each instruction, the folder
/// before its content, whiteouts after it.
#[tokio::test]
async fn docker() {
    let long = format!("usr/share/{}/", "文件".repeat(20));
    let run = all_at(
        1_650_000_000,
        vec![
            folder("usr/"),
            folder("usr/share/").owner(0, 50).mode(0o2775),
            folder(&long),
            file(&format!("{long}{}", "n".repeat(120)), "long"),
            folder("var/"),
            empty("etc/.wh.removed"),
            empty("opt/.wh.old"),
        ],
    );
    let again = all_at(
        1_650_000_001,
        vec![folder("opt/"), folder("opt/old/").mode(0o711), file("opt/old/file", "new")],
    );
    image("Docker", Dialect::GoPax, &[base(), run, again]).await;
}

/// kaniko (`pkg/util/tar_util.go`): an entry `/`, absolute targets of hard links, whiteouts with mode 0, and no entry for a
/// parent that has not changed.
#[tokio::test]
async fn kaniko() {
    let snapshot = vec![
        folder("/").at(1_680_000_000, 0),
        folder("usr/lib/").at(1_680_000_000, 0),
        file("usr/lib/a", "a").at(1_680_000_000, 0),
        link("usr/lib/b", "/usr/lib/a").at(1_680_000_000, 0),
        empty("etc/.wh.removed"),
        file("home/app/data", "x").owner(1000, 1000).mode(0o600),
    ];
    image("kaniko", Dialect::Go, &[base(), snapshot]).await;
}

/// ko (`pkg/build/tar.go`): `ko-app` without a slash at its end and the program with an absolute name; kodata below
/// `/var/run`, which is a symlink in most bases and becomes a folder.
#[tokio::test]
async fn ko() {
    let data = vec![
        folder("/var").mode(0o555),
        folder("/var/run").mode(0o555),
        folder("/var/run/ko").mode(0o555),
        file("/var/run/ko/static/index.html", "<html>").mode(0o555),
    ];
    let program = vec![folder("ko-app").mode(0o555), file("/ko-app/server", "server").mode(0o555)];
    image("ko", Dialect::Go, &[base(), data, program]).await;
}

/// jib (`ReproducibleLayerBuilder.java`): sorted entries with all parents, one second after the epoch, mode with the file
/// type, long names in PAX records.
#[tokio::test]
async fn jib() {
    let name = format!("app/libs/{}-1.0.jar", "dependency".repeat(12));
    let libraries = vec![folder("app/"), folder("app/libs/"), file(&name, "jar")];
    let classes = vec![
        folder("app/"),
        folder("app/classes/"),
        folder("app/classes/com/"),
        file("app/classes/com/Main.class", "class"),
        file("app/classes/com/Über.class", "class").owner(3_000_000, 3_000_000),
    ];
    let arguments = vec![folder("app/"), file("app/jib-classpath-file", "/app/classes")];
    let layers: Vec<_> = [libraries, classes, arguments].into_iter().map(|items| all_at(1, items)).collect();
    image("jib", Dialect::Commons, &layers).await;
}

/// nix2container (`nix/tar.go`): absolute names without a slash at the end, one second after the epoch, symlinks into the
/// store.
#[tokio::test]
async fn nix2container() {
    let store = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-hello-2.12";
    let packages = vec![
        folder("/nix"),
        folder("/nix/store"),
        folder(store).mode(0o555),
        folder(&format!("{store}/bin")).mode(0o555),
        file(&format!("{store}/bin/hello"), "hello").mode(0o555),
    ];
    let root = vec![
        folder("/bin"),
        symlink("/bin/hello", &format!("{store}/bin/hello")),
        folder("/tmp").mode(0o1777),
    ];
    let layers: Vec<_> = [packages, root].into_iter().map(|items| all_at(1, items)).collect();
    image("nix2container", Dialect::Go, &layers).await;
}

/// Cloud Native Buildpacks (lifecycle's `archive/writer.go` and `layers/`): absolute names, one second after the start of
/// 1980, root's parents and the user's content; empty slices of an application are equal layers
/// (buildpacks/lifecycle#1300).
#[tokio::test]
async fn buildpacks() {
    let launcher = vec![
        folder("/cnb"),
        folder("/cnb/lifecycle"),
        file("/cnb/lifecycle/launcher", "launcher").mode(0o755),
    ];
    let layer = vec![
        folder("/layers").owner(1000, 1000),
        folder("/layers/node").owner(1000, 1000),
        file("/layers/node/env/PATH.prepend", "/layers/node/bin").owner(1000, 1000),
    ];
    let slice = vec![folder("/workspace").owner(1000, 1000)];
    let application =
        vec![folder("/workspace").owner(1000, 1000), file("/workspace/app.js", "app").owner(1000, 1000)];
    let processes =
        vec![folder("/cnb"), folder("/cnb/process"), symlink("/cnb/process/web", "/cnb/lifecycle/launcher")];
    let all = [base(), launcher, layer, slice.clone(), application, slice, processes];
    let layers: Vec<_> = all.into_iter().map(|items| all_at(315_532_801, items)).collect();
    image("Cloud Native Buildpacks", Dialect::Go, &layers).await;
}

/// apko (`pkg/tarball/write.go`): one layer, names without a slash at the end, records that nobody else has, extended
/// attributes, hard links of packages.
#[tokio::test]
async fn apko() {
    let items = vec![
        folder("bin"),
        file("bin/busybox", "busybox").mode(0o4755),
        symlink("bin/sh", "/bin/busybox"),
        folder("home"),
        folder("home/nonroot").owner(65532, 65532).mode(0o700),
        folder("usr"),
        file("usr/nginx", "nginx")
            .mode(0o755)
            .xattr("security.capability", CAPABILITY)
            .xattr("user.origin", b"apk"),
        link("usr/other", "usr/nginx").mode(0o755),
    ];
    let wanted = apply(&[&items]);
    let mut plain = Vec::new();
    for item in &items {
        // PAX records without a meaning for an image.
        let mut records = tar::Builder::new(Vec::new());
        records.append_pax_extensions([("APK-TOOLS.checksum.SHA1", &b"da39a3ee5e6b4b0d"[..])]).unwrap();
        if item.xattrs.is_empty() {
            plain.extend(records.get_ref());
        }
        plain.extend(super::archive::entry(Dialect::Go, item));
    }
    plain.resize(plain.len() + 1024, 0);
    check("apko", &[Layer::gzip(plain)], &wanted).await;
}

/// buildah and Podman (containers/storage `pkg/archive`): differences of overlay layers with fractions of seconds, the
/// parents of what changed, devices and fifos, opaque folders, and a commit of all layers to one.
#[tokio::test]
async fn buildah() {
    use super::model::What;
    use super::tree::Kind;
    let run = vec![
        folder("etc/").at(1_690_000_000, 7),
        empty("etc/.wh.passwd"),
        folder("opt/").at(1_690_000_000, 8),
        folder("opt/old/").at(1_690_000_000, 9),
        empty("opt/old/.wh..wh..opq"),
        folder("opt/old/sub/").mode(0o750).owner(7, 8).at(1_690_000_000, 10),
        Item::new("opt/old/sub/fifo", What::Is(Kind::Fifo), 0o600).at(1_690_000_000, 11),
        Item::new("opt/old/sub/null", What::Is(Kind::Character(1, 3)), 0o666).at(1_690_000_000, 12),
        file("opt/old/sub/labelled", "x").xattr("user.key", b"value \0 binary"),
    ];
    image("buildah", Dialect::GoPax, &[base(), run.clone()]).await;
    let changed = run.into_iter().filter(|item| !item.name.contains(".wh."));
    image("buildah --squash", Dialect::GoPax, &[base().into_iter().chain(changed).collect()]).await;
}

/// crane (go-containerregistry `pkg/v1/mutate` and `cmd/crane`): `append` takes archives of users as they are, `mutate`
/// writes entries again with another time, `flatten` makes one layer of all, with names as in the layers.
#[tokio::test]
async fn crane() {
    let appended = vec![
        file("./app/x", "x"),
        file("app/../app/y", "y"),
        symlink("app/lib", "lib64"),
        file("app/lib/z", "z"),
    ];
    let again = vec![file("app/x", "newer"), symlink("app/lib", "lib32"), file("app/lib/z", "z")];
    image("crane append", Dialect::Go, &[base(), appended.clone()]).await;
    image("crane flatten", Dialect::Go, &[[base(), appended, again].concat()]).await;
}
