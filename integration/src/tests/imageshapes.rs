//! Images of different builders: every layout that other runtimes accept must work here, with the same files
//! inside.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use serde_json::{Value, json};
use tar::EntryType::{Directory, Link, Regular, Symlink};

use crate::context::Context;
use crate::expect::ensure;
use crate::images::layer::{Layer, Packing, Writer};
use crate::images::{Image, Recipe, digest};
use crate::runner::{Test, test};
use crate::shapes;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(same_layer_twice),
        test!(same_layer_thrice_around_a_whiteout),
        test!(identical_empty_layers),
        test!(absolute_names),
        test!(entry_of_the_root_folder),
        test!(many_slashes),
        test!(dot_dot_within_a_name),
        test!(dot_dot_above_the_root),
        test!(absolute_hard_link),
        test!(climbing_hard_link),
        test!(folder_without_entry_keeps_its_mode),
        test!(folder_without_entry_keeps_its_owner),
        test!(folder_without_entry_lets_its_user_in),
        test!(folder_without_entry_in_two_images),
        test!(folder_without_entry_keeps_its_setgid_bit),
        test!(folder_without_entry_over_two_layers),
        test!(folder_without_entry_after_removal),
        test!(folder_without_entry_and_nothing_below),
        test!(symlinked_parent),
        test!(symlinked_parent_is_absolute),
        test!(symlinked_parents_in_a_chain),
        test!(symlinked_parent_dangles),
        test!(symlinked_parent_climbs),
        test!(hard_link_through_a_symlink),
        test!(whiteout_through_a_symlink),
        test!(opaque_mark_through_a_symlink),
        test!(symlink_of_a_lower_layer_is_replaced),
        test!(symlinks_in_a_circle),
        test!(symlink_target_of_a_megabyte),
        test!(config_of_type_octet_stream),
        test!(config_of_type_json),
        test!(config_of_type_html),
        test!(config_of_type_text),
        test!(config_of_an_artifact),
    ]
}

/// Pushes an image of busybox with these layers on top, runs a shell line in it and gives its output. Nothing of
/// the image stays.
async fn look(cx: &Context, layers: &[Layer], user: Option<i64>, line: &str) -> Result<String> {
    let all: Vec<Layer> = [&cx.fixture.layers.busybox].into_iter().chain(layers).cloned().collect();
    let image =
        Recipe::new(&all, json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]})).build();
    look_in(cx, &image, user, line).await
}

async fn look_in(cx: &Context, image: &Image, user: Option<i64>, line: &str) -> Result<String> {
    let name = pushed(cx, image).await?;
    let pod = cx.pod().await?;
    let mut config = shapes::container("look", &name, &["/bin/sh", "-c", line]);
    if let Some(value) = user {
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.run_as_user = Some(api::Int64Value { value });
    }
    let text = cx.output(&pod, &config).await;
    cx.cri.drop_pod(&pod.id).await?;
    cx.cri.remove_image(&name).await?;
    Ok(text?.trim_end().to_owned())
}

async fn pushed(cx: &Context, image: &Image) -> Result<String> {
    let name = format!("shape-{}", cx.name);
    cx.fixture.registry.push(&name, "1", image).await?;
    Ok(format!("registry.test/{name}:1"))
}

fn layer(write: impl FnOnce(&mut Writer) -> Result<()>) -> Result<Layer> {
    let mut w = Writer::new();
    write(&mut w)?;
    w.finish(Packing::Gzip)
}

/// A layer with one file, without entries for its parents.
fn file(name: &str, content: &str) -> Result<Layer> {
    layer(|w| w.raw(Regular, name, "", 0o644, (0, 0), content.as_bytes()))
}

/// A layer with one folder of the given owner, without entries for its parents.
fn folder(name: &str, mode: u32, owner: (u64, u64)) -> Result<Layer> {
    layer(|w| w.raw(Directory, name, "", mode, owner, b""))
}

