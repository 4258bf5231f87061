//! What the bucket says: the first listing, and the changes others make.
//!
//! A change that is not ours gives the file a new inode under the old name, so whoever has the old one open keeps the old
//! bytes; the kernel is told to forget the name. Our own writes come back in the feed too: their ETag is known already, or
//! they are looked up again once the upload in flight has ended. A feed that lost changes is answered by a new listing.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use berth_store::{Change, ObjectInfo, StoreError};
use berth_workspace::index;
use fuser::Errno;
use futures::StreamExt;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{
    core::{Core, Shape},
    described::apply_entry,
    file::Attachment,
    kernel::Notice,
    tree::{DIR_PERM, FILE_PERM, Ino, Look, Node, Owner, ROOT, Times, Tree, app_of},
    unshown::{Why, classify},
};

/// How long an own request is waited for before one looks whether the mount is still there.
const LOOK: Duration = Duration::from_secs(1);
/// Everything below is Berth's own.
const HIDDEN: &str = ".berth";

impl Core {
    /// Builds the tree from the bucket's objects; gives the workspaces that have an index.
    pub(crate) async fn load(self: &Arc<Self>) -> Result<Vec<String>, StoreError> {
        let mut indexes = Vec::new();
        let take = |page: Vec<ObjectInfo>| {
            let mut tree = self.tree.lock();
            let mut unheard = Vec::new();
            for info in page {
                if let Some(app) = index::workspace_of_key(&info.key) {
                    indexes.push(app.to_owned());
                } else if !is_hidden(&info.key) {
                    self.place(&mut tree, &info, &mut unheard);
                }
            }
        };
        self.store.each_page(take).await?;
        Ok(indexes)
    }

    /// Makes the tree say what the indexes do. Comes after the objects that are still to be stored: they may be described.
    pub(crate) async fn load_indexes(self: &Arc<Self>, apps: Vec<String>) -> Result<(), StoreError> {
        let results: Vec<_> = futures::stream::iter(apps)
            .map(|app| async move { self.index.read(self, &app).await })
            .buffer_unordered(16)
            .collect()
            .await;
        results.into_iter().collect()
    }

