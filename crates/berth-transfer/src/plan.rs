//! The differences between a folder and a workspace, worked out before anything is written. Pure.
//!
//! Both plans answer three questions about each path: has it to be moved, has it to be compared first, or is something in
//! its way. A folder is never in the way of a folder; a file or link with other content can be overwritten by force; a file
//! where a folder is needed, or the other way round, never is: that would remove what nobody has looked at.

use std::collections::BTreeMap;

use berth_store::{ObjectInfo, Precondition};
use berth_workspace::{EntryKind, WorkspaceIndex, index::from_nanos};

use crate::{
    bucket::{Bucket, There},
    report::{Difference, Failed},
    scan::{DIR_MODE, FILE_MODE, Found, FoundKind, Scan},
};

/// Set-user and set-group: a bucket's file would come out as root's.
const SET_ID: u32 = 0o6000;

/// What an import has to do.
#[derive(Debug, Default)]
pub(crate) struct Import {
    /// Files to send.
    pub send: Vec<Send>,
    /// Files whose content has to be compared with the object.
    pub compare: Vec<(String, ObjectInfo)>,
    /// Objects that give way to a link, by force.
    pub remove: Vec<(String, ObjectInfo)>,
    pub refused: Vec<Difference>,
    /// Paths in the bucket that the folder does not have.
    pub only_there: u64,
}

/// A file to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Send {
    pub path: String,
    pub size: u64,
    pub replaces: Precondition,
}

/// Plans to bring what was found in a folder into the bucket.
pub(crate) fn import(scan: &Scan, bucket: &Bucket) -> Import {
    let mut plan = Import::default();
    for (path, found) in &scan.entries {
        match (&found.kind, bucket.at(path)) {
            (FoundKind::File { size }, There::Nothing) => plan.send(path, *size, Precondition::Absent),
            (FoundKind::File { size }, There::File(object)) if object.size == *size => {
                plan.compare.push((path.clone(), object.clone()));
            }
            (FoundKind::File { size }, There::File(object)) => plan.differs(path, *size, object),
            (FoundKind::File { size }, There::Symlink(target)) => {
                plan.refuse(path, format!("a link to {target} there, a file here"));
                plan.send(path, *size, Precondition::Absent);
            }
            (FoundKind::Symlink { target }, There::Symlink(theirs)) if target != theirs => {
                plan.refuse(path, format!("a link to {theirs} there, to {target} here"));
            }
            (FoundKind::Symlink { .. }, There::File(object)) => {
                plan.refuse(path, "a file there, a link here".to_owned());
                plan.remove.push((path.clone(), object.clone()));
            }
            (FoundKind::Dir, There::File(_) | There::Symlink(_)) => {
                plan.never(path, "not a folder there, a folder here");
            }
            (FoundKind::File { .. } | FoundKind::Symlink { .. }, There::Dir) => {
                plan.never(path, "a folder there, not a folder here");
            }
            _ => {}
        }
    }
    let strange = |path: &&String| !scan.entries.contains_key(*path);
    plan.only_there = bucket.objects.keys().filter(strange).count() as u64;
    plan
}

impl Import {
    /// The file's content is not the object's.
    pub(crate) fn differs(&mut self, path: &str, size: u64, object: &ObjectInfo) {
        self.refuse(
            path,
            format!("{} bytes with other content there, {size} here", object.size),
        );
        self.send(path, size, Precondition::Matches(object.etag.clone()));
    }

    fn send(&mut self, path: &str, size: u64, replaces: Precondition) {
        self.send.push(Send {
            path: path.to_owned(),
            size,
            replaces,
        });
    }

    fn refuse(&mut self, path: &str, why: String) {
        self.refused.push(Difference {
            path: path.to_owned(),
            why,
            can_be_forced: true,
        });
    }

    fn never(&mut self, path: &str, why: &str) {
        self.refused.push(Difference {
            path: path.to_owned(),
            why: why.to_owned(),
            can_be_forced: false,
        });
    }
}

/// The index that says what `found` says, and what `old` says of all other paths.
pub(crate) fn merged<'a>(
    old: &WorkspaceIndex,
    found: impl IntoIterator<Item = (&'a String, &'a Found)>,
) -> WorkspaceIndex {
    let mut index = old.clone();
    for (path, found) in found {
        if let Some(entry) = found.entry() {
            index.entries.insert(path.clone(), entry);
        }
    }
    index
}

/// What an export has to make.
#[derive(Debug, Default)]
pub(crate) struct Export {
    /// Everything that the folder is to hold.
    pub wanted: BTreeMap<String, Wanted>,
    /// Files to fetch.
    pub fetch: Vec<String>,
    /// Files whose content has to be compared with the object.
    pub compare: Vec<String>,
    pub refused: Vec<Difference>,
    /// Paths in the folder that the workspace does not have.
    pub only_there: Vec<String>,
    /// Objects that cannot be files.
    pub odd: Vec<Failed>,
    pub set_id_bits: u64,
}

/// One path to make. Times in nanoseconds since 1970; none: whatever it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub kind: WantedKind,
    pub mode: u32,
    pub mtime: Option<std::time::SystemTime>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WantedKind {
    File(ObjectInfo),
    Dir,
    Symlink(String),
}

/// Says of a path, its kind and its size whether it is to be exported.
pub(crate) type Keep<'k> = &'k mut dyn FnMut(&str, EntryKind, u64) -> bool;