fn same(found: &str, wanted: &str) -> Result<()> {
    ensure!(found == wanted, "found:\n{found}\nwanted:\n{wanted}");
    Ok(())
}

async fn same_layer_twice(cx: Context) -> Result<()> {
    let (a, b) =
        (file("f", "a")?, layer(|w| w.file("f", 0o644, b"b").and_then(|()| w.file("g", 0o644, b"b")))?);
    same(&look(&cx, &[a.clone(), b, a], None, "cat /f /g").await?, "ab")
}

async fn same_layer_thrice_around_a_whiteout(cx: Context) -> Result<()> {
    let (a, gone) = (layer(|w| w.file("d/f", 0o644, b"here"))?, file("d/.wh.f", "")?);
    same(
        &look(&cx, &[a.clone(), gone.clone(), a.clone(), gone, a], None, "cat /d/f; ls -a /d").await?,
        "here.\n..\nf",
    )
}

async fn identical_empty_layers(cx: Context) -> Result<()> {
    let empty = layer(|_| Ok(()))?;
    let x = file("x", "x")?;
    same(&look(&cx, &[empty.clone(), x, empty.clone(), empty], None, "cat /x").await?, "x")
}

async fn absolute_names(cx: Context) -> Result<()> {
    let top = layer(|w| {
        w.raw(Directory, "/opt/", "", 0o750, (7, 8), b"")?;
        w.raw(Regular, "/opt/x", "", 0o640, (7, 8), b"x")?;
        w.raw(Regular, "/opt/.wh.gone", "", 0, (0, 0), b"")
    })?;
    let text =
        look(&cx, &[file("opt/gone", "")?, top], None, "stat -c '%a %u %g' /opt /opt/x; ls /opt").await?;
    same(&text, "750 7 8\n640 7 8\nx")
}

async fn entry_of_the_root_folder(cx: Context) -> Result<()> {
    let top = layer(|w| {
        w.raw(Directory, "/", "", 0o755, (0, 0), b"")?;
        w.raw(Regular, "x", "", 0o644, (0, 0), b"x")
    })?;
    same(&look(&cx, &[top], None, "cat /x; stat -c %a /").await?, "x755")
}

async fn many_slashes(cx: Context) -> Result<()> {
    same(&look(&cx, &[file("//opt//x", "x")?], None, "cat /opt/x").await?, "x")
}

async fn dot_dot_within_a_name(cx: Context) -> Result<()> {
    same(&look(&cx, &[file("a/../b/./c", "x")?], None, "cat /b/c; ! ls -d /a 2>/dev/null").await?, "x")
}

async fn dot_dot_above_the_root(cx: Context) -> Result<()> {
    let text = look(&cx, &[file("a/../../../climbed", "x")?], None, "cat /climbed").await?;
    same(&text, "x")?;
    ensure!(!std::path::Path::new("/climbed").exists(), "the file was created in the host's root");
    Ok(())
}

async fn absolute_hard_link(cx: Context) -> Result<()> {
    let top = layer(|w| {
        w.raw(Regular, "opt/a", "", 0o644, (0, 0), b"of the image\n")?;
        w.raw(Link, "opt/b", "/opt/a", 0o644, (0, 0), b"")
    })?;
    let text = look(&cx, &[top], None, "cat /opt/b; stat -c %h /opt/a; [ /opt/a -ef /opt/b ]").await?;
    same(&text, "of the image\n2")
}

async fn climbing_hard_link(cx: Context) -> Result<()> {
    let top = layer(|w| {
        w.raw(Regular, "etc/passwd", "", 0o644, (0, 0), b"root:x:0:0:of the image:/:/bin/sh\n")?;
        w.raw(Link, "hard", "../../../../etc/passwd", 0o644, (0, 0), b"")
    })?;
    same(&look(&cx, &[top], None, "cat /hard").await?, "root:x:0:0:of the image:/:/bin/sh")
}

