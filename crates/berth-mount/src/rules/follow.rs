//! How a mount comes to know its workspaces' rules, and what becomes of local-only files that lost theirs.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use fuser::Errno;
use futures::StreamExt;

use super::MAX_FILE;
use crate::{
    cache::FetchError,
    core::{Core, Shape},
    file::{Attachment, Base, Body, File},
    ops::SMALL,
    pending::Step,
    tree::{Ino, ROOT, Tree},
};

/// How long the start of a mount waits for files that are only in S3.
pub(crate) const START: Duration = Duration::from_secs(5);
/// Files read at the same time.
const AT_ONCE: usize = 16;
/// The pause after S3 did not give one; it doubles up to [`MAX_PAUSE`].
const PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// What a look at a `workspace.json` finds.
enum Seen {
    /// None is there.
    Gone,
    /// Nothing that could be read yet: the rules stay.
    Unsaved,
    Text(Bytes),
    TooLong,
    /// It is in S3 alone.
    Far(Base),
}

impl Core {
    /// Makes the rules those of the `workspace.json`s as they are now; those that are only in S3 a little later. Called with no
    /// lock held, at the end of whatever may have changed one. A load of one flag when none was.
    pub(crate) fn heed_rules(&self) {
        while self.rules.stale.is_any() {
            let _turn = self.rules.turn.lock();
            let stale = self.rules.stale.all();
            for (workspace, mark) in &stale {
                if self.take_rules(workspace, *mark).is_some() {
                    self.rules.far.lock().insert(workspace.clone(), *mark);
                    self.rules.stale.wake.notify_one();
                }
            }
            self.rules.stale.done(&stale);
        }
    }

    /// Puts in force what is at hand; where the file is if S3 alone has it.
    fn take_rules(&self, workspace: &str, mark: u64) -> Option<Base> {
        match self.look_at_rules(workspace) {
            Seen::Gone => self.rules.removed(workspace, mark),
            Seen::Unsaved => {}
            Seen::Text(text) => self.rules.read(workspace, mark, Some(&text)),
            Seen::TooLong => self.rules.read(workspace, mark, None),
            Seen::Far(base) => return Some(base),
        }
        None
    }

    fn look_at_rules(&self, workspace: &str) -> Seen {
        let key = key_of(workspace);
        let file = {
            let tree = self.tree.lock();
            let stored = tree
                .find(&key)
                .filter(|ino| tree.get(*ino).is_ok_and(|inode| !inode.local));
            match stored.and_then(|ino| tree.file(ino).ok()) {
                Some(file) => file,
                // An editor has moved it to a backup's name, and is about to save it anew.
                None if self.intents.is_aside(&key) => return Seen::Unsaved,
                None => return Seen::Gone,
            }
        };
        let state = file.state();
        if let Some(held) = &state.held {
            let held = held.clone();
            drop(state);
            if held.len() > MAX_FILE {
                return Seen::TooLong;
            }
            return held.read(0, held.len() as usize).map_or(Seen::Unsaved, Seen::Text);
        }
        match (&state.body, &state.base) {
            (Body::Draft(draft), _) if !state.is_unsaved() => match draft.len() {
                0..=MAX_FILE => draft.read(0, draft.len() as usize).map_or(Seen::Unsaved, Seen::Text),
                _ => Seen::TooLong,
            },
            (_, Some(base)) if base.size > MAX_FILE => Seen::TooLong,
            (_, Some(base)) if base.size == 0 => Seen::Text(Bytes::new()),
            (_, Some(base)) => {
                let base = base.clone();
                drop(state);
                match self.contents.at_hand(&base, 0) {
                    Some(bytes) => Seen::Text(bytes),
                    None => Seen::Far(base),
                }
            }
            _ => Seen::Unsaved,
        }
    }

    /// Reads what is only in S3; the number of files that S3 did not give.
    async fn fetch_rules(self: &Arc<Self>) -> usize {
        let far: Vec<(String, u64)> = {
            let far = self.rules.far.lock();
            far.iter().map(|(name, mark)| (name.clone(), *mark)).collect()
        };
        let fetched = futures::stream::iter(far).map(|(workspace, mark)| async move {
            let done = self.fetch_rules_of(&workspace, mark).await;
            let mut far = self.rules.far.lock();
            if done && far.get(&workspace) == Some(&mark) {
                far.remove(&workspace);
            }
            done
        });
        let done: Vec<bool> = fetched.buffer_unordered(AT_ONCE).collect().await;
        done.into_iter().filter(|done| !done).count()
    }

