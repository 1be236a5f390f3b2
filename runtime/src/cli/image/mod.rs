//! `copepod image …`: the images of the running daemon, which it calls on its socket.

mod client;
mod input;
mod meter;
mod output;
mod table;

use self::client::{Connection, connect};
use self::input::Input;
use self::meter::Meter;
use self::output::Output;
use api::v1::export_response::Part as ExportPart;
use api::v1::import_request::Part as ImportPart;
use api::v1::import_response::Part as ImportReply;
use api::v1::{self as wire, ImportRequest};
use clap::{Subcommand, ValueEnum};
use cri_api::v1 as cri;
use futures_util::stream::{self, StreamExt as _};
use indicatif::BinaryBytes;
use std::path::{Path, PathBuf};
use tonic::Status;

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Store the images of an archive: of docker save, or of an OCI image layout, also compressed with gzip or zstd
    Import {
        /// The archive; `-` is standard input. Or a folder with an OCI image layout
        path: PathBuf,
        /// Name of the archive's only image, instead of the names that it has; may be repeated
        #[arg(long = "tag", value_name = "NAME")]
        tags: Vec<String>,
    },
    /// Write images into an archive that is an OCI image layout and one of docker save
    ///
    /// The layers are made again from what they were unpacked into, so the digests are not those of the registry. The
    /// content is the same: files with owners, modes, times, links and extended attributes.
    Export {
        /// Names, digests or ids. By an id it is exported with all its tags
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// The archive; `-` is standard output
        #[arg(long, short, value_name = "PATH")]
        output: PathBuf,
        /// Compress the layers
        #[arg(long)]
        gzip: bool,
    },
    /// List the images
    #[command(visible_alias = "ls")]
    List {
        /// Form of the list
        #[arg(long, short, value_enum, default_value = "table")]
        output: Form,
    },
    /// Remove images with all their names. Layers that containers use stay until these are removed
    #[command(visible_alias = "rm")]
    Remove {
        /// Names, digests or ids
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Remove the images that are not pinned and that no container uses
    Prune {
        /// Only print what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

/// The form of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// A line for each name.
    Table,
    /// An array of objects.
    Json,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon's socket cannot be used.
    #[error("cannot connect to the daemon on {}: it must run, and this command needs its user's rights", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The error of the system call, or of HTTP/2.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The daemon has refused a call, or failed.
    #[error("{}{}", .0.message(), code(.0))]
    Call(Box<Status>),
    /// A daemon of another version.
    #[error("the daemon has ended the call without a result")]
    NoResult,
    /// The archive cannot be read or written.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// The failed step.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system call.
        source: std::io::Error,
    },
    /// Standard output is a terminal.
    #[error("an archive is not written to a terminal: give --output a file, or redirect standard output")]
    Terminal,
    /// Some of the images could not be removed. Why was printed already.
    #[error("{failed} of {all} images were not removed")]
    NotRemoved {
        /// How many.
        failed: usize,
        /// Of how many.
        all: usize,
    },
    /// By SIGINT.
    #[error("interrupted")]
    Interrupted,
    /// No runtime for asynchronous work.
    #[error("cannot start")]
    Start(#[source] std::io::Error),
    /// Standard output is closed.
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
}

/// What the code of a status says beside its text.
fn code(status: &Status) -> String {
    match status.code() {
        tonic::Code::Unimplemented => " (the daemon is older than this command: restart it)".to_owned(),
        _ if status.message().is_empty() => format!("the daemon's answer is {:?}", status.code()),
        _ => String::new(),
    }
}

/// For `map_err`: the error of a call.
fn refused(status: Status) -> Error {
    Error::Call(Box::new(status))
}

/// Runs a command.
pub(super) fn run(command: ImageCommand, socket: &Path) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
    let work = async {
        let connection = connect(socket).await?;
        match command {
            ImageCommand::Import { path, tags } => import(&connection, &path, tags).await,
            ImageCommand::Export { images, output, gzip } => export(&connection, images, &output, gzip).await,
            ImageCommand::List { output } => list(&connection, output).await,
            ImageCommand::Remove { images } => remove(&connection, &images).await,
            ImageCommand::Prune { dry_run } => prune(&connection, dry_run).await,
        }
    };
    runtime.block_on(async {
        tokio::select! {
            done = work => done,
            // The daemon undoes what it has begun, and the part of an export is removed.
            _ = tokio::signal::ctrl_c() => Err(Error::Interrupted),
        }
    })
}

