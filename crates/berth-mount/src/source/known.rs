//! What the kernel knows by the read-only session, and what of it is no longer true.
//!
//! Asked for with every change of a name, so that a change which nobody has looked at costs one question to a map. All of it
//! happens under the tree's lock: an answer to the kernel comes either before a change, and then the change is told, or
//! after it, and then it says how things are.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
};

use tokio::sync::oneshot;

use super::notices::Told;
use crate::tree::{Ino, Node, ROOT, Tree};

/// Part of the tree.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// How many times the kernel was told of an inode and has not forgotten it.
    lookups: HashMap<Ino, u64>,
    /// `None`: there is no such session.
    notices: Option<mpsc::Sender<Told>>,
}

impl Known {
    /// There is a session from now on; where what it must hear comes out.
    pub(crate) fn begin(&mut self) -> mpsc::Receiver<Told> {
        let (sender, receiver) = mpsc::channel();
        self.notices = Some(sender);
        self.lookups.insert(ROOT, 1);
        receiver
    }

    /// There is none from now on.
    pub(crate) fn stop(&mut self) {
        self.send(Told::Stop);
        self.notices = None;
    }

    /// Answers when all that changed until now has been told; `None`: there is nobody to tell.
    pub(crate) fn ask(&self) -> Option<oneshot::Receiver<()>> {
        self.notices.as_ref()?;
        let (told, heard) = oneshot::channel();
        self.send(Told::Mark(told));
        Some(heard)
    }

    fn has(&self, ino: Ino) -> bool {
        self.lookups.contains_key(&ino)
    }

    fn send(&self, told: Told) {
        if let Some(notices) = &self.notices {
            // Fails only after the thread has ended, and then there is no kernel to tell.
            let _ = notices.send(told);
        }
    }
}

impl Tree {
    /// Counts one more reference of the read-only session.
    pub(crate) fn remember_saved(&mut self, ino: Ino) {
        let count = self.known.lookups.entry(ino).or_default();
        *count += 1;
        if *count == 1 {
            self.remember(ino);
        }
    }

    /// The read-only session let go of `count` references; whether it knows the inode no more.
    pub(crate) fn forget_saved(&mut self, ino: Ino, count: u64) -> bool {
        let Some(lookups) = self.known.lookups.get_mut(&ino) else {
            return false;
        };
        *lookups = lookups.saturating_sub(count);
        if *lookups > 0 || ino == ROOT {
            return false;
        }
        self.known.lookups.remove(&ino);
        self.forget(ino, 1);
        true
    }

    /// `folder` has something else, or nothing, under `name`; `gone`: what was removed there.
    pub(crate) fn name_changed(&self, folder: Ino, name: &Arc<str>, gone: Option<Ino>) {
        if !self.known.has(folder) {
            return;
        }
        let above = self.get(folder).map_or(ROOT, |inode| inode.parent);
        let name = name.clone();
        self.known.send(Told::Name {
            above,
            folder,
            name,
            gone,
        });
    }

    /// Bits, owner or times of `ino` are others.
    pub(crate) fn attributes_changed(&self, ino: Ino) {
        self.inode_changed(ino, false);
    }

    /// The content that is saved of `ino` is another, or there is one for the first time.
    pub(crate) fn content_changed(&self, ino: Ino) {
        let Ok(inode) = self.get(ino) else { return };
        if inode.linked && !self.known.has(ino) {
            // Until now there may have been nothing to see under its name.
            self.name_changed(inode.parent, &inode.name, None);
        }
        self.inode_changed(ino, true);
    }

    /// `ino` was entered under a name: what is not saved yet is not seen.
    pub(crate) fn came(&self, folder: Ino, name: &Arc<str>, node: &Node) {
        let seen = match node {
            Node::File(leaf) => leaf.used().is_none_or(|file| file.state().is_shown()),
            _ => true,
        };
        if seen {
            self.name_changed(folder, name, None);
        }
    }

    fn inode_changed(&self, ino: Ino, pages: bool) {
        if self.known.has(ino)
            && let Ok(inode) = self.get(ino)
        {
            let folder = inode.parent;
            self.known.send(Told::Inode { folder, ino, pages });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::SystemTime;

    use super::*;
    use crate::{
        file::{Attachment, File},
        tree::{Look, Times},
    };

    fn enter(tree: &mut Tree, parent: Ino, name: &str, node: impl FnOnce(Ino) -> Node) -> Ino {
        let ino = tree.number();
        let look = Look {
            local: false,
            perm: 0o644,
            times: Times::at(SystemTime::now()),
        };
        tree.insert(ino, parent, name, look, node(ino)).unwrap();
        ino
    }

    fn link(_: Ino) -> Node {
        Node::Symlink("to".into())
    }

    #[test]
    fn an_inode_lives_until_both_sessions_have_forgotten_it() {
        for main_first in [true, false] {
            let mut tree = Tree::new(0, 0);
            let ino = enter(&mut tree, ROOT, "a", link);
            tree.remember(ino);
            tree.remember(ino);
            tree.remember_saved(ino);
            tree.remember_saved(ino);
            tree.detach(ino, Attachment::Unlinked);
            if main_first {
                tree.forget(ino, 2);
                assert!(tree.get(ino).is_ok(), "the read-only session knows it");
                assert!(!tree.forget_saved(ino, 1) && tree.get(ino).is_ok());
                assert!(tree.forget_saved(ino, 1));
            } else {
                assert!(tree.forget_saved(ino, 2) && tree.get(ino).is_ok());
                tree.forget(ino, 2);
            }
            assert!(tree.get(ino).is_err() && tree.known.lookups.is_empty());
            assert!(!tree.forget_saved(ino, 1), "no more than there was");
        }
    }

    #[test]
    fn what_nobody_looked_at_is_not_told() {
        let mut tree = Tree::new(0, 0);
        let told = tree.known.begin();
        let app = enter(&mut tree, ROOT, "app", |_| Node::Dir(Box::default()));
        assert!(matches!(told.try_recv(), Ok(Told::Name { folder: ROOT, .. })));
        let file = enter(&mut tree, app, "new", |ino| Node::File(File::created(ino, None).into()));
        tree.touch_dir(app);
        tree.content_changed(file);
        tree.detach(file, Attachment::Unlinked);
        assert!(told.try_recv().is_err(), "nobody has looked into the folder");
        tree.remember_saved(app);
        enter(&mut tree, app, "unsaved", |ino| {
            Node::File(File::created(ino, None).into())
        });
        assert!(told.try_recv().is_err(), "it is not seen before it is saved");
        let known = enter(&mut tree, app, "link", link);
        assert!(matches!(told.try_recv(), Ok(Told::Name { gone: None, .. })));
        tree.remember_saved(known);
        tree.detach(known, Attachment::Unlinked);
        assert!(matches!(told.try_recv(), Ok(Told::Name { gone: Some(ino), .. }) if ino == known));
        assert!(matches!(told.try_recv(), Ok(Told::Inode { ino, .. }) if ino == known));
        tree.known.stop();
        assert!(matches!(told.try_recv(), Ok(Told::Stop)));
        assert!(tree.known.ask().is_none());
    }
}
