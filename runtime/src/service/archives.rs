//! The service `copepod.v1.Images`: archives of images, and the removal of unused ones.

use super::status::Failure;
use super::{Backend, MAY_COMPLETE, handle};
use crate::{memory, operations};
use api::v1::export_response::Part as ExportPart;
use api::v1::images_server::Images;
use api::v1::import_request::Part as ImportPart;
use api::v1::import_response::Part as ImportReply;
use api::v1::{self as wire, ImportRequest, ImportResponse};
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream;
use image::{Compression, ImageStore, ImportProgress};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

/// How often the progress of an import is sent.
const TOLD: Duration = Duration::from_millis(200);
/// How long a client may take to send the options of an import. The parts after that have the time limit of the import's
/// place in the image store (`receive`).
const SILENCE: Duration = Duration::from_secs(60);
/// Maximum number of parts of an archive that wait for the disk, or for the client.
const WAITING: usize = 4;
/// What happens after the deadline of an import or export.
const CANCELLED: &str = "what was not complete was undone";

/// Implements `copepod.v1.Images`.
#[derive(Debug)]
pub(super) struct Archives(pub(super) Backend);

#[tonic::async_trait]
impl Images for Archives {
    type ImportStream = BoxStream<ImportResponse>;
    async fn import(
        &self,
        request: Request<Streaming<ImportRequest>>,
    ) -> Result<Response<Self::ImportStream>, Status> {
        let (images, so_far) = (self.0.images.clone(), ImportProgress::default());
        let progress = so_far.clone();
        let work = async move {
            let done =
                handle("Import", request, CANCELLED, async |parts| import(&images, parts, &so_far).await);
            let done = done.await;
            memory::freed();
            Ok(done?.into_inner())
        };
        Ok(Response::new(replies(running(work), progress)))
    }

    type ExportStream = BoxStream<wire::ExportResponse>;
    async fn export(
        &self,
        request: Request<wire::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let images = self.0.images.clone();
        let (output, parts) = mpsc::channel(WAITING);
        let work = async move {
            let done =
                handle("Export", request, CANCELLED, async |message| export(&images, message, output).await);
            let done = done.await;
            memory::freed();
            Ok(done?.into_inner())
        };
        Ok(Response::new(archive(Exporting { work: Some(running(work)), parts, result: None })))
    }

    async fn prune(
        &self,
        request: Request<wire::PruneRequest>,
    ) -> Result<Response<wire::PruneResponse>, Status> {
        handle("Prune", request, MAY_COMPLETE, async |wire::PruneRequest { dry_run }| {
            let image::Pruned { images, bytes } = self.0.images.prune(dry_run).await?;
            let images = images.iter().map(|image| wire::PrunedImage {
                id: image.id.clone(),
                names: image.repo_tags.iter().chain(&image.repo_digests).cloned().collect(),
                size: image.size,
            });
            Ok(wire::PruneResponse { images: images.collect(), bytes })
        })
        .await
    }
}

/// Starts work that goes on while the client takes no reply, so that its time limits hold and its place among the imports or
/// exports becomes free. It ends with the reply: a client that goes away cancels it.
fn running<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> BoxFuture<'static, Result<T, Status>> {
    // Dropping the set ends its task.
    let mut task = JoinSet::new();
    task.spawn(work);
    async move {
        let ended = task.join_next().await;
        ended.and_then(Result::ok).unwrap_or_else(|| Err(Status::internal("a fault of copepod: see its log")))
    }
    .boxed()
}

/// Feeds the store with the parts of an archive.
async fn import(
    images: &ImageStore,
    mut parts: Streaming<ImportRequest>,
    so_far: &ImportProgress,
) -> Result<wire::ImportResult, Failure> {
    let silent = |_| Failure::Incomplete("the client has sent no options of the import for a minute");
    let start = timeout(SILENCE, next(&mut parts)).await.map_err(silent)?;
    let Some(ImportPart::Start(wire::ImportStart { names })) = start? else {
        return Err(Failure::Incomplete("an import must begin with its options"));
    };
    if let Some(name) = names.first() {
        operations::about_image(name);
    }
    // Until then the client's parts stay in its socket.
    let place = images.import_place().await?;
    let (input, archive) = mpsc::channel(WAITING);
    let held = place.clone();
    let feed = async {
        while let Some(part) = held.receive(next(&mut parts), bytes_in).await?? {
            let ImportPart::Data(bytes) = part else {
                return Err(Failure::Incomplete("the options of an import came twice"));
            };
            // The store may have read enough, or failed; its result tells.
            if input.send(bytes).await.is_err() {
                break;
            }
        }
        drop(input);
        Ok(())
    };
    let (mut work, mut feed) = (pin!(images.import(place, archive, &names, so_far)), pin!(feed.fuse()));
    let imported = loop {
        tokio::select! {
            biased;
            fed = &mut feed => fed?,
            imported = &mut work => break imported?,
        }
    };
    let images = imported.into_iter().map(|image| {
        let image::Imported { name, digest, id, size, replaced } = image;
        wire::ImportedImage { name, digest, id, size, replaced }
    });
    Ok(wire::ImportResult { images: images.collect() })
}

