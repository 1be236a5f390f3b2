//! Builders that are run here, or whose tool is: what they have read is what the image must have.

use super::archive::{Dialect, archive};
use super::common::digest_of;
use super::image::{Image, Layer, check};
use super::model::{all_at, apply, empty, file, folder, link};
use super::opinion::{layout, run, umoci};
use super::tree::{self, Kind, Tree};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;
use tempfile::TempDir;

/// A folder with entries of all kinds. Times have whole seconds, as most formats have.
fn source() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("etc/app")).unwrap();
    fs::create_dir_all(at("srv/shared")).unwrap();
    fs::create_dir(at("tmp")).unwrap();
    fs::write(at("etc/app/config"), "a=b").unwrap();
    fs::write(at("srv/shared/prog"), vec![7; 100_000]).unwrap();
    fs::hard_link(at("srv/shared/prog"), at("srv/alias")).unwrap();
    symlink("../etc/app/config", at("srv/link")).unwrap();
    chown(at("srv/shared"), Some(1234), Some(5678)).unwrap();
    chown(at("etc/app/config"), Some(1234), Some(5678)).unwrap();
    for (name, mode) in
        [("tmp", 0o1777), ("srv/shared", 0o2775), ("srv/shared/prog", 0o4755), ("etc/app", 0o700)]
    {
        fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
    }
    set_times(folder.path(), 1_600_000_000);
    folder
}

/// Sets the time of all that is below a folder.
fn set_times(root: &Path, seconds: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    for name in tree::read(root).keys() {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, root.join(name), &times, flags).unwrap();
    }
}

/// What is in the folder, with owner and time as a builder sets them.
fn seen(root: &Path, owner: Option<(u32, u32)>, seconds: Option<i64>) -> Tree {
    let mut tree = tree::read(root);
    for entry in tree.values_mut() {
        entry.owner = owner.unwrap_or(entry.owner);
        entry.mtime = seconds.map_or(entry.mtime, |seconds| Some((seconds, 0)));
    }
    tree
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A root file system of GNU tar, as debuerreotype makes those of Debian's images, and as `docker import` and ADD take it.
#[tokio::test]
async fn gnu_tar() {
    let folder = source();
    let arguments = ["--create", "--numeric-owner", "--sort=name", "--directory", text(folder.path()), "."];
    let plain = run("tar", &arguments);
    let wanted = seen(folder.path(), None, None);
    check("GNU tar", &[Layer::gzip(plain)], &wanted).await;
}

/// rules_oci of Bazel: bsdtar with a specification (tar.bzl's mtree), with the attributes of a hermetic build.
#[tokio::test]
async fn rules_oci() {
    let room = tempfile::tempdir().unwrap();
    let path = |name: &str| room.path().join(name);
    fs::write(path("server"), "server").unwrap();
    let specification = format!(
        "#mtree\n\
         app uid=0 gid=0 time=1672560000 mode=0755 type=dir\n\
         app/server uid=0 gid=0 time=1672560000 mode=0755 type=file content={server}\n\
         app/server.runfiles/main/data uid=0 gid=0 time=1672560000 mode=0644 type=file content={server}\n\
         app/link uid=1000 gid=1000 time=1672560000 mode=0777 type=link link=../app/server\n\
         home/nonroot uid=65532 gid=65532 time=1672560000 mode=0700 type=dir\n",
        server = text(&path("server"))
    );
    fs::write(path("spec"), specification).unwrap();
    let plain = run("bsdtar", &["--create", "--file", "-", &format!("@{}", text(&path("spec")))]);
    let at = |items| all_at(1_672_560_000, items);
    let mut wanted = apply(&[&at(vec![
        folder("app"),
        file("app/server", "server").mode(0o755),
        file("app/server.runfiles/main/data", "server"),
        super::model::symlink("app/link", "../app/server").owner(1000, 1000),
        folder("home/nonroot").owner(65532, 65532).mode(0o700),
    ])]);
    // bsdtar lists folders without a line of their own in no order that decides on their time.
    for name in ["app/server.runfiles", "app/server.runfiles/main", "home"] {
        wanted.entry(name.to_owned()).and_modify(|entry| entry.mtime = None);
    }
    check("rules_oci", &[Layer::gzip(plain)], &wanted).await;
}

/// Runs Python with a program and arguments; returns what it prints.
fn python(program: &str, arguments: &[&str]) -> Vec<u8> {
    run("python3", &[&["-c", program][..], arguments].concat())
}

/// dockerTools of nixpkgs (`stream_layered_image.py`): Python's tarfile as a stream (PAX), absolute names, one owner and
/// one time for all, hard links as files.
#[tokio::test]
async fn nix_docker_tools() {
    const PROGRAM: &str = "
import sys, tarfile, pathlib
root = pathlib.Path(sys.argv[1])
with tarfile.open(fileobj=sys.stdout.buffer, mode='w|') as tar:
    for path in sorted(root.rglob('*')):
        info = tar.gettarinfo(path)
        info.name = '/nix/store/' + str(path.relative_to(root))
        if info.islnk():
            info.type, info.linkname, info.size = tarfile.REGTYPE, '', path.stat().st_size
        info.mtime, info.uid, info.gid, info.uname, info.gname = 1, 0, 0, 'root', 'root'
        if info.isfile():
            with open(path, 'rb') as file:
                tar.addfile(info, file)
        else:
            tar.addfile(info)
";
    let folder = source();
    let plain = python(PROGRAM, &[text(folder.path())]);
    let mut wanted: Tree = seen(folder.path(), Some((0, 0)), Some(1))
        .into_iter()
        .zip(1..)
        .map(|((name, entry), inode)| (format!("nix/store/{name}"), tree::Entry { inode, ..entry }))
        .collect();
    let parents = apply(&[&[file("nix/store/x", "")]]);
    wanted.extend(parents.into_iter().filter(|(_, entry)| entry.kind == Kind::Folder));
    check("nix dockerTools", &[Layer::plain(plain)], &wanted).await;
}

/// rules_docker and rules_pkg of Bazel (`build_tar.py`): GNU format, names that begin with `./`, archives one after the
/// other in one layer, each with the folders again.
#[tokio::test]
async fn rules_docker() {
    const PROGRAM: &str = "
import io, sys, tarfile
def info(name, **members):
    found = tarfile.TarInfo(name)
    for key, value in members.items():
        setattr(found, key, value)
    return found
with tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=tarfile.GNU_FORMAT) as tar:
    for part in ['first', 'second']:
        tar.addfile(info('./', type=tarfile.DIRTYPE, mode=0o755))
        tar.addfile(info('./lib', type=tarfile.SYMTYPE, linkname='usr/lib', mode=0o777))
        tar.addfile(info('./usr/lib', type=tarfile.DIRTYPE, mode=0o755))
        tar.addfile(info('./lib/' + part * 30, size=len(part), mode=0o644), io.BytesIO(part.encode()))
";
    let plain = python(PROGRAM, &[]);
    let parts: Vec<_> = ["first", "second"]
        .iter()
        .flat_map(|part| {
            let long = format!("usr/lib/{}", part.repeat(30));
            [super::model::symlink("lib", "usr/lib"), folder("usr/lib"), file(&long, part)]
        })
        .collect();
    check("rules_docker", &[Layer::gzip(plain)], &apply(&[&parts])).await;
}

