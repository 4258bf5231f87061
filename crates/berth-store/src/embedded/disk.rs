//! The data folder: one `redb` database for records and small bodies, one file for each large body.
//!
//! ```text
//!   data_dir/berth.redb     buckets, objects, bodies (<= 64 KiB), uploads, parts; locked by one process
//!   data_dir/blobs/ID       a large body or a part; written and fsynced before a record names it, never changed after
//! ```
//!
//! A blob's name is a number that was never used before, and nothing reads it until a committed record names it. So it is
//! written in place: a crash in the middle leaves a file that no record names, and the next start removes it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

use super::index::{Bucket, Index};
use super::record::{Blob, Kept, Part, Record, Upload};

pub(super) const BUCKETS: TableDefinition<'_, &str, u64> = TableDefinition::new("buckets");
pub(super) const OBJECTS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("objects");
pub(super) const BODIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("bodies");
pub(super) const UPLOADS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("uploads");
pub(super) const PARTS: TableDefinition<'_, (&str, u32), &[u8]> = TableDefinition::new("parts");

/// How many tables there are.
const TABLES: usize = 5;

/// A file with more slack than this, and more slack than content, is compacted at start.
const COMPACT_ABOVE: u64 = 4 * 1024 * 1024;

/// A failure of the database, whichever of its calls it was.
#[derive(Debug, thiserror::Error)]
#[error("the embedded S3 server's database failed")]
pub(super) struct DbError(#[source] Box<redb::Error>);

impl<E: Into<redb::Error>> From<E> for DbError {
    fn from(e: E) -> Self {
        Self(Box::new(e.into()))
    }
}

impl DbError {
    /// Whether the disk is full.
    pub(super) fn is_full(&self) -> bool {
        matches!(&*self.0, redb::Error::Io(e) if is_disk_full(e))
    }

    pub(super) fn is_locked(&self) -> bool {
        matches!(*self.0, redb::Error::DatabaseAlreadyOpen)
    }
}

/// Whether a write failed because the disk or the owner's quota is full.
pub(super) fn is_disk_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Opens the database, with so many bytes of its pages in memory. An existing one is not written to: it must open on a full
/// disk too.
pub(super) fn open_database(path: &Path, cache: usize) -> Result<Database, DbError> {
    let db = Database::builder().set_cache_size(cache).create(path)?;
    if db.begin_read()?.list_tables()?.count() < TABLES {
        let txn = db.begin_write()?;
        txn.open_table(BUCKETS)?;
        txn.open_table(OBJECTS)?;
        txn.open_table(BODIES)?;
        txn.open_table(UPLOADS)?;
        txn.open_table(PARTS)?;
        txn.commit()?;
    }
    Ok(db)
}

/// Gives the file system back what deleted objects held, when that is worth the rewriting.
pub(super) fn compact(db: &mut Database, path: &Path) -> Result<(), DbError> {
    let size = fs::metadata(path).map_or(0, |m| m.len());
    if size < COMPACT_ABOVE {
        return Ok(());
    }
    let used = {
        let txn = db.begin_read()?;
        let (objects, bodies) = (txn.open_table(OBJECTS)?.stats()?, txn.open_table(BODIES)?.stats()?);
        objects.stored_bytes() + objects.metadata_bytes() + bodies.stored_bytes() + bodies.metadata_bytes()
    };
    if size > COMPACT_ABOVE + 2 * used {
        db.compact()?;
        tracing::info!(
            before = size,
            after = fs::metadata(path).map_or(0, |m| m.len()),
            "database compacted"
        );
    }
    Ok(())
}

/// Reads every record (not the bodies) into memory.
///
/// # Errors
/// The database fails, or holds a row that is none of ours ([`io::ErrorKind::InvalidData`] inside).
pub(super) fn load(db: &Database) -> Result<(Index, u64), DbError> {
    let mut index = Index::default();
    let txn = db.begin_read()?;
    for row in txn.open_table(BUCKETS)?.iter()? {
        let (name, created) = row?;
        index.buckets.insert(
            name.value().to_owned(),
            Bucket {
                created: created.value(),
                ..Bucket::default()
            },
        );
    }
    for row in txn.open_table(OBJECTS)?.iter()? {
        let (key, value) = row?;
        let (bucket, key) = key.value();
        let record: Record = decode(value.value())?;
        index
            .buckets
            .entry(bucket.to_owned())
            .or_default()
            .objects
            .insert(key, Kept::from(&record));
    }
    for row in txn.open_table(UPLOADS)?.iter()? {
        let (id, value) = row?;
        index
            .uploads
            .insert(id.value().to_owned(), decode::<Upload>(value.value())?);
    }
    for row in txn.open_table(PARTS)?.iter()? {
        let (key, value) = row?;
        let (id, number) = key.value();
        if let Some(upload) = index.uploads.get_mut(id) {
            upload.parts.insert(number, decode::<Part>(value.value())?);
        }
    }
    let last_body = txn.open_table(BODIES)?.last()?.map_or(0, |(id, _)| id.value());
    Ok((index, last_body))
}

pub(super) fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, DbError> {
    serde_json::from_slice(bytes).map_err(|e| DbError(Box::new(redb::Error::Corrupted(e.to_string()))))
}

pub(super) fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, DbError> {
    serde_json::to_vec(value).map_err(|e| DbError(Box::new(redb::Error::Corrupted(e.to_string()))))
}

/// The folder of large bodies, and the source of ids for all bodies.
#[derive(Debug)]
pub(super) struct Blobs {
    dir: PathBuf,
    /// Kept open for its fsync, which makes new names durable.
    handle: File,
    next: AtomicU64,
}

impl Blobs {
    /// Opens the folder and removes the files that no record names: what a crash left behind.
    pub(super) fn open(dir: PathBuf, index: &Index, last_body: u64) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let named: BTreeSet<u64> = named_blobs(index).map(|b| b.id).collect();
        let mut last = named.last().copied().unwrap_or(0).max(last_body);
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let id = entry.file_name().to_str().and_then(|n| u64::from_str_radix(n, 16).ok());
            let Some(id) = id else { continue };
            last = last.max(id);
            if !named.contains(&id) {
                fs::remove_file(entry.path())?;
                tracing::debug!(blob = id, "removed a blob that no object names");
            }
        }
        let handle = File::open(&dir)?;
        Ok(Self {
            dir,
            handle,
            next: AtomicU64::new(last + 1),
        })
    }

    /// An id that no body ever had.
    pub(super) fn new_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn path(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id:016x}"))
    }

    /// A new, empty file that goes again unless a record is committed that names it.
    pub(super) fn create(self: &Arc<Self>) -> io::Result<(File, NewBlob)> {
        let id = self.new_id();
        let file = OpenOptions::new().write(true).create_new(true).open(self.path(id))?;
        Ok((
            file,
            NewBlob {
                blobs: Arc::clone(self),
                id,
                kept: false,
            },
        ))
    }

    /// A second name for a blob's bytes, for a copy; it costs no space.
    pub(super) fn link(self: &Arc<Self>, id: u64) -> io::Result<NewBlob> {
        let new = self.new_id();
        fs::hard_link(self.path(id), self.path(new))?;
        Ok(NewBlob {
            blobs: Arc::clone(self),
            id: new,
            kept: false,
        })
    }

    /// Makes the names of new files durable.
    pub(super) fn sync_names(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    /// Removes a file that no record names any more. A failure is left to the next start.
    pub(super) fn remove(&self, id: u64) {
        if let Err(error) = fs::remove_file(self.path(id)) {
            tracing::warn!(blob = id, %error, "cannot remove a blob; the next start tries again");
        }
    }
}

/// Every file that a record names.
pub(super) fn named_blobs(index: &Index) -> impl Iterator<Item = Blob> + '_ {
    let objects = index
        .buckets
        .values()
        .flat_map(|b| b.objects.values())
        .flat_map(|r| r.body.blobs().iter().copied());
    let parts = index.uploads.values().flat_map(|u| u.parts.values()).map(|p| p.blob);
    objects.chain(parts)
}

/// A blob file that no record names yet: dropped, it takes the file with it.
#[derive(Debug)]
pub(super) struct NewBlob {
    blobs: Arc<Blobs>,
    id: u64,
    kept: bool,
}

impl NewBlob {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// A committed record names the file now.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for NewBlob {
    fn drop(&mut self) {
        // In a panic nobody knows whether a committed record names it; the next start does.
        if !self.kept && !std::thread::panicking() {
            self.blobs.remove(self.id);
        }
    }
}