    /// Follows the feed until it ends.
    pub(crate) async fn follow(self: Arc<Self>, mut feed: Receiver<Change>) {
        loop {
            match feed.recv().await {
                Ok(change) => self.on_change(change).await,
                Err(RecvError::Lagged(missed)) => {
                    tracing::info!(missed, "the change feed ran over; listing the bucket again");
                    self.relist().await;
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn on_change(self: &Arc<Self>, change: Change) {
        let key = change.key();
        if let Some(app) = index::workspace_of_key(key) {
            return self.on_index_change(app, &change).await;
        }
        if let Change::Deleted { key } = &change {
            self.unshown.forget(key);
        }
        if is_hidden(key) || self.is_known(&change) {
            return;
        }
        {
            let mut notices = Vec::new();
            let mut tree = self.tree.lock();
            let view = self.intents.view(key);
            if view.busy || view.lately {
                // Perhaps an echo of our own: wait for the request that is on its way, but do not let the others wait.
                let core = self.clone();
                self.rt.spawn(async move {
                    let key = change.key();
                    // It never ends where the mount ended meanwhile.
                    while tokio::time::timeout(LOOK, core.intents.wait_idle(key)).await.is_err() {
                        if core.ended.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                    if !core.is_known(&change) {
                        core.reconcile(key).await;
                    }
                });
                return;
            }
            if view.wanted {
                // The request that comes will meet it, and settle it; if it comes.
                return self.doubts.add(key);
            }
            match &change {
                Change::Put(info) => self.place(&mut tree, info, &mut notices),
                Change::Deleted { key } => self.displace(&mut tree, key, &mut notices),
            }
            self.tell(&tree, notices);
        }
        if let Change::Deleted { key } = &change {
            self.show_again(key);
        }
    }

    /// Whether the tree already says so.
    fn is_known(&self, change: &Change) -> bool {
        let tree = self.tree.lock();
        match change {
            Change::Put(info) => match tree.find(&info.key) {
                Some(ino) if info.key.ends_with('/') => tree
                    .get(ino)
                    .and_then(|i| i.as_dir().map(|dir| dir.marker))
                    .unwrap_or(false),
                Some(ino) => tree.is_stored_as(ino, &info.key, &info.etag),
                None => self.intents.view(&info.key).expect.as_ref() == Some(&info.etag),
            },
            Change::Deleted { key } => tree.find(key).is_none(),
        }
    }

    /// Asks S3 what is at `key` now and makes the tree say so. The answer is believed only if nothing of ours was wanted or
    /// written there meanwhile: else what we know is newer.
    pub(crate) async fn reconcile(self: &Arc<Self>, key: &str) {
        for _ in 0..8 {
            let before = self.intents.view(key);
            if before.wanted {
                return;
            }
            let answer = self.store.head(key).await;
            let mut notices = Vec::new();
            {
                let mut tree = self.tree.lock();
                let after = self.intents.view(key);
                if after.wanted {
                    return;
                }
                if after.written != before.written {
                    continue;
                }
                match answer {
                    Ok(Some(info)) => self.place(&mut tree, &info, &mut notices),
                    Ok(None) => self.displace(&mut tree, key, &mut notices),
                    Err(error) => {
                        tracing::info!(key, %error, "cannot look up a change made elsewhere; tried again");
                        self.doubts.add(key);
                    }
                }
                return self.tell(&tree, notices);
            }
        }
        // Written here all the time.
        self.doubts.add(key);
    }

    /// Looks at a key whose last look failed.
    pub(crate) async fn look_again(self: &Arc<Self>, key: &str) {
        match index::workspace_of_key(key) {
            Some(app) => self.read_index(app).await,
            None => self.reconcile(key).await,
        }
    }

    /// Compares the whole bucket with the tree; tried again later if that fails.
    pub(crate) async fn relist(self: &Arc<Self>) {
        if let Err(error) = self.try_relist().await {
            tracing::warn!(%error, "cannot list the bucket; changes made elsewhere show late");
            self.doubts.add_all();
        }
    }

    async fn try_relist(self: &Arc<Self>) -> Result<(), StoreError> {
        let objects: HashMap<String, ObjectInfo> = self
            .store
            .list("")
            .await?
            .into_iter()
            .map(|info| (info.key.clone(), info))
            .collect();
        let mut doubtful: Vec<String> = {
            let tree = self.tree.lock();
            let bases = tree.below(ROOT).into_iter().filter_map(|ino| tree.base(ino));
            bases
                .map(|base| base.key)
                .filter(|key| !objects.contains_key(key) && !self.intents.view(key).wanted)
                .collect()
        };
        for (key, info) in objects {
            if let Some(app) = index::workspace_of_key(&key) {
                self.on_index_change(app, &Change::Put(info)).await;
            } else if !is_hidden(&key) && !self.is_known(&Change::Put(info)) {
                doubtful.push(key);
            }
        }
        futures::stream::iter(doubtful)
            .for_each_concurrent(8, |key| async move { self.reconcile(&key).await })
            .await;
        Ok(())
    }

    async fn on_index_change(self: &Arc<Self>, app: &str, change: &Change) {
        // A removed index says nothing: it goes with its workspace, and whoever still has one writes it again.
        if matches!(change, Change::Put(_)) {
            self.read_index(app).await;
        }
    }

    async fn read_index(&self, app: &str) {
        if let Err(error) = self.index.read(self, app).await {
            let key = index::key(app);
            tracing::info!(key, %error, "cannot read an index that was changed elsewhere; tried again");
            self.doubts.add(&key);
        }
    }

    /// Tells the kernel what changed in the tree, whose lock has been held since.
    pub(crate) fn tell(&self, tree: &Tree, notices: Vec<Notice>) {
        for notice in notices {
            self.kernel.send(tree, notice);
        }
    }

    /// The folder at `path`, made with all above it if need be.
    pub(crate) fn folder(
        &self,
        tree: &mut Tree,
        path: &str,
        time: SystemTime,
        notices: &mut Vec<Notice>,
    ) -> Option<Ino> {
        let mut at = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let child = tree.child(at, name).ok()?;
            at = match child {
                Some(ino) if tree.get(ino).is_ok_and(crate::tree::Inode::is_dir) => {
                    // Something stored is below it: so it is stored, if it was local-only before.
                    tree.set_local(ino, false);
                    ino
                }
                other => {
                    let was = other.and_then(|ino| Some((ino, tree.kind(ino)?)));
                    if let Some(file) = other {
                        self.unshown.note(&tree.key(file).ok()?, Why::NameOfFolder);
                        tree.detach(file, Attachment::Replaced);
                    }
                    let ino = tree.number();
                    tree.insert(
                        ino,
                        at,
                        name,
                        Look {
                            local: false,
                            perm: DIR_PERM,
                            times: Times::at(time),
                        },
                        Node::Dir(Box::default()),
                    )
                    .ok()?;
                    let name: Arc<str> = name.into();
                    notices.push(Notice::Entry {
                        parent: at,
                        name: name.clone(),
                    });
                    self.announce_name(tree, (at, &name), was, notices);
                    ino
                }
            };
        }
        Some(at)
    }

    /// The bucket has `info`.
    pub(crate) fn place(&self, tree: &mut Tree, info: &ObjectInfo, notices: &mut Vec<Notice>) {
        let (path, shape) = match info.key.strip_suffix('/') {
            Some(path) => (path, Shape::Dir),
            None => (info.key.as_str(), Shape::File),
        };
        if is_hidden(path) || self.intents.keeps_for_backup(&info.key, Some(&info.etag)) {
            return;
        }
        self.place_shown(tree, info, (path, shape), notices);
        let app = app_of(path);
        if let Some((index, written)) = self.index.take_early(app) {
            self.apply_index(tree, app, &index, written, notices);
        }
    }

    fn place_shown(&self, tree: &mut Tree, info: &ObjectInfo, (path, shape): (&str, Shape), notices: &mut Vec<Notice>) {
        // A workspace's own list decides about new names only: what S3 has is shown.
        let excluded = || self.rules.by_host(path, shape).then_some(Why::Excluded);
        if let Some(why) = classify(&info.key).or_else(excluded) {
            return self.unshown.note(&info.key, why);
        }
        if shape == Shape::Dir {
            if let Some(ino) = self.folder(tree, path, info.modified, notices)
                && let Ok(dir) = tree.dir_mut(ino)
            {
                dir.marker = true;
            }
            return;
        }
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let Some(parent) = self.folder(tree, above, info.modified, notices) else {
            return;
        };
        let there = tree.child(parent, name).ok().flatten();
        let was = there.and_then(|ino| Some((ino, tree.kind(ino)?)));
        let (perm, owner) = match there {
            None => (FILE_PERM, None),
            Some(ino) => match self.make_room(tree, ino, info) {
                Some(rights) => rights,
                None => return,
            },
        };
        let ino = tree.number();
        let times = Times::at(info.modified);
        let node = Node::File(info.into());
        if tree
            .insert(
                ino,
                parent,
                name,
                Look {
                    local: false,
                    perm,
                    times,
                },
                node,
            )
            .is_ok()
        {
            self.unshown.forget(&info.key);
            if let Ok(inode) = tree.get_mut(ino) {
                inode.owner = owner;
            }
            if let Some((entry, written)) = self.index.no_longer_awaited(&info.key)
                && !self.intents.has_meta(&info.key)
            {
                apply_entry(tree, ino, &entry, written);
            }
            tree.change_times(parent, |times| {
                if !times.explicit {
                    times.mtime = times.mtime.max(info.modified);
                }
            });
            if let Some((old, _)) = was {
                tree.succeed(old, ino);
            }
            let name: Arc<str> = name.into();
            notices.push(Notice::Entry {
                parent,
                name: name.clone(),
            });
            self.announce_name(tree, (parent, &name), was, notices);
        }
    }

    /// Takes away what has the name of a new object; its bits and owner if the object may take its place.
    fn make_room(&self, tree: &mut Tree, ino: Ino, info: &ObjectInfo) -> Option<(u16, Option<Owner>)> {
        let inode = tree.get(ino).ok()?;
        let rights = match &inode.node {
            Node::Dir(_) => {
                self.unshown.note(&info.key, Why::NameOfFolder);
                return None;
            }
            Node::Symlink(_) | Node::Special(..) => (FILE_PERM, None),
            Node::File(leaf) => {
                if let Some(file) = leaf.used() {
                    let state = file.state();
                    if state.is_local() {
                        drop(state);
                        self.unshown.note(&info.key, Why::LocalFile);
                        return None;
                    }
                    // The save that comes will meet it.
                    if state.is_unsaved() || state.held.is_some() {
                        return None;
                    }
                }
                if tree.is_stored_as(ino, &info.key, &info.etag) {
                    return None;
                }
                (inode.perm, inode.owner)
            }
        };
        tree.detach(ino, Attachment::Replaced);
        if let Some(app) = self.workspace_of(tree, &info.key) {
            self.index.touch(&app);
        }
        Some(rights)
    }

    /// The bucket has nothing at `key` any more.
    fn displace(&self, tree: &mut Tree, key: &str, notices: &mut Vec<Notice>) {
        self.intents.keeps_for_backup(key, None);
        let awaited = self.index.no_longer_awaited(key);
        let Some(ino) = tree.find(key) else { return };
        let Ok(inode) = tree.get_mut(ino) else { return };
        match &mut inode.node {
            Node::Dir(dir) if key.ends_with('/') => {
                dir.marker = false;
                self.prune(tree, ino, notices);
            }
            Node::File(leaf) => {
                if let Some(file) = leaf.used() {
                    let mut state = file.state();
                    if state.is_unsaved() || state.held.is_some() {
                        state.base = None;
                        drop(state);
                        tree.content_changed(ino);
                        return;
                    }
                    if state.base.is_none() || state.is_local() {
                        return;
                    }
                }
                self.displace_file(tree, ino, notices);
                if let Some((entry, written)) = awaited {
                    self.place_described(tree, key, &entry, written, notices);
                }
            }
            _ => {}
        }
    }

    /// The file is nowhere any more. Who has it open did not remove it: what they save still counts.
    pub(crate) fn displace_file(&self, tree: &mut Tree, ino: Ino, notices: &mut Vec<Notice>) {
        let Ok(parent) = tree.get(ino).map(|inode| inode.parent) else {
            return;
        };
        self.take_name(tree, ino, Attachment::Replaced, notices);
        self.announce_end(tree, ino);
        self.prune(tree, parent, notices);
    }

    /// Takes away the name of what is gone elsewhere, and tells the kernel and who watches.
    pub(crate) fn take_name(&self, tree: &mut Tree, ino: Ino, how: Attachment, notices: &mut Vec<Notice>) {
        let Ok(inode) = tree.get(ino) else { return };
        let (parent, name) = (inode.parent, inode.name.clone());
        let was = tree.kind(ino).map(|kind| (ino, kind));
        tree.detach(ino, how);
        notices.push(Notice::Deleted {
            parent,
            child: ino,
            name: name.clone(),
        });
        self.announce_name(tree, (parent, &name), was, notices);
    }

    /// Removes folders that existed only by what was below them.
    pub(crate) fn prune(&self, tree: &mut Tree, mut ino: Ino, notices: &mut Vec<Notice>) {
        while ino != ROOT {
            let Ok(inode) = tree.get(ino) else { return };
            let Ok(dir) = inode.as_dir() else { return };
            let (parent, name) = (inode.parent, inode.name.clone());
            if tree.key(ino).is_ok_and(|key| self.intents.has_meta(&key)) {
                return;
            }
            let top = parent == ROOT;
            let stays = if top {
                dir.marker || holds_anything(tree, ino)
            } else {
                dir.marker || dir.indexed || !dir.children.is_empty()
            };
            if stays {
                return;
            }
            if top {
                // Its links and empty folders live in the index alone, which goes with it.
                for below in tree.below(ino).into_iter().skip(1).rev() {
                    tree.detach(below, Attachment::Unlinked);
                }
                self.index.touch(&name);
            }
            let key = tree.key(ino);
            self.take_name(tree, ino, Attachment::Unlinked, notices);
            if let Ok(key) = key
                && let Some((entry, written)) = self.index.take_described(&key)
            {
                return self.place_described(tree, &key, &entry, written, notices);
            }
            ino = parent;
        }
    }
}

/// Whether something below is an object, unsaved, or local-only content that exists nowhere else.
fn holds_anything(tree: &Tree, ino: Ino) -> bool {
    tree.below(ino)
        .into_iter()
        .skip(1)
        .any(|below| tree.get(below).is_ok_and(|inode| inode.local || inode.is_file()))
}

fn is_hidden(key: &str) -> bool {
    app_of(key) == HIDDEN
}

/// The name at the root that is Berth's own.
pub(crate) fn refuse_hidden(parent: Ino, name: &str) -> Result<(), Errno> {
    if parent == ROOT && name == HIDDEN {
        Err(Errno::EPERM)
    } else {
        Ok(())
    }
}
