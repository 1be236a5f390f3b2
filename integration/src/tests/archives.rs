//! `copepod image`: archives that other tools have made, exports that others read, and the lists of an operator.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::context::Context;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::images::layer::{Packing, Writer};
use crate::images::{self, Recipe};
use crate::isolation::command;
use crate::runner::{Test, test};
use crate::shapes;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(archives_of_other_tools_are_imported).own(),
        test!(an_export_is_read_by_other_tools).own(),
        test!(a_node_is_cleaned_up).own(),
        test!(errors_say_what_to_do).own(),
    ]
}

/// `copepod image …` on the node of the test.
fn image(cx: &Context, arguments: &[&str]) -> Result<Output> {
    let (program, config) = cx.node.program();
    let mut command = Command::new(program);
    command.args(config).arg("image").args(arguments).stdin(Stdio::null());
    command.output().context("copepod image")
}

/// What the command prints; it must succeed.
fn prints(cx: &Context, arguments: &[&str]) -> Result<String> {
    let output = image(cx, arguments)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "image {arguments:?} ended with {}: {}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}

/// The message of the command, which must end with code 1.
fn fails(cx: &Context, arguments: &[&str]) -> Result<String> {
    let output = image(cx, arguments)?;
    ensure!(output.status.code() == Some(1), "image {arguments:?} ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A folder of the test.
fn folder(cx: &Context) -> Result<PathBuf> {
    let folder = cx.node.paths.dir.join("archives");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("no text")
}

/// skopeo copies an image of the test's registry.
fn from_registry(cx: &Context, name: &str, to: &str) -> Result<()> {
    let from = format!("docker://{}", cx.fixture.registry.plain(name));
    let arguments = ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", &from, to];
    command("skopeo", &arguments).map(drop)
}

async fn archives_of_other_tools_are_imported(cx: Context) -> Result<()> {
    let folder = folder(&cx)?;
    let path = |name: &str| folder.join(name);
    let pod = cx.pod().await?;
    let docker = path("docker.tar");
    from_registry(&cx, "busybox-plain:1", &format!("docker-archive:{}:from.test/docker:1", text(&docker)?))?;
    from_registry(&cx, "busybox:1", &format!("oci-archive:{}:from.test/oci:1", text(&path("oci.tar"))?))?;
    from_registry(&cx, "tools:1", &format!("oci:{}:latest", text(&path("oci"))?))?;
    command("gzip", &[text(&path("oci.tar"))?])?;
    for (file, tag, name) in [
        ("docker.tar", None, "from.test/docker:1"),
        ("oci.tar.gz", None, "from.test/oci:1"),
        ("oci", Some("from.test/folder:1"), "from.test/folder:1"),
        ("docker.tar", Some("busybox"), "docker.io/library/busybox:latest"),
    ] {
        let file = path(file);
        let mut arguments = vec!["import", text(&file)?];
        if let Some(tag) = tag {
            arguments.extend(["--tag", tag]);
        }
        let printed = prints(&cx, &arguments)?;
        ensure!(
            printed.starts_with(&format!("{name} sha256:")) && printed.lines().count() == 1,
            "the import of {} as {name} printed {printed:?}",
            file.display()
        );
        let container = name.replace(['/', '.', ':'], "-");
        cx.outputs(
            &pod,
            &shapes::container(&container, name, &["/bin/cat", "/etc/marker"]),
            "from the image\n",
        )
        .await?;
    }
    // By standard input, which a shell connects.
    let (program, config) = cx.node.program();
    let mut piped = Command::new(program);
    piped.args(config).args(["image", "import", "-", "--tag", "from.test/piped:1"]);
    let status =
        piped.stdin(fs::File::open(&docker)?).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    ensure!(status.success(), "the import from standard input ended with {status}");
    ensure!(cx.cri.image("from.test/piped:1").await?.is_some(), "it is not listed");
    Ok(())
}

/// An entry of a folder.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    /// Type and permission bits.
    mode: u32,
    owner: (u32, u32),
    /// Seconds and nanoseconds; not of folders.
    mtime: Option<(i64, i64)>,
    /// Digest of a file, or target of a symlink.
    content: String,
    /// The first path of the same file.
    first: String,
    /// The extended attribute that the image has.
    attribute: Vec<u8>,
}

/// All below a folder, by path. The time of a folder is not compared: umoci changes it when it creates a folder in it that
/// has no entry.
fn tree(root: &Path) -> Result<BTreeMap<String, Entry>> {
    let (mut found, mut firsts, mut left) = (BTreeMap::new(), HashMap::new(), vec![root.to_owned()]);
    let mut paths = Vec::new();
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.symlink_metadata()?.is_dir() {
                left.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let name = path.strip_prefix(root)?.display().to_string();
        let facts = path.symlink_metadata()?;
        let content = match facts.file_type() {
            kind if kind.is_file() => images::digest(&fs::read(&path)?),
            kind if kind.is_symlink() => fs::read_link(&path)?.display().to_string(),
            _ => String::new(),
        };
        let first = firsts.entry(facts.ino()).or_insert_with(|| name.clone()).clone();
        let mut attribute = [0; 64];
        let length = rustix::fs::lgetxattr(&path, "user.copepod", &mut attribute).unwrap_or(0);
        let entry = Entry {
            mode: facts.permissions().mode(),
            owner: (facts.uid(), facts.gid()),
            mtime: (!facts.is_dir()).then_some((facts.mtime(), facts.mtime_nsec())),
            content,
            first,
            attribute: attribute.iter().take(length).copied().collect(),
        };
        found.insert(name, entry);
    }
    Ok(found)
}

/// What umoci unpacks of a layout.
fn unpacked(layout: &Path, tag: &str) -> Result<BTreeMap<String, Entry>> {
    let root = layout.with_extension("root");
    command("umoci", &["raw", "unpack", "--image", &format!("{}:{tag}", layout.display()), text(&root)?])?;
    tree(&root)
}

/// Pushes an image with all that layers can have. They are compressed with gzip, as umoci knows no zstd.
async fn push_layers(cx: &Context) -> Result<()> {
    let mut lower = Writer::new();
    for name in ["keep", "gone", "opaque/old", "opaque/sub/old"] {
        lower.file(&format!("w/{name}"), 0o644, b"lower\n")?;
    }
    lower.owned("w/owned", 0o640, (1234, 5678), b"owned\n")?;
    lower.file("w/suid", 0o4755, b"suid\n")?;
    lower.hardlink("w/hard", "w/keep")?;
    lower.symlink("w/soft", "keep")?;
    lower.with_xattr("w/attributed", "user.copepod", "value")?;
    let mut upper = Writer::new();
    upper.file("w/.wh.gone", 0, b"")?;
    upper.file("w/opaque/.wh..wh..opq", 0, b"")?;
    upper.file("w/opaque/new", 0o644, b"upper\n")?;
    let base = cx.fixture.layers.busybox.clone();
    let layers = [base, lower.finish(Packing::Gzip)?, upper.finish(Packing::Gzip)?];
    let image = Recipe::new(&layers, json!({"Cmd": ["/bin/sh"]})).build();
    cx.fixture.registry.push("exported", "1", &image).await.map(drop)
}

async fn an_export_is_read_by_other_tools(cx: Context) -> Result<()> {
    let folder = folder(&cx)?;
    let path = |name: &str| folder.join(name);
    push_layers(&cx).await?;
    let name = Fixture::image("exported");
    cx.cri.pull(&name).await?;
    from_registry(&cx, "exported:1", &format!("oci:{}:t", text(&path("wanted"))?))?;
    let wanted = unpacked(&path("wanted"), "t")?;
    ensure!(
        wanted.len() > 100 && wanted.contains_key("w/opaque/new"),
        "umoci unpacked {} entries",
        wanted.len()
    );
    let archive = path("export.tar");
    let mut exports = Vec::new();
    for flags in [&["--gzip"][..], &[]] {
        let printed =
            prints(&cx, &[&["export", "--output", text(&archive)?][..], flags, &[name.as_str()]].concat())?;
        ensure!(printed.starts_with(&format!("{name} sha256:")), "the export printed {printed:?}");
        exports.push(fs::read(&archive)?);
        for kind in ["oci-archive", "docker-archive"] {
            let to = path(&format!("{kind}{}", flags.len()));
            let from = format!("{kind}:{}", text(&archive)?);
            let arguments = ["--insecure-policy", "copy", "--quiet", &from, &format!("oci:{}:t", text(&to)?)];
            command("skopeo", &arguments)?;
            let found = unpacked(&to, "t")?;
            let differ: Vec<_> = wanted
                .iter()
                .filter(|(name, entry)| found.get(*name) != Some(*entry))
                .map(|(name, entry)| format!("{name}: {:?} instead of {entry:?}", found.get(name)))
                .chain(found.keys().filter(|name| !wanted.contains_key(*name)).cloned())
                .take(5)
                .collect();
            ensure!(differ.is_empty(), "the export {flags:?}, as {kind}, differs: {differ:#?}");
        }
    }
    // The same image gives the same archive, also after it was imported from its own export.
    cx.cri.remove_image(&name).await?;
    prints(&cx, &["import", text(&archive)?])?;
    let pod = cx.pod().await?;
    cx.outputs(&pod, &shapes::container("again", &name, &["/bin/cat", "/w/opaque/new"]), "upper\n").await?;
    for (flags, before) in [&["--gzip"][..], &[]].iter().zip(&exports) {
        prints(&cx, &[&["export", "--output", text(&archive)?][..], *flags, &[name.as_str()]].concat())?;
        ensure!(fs::read(&archive)? == *before, "the export of the imported image differs ({flags:?})");
    }
    Ok(())
}

async fn a_node_is_cleaned_up(cx: Context) -> Result<()> {
    let (used, unused) = (Fixture::image("busybox"), Fixture::image("tools"));
    for name in [&used, &unused, &Fixture::image("user-uid"), &Fixture::image("user-name")] {
        cx.cri.pull(name).await?;
    }
    let (_pod, _container, _) = cx.sleeping(cx.pod_config()).await?;
    let listed = prints(&cx, &["list"])?;
    ensure!(listed.lines().count() == 5 && listed.contains(&unused), "the list is {listed}");
    let objects: serde_json::Value = serde_json::from_str(&prints(&cx, &["list", "--output", "json"])?)?;
    let tags: Vec<_> =
        objects.as_array().context("no array")?.iter().map(|image| &image["tags"][0]).collect();
    ensure!(tags.len() == 4 && tags.iter().any(|tag| **tag == *used), "the tags are {tags:?}");
    let removed = prints(&cx, &["remove", &Fixture::image("user-uid"), &Fixture::image("user-name")])?;
    ensure!(removed.lines().count() == 2, "the removal printed {removed}");
    let message = fails(&cx, &["remove", "nosuch", &unused])?;
    ensure!(message.contains("nosuch: no such image") && message.contains("1 of 2"), "{message}");
    ensure!(cx.cri.image(&unused).await?.is_none(), "the image after the unknown one was not removed");
    cx.cri.pull(&unused).await?;
    let told = prints(&cx, &["prune", "--dry-run"])?;
    ensure!(told.contains(&unused) && told.contains("would be freed") && !told.contains(&used), "{told}");
    ensure!(cx.cri.images().await?.len() == 2, "a dry run removed an image");
    let told = prints(&cx, &["prune"])?;
    ensure!(told.contains(&unused) && told.contains(" freed") && !told.contains("\n0 B freed"), "{told}");
    ensure!(cx.cri.images().await?.len() == 1, "the unused image is there");
    Ok(())
}

async fn errors_say_what_to_do(cx: Context) -> Result<()> {
    let folder = folder(&cx)?;
    let path = |name: &str| folder.join(name);
    from_registry(&cx, "busybox:1", &format!("oci-archive:{}", text(&path("unnamed.tar"))?))?;
    let whole = fs::read(path("unnamed.tar"))?;
    fs::write(path("cut.tar"), whole.get(..whole.len() / 2).unwrap_or_default())?;
    fs::write(path("cut.tar.gz"), [0x1f, 0x8b, 8, 0])?;
    fs::write(path("other"), "not an archive")?;
    for (file, wanted) in [
        ("unnamed.tar", "--tag"),
        ("cut.tar", "corrupt"),
        ("cut.tar.gz", "cannot read"),
        ("other", "archive"),
        ("none", "No such file"),
    ] {
        let message = fails(&cx, &["import", text(&path(file))?])?;
        ensure!(message.contains(wanted), "the import of {file} said {message:?} without {wanted:?}");
    }
    let message = fails(&cx, &["export", "--output", text(&path("x.tar"))?, "nosuch:1"])?;
    ensure!(message.contains("nosuch:1") && !path("x.tar").exists(), "{message}");
    let left = fs::read_dir(&folder)?
        .flatten()
        .filter(|entry| entry.path().display().to_string().contains(".part-"));
    ensure!(left.count() == 0, "a part of an export is left");
    let message = fails(&cx, &["list", "--socket", "/nonexistent/socket"])?;
    ensure!(message.contains("/nonexistent/socket") && message.contains("must run"), "{message}");
    let store = cx.node.paths.root.join("images");
    for kind in ["ingest", "layers", "blobs"] {
        ensure!(
            fs::read_dir(store.join(kind))?.count() == 0,
            "a refused import has left something in {kind}"
        );
    }
    Ok(())
}
