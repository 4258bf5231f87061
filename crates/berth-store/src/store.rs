//! The S3 client.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::broadcast;

use crate::{Change, ObjectInfo, Precondition, Result};

/// Where the bucket is and how to get at it.
#[derive(Clone)]
pub struct StoreConfig {
    /// The server's URL; none means AWS.
    pub endpoint: Option<String>,
    /// The region's name; the embedded server takes any.
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
    /// How often a server without a change feed is listed.
    pub poll_interval: Duration,
}

/// The client of one bucket. Clones share connections and the change feed.
#[derive(Clone)]
pub struct Store {
    _p: (),
}

#[allow(missing_docs, clippy::unused_async, clippy::unimplemented)]
impl Store {
    pub async fn connect(
        _cfg: StoreConfig,
        _feed: Option<broadcast::Receiver<Change>>,
    ) -> Result<Store> {
        unimplemented!()
    }
    pub async fn list(&self, _prefix: &str) -> Result<Vec<ObjectInfo>> {
        unimplemented!()
    }
    pub async fn get(&self, _key: &str) -> Result<(ObjectInfo, Bytes)> {
        unimplemented!()
    }
    pub async fn get_range(&self, _key: &str, _range: Range<u64>) -> Result<Bytes> {
        unimplemented!()
    }
    pub async fn head(&self, _key: &str) -> Result<Option<ObjectInfo>> {
        unimplemented!()
    }
    pub async fn put(&self, _key: &str, _body: Bytes, _pre: Precondition) -> Result<ObjectInfo> {
        unimplemented!()
    }
    pub async fn put_file(
        &self,
        _key: &str,
        _path: &Path,
        _pre: Precondition,
    ) -> Result<ObjectInfo> {
        unimplemented!()
    }
    pub async fn copy(&self, _from: &str, _to: &str) -> Result<ObjectInfo> {
        unimplemented!()
    }
    pub async fn delete(&self, _key: &str) -> Result<()> {
        unimplemented!()
    }
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        unimplemented!()
    }
    pub fn bucket(&self) -> &str {
        unimplemented!()
    }
}
