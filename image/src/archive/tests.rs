//! Hostile and unusual archives.

use super::*;
use proptest::prelude::*;
use serde_json::json;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

type Files<'a> = [(&'a str, Vec<u8>)];

/// An archive of files, in this order.
fn archive(files: &Files<'_>) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, content) in files {
        add(&mut builder, name, EntryType::Regular, "", content);
    }
    builder.into_inner().unwrap()
}

/// Adds an entry; names may be what `tar` itself would refuse.
fn add(builder: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, link: &str, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

/// Reads an archive that arrives in parts of this length.
/// An archive and the images that it has.
type Read = Result<(Arc<Archive>, Vec<Found>)>;

fn read_parts(bytes: &[u8], part: usize) -> (TempDir, Read) {
    let folder = tempfile::tempdir().unwrap();
    let (sender, input) = mpsc::channel(bytes.len() / part + 1);
    for part in bytes.chunks(part) {
        sender.try_send(Bytes::copy_from_slice(part)).unwrap();
    }
    drop(sender);
    let read = Archive::read(input, Spool::create(folder.path().join("x"), 1 << 30).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was extracted");
    (folder, read)
}

fn read(bytes: &[u8]) -> Result<(Arc<Archive>, Vec<Found>)> {
    read_parts(bytes, 1000).1
}

fn refused(bytes: &[u8]) -> Error {
    match read(bytes) {
        Ok((_, found)) => panic!("it was accepted: {found:?}"),
        Err(error) => error,
    }
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes()
}

fn names(found: &[Found]) -> Vec<Vec<String>> {
    found.iter().map(|image| image.names.iter().map(ToString::to_string).collect()).collect()
}

/// `docker save` of old: each layer in a folder, a repeated one as a symlink to the first, the list at the end.
fn old_docker() -> Vec<u8> {
    let layer = vec![7; 2000];
    let mut builder = Builder::new(Vec::new());
    add(&mut builder, "bb/layer.tar", EntryType::Symlink, "../aa/layer.tar", b"");
    add(&mut builder, "aa/VERSION", EntryType::Regular, "", b"1.0");
    add(&mut builder, "aa/layer.tar", EntryType::Regular, "", &layer);
    add(&mut builder, "c.json", EntryType::Regular, "", &config(&[&layer, &layer]));
    let list = json!([{"Config": "c.json", "RepoTags": ["a/b:1", "busybox"],
        "Layers": ["aa/layer.tar", "bb/layer.tar"]}]);
    add(&mut builder, "manifest.json", EntryType::Regular, "", list.to_string().as_bytes());
    builder.into_inner().unwrap()
}

#[test]
fn docker_save_of_old() {
    let (archive, found) = read(&old_docker()).unwrap();
    assert_eq!(names(&found), [["docker.io/a/b:1", "docker.io/library/busybox:latest"]]);
    let manifest: serde_json::Value = serde_json::from_slice(found[0].top.made.as_ref().unwrap()).unwrap();
    let layer = Digest::of(&[7; 2000]);
    for described in manifest["layers"].as_array().unwrap() {
        assert_eq!(
            (described["digest"].as_str(), described["size"].as_u64()),
            (Some(layer.to_string().as_str()), Some(2000))
        );
    }
    assert_eq!(archive.blob(&layer).unwrap().unwrap().size, 2000);
    // In parts of any length.
    for part in [1, 511, 512, 100_000] {
        let (_folder, again) = read_parts(&old_docker(), part);
        assert_eq!(again.unwrap().1[0].top.digest, found[0].top.digest);
    }
}

#[test]
fn compressed_layers_of_docker_save_have_their_own_digests() {
    for (magic, suffix) in [(&[0x1f, 0x8b, 8, 0][..], "+gzip"), (&[0x28, 0xb5, 0x2f, 0xfd][..], "+zstd")] {
        let layer = [magic.to_vec(), vec![1; 3_000_000]].concat();
        let list = json!([{"Config": "c", "Layers": ["./l"]}]).to_string();
        let files = [("manifest.json", list.into_bytes()), ("l", layer.clone()), ("c", config(&[b"plain"]))];
        let (_, found) = read(&archive(&files)).unwrap();
        let manifest: serde_json::Value =
            serde_json::from_slice(found[0].top.made.as_ref().unwrap()).unwrap();
        let described = &manifest["layers"][0];
        assert_eq!(described["digest"], json!(Digest::of(&layer)));
        assert!(described["mediaType"].as_str().unwrap().ends_with(suffix));
        assert!(found[0].names.is_empty());
    }
}

/// A layout with these manifests and annotations.
fn layout(images: &[(&[u8], serde_json::Value)]) -> Vec<(String, Vec<u8>)> {
    let entries: Vec<_> = images
        .iter()
        .map(|(bytes, annotations)| {
            json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(bytes),
                "size": bytes.len(), "annotations": annotations, "platform": {"os": "linux", "architecture": "amd64"}})
        })
        .collect();
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    let blobs = images.iter().map(|(bytes, _)| (layout::path(&Digest::of(bytes)), bytes.to_vec()));
    blobs.chain([("./index.json".to_owned(), index.into_bytes())]).collect()
}

