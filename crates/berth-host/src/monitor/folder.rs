//! One top-level folder of the bucket: its objects, its mark, and one look at it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_store::{Change, ETag, KeyMap, ObjectInfo, StoreError};
use berth_workspace::{
    AppName, EntryKind, FileMode, Plan, PlanError, RevisionId, Source, SourceFile, WorkspaceIndex, index,
    manifest_paths,
};
use bytes::Bytes;
use tokio::time::Instant;

use super::{Bucket, LONGEST, MonitorEvent, QUIET};

/// A manifest larger than this is not read: no hand-written file is as large, and no lock file whose content matters.
const MANIFEST_MAX: u64 = 16 << 20;
/// Manifests name further files, and a plan stops at the first one that it cannot read, so each round may bring one only.
const ROUNDS: usize = 100;

/// What the monitor knows of one top-level folder.
#[derive(Default)]
pub(super) struct Folder {
    /// Objects by their path in the folder; `""` is the marker object of an empty folder.
    objects: Objects,
    /// The ETag of its index object.
    index_etag: Option<String>,
    /// The index that was read, with its ETag.
    index: Option<(String, Arc<WorkspaceIndex>)>,
    /// Manifests that were read, with their ETag.
    manifests: Manifests,
    /// The first and the last change that was not looked at.
    mark: Option<(Instant, Instant)>,
    looking: bool,
    announced: Option<RevisionId>,
}

type Manifests = BTreeMap<String, (String, Bytes)>;
/// Size and ETag by path.
type Objects = KeyMap<(u64, ETag)>;

impl Folder {
    pub(super) fn changed(&mut self, path: String, change: Change, local: bool, now: Instant) {
        let changed = match change {
            Change::Put(ObjectInfo { size, etag, .. }) => {
                let value = (size, ETag::from(&*etag));
                // Seen already, in the listing or as our own write.
                if self.objects.get(&path) == Some(&value) {
                    return;
                }
                self.objects.insert(&path, value);
                true
            }
            Change::Deleted { .. } => self.objects.remove(&path).is_some(),
        };
        // What never belongs in the bucket does not make a revision, but it does keep a folder in being.
        if changed && (!local || !self.exists() || self.announced.is_none()) {
            self.mark(now);
        }
    }

    pub(super) fn index_changed(&mut self, change: Change, now: Instant) {
        let etag = match change {
            Change::Put(info) => Some(info.etag),
            Change::Deleted { .. } => None,
        };
        if self.index_etag != etag {
            self.index_etag = etag;
            self.mark(now);
        }
    }

    fn mark(&mut self, now: Instant) {
        let first = self.mark.map_or(now, |(first, _)| first);
        self.mark = Some((first, now));
    }

    /// When it wants to be looked at; never while a look goes on.
    pub(super) fn due(&self) -> Option<Instant> {
        let (first, last) = self.mark.filter(|_| !self.looking)?;
        Some((first + LONGEST).min(last + QUIET))
    }

    pub(super) fn exists(&self) -> bool {
        !self.objects.is_empty()
    }

    pub(super) fn is_forgettable(&self) -> bool {
        !self.exists() && self.index_etag.is_none()
    }

    pub(super) fn was_announced(&self) -> bool {
        self.announced.is_some()
    }

    /// Nothing more to do until the next change.
    pub(super) fn settle(&mut self) {
        self.mark = None;
        if !self.exists() {
            self.announced = None;
        }
    }

    pub(super) fn keys(&self, name: &str) -> Vec<String> {
        let index = self.index_etag.as_ref().map(|_| index::key(name));
        let mut keys = Vec::with_capacity(self.objects.len());
        let mut objects = self.objects.iter();
        while let Some((path, _)) = objects.next() {
            keys.push(format!("{name}/{path}"));
        }
        keys.extend(index);
        keys
    }

    pub(super) fn look(&mut self, name: AppName) -> Look {
        self.mark = None;
        self.looking = true;
        Look {
            name,
            objects: self.objects.clone(),
            index_etag: self.index_etag.clone(),
            index: self.index.clone(),
            manifests: self.manifests.clone(),
        }
    }

    /// Takes in what a look found; a look that failed is due again at `again`.
    pub(super) fn take_in(&mut self, looked: Looked, again: Instant) -> Result<Option<MonitorEvent>, StoreError> {
        self.looking = false;
        let Found {
            index,
            manifests,
            files,
            revision,
            plan,
        } = match looked.found {
            Ok(found) => found,
            Err(error) => {
                self.mark = Some((again, again));
                return Err(error);
            }
        };
        self.index = index;
        self.manifests = manifests;
        // Deleted in the meantime: its mark is set and the next round says so.
        if !self.exists() || self.announced.as_ref() == Some(&revision) {
            return Ok(None);
        }
        self.announced = Some(revision.clone());
        let plan = Box::new(plan);
        Ok(Some(MonitorEvent::WorkspaceChanged {
            name: looked.name,
            revision,
            files: Arc::new(files),
            plan,
        }))
    }
}

/// What one look needs: a copy of what is known, so that changes go on being taken in meanwhile.
pub(super) struct Look {
    name: AppName,
    objects: Objects,
    index_etag: Option<String>,
    index: Option<(String, Arc<WorkspaceIndex>)>,
    manifests: Manifests,
}

/// What came of one look.
pub(super) struct Looked {
    pub(super) name: AppName,
    found: Result<Found, StoreError>,
}

