//! Which paths never go to S3: the host's `[mount] exclude` for all, and what `NAME/workspace.json` adds for keys below `NAME/`.
//!
//! ```text
//!   tree.rs: workspace.json made, moved, removed ──┐                     ┌── at hand: journal, memory, cache
//!   save.rs: workspace.json saved ─────────────────┴▶ Stale ─▶ heed ─▶ look ── far: fetched by the follower, asked again
//!                                                                        ▼
//!                                       is a key local-only? ◀── Rules: one compiled list per workspace
//! ```
//! - The host's list holds for as long as the daemon runs, so an object it matches is not shown at all. A workspace's own list
//!   changes whenever its file is saved. Therefore it decides about *new* names only, as `.gitignore` does: what S3 has
//!   stays shown and stored, whatever the list says, until it is removed; and what is local stays local until it is saved or
//!   renamed, and goes to S3 then if no rule keeps it here any more.
//! - A file that cannot be read as a `workspace.json` leaves the rules as they were, and is named once in the log. So do one
//!   that S3 does not give at this moment, and one that is an editor's backup for now.
//! - `workspace.json` itself is never local by its own list: the list would be gone with the daemon.
//!
//! Locks: `own` and `stale` are leaves, held for a look-up alone. [`Core::heed_rules`] (`rules/follow.rs`) takes `turn`, then
//! the tree: it is called with no lock held.

mod follow;
mod report;

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use berth_workspace::{Excludes, WorkspaceFile};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::core::Shape;

pub use report::{LocalPath, LocalPaths, LocalShare};

/// The largest `workspace.json` that is read for its rules.
const MAX_FILE: u64 = 64 << 10;

/// Workspaces whose `workspace.json` may be another than the one whose rules hold.
#[derive(Debug, Default)]
pub(crate) struct Stale {
    noted: Mutex<Noted>,
    any: AtomicBool,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Noted {
    count: u64,
    names: BTreeMap<String, u64>,
}

impl Stale {
    /// The workspace's file was made, saved, moved or removed. Cheap: what it means is found out later.
    pub(crate) fn note(&self, workspace: &str) {
        let mut noted = self.noted.lock();
        noted.count += 1;
        let mark = noted.count;
        noted.names.insert(workspace.to_owned(), mark);
        self.any.store(true, Ordering::Release);
        drop(noted);
        self.wake.notify_one();
    }

    /// The workspace whose file has this key was saved, if it is one.
    pub(crate) fn note_key(&self, key: &str) {
        if let Some(workspace) = workspace_of_file(key) {
            self.note(workspace);
        }
    }

    fn is_any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    fn all(&self) -> Vec<(String, u64)> {
        let noted = self.noted.lock();
        noted.names.iter().map(|(name, mark)| (name.clone(), *mark)).collect()
    }

    /// What `all` gave was looked at. Those noted again meanwhile stay.
    fn done(&self, looked: &[(String, u64)]) {
        let mut noted = self.noted.lock();
        for (name, mark) in looked {
            if noted.names.get(name) == Some(mark) {
                noted.names.remove(name);
            }
        }
        if noted.names.is_empty() {
            self.any.store(false, Ordering::Release);
        }
    }
}

/// The workspace that a key is the `workspace.json` of.
pub(crate) fn workspace_of_file(key: &str) -> Option<&str> {
    let workspace = key.strip_suffix(WorkspaceFile::PATH)?.strip_suffix('/')?;
    (!workspace.is_empty() && !workspace.contains('/')).then_some(workspace)
}

/// The rule by which a path is local-only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "from", content = "pattern")]
pub enum Rule {
    /// A pattern of the host's `[mount] exclude`.
    Host(String),
    /// A pattern of the workspace's `workspace.json`.
    Workspace(String),
    /// The name is one that editors and tools use for files of a moment.
    Temporary,
    /// A FIFO, a socket or a device: no object can be one.
    Special,
    /// No rule any more: it goes to S3 when it is saved or renamed.
    NoLonger,
}

/// What is known of one workspace's list.
#[derive(Debug, Default, Clone)]
struct Own {
    /// The list in force.
    list: Option<Arc<Excludes>>,
    /// Which look at the file it is from.
    mark: u64,
    /// The text that was told to be unreadable, as a hash.
    told: Option<u64>,
}

/// The rules of one mount.
#[derive(Debug)]
pub(crate) struct Rules {
    host: Excludes,
    own: RwLock<HashMap<String, Own>>,
    pub(crate) stale: Arc<Stale>,
    /// One at a time takes the stale ones; who waits for it finds their rules in force.
    turn: Mutex<()>,
    /// Files that are only in S3, by workspace, and the mark of the look.
    far: Mutex<BTreeMap<String, u64>>,
    /// Whether a pattern was ever taken away, so that local-only files may be such that no rule keeps here.
    narrowed: AtomicBool,
}

impl Rules {
    pub(crate) fn new(host: Excludes, stale: Arc<Stale>) -> Self {
        Self {
            host,
            own: RwLock::default(),
            stale,
            turn: Mutex::default(),
            far: Mutex::default(),
            narrowed: AtomicBool::new(false),
        }
    }

