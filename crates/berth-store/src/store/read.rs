//! Reading: LIST, GET of a whole object or a range of it, HEAD.

use std::ops::Range;
use std::time::UNIX_EPOCH;

use aws_sdk_s3::types::EncodingType;
use bytes::Bytes;
use percent_encoding::percent_decode_str;

use super::upload::quoted;
use super::{Inner, TOKEN, length, time, unquoted};
use crate::{Act, ObjectInfo, Result, StoreError};

impl Inner {
    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let mut objects = Vec::new();
        let mut token = None;
        loop {
            let request = self
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .encoding_type(EncodingType::Url);
            let prefix = (!prefix.is_empty()).then(|| prefix.to_owned());
            let page = request
                .set_prefix(prefix)
                .set_continuation_token(token.take())
                .send()
                .await;
            let page = page.map_err(|e| self.failure(Act::List, None, e))?;
            let encoded = page.encoding_type() == Some(&EncodingType::Url);
            for object in page.contents() {
                objects.push(ObjectInfo {
                    key: decoded(object.key().unwrap_or_default(), encoded),
                    size: length(object.size()),
                    etag: unquoted(object.e_tag()),
                    modified: time(object.last_modified()),
                });
            }
            token = page.next_continuation_token().map(str::to_owned);
            if page.is_truncated() != Some(true) || token.is_none() {
                return Ok(objects);
            }
        }
    }

    /// GET, of the version `etag` alone if one is named: the answer is of one version, whatever others write meanwhile.
    pub(super) async fn get(
        &self,
        key: &str,
        etag: Option<&str>,
        range: Option<Range<u64>>,
    ) -> Result<(ObjectInfo, Bytes)> {
        let request = self.client.get_object().bucket(&self.bucket).key(key);
        let range = range.map(|r| format!("bytes={}-{}", r.start, r.end.saturating_sub(1)));
        let mut info = ObjectInfo {
            key: key.to_owned(),
            size: 0,
            etag: String::new(),
            modified: UNIX_EPOCH,
        };
        let got = match request.set_if_match(etag.map(quoted)).set_range(range).send().await {
            Ok(got) => got,
            // The range begins after the object's end.
            Err(e) if e.raw_response().is_some_and(|r| r.status().as_u16() == 416) => return Ok((info, Bytes::new())),
            Err(e) => return Err(self.failure(Act::Get, Some(key), e)),
        };
        info.etag = unquoted(got.e_tag());
        info.modified = time(got.last_modified());
        // A server may ignore the condition.
        if etag.is_some_and(|wanted| wanted != info.etag) {
            return Err(self.conflict(Act::Get, key));
        }
        let body = got.body.collect().await;
        let body = body.map_err(|e| self.broken_body(Act::Get, key, &e))?.into_bytes();
        info.size = body.len() as u64;
        Ok((info, body))
    }

    /// The bytes of `range` that there are.
    pub(super) async fn get_range(&self, key: &str, etag: Option<&str>, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        Ok(self.get(key, etag, Some(range)).await?.1)
    }

    pub(super) async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        Ok(self.head_with_token(key).await?.map(|(info, _)| info))
    }

    pub(super) async fn head_with_token(&self, key: &str) -> Result<Option<(ObjectInfo, Option<String>)>> {
        match self.client.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(head) => {
                let info = ObjectInfo {
                    key: key.to_owned(),
                    size: length(head.content_length()),
                    etag: unquoted(head.e_tag()),
                    modified: time(head.last_modified()),
                };
                let token = head.metadata().and_then(|metadata| metadata.get(TOKEN)).cloned();
                Ok(Some((info, token)))
            }
            Err(e) => match self.failure(Act::Head, Some(key), e) {
                StoreError::NoSuchKey { .. } => Ok(None),
                other => Err(other),
            },
        }
    }
}

/// `encoding-type=url`, where a `+` is a space.
fn decoded(key: &str, encoded: bool) -> String {
    if encoded {
        percent_decode_str(&key.replace('+', " "))
            .decode_utf8_lossy()
            .into_owned()
    } else {
        key.to_owned()
    }
}
