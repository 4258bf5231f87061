//! One order checked and its rows written, inside the writer's transaction.
//!
//! A refused order writes nothing. A failure of the database ends the whole batch.

use std::collections::HashMap;
use std::sync::Arc;

use redb::WriteTransaction;
use s3s::dto::ETagCondition;
use s3s::{S3Result, s3_error};

use super::disk::{BODIES, BUCKETS, DbError, OBJECTS, PARTS, UPLOADS, encode};
use super::index::Index;
use super::record::{Blob, Body, Record};
use super::writer::{Effect, Order, Shared, When};

/// What this batch has done to objects so far.
pub(super) type Staged = HashMap<(String, String), Option<Arc<Record>>>;

/// Checks one order and writes its rows.
pub(super) fn stage(
    shared: &Shared,
    txn: &WriteTransaction,
    staged: &mut Staged,
    order: Order,
) -> Result<S3Result<Effect>, DbError> {
    let index = shared.index.read();
    Ok(match order {
        Order::Put {
            bucket,
            key,
            record,
            inline,
            files,
            when,
        } => {
            if !index.buckets.contains_key(&bucket) {
                return Ok(Err(s3_error!(NoSuchBucket)));
            }
            let old = current(&index, staged, &bucket, &key);
            if let Err(refusal) = check(&when, old.as_deref()) {
                return Ok(Err(refusal));
            }
            put_rows(txn, &bucket, &key, &record, inline.as_deref(), old.as_deref())?;
            let record = Arc::new(record);
            staged.insert((bucket.clone(), key.clone()), Some(Arc::clone(&record)));
            Ok(Effect::Put {
                bucket,
                key,
                record,
                files,
            })
        }
        Order::Delete { bucket, key, if_match } => {
            if !index.buckets.contains_key(&bucket) {
                return Ok(Err(s3_error!(NoSuchBucket)));
            }
            let Some(old) = current(&index, staged, &bucket, &key) else {
                return Ok(Ok(Effect::Nothing));
            };
            if if_match.is_some_and(|c| !matches_etag(&c, &old.etag)) {
                return Ok(Err(s3_error!(PreconditionFailed)));
            }
            txn.open_table(OBJECTS)?.remove((bucket.as_str(), key.as_str()))?;
            drop_inline(txn, &old)?;
            staged.insert((bucket.clone(), key.clone()), None);
            Ok(Effect::Delete { bucket, key })
        }
        other => stage_alone(&index, txn, other)?,
    })
}

/// The orders that have a transaction for themselves, so that the index is all there is to check against.
fn stage_alone(index: &Index, txn: &WriteTransaction, order: Order) -> Result<S3Result<Effect>, DbError> {
    Ok(match order {
        Order::CreateBucket { name, .. } if index.buckets.contains_key(&name) => {
            Err(s3_error!(BucketAlreadyOwnedByYou))
        }
        Order::CreateBucket { name, created } => {
            txn.open_table(BUCKETS)?.insert(name.as_str(), created)?;
            Ok(Effect::CreateBucket { name, created })
        }
        Order::DeleteBucket { name } => match index.buckets.get(&name) {
            None => Err(s3_error!(NoSuchBucket)),
            Some(bucket) if !bucket.objects.is_empty() => Err(s3_error!(BucketNotEmpty)),
            Some(_) if index.uploads.values().any(|u| u.bucket == name) => Err(s3_error!(BucketNotEmpty)),
            Some(_) => {
                txn.open_table(BUCKETS)?.remove(name.as_str())?;
                Ok(Effect::DeleteBucket { name })
            }
        },
        Order::StartUpload { upload, .. } if !index.buckets.contains_key(&upload.bucket) => {
            Err(s3_error!(NoSuchBucket))
        }
        Order::StartUpload { id, upload } => {
            txn.open_table(UPLOADS)?
                .insert(id.as_str(), encode(&upload)?.as_slice())?;
            Ok(Effect::StartUpload { id, upload })
        }
        Order::PutPart { id, .. } | Order::AbortUpload { id } | Order::Complete { id, .. }
            if !index.uploads.contains_key(&id) =>
        {
            Err(s3_error!(NoSuchUpload))
        }
        Order::PutPart { id, number, part, file } => {
            txn.open_table(PARTS)?
                .insert((id.as_str(), number), encode(&part)?.as_slice())?;
            Ok(Effect::PutPart { id, number, part, file })
        }
        Order::AbortUpload { id } => {
            upload_rows_go(txn, &id)?;
            Ok(Effect::AbortUpload { id })
        }
        Order::Complete {
            id,
            record,
            parts,
            when,
        } => complete(index, txn, id, record, &parts, &when)?,
        Order::Put { .. } | Order::Delete { .. } => Ok(Effect::Nothing),
        #[cfg(test)]
        Order::Panic => panic!("asked for by a test"),
    })
}

