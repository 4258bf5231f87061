//! The one thread that changes anything: it takes all commands that wait, puts them into one durable transaction, and
//! answers when that is on the disk.
//!
//! ```text
//!   handlers ──commands──▶ queue ──▶ [ check, stage ]* ──▶ commit (one fsync) ──▶ index ──▶ change feed ──▶ answers
//! ```
//!
//! While one commit waits for the disk the next commands gather, so a hundred writers cost about as many fsyncs as one.
//! Preconditions are checked here, against what is committed and what the same batch has staged: there is no gap between
//! the check and the write. Commands about uploads and buckets get a transaction of their own (they are rare, and so need
//! not be checked against each other).
//!
//! When a commit fails (a full disk), redb refuses everything until it is reopened. The writer reopens it, reads again
//! what is really in it, and refuses the batch: nothing is half-made, and the next PUT works as soon as there is room.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use redb::Database;
use s3s::dto::ETagCondition;
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::disk::{Blobs, DbError, NewBlob, load, named_blobs, open_database};
use super::index::{Bucket, Index};
use super::record::{Blob, Kept, Part, Record, Upload};
use super::stage::{Staged, stage};
use crate::Change;

/// Bytes of small bodies in one transaction; more would make the first one wait for the last one's disk time.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Commands in one transaction.
const BATCH_COMMANDS: usize = 512;

/// What is to be changed. Files that a command brings go again if it is refused.
#[derive(Debug)]
pub(super) enum Order {
    Put {
        bucket: String,
        key: String,
        record: Record,
        inline: Option<Bytes>,
        files: Vec<NewBlob>,
        when: When,
    },
    Delete {
        bucket: String,
        key: String,
        if_match: Option<ETagCondition>,
    },
    CreateBucket {
        name: String,
        created: u64,
    },
    DeleteBucket {
        name: String,
    },
    StartUpload {
        id: String,
        upload: Upload,
    },
    PutPart {
        id: String,
        number: u32,
        part: Part,
        file: NewBlob,
    },
    AbortUpload {
        id: String,
    },
    /// The parts become the object's body, in this order, without being copied.
    Complete {
        id: String,
        record: Record,
        parts: Vec<(u32, Blob)>,
        when: When,
    },
    /// A fault of the writer, for the test of what becomes of it.
    #[cfg(test)]
    Panic,
}

/// What must hold for a PUT.
#[derive(Debug, Default)]
pub(super) struct When {
    pub if_match: Option<ETagCondition>,
    pub if_none_match: Option<ETagCondition>,
}

/// An order and where its answer goes. The answer comes after the change is durable.
#[derive(Debug)]
pub(super) struct Command {
    pub order: Order,
    pub answer: oneshot::Sender<S3Result<()>>,
}

/// What the writer and the readers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub index: RwLock<Index>,
    /// None only while the writer reopens it after a failed commit.
    pub db: RwLock<Option<Database>>,
    pub blobs: Arc<Blobs>,
    pub feed: broadcast::Sender<Change>,
    /// The bucket whose changes are fed.
    pub fed_bucket: String,
    pub db_path: PathBuf,
    /// Bytes of its pages in memory.
    pub cache: usize,
}

/// A staged order: what happens to the index once the transaction is durable.
pub(super) enum Effect {
    Put {
        bucket: String,
        key: String,
        record: Arc<Record>,
        files: Vec<NewBlob>,
    },
    Delete {
        bucket: String,
        key: String,
    },
    CreateBucket {
        name: String,
        created: u64,
    },
    DeleteBucket {
        name: String,
    },
    StartUpload {
        id: String,
        upload: Upload,
    },
    PutPart {
        id: String,
        number: u32,
        part: Part,
        file: NewBlob,
    },
    AbortUpload {
        id: String,
    },
    Complete {
        id: String,
        record: Arc<Record>,
    },
    Nothing,
}

impl Order {
    /// Plain orders share a transaction; any other has one for itself.
    fn is_plain(&self) -> bool {
        matches!(self, Self::Put { .. } | Self::Delete { .. })
    }

    fn weight(&self) -> usize {
        match self {
            Self::Put { inline: Some(body), .. } => body.len(),
            _ => 0,
        }
    }
}

