//! The index objects: what S3 objects cannot say, one small object a workspace.
//!
//! The index is never kept up by hand: it is worked out from the tree whenever it is written, so it cannot drift. It holds
//! exceptions alone: other bits than 0644 and 0755, other owners than the mount's, times that somebody set, symlinks, folders
//! with nothing in them.
//!
//! What a change means for the index is in the journal, path by path, before the change is answered; so writes are grouped,
//! in the background, [`DEBOUNCE`] after the first change. Who must wait for S3 calls [`IndexWriter::commit`]; all who wait at
//! the same time share one write. Each write says which index it replaces: one that somebody else wrote is read first, and
//! what it says about paths that were not changed here is kept. So is what it says about files that have no object: another
//! host has written the index and is about to store them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use berth_store::{Precondition, StoreError};
use berth_workspace::index::{self, EntryKind, IndexEntry, WorkspaceIndex, to_nanos};
use fuser::Errno;
use parking_lot::Mutex;

use crate::{
    core::Core,
    crash,
    described::is_of_kind,
    tree::{DIR_PERM, FILE_PERM, Ino, Node, ROOT, Tree},
};

/// How long changes nobody waits for are gathered.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// The pause after a write nobody waited for, so that a long copy does not write the index for every file.
const REST: Duration = Duration::from_millis(200);

/// The writer of all workspaces' indexes.
#[derive(Debug, Default)]
pub(crate) struct IndexWriter {
    apps: Mutex<HashMap<String, Arc<AppIndex>>>,
    awaited: Mutex<BTreeMap<String, (IndexEntry, SystemTime)>>,
    /// Indexes of workspaces that have no object yet.
    early: Mutex<HashMap<String, (WorkspaceIndex, SystemTime)>>,
    wake: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct AppIndex {
    wanted: AtomicU64,
    committed: AtomicU64,
    /// Held while it is written.
    turn: tokio::sync::Mutex<Written>,
}

#[derive(Debug, Default)]
struct Written {
    /// What S3 has; `None`: no object.
    bytes: Option<Vec<u8>>,
    etag: Option<String>,
    /// The folders that it names.
    folders: Vec<(String, IndexEntry)>,
    /// A write ended without an answer: S3 may have what it said instead.
    doubtful: bool,
    /// Written by a newer Berth: reading part of it and writing it back would lose the rest.
    foreign: bool,
}

/// What the tree says about a workspace.
struct Derived {
    index: Option<WorkspaceIndex>,
    /// The workspace's folder, if it has neither object nor marker and would vanish.
    needs_marker: Option<Ino>,
    /// Its folders, and their paths within it.
    dirs: Vec<(Ino, String)>,
}

impl IndexWriter {
    fn app(&self, app: &str) -> Arc<AppIndex> {
        self.apps.lock().entry(app.to_owned()).or_default().clone()
    }