/// Layers of an OCI image for skopeo.
fn layers_for_skopeo() -> (Vec<Vec<u8>>, Tree) {
    let base = all_at(
        1_600_000_000,
        vec![folder("d/").mode(0o750).owner(3, 4), file("d/f", &"content ".repeat(5000)), file("d/gone", "")],
    );
    let top = all_at(1_600_000_001, vec![empty("d/.wh.gone"), file("d/g", "g"), link("h", "d/g")]);
    let wanted = apply(&[&base, &top]);
    ([base, top].iter().map(|items| archive(Dialect::Go, items)).collect(), wanted)
}

/// Copies the image with skopeo into a folder, and checks what is pulled from there.
async fn skopeo(name: &str, media_type: &str, arguments: &[&str]) {
    let (archives, wanted) = layers_for_skopeo();
    let archives: Vec<&[u8]> = archives.iter().map(Vec::as_slice).collect();
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("oci"), folder.path().join("dir"));
    layout(&from, &archives);
    let (from, into) = (format!("oci:{}:t", text(&from)), format!("dir:{}", text(&to)));
    let copy = [&["--insecure-policy", "copy", "--quiet"][..], arguments, &[&from, &into]].concat();
    run("skopeo", &copy);
    let manifest = fs::read(to.join("manifest.json")).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let blobs: Vec<Vec<u8>> = fs::read_dir(&to)
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .filter(|blob| manifest.windows(71).any(|text| text == digest_of(blob).as_bytes()))
        .collect();
    assert_eq!(blobs.len(), 3, "a config and two layers: {document}");
    assert_eq!(document["layers"][0]["mediaType"], media_type);
    let stated = document["mediaType"].as_str().unwrap_or(super::common::MANIFEST).to_owned();
    let found = Image { blobs, manifest, media_type: stated }.pulled().await;
    tree::assert_same(name, &found, &wanted);
    tree::assert_same(&format!("{name}, compared with umoci"), &found, &umoci(&archives, &wanted));
    assert!(matches!(&found["d/f"].kind, Kind::File(content) if content.len() == 40_000));
}

/// skopeo converts an OCI image to Docker's schema 2.
#[tokio::test]
async fn skopeo_to_docker() {
    let media_type = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    skopeo("skopeo", media_type, &["--format=v2s2", "--dest-compress"]).await;
}

#[tokio::test]
async fn zstd_of_skopeo() {
    let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
    skopeo("zstd", media_type, &["--format=oci", "--dest-compress", "--dest-compress-format=zstd"]).await;
}

/// zstd:chunked: tables in skippable frames, for clients that read parts.
#[tokio::test]
async fn zstd_chunked_of_skopeo() {
    let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
    skopeo(
        "zstd:chunked",
        media_type,
        &["--format=oci", "--dest-compress", "--dest-compress-format=zstd:chunked"],
    )
    .await;
}
