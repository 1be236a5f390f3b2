//! A process that pulls, leases and removes images which share layers is killed at random moments. Afterwards nothing
//! corrupt is served, a retry transfers nothing that was complete, and nothing is left once all images are removed.
//!
//! This program is both sides: it starts itself as the process that is killed. `COPEPOD_KILLS` is the number of kills.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Built, Codec, Fault, Faulty, NOTHING, Node, build, noise, tar};
use fastrand::Rng;
use image::{ImageRecord, ImageStore};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Number of kills, unless the environment says otherwise.
const KILLS: u32 = 8;
/// Pulls and removals that run at the same time in the process that is killed.
const WORKERS: u64 = 3;
/// What each of them does.
const STEPS: u32 = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let [first, folder, address, seed] = &arguments[..]
        && first == "work"
    {
        return runtime.block_on(work(Path::new(folder), address, seed.parse().unwrap()));
    }
    // Options and filters of cargo's own test harness.
    let filters: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    if arguments.iter().any(|argument| argument == "--list")
        || !filters.is_empty() && !filters.iter().any(|filter| "kill_pulls".contains(filter.as_str()))
    {
        println!("kill_pulls: test (not run: {arguments:?})");
        return;
    }
    runtime.block_on(kill_pulls());
}

/// The images by name, and the files of each layer, by the name of its folder.
struct Source {
    names: Vec<String>,
    images: Vec<Built>,
    layers: BTreeMap<String, Files>,
    /// The digest of each layer's blob, by the name of its folder.
    blobs: BTreeMap<String, String>,
}

/// Content by path; folders have none.
type Files = BTreeMap<String, Option<Vec<u8>>>;

/// Six images: all have the first layer, two each have the second, and each has one of its own. In two of them a folder
/// without an entry has a lower one with other attributes, so that a layer is added which no registry has.
fn source(address: &str) -> Source {
    let mut source =
        Source { names: Vec::new(), images: Vec::new(), layers: BTreeMap::new(), blobs: BTreeMap::new() };
    for n in 0..6_u8 {
        let contents = [
            vec![("usr/bin/base".to_owned(), noise(150_000, 7)), ("etc/base".to_owned(), b"base".to_vec())],
            vec![(format!("opt/pair/{}", n / 2), noise(60_000, u64::from(n / 2) + 20))],
            vec![(format!("srv/own/{n}"), noise(90_000, u64::from(n) + 40)), ("etc/own".to_owned(), vec![n])],
        ];
        let mut archives: Vec<(Vec<u8>, Codec)> = Vec::new();
        for (files, codec) in contents.iter().zip([Codec::Gzip, Codec::Zstd, Codec::Plain]) {
            let files: Vec<(&str, &[u8])> =
                files.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
            let mut archive = tar(&files);
            let mut expected: Files =
                files.iter().map(|(name, content)| ((*name).to_owned(), Some(content.to_vec()))).collect();
            for (name, _) in &files {
                let parents = Path::new(name).ancestors().skip(1).filter(|parent| *parent != Path::new(""));
                expected.extend(parents.map(|parent| (parent.display().to_string(), None)));
            }
            if n / 2 == 2 && archives.is_empty() {
                // Another first layer, with an entry for `srv`.
                archive.splice(0..0, folder("srv/"));
                expected.insert("srv".to_owned(), None);
            }
            source.layers.insert(common::digest_of(&archive)[7..31].to_owned(), expected);
            archives.push((archive, codec));
        }
        let image = build(&archives, &n.to_string());
        for ((archive, _), blob) in archives.iter().zip(&image.layers) {
            source.blobs.insert(common::digest_of(archive)[7..31].to_owned(), blob.clone());
        }
        source.names.push(format!("{address}/team/{n}:v"));
        source.images.push(image);
    }
    source
}

/// The entry of a folder that only its group may enter.
fn folder(name: &str) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_path(name).unwrap();
    header.set_mode(0o710);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(0);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// The process that is killed.
