//! PUT: whole bodies, files in parts, and what to make of a refused precondition.
//!
//! A PUT whose answer was lost is sent again by the SDK, and then meets its own work: 412, although nobody else wrote.
//! So a refusal is a conflict only when the object there is not the one that was being written; its ETag, which is the
//! MD5 of what was sent, tells.

use std::path::Path;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use futures::{TryStreamExt as _, stream};
use md5::{Digest as _, Md5};
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;

use super::failure::target;
use super::{Inner, now, unquoted};
use crate::{Act, ObjectInfo, Precondition, Result, StoreError};

/// Files above this go up in parts.
const MULTIPART_ABOVE: u64 = 16 * 1024 * 1024;
/// Bytes of a part, but for very large files: S3 takes 10,000 parts.
const PART: u64 = 8 * 1024 * 1024;
/// Parts on their way at once: this many parts are in memory.
const PARTS_AT_ONCE: usize = 4;
/// AWS answers 409 when two conditional writes of one key meet; the loser may try again.
const CONFLICT_RETRIES: u32 = 3;
/// The pause before such another try.
const CONFLICT_PAUSE: Duration = Duration::from_millis(50);

/// The two headers of a precondition.
fn conditions(pre: &Precondition) -> (Option<String>, Option<String>) {
    match pre {
        Precondition::None => (None, None),
        Precondition::Absent => (None, Some("*".to_owned())),
        Precondition::Matches(etag) => (Some(format!("\"{etag}\"")), None),
    }
}

impl Inner {
    pub(super) async fn put(&self, key: &str, body: Bytes, pre: &Precondition) -> Result<ObjectInfo> {
        let size = body.len() as u64;
        if !self.conditional {
            self.look_first(key, pre).await?;
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let (if_match, if_none_match) = conditions(pre);
            let request = self.client.put_object().bucket(&self.bucket).key(key);
            let request = request.set_if_match(if_match).set_if_none_match(if_none_match);
            let error = match request.body(ByteStream::from(body.clone())).send().await {
                Ok(done) => {
                    let etag = unquoted(done.e_tag());
                    return Ok(ObjectInfo {
                        key: key.to_owned(),
                        size,
                        etag,
                        modified: now(),
                    });
                }
                Err(error) => error,
            };
            let raced = error.raw_response().is_some_and(|r| r.status().as_u16() == 409);
            let error = self.failure(Act::Put, Some(key), error);
            if raced && error.is_conflict() && tries <= CONFLICT_RETRIES {
                tokio::time::sleep(CONFLICT_PAUSE).await;
                continue;
            }
            let md5 = || hex::encode(Md5::digest(&body));
            return self.own_or_conflict(key, pre, error, md5).await;
        }
    }

    /// On a server without conditional writes: HEAD instead. Between it and the PUT others may write.
    async fn look_first(&self, key: &str, pre: &Precondition) -> Result<()> {
        let holds = match pre {
            Precondition::None => true,
            Precondition::Absent => self.head(key).await?.is_none(),
            Precondition::Matches(etag) => self.head(key).await?.is_some_and(|o| o.etag == *etag),
        };
        match holds {
            true => Ok(()),
            false => Err(StoreError::Conflict {
                act: Act::Put,
                bucket: self.bucket.clone(),
                key: key.to_owned(),
            }),
        }
    }

    /// After a refusal: success when the object there is what we sent.
    async fn own_or_conflict(
        &self,
        key: &str,
        pre: &Precondition,
        error: StoreError,
        etag: impl FnOnce() -> String,
    ) -> Result<ObjectInfo> {
        let conditional = *pre != Precondition::None;
        // S3 says 404 when If-Match meets no object: for us a conflict like any other.
        if !(conditional && (error.is_conflict() || error.is_no_such_key())) {
            return Err(error);
        }
        let conflict = StoreError::Conflict {
            act: Act::Put,
            bucket: self.bucket.clone(),
            key: key.to_owned(),
        };
        match self.head(key).await? {
            Some(there) if there.etag == etag() => Ok(there),
            _ => Err(conflict),
        }
    }

    pub(super) async fn put_file(&self, key: &str, path: &Path, pre: &Precondition) -> Result<ObjectInfo> {
        let unreadable = |source| StoreError::LocalFile {
            target: target(&self.bucket, Some(key)),
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).await.map_err(unreadable)?;
        let size = file.metadata().await.map_err(unreadable)?.len();
        if size <= MULTIPART_ABOVE {
            let mut body = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
            file.read_to_end(&mut body).await.map_err(unreadable)?;
            return self.put(key, Bytes::from(body), pre).await;
        }
        if !self.conditional {
            self.look_first(key, pre).await?;
        }
        let started = self
            .client
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(key)
            .send()
            .await;
        let started = started.map_err(|e| self.failure(Act::Put, Some(key), e))?;
        let upload = Upload {
            inner: self,
            key,
            id: started.upload_id().unwrap_or_default(),
            path,
        };
        match upload.run(file, size, pre).await {
            Ok(info) => Ok(info),
            Err(e) => {
                upload.abort().await;
                Err(e)
            }
        }
    }
}

