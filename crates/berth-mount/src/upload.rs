//! The way of a save to S3.
//!
//! [`Uploader::save`] is the one place where a save is acknowledged: `close` and `fsync` answer when it has returned, and it
//! returns when S3 has the bytes. A local journal, should one come, acknowledges there instead.
//!
//! A save that fails is answered with `EIO`, and its content stays here: it is tried again with growing pauses, at the next
//! `close` or `fsync`, and when the mount ends. Nothing is dropped.
//!
//! Each PUT says what it expects to replace. If somebody else changed the object first, theirs stays under the name and ours
//! is stored beside it as `NAME.conflict-HOST-TIME`; both are in the bucket and the log says so.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use berth_store::{ObjectInfo, Precondition, StoreError};
use fuser::Errno;
use parking_lot::Mutex;

use crate::{
    Pending,
    cache::CHUNK,
    core::Core,
    draft::Snapshot,
    file::{Attachment, Base, Body, File},
    kernel::Notice,
    tree::{FILE_PERM, Ino, Look, Node, Times},
};

/// A file open for writing that nobody wrote to for so long is saved without being asked.
const IDLE: Duration = Duration::from_secs(2);
/// The longest pause between tries.
const MAX_RETRY: Duration = Duration::from_secs(30);
/// How long an object stays after its name became an editor's backup (`mv x x~`), waiting for the new `x`.
const GRAVE: Duration = Duration::from_secs(5);

/// Dirty files, and objects that wait to be removed.
#[derive(Debug, Default)]
pub(crate) struct Uploader {
    dirty: Mutex<HashMap<Ino, Arc<File>>>,
    graves: Mutex<HashMap<String, Grave>>,
}

#[derive(Debug, Clone)]
struct Grave {
    etag: String,
    due: Instant,
}

struct Job {
    key: String,
    expect: Precondition,
    content: Snapshot,
    version: u64,
}

impl Uploader {
    /// A file became dirty.
    pub(crate) fn enlist(&self, file: &Arc<File>) {
        self.dirty.lock().entry(file.ino).or_insert_with(|| file.clone());
    }

    fn dismiss(&self, file: &File) {
        let mut dirty = self.dirty.lock();
        if !file.state().is_dirty() {
            dirty.remove(&file.ino);
        }
    }

    pub(crate) fn pending(&self) -> Pending {
        let files: Vec<_> = self.dirty.lock().values().cloned().collect();
        let mut pending = Pending::default();
        for file in files {
            let state = file.state();
            if state.is_dirty() {
                pending.count += 1;
                pending.bytes += state.size();
                pending.oldest = pending.oldest.into_iter().chain(state.dirty_since).min();
            }
        }
        pending
    }

    /// Returns when S3 has the file as it was when this was called. **The point where saves are acknowledged.**
    ///
    /// # Errors
    /// `EIO` when S3 did not take it; the content stays and is tried again.
    pub(crate) async fn save(&self, core: &Arc<Core>, file: &Arc<File>) -> Result<(), Errno> {
        if file.state().is_dirty() {
            let _no_folder_moves = core.moves.read().await;
            let _turn = file.upload.lock().await;
            self.save_in_turn(core, file).await?;
        }
        self.dismiss(file);
        let odd_mode = {
            let tree = core.tree.lock();
            let odd = tree
                .get(file.ino)
                .is_ok_and(|inode| inode.linked && !inode.local && inode.perm != FILE_PERM);
            odd.then(|| tree.key(file.ino).ok().and_then(|key| core.workspace_of(&tree, &key)))
                .flatten()
        };
        match odd_mode {
            Some(app) => core.index.commit(core, &app).await,
            None => Ok(()),
        }
    }

    /// Saves; the caller holds the file's turn.
    pub(crate) async fn save_in_turn(&self, core: &Arc<Core>, file: &Arc<File>) -> Result<(), Errno> {
        // More than once only if a large file is written while it is uploaded, or somebody else wrote the object first.
        for _ in 0..4 {
            let Some(job) = self.next_job(core, file)? else {
                return Ok(());
            };
            match put(core, &job).await {
                Ok(info) => {
                    if settle(core, file, &job, &info) {
                        return Ok(());
                    }
                }
                Err(e) if e.is_conflict() || e.is_no_such_key() => self.conflict(core, file, &job).await?,
                Err(e) => {
                    self.postpone(file);
                    return Err(core.failed("cannot save; the content is kept and tried again", &job.key, &e));
                }
            }
        }
        self.postpone(file);
        Ok(())
    }

