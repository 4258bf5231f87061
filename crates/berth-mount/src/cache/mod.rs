//! Contents that were read from S3 or just written to it, kept by ETag.
//!
//! ```text
//!   fetch ──▶ memory.rs   the newest chunks
//!          ──▶ disk.rs    packs of small bodies, files of large chunks (entry.rs: each with its id and checksums)
//!          ──▶ S3         one request a chunk, however many wait for it
//! ```
//! Content comes in chunks of [`CHUNK`] bytes; a small file is one chunk. The ETag is the key, so a cached chunk can never be
//! wrong, only useless: nothing has to be invalidated, and the disk's part outlives restarts. How much is kept is the
//! [`CacheMode`]'s to say, and [`crate::MountConfig::cache_max`] bounds the disk.

mod disk;
mod entry;
mod memory;

use std::{collections::HashMap, path::Path, sync::Arc};

use berth_store::{Store, StoreError};
use bytes::Bytes;
use parking_lot::Mutex;

use self::{disk::Disk, entry::Id, memory::Memory};
use crate::file::Base;

/// Size of a chunk. Files up to this are fetched whole when they are opened.
pub(crate) const CHUNK: u64 = 4 << 20;
/// Bytes of chunks kept in memory.
const MEMORY: u64 = 64 << 20;
/// The same in the modes that keep only what is open.
const LITTLE_MEMORY: u64 = 16 << 20;

/// How much of what was read or written stays on this host, in rclone's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Nothing on disk, nothing in memory but what is open; nothing is fetched before it is asked for.
    Off,
    /// As `off`, but the chunks of large files are on disk while the files are open.
    Minimal,
    /// What was written here stays.
    Writes,
    /// What was read stays too, and small files are fetched ahead.
    #[default]
    Full,
}

impl CacheMode {
    /// Whether content outlives the last descriptor.
    pub(crate) fn keeps(self) -> bool {
        matches!(self, Self::Writes | Self::Full)
    }
}

/// Why content could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// The object is another one now, or gone.
    #[error("the object {0} changed while it was read")]
    Changed(String),
    /// S3 did not give it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Written,
    Read,
    /// Nobody has asked for it yet.
    Ahead,
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Contents {
    mode: CacheMode,
    memory: Mutex<Memory>,
    disk: Option<Disk>,
    /// One fetch of a chunk at a time; the others wait and find it in the cache.
    fetching: Mutex<HashMap<Id, Arc<tokio::sync::Mutex<()>>>>,
}

impl Contents {
    /// Takes over the folder's contents, or clears it if this mode keeps none.
    pub(crate) fn open(cache_dir: &Path, mode: CacheMode, disk_max: u64) -> std::io::Result<Self> {
        let dir = cache_dir.join("contents");
        // Where contents were before they were packed.
        disk::clear(&cache_dir.join("chunks"))?;
        if !mode.keeps() {
            disk::clear(&dir)?;
        }
        let disk = match mode {
            CacheMode::Off => None,
            _ => Some(Disk::open(dir, disk_max)?),
        };
        let memory = if mode.keeps() { MEMORY } else { LITTLE_MEMORY };
        Ok(Self {
            mode,
            memory: Mutex::new(Memory::new(memory)),
            disk,
            fetching: Mutex::default(),
        })
    }

    /// The chunk, if it is in memory, or so small and on disk that reading it is no wait.
    pub(crate) fn at_hand(&self, base: &Base, chunk: u64) -> Option<Bytes> {
        let id = Id::of(base, chunk)?;
        let found = self.memory.lock().get(&id);
        found.or_else(|| self.disk.as_ref().filter(|disk| disk.is_small(&id))?.read(&id))
    }

    /// Whether the chunk can be had without S3.
    pub(crate) fn holds(&self, base: &Base, chunk: u64) -> bool {
        let Some(id) = Id::of(base, chunk) else { return false };
        self.memory.lock().holds(&id) || self.disk.as_ref().is_some_and(|disk| disk.holds(&id))
    }

