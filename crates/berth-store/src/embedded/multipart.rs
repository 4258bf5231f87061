//! Uploads in parts. Each part is a file of its own; to complete an upload is to name those files, in order, as one
//! object's body: no byte is copied, however large the object.

use std::collections::BTreeMap;
use std::ops::Range;

use s3s::dto::*;
use s3s::{S3Result, s3_error};

use super::convert::{check_copy_source, copy_source, etag_of_parts, signed, timestamp};
use super::receive::{Announced, Place, Received, receive};
use super::record::{Blob, Body, Headers, Part, Record, Upload, now_secs};
use super::send::open;
use super::service::Service;
use super::writer::{Order, Shared, When};

/// The smallest part but for the last one, as S3 has it.
const MIN_PART: u64 = 5 * 1024 * 1024;
/// S3's highest part number.
const MAX_PART_NUMBER: i32 = 10_000;

pub(super) async fn start(
    service: &Service,
    bucket: String,
    key: String,
    headers: Headers,
) -> S3Result<CreateMultipartUploadOutput> {
    let id = hex::encode(rand::random::<[u8; 16]>());
    let upload = Upload {
        bucket: bucket.clone(),
        key: key.clone(),
        started: now_secs(),
        headers,
        parts: BTreeMap::new(),
    };
    service.order(Order::StartUpload { id: id.clone(), upload }).await?;
    Ok(CreateMultipartUploadOutput {
        bucket: Some(bucket),
        key: Some(key),
        upload_id: Some(id),
        ..Default::default()
    })
}

/// The upload, if it is this object's.
pub(super) fn find(shared: &Shared, bucket: &str, key: &str, id: &str) -> S3Result<Upload> {
    let index = shared.index.read();
    if !index.buckets.contains_key(bucket) {
        return Err(s3_error!(NoSuchBucket));
    }
    let upload = index.uploads.get(id).filter(|u| u.bucket == bucket && u.key == key);
    upload.cloned().ok_or_else(|| s3_error!(NoSuchUpload))
}

fn part_number(n: i32) -> S3Result<u32> {
    match u32::try_from(n) {
        Ok(number) if (1..=MAX_PART_NUMBER).contains(&n) => Ok(number),
        _ => Err(s3_error!(InvalidArgument, "Part numbers go from 1 to 10000.")),
    }
}

pub(super) async fn put_part(
    service: &Service,
    mut input: UploadPartInput,
    announced: Announced,
) -> S3Result<UploadPartOutput> {
    let number = part_number(input.part_number)?;
    find(&service.shared, &input.bucket, &input.key, &input.upload_id)?;
    let got = receive(&service.shared.blobs, input.body.take(), announced, true).await?;
    let etag = store_part(service, input.upload_id, number, got).await?;
    Ok(UploadPartOutput {
        e_tag: Some(ETag::Strong(etag)),
        ..Default::default()
    })
}

async fn store_part(service: &Service, id: String, number: u32, got: Received) -> S3Result<String> {
    let Place::File(file) = got.place else {
        return Err(s3_error!(InternalError));
    };
    let etag = hex::encode(got.md5);
    let part = Part {
        blob: Blob {
            id: file.id(),
            len: got.size,
        },
        etag: etag.clone(),
        modified: now_secs(),
    };
    service.order(Order::PutPart { id, number, part, file }).await?;
    Ok(etag)
}

pub(super) async fn copy_part(service: &Service, mut input: UploadPartCopyInput) -> S3Result<UploadPartCopyOutput> {
    let number = part_number(input.part_number)?;
    find(&service.shared, &input.bucket, &input.key, &input.upload_id)?;
    let (bucket, key) = copy_source(&input.copy_source)?;
    let (record, source) = open(&service.shared, bucket, key).await?;
    check_copy_source(
        &record,
        input.copy_source_if_match.as_ref(),
        input.copy_source_if_none_match.as_ref(),
        input.copy_source_if_modified_since.take(),
        input.copy_source_if_unmodified_since.take(),
    )?;
    let range = copy_range(input.copy_source_range.as_deref(), record.size)?;
    let announced = Announced {
        length: Some(signed(range.end - range.start)),
        ..Announced::default()
    };
    let body = source.stream(&service.shared, range);
    let got = receive(&service.shared.blobs, Some(body), announced, true).await?;
    let etag = store_part(service, input.upload_id, number, got).await?;
    let result = CopyPartResult {
        e_tag: Some(ETag::Strong(etag)),
        last_modified: Some(timestamp(now_secs())),
        ..Default::default()
    };
    Ok(UploadPartCopyOutput {
        copy_part_result: Some(result),
        ..Default::default()
    })
}

fn copy_range(asked: Option<&str>, size: u64) -> S3Result<Range<u64>> {
    match asked {
        None => Ok(0..size),
        Some(text) => {
            let range =
                s3s::dto::Range::parse(text).map_err(|_| s3_error!(InvalidArgument, "The copy range is malformed."))?;
            Ok(range.check(size)?)
        }
    }
}

