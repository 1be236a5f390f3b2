//! Concurrent calls for one image.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Faulty, Node, build};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A pull finds the config of the image on disk while a removal is about to delete it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pull_beside_removal() {
    const PULLS: usize = 400;
    let (registry, node) = (Faulty::start().await, Node::new());
    let image = build(&[], "one");
    let name = registry.push("a/b", "v", &image);
    let done = Arc::new(AtomicBool::new(false));
    let removers: Vec<_> = (0..2)
        .map(|_| {
            let (store, id, done) = (node.store.clone(), image.config.clone(), done.clone());
            tokio::spawn(async move {
                let mut removed = 0;
                while !done.load(Ordering::Relaxed) {
                    removed += usize::from(store.resolve(&id).is_some());
                    store.remove(&id).await.unwrap();
                }
                removed
            })
        })
        .collect();
    let mut failed = Vec::new();
    for number in 0..PULLS {
        match node.store.pull(&name, None).await {
            Ok(record) => assert_eq!(record.id, image.config),
            Err(error) => failed.push(format!("pull {number}: {error}")),
        }
    }
    done.store(true, Ordering::Relaxed);
    let mut removed = 0;
    for remover in removers {
        removed += remover.await.unwrap();
    }
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(removed > PULLS / 10, "only {removed} removals met an image");
}
