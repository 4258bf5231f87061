//! Accepting connections and handing each to pingora's HTTP/1.1 or HTTP/2 session.
//!
//! Which of the two is told by the first bytes, looked at without taking them. (Pingora can do this itself, but waits for
//! 24 bytes before it decides, which a short HTTP/1.0 request never sends.)

use std::io;
use std::net::TcpListener as StdListener;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pingora::apps::{HttpServerOptions, ServerApp};
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::VirtualSocketStream;
use pingora::protocols::{GetSocketDigest, SocketDigest};
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::apps::Apps;
use crate::client_socket::{CONNECTION, ClientSocket, Connection};
use crate::config::EdgeConfig;
use crate::counters::{Counters, Open};
use crate::proxy::{EdgeProxy, Shared};

/// What a client says first when it speaks HTTP/2 without TLS.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long the rest of the preface may take after its first bytes.
const PREFACE_PATIENCE: Duration = Duration::from_secs(1);

/// Attempts to reach an app for one request; time ends them first (see `connect_retry`).
const MAX_ATTEMPTS: usize = 64;

/// Idle connections to apps kept open, a thread.
const POOL_SIZE: usize = 256;

/// All that a connection's task needs.
struct Server {
    h1: Arc<HttpProxy<EdgeProxy>>,
    h2: Arc<HttpProxy<EdgeProxy>>,
    shutdown: watch::Receiver<bool>,
    header_timeout: Duration,
    counters: Arc<Counters>,
}

/// Serves until told to stop, then drains.
pub(crate) async fn serve(
    config: EdgeConfig,
    threads: usize,
    listeners: Vec<StdListener>,
    apps: Arc<dyn Apps>,
    counters: Arc<Counters>,
    stopped: oneshot::Receiver<Duration>,
) {
    let shared = Arc::new(Shared::new(&config, apps, Arc::clone(&counters)));
    let (shut, shutdown) = watch::channel(false);
    let server = Arc::new(Server {
        h1: Arc::new(proxy(&shared, threads, false)),
        h2: Arc::new(proxy(&shared, threads, true)),
        shutdown,
        header_timeout: config.header_timeout,
        counters: Arc::clone(&counters),
    });
    let permits = Arc::new(Semaphore::new(config.max_connections));
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|listener| tokio::spawn(accept(listener, Arc::clone(&server), Arc::clone(&permits))))
        .collect();
    // An edge whose handle is gone ends at once.
    let drain = stopped.await.unwrap_or_default();
    for task in accepting {
        task.abort();
        let _ = task.await;
    }
    shared.drain();
    let _ = shut.send(true);
    server.h1.cleanup().await;
    server.h2.cleanup().await;
    drained(&counters, drain).await;
}

/// Pingora's proxy, without its server.
fn proxy(shared: &Arc<Shared>, threads: usize, h2c: bool) -> HttpProxy<EdgeProxy> {
    let conf = ServerConf {
        threads,
        max_retries: MAX_ATTEMPTS,
        upstream_keepalive_pool_size: POOL_SIZE,
        // Apps are reached without TLS. Without this, pingora would read the system's certificates, and panic on a bad one.
        ca_file: Some("/dev/null".to_owned()),
        ..ServerConf::default()
    };
    let mut proxy = HttpProxy::new(EdgeProxy::new(Arc::clone(shared)), Arc::new(conf));
    let mut options = HttpServerOptions::default();
    options.h2c = h2c;
    options.h2_idle_timeout = Some(Duration::from_secs(300));
    proxy.server_options = Some(options);
    proxy.handle_init_modules();
    proxy
}

async fn accept(listener: StdListener, server: Arc<Server>, permits: Arc<Semaphore>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot watch a listening socket");
            return;
        }
    };
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                let server = Arc::clone(&server);
                let connection = Connection::new(tcp, peer);
                tokio::spawn(async move {
                    server.connection(connection).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: what is running will give some back.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

impl Server {
    async fn connection(&self, connection: Arc<Connection>) {
        Counters::add(&self.counters.connections, 1);
        let _open = Open::new(&self.counters, |counters| &counters.open_connections);
        let mut shutdown = self.shutdown.clone();
        let proxy = tokio::select! {
            begun = timeout(self.header_timeout, speaks_h2(connection.tcp())) => match begun {
                Ok(Ok(true)) => &self.h2,
                Ok(Ok(false)) => &self.h1,
                // Gone, or silent: there is nobody to answer.
                Ok(Err(_)) | Err(_) => return,
            },
            _ = shutdown.wait_for(|shut| *shut) => return,
        };
        let digest = SocketDigest::from_raw_fd(connection.tcp().as_raw_fd());
        // Empty at this point, so setting it cannot fail.
        let _ = digest.peer_addr.set(Some(connection.peer().into()));
        let socket = ClientSocket::new(Arc::clone(&connection), self.header_timeout);
        let mut stream = Stream::from(VirtualSocketStream::new(Box::new(socket)));
        stream.set_socket_digest(digest);
        CONNECTION
            .scope(connection, proxy.process_new(Box::new(stream), &self.shutdown))
            .await;
    }
}

/// Does the client begin with the preface of HTTP/2? Leaves all bytes where they are.
async fn speaks_h2(tcp: &TcpStream) -> io::Result<bool> {
    let mut begun: Option<Instant> = None;
    let mut bytes = [0_u8; H2_PREFACE.len()];
    loop {
        let seen = tcp.peek(&mut bytes).await?;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if bytes[..seen] != H2_PREFACE[..seen] {
            return Ok(false);
        }
        if seen == H2_PREFACE.len() {
            return Ok(true);
        }
        // `PRI` so far: rare enough to be asked again and again.
        if begun.get_or_insert_with(Instant::now).elapsed() > PREFACE_PATIENCE {
            return Ok(false);
        }
        sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until no connection is left, for at most `drain`.
async fn drained(counters: &Counters, drain: Duration) {
    let deadline = Instant::now() + drain;
    while counters.open_connections.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
    let left = counters.open_connections.load(Ordering::Relaxed);
    if left > 0 {
        tracing::info!(connections = left, "edge cuts what did not end in time");
    }
}
