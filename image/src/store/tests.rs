//! When layers are durable, and which of them outlive a pull that fails or is killed.

use super::*;
use std::fs;

const BOOT: &str = "this boot";

fn open(root: &Path, boot: &str) -> Arc<Store> {
    Arc::new(Store::open(root, &[], boot).unwrap())
}

/// The diff id of layer `n`.
fn id(n: u8) -> Digest {
    Digest::of(&[n])
}

/// Unpacks and publishes layer `n`.
fn publish(store: &Store, n: u8) {
    let ingest = store.new_ingest().unwrap();
    fs::write(ingest.path().join("file"), [n]).unwrap();
    store.publish_layer(ingest, &id(n), LayerStats { bytes: 1, inodes: 1, implicit: 0 }).unwrap();
}

fn content(root: &Path, n: u8) -> Option<Vec<u8>> {
    fs::read(root.join("layers").join(layer_name(&id(n))).join("file")).ok()
}

fn is_durable(store: &Store, n: u8) -> bool {
    let catalog = lock(&store.catalog);
    catalog.layers.contains_key(&layer_name(&id(n))) && !catalog.unsynced.contains_key(&layer_name(&id(n)))
}

fn documents(user: &str) -> Vec<(Digest, Bytes)> {
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"User":"{user}"}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
    );
    vec![(Digest::of(config.as_bytes()), config.into())]
}

/// Stores an image with these layers.
fn commit(store: &Store, user: &str, layers: &[u8], durable_documents: bool) -> Result<Arc<ImageRecord>> {
    let documents = documents(user);
    let config = documents[0].0;
    let layers = layers.iter().map(|n| id(*n)).collect();
    let image = NewImage { config, layers, documents: &documents, durable_documents };
    let reference = Reference::parse(&format!("registry.test/{user}:1")).unwrap();
    store.commit(&reference, &Digest::of(b"manifest"), image)
}

fn make_durable(store: &Store, user: &str, layers: &[u8]) -> Result<bool> {
    store.make_durable(&layers.iter().map(|n| id(*n)).collect::<Vec<_>>(), &documents(user))
}

/// Begins a pull of these layers.
fn begin(store: &Arc<Store>, layers: &[u8]) -> Pins {
    store.begin_pull(&layers.iter().map(|n| id(*n)).collect::<Vec<_>>(), Vec::new())
}

/// What follows the end of a pull in the background.
fn fail(store: &Arc<Store>, pins: Pins) {
    let pull = pins.pull.clone();
    drop(pins);
    if let Some(pull) = pull {
        store.settle(&pull);
    }
    store.collect().unwrap();
}

fn records(root: &Path) -> usize {
    fs::read_dir(root.join("pulls")).unwrap().count()
}

#[test]
fn an_image_has_durable_layers_only() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), BOOT);
    publish(&store, 1);
    publish(&store, 2);
    assert!(!is_durable(&store, 1) && !is_durable(&store, 2));
    // As if a pull that shares a layer with another one forgot to sync.
    assert!(matches!(commit(&store, "a", &[1, 2], false), Err(Error::Corrupt { .. })));
    assert!(make_durable(&store, "a", &[1, 2]).unwrap(), "the documents were not synced");
    assert!(is_durable(&store, 1) && is_durable(&store, 2));
    assert_eq!(commit(&store, "a", &[1, 2], true).unwrap().layers.len(), 2);
    // Nothing is left to be synced for an image of the same layers.
    assert!(!make_durable(&store, "b", &[1, 2]).unwrap());
    commit(&store, "b", &[1, 2], false).unwrap();
    // A layer that is published meanwhile is another one's.
    publish(&store, 3);
    assert!(!make_durable(&store, "b", &[1, 2]).unwrap());
    assert!(!is_durable(&store, 3));
}

#[test]
fn a_layer_that_is_published_again_during_a_sync_is_not_durable() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), BOOT);
    publish(&store, 1);
    publish(&store, 2);
    let pending = lock(&store.catalog).unsynced.clone();
    // While the disk is synced for another image, layer 1 is deleted, and a pull brings it again.
    let _pins = store.pin(vec![id(2)]);
    store.collect().unwrap();
    assert_eq!(content(root.path(), 1), None);
    publish(&store, 1);
    store.synced(&pending, Ok(())).unwrap();
    assert!(!is_durable(&store, 1) && is_durable(&store, 2));
    assert!(commit(&store, "a", &[1, 2], false).is_err());
    assert!(make_durable(&store, "a", &[1, 2]).unwrap());
    commit(&store, "a", &[1, 2], true).unwrap();
}

