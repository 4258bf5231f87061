//! PUT: whole bodies, files (large ones in parts), and what to make of a refused precondition.
//!
//! A PUT whose answer was lost is sent again, and then meets its own work: 412, although nobody else wrote.
//! So a refusal is a conflict only when the object there is not the one that was being written: its token tells, or its
//! ETag, which on most servers is the MD5 of what was sent.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::Method;
use md5::{Digest as _, Md5};
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;

use super::failure::target;
use super::multipart::Multipart;
use super::wire::{Ask, Refused};
use super::{Inner, TOKEN, TOKEN_HEADER, now, unquoted};
use crate::{Act, Change, ObjectInfo, Precondition, Result, StoreError};

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

pub(super) fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}

/// The two headers of a precondition.
pub(super) fn conditions(pre: &Precondition) -> (Option<String>, Option<String>) {
    match pre {
        Precondition::None => (None, None),
        Precondition::Absent => (None, Some("*".to_owned())),
        Precondition::Matches(etag) => (Some(quoted(etag)), None),
    }
}

/// The save's token as the object carries it.
pub(super) fn metadata(token: Option<&str>) -> Option<HashMap<String, String>> {
    token.map(|token| HashMap::from([(TOKEN.to_owned(), token.to_owned())]))
}

/// A file on its way up, and who says whether it is still what it was.
pub(super) struct LocalFile<'a> {
    pub path: &'a Path,
    pub unchanged: &'a (dyn Fn() -> bool + Send + Sync),
}

impl Inner {
    /// One PUT; answers the ETag.
    pub(super) async fn send_body(
        &self,
        key: &str,
        body: Bytes,
        pre: &Precondition,
        token: Option<&str>,
    ) -> Result<String, Refused> {
        let (if_match, if_none_match) = conditions(pre);
        let mut headers = Vec::new();
        headers.extend(if_match.map(|etag| ("if-match", etag)));
        headers.extend(if_none_match.map(|any| ("if-none-match", any)));
        headers.extend(token.map(|token| (TOKEN_HEADER, token.to_owned())));
        let (act, method) = (Act::Put, Method::PUT);
        let answer = self
            .send(Ask {
                act,
                method,
                key,
                headers,
                body,
            })
            .await?;
        Ok(unquoted(answer.header("etag")))
    }

    pub(super) async fn put(
        &self,
        key: &str,
        body: Bytes,
        pre: &Precondition,
        token: Option<&str>,
    ) -> Result<ObjectInfo> {
        let mut sent = pre;
        if !self.abilities.conditional_put {
            self.look_first(Act::Put, key, pre).await?;
            sent = &Precondition::None;
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let (error, status) = match self.send_body(key, body.clone(), sent, token).await {
                Ok(etag) => {
                    return Ok(ObjectInfo {
                        key: key.to_owned(),
                        size: body.len() as u64,
                        etag,
                        modified: now(),
                    });
                }
                Err(refused) => refused,
            };
            if status == Some(409) && error.is_conflict() && tries <= CONFLICT_RETRIES {
                tokio::time::sleep(CONFLICT_PAUSE).await;
                continue;
            }
            let md5 = || hex::encode(Md5::digest(&body));
            return self.own_or_conflict(key, pre, error, token, md5).await;
        }
    }

    /// On a server that does not look at conditions itself: HEAD instead. Between it and the write others may write.
    pub(super) async fn look_first(&self, act: Act, key: &str, pre: &Precondition) -> Result<()> {
        let holds = match pre {
            Precondition::None => true,
            Precondition::Absent => self.head(key).await?.is_none(),
            Precondition::Matches(etag) => self.head(key).await?.is_some_and(|o| o.etag == *etag),
        };
        if holds { Ok(()) } else { Err(self.conflict(act, key)) }
    }

    /// After a refusal: success when the object there is what we sent.
    pub(super) async fn own_or_conflict(
        &self,
        key: &str,
        pre: &Precondition,
        error: StoreError,
        token: Option<&str>,
        etag: impl FnOnce() -> String,
    ) -> Result<ObjectInfo> {
        let conditional = *pre != Precondition::None;
        // S3 says 404 when If-Match meets no object: for us a conflict like any other.
        if !(conditional && (error.is_conflict() || error.is_no_such_key())) {
            return Err(error);
        }
        match self.head_with_token(key).await? {
            Some((there, Some(its))) if token == Some(its.as_str()) => Ok(there),
            Some((there, _)) if there.etag == etag() => Ok(there),
            _ => Err(self.conflict(Act::Put, key)),
        }
    }

    pub(super) async fn put_file(
        self: &Arc<Self>,
        key: &str,
        file: LocalFile<'_>,
        pre: Precondition,
        token: Option<&str>,
    ) -> Result<ObjectInfo> {
        let unreadable = |source| self.unreadable(key, file.path, source);
        let mut source = File::open(file.path).await.map_err(unreadable)?;
        let size = source.metadata().await.map_err(unreadable)?.len();
        if size <= MULTIPART_ABOVE {
            let mut body = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
            source.read_to_end(&mut body).await.map_err(unreadable)?;
            file.check()?;
            let writing = self.changes.writing(key);
            let info = self.put(key, Bytes::from(body), &pre, token).await?;
            if let Some(writing) = writing {
                writing.done(Change::Put(info.clone()));
            }
            return Ok(info);
        }
        let upload = Multipart::begin(self, key, token).await?;
        let done = match self.send_parts(&upload, key, source, size, file.path).await {
            Ok(()) => match file.check() {
                Ok(()) => upload.complete(pre).await,
                Err(changed) => Err(changed),
            },
            Err(e) => Err(e),
        };
        if done.is_err() {
            // Best effort: what failed is told.
            let _ = upload.abort().await;
        }
        done
    }

    /// The file is read in order, a part when there is room for one; the parts travel side by side.
    async fn send_parts(&self, upload: &Multipart, key: &str, file: File, size: u64, path: &Path) -> Result<()> {
        let part_size = PART.max(size.div_ceil(10_000));
        let parts = stream::try_unfold((file, 1_u16), |(mut file, number)| async move {
            let part = read_part(&mut file, part_size).await;
            let part = part.map_err(|source| self.unreadable(key, path, source))?;
            Ok::<_, StoreError>((!part.is_empty()).then_some(((number, part), (file, number + 1))))
        });
        // Boxed: only so is the whole future known to be `Send`.
        let send = |(number, part)| upload.part(number, part);
        parts.boxed().try_for_each_concurrent(PARTS_AT_ONCE, send).await
    }

    fn unreadable(&self, key: &str, path: &Path, source: std::io::Error) -> StoreError {
        StoreError::LocalFile {
            target: target(&self.bucket, Some(key)),
            path: path.to_owned(),
            source,
        }
    }
}

impl LocalFile<'_> {
    fn check(&self) -> Result<()> {
        if (self.unchanged)() {
            return Ok(());
        }
        Err(StoreError::FileChanged {
            path: self.path.to_owned(),
        })
    }
}

async fn read_part(file: &mut File, len: u64) -> std::io::Result<Bytes> {
    let mut part = BytesMut::with_capacity(usize::try_from(len).unwrap_or(0));
    let mut rest = file.take(len);
    while rest.read_buf(&mut part).await? > 0 {}
    Ok(part.freeze())
}