    async fn fetch_rules_of(self: &Arc<Self>, workspace: &str, mark: u64) -> bool {
        let Some(base) = self.take_rules(workspace, mark) else {
            return true;
        };
        match self.contents.fetch(&self.store, &base, 0).await {
            Ok(text) => {
                self.rules.read(workspace, mark, Some(&text));
                true
            }
            Err(FetchError::Changed(key)) => {
                // What is there now is noted when it is in the tree.
                self.reconcile(&key).await;
                false
            }
            Err(FetchError::Store(error)) => {
                tracing::info!(workspace, %error, "cannot read its workspace.json; what stays out of S3 is as before");
                false
            }
        }
    }

    /// Reads the rules before the first request: from the cache, and from S3 for [`START`] at most. Until the rest is read, in
    /// the background, the host's list alone holds for those workspaces.
    pub(crate) async fn load_rules(self: &Arc<Self>) {
        self.heed_rules();
        let all = tokio::time::timeout(START, self.fetch_rules()).await;
        let left = self.rules.far.lock().len();
        if all.is_err() || left > 0 {
            tracing::warn!(
                workspaces = left,
                "not every workspace.json could be read yet: until then the host's `[mount] exclude` alone holds for them"
            );
        }
    }

    /// Follows the files. Ends with the mount.
    pub(crate) async fn follow_rules(self: Arc<Self>) {
        let mut pause = MAX_PAUSE;
        while !self.ended.load(Ordering::Relaxed) {
            let _ = tokio::time::timeout(pause, self.rules.stale.wake.notified()).await;
            self.heed_rules();
            pause = match self.fetch_rules().await {
                0 => MAX_PAUSE,
                _ if pause == MAX_PAUSE => PAUSE,
                _ => (MAX_PAUSE / 2).min(pause * 2),
            };
        }
    }

    /// A local-only file that was written, and that no rule keeps here any more, is to be stored from now on. Comes before a
    /// save.
    pub(crate) fn store_if_no_rule(&self, file: &Arc<File>) -> Result<(), Errno> {
        if !self.rules.narrowed() {
            return Ok(());
        }
        let size = {
            let state = file.state();
            if !state.is_local() || state.version == state.kept || state.attachment != Attachment::Linked {
                return Ok(());
            }
            state.size()
        };
        let mut tree = self.tree.lock();
        let Ok(key) = tree.key(file.ino) else { return Ok(()) };
        if self.rules.local(&key, Shape::File) {
            // Looked at: not again before the next write.
            let mut state = file.state();
            state.kept = state.version;
            return Ok(());
        }
        self.admit(SMALL + size)?;
        let parent = tree.get(file.ino)?.parent;
        tree.set_local(file.ino, false);
        {
            let mut state = file.state();
            state.charge = None;
            state.unsaved_since = Some(SystemTime::now());
        }
        let mut steps = Vec::new();
        self.store_folders(&mut tree, parent, &mut steps);
        self.enter(&tree, steps, &[]);
        self.unsaved.add(file);
        tracing::debug!(key, "no rule keeps it out of S3 any more");
        Ok(())
    }

    /// Something in the folder is stored, or about to be: so are the folder and those above it, if they were local-only.
    pub(crate) fn store_folders(&self, tree: &mut Tree, folder: Ino, steps: &mut Vec<Step>) {
        let mut made = Vec::new();
        let mut at = folder;
        while at != ROOT
            && let Ok(inode) = tree.get(at)
            && inode.local
        {
            let parent = inode.parent;
            tree.set_local(at, false);
            made.push(at);
            at = parent;
        }
        for ino in made.into_iter().rev() {
            if let Ok(key) = tree.key(ino) {
                self.meta_step(tree, ino, &key, steps);
                self.touch_index(tree, ino);
            }
        }
    }

    /// A name was removed that was local-only: what was stored elsewhere under that name can be shown now.
    pub(crate) fn uncover(&self, tree: &mut Tree, key: &str) {
        if let Some((entry, written)) = self.index.take_described(key) {
            let mut notices = Vec::new();
            self.place_described(tree, key, &entry, written, &mut notices);
            self.tell(tree, notices);
        }
        if self.unshown.is_behind_local(key) {
            self.doubts.add(key);
        }
    }
}

fn key_of(workspace: &str) -> String {
    format!("{workspace}/{}", berth_workspace::WorkspaceFile::PATH)
}