    fn next_job(&self, core: &Arc<Core>, file: &Arc<File>) -> Result<Option<Job>, Errno> {
        let must_step_aside = {
            let mut state = file.state();
            if !state.is_dirty() {
                return Ok(None);
            }
            let theirs = state.theirs.take();
            (theirs.is_some() || state.attachment == Attachment::Replaced).then_some(theirs)
        };
        if let Some(theirs) = must_step_aside {
            step_aside(core, file, theirs.as_ref())?;
        }
        let key = core.tree.lock().key(file.ino)?;
        let grave = self.graves.lock().get(&key).map(|grave| grave.etag.clone());
        let state = file.state();
        let Some(content) = state.snapshot() else {
            return Ok(None);
        };
        let base = state
            .base
            .as_ref()
            .filter(|base| base.key == key)
            .map(|base| base.etag.clone());
        let expect = base.or(grave).map_or(Precondition::Absent, Precondition::Matches);
        Ok(Some(Job {
            key,
            expect,
            content,
            version: state.version,
        }))
    }

    /// The object was not what we expected: find out what it is.
    async fn conflict(&self, core: &Arc<Core>, file: &Arc<File>, job: &Job) -> Result<(), Errno> {
        self.graves.lock().remove(&job.key);
        let there = core.store.head(&job.key).await.map_err(|e| {
            self.postpone(file);
            core.failed("cannot save; the content is kept and tried again", &job.key, &e)
        })?;
        match there {
            // Removed elsewhere while it was edited here: the edit stays.
            None => file.state().base = None,
            Some(theirs) => step_aside(core, file, Some(&theirs))?,
        }
        Ok(())
    }

    fn postpone(&self, file: &Arc<File>) {
        let mut state = file.state();
        let pause = state.retry.1;
        state.retry = (Instant::now() + pause, MAX_RETRY.min(pause * 2));
        drop(state);
        self.enlist(file);
    }

    /// Removes the object at `key` a little later, unless something takes its place: an editor moved the file away to
    /// write a new one, and between the two S3 must have one of them.
    pub(crate) fn bury(&self, key: String, etag: String) {
        self.graves.lock().insert(
            key,
            Grave {
                etag,
                due: Instant::now() + GRAVE,
            },
        );
    }

    /// Something is put at `key`: nothing waits to be removed there. Gives the ETag of what waited.
    pub(crate) fn dig_up(&self, key: &str) -> Option<String> {
        self.graves.lock().remove(key).map(|grave| grave.etag)
    }

    /// Whether the object at `key` has no name here any more.
    pub(crate) fn is_buried(&self, key: &str) -> bool {
        self.graves.lock().contains_key(key)
    }

    /// Removes an object later although that failed now.
    pub(crate) fn remove_later(&self, key: &str, etag: &str) {
        self.bury(key.to_owned(), etag.to_owned());
    }

    async fn remove_buried(&self, core: &Arc<Core>, all: bool) {
        let now = Instant::now();
        let due: Vec<String> = self
            .graves
            .lock()
            .iter()
            .filter(|(_, grave)| all || grave.due <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            // A save of a new file under this name must come wholly before or after.
            let _alone = core.moves.write().await;
            let Some(etag) = self.dig_up(&key) else { continue };
            if core.has_object(&key) {
                continue;
            }
            core.wrote(&key);
            if let Err(e) = core.store.delete(&key).await {
                core.failed("cannot remove; tried again", &key, &e);
                self.bury(key, etag);
            }
        }
    }

    /// Saves what is due: files closed by `munmap`, long-open ones, and those whose save failed. Ends with the mount.
    pub(crate) async fn tend(core: Arc<Core>) {
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !core.ended.load(std::sync::atomic::Ordering::Relaxed) {
            tick.tick().await;
            let files: Vec<_> = core.uploader.dirty.lock().values().cloned().collect();
            let now = Instant::now();
            let mut due = Vec::new();
            for file in files {
                let (dirty, ready) = {
                    let state = file.state();
                    (state.is_dirty(), state.retry.0 <= now && state.touched + IDLE <= now)
                };
                if !dirty {
                    core.uploader.dismiss(&file);
                } else if ready {
                    due.push(file);
                }
            }
            save_all(&core, due).await;
            core.uploader.remove_buried(&core, false).await;
        }
    }

    /// Saves everything now; the number of files that S3 did not take.
    pub(crate) async fn drain(&self, core: &Arc<Core>) -> usize {
        let files: Vec<_> = self.dirty.lock().values().cloned().collect();
        save_all(core, files).await;
        self.remove_buried(core, true).await;
        let files: Vec<_> = self.dirty.lock().values().cloned().collect();
        files.iter().filter(|file| file.state().is_dirty()).count()
    }
}

