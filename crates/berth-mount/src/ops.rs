//! Making, changing and removing names.
//!
//! Owners are not kept: every file belongs to the configured user, and `chown` succeeds without effect, so that `cp -a`,
//! `rsync -a` and `tar x` work as root. Hard links do not exist (`EPERM`: a bucket has none, and git and npm fall back).

use std::{sync::Arc, time::SystemTime};

use fuser::{Errno, FileAttr, FileType, TimeOrNow};

use crate::{
    core::{Core, Opened, Shape},
    file::{Attachment, Body, File},
    index::{entry_of, put_marker},
    remote::refuse_hidden,
    tree::{DIR_PERM, Dir, FILE_PERM, Ino, Look, Node, ROOT, Times, Tree},
};

/// What `setattr` may change.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Changes {
    pub(crate) perm: Option<u16>,
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
        let local = self.is_local(folder.local, &key, shape);
        Ok((key, local))
    }

    /// A name was added to or removed from `parent`: its time changes, and perhaps what the index says of it.
    pub(crate) fn dir_changed(&self, tree: &mut Tree, parent: Ino) {
        let Ok(before) = tree.get(parent).map(|inode| inode.times.explicit) else {
            return;
        };
        tree.touch_dir(parent);
        let Ok(inode) = tree.get(parent) else { return };
        let Ok(dir) = inode.as_dir() else { return };
        let changes = before || dir.indexed != entry_of(tree, parent).is_some() || !tree.has_stored_children(dir);
        if changes && !inode.local && parent != ROOT {
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
    pub(crate) fn create_file(&self, tree: &mut Tree, parent: Ino, name: &str, perm: u16) -> Result<Arc<File>, Errno> {
        let (_, local) = self.new_name(tree, parent, name, Shape::File)?;
        let charge = if local { Some(self.budget.open()?) } else { None };
        let ino = tree.number();
        let file = File::created(ino, charge);
        tree.insert(
            ino,
            parent,
            name,
            Look {
                local,
                perm,
                times: Times::at(SystemTime::now()),
            },
            Node::File(file.clone()),
        )?;
        self.dir_changed(tree, parent);
        if !local {
            self.uploader.enlist(&file);
            if perm != FILE_PERM {
                self.touch_index(tree, ino);
            }
        }
        Ok(file)
    }

    /// Makes and opens a file.
    pub(crate) fn create(&self, parent: Ino, name: &str, perm: u16) -> Result<(FileAttr, u64), Errno> {
        let mut tree = self.tree.lock();
        let file = self.create_file(&mut tree, parent, name, perm)?;
        file.state().opens += 1;
        let attr = self.entry(&mut tree, file.ino)?;
        Ok((attr, self.open_handle(Opened::File(file))))
    }

    /// `mknod` of a plain file (stored before the answer, since no close will come), or of a FIFO or socket in a local path.
    pub(crate) async fn mknod(
        self: &Arc<Self>,
        parent: Ino,
        name: &str,
        kind: FileType,
        perm: u16,
    ) -> Result<FileAttr, Errno> {
        if kind == FileType::RegularFile {
            let file = self.create_file(&mut self.tree.lock(), parent, name, perm)?;
            self.uploader.save(self, &file).await?;
            return self.entry(&mut self.tree.lock(), file.ino);
        }
        let mut tree = self.tree.lock();
        let (_, local) = self.new_name(&tree, parent, name, Shape::File)?;
        if !local || !matches!(kind, FileType::NamedPipe | FileType::Socket) {
            return Err(Errno::EPERM);
        }
        let ino = tree.number();
        tree.insert(
            ino,
            parent,
            name,
            Look {
                local: true,
                perm,
                times: Times::at(SystemTime::now()),
            },
            Node::Special(kind),
        )?;
        self.dir_changed(&mut tree, parent);
        self.entry(&mut tree, ino)
    }

    /// Makes a folder; returns when the bucket knows of it.
    pub(crate) async fn mkdir(self: &Arc<Self>, parent: Ino, name: &str, perm: u16) -> Result<FileAttr, Errno> {
        let _no_folder_moves = self.moves.read().await;
        let (ino, key, local) = {
            let mut tree = self.tree.lock();
            let (key, local) = self.new_name(&tree, parent, name, Shape::Dir)?;
            let ino = tree.number();
            tree.insert(
                ino,
                parent,
                name,
                Look {
                    local,
                    perm,
                    times: Times::at(SystemTime::now()),
                },
                Node::Dir(Dir::default()),
            )?;
            self.dir_changed(&mut tree, parent);
            (ino, key, local)
        };
        if !local {
            let stored = if parent == ROOT {
                put_marker(self, ino, &key).await
            } else {
                self.commit_index(ino).await
            };
            if let Err(errno) = stored {
                self.tree.lock().detach(ino, Attachment::Unlinked);
                return Err(errno);
            }
            if parent == ROOT && perm != DIR_PERM {
                self.touch_index(&self.tree.lock(), ino);
            }
        }
        self.entry(&mut self.tree.lock(), ino)
    }

    /// Marks the index of `ino`'s workspace as changed and waits until S3 has it.
    pub(crate) async fn commit_index(&self, ino: Ino) -> Result<(), Errno> {
        let app = self.touch_index(&self.tree.lock(), ino);
        match app {
            Some(app) => self.index.commit(self, &app).await,
            None => Ok(()),
        }
    }

    /// Waits until S3 has all that the index should say about `ino`'s workspace.
    pub(crate) async fn sync_index(&self, ino: Ino) -> Result<(), Errno> {
        let app = {
            let tree = self.tree.lock();
            tree.key(ino).ok().and_then(|key| self.workspace_of(&tree, &key))
        };
        match app {
            Some(app) => self.index.commit(self, &app).await,
            None => Ok(()),
        }
    }

    /// Makes a symlink; returns when the index has it. Not at the top: there is no index there.
    pub(crate) async fn symlink(self: &Arc<Self>, parent: Ino, name: &str, target: &str) -> Result<FileAttr, Errno> {
        let _no_folder_moves = self.moves.read().await;
        let (ino, local) = {
            let mut tree = self.tree.lock();
            let (_, local) = self.new_name(&tree, parent, name, Shape::Symlink)?;
            if parent == ROOT && !local {
                return Err(Errno::EPERM);
            }
            let ino = tree.number();
            tree.insert(
                ino,
                parent,
                name,
                Look {
                    local,
                    perm: 0o777,
                    times: Times::at(SystemTime::now()),
                },
                Node::Symlink(target.to_owned()),
            )?;
            self.dir_changed(&mut tree, parent);
            (ino, local)
        };
        if !local && let Err(errno) = self.commit_index(ino).await {
            self.tree.lock().detach(ino, Attachment::Unlinked);
            return Err(errno);
        }
        self.entry(&mut self.tree.lock(), ino)
    }

    /// Removes a name if that needs no request; gives the file otherwise.
    pub(crate) fn unlink_here(&self, parent: Ino, name: &str) -> Result<Option<Arc<File>>, Errno> {
        let mut tree = self.tree.lock();
        let ino = tree.child(parent, name)?.ok_or(Errno::ENOENT)?;
        let inode = tree.get(ino)?;
        match &inode.node {
            Node::Dir(_) => return Err(Errno::EISDIR),
            Node::File(file) if !inode.local => {
                let file = file.clone();
                // An upload on its way, or an object: S3 has to be asked.
                if file.upload.try_lock().is_err() || file.state().base.is_some() {
                    return Ok(Some(file));
                }
            }
            _ => {}
        }
        let odd = !inode.local && entry_of(&tree, ino).is_some();
        if odd {
            self.touch_index(&tree, ino);
        }
        tree.detach(ino, Attachment::Unlinked);
        self.dir_changed(&mut tree, parent);
        Ok(None)
    }

    /// Removes a stored file, the object first.
    pub(crate) async fn unlink_stored(
        self: &Arc<Self>,
        parent: Ino,
        name: &str,
        file: &Arc<File>,
    ) -> Result<(), Errno> {
        let _no_folder_moves = self.moves.read().await;
        let _turn = file.upload.lock().await;
        self.keep_for_readers(file).await?;
        let base = file.state().base.clone();
        if let Some(base) = base {
            self.wrote(&base.key);
            self.store
                .delete(&base.key)
                .await
                .map_err(|e| self.failed("cannot remove", &base.key, &e))?;
            self.wrote(&base.key);
        }
        let mut tree = self.tree.lock();
        if tree.child(parent, name)? == Some(file.ino) {
            if entry_of(&tree, file.ino).is_some() {
                self.touch_index(&tree, file.ino);
            }
            tree.detach(file.ino, Attachment::Unlinked);
            self.dir_changed(&mut tree, parent);
        }
        Ok(())
    }

    /// A file whose object goes away must stay readable for those who have it open.
    pub(crate) async fn keep_for_readers(self: &Arc<Self>, file: &Arc<File>) -> Result<(), Errno> {
        let open = {
            let state = file.state();
            state.opens > 0 && matches!(state.body, Body::Stored)
        };
        if open { self.bring_here(file).await } else { Ok(()) }
    }

    /// Removes an empty folder.
    pub(crate) async fn rmdir(self: &Arc<Self>, parent: Ino, name: &str) -> Result<(), Errno> {
        let _no_folder_moves = self.moves.read().await;
        let (ino, marker) = {
            let tree = self.tree.lock();
            let ino = tree.child(parent, name)?.ok_or(Errno::ENOENT)?;
            let dir = tree.get(ino)?.as_dir()?;
            if !dir.children.is_empty() {
                return Err(Errno::ENOTEMPTY);
            }
            (ino, dir.marker.then(|| tree.key(ino)).transpose()?)
        };
        if let Some(key) = marker {
            let marker = format!("{key}/");
            self.wrote(&marker);
            self.store
                .delete(&marker)
                .await
                .map_err(|e| self.failed("cannot remove", &marker, &e))?;
        }
        let mut tree = self.tree.lock();
        self.touch_index(&tree, ino);
        tree.detach(ino, Attachment::Unlinked);
        self.dir_changed(&mut tree, parent);
        Ok(())
    }

    /// Bits and times. Gives the workspace whose index must be written before the answer.
    pub(crate) fn set_attributes(&self, ino: Ino, changes: Changes) -> Result<Option<String>, Errno> {
        let mut tree = self.tree.lock();
        let before = entry_of(&tree, ino);
        let inode = tree.get_mut(ino)?;
        if let Some(perm) = changes.perm {
            inode.perm = perm;
        }
        let file = inode.file().cloned();
        let mut unsaved = false;
        match &file {
            Some(file) => {
                let mut state = file.state();
                unsaved = state.is_dirty();
                set_times(&mut state.times, changes, unsaved);
            }
            None => set_times(&mut inode.times, changes, false),
        }
        let (local, linked) = (inode.local, inode.linked);
        let after = entry_of(&tree, ino);
        if local || !linked || before == after {
            return Ok(None);
        }
        let app = self.touch_index(&tree, ino);
        // The close that saves the file waits for its bits too; times are written a little later.
        let must_wait = before.and_then(|entry| entry.mode) != after.and_then(|entry| entry.mode) && !unsaved;
        Ok(app.filter(|_| must_wait))
    }

    /// Cuts or lengthens a file.
    pub(crate) async fn truncate(self: &Arc<Self>, file: &Arc<File>, size: u64, open: bool) -> Result<(), Errno> {
        if size > 0 {
            self.bring_here(file).await?;
        }
        self.truncate_here(file, size)?.ok_or(Errno::EIO)?;
        // Without a descriptor no close will come that saves it.
        if open {
            Ok(())
        } else {
            self.uploader.save(self, file).await
        }
    }

    /// Cuts or lengthens if that needs no request; `None` if the content must be fetched first.
    pub(crate) fn truncate_here(&self, file: &Arc<File>, size: u64) -> Result<Option<()>, Errno> {
        let mut state = file.state();
        if size == state.size() && matches!(state.body, Body::Stored) {
            return Ok(Some(()));
        }
        if size > 0 && !state.make_draft() {
            return Ok(None);
        }
        let explicit = state.times.explicit;
        state.resize(size, &self.spill)?;
        drop(state);
        self.written(file, explicit);
        Ok(Some(()))
    }

    /// Writes if that needs no request; `None` if the content must be fetched first.
    pub(crate) fn write_here(&self, file: &Arc<File>, offset: u64, data: &[u8]) -> Result<Option<()>, Errno> {
        let mut state = file.state();
        if !state.make_draft() {
            return Ok(None);
        }
        let explicit = state.times.explicit;
        state.write(offset, data, &self.spill)?;
        drop(state);
        self.written(file, explicit);
        Ok(Some(()))
    }

    fn written(&self, file: &Arc<File>, had_explicit_time: bool) {
        if file.state().is_dirty() {
            self.uploader.enlist(file);
        }
        if had_explicit_time {
            self.touch_index(&self.tree.lock(), file.ino);
        }
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
