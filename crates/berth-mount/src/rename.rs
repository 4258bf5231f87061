//! Moving names.
//!
//! A rename is a change of the tree and one batch in the journal: the content under its new name, nothing under the old one.
//! What S3 has already is copied there by S3 ([`Step::Copy`]); what it lacks is simply wanted under the new name, so an
//! editor's temporary file is never sent. The old object goes when the new one is there.
//!
//! Files may cross the border of the local-only paths both ways: inwards their content is fetched and their object goes;
//! outwards they are saved. When an editor moves the old file to a backup name, its object stays until the new file takes its
//! place or the backup is removed: the backup is in memory alone.

use std::{collections::HashMap, sync::Arc, time::Duration};

use berth_workspace::index::to_nanos;
use fuser::{Errno, RenameFlags};

use crate::{
    core::{Core, Shape},
    draft::{Draft, INLINE},
    file::{Attachment, Base, Body, File, FileState},
    index::entry_of,
    journal::Content,
    kernel::Notice,
    local::Charge,
    ops::{SMALL, backup_gone, delete_marker},
    pending::Step,
    save::put_step,
    tree::{Ino, MAX_KEY, Node, ROOT, Tree},
};

/// How long an object stays after its name was given to a file that is not saved yet.
const UNSAVED: Duration = Duration::from_secs(5);

/// One rename, checked.
struct Move {
    ino: Ino,
    new_parent: Ino,
    new_name: String,
    parent: Ino,
    target: Option<Ino>,
    old_key: String,
    new_key: String,
    was_local: bool,
    now_local: bool,
}

/// What happens to one inode.
struct Moved {
    ino: Ino,
    old_key: String,
    new_key: String,
    was_local: bool,
    now_local: bool,
    had_entry: bool,
}

/// How one inode is moved, with all that may fail behind it.
enum Prepared {
    /// Nothing of it is in S3, before or after, or it is no file.
    Plain,
    /// It becomes local-only: its share of the memory, and its content if that has to change places.
    Inwards(Charge, Option<Draft>),
    /// Content of this version, for the new name.
    Put(Content, u64),
    /// The object, to be copied.
    Copy(Base),
    /// The new name is where its object is.
    Back,
    /// Never saved, and too large to be saved in passing.
    Later,
}

/// What a move comes to: the batch, and which put is which file's.
#[derive(Default)]
struct Effects {
    steps: Vec<Step>,
    files: Vec<(Arc<File>, String, u64)>,
}

impl Core {
    /// Renames, for process `by`.
    pub(crate) async fn rename(
        self: &Arc<Self>,
        (parent, name): (Ino, &str),
        (new_parent, new_name): (Ino, &str),
        (flags, by): (RenameFlags, u32),
    ) -> Result<(), Errno> {
        loop {
            let missing = match self.rename_here((parent, name), (new_parent, new_name), (flags, by))? {
                Missing::Nothing => return Ok(()),
                Missing::Content(files) => files,
            };
            for file in missing {
                self.bring_here(&file).await?;
            }
        }
    }