/// The kernel reports a write error once, and not of which file.
#[test]
fn nothing_that_a_failed_sync_may_be_about_is_used() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), BOOT);
    publish(&store, 1);
    make_durable(&store, "a", &[1]).unwrap();
    publish(&store, 2);
    let unpacking = store.new_ingest().unwrap();
    let pending = lock(&store.catalog).unsynced.clone();
    publish(&store, 3);
    let failed = store.synced(&pending, Err(rustix::io::Errno::IO));
    assert!(matches!(failed, Err(Error::Storage { .. })));
    for n in [2, 3] {
        assert!(!store.has_layer(&id(n)).unwrap() && !store.layout.facts_of(&id(n)).exists(), "layer {n}");
    }
    assert!(is_durable(&store, 1));
    let stats = || LayerStats { bytes: 1, inodes: 1, implicit: 0 };
    let refused = store.publish_layer(unpacking, &id(4), stats());
    assert!(matches!(refused, Err(Error::Storage { .. })));
    assert!(!store.has_layer(&id(4)).unwrap());
    // The next pull brings them again.
    publish(&store, 2);
    publish(&store, 4);
    assert!(make_durable(&store, "b", &[1, 2, 4]).unwrap());
    commit(&store, "b", &[1, 2, 4], true).unwrap();
}

/// The index or a lease names the layer already, and so that it is durable.
#[test]
fn a_lost_layer_is_durable_when_it_is_back() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), BOOT);
    publish(&store, 1);
    publish(&store, 2);
    make_durable(&store, "a", &[1, 2]).unwrap();
    let image = commit(&store, "a", &[1, 2], true).unwrap();
    store.lease(&image.id, "owner").unwrap();
    for damaged in ["", "{", r#"{"diff_id":"#] {
        fs::write(store.layout.facts_of(&id(1)), damaged).unwrap();
        let store = open(root.path(), BOOT);
        assert!(store.published().images.is_empty(), "an image with a damaged layer is listed");
        // The lease still protects what is left of it.
        store.sweep().unwrap();
        assert_eq!((content(root.path(), 1), content(root.path(), 2)), (Some(vec![1]), Some(vec![2])));
        publish(&store, 1);
        assert!(is_durable(&store, 1));
        assert!(open(root.path(), "another boot").published().by_id(&documents("a")[0].0).is_some());
    }
    // Facts of another layer are damage, too.
    fs::copy(store.layout.facts_of(&id(2)), store.layout.facts_of(&id(1))).unwrap();
    assert!(open(root.path(), BOOT).published().images.is_empty());
    store.release("owner").unwrap();
    store.remove(&image.id).unwrap();
}

#[test]
fn layers_of_a_killed_pull_are_there_in_the_same_boot_only() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), BOOT);
    let pins = begin(&store, &[1, 2]);
    publish(&store, 1);
    // Nobody needs this one: its pull has ended.
    publish(&store, 9);
    // Killed: the guard is never dropped.
    std::mem::forget(pins);
    for _ in 0..2 {
        let store = open(root.path(), BOOT);
        assert!(store.has_layer(&id(1)).unwrap() && !store.has_layer(&id(2)).unwrap());
        assert!(!is_durable(&store, 1));
        assert_eq!(store.usage().bytes, 1);
        store.sweep().unwrap();
        assert_eq!((content(root.path(), 1), content(root.path(), 9)), (Some(vec![1]), None));
        assert!((3590..=3600).contains(&store.next_expiry().unwrap()));
    }
    // A power loss may have damaged it.
    fs::write(root.path().join("layers").join(layer_name(&id(1))).join("file"), "").unwrap();
    for boot in ["another boot", ""] {
        let store = open(root.path(), boot);
        assert!(!store.has_layer(&id(1)).unwrap());
        assert_eq!(store.next_expiry(), None);
    }
    open(root.path(), "another boot").sweep().unwrap();
    assert_eq!((content(root.path(), 1), records(root.path())), (None, 0));
}

#[test]
fn layers_of_a_failed_pull_are_kept_for_a_while() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), BOOT);
    assert_eq!(store.next_expiry(), None);
    let pins = begin(&store, &[1, 2]);
    publish(&store, 1);
    assert_eq!(store.next_expiry(), None, "the pull runs");
    fail(&store, pins);
    assert_eq!((content(root.path(), 1), records(root.path())), (Some(vec![1]), 1));
    assert!((3590..=3600).contains(&store.next_expiry().unwrap()));
    // A retry that fails too replaces the record; one that has nothing to transfer has none.
    let pins = begin(&store, &[1, 2]);
    publish(&store, 2);
    fail(&store, pins);
    assert_eq!(records(root.path()), 1);
    let pins = begin(&store, &[1, 2]);
    assert_eq!((records(root.path()), pins.pull.is_none()), (1, true));
    // It protects the layers when the time is over.
    lock(&store.catalog).unfinished.values_mut().for_each(|pull| pull.until = Some(1));
    store.tidy().unwrap();
    assert_eq!((content(root.path(), 1), records(root.path())), (Some(vec![1]), 0));
    fail(&store, pins);
    assert_eq!((content(root.path(), 1), store.usage().bytes), (None, 0));
}

