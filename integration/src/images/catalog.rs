//! The images of the tests, all built from files of Debian packages.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::layer::{Layer, Packing, Writer};
use super::{Form, Image, Recipe, index};
use crate::isolation::command;

/// The shared lower layers, built once.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    /// Static busybox with all applets, /etc/passwd and /etc/group.
    pub(crate) busybox: Layer,
    /// procps, util-linux and coreutils tools with their libraries, and a set-uid `id`.
    pub(crate) tools: Layer,
    /// nginx with its libraries, listening on 80.
    pub(crate) nginx: Layer,
}

/// One image name in the registry.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Repository.
    pub(crate) name: &'static str,
    /// Tag.
    pub(crate) tag: &'static str,
    /// Content.
    pub(crate) image: Image,
}

/// Reads files of the host's packages and packs the shared layers.
pub(crate) fn layers() -> Result<Layers> {
    Ok(Layers { busybox: busybox(Packing::Gzip)?, tools: tools()?, nginx: nginx()? })
}

/// The images that are pushed before the first test.
pub(crate) fn all(layers: &Layers) -> Result<Vec<Entry>> {
    let shell = json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]});
    let base = std::slice::from_ref(&layers.busybox);
    let entry = |name, tag, image| Entry { name, tag, image };
    let busybox = Recipe::new(base, shell.clone()).build();
    let user = |user: &str| {
        Recipe::new(base, json!({"Cmd": ["/bin/sh"], "User": user, "Labels": {"user": user}})).build()
    };
    let numbered =
        |n: u32| Recipe::new(base, json!({"Cmd": ["/bin/sh"], "Labels": {"number": n.to_string()}})).build();
    let mut list = vec![
        entry("busybox", "1", busybox.clone()),
        entry("busybox", "latest", busybox.clone()),
        entry("mirror/busybox", "1", busybox.clone()),
        entry("busybox-zstd", "1", Recipe::new(&[self::busybox(Packing::Zstd)?], shell.clone()).build()),
        entry("busybox-plain", "1", Recipe::new(&[self::busybox(Packing::Plain)?], shell.clone()).build()),
        entry("busybox-docker", "1", Recipe::new(base, json!({"Cmd": ["/bin/sh"], "Labels": {"form": "docker"}})).docker().build()),
        entry("tools", "1", Recipe::new(&[layers.busybox.clone(), layers.tools.clone()], shell).build()),
        entry("nginx", "1", Recipe::new(&[layers.busybox.clone(), layers.nginx.clone()], json!({"Entrypoint": ["/usr/sbin/nginx"], "Cmd": ["-g", "daemon off;"], "StopSignal": "SIGQUIT"})).build()),
        entry("user-uid", "1", user("1002")),
        entry("user-name", "1", user("www-data")),
        entry("user-uid-group", "1", user("1003:users")),
        entry("user-name-group", "1", user("www-data:100")),
        entry("user-unknown", "1", user("nobody-here")),
        entry("predefined-group", "1", user("1000")),
        entry("configured", "1", Recipe::new(base, json!({
            "Entrypoint": ["/bin/echo", "entry"], "Cmd": ["command"], "WorkingDir": "/work/dir",
            "Env": ["FROM_IMAGE=yes", "BOTH=image"], "StopSignal": "SIGUSR1", "Volumes": {"/data": {}},
        })).build()),
        // Used by other runtimes, which take pause from an image, when the tests run against them.
        entry("pause", "1", Recipe::new(base, json!({"Entrypoint": ["/bin/tail", "-f", "/dev/null"]})).build()),
        entry("no-command", "1", Recipe::new(base, json!({})).build()),
        entry("whiteouts", "1", whiteouts(&layers.busybox)?),
        entry("many-layers", "1", many_layers(&layers.busybox)?),
    ];
    for (name, number) in [("number-1", 1), ("number-2", 2), ("number-3", 3)] {
        list.push(entry(name, "1", numbered(number)));
    }
    for tag in ["1", "2", "3"] {
        list.push(entry("tags", tag, numbered(9)));
    }
    for (name, form) in [("multi-oci", Form::Oci), ("multi-docker", Form::Docker)] {
        list.push(entry(name, "1", multi(&layers.busybox, form)));
    }
    Ok(list)
}

