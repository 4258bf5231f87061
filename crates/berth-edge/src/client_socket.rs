//! The client's side of a connection: the socket as pingora sees it, and what else is known of it.
//!
//! Pingora reads and writes a [`ClientSocket`]. Beside it lives a [`Connection`], shared, for what pingora does not offer:
//!
//! * the end of a request's header must come within a time from its first byte on, however slowly the bytes drip
//!   (pingora only limits the silence between two of them);
//! * while a request is held for an app that starts, nobody reads the socket, because the body must stay unread. A copy of
//!   the descriptor then tells when the client has left ([`Connection::left`]), without touching a byte.
//!
//! Small writes are collected until the flush, so that a short answer's header and body are one packet.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// Writes up to this size are collected until the flush.
const COLLECT: usize = 16 * 1024;

/// No byte of the next request has come.
const IDLE: u8 = 0;
/// Some of a request's header has come.
const IN_HEADER: u8 = 1;
/// The header is complete.
const IN_REQUEST: u8 = 2;

/// What is known of a client's connection.
pub(crate) struct Connection {
    tcp: TcpStream,
    peer: SocketAddr,
    phase: AtomicU8,
}

tokio::task_local! {
    /// The connection that the running task serves. Streams of HTTP/2 run in tasks of their own, without it.
    pub(crate) static CONNECTION: Arc<Connection>;
}

impl Connection {
    pub(crate) fn new(tcp: TcpStream, peer: SocketAddr) -> Arc<Self> {
        // Neither is worth losing a connection for.
        let _ = tcp.set_nodelay(true);
        let _ = setsockopt(&tcp, sockopt::KeepAlive, &true);
        let _ = setsockopt(&tcp, sockopt::TcpKeepIdle, &60);
        let _ = setsockopt(&tcp, sockopt::TcpKeepInterval, &20);
        Arc::new(Self {
            tcp,
            peer,
            phase: AtomicU8::new(IDLE),
        })
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// A request's header is complete.
    pub(crate) fn header_done(&self) {
        self.phase.store(IN_REQUEST, Ordering::Relaxed);
    }

    /// The request has ended; another one may come.
    pub(crate) fn request_done(&self) {
        self.phase.store(IDLE, Ordering::Relaxed);
    }

    /// Resolves when the client has closed its end (or the connection broke). Reads nothing.
    ///
    /// A client that only closes its sending half counts as having left, as everywhere in the edge: the two look alike.
    ///
    /// # Errors
    /// When the descriptor cannot be copied; nothing is known then.
    pub(crate) async fn left(&self) -> io::Result<()> {
        let copy = std::net::TcpStream::from(self.tcp.as_fd().try_clone_to_owned()?);
        let copy = TcpStream::from_std(copy)?;
        loop {
            if copy.ready(Interest::READABLE).await?.is_read_closed() {
                return Ok(());
            }
            // Unread bytes of the body: forget that they are there and wait for the next event.
            let _ = copy.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
    }
}

/// The socket that pingora reads and writes.
pub(crate) struct ClientSocket {
    connection: Arc<Connection>,
    collected: BytesMut,
    header_timeout: Duration,
    header_deadline: Option<Pin<Box<Sleep>>>,
}

impl ClientSocket {
    pub(crate) fn new(connection: Arc<Connection>, header_timeout: Duration) -> Self {
        Self {
            connection,
            collected: BytesMut::new(),
            header_timeout,
            header_deadline: None,
        }
    }

    /// Is a header on its way for too long?
    fn poll_header_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.connection.phase.load(Ordering::Relaxed) != IN_HEADER {
            self.header_deadline = None;
            return Poll::Pending;
        }
        let deadline = Instant::now() + self.header_timeout;
        let timeout = self.header_timeout;
        self.header_deadline
            .get_or_insert_with(|| {
                tracing::trace!(?deadline, "header begun");
                Box::pin(sleep(timeout))
            })
            .as_mut()
            .poll(cx)
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.collected.is_empty() {
            let written = ready!(poll_send(&self.connection.tcp, cx, &self.collected))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.collected.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

fn poll_send(tcp: &TcpStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        match tcp.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.poll_header_deadline(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            ready!(self.connection.tcp.poll_read_ready(cx))?;
            match self.connection.tcp.try_read(buf.initialize_unfilled()) {
                Ok(read) => {
                    buf.advance(read);
                    let _ =
                        self.connection
                            .phase
                            .compare_exchange(IDLE, IN_HEADER, Ordering::Relaxed, Ordering::Relaxed);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.collected.len() + bytes.len() <= COLLECT {
            self.collected.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_write_out(cx))?;
        poll_send(&self.connection.tcp, cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_out(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(cx))?;
        match shutdown(self.connection.tcp.as_raw_fd(), Shutdown::Write) {
            Ok(()) | Err(nix::errno::Errno::ENOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl VirtualSocket for ClientSocket {
    fn set_socket_option(&self, _option: VirtualSockOpt) -> io::Result<()> {
        // No delay and keep-alive are set from the start.
        Ok(())
    }
}

impl fmt::Debug for ClientSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {}", self.connection.peer)
    }
}