/// Serves commands until all senders are gone. Blocks: give it a thread of its own.
///
/// A panic costs one batch: its answers are dropped, which its clients see as 503, and the database is read anew.
pub(super) fn run(shared: &Shared, mut commands: mpsc::Receiver<Command>) {
    let mut held_back = None;
    while let Some(first) = held_back.take().or_else(|| commands.blocking_recv()) {
        let batch;
        (batch, held_back) = gather(first, &mut commands);
        // What the panic left half-done is in the database's transaction and in the index; `reopen` makes both anew.
        if catch_unwind(AssertUnwindSafe(|| commit_batch(shared, batch))).is_err() {
            tracing::error!("the writer of the embedded S3 server panicked; reading its database anew");
            reopen(shared);
        }
    }
}

fn gather(first: Command, commands: &mut mpsc::Receiver<Command>) -> (Vec<Command>, Option<Command>) {
    let mut weight = first.order.weight();
    let alone = !first.order.is_plain();
    let mut batch = vec![first];
    while !alone && batch.len() < BATCH_COMMANDS && weight < BATCH_BYTES {
        match commands.try_recv() {
            Ok(next) if next.order.is_plain() => {
                weight += next.order.weight();
                batch.push(next);
            }
            Ok(next) => return (batch, Some(next)),
            Err(_) => break,
        }
    }
    (batch, None)
}

fn commit_batch(shared: &Shared, batch: Vec<Command>) {
    let (mut answers, mut orders) = (Vec::new(), Vec::new());
    for command in batch {
        answers.push(command.answer);
        orders.push(command.order);
    }
    match write(shared, orders) {
        Ok(outcomes) => {
            let (freed, results) = apply(shared, outcomes);
            for (answer, result) in answers.into_iter().zip(results) {
                // A client that hung up does not want its answer; the change stands all the same.
                let _ = answer.send(result);
            }
            // After the answers: unlinking a large file takes its time.
            freed.into_iter().for_each(|id| shared.blobs.remove(id));
        }
        Err(Failed { error, files }) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a commit failed; the batch is refused"
            );
            let full = error.is_full();
            reopen(shared);
            settle_files(shared, files);
            for answer in answers {
                let _ = answer.send(Err(storage_error(full)));
            }
        }
    }
}

/// The S3 error for a failure of the disk: both kinds are worth a retry.
pub(super) fn storage_error(full: bool) -> S3Error {
    if full {
        let mut error = S3Error::with_message(
            S3ErrorCode::Custom("InsufficientStorage".into()),
            "The disk of the embedded S3 server is full; nothing was stored.",
        );
        error.set_status_code(http::StatusCode::INSUFFICIENT_STORAGE);
        error
    } else {
        s3_error!(
            InternalError,
            "The embedded S3 server cannot write to its disk; its log says why."
        )
    }
}

/// A batch that could not be written, and the files of its orders if the commit itself failed: whether the disk has the
/// transaction or not is known only when the database has been reopened.
struct Failed {
    error: DbError,
    files: Vec<NewBlob>,
}

impl From<DbError> for Failed {
    fn from(error: DbError) -> Self {
        Self {
            error,
            files: Vec::new(),
        }
    }
}

/// Stages every order and commits. One that is refused leaves no trace in the transaction.
fn write(shared: &Shared, orders: Vec<Order>) -> Result<Vec<S3Result<Effect>>, Failed> {
    let guard = shared.db.read();
    let db = guard
        .as_ref()
        .ok_or(redb::Error::DatabaseClosed)
        .map_err(DbError::from)?;
    let txn = db.begin_write().map_err(DbError::from)?;
    let mut staged = Staged::new();
    let mut outcomes = Vec::with_capacity(orders.len());
    for order in orders {
        outcomes.push(stage(shared, &txn, &mut staged, order)?);
    }
    if outcomes
        .iter()
        .any(|o| matches!(o, Ok(effect) if !matches!(effect, Effect::Nothing)))
    {
        if let Err(error) = txn.commit() {
            return Err(Failed {
                error: error.into(),
                files: outcomes.into_iter().flatten().flat_map(files_of).collect(),
            });
        }
    } else {
        txn.abort().map_err(DbError::from)?;
    }
    Ok(outcomes)
}

