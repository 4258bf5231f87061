//! The changes of a bucket whose server has no feed: our own writes at once, everybody else's by LIST and comparison.
//!
//! `known` is what was published so far. A poll publishes where LIST differs from it. While a LIST is on its way our own
//! writes go on, and its pages may show them or not: a key that we wrote, or were writing, at any moment since the LIST
//! began is left for the next poll. So an own write is published once, and nobody sees it undone by an older LIST.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::Inner;
use crate::{Change, ObjectInfo};

/// Changes that a slow listener may be behind before it has to list anew.
const CAPACITY: usize = 16 * 1024;

/// Who tells of changes.
#[derive(Debug)]
pub(super) enum Changes {
    /// The embedded server; never read here, so that every subscriber sees its own lag.
    Fed(Mutex<broadcast::Receiver<Change>>),
    Polled(Polled),
}

/// What was published, and which keys a LIST under way cannot be believed about.
#[derive(Debug)]
pub(super) struct Polled {
    sender: broadcast::Sender<Change>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<String, (String, u64)>,
    /// Keys of own writes under way, and how many of each.
    writing: HashMap<String, usize>,
    /// Keys of own writes since the LIST under way began.
    touched: HashSet<String>,
}

impl Changes {
    pub(super) fn fed(feed: broadcast::Receiver<Change>) -> Self {
        Self::Fed(Mutex::new(feed))
    }

    pub(super) fn polled() -> Self {
        Self::Polled(Polled {
            sender: broadcast::channel(CAPACITY).0,
            state: Mutex::default(),
        })
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Change> {
        match self {
            Self::Fed(feed) => feed.lock().resubscribe(),
            Self::Polled(polled) => polled.sender.subscribe(),
        }
    }

    /// Marks an own write as under way until the guard is dropped.
    pub(super) fn writing(&self, key: &str) -> Option<Writing<'_>> {
        match self {
            Self::Fed(_) => None,
            Self::Polled(polled) => {
                let mut state = polled.state.lock();
                *state.writing.entry(key.to_owned()).or_default() += 1;
                state.touched.insert(key.to_owned());
                Some(Writing {
                    polled,
                    key: key.to_owned(),
                })
            }
        }
    }
}

/// An own write under way.
pub(super) struct Writing<'a> {
    polled: &'a Polled,
    key: String,
}

impl Writing<'_> {
    /// The write took place: publishes it.
    pub(super) fn done(&self, change: Change) {
        let mut state = self.polled.state.lock();
        match &change {
            Change::Put(info) => {
                state.known.insert(info.key.clone(), (info.etag.clone(), info.size));
            }
            Change::Deleted { key } => {
                state.known.remove(key);
            }
        }
        // Under the lock, so that changes of one key go out in their order. Nobody listening is no error.
        let _ = self.polled.sender.send(change);
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut state = self.polled.state.lock();
        if let Some(count) = state.writing.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                state.writing.remove(&self.key);
            }
        }
        state.touched.insert(self.key.clone());
    }
}

impl Polled {
    /// Call before each LIST.
    pub(super) fn begin(&self) {
        let mut state = self.state.lock();
        state.touched = state.writing.keys().cloned().collect();
    }

    /// Takes the first LIST as known, without publishing it: listeners list for themselves when they start.
    pub(super) fn prime(&self, listed: Vec<ObjectInfo>) {
        self.state.lock().known = listed.into_iter().map(|o| (o.key, (o.etag, o.size))).collect();
    }

    /// Publishes how `listed` differs from what is known.
    pub(super) fn compare(&self, listed: Vec<ObjectInfo>) {
        let mut state = self.state.lock();
        let mut gone = std::mem::take(&mut state.known);
        let mut known = BTreeMap::new();
        let mut changes = Vec::new();
        for object in listed {
            let old = gone.remove(&object.key);
            if state.touched.contains(&object.key) {
                known.extend(old.map(|o| (object.key, o)));
                continue;
            }
            let new = (object.etag.clone(), object.size);
            if old.as_ref() != Some(&new) {
                changes.push(Change::Put(object.clone()));
            }
            known.insert(object.key, new);
        }
        for (key, old) in gone {
            if state.touched.contains(&key) {
                known.insert(key, old);
            } else {
                changes.push(Change::Deleted { key });
            }
        }
        state.known = known;
        for change in changes {
            let _ = self.sender.send(change);
        }
    }
}

