//! Connections to apps: sockets made inside the app's network namespace, and the one that keeps early tunnels alive.
//!
//! Pingora is given an [`AppConnect`] for each request; it asks the [`Upstream`] for a socket and connects it. The socket
//! stays in the namespace it was made in, so the address may be 127.0.0.1.
//!
//! [`TunnelSocket`] exists because of a race in pingora's proxy: on an upgrade request (WebSocket) whose 101 arrives before
//! the end of the request's empty body has been passed on, that end is taken for the end of the tunnel, which closes at
//! once. Apps on the same host are fast enough for this. The socket therefore shows no byte of the answer until the
//! request has been finished, which it recognises by the flushes: one after the header, one after the body.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::{Error, ErrorType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use crate::apps::Upstream;

/// Flushes after which a request has been sent whole: its header's and its body's.
const FLUSHES_OF_A_REQUEST: u8 = 2;

/// What the connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A request and its answer; may be kept open for more.
    Request,
    /// An upgrade request, which may become a tunnel.
    Tunnel,
}

/// Connects to one app.
pub(crate) struct AppConnect {
    pub(crate) upstream: Arc<dyn Upstream>,
    pub(crate) purpose: Purpose,
}

#[async_trait]
impl L4Connect for AppConnect {
    async fn connect(&self, _addr: &PeerAddr) -> pingora::Result<Stream> {
        let tcp = self.open().await.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
                io::ErrorKind::TimedOut => ErrorType::ConnectTimedout,
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => ErrorType::ConnectNoRoute,
                _ => ErrorType::ConnectError,
            };
            Error::because(kind, "connecting to the app", error)
        })?;
        Ok(match self.purpose {
            Purpose::Request => Stream::from(tcp),
            Purpose::Tunnel => Stream::from(VirtualSocketStream::new(Box::new(TunnelSocket::new(tcp)))),
        })
    }
}

impl AppConnect {
    async fn open(&self) -> io::Result<TcpStream> {
        let socket = std::net::TcpStream::from(self.upstream.socket().await?);
        let tcp = TcpSocket::from_std_stream(socket).connect(self.upstream.addr()).await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }
}

impl fmt::Debug for AppConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "app at {} (generation {})",
            self.upstream.addr(),
            self.upstream.generation()
        )
    }
}

/// A connection whose answers stay hidden until the request has been finished.
#[derive(Debug)]
struct TunnelSocket {
    tcp: TcpStream,
    flushes: u8,
    reader: Option<Waker>,
}

impl TunnelSocket {
    fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            flushes: 0,
            reader: None,
        }
    }
}

impl AsyncRead for TunnelSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.flushes < FLUSHES_OF_A_REQUEST {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for TunnelSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.tcp).poll_flush(cx);
        if flushed.is_ready() && self.flushes < FLUSHES_OF_A_REQUEST {
            self.flushes += 1;
            if self.flushes == FLUSHES_OF_A_REQUEST
                && let Some(reader) = self.reader.take()
            {
                reader.wake();
            }
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

impl VirtualSocket for TunnelSocket {
    fn set_socket_option(&self, _option: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}
