//! The input of containers with CRI's `stdin_once` and without a terminal: it stays open until the first client has ended
//! its input or has left.
//!
//! Every attached client has an end of the container's stdin, and the shim has one. All of them are closed then: the
//! container would see no end while one is open.

use crate::shims::Client;
use model::ContainerId;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe::Sender;
use wire::Request;

/// Time limit for the shim's reply.
const LIMIT: Duration = Duration::from_secs(10);

/// The inputs of all clients that are attached to such containers. A shim attaches only a few to each.
#[derive(Debug, Default)]
pub(crate) struct Inputs(Mutex<HashMap<ContainerId, Vec<Weak<Seat>>>>);

/// The input of a client.
#[derive(Debug, Default)]
pub(crate) struct Seat(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    /// The shim was asked for it.
    #[default]
    Asked,
    /// `waker`: who waits for room in the pipe.
    Open { pipe: Sender, waker: Option<Waker> },
    /// A client has ended its input.
    Ended,
}

/// An open input.
pub(crate) struct Stdin {
    seat: Arc<Seat>,
    inputs: Arc<Inputs>,
    client: Client,
    container: ContainerId,
}

impl Inputs {
    /// A place for a client's input. It must be taken before the shim is asked for the input: an end that is between the
    /// shim's answer and [`Stdin::open`] would be missed otherwise.
    pub(crate) fn join(&self, container: &ContainerId) -> Arc<Seat> {
        let (seat, mut all) = (Arc::<Seat>::default(), lock(&self.0));
        all.retain(|_, seats| {
            seats.retain(|seat| seat.strong_count() > 0);
            !seats.is_empty()
        });
        all.entry(container.clone()).or_default().push(Arc::downgrade(&seat));
        seat
    }

    /// Ends the inputs of all clients that have joined so far.
    fn end(&self, container: &ContainerId) {
        let seats = lock(&self.0).remove(container).unwrap_or_default();
        for seat in seats.iter().filter_map(Weak::upgrade) {
            if let State::Open { waker: Some(waker), .. } =
                std::mem::replace(&mut *lock(&seat.0), State::Ended)
            {
                waker.wake();
            }
        }
    }
}

impl Stdin {
    /// Takes the end of the container's stdin that the shim has given.
    ///
    /// # Errors
    /// The pipe cannot be watched.
    pub(crate) fn open(
        seat: Arc<Seat>,
        inputs: &Arc<Inputs>,
        client: Client,
        container: ContainerId,
        pipe: OwnedFd,
    ) -> io::Result<Self> {
        let pipe = Sender::from_owned_fd(pipe)?;
        let mut state = lock(&seat.0);
        if let State::Asked = *state {
            *state = State::Open { pipe, waker: None };
        }
        drop(state);
        Ok(Self { seat, inputs: Arc::clone(inputs), client, container })
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        if let State::Ended = *lock(&self.seat.0) {
            return;
        }
        self.inputs.end(&self.container);
        let (inputs, client, container) =
            (Arc::clone(&self.inputs), self.client.clone(), self.container.clone());
        tokio::spawn(async move {
            let request = Request::CloseStdin { container: container.clone() };
            if let Err(error) = client.done("the end of stdin", request, LIMIT).await {
                // Most likely the container has exited.
                tracing::debug!(%container, %error, "cannot close stdin");
            }
            // Those to whom the shim has given the input meanwhile.
            inputs.end(&container);
        });
    }
}

impl AsyncWrite for Stdin {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.seat.0);
        let State::Open { pipe, waker } = &mut *state else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let written = Pin::new(pipe).poll_write(cx, bytes);
        // A pipe that is closed wakes nobody.
        *waker = written.is_pending().then(|| cx.waker().clone());
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shims::fakes::{FakeShim, connected};
    use rustix::pipe::{PipeFlags, pipe_with};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::unix::pipe::Receiver;
    use wire::Reply;

    /// A container's stdin, of which the test holds the shim's end.
    struct Rig {
        inputs: Arc<Inputs>,
        client: Client,
        shim: FakeShim,
        container: ContainerId,
        write: OwnedFd,
        read: Receiver,
    }

    impl Rig {
        async fn new() -> Self {
            let (connection, shim) = connected().await;
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let read = Receiver::from_owned_fd(read).unwrap();
            let container = ContainerId::from_random([4; 32]);
            Self { inputs: Arc::default(), client: connection.client, shim, container, write, read }
        }

        fn open(&self, seat: Arc<Seat>) -> Stdin {
            let (client, container) = (self.client.clone(), self.container.clone());
            Stdin::open(seat, &self.inputs, client, container, self.write.try_clone().unwrap()).unwrap()
        }

        fn attach(&self) -> Stdin {
            self.open(self.inputs.join(&self.container))
        }
    }

    #[tokio::test]
    async fn the_end_of_the_first_clients_input_is_the_end_of_all() {
        let mut rig = Rig::new().await;
        let (mut first, mut second, late) = (rig.attach(), rig.attach(), rig.inputs.join(&rig.container));
        first.write_all(b"first").await.unwrap();
        // More than the pipe takes: it waits for room.
        let waiting = tokio::spawn(async move {
            let error = second.write_all(&vec![0; 1 << 20]).await.unwrap_err();
            (error.kind(), second)
        });
        tokio::task::yield_now().await;
        drop(first);
        let (kind, second) = waiting.await.unwrap();
        assert_eq!(kind, io::ErrorKind::BrokenPipe);
        drop(second);
        let mut late = rig.open(late);
        assert_eq!(late.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let (request, what) = rig.shim.request().await;
        assert!(matches!(what, Request::CloseStdin { container } if container == rig.container));
        // The shim has given an input away before it has read the request.
        let mut overtaken = rig.attach();
        let mut all = vec![0; 1 << 20];
        let count = rig.read.read(&mut all).await.unwrap();
        all.truncate(count);
        overtaken.write_all(b"last").await.unwrap();
        rig.shim.reply(request, Reply::Done).await;
        drop(rig.write);
        rig.read.read_to_end(&mut all).await.unwrap();
        assert!(all.starts_with(b"first") && all.ends_with(b"last"), "the container sees the end");
        assert!(lock(&rig.inputs.0).is_empty(), "nothing is left of them");
    }

    #[tokio::test]
    async fn a_client_that_was_not_attached_ends_nothing() {
        let rig = Rig::new().await;
        let mut first = rig.attach();
        drop(rig.inputs.join(&rig.container));
        first.write_all(b"x").await.unwrap();
        drop(rig.inputs.join(&ContainerId::from_random([5; 32])));
        assert_eq!(lock(&rig.inputs.0).len(), 2);
        drop(rig.inputs.join(&rig.container));
        assert_eq!(lock(&rig.inputs.0).len(), 1, "others are forgotten");
    }
}