/// Number of bytes of an archive in a part.
fn bytes_in(part: &Result<Option<ImportPart>, Failure>) -> usize {
    match part {
        Ok(Some(ImportPart::Data(bytes))) => bytes.len(),
        _ => 0,
    }
}

/// The next part that the client sends; `None` at the end.
async fn next(parts: &mut Streaming<ImportRequest>) -> Result<Option<ImportPart>, Failure> {
    let unreadable = |_| Failure::Incomplete("the client has ended the import, or sent what cannot be read");
    match parts.message().await.map_err(unreadable)? {
        None => Ok(None),
        Some(ImportRequest { part: Some(part) }) => Ok(Some(part)),
        Some(ImportRequest { part: None }) => Err(Failure::Incomplete("a message of an import is empty")),
    }
}

/// Progress while the work runs, and then its result.
fn replies(
    work: BoxFuture<'static, Result<wire::ImportResult, Status>>,
    progress: ImportProgress,
) -> BoxStream<ImportResponse> {
    Box::pin(stream::unfold(Some((work, None)), move |state| {
        let progress = progress.clone();
        async move {
            let (mut work, mut told) = state?;
            loop {
                match timeout(TOLD, &mut work).await {
                    Ok(result) => {
                        let reply =
                            result.map(|result| ImportResponse { part: Some(ImportReply::Result(result)) });
                        return Some((reply, None));
                    }
                    Err(_) => {
                        let now = progress.unpacked();
                        if let Some((done, total)) = now.filter(|_| now != told) {
                            told = now;
                            let part = ImportReply::Progress(wire::ImportProgress { done, total });
                            return Some((Ok(ImportResponse { part: Some(part) }), Some((work, told))));
                        }
                    }
                }
            }
        }
    }))
}

async fn export(
    images: &ImageStore,
    request: wire::ExportRequest,
    output: mpsc::Sender<Bytes>,
) -> Result<wire::ExportResult, Failure> {
    let compression = match request.compression() {
        wire::Compression::None => Compression::None,
        wire::Compression::Gzip => Compression::Gzip,
    };
    if let Some(name) = request.images.first() {
        operations::about_image(name);
    }
    let exported = images.export(&request.images, compression, output).await?;
    let images = exported.into_iter().map(|image| {
        let image::Exported { names, digest, id } = image;
        wire::ExportedImage { names, digest, id }
    });
    Ok(wire::ExportResult { images: images.collect() })
}

/// A running export.
struct Exporting {
    /// `None` once it has ended.
    work: Option<BoxFuture<'static, Result<wire::ExportResult, Status>>>,
    parts: mpsc::Receiver<Bytes>,
    /// What it has returned, until it is sent.
    result: Option<Result<wire::ExportResult, Status>>,
}

/// The archive, and then the result.
fn archive(exporting: Exporting) -> BoxStream<wire::ExportResponse> {
    Box::pin(stream::unfold(exporting, |mut exporting| async {
        while let Some(work) = &mut exporting.work {
            tokio::select! {
                biased;
                Some(bytes) = exporting.parts.recv() => return Some((data(bytes), exporting)),
                result = work => {
                    exporting.result = Some(result);
                    exporting.work = None;
                }
            }
        }
        // The store has ended, and what it wrote may wait here.
        if let Some(bytes) = exporting.parts.recv().await {
            return Some((data(bytes), exporting));
        }
        let result = exporting.result.take()?;
        let reply = result.map(|result| wire::ExportResponse { part: Some(ExportPart::Result(result)) });
        Some((reply, exporting))
    }))
}

fn data(bytes: Bytes) -> Result<wire::ExportResponse, Status> {
    Ok(wire::ExportResponse { part: Some(ExportPart::Data(bytes)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn work_goes_on_while_no_reply_is_taken_and_ends_with_the_reply() {
        let (done, is_done) = oneshot::channel();
        let reply = running(async move { Ok(done.send(1)) });
        assert_eq!(is_done.await, Ok(1));
        assert_eq!(reply.await.unwrap(), Ok(()));
        let (held, ended) = oneshot::channel::<()>();
        let reply = running(async move {
            let _held = held;
            std::future::pending::<Result<(), Status>>().await
        });
        drop(reply);
        assert!(ended.await.is_err());
    }
}
