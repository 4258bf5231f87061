//! What the bucket has of one workspace: its objects, and what its index says beyond them.
//!
//! As in the mount: a folder is there when something is below it, when it has a marker object `PATH/`, or when the index
//! says so; a link is there when the index says so and no object has its name.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::SystemTime,
};

use berth_store::{ObjectInfo, Store, StoreError};
use berth_workspace::{
    EntryKind, WorkspaceIndex,
    index::{self, IndexEntry, SLACK, from_nanos},
};
use bytes::Bytes;

use crate::{TransferError, report::Failed, retry::at_first};

/// The longest name that file systems take, in bytes.
const LONGEST_NAME: usize = 255;

/// One workspace in the bucket.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    /// Files, by path relative to the workspace.
    pub objects: BTreeMap<String, ObjectInfo>,
    /// Folders with a marker object; the workspace's own is "".
    pub markers: BTreeSet<String>,
    pub index: Indexed,
    /// Keys that are no paths.
    pub odd: Vec<Failed>,
}

/// An index, and its version in the bucket.
#[derive(Debug, Default, Clone)]
pub(crate) struct Indexed {
    pub index: WorkspaceIndex,
    /// None: there is no such object.
    pub version: Option<ObjectInfo>,
}

/// What has a path in the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum There<'a> {
    Nothing,
    File(&'a ObjectInfo),
    Dir,
    Symlink(&'a str),
}

impl Bucket {
    pub(crate) async fn load(store: &Store, app: &str) -> Result<Self, TransferError> {
        let prefix = format!("{app}/");
        let (listed, index) = futures::try_join!(
            async { Ok(at_first(|| store.list(&prefix)).await?) },
            Indexed::load(store, app)
        )?;
        let mut bucket = Self {
            index,
            ..Self::default()
        };
        for object in listed {
            if let Some(path) = object.key.strip_prefix(&prefix).map(str::to_owned) {
                bucket.add(path, object);
            }
        }
        Ok(bucket)
    }

    fn add(&mut self, path: String, object: ObjectInfo) {
        let (bare, is_marker) = match path.strip_suffix('/') {
            Some(bare) => (bare, true),
            None => (path.as_str(), path.is_empty()),
        };
        if let Some(why) = no_path(bare).filter(|_| !path.is_empty()) {
            self.odd.push(Failed {
                path,
                why: why.to_owned(),
            });
        } else if is_marker {
            self.markers.insert(bare.to_owned());
        } else {
            self.objects.insert(path, object);
        }
    }

    /// Whether the bucket knows nothing of the workspace. An index without objects is left over from a removed one.
    pub(crate) fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.markers.is_empty() && self.odd.is_empty()
    }

    pub(crate) fn at(&self, path: &str) -> There<'_> {
        if self.is_folder(path) {
            return There::Dir;
        }
        if let Some(object) = self.objects.get(path) {
            return There::File(object);
        }
        match self.index.index.entries.get(path) {
            Some(IndexEntry {
                kind: EntryKind::Symlink,
                target: Some(target),
                ..
            }) if !self.is_empty() => There::Symlink(target),
            _ => There::Nothing,
        }
    }

    fn is_folder(&self, path: &str) -> bool {
        let entries = &self.index.index.entries;
        let below = format!("{path}/");
        self.markers.contains(path)
            || first_below(&self.objects, &below)
            || self
                .markers
                .range::<str, _>(after(&below))
                .next()
                .is_some_and(|next| next.starts_with(&below))
            || (!self.is_empty()
                && (entries.get(path).is_some_and(|entry| entry.kind == EntryKind::Dir)
                    || entries
                        .range::<str, _>(after(&below))
                        .take_while(|(next, _)| next.starts_with(&below))
                        .any(|(_, entry)| entry.kind != EntryKind::File)))
    }

    /// The time that an object's file has: the index's, unless the content was stored well after it.
    pub(crate) fn mtime(&self, path: &str, object: &ObjectInfo) -> SystemTime {
        let written = self.index.version.as_ref().map(|version| version.modified);
        let said = self
            .index
            .index
            .entries
            .get(path)
            .filter(|entry| entry.kind == EntryKind::File);
        match (said.and_then(|entry| entry.mtime_ns), written) {
            (Some(nanos), Some(written)) if object.modified <= written + SLACK => from_nanos(nanos),
            _ => object.modified,
        }
    }
}

impl Indexed {
    pub(crate) async fn load(store: &Store, app: &str) -> Result<Self, TransferError> {
        let key = index::key(app);
        match at_first(|| store.get(&key)).await {
            Ok((version, bytes)) => Ok(Self {
                index: parse(app, &key, &bytes)?,
                version: Some(version),
            }),
            Err(error) if error.is_no_such_key() => Ok(Self::default()),
            Err(error) => Err(TransferError::Store(error)),
        }
    }
}

