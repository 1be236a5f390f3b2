//! The daemon as its own client: the calls by which kubelet knows whether the node is healthy, through the socket that
//! kubelet uses.

use bytes::Bytes;
use cri_api::v1 as cri;
use h2::client::SendRequest;
use prost::Message;
use std::path::Path;
use tokio::net::UnixStream;

/// Largest reply that is read, in bytes. That of Status has some hundred; the list that is asked for is empty.
const MAX_REPLY: usize = 64 * 1024;
/// A filter that no pod matches. Ids are random: 64 zeros are no pod's.
const NO_POD: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Why a call of the daemon to itself failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SelfProbeError {
    /// The socket does not accept connections: it was removed, or the daemon has no descriptor left.
    #[error("cannot connect to the daemon's own socket")]
    Connect(#[source] std::io::Error),
    /// The connection failed.
    #[error("{call} on the daemon's own socket failed")]
    Connection {
        /// The call.
        call: &'static str,
        /// The error of HTTP/2.
        source: h2::Error,
    },
    /// The server has closed the connection.
    #[error("the daemon has closed the connection of its own client")]
    Closed,
    /// The call was answered with an error.
    #[error("{call} on the daemon's own socket was answered with the gRPC status {status}")]
    Refused {
        /// The call.
        call: &'static str,
        /// The value of `grpc-status`.
        status: String,
    },
    /// The reply is longer than such a reply can be.
    #[error("the reply to {call} has more than {MAX_REPLY} bytes")]
    TooLong {
        /// The call.
        call: &'static str,
    },
}

/// Calls Status and ListPodSandbox. Their content does not matter: a node that is not ready is not mended by a new daemon.
/// The caller sets the time limit.
///
/// # Errors
/// There was no reply, or an error instead of one.
pub(crate) async fn probe_socket(socket: &Path) -> Result<(), SelfProbeError> {
    let stream = UnixStream::connect(socket).await.map_err(SelfProbeError::Connect)?;
    let failed = |source| SelfProbeError::Connection { call: "a handshake", source };
    let (requests, connection) = h2::client::handshake(stream).await.map_err(failed)?;
    let calls = async {
        let list = cri::ListPodSandboxRequest {
            filter: Some(cri::PodSandboxFilter { id: NO_POD.to_owned(), ..Default::default() }),
        };
        call(&requests, "Status", &cri::StatusRequest::default()).await?;
        call(&requests, "ListPodSandbox", &list).await
    };
    tokio::select! {
        result = calls => result,
        // It moves the bytes of both sides, and ends only when the server closes it.
        ended = connection => Err(ended.map_or_else(failed, |()| SelfProbeError::Closed)),
    }
}

/// One call of RuntimeService, whose reply is received and dropped.
async fn call(
    requests: &SendRequest<Bytes>,
    call: &'static str,
    message: &impl Message,
) -> Result<(), SelfProbeError> {
    let failed = |source| SelfProbeError::Connection { call, source };
    let mut requests = requests.clone().ready().await.map_err(failed)?;
    let request = http::Request::post(format!("http://localhost/runtime.v1.RuntimeService/{call}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        // The parts are constants that are valid.
        .unwrap_or_default();
    let (response, mut body) = requests.send_request(request, false).map_err(failed)?;
    body.send_data(frame(message), true).map_err(failed)?;
    let (head, mut reply) = response.await.map_err(failed)?.into_parts();
    let mut received = 0;
    while let Some(data) = reply.data().await {
        let length = data.map_err(failed)?.len();
        received += length;
        if received > MAX_REPLY {
            return Err(SelfProbeError::TooLong { call });
        }
        reply.flow_control().release_capacity(length).map_err(failed)?;
    }
    let trailers = reply.trailers().await.map_err(failed)?;
    // An error without a message is in the head.
    let status = trailers.as_ref().and_then(|it| it.get("grpc-status")).or(head.headers.get("grpc-status"));
    match status.and_then(|status| status.to_str().ok()) {
        Some("0") => Ok(()),
        status => Err(SelfProbeError::Refused { call, status: status.unwrap_or("none").to_owned() }),
    }
}

/// A gRPC message: a byte for "not compressed", its length, and itself.
fn frame(message: &impl Message) -> Bytes {
    let message = message.encode_to_vec();
    // A request of this module has less than 100 bytes.
    let length = u32::try_from(message.len()).unwrap_or_default();
    let mut framed = vec![0];
    framed.extend(length.to_be_bytes());
    framed.extend(message);
    framed.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    fn listener() -> (tempfile::TempDir, std::path::PathBuf, UnixListener) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        (folder, path, listener)
    }

    #[tokio::test]
    async fn a_socket_that_nobody_serves_is_an_error() {
        let (_folder, path, listener) = listener();
        let closing = async {
            drop(listener.accept().await.unwrap());
        };
        let (probed, ()) = tokio::join!(probe_socket(&path), closing);
        assert!(
            matches!(probed, Err(SelfProbeError::Closed | SelfProbeError::Connection { .. })),
            "{probed:?}"
        );
        drop(listener);
        let probed = probe_socket(&path).await;
        assert!(matches!(probed, Err(SelfProbeError::Connect(_))), "{probed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_holds_it_up() {
        let (_folder, path, listener) = listener();
        // Accepted by the kernel, read by nobody.
        let limit = std::time::Duration::from_secs(60);
        assert!(tokio::time::timeout(limit, probe_socket(&path)).await.is_err());
        drop(listener);
    }

    #[tokio::test]
    async fn an_error_instead_of_a_reply_is_an_error() {
        let (_folder, path, listener) = listener();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let mut left = ["14", "none", "0", "13"].into_iter();
            while let Some(request) = connection.accept().await {
                let (request, mut reply) = request.unwrap();
                assert_eq!(request.headers()["content-type"], "application/grpc");
                let mut head = http::Response::builder().status(200);
                match left.next() {
                    None => break,
                    Some("none") => {}
                    Some(status) => head = head.header("grpc-status", status),
                }
                reply.send_response(head.body(()).unwrap(), true).unwrap();
            }
        });
        let (stream, requests) = {
            let stream = UnixStream::connect(&path).await.unwrap();
            let (requests, connection) = h2::client::handshake(stream).await.unwrap();
            (tokio::spawn(connection), requests)
        };
        let empty = cri::StatusRequest::default();
        for expected in [Some("14"), Some("none"), None, Some("13")] {
            let found = match call(&requests, "Status", &empty).await {
                Ok(()) => None,
                Err(SelfProbeError::Refused { status, .. }) => Some(status),
                Err(error) => panic!("{error:?}"),
            };
            assert_eq!(found.as_deref(), expected);
        }
        stream.abort();
        drop(requests);
        server.abort();
    }
}
