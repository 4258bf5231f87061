//! The point where a save is acknowledged: the journal has it on disk.
//!
//! [`Core::save_here`] does it on the thread that took the kernel's request, without a change of threads: a snapshot of the
//! draft becomes a [`Step::Put`], entered under the tree's lock, and the commit waits for the disk alone. Large content, a
//! full journal and workspaces whose saves wait for S3 take the longer way ([`Core::save`]).
//!
//! A save that the journal cannot take is answered with `ENOSPC` or `EIO`, and its content stays here: it is tried again with
//! the next `close` or `fsync`, in the background, and when the mount ends.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use berth_workspace::index::to_nanos;
use fuser::Errno;
use parking_lot::Mutex;

use crate::{
    Pending,
    announce::Announcement,
    core::Core,
    draft::Snapshot,
    file::{Attachment, File},
    index::entry_of,
    journal::{Content, JournalError},
    kernel::Notice,
    pending::{Entered, Step},
    tree::{Ino, Tree, app_of},
    upload::IN_PARTS,
};

/// A file open for writing that nobody wrote to for so long is saved without being asked.
const IDLE: Duration = Duration::from_secs(2);
/// The same for one that goes in parts: a save in between would be sent once more as a whole.
const IDLE_LARGE: Duration = Duration::from_secs(60);
/// How long a save, or a write, waits for room in a full journal.
pub(crate) const ROOM: Duration = Duration::from_secs(10);
/// How long a save that waits for S3 does so.
pub(crate) const REMOTE: Duration = Duration::from_secs(60);

/// Files that were written and not saved.
#[derive(Debug, Default)]
pub(crate) struct Unsaved(Mutex<HashMap<Ino, Arc<File>>>);

impl Unsaved {
    pub(crate) fn add(&self, file: &Arc<File>) {
        self.0.lock().entry(file.ino).or_insert_with(|| file.clone());
    }

    pub(crate) fn remove(&self, file: &File) {
        let mut files = self.0.lock();
        if !file.state().is_unsaved() {
            files.remove(&file.ino);
        }
    }

    pub(crate) fn all(&self) -> Vec<Arc<File>> {
        self.0.lock().values().cloned().collect()
    }

    /// Adds what they hold to `pending`.
    pub(crate) fn count(&self, pending: &mut Pending) {
        for file in self.all() {
            let state = file.state();
            if state.is_unsaved() {
                pending.count += 1;
                pending.bytes += state.size();
                pending.oldest = pending.oldest.into_iter().chain(state.unsaved_since).min();
            }
        }
    }
}

/// One version of a file, ready for the journal.
struct Version {
    content: Content,
    number: u64,
}

impl Core {
    /// Saves and commits if that can be done at once; `None`: [`Core::save`] has to.
    ///
    /// # Errors
    /// `ENOSPC` and `EIO` from the journal; the content stays.
    pub(crate) fn save_here(&self, file: &Arc<File>) -> Result<Option<()>, Errno> {
        self.store_if_no_rule(file)?;
        if self.waits_for_s3(file) {
            return Ok(None);
        }
        let taken = {
            let mut state = file.state();
            if state.is_unsaved() {
                if !self.intents.journal.room_for(state.unwritten()) {
                    return Ok(None);
                }
                let number = state.version;
                match state.snapshot() {
                    Some(snapshot) if snapshot.is_large() => return Ok(None),
                    Some(snapshot) => Some((snapshot, number)),
                    None => None,
                }
            } else {
                None
            }
        };
        if let Some((snapshot, number)) = taken {
            let content = self.content(snapshot)?;
            self.keep(file, Version { content, number })?;
        }
        self.commit_file(file).map(Some)
    }

    /// Returns when the journal, or S3 where that is asked for, has the file as it was when this was called.
    ///
    /// # Errors
    /// As [`Core::save_here`]; `EIO` also when S3 was to be waited for and did not take it in time.
    pub(crate) async fn save(self: &Arc<Self>, file: &Arc<File>) -> Result<(), Errno> {
        self.store_if_no_rule(file)?;
        let taken = {
            let mut state = file.state();
            let number = state.version;
            let unsaved = state.is_unsaved();
            unsaved
                .then(|| state.snapshot())
                .flatten()
                .map(|snapshot| (snapshot, number))
        };
        if let Some((Snapshot::File(body, len), number)) = &taken
            && body.upload.released() > 0
        {
            return self.save_through(file, (body, *len), *number).await;
        }
        if let Some((snapshot, number)) = taken {
            self.wait_for_room(snapshot.unwritten()).await?;
            let content = tokio::task::block_in_place(|| self.content(snapshot))?;
            self.keep(file, Version { content, number })?;
        }
        tokio::task::block_in_place(|| self.commit_file(file))?;
        if self.waits_for_s3(file) {
            self.wait_for_s3(file).await
        } else {
            Ok(())
        }
    }