async fn folder_without_entry_keeps_its_mode(cx: Context) -> Result<()> {
    // busybox's own /tmp is 1777.
    same(
        &look(&cx, &[file("tmp/x", "x")?], None, "stat -c '%a %u %g' /tmp; cat /tmp/x").await?,
        "1777 0 0\nx",
    )
}

async fn folder_without_entry_keeps_its_owner(cx: Context) -> Result<()> {
    let layers = [folder("home/app/", 0o700, (1000, 1001))?, file("home/app/y/z", "")?];
    let text = look(&cx, &layers, None, "stat -c '%a %u %g' /home /home/app /home/app/y").await?;
    same(&text, "755 0 0\n700 1000 1001\n755 0 0")
}

async fn folder_without_entry_lets_its_user_in(cx: Context) -> Result<()> {
    let layers = [folder("data/", 0o700, (1000, 1000))?, file("data/seed", "seed")?, file("tmp/x", "")?];
    same(
        &look(
            &cx,
            &layers,
            Some(1000),
            "echo 1 > /tmp/mine && echo 2 > /data/mine && cat /data/mine /data/seed",
        )
        .await?,
        "2\nseed",
    )
}

async fn folder_without_entry_in_two_images(cx: Context) -> Result<()> {
    let top = file("d/x", "")?;
    let line = "stat -c '%a %u' /d";
    same(&look(&cx, &[folder("d/", 0o711, (5, 5))?, top.clone()], None, line).await?, "711 5")?;
    same(&look(&cx, &[folder("d/", 0o1770, (6, 6))?, top.clone()], None, line).await?, "1770 6")?;
    same(&look(&cx, &[top], None, line).await?, "755 0")
}

async fn folder_without_entry_keeps_its_setgid_bit(cx: Context) -> Result<()> {
    let layers = [folder("srv/shared/", 0o2775, (0, 33))?, file("srv/shared/a/b", "")?];
    let text = look(
        &cx,
        &layers,
        None,
        "stat -c '%a %g' /srv/shared /srv/shared/a; touch /srv/shared/new; stat -c %g /srv/shared/new",
    )
    .await?;
    same(&text, "2775 33\n755 0\n33")
}

async fn folder_without_entry_over_two_layers(cx: Context) -> Result<()> {
    let layers =
        [folder("d/", 0o700, (0, 0))?, folder("d/", 0o711, (3, 3))?, file("d/x", "x")?, file("d/y", "y")?];
    same(&look(&cx, &layers, None, "stat -c '%a %u' /d; cat /d/x /d/y").await?, "711 3\nxy")
}

/// A folder that was deleted and is created again by its content, without an entry, has the default mode and owner.
async fn folder_without_entry_after_removal(cx: Context) -> Result<()> {
    let layers = [folder("d/", 0o700, (3, 3))?, file(".wh.d", "")?, file("d/x", "x")?];
    same(&look(&cx, &layers, None, "stat -c '%a %u' /d").await?, "755 0")
}

async fn folder_without_entry_and_nothing_below(cx: Context) -> Result<()> {
    same(&look(&cx, &[file("new/er/x", "x")?], None, "stat -c '%a %u' /new /new/er").await?, "755 0\n755 0")
}

async fn symlinked_parent(cx: Context) -> Result<()> {
    let top = layer(|w| {
        w.raw(Directory, "u/lib/", "", 0o755, (0, 0), b"")?;
        w.raw(Symlink, "l", "u/lib", 0o777, (0, 0), b"")?;
        w.raw(Regular, "l/x/f", "", 0o644, (9, 9), b"f")
    })?;
    same(&look(&cx, &[top], None, "cat /u/lib/x/f; readlink /l; stat -c %u /l/x/f").await?, "fu/lib\n9")
}