    /// Gives so many bytes of the disk back. Blocks until it has.
    pub(crate) fn give_way(&self, bytes: u64) {
        if let Some(disk) = &self.disk {
            disk.give_way(bytes);
        }
    }

    /// Keeps a chunk that was written here.
    pub(crate) fn keep(&self, base: &Base, chunk: u64, bytes: Bytes) {
        self.put(base, chunk, bytes, Origin::Written);
    }

    /// `Origin::Ahead` goes to the disk alone.
    fn put(&self, base: &Base, chunk: u64, bytes: Bytes, origin: Origin) {
        let Some(id) = Id::of(base, chunk) else { return };
        let to_disk = match self.mode {
            CacheMode::Off => false,
            CacheMode::Minimal => base.size > CHUNK && origin != Origin::Written,
            CacheMode::Writes => origin == Origin::Written,
            CacheMode::Full => true,
        };
        if let Some(disk) = self.disk.as_ref().filter(|_| to_disk) {
            disk.keep(id, bytes.clone());
            if origin == Origin::Ahead {
                return;
            }
        }
        self.memory.lock().put(id, bytes);
    }

    /// Nobody has the file open any more.
    pub(crate) fn closed(&self, base: &Base) {
        if self.mode.keeps() {
            return;
        }
        for id in (0..base.size.div_ceil(CHUNK)).filter_map(|chunk| Id::of(base, chunk)) {
            self.memory.lock().remove(&id);
            if let Some(disk) = &self.disk {
                disk.forget(&id);
            }
        }
    }

    /// The chunk from memory, disk or S3.
    pub(crate) async fn fetch(self: &Arc<Self>, store: &Store, base: &Base, chunk: u64) -> Result<Bytes, FetchError> {
        self.fetch_as(Origin::Read, store, base, chunk).await
    }

    /// Fetches a chunk that nobody waits for: it need not be in memory.
    pub(crate) async fn fetch_ahead(self: &Arc<Self>, store: &Store, base: &Base) -> Result<(), FetchError> {
        self.fetch_as(Origin::Ahead, store, base, 0).await.map(drop)
    }

    async fn fetch_as(
        self: &Arc<Self>,
        origin: Origin,
        store: &Store,
        base: &Base,
        chunk: u64,
    ) -> Result<Bytes, FetchError> {
        if let Some(bytes) = self.at_hand(base, chunk) {
            return Ok(bytes);
        }
        let Some(id) = Id::of(base, chunk) else {
            return from_store(store, base, chunk).await;
        };
        let turn = self.fetching.lock().entry(id).or_default().clone();
        let _turn = turn.lock().await;
        let found = match self.at_hand(base, chunk) {
            Some(bytes) => Ok(bytes),
            None => match self.from_disk(id).await {
                Some(bytes) => {
                    self.memory.lock().put(id, bytes.clone());
                    Ok(bytes)
                }
                None => from_store(store, base, chunk).await.inspect(|bytes| {
                    self.put(base, chunk, bytes.clone(), origin);
                }),
            },
        };
        self.fetching.lock().remove(&id);
        found
    }

    /// A large chunk: the disk may take a while.
    async fn from_disk(self: &Arc<Self>, id: Id) -> Option<Bytes> {
        if !self.disk.as_ref()?.holds(&id) {
            return None;
        }
        let contents = self.clone();
        let read = tokio::task::spawn_blocking(move || contents.disk.as_ref()?.read(&id));
        read.await.ok().flatten()
    }

    /// Ends the thread that writes to disk, when it has written all.
    pub(crate) fn end(&self) {
        if let Some(disk) = &self.disk {
            disk.end();
        }
    }
}

