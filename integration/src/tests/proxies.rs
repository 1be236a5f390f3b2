//! The proxies of the daemon's environment, with Debian's tinyproxy.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use tokio::net::TcpStream;

use crate::context::Context;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![test!(pulls_go_through_the_proxy).own()]
}

/// Ends with the test.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        drop(self.0.wait());
    }
}

/// tinyproxy for `user` with the password `secret`. Only it knows `known.test`: its /etc/hosts is of a mount namespace of
/// its own.
async fn tinyproxy(folder: &Path) -> Result<(Proxy, u16)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    fs::write(folder.join("hosts"), "127.0.0.1 known.test\n")?;
    let config = format!("Port {port}\nListen 127.0.0.1\nBasicAuth user secret\n");
    fs::write(folder.join("tinyproxy.conf"), config)?;
    let proxy = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg("mount --bind hosts /etc/hosts && exec tinyproxy -d -c tinyproxy.conf")
        .current_dir(folder)
        .stdout(Stdio::null())
        .spawn()
        .context("tinyproxy must be installed: make deps")?;
    let proxy = Proxy(proxy);
    wait::until("tinyproxy to listen", secs(10), || async {
        Ok(TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop))
    })
    .await?;
    Ok((proxy, port))
}

/// The daemon's command with another environment.
fn command(cx: &Context, variables: &[(&str, &str)]) -> Command {
    let (program, args) = cx.node.program();
    let mut command = Command::new(program);
    command.args(args).envs(variables.iter().copied());
    command
}

async fn pulls_go_through_the_proxy(cx: Context) -> Result<()> {
    let server = format!("known.test:{}", cx.fixture.registry.port);
    let certs = cx.node.paths.certs.join("far.test");
    fs::create_dir_all(&certs)?;
    fs::write(certs.join("hosts.toml"), format!("server = \"http://{server}\"\n"))?;
    let image = "far.test/number-3:1";
    let error = cx.cri.pull(image).await.err().context("a name was resolved that only the proxy knows")?;
    ensure!(error.message().starts_with("RegistryUnavailable"), "the error is {error}");
    let (_proxy, port) = tinyproxy(&cx.node.paths.dir).await?;
    let url = format!("http://user:secret@127.0.0.1:{port}");
    cx.node.terminate().await?;
    cx.node.launch_by(command(&cx, &[("http_proxy", &url), ("NO_PROXY", "other.test")])).await?;
    cx.cri.pull(image).await.context("through the proxy")?;
    cx.cri.remove_image(image).await?;
    // Loopback addresses are reached directly: the fixture's registry, which the proxy would serve as well.
    cx.node.terminate().await?;
    cx.node.launch_by(command(&cx, &[("ALL_PROXY", "http://127.0.0.1:1")])).await?;
    let direct = format!("127.0.0.1:{}/number-3:1", cx.fixture.registry.port);
    cx.cri.pull(&direct).await.context("from a loopback address")?;
    cx.cri.remove_image(&direct).await?;
    // A value that is no URL is an error at the start, without what it contains.
    cx.node.terminate().await?;
    let started = cx.node.launch_by(command(&cx, &[("HTTPS_PROXY", "ftp://user:hunter2@proxy")])).await;
    let error = format!("{:#}", started.err().context("the daemon starts with a proxy that is none")?);
    ensure!(error.contains("HTTPS_PROXY is not the URL of a proxy"), "the error is {error}");
    ensure!(!error.contains("hunter2"), "the error shows the password: {error}");
    cx.node.launch().await
}