    /// Renames if all content that has to be at hand is.
    pub(crate) fn rename_here(
        &self,
        (parent, name): (Ino, &str),
        (new_parent, new_name): (Ino, &str),
        (flags, by): (RenameFlags, u32),
    ) -> Result<Missing, Errno> {
        let mut tree = self.tree.lock();
        let stale = self.kernel.check_fresh(&tree, (parent, name), by)?;
        let Some(mut plan) = self.check(&tree, parent, name, new_parent, new_name, flags)? else {
            return Ok(Missing::Nothing);
        };
        let moved = self.moved(&tree, &plan)?;
        plan.now_local = moved.first().is_some_and(|one| one.now_local);
        let missing = self.missing(&tree, &moved);
        if !missing.is_empty() {
            return Ok(Missing::Content(missing));
        }
        let stored = moved.iter().filter(|one| !one.was_local || !one.now_local).count() as u64;
        let target_stored = plan
            .target
            .is_some_and(|ino| tree.get(ino).is_ok_and(|inode| !inode.local));
        if stored > 0 || target_stored {
            self.admit(SMALL + stored * 1024 + outward_bytes(&tree, &moved))?;
        }
        // What can fail comes first: from then on nothing has to be taken back.
        let prepared: Vec<Prepared> = moved
            .iter()
            .map(|one| self.prepare(&tree, one))
            .collect::<Result<_, Errno>>()?;
        let mut effects = Effects::default();
        let remote = self.take_target(&tree, &plan, &mut effects)?;
        // Local-only before and after is nothing to the index.
        if stored > 0 {
            self.touch_index(&tree, plan.ino);
        }
        for (one, prepared) in moved.iter().zip(prepared) {
            let remote = if one.ino == plan.ino { remote.clone() } else { None };
            self.move_inode(&mut tree, one, prepared, remote, &mut effects);
        }
        if let Some(target) = plan.target {
            tree.detach(target, Attachment::Unlinked);
            self.announce_end(&mut tree, target);
        }
        tree.relink(plan.ino, plan.new_parent, &plan.new_name)?;
        for one in &moved {
            tree.set_local(one.ino, one.now_local);
        }
        if !plan.now_local {
            self.store_folders(&mut tree, plan.new_parent, &mut effects.steps);
        }
        if plan.parent == ROOT && plan.new_parent == ROOT && tree.get(plan.ino)?.is_dir() {
            self.rules.renamed(&plan.old_key, &plan.new_key);
        }
        self.dir_changed(&mut tree, plan.parent);
        self.dir_changed(&mut tree, plan.new_parent);
        if stored > 0 {
            self.touch_index(&tree, plan.ino);
        }
        self.finish_move(&mut tree, &plan, &moved, &mut effects);
        if stale {
            // The kernel takes what it knew by the old name for what has the new one.
            let (parent, name) = (plan.new_parent, plan.new_name.as_str().into());
            self.kernel.send(&tree, Notice::Entry { parent, name });
        }
        let seq = self.enter(&tree, effects.steps, &effects.files);
        for one in moved.iter().filter(|one| one.was_local) {
            self.uncover(&mut tree, &one.old_key);
        }
        drop(tree);
        self.heed_rules();
        self.commit(seq)?;
        Ok(Missing::Nothing)
    }