fn pack(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
    archive(&files)
}

#[test]
fn names_of_a_layout() {
    let whole =
        json!({"io.containerd.image.name": "r.example/a:1", "org.opencontainers.image.ref.name": "1"});
    let other = json!({"org.opencontainers.image.ref.name": "r.example/b"});
    let (_, found) =
        read(&pack(&layout(&[(b"1", whole.clone()), (b"2", other), (b"1", json!({}))]))).unwrap();
    // The first and the last are one image.
    assert_eq!(names(&found), [&["r.example/a:1"][..], &["r.example/b:latest"]]);
    // Manifests stay in the archive: those of all images may need much memory.
    assert!(found.iter().all(|image| image.top.made.is_none()));
    // A tag alone is no name.
    let tag = json!({"org.opencontainers.image.ref.name": "latest"});
    let (_, found) = read(&pack(&layout(&[(b"1", tag)]))).unwrap();
    assert_eq!(names(&found), [&[] as &[String]]);
    // Several entries of one name are several platforms.
    let (_, found) = read(&pack(&layout(&[(b"1", whole.clone()), (b"2", whole)]))).unwrap();
    assert_eq!(names(&found), [["r.example/a:1"]]);
    let index: serde_json::Value = serde_json::from_slice(found[0].top.made.as_ref().unwrap()).unwrap();
    assert_eq!(index["manifests"][1]["digest"], json!(Digest::of(b"2")));
    assert_eq!(index["manifests"][1]["platform"]["architecture"], "amd64");
}

#[test]
fn an_archive_that_is_both_has_the_names_of_one() {
    let (layer, config) = (vec![1; 100], config(&[&[1; 100]]));
    let list = json!([{"Config": "c", "RepoTags": ["named:1"], "Layers": ["l"]}]).to_string();
    let docker =
        [("c".to_owned(), config), ("l".to_owned(), layer), ("manifest.json".to_owned(), list.into_bytes())];
    let files = [layout(&[(b"1", json!(null))]), docker.to_vec()].concat();
    assert_eq!(names(&read(&pack(&files)).unwrap().1), [["docker.io/library/named:1"]]);
    let named = json!({"io.containerd.image.name": "r.example/a:1"});
    let files = [layout(&[(b"1", named)]), docker.to_vec()].concat();
    assert_eq!(names(&read(&pack(&files)).unwrap().1), [["r.example/a:1"]]);
}

/// `docker save a:1 <id>`, and what containerd exports of Kubernetes' images.
#[test]
fn what_has_no_name_beside_what_has_one_is_left_out() {
    let list =
        json!([{"Config": "none", "RepoTags": null}, {"Config": "c", "RepoTags": ["a/b:1"], "Layers": []}]);
    let files = [("manifest.json", list.to_string().into_bytes()), ("c", config(&[]))];
    assert_eq!(names(&read(&archive(&files)).unwrap().1), [["docker.io/a/b:1"]]);
    let named = |name: &str| json!({"io.containerd.image.name": name});
    let id = Digest::of(b"config").to_string();
    let images = [(&b"1"[..], named("r.example/a:1")), (b"1", named(&id)), (b"attestation", json!(null))];
    let mut files = layout(&images);
    files.remove(2);
    assert_eq!(names(&read(&pack(&files)).unwrap().1), [["r.example/a:1"]]);
    // An id is no name.
    assert_eq!(names(&read(&pack(&layout(&[(b"1", named(&id))]))).unwrap().1), [&[] as &[String]]);
}

