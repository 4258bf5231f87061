//! Laying what the journal has over the tree that S3's listing gave, when a mount starts.
//!
//! The journal says what is wanted, not what was done, so the order of its records does not matter here: first all removals,
//! then what is there, then what the indexes in S3 say about all that, then what they are to say. Whether a request of the process that ended took effect is
//! found out when the intent is carried out, as after any lost answer.

use std::{sync::Arc, time::SystemTime};

use berth_workspace::index::{from_nanos, to_nanos};

use crate::{
    core::Core,
    crash,
    described::apply_entry,
    file::{Attachment, Base, File},
    journal::{Content, Held},
    kernel::Notice,
    pending::{Restored, Step, Want},
    save::conflict_name,
    tree::{DIR_PERM, FILE_PERM, Ino, Look, Node, Times, Tree},
};

impl Core {
    /// Makes the tree show what was acknowledged before the last process ended, but for what the indexes do not know yet:
    /// that is given back, for [`Core::say_over`].
    pub(crate) fn lay_over(&self, restored: Vec<Restored>) -> Vec<Restored> {
        crash::point("replay.begin");
        let mut tree = self.tree.lock();
        let mut notices = Vec::new();
        let count = restored.len();
        let (mut removed, mut there, mut said) = (Vec::new(), Vec::new(), Vec::new());
        for one in restored {
            match &one {
                Restored::Object { want: Want::Delete, .. } => removed.push(one),
                Restored::Object { .. } => there.push(one),
                Restored::Meta { .. } => said.push(one),
            }
        }
        // Children before their folders.
        removed.sort_by(|a, b| key_of(b).cmp(key_of(a)));
        for one in &removed {
            self.take_away(&mut tree, key_of(one), false, &mut notices);
        }
        for one in there {
            self.put_there(&mut tree, one, &mut notices);
        }
        self.tell(&tree, notices);
        drop(tree);
        if count > 0 {
            tracing::info!(count, "changes that S3 has not got yet were taken from the journal");
        }
        crash::point("replay.laid_over");
        said
    }

    /// The second part: what the indexes are to say.
    pub(crate) fn say_over(&self, restored: Vec<Restored>) {
        let mut tree = self.tree.lock();
        let mut notices = Vec::new();
        let (mut removed, mut said): (Vec<_>, Vec<_>) = restored
            .into_iter()
            .partition(|one| matches!(one, Restored::Meta { entry: None, .. }));
        // Children before their folders.
        removed.sort_by(|a, b| key_of(b).cmp(key_of(a)));
        for one in &removed {
            self.take_away(&mut tree, key_of(one), true, &mut notices);
        }
        // Folders before their children.
        said.sort_by(|a, b| key_of(a).cmp(key_of(b)));
        for one in said {
            self.say(&mut tree, one, &mut notices);
        }
        for app in self.intents.workspaces_with_metas() {
            self.index.touch(&app);
        }
        self.tell(&tree, notices);
        drop(tree);
        crash::point("replay.end");
    }

    fn take_away(&self, tree: &mut Tree, key: &str, only_entry: bool, notices: &mut Vec<Notice>) {
        let Some(ino) = tree.find(key) else { return };
        let Ok(inode) = tree.get_mut(ino) else { return };
        match &mut inode.node {
            Node::Dir(dir) if only_entry => {
                dir.indexed = false;
                // A folder that was removed here. S3 may still list what was in it, and `prune` would keep a folder that the
                // journal has a record of. What is in it after all makes it anew.
                let gone = dir.children.is_empty() && !dir.marker;
                inode.perm = DIR_PERM;
                inode.owner = None;
                if gone {
                    self.displace_file(tree, ino, notices);
                } else {
                    self.prune(tree, ino, notices);
                }
            }
            Node::Dir(dir) if key.ends_with('/') => {
                dir.marker = false;
                self.prune(tree, ino, notices);
            }
            Node::File(_) if only_entry => {
                inode.perm = FILE_PERM;
                inode.owner = None;
            }
            Node::File(_) | Node::Symlink(_) => self.displace_file(tree, ino, notices),
            _ => {}
        }
    }

