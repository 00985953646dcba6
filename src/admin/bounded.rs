//! A listener whose connections are few and end by themselves: whoever holds one open cannot hold memory or descriptors.
//! With a certificate they speak TLS.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::serve::Listener;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tokio_rustls::{Accept, server::TlsStream};

use super::tls::Certificate;

/// Probes, a Prometheus or two, and a person; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 32;
/// From accept to end; who wants more connects again.
const LIFETIME_MAX: Duration = Duration::from_secs(60);

/// Accepts at most `CONNECTIONS_MAX` at a time.
pub(super) struct Bounded {
    listener: TcpListener,
    free: Arc<Semaphore>,
    certificate: Option<Certificate>,
}

impl Bounded {
    pub(super) fn new(listener: TcpListener, certificate: Option<Certificate>) -> Self {
        Self { listener, free: Arc::new(Semaphore::new(CONNECTIONS_MAX)), certificate }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permit = self.free.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (socket, from) = Listener::accept(&mut self.listener).await;
        let mortal = Mortal { socket, end: Box::pin(sleep(LIFETIME_MAX)), _permit: permit };
        let connection = match &mut self.certificate {
            None => Connection::Plain(mortal),
            // The handshake goes on as the connection is read: here it would keep others from being accepted.
            Some(certificate) => Connection::Handshake(Box::new(certificate.acceptor().accept(mortal))),
        };
        (connection, from)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that reads nothing more after `LIFETIME_MAX`.
pub(super) struct Mortal {
    socket: TcpStream,
    end: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Mortal {
    fn alive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Mortal {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.alive(cx)?;
        Pin::new(&mut self.socket).poll_read(cx, into)
    }
}

impl AsyncWrite for Mortal {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.alive(cx)?;
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// An accepted connection, with or without TLS.
pub(super) enum Connection {
    /// HTTP as it is.
    Plain(Mortal),
    /// Nothing can be read or written yet.
    Handshake(Box<Accept<Mortal>>),
    /// HTTPS.
    Encrypted(Box<TlsStream<Mortal>>),
    /// The handshake failed; it must not be polled again.
    Failed,
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

impl Connection {
    /// What carries HTTP, once the handshake is done.
    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Pin<&mut dyn Stream>>> {
        if let Connection::Handshake(handshake) = self {
            let done = ready!(Pin::new(handshake).poll(cx));
            *self = Connection::Failed;
            *self = Connection::Encrypted(Box::new(done?));
        }
        Poll::Ready(Ok(match self {
            Connection::Plain(plain) => Pin::new(plain),
            Connection::Encrypted(encrypted) => Pin::new(encrypted.as_mut()),
            Connection::Handshake(_) | Connection::Failed => {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
        }))
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_stream(cx))?.poll_read(cx, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_stream(cx))?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_stream(cx))?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_stream(cx))?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_ends() {
        let mut listener = Bounded::new(TcpListener::bind("127.0.0.1:0").await.unwrap(), None);
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut accepted, _) = listener.accept().await;
        let error = accepted.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
