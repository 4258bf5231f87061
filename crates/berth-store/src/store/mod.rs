//! The S3 client of one bucket, for the embedded server and for any other.
//!
//! Every operation may be repeated: what failed on the way is sent again (three tries in all, with short pauses), and a
//! conditional PUT that meets its own earlier try is recognised (`upload.rs`). Longer outages are the caller's to bridge;
//! [`crate::StoreError::is_unavailable`] tells them from refusals.
//!
//! Connections are kept and reused, one for each request under way; there is no limit on how many run at once.

mod abilities;
mod change;
mod connect;
mod events;
mod examine;
mod failure;
mod hints;
mod multipart;
mod read;
mod sign;
mod upload;
mod watch;
mod wire;

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::DateTime;
use bytes::Bytes;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::abilities::Abilities;
pub use self::examine::Examination;
pub use self::hints::{HintCounts, Hints};
pub use self::multipart::Multipart;
use self::upload::LocalFile;
use self::watch::Changes;
use self::wire::Wire;
use crate::{Change, ObjectInfo, Precondition, Result};

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one try may take, body and all; a part has 8 MiB.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(120);
/// Tries of one request.
const ATTEMPTS: u32 = 3;
/// The pause before the second try; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The region when none is named: what S3 servers other than AWS take for granted.
const DEFAULT_REGION: &str = "us-east-1";
/// The user metadata that holds a save's token.
const TOKEN: &str = "berth-save";
/// The same as a header.
const TOKEN_HEADER: &str = "x-amz-meta-berth-save";
/// What may stand in `x-amz-copy-source` as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/');

/// Where the bucket is and how to get at it.
#[derive(Clone)]
pub struct StoreConfig {
    /// The server's URL; none means AWS.
    pub endpoint: Option<String>,
    /// The region's name; empty means `us-east-1`. The embedded server takes any.
    pub region: String,
    /// The bucket's name.
    pub bucket: String,
    /// The public half of the key pair.
    pub access_key: String,
    /// The secret half of the key pair.
    pub secret_key: String,
    /// For temporary AWS keys.
    pub session_token: Option<String>,
    /// `http://host/bucket/key` rather than `http://bucket.host/key`.
    pub path_style: bool,
    /// The longest time between two listings of a server without a change feed.
    pub poll_interval: Duration,
}

/// How changes made elsewhere come to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Feed {
    /// The embedded server feeds them.
    Embedded,
    /// The server's event stream tells of them at once; LIST only sees to it that none is missed.
    Events,
    /// By LIST.
    List,
}

/// What a client of [`Store::open`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading alone.
    Read,
    /// Writing too.
    Write,
}

/// The client of one bucket. Clones share connections and the change feed.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("endpoint", &self.inner.endpoint)
            .field("bucket", &self.inner.bucket)
            .finish()
    }
}

struct Inner {
    /// For what is not sent by the thousand.
    client: Client,
    wire: Wire,
    bucket: String,
    /// The key of hints is derived from it.
    secret_key: String,
    /// For errors.
    endpoint: String,
    changes: Changes,
    abilities: Abilities,
    /// Why requests do not get through at this moment.
    trouble: Mutex<Option<&'static str>>,
    /// Ends what watches the bucket.
    _stop: DropGuard,
}

impl Store {
    /// Connects, makes the bucket if it is missing, and starts the change feed: `feed` is the embedded server's; without
    /// one the server's event stream is followed if it has one, and the bucket is listed, every `poll_interval` at the latest.
    ///
    /// # Errors
    /// [`crate::StoreError::Unreachable`], [`crate::StoreError::WrongKey`], [`crate::StoreError::Forbidden`], [`crate::StoreError::NoSuchBucket`]:
    /// each says what to do.
    pub async fn connect(cfg: StoreConfig, feed: Option<broadcast::Receiver<Change>>) -> Result<Store> {
        let embedded = feed.is_some();
        let changes = feed.map_or_else(Changes::watched, Changes::fed);
        let stop = CancellationToken::new();
        let mut inner = Inner::new(&cfg, changes, stop.clone())?;
        inner.ensure_bucket(&cfg.region).await?;
        if !embedded {
            inner.abilities = inner.probe().await?;
            if !inner.abilities.conditional_put {
                tracing::warn!(
                    endpoint = inner.endpoint,
                    "the S3 server ignores preconditions of writes"
                );
            }
        }
        if let Some(watched) = inner.changes.watch() {
            inner.each_page("", |page| watched.prime(&page)).await?;
        }
        let inner = Arc::new(inner);
        watch::start(&inner, &cfg, &stop);
        Ok(Store { inner })
    }

