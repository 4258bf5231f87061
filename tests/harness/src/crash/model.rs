//! What may be there after a crash: the comparison of what was acknowledged with what was found.
//!
//! Each thread of the writer owns its names, and works in order. So what its part of the bucket must look like is the sum of
//! the steps that were acknowledged to it, with at most one step under way: that one may have happened or not, whole or not
//! at all. A step that failed while the daemon lived (a full disk, S3 away) may have happened or not too; the writer leaves
//! its names alone from then on, and they are looked at one by one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// What a name is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A file with this content and these bits.
    File {
        /// Bytes.
        len: u64,
        /// Its MD5.
        sum: String,
        /// Permission bits.
        mode: u32,
    },
    /// A folder.
    Dir,
    /// A symlink and where it points.
    Link(String),
}

/// Every name, relative to the mount.
pub type Tree = BTreeMap<String, Entry>;

/// The bits of a file that nobody changed.
pub const PLAIN: u32 = 0o644;

/// One thing a writer does, acknowledged as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The file has this content when `close` or `fsync` has returned.
    Save {
        /// Its name.
        path: String,
        /// Bytes.
        len: u64,
        /// MD5 of its content.
        sum: String,
        /// A new file, whatever had the name before.
        fresh: bool,
    },
    /// The file or link is gone.
    Unlink(String),
    /// The folder is there.
    Mkdir(String),
    /// The empty folder is gone.
    Rmdir(String),
    /// The first name is the second one now, with all below it.
    Rename(String, String),
    /// The link is there.
    Symlink(String, String),
    /// The file has these bits.
    Chmod(String, u32),
    /// An editor moved the file to a backup name that never goes to S3, and is about to write it anew. Backups do not outlive
    /// the daemon, so after a crash the file must have its old name again.
    Aside(String),
}

/// Whether `path` is `folder` or below it.
#[must_use]
pub fn within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Makes the tree what it is after the step.
pub fn apply(tree: &mut Tree, step: &Step) {
    match step {
        Step::Save { path, len, sum, fresh } => {
            let mode = match tree.get(path) {
                Some(Entry::File { mode, .. }) if !fresh => *mode,
                _ => PLAIN,
            };
            let (len, sum) = (*len, sum.clone());
            tree.insert(path.clone(), Entry::File { len, sum, mode });
        }
        Step::Unlink(path) | Step::Rmdir(path) => {
            tree.remove(path);
        }
        Step::Mkdir(path) => {
            tree.insert(path.clone(), Entry::Dir);
        }
        Step::Rename(from, to) => {
            let moved: Vec<String> = tree.keys().filter(|path| within(path, from)).cloned().collect();
            for path in moved {
                if let Some(entry) = tree.remove(&path) {
                    tree.insert(format!("{to}{}", &path[from.len()..]), entry);
                }
            }
        }
        Step::Symlink(path, target) => {
            tree.insert(path.clone(), Entry::Link(target.clone()));
        }
        Step::Chmod(path, bits) => {
            if let Some(Entry::File { mode, .. }) = tree.get_mut(path) {
                *mode = *bits;
            }
        }
        Step::Aside(_) => {}
    }
}

/// What one thread's names must be.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// All that was acknowledged.
    pub tree: Tree,
    /// Names that may be one of several things.
    pub maybe: BTreeMap<String, Vec<Option<Entry>>>,
    /// The step that was under way at the end.
    pub under_way: Option<Step>,
    /// The last step acknowledged was [`Step::Aside`] of this file.
    aside: Option<String>,
}

impl Expected {
    /// Nothing done yet.
    #[must_use]
    pub fn from(tree: Tree) -> Self {
        Self {
            tree,
            ..Self::default()
        }
    }

    /// The step was begun.
    pub fn begun(&mut self, step: Step) {
        self.under_way = Some(step);
    }

    /// The step under way was acknowledged.
    pub fn acknowledged(&mut self) {
        if let Some(step) = self.under_way.take() {
            apply(&mut self.tree, &step);
            self.aside = match step {
                Step::Aside(path) => Some(path),
                _ => None,
            };
        }
    }

    /// The step under way failed, and the daemon lives: it may have been done, or be done later. `left`: what a save had
    /// written until then, its length and MD5.
    pub fn failed(&mut self, left: Option<&(u64, String)>) {
        let Some(step) = self.under_way.take() else { return };
        let mut after = self.tree.clone();
        apply(&mut after, &step);
        let paths: BTreeSet<String> = self.tree.keys().chain(after.keys()).cloned().collect();
        for path in paths {
            let (old, new) = (self.tree.get(&path), after.get(&path));
            if old != new {
                let either = [old.cloned(), new.cloned()];
                self.maybe.entry(path).or_default().extend(either);
            }
        }
        if let (Step::Save { path, .. }, Some((len, sum))) = (&step, left) {
            let mode = match after.get(path) {
                Some(Entry::File { mode, .. }) => *mode,
                _ => PLAIN,
            };
            let (len, sum) = (*len, sum.clone());
            let part = Entry::File { len, sum, mode };
            self.maybe.entry(path.clone()).or_default().push(Some(part));
        }
        let named = match step {
            Step::Aside(path) => Some(path),
            _ => None,
        };
        for path in self.aside.take().into_iter().chain(named) {
            let old = self.tree.get(&path).cloned();
            self.maybe.entry(path).or_default().extend([None, old]);
        }
    }

