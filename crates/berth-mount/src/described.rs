//! What a workspace's index in S3 says, made true in the tree: bits, owners, times, symlinks, folders with nothing in them.
//!
//! What the journal has about a path is newer and is left alone. An index may come before what it describes: what it says of
//! files and workspaces without an object, and of names that something else still has here, is noted
//! ([`crate::index::IndexWriter`]) and applied when they are there.

use std::{sync::Arc, time::SystemTime};

use berth_workspace::index::{EntryKind, IndexEntry, SLACK, WorkspaceIndex, from_nanos};

use crate::{
    core::{Core, Shape},
    file::Attachment,
    index::is_file,
    kernel::Notice,
    tree::{DIR_PERM, FILE_PERM, Ino, Look, Node, Owner, ROOT, Times, Tree},
    unshown::classify,
};

impl Core {
    pub(crate) fn show_index(&self, app: &str, index: &WorkspaceIndex, written: SystemTime) {
        let mut notices = Vec::new();
        let mut tree = self.tree.lock();
        self.apply_index(&mut tree, app, index, written, &mut notices);
        self.tell(&tree, notices);
    }

    pub(crate) fn apply_index(
        &self,
        tree: &mut Tree,
        app: &str,
        index: &WorkspaceIndex,
        written: SystemTime,
        notices: &mut Vec<Notice>,
    ) {
        // An index without any object is left over from a workspace removed elsewhere, or of one that is being stored.
        let Some(top) = tree.child(ROOT, app).ok().flatten() else {
            return self.index.is_early(app, index, written);
        };
        let mut awaited = Vec::new();
        for (path, entry) in &index.entries {
            let key = format!("{app}/{path}");
            let shape = match entry.kind {
                EntryKind::File => Shape::File,
                EntryKind::Dir => Shape::Dir,
                EntryKind::Symlink => Shape::Symlink,
            };
            // What the journal has about a path is newer.
            if !is_path(&key) || self.rules.by_host(&key, shape) || self.intents.has_meta(&key) {
                continue;
            }
            match tree.find(&key) {
                Some(ino) if is_of_kind(tree, ino, entry) => {
                    let before = look_of(tree, ino);
                    apply_entry(tree, ino, entry, written);
                    notices.push(Notice::Attributes(ino));
                    if look_of(tree, ino) != before {
                        self.announce_attributes(tree, ino, notices);
                    }
                }
                Some(ino) if !self.gives_way(tree, ino, notices) => awaited.push((key, entry.clone())),
                _ if entry.kind == EntryKind::File => awaited.push((key, entry.clone())),
                _ => self.place_described(tree, &key, entry, written, notices),
            }
        }
        self.index.await_files(app, awaited, written);
        self.drop_unlisted(tree, top, app, index, notices);
    }

    /// Makes the folder or the link that an index names, where nothing has the name.
    pub(crate) fn place_described(
        &self,
        tree: &mut Tree,
        key: &str,
        entry: &IndexEntry,
        written: SystemTime,
        notices: &mut Vec<Notice>,
    ) {
        let ino = match entry.kind {
            EntryKind::File => None,
            EntryKind::Dir => self.folder(tree, key, written, notices),
            EntryKind::Symlink => self.place_symlink(tree, key, entry.target.as_deref(), written, notices),
        };
        if let Some(ino) = ino {
            apply_entry(tree, ino, entry, written);
            notices.push(Notice::Attributes(ino));
        }
    }

    pub(crate) fn place_symlink(
        &self,
        tree: &mut Tree,
        key: &str,
        target: Option<&str>,
        time: SystemTime,
        notices: &mut Vec<Notice>,
    ) -> Option<Ino> {
        let (above, name) = key.rsplit_once('/')?;
        let parent = self.folder(tree, above, time, notices)?;
        let ino = tree.number();
        tree.insert(
            ino,
            parent,
            name,
            Look {
                local: false,
                perm: 0o777,
                times: Times::at(time),
            },
            Node::Symlink(target?.into()),
        )
        .ok()?;
        let name: Arc<str> = name.into();
        notices.push(Notice::Entry {
            parent,
            name: name.clone(),
        });
        self.announce_name(tree, (parent, &name), None, notices);
        Some(ino)
    }

