//! Writes of our own that are no intent: what the journal cannot hold.

use std::{sync::Arc, time::Instant};

use super::{Intents, Key};
use crate::core::Core;

/// While this is there, the key is busy: no request for it is made, and its changes in the feed wait to be known as ours.
pub(crate) struct OwnWrite {
    core: Arc<Core>,
    key: Key,
}

impl OwnWrite {
    /// It took place.
    pub(crate) fn written(self) {
        let mut inner = self.core.intents.inner.lock();
        let own = inner.own.entry(self.key.clone()).or_default();
        own.count += 1;
        own.at = Some(Instant::now());
    }
}

impl Drop for OwnWrite {
    fn drop(&mut self) {
        self.core.intents.end_own(&self.key);
    }
}

impl Core {
    /// Returns when S3 has what was wanted at `key` before, and nothing is under way there.
    pub(crate) async fn begin_own(self: &Arc<Self>, key: &str) -> OwnWrite {
        while !self.intents.take_own(key) {
            self.intents.wait_free(key).await;
        }
        OwnWrite {
            core: self.clone(),
            key: Key::from(key),
        }
    }
}

impl Intents {
    fn take_own(&self, key: &str) -> bool {
        let mut inner = self.inner.lock();
        !inner.intents.contains_key(key) && inner.busy.insert(Key::from(key))
    }

    fn end_own(&self, key: &Key) {
        let mut inner = self.inner.lock();
        inner.busy.remove(key);
        inner.queue(key);
        drop(inner);
        self.done.notify_waiters();
        self.wake.notify_one();
    }
}