struct Found {
    index: Option<(String, Arc<WorkspaceIndex>)>,
    manifests: Manifests,
    files: Vec<SourceFile>,
    revision: RevisionId,
    plan: Result<Plan, PlanError>,
}

impl Look {
    pub(super) async fn run(self, bucket: Arc<dyn Bucket>, excludes: berth_workspace::Excludes) -> Looked {
        let name = self.name.clone();
        Looked {
            name,
            found: self.find(bucket, &excludes).await,
        }
    }

    async fn find(
        mut self,
        bucket: Arc<dyn Bucket>,
        excludes: &berth_workspace::Excludes,
    ) -> Result<Found, StoreError> {
        let index = self.read_index(&*bucket).await?;
        let mut files = source_files(&self.objects, index.as_ref().map(|(_, index)| &**index));
        files.retain(|file| !excludes.local_only(&file.path));
        let revision = berth_workspace::revision_with(&files, excludes);
        self.manifests
            .retain(|path, (etag, _)| self.objects.get(path).is_some_and(|(_, now)| *now == **etag));
        let mut wanted: BTreeSet<String> = manifest_paths().iter().map(|path| (*path).to_owned()).collect();
        let mut round = 0;
        loop {
            self.read_manifests(&*bucket, &wanted).await?;
            let (plan, missed) = self.plan(&files);
            round += 1;
            if missed.is_empty() || round == ROUNDS {
                return Ok(Found {
                    index,
                    manifests: self.manifests,
                    files,
                    revision,
                    plan,
                });
            }
            wanted = missed;
        }
    }

    /// The plan by the manifests read so far, and those that it asked for and that are there but were not read.
    fn plan(&self, files: &[SourceFile]) -> (Result<Plan, PlanError>, BTreeSet<String>) {
        let missed = std::cell::RefCell::new(BTreeSet::new());
        let read = |path: &str| {
            if let Some((_, bytes)) = self.manifests.get(path) {
                return Some(bytes.to_vec());
            }
            if self.objects.get(path).is_some_and(|(size, _)| *size <= MANIFEST_MAX) {
                missed.borrow_mut().insert(path.to_owned());
            }
            None
        };
        let plan = berth_workspace::plan(&self.name, &Source { files, read: &read });
        (plan, missed.into_inner())
    }

    async fn read_index(&self, bucket: &dyn Bucket) -> Result<Option<(String, Arc<WorkspaceIndex>)>, StoreError> {
        let Some(etag) = &self.index_etag else { return Ok(None) };
        if let Some((known, index)) = &self.index
            && known == etag
        {
            return Ok(Some((known.clone(), Arc::clone(index))));
        }
        let (info, bytes) = match bucket.get(&index::key(self.name.as_str())).await {
            Ok(read) => read,
            // Deleted since: its change is on the way.
            Err(error) if error.is_no_such_key() => return Ok(None),
            Err(error) => return Err(error),
        };
        match WorkspaceIndex::parse(&bytes) {
            Ok(index) => Ok(Some((info.etag, Arc::new(index)))),
            Err(error) => {
                // Without it the workspace has neither execute bits nor symlinks, but it can be served.
                tracing::warn!(app = %self.name, "{error}");
                Ok(None)
            }
        }
    }

    /// Reads those of `wanted` that are there and were not read; how many it read.
    async fn read_manifests(&mut self, bucket: &dyn Bucket, wanted: &BTreeSet<String>) -> Result<usize, StoreError> {
        let missing: Vec<&String> = wanted
            .iter()
            .filter(|path| !self.manifests.contains_key(*path))
            .filter(|path| self.objects.get(path).is_some_and(|(size, _)| *size <= MANIFEST_MAX))
            .collect();
        let name = &self.name;
        let reads = missing.iter().map(|path| bucket.get(&format!("{name}/{path}")));
        let read = futures::future::join_all(reads).await;
        let mut count = 0;
        for (path, read) in missing.into_iter().zip(read) {
            match read {
                Ok((info, bytes)) => {
                    count += 1;
                    self.manifests.insert(path.clone(), (info.etag, bytes));
                }
                Err(error) if error.is_no_such_key() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }
}

/// The files of a workspace: its objects, with the modes and symlinks of its index. Folder markers (`dir/`) are no files.
fn source_files(objects: &Objects, index: Option<&WorkspaceIndex>) -> Vec<SourceFile> {
    let entry = |path: &str| index.and_then(|index| index.entries.get(path));
    let mut files = Vec::with_capacity(objects.len());
    let mut all = objects.iter();
    while let Some((path, (size, etag))) = all.next() {
        if path.is_empty() || path.ends_with('/') {
            continue;
        }
        let executable = entry(path)
            .and_then(|entry| entry.mode)
            .is_some_and(|mode| mode & 0o111 != 0);
        files.push(SourceFile {
            path: path.to_owned(),
            mode: if executable {
                FileMode::Executable
            } else {
                FileMode::Regular
            },
            size: *size,
            content: etag.to_string(),
        });
    }
    let symlinks = index
        .into_iter()
        .flat_map(|index| &index.entries)
        .filter_map(|(path, entry)| {
            let target = entry
                .target
                .as_ref()
                .filter(|_| entry.kind == EntryKind::Symlink && !objects.contains_key(path))?;
            let size = target.len() as u64;
            Some(SourceFile {
                path: path.clone(),
                mode: FileMode::Symlink,
                size,
                content: target.clone(),
            })
        });
    files.extend(symlinks);
    files
}
