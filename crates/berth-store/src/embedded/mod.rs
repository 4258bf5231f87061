//! The embedded S3 server: real S3 on a local address, kept in one folder, without set-up.
//!
//! ```text
//!   TCP ──▶ hyper ──▶ s3s (signatures, XML) ──▶ service ──reads──▶ index (memory), bodies (redb row or file)
//!                                                 └─orders─▶ writer thread ──one fsync a batch──▶ redb
//!                                                                └─after the commit─▶ index, change feed, answers
//! ```
//!
//! An answer to a write is sent when it is durable: a `kill -9` or a power cut at any moment loses nothing that was
//! answered. One process owns the folder; a second one is refused by the database's lock.

mod convert;
mod disk;
mod index;
mod listing;
mod multipart;
mod receive;
mod record;
mod send;
mod service;
mod stage;
mod writer;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use parking_lot::RwLock;
use s3s::auth::{S3Auth, SecretKey};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Result, s3_error};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::service::Service;
use self::writer::{Order, Shared};
use crate::Change;

/// Changes that a slow listener may be behind before it has to list anew.
const FEED: usize = 16 * 1024;
/// How long requests under way may take to end at a shutdown.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause after a failed accept (no file descriptors left), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Uploads in parts that nobody completed or aborted for this long are aborted at start.
const UPLOAD_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Where the embedded server listens and keeps its data.
#[derive(Clone)]
pub struct EmbeddedConfig {
    /// The address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The folder of the database and the blobs; made when it is missing.
    pub data_dir: PathBuf,
    /// The public half of the one key pair.
    pub access_key: String,
    /// The secret half of the one key pair.
    pub secret_key: String,
    /// The bucket that is made when it is missing and whose changes are fed.
    pub bucket: String,
    /// The most memory for pages of the database, in bytes; what it has beside is about 80 bytes an object.
    pub cache: u64,
}

impl EmbeddedConfig {
    /// Enough for the inner pages of a large database and a batch of writes; the kernel has the rest in its own cache.
    pub const CACHE: u64 = 8 << 20;
}

/// Why the embedded server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The address is taken, or not this host's.
    #[error("the embedded S3 server cannot listen on {address}; stop what uses it, or choose another address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Another process has the data folder open.
    #[error("{path} is in use by another process; only one may serve it", path = path.display())]
    InUse {
        /// The database's file.
        path: PathBuf,
    },
    /// The database cannot be opened or read.
    #[error("cannot open the embedded S3 server's database {path}", path = path.display())]
    Database {
        /// The database's file.
        path: PathBuf,
        /// The database's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The data folder cannot be made or read.
    #[error("cannot use the embedded S3 server's folder {path}", path = path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The bucket cannot be made.
    #[error("the embedded S3 server cannot make bucket {bucket}: {reason}")]
    Bucket {
        /// Its name.
        bucket: String,
        /// The server's words.
        reason: String,
    },
}

/// A running embedded server. Dropped, it stops at once; [`EmbeddedServer::shutdown`] lets requests end.
pub struct EmbeddedServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    /// Ends the listener when the server is dropped without a shutdown.
    _stop_on_drop: DropGuard,
    listener: JoinHandle<()>,
    writer: std::thread::JoinHandle<()>,
}

impl EmbeddedServer {
    /// Opens the data folder, makes the bucket and listens. When it returns, requests are served.
    ///
    /// # Errors
    /// The address is taken, the folder is in use or cannot be used; each error names it.
    pub async fn start(cfg: EmbeddedConfig) -> Result<Self, EmbeddedError> {
        // The port first: a taken one is found out before anything is touched.
        let bound = TcpListener::bind(cfg.listen).await;
        let listener = bound.map_err(|source| EmbeddedError::Listen {
            address: cfg.listen,
            source,
        })?;
        let local = listener.local_addr();
        let address = local.map_err(|source| EmbeddedError::Listen {
            address: cfg.listen,
            source,
        })?;

        let (dir, bucket, cache) = (cfg.data_dir.clone(), cfg.bucket.clone(), cfg.cache);
        let opened = tokio::task::spawn_blocking(move || open(&dir, bucket, cache)).await;
        let shared = match opened {
            Ok(shared) => Arc::new(shared?),
            Err(panic) => {
                let source = io::Error::other(panic);
                return Err(EmbeddedError::Folder {
                    path: cfg.data_dir,
                    source,
                });
            }
        };
        let (orders, queue) = mpsc::channel(service::QUEUE);
        let writer = spawn_writer(&shared, queue).map_err(|source| EmbeddedError::Folder {
            path: cfg.data_dir.clone(),
            source,
        })?;
        let service = Service {
            shared: Arc::clone(&shared),
            orders,
        };
        prepare(&service, &cfg.bucket).await?;

        let mut builder = S3ServiceBuilder::new(service);
        builder.set_auth(OneKey {
            access: cfg.access_key,
            secret: SecretKey::from(cfg.secret_key),
        });
        let stop = CancellationToken::new();
        let listener = tokio::spawn(accept(listener, builder.build(), stop.clone()));
        Ok(Self {
            address,
            shared,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
            listener,
            writer,
        })
    }

    /// The address it listens on, with the port that was taken.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The changes of the configured bucket from now on, each sent when it is durable and before its answer.
    ///
    /// A receiver that lagged has missed some and must list anew.
    #[must_use]
    pub fn feed(&self) -> broadcast::Receiver<Change> {
        self.shared.feed.subscribe()
    }

