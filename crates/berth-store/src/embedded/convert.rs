//! Between S3's words and ours: conditions of reads, ranges, times, headers, ETags.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use md5::{Digest as _, Md5};
use s3s::dto::{CopySource, ETag, ETagCondition, Metadata, Timestamp};
use s3s::{S3Error, S3Result, s3_error};

use super::record::Record;
use super::stage::matches_etag;

/// Checks the conditions of a read; S3's order: If-Match before If-Unmodified-Since, If-None-Match before
/// If-Modified-Since, and the ETag's word goes before the date's.
pub(super) fn check_read(
    record: &Record,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
    modified_since: Option<Timestamp>,
    unmodified_since: Option<Timestamp>,
) -> S3Result<()> {
    let modified = UNIX_EPOCH + Duration::from_secs(record.modified);
    match if_match {
        Some(wanted) if !matches_etag(wanted, &record.etag) => return Err(s3_error!(PreconditionFailed)),
        None if unmodified_since.is_some_and(|t| modified > system_time(t)) => {
            return Err(s3_error!(PreconditionFailed));
        }
        _ => {}
    }
    let unchanged = match if_none_match {
        Some(known) => matches_etag(known, &record.etag),
        None => modified_since.is_some_and(|t| modified <= system_time(t)),
    };
    if unchanged { Err(not_modified(record)) } else { Ok(()) }
}

pub(super) fn not_modified(record: &Record) -> S3Error {
    let mut error = s3_error!(NotModified);
    error.set_status_code(http::StatusCode::NOT_MODIFIED);
    if let Ok(etag) = http::HeaderValue::from_str(&format!("\"{}\"", record.etag)) {
        error.set_headers(http::HeaderMap::from_iter([(http::header::ETAG, etag)]));
    }
    error
}

pub(super) fn system_time(t: Timestamp) -> SystemTime {
    SystemTime::from(time::OffsetDateTime::from(t))
}

pub(super) fn timestamp(secs: u64) -> Timestamp {
    Timestamp::from(UNIX_EPOCH + Duration::from_secs(secs))
}

pub(super) fn etag(record: &Record) -> ETag {
    ETag::Strong(record.etag.clone())
}

/// S3's lengths are signed.
pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The range asked for and its `Content-Range`.
pub(super) fn resolve(range: Option<s3s::dto::Range>, size: u64) -> S3Result<(Range<u64>, Option<String>)> {
    match range {
        None => Ok((0..size, None)),
        Some(asked) => {
            let r = asked.check(size)?;
            let shown = format!("bytes {}-{}/{size}", r.start, r.end.saturating_sub(1));
            Ok((r, Some(shown)))
        }
    }
}

pub(super) fn user(metadata: Option<Metadata>) -> BTreeMap<String, String> {
    metadata.unwrap_or_default().into_iter().collect()
}

pub(super) fn metadata(record: &Record) -> Option<Metadata> {
    let pairs = record.headers.user.iter().map(|(k, v)| (k.clone(), v.clone()));
    (!record.headers.user.is_empty()).then(|| pairs.collect())
}

pub(super) fn unix(t: Option<Timestamp>) -> Option<i64> {
    t.map(|t| time::OffsetDateTime::from(t).unix_timestamp())
}

pub(super) fn expires(record: &Record) -> Option<Timestamp> {
    time::OffsetDateTime::from_unix_timestamp(record.headers.expires?)
        .ok()
        .map(Timestamp::from)
}

pub(super) fn content_type(record: &Record) -> String {
    record
        .headers
        .content_type
        .clone()
        .unwrap_or_else(|| "binary/octet-stream".to_owned())
}

/// The bucket and key a copy is made from.
pub(super) fn copy_source(source: &CopySource) -> S3Result<(&str, &str)> {
    match source {
        CopySource::Bucket {
            bucket,
            key,
            version_id: None,
        } => Ok((bucket, key)),
        _ => Err(s3_error!(
            NotImplemented,
            "Copies are made from BUCKET/KEY, without versions."
        )),
    }
}

/// As for a read, but a copy that is not wanted is 412, never 304.
pub(super) fn check_copy_source(
    record: &Record,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
    modified_since: Option<Timestamp>,
    unmodified_since: Option<Timestamp>,
) -> S3Result<()> {
    check_read(record, if_match, if_none_match, modified_since, unmodified_since)
        .map_err(|_| s3_error!(PreconditionFailed))
}

/// A condition of a copy's destination, which `s3s` does not read.
pub(super) fn condition(headers: &http::HeaderMap, name: http::HeaderName) -> S3Result<Option<ETagCondition>> {
    let malformed = |_| s3_error!(InvalidArgument, "A condition of the copy is malformed.");
    headers
        .get(name)
        .map(|value| ETagCondition::parse_http_header(value.as_bytes()).map_err(malformed))
        .transpose()
}

/// The ETag of an object made of parts: the MD5 of the parts' MD5s, and how many.
pub(super) fn etag_of_parts<'a>(etags: impl ExactSizeIterator<Item = &'a str>) -> String {
    let count = etags.len();
    let mut md5 = Md5::new();
    for etag in etags {
        md5.update(hex::decode(etag).unwrap_or_default());
    }
    format!("{}-{count}", hex::encode(md5.finalize()))
}
