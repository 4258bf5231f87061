//! An object's body on its way out: from the database for small ones, streamed from its files for large ones.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream;
use redb::ReadableDatabase;
use s3s::dto::StreamingBlob;
use s3s::{S3Error, S3Result, s3_error};

use super::disk::{BODIES, DbError};
use super::receive::io_error;
use super::record::{Blob, Body, Kept, Record};
use super::writer::{Shared, storage_error};

/// One read of a file: large enough for the disk, small enough to hold for each of many slow clients.
const CHUNK: u64 = 256 * 1024;
/// Files of one object that are opened before the first byte is sent; the object may then be deleted meanwhile.
const OPEN_AT_ONCE: usize = 128;
/// How often a body may vanish under a reader (it was overwritten) before the reader gives up.
const ATTEMPTS: usize = 16;

/// A body ready to be sent.
pub(super) enum Source {
    Memory(Bytes),
    Files(Vec<Segment>),
}

/// One file of a body, opened now or when its turn comes.
pub(super) struct Segment {
    blob: Blob,
    file: Option<Arc<File>>,
}

impl Source {
    /// The bytes of `range` as a stream that holds one chunk at a time.
    pub(super) fn stream(self, shared: &Arc<Shared>, range: Range<u64>) -> StreamingBlob {
        match self {
            Self::Memory(bytes) => {
                let (start, end) = (as_len(range.start), as_len(range.end));
                StreamingBlob::from(s3s::Body::from(
                    bytes.slice(start.min(bytes.len())..end.min(bytes.len())),
                ))
            }
            Self::Files(segments) => StreamingBlob::wrap(file_stream(Arc::clone(shared), segments, range)),
        }
    }
}

fn as_len(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Finds the object and opens its body, both of the same version.
pub(super) async fn open(shared: &Arc<Shared>, bucket: &str, key: &str) -> S3Result<(Record, Source)> {
    for _ in 0..ATTEMPTS {
        let record = find(shared, bucket, key)?;
        let (reader, body) = (Arc::clone(shared), record.body.clone());
        let opened = tokio::task::spawn_blocking(move || open_body(&reader, &body))
            .await
            .map_err(|_| storage_error(false))?;
        match opened {
            Ok(Some(source)) => return Ok((record, source)),
            // Overwritten or deleted since it was found: look again.
            Ok(None) => {}
            Err(e) => return Err(e),
        }
    }
    Err(s3_error!(
        SlowDown,
        "The object is being overwritten too fast to be read."
    ))
}

/// The object's record.
pub(super) fn find(shared: &Shared, bucket: &str, key: &str) -> S3Result<Record> {
    let index = shared.index.read();
    let objects = &index
        .buckets
        .get(bucket)
        .ok_or_else(|| s3_error!(NoSuchBucket))?
        .objects;
    objects.get(key).map(Kept::record).ok_or_else(|| s3_error!(NoSuchKey))
}

fn open_body(shared: &Shared, body: &Body) -> S3Result<Option<Source>> {
    match body {
        Body::Inline(id) => {
            let row = read_row(shared, *id).map_err(|error| {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot read a body");
                storage_error(false)
            })?;
            Ok(row.map(Source::Memory))
        }
        Body::Blobs(blobs) => open_files(shared, blobs),
    }
}

fn read_row(shared: &Shared, id: u64) -> Result<Option<Bytes>, DbError> {
    let guard = shared.db.read();
    let db = guard.as_ref().ok_or(redb::Error::DatabaseClosed)?;
    // The transaction outlives the row: it is what keeps the writer from freeing the row's pages.
    let txn = db.begin_read()?;
    let row = txn.open_table(BODIES)?.get(id)?;
    let bytes = row.as_ref().map(|row| Bytes::copy_from_slice(row.value()));
    drop(row);
    Ok(bytes)
}

fn open_files(shared: &Shared, blobs: &[Blob]) -> S3Result<Option<Source>> {
    let mut segments = Vec::with_capacity(blobs.len());
    for (nth, blob) in blobs.iter().enumerate() {
        let file = if nth < OPEN_AT_ONCE {
            match File::open(shared.blobs.path(blob.id)) {
                Ok(file) => Some(Arc::new(file)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(io_error("open a body", &e)),
            }
        } else {
            None
        };
        segments.push(Segment { blob: *blob, file });
    }
    Ok(Some(Source::Files(segments)))
}

fn file_stream(
    shared: Arc<Shared>,
    segments: Vec<Segment>,
    range: Range<u64>,
) -> impl futures::Stream<Item = Result<Bytes, S3Error>> + Send + Sync + 'static {
    let start = (shared, segments.into_iter(), None::<Segment>, 0_u64, range);
    stream::try_unfold(start, |(shared, mut rest, mut segment, mut base, range)| async move {
        loop {
            let Some(current) = segment.take().or_else(|| rest.next()) else {
                return Ok(None);
            };
            let end = base + current.blob.len;
            if range.start >= end && range.start < range.end {
                base = end;
                continue;
            }
            if range.start >= range.end {
                return Ok(None);
            }
            let len = CHUNK.min(end - range.start).min(range.end - range.start);
            let (chunk, current) = read_chunk(&shared, current, range.start - base, len).await?;
            let range = range.start + len..range.end;
            return Ok(Some((chunk, (shared, rest, Some(current), base, range))));
        }
    })
}

async fn read_chunk(shared: &Arc<Shared>, segment: Segment, at: u64, len: u64) -> S3Result<(Bytes, Segment)> {
    let shared = Arc::clone(shared);
    tokio::task::spawn_blocking(move || {
        let Segment { blob, file } = segment;
        let read = || {
            let file = match file {
                Some(file) => file,
                None => Arc::new(File::open(shared.blobs.path(blob.id))?),
            };
            let mut chunk = BytesMut::zeroed(as_len(len));
            file.read_exact_at(&mut chunk, at)?;
            Ok((chunk.freeze(), Segment { blob, file: Some(file) }))
        };
        read().map_err(|e: io::Error| io_error("read a body", &e))
    })
    .await
    .map_err(|_| storage_error(false))?
}
