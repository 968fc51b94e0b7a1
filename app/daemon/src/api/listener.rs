//! Accepting connections: who comes, how many at a time, and for how long they may be silent.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};

/// Connections at a time.
pub(crate) const CONNECTIONS: usize = 64;

/// Those of them that root alone may use, so that nobody can lock the operator out.
const FOR_ROOT: usize = 16;

/// A connection on which nothing moves for so long is closed. Longer than the longest wait for events.
const SILENCE: Duration = Duration::from_secs(60);

/// Who asks, by SO_PEERCRED (unix(7)): the user at the moment of connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) uid: u32,
}

/// The API's socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    all: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Listener {
    pub(crate) fn new(socket: std::os::unix::net::UnixListener) -> io::Result<Self> {
        Ok(Self {
            socket: UnixListener::from_std(socket)?,
            all: Arc::new(Semaphore::new(CONNECTIONS)),
            others: Arc::new(Semaphore::new(CONNECTIONS - FOR_ROOT)),
        })
    }

    /// A place for that user, if one is free.
    fn admit(&self, uid: u32) -> Option<Permits> {
        let other = if uid == 0 { None } else { Some(Arc::clone(&self.others).try_acquire_owned().ok()?) };
        let all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some(Permits { _all: all, _other: other })
    }
}

#[derive(Debug)]
struct Permits {
    _all: OwnedSemaphorePermit,
    _other: Option<OwnedSemaphorePermit>,
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = Client;

    async fn accept(&mut self) -> (Connection, Client) {
        loop {
            let stream = match self.socket.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: some will be given back.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(cred) = stream.peer_cred() else { continue };
            let client = Client { uid: cred.uid() };
            match self.admit(client.uid) {
                Some(permits) => return (Connection::new(stream, permits), client),
                None => tracing::debug!(uid = client.uid, "too many connections; one is closed unread"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Client> {
        Ok(Client { uid: rustix::process::geteuid().as_raw() })
    }
}

impl Connected<IncomingStream<'_, Listener>> for Client {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        *stream.remote_addr()
    }
}

/// A connection that keeps its place until it is dropped, and fails after too long a silence.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    silence: Pin<Box<Sleep>>,
    _permits: Permits,
}

impl Connection {
    fn new(stream: UnixStream, permits: Permits) -> Self {
        Self { stream, silence: Box::pin(sleep(SILENCE)), _permits: permits }
    }

    /// Bytes were moved, or the wait goes on until it is too long.
    fn note<T>(&mut self, cx: &mut Context<'_>, moved: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match moved {
            Poll::Ready(result) => {
                self.silence.as_mut().reset(Instant::now() + SILENCE);
                Poll::Ready(result)
            }
            Poll::Pending if self.silence.as_mut().poll(cx).is_ready() => {
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.note(cx, moved)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(cx, moved)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