    fn content(&self, snapshot: Snapshot) -> Result<Content, Errno> {
        let journal = &self.intents.journal;
        snapshot.into_content(journal).map_err(|error| {
            tracing::error!(%error, "cannot write content beside the journal");
            Errno::from(error)
        })
    }

    /// Enters one version, unless a later one was entered meanwhile.
    fn keep(&self, file: &Arc<File>, version: Version) -> Result<(), Errno> {
        let mut tree = self.tree.lock();
        let (attachment, remote_of_key) = {
            let state = file.state();
            if version.number <= state.kept || !state.is_unsaved() {
                return Ok(());
            }
            (state.attachment, state.base.as_ref().map(|base| base.key.clone()))
        };
        self.admit(logged_len(&version.content))?;
        if attachment == Attachment::Replaced {
            let key = remote_of_key.ok_or(Errno::ESTALE)?;
            self.name_again(&mut tree, file, &key)?;
        }
        let key = tree.key(file.ino)?;
        let mut steps = Vec::with_capacity(2);
        steps.push(put_step(file, &key, version.content, None));
        self.meta_step(&tree, file.ino, &key, &mut steps);
        self.enter(&tree, steps, &[(file.clone(), key, version.number)]);
        if !tree.lineage.of(file.ino).is_empty() {
            let saved = Announcement::Saved(file.ino);
            self.kernel.send(&tree, Notice::Announce(saved));
        }
        drop(tree);
        self.unsaved.remove(file);
        self.heed_rules();
        Ok(())
    }

    /// What the index has to say about a file that is being saved, if anything.
    pub(crate) fn meta_step(&self, tree: &Tree, ino: Ino, key: &str, steps: &mut Vec<Step>) {
        let entry = entry_of(tree, ino);
        if entry.is_some() || self.intents.has_meta(key) {
            steps.push(Step::Meta {
                key: key.to_owned(),
                entry,
            });
        }
    }

    /// Enters steps; `files`: which file's content each put is, with its key and version.
    pub(crate) fn enter(&self, tree: &Tree, steps: Vec<Step>, files: &[(Arc<File>, String, u64)]) -> u64 {
        for step in &steps {
            // Its index is written, and the journal's record of it cleared then.
            if let Step::Meta { key, .. } | Step::BackupGone { key } = step {
                self.index.touch(app_of(key));
            }
            if let Step::Put { key, .. } = step {
                self.rules.stale.note_key(key);
            }
        }
        let Entered { seq, held } = self.intents.enter(steps);
        for (file, key, version) in files {
            let held = held.iter().find(|(of, _)| of == key).map(|(_, held)| held.clone());
            file.state().journaled(*version, held, seq);
            tree.content_changed(file.ino);
        }
        seq
    }

    /// Refuses before anything is changed what the journal has no room for.
    pub(crate) fn admit(&self, bytes: u64) -> Result<(), Errno> {
        self.intents.admit(bytes).map_err(|error| refused(&error))
    }

    /// Waits until batch `seq` is on disk.
    pub(crate) fn commit(&self, seq: u64) -> Result<(), Errno> {
        self.intents.commit(seq).map_err(|error| refused(&error))
    }

    /// Waits until everything that was entered about a folder is on disk.
    pub(crate) fn sync_folder(&self, _ino: Ino) -> Result<(), Errno> {
        self.commit(self.intents.meta_mark())
    }

    fn commit_file(&self, file: &File) -> Result<(), Errno> {
        let seq = file.state().seq;
        self.commit(seq)
    }

