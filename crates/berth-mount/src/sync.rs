//! The way to S3: takes intents in their order and carries them out.
//!
//! Each request says what it expects to replace. If that is not so, the object is looked at: our own earlier try is known by
//! the token it was stored with; the same bytes are no conflict; what somebody else stored keeps the name, and ours is stored
//! beside it as `NAME.conflict-HOST-TIME`. What S3 does not take stays in the journal and is tried again, for ever.

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use berth_store::{ObjectInfo, Precondition, StoreError};
use berth_workspace::index::to_nanos;
use bytes::Bytes;
use fuser::Errno;
use md5::{Digest as _, Md5};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::{
    cache::CHUNK,
    core::Core,
    crash,
    draft::INLINE,
    file::{Base, Body, File},
    index::entry_of,
    journal::{Content, Held},
    ops::SMALL,
    pending::{Job, Next, Step, Want},
    upload::IN_PARTS,
};

/// Requests at once.
const CONNECTIONS: usize = 32;

/// Files that are open, removed or replaced, and whose content is only in S3 under a key that is to change.
#[derive(Debug, Default)]
pub(crate) struct Readers(Mutex<Vec<(String, Weak<File>)>>);

impl Readers {
    fn take(&self, key: &str) -> Vec<Arc<File>> {
        let mut all = self.0.lock();
        let (mine, others) = std::mem::take(&mut *all).into_iter().partition(|(of, _)| of == key);
        *all = others;
        let mine: Vec<(String, Weak<File>)> = mine;
        mine.into_iter().filter_map(|(_, file)| file.upgrade()).collect()
    }
}

/// How a request ended.
enum Ended {
    /// S3 has it, with this ETag.
    Done(Option<ObjectInfo>),
    /// S3 has something else there.
    Refused,
    /// The object to copy is not there any more.
    SourceGone,
    /// Perhaps later.
    Failed(StoreError),
}

/// What was found where something else was expected.
enum Found {
    /// Nothing, or our own earlier work.
    Expect(Option<String>),
    /// Just what was to be there.
    Same(Option<ObjectInfo>),
    /// Somebody else's.
    Theirs(ObjectInfo),
}

impl Core {
    /// A file whose object may go away must stay readable for those who have it open: it is fetched before that.
    pub(crate) fn keep_for_readers(&self, file: &Arc<File>) {
        let key = {
            let state = file.state();
            let far =
                state.opens > 0 && matches!(state.body, Body::Stored) && state.pinned.is_none() && state.size() > 0;
            far.then(|| state.base.as_ref().map(|base| base.key.clone())).flatten()
        };
        if let Some(key) = key {
            self.readers.0.lock().push((key, Arc::downgrade(file)));
        }
    }

    /// Carries out intents until the mount ends.
    pub(crate) async fn sync(self: Arc<Self>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        while !self.ended.load(std::sync::atomic::Ordering::Relaxed) {
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            match self.intents.next() {
                Next::Work(job) => {
                    let core = self.clone();
                    self.rt.spawn(async move {
                        core.carry_out(job).await;
                        drop(place);
                    });
                }
                Next::At(at) => {
                    let _ = tokio::time::timeout_at(at.into(), self.intents.wake.notified()).await;
                }
                Next::Idle => {
                    // The time-out is for the end of the mount.
                    let _ = tokio::time::timeout(Duration::from_secs(1), self.intents.wake.notified()).await;
                }
            }
        }
    }

    async fn carry_out(self: &Arc<Self>, job: Job) {
        // Nothing is sent before its record is on disk: a removal must not outlive the save that replaces it.
        if self.intents.commit(job.seq.max(job.after)).is_err() {
            return self.intents.postpone(&job, false);
        }
        for file in self.readers.take(&job.key) {
            if file.state().opens > 0 && self.bring_here(&file).await.is_err() {
                tracing::warn!(
                    key = &*job.key,
                    "who has the file open loses its old content: it cannot be fetched"
                );
            }
        }
        crash::point("sync.before_request");
        let ended = self.request(&job).await;
        crash::point("sync.after_request");
        match ended {
            Ended::Done(info) => self.done(&job, info).await,
            Ended::Refused => self.refused(&job).await,
            Ended::SourceGone => self.no_source(&job).await,
            Ended::Failed(error) => {
                let unavailable = error.is_unavailable();
                tracing::warn!(key = &*job.key, %error, "not yet in S3; kept and tried again");
                self.intents.postpone(&job, unavailable);
            }
        }
    }

