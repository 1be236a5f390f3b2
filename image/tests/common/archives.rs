//! Imports and exports of a store.

use bytes::Bytes;
use image::ImageStore;
use tokio::sync::mpsc;

/// Imports an archive, in parts.
pub async fn import(
    store: &ImageStore,
    archive: &[u8],
    names: &[&str],
) -> Result<Vec<image::Imported>, image::Error> {
    let (sender, input) = mpsc::channel(4);
    let feed = async move {
        for part in archive.chunks(100_000) {
            if sender.send(Bytes::copy_from_slice(part)).await.is_err() {
                break;
            }
        }
    };
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let progress = image::ImportProgress::default();
    let place = store.import_place().await?;
    tokio::join!(store.import(place, input, &names, &progress), feed).0
}

/// The archive of an export.
pub async fn exported(store: &ImageStore, name: &str, compression: image::Compression) -> Vec<u8> {
    let (output, mut parts) = mpsc::channel::<Bytes>(4);
    let collect = async move {
        let mut archive = Vec::new();
        while let Some(part) = parts.recv().await {
            archive.extend_from_slice(&part);
        }
        archive
    };
    let names = [name.to_owned()];
    let (exported, archive) = tokio::join!(store.export(&names, compression, output), collect);
    assert_eq!(exported.unwrap().len(), 1);
    archive
}
