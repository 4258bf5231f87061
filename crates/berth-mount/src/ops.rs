//! Making, changing and removing names.
//!
//! Each change is made in the tree and entered in the journal under one lock; it is answered when the journal has it on disk.
//! None waits for S3. Room in the journal is asked for first, so that nothing has to be taken back.
//!
//! What is made belongs to who made it; the index keeps owners other than the mount's. FIFOs, sockets and devices live in this
//! host's memory alone, wherever they are. Hard links do not exist (`EPERM`: a bucket has none, and git and npm fall back).

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_workspace::IndexEntry;
use bytes::Bytes;
use fuser::{Errno, FileAttr, FileType, TimeOrNow};

use crate::{
    core::{Core, Opened, Shape},
    draft::SPILL,
    file::{Attachment, File},
    index::entry_of,
    journal::Content,
    pending::Step,
    remote::refuse_hidden,
    tree::{Ino, Look, Node, Owner, ROOT, Times, Tree},
};

/// What a change of names may need in the journal.
pub(crate) const SMALL: u64 = 8 << 10;

/// What `setattr` may change.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Changes {
    pub(crate) perm: Option<u16>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) atime: Option<TimeOrNow>,
    pub(crate) mtime: Option<TimeOrNow>,
}

impl Core {
    /// The key `name` below `parent` will have, and whether it is local-only.
    pub(crate) fn new_name(&self, tree: &Tree, parent: Ino, name: &str, shape: Shape) -> Result<(String, bool), Errno> {
        refuse_hidden(parent, name)?;
        let folder = tree.get(parent)?;
        if !folder.linked {
            return Err(Errno::ENOENT);
        }
        let key = tree.key_below(parent, name)?;
        // A name that S3 keeps for an editor's backup is no new one.
        let local = self.rules.by_host(&key, shape)
            || (self.rules.by_workspace(&key, shape) && !(shape == Shape::File && self.intents.is_aside(&key)));
        Ok((key, local))
    }

    /// A name was added to or removed from `parent`: its time changes, and perhaps what the index says of it.
    pub(crate) fn dir_changed(&self, tree: &mut Tree, parent: Ino) {
        let Ok(before) = tree.times(parent).map(|times| times.explicit) else {
            return;
        };
        tree.touch_dir(parent);
        let Ok(inode) = tree.get(parent) else { return };
        let Ok(dir) = inode.as_dir() else { return };
        if inode.local || parent == ROOT {
            return;
        }
        let unsaid = !dir.indexed && entry_of(tree, parent).is_some();
        if before || unsaid || !dir.has_stored_children() {
            self.touch_index(tree, parent);
        }
    }

    /// What the index says of `ino` may have changed; the workspace, if it has an index.
    pub(crate) fn touch_index(&self, tree: &Tree, ino: Ino) -> Option<String> {
        let app = tree.key(ino).ok().and_then(|key| self.workspace_of(tree, &key))?;
        self.index.touch(&app);
        Some(app)
    }

    /// Makes an empty file.
    pub(crate) fn create_file(
        &self,
        tree: &mut Tree,
        parent: Ino,
        name: &str,
        (perm, by): (u16, Owner),
    ) -> Result<Arc<File>, Errno> {
        let (_, local) = self.new_name(tree, parent, name, Shape::File)?;
        let below_local = !local && tree.get(parent)?.local;
        if below_local {
            self.admit(SMALL)?;
        }
        let charge = if local { Some(self.budget.open()?) } else { None };
        let ino = tree.number();
        let file = File::created(ino, charge);
        let look = Look {
            local,
            perm,
            times: Times::at(SystemTime::now()),
        };
        let (look, owner) = tree.heir(parent, look, by, false)?;
        tree.insert(ino, parent, name, look, Node::File(file.clone().into()))?;
        tree.set_owner(ino, owner);
        if below_local {
            let mut steps = Vec::new();
            self.store_folders(tree, parent, &mut steps);
            self.enter(tree, steps, &[]);
        }
        self.dir_changed(tree, parent);
        if !local {
            self.unsaved.add(&file);
            if entry_of(tree, ino).is_some() {
                self.touch_index(tree, ino);
            }
        }
        Ok(file)
    }

    /// Makes and opens a file.
    pub(crate) fn create(&self, parent: Ino, name: &str, rights: (u16, Owner)) -> Result<(FileAttr, u64), Errno> {
        let mut tree = self.tree.lock();
        let file = self.create_file(&mut tree, parent, name, rights)?;
        file.state().opens += 1;
        let attr = self.entry(&mut tree, file.ino)?;
        Ok((attr, self.open_handle(Opened::File(file))))
    }