    async fn request(&self, job: &Job) -> Ended {
        let expected = || job.expect.clone().map_or(Precondition::Absent, Precondition::Matches);
        let result = match &job.want {
            Want::Put => {
                let Some(held) = &job.content else {
                    tracing::error!(
                        key = &*job.key,
                        "the journal has no content for a save; it waits for the next one"
                    );
                    return Ended::Refused;
                };
                let pre = if job.key.ends_with('/') {
                    Precondition::None
                } else {
                    expected()
                };
                self.put(job, held, pre).await.map(Some)
            }
            Want::Copy { key: from, etag, .. } => {
                let copied = self.store.copy_if(from, Some(etag), &job.key, expected()).await;
                match copied {
                    Err(StoreError::Conflict { key, .. }) if key == *from => return Ended::SourceGone,
                    Err(e) if e.is_no_such_key() => return Ended::SourceGone,
                    other => other.map(Some),
                }
            }
            Want::Delete => match &job.expect {
                Some(etag) if !job.key.ends_with('/') => self.store.delete_if(&job.key, etag).await.map(|()| None),
                None if !job.key.ends_with('/') => return Ended::Refused,
                _ => self.store.delete(&job.key).await.map(|()| None),
            },
        };
        match result {
            Ok(info) => Ended::Done(info),
            Err(e) if e.is_conflict() || e.is_no_such_key() => Ended::Refused,
            Err(e) => Ended::Failed(e),
        }
    }

    async fn put(&self, job: &Job, held: &Arc<Held>, pre: Precondition) -> Result<ObjectInfo, StoreError> {
        // Of this save alone: the store takes an object with it for this very request's work.
        let token = format!("{}{:x}", self.token(&job.key), job.seq);
        if let Some(body) = held.as_file().filter(|_| held.len() > IN_PARTS) {
            // Nobody writes it any more: a draft that goes on is copied first.
            let wanted = || self.intents.is_current(job);
            return self.put_in_parts(&job.key, &body, held.len(), pre, &wanted).await;
        }
        match held.read(0, held.len() as usize) {
            Ok(bytes) => self.store.put_as(&job.key, bytes, pre, Some(&token)).await,
            Err(source) => Err(StoreError::LocalFile {
                target: format!("s3://{}/{}", self.store.bucket(), job.key),
                path: PathBuf::from("the journal"),
                source,
            }),
        }
    }

    /// What the tokens of this host's saves at `key` begin with: a copy of the object elsewhere is not ours there.
    pub(crate) fn token(&self, key: &str) -> String {
        let of_key = hex::encode(&Md5::digest(key.as_bytes())[..6]);
        format!("{}-{of_key}-", self.intents.journal.id())
    }

    /// S3 has what the job wanted.
    async fn done(self: &Arc<Self>, job: &Job, info: Option<ObjectInfo>) {
        let etag = info.as_ref().map(|info| info.etag.as_str());
        let fresh = {
            // The tree's lock: what is finished and what the tree says of it change together.
            let tree = self.tree.lock();
            let last = self.intents.finish(job, etag);
            if let (true, Some(info)) = (last, &info)
                && let Some(file) = tree.find(&job.key).and_then(|ino| tree.file(ino).ok())
            {
                let base = Base::from(info);
                let mut state = file.state();
                match &job.content {
                    Some(held) => state.stored_as(held, base.clone()),
                    None => state.base = Some(base.clone()),
                }
                job.content.clone().map(|held| (held, base))
            } else {
                None
            }
        };
        if let Some((held, base)) = fresh
            && base.size <= CHUNK
            && let Ok(bytes) = held.read(0, held.len() as usize)
        {
            self.contents.keep(&base, 0, bytes);
        }
    }

