//! Pulls from Debian's docker-registry, over HTTP and HTTPS, and stacks the result with overlayfs.
#![allow(missing_docs)]

mod common;

use common::programs::{push, start};
use common::{Built, Codec, Node, build, noise, tar};
use std::process::{Command, Stdio};

fn image() -> Built {
    let lower =
        tar(&[("etc/gone", b"1"), ("etc/kept", b"1"), ("data/old", b"1"), ("bin/big", &noise(3 << 20, 7))]);
    let middle = tar(&[("etc/.wh.gone", b""), ("data/.wh..wh..opq", b""), ("data/new", b"2")]);
    let upper = tar(&[("etc/kept", b"3")]);
    build(&[(lower, Codec::Gzip), (middle, Codec::Zstd), (upper, Codec::Plain)], "")
}

/// Checks the files as overlayfs shows them.
fn check_through_overlay(record: &image::ImageRecord) {
    let mount = tempfile::tempdir().unwrap();
    let lower: Vec<_> =
        record.layers.iter().map(|l| record.layers_dir.join(l).display().to_string()).collect();
    let options = format!("lowerdir={}", lower.join(":"));
    // A private mount namespace, so that no mount is left behind.
    let script = "set -e; mount -t overlay overlay -o \"$1\" \"$2\"; cd \"$2\"; \
        ! test -e etc/gone; ! test -e data/old; cat etc/kept data/new; stat -c %s bin/big; ls data etc";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh", &options])
        .arg(mount.path())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown} {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(shown, "323145728\ndata:\nnew\n\netc:\nkept\n");
}

#[tokio::test]
async fn over_http() {
    let (registry, node) = (start(None).await, Node::new());
    let image = image();
    let name = push(&registry, "team/app", "1.0", &image).await;
    let record = node.store.pull(&name, None).await.unwrap();
    assert_eq!(record.id, image.config);
    check_through_overlay(&record);
    let error = node.store.pull(&format!("{}/team/app:none", registry.address), None).await.unwrap_err();
    assert!(matches!(error, image::Error::NotFound { .. }), "{error}");
    node.store.remove(&record.id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test]
async fn over_https_with_a_private_ca() {
    let certificates = tempfile::tempdir().unwrap();
    let status = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(certificates.path())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    // The same content by a plain and by a TLS registry.
    let (plain, node) = (start(None).await, Node::new());
    let image = image();
    push(&plain, "team/app", "1.0", &image).await;
    let secure = start(Some(certificates.path())).await;
    let data = plain.folder.path().join("data");
    let target = secure.folder.path().join("data");
    assert!(Command::new("cp").arg("-a").arg(&data).arg(&target).status().unwrap().success());
    let name = format!("{}/team/app:1.0", secure.address);
    let server = format!("server = \"https://{}\"\n", secure.address);
    node.hosts(&secure.address, &server);
    let error = node.store.pull(&name, None).await.unwrap_err();
    assert!(matches!(error, image::Error::Unavailable { .. }), "an unknown CA must be refused: {error}");
    node.assert_empty().await;
    let ca = certificates.path().join("cert.pem");
    node.hosts(&secure.address, &format!("{server}ca = \"{}\"\n", ca.display()));
    let record = node.store.pull(&name, None).await.unwrap();
    check_through_overlay(&record);
    node.store.remove(&record.id).await.unwrap();
    node.hosts(&secure.address, &format!("{server}skip_verify = true\n"));
    node.store.pull(&name, None).await.unwrap();
}
