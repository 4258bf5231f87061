//! Removing and copying: of one version alone, where that is asked for.
//!
//! A request whose answer was lost is sent again, and may then meet its own work: a removal finds nothing, a copy finds
//! its destination taken by the very bytes it was to put there. Neither is a conflict.

use http::Method;
use percent_encoding::utf8_percent_encode;

use super::upload::{conditions, quoted};
use super::{Inner, PLAIN, unquoted};
use crate::{Act, ObjectInfo, Precondition, Result, StoreError};

impl Inner {
    /// One DELETE, with `If-Match` if `etag` is given.
    pub(super) async fn send_delete(&self, key: &str, etag: Option<&str>) -> Result<()> {
        let headers = etag.map(|etag| ("if-match", quoted(etag))).into_iter().collect();
        let removed = self.ask(Act::Delete, Method::DELETE, key, headers).await;
        removed.map(drop).map_err(|(error, _)| error)
    }

    /// Removes the version `etag`; done when there is nothing.
    pub(super) async fn delete_if(&self, key: &str, etag: &str) -> Result<()> {
        let conflict = || self.conflict(Act::Delete, key);
        if !self.abilities.conditional_delete {
            match self.head(key).await? {
                None => return Ok(()),
                Some(there) if there.etag != etag => return Err(conflict()),
                Some(_) => return self.send_delete(key, None).await,
            }
        }
        match self.send_delete(key, Some(etag)).await {
            Ok(()) => Ok(()),
            Err(e) if e.is_no_such_key() => Ok(()),
            // Some servers say 412 also when there is nothing.
            Err(e) if e.is_conflict() => match self.head(key).await? {
                None => Ok(()),
                Some(_) => Err(conflict()),
            },
            Err(e) => Err(e),
        }
    }

    /// One COPY; answers the ETag of the copy.
    pub(super) async fn send_copy(
        &self,
        from: &str,
        etag: Option<&str>,
        to: &str,
        pre: &Precondition,
    ) -> Result<String> {
        let source = format!("{}/{}", self.bucket, utf8_percent_encode(from, PLAIN));
        let (if_match, if_none_match) = conditions(pre);
        let request = self
            .client
            .copy_object()
            .bucket(&self.bucket)
            .key(to)
            .copy_source(source);
        let request = request.set_copy_source_if_match(etag.map(quoted));
        let request = request.set_if_match(if_match).set_if_none_match(if_none_match);
        let copied = request.send().await.map_err(|e| self.failure(Act::Copy, Some(to), e))?;
        Ok(unquoted(copied.copy_object_result().and_then(|result| result.e_tag())))
    }

    /// Copies the version `etag` of `from`, if `pre` holds for `to`.
    pub(super) async fn copy(
        &self,
        from: &str,
        etag: Option<&str>,
        to: &str,
        pre: &Precondition,
    ) -> Result<ObjectInfo> {
        if from == to {
            // S3 refuses a copy onto itself that changes nothing.
            return match self.head(from).await? {
                None => Err(self.no_such_key(from)),
                Some(there) if etag.is_some_and(|etag| there.etag != etag) => Err(self.conflict(Act::Copy, from)),
                Some(there) => Ok(there),
            };
        }
        let (mut sent_etag, mut sent_pre) = (etag, pre);
        if let (Some(wanted), false) = (etag, self.abilities.conditional_copy_source) {
            let there = self.head(from).await?.ok_or_else(|| self.no_such_key(from))?;
            if there.etag != wanted {
                return Err(self.conflict(Act::Copy, from));
            }
            sent_etag = None;
        }
        if !self.abilities.conditional_copy {
            self.look_first(Act::Copy, to, pre).await?;
            sent_pre = &Precondition::None;
        }
        let copied = match self.send_copy(from, sent_etag, to, sent_pre).await {
            Ok(copied) => copied,
            Err(e) if e.is_conflict() || e.is_no_such_key() => return self.why_not_copied(from, etag, to).await,
            Err(e) => return Err(e),
        };
        // The answer has no size.
        match self.head(to).await? {
            Some(there) if copied.is_empty() || there.etag == copied => Ok(there),
            // Overwritten or removed since.
            _ => Err(self.conflict(Act::Copy, to)),
        }
    }

    /// After a refused copy: which of the two was not as expected, or was it our own earlier try.
    async fn why_not_copied(&self, from: &str, etag: Option<&str>, to: &str) -> Result<ObjectInfo> {
        let source = self.head(from).await?.ok_or_else(|| self.no_such_key(from))?;
        if etag.is_some_and(|etag| source.etag != etag) {
            return Err(self.conflict(Act::Copy, from));
        }
        match self.head(to).await? {
            Some(there) if there.etag == source.etag => Ok(there),
            _ => Err(self.conflict(Act::Copy, to)),
        }
    }

    pub(super) fn conflict(&self, act: Act, key: &str) -> StoreError {
        StoreError::Conflict {
            act,
            bucket: self.bucket.clone(),
            key: key.to_owned(),
        }
    }

    pub(super) fn no_such_key(&self, key: &str) -> StoreError {
        StoreError::NoSuchKey {
            bucket: self.bucket.clone(),
            key: key.to_owned(),
        }
    }
}
