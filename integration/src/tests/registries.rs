//! What `docs/registries.md` tells an operator to write, with its own examples.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::context::Context;
use crate::expect::ensure;
use crate::isolation::command;
use crate::runner::{Test, test};
use crate::tests::configuration::drop_in;
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![test!(mirror_that_is_down).own(), test!(login_at_the_node).own()]
}

const PAGE: &str = include_str!("../../../docs/registries.md");

/// The first block of the page that contains this.
fn example(text: &str) -> Result<&'static str> {
    let blocks = PAGE.split("```").skip(1).step_by(2);
    let block = blocks.map(|block| block.split_once('\n').map_or(block, |(_, rest)| rest));
    block.into_iter().find(|block| block.contains(text)).with_context(|| format!("no example with {text}"))
}

/// An address from which no answer comes: what is sent to it is dropped, and counted.
struct Silent(&'static str);

impl Silent {
    fn new(address: &'static str) -> Result<Self> {
        command("iptables", &["-w", "-I", "OUTPUT", "-d", address, "-j", "DROP"])?;
        Ok(Self(address))
    }

    /// How many packets were sent.
    fn packets(&self) -> Result<u32> {
        let text = command("iptables", &["-w", "-nvxL", "OUTPUT"])?;
        let line = text.lines().find(|line| line.contains(self.0)).context("no rule")?;
        Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        drop(command("iptables", &["-w", "-D", "OUTPUT", "-d", self.0, "-j", "DROP"]));
    }
}

/// The page's mirror of Docker Hub, at an address that does not answer.
async fn mirror_that_is_down(cx: Context) -> Result<()> {
    let silent = Silent::new("198.51.100.1")?;
    let text = example("certs.d/docker.io/hosts.toml")?;
    let registry = format!("http://127.0.0.1:{}", cx.fixture.registry.port);
    let text = text.replace("https://registry-1.docker.io", &registry).replace("mirror.example", silent.0);
    ensure!(text.contains(&registry) && text.contains("dial_timeout"), "the example has changed: {text}");
    let certs = cx.node.paths.certs.join("docker.io");
    fs::create_dir_all(&certs)?;
    fs::write(certs.join("hosts.toml"), text)?;
    let image = "docker.io/library/number-3:1";
    cx.fixture.registry.push("library/number-3", "1", &cx.fixture.entry("number-3", "1")?.image).await?;
    let began = Instant::now();
    cx.cri.pull(image).await?;
    // Two seconds for the mirror, once for all documents and layers.
    ensure!(began.elapsed() < wait::longer(secs(8)), "the pull took {:?}", began.elapsed());
    let packets = silent.packets()?;
    ensure!(packets > 0, "the mirror was not asked, so this test shows nothing");
    cx.cri.remove_image(image).await?;
    cx.cri.pull(image).await?;
    ensure!(silent.packets()? == packets, "the mirror was asked again by the next pull");
    cx.cri.remove_image(image).await?;
    Ok(())
}

/// The file that the page's command writes, at a registry with users.
async fn login_at_the_node(cx: Context) -> Result<()> {
    let private = cx.fixture.registry.private().await?;
    let host = format!("127.0.0.1:{}", private.port);
    let file = cx.node.paths.dir.join("auth.json");
    drop_in(&cx, "10-auth.toml", &format!("[image]\ncredentials_file = \"{}\"\n", file.display()))?;
    cx.node.restart().await?;
    let image = format!("{host}/number-3:1");
    let error = cx.cri.pull(&image).await.err().context("the registry has served who is not logged in")?;
    let words = "UNAUTHORIZED: authentication required";
    ensure!(error.message().contains(words) && error.message().contains("without credentials"), "{error}");
    let login = example("skopeo login")?.lines().find(|line| line.starts_with("skopeo login"));
    let login = login.context("the page does not say how to log in")?;
    let login = login.replace("/etc/copepod/auth.json", &file.display().to_string());
    let login = login.replace("registry.example", &host);
    let login = format!("{login} --tls-verify=false --username user --password-stdin");
    command("sh", &["-c", &format!("echo secret | {login}")])?;
    // Without a restart: the file is read at every pull.
    cx.cri.pull(&image).await.context("after the login")?;
    cx.cri.remove_image(&image).await?;
    Ok(())
}
