//! Files larger than the journal may be.
//!
//! A write that the journal's bound has no room for waits until S3 has the beginning of its file, as parts of an upload
//! ([`crate::upload`]), and gives that place on the disk back. Of such a file the journal has not all, so its save is
//! acknowledged by S3 alone: `close` and `fsync` return when it is an object there, or say `EIO` when S3 does not take it; it
//! is tried again then. Meanwhile it can be appended to and nothing else: what S3 has only parts of cannot be read (`EBUSY`),
//! written (`EFBIG`) or renamed (`EBUSY`).
//!
//! An upload's key is fixed. If somebody else stored something there meanwhile, theirs is copied to
//! `NAME.conflict-HOST-TIME`, and ours gets the name: the other way round it could only be sent once more, and not all of
//! it is here.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use berth_store::{ObjectInfo, Precondition, StoreError};
use fuser::Errno;

use crate::{
    core::Core,
    file::{Attachment, Base, Body, File},
    journal::BodyFile,
    pending::Step,
    save::{REMOTE, ROOM, conflict_name},
    upload::{Begun, Upload},
};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Ends a wait in which nothing moves.
struct Patience {
    since: Instant,
    limit: Duration,
}

impl Patience {
    fn of(limit: Duration) -> Self {
        Self {
            since: Instant::now(),
            limit,
        }
    }

    fn something_moved(&mut self) {
        self.since = Instant::now();
    }

    /// A pause; `false`: it has been too long.
    async fn lasts(&self) -> bool {
        tokio::time::sleep(LOOK).await;
        self.since.elapsed() < self.limit
    }
}

impl Core {
    /// Waits until `bytes` more of `file` have room on the journal's disk, and makes room as far as S3 has the file.
    ///
    /// # Errors
    /// `ENOSPC` when nothing moved for 10 s.
    pub(crate) async fn room_to_write(self: &Arc<Self>, file: &Arc<File>, bytes: u64) -> Result<(), Errno> {
        let mut patience = Patience::of(ROOM);
        let mut least = u64::MAX;
        while !self.intents.journal.room_for_body(bytes) {
            let body = file.state().body_file();
            if let Some(body) = body {
                let mut freed = self.release(file, &body)?;
                if freed == 0 {
                    if let Err(error) = self.send_ahead(file, &body, true).await {
                        tracing::debug!(%error, "no room for what is written, and S3 does not take it");
                    }
                    // Also when some part failed: others may have gone.
                    freed = self.release(file, &body)?;
                }
                if freed > 0 {
                    patience.something_moved();
                    continue;
                }
            }
            // What others have there may go.
            let disk = self.intents.journal.usage().disk;
            if disk < least {
                least = disk;
                patience.something_moved();
            }
            if !patience.lasts().await {
                let ino = file.ino;
                let key = self.tree.lock().key(ino).unwrap_or_default();
                tracing::error!(key, bytes, "the journal is full, and S3 takes less than is written");
                return Err(Errno::ENOSPC);
            }
        }
        Ok(())
    }

    fn release(&self, file: &File, body: &Arc<BodyFile>) -> Result<u64, Errno> {
        match self.upload_key(file, body) {
            Some(key) => {
                // Under its lock: a body that a save was made of is the journal's, and stays whole.
                let mut state = file.state();
                if state.writes_to(body) {
                    return body.upload.release(body, &key).map_err(Errno::from);
                }
                state.let_go_of_saved();
                Ok(0)
            }
            None => Ok(0),
        }
    }

