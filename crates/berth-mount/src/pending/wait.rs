//! Waiting for S3.

use super::{Inner, Intents};

impl Intents {
    /// Returns when S3 has what batch `seq` wanted at `key`.
    pub(crate) async fn wait_done(&self, key: &str, seq: u64) {
        self.wait(|inner| !inner.intents.contains_key(key) || inner.own.get(key).is_some_and(|own| own.done >= seq))
            .await;
    }

    /// Returns when no request for `key` is under way.
    pub(crate) async fn wait_idle(&self, key: &str) {
        self.wait(|inner| !inner.busy.contains(key)).await;
    }

    /// Returns when nothing is wanted at `key`, and no request is under way.
    pub(crate) async fn wait_free(&self, key: &str) {
        self.wait(|inner| !inner.intents.contains_key(key) && !inner.busy.contains(key))
            .await;
    }

    /// Returns when S3 has all.
    pub(crate) async fn wait_empty(&self) {
        self.wait(|inner| inner.intents.is_empty()).await;
    }

    /// Returns when S3 has all, indexes too.
    pub(crate) async fn wait_settled(&self) {
        self.wait(|inner| inner.intents.is_empty() && inner.metas.is_empty())
            .await;
    }

    async fn wait(&self, mut holds: impl FnMut(&Inner) -> bool) {
        loop {
            let done = self.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if holds(&self.inner.lock()) {
                return;
            }
            done.await;
        }
    }
}