    /// `mknod`: a plain file is saved before the answer, since no close will come; a FIFO, socket or device (`rdev`) lives
    /// in memory.
    pub(crate) async fn mknod(
        self: &Arc<Self>,
        parent: Ino,
        name: &str,
        (kind, rdev): (FileType, u32),
        (perm, by): (u16, Owner),
    ) -> Result<FileAttr, Errno> {
        if kind == FileType::RegularFile {
            let file = self.create_file(&mut self.tree.lock(), parent, name, (perm, by))?;
            self.save(&file).await?;
            return self.entry(&mut self.tree.lock(), file.ino);
        }
        let mut tree = self.tree.lock();
        self.new_name(&tree, parent, name, Shape::Special)?;
        let ino = tree.number();
        let look = Look {
            local: true,
            perm,
            times: Times::at(SystemTime::now()),
        };
        let (look, owner) = tree.heir(parent, look, by, false)?;
        tree.insert(ino, parent, name, look, Node::Special(kind, rdev))?;
        tree.set_owner(ino, owner);
        self.dir_changed(&mut tree, parent);
        self.entry(&mut tree, ino)
    }

    /// Makes a folder.
    pub(crate) fn mkdir(&self, parent: Ino, name: &str, rights: (u16, Owner)) -> Result<FileAttr, Errno> {
        self.make_indexed(parent, name, rights, Node::Dir(Box::default()))
    }

    /// Makes a symlink. Not at the top: there is no index there.
    pub(crate) fn symlink(&self, parent: Ino, name: &str, target: &str, by: Owner) -> Result<FileAttr, Errno> {
        self.make_indexed(parent, name, (0o777, by), Node::Symlink(target.into()))
    }

    /// Makes a folder or a link: what the index (or, at the top, a marker object) says to exist.
    fn make_indexed(&self, parent: Ino, name: &str, (perm, by): (u16, Owner), node: Node) -> Result<FileAttr, Errno> {
        let mut tree = self.tree.lock();
        let (key, local) = self.new_name(&tree, parent, name, Shape::of(&node))?;
        let top = parent == ROOT && !local;
        if top && matches!(node, Node::Symlink(_)) {
            return Err(Errno::EPERM);
        }
        if !local {
            self.admit(SMALL)?;
        }
        let ino = tree.number();
        let look = Look {
            local,
            perm,
            times: Times::at(SystemTime::now()),
        };
        let (look, owner) = tree.heir(parent, look, by, matches!(node, Node::Dir(_)))?;
        tree.insert(ino, parent, name, look, node)?;
        tree.set_owner(ino, owner);
        let mut steps = Vec::new();
        if !local {
            self.store_folders(&mut tree, parent, &mut steps);
        }
        self.dir_changed(&mut tree, parent);
        let mut seq = 0;
        if !local {
            if top {
                self.marker_step(&mut tree, ino, &key, &mut steps);
            }
            self.meta_step(&tree, ino, &key, &mut steps);
            seq = self.enter(&tree, steps, &[]);
            self.touch_index(&tree, ino);
        }
        let attr = self.entry(&mut tree, ino);
        drop(tree);
        self.commit(seq)?;
        attr
    }

    /// Wants the marker object `NAME/`, by which every S3 tool sees the folder.
    pub(crate) fn marker_step(&self, tree: &mut Tree, ino: Ino, key: &str, steps: &mut Vec<Step>) {
        if let Ok(dir) = tree.dir_mut(ino) {
            dir.marker = true;
        }
        steps.push(Step::Put {
            key: format!("{key}/"),
            content: Content::Bytes(Bytes::new()),
            remote: None,
            mtime_ns: 0,
            from: None,
        });
    }

    /// A folder that lost a name may have nothing left by which S3 would know it.
    pub(crate) fn emptied(&self, tree: &mut Tree, parent: Ino, steps: &mut Vec<Step>) {
        let Ok(inode) = tree.get(parent) else { return };
        let Ok(dir) = inode.as_dir() else { return };
        if parent == ROOT || inode.local || dir.marker || dir.has_stored_children() {
            return;
        }
        let Ok(key) = tree.key(parent) else { return };
        if inode.parent == ROOT {
            self.marker_step(tree, parent, &key, steps);
        } else {
            self.meta_step(tree, parent, &key, steps);
        }
    }

    /// Waits until S3 has all that the index should say about `ino`'s workspace.
    pub(crate) async fn sync_index(self: &Arc<Self>, ino: Ino) -> Result<(), Errno> {
        let app = {
            let tree = self.tree.lock();
            tree.key(ino).ok().and_then(|key| self.workspace_of(&tree, &key))
        };
        match app {
            Some(app) => self.index.commit(self, &app).await,
            None => Ok(()),
        }
    }