    /// A client for one piece of work: without a change feed, and with nothing in the background. `Read` sends no request
    /// here and changes nothing, ever; `Write` makes the bucket if it is missing and finds out the server's abilities.
    ///
    /// # Errors
    /// As [`Store::connect`].
    pub async fn open(cfg: StoreConfig, access: Access) -> Result<Store> {
        let mut inner = Inner::new(&cfg, Changes::none(), CancellationToken::new())?;
        if access == Access::Write {
            inner.ensure_bucket(&cfg.region).await?;
            inner.abilities = inner.probe().await?;
        }
        Ok(Store { inner: Arc::new(inner) })
    }

    /// All objects whose key starts with `prefix`, in key order.
    ///
    /// # Errors
    /// As any request; see [`crate::StoreError`].
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        self.inner.list(prefix).await
    }

    /// Gives all objects to `take`, a page at a time, so that a large bucket is never in memory as a list. Quick where there are
    /// many, because the folders at the top are listed side by side: each folder comes in key order, the folders in any.
    ///
    /// Not one moment's state: what is moved from one folder to another meanwhile may be in both or in neither, and
    /// [`Store::changes`] tells of it.
    ///
    /// # Errors
    /// As any request; see [`crate::StoreError`]. What was given before says nothing then.
    pub async fn each_page(&self, take: impl FnMut(Vec<ObjectInfo>) + Send) -> Result<()> {
        self.inner.each_page_of_all(take).await
    }

    /// The whole object, in memory.
    ///
    /// # Errors
    /// [`crate::StoreError::NoSuchKey`], and as any request.
    pub async fn get(&self, key: &str) -> Result<(ObjectInfo, Bytes)> {
        self.inner.get(key, None, None).await
    }

    /// The bytes of `range` that the object has: fewer at its end, none after it.
    ///
    /// # Errors
    /// [`crate::StoreError::NoSuchKey`], and as any request.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        self.inner.get_range(key, None, range).await
    }

    /// The whole object if it still is the version `etag`, in one request.
    ///
    /// # Errors
    /// [`crate::StoreError::Conflict`] when it is another version, [`crate::StoreError::NoSuchKey`], and as any request.
    pub async fn get_if(&self, key: &str, etag: &str) -> Result<Bytes> {
        Ok(self.inner.get(key, Some(etag), None).await?.1)
    }

    /// The bytes of `range` that the version `etag` has: fewer at its end, none after it. One request.
    ///
    /// # Errors
    /// As [`Store::get_if`].
    pub async fn get_range_if(&self, key: &str, etag: &str, range: Range<u64>) -> Result<Bytes> {
        self.inner.get_range(key, Some(etag), range).await
    }

    /// The object's description; none when there is no such object.
    ///
    /// # Errors
    /// As any request; see [`crate::StoreError`].
    pub async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        self.inner.head(key).await
    }

    /// Stores `body`. When it returns, the server has acknowledged it.
    ///
    /// Dropped half-way, the object may or may not have been stored.
    ///
    /// # Errors
    /// [`crate::StoreError::Conflict`] when `pre` does not hold, and as any request.
    pub async fn put(&self, key: &str, body: Bytes, pre: Precondition) -> Result<ObjectInfo> {
        self.put_as(key, body, pre, None).await
    }

    /// [`Store::put`], with a token that [`Store::head_with_token`] gives back: by it a writer knows its own work.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub async fn put_as(&self, key: &str, body: Bytes, pre: Precondition, token: Option<&str>) -> Result<ObjectInfo> {
        let writing = self.inner.changes.writing(key);
        let info = self.inner.put(key, body, &pre, token).await?;
        if let Some(writing) = writing {
            writing.done(Change::Put(info.clone()));
        }
        Ok(info)
    }

    /// Stores a local file; above 16 MiB in parts, with at most 32 MiB of it in memory. `unchanged` is asked when all of
    /// it was read and before any of it shows: so a file that is written meanwhile never becomes half an object.
    ///
    /// # Errors
    /// [`crate::StoreError::LocalFile`] when it cannot be read, [`crate::StoreError::FileChanged`] when `unchanged` says no,
    /// [`crate::StoreError::Conflict`] when `pre` does not hold, and as any request.
    pub async fn put_file(
        &self,
        key: &str,
        path: &Path,
        pre: Precondition,
        token: Option<&str>,
        unchanged: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<ObjectInfo> {
        let file = LocalFile { path, unchanged };
        self.inner.put_file(key, file, pre, token).await
    }

    /// Begins an upload in parts, for content that is not all there yet. [`Multipart::complete`] makes it the object.
    ///
    /// # Errors
    /// As any request; see [`crate::StoreError`].
    pub async fn begin(&self, key: &str, token: Option<&str>) -> Result<Multipart> {
        Multipart::begin(&self.inner, key, token).await
    }

    /// Gives up an upload in parts that an earlier process began ([`Multipart::id`]).
    ///
    /// # Errors
    /// As any request; an upload that the server does not know is none.
    pub async fn give_up(&self, key: &str, id: &str) -> Result<()> {
        multipart::abort(&self.inner, key, id).await
    }

    /// Copies on the server, headers and all. `etag`: only if `from` still is that version.
    ///
    /// # Errors
    /// [`crate::StoreError::NoSuchKey`] for `from`, [`crate::StoreError::Conflict`] when it is another version, and as any request.
    pub async fn copy(&self, from: &str, etag: Option<&str>, to: &str) -> Result<ObjectInfo> {
        self.copy_if(from, etag, to, Precondition::None).await
    }

    /// [`Store::copy`], if `pre` holds for `to`. A destination that has the source's very bytes is no conflict.
    ///
    /// # Errors
    /// As [`Store::copy`]; [`crate::StoreError::Conflict`] names the key that was not as expected.
    pub async fn copy_if(&self, from: &str, etag: Option<&str>, to: &str, pre: Precondition) -> Result<ObjectInfo> {
        let writing = self.inner.changes.writing(to);
        let info = self.inner.copy(from, etag, to, &pre).await?;
        if let Some(writing) = writing {
            writing.done(Change::Put(info.clone()));
        }
        Ok(info)
    }

    /// Removes the object; it is no error when there is none.
    ///
    /// # Errors
    /// As any request; see [`crate::StoreError`].
    pub async fn delete(&self, key: &str) -> Result<()> {
        let writing = self.inner.changes.writing(key);
        self.inner.send_delete(key, None).await?;
        if let Some(writing) = writing {
            writing.done(Change::Deleted { key: key.to_owned() });
        }
        Ok(())
    }

    /// Removes the object if it still is the version `etag`; it is no error when there is none. On servers that do not
    /// look at the condition themselves a HEAD goes before: between the two others may write.
    ///
    /// # Errors
    /// [`crate::StoreError::Conflict`] when it is another version, and as any request.
    pub async fn delete_if(&self, key: &str, etag: &str) -> Result<()> {
        let writing = self.inner.changes.writing(key);
        self.inner.delete_if(key, etag).await?;
        if let Some(writing) = writing {
            writing.done(Change::Deleted { key: key.to_owned() });
        }
        Ok(())
    }

    /// The object's description and the token it was stored with, if any; none when there is no such object.
    ///
    /// # Errors
    /// As any request; see [`crate::StoreError`].
    pub async fn head_with_token(&self, key: &str) -> Result<Option<(ObjectInfo, Option<String>)>> {
        self.inner.head_with_token(key).await
    }

    /// All changes from now on, our own included (published before the write returns).
    ///
    /// A receiver that lagged has missed some and must list anew.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.inner.changes.subscribe()
    }

    /// Why saves do not get to S3 at this moment, in words; none when the last request got through.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.inner.trouble.lock().map(str::to_owned)
    }

    /// How changes made elsewhere come to be known at this moment.
    #[must_use]
    pub fn feed(&self) -> Feed {
        match self.inner.changes.watch() {
            None => Feed::Embedded,
            Some(watched) if watched.is_told() => Feed::Events,
            Some(_) => Feed::List,
        }
    }

    /// The bucket's name.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.inner.bucket
    }

    /// The server's URL, for people.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.inner.endpoint
    }

    /// Which conditions of writes the server checks itself.
    #[must_use]
    pub fn abilities(&self) -> Abilities {
        self.inner.abilities
    }

    /// Whether the server honours preconditions of writes. Where it does not, they are checked by a HEAD just before the
    /// PUT, and two hosts that write one key in the same instant may overwrite each other.
    #[must_use]
    pub fn has_conditional_writes(&self) -> bool {
        self.inner.abilities.conditional_put
    }
}