    /// Waits for room in the journal.
    ///
    /// # Errors
    /// `ENOSPC` when S3 took too little meanwhile.
    async fn wait_for_room(&self, bytes: u64) -> Result<(), Errno> {
        let since = Instant::now();
        while !self.intents.journal.room_for(bytes) {
            if since.elapsed() > ROOM {
                tracing::error!(bytes, "the journal is full: S3 takes less than is written");
                return Err(Errno::ENOSPC);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn waits_for_s3(&self, file: &File) -> bool {
        if !self.cfg.waits_for_s3() {
            return false;
        }
        let key = self.tree.lock().key(file.ino).unwrap_or_default();
        self.cfg.sync_of(app_of(&key)) == crate::Sync::Remote
    }

    async fn wait_for_s3(self: &Arc<Self>, file: &File) -> Result<(), Errno> {
        let (key, ino) = (self.tree.lock().key(file.ino), file.ino);
        let Ok(key) = key else { return Ok(()) };
        let seq = file.state().seq;
        let done = async {
            self.intents.wait_done(&key, seq).await;
            self.sync_index(ino).await
        };
        tokio::time::timeout(REMOTE, done).await.unwrap_or_else(|_| {
            tracing::warn!(key, "S3 has not taken a save in time; it is safe in the journal");
            Err(Errno::EIO)
        })
    }

    /// Saves what was left open for long or was written through a mapping. Ends with the mount.
    pub(crate) async fn tend(self: Arc<Self>) {
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.ended.load(std::sync::atomic::Ordering::Relaxed) {
            tick.tick().await;
            for file in self.unsaved.all() {
                let (unsaved, idle) = {
                    let state = file.state();
                    let limit = if state.size() > IN_PARTS { IDLE_LARGE } else { IDLE };
                    let idle = state.touched.is_none_or(|at| at.elapsed() > limit);
                    // Once saved, a large draft is copied before the next write: that must have room, too.
                    let large = state.is_released() || state.size() > self.cfg.journal_max / 2;
                    let too_large = state.opens > 0 && large;
                    (state.is_unsaved(), idle && !too_large)
                };
                if !unsaved {
                    self.unsaved.remove(&file);
                } else if idle && self.save(&file).await.is_err() {
                    // Said in the log; the next round is not before it was idle again.
                    file.state().touched = Some(Instant::now());
                }
            }
        }
    }

    /// Gives everything to the journal; the number of files it did not take.
    pub(crate) async fn save_all(self: &Arc<Self>) -> usize {
        let mut failed = 0;
        for file in self.unsaved.all() {
            if file.state().is_unsaved() && self.save(&file).await.is_err() {
                failed += 1;
            }
        }
        failed
    }

    /// An open file that somebody else removed or replaced is saved after all: under its name if that is free, else beside it.
    fn name_again(&self, tree: &mut Tree, file: &Arc<File>, key: &str) -> Result<(), Errno> {
        let mut notices = Vec::new();
        let (above, name) = key.rsplit_once('/').unwrap_or(("", key));
        let parent = self.folder(tree, above, SystemTime::now(), &mut notices);
        self.tell(tree, notices);
        if tree.find(key).is_some() {
            return self.name_aside(tree, file, key).map(drop);
        }
        let parent = parent.ok_or(Errno::ESTALE)?;
        tree.relink(file.ino, parent, name)?;
        let mut state = file.state();
        state.attachment = Attachment::Linked;
        state.base = None;
        drop(state);
        let (name, mut notices): (Arc<str>, _) = (name.into(), Vec::new());
        notices.push(Notice::Entry {
            parent,
            name: name.clone(),
        });
        self.announce_name(tree, (parent, &name), None, &mut notices);
        self.tell(tree, notices);
        Ok(())
    }

    /// The file, whose name somebody else gave to other content, gets a name of its own beside it.
    pub(crate) fn name_aside(&self, tree: &mut Tree, file: &Arc<File>, key: &str) -> Result<String, Errno> {
        let (folder, name) = key.rsplit_once('/').unwrap_or(("", key));
        let parent = tree.find(folder).ok_or(Errno::ESTALE)?;
        let aside = conflict_name(name);
        tree.relink(file.ino, parent, &aside)?;
        {
            let mut state = file.state();
            state.attachment = Attachment::Linked;
            state.base = None;
        }
        tracing::warn!(
            key,
            conflict = aside,
            "changed here and elsewhere; ours is stored beside theirs"
        );
        let theirs = tree.child(parent, name)?;
        let theirs = theirs.and_then(|ino| Some((ino, tree.kind(ino)?)));
        let mut notices = Vec::new();
        for (name, was) in [(name, theirs), (&*aside, None)] {
            let name: Arc<str> = name.into();
            notices.push(Notice::Entry {
                parent,
                name: name.clone(),
            });
            // Theirs that is not here yet is announced when it comes.
            if was.is_some() || *name == *aside {
                self.announce_name(tree, (parent, &name), was, &mut notices);
            }
        }
        self.tell(tree, notices);
        tree.key(file.ino)
    }
}

/// The step that saves a file's content at `key`.
pub(crate) fn put_step(file: &File, key: &str, content: Content, from: Option<String>) -> Step {
    let state = file.state();
    Step::Put {
        key: key.to_owned(),
        content,
        remote: state.remote(key),
        mtime_ns: to_nanos(state.times.mtime),
        from,
    }
}

/// Bytes that go into the journal's log with it. A body file is counted from its first byte on.
fn logged_len(content: &Content) -> u64 {
    match content {
        Content::Bytes(bytes) => bytes.len() as u64,
        Content::File(..) | Content::Held(_) => 0,
    }
}

fn refused(error: &JournalError) -> Errno {
    tracing::error!(%error, "a change could not be kept");
    if error.is_no_space() { Errno::ENOSPC } else { Errno::EIO }
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
