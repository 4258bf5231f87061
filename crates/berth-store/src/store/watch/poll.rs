//! LIST and comparison: the truth that misses nothing, at a pace that suits what happens in the bucket.
//!
//! The whole bucket is listed at least once in the configured interval. In between, while others are at work, a bucket of
//! more than one page is not listed whole: only the workspaces where something changed lately are, each by its prefix.
//!
//! A LIST that fails half-way is thrown away, so that no object counts as removed for being on a page that never came.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{
    Inner, Watched,
    known::Comparison,
    pace::{Pace, Shown},
};
use crate::{ObjectInfo, Result};

/// Up to this many objects a whole LIST is one request.
const PAGE: usize = 1000;
/// A workspace where nothing changed for this long is not listed for itself.
const ACTIVE: Duration = Duration::from_secs(120);
/// So many objects may be gone at once without a second LIST saying so too.
const FEW: usize = 10;

/// Lists until the last [`super::super::Store`] of this bucket is gone.
pub(super) async fn poll(store: Weak<Inner>, watched: Arc<Watched>, every: Duration) {
    let mut pace = Pace::new(every);
    let mut pause = pace.least();
    let mut whole = Instant::now();
    let mut failing = false;
    loop {
        let asked = tokio::select! {
            () = tokio::time::sleep(pause) => false,
            () = watched.list.notified() => true,
        };
        let Some(inner) = store.upgrade() else { return };
        let due = asked || whole.elapsed() + pace.least() >= pace.most();
        let began = Instant::now();
        let prefixes = watched.prefixes(due);
        let listed = list(&inner, &watched, &prefixes).await;
        drop(inner);
        match listed {
            Ok(()) => {
                if prefixes.iter().any(String::is_empty) {
                    whole = began;
                }
                failing = false;
            }
            // Once, not each time: an outage may be long.
            Err(error) if !failing => {
                tracing::warn!(%error, "cannot look for changes in the bucket; trying again");
                failing = true;
            }
            Err(_) => {}
        }
        let stirred = watched.state.lock().take_stirred();
        let shown = match (watched.is_told(), stirred) {
            (true, _) => Shown::Told,
            (false, true) => Shown::Changes,
            (false, false) => Shown::Nothing,
        };
        pause = pace.after(shown, began.elapsed());
        if asked {
            // Who asks for LISTs all the time gets them with the shortest pause.
            tokio::time::sleep(pace.least()).await;
        }
    }
}

async fn list(inner: &Inner, watched: &Watched, prefixes: &[String]) -> Result<()> {
    for prefix in prefixes {
        watched.begin_list();
        let mut compared = compare(inner, watched, prefix).await?;
        if watched.is_mass_removal(&compared) {
            tracing::warn!(
                prefix,
                objects = compared.listed,
                "most objects are gone from the bucket; asking once more"
            );
            compared = compare(inner, watched, prefix).await?;
        }
        watched.publish_differences(compared);
    }
    Ok(())
}

/// Compares page by page, so that never more than one is held; a server that lists in another order than S3's is heard out first.
async fn compare(inner: &Inner, watched: &Watched, prefix: &str) -> Result<Comparison> {
    let mut compared = Comparison::below(prefix);
    inner
        .each_page(prefix, |page| watched.state.lock().compare(&mut compared, page))
        .await?;
    match compared.disordered {
        true => Ok(watched.compare_whole(prefix, inner.list(prefix).await?)),
        false => Ok(compared),
    }
}

impl Watched {
    /// What to list: everything, or the busy workspaces alone.
    fn prefixes(&self, due: bool) -> Vec<String> {
        let whole = || vec![String::new()];
        let mut state = self.state.lock();
        let all = state.count("");
        if due || all <= PAGE {
            return whole();
        }
        let active = state.active(ACTIVE);
        let theirs: usize = active.iter().map(|prefix| state.count(prefix)).sum();
        if theirs.saturating_mul(2) > all {
            whole()
        } else {
            active
        }
    }

    fn is_mass_removal(&self, compared: &Comparison) -> bool {
        compared.listed * 2 + FEW < self.state.lock().count(compared.prefix())
    }

    /// Compares all there is below `prefix`, in whatever order.
    pub(super) fn compare_whole(&self, prefix: &str, mut listed: Vec<ObjectInfo>) -> Comparison {
        listed.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let mut compared = Comparison::below(prefix);
        self.state.lock().compare(&mut compared, listed);
        compared
    }
}
