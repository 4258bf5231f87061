//! What an earlier process left in the journal becomes intents again.

use std::sync::Arc;

use berth_workspace::index::IndexEntry;

use super::{Intents, META, OBJECT, Record, Want};
use crate::journal::{Held, Recovered};

/// What an earlier process left, for the tree.
#[derive(Debug)]
pub(crate) enum Restored {
    Object {
        key: String,
        want: Want,
        content: Option<Arc<Held>>,
        mtime_ns: i64,
        seq: u64,
    },
    Meta {
        key: String,
        entry: Option<IndexEntry>,
    },
}

impl Intents {
    /// Takes what an earlier process left; gives it for the tree.
    pub(crate) fn recover(&self, slots: Vec<Recovered>) -> Vec<Restored> {
        let mut inner = self.inner.lock();
        let mut restored = Vec::new();
        for slot in slots {
            if let Some(path) = slot.slot.strip_prefix(META) {
                match serde_json::from_slice(&slot.value) {
                    Ok(entry) => {
                        inner.metas.insert(path.to_owned(), slot.seq);
                        restored.push(Restored::Meta {
                            key: path.to_owned(),
                            entry,
                        });
                    }
                    Err(error) => tracing::error!(path, %error, "the journal has a record that cannot be read"),
                }
            } else if let Some(key) = slot.slot.strip_prefix(OBJECT) {
                match serde_json::from_slice::<Record>(&slot.value) {
                    Ok(record) => restored.push(inner.restore(key, record, slot.held, slot.seq)),
                    Err(error) => tracing::error!(key, %error, "the journal has a record that cannot be read"),
                }
            }
        }
        restored
    }
}