    /// Takes away what only an older index said to be there. A file has its object, and a folder what is in it.
    fn gives_way(&self, tree: &mut Tree, ino: Ino, notices: &mut Vec<Notice>) -> bool {
        let Ok(inode) = tree.get(ino) else { return true };
        let only_described = match &inode.node {
            Node::Symlink(_) => !inode.local,
            Node::Dir(dir) => !inode.local && !dir.marker && dir.children.is_empty(),
            Node::File(_) | Node::Special(..) => false,
        };
        if only_described {
            self.take_name(tree, ino, Attachment::Unlinked, notices);
        }
        only_described
    }

    /// What an older index said and this one does not is no longer so.
    fn drop_unlisted(&self, tree: &mut Tree, top: Ino, app: &str, index: &WorkspaceIndex, notices: &mut Vec<Notice>) {
        for ino in tree.below(top).into_iter().skip(1).rev() {
            let Ok(key) = tree.key(ino) else { continue };
            if index.entries.contains_key(&key[app.len() + 1..]) || self.intents.has_meta(&key) {
                continue;
            }
            let Ok(inode) = tree.get_mut(ino) else { continue };
            let local = inode.local;
            match &mut inode.node {
                _ if local => {}
                Node::Symlink(_) => {
                    self.take_name(tree, ino, Attachment::Unlinked, notices);
                }
                Node::Dir(dir) => {
                    dir.indexed = false;
                    inode.perm = DIR_PERM;
                    inode.owner = None;
                    self.prune(tree, ino, notices);
                }
                // One that nobody has saved yet is in no index.
                Node::File(leaf) if leaf.used().is_some_and(|file| file.state().is_unsaved()) => {}
                Node::File(_) => {
                    if inode.perm != FILE_PERM || inode.owner.is_some() {
                        inode.perm = FILE_PERM;
                        inode.owner = None;
                        notices.push(Notice::Attributes(ino));
                        self.announce_attributes(tree, ino, notices);
                    }
                }
                Node::Special(..) => {}
            }
        }
    }
}

pub(crate) fn apply_entry(tree: &mut Tree, ino: Ino, entry: &IndexEntry, written: SystemTime) {
    let own = tree.own();
    let Ok(inode) = tree.get_mut(ino) else { return };
    match (&mut inode.node, entry.kind) {
        (Node::Dir(dir), EntryKind::Dir) => dir.indexed = true,
        (Node::File(_), EntryKind::File) | (Node::Symlink(_), EntryKind::Symlink) => {}
        _ => return,
    }
    if let Some(mode) = entry.mode {
        inode.perm = (mode & 0o7777) as u16;
    }
    let owner = Owner {
        uid: entry.uid.unwrap_or(own.uid),
        gid: entry.gid.unwrap_or(own.gid),
    };
    inode.owner = (owner != own).then_some(owner);
    let Some(mtime) = entry.mtime_ns.map(from_nanos) else {
        return;
    };
    tree.change_times(ino, |times| {
        // Content stored well after the index was written came from a tool that knows of no index.
        if !is_file(entry) || times.explicit || times.mtime <= written + SLACK {
            times.mtime = mtime;
            times.explicit = true;
        }
    });
}

/// Whether an inode is what the entry says to have its name. A link with another target is another link, and what is
/// local-only is in no index.
pub(crate) fn is_of_kind(tree: &Tree, ino: Ino, entry: &IndexEntry) -> bool {
    match (tree.get(ino).map(|inode| &inode.node), entry.kind) {
        _ if tree.get(ino).is_ok_and(|inode| inode.local) => false,
        (Ok(Node::Dir(_)), EntryKind::Dir) | (Ok(Node::File(_)), EntryKind::File) => true,
        (Ok(Node::Symlink(target)), EntryKind::Symlink) => entry.target.as_deref() == Some(&**target),
        _ => false,
    }
}

/// Bits, owner and modification time.
fn look_of(tree: &Tree, ino: Ino) -> Option<(u16, u32, u32, SystemTime)> {
    let attr = tree.attr(ino).ok()?;
    Some((attr.perm, attr.uid, attr.gid, attr.mtime))
}

/// Whether a key is a path as a file system has them.
fn is_path(key: &str) -> bool {
    classify(key).is_none() && !key.ends_with('/')
}
