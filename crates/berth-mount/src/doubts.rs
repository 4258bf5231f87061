//! What S3 could not be asked about: asked again until it answers.
//!
//! A change made elsewhere is told once. If the look at what it means fails, because S3 is away or slow, the name would be
//! shown wrong for ever; so its key is noted here, and a task of the mount asks again, at a growing pace. So it is with a
//! change at a key where something of ours is on its way, which may be given up before it is sent.

use std::{
    collections::HashSet,
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use parking_lot::Mutex;

use crate::core::Core;

/// The first pause.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest, while S3 does not answer.
const MAX_PAUSE: Duration = Duration::from_secs(4);

/// The keys, and whether the whole bucket is in doubt.
#[derive(Debug, Default)]
pub(crate) struct Doubts {
    keys: Mutex<HashSet<String>>,
    all: AtomicBool,
}

impl Doubts {
    /// What S3 has at `key` is not known.
    pub(crate) fn add(&self, key: &str) {
        self.keys.lock().insert(key.to_owned());
    }

    /// Changes were missed.
    pub(crate) fn add_all(&self) {
        self.all.store(true, Ordering::Relaxed);
    }

    fn is_empty(&self) -> bool {
        !self.all.load(Ordering::Relaxed) && self.keys.lock().is_empty()
    }
}

impl Core {
    /// Asks again. Ends with the mount.
    pub(crate) async fn settle_doubts(self: Arc<Self>) {
        let mut pause = PAUSE;
        while !self.ended.load(Ordering::Relaxed) {
            tokio::time::sleep(pause).await;
            if self.doubts.all.swap(false, Ordering::Relaxed) {
                self.relist().await;
            }
            // Where something of ours is wanted, the request that comes meets what is there; unless it is given up.
            let keys = mem::take(&mut *self.doubts.keys.lock());
            let (wait, ask): (HashSet<_>, HashSet<_>) = keys.into_iter().partition(|key| self.intents.view(key).wanted);
            let core = &self;
            futures::stream::iter(ask)
                .for_each_concurrent(8, |key| async move { core.look_again(&key).await })
                .await;
            pause = if self.doubts.is_empty() {
                PAUSE
            } else {
                MAX_PAUSE.min(pause * 2)
            };
            self.doubts.keys.lock().extend(wait);
        }
    }
}