    fn put_there(&self, tree: &mut Tree, one: Restored, notices: &mut Vec<Notice>) {
        let Restored::Object {
            key,
            want,
            content,
            mtime_ns,
            seq,
            ..
        } = one
        else {
            return;
        };
        let time = from_nanos(mtime_ns);
        if let Some(path) = key.strip_suffix('/') {
            if let Some(ino) = self.folder(tree, path, SystemTime::now(), notices)
                && let Ok(dir) = tree.dir_mut(ino)
            {
                dir.marker = true;
            }
            return;
        }
        let (above, name) = key.rsplit_once('/').unwrap_or(("", &key));
        let Some(parent) = self.folder(tree, above, time, notices) else {
            tracing::error!(
                key,
                "a saved file's folder is no folder any more; it stays in the journal"
            );
            return;
        };
        let (mut name, mut base, mut perm, mut owner) = (name.to_owned(), None, FILE_PERM, None);
        if let Some(there) = tree.child(parent, &name).ok().flatten() {
            match tree
                .get(there)
                .map(|inode| ((inode.perm, inode.owner), inode.is_file(), inode.is_dir()))
            {
                Ok((_, _, true)) => name = conflict_name(&name),
                Ok((bits, is_file, _)) => {
                    if is_file {
                        (perm, owner) = bits;
                    }
                    base = tree.base(there);
                    tree.detach(there, Attachment::Replaced);
                }
                Err(_) => return,
            }
        }
        let aside = format!(
            "{}{name}",
            &key[..key.len() - key.rsplit('/').next().unwrap_or(&key).len()]
        );
        let Some(file) = file_of(tree, &want, content, base, Times::at(time), seq) else {
            tracing::error!(key, "the journal has no content for a saved file");
            return;
        };
        // Never local-only: what was saved before its name was put on that list goes to S3 all the same.
        let look = Look {
            local: false,
            perm,
            times: Times::at(time),
        };
        if tree
            .insert(file.ino, parent, &name, look, Node::File(file.clone().into()))
            .is_ok()
        {
            if let Some(owner) = owner {
                tree.set_owner(file.ino, owner);
            }
            if aside != key {
                self.move_aside(tree, &file, key, aside);
            }
        }
    }

    /// A folder has the name now: the file is wanted beside it.
    fn move_aside(&self, tree: &mut Tree, file: &Arc<File>, key: String, aside: String) {
        tracing::warn!(
            key,
            conflict = aside,
            "a folder has the name of a file saved here; the file is kept beside it"
        );
        let (held, kept, mtime_ns) = {
            let state = file.state();
            (state.held.clone(), state.kept, to_nanos(state.times.mtime))
        };
        let mut steps = vec![Step::Forget { key }];
        let mut files = Vec::new();
        match (held, file.state().base.clone()) {
            (Some(held), _) => {
                files.push((file.clone(), aside.clone(), kept));
                steps.push(Step::Put {
                    key: aside,
                    content: Content::Held(held),
                    remote: None,
                    mtime_ns,
                    from: None,
                });
            }
            (None, Some(from)) => steps.push(Step::Copy {
                key: aside,
                from,
                remote: None,
                mtime_ns,
            }),
            (None, None) => return,
        }
        self.enter(tree, steps, &files);
    }

    fn say(&self, tree: &mut Tree, one: Restored, notices: &mut Vec<Notice>) {
        let Restored::Meta {
            key,
            entry: Some(entry),
        } = one
        else {
            return;
        };
        let now = SystemTime::now();
        let ino = match tree.find(&key) {
            Some(ino) => Some(ino),
            None => match entry.kind {
                berth_workspace::EntryKind::Dir => self.folder(tree, &key, now, notices),
                berth_workspace::EntryKind::Symlink => {
                    self.place_symlink(tree, &key, entry.target.as_deref(), now, notices)
                }
                berth_workspace::EntryKind::File => None,
            },
        };
        if let Some(ino) = ino {
            apply_entry(tree, ino, &entry, now);
        }
    }
}

fn key_of(one: &Restored) -> &str {
    match one {
        Restored::Object { key, .. } | Restored::Meta { key, .. } => key,
    }
}

fn file_of(
    tree: &mut Tree,
    want: &Want,
    content: Option<Arc<Held>>,
    base: Option<Base>,
    times: Times,
    seq: u64,
) -> Option<Arc<File>> {
    let ino: Ino = tree.number();
    match want {
        Want::Put => Some(File::held(ino, content?, base, times, seq)),
        Want::Copy { .. } | Want::Delete => Some(File::stored(ino, want.source()?, times)),
    }
}
