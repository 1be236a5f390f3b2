//! ImageService. It decides nothing itself: see `convert` and the image crate.

use super::status::Failure;
use super::{Backend, MAY_COMPLETE, NOTHING_CONTINUES, chunks, convert, handle};
use crate::{lanes, memory, operations};
use cri_api::v1 as cri;
use cri_api::v1::image_service_server::ImageService;
use image::ImageRecord;
use std::collections::HashMap;
use std::sync::Arc;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

/// Implements CRI's ImageService.
#[derive(Debug)]
pub(super) struct Images(pub(super) Backend);

impl Images {
    /// The images that a filter selects.
    fn selected(&self, filter: Option<cri::ImageFilter>) -> Result<Vec<Arc<ImageRecord>>, Failure> {
        Ok(match convert::image_filter(filter)? {
            Some(name) => self.0.images.resolve(&name).into_iter().collect(),
            None => self.0.images.list(),
        })
    }
}

#[tonic::async_trait]
impl ImageService for Images {
    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        handle("ListImages", request, NOTHING_CONTINUES, async |cri::ListImagesRequest { filter }| {
            let images = self.selected(filter)?;
            Ok(cri::ListImagesResponse { images: images.iter().map(|image| convert::image(image)).collect() })
        })
        .await
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        handle(
            "ImageStatus",
            request,
            NOTHING_CONTINUES,
            async |cri::ImageStatusRequest { image, verbose }| {
                // CRI: an unknown image is an empty reply, not an error.
                let found = self.0.images.resolve(&convert::image_name(image)?);
                let info = match found.as_deref().filter(|_| verbose) {
                    Some(record) => {
                        let document = self.0.images.document(&record.id).await?;
                        convert::image_info(record, document.as_ref())
                    }
                    None => HashMap::new(),
                };
                Ok(cri::ImageStatusResponse { info, image: found.as_deref().map(convert::image) })
            },
        )
        .await
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        handle("PullImage", request, "the pull was cancelled", async |message| {
            let (name, auth) = convert::pull_request(message)?;
            operations::about_image(&name);
            let pulled = self.0.images.pull(&name, auth).await;
            memory::freed();
            let image = pulled?;
            Ok(cri::PullImageResponse { image_ref: image.id.clone() })
        })
        .await
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        handle("RemoveImage", request, MAY_COMPLETE, async |cri::RemoveImageRequest { image }| {
            let name = convert::image_name(image)?;
            operations::about_image(&name);
            self.0.images.remove(&name).await?;
            Ok(cri::RemoveImageResponse {})
        })
        .await
    }

    async fn image_fs_info(
        &self,
        request: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        handle("ImageFsInfo", request, NOTHING_CONTINUES, async |cri::ImageFsInfoRequest {}| {
            let images = self.0.images.usage();
            let (stats, all) = (Arc::clone(&self.0.stats), self.0.node.containers());
            let layers = lanes::stats().run(move || stats.writable_layers(&all)).await;
            let layers = layers.map_err(crate::error::Error::from)?;
            Ok(convert::image_fs(&self.0.images.root(), &images, &layers))
        })
        .await
    }

    type StreamImagesStream = BoxStream<cri::StreamImagesResponse>;
    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<BoxStream<cri::StreamImagesResponse>>, Status> {
        handle("StreamImages", request, NOTHING_CONTINUES, async |cri::StreamImagesRequest { filter }| {
            let items = self.selected(filter)?.into_iter().map(|image| convert::image(&image));
            Ok(chunks::list(items, |images| cri::StreamImagesResponse { images }))
        })
        .await
    }
}