pub(super) async fn complete(
    service: &Service,
    input: CompleteMultipartUploadInput,
) -> S3Result<CompleteMultipartUploadOutput> {
    let upload = find(&service.shared, &input.bucket, &input.key, &input.upload_id)?;
    let listed = input.multipart_upload.and_then(|m| m.parts).unwrap_or_default();
    let parts = chosen_parts(&upload, &listed)?;
    let etag = etag_of_parts(parts.iter().map(|(_, part)| part.etag.as_str()));
    // The writer fills in size and body from the parts as they are when it completes the upload.
    let record = Record {
        size: 0,
        etag: etag.clone(),
        modified: now_secs(),
        body: Body::Blobs(Vec::new()),
        headers: upload.headers.clone(),
    };
    let when = When {
        if_match: input.if_match,
        if_none_match: input.if_none_match,
    };
    let parts = parts.iter().map(|(number, part)| (*number, part.blob)).collect();
    service
        .order(Order::Complete {
            id: input.upload_id,
            record,
            parts,
            when,
        })
        .await?;
    Ok(CompleteMultipartUploadOutput {
        location: Some(format!("/{}/{}", input.bucket, input.key)),
        bucket: Some(input.bucket),
        key: Some(input.key),
        e_tag: Some(ETag::Strong(etag)),
        ..Default::default()
    })
}

/// The parts that the client lists, checked as S3 checks them: known, unchanged, in order, and large enough.
fn chosen_parts<'u>(upload: &'u Upload, listed: &[CompletedPart]) -> S3Result<Vec<(u32, &'u Part)>> {
    let mut chosen: Vec<(u32, &Part)> = Vec::with_capacity(listed.len());
    for named in listed {
        let number = part_number(named.part_number.unwrap_or(0))?;
        if chosen.last().is_some_and(|(last, _)| *last >= number) {
            return Err(s3_error!(InvalidPartOrder));
        }
        let part = upload.parts.get(&number).ok_or_else(|| s3_error!(InvalidPart))?;
        if named.e_tag.as_ref().is_some_and(|e| e.value() != part.etag) {
            return Err(s3_error!(InvalidPart));
        }
        chosen.push((number, part));
    }
    match chosen.split_last() {
        None => Err(s3_error!(MalformedXML, "An upload needs at least one part.")),
        Some((_, rest)) if rest.iter().any(|(_, p)| p.blob.len < MIN_PART) => Err(s3_error!(EntityTooSmall)),
        Some(_) => Ok(chosen),
    }
}

pub(super) fn list_parts(shared: &Shared, input: ListPartsInput) -> S3Result<ListPartsOutput> {
    let upload = find(shared, &input.bucket, &input.key, &input.upload_id)?;
    let after = input.part_number_marker.unwrap_or(0);
    let max = input.max_parts.unwrap_or(1000).clamp(0, 1000);
    let rest = upload.parts.iter().filter(|(n, _)| i64::from(**n) > i64::from(after));
    let shown: Vec<_> = rest.clone().take(usize::try_from(max).unwrap_or(0)).collect();
    let truncated = rest.count() > shown.len();
    let last = shown.last().and_then(|(n, _)| i32::try_from(**n).ok());
    let parts = shown.into_iter().map(|(n, p)| s3s::dto::Part {
        part_number: i32::try_from(*n).ok(),
        e_tag: Some(ETag::Strong(p.etag.clone())),
        size: Some(signed(p.blob.len)),
        last_modified: Some(timestamp(p.modified)),
        ..Default::default()
    });
    Ok(ListPartsOutput {
        parts: Some(parts.collect()),
        is_truncated: Some(truncated),
        next_part_number_marker: last.filter(|_| truncated),
        part_number_marker: Some(after),
        max_parts: Some(max),
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        ..Default::default()
    })
}

pub(super) fn list_uploads(shared: &Shared, input: ListMultipartUploadsInput) -> S3Result<ListMultipartUploadsOutput> {
    let index = shared.index.read();
    if !index.buckets.contains_key(&input.bucket) {
        return Err(s3_error!(NoSuchBucket));
    }
    let prefix = input.prefix.clone().unwrap_or_default();
    let mut open: Vec<(&str, &str, u64)> = index
        .uploads
        .iter()
        .filter(|(_, u)| u.bucket == input.bucket && u.key.starts_with(&prefix))
        .map(|(id, u)| (u.key.as_str(), id.as_str(), u.started))
        .collect();
    open.sort_unstable();
    let (key_marker, id_marker) = (
        input.key_marker.clone().unwrap_or_default(),
        input.upload_id_marker.clone().unwrap_or_default(),
    );
    if !key_marker.is_empty() {
        open.retain(|(key, id, _)| {
            *key > key_marker.as_str() || (*key == key_marker && !id_marker.is_empty() && *id > id_marker.as_str())
        });
    }
    let max = input.max_uploads.unwrap_or(1000).clamp(0, 1000);
    let truncated = open.len() > usize::try_from(max).unwrap_or(0);
    open.truncate(usize::try_from(max).unwrap_or(0));
    let last = open
        .last()
        .filter(|_| truncated)
        .map(|(key, id, _)| ((*key).to_owned(), (*id).to_owned()));
    let uploads = open.into_iter().map(|(key, id, started)| MultipartUpload {
        key: Some(key.to_owned()),
        upload_id: Some(id.to_owned()),
        initiated: Some(timestamp(started)),
        ..Default::default()
    });
    Ok(ListMultipartUploadsOutput {
        uploads: Some(uploads.collect()),
        is_truncated: Some(truncated),
        next_key_marker: last.as_ref().map(|l| l.0.clone()),
        next_upload_id_marker: last.map(|l| l.1),
        max_uploads: Some(max),
        prefix: input.prefix,
        key_marker: input.key_marker,
        upload_id_marker: input.upload_id_marker,
        bucket: Some(input.bucket),
        ..Default::default()
    })
}
