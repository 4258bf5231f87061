//! What is kept about buckets, objects and uploads, as it is in the database and in memory.
//!
//! A body is never shared by two records: a copy gets rows and (hard-linked) files of its own. So whoever drops a record
//! may drop its body, without counting references.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::{ETag, ObjectInfo};

/// Bodies up to this many bytes are rows of the database; larger ones are files.
pub(super) const INLINE_MAX: usize = 64 * 1024;

/// The headers that a client stores with an object and gets back with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Headers {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_disposition: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_language: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_control: Option<String>,
    /// Seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
    /// `x-amz-meta-*`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub user: BTreeMap<String, String>,
}

/// One file in `blobs/` and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Blob {
    pub id: u64,
    pub len: u64,
}

/// Where an object's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Body {
    /// A row of the table of bodies.
    Inline(u64),
    /// Files, one after the other: one for a plain PUT, one a part for a multipart upload, none for an empty object.
    Blobs(Vec<Blob>),
}

impl Body {
    /// The files that go when the record goes.
    pub(super) fn blobs(&self) -> &[Blob] {
        match self {
            Self::Inline(_) => &[],
            Self::Blobs(blobs) => blobs,
        }
    }
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub size: u64,
    pub etag: String,
    /// Seconds since 1970: what every S3 header can say, so that LIST, HEAD and the change feed agree.
    pub modified: u64,
    pub body: Body,
    #[serde(flatten)]
    pub headers: Headers,
}

/// One object as it is kept in memory, where there may be a hundred thousand.
#[derive(Debug)]
pub(super) struct Kept {
    pub size: u64,
    pub etag: ETag,
    pub modified: u64,
    pub body: Body,
    /// As in the database; most have one or none.
    headers: Option<Box<[u8]>>,
}

impl From<&Record> for Kept {
    fn from(record: &Record) -> Self {
        // Strings as names: that always can be written.
        let written = || serde_json::to_vec(&record.headers).map(Vec::into_boxed_slice);
        Self {
            size: record.size,
            etag: ETag::from(&*record.etag),
            modified: record.modified,
            body: record.body.clone(),
            headers: (record.headers != Headers::default())
                .then(written)
                .and_then(Result::ok),
        }
    }
}

impl Kept {
    pub(super) fn record(&self) -> Record {
        let headers = self.headers.as_deref().map(serde_json::from_slice);
        Record {
            size: self.size,
            etag: self.etag.to_string(),
            modified: self.modified,
            body: self.body.clone(),
            headers: headers.and_then(Result::ok).unwrap_or_default(),
        }
    }

    pub(super) fn info(&self, key: &str) -> ObjectInfo {
        ObjectInfo {
            key: key.to_owned(),
            size: self.size,
            etag: self.etag.to_string(),
            modified: UNIX_EPOCH + Duration::from_secs(self.modified),
        }
    }
}

/// One part of an upload that is not complete yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub blob: Blob,
    pub etag: String,
    pub modified: u64,
}

/// An upload in parts that is neither complete nor aborted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Upload {
    pub bucket: String,
    pub key: String,
    pub started: u64,
    pub headers: Headers,
    /// Rows of their own in the database.
    #[serde(skip)]
    pub parts: BTreeMap<u32, Part>,
}

/// Whole seconds since 1970.
pub(super) fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_from_memory_as_it_was() {
        let mut record = Record {
            size: 5,
            etag: "0123456789abcdef0123456789abcdef-2".to_owned(),
            modified: 7,
            body: Body::Blobs(vec![Blob { id: 1, len: 5 }]),
            headers: Headers::default(),
        };
        assert_eq!(Kept::from(&record).record(), record);
        record.headers.content_type = Some("text/plain; charset=\u{fc}".to_owned());
        record.headers.expires = Some(-1);
        record.headers.user.insert("berth-save".to_owned(), "1".to_owned());
        assert_eq!(Kept::from(&record).record(), record);
    }
}
