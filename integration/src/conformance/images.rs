//! The images that critest pulls, made of Debian packages and of what critest looks at in them, and the registries'
//! names under which it asks for them.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::config;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::images::layer::{Layer, Packing, Writer};
use crate::images::{Image, Recipe};

/// The hosts in critest's image names. All are served by the fixture's registry.
const HOSTS: [&str; 3] = ["registry.k8s.io", "gcr.io", "k8s.gcr.io"];
/// Where critest's images for Kubernetes' own tests are.
const E2E: &str = "e2e-test-images";
/// Where cri-tools keeps its own.
const STAGING: &str = "k8s-staging-cri-tools";
/// The port of nginx in the image for pods on the host's network.
const HOST_NETWORK_PORT: &str = "12003";

/// One image name.
struct Entry {
    repository: String,
    tag: &'static str,
    image: Image,
}

/// Makes the fixture's registry a mirror of critest's registries.
pub(super) fn mirrors(certs: &Path, fixture: &Fixture) -> Result<()> {
    HOSTS.iter().try_for_each(|host| config::mirror(certs, host, &fixture.registry, "127.0.0.1"))
}

/// Builds and pushes all images; the number of names.
pub(super) async fn push(fixture: &Fixture) -> Result<usize> {
    let entries = all(fixture)?;
    for entry in &entries {
        fixture
            .registry
            .push(&entry.repository, entry.tag, &entry.image)
            .await
            .with_context(|| format!("push {}:{}", entry.repository, entry.tag))?;
    }
    Ok(entries.len())
}

fn all(fixture: &Fixture) -> Result<Vec<Entry>> {
    let mut list = workloads(fixture)?;
    list.extend(references(&fixture.layers.busybox));
    Ok(list)
}

/// The images whose programs critest runs.
fn workloads(fixture: &Fixture) -> Result<Vec<Entry>> {
    let base = &fixture.layers.busybox;
    let entry = |repository: String, tag, layers: &[Layer], config: Value| Entry {
        repository,
        tag,
        image: Recipe::new(layers, config).build(),
    };
    let web = |port: &str| -> Result<Vec<Layer>> {
        Ok(vec![base.clone(), fixture.layers.nginx.clone(), nginx(port)?])
    };
    let nginx = json!({"Cmd": ["/usr/sbin/nginx", "-g", "daemon off;"]});
    // critest waits for the word in the log, and asks on port 80.
    let httpd = json!({"Cmd": ["/bin/sh", "-c", "echo httpd; exec httpd -f -p 80 -h /www"]});
    // The answer of the original, a program that prints its effective user.
    let escalation = json!({"Cmd": ["/bin/sh", "-c", "echo \"Effective uid: $(/usr/bin/suid-id -u)\""]});
    let sleep = json!({"Entrypoint": ["/bin/sleep", "1000000"]});
    Ok(vec![
        entry(format!("{E2E}/busybox"), "1.29-2", &[base.clone(), plain_shell()?], json!({"Cmd": ["sh"]})),
        entry(format!("{E2E}/nginx"), "1.14-2", &web("80")?, nginx.clone()),
        entry(format!("{STAGING}/hostnet-nginx-amd64"), "latest", &web(HOST_NETWORK_PORT)?, nginx),
        entry(format!("{E2E}/httpd"), "2.4.39-4", &[base.clone(), page()?], httpd),
        entry(format!("{E2E}/nonewprivs"), "1.3", &[base.clone(), fixture.layers.tools.clone()], escalation),
        entry(String::from("pause"), "3.9", std::slice::from_ref(base), sleep),
    ])
}

