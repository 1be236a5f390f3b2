//! The archive that is imported: a file, standard input, or a folder that becomes an archive. It is decompressed here, with
//! the rights and the memory of this command.

use super::Error;
use super::meter::Meter;
use bytes::Bytes;
use futures_util::Stream;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::thread;
use tar::{EntryType, Header};
use tokio::sync::{mpsc, oneshot};

/// Bytes of one message.
const PART: usize = 256 << 10;
/// Maximum number of parts that wait for the daemon.
const WAITING: usize = 4;
/// Longest name that a header has, in bytes.
const LONG_NAME: usize = 100;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// What is not decompressed here: the first bytes, and the program that does it.
const OTHERS: [(&[u8], &str); 3] = [(b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2"), (b"\x04\x22\x4d\x18", "lz4")];

/// An archive that is not read yet.
#[derive(Debug)]
pub(super) struct Input {
    path: PathBuf,
    what: What,
    /// Number of bytes that will be read, if it is known.
    pub(super) size: Option<u64>,
}

#[derive(Debug)]
enum What {
    File(File),
    Stdin,
    /// Files of a layout: names in the archive, and sizes.
    Folder(Vec<(String, u64)>),
}

impl Input {
    /// Opens the archive; `-` is standard input.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::File { action: "read", path: path.to_owned(), source };
        let own = path.to_owned();
        if path == Path::new("-") {
            return Ok(Self { path: own, what: What::Stdin, size: None });
        }
        let file = File::open(path).map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        if facts.is_dir() {
            let files = layout(path).map_err(failed)?;
            let size = Some(files.iter().map(|(_, size)| size).sum());
            return Ok(Self { path: own, what: What::Folder(files), size });
        }
        let size = facts.is_file().then_some(facts.len());
        Ok(Self { path: own, what: What::File(file), size })
    }

    /// The uncompressed archive in parts, which a thread reads. The future ends only if that fails; then the parts end
    /// never, because the daemon would take them for complete.
    pub(super) fn parts(
        self,
        meter: Meter,
    ) -> (impl Stream<Item = Bytes> + Send + 'static, impl Future<Output = Error>) {
        let (sender, parts) = mpsc::channel(WAITING);
        let (tell, told) = oneshot::channel();
        let path = self.path.clone();
        let started = thread::Builder::new().name("archive".to_owned()).spawn(move || {
            let done = self.send(&meter, &sender);
            // `told` is there until the end of the command.
            drop(tell.send(done));
        });
        let failed = async move {
            let source = match started {
                Err(error) => error,
                Ok(_) => match told.await {
                    Ok(Err(error)) => error,
                    _ => std::future::pending().await,
                },
            };
            Error::File { action: "read", path, source }
        };
        (futures_util::stream::unfold(parts, next), failed)
    }

    fn send(self, meter: &Meter, parts: &mpsc::Sender<Part>) -> io::Result<()> {
        let Self { path, what, .. } = self;
        match what {
            What::File(file) => send_archive(Counted { input: file, meter }, parts),
            What::Stdin => send_archive(Counted { input: io::stdin(), meter }, parts),
            What::Folder(files) => send_layout(&path, &files, meter, parts),
        }?;
        drop(parts.blocking_send(Part::End));
        Ok(())
    }
}

enum Part {
    Bytes(Bytes),
    End,
}

/// The next bytes. If the thread has ended without an end, none come.
async fn next(mut parts: mpsc::Receiver<Part>) -> Option<(Bytes, mpsc::Receiver<Part>)> {
    match parts.recv().await {
        Some(Part::Bytes(bytes)) => Some((bytes, parts)),
        Some(Part::End) => None,
        None => std::future::pending().await,
    }
}

/// Counts what is read.
struct Counted<'a, R> {
    input: R,
    meter: &'a Meter,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(into)?;
        self.meter.add(read as u64);
        Ok(read)
    }
}

/// Sends an archive, decompressed.
fn send_archive(input: impl Read, parts: &mpsc::Sender<Part>) -> io::Result<()> {
    let mut input = BufReader::with_capacity(PART, input);
    let first = input.fill_buf()?;
    if first.starts_with(GZIP) {
        send(&mut flate2::bufread::MultiGzDecoder::new(input), parts)
    } else if first.starts_with(ZSTD) {
        send(&mut zstd::stream::read::Decoder::with_buffer(input)?, parts)
    } else if let Some((_, program)) = OTHERS.iter().find(|(magic, _)| first.starts_with(magic)) {
        let reason =
            format!("it is compressed with {program}: pipe what `{program} -dc` prints into this command");
        Err(io::Error::new(io::ErrorKind::Unsupported, reason))
    } else {
        send(&mut input, parts)
    }
}

/// Sends all bytes. It is no error if the daemon wants no more: its answer says why.
fn send(input: &mut impl Read, parts: &mpsc::Sender<Part>) -> io::Result<()> {
    loop {
        let mut part = Vec::with_capacity(PART);
        input.by_ref().take(PART as u64).read_to_end(&mut part)?;
        if part.is_empty() || parts.blocking_send(Part::Bytes(part.into())).is_err() {
            return Ok(());
        }
    }
}