    /// S3 has something else at the key than was expected: find out what it is.
    async fn refused(self: &Arc<Self>, job: &Job) {
        match self.look(job).await {
            Err(error) => {
                tracing::warn!(key = &*job.key, %error, "not yet in S3; kept and tried again");
                self.intents.postpone(job, error.is_unavailable());
            }
            Ok(Found::Expect(etag)) => self.intents.expect(job, etag.as_deref()),
            Ok(Found::Same(info)) => self.done(job, info).await,
            Ok(Found::Theirs(theirs)) if job.want == Want::Delete => {
                let current = {
                    let _tree = self.tree.lock();
                    let current = self.intents.is_current(job);
                    if current {
                        self.intents.finish(job, Some(&theirs.etag));
                    } else {
                        // What was saved since must meet theirs as a conflict, not replace it.
                        self.intents.let_go(job);
                    }
                    current
                };
                if current {
                    tracing::info!(key = &*job.key, "removed here and changed elsewhere: theirs stays");
                    self.reconcile(&job.key).await;
                }
            }
            Ok(Found::Theirs(theirs)) => {
                if let Err(errno) = self.step_aside(job, &theirs) {
                    tracing::error!(key = &*job.key, ?errno, "a conflict could not be settled; tried again");
                    self.intents.postpone(job, false);
                }
            }
        }
    }

    async fn look(&self, job: &Job) -> Result<Found, StoreError> {
        let Some((info, token)) = self.store.head_with_token(&job.key).await? else {
            return Ok(match job.want {
                Want::Delete => Found::Same(None),
                _ => Found::Expect(None),
            });
        };
        let saved_as = |key: &str| token.as_ref().is_some_and(|token| token.starts_with(&self.token(key)));
        // A copy has its source's token, and where that was sent in parts another ETag.
        let copied = |want: &Want| match want {
            Want::Copy { key, etag, size } => *etag == info.etag || (*size == info.size && saved_as(key)),
            _ => false,
        };
        let ours = saved_as(&job.key) || job.copies.iter().any(copied);
        let same = match (&job.want, &job.content) {
            (Want::Copy { .. }, _) => copied(&job.want),
            (Want::Put, Some(held)) => {
                job.key.ends_with('/') || (held.len() == info.size && md5_of(held).is_ok_and(|md5| md5 == info.etag))
            }
            _ => false,
        };
        Ok(if same {
            Found::Same(Some(info))
        } else if ours || Some(&info.etag) == job.expect.as_ref() {
            Found::Expect(Some(info.etag))
        } else {
            Found::Theirs(info)
        })
    }

    /// Ours gets a name of its own beside theirs.
    fn step_aside(self: &Arc<Self>, job: &Job, theirs: &ObjectInfo) -> Result<(), Errno> {
        let seq = {
            let mut tree = self.tree.lock();
            if !self.intents.is_current(job) {
                // A later save is on its way and will meet the same.
                self.intents.let_go(job);
                return Ok(());
            }
            let Some(file) = tree.find(&job.key).and_then(|ino| tree.file(ino).ok()) else {
                // It was moved aside: what we have of it is an editor's backup, and the name is theirs.
                self.intents.finish(job, Some(&theirs.etag));
                self.intents.keeps_for_backup(&job.key, None);
                let mut notices = Vec::new();
                self.place(&mut tree, theirs, &mut notices);
                self.tell(&tree, notices);
                return Ok(());
            };
            self.admit(SMALL)?;
            let described = entry_of(&tree, file.ino).is_some() || self.intents.has_meta(&job.key);
            let aside = self.name_aside(&mut tree, &file, &job.key)?;
            let mtime_ns = to_nanos(file.state().times.mtime);
            let step = match (job.want.source(), &job.content) {
                (Some(from), _) => {
                    file.state().base = Some(from.clone());
                    Step::Copy {
                        key: aside.clone(),
                        from,
                        remote: None,
                        mtime_ns,
                    }
                }
                (_, Some(held)) => Step::Put {
                    key: aside.clone(),
                    content: Content::Held(held.clone()),
                    remote: None,
                    mtime_ns,
                    from: None,
                },
                _ => return Err(Errno::EIO),
            };
            let forget = Step::Forget {
                key: job.key.to_string(),
            };
            let mut files = Vec::new();
            if matches!(step, Step::Put { .. }) {
                let kept = file.state().kept;
                files.push((file.clone(), aside.clone(), kept));
            }
            let mut steps = vec![step, forget];
            if described {
                steps.push(Step::Meta {
                    key: job.key.to_string(),
                    entry: None,
                });
            }
            self.meta_step(&tree, file.ino, &aside, &mut steps);
            let seq = self.enter(&tree, steps, &files);
            self.intents.let_go(job);
            let mut notices = Vec::new();
            self.place(&mut tree, theirs, &mut notices);
            self.tell(&tree, notices);
            seq
        };
        self.commit(seq)
    }

