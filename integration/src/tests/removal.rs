//! Removal takes what it is meant to take and nothing else: volumes, mounts and the host are never touched.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::mounts::PRIVATE;
use crate::context::Context;
use crate::images::Recipe;
use crate::images::layer::{Packing, Writer};
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _};

pub(super) fn tests() -> Vec<Test> {
    vec![test!(failed_create_spares_the_volumes), test!(failed_create_spares_a_whole_tree)]
}

/// The mount points come first in the root: overlay lists the lowest layer before the others.
const PLACES: [&str; 3] = ["log", "data", "cache"];

/// An image whose user does not exist, so that a create fails once all volumes are mounted.
async fn image_without_its_user(cx: &Context) -> Result<String> {
    let mut lowest = Writer::new();
    for place in PLACES {
        lowest.dir(place, 0o755)?;
    }
    let layers = [lowest.finish(Packing::Gzip)?, cx.fixture.layers.busybox.clone()];
    let image = Recipe::new(&layers, json!({"Cmd": ["/bin/sh"], "User": "nobody-here"})).build();
    cx.fixture.registry.push("removal-user", "1", &image).await?;
    Ok("registry.test/removal-user:1".to_owned())
}

async fn failed_create_spares_the_volumes(cx: Context) -> Result<()> {
    let image = image_without_its_user(&cx).await?;
    let pod = cx.pod().await?;
    let mut config = shapes::container("one", &image, &["/bin/true"]);
    let mut volumes = Vec::new();
    for place in PLACES {
        let volume = cx.volume(place)?;
        fs::write(volume.join("file"), place)?;
        config = config.mount(&volume, &format!("/{place}"), false, PRIVATE);
        volumes.push(volume);
    }
    let error = cx.create(&pod, &config).await.err().context("created with an unknown user")?;
    ensure!(format!("{error:#}").contains("nobody-here"), "{error:#}");
    for (volume, place) in volumes.iter().zip(PLACES) {
        let kept = fs::read_to_string(volume.join("file"));
        ensure!(
            kept.as_ref().is_ok_and(|text| text == place),
            "the volume at /{place} has lost its file: {kept:?}"
        );
    }
    Ok(())
}

async fn failed_create_spares_a_whole_tree(cx: Context) -> Result<()> {
    let image = image_without_its_user(&cx).await?;
    let pod = cx.pod().await?;
    let volume = cx.volume("tree")?;
    for folder in ["a/b/c", "d/e", "f"] {
        fs::create_dir_all(volume.join(folder))?;
        fs::write(volume.join(folder).join("file"), folder)?;
    }
    let list = || crate::isolation::command("find", &[&volume.display().to_string()]);
    let before = list()?;
    let mut config = shapes::container("one", &image, &["/bin/true"]);
    for place in PLACES {
        config = config.mount(&volume, &format!("/{place}"), false, PRIVATE);
    }
    for attempt in 0..3 {
        let error = cx.create(&pod, &config).await.err().context("created with an unknown user")?;
        ensure!(format!("{error:#}").contains("nobody-here"), "{error:#}");
        let after = list()?;
        ensure!(after == before, "attempt {attempt}: of\n{before}\nthere is left\n{after}");
    }
    Ok(())
}
