//! Replies in several parts: streamed lists, and events.

use super::status::Failure;
use crate::node::{Event, Events};
use futures_util::{StreamExt as _, stream};
use prost::Message;
use std::sync::Arc;
use tonic::Status;
use tonic::codegen::BoxStream;

/// Maximum size in bytes of one reply of a streamed list, unless one item has more.
const MAX_CHUNK: usize = 1024 * 1024;
/// What an item costs beside its own bytes: its field's number and its length.
const OVERHEAD: usize = 6;

/// The items of a list as it is now, each converted when it is taken; `None` leaves it out.
pub(super) fn snapshot<V: Send + Sync + 'static, T: 'static>(
    views: Arc<[Arc<V>]>,
    mut convert: impl FnMut(&V) -> Option<T> + Send + 'static,
) -> impl Iterator<Item = T> + Send + 'static {
    (0..views.len()).filter_map(move |index| convert(&views[index]))
}

/// Streams items in replies of at most [`MAX_CHUNK`]. Without items there is no reply. A reply is made when the client
/// can take it, so that a slow client costs one.
pub(super) fn list<T: Message + 'static, R: 'static>(
    items: impl Iterator<Item = T> + Send + 'static,
    reply: fn(Vec<T>) -> R,
) -> BoxStream<R> {
    let cost = |item: &T| item.encoded_len() + OVERHEAD;
    let mut items = items.peekable();
    Box::pin(stream::iter(std::iter::from_fn(move || {
        let mut chunk = vec![items.next()?];
        let mut size = cost(&chunk[0]);
        while let Some(item) = items.next_if(|item| size + cost(item) <= MAX_CHUNK) {
            size += cost(&item);
            chunk.push(item);
        }
        Some(Ok::<R, Status>(reply(chunk)))
    })))
}

/// Streams events until the subscriber goes away, is too slow or the daemon stops; the last two end it with an error.
pub(super) fn events<R: 'static>(
    events: Events,
    mut reply: impl FnMut(&Event) -> R + Send + 'static,
) -> BoxStream<R> {
    let events = stream::unfold(Some(events), |events| async move {
        let mut events = events?;
        match events.next().await {
            Ok(event) => Some((Ok(event), Some(events))),
            Err(error) => {
                tracing::info!(error = error.text(), "a stream of events has ended");
                Some((Err(Status::from(Failure::from(error))), None))
            }
        }
    });
    Box::pin(events.map(move |event| event.map(|event| reply(&event))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Registry;
    use cri_api::v1 as cri;
    use model::{PodConfig, PodId, PodRecord};
    use tonic::Code;

    /// The sizes of the replies for images with tags of these lengths.
    async fn replies(tags: Vec<usize>) -> Vec<Vec<usize>> {
        let length = |image: &cri::Image| image.repo_tags[0].len();
        let images = tags
            .into_iter()
            .map(|length| cri::Image { repo_tags: vec!["t".repeat(length)], ..cri::Image::default() });
        let streamed = list(images, |images| cri::StreamImagesResponse { images });
        let replies: Vec<_> = streamed.map(|reply| reply.expect("a reply")).collect().await;
        for reply in &replies {
            assert!(reply.images.len() == 1 || reply.encoded_len() <= MAX_CHUNK, "{}", reply.encoded_len());
        }
        replies.iter().map(|reply| reply.images.iter().map(length).collect()).collect()
    }

    #[tokio::test]
    async fn replies_are_bounded_and_complete() {
        assert_eq!(replies(vec![]).await, Vec::<Vec<usize>>::new());
        assert_eq!(replies(vec![5]).await, [[5]]);
        let half = MAX_CHUNK / 2;
        assert_eq!(replies(vec![half, 1, half, 1]).await, [vec![half, 1], vec![half, 1]]);
        // An item that is larger than a reply has one of its own.
        assert_eq!(replies(vec![1, MAX_CHUNK, 1]).await, [vec![1], vec![MAX_CHUNK], vec![1]]);
        let many = replies(vec![100; 100_000]).await;
        assert_eq!(many.iter().map(Vec::len).sum::<usize>(), 100_000);
        assert!((10..20).contains(&many.len()), "{} replies", many.len());
    }

    #[tokio::test]
    async fn a_subscriber_that_is_too_slow_gets_an_error() {
        let registry = Registry::new();
        let published = registry.published();
        let subscribe = || events(published.subscribe().expect("a subscriber"), |event| event.id.clone());
        let (mut slow, mut fast) = (subscribe(), subscribe());
        let pod = Arc::new(PodRecord::new(PodId::from_random([1; 32]), PodConfig::default(), 1));
        // Each round makes three events.
        for _ in 0..1000 {
            published.put_pod(Arc::clone(&pod), 0);
            published.remove_pod(&pod.id);
            for _ in 0..3 {
                assert_eq!(&*fast.next().await.expect("an event").expect("no error"), pod.id.as_str());
            }
        }
        let error = slow.next().await.expect("an answer").expect_err("the subscriber is behind");
        assert_eq!(error.code(), Code::Aborted, "{error}");
        assert!(slow.next().await.is_none(), "the stream has ended");
        published.end_events();
        let error = fast.next().await.expect("an answer").expect_err("the daemon is stopping");
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(fast.next().await.is_none(), "the stream has ended");
    }
}