    /// Removes a name.
    pub(crate) fn unlink(&self, parent: Ino, name: &str, by: u32) -> Result<(), Errno> {
        let mut tree = self.tree.lock();
        self.kernel.check_fresh(&tree, (parent, name), by)?;
        let ino = tree.child(parent, name)?.ok_or(Errno::ENOENT)?;
        let inode = tree.get(ino)?;
        let (local, file) = (inode.local, tree.file(ino).ok());
        if inode.is_dir() {
            return Err(Errno::EISDIR);
        }
        let mut steps = Vec::new();
        let key = tree.key(ino);
        let key = if local { key.unwrap_or_default() } else { key? };
        if !local {
            self.admit(SMALL)?;
            if let Some(file) = &file {
                self.keep_for_readers(file);
                steps.push(Step::Delete {
                    key: key.clone(),
                    remote: file.state().remote(&key),
                    linger: Duration::ZERO,
                });
            }
            self.unindex(&tree, ino, &key, &mut steps);
        } else if let Some(gone) = file.as_ref().and_then(|file| backup_gone(file)) {
            self.admit(SMALL)?;
            steps.push(gone);
        }
        tree.detach(ino, Attachment::Unlinked);
        self.announce_end(&mut tree, ino);
        self.dir_changed(&mut tree, parent);
        if !local {
            self.emptied(&mut tree, parent, &mut steps);
        }
        let seq = self.enter(&tree, steps, &[]);
        if local {
            self.uncover(&mut tree, &key);
        }
        drop(tree);
        self.heed_rules();
        self.commit(seq)
    }

    /// The index has nothing to say about `key` any more.
    pub(crate) fn unindex(&self, tree: &Tree, ino: Ino, key: &str, steps: &mut Vec<Step>) {
        // A folder that got its first file a moment ago may still be in the index that S3 has.
        let is_dir = tree.get(ino).is_ok_and(crate::tree::Inode::is_dir);
        let awaited = self.index.no_longer_awaited(key).is_some();
        if is_dir || awaited || entry_of(tree, ino).is_some() || self.intents.has_meta(key) {
            self.touch_index(tree, ino);
            steps.push(Step::Meta {
                key: key.to_owned(),
                entry: None,
            });
        }
    }

    /// Removes an empty folder.
    pub(crate) fn rmdir(&self, parent: Ino, name: &str, by: u32) -> Result<(), Errno> {
        let mut tree = self.tree.lock();
        self.kernel.check_fresh(&tree, (parent, name), by)?;
        let ino = tree.child(parent, name)?.ok_or(Errno::ENOENT)?;
        let inode = tree.get(ino)?;
        let dir = inode.as_dir()?;
        if !dir.children.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        let (local, marker) = (inode.local, dir.marker);
        let mut steps = Vec::new();
        let key = tree.key(ino);
        let key = if local { key.unwrap_or_default() } else { key? };
        if !local {
            self.admit(SMALL)?;
            if marker {
                steps.push(delete_marker(&key));
            }
            self.unindex(&tree, ino, &key, &mut steps);
            self.touch_index(&tree, ino);
        }
        tree.detach(ino, Attachment::Unlinked);
        self.dir_changed(&mut tree, parent);
        if !local {
            self.emptied(&mut tree, parent, &mut steps);
        }
        let seq = self.enter(&tree, steps, &[]);
        if local {
            self.uncover(&mut tree, &key);
        }
        drop(tree);
        self.commit(seq)
    }

    /// Bits, owner and times; returns when the journal has the first two. Times are kept a little later.
    pub(crate) fn set_attributes(&self, ino: Ino, changes: Changes) -> Result<(), Errno> {
        let mut tree = self.tree.lock();
        let before = entry_of(&tree, ino);
        let inode = tree.get(ino)?;
        let stored = !inode.local && inode.linked && ino != ROOT;
        if stored {
            self.admit(SMALL)?;
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            let now = tree.owner(ino)?;
            let (uid, gid) = (changes.uid.unwrap_or(now.uid), changes.gid.unwrap_or(now.gid));
            tree.set_owner(ino, Owner { uid, gid });
        }
        let inode = tree.get_mut(ino)?;
        if let Some(perm) = changes.perm {
            inode.perm = perm;
        }
        let file = tree.used(ino);
        let unsaved = file.as_ref().is_some_and(|file| file.state().is_unsaved());
        tree.change_times(ino, |times| set_times(times, changes, unsaved));
        tree.attributes_changed(ino);
        let after = entry_of(&tree, ino);
        if !stored || before == after {
            return Ok(());
        }
        self.touch_index(&tree, ino);
        let key = tree.key(ino)?;
        // A file that nobody has saved yet is named to the journal with its first save, bits and all.
        let unknown = file.is_some_and(|file| {
            let state = file.state();
            unsaved && state.base.is_none() && state.held.is_none()
        });
        if unknown || !key.contains('/') {
            return Ok(());
        }
        let rights = |entry: &IndexEntry| (entry.mode, entry.uid, entry.gid);
        let bits = before.as_ref().map(rights) != after.as_ref().map(rights);
        let seq = self.enter(&tree, vec![Step::Meta { key, entry: after }], &[]);
        drop(tree);
        if bits { self.commit(seq) } else { Ok(()) }
    }

