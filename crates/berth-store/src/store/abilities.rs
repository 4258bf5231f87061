//! What the server can do beyond plain S3, found out by trying: servers ignore conditions that they do not know.
//!
//! Each probe makes an object of its own under `.berth/`, asks for something that must be refused, and takes the object
//! away again. A server that lets it pass ignores the condition; then the client looks (HEAD) before it writes, and
//! between the two somebody else may write.

use crate::{Precondition, Result, StoreError};

use super::Inner;

/// An ETag that no object has.
const NO_ETAG: &str = "00000000000000000000000000000000";

/// Which conditions the server checks itself, and whether it tells of changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// PUT with `If-None-Match: *` and with `If-Match`; the same for the end of an upload in parts.
    pub conditional_put: bool,
    /// DELETE with `If-Match`.
    pub conditional_delete: bool,
    /// COPY with `x-amz-copy-source-if-match`.
    pub conditional_copy_source: bool,
    /// COPY with `If-None-Match: *` and with `If-Match` for its destination.
    pub conditional_copy: bool,
}

impl Abilities {
    /// Those of the embedded server.
    pub(super) const ALL: Self = Self {
        conditional_put: true,
        conditional_delete: true,
        conditional_copy_source: true,
        conditional_copy: true,
    };
}

impl Inner {
    /// Tries every ability; the probes run side by side, each to its end, so that one that fails leaves no other's object.
    pub(super) async fn probe(&self) -> Result<Abilities> {
        let (put, delete, copies) = futures::join!(self.probe_put(), self.probe_delete(), self.probe_copy());
        let (put, delete, (source, copy)) = (put?, delete?, copies?);
        Ok(Abilities {
            conditional_put: put,
            conditional_delete: delete,
            conditional_copy_source: source,
            conditional_copy: copy,
        })
    }

    async fn probe_put(&self) -> Result<bool> {
        let key = self.probe_object().await?;
        let twice = self.send_put(&key, &Precondition::Absent).await;
        let other = self.send_put(&key, &Precondition::Matches(NO_ETAG.to_owned())).await;
        self.send_delete(&key, None).await?;
        Ok(was_refused(twice)? && was_refused(other)?)
    }

    async fn probe_delete(&self) -> Result<bool> {
        let key = self.probe_object().await?;
        let refused = was_refused(self.send_delete(&key, Some(NO_ETAG)).await);
        self.send_delete(&key, None).await?;
        refused
    }

    /// Whether conditions of the source, and of the destination, are honoured.
    async fn probe_copy(&self) -> Result<(bool, bool)> {
        let (from, to) = futures::try_join!(self.probe_object(), self.probe_object())?;
        let changed = self.send_copy(&from, Some(NO_ETAG), &to, &Precondition::None).await;
        let taken = self.send_copy(&from, None, &to, &Precondition::Absent).await;
        let other = Precondition::Matches(NO_ETAG.to_owned());
        let other = self.send_copy(&from, None, &to, &other).await;
        futures::try_join!(self.send_delete(&from, None), self.send_delete(&to, None))?;
        Ok((was_refused(changed)?, was_refused(taken)? && was_refused(other)?))
    }

    async fn probe_object(&self) -> Result<String> {
        let key = format!(".berth/probe-{}", hex::encode(rand::random::<[u8; 8]>()));
        self.send_put(&key, &Precondition::None).await?;
        Ok(key)
    }

    async fn send_put(&self, key: &str, pre: &Precondition) -> Result<String> {
        self.send_body(key, bytes::Bytes::new(), pre, None)
            .await
            .map_err(|(error, _)| error)
    }
}

/// Whether a request whose condition does not hold was refused for that; some servers refuse the header itself.
fn was_refused<T>(answer: Result<T>) -> Result<bool> {
    match answer {
        Ok(_) | Err(StoreError::Refused { .. }) => Ok(false),
        Err(e) if e.is_conflict() => Ok(true),
        Err(e) => Err(e),
    }
}
