//! Objects of the bucket that the mount does not show, and why: keys that are no paths, objects that have the name of a
//! folder, objects below an excluded path.
//!
//! They stay in S3 as they are, and everything else is usable. Each is named once in the log, when it is first met; all of
//! them (a bounded list of them, and how many there are) in `berth status` and `berth doctor`.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::core::Core;

/// Objects that are named; the others are counted.
const NAMED: usize = 100;
/// Objects that are counted; a bucket with more keys that are no paths is none of ours.
const COUNTED: usize = 100_000;
/// The longest name of one file, in bytes, that Linux takes.
const LONGEST_NAME: usize = 255;

/// Why an object is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// A component of the key is empty.
    EmptyName,
    /// A component is `.` or `..`.
    DotName,
    /// The key has a NUL.
    Nul,
    /// The key is no UTF-8.
    NotUtf8,
    /// A component is longer than a file's name can be.
    LongName,
    /// The key is also a folder: other keys begin with it.
    NameOfFolder,
    /// A local-only file of this host has its name.
    LocalFile,
    /// Paths like it never go to S3 from here (`[mount] exclude`).
    Excluded,
}

impl Why {
    /// What is wrong and what to do about it, in a sentence.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::EmptyName => "the key begins with `/` or has `//` in it: a part of the path has no name",
            Self::DotName => "a part of the path is `.` or `..`",
            Self::Nul => "the key has a NUL in it, which no file's name can have",
            Self::NotUtf8 => "the key is no UTF-8 text",
            Self::LongName => "a part of the path has more than 255 bytes",
            Self::NameOfFolder => "other objects make a folder of the same name",
            Self::LocalFile => "a file that is only on this host has its name (`exclude` of workspace.json)",
            Self::Excluded => "the path is excluded (`[mount] exclude`): such files stay local",
        }
    }
}

/// One object that is not shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnshownObject {
    /// Its key, what cannot be printed escaped.
    pub key: String,
    /// Why it is not shown.
    pub why: Why,
}

/// What the mount does not show of the bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unshown {
    /// How many objects, those that are merely excluded left out.
    pub count: u64,
    /// How many are excluded.
    pub excluded: u64,
    /// Some of them, by key; first of all those that are not merely excluded.
    pub objects: Vec<UnshownObject>,
}

/// Which objects were met and are not shown.
#[derive(Debug, Default)]
pub(crate) struct Record {
    hasher: RandomState,
    met: Mutex<Met>,
}

#[derive(Debug, Default)]
struct Met {
    /// Hashes of their keys.
    bad: HashSet<u64>,
    excluded: HashSet<u64>,
    named: BTreeMap<String, Why>,
}

/// Why `key` is no path; `None` when it is one. A trailing slash makes a folder of it.
pub(crate) fn classify(key: &str) -> Option<Why> {
    // The store writes `\0%FF` for a byte that is no text.
    if key.contains("\0%") {
        return Some(Why::NotUtf8);
    }
    if key.contains('\0') {
        return Some(Why::Nul);
    }
    let path = key.strip_suffix('/').unwrap_or(key);
    path.split('/').find_map(|name| match name {
        "" => Some(Why::EmptyName),
        "." | ".." => Some(Why::DotName),
        name if name.len() > LONGEST_NAME => Some(Why::LongName),
        _ => None,
    })
}

impl Record {
    /// The object is not shown. Said in the log the first time.
    pub(crate) fn note(&self, key: &str, why: Why) {
        let hash = self.hasher.hash_one(key);
        let mut met = self.met.lock();
        let Met { bad, excluded, named } = &mut *met;
        let (set, other) = match why {
            Why::Excluded => (excluded, bad),
            _ => (bad, excluded),
        };
        if set.len() >= COUNTED || !set.insert(hash) {
            return;
        }
        other.remove(&hash);
        let full = named.len() >= NAMED;
        if full && why != Why::Excluded {
            // What is excluded is as the operator wants it: it makes room.
            let merely = named.iter().find(|(_, why)| **why == Why::Excluded);
            if let Some(key) = merely.map(|(key, _)| key.clone()) {
                named.remove(&key);
            }
        }
        let fits = named.len() < NAMED;
        if fits {
            named.insert(key.to_owned(), why);
        }
        drop(met);
        let key = printable(key);
        match (why, fits) {
            (Why::Excluded, _) => tracing::debug!(key, "not shown: excluded"),
            (_, true) => tracing::warn!(key, "an object is not shown: {}; rename it to use it here", why.words()),
            (_, false) => tracing::debug!(key, "not shown: {}", why.words()),
        }
    }