/// Plans to bring a workspace into a folder in which `scan` was found.
pub(crate) fn export(bucket: &Bucket, scan: &Scan, keep: Keep<'_>) -> Export {
    let mut plan = Export {
        odd: bucket.odd.clone(),
        ..Export::default()
    };
    plan.want(bucket, keep);
    for (path, wanted) in &plan.wanted {
        let found = scan.entries.get(path).map(|found| &found.kind);
        let differs = |why: String, can_be_forced| Difference {
            path: path.clone(),
            why,
            can_be_forced,
        };
        match (&wanted.kind, found) {
            (WantedKind::File(_), None) => plan.fetch.push(path.clone()),
            (WantedKind::File(object), Some(FoundKind::File { size })) if *size == object.size => {
                plan.compare.push(path.clone());
            }
            (WantedKind::File(object), Some(FoundKind::File { size })) => {
                let why = format!("{size} bytes with other content here, {} in the bucket", object.size);
                plan.refused.push(differs(why, true));
                plan.fetch.push(path.clone());
            }
            (WantedKind::File(_), Some(FoundKind::Symlink { target })) => {
                plan.refused
                    .push(differs(format!("a link to {target} here, a file in the bucket"), true));
                plan.fetch.push(path.clone());
            }
            (WantedKind::Symlink(target), Some(FoundKind::Symlink { target: ours })) if target != ours => {
                plan.refused.push(differs(
                    format!("a link to {ours} here, to {target} in the bucket"),
                    true,
                ));
            }
            (WantedKind::Symlink(_), Some(FoundKind::File { .. })) => {
                plan.refused
                    .push(differs("a file here, a link in the bucket".to_owned(), true));
            }
            (WantedKind::Dir, Some(FoundKind::Dir)) | (_, None) => {}
            (WantedKind::Symlink(_), Some(FoundKind::Symlink { .. })) => {}
            (WantedKind::Dir, Some(_)) => plan
                .refused
                .push(differs("not a folder here, one in the bucket".into(), false)),
            (_, Some(_)) => plan
                .refused
                .push(differs("not a file here, one in the bucket".into(), false)),
        }
    }
    let strange = scan.entries.keys().filter(|path| !plan.wanted.contains_key(*path));
    plan.only_there = strange.cloned().collect();
    plan
}

impl Export {
    fn want(&mut self, bucket: &Bucket, keep: Keep<'_>) {
        let entries = &bucket.index.index.entries;
        for (path, object) in &bucket.objects {
            if bucket.at(path) == There::Dir {
                let why = "is a folder too: it cannot be both".to_owned();
                self.odd.push(Failed {
                    path: path.clone(),
                    why,
                });
            } else if keep(path, EntryKind::File, object.size) {
                let said = entries.get(path).filter(|entry| entry.kind == EntryKind::File);
                let mode = self.safe_mode(said.and_then(|entry| entry.mode), FILE_MODE);
                let mtime = Some(bucket.mtime(path, object));
                self.add(
                    bucket,
                    path,
                    Wanted {
                        kind: WantedKind::File(object.clone()),
                        mode,
                        mtime,
                    },
                );
            }
        }
        for path in bucket.markers.iter().filter(|path| !path.is_empty()) {
            if keep(path, EntryKind::Dir, 0) {
                self.add_folder(bucket, path);
            }
        }
        if bucket.is_empty() {
            return;
        }
        for (path, entry) in entries {
            if let Some(why) = crate::bucket::no_path(path) {
                self.odd.push(Failed {
                    path: path.clone(),
                    why: why.to_owned(),
                });
                continue;
            }
            match (entry.kind, bucket.at(path)) {
                (EntryKind::Dir, There::Dir) if keep(path, EntryKind::Dir, 0) => self.add_folder(bucket, path),
                (EntryKind::Symlink, There::Symlink(target)) if keep(path, EntryKind::Symlink, 0) => {
                    let mtime = entry.mtime_ns.map(from_nanos);
                    let kind = WantedKind::Symlink(target.to_owned());
                    self.add(
                        bucket,
                        path,
                        Wanted {
                            kind,
                            mode: 0o777,
                            mtime,
                        },
                    );
                }
                (EntryKind::Symlink, There::Dir) => {
                    let why = "is a folder too: it cannot be both".to_owned();
                    self.odd.push(Failed {
                        path: path.clone(),
                        why,
                    });
                }
                _ => {}
            }
        }
    }

    /// One path, and the folders above it.
    fn add(&mut self, bucket: &Bucket, path: &str, wanted: Wanted) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.add_folder(bucket, above);
        }
        self.wanted.insert(path.to_owned(), wanted);
    }

    fn add_folder(&mut self, bucket: &Bucket, path: &str) {
        if self.wanted.contains_key(path) {
            return;
        }
        let said = bucket
            .index
            .index
            .entries
            .get(path)
            .filter(|entry| entry.kind == EntryKind::Dir);
        let mode = self.safe_mode(said.and_then(|entry| entry.mode), DIR_MODE);
        let mtime = said.and_then(|entry| entry.mtime_ns).map(from_nanos);
        self.add(
            bucket,
            path,
            Wanted {
                kind: WantedKind::Dir,
                mode,
                mtime,
            },
        );
    }

    fn safe_mode(&mut self, mode: Option<u32>, usual: u32) -> u32 {
        let mode = mode.unwrap_or(usual) & 0o7777;
        self.set_id_bits += u64::from(mode & SET_ID != 0);
        mode & !SET_ID
    }
}

#[cfg(test)]
mod tests;
