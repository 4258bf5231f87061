//! The local-only paths of one workspace, for people: how much, where, and by which rule.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Rule;
use crate::{
    core::{Core, Shape},
    tree::{Ino, Node, ROOT, Tree},
};

/// Paths that are named; the others are counted.
const NAMED: usize = 5;

/// What of a workspace lives on this host only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalPaths {
    /// Number of files, links and other things that are no folders.
    pub files: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Folders and files of the top: those below no other local-only folder.
    pub paths: u64,
    /// The largest of them, largest first.
    pub largest: Vec<LocalPath>,
    /// What each rule keeps here, most bytes first.
    pub rules: Vec<LocalShare>,
    /// Files that are stored although `workspace.json` excludes them: they were stored before it did.
    pub stored_before: u64,
}

/// One local-only path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalPath {
    /// The path in the workspace; a folder's ends with a slash.
    pub path: String,
    /// Number of files in it.
    pub files: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Why it never goes to S3.
    #[serde(flatten)]
    pub rule: Rule,
}

/// What one rule keeps on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalShare {
    /// The rule.
    #[serde(flatten)]
    pub rule: Rule,
    /// Number of files.
    pub files: u64,
    /// Bytes of content.
    pub bytes: u64,
}

impl Core {
    pub(crate) fn local_paths(&self, workspace: &str) -> LocalPaths {
        let mut found = LocalPaths::default();
        let mut shares: BTreeMap<Rule, (u64, u64)> = BTreeMap::new();
        let tree = self.tree.lock();
        let Some(top) = tree.child(ROOT, workspace).ok().flatten() else {
            return found;
        };
        let mut open = vec![top];
        while let Some(ino) = open.pop() {
            let (Ok(inode), Ok(key)) = (tree.get(ino), tree.key(ino)) else {
                continue;
            };
            let shape = Shape::of(&inode.node);
            if inode.local {
                let (files, bytes) = weigh(&tree, ino);
                let rule = self.rules.rule(&key, shape);
                let share = shares.entry(rule.clone()).or_default();
                *share = (share.0 + files, share.1 + bytes);
                found.files += files;
                found.bytes += bytes;
                found.paths += 1;
                found.name(LocalPath {
                    path: path_of(&key, workspace, shape),
                    files,
                    bytes,
                    rule,
                });
            } else if let Ok(dir) = inode.as_dir() {
                open.extend(dir.children.values());
            } else if self.rules.by_workspace(&key, shape) {
                found.stored_before += 1;
            }
        }
        drop(tree);
        let shares = shares.into_iter();
        found.rules = shares
            .map(|(rule, (files, bytes))| LocalShare { rule, files, bytes })
            .collect();
        found
            .rules
            .sort_by_key(|share| std::cmp::Reverse((share.bytes, share.files)));
        found
    }
}

impl LocalPaths {
    /// Keeps the path if it is among the largest.
    fn name(&mut self, path: LocalPath) {
        let smaller = |other: &LocalPath| (other.bytes, other.files) < (path.bytes, path.files);
        let at = self.largest.iter().position(smaller).unwrap_or(self.largest.len());
        if at < NAMED {
            self.largest.insert(at, path);
            self.largest.truncate(NAMED);
        }
    }
}

fn path_of(key: &str, workspace: &str, shape: Shape) -> String {
    let path = key[workspace.len()..].trim_start_matches('/');
    match shape {
        Shape::Dir => format!("{path}/"),
        _ => path.to_owned(),
    }
}

/// Number and bytes of what is not a folder, at `ino` and below.
fn weigh(tree: &Tree, ino: Ino) -> (u64, u64) {
    let all = tree.below(ino).into_iter().filter_map(|ino| tree.get(ino).ok());
    all.filter(|inode| !inode.is_dir())
        .fold((0, 0), |(files, bytes), inode| {
            let size = match &inode.node {
                Node::File(leaf) => leaf.size(),
                _ => 0,
            };
            (files + 1, bytes + size)
        })
}