fn busybox(packing: Packing) -> Result<Layer> {
    let mut w = Writer::new();
    w.file("bin/busybox", 0o755, &fs::read("/bin/busybox").context("Debian package busybox-static")?)?;
    for applet in command("/bin/busybox", &["--list"])?.lines().filter(|a| *a != "busybox") {
        w.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    w.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www:/var/www:/bin/sh\nalice:x:1000:1000:alice:/home/alice:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n")?;
    w.file("etc/group", 0o644, b"root:x:0:\nwww-data:x:33:\nusers:x:100:\nalice:x:1000:\npredefined:x:50000:alice\nnogroup:x:65534:\n")?;
    w.file("etc/marker", 0o644, b"from the image\n")?;
    for dir in ["dev", "proc", "sys", "root", "var", "mnt", "run", "usr/bin", "usr/sbin"] {
        w.dir(dir, 0o755)?;
    }
    w.dir("tmp", 0o1777)?;
    w.finish(packing)
}

fn tools() -> Result<Layer> {
    let mut w = Writer::new();
    let programs = [
        "/usr/bin/ps",
        "/usr/bin/pgrep",
        "/usr/bin/setpriv",
        "/usr/bin/prlimit",
        "/usr/bin/unshare",
        "/usr/bin/findmnt",
        "/usr/bin/setsid",
        "/usr/bin/id",
        "/usr/bin/env",
        "/usr/bin/mount",
        "/usr/bin/umount",
        "/usr/bin/lsns",
        "/usr/bin/bash",
    ];
    for program in programs {
        // With a merged /usr, the link may exist in /bin only.
        let path =
            if fs::metadata(program).is_ok() { program.to_owned() } else { program.replacen("/usr", "", 1) };
        w.program(&path)?;
    }
    w.file("usr/bin/suid-id", 0o4755, &fs::read("/usr/bin/id")?)?;
    w.finish(Packing::Gzip)
}

fn nginx() -> Result<Layer> {
    let mut w = Writer::new();
    w.program("/usr/sbin/nginx").context("Debian package nginx-light")?;
    let listen = "worker_processes 1;\nerror_log stderr;\npid /run/nginx.pid;\nuser root;\nevents { worker_connections 64; }\nhttp { access_log off; client_body_temp_path /tmp/a; proxy_temp_path /tmp/b; fastcgi_temp_path /tmp/c; uwsgi_temp_path /tmp/d; scgi_temp_path /tmp/e;\n server { listen PORT; location / { return 200 'hello from nginx\\n'; } } }\n";
    w.file("etc/nginx/nginx.conf", 0o644, listen.replace("PORT", "80").as_bytes())?;
    w.file("etc/nginx/12003.conf", 0o644, listen.replace("PORT", "12003").as_bytes())?;
    for dir in ["var/lib/nginx", "var/log/nginx", "usr/share/nginx"] {
        w.dir(dir, 0o755)?;
    }
    w.finish(Packing::Gzip)
}

/// Whiteouts, opaque directories, links, owners, modes and attributes over three layers.
fn whiteouts(base: &Layer) -> Result<Image> {
    let mut lower = Writer::new();
    for name in
        ["keep", "remove", "replace", "opaque/old-1", "opaque/sub/old-2", "gone/file", "turned/was-dir"]
    {
        lower.file(&format!("w/{name}"), 0o644, b"lower\n")?;
    }
    lower.owned("w/owned", 0o640, (1234, 5678), b"owned\n")?;
    lower.file("w/suid", 0o4755, b"suid\n")?;
    lower.hardlink("w/hard", "w/keep")?;
    lower.file("x/private", 0o700, b"#!/bin/sh\necho private program: $0 $*\n")?;
    lower.symlink("w/soft", "keep")?;
    lower.symlink("w/absolute", "/etc/marker")?;
    lower.with_xattr("w/attributed", "user.copepod", "value")?;
    let mut upper = Writer::new();
    upper.file("w/.wh.remove", 0, b"")?;
    upper.file("w/.wh.gone", 0, b"")?;
    upper.file("w/.wh.turned", 0, b"")?;
    upper.file("w/opaque/.wh..wh..opq", 0, b"")?;
    upper.file("w/opaque/new", 0o644, b"upper\n")?;
    upper.file("w/replace", 0o600, b"upper\n")?;
    let mut top = Writer::new();
    top.file("w/turned", 0o644, b"now a file\n")?;
    let layers = [
        base.clone(),
        lower.finish(Packing::Gzip)?,
        upper.finish(Packing::Zstd)?,
        top.finish(Packing::Gzip)?,
    ];
    Ok(Recipe::new(&layers, json!({"Cmd": ["/bin/sh"]})).build())
}

fn many_layers(base: &Layer) -> Result<Image> {
    let mut layers = vec![base.clone()];
    for n in 0..60 {
        let mut w = Writer::new();
        w.file(&format!("layers/{n}"), 0o644, n.to_string().as_bytes())?;
        w.file("layers/last", 0o644, n.to_string().as_bytes())?;
        layers.push(w.finish(if n % 2 == 0 { Packing::Gzip } else { Packing::Zstd })?);
    }
    Ok(Recipe::new(&layers, json!({"Cmd": ["/bin/sh"]})).build())
}

/// An amd64 image among images for other platforms.
fn multi(base: &Layer, form: Form) -> Image {
    let of = |architecture: &'static str| {
        let recipe = Recipe {
            form,
            layers: vec![base.clone()],
            config: json!({"Cmd": ["/bin/sh"], "Labels": {"arch": architecture, "form": format!("{form:?}")}}),
            architecture,
        };
        recipe.build()
    };
    let (amd64, arm64, s390x) = (of("amd64"), of("arm64"), of("s390x"));
    let mut list = index(
        form,
        &[
            (arm64, json!({"architecture": "arm64", "os": "linux", "variant": "v8"})),
            (amd64.clone(), json!({"architecture": "amd64", "os": "linux"})),
            (s390x, json!({"architecture": "s390x", "os": "linux"})),
        ],
    );
    list.id = amd64.id;
    list
}