async fn symlinked_parent_is_absolute(cx: Context) -> Result<()> {
    let victim = cx.volume("victim")?;
    let target = victim.display().to_string();
    let top = layer(|w| {
        w.raw(Symlink, "l", &target, 0o777, (0, 0), b"")?;
        w.raw(Regular, "l/f", "", 0o644, (0, 0), b"inside")
    })?;
    same(&look(&cx, &[top], None, &format!("cat {target}/f")).await?, "inside")?;
    ensure!(std::fs::read_dir(&victim)?.next().is_none(), "written to the host's folder");
    Ok(())
}

/// The layout of packages by pnpm.
async fn symlinked_parents_in_a_chain(cx: Context) -> Result<()> {
    let top = layer(|w| {
        w.raw(Directory, "store/pkg/", "", 0o755, (0, 0), b"")?;
        w.raw(Symlink, "app/nm/pkg", "../../store/pkg", 0o777, (0, 0), b"")?;
        w.raw(Symlink, "a", "/app/nm", 0o777, (0, 0), b"")?;
        w.raw(Regular, "a/pkg/b", "", 0o644, (0, 0), b"b")
    })?;
    same(&look(&cx, &[top], None, "cat /store/pkg/b").await?, "b")
}

async fn symlinked_parent_dangles(cx: Context) -> Result<()> {
    let top = layer(|w| {
        w.raw(Symlink, "l", "not/there", 0o777, (0, 0), b"")?;
        w.raw(Regular, "l/f", "", 0o644, (0, 0), b"f")
    })?;
    same(&look(&cx, &[top], None, "cat /not/there/f; stat -c %a /not/there").await?, "f755")
}

async fn symlinked_parent_climbs(cx: Context) -> Result<()> {
    let top = layer(|w| {
        w.raw(Symlink, "l", "../../../../../../../../climbed", 0o777, (0, 0), b"")?;
        w.raw(Regular, "l/f", "", 0o644, (0, 0), b"f")
    })?;
    same(&look(&cx, &[top], None, "cat /climbed/f").await?, "f")?;
    ensure!(!std::path::Path::new("/climbed").exists(), "the file was created in the host's root");
    Ok(())
}

async fn hard_link_through_a_symlink(cx: Context) -> Result<()> {
    let top = layer(|w| {
        w.raw(Regular, "u/a", "", 0o644, (0, 0), b"a")?;
        w.raw(Symlink, "l", "u", 0o777, (0, 0), b"")?;
        w.raw(Link, "b", "l/a", 0o644, (0, 0), b"")?;
        w.raw(Link, "l/c", "l/a", 0o644, (0, 0), b"")
    })?;
    same(&look(&cx, &[top], None, "cat /b /u/c; stat -c %h /u/a").await?, "aa3")
}

async fn whiteout_through_a_symlink(cx: Context) -> Result<()> {
    let low = layer(|w| w.file("u/gone", 0o644, b"").and_then(|()| w.file("u/kept", 0o644, b"")))?;
    let top = layer(|w| {
        w.raw(Symlink, "l", "u", 0o777, (0, 0), b"")?;
        w.raw(Regular, "l/.wh.gone", "", 0o644, (0, 0), b"")
    })?;
    same(&look(&cx, &[low, top], None, "ls /u").await?, "kept")
}

async fn opaque_mark_through_a_symlink(cx: Context) -> Result<()> {
    let low = layer(|w| w.file("u/gone", 0o644, b""))?;
    let top = layer(|w| {
        w.raw(Symlink, "l", "u", 0o777, (0, 0), b"")?;
        w.raw(Regular, "l/.wh..wh..opq", "", 0o644, (0, 0), b"")?;
        w.raw(Regular, "l/new", "", 0o644, (0, 0), b"")
    })?;
    same(&look(&cx, &[low, top], None, "ls /u").await?, "new")
}

