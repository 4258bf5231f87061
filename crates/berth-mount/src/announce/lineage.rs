//! Which earlier files had the name that a file has now, as far as the kernel still knows them.
//!
//! A file changed elsewhere gets a new inode. Whoever watches the file itself (not its folder) watches the old one, and would
//! never hear of it again. So the tree remembers which inodes a file has replaced, until the kernel forgets them: what
//! happens to the file is announced on them too. Mostly there are none: without a watch or a descriptor the kernel forgets
//! an inode as soon as it has lost its name.

use std::collections::HashMap;

use crate::tree::Ino;

/// The replaced inodes of all files.
#[derive(Debug, Default)]
pub(crate) struct Lineage {
    /// By the file that has the name now.
    former: HashMap<Ino, Vec<Ino>>,
    /// The way back.
    heir: HashMap<Ino, Ino>,
}

impl Lineage {
    /// `new` has the place of `old`, which the kernel still knows or not.
    pub(crate) fn replaced(&mut self, old: Ino, new: Ino, known: bool) {
        let mut all = self.former.remove(&old).unwrap_or_default();
        if known {
            all.push(old);
        }
        for one in &all {
            self.heir.insert(*one, new);
        }
        if !all.is_empty() {
            self.former.insert(new, all);
        }
    }

    /// The kernel let go of `old`, or it has a name of its own again.
    pub(crate) fn forgotten(&mut self, old: Ino) {
        let Some(heir) = self.heir.remove(&old) else { return };
        if let Some(all) = self.former.get_mut(&heir) {
            all.retain(|one| *one != old);
            if all.is_empty() {
                self.former.remove(&heir);
            }
        }
    }

    /// What `ino` has replaced.
    pub(crate) fn of(&self, ino: Ino) -> &[Ino] {
        self.former.get(&ino).map_or(&[], Vec::as_slice)
    }

    /// `ino` is removed, and nothing has its place: what it had replaced.
    pub(crate) fn ended(&mut self, ino: Ino) -> Vec<Ino> {
        let all = self.former.remove(&ino).unwrap_or_default();
        for one in &all {
            self.heir.remove(one);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_files_follow_their_name_until_they_are_forgotten() {
        let mut lineage = Lineage::default();
        lineage.replaced(1, 2, true);
        lineage.replaced(2, 3, false);
        lineage.replaced(3, 4, true);
        assert_eq!(lineage.of(4), [1, 3]);
        assert!(lineage.of(3).is_empty());
        lineage.forgotten(1);
        lineage.forgotten(7);
        assert_eq!(lineage.of(4), [3]);
        assert_eq!(lineage.ended(4), [3]);
        lineage.replaced(5, 6, true);
        lineage.forgotten(5);
        assert!(lineage.former.is_empty() && lineage.heir.is_empty());
    }
}