async fn from_store(store: &Store, base: &Base, chunk: u64) -> Result<Bytes, FetchError> {
    let changed = || FetchError::Changed(base.key.clone());
    let got = if base.size <= CHUNK {
        store.get_if(&base.key, &base.etag).await
    } else {
        let start = chunk * CHUNK;
        let end = base.size.min(start + CHUNK);
        let range = store.get_range_if(&base.key, &base.etag, start..end).await;
        if range.as_ref().is_ok_and(|bytes| bytes.len() as u64 != end - start) {
            return Err(changed());
        }
        range
    };
    got.map_err(|e| {
        if e.is_conflict() || e.is_no_such_key() {
            changed()
        } else {
            e.into()
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn base(etag: &str, size: u64) -> Base {
        Base {
            key: "a".into(),
            etag: etag.into(),
            size,
        }
    }

    fn settle(contents: &Contents) {
        if let Some(disk) = &contents.disk {
            disk.settle();
        }
    }

    #[test]
    fn each_mode_keeps_on_disk_what_it_says() {
        let (small, large) = (base("small", 5), base("large", 2 * CHUNK));
        let chunk = Bytes::from(vec![7_u8; CHUNK as usize]);
        for (mode, written, read, large_read) in [
            (CacheMode::Off, false, false, false),
            (CacheMode::Minimal, false, false, true),
            (CacheMode::Writes, true, false, false),
            (CacheMode::Full, true, true, true),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let contents = Contents::open(dir.path(), mode, 64 << 20).unwrap();
            contents.put(&small, 0, "hello".into(), Origin::Written);
            contents.put(&base("other", 5), 0, "hello".into(), Origin::Read);
            contents.put(&large, 0, chunk.clone(), Origin::Read);
            settle(&contents);
            let on_disk = |base: &Base| {
                let id = Id::of(base, 0).unwrap();
                contents.disk.as_ref().is_some_and(|disk| disk.holds(&id))
            };
            assert_eq!(on_disk(&small), written, "{mode:?}");
            assert_eq!(on_disk(&base("other", 5)), read, "{mode:?}");
            assert_eq!(on_disk(&large), large_read, "{mode:?}");
            contents.closed(&large);
            assert_eq!(on_disk(&large), large_read && mode.keeps(), "{mode:?}, closed");
            assert_eq!(contents.holds(&large, 0), mode.keeps(), "{mode:?}, closed");
        }
    }

    #[test]
    fn what_nobody_has_asked_for_is_in_memory_only_where_the_disk_does_not_keep_it() {
        for (mode, in_memory) in [(CacheMode::Full, false), (CacheMode::Writes, true)] {
            let dir = tempfile::tempdir().unwrap();
            let contents = Contents::open(dir.path(), mode, 64 << 20).unwrap();
            let (ahead, read) = (base("ahead", 5), base("read", 5));
            contents.put(&ahead, 0, "hello".into(), Origin::Ahead);
            contents.put(&read, 0, "hello".into(), Origin::Read);
            settle(&contents);
            let holds = |base: &Base| contents.memory.lock().holds(&Id::of(base, 0).unwrap());
            assert_eq!((holds(&ahead), holds(&read)), (in_memory, true), "{mode:?}");
            assert_eq!(contents.at_hand(&ahead, 0).unwrap(), "hello");
        }
    }

    #[test]
    fn a_restart_keeps_the_disks_part_and_a_mode_without_one_clears_it() {
        let dir = tempfile::tempdir().unwrap();
        let small = base("small", 5);
        let contents = Contents::open(dir.path(), CacheMode::Full, 64 << 20).unwrap();
        contents.keep(&small, 0, "hello".into());
        drop(contents);
        let contents = Contents::open(dir.path(), CacheMode::Full, 64 << 20).unwrap();
        settle(&contents);
        assert_eq!(contents.at_hand(&small, 0).unwrap(), "hello");
        drop(contents);
        let contents = Contents::open(dir.path(), CacheMode::Off, 64 << 20).unwrap();
        assert!(!contents.holds(&small, 0));
        assert!(!dir.path().join("contents").exists());
    }
}
