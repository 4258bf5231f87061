//! An upload in parts: begun, fed with parts in any order and side by side, and completed or given up.
//!
//! It can begin while its file is still being written: nothing shows before it is completed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use md5::{Digest as _, Md5};
use parking_lot::Mutex;

use super::upload::{conditions, metadata};
use super::{Inner, now, unquoted};
use crate::{Act, Change, ObjectInfo, Precondition, Result};

/// An upload under way. Dropped before it is completed, it is given up.
pub struct Multipart {
    inner: Arc<Inner>,
    key: String,
    id: String,
    token: Option<String>,
    /// ETag and length of each part that the server has.
    parts: Mutex<BTreeMap<u16, (String, u64)>>,
    open: AtomicBool,
    runtime: tokio::runtime::Handle,
}

impl fmt::Debug for Multipart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Multipart")
            .field("key", &self.key)
            .field("id", &self.id)
            .finish()
    }
}

impl Multipart {
    pub(super) async fn begin(inner: &Arc<Inner>, key: &str, token: Option<&str>) -> Result<Self> {
        let request = inner.client.create_multipart_upload().bucket(&inner.bucket).key(key);
        let started = request.set_metadata(metadata(token)).send().await;
        let started = started.map_err(|e| inner.failure(Act::Put, Some(key), e))?;
        Ok(Self {
            inner: Arc::clone(inner),
            key: key.to_owned(),
            id: started.upload_id().unwrap_or_default().to_owned(),
            token: token.map(str::to_owned),
            parts: Mutex::default(),
            open: AtomicBool::new(true),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    /// Sends part `number` (1 to 10,000; each but the last at least 5 MiB); sent again, it takes the place of the former.
    ///
    /// # Errors
    /// As any request; see [`crate::StoreError`].
    pub async fn part(&self, number: u16, body: Bytes) -> Result<()> {
        let len = body.len() as u64;
        let request = self
            .inner
            .client
            .upload_part()
            .bucket(&self.inner.bucket)
            .key(&self.key);
        let request = request.upload_id(&self.id).part_number(i32::from(number));
        let sent = request.body(ByteStream::from(body)).send().await;
        let sent = sent.map_err(|e| self.inner.failure(Act::Put, Some(&self.key), e))?;
        self.parts.lock().insert(number, (unquoted(sent.e_tag()), len));
        Ok(())
    }

    /// Makes the parts, in the order of their numbers, the object. May be called again after an error.
    ///
    /// # Errors
    /// [`crate::StoreError::Conflict`] when `pre` does not hold, and as any request.
    pub async fn complete(&self, pre: Precondition) -> Result<ObjectInfo> {
        let writing = self.inner.changes.writing(&self.key);
        if !self.inner.abilities.conditional_put {
            self.inner.look_first(Act::Put, &self.key, &pre).await?;
        }
        let info = self.send_complete(&pre).await?;
        self.open.store(false, Ordering::Release);
        if let Some(writing) = writing {
            writing.done(Change::Put(info.clone()));
        }
        Ok(info)
    }

    async fn send_complete(&self, pre: &Precondition) -> Result<ObjectInfo> {
        let parts = self.parts.lock().clone();
        let own_etag = etag_of_parts(&parts);
        let (if_match, if_none_match) = if self.inner.abilities.conditional_put {
            conditions(pre)
        } else {
            (None, None)
        };
        let named = parts.iter().map(|(number, (etag, _))| {
            CompletedPart::builder()
                .part_number(i32::from(*number))
                .e_tag(format!("\"{etag}\""))
                .build()
        });
        let named = CompletedMultipartUpload::builder()
            .set_parts(Some(named.collect()))
            .build();
        let request = self
            .inner
            .client
            .complete_multipart_upload()
            .bucket(&self.inner.bucket)
            .key(&self.key);
        let request = request.upload_id(&self.id).multipart_upload(named);
        let request = request.set_if_match(if_match).set_if_none_match(if_none_match);
        let error = match request.send().await {
            Ok(done) => {
                return Ok(ObjectInfo {
                    key: self.key.clone(),
                    size: parts.values().map(|(_, len)| len).sum(),
                    etag: unquoted(done.e_tag()),
                    modified: now(),
                });
            }
            Err(error) => error,
        };
        // The answer to the first try may have been lost: then the upload is unknown now, and the object there.
        let lost = error.raw_response().is_some_and(|r| r.status().as_u16() == 404);
        let error = self.inner.failure(Act::Put, Some(&self.key), error);
        if lost
            && let Some(there) = self.inner.head(&self.key).await?
            && there.etag == own_etag
        {
            return Ok(there);
        }
        let token = self.token.as_deref();
        self.inner
            .own_or_conflict(&self.key, pre, error, token, || own_etag)
            .await
    }

    /// The server's name of this upload.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Leaves out of the object what was sent as parts after `count`.
    pub fn keep_first(&self, count: u16) {
        self.parts.lock().retain(|number, _| *number <= count);
    }

    /// Gives the upload up, and what was sent of it. A server forgets uploads in the end by its own rules.
    ///
    /// # Errors
    /// As any request; an upload that the server does not know is none.
    pub async fn abort(&self) -> Result<()> {
        if self.open.swap(false, Ordering::AcqRel) {
            abort(&self.inner, &self.key, &self.id).await
        } else {
            Ok(())
        }
    }
}

impl Drop for Multipart {
    fn drop(&mut self) {
        if !self.open.load(Ordering::Acquire) {
            return;
        }
        let (inner, key, id) = (Arc::clone(&self.inner), self.key.clone(), self.id.clone());
        self.runtime.spawn(async move {
            if let Err(error) = abort(&inner, &key, &id).await {
                tracing::debug!(%error, "cannot abort an upload in parts");
            }
        });
    }
}

pub(super) async fn abort(inner: &Inner, key: &str, id: &str) -> Result<()> {
    let request = inner.client.abort_multipart_upload().bucket(&inner.bucket).key(key);
    match request.upload_id(id).send().await {
        Ok(_) => Ok(()),
        Err(error) if error.raw_response().is_some_and(|r| r.status().as_u16() == 404) => Ok(()),
        Err(error) => Err(inner.failure(Act::Put, Some(key), error)),
    }
}

/// The ETag that S3 gives an object made of these parts.
fn etag_of_parts(parts: &BTreeMap<u16, (String, u64)>) -> String {
    let mut md5 = Md5::new();
    for (etag, _) in parts.values() {
        md5.update(hex::decode(etag).unwrap_or_default());
    }
    format!("{}-{}", hex::encode(md5.finalize()), parts.len())
}