    /// Something the index says about `app` may have changed.
    pub(crate) fn touch(&self, app: &str) {
        self.app(app).wanted.fetch_add(1, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// What S3's index says about files that it has no object of, and about names that something else has here, by key: all
    /// that was noted for the workspace before goes.
    pub(crate) fn await_files(&self, app: &str, found: Vec<(String, IndexEntry)>, written: SystemTime) {
        let mut awaited = self.awaited.lock();
        let old: Vec<String> = below(&awaited, app).map(|(key, _)| key.clone()).collect();
        for key in old {
            awaited.remove(&key);
        }
        awaited.extend(found.into_iter().map(|(key, entry)| (key, (entry, written))));
    }

    /// The index is there before its workspace.
    pub(crate) fn is_early(&self, app: &str, index: &WorkspaceIndex, written: SystemTime) {
        self.early.lock().insert(app.to_owned(), (index.clone(), written));
    }

    /// The index that was there before its workspace.
    pub(crate) fn take_early(&self, app: &str) -> Option<(WorkspaceIndex, SystemTime)> {
        self.early.lock().remove(app)
    }

    /// The file has its object now, or it will never have one.
    pub(crate) fn no_longer_awaited(&self, key: &str) -> Option<(IndexEntry, SystemTime)> {
        self.awaited.lock().remove(key)
    }

    /// The folder or link that S3's index names there, now that the name is free.
    pub(crate) fn take_described(&self, key: &str) -> Option<(IndexEntry, SystemTime)> {
        let mut awaited = self.awaited.lock();
        awaited.get(key).filter(|(entry, _)| !is_file(entry))?;
        awaited.remove(key)
    }

    /// Whether S3's index says about `key` what the tree does not show.
    pub(crate) fn awaits(&self, key: &str) -> bool {
        self.awaited.lock().contains_key(key)
    }

    fn entries_awaited(&self, tree: &Tree, app: &str) -> Vec<(String, IndexEntry)> {
        let awaited = self.awaited.lock();
        let shown = |key: &str, entry| tree.find(key).is_some_and(|ino| is_of_kind(tree, ino, entry));
        below(&awaited, app)
            .filter(|(key, (entry, _))| !shown(key, entry))
            .map(|(key, (entry, _))| (key[app.len() + 1..].to_owned(), entry.clone()))
            .collect()
    }

    /// Reads the index as S3 has it now and makes the tree say so, unless it is the one we wrote or read last. No index of
    /// this workspace is written meanwhile, so an echo of an older one of ours can never undo a newer.
    pub(crate) async fn read(&self, core: &Core, app: &str) -> Result<(), StoreError> {
        let state = self.app(app);
        let mut written = state.turn.lock().await;
        let key = index::key(app);
        let Some(there) = core.store.head(&key).await? else {
            *written = Written::default();
            self.take_early(app);
            return Ok(());
        };
        if written.etag.as_deref() == Some(&*there.etag) {
            return Ok(());
        }
        let (got, bytes) = match core.store.get(&key).await {
            Err(e) if e.is_no_such_key() => return Ok(()),
            other => other?,
        };
        let parsed = WorkspaceIndex::parse(&bytes);
        *written = Written {
            bytes: Some(bytes.to_vec()),
            etag: Some(got.etag),
            folders: parsed.as_ref().map(folders).unwrap_or_default(),
            doubtful: false,
            foreign: parsed.is_err(),
        };
        match parsed {
            Ok(index) => core.show_index(app, &index, got.modified),
            Err(error) => tracing::warn!(key, %error, "modes, links and empty folders of the workspace are not shown"),
        }
        Ok(())
    }

    /// Returns when S3 has an index that holds all changes made before the call.
    ///
    /// # Errors
    /// `EIO` when it could not be written; `EROFS` when the stored one is of a newer Berth.
    pub(crate) async fn commit(&self, core: &Core, app: &str) -> Result<(), Errno> {
        let state = self.app(app);
        let target = state.wanted.load(Ordering::Relaxed);
        // More than once only if others write the same index all the time.
        for _ in 0..5 {
            if state.committed.load(Ordering::Relaxed) >= target {
                return Ok(());
            }
            let refused = {
                let mut written = state.turn.lock().await;
                self.write(core, app, &state, &mut written).await?
            };
            if refused {
                self.read(core, app).await.map_err(|e| {
                    core.failed("cannot read the index that was changed elsewhere", &index::key(app), &e)
                })?;
            }
        }
        Err(Errno::EIO)
    }

    /// Writes the index as it should be now; `true` if S3 has another one than we know.
    async fn write(&self, core: &Core, app: &str, state: &AppIndex, written: &mut Written) -> Result<bool, Errno> {
        let (now, derived, mark) = {
            let mut tree = core.tree.lock();
            let now = state.wanted.load(Ordering::Relaxed);
            let mut derived = derive(&tree, app);
            if let Some(index) = &mut derived.index {
                // S3 keeps these, and the tree does not have them.
                index.entries.extend(core.intents.entries_aside(app));
                let awaited = self.entries_awaited(&tree, app);
                let not_ours = |(path, _): &(String, _)| !core.intents.has_meta(&format!("{app}/{path}"));
                index.entries.extend(awaited.into_iter().filter(not_ours));
                // Another host may have emptied a folder before we hear of it: what is in it here says nothing against that.
                for (path, entry) in &written.folders {
                    let key = format!("{app}/{path}");
                    let there = tree.find(&key).and_then(|ino| tree.get(ino).ok());
                    if there.is_some_and(crate::tree::Inode::is_dir) && !core.intents.has_meta(&key) {
                        index.entries.entry(path.clone()).or_insert_with(|| entry.clone());
                    }
                }
            }
            if let Some(ino) = derived.needs_marker {
                let mut steps = Vec::new();
                core.marker_step(&mut tree, ino, app, &mut steps);
                core.enter(&tree, steps, &[]);
            }
            (now, derived, core.intents.meta_mark())
        };
        let early = self.early.lock().contains_key(app);
        if early && derived.index.is_none() && !core.intents.workspaces_with_metas().contains(app) {
            // Not ours to remove: its workspace is still to come.
            state.committed.fetch_max(now, Ordering::Relaxed);
            return Ok(false);
        }
        let key = index::key(app);
        // As with objects: S3 must not be told what a killed process would not know any more.
        core.commit(mark)?;
        // One that says nothing any more stays, empty, as long as its workspace: a host that knew it must hear that what it
        // said is no longer so, and of an object that is gone it could only think that it is to be written again.
        let known = written.etag.is_some() || written.doubtful;
        let index = derived.index.filter(|index| known || !index.entries.is_empty());
        let bytes = index.as_ref().map(WorkspaceIndex::to_bytes);
        if bytes != written.bytes || written.doubtful {
            if written.foreign {
                tracing::warn!(
                    key,
                    "the index is of a newer Berth; modes, links and empty folders cannot be stored"
                );
                return Err(Errno::EROFS);
            }
            if written.doubtful && bytes.is_none() && written.etag.is_none() {
                return Ok(true);
            }
            crash::point("sync.index.before");
            written.doubtful = true;
            let result = match (&bytes, &written.etag) {
                (Some(bytes), known) => {
                    let pre = known.clone().map_or(Precondition::Absent, Precondition::Matches);
                    let put = core.store.put(&key, bytes.clone().into(), pre).await;
                    put.map(|info| Some(info.etag))
                }
                (None, Some(known)) => core.store.delete_if(&key, known).await.map(|()| None),
                (None, None) => Ok(None),
            };
            crash::point("sync.index.after");
            written.etag = match result {
                Ok(etag) => etag,
                Err(e) if e.is_conflict() || e.is_no_such_key() => {
                    // Unknown again: what is there is read, and if nothing is, nothing is expected.
                    *written = Written::default();
                    return Ok(true);
                }
                Err(e) => return Err(core.failed("cannot write the index; tried again", &key, &e)),
            };
            written.bytes = bytes;
            written.folders = index.as_ref().map(folders).unwrap_or_default();
            written.doubtful = false;
        }
        let mut tree = core.tree.lock();
        for (ino, path) in derived.dirs {
            if let Ok(dir) = tree.dir_mut(ino) {
                dir.indexed = index.as_ref().is_some_and(|index| index.entries.contains_key(&path));
            }
        }
        drop(tree);
        core.intents.metas_written(app, mark);
        state.committed.fetch_max(now, Ordering::Relaxed);
        Ok(false)
    }

    /// Whether the stored index may be behind.
    fn is_behind(&self, app: &str) -> bool {
        let app = self.app(app);
        app.committed.load(Ordering::Relaxed) < app.wanted.load(Ordering::Relaxed)
    }

    /// Writes all indexes that are behind; the number of those that could not be written.
    pub(crate) async fn commit_all(&self, core: &Core) -> usize {
        let behind: Vec<String> = self.apps.lock().keys().cloned().collect();
        let mut failed = 0;
        for app in behind.into_iter().filter(|app| self.is_behind(app)) {
            failed += usize::from(self.commit(core, &app).await.is_err());
        }
        failed
    }

    /// Writes the changes nobody waits for. Ends with the mount.
    pub(crate) async fn tend(core: Arc<Core>) {
        let mut pause = REST;
        while !core.ended.load(Ordering::Relaxed) {
            // The time-out is for what failed and for the end of the mount.
            let _ = tokio::time::timeout(Duration::from_secs(1), core.index.wake.notified()).await;
            tokio::time::sleep(DEBOUNCE).await;
            let failed = core.index.commit_all(&core).await;
            pause = if failed == 0 {
                REST
            } else {
                Duration::from_secs(10).min(pause * 2)
            };
            tokio::time::sleep(pause).await;
        }
    }
}

fn folders(index: &WorkspaceIndex) -> Vec<(String, IndexEntry)> {
    let all = index.entries.iter();
    all.filter(|(_, entry)| entry.kind == EntryKind::Dir)
        .map(|(path, entry)| (path.clone(), entry.clone()))
        .collect()
}

/// What a map by key has below a workspace.
fn below<'a, T>(map: &'a BTreeMap<String, T>, app: &str) -> impl Iterator<Item = (&'a String, &'a T)> {
    let prefix = format!("{app}/");
    map.range(prefix.clone()..)
        .take_while(move |(key, _)| key.starts_with(&prefix))
}

fn derive(tree: &Tree, app: &str) -> Derived {
    let mut derived = Derived {
        index: None,
        needs_marker: None,
        dirs: Vec::new(),
    };
    let Some(top) = tree.child(ROOT, app).ok().flatten() else {
        return derived;
    };
    let Ok(inode) = tree.get(top) else { return derived };
    let Node::Dir(dir) = &inode.node else { return derived };
    if inode.local {
        return derived;
    }
    if !dir.marker && !dir.has_stored_children() {
        derived.needs_marker = Some(top);
    }
    let mut index = WorkspaceIndex::default();
    walk(tree, top, &mut String::new(), &mut index, &mut derived.dirs);
    derived.index = Some(index);
    derived
}

fn walk(tree: &Tree, ino: Ino, path: &mut String, index: &mut WorkspaceIndex, dirs: &mut Vec<(Ino, String)>) {
    let Ok(inode) = tree.get(ino) else { return };
    if inode.local {
        return;
    }
    if let Some(entry) = entry_of(tree, ino)
        && !path.is_empty()
    {
        index.entries.insert(path.clone(), entry);
    }
    let Node::Dir(dir) = &inode.node else { return };
    dirs.push((ino, path.clone()));
    for (name, child) in &dir.children {
        let len = path.len();
        if len > 0 {
            path.push('/');
        }
        path.push_str(name);
        walk(tree, *child, path, index, dirs);
        path.truncate(len);
    }
}

/// What the index says about an inode: `None` if its object says all.
pub(crate) fn entry_of(tree: &Tree, ino: Ino) -> Option<IndexEntry> {
    let inode = tree.get(ino).ok()?;
    let (mut entry, default, always) = match &inode.node {
        Node::Dir(dir) => (IndexEntry::dir(), DIR_PERM, !dir.has_stored_children() && !dir.marker),
        Node::File(_) => (IndexEntry::file(), FILE_PERM, false),
        Node::Symlink(target) => (IndexEntry::symlink(&**target), inode.perm, true),
        Node::Special(..) => return None,
    };
    entry.mode = (inode.perm != default).then_some(u32::from(inode.perm));
    let times = tree.times(ino).ok()?;
    entry.mtime_ns = times.explicit.then(|| to_nanos(times.mtime));
    entry.uid = inode.owner.map(|owner| owner.uid);
    entry.gid = inode.owner.map(|owner| owner.gid);
    let says = entry.mode.is_some() || entry.mtime_ns.is_some() || entry.uid.is_some();
    (always || says).then_some(entry)
}

/// Whether an entry is of a file; those of files without an object are left over.
pub(crate) fn is_file(entry: &IndexEntry) -> bool {
    entry.kind == EntryKind::File
}