fn files_of(effect: Effect) -> Vec<NewBlob> {
    match effect {
        Effect::Put { files, .. } => files,
        Effect::PutPart { file, .. } => vec![file],
        _ => Vec::new(),
    }
}

/// After a failed commit: the files that a record names all the same stay; the others go. When the database cannot be
/// read all stay, and the next start tells them apart.
fn settle_files(shared: &Shared, files: Vec<NewBlob>) {
    let readable = shared.db.read().is_some();
    let named: HashSet<u64> = named_blobs(&shared.index.read()).map(|b| b.id).collect();
    for file in files {
        if !readable || named.contains(&file.id()) {
            file.keep();
        }
    }
}

/// Shows the committed changes: index, then feed. Returns the files that nothing names any more, and the answers.
fn apply(shared: &Shared, outcomes: Vec<S3Result<Effect>>) -> (Vec<u64>, Vec<S3Result<()>>) {
    let (mut freed, mut changes, mut results) = (Vec::new(), Vec::new(), Vec::new());
    let mut index = shared.index.write();
    for outcome in outcomes {
        results.push(outcome.map(|effect| {
            if let Some((bucket, change)) = show(&mut index, effect, &mut freed)
                && bucket == shared.fed_bucket
            {
                changes.push(change);
            }
        }));
    }
    drop(index);
    for change in changes {
        // Nobody listening is no error.
        let _ = shared.feed.send(change);
    }
    (freed, results)
}

fn show(index: &mut Index, effect: Effect, freed: &mut Vec<u64>) -> Option<(String, Change)> {
    match effect {
        Effect::Put {
            bucket,
            key,
            record,
            files,
        } => {
            files.into_iter().for_each(NewBlob::keep);
            Some(show_object(index, bucket, &key, &record, freed))
        }
        Effect::Complete { id, record } => {
            let mut upload = index.uploads.remove(&id)?;
            upload.parts.retain(|_, part| !record.body.blobs().contains(&part.blob));
            freed.extend(upload.parts.values().map(|p| p.blob.id));
            Some(show_object(index, upload.bucket, &upload.key, &record, freed))
        }
        Effect::Delete { bucket, key } => {
            let old = index.buckets.get_mut(&bucket)?.objects.remove(&key)?;
            freed.extend(old.body.blobs().iter().map(|b| b.id));
            Some((bucket, Change::Deleted { key }))
        }
        Effect::CreateBucket { name, created } => {
            index.buckets.insert(
                name,
                Bucket {
                    created,
                    ..Bucket::default()
                },
            );
            None
        }
        Effect::DeleteBucket { name } => {
            index.buckets.remove(&name);
            None
        }
        Effect::StartUpload { id, upload } => {
            index.uploads.insert(id, upload);
            None
        }
        Effect::PutPart { id, number, part, file } => {
            file.keep();
            let old = index.uploads.get_mut(&id)?.parts.insert(number, part);
            freed.extend(old.map(|p| p.blob.id));
            None
        }
        Effect::AbortUpload { id } => {
            let upload = index.uploads.remove(&id)?;
            freed.extend(upload.parts.values().map(|p| p.blob.id));
            None
        }
        Effect::Nothing => None,
    }
}

fn show_object(
    index: &mut Index,
    bucket: String,
    key: &str,
    record: &Record,
    freed: &mut Vec<u64>,
) -> (String, Change) {
    let kept = Kept::from(record);
    let change = Change::Put(kept.info(key));
    let old = index
        .buckets
        .entry(bucket.clone())
        .or_default()
        .objects
        .insert(key, kept);
    freed.extend(old.iter().flat_map(|o| o.body.blobs()).map(|b| b.id));
    (bucket, change)
}

/// After a failed commit: opens the database again and takes from it what is really there.
fn reopen(shared: &Shared) {
    let mut db = shared.db.write();
    // The lock on the file goes with the old one.
    *db = None;
    match open_database(&shared.db_path, shared.cache).and_then(|fresh| Ok((load(&fresh)?, fresh))) {
        Ok(((index, _), fresh)) => {
            *shared.index.write() = index;
            *db = Some(fresh);
        }
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the database cannot be reopened; trying at the next write"
            );
        }
    }
}
