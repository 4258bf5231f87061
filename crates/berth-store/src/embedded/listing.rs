//! LIST, version 2 and version 1, in S3's words over the index's pages.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::*;
use s3s::{S3Result, s3_error};

use super::convert::signed;
use super::index::{Listing, Page};
use super::writer::Shared;
use crate::ObjectInfo;

/// S3's most; a client that asks for more gets this many.
const MAX_KEYS: i32 = 1000;
/// What `encoding-type=url` leaves as it is. A space becomes `%20`, which every client's decoder reads.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/')
    .remove(b'*');

pub(super) fn list_v2(shared: &Shared, input: ListObjectsV2Input) -> S3Result<ListObjectsV2Output> {
    let max = page_size(input.max_keys)?;
    let after = match &input.continuation_token {
        Some(token) => decode_token(token)?,
        None => input.start_after.clone().unwrap_or_default(),
    };
    let page = page(
        shared,
        &input.bucket,
        input.prefix.as_deref(),
        input.delimiter.as_deref(),
        &after,
        max,
    )?;
    let text = Encoding::of(input.encoding_type.as_ref());
    let count = page.objects.len() + page.prefixes.len();
    Ok(ListObjectsV2Output {
        key_count: Some(i32::try_from(count).unwrap_or(MAX_KEYS)),
        max_keys: Some(max),
        is_truncated: Some(page.next.is_some()),
        next_continuation_token: page.next.as_ref().map(|last| URL_SAFE_NO_PAD.encode(last)),
        contents: Some(contents(&page, &text)),
        common_prefixes: Some(common_prefixes(&page, &text)),
        continuation_token: input.continuation_token,
        delimiter: input.delimiter.map(|d| text.apply(&d)),
        prefix: Some(text.apply(&input.prefix.unwrap_or_default())),
        start_after: input.start_after.map(|s| text.apply(&s)),
        encoding_type: input.encoding_type,
        name: Some(input.bucket),
        ..Default::default()
    })
}

pub(super) fn list_v1(shared: &Shared, input: ListObjectsInput) -> S3Result<ListObjectsOutput> {
    let max = page_size(input.max_keys)?;
    let after = input.marker.clone().unwrap_or_default();
    let page = page(
        shared,
        &input.bucket,
        input.prefix.as_deref(),
        input.delimiter.as_deref(),
        &after,
        max,
    )?;
    let text = Encoding::of(input.encoding_type.as_ref());
    Ok(ListObjectsOutput {
        max_keys: Some(max),
        is_truncated: Some(page.next.is_some()),
        next_marker: page.next.as_ref().map(|last| text.apply(last)),
        contents: Some(contents(&page, &text)),
        common_prefixes: Some(common_prefixes(&page, &text)),
        delimiter: input.delimiter.map(|d| text.apply(&d)),
        prefix: Some(text.apply(&input.prefix.unwrap_or_default())),
        marker: Some(text.apply(&after)),
        encoding_type: input.encoding_type,
        name: Some(input.bucket),
        ..Default::default()
    })
}

fn page_size(asked: Option<i32>) -> S3Result<i32> {
    match asked {
        Some(n) if n < 0 => Err(s3_error!(InvalidArgument, "max-keys must not be negative.")),
        n => Ok(n.unwrap_or(MAX_KEYS).min(MAX_KEYS)),
    }
}

fn decode_token(token: &str) -> S3Result<String> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    bytes
        .and_then(|b| String::from_utf8(b).ok())
        .ok_or_else(|| s3_error!(InvalidArgument, "The continuation token is none of this server's."))
}

fn page(
    shared: &Shared,
    bucket: &str,
    prefix: Option<&str>,
    delimiter: Option<&str>,
    after: &str,
    max: i32,
) -> S3Result<Page> {
    let index = shared.index.read();
    let objects = index.buckets.get(bucket).ok_or_else(|| s3_error!(NoSuchBucket))?;
    Ok(objects.list(&Listing {
        prefix: prefix.unwrap_or(""),
        delimiter: delimiter.unwrap_or(""),
        after,
        max: usize::try_from(max).unwrap_or(0),
    }))
}

/// How names are written: as they are, or percent-encoded when the client asked (XML cannot hold every character).
enum Encoding {
    Plain,
    Url,
}

impl Encoding {
    fn of(asked: Option<&EncodingType>) -> Self {
        match asked {
            Some(t) if t.as_str() == EncodingType::URL => Self::Url,
            _ => Self::Plain,
        }
    }

    fn apply(&self, name: &str) -> String {
        match self {
            Self::Plain => name.to_owned(),
            Self::Url => utf8_percent_encode(name, PLAIN).to_string(),
        }
    }
}

fn contents(page: &Page, text: &Encoding) -> ObjectList {
    let object = |info: &ObjectInfo| Object {
        key: Some(text.apply(&info.key)),
        e_tag: Some(ETag::Strong(info.etag.clone())),
        size: Some(signed(info.size)),
        last_modified: Some(Timestamp::from(info.modified)),
        storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
        ..Default::default()
    };
    page.objects.iter().map(object).collect()
}

fn common_prefixes(page: &Page, text: &Encoding) -> CommonPrefixList {
    page.prefixes
        .iter()
        .map(|p| CommonPrefix {
            prefix: Some(text.apply(p)),
        })
        .collect()
}
