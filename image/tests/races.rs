//! Concurrent calls for one image.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Faulty, Node, build};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A pull may find the image's config on disk just before a removal deletes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pull_beside_removal() {
    const PULLS: usize = 400;
    /// As many removals must find an image. On a busy machine this takes more pulls.
    const REMOVALS: usize = 40;
    const LIMIT: Duration = Duration::from_secs(120);
    let (registry, node) = (Faulty::start().await, Node::new());
    let image = build(&[], "one");
    let name = registry.push("a/b", "v", &image);
    let done = Arc::new(AtomicBool::new(false));
    let removed = Arc::new(AtomicUsize::new(0));
    let removers: Vec<_> = (0..2)
        .map(|_| {
            let (store, id) = (node.store.clone(), image.config.clone());
            let (done, removed) = (done.clone(), removed.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    if store.resolve(&id).is_some() {
                        removed.fetch_add(1, Ordering::Relaxed);
                    }
                    store.remove(&id).await.unwrap();
                }
            })
        })
        .collect();
    let started = Instant::now();
    let mut failed = Vec::new();
    let mut pulls = 0;
    while pulls < PULLS || removed.load(Ordering::Relaxed) < REMOVALS {
        assert!(
            started.elapsed() < LIMIT,
            "{removed:?} of {REMOVALS} removals met an image in {pulls} pulls"
        );
        match node.store.pull(&name, None).await {
            Ok(record) => assert_eq!(record.id, image.config),
            Err(error) => failed.push(format!("pull {pulls}: {error}")),
        }
        pulls += 1;
    }
    done.store(true, Ordering::Relaxed);
    for remover in removers {
        remover.await.unwrap();
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
