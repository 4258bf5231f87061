//! The bucket as a program elsewhere sees it, for putting files there and for looking whether they have come.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use berth_store::{Precondition, Store, StoreConfig};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::runtime::Runtime;

use super::world;

/// Requests at once when many objects are put.
const AT_ONCE: usize = 32;

/// Where a bucket is.
#[derive(Debug, Clone)]
pub struct Keys {
    pub endpoint: String,
    pub region: String,
    pub bucket: String,
    pub access_key: String,
    pub secret_key: String,
}

/// A client of one bucket.
pub struct Bucket {
    runtime: Runtime,
    store: Store,
}

impl Bucket {
    pub fn connect(keys: &Keys) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let config = StoreConfig {
            endpoint: Some(keys.endpoint.clone()),
            region: keys.region.clone(),
            bucket: keys.bucket.clone(),
            access_key: keys.access_key.clone(),
            secret_key: keys.secret_key.clone(),
            session_token: None,
            path_style: true,
            // Nobody listens to this client's feed.
            poll_interval: Duration::from_secs(86_400),
        };
        let store = runtime.block_on(Store::connect(config, None))?;
        Ok(Self { runtime, store })
    }

    pub fn put(&self, key: &str, body: Vec<u8>) -> Result<()> {
        let put = self.store.put(key, Bytes::from(body), Precondition::None);
        Ok(self.runtime.block_on(put).map(drop)?)
    }

    /// Whether the object is there with exactly this content.
    pub fn has(&self, key: &str, body: &[u8]) -> bool {
        self.runtime
            .block_on(self.store.get(key))
            .is_ok_and(|(_, found)| found == body)
    }

    /// The size of the object; none when there is none.
    pub fn size(&self, key: &str) -> Option<u64> {
        self.runtime
            .block_on(self.store.head(key))
            .ok()
            .flatten()
            .map(|info| info.size)
    }

    /// Keys and sizes.
    pub fn list(&self, prefix: &str) -> Result<BTreeMap<String, u64>> {
        let found = self.runtime.block_on(self.store.list(prefix))?;
        Ok(found.into_iter().map(|info| (info.key, info.size)).collect())
    }

    /// Puts all of them, many at once.
    pub fn put_all(&self, files: impl Iterator<Item = (String, Vec<u8>)>) -> Result<()> {
        self.runtime.block_on(async {
            let puts = futures::stream::iter(files.map(|(key, body)| async move {
                world::go_on()?;
                self.store.put(&key, Bytes::from(body), Precondition::None).await?;
                anyhow::Ok(())
            }));
            puts.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await
        })?;
        Ok(())
    }

    /// Waits until `count` objects of `size` bytes are below `prefix`; how many there are in the end.
    pub fn wait_for(&self, prefix: &str, count: usize, size: u64, limit: Duration) -> Result<usize> {
        let since = Instant::now();
        loop {
            let there = self.list(prefix)?.values().filter(|found| **found == size).count();
            if there >= count || since.elapsed() > limit {
                return Ok(there);
            }
            world::go_on()?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
