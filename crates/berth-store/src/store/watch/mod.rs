//! The changes of a bucket whose server is not our own: our own writes at once, everybody else's by looking.
//!
//! ```text
//!   event stream (events.rs) ─┐ "look at KEY"                      ┌─▶ subscribers
//!   other hosts (hints/) ─────┼──▶ to_look ──HEAD (look.rs)──┐    │
//!   a doubtful LIST entry ────┘                              ├─▶ known ── what differs is published
//!   LIST, at an adaptive pace (poll.rs) ─────────────────────┘
//! ```
//! `known` is what was published so far. Events and hints only say where to look; LIST is the truth that misses nothing.
//!
//! What S3 answers may be older than what we know: our own writes go on while an answer is on its way, and old servers list
//! what was so a while ago. So a key that was written or published within the last minute is never believed from a LIST that
//! says otherwise: it is looked at by HEAD; and a HEAD is believed only if nothing was written or published for its key
//! since it was sent. So an own write is published once, and nobody sees it undone by an older answer.

mod known;
mod look;
mod pace;
mod poll;

use std::{sync::Arc, time::Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

use self::known::{Comparison, State};
use super::{Inner, StoreConfig, events};
use crate::{Change, ObjectInfo};

/// Changes that a slow listener may be behind before it has to list anew.
const CAPACITY: usize = 16 * 1024;

/// Who tells of changes.
#[derive(Debug)]
pub(super) enum Changes {
    /// The embedded server; never read here, so that every subscriber sees its own lag.
    Fed(Mutex<broadcast::Receiver<Change>>),
    /// Ourselves, by looking.
    Watched(Arc<Watched>),
}

/// What was published, and where to look next.
#[derive(Debug)]
pub(super) struct Watched {
    sender: broadcast::Sender<Change>,
    state: Mutex<State>,
    /// Keys wait to be looked at.
    look: Notify,
    /// A LIST is wanted before its time.
    list: Notify,
    /// What an own write has changed, for the other hosts.
    own: broadcast::Sender<String>,
}

/// What somebody says about a key; never published by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    /// It changed in some way.
    Changed,
    /// It has this ETag now.
    Is(String),
    /// It is gone.
    Gone,
}

/// A key to be looked at, and the moment from which on the answer is believed.
#[derive(Debug)]
pub(super) struct Look {
    key: String,
    mark: u64,
}

impl Changes {
    pub(super) fn fed(feed: broadcast::Receiver<Change>) -> Self {
        Self::Fed(Mutex::new(feed))
    }

    pub(super) fn watched() -> Self {
        Self::Watched(Arc::new(Watched {
            sender: broadcast::channel(CAPACITY).0,
            state: Mutex::default(),
            look: Notify::new(),
            list: Notify::new(),
            own: broadcast::channel(CAPACITY).0,
        }))
    }

    /// For a client that asks for no changes: nothing is watched and nothing is kept in mind.
    pub(super) fn none() -> Self {
        Self::fed(broadcast::channel(1).1)
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Change> {
        match self {
            Self::Fed(feed) => feed.lock().resubscribe(),
            Self::Watched(watched) => watched.sender.subscribe(),
        }
    }

    /// Marks an own write as under way until the guard is dropped.
    pub(super) fn writing(&self, key: &str) -> Option<Writing<'_>> {
        match self {
            Self::Fed(_) => None,
            Self::Watched(watched) => {
                watched.state.lock().begin_write(key);
                Some(Writing {
                    watched,
                    key: key.to_owned(),
                    done: false,
                })
            }
        }
    }

    pub(super) fn watch(&self) -> Option<&Arc<Watched>> {
        match self {
            Self::Fed(_) => None,
            Self::Watched(watched) => Some(watched),
        }
    }
}

/// An own write under way.
pub(super) struct Writing<'a> {
    watched: &'a Watched,
    key: String,
    done: bool,
}