    /// The object to copy is not there: perhaps an earlier try, whose answer was lost, has made the copy.
    async fn no_source(self: &Arc<Self>, job: &Job) {
        match self.look(job).await {
            Ok(Found::Same(info)) => self.done(job, info).await,
            Ok(_) => self.source_gone(job).await,
            Err(error) => {
                tracing::warn!(key = &*job.key, %error, "not yet in S3; kept and tried again");
                self.intents.postpone(job, error.is_unavailable());
            }
        }
    }

    /// The object to copy was changed or removed elsewhere: its old content may still be here.
    async fn source_gone(self: &Arc<Self>, job: &Job) {
        let Some(base) = job.want.source() else { return };
        let here = match base.size {
            0 => Some(Bytes::new()),
            size if size <= INLINE => self.contents.at_hand(&base, 0),
            _ => None,
        };
        let mut notices = Vec::new();
        let mut tree = self.tree.lock();
        if !self.intents.is_current(job) {
            return self.intents.let_go(job);
        }
        let file = tree.find(&job.key).and_then(|ino| tree.file(ino).ok());
        match (file, here) {
            (Some(file), Some(bytes)) => {
                let step = Step::Put {
                    key: job.key.to_string(),
                    content: Content::Bytes(bytes),
                    remote: None,
                    mtime_ns: to_nanos(file.state().times.mtime),
                    from: None,
                };
                let version = file.state().kept;
                self.enter(&tree, vec![step], &[(file, job.key.to_string(), version)]);
                self.intents.let_go(job);
            }
            (file, _) => {
                tracing::error!(
                    key = &*job.key,
                    from = base.key,
                    "was renamed here and changed elsewhere in the same moment; theirs keeps the old name"
                );
                self.intents.finish(job, None);
                // Somebody else's file may have the name.
                self.doubts.add(&job.key);
                if let Some(file) = file {
                    self.displace_file(&mut tree, file.ino, &mut notices);
                }
            }
        }
        self.tell(&tree, notices);
    }

    /// Waits until S3 has everything, at most for `limit`; what it lacks then.
    pub(crate) async fn drain(self: &Arc<Self>, limit: Duration) -> Unsent {
        let until = Instant::now() + limit;
        let unsaved = self.save_all().await;
        self.intents.hurry();
        let all = async {
            loop {
                self.intents.wait_empty().await;
                if self.index.commit_all(self).await == 0 && self.intents.pending().count == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let done = tokio::time::timeout_at(until.into(), all).await.is_ok();
        Unsent {
            unsaved,
            in_journal: if done { 0 } else { self.intents.pending().count as usize },
        }
    }
}

/// What a mount that ends could not give away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unsent {
    /// Files that even the journal did not take.
    pub(crate) unsaved: usize,
    /// Changes that wait in the journal for the next start.
    pub(crate) in_journal: usize,
}

fn md5_of(held: &Held) -> std::io::Result<String> {
    let mut md5 = Md5::new();
    let mut at = 0;
    while at < held.len() {
        let bytes = held.read(at, CHUNK as usize)?;
        md5.update(&bytes);
        at += bytes.len() as u64;
    }
    Ok(hex::encode(md5.finalize()))
}