    fn check(
        &self,
        tree: &Tree,
        parent: Ino,
        name: &str,
        new_parent: Ino,
        new_name: &str,
        flags: RenameFlags,
    ) -> Result<Option<Move>, Errno> {
        if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) {
            return Err(Errno::EINVAL);
        }
        let ino = tree.child(parent, name)?.ok_or(Errno::ENOENT)?;
        let inode = tree.get(ino)?;
        let target = tree.child(new_parent, new_name)?;
        if target.is_some() && flags.contains(RenameFlags::RENAME_NOREPLACE) {
            return Err(Errno::EEXIST);
        }
        if target == Some(ino) {
            return Ok(None);
        }
        let (new_key, _) = self.new_name(tree, new_parent, new_name, Shape::of(&inode.node))?;
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
        let mut plan = Move {
            ino,
            parent,
            new_parent,
            new_name: new_name.to_owned(),
            target,
            old_key: tree.key(ino)?,
            new_key,
            was_local: inode.local,
            now_local: false,
        };
        plan.now_local = self.will_be_local(tree, &plan, (ino, &plan.old_key, &plan.new_key))?;
        match &inode.node {
            Node::Symlink(_) if !plan.now_local && new_parent == ROOT => return Err(Errno::EPERM),
            _ => {}
        }
        Ok(Some(plan))
    }

    /// Whether an inode that moves is local-only afterwards. A workspace's own list decides about new names: what is stored
    /// although it matches, or is put in the place of something stored, stays stored.
    fn will_be_local(
        &self,
        tree: &Tree,
        plan: &Move,
        (ino, old_key, new_key): (Ino, &str, &str),
    ) -> Result<bool, Errno> {
        let inode = tree.get(ino)?;
        let shape = Shape::of(&inode.node);
        if self.rules.by_host(new_key, shape) {
            return Ok(true);
        }
        let old_matched = self.rules.by_workspace(old_key, shape);
        // A workspace keeps its rules when its name changes.
        let whole = plan.parent == ROOT && plan.new_parent == ROOT;
        let matches = if whole {
            old_matched
        } else {
            self.rules.by_workspace(new_key, shape)
        };
        let replaces_stored = ino == plan.ino
            && shape != Shape::Dir
            && (plan
                .target
                .is_some_and(|target| tree.get(target).is_ok_and(|target| !target.local))
                || self.intents.is_aside(new_key));
        Ok(matches && (inode.local || !old_matched) && !replaces_stored)
    }

    /// All that moves, parents before children, with its names and on which side of the border it was and will be.
    fn moved(&self, tree: &Tree, plan: &Move) -> Result<Vec<Moved>, Errno> {
        let mut all: Vec<Moved> = Vec::new();
        for ino in tree.below(plan.ino) {
            let old_key = tree.key(ino)?;
            let new_key = format!("{}{}", plan.new_key, &old_key[plan.old_key.len()..]);
            let inode = tree.get(ino)?;
            let local = self.will_be_local(tree, plan, (ino, &old_key, &new_key))?;
            if !local && new_key.len() > MAX_KEY {
                return Err(Errno::ENAMETOOLONG);
            }
            all.push(Moved {
                ino,
                // A folder that got its first file a moment ago may still be in the index that S3 has.
                had_entry: !inode.local
                    && (inode.is_dir()
                        || entry_of(tree, ino).is_some()
                        || self.intents.has_meta(&old_key)
                        || self.index.awaits(&old_key)),
                was_local: inode.local,
                now_local: local,
                old_key,
                new_key,
            });
        }
        // A folder with something stored in it is stored, whatever its name.
        let place: HashMap<Ino, usize> = all.iter().enumerate().map(|(at, one)| (one.ino, at)).collect();
        for at in (1..all.len()).rev() {
            if !all[at].now_local
                && let Some(above) = place.get(&tree.get(all[at].ino)?.parent)
            {
                all[*above].now_local = false;
            }
        }
        Ok(all)
    }

    /// The files whose content must be fetched before they can move.
    fn missing(&self, tree: &Tree, moved: &[Moved]) -> Vec<Arc<File>> {
        let mut missing = Vec::new();
        for one in moved.iter().filter(|one| !one.was_local) {
            let Ok(file) = tree.file(one.ino) else { continue };
            let mut state = file.state();
            let at_hand = if one.now_local {
                state.make_draft()
            } else {
                let base = state.base.as_ref().filter(|_| matches!(state.body, Body::Stored));
                base.is_none_or(|base| self.intents.can_move(base, &one.new_key)) || state.make_draft()
            };
            drop(state);
            if !at_hand {
                missing.push(file);
            }
        }
        missing
    }

    /// What the target's name meant goes; gives what S3 has there.
    fn take_target(&self, tree: &Tree, plan: &Move, effects: &mut Effects) -> Result<Option<String>, Errno> {
        let Some(target) = plan.target else { return Ok(None) };
        let inode = tree.get(target)?;
        if inode.local {
            effects
                .steps
                .extend(tree.used(target).and_then(|file| backup_gone(&file)));
            return Ok(None);
        }
        let key = &plan.new_key;
        self.unindex(tree, target, key, &mut effects.steps);
        match &inode.node {
            Node::File(_) => {
                let file = tree.file(target)?;
                self.keep_for_readers(&file);
                let remote = file.state().remote(key);
                if !tree.get(plan.ino)?.is_file() || plan.now_local {
                    effects.steps.push(Step::Delete {
                        key: key.clone(),
                        remote: remote.clone(),
                        linger: Duration::ZERO,
                    });
                }
                Ok(remote)
            }
            Node::Dir(dir) if dir.marker && plan.new_parent != ROOT => {
                effects.steps.push(delete_marker(key));
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Does all of one inode's move that may fail, and changes nothing.
    fn prepare(&self, tree: &Tree, one: &Moved) -> Result<Prepared, Errno> {
        let Ok(file) = tree.file(one.ino) else {
            return Ok(Prepared::Plain);
        };
        let mut state = file.state();
        if state.is_released() {
            return Err(Errno::EBUSY);
        }
        match (one.was_local, one.now_local) {
            (true, true) => Ok(Prepared::Plain),
            (false, true) => {
                let mut charge = self.budget.open()?;
                charge.set(state.size())?;
                let draft = match &state.body {
                    Body::Draft(draft @ Draft::Spilled { .. }) => {
                        let bytes = draft.read(0, draft.len() as usize).map_err(Errno::from)?;
                        Some(Draft::from_bytes(&bytes))
                    }
                    _ => None,
                };
                Ok(Prepared::Inwards(charge, draft))
            }
            (_, false) => self.prepare_stored(&mut state, one),
        }
    }

    fn prepare_stored(&self, state: &mut FileState, one: &Moved) -> Result<Prepared, Errno> {
        let unsaved = one.was_local || state.is_unsaved();
        let small = state.size() <= INLINE;
        if let Some(held) = state.held.clone()
            && !(unsaved && small)
        {
            return Ok(Prepared::Put(Content::Held(held), state.kept));
        }
        if matches!(state.body, Body::Stored) || (unsaved && !small && !one.was_local) {
            return Ok(match state.base.clone() {
                Some(base) if base.key == one.new_key => Prepared::Back,
                Some(base) => Prepared::Copy(base),
                None => Prepared::Later,
            });
        }
        let version = state.version;
        let snapshot = state.snapshot().ok_or(Errno::EIO)?;
        let content = snapshot.into_content(&self.intents.journal).map_err(Errno::from)?;
        Ok(Prepared::Put(content, version))
    }

    fn move_inode(
        &self,
        tree: &mut Tree,
        one: &Moved,
        prepared: Prepared,
        remote: Option<String>,
        effects: &mut Effects,
    ) {
        if let Ok(dir) = tree.dir_mut(one.ino)
            && dir.marker
        {
            effects.steps.push(delete_marker(&one.old_key));
            dir.marker = false;
        }
        let becomes_backup =
            !one.was_local && one.now_local && self.rules.transient(&one.new_key) && tree.file(one.ino).is_ok();
        if one.had_entry && !becomes_backup {
            effects.steps.push(Step::Meta {
                key: one.old_key.clone(),
                entry: None,
            });
        }
        let Ok(file) = tree.file(one.ino) else { return };
        let old = file.state().remote(&one.old_key);
        // An editor's backup that gets a name in S3: the object it was made from goes when it is there.
        let backup_of = if one.now_local { None } else { file.state().backup_of() };
        let from = match &backup_of {
            _ if !one.was_local => Some(one.old_key.clone()),
            Some(key) if *key != one.new_key => Some(key.clone()),
            _ => None,
        };
        let entry = if becomes_backup { entry_of(tree, one.ino) } else { None };
        match prepared {
            Prepared::Plain => return,
            Prepared::Inwards(charge, draft) => {
                let mut state = file.state();
                if let Some(draft) = draft {
                    state.body = Body::Draft(draft);
                }
                state.charge = Some(charge);
                state.base = None;
                state.held = None;
                state.kept = state.version;
                if becomes_backup {
                    state.set_backup_of(&one.old_key);
                    drop(state);
                    effects.steps.push(Step::Aside {
                        key: one.old_key.clone(),
                        remote: old,
                        entry,
                    });
                    return;
                }
            }
            Prepared::Put(content, version) => {
                let mut step = put_step(&file, &one.new_key, content, from.clone());
                if let Step::Put { remote: expected, .. } = &mut step {
                    *expected = remote;
                }
                effects.steps.push(step);
                effects.files.push((file.clone(), one.new_key.clone(), version));
            }
            Prepared::Copy(base) => effects.steps.push(Step::Copy {
                key: one.new_key.clone(),
                from: base,
                remote,
                mtime_ns: to_nanos(file.state().times.mtime),
            }),
            Prepared::Back => effects.steps.push(Step::Forget {
                key: one.new_key.clone(),
            }),
            // The save that comes will use the new name. What was there has been replaced all the same.
            Prepared::Later => effects.steps.push(Step::Delete {
                key: one.new_key.clone(),
                remote,
                linger: UNSAVED,
            }),
        }
        match from {
            Some(key) if one.was_local => effects.steps.push(Step::BackupGone { key }),
            Some(key) => effects.steps.push(Step::Delete {
                key,
                remote: old,
                linger: Duration::ZERO,
            }),
            None => {}
        }
    }

    /// What the index and markers say under the new names.
    fn finish_move(&self, tree: &mut Tree, plan: &Move, moved: &[Moved], effects: &mut Effects) {
        for one in moved.iter().filter(|one| !one.now_local) {
            self.meta_step(tree, one.ino, &one.new_key, &mut effects.steps);
        }
        let is_dir = tree.get(plan.ino).is_ok_and(crate::tree::Inode::is_dir);
        if is_dir && !plan.now_local && plan.new_parent == ROOT {
            self.marker_step(tree, plan.ino, &plan.new_key, &mut effects.steps);
        }
        if is_dir && plan.parent == ROOT && !plan.was_local {
            // Its index object goes.
            self.index.touch(&plan.old_key);
        }
        if plan.now_local {
            return self.emptied(tree, plan.parent, &mut effects.steps);
        }
        for one in moved {
            if let Ok(file) = tree.file(one.ino)
                && file.state().is_unsaved()
            {
                self.unsaved.add(&file);
            }
        }
        self.emptied(tree, plan.parent, &mut effects.steps);
    }
}

/// What keeps a rename from being done at once.
pub(crate) enum Missing {
    Nothing,
    /// These files' content.
    Content(Vec<Arc<File>>),
}

/// Bytes of the local-only files that get a name in S3.
fn outward_bytes(tree: &Tree, moved: &[Moved]) -> u64 {
    let outward = moved.iter().filter(|one| one.was_local && !one.now_local);
    outward
        .filter_map(|one| tree.file(one.ino).ok())
        .map(|file| file.state().size())
        .sum()
}