    /// Cuts or lengthens a file.
    pub(crate) async fn truncate(self: &Arc<Self>, file: &Arc<File>, size: u64, open: bool) -> Result<(), Errno> {
        if size > 0 {
            self.bring_here(file).await?;
        }
        self.truncate_here(file, size, 0)?.ok_or(Errno::EIO)?;
        // Without a descriptor no close will come that saves it.
        if open { Ok(()) } else { self.save(file).await }
    }

    /// Cuts or lengthens if that needs no request; `None` if the content must be fetched first.
    pub(crate) fn truncate_here(&self, file: &Arc<File>, size: u64, by: u32) -> Result<Option<()>, Errno> {
        let mut state = file.state();
        if size == state.size() && !state.is_unsaved() {
            return Ok(Some(()));
        }
        if size > 0 && !state.make_draft() {
            return Ok(None);
        }
        let explicit = state.times.explicit;
        state.resize(size, &self.intents.journal)?;
        state.writer.wrote(by);
        drop(state);
        self.written(file, explicit);
        Ok(Some(()))
    }

    /// Writes if that needs no request; `None` if the content must be fetched first.
    pub(crate) fn write_here(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        data: &[u8],
        by: u32,
    ) -> Result<Option<()>, Errno> {
        let mut state = file.state();
        if !state.make_draft() {
            return Ok(None);
        }
        let goes_to_disk = !state.is_local() && offset + data.len() as u64 > SPILL;
        if goes_to_disk && !self.intents.journal.room_for_body(data.len() as u64) {
            return Ok(None);
        }
        let explicit = state.times.explicit;
        state.write(offset, data, &self.intents.journal)?;
        state.writer.wrote(by);
        let passed = state.body_file().filter(|body| body.upload.take_news());
        drop(state);
        if let Some(body) = passed {
            self.follow_writer(file, &body);
        }
        self.written(file, explicit);
        Ok(Some(()))
    }

    /// Writes, and waits for what that needs: the content, or room in the journal.
    pub(crate) async fn write(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        data: &[u8],
        by: u32,
    ) -> Result<(), Errno> {
        loop {
            self.bring_here(file).await?;
            self.room_to_write(file, data.len() as u64).await?;
            if let Some(done) = self.write_here(file, offset, data, by)? {
                return Ok(done);
            }
        }
    }

    fn written(&self, file: &Arc<File>, had_explicit_time: bool) {
        let (unsaved, local) = {
            let state = file.state();
            (state.is_unsaved(), state.is_local())
        };
        if unsaved {
            self.unsaved.add(file);
        }
        if local {
            // It is never saved: what is written is seen.
            self.tree.lock().content_changed(file.ino);
        }
        if had_explicit_time {
            self.touch_index(&self.tree.lock(), file.ino);
        }
    }
}

/// What it means that this local-only file is no more: if it was an editor's backup, S3 need not keep what it was made from.
pub(crate) fn backup_gone(file: &File) -> Option<Step> {
    file.state().backup_of().map(|key| Step::BackupGone { key })
}

/// The step that removes a folder's marker object. Its ETag is no matter: it has no content.
pub(crate) fn delete_marker(key: &str) -> Step {
    Step::Delete {
        key: format!("{key}/"),
        remote: Some(String::new()),
        linger: Duration::ZERO,
    }
}

fn set_times(times: &mut Times, changes: Changes, unsaved: bool) {
    let now = SystemTime::now();
    let resolve = |time: TimeOrNow| match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => now,
    };
    if let Some(atime) = changes.atime {
        times.atime = resolve(atime);
    }
    if let Some(mtime) = changes.mtime {
        times.mtime = resolve(mtime);
        // "Now" on a file being written is the time its object will have anyway.
        times.explicit = !(unsaved && matches!(mtime, TimeOrNow::Now));
    }
    times.ctime = now;
}
