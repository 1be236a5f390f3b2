//! The credentials of PullImage, at a registry that asks for them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;

use crate::context::Context;
use crate::expect::ensure;
use crate::gate::{Gate, IDENTITY, Scheme, TOKEN};
use crate::runner::{Test, test};
use crate::tests::configuration::drop_in;

pub(super) fn tests() -> Vec<Test> {
    vec![test!(user_and_password).ours(), test!(tokens).ours(), test!(of_the_node).own()]
}

fn user(password: &str) -> api::AuthConfig {
    api::AuthConfig { username: "user".to_owned(), password: password.to_owned(), ..Default::default() }
}

/// A pull with these credentials must succeed, or fail without showing them.
async fn pulls(cx: &Context, gate: &Gate, auth: Option<api::AuthConfig>, wanted: bool) -> Result<()> {
    let image = format!("127.0.0.1:{}/number-3:1", gate.port);
    let request = api::PullImageRequest {
        image: Some(api::ImageSpec { image: image.clone(), ..Default::default() }),
        auth: auth.clone(),
        sandbox_config: None,
    };
    let pulled = cx.cri.images.clone().pull_image(request).await;
    ensure!(pulled.is_ok() == wanted, "with the credentials {auth:?}: {pulled:?}");
    match pulled {
        Ok(reply) => {
            let id = &cx.fixture.entry("number-3", "1")?.image.id;
            ensure!(reply.get_ref().image_ref == *id, "{:?} came instead of {id}", reply.get_ref());
            cx.cri.remove_image(&image).await?;
        }
        Err(error) => {
            let text = error.message();
            ensure!(
                text.contains(&image) && !text.contains("hunter2") && !text.contains(TOKEN),
                "the error is {text}"
            );
        }
    }
    Ok(())
}

async fn user_and_password(cx: Context) -> Result<()> {
    let gate = Gate::start(cx.fixture.registry.port, Scheme::Basic).await?;
    let at = |server: String| Some(api::AuthConfig { server_address: server, ..user("secret") });
    // user:secret
    let joint = api::AuthConfig { auth: "dXNlcjpzZWNyZXQ=".to_owned(), ..Default::default() };
    for (what, auth, wanted) in [
        ("none", None, false),
        ("user and password", Some(user("secret")), true),
        ("another password", Some(user("hunter2")), false),
        ("both in one field", Some(joint), true),
        ("for this server", at(format!("http://127.0.0.1:{}", gate.port)), true),
        ("for another server", at("https://registry.example".to_owned()), false),
    ] {
        pulls(&cx, &gate, auth, wanted).await.context(what)?;
    }
    Ok(())
}

async fn tokens(cx: Context) -> Result<()> {
    let gate = Gate::start(cx.fixture.registry.port, Scheme::Token).await?;
    let identity =
        |token: &str| Some(api::AuthConfig { identity_token: token.to_owned(), ..Default::default() });
    let registry =
        |token: &str| Some(api::AuthConfig { registry_token: token.to_owned(), ..Default::default() });
    for (what, auth, wanted) in [
        ("none", None, false),
        ("user and password", Some(user("secret")), true),
        ("an identity token", identity(IDENTITY), true),
        ("another identity token", identity("hunter2"), false),
        ("a registry token", registry(TOKEN), true),
        ("another registry token", registry("hunter2"), false),
    ] {
        pulls(&cx, &gate, auth, wanted).await.context(what)?;
    }
    Ok(())
}

/// The node's own file of credentials, with a helper, and kubelet's at the `server` of `hosts.toml`.
async fn of_the_node(cx: Context) -> Result<()> {
    let gate = Gate::start(cx.fixture.registry.port, Scheme::Basic).await?;
    let folder = &cx.node.paths.dir;
    let file = folder.join("auth.json");
    let helper = folder.join("docker-credential-script");
    fs::write(&helper, "#!/bin/sh\necho '{\"Username\":\"user\",\"Secret\":\"secret\"}'\n")?;
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755))?;
    drop_in(&cx, "10-auth.toml", &format!("[image]\ncredentials_file = \"{}\"\n", file.display()))?;
    cx.node.terminate().await?;
    let (program, args) = cx.node.program();
    let mut command = Command::new(program);
    command.args(args).env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.display()));
    cx.node.launch_by(command).await?;
    let host = format!("127.0.0.1:{}", gate.port);
    let image = format!("{host}/number-3:1");
    for (what, content, refusal) in [
        ("an entry", format!("{{\"auths\":{{\"{host}\":{{\"auth\":\"dXNlcjpzZWNyZXQ=\"}}}}}}"), None),
        ("a helper", format!("{{\"credHelpers\":{{\"{host}\":\"script\"}}}}"), None),
        ("no entry", "{}".to_owned(), Some("without credentials")),
        ("no helper", "{\"credsStore\":\"none\"}".to_owned(), Some("docker-credential-none")),
        ("no JSON", "auths:".to_owned(), Some("auth.json")),
    ] {
        fs::write(&file, content)?;
        match (cx.cri.pull(&image).await, refusal) {
            (Ok(_), None) => cx.cri.remove_image(&image).await?,
            (Err(error), Some(words)) => {
                ensure!(error.message().contains(words), "{what}: the error is {}", error.message());
            }
            (pulled, _) => ensure!(false, "{what}: {pulled:?}"),
        }
    }
    let certs = cx.node.paths.certs.join("private.test");
    fs::create_dir_all(&certs)?;
    fs::write(certs.join("hosts.toml"), format!("server = \"http://{host}\"\n"))?;
    let request = api::PullImageRequest {
        image: Some(api::ImageSpec { image: "private.test/number-3:1".to_owned(), ..Default::default() }),
        auth: Some(user("secret")),
        sandbox_config: None,
    };
    fs::remove_file(&file)?;
    cx.cri.images.clone().pull_image(request).await.context("with kubelet's credentials at the server")?;
    Ok(())
}
