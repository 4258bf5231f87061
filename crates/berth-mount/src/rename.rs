//! Moving names.
//!
//! S3 cannot rename, so the new object is made first and the old one removed after: a crash between the two leaves the
//! content twice, never nowhere. A file not yet saved is put under its new name alone. Files may cross the border of the
//! local-only paths both ways: inwards they are fetched and their object goes; outwards they are saved.
//!
//! An editor's way of saving is seen as one change: what was written to a local-only temporary name is PUT once, under the
//! real name; and when the old file is moved to a backup name, its object stays until the new file takes its place.

use std::sync::Arc;

use berth_store::{ObjectInfo, Precondition, StoreError};
use fuser::{Errno, RenameFlags};
use futures::{StreamExt, TryStreamExt};

use crate::{
    cache::CHUNK,
    core::{Core, Shape},
    draft::{Draft, Snapshot},
    file::{Attachment, Base, Body, File},
    index::{entry_of, put_marker},
    tree::{Ino, Node, ROOT, Tree},
    upload::{conflict_name, put_content},
};

/// One rename, checked.
struct Move {
    ino: Ino,
    parent: Ino,
    name: String,
    new_parent: Ino,
    new_name: String,
    target: Option<Ino>,
    old_key: String,
    new_key: String,
    was_local: bool,
    now_local: bool,
}

/// What happens to one file's object when its folder moves.
struct Step {
    file: Arc<File>,
    old_key: String,
    new_key: String,
    was_local: bool,
    now_local: bool,
}

impl Core {
    /// Renames.
    pub(crate) async fn rename(
        self: &Arc<Self>,
        parent: Ino,
        name: &str,
        new_parent: Ino,
        new_name: &str,
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let Some(plan) = self.check(parent, name, new_parent, new_name, flags)? else {
            return Ok(());
        };
        if (plan.was_local && plan.now_local) || !self.needs_store(&plan) {
            return self.move_name(&plan).map(drop);
        }
        let is_dir = self.tree.lock().get(plan.ino)?.is_dir();
        if is_dir {
            self.rename_dir(plan).await
        } else {
            self.rename_leaf(plan).await
        }
    }