impl Writing<'_> {
    /// The write took place: publishes it.
    pub(super) fn done(mut self, change: Change) {
        self.done = true;
        let mut state = self.watched.state.lock();
        state.learn(&change, Instant::now());
        // Under the lock, so that changes of one key go out in their order. Nobody listening is no error.
        let _ = self.watched.sender.send(change);
        let _ = self.watched.own.send(self.key.clone());
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        // Refused or cut off: what is there now is not known, and worth a look.
        let unknown = !self.done;
        if self.watched.state.lock().end_write(&self.key, unknown) {
            self.watched.look.notify_one();
        }
    }
}

impl Watched {
    /// Takes a page of the first LIST as known, without publishing it: listeners list for themselves when they start.
    pub(super) fn prime(&self, page: &[ObjectInfo]) {
        self.state.lock().prime(page);
    }

    /// Somebody says that `key` changed: it is looked at, unless that is known already.
    pub(super) fn hear(&self, key: &str, claim: Claim) {
        let mut state = self.state.lock();
        if state.hear(key, claim) {
            drop(state);
            self.look.notify_one();
        } else if std::mem::take(&mut state.too_many) {
            drop(state);
            self.list_soon();
        }
    }

    /// Somebody missed changes and does not know which.
    pub(super) fn list_soon(&self) {
        self.list.notify_one();
    }

    /// Whether somebody tells of changes at once, so that LIST need not be quick.
    pub(super) fn set_told(&self, told: bool) {
        self.state.lock().told = told;
    }

    pub(super) fn is_told(&self) -> bool {
        self.state.lock().told
    }

    /// The keys of own writes, each when it has taken place.
    pub(super) fn own_writes(&self) -> broadcast::Receiver<String> {
        self.own.subscribe()
    }

    /// A LIST is about to be sent.
    fn begin_list(&self) {
        self.state.lock().begin_list();
    }

    /// Publishes how the objects below a prefix differ from what is known of them.
    fn publish_differences(&self, compared: Comparison) {
        let mut state = self.state.lock();
        let (changes, doubtful) = state.differences(compared);
        for change in changes {
            self.publish(&mut state, change);
        }
        let mut look = false;
        for key in doubtful {
            look |= state.hear(&key, Claim::Changed);
        }
        // What did not fit is left to the next LIST.
        state.too_many = false;
        drop(state);
        if look {
            self.look.notify_one();
        }
    }

    /// What a look has found; an answer that may be outdated is asked for again.
    fn looked(&self, look: &Look, found: Option<ObjectInfo>) {
        let mut state = self.state.lock();
        if !state.is_current(look) {
            if state.hear(&look.key, Claim::Changed) {
                drop(state);
                self.look.notify_one();
            }
            return;
        }
        if let Some(change) = state.difference(&look.key, found) {
            self.publish(&mut state, change);
        }
    }

    /// A change made elsewhere.
    fn publish(&self, state: &mut State, change: Change) {
        state.stirred = true;
        state.learn(&change, Instant::now());
        let _ = self.sender.send(change);
    }
}

/// Starts to look for the changes that others make, if nobody feeds them to us. Ends when `stop` is cancelled.
pub(super) fn start(inner: &Arc<Inner>, cfg: &StoreConfig, stop: &CancellationToken) {
    let Some(watched) = inner.changes.watch() else { return };
    let every = cfg.poll_interval.max(std::time::Duration::from_millis(10));
    let watch = || (Arc::downgrade(inner), Arc::clone(watched));
    let (store, watched) = watch();
    tokio::spawn(
        stop.clone()
            .run_until_cancelled_owned(poll::poll(store, watched, every)),
    );
    let (store, watched) = watch();
    tokio::spawn(stop.clone().run_until_cancelled_owned(look::look(store, watched)));
    let (store, watched) = watch();
    tokio::spawn(stop.clone().run_until_cancelled_owned(events::follow(store, watched)));
}

#[cfg(test)]
mod tests;