async fn work(folder: &Path, address: &str, seed: u64) {
    let store = ImageStore::open(Node::options(folder)).unwrap();
    let upkeep = store.clone();
    tokio::spawn(async move { upkeep.upkeep().await });
    println!("open");
    let workers = (0..WORKERS).map(|worker| {
        let (store, address) = (store.clone(), address.to_owned());
        tokio::spawn(async move {
            let mut random = Rng::with_seed(seed * WORKERS + worker);
            for step in 0..STEPS {
                let name = format!("{address}/team/{}:v", random.u8(..6));
                if random.u8(..4) == 0 {
                    store.remove(&name).await.unwrap();
                    continue;
                }
                let record = store.pull(&name, None).await.unwrap();
                let owner = format!("owner-{seed}-{worker}-{step}");
                // Another worker may have removed the image.
                if store.lease_for(&record.id, &owner).await.is_ok() && random.bool() {
                    store.release(&owner).await.unwrap();
                }
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
}

fn start(folder: &Path, address: &str, seed: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["work", folder.to_str().unwrap(), address, &seed.to_string()]);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

async fn kill_pulls() {
    let kills = std::env::var("COPEPOD_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let registry = Faulty::start().await;
    let source = source(&registry.address);
    for (n, image) in source.images.iter().enumerate() {
        registry.push(&format!("team/{n}"), "v", image);
    }
    let folder = tempfile::tempdir().unwrap();
    // Every run draws the same numbers.
    let mut random = Rng::with_seed(1);
    let (mut longest, mut unfinished, mut reused, mut complete) = (Duration::from_millis(300), 0, 0, 0);
    for round in 0..kills {
        // So that most kills meet a transfer.
        registry.fault("/blobs/", usize::MAX, Fault::Slow(1));
        let begun = Instant::now();
        let mut child = start(folder.path(), &registry.address, u64::from(round));
        let moment = Duration::from_micros(random.u64(..u64::try_from(longest.as_micros()).unwrap()));
        // Every fourth one may be killed while it opens the store.
        if round % 4 != 0 {
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "open\n", "round {round}: the process failed");
        }
        tokio::time::sleep(moment).await;
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        if let Some(status) = ended {
            assert!(status.success(), "round {round}: the process failed: {status}");
            longest = longest.min(begun.elapsed());
        } else {
            unfinished += 1;
            longest = (longest * 11 / 10).min(Duration::from_secs(3));
        }
        registry.shared.lock().unwrap().faults.clear();
        let found = check(folder.path(), &registry, &source, &mut random)
            .await
            .map_err(|wrong| format!("round {round}, killed after {moment:?}: {wrong}"))
            .unwrap();
        reused += found.0;
        complete += found.1;
    }
    println!(
        "kill_pulls: {kills} kills, {unfinished} of them at work; {reused} layers of unfinished pulls were used again, \
         {complete} images were complete"
    );
    assert!(unfinished * 4 > kills, "most kills came too late: {unfinished} of {kills}");
    // A few kills may all miss that.
    assert!(kills < 50 || reused > 0, "no kill met a pull that had completed a layer");
}

/// Opens the store that the process has left. Returns how many layers of unfinished pulls there were, and how many images.
async fn check(
    folder: &Path,
    registry: &Faulty,
    source: &Source,
    random: &mut Rng,
) -> Result<(usize, usize), String> {
    let root = folder.join("store");
    let (of_images, of_pulls) = (named(&root, "index.json"), named(&root, "pulls"));
    let is_complete = |layer: &&String| {
        root.join("layers").join(layer).is_dir() && root.join("facts").join(format!("{layer}.json")).exists()
    };
    let leased = named(&root, "leases");
    let wanted: BTreeSet<&String> =
        of_images.union(&of_pulls).chain(&leased).filter(|layer| is_complete(layer)).collect();
    let reused = of_pulls.difference(&of_images).filter(is_complete).count();
    let store = ImageStore::open(Node::options(folder)).unwrap();
    let task = {
        let store = store.clone();
        tokio::spawn(async move { store.upkeep().await })
    };
    let listed = store.list();
    for record in &listed {
        same(record, source)?;
    }
    for layer in &leased {
        files_are(&root, layer, source)?;
    }
    registry.shared.lock().unwrap().log.clear();
    for name in &source.names {
        let record = store.pull(name, None).await.map_err(|error| format!("the pull of {name}: {error}"))?;
        same(&record, source)?;
    }
    for layer in wanted {
        if let Some(blob) = source.blobs.get(layer)
            && registry.requests(blob) > 0
        {
            return Err(format!("layer {layer} was complete, and is transferred again"));
        }
    }
    // What the next process finds.
    let all = random.bool();
    for name in &source.names {
        if all || random.bool() {
            store.remove(name).await.unwrap();
        }
    }
    if all {
        is_empty(&store, &root).await?;
    }
    task.abort();
    drop(task.await);
    Ok((reused, listed.len()))
}

/// Names of the layers in a file, or in all files of a folder: diff ids in lists with the name `layers`.
fn named(root: &Path, name: &str) -> BTreeSet<String> {
    fn collect(value: &serde_json::Value, found: &mut BTreeSet<String>) {
        match value {
            serde_json::Value::Object(members) => {
                for (name, value) in members {
                    if name == "layers" {
                        let ids = value.as_array().into_iter().flatten().filter_map(|id| id.as_str());
                        found.extend(ids.map(|id| id[7..31].to_owned()));
                    } else {
                        collect(value, found);
                    }
                }
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let path = root.join(name);
    let files = match std::fs::read_dir(&path) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => vec![path],
    };
    let mut found = BTreeSet::new();
    for bytes in files.iter().filter_map(|file| std::fs::read(file).ok()) {
        collect(&serde_json::from_slice(&bytes).unwrap(), &mut found);
    }
    found
}

/// Compares the layers of an image with their source.
fn same(record: &ImageRecord, source: &Source) -> Result<(), String> {
    let at = source.images.iter().position(|image| image.config == record.id);
    let at = at.ok_or_else(|| format!("{} is listed", record.id))?;
    let blobs: Vec<&String> = source.images[at].layers.iter().rev().collect();
    let added = record.layers.len().saturating_sub(blobs.len());
    for (layer, blob) in record.layers[added..].iter().zip(blobs) {
        if source.blobs.get(layer) != Some(blob) {
            return Err(format!("image {at} has layer {layer} in place of {blob}"));
        }
    }
    let expected = usize::from(at / 2 == 2);
    if added != expected {
        return Err(format!("image {at} has {added} layers more than its source"));
    }
    let root = record.layers_dir.parent().unwrap();
    if let [layer, ..] = &record.layers[..added] {
        let srv = std::fs::metadata(record.layers_dir.join(layer).join("srv"));
        if !srv.is_ok_and(|found| found.mode() & 0o7777 == 0o710) {
            return Err(format!("image {at} has an added layer with other attributes"));
        }
    }
    record.layers[added..].iter().try_for_each(|layer| files_are(root, layer, source))
}

/// Compares a layer with its source, file by file.
fn files_are(root: &Path, layer: &str, source: &Source) -> Result<(), String> {
    // Those that the store has added are of folders only.
    let Some(expected) = source.layers.get(layer) else { return Ok(()) };
    let (top, mut found, mut open) = (root.join("layers").join(layer), Files::new(), vec![String::new()]);
    while let Some(folder) = open.pop() {
        let entries =
            std::fs::read_dir(top.join(&folder)).map_err(|error| format!("layer {layer}: {error}"))?;
        for entry in entries.map(Result::unwrap) {
            let path = entry.path().strip_prefix(&top).unwrap().display().to_string();
            let content = entry.file_type().unwrap().is_file().then(|| std::fs::read(entry.path()).unwrap());
            if content.is_none() {
                open.push(path.clone());
            }
            found.insert(path, content);
        }
    }
    if found == *expected {
        return Ok(());
    }
    let differ = expected.iter().find(|(path, content)| found.get(*path) != Some(*content));
    Err(format!("layer {layer} differs at {:?}; it has {:?}", differ.map(|(path, _)| path), found.keys()))
}

/// After everything was removed and released, nothing is left but the folders and an index.
async fn is_empty(store: &ImageStore, root: &Path) -> Result<(), String> {
    for owner in store.lease_owners() {
        store.release(&owner).await.unwrap();
    }
    let mut left = Vec::new();
    for _ in 0..500 {
        store.remove(NOTHING).await.unwrap();
        left.clear();
        for entry in std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()) {
            match std::fs::read_dir(&entry) {
                Ok(entries) => left.extend(entries.map(|entry| entry.unwrap().path())),
                Err(_) if entry.ends_with("index.json") => {}
                Err(_) => left.push(entry),
            }
        }
        if left.is_empty() && store.usage().inodes == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(format!("{left:?} are left"))
}
