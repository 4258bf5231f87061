//! A file's place in the tree: of most files, what LIST says and nothing else.
//!
//! ```text
//!             opened, written, moved ([`Tree::file`])
//!   known ────────────────────────────────────────────▶ used: a [`File`]
//!     ▲   ETag, size; its key is its path in the tree     │
//!     └───────────────────────────────────────────────────┘
//!       nobody has it, and S3 has all of it under its name ([`Tree::settle_files`])
//! ```
//! A bucket has a hundred thousand files, and somebody uses a few hundred of them: what a [`File`] has besides is there for
//! those alone. The times of a known file are its inode's; a used one has its own.

use std::{
    cell::OnceCell,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use berth_store::{ETag, ObjectInfo};
use fuser::Errno;

use crate::{
    core::Core,
    file::{Attachment, Base, Body, File, FileState},
    tree::{Ino, Node, Times, Tree},
};

/// How often used files are looked through.
const SETTLE: Duration = Duration::from_secs(5);
/// So many are looked at with the tree held.
const AT_ONCE: usize = 512;

/// What a tree has of one file.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// Of the object under the file's name; of no meaning once there is a `file`.
    etag: ETag,
    size: u64,
    file: OnceCell<Arc<File>>,
}

impl From<&ObjectInfo> for Leaf {
    fn from(info: &ObjectInfo) -> Self {
        Self::known(&info.etag, info.size)
    }
}

impl From<Arc<File>> for Leaf {
    fn from(file: Arc<File>) -> Self {
        Self {
            etag: ETag::from(""),
            size: 0,
            file: OnceCell::from(file),
        }
    }
}

impl Leaf {
    fn known(etag: &str, size: u64) -> Self {
        Self {
            etag: ETag::from(etag),
            size,
            file: OnceCell::new(),
        }
    }

    /// The file, if somebody uses it or did so lately.
    pub(crate) fn used(&self) -> Option<&Arc<File>> {
        self.file.get()
    }

    pub(crate) fn size(&self) -> u64 {
        self.used().map_or(self.size, |file| file.state().size())
    }
}

