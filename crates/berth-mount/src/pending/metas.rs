//! What the workspace indexes in S3 still lack: by path, the batch that said it.

use std::collections::BTreeSet;

use super::{Intents, META, cleared};
use crate::tree::app_of;

impl Intents {
    /// Whether the journal says something about the index entry of `key`, or the index about a file that was there.
    pub(crate) fn has_meta(&self, key: &str) -> bool {
        let inner = self.inner.lock();
        inner.metas.contains_key(key) || inner.aside.get(key).is_some_and(|aside| aside.entry.is_some())
    }

    /// The number to give to [`Intents::metas_written`] for an index worked out now.
    pub(crate) fn meta_mark(&self) -> u64 {
        self.inner.lock().metas.values().copied().max().unwrap_or(0)
    }

    /// S3 has the index of `app` with all that was entered up to `mark`.
    pub(crate) fn metas_written(&self, app: &str, mark: u64) {
        let mut inner = self.inner.lock();
        let written: Vec<String> = inner
            .metas_of(app)
            .filter(|(_, seq)| *seq <= mark)
            .map(|(key, _)| key)
            .collect();
        if written.is_empty() {
            return;
        }
        for key in &written {
            inner.metas.remove(key);
        }
        self.clear(written.iter().map(|key| cleared(META, key)).collect());
        drop(inner);
        self.done.notify_waiters();
    }

    /// Workspaces whose index S3 lacks.
    pub(crate) fn workspaces_with_metas(&self) -> BTreeSet<String> {
        let inner = self.inner.lock();
        inner.metas.keys().map(|key| app_of(key).to_owned()).collect()
    }
}