    fn check(
        &self,
        parent: Ino,
        name: &str,
        new_parent: Ino,
        new_name: &str,
        flags: RenameFlags,
    ) -> Result<Option<Move>, Errno> {
        if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) {
            return Err(Errno::EINVAL);
        }
        let tree = self.tree.lock();
        let ino = tree.child(parent, name)?.ok_or(Errno::ENOENT)?;
        let inode = tree.get(ino)?;
        let target = tree.child(new_parent, new_name)?;
        if target.is_some() && flags.contains(RenameFlags::RENAME_NOREPLACE) {
            return Err(Errno::EEXIST);
        }
        if target == Some(ino) {
            return Ok(None);
        }
        let (new_key, now_local) = self.new_name(&tree, new_parent, new_name, Shape::of(&inode.node))?;
        if let Some(target) = target {
            let target = tree.get(target)?;
            match (inode.is_dir(), &target.node) {
                (true, Node::Dir(dir)) if !dir.children.is_empty() => return Err(Errno::ENOTEMPTY),
                (true, Node::Dir(_)) => {}
                (true, _) => return Err(Errno::ENOTDIR),
                (false, Node::Dir(_)) => return Err(Errno::EISDIR),
                (false, _) => {}
            }
        }
        if inode.is_dir() && tree.below(ino).contains(&new_parent) {
            return Err(Errno::EINVAL);
        }
        match &inode.node {
            Node::Special(_) if !now_local => return Err(Errno::EPERM),
            Node::Symlink(_) if !now_local && new_parent == ROOT => return Err(Errno::EPERM),
            _ => {}
        }
        Ok(Some(Move {
            ino,
            parent,
            name: name.to_owned(),
            new_parent,
            new_name: new_name.to_owned(),
            target,
            old_key: tree.key(ino)?,
            new_key,
            was_local: inode.local,
            now_local,
        }))
    }

    /// Whether S3 has a part in it: not for a folder or file of which S3 knows nothing yet.
    fn needs_store(&self, plan: &Move) -> bool {
        let tree = self.tree.lock();
        let target_stored = plan
            .target
            .is_some_and(|ino| tree.get(ino).is_ok_and(|inode| !inode.local));
        !plan.was_local || !plan.now_local || target_stored
    }

    /// Moves the name in the tree and marks everything below as local-only or not.
    fn move_name(&self, plan: &Move) -> Result<Option<String>, Errno> {
        let mut tree = self.tree.lock();
        // The feed may have changed the names while S3 was asked.
        if tree.child(plan.parent, &plan.name)? != Some(plan.ino) {
            return Err(Errno::ENOENT);
        }
        if let Some(there) = tree.child(plan.new_parent, &plan.new_name)? {
            tree.detach(there, Attachment::Unlinked);
        }
        let mut indexed = false;
        for ino in tree.below(plan.ino) {
            indexed |= entry_of(&tree, ino).is_some_and(|entry| {
                entry.mode.is_some() || entry.target.is_some() || entry.kind == berth_workspace::EntryKind::Dir
            });
        }
        self.touch_index(&tree, plan.ino);
        tree.relink(plan.ino, plan.new_parent, &plan.new_name)?;
        self.relabel(&mut tree, plan.ino);
        self.dir_changed(&mut tree, plan.parent);
        self.dir_changed(&mut tree, plan.new_parent);
        let app = self.touch_index(&tree, plan.ino);
        Ok(app.filter(|_| indexed && !plan.now_local))
    }

    fn relabel(&self, tree: &mut Tree, top: Ino) {
        for ino in tree.below(top) {
            let Ok(inode) = tree.get(ino) else { continue };
            let parent_local = tree.get(inode.parent).is_ok_and(|parent| parent.local);
            let Ok(key) = tree.key(ino) else { continue };
            let local = self.is_local(parent_local, &key, Shape::of(&inode.node));
            if let Ok(inode) = tree.get_mut(ino) {
                inode.local = local;
            }
        }
    }

    async fn rename_leaf(self: &Arc<Self>, plan: Move) -> Result<(), Errno> {
        let (file, target) = {
            let tree = self.tree.lock();
            (
                tree.file(plan.ino).ok(),
                plan.target.and_then(|ino| tree.file(ino).ok()),
            )
        };
        let _no_folder_moves = self.moves.read().await;
        // Always in the order of the numbers, so that two renames never wait for each other.
        let mut turns: Vec<_> = file.iter().chain(target.iter()).collect();
        turns.sort_by_key(|file| file.ino);
        let mut held = Vec::new();
        for file in turns {
            held.push(file.upload.lock().await);
        }
        if let Some(target) = &target {
            self.keep_for_readers(target).await?;
        }
        let replaced = target.as_ref().and_then(|target| target.state().base.clone());
        let removed = match &file {
            Some(file) if plan.now_local => {
                self.take_out(file).await?;
                let base = file.state().base.take();
                base.map(|base| (base, self.cfg.excludes.transient(&plan.new_key)))
            }
            Some(file) => self
                .store_as(file, &plan.new_key, replaced.clone())
                .await?
                .map(|base| (base, false)),
            None => None,
        };
        if let (None, Some(base)) = (&file, &replaced) {
            // A symlink takes the place of a file.
            self.remove_object(base).await;
        }
        let app = self.move_name(&plan)?;
        if let Some((base, later)) = removed {
            if later {
                self.uploader.bury(base.key, base.etag)
            } else {
                self.remove_object(&base).await
            }
        }
        if let Some(file) = &file
            && file.state().is_dirty()
        {
            self.uploader.enlist(file);
        }
        match app {
            Some(app) => self.index.commit(self, &app).await,
            None => Ok(()),
        }
    }

    /// Removes an object that has no name any more; on failure later.
    async fn remove_object(&self, base: &Base) {
        self.wrote(&base.key);
        if let Err(e) = self.store.delete(&base.key).await {
            self.failed("cannot remove the old name; tried again", &base.key, &e);
            self.uploader.remove_later(&base.key, &base.etag);
        }
        self.wrote(&base.key);
    }

    /// Fetches a file's content, which will live here only.
    async fn take_out(self: &Arc<Self>, file: &Arc<File>) -> Result<(), Errno> {
        if file.state().is_local() {
            return Ok(());
        }
        self.bring_here(file).await?;
        let mut charge = self.budget.open()?;
        let mut state = file.state();
        charge.set(state.size())?;
        if let Body::Draft(Draft::Spilled(..)) = &state.body {
            let bytes = match &state.body {
                Body::Draft(draft) => draft.read(0, draft.len() as usize).map_err(Errno::from)?,
                Body::Stored => return Err(Errno::EIO),
            };
            state.body = Body::Draft(Draft::from_bytes(&bytes));
        }
        state.charge = Some(charge);
        Ok(())
    }

    /// Makes `key` hold the file's content; gives the object it had before, which is to be removed.
    async fn store_as(
        self: &Arc<Self>,
        file: &Arc<File>,
        key: &str,
        replaced: Option<Base>,
    ) -> Result<Option<Base>, Errno> {
        let (content, base, version) = {
            let state = file.state();
            let draft = (state.is_local() || state.is_dirty())
                .then(|| state.snapshot())
                .flatten();
            let pinned = state.pinned.clone().map(Snapshot::Memory);
            (draft.or(pinned), state.base.clone(), state.version)
        };
        let at_hand = || {
            base.as_ref()
                .filter(|base| base.size <= CHUNK)
                .and_then(|base| self.contents.at_hand(base, 0))
                .map(Snapshot::Memory)
        };
        let content = content.or_else(at_hand);
        let buried = self.uploader.dig_up(key);
        let expect = replaced
            .map(|base| base.etag)
            .or(buried)
            .map_or(Precondition::Absent, Precondition::Matches);
        self.wrote(key);
        let stored = match (&content, &base) {
            (Some(content), _) => self
                .put_over(key, content, expect)
                .await
                .map(|info| (info, content.len())),
            (None, Some(base)) => self
                .store
                .copy(&base.key, None, key)
                .await
                .map(|info| (info, base.size)),
            (None, None) => return Err(Errno::EIO),
        };
        let (info, size) = stored.map_err(|e| self.failed("cannot rename to", key, &e))?;
        self.wrote(key);
        let mut state = file.state();
        state.charge = None;
        let new = Base {
            key: key.to_owned(),
            etag: info.etag,
            size,
        };
        if let Some(Snapshot::Memory(bytes)) = content
            && size <= CHUNK
        {
            self.contents.keep(&new, 0, bytes.clone());
            if state.version == version {
                state.pinned = (state.opens > 0).then_some(bytes);
                state.body = Body::Stored;
            }
        }
        if state.version == version && state.opens == 0 {
            state.body = Body::Stored;
        }
        state.acknowledged(version, new);
        Ok(base)
    }

    /// PUTs over what is there. If that is not what we knew, it is kept under a conflict name: the rename wins, as it would
    /// on a disk, and nothing is lost.
    async fn put_over(&self, key: &str, content: &Snapshot, expect: Precondition) -> Result<ObjectInfo, StoreError> {
        match put_content(self, key, content, expect).await {
            Err(e) if e.is_conflict() || e.is_no_such_key() => {
                if self.store.head(key).await?.is_some() {
                    let (above, name) = key.rsplit_once('/').map_or(("", key), |(above, name)| (above, name));
                    let aside = if above.is_empty() {
                        conflict_name(name)
                    } else {
                        format!("{above}/{}", conflict_name(name))
                    };
                    self.store.copy(key, None, &aside).await?;
                    tracing::warn!(
                        key,
                        conflict = aside,
                        "renamed over a version written elsewhere; that one is kept beside it"
                    );
                }
                put_content(self, key, content, Precondition::None).await
            }
            other => other,
        }
    }

    async fn rename_dir(self: &Arc<Self>, plan: Move) -> Result<(), Errno> {
        // No upload runs and none begins: none can appear under an old name.
        let _alone = self.moves.write().await;
        let (steps, old_markers) = self.steps(&plan)?;
        let steps: Vec<Arc<Step>> = steps.into_iter().map(Arc::new).collect();
        let work = steps.iter().cloned().map(|step| {
            let core = self.clone();
            async move { core.step(&step).await }
        });
        let done = futures::stream::iter(work.collect::<Vec<_>>())
            .buffer_unordered(16)
            .try_collect::<Vec<_>>()
            .await;
        let old: Vec<Base> = match done {
            Ok(old) => old.into_iter().flatten().collect(),
            Err(errno) => {
                self.undo(&steps).await;
                return Err(errno);
            }
        };
        let app = self.move_name(&plan)?;
        if !plan.now_local && plan.new_parent == ROOT {
            put_marker(self, plan.ino, &plan.new_key).await?;
        }
        if let Some(app) = app {
            self.index.commit(self, &app).await?;
        }
        for marker in old_markers {
            let marker = Base {
                key: marker,
                etag: String::new(),
                size: 0,
            };
            self.remove_object(&marker).await;
        }
        futures::stream::iter(old)
            .for_each_concurrent(16, |base| async move { self.remove_object(&base).await })
            .await;
        if plan.parent == ROOT && !plan.was_local {
            self.index.touch(&plan.name);
            self.index.commit(self, &plan.name).await?;
        }
        Ok(())
    }

    /// What has to happen to each file below, and the marker objects that go.
    fn steps(&self, plan: &Move) -> Result<(Vec<Step>, Vec<String>), Errno> {
        let mut tree = self.tree.lock();
        let (mut steps, mut markers) = (Vec::new(), Vec::new());
        let mut now_local = std::collections::HashMap::new();
        for ino in tree.below(plan.ino) {
            let old_key = tree.key(ino)?;
            let new_key = format!("{}{}", plan.new_key, &old_key[plan.old_key.len()..]);
            let inode = tree.get(ino)?;
            let parent_local = if ino == plan.ino {
                tree.get(plan.new_parent)?.local
            } else {
                now_local.get(&inode.parent).copied().unwrap_or(false)
            };
            let local = self.is_local(parent_local, &new_key, Shape::of(&inode.node));
            now_local.insert(ino, local);
            match &inode.node {
                Node::File(file) => {
                    let (file, was_local) = (file.clone(), inode.local);
                    steps.push(Step {
                        file,
                        old_key,
                        new_key,
                        was_local,
                        now_local: local,
                    });
                }
                Node::Dir(dir) if dir.marker => {
                    markers.push(format!("{old_key}/"));
                    // Deeper folders need none under the new name: the index says they exist.
                    tree.dir_mut(ino)?.marker = false;
                }
                Node::Special(_) if !local => return Err(Errno::EPERM),
                _ => {}
            }
        }
        if let Some(target) = plan.target
            && tree.get(target)?.as_dir()?.marker
            && plan.new_parent != ROOT
        {
            markers.push(format!("{}/", plan.new_key));
        }
        Ok((steps, markers))
    }

    /// Stores one file under its new name; gives the object to remove.
    async fn step(self: &Arc<Self>, step: &Step) -> Result<Option<Base>, Errno> {
        match (step.was_local, step.now_local) {
            (true, true) => Ok(None),
            (false, true) => {
                self.take_out(&step.file).await?;
                Ok(step.file.state().base.take())
            }
            // Not saved yet: the save that comes will use the new name.
            (false, false) if step.file.state().base.is_none() => Ok(None),
            (_, false) => self.store_as(&step.file, &step.new_key, None).await,
        }
    }

    /// Brings the files of a failed move back under their old names. The old objects were not removed yet.
    async fn undo(self: &Arc<Self>, steps: &[Arc<Step>]) {
        for step in steps.iter().filter(|step| !(step.was_local && step.now_local)) {
            if let Err(errno) = self.undo_step(step).await {
                tracing::warn!(
                    key = step.new_key,
                    ?errno,
                    "a folder could not be moved, and this file could not be put back"
                );
            }
        }
    }

    async fn undo_step(self: &Arc<Self>, step: &Step) -> Result<(), Errno> {
        let moved = step.file.state().base.clone().filter(|base| base.key == step.new_key);
        if moved.is_some() {
            self.bring_here(&step.file).await?;
        }
        let old = if step.was_local {
            None
        } else {
            self.store
                .head(&step.old_key)
                .await
                .map_err(|e| self.failed("cannot look up", &step.old_key, &e))?
        };
        let charge = if step.was_local {
            Some(self.budget.open()?)
        } else {
            None
        };
        {
            let mut state = step.file.state();
            if moved.is_none() && !step.now_local {
                return Ok(());
            }
            let size = state.size();
            state.charge = charge;
            if let Some(charge) = &mut state.charge {
                charge.set(size)?;
            }
            state.base = old.as_ref().map(Base::from);
            let same = moved
                .as_ref()
                .is_none_or(|moved| state.base.as_ref().is_some_and(|base| base.etag == moved.etag));
            if !same {
                state.changed();
            }
        }
        if step.file.state().is_dirty() {
            self.uploader.enlist(&step.file);
        }
        if let Some(moved) = moved {
            self.remove_object(&moved).await;
        }
        Ok(())
    }
}