impl Tree {
    fn leaf(&self, ino: Ino) -> Result<&Leaf, Errno> {
        match &self.get(ino)?.node {
            Node::File(leaf) => Ok(leaf),
            Node::Dir(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The file with number `ino`, to be used.
    pub(crate) fn file(&self, ino: Ino) -> Result<Arc<File>, Errno> {
        let leaf = self.leaf(ino)?;
        if let Some(file) = leaf.used() {
            return Ok(file.clone());
        }
        let (base, times) = (self.known_base(ino, leaf)?, self.get(ino)?.times.get());
        self.note_used(ino);
        Ok(leaf.file.get_or_init(|| File::stored(ino, base, times)).clone())
    }

    /// The file with number `ino`, if it is used.
    pub(crate) fn used(&self, ino: Ino) -> Option<Arc<File>> {
        self.leaf(ino).ok()?.used().cloned()
    }

    /// What S3 has of a file, for a look at it.
    pub(crate) fn base(&self, ino: Ino) -> Option<Base> {
        let leaf = self.leaf(ino).ok()?;
        match leaf.used() {
            Some(file) => file.state().base.clone(),
            None => self.known_base(ino, leaf).ok(),
        }
    }

    fn known_base(&self, ino: Ino, leaf: &Leaf) -> Result<Base, Errno> {
        Ok(Base {
            key: self.key(ino)?,
            etag: leaf.etag.to_string(),
            size: leaf.size,
        })
    }

    /// Bytes of a file whose content is in S3 and not here.
    pub(crate) fn stored_size(&self, ino: Ino) -> Option<u64> {
        let leaf = self.leaf(ino).ok()?;
        let Some(file) = leaf.used() else {
            return Some(leaf.size);
        };
        let state = file.state();
        let base = state.base.as_ref().filter(|_| matches!(state.body, Body::Stored));
        base.map(|base| base.size)
    }

    /// Whether the file at `ino` is what S3 has as `etag` at `key`, its path.
    pub(crate) fn is_stored_as(&self, ino: Ino, key: &str, etag: &str) -> bool {
        self.leaf(ino).is_ok_and(|leaf| match leaf.used() {
            Some(file) => {
                let state = file.state();
                let base = state.base.as_ref();
                base.is_some_and(|base| base.etag == etag && base.key == key)
            }
            None => leaf.etag == *etag,
        })
    }

    /// The times of an inode.
    pub(crate) fn times(&self, ino: Ino) -> Result<Times, Errno> {
        let inode = self.get(ino)?;
        let used = match &inode.node {
            Node::File(leaf) => leaf.used(),
            _ => None,
        };
        Ok(used.map_or_else(|| inode.times.get(), |file| file.state().times))
    }

    /// Changes the times of an inode.
    pub(crate) fn change_times(&mut self, ino: Ino, change: impl FnOnce(&mut Times)) {
        let Ok(inode) = self.get_mut(ino) else { return };
        let used = match &inode.node {
            Node::File(leaf) => leaf.used(),
            _ => None,
        };
        match used {
            Some(file) => change(&mut file.state().times),
            None => inode.times.change(change),
        }
    }

    /// Makes those of `all` known only that nobody uses any more; the others stay.
    pub(crate) fn settle_files(&mut self, all: Vec<Ino>) {
        for ino in all {
            if !self.settle_file(ino) {
                self.note_used(ino);
            }
        }
    }

    /// Whether the file is not used from now on.
    fn settle_file(&mut self, ino: Ino) -> bool {
        let Some(file) = self.used(ino) else { return true };
        // The tree's, and the one in this function.
        if Arc::strong_count(&file) > 2 {
            return false;
        }
        let state = file.state();
        let Some(base) = state.base.as_ref().filter(|_| is_settled(&state)) else {
            return false;
        };
        // A file that was moved has the name of its object until S3 has copied it.
        if self.key(ino).ok().as_ref() != Some(&base.key) {
            return false;
        }
        let (leaf, times) = (Leaf::known(&base.etag, base.size), state.times);
        drop(state);
        if let Ok(inode) = self.get_mut(ino)
            && !inode.local
        {
            inode.node = Node::File(leaf);
            inode.times.change(|own| *own = times);
            return true;
        }
        false
    }
}

/// Whether S3 has all of it, and nothing of it is held here.
fn is_settled(state: &FileState) -> bool {
    matches!(state.body, Body::Stored)
        && state.opens == 0
        && state.attachment == Attachment::Linked
        && state.held.is_none()
        && state.pinned.is_none()
        && !state.is_local()
        && !state.is_unsaved()
}

impl Core {
    /// Makes files that nobody uses any more known only, until the mount ends.
    pub(crate) async fn settle_files(self: Arc<Self>) {
        let mount = Arc::downgrade(&self);
        drop(self);
        loop {
            tokio::time::sleep(SETTLE).await;
            let Some(core) = mount.upgrade().filter(|core| !core.ended.load(Ordering::Relaxed)) else {
                return;
            };
            let mut used = core.tree.lock().take_used();
            while !used.is_empty() {
                let some = used.split_off(used.len().saturating_sub(AT_ONCE));
                core.tree.lock().settle_files(some);
                tokio::task::yield_now().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::tree::{DIR_PERM, FILE_PERM, Look, ROOT};

    const MD5: &str = "0123456789abcdef0123456789abcdef";

    fn look(perm: u16, time: SystemTime) -> Look {
        Look {
            local: false,
            perm,
            times: Times::at(time),
        }
    }

    /// `app/src/a.js`, known.
    fn tree() -> (Tree, Ino, Ino) {
        let mut tree = Tree::new(0, 0);
        let time = UNIX_EPOCH + Duration::from_secs(7);
        let mut at = ROOT;
        for name in ["app", "src"] {
            let ino = tree.number();
            let node = Node::Dir(Box::default());
            tree.insert(ino, at, name, look(DIR_PERM, time), node).unwrap();
            at = ino;
        }
        let ino = tree.number();
        let info = ObjectInfo {
            key: "app/src/a.js".to_owned(),
            size: 5,
            etag: MD5.to_owned(),
            modified: time,
        };
        let node = Node::File((&info).into());
        tree.insert(ino, at, "a.js", look(FILE_PERM, time), node).unwrap();
        (tree, at, ino)
    }

    fn settle(tree: &mut Tree) {
        let used = tree.take_used();
        tree.settle_files(used);
    }

    #[test]
    fn a_file_is_used_for_as_long_as_somebody_has_it_and_then_known_as_before() {
        let (mut tree, _, ino) = tree();
        let before = tree.base(ino).unwrap();
        assert_eq!((&*before.key, &*before.etag, before.size), ("app/src/a.js", MD5, 5));
        assert!(tree.used(ino).is_none(), "a look is no use");
        let file = tree.file(ino).unwrap();
        assert_eq!(file.state().base.as_ref(), Some(&before));
        file.state().opens = 1;
        let touched = SystemTime::UNIX_EPOCH + Duration::new(9, 8);
        file.state().times.atime = touched;
        settle(&mut tree);
        assert!(Arc::ptr_eq(&file, &tree.file(ino).unwrap()), "somebody has it");
        drop(file);
        settle(&mut tree);
        assert!(tree.used(ino).is_some(), "it is open");
        tree.file(ino).unwrap().state().opens = 0;
        settle(&mut tree);
        assert!(tree.used(ino).is_none());
        assert_eq!(tree.base(ino), Some(before));
        assert_eq!(tree.attr(ino).unwrap().atime, touched);
        assert!(tree.take_used().is_empty());
    }

    #[test]
    fn what_s3_has_not_or_not_by_this_name_stays_used() {
        let (mut tree, folder, ino) = tree();
        tree.file(ino).unwrap().state().changed();
        settle(&mut tree);
        assert!(tree.used(ino).is_some(), "it is unsaved");
        tree.file(ino).unwrap().state().journaled(1, None, 1);
        let app = tree.find("app").unwrap();
        tree.relink(folder, app, "lib").unwrap();
        assert_eq!(tree.key(ino).unwrap(), "app/lib/a.js");
        settle(&mut tree);
        assert_eq!(tree.base(ino).unwrap().key, "app/src/a.js", "S3 has not copied it");
        let copied = Base {
            key: "app/lib/a.js".to_owned(),
            etag: "other".to_owned(),
            size: 5,
        };
        tree.file(ino).unwrap().state().base = Some(copied.clone());
        settle(&mut tree);
        assert!(tree.used(ino).is_none());
        assert_eq!(tree.base(ino), Some(copied));
    }

    #[test]
    fn a_known_file_whose_name_goes_keeps_its_object_for_who_knows_it() {
        for how in [Attachment::Unlinked, Attachment::Replaced] {
            let (mut tree, _, ino) = tree();
            tree.remember(ino);
            tree.detach(ino, how);
            settle(&mut tree);
            let file = tree.file(ino).unwrap();
            assert_eq!(file.state().attachment, how);
            assert_eq!(file.state().base.as_ref().unwrap().key, "app/src/a.js");
            tree.forget(ino, 1);
            assert!(tree.file(ino).is_err());
        }
    }

    #[test]
    fn a_file_is_told_by_its_etag_whether_it_is_used_or_not() {
        let (mut tree, _, ino) = tree();
        for _ in 0..2 {
            assert!(tree.is_stored_as(ino, "app/src/a.js", MD5));
            assert!(!tree.is_stored_as(ino, "app/src/a.js", "other"));
            assert_eq!(tree.stored_size(ino), Some(5));
            tree.change_times(ino, |times| times.explicit = true);
            assert!(tree.times(ino).unwrap().explicit);
            tree.file(ino).unwrap();
        }
    }
}