impl Inner {
    fn new(cfg: &StoreConfig, changes: Changes, stop: CancellationToken) -> Result<Self> {
        let region = if cfg.region.is_empty() {
            DEFAULT_REGION
        } else {
            &cfg.region
        };
        Ok(Self {
            client: connect::client(cfg, region)?,
            wire: Wire::new(cfg, region)?,
            bucket: cfg.bucket.clone(),
            secret_key: cfg.secret_key.clone(),
            endpoint: cfg.endpoint.clone().unwrap_or_else(|| "AWS S3".to_owned()),
            changes,
            abilities: Abilities::ALL,
            trouble: Mutex::new(None),
            _stop: stop.drop_guard(),
        })
    }
}

fn length(n: Option<i64>) -> u64 {
    n.and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
}

fn unquoted(etag: Option<&str>) -> String {
    etag.unwrap_or_default().trim_matches('"').to_owned()
}

fn time(t: Option<&DateTime>) -> SystemTime {
    t.and_then(|t| SystemTime::try_from(*t).ok()).unwrap_or(UNIX_EPOCH)
}

/// Now, to the second: what the server will say about an object just stored, but for the difference of the clocks.
fn now() -> SystemTime {
    let secs = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    UNIX_EPOCH + Duration::from_secs(secs)
}