#[test]
fn a_stored_image_ends_the_records_of_its_layers() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), BOOT);
    let pins = begin(&store, &[1, 2]);
    publish(&store, 1);
    fail(&store, pins);
    let pins = begin(&store, &[1, 2]);
    publish(&store, 2);
    make_durable(&store, "a", &[1, 2]).unwrap();
    let image = commit(&store, "a", &[1, 2], true).unwrap();
    pins.succeed();
    drop(pins);
    assert_eq!((records(root.path()), store.next_expiry()), (0, None));
    // A failed pull of an image that shares them keeps only what no image has.
    let pins = begin(&store, &[1, 3, 4]);
    publish(&store, 3);
    fail(&store, pins);
    store.give_up_unfinished();
    store.collect().unwrap();
    assert_eq!((content(root.path(), 1), content(root.path(), 3)), (Some(vec![1]), None));
    store.remove(&image.id).unwrap();
    assert_eq!((content(root.path(), 1), store.usage().bytes), (None, 0));
}

#[test]
fn kept_layers_go_first_when_space_is_needed() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), BOOT);
    let kept = |n: u8| {
        let pins = begin(&store, &[n, 200]);
        publish(&store, n);
        fail(&store, pins);
        assert!(content(root.path(), n).is_some());
    };
    // A pull that meets a full disk, and one that met it at the same time.
    kept(1);
    let before = store.times_given_up();
    assert!(store.make_room(before).unwrap());
    assert!(store.make_room(before).unwrap());
    assert!(!store.make_room(store.times_given_up()).unwrap(), "nothing was left to give up");
    assert_eq!((content(root.path(), 1), records(root.path())), (None, 0));
    // Any removal asks for space. What a running pull needs stays.
    kept(2);
    kept(3);
    let pins = begin(&store, &[3, 4]);
    store.remove("registry.test/nothing").unwrap();
    assert_eq!((content(root.path(), 2), content(root.path(), 3)), (None, Some(vec![3])));
    // Nothing is kept of a pull that failed for the lack of space.
    publish(&store, 4);
    pins.give_up();
    fail(&store, pins);
    assert_eq!((content(root.path(), 3), content(root.path(), 4), records(root.path())), (None, None, 0));
}

#[test]
fn records_are_bounded() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), BOOT);
    for n in 0..100 {
        let pins = begin(&store, &[n, 200]);
        publish(&store, n);
        fail(&store, pins);
    }
    assert_eq!((records(root.path()), store.usage().inodes), (64, 64));
    // A time that cannot be, a record that is cut off, and one that is no record.
    let name = store.layout.unique_name();
    let record = serde_json::json!({"boot": BOOT, "layers": [id(99)], "until": u64::MAX});
    store.give_up_unfinished();
    fs::write(store.layout.pull(&name), serde_json::to_vec(&record).unwrap()).unwrap();
    fs::write(store.layout.pull("torn"), "{").unwrap();
    fs::create_dir(store.layout.pulls().join("folder")).unwrap();
    let store = open(root.path(), BOOT);
    assert!(store.next_expiry().unwrap() <= 3600);
    assert_eq!(store.usage().inodes, 1);
}

/// Waits for work in the background. With a paused clock, in which the upkeep's pauses take no time.
async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{what}");
}

#[test]
fn upkeep_deletes_what_is_over() {
    let root = tempfile::tempdir().unwrap();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut options = crate::Options::new(root.path(), root.path().join("certs"));
        BOOT.clone_into(&mut options.boot_id);
        let images = crate::ImageStore::open(options).unwrap();
        let store = images.store.clone();
        let upkeep = tokio::spawn(async move { images.upkeep().await });
        let pins = begin(&store, &[1, 2]);
        publish(&store, 1);
        drop(pins);
        until("the pull to be settled", || {
            lock(&store.catalog).unfinished.values().all(|pull| pull.layers == [id(1)])
        })
        .await;
        lock(&store.catalog).unfinished.values_mut().for_each(|pull| pull.until = Some(1));
        until("the layer to go", || content(root.path(), 1).is_none() && records(root.path()) == 0).await;
        assert_eq!((store.next_expiry(), upkeep.is_finished()), (None, false));
        upkeep.abort();
    });
}