    /// Makes a body that is not all here any more the object it was begun as. `number`: the version of the file it is.
    ///
    /// # Errors
    /// `EIO` when S3 takes nothing for 60 s, or has given the upload up.
    pub(crate) async fn save_through(
        self: &Arc<Self>,
        file: &Arc<File>,
        (body, len): (&Arc<BodyFile>, u64),
        number: u64,
    ) -> Result<(), Errno> {
        let mut begun = body.upload.begun.lock().await;
        if file.state().kept >= number {
            return Ok(());
        }
        let Some(upload) = begun.as_ref() else {
            tracing::error!("an upload in parts has ended, and its content is not here any more");
            return Err(Errno::EIO);
        };
        let key = upload.key.clone();
        let own = tokio::time::timeout(REMOTE, self.begin_own(&key));
        let Ok(own) = own.await else {
            tracing::warn!(key, "S3 has not taken an earlier save in time; this one is tried again");
            return Err(Errno::EIO);
        };
        let info = match self.complete_through(file, (body, len), upload).await {
            Ok(info) => info,
            Err(error) => {
                tracing::warn!(key, %error, "a file larger than the journal is not in S3 yet; tried again");
                return Err(Errno::EIO);
            }
        };
        if let Some(upload) = begun.take() {
            upload.done();
        }
        drop(begun);
        let seq = self.went_through(file, (body, number), &key, info);
        own.written();
        tokio::task::block_in_place(|| self.commit(seq))?;
        self.unsaved.remove(file);
        self.reconcile(&key).await;
        Ok(())
    }

    async fn complete_through(
        &self,
        file: &Arc<File>,
        (body, len): (&Arc<BodyFile>, u64),
        upload: &Begun,
    ) -> Result<ObjectInfo, StoreError> {
        let remote = file.state().remote(&upload.key);
        let mut pre = remote.map_or(Precondition::Absent, Precondition::Matches);
        let mut patience = Patience::of(REMOTE);
        let mut unsent = u64::MAX;
        loop {
            let ended = match Upload::send(body, upload, Some(len), &|| true).await {
                Ok(()) => upload.complete(body, len, pre.clone()).await,
                Err(error) => Err(error),
            };
            match ended {
                Err(error) if error.is_conflict() => {
                    pre = self.move_theirs(&upload.key).await?;
                    patience.something_moved();
                }
                Err(error) if error.is_unavailable() => {
                    let left = body.upload.unsent(len);
                    if left < unsent {
                        unsent = left;
                        patience.something_moved();
                    }
                    if !patience.lasts().await {
                        return Err(error);
                    }
                }
                ended => return ended,
            }
        }
    }

    /// Copies what somebody else stored at `key` to a name beside it; what may be replaced then.
    async fn move_theirs(&self, key: &str) -> Result<Precondition, StoreError> {
        let Some(theirs) = self.store.head(key).await? else {
            return Ok(Precondition::Absent);
        };
        let (folder, name) = key.rsplit_once('/').unwrap_or(("", key));
        let aside = format!("{folder}/{}", conflict_name(name));
        self.store
            .copy_if(key, Some(&theirs.etag), &aside, Precondition::Absent)
            .await?;
        tracing::warn!(
            key,
            conflict = aside,
            "changed here and elsewhere; theirs is stored beside ours, which is larger than the journal"
        );
        Ok(Precondition::Matches(theirs.etag))
    }

    /// S3 has `body`, the version `number` of the file, at `key`. The batch to commit.
    fn went_through(
        &self,
        file: &Arc<File>,
        (body, number): (&Arc<BodyFile>, u64),
        key: &str,
        info: ObjectInfo,
    ) -> u64 {
        let tree = self.tree.lock();
        let attached = {
            let mut state = file.state();
            let goes_on = !state.is_body(body);
            state.journaled(number, None, 0);
            if state.attachment == Attachment::Linked {
                state.base = Some(Base::from(&info));
                if !goes_on {
                    state.body = Body::Stored;
                }
            }
            state.attachment
        };
        tree.content_changed(file.ino);
        let mut steps = Vec::new();
        match attached {
            Attachment::Linked => self.meta_step(&tree, file.ino, key, &mut steps),
            Attachment::Unlinked => steps.push(Step::Delete {
                key: key.to_owned(),
                remote: Some(info.etag),
                linger: Duration::ZERO,
            }),
            // Somebody else's file had the name meanwhile; theirs lies beside it now, and the bucket says the rest.
            Attachment::Replaced => {}
        }
        self.enter(&tree, steps, &[])
    }
}
