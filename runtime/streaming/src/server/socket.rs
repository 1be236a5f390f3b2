//! A client's connection, plain or by TLS, and its halves.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, ReadHalf, Ready, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::server::TlsStream;

use super::tls::Tls;
use super::watch::Watch;

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<Socket>>),
}

/// The half that receives.
#[derive(Debug)]
pub(super) enum RecvHalf {
    Plain(OwnedReadHalf),
    Tls(ReadHalf<TlsStream<Socket>>, Socket),
}

/// The half that sends. What TLS has taken is only sent when the half is flushed.
#[derive(Debug)]
pub(super) enum SendHalf {
    Plain(OwnedWriteHalf),
    Tls(WriteHalf<TlsStream<Socket>>),
}

/// A socket that several parts of a session use: the one below TLS, because [`RecvHalf::ready`] waits for its state beside
/// the task that reads, and the one of a forwarded port. At most one task reads and one writes at a time: the socket wakes
/// only the last that has polled for either.
#[derive(Debug, Clone)]
pub(super) struct Socket(Arc<TcpStream>);

impl Stream {
    /// Does the TLS handshake, if TLS is configured.
    ///
    /// # Errors
    /// The client has left, or offers nothing that this side accepts.
    pub(super) async fn accepted(stream: TcpStream, tls: Option<&Tls>) -> io::Result<Self> {
        let Some(tls) = tls else { return Ok(Self::Plain(stream)) };
        let stream = tls.acceptor().accept(Socket(Arc::new(stream))).await?;
        Ok(Self::Tls(Box::new(stream)))
    }

    /// For looks at the socket beside the halves.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(super) fn watch(&self) -> io::Result<Watch> {
        match self {
            Self::Plain(stream) => Watch::new(stream),
            Self::Tls(stream) => Watch::new(&*stream.get_ref().0.0),
        }
    }

    pub(super) fn into_split(self) -> (RecvHalf, SendHalf) {
        match self {
            Self::Plain(stream) => {
                let (read, write) = stream.into_split();
                (RecvHalf::Plain(read), SendHalf::Plain(write))
            }
            Self::Tls(stream) => {
                let below = stream.get_ref().0.clone();
                let (read, write) = tokio::io::split(*stream);
                (RecvHalf::Tls(read, below), SendHalf::Tls(write))
            }
        }
    }
}

impl SendHalf {
    /// The socket, if what is written to it is what the client gets.
    pub(super) fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(half) => Some(half.as_ref()),
            Self::Tls(_) => None,
        }
    }
}

impl Socket {
    /// Shares a socket.
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }

    /// The socket itself.
    pub(super) fn socket(&self) -> &TcpStream {
        &self.0
    }
}

impl RecvHalf {
    /// Waits for a state of the socket.
    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Self::Plain(half) => half.ready(interest).await,
            Self::Tls(_, below) => below.0.ready(interest).await,
        }
    }
}

/// Passes a call on to what a variant holds.
macro_rules! either {
    ($self:ident, $kind:ident, $half:ident => $call:expr) => {
        match $self.get_mut() {
            $kind::Plain($half) => $call,
            $kind::Tls($half, ..) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, Stream, half => pin!(half).poll_read(cx, to))
    }
}

impl AsyncRead for RecvHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, RecvHalf, half => pin!(half).poll_read(cx, to))
    }
}

/// Writing, which is the same for a connection and for its half.
macro_rules! writes {
    ($kind:ident) => {
        impl AsyncWrite for $kind {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
                either!(self, $kind, half => pin!(half).poll_write(cx, from))
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                from: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                either!(self, $kind, half => pin!(half).poll_write_vectored(cx, from))
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                either!(self, $kind, half => pin!(half).poll_flush(cx))
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                either!(self, $kind, half => pin!(half).poll_shutdown(cx))
            }
        }
    };
}

writes!(Stream);
writes!(SendHalf);

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read_buf(to) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(from)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(from) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Write)?))
    }
}