/// The files of an OCI image layout, in a folder: names and sizes, sorted.
fn layout(folder: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    let mut add = |name: String| -> io::Result<()> {
        let facts = fs::symlink_metadata(folder.join(&name))?;
        if facts.is_file() {
            files.push((name, facts.len()));
        }
        Ok(())
    };
    add("index.json".to_owned()).map_err(|error| {
        io::Error::new(error.kind(), format!("it is no OCI image layout: index.json: {error}"))
    })?;
    let names = |path: PathBuf| -> io::Result<Vec<String>> {
        let entries = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        entries.collect()
    };
    for algorithm in names(folder.join("blobs"))? {
        for blob in names(folder.join("blobs").join(&algorithm))? {
            add(format!("blobs/{algorithm}/{blob}"))?;
        }
    }
    files.sort();
    Ok(files)
}

/// The blocks before a file's content. A long name, such as that of a sha512 digest, has a member of its own, as in GNU's
/// format.
fn header(name: &str, size: u64) -> Vec<u8> {
    let block = |name: &[u8], kind: EntryType, size: u64| {
        let mut header = Header::new_gnu();
        let field = &mut header.as_old_mut().name;
        let length = name.len().min(field.len());
        field[..length].copy_from_slice(&name[..length]);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        header
    };
    let mut blocks = Vec::new();
    if name.len() > LONG_NAME {
        let long = block(b"././@LongLink", EntryType::GNULongName, name.len() as u64);
        blocks.extend_from_slice(long.as_bytes());
        blocks.extend_from_slice(name.as_bytes());
        blocks.resize(blocks.len().next_multiple_of(512), 0);
    }
    blocks.extend_from_slice(block(name.as_bytes(), EntryType::Regular, size).as_bytes());
    blocks
}

/// Sends these files of a folder as an archive.
fn send_layout(
    folder: &Path,
    files: &[(String, u64)],
    meter: &Meter,
    parts: &mpsc::Sender<Part>,
) -> io::Result<()> {
    for (name, size) in files {
        let header = header(name, *size);
        let file = Counted { input: File::open(folder.join(name))?, meter };
        // A file that grows meanwhile is cut, and one that shrinks is an error of the archive.
        let padding = io::repeat(0).take(size.next_multiple_of(512) - size);
        send(&mut header.as_slice().chain(file.take(*size)).chain(padding), parts)?;
    }
    send(&mut io::repeat(0).take(1024), parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;
    use std::io::Write as _;

    /// What is sent of a path, or why it is given up.
    async fn sent(path: &Path) -> Result<Vec<u8>, Error> {
        let (parts, failed) = Input::open(path)?.parts(Meter::hidden());
        tokio::select! {
            all = parts.collect::<Vec<_>>() => Ok(all.concat()),
            error = failed => Err(error),
        }
    }

    #[tokio::test]
    async fn archives_are_decompressed() {
        let (folder, plain) = (tempfile::tempdir().unwrap(), vec![5; 700_000]);
        let path = folder.path().join("a");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let gzip = gzip.finish().unwrap();
        for packed in [&plain, &gzip, &zstd::bulk::compress(&plain, 1).unwrap()] {
            fs::write(&path, packed).unwrap();
            assert!(sent(&path).await.unwrap() == plain);
        }
        for (packed, program) in [(&b"\xfd7zXZ\0..."[..], "xz -dc"), (b"BZh9...", "bzip2 -dc")] {
            fs::write(&path, packed).unwrap();
            assert!(causes::with_causes(&sent(&path).await.unwrap_err()).contains(program));
        }
        // One that is cut is never complete.
        fs::write(&path, &gzip[..gzip.len() / 2]).unwrap();
        assert!(matches!(sent(&path).await, Err(Error::File { .. })));
        assert!(matches!(sent(&folder.path().join("none")).await, Err(Error::File { .. })));
    }

    #[tokio::test]
    async fn a_layout_in_a_folder_becomes_an_archive() {
        let folder = tempfile::tempdir().unwrap();
        assert!(causes::with_causes(&sent(folder.path()).await.unwrap_err()).contains("index.json"));
        let long = format!("blobs/sha512/{}", "a".repeat(128));
        for (name, content) in [("index.json", "i"), ("blobs/sha256/x", ""), (long.as_str(), "xyz")] {
            fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
            fs::write(folder.path().join(name), content).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("blobs/sha256/y")).unwrap();
        let archive = sent(folder.path()).await.unwrap();
        let mut reader = tar::Archive::new(&archive[..]);
        let mut found = Vec::new();
        for entry in reader.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            found.push((entry.path().unwrap().display().to_string(), content));
        }
        let wanted = [("blobs/sha256/x", ""), (long.as_str(), "xyz"), ("index.json", "i")];
        assert_eq!(found, wanted.map(|(name, content)| (name.to_owned(), content.to_owned())));
    }
}
