//! Looking at single keys by HEAD: those that an event or another host has named, and those a LIST cannot be believed about.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures::StreamExt as _;

use super::{Inner, Look, Watched};

/// Looks on their way at once.
const AT_ONCE: usize = 16;
/// An answer that took longer is not waited for: what has been published meanwhile would be forgotten before it comes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks at every key that is to be looked at, until the last [`super::super::Store`] of this bucket is gone.
pub(super) async fn look(store: Weak<Inner>, watched: Arc<Watched>) {
    loop {
        watched.look.notified().await;
        let looks = watched.state.lock().take_looks();
        futures::stream::iter(looks)
            .for_each_concurrent(AT_ONCE, |look| async {
                let Some(inner) = store.upgrade() else { return };
                look_at(&inner, &watched, look).await;
            })
            .await;
    }
}

async fn look_at(inner: &Inner, watched: &Watched, look: Look) {
    match tokio::time::timeout(PATIENCE, inner.head(&look.key)).await {
        Ok(Ok(found)) => watched.looked(&look, found),
        // The next LIST finds it.
        Ok(Err(error)) => tracing::debug!(key = look.key, %error, "cannot look at a key that is said to have changed"),
        Err(_) => tracing::debug!(
            key = look.key,
            "no answer in time about a key that is said to have changed"
        ),
    }
}