/// Layers are unpacked separately, here and by containerd's overlay snapshotter: a folder in a layer replaces a
/// symlink in a lower one.
async fn symlink_of_a_lower_layer_is_replaced(cx: Context) -> Result<()> {
    let low = layer(|w| {
        w.raw(Directory, "u/", "", 0o1777, (0, 0), b"")?;
        w.raw(Regular, "u/old", "", 0o644, (0, 0), b"")?;
        w.raw(Symlink, "l", "/u", 0o777, (0, 0), b"")
    })?;
    let text = look(&cx, &[low, file("l/new", "")?], None, "ls /l /u; stat -c '%F %a' /l").await?;
    same(&text, "/l:\nnew\n\n/u:\nold\ndirectory 1777")
}

/// Pulls an image, which must fail with this code and text; afterwards another image must work.
async fn refused(cx: &Context, image: &Image, code: tonic::Code, word: &str) -> Result<()> {
    let listed = || async {
        Ok::<_, tonic::Status>(cx.cri.images().await?.into_iter().map(|i| i.id).collect::<BTreeSet<_>>())
    };
    let before = listed().await?;
    let name = pushed(cx, image).await?;
    let error = cx.cri.pull(&name).await.err().with_context(|| format!("{name} was pulled"))?;
    ensure!(
        error.code() == code && error.message().contains(word),
        "not {code:?} with `{word}`, but {error}"
    );
    ensure!(listed().await? == before, "an image of a refused pull is listed");
    let fine = look(cx, &[file("fine", "fine")?], None, "cat /fine").await?;
    same(&fine, "fine")
}

async fn symlinks_in_a_circle(cx: Context) -> Result<()> {
    let top = layer(|w| {
        w.raw(Symlink, "a", "b", 0o777, (0, 0), b"")?;
        w.raw(Symlink, "b", "a", 0o777, (0, 0), b"")?;
        w.raw(Regular, "a/f", "", 0o644, (0, 0), b"")
    })?;
    refused(&cx, &Recipe::new(&[top], json!({})).build(), tonic::Code::DataLoss, "symlinks").await
}

async fn symlink_target_of_a_megabyte(cx: Context) -> Result<()> {
    let long = "x".repeat(1_000_000);
    let top = layer(|w| {
        w.pax(&[("linkpath", &long)])?;
        w.raw(Symlink, "l", "short", 0o777, (0, 0), b"")
    })?;
    refused(&cx, &Recipe::new(&[top], json!({})).build(), tonic::Code::DataLoss, "symlink").await
}

/// The image with another media type for its config.
fn with_config_type(mut image: Image, media_type: &str) -> Result<Image> {
    let mut manifest: Value = serde_json::from_slice(&image.manifest.bytes)?;
    *manifest.pointer_mut("/config/mediaType").context("no config media type")? = json!(media_type);
    image.manifest.bytes = manifest.to_string().into();
    image.manifest.digest = digest(&image.manifest.bytes);
    Ok(image)
}

async fn config_of(cx: &Context, media_type: &str) -> Result<()> {
    let base = std::slice::from_ref(&cx.fixture.layers.busybox);
    let config = json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "Labels": {"config": media_type}});
    let image = with_config_type(Recipe::new(base, config).docker().build(), media_type)?;
    same(&look_in(cx, &image, None, "cat /etc/marker").await?, "from the image")
}

async fn config_of_type_octet_stream(cx: Context) -> Result<()> {
    config_of(&cx, "application/octet-stream").await
}

async fn config_of_type_json(cx: Context) -> Result<()> {
    config_of(&cx, "application/json").await
}

async fn config_of_type_html(cx: Context) -> Result<()> {
    config_of(&cx, "text/html; charset=utf-8").await
}

async fn config_of_type_text(cx: Context) -> Result<()> {
    config_of(&cx, "text/plain").await
}

async fn config_of_an_artifact(cx: Context) -> Result<()> {
    let image = with_config_type(
        Recipe::new(&[file("x", "")?], json!({})).build(),
        "application/vnd.cncf.helm.config.v1+json",
    )?;
    refused(&cx, &image, tonic::Code::FailedPrecondition, "helm").await
}