async fn save_all(core: &Arc<Core>, files: Vec<Arc<File>>) {
    use futures::StreamExt;
    futures::stream::iter(files)
        .for_each_concurrent(8, |file| async move {
            // The failure is in the log and the file stays enlisted.
            let _ = core.uploader.save(core, &file).await;
        })
        .await;
}

async fn put(core: &Arc<Core>, job: &Job) -> Result<ObjectInfo, StoreError> {
    core.wrote(&job.key);
    let info = put_content(core, &job.key, &job.content, job.expect.clone()).await?;
    core.wrote(&job.key);
    core.uploader.dig_up(&job.key);
    Ok(info)
}

/// PUTs a draft's snapshot.
pub(crate) async fn put_content(
    core: &Core,
    key: &str,
    content: &Snapshot,
    expect: Precondition,
) -> Result<ObjectInfo, StoreError> {
    let file = match content {
        Snapshot::Memory(bytes) => return core.store.put(key, bytes.clone(), expect).await,
        Snapshot::Spilled(file, _) => file.clone(),
    };
    let path = Snapshot::path_of(&file);
    core.store.put_file(key, &path, expect, None, &|| true).await
}

/// S3 has `job`. `false`: a large file was written meanwhile, so what S3 has may be neither old nor new.
fn settle(core: &Arc<Core>, file: &Arc<File>, job: &Job, info: &ObjectInfo) -> bool {
    let base = Base {
        key: job.key.clone(),
        etag: info.etag.clone(),
        size: job.content.len(),
    };
    let mut state = file.state();
    state.acknowledged(job.version, base.clone());
    let unchanged = state.version == job.version;
    match &job.content {
        Snapshot::Memory(bytes) => {
            if unchanged {
                state.body = Body::Stored;
                state.pinned = (state.opens > 0 && base.size <= CHUNK).then(|| bytes.clone());
            }
            for chunk in 0..base.size.div_ceil(CHUNK) {
                let (start, end) = (chunk * CHUNK, base.size.min((chunk + 1) * CHUNK));
                core.contents
                    .keep(&base, chunk, bytes.slice(start as usize..end as usize));
            }
            true
        }
        Snapshot::Spilled(..) => {
            if unchanged && state.opens == 0 {
                state.body = Body::Stored;
            }
            unchanged
        }
    }
}

/// Ours gets a name of its own beside theirs.
fn step_aside(core: &Arc<Core>, file: &Arc<File>, theirs: Option<&ObjectInfo>) -> Result<(), Errno> {
    let mut tree = core.tree.lock();
    let replaced = file.state().attachment == Attachment::Replaced;
    let key = if replaced {
        file.state()
            .base
            .as_ref()
            .map(|base| base.key.clone())
            .ok_or(Errno::ESTALE)?
    } else {
        tree.key(file.ino)?
    };
    let (folder, name) = key.rsplit_once('/').unwrap_or(("", &key));
    let parent = tree.find(folder).ok_or(Errno::ESTALE)?;
    let aside = conflict_name(name);
    tree.relink(file.ino, parent, &aside)?;
    {
        let mut state = file.state();
        state.attachment = Attachment::Linked;
        state.base = None;
        state.theirs = None;
    }
    if let (Some(theirs), false) = (theirs, replaced) {
        let perm = tree.get(file.ino)?.perm;
        let ino = tree.number();
        let node = Node::File(File::stored(ino, theirs.into(), Times::at(theirs.modified)));
        tree.insert(
            ino,
            parent,
            name,
            Look {
                local: false,
                perm,
                times: Times::at(theirs.modified),
            },
            node,
        )?;
    }
    drop(tree);
    tracing::warn!(
        key,
        conflict = aside,
        "changed here and elsewhere; ours is stored beside theirs"
    );
    core.kernel.send(Notice::Entry {
        parent,
        name: name.into(),
    });
    core.kernel.send(Notice::Entry {
        parent,
        name: aside.as_str().into(),
    });
    Ok(())
}

/// `NAME.conflict-HOST-TIME`, short enough for a file name.
pub(crate) fn conflict_name(name: &str) -> String {
    let host = nix::unistd::gethostname()
        .ok()
        .and_then(|host| host.into_string().ok())
        .unwrap_or_else(|| "host".into());
    let host: String = host
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(32)
        .collect();
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    let mut end = name.len().min(190);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}.conflict-{host}-{time}", &name[..end])
}
