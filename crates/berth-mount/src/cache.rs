//! Contents that were read from S3 or just written to it, kept by ETag.
//!
//! Content comes in chunks of [`CHUNK`] bytes; a small file is one chunk. The newest chunks are in memory; those pushed out
//! go to files in the cache folder, up to [`crate::MountConfig::cache_max`]. The ETag is the key, so a cached chunk can
//! never be wrong, only useless: nothing has to be invalidated. The folder is emptied at start.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_store::{Store, StoreError};
use bytes::Bytes;
use parking_lot::Mutex;

use crate::file::Base;

/// Size of a chunk. Files up to this are fetched whole when they are opened.
pub(crate) const CHUNK: u64 = 4 << 20;
/// Bytes of chunks kept in memory.
const MEMORY: u64 = 64 << 20;

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

type ChunkId = (String, u64, u64);

/// The cache.
#[derive(Debug)]
pub(crate) struct Contents {
    dir: PathBuf,
    shelf: Mutex<Shelf>,
    /// One fetch of a chunk at a time; the others wait and find it in the cache.
    fetching: Mutex<HashMap<ChunkId, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Debug, Default)]
struct Shelf {
    clock: u64,
    memory: HashMap<ChunkId, (Bytes, u64)>,
    memory_order: BTreeMap<u64, ChunkId>,
    memory_bytes: u64,
    disk: HashMap<ChunkId, (u64, u64)>,
    disk_order: BTreeMap<u64, ChunkId>,
    disk_bytes: u64,
    disk_max: u64,
}

fn chunk_id(base: &Base, chunk: u64) -> ChunkId {
    (base.etag.clone(), base.size, chunk)
}

impl Contents {
    /// Makes the folder, or empties the one there.
    pub(crate) fn open(cache_dir: &Path, disk_max: u64) -> std::io::Result<Self> {
        let dir = cache_dir.join("chunks");
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::fs::create_dir_all(&dir)?;
        let shelf = Shelf {
            disk_max,
            ..Shelf::default()
        };
        Ok(Self {
            dir,
            shelf: Mutex::new(shelf),
            fetching: Mutex::default(),
        })
    }

    fn path(&self, id: &ChunkId) -> PathBuf {
        let etag: String =
            id.0.chars()
                .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
                .collect();
        self.dir.join(format!("{etag}.{}.{}", id.1, id.2))
    }

    /// The chunk, if it is in memory.
    pub(crate) fn at_hand(&self, base: &Base, chunk: u64) -> Option<Bytes> {
        let id = chunk_id(base, chunk);
        let mut shelf = self.shelf.lock();
        let shelf = &mut *shelf;
        let (bytes, stamp) = shelf.memory.get_mut(&id)?;
        shelf.clock += 1;
        shelf.memory_order.remove(stamp);
        *stamp = shelf.clock;
        shelf.memory_order.insert(shelf.clock, id);
        Some(bytes.clone())
    }

    /// Keeps a chunk.
    pub(crate) fn keep(&self, base: &Base, chunk: u64, bytes: Bytes) {
        let pushed_out = self.shelf.lock().put_in_memory(chunk_id(base, chunk), bytes);
        for (id, bytes) in pushed_out {
            self.keep_on_disk(id, &bytes);
        }
    }

    fn keep_on_disk(&self, id: ChunkId, bytes: &Bytes) {
        let len = bytes.len() as u64;
        if len > self.shelf.lock().disk_max {
            return;
        }
        let path = self.path(&id);
        let unfinished = path.with_extension("new");
        // A full disk costs speed, not data: S3 has the bytes.
        if std::fs::write(&unfinished, bytes)
            .and_then(|()| std::fs::rename(&unfinished, &path))
            .is_err()
        {
            let _ = std::fs::remove_file(&unfinished);
            return;
        }
        let dropped = self.shelf.lock().put_on_disk(id, len);
        for id in dropped {
            let _ = std::fs::remove_file(self.path(&id));
        }
    }

    fn on_disk(&self, id: &ChunkId) -> Option<Bytes> {
        let (len, _) = *self.shelf.lock().disk.get(id)?;
        let bytes = std::fs::read(self.path(id)).ok()?;
        (bytes.len() as u64 == len).then(|| bytes.into())
    }

    /// The chunk from memory, disk or S3.
    pub(crate) async fn fetch(&self, store: &Store, base: &Base, chunk: u64) -> Result<Bytes, FetchError> {
        if let Some(bytes) = self.at_hand(base, chunk) {
            return Ok(bytes);
        }
        let id = chunk_id(base, chunk);
        let turn = self.fetching.lock().entry(id.clone()).or_default().clone();
        let _turn = turn.lock().await;
        let found = match self.at_hand(base, chunk) {
            Some(bytes) => Ok(bytes),
            None => match self.on_disk(&id) {
                Some(bytes) => Ok(bytes),
                None => from_store(store, base, chunk).await,
            },
        };
        if let Ok(bytes) = &found {
            self.keep(base, chunk, bytes.clone());
        }
        self.fetching.lock().remove(&id);
        found
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

impl Shelf {
    fn put_in_memory(&mut self, id: ChunkId, bytes: Bytes) -> Vec<(ChunkId, Bytes)> {
        self.clock += 1;
        if let Some((old, stamp)) = self.memory.remove(&id) {
            self.memory_order.remove(&stamp);
            self.memory_bytes -= old.len() as u64;
        }
        self.memory_bytes += bytes.len() as u64;
        self.memory_order.insert(self.clock, id.clone());
        self.memory.insert(id, (bytes, self.clock));
        let mut out = Vec::new();
        while self.memory_bytes > MEMORY
            && let Some((_, oldest)) = self.memory_order.pop_first()
        {
            if let Some((bytes, _)) = self.memory.remove(&oldest) {
                self.memory_bytes -= bytes.len() as u64;
                if !self.disk.contains_key(&oldest) {
                    out.push((oldest, bytes));
                }
            }
        }
        out
    }

    fn put_on_disk(&mut self, id: ChunkId, len: u64) -> Vec<ChunkId> {
        self.clock += 1;
        if let Some((len, stamp)) = self.disk.insert(id.clone(), (len, self.clock)) {
            self.disk_order.remove(&stamp);
            self.disk_bytes -= len;
        }
        self.disk_order.insert(self.clock, id);
        self.disk_bytes += len;
        let mut out = Vec::new();
        while self.disk_bytes > self.disk_max
            && let Some((_, oldest)) = self.disk_order.pop_first()
        {
            if let Some((len, _)) = self.disk.remove(&oldest) {
                self.disk_bytes -= len;
                out.push(oldest);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_cache_stays_within_its_bounds_and_the_oldest_go_to_disk() {
        let dir = tempfile::tempdir().unwrap();
        let contents = Contents::open(dir.path(), 3 * CHUNK).unwrap();
        let base = Base {
            key: "a".into(),
            etag: "e".into(),
            size: 100 * CHUNK,
        };
        let chunk = Bytes::from(vec![7_u8; CHUNK as usize]);
        for n in 0..21 {
            contents.keep(&base, n, chunk.clone());
        }
        assert!(contents.at_hand(&base, 20).is_some());
        assert!(contents.at_hand(&base, 4).is_none(), "five were pushed out of memory");
        assert_eq!(contents.on_disk(&chunk_id(&base, 4)), Some(chunk));
        assert!(contents.on_disk(&chunk_id(&base, 1)).is_none(), "the disk holds three");
        assert_eq!(std::fs::read_dir(dir.path().join("chunks")).unwrap().count(), 3);
    }
}