async fn import(connection: &Connection, path: &Path, names: Vec<String>) -> Result<(), Error> {
    let input = Input::open(path)?;
    let meter = Meter::new("sending", input.size);
    let start = ImportRequest { part: Some(ImportPart::Start(wire::ImportStart { names })) };
    let (parts, ended) = input.parts(meter.clone());
    let parts = parts.map(|data| ImportRequest { part: Some(ImportPart::Data(data)) });
    let mut call = connection.archives();
    let talk = async {
        let requests = stream::iter([start]).chain(parts);
        let mut replies = call.import(requests).await.map_err(refused)?.into_inner();
        let mut unpacking: Option<Meter> = None;
        while let Some(reply) = replies.message().await.map_err(refused)? {
            match reply.part {
                Some(ImportReply::Progress(wire::ImportProgress { done, total })) => {
                    meter.end();
                    unpacking.get_or_insert_with(|| Meter::new("unpacking", Some(total))).set(done);
                }
                Some(ImportReply::Result(result)) => {
                    meter.end();
                    unpacking.iter().for_each(Meter::end);
                    return Ok(result.images);
                }
                // Of a later version.
                None => {}
            }
        }
        Err(Error::NoResult)
    };
    let images = tokio::select! {
        biased;
        images = talk => images?,
        // The archive could not be read to its end, so the call is given up.
        error = ended => return Err(error),
    };
    for image in images.iter().filter(|image| !image.replaced.is_empty()) {
        eprintln!("copepod: {} was a name of the image {}", image.name, image.replaced);
    }
    let lines = images.iter().map(|image| format!("{} {}\n", image.name, image.digest));
    table::print(&lines.collect::<String>())
}

async fn export(connection: &Connection, images: Vec<String>, path: &Path, gzip: bool) -> Result<(), Error> {
    let mut output = Output::create(path)?;
    let compression = if gzip { wire::Compression::Gzip } else { wire::Compression::None };
    let request = wire::ExportRequest { images, compression: compression.into() };
    let mut call = connection.archives();
    let mut replies = call.export(request).await.map_err(refused)?.into_inner();
    let (meter, mut result) = (Meter::new("writing", None), None);
    while let Some(reply) = replies.message().await.map_err(refused)? {
        match reply.part {
            Some(ExportPart::Data(bytes)) => {
                output.write(&bytes)?;
                meter.add(bytes.len() as u64);
            }
            Some(ExportPart::Result(done)) => result = Some(done),
            None => {}
        }
    }
    meter.end();
    // Without its result the archive is not complete.
    let result = result.ok_or(Error::NoResult)?;
    let is_file = output.complete()?;
    let lines = result.images.iter().map(|image| {
        let names = if image.names.is_empty() { "<none>".to_owned() } else { image.names.join(" ") };
        format!("{names} {}\n", image.digest)
    });
    let lines = lines.collect::<String>();
    if is_file {
        return table::print(&lines);
    }
    eprint!("{lines}");
    Ok(())
}

async fn list(connection: &Connection, form: Form) -> Result<(), Error> {
    let reply = connection.images().list_images(cri::ListImagesRequest::default()).await.map_err(refused)?;
    table::print(&table::images(&reply.into_inner().images, form))
}

async fn remove(connection: &Connection, images: &[String]) -> Result<(), Error> {
    let mut failed = 0;
    for name in images {
        let spec = Some(cri::ImageSpec { image: name.clone(), ..Default::default() });
        let found = connection
            .images()
            .image_status(cri::ImageStatusRequest { image: spec.clone(), verbose: false })
            .await
            .map_err(refused)?;
        let done = match found.into_inner().image {
            // To CRI the removal of an unknown image is no error.
            None => Err("no such image".to_owned()),
            Some(image) => {
                let removed = connection.images().remove_image(cri::RemoveImageRequest { image: spec }).await;
                removed.map(|_| image.id).map_err(|status| refused(status).to_string())
            }
        };
        match done {
            Ok(id) => table::print(&format!("{name} {id}\n"))?,
            Err(reason) => {
                eprintln!("copepod: {name}: {reason}");
                failed += 1;
            }
        }
    }
    if failed > 0 { Err(Error::NotRemoved { failed, all: images.len() }) } else { Ok(()) }
}

async fn prune(connection: &Connection, dry_run: bool) -> Result<(), Error> {
    let reply = connection.archives().prune(wire::PruneRequest { dry_run }).await.map_err(refused)?;
    let wire::PruneResponse { images, bytes } = reply.into_inner();
    let lines = images.iter().map(|image| {
        let name = image.names.first().unwrap_or(&image.id);
        format!("{name} {}\n", BinaryBytes(image.size))
    });
    let what = if dry_run { "would be freed" } else { "freed" };
    table::print(&format!("{}{} {what}\n", lines.collect::<String>(), BinaryBytes(bytes)))
}