/// Polls until the last [`super::Store`] of this bucket is gone.
pub(super) async fn poll(store: Weak<Inner>, every: Duration) {
    let mut failing = false;
    loop {
        tokio::time::sleep(every).await;
        let Some(inner) = store.upgrade() else { return };
        let Changes::Polled(polled) = &inner.changes else {
            return;
        };
        polled.begin();
        match inner.list("").await {
            Ok(listed) => {
                polled.compare(listed);
                failing = false;
            }
            // Once, not each time: an outage may be long.
            Err(error) if !failing => {
                tracing::warn!(%error, "cannot look for changes in the bucket; trying again");
                failing = true;
            }
            Err(_) => {}
        }
    }
}

/// Starts the polling of `inner`'s bucket, if its changes have to be polled.
pub(super) fn start(inner: &Arc<Inner>, every: Duration) {
    if matches!(inner.changes, Changes::Polled(_)) {
        tokio::spawn(poll(Arc::downgrade(inner), every));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::time::UNIX_EPOCH;

    fn object(key: &str, etag: &str) -> ObjectInfo {
        ObjectInfo {
            key: key.to_owned(),
            size: 1,
            etag: etag.to_owned(),
            modified: UNIX_EPOCH,
        }
    }

    fn drain(receiver: &mut broadcast::Receiver<Change>) -> Vec<Change> {
        std::iter::from_fn(|| receiver.try_recv().ok()).collect()
    }

    #[test]
    fn an_own_write_is_published_once_and_an_older_list_does_not_undo_it() {
        let changes = Changes::polled();
        let mut seen = changes.subscribe();
        let Changes::Polled(polled) = &changes else {
            unreachable!()
        };
        polled.prime(vec![object("old", "1")]);

        polled.begin();
        let writing = changes.writing("new").unwrap();
        writing.done(Change::Put(object("new", "2")));
        drop(writing);
        // The LIST was answered before the write took place.
        polled.compare(vec![object("old", "1")]);
        assert_eq!(drain(&mut seen), [Change::Put(object("new", "2"))]);

        polled.begin();
        polled.compare(vec![object("new", "2"), object("old", "1")]);
        assert_eq!(drain(&mut seen), []);
    }

    #[test]
    fn a_write_under_way_when_the_list_begins_is_left_for_the_next_poll() {
        let changes = Changes::polled();
        let mut seen = changes.subscribe();
        let Changes::Polled(polled) = &changes else {
            unreachable!()
        };
        let writing = changes.writing("k").unwrap();
        polled.begin();
        polled.compare(vec![object("k", "1")]);
        assert_eq!(drain(&mut seen), []);
        // Cut off: whether it took place is not known, but the next poll tells.
        drop(writing);
        polled.begin();
        polled.compare(vec![object("k", "1")]);
        assert_eq!(drain(&mut seen), [Change::Put(object("k", "1"))]);
    }

    #[test]
    fn what_others_put_replaced_and_deleted_is_published() {
        let changes = Changes::polled();
        let mut seen = changes.subscribe();
        let Changes::Polled(polled) = &changes else {
            unreachable!()
        };
        polled.prime(vec![object("a", "1"), object("b", "1"), object("c", "1")]);
        polled.begin();
        polled.compare(vec![object("a", "1"), object("b", "2"), object("d", "1")]);
        let wanted = [
            Change::Put(object("b", "2")),
            Change::Put(object("d", "1")),
            Change::Deleted { key: "c".to_owned() },
        ];
        assert_eq!(drain(&mut seen), wanted);
    }
}