/// One file on its way up in parts.
struct Upload<'a> {
    inner: &'a Inner,
    key: &'a str,
    id: &'a str,
    path: &'a Path,
}

impl Upload<'_> {
    async fn run(&self, file: File, size: u64, pre: &Precondition) -> Result<ObjectInfo> {
        let part_size = PART.max(size.div_ceil(10_000));
        // The file is read in order, a part when there is room for one; the parts travel side by side.
        let parts = stream::try_unfold((file, 1_i32, 0_u64), |(mut file, number, sent)| async move {
            let part = self.read(&mut file, part_size).await?;
            if part.is_empty() {
                return Ok(None);
            }
            let sent = sent + part.len() as u64;
            Ok::<_, StoreError>(Some(((number, part), (file, number + 1, sent))))
        });
        let mut done: Vec<(CompletedPart, u64)> = parts
            .map_ok(|(number, part)| self.send(number, part))
            .try_buffer_unordered(PARTS_AT_ONCE)
            .try_collect()
            .await?;
        done.sort_by_key(|(part, _)| part.part_number());
        let size = done.iter().map(|(_, len)| len).sum();
        let parts: Vec<CompletedPart> = done.into_iter().map(|(part, _)| part).collect();
        self.complete(parts, size, pre).await
    }

    async fn read(&self, file: &mut File, len: u64) -> Result<Bytes> {
        let mut part = BytesMut::with_capacity(usize::try_from(len).unwrap_or(0));
        let mut rest = file.take(len);
        loop {
            match rest.read_buf(&mut part).await {
                Ok(0) => return Ok(part.freeze()),
                Ok(_) => {}
                Err(source) => {
                    let target = target(&self.inner.bucket, Some(self.key));
                    return Err(StoreError::LocalFile {
                        target,
                        path: self.path.to_owned(),
                        source,
                    });
                }
            }
        }
    }

    async fn send(&self, number: i32, part: Bytes) -> Result<(CompletedPart, u64)> {
        let len = part.len() as u64;
        let request = self
            .inner
            .client
            .upload_part()
            .bucket(&self.inner.bucket)
            .key(self.key)
            .upload_id(self.id);
        let sent = request.part_number(number).body(ByteStream::from(part)).send().await;
        let sent = sent.map_err(|e| self.inner.failure(Act::Put, Some(self.key), e))?;
        let part = CompletedPart::builder()
            .part_number(number)
            .set_e_tag(sent.e_tag)
            .build();
        Ok((part, len))
    }

    async fn complete(&self, parts: Vec<CompletedPart>, size: u64, pre: &Precondition) -> Result<ObjectInfo> {
        let (if_match, if_none_match) = conditions(pre);
        let own_etag = etag_of_parts(&parts);
        let request = self
            .inner
            .client
            .complete_multipart_upload()
            .bucket(&self.inner.bucket)
            .key(self.key);
        let request = request
            .upload_id(self.id)
            .set_if_match(if_match)
            .set_if_none_match(if_none_match);
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        match request.multipart_upload(parts).send().await {
            Ok(done) => {
                let etag = unquoted(done.e_tag());
                Ok(ObjectInfo {
                    key: self.key.to_owned(),
                    size,
                    etag,
                    modified: now(),
                })
            }
            Err(e) => {
                // The answer to the first try may have been lost: then the upload is unknown now, and the object there.
                let lost = e.raw_response().is_some_and(|r| r.status().as_u16() == 404);
                let error = self.inner.failure(Act::Put, Some(self.key), e);
                if lost
                    && let Some(there) = self.inner.head(self.key).await?
                    && there.etag == own_etag
                {
                    return Ok(there);
                }
                self.inner.own_or_conflict(self.key, pre, error, || own_etag).await
            }
        }
    }

    /// Best effort: a server forgets uploads in the end by its own rules.
    async fn abort(&self) {
        let request = self
            .inner
            .client
            .abort_multipart_upload()
            .bucket(&self.inner.bucket)
            .key(self.key);
        if let Err(error) = request.upload_id(self.id).send().await {
            let error = self.inner.failure(Act::Put, Some(self.key), error);
            tracing::debug!(%error, "cannot abort an upload in parts");
        }
    }
}

/// The ETag that S3 gives an object made of these parts.
fn etag_of_parts(parts: &[CompletedPart]) -> String {
    let mut md5 = Md5::new();
    for part in parts {
        md5.update(hex::decode(unquoted(part.e_tag())).unwrap_or_default());
    }
    format!("{}-{}", hex::encode(md5.finalize()), parts.len())
}