    /// Stops listening, lets requests under way end (10 s at most), and closes the database.
    pub async fn shutdown(self) {
        let Self {
            shared,
            stop,
            listener,
            writer,
            ..
        } = self;
        stop.cancel();
        // The listener's task holds the last sender of orders; with it the writer ends.
        let _ = listener.await;
        let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        *shared.db.write() = None;
    }
}

fn open(dir: &Path, fed_bucket: String, cache: u64) -> Result<Shared, EmbeddedError> {
    let folder = |source| EmbeddedError::Folder {
        path: dir.to_owned(),
        source,
    };
    std::fs::create_dir_all(dir).map_err(folder)?;
    let db_path = dir.join("berth.redb");
    let failed = |e: disk::DbError| match e.is_locked() {
        true => EmbeddedError::InUse { path: db_path.clone() },
        false => EmbeddedError::Database {
            path: db_path.clone(),
            source: Box::new(e),
        },
    };
    let cache = usize::try_from(cache).unwrap_or(usize::MAX);
    let mut db = disk::open_database(&db_path, cache).map_err(failed)?;
    if let Err(error) = disk::compact(&mut db, &db_path) {
        // On a full disk, say. The file just stays as large as it is.
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "cannot compact the database; going on with it"
        );
        drop(db);
        db = disk::open_database(&db_path, cache).map_err(failed)?;
    }
    let (index, last_body) = disk::load(&db).map_err(failed)?;
    let blobs = disk::Blobs::open(dir.join("blobs"), &index, last_body).map_err(folder)?;
    // The names of the database and the folder of blobs must be as durable as what is in them.
    std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(folder)?;
    Ok(Shared {
        index: RwLock::new(index),
        db: RwLock::new(Some(db)),
        blobs: Arc::new(blobs),
        feed: broadcast::channel(FEED).0,
        fed_bucket,
        db_path,
        cache,
    })
}

fn spawn_writer(
    shared: &Arc<Shared>,
    queue: mpsc::Receiver<writer::Command>,
) -> io::Result<std::thread::JoinHandle<()>> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name("s3-writer".to_owned())
        .spawn(move || writer::run(&shared, queue))
}

/// Makes the bucket and aborts uploads that were given up long ago.
async fn prepare(service: &Service, bucket: &str) -> Result<(), EmbeddedError> {
    let failed = |e: s3s::S3Error| EmbeddedError::Bucket {
        bucket: bucket.to_owned(),
        reason: e.to_string(),
    };
    if service.need_bucket(bucket).is_err() {
        let order = Order::CreateBucket {
            name: bucket.to_owned(),
            created: record::now_secs(),
        };
        service.order(order).await.map_err(failed)?;
    }
    let before = record::now_secs().saturating_sub(UPLOAD_LIFE.as_secs());
    let old: Vec<String> = {
        let index = service.shared.index.read();
        index
            .uploads
            .iter()
            .filter(|(_, u)| u.started < before)
            .map(|(id, _)| id.clone())
            .collect()
    };
    for id in old {
        service.order(Order::AbortUpload { id }).await.map_err(failed)?;
    }
    Ok(())
}

/// Accepts until `stop`, then waits for the requests under way.
async fn accept(listener: TcpListener, service: S3Service, stop: CancellationToken) {
    let open = GracefulShutdown::new();
    let cut = CancellationToken::new();
    let _cut_on_drop = cut.clone().drop_guard();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => serve(stream, &service, &open, cut.clone()),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, open.shutdown()).await.is_err() {
        tracing::warn!("requests to the embedded S3 server were cut off at its shutdown");
    }
}

fn serve(stream: TcpStream, service: &S3Service, open: &GracefulShutdown, cut: CancellationToken) {
    // Without it the head and the body of a small answer wait 40 ms for each other.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let connection = open.watch(http.serve_connection(TokioIo::new(stream), service.clone()));
    tokio::spawn(async move {
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!(%error, "a connection to the embedded S3 server broke");
            },
            () = cut.cancelled() => {}
        }
    });
}

/// The one key pair that may do everything.
struct OneKey {
    access: String,
    secret: SecretKey,
}

#[async_trait::async_trait]
impl S3Auth for OneKey {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == self.access {
            Ok(self.secret.clone())
        } else {
            Err(s3_error!(
                InvalidAccessKeyId,
                "The embedded S3 server does not know this access key."
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_writer_that_panics_refuses_one_batch_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let shared = Arc::new(open(dir.path(), "b".to_owned(), EmbeddedConfig::CACHE).unwrap());
        let (orders, queue) = mpsc::channel(service::QUEUE);
        let writer = spawn_writer(&shared, queue).unwrap();
        let service = Service { shared, orders };
        prepare(&service, "b").await.unwrap();
        for name in ["c", "d"] {
            let refused = service.order(Order::Panic).await.unwrap_err();
            assert_eq!(refused.status_code(), Some(http::StatusCode::SERVICE_UNAVAILABLE));
            let (name, created) = (name.to_owned(), 1);
            service.order(Order::CreateBucket { name, created }).await.unwrap();
        }
        let buckets: Vec<String> = service.shared.index.read().buckets.keys().cloned().collect();
        assert_eq!(buckets, ["b", "c", "d"]);
        drop(service);
        tokio::task::spawn_blocking(move || writer.join().unwrap())
            .await
            .unwrap();
    }
}