/// The images whose names, tags and users critest compares. Each has a config, and so an id, of its own.
fn references(base: &Layer) -> Vec<Entry> {
    let entry = |name: &str, tag, user: &str| Entry {
        repository: format!("{STAGING}/{name}"),
        tag,
        image: Recipe::new(
            std::slice::from_ref(base),
            json!({"Cmd": ["sh"], "User": user, "Labels": {"name": name}}),
        )
        .build(),
    };
    vec![
        entry("test-image-latest", "latest", ""),
        entry("test-image-tag", "test", ""),
        entry("test-image-tag", "all", ""),
        entry("test-image-1", "latest", ""),
        entry("test-image-2", "latest", ""),
        entry("test-image-3", "latest", ""),
        entry("test-image-tags", "1", ""),
        entry("test-image-tags", "2", ""),
        entry("test-image-tags", "3", ""),
        entry("test-image-user-uid", "latest", "1002"),
        entry("test-image-user-username", "latest", "www-data"),
        entry("test-image-user-uid-group", "latest", "1003:users"),
        entry("test-image-user-username-group", "latest", "www-data:100"),
        // User 1000 of the shared layer is in group 50000.
        entry("test-image-predefined-group", "latest", "1000"),
    ]
}

/// Replaces busybox's shell by one that runs the file `ls` and not its own applet: critest masks `/bin/ls` and expects
/// the shell to be refused. Debian's busybox prefers its applets to files, so the copy here has that applet by another
/// name, `lr`, at the same place of the sorted table. Also `ipcs`, whose format critest reads, and `pgrep`, which Debian's
/// busybox does not have.
fn plain_shell() -> Result<Layer> {
    let busybox = fs::read("/bin/busybox").context("Debian package busybox-static")?;
    let mut w = Writer::new();
    w.file("bin/ls", 0o755, &busybox)?;
    w.file("bin/busybox", 0o755, &renamed(busybox, b"\0ls\0lsmod\0", b"\0lr\0lsmod\0")?)?;
    w.program("/usr/bin/ipcs")?;
    w.program("/usr/bin/pgrep")?;
    w.finish(Packing::Gzip)
}

/// Replaces the only occurrence of `old` by `new`, which has the same length.
fn renamed(mut bytes: Vec<u8>, old: &[u8], new: &[u8]) -> Result<Vec<u8>> {
    let found: Vec<usize> =
        bytes.windows(old.len()).enumerate().filter(|(_, w)| *w == old).map(|(at, _)| at).collect();
    ensure!(
        found.len() == 1,
        "busybox's table of applets has the names `ls` and `lsmod` beside each other {} times, not once",
        found.len()
    );
    for at in found {
        bytes.splice(at..at + old.len(), new.iter().copied());
    }
    Ok(bytes)
}

/// nginx on a port, with the page that critest looks for.
fn nginx(port: &str) -> Result<Layer> {
    let configuration = format!(
        "user root;\nworker_processes 1;\nerror_log stderr;\npid /var/run/nginx.pid;\nevents {{ worker_connections 64; }}\n\
         http {{\n access_log off;\n client_body_temp_path /tmp/a;\n proxy_temp_path /tmp/b;\n fastcgi_temp_path /tmp/c;\n \
         uwsgi_temp_path /tmp/d;\n scgi_temp_path /tmp/e;\n server {{ listen {port}; root /www; }}\n}}\n"
    );
    let mut w = Writer::new();
    w.file("etc/nginx/nginx.conf", 0o644, configuration.as_bytes())?;
    w.dir("var/run", 0o755)?;
    index(&mut w)?;
    w.finish(Packing::Gzip)
}

/// The page alone, for busybox's httpd.
fn page() -> Result<Layer> {
    let mut w = Writer::new();
    index(&mut w)?;
    w.finish(Packing::Gzip)
}

fn index(w: &mut Writer) -> Result<()> {
    w.file("www/index.html", 0o644, b"<html><title>Welcome to nginx!</title>\nWelcome to nginx!</html>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_applet_is_renamed_only_where_the_table_is_unmistakable() {
        let table = b"x\0losetup\0ls\0lsmod\0y".to_vec();
        let changed = renamed(table, b"\0ls\0lsmod\0", b"\0lr\0lsmod\0").unwrap();
        assert_eq!(changed, b"x\0losetup\0lr\0lsmod\0y");
        for table in [&b"x\0lsmod\0"[..], b"\0ls\0lsmod\0\0ls\0lsmod\0"] {
            assert!(renamed(table.to_vec(), b"\0ls\0lsmod\0", b"\0lr\0lsmod\0").is_err());
        }
    }
}