    /// Whether the host's list, or what a thing is, keeps `key` out of S3.
    pub(crate) fn by_host(&self, key: &str, shape: Shape) -> bool {
        shape == Shape::Special
            || (shape != Shape::Dir && self.host.local_only(key))
            // A link called node_modules stands for the folder.
            || (shape != Shape::File && self.host.local_only_dir(key))
    }

    /// Whether the workspace's own list matches `key`.
    pub(crate) fn by_workspace(&self, key: &str, shape: Shape) -> bool {
        let Some((list, path)) = self.list_of(key) else {
            return false;
        };
        (shape != Shape::Dir && list.excluded(path)) || (shape != Shape::File && list.excluded_dir(path))
    }

    /// Whether a new name `key` is local-only.
    pub(crate) fn local(&self, key: &str, shape: Shape) -> bool {
        self.by_host(key, shape) || self.by_workspace(key, shape)
    }

    /// Whether the name is one of a moment, by whoever's list.
    pub(crate) fn transient(&self, key: &str) -> bool {
        self.host.transient(key)
    }

    /// Why a local-only path is that.
    pub(crate) fn rule(&self, key: &str, shape: Shape) -> Rule {
        let told = |list: &Excludes, path: &str| {
            let as_file = (shape != Shape::Dir).then(|| list.excluding(path)).flatten();
            let as_dir = || (shape != Shape::File).then(|| list.excluding(&format!("{path}/")).map(str::to_owned));
            as_file.map(str::to_owned).or_else(|| as_dir().flatten())
        };
        if let Some(pattern) = told(&self.host, key) {
            return Rule::Host(pattern);
        }
        if let Some((list, path)) = self.list_of(key)
            && let Some(pattern) = told(&list, path)
        {
            return Rule::Workspace(pattern);
        }
        match shape {
            Shape::Special => Rule::Special,
            Shape::File | Shape::Symlink if self.transient(key) => Rule::Temporary,
            _ => Rule::NoLonger,
        }
    }

    fn list_of<'a>(&self, key: &'a str) -> Option<(Arc<Excludes>, &'a str)> {
        let (workspace, path) = key.split_once('/')?;
        if path == WorkspaceFile::PATH {
            return None;
        }
        let list = self.own.read().get(workspace)?.list.clone()?;
        Some((list, path))
    }

    /// Whether local-only files may have lost the rule that kept them here.
    pub(crate) fn narrowed(&self) -> bool {
        self.narrowed.load(Ordering::Relaxed)
    }

    /// The workspace is called `new` from now on.
    pub(crate) fn renamed(&self, old: &str, new: &str) {
        let mut own = self.own.write();
        let list = own.get_mut(old).and_then(|own| own.list.take());
        let there = own.entry(new.to_owned()).or_default();
        if there.list.is_some() || list.is_some() {
            self.narrowed.store(true, Ordering::Relaxed);
        }
        there.list = list;
    }

    /// The workspace has no `workspace.json` any more.
    fn removed(&self, workspace: &str, mark: u64) {
        let mut own = self.own.write();
        if let Some(own) = own.get_mut(workspace).filter(|own| own.mark <= mark) {
            if own.list.is_some() {
                self.narrowed.store(true, Ordering::Relaxed);
            }
            *own = Own { mark, ..Own::default() };
        }
    }

    /// The workspace's `workspace.json` is `text`, as of the look `mark`; `None`: too long to be read.
    fn read(&self, workspace: &str, mark: u64, text: Option<&[u8]>) {
        let found = text.filter(|text| text.len() as u64 <= MAX_FILE).map_or_else(
            || Err(format!("{} is larger than {} KiB", WorkspaceFile::PATH, MAX_FILE >> 10)),
            |text| {
                WorkspaceFile::parse(text)
                    .map_err(|error| error.to_string())
                    .and_then(|file| Excludes::new(&file.exclude).map_err(|error| error.to_string()))
            },
        );
        let mut own = self.own.write();
        let own = own.entry(workspace.to_owned()).or_default();
        if own.mark > mark {
            return;
        }
        own.mark = mark;
        match found {
            Ok(list) => {
                let kept = |pattern| list.patterns().contains(pattern);
                let old = own.list.as_ref().map(|old| old.patterns()).unwrap_or_default();
                if !old.iter().all(kept) {
                    self.narrowed.store(true, Ordering::Relaxed);
                }
                own.list = (!list.patterns().is_empty()).then(|| Arc::new(list));
                own.told = None;
            }
            Err(why) => {
                let mut hasher = DefaultHasher::new();
                text.hash(&mut hasher);
                if own.told.replace(hasher.finish()) != Some(hasher.finish()) {
                    tracing::warn!(workspace, "what stays out of S3 is as before: {why}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