    /// The object is shown now, or gone.
    pub(crate) fn forget(&self, key: &str) {
        let mut met = self.met.lock();
        if met.bad.is_empty() && met.excluded.is_empty() {
            return;
        }
        let hash = self.hasher.hash_one(key);
        met.bad.remove(&hash);
        met.excluded.remove(&hash);
        met.named.remove(key);
    }

    /// Whether an object is not shown because a folder has its name.
    pub(crate) fn is_behind_folder(&self, key: &str) -> bool {
        self.met.lock().named.get(key) == Some(&Why::NameOfFolder)
    }

    /// Whether an object is not shown because a local-only file has its name.
    pub(crate) fn is_behind_local(&self, key: &str) -> bool {
        self.met.lock().named.get(key) == Some(&Why::LocalFile)
    }

    pub(crate) fn report(&self) -> Unshown {
        let met = self.met.lock();
        let mut objects: Vec<_> = met
            .named
            .iter()
            .map(|(key, why)| UnshownObject {
                key: printable(key),
                why: *why,
            })
            .collect();
        objects.sort_by_key(|object| object.why == Why::Excluded);
        Unshown {
            count: met.bad.len() as u64,
            excluded: met.excluded.len() as u64,
            objects,
        }
    }
}

impl Core {
    /// The last object below a folder may be gone: then the one that has the folder's name can be shown.
    pub(crate) fn show_again(self: &Arc<Self>, key: &str) {
        let above = key.match_indices('/').map(|(at, _)| &key[..at]);
        let free: Vec<_> = {
            let tree = self.tree.lock();
            above
                .filter(|path| self.unshown.is_behind_folder(path) && tree.find(path).is_none())
                .collect()
        };
        for path in free {
            let (core, path) = (self.clone(), path.to_owned());
            self.rt.spawn(async move { core.reconcile(&path).await });
        }
    }
}

/// For logs and terminals: a key may hold anything.
fn printable(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    let mut rest = key.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            // It stands for a byte that follows as `%FF`.
            '\0' if rest.peek() == Some(&'%') => {}
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_is_no_path_is_told_why() {
        let long = "x".repeat(256);
        for (key, why) in [
            ("", Some(Why::EmptyName)),
            ("/", Some(Why::EmptyName)),
            ("/a", Some(Why::EmptyName)),
            ("a//b", Some(Why::EmptyName)),
            ("a//", Some(Why::EmptyName)),
            ("a/../b", Some(Why::DotName)),
            ("..", Some(Why::DotName)),
            ("./a", Some(Why::DotName)),
            ("a/.", Some(Why::DotName)),
            ("a\0b", Some(Why::Nul)),
            ("a/\0%FFb", Some(Why::NotUtf8)),
            (&long, Some(Why::LongName)),
            (&format!("a/{long}/b"), Some(Why::LongName)),
            ("a/", None),
            ("a/...", None),
            ("a/line\nbreak", None),
            (&"x".repeat(255), None),
            (&["x".repeat(204), "y".repeat(204)].join("/"), None),
        ] {
            assert_eq!(classify(key), why, "{key:?}");
        }
    }

    #[test]
    fn an_object_is_counted_once_and_no_longer_than_it_is_there() {
        let record = Record::default();
        for _ in 0..3 {
            record.note("a//b", Why::EmptyName);
            record.note("app/dist/x", Why::Excluded);
        }
        let report = record.report();
        assert_eq!((report.count, report.excluded, report.objects.len()), (1, 1, 2));
        assert_eq!(report.objects[0].key, "a//b");
        record.forget("a//b");
        assert_eq!(record.report().count, 0);
        record.note("app/dist/x", Why::NameOfFolder);
        let report = record.report();
        assert_eq!((report.count, report.excluded, report.objects.len()), (1, 0, 1));
    }

    #[test]
    fn a_bucket_full_of_them_takes_no_memory_without_end_and_names_the_worse_ones() {
        let record = Record::default();
        for n in 0..NAMED {
            record.note(&format!("app/dist/{n}"), Why::Excluded);
        }
        for n in 0..2 * NAMED {
            record.note(&format!("b//{n}"), Why::EmptyName);
        }
        let report = record.report();
        assert_eq!(report.count, 2 * NAMED as u64);
        assert_eq!(report.objects.len(), NAMED);
        assert!(report.objects.iter().all(|object| object.why == Why::EmptyName));
    }

    #[test]
    fn what_cannot_be_printed_is_escaped() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(printable("a\0%FFb"), "a%FFb");
    }
}