fn complete(
    index: &Index,
    txn: &WriteTransaction,
    id: String,
    mut record: Record,
    parts: &[(u32, Blob)],
    when: &When,
) -> Result<S3Result<Effect>, DbError> {
    let Some(upload) = index.uploads.get(&id) else {
        return Ok(Err(s3_error!(NoSuchUpload)));
    };
    // A part that was sent anew since the client's list was checked is not the part that the ETag was made of.
    if parts
        .iter()
        .any(|(n, blob)| upload.parts.get(n).is_none_or(|p| p.blob != *blob))
    {
        return Ok(Err(s3_error!(InvalidPart)));
    }
    let chosen: Vec<Blob> = parts.iter().map(|(_, blob)| *blob).collect();
    let old = index.object(&upload.bucket, &upload.key);
    if let Err(refusal) = check(when, old.as_ref()) {
        return Ok(Err(refusal));
    }
    record.size = chosen.iter().map(|b| b.len).sum();
    record.body = Body::Blobs(chosen);
    put_rows(txn, &upload.bucket, &upload.key, &record, None, old.as_ref())?;
    upload_rows_go(txn, &id)?;
    Ok(Ok(Effect::Complete {
        id,
        record: Arc::new(record),
    }))
}

fn put_rows(
    txn: &WriteTransaction,
    bucket: &str,
    key: &str,
    record: &Record,
    inline: Option<&[u8]>,
    old: Option<&Record>,
) -> Result<(), DbError> {
    if let Some(old) = old {
        drop_inline(txn, old)?;
    }
    if let (Body::Inline(id), Some(body)) = (&record.body, inline) {
        txn.open_table(BODIES)?.insert(*id, body)?;
    }
    txn.open_table(OBJECTS)?
        .insert((bucket, key), encode(record)?.as_slice())?;
    Ok(())
}

fn drop_inline(txn: &WriteTransaction, old: &Record) -> Result<(), DbError> {
    if let Body::Inline(id) = old.body {
        txn.open_table(BODIES)?.remove(id)?;
    }
    Ok(())
}

fn upload_rows_go(txn: &WriteTransaction, id: &str) -> Result<(), DbError> {
    txn.open_table(UPLOADS)?.remove(id)?;
    txn.open_table(PARTS)?
        .retain_in((id, 0)..=(id, u32::MAX), |_, _| false)?;
    Ok(())
}

fn current(index: &Index, staged: &Staged, bucket: &str, key: &str) -> Option<Arc<Record>> {
    match staged.get(&(bucket.to_owned(), key.to_owned())) {
        Some(in_batch) => in_batch.clone(),
        None => index.object(bucket, key).map(Arc::new),
    }
}

/// S3's rules: `If-Match` on a key without an object is 404, any other mismatch 412.
fn check(when: &When, old: Option<&Record>) -> S3Result<()> {
    if let Some(wanted) = &when.if_match {
        match old {
            None => return Err(s3_error!(NoSuchKey)),
            Some(old) if !matches_etag(wanted, &old.etag) => return Err(s3_error!(PreconditionFailed)),
            Some(_) => {}
        }
    }
    if let (Some(unwanted), Some(old)) = (&when.if_none_match, old)
        && matches_etag(unwanted, &old.etag)
    {
        return Err(s3_error!(PreconditionFailed));
    }
    Ok(())
}

/// Whether `*` or the one named ETag fits.
pub(super) fn matches_etag(condition: &ETagCondition, etag: &str) -> bool {
    condition.is_any() || condition.as_etag().is_some_and(|e| e.value() == etag)
}