fn parse(app: &str, key: &str, bytes: &Bytes) -> Result<WorkspaceIndex, TransferError> {
    WorkspaceIndex::parse(bytes).map_err(|source| TransferError::Index {
        app: app.to_owned(),
        key: key.to_owned(),
        source,
    })
}

fn first_below(objects: &BTreeMap<String, ObjectInfo>, below: &str) -> bool {
    let mut next = objects.range::<str, _>(after(below));
    next.next().is_some_and(|(path, _)| path.starts_with(below))
}

fn after(path: &str) -> (Bound<&str>, Bound<&str>) {
    (Bound::Included(path), Bound::Unbounded)
}

/// Why a key is no path as a file system has them; none if it is one.
pub(crate) fn no_path(path: &str) -> Option<&'static str> {
    for name in path.split('/') {
        match name {
            "" => return Some("the key has an empty name in it (`//`)"),
            "." | ".." => return Some("the key has `.` or `..` in it"),
            name if name.contains('\0') => return Some("the key has a NUL in it"),
            name if name.len() > LONGEST_NAME => return Some("the key has a name of more than 255 bytes"),
            _ => {}
        }
    }
    None
}

/// The workspaces of the bucket: every folder at its top with a name that fits; and the names that do not.
pub(crate) async fn workspaces(store: &Store) -> Result<(Vec<String>, Vec<String>), StoreError> {
    let mut names = BTreeSet::new();
    for object in at_first(|| store.list("")).await? {
        if let Some((top, _)) = object.key.split_once('/')
            && !top.starts_with('.')
            && !top.is_empty()
        {
            names.insert(top.to_owned());
        }
    }
    Ok(names.into_iter().partition(|name| no_path(name).is_none()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::time::Duration;

    use super::*;

    fn object(size: u64) -> ObjectInfo {
        ObjectInfo {
            key: String::new(),
            size,
            etag: "e".into(),
            modified: SystemTime::UNIX_EPOCH,
        }
    }

    fn bucket(keys: &[&str]) -> Bucket {
        let mut bucket = Bucket::default();
        for key in keys {
            bucket.add((*key).to_owned(), object(1));
        }
        bucket
    }

    #[test]
    fn a_folder_is_there_by_its_content_its_marker_or_the_index() {
        let mut it = bucket(&["a/b/c", "m/", "", "x", "x0"]);
        let entries = &mut it.index.index.entries;
        entries.insert("e".into(), IndexEntry::dir());
        entries.insert("l".into(), IndexEntry::symlink("t"));
        entries.insert("deep/l".into(), IndexEntry::symlink("t"));
        entries.insert("gone/f".into(), IndexEntry::file());
        entries.insert("x".into(), IndexEntry::symlink("shadowed"));
        for folder in ["a", "a/b", "m", "e", "deep"] {
            assert_eq!(it.at(folder), There::Dir, "{folder}");
        }
        assert_eq!(it.at("l"), There::Symlink("t"));
        assert!(matches!(it.at("x"), There::File(_)));
        for nothing in ["gone", "gone/f", "a/b/d", "b"] {
            assert_eq!(it.at(nothing), There::Nothing, "{nothing}");
        }
    }

    #[test]
    fn keys_that_are_no_paths_are_told_and_the_rest_is_used() {
        let it = bucket(&["ok", "../up", "a//b", "./c", &"n".repeat(256), "d/"]);
        assert_eq!(it.objects.len(), 1);
        assert_eq!(it.odd.len(), 4);
        assert_eq!(it.at("d"), There::Dir);
    }

    #[test]
    fn an_index_without_objects_says_nothing() {
        let mut it = bucket(&[]);
        it.index.index.entries.insert("l".into(), IndexEntry::symlink("t"));
        assert_eq!(it.at("l"), There::Nothing);
    }

    #[test]
    fn content_stored_after_the_index_has_its_own_time() {
        let mut it = bucket(&["f"]);
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        it.index.index.entries.insert(
            "f".into(),
            IndexEntry {
                mtime_ns: Some(5_000_000_000),
                ..IndexEntry::file()
            },
        );
        it.index.version = Some(ObjectInfo {
            modified: at(100),
            ..object(0)
        });
        let stored = |seconds| ObjectInfo {
            modified: at(seconds),
            ..object(1)
        };
        assert_eq!(it.mtime("f", &stored(100)), at(5));
        assert_eq!(it.mtime("f", &stored(200)), at(200));
        assert_eq!(
            from_nanos(-1_000_000_000),
            SystemTime::UNIX_EPOCH - Duration::from_secs(1)
        );
    }
}