#[test]
fn names_that_lead_outside_lead_nowhere() {
    for name in ["../../etc/passwd", "/etc/passwd", "x/../../../etc/passwd"] {
        let list = json!([{"Config": name, "Layers": []}]).to_string();
        let error = refused(&archive(&[("manifest.json", list.into_bytes())]));
        assert!(matches!(error, Error::NotFound { .. }), "{name}: {error}");
    }
    for target in ["../../../../etc/passwd", "/etc/passwd", ""] {
        let mut builder = Builder::new(Vec::new());
        // The reader refuses a symlink without a target.
        add(&mut builder, "a/c", EntryType::Symlink, target, b"");
        add(&mut builder, "manifest.json", EntryType::Regular, "", br#"[{"Config": "a/c", "Layers": []}]"#);
        let error = refused(&builder.into_inner().unwrap());
        assert!(matches!(error, Error::NotFound { .. } | Error::Corrupt { .. }), "{target}: {error}");
    }
    // A name with dots is that of a member, and nothing is written to it.
    let list = json!([{"Config": "c", "Layers": []}]).to_string();
    let files = [("../../c", config(&[])), ("/manifest.json", list.into_bytes())];
    assert_eq!(read(&archive(&files)).unwrap().1.len(), 1);
}

#[test]
fn links_in_a_circle_end() {
    let mut builder = Builder::new(Vec::new());
    add(&mut builder, "a", EntryType::Symlink, "b", b"");
    add(&mut builder, "b", EntryType::Link, "a", b"");
    add(&mut builder, "manifest.json", EntryType::Regular, "", br#"[{"Config": "a"}]"#);
    assert!(matches!(refused(&builder.into_inner().unwrap()), Error::Corrupt { .. }));
}

#[test]
fn of_equal_names_the_last_counts() {
    let list = |config: &str| json!([{"Config": config}]).to_string().into_bytes();
    let files = [
        ("manifest.json", list("gone")),
        ("c", b"{".to_vec()),
        ("manifest.json", list("c")),
        ("c", config(&[])),
    ];
    assert_eq!(read(&archive(&files)).unwrap().1.len(), 1);
}

#[test]
fn what_is_missing_is_named() {
    let mut files = layout(&[(b"1", json!({}))]);
    files.remove(0);
    let error = refused(&pack(&files)).to_string();
    assert!(error.contains(&Digest::of(b"1").to_string()) && error.contains("not in the archive"), "{error}");
    for files in [&[][..], &[("x", vec![1])]] {
        let error = refused(&archive(files)).to_string();
        assert!(error.contains("index.json") && error.contains("manifest.json"), "{error}");
    }
    let error = refused(&archive(&[("manifest.json", b"[]".to_vec())])).to_string();
    assert!(error.contains("no image"), "{error}");
    let list = json!([{"Config": "c", "Layers": ["l"]}]).to_string().into_bytes();
    let error = refused(&archive(&[("manifest.json", list.clone()), ("c", config(&[b"x"]))])).to_string();
    assert!(error.contains("\"l\""), "{error}");
    let error = refused(&archive(&[("manifest.json", list), ("c", config(&[]))])).to_string();
    assert!(error.contains("1 layers") && error.contains("config 0"), "{error}");
}

#[test]
fn wrong_digests_are_found() {
    let mut files = layout(&[(b"1", json!({}))]);
    files[0].1 = b"2".to_vec();
    assert!(matches!(refused(&pack(&files)), Error::Corrupt { .. }));
    files[1].1 = br#"{"manifests": [{"digest": "sha256:../../x"}]}"#.to_vec();
    assert!(matches!(refused(&pack(&files)), Error::Corrupt { .. }));
}

#[test]
fn large_things_are_refused() {
    // A size that nothing follows.
    let mut header = Header::new_gnu();
    header.set_size(1 << 60);
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    assert!(matches!(refused(&[header.as_bytes(), &[0; 5000][..]].concat()), Error::Corrupt { .. }));
    // Lists.
    for (name, list) in [
        ("index.json", vec![b' '; usize::try_from(MAX_LIST).unwrap() + 1]),
        ("manifest.json", [b"[".to_vec(), vec![b'{'; MAX_OBJECTS + 1]].concat()),
    ] {
        assert!(matches!(refused(&archive(&[(name, list)])), Error::TooLarge { .. }), "{name}");
    }
    let many: Vec<_> = (0..=MAX_IMAGES).map(|_| json!({"Config": "c"})).collect();
    let list = serde_json::Value::from(many).to_string().into_bytes();
    let error = refused(&archive(&[("manifest.json", list), ("c", config(&[]))]));
    assert!(matches!(error, Error::TooLarge { unit: "images", .. }), "{error}");
}

/// `docker save` of an image without layers, with these names.
fn tagged(names: &[String]) -> Vec<u8> {
    let list = json!([{"Config": "c", "RepoTags": names}]).to_string().into_bytes();
    archive(&[("manifest.json", list), ("c", config(&[]))])
}

#[test]
fn names_are_limited_and_each_counts_once() {
    let many: Vec<_> = (0..=MAX_TAGS).map(|number| format!("a:{number}")).collect();
    let error = refused(&tagged(&many));
    assert!(matches!(error, Error::TooLarge { unit: "names of images", .. }), "{error}");
    let (_, found) = read(&tagged(&vec!["a:1".to_owned(); 5000])).unwrap();
    assert_eq!(names(&found), [["docker.io/library/a:1"]]);
}

#[test]
fn a_digest_in_a_name_is_that_of_the_image() {
    let other = format!("r.example/a@{}", Digest::of(b"other"));
    let error = refused(&tagged(&[other])).to_string();
    assert!(error.contains("the digest of the image in the archive is"), "{error}");
    let own = format!("r.example/a@{}", Digest::of(b"1"));
    let (_, found) = read(&pack(&layout(&[(b"1", json!({"io.containerd.image.name": own}))]))).unwrap();
    assert_eq!(names(&found), [[own.as_str()]]);
}

#[test]
fn many_members_are_refused() {
    let one = archive(&[("x", vec![])]);
    // Without the end marks.
    let many = one[..512].repeat(100_000);
    let error = refused(&many);
    assert!(matches!(error, Error::TooLarge { unit: "members", .. }), "{error}");
    let long: Vec<(String, Vec<u8>)> =
        (0..2000).map(|number| (format!("{number}/{}", "n".repeat(90)), Vec::new())).collect();
    assert!(!matches!(refused(&pack(&long)), Error::TooLarge { .. }), "short names are few bytes");
}

#[test]
fn a_sparse_member_is_refused() {
    let mut builder = Builder::new(Vec::new());
    let records =
        b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n25 GNU.sparse.realsize=9\n23 GNU.sparse.name=c.x\n";
    add(&mut builder, "p", EntryType::XHeader, "", records);
    add(&mut builder, "c", EntryType::Regular, "", &[b"1\n0\n1\n".to_vec(), vec![0; 505], vec![1]].concat());
    let error = refused(&builder.into_inner().unwrap()).to_string();
    assert!(error.contains("sparse"), "{error}");
}

#[test]
fn a_cut_archive_is_refused_wherever_it_ends() {
    let whole = old_docker();
    // Behind the last member only the end marks are missing.
    let end = whole.len() - 1024;
    for length in (0..end - 512).step_by(100) {
        assert!(read(&whole[..length]).is_err(), "{length} of {end}");
    }
}

proptest! {
    #[test]
    fn any_change_is_an_error_or_another_archive(at in 0usize..6000, byte in any::<u8>()) {
        let mut bytes = old_docker();
        let at = at % bytes.len();
        bytes[at] = byte;
        // It must not panic, and names are valid.
        if let Ok((_, found)) = read(&bytes) {
            prop_assert!(found.len() == 1);
        }
    }
}

/// Go's encoding/json refuses it, and so `docker load` and `ctr image import` do.
#[test]
fn a_list_with_a_byte_order_mark_is_refused() {
    let docker = [("manifest.json", b"\xef\xbb\xbf[]".to_vec())];
    let oci = [("index.json", b"\xef\xbb\xbf{\"manifests\":[]}".to_vec())];
    for files in [docker, oci] {
        let error = refused(&archive(&files));
        assert!(matches!(&error, Error::Corrupt { object, .. } if object.contains(files[0].0)), "{error}");
    }
}
