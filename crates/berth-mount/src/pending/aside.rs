//! Names whose files are editors' backups now.

use berth_workspace::index::IndexEntry;

use super::{Intents, Key};

/// A file that became an editor's backup, in memory alone: S3 keeps what it has at the old name until there is a new file, or
/// the backup goes too. Should the process end before that, the file has its old name again.
#[derive(Debug)]
pub(super) struct Aside {
    /// What S3 has there; `None`: what the key's intent brings there.
    pub(super) etag: Option<String>,
    /// What the index says of it.
    pub(super) entry: Option<IndexEntry>,
}

impl Intents {
    /// Whether S3 keeps this version at `key` only because its file is an editor's backup. Another version is somebody
    /// else's: from now on the name is theirs.
    pub(crate) fn keeps_for_backup(&self, key: &str, etag: Option<&str>) -> bool {
        let mut inner = self.inner.lock();
        if inner.intents.contains_key(key) {
            return inner.aside.contains_key(key);
        }
        let kept = inner.aside.get(key).is_some_and(|aside| aside.etag.as_deref() == etag);
        if !kept {
            inner.aside.remove(key);
        }
        kept
    }

    /// Whether the file at `key` is an editor's backup now, for which S3 keeps what it has there.
    pub(crate) fn is_aside(&self, key: &str) -> bool {
        self.inner.lock().aside.contains_key(key)
    }

    /// What the index of `app` says of files that are editors' backups now, by path within the workspace.
    pub(crate) fn entries_aside(&self, app: &str) -> Vec<(String, IndexEntry)> {
        let inner = self.inner.lock();
        let within = |key: &Key| key.strip_prefix(app)?.strip_prefix('/').map(str::to_owned);
        let all = inner.aside.iter();
        all.filter_map(|(key, aside)| Some((within(key)?, aside.entry.clone()?)))
            .collect()
    }
}