    /// Whether the writer may use this name: nothing is uncertain about it, what is above it or below it.
    #[must_use]
    pub fn is_certain(&self, path: &str) -> bool {
        !self.maybe.keys().any(|odd| within(odd, path) || within(path, odd))
    }

    /// What is wrong with `found`, this thread's part of what is there now.
    #[must_use]
    pub fn judge(&self, found: &Tree) -> Vec<String> {
        let before = self.differences(&self.tree, found);
        let Some(step) = &self.under_way else {
            return before.into_values().collect();
        };
        let mut done = self.tree.clone();
        apply(&mut done, step);
        let after = self.differences(&done, found);
        if before.is_empty() || after.is_empty() {
            return Vec::new();
        }
        let wrong: Vec<String> = before
            .iter()
            .filter(|(path, _)| after.contains_key(*path))
            .map(|(_, line)| format!("{line} (under way: {step:?})"))
            .collect();
        if wrong.is_empty() {
            let (before, after) = (before.values(), after.values());
            return vec![format!(
                "HALF DONE: {step:?}; against before: {before:?}; against after: {after:?}"
            )];
        }
        wrong
    }

    /// By path, in words.
    fn differences(&self, wanted: &Tree, found: &Tree) -> BTreeMap<String, String> {
        let paths: BTreeSet<&String> = wanted.keys().chain(found.keys()).chain(self.maybe.keys()).collect();
        let mut wrong = BTreeMap::new();
        for path in paths {
            let (want, have) = (wanted.get(path), found.get(path));
            let text = match (self.maybe.get(path), want, have) {
                (Some(maybe), ..) if maybe.iter().any(|one| one.as_ref() == have) => continue,
                (Some(maybe), ..) => format!("{path} WRONG: is {have:?}, must be one of {maybe:?}"),
                (None, want, have) if want == have => continue,
                (None, Some(want), None) => format!("{path} LOST: was acknowledged as {want:?}"),
                (None, None, have) => format!("{path} STRAY: is {have:?}, must not be there"),
                (None, Some(want), have) => format!("{path} WRONG: is {have:?}, was acknowledged as {want:?}"),
            };
            wrong.insert(path.clone(), text);
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(path: &str, sum: &str) -> Step {
        Step::Save {
            path: path.into(),
            len: 1,
            sum: sum.into(),
            fresh: false,
        }
    }

    fn done(steps: &[Step]) -> Expected {
        let mut all = Expected::default();
        for step in steps {
            all.begun(step.clone());
            all.acknowledged();
        }
        all
    }

    #[test]
    fn what_was_acknowledged_must_be_there_and_nothing_else() {
        let all = done(&[
            Step::Mkdir("d".into()),
            save("d/a", "1"),
            save("d/a", "2"),
            save("d/b", "3"),
        ]);
        assert!(all.judge(&all.tree).is_empty());
        let old = done(&[Step::Mkdir("d".into()), save("d/a", "1"), save("d/b", "3")]);
        assert!(all.judge(&old.tree)[0].starts_with("d/a WRONG"));
        let mut less = all.tree.clone();
        less.remove("d/b");
        assert!(all.judge(&less)[0].starts_with("d/b LOST"));
        let mut more = all.tree.clone();
        more.insert("d/c".into(), Entry::Dir);
        assert!(all.judge(&more)[0].starts_with("d/c STRAY"));
    }

    #[test]
    fn a_step_under_way_happened_whole_or_not_at_all() {
        let mut all = done(&[Step::Mkdir("d".into()), save("d/a", "1"), save("d/b", "2")]);
        let before = all.tree.clone();
        let step = Step::Rename("d".into(), "e".into());
        all.begun(step.clone());
        let mut after = before.clone();
        apply(&mut after, &step);
        assert_eq!(after.keys().collect::<Vec<_>>(), ["e", "e/a", "e/b"]);
        assert!(all.judge(&before).is_empty() && all.judge(&after).is_empty());
        let mut half = after.clone();
        half.remove("e/a");
        half.insert("d".into(), Entry::Dir);
        half.insert("d/a".into(), before["d/a"].clone());
        assert!(all.judge(&half)[0].starts_with("HALF DONE"), "{:?}", all.judge(&half));
        half.remove("d/a");
        assert!(!all.judge(&half).is_empty());
    }

    #[test]
    fn a_step_that_failed_leaves_its_names_open_and_no_others() {
        let mut all = done(&[Step::Mkdir("d".into()), save("d/a", "1")]);
        all.begun(save("d/a", "2"));
        all.failed(Some(&(0, "cut".into())));
        assert!(!all.is_certain("d/a") && !all.is_certain("d") && all.is_certain("d/b"));
        for (len, sum) in [(1, "1"), (1, "2"), (0, "cut")] {
            let mut found = all.tree.clone();
            let (sum, mode) = (sum.into(), PLAIN);
            found.insert("d/a".into(), Entry::File { len, sum, mode });
            assert!(all.judge(&found).is_empty(), "{found:?}");
        }
        let mut torn = all.tree.clone();
        apply(&mut torn, &save("d/a", "half of 2"));
        assert!(!all.judge(&torn).is_empty());
    }

    #[test]
    fn a_file_that_an_editor_moved_aside_is_back_after_a_crash() {
        let all = done(&[save("a", "1"), Step::Aside("a".into())]);
        assert!(all.judge(&all.tree).is_empty());
        assert!(!all.judge(&Tree::new()).is_empty());
    }
}
