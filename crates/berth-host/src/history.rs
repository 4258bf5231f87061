//! What happened: the last events of the host, for those who come later, and a feed for those who listen.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::snapshot::HostEvent;

/// Events kept for those who come later.
const KEPT: usize = 1000;

pub(crate) struct History {
    kept: Mutex<VecDeque<HostEvent>>,
    feed: broadcast::Sender<HostEvent>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self {
            kept: Mutex::new(VecDeque::new()),
            feed: broadcast::Sender::new(KEPT),
        }
    }

    pub(crate) fn add(&self, event: HostEvent) {
        tracing::info!(app = %event.app, kind = ?event.kind, "{}", event.text);
        let mut kept = self.kept.lock();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        // Sent under the lock, so that the feed and the list have one order. Nobody listening is fine.
        let _ = self.feed.send(event);
    }

    pub(crate) fn recent(&self) -> Vec<HostEvent> {
        self.kept.lock().iter().cloned().collect()
    }

    pub(crate) fn feed(&self) -> broadcast::Receiver<HostEvent> {
        self.feed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::snapshot::EventKind;

    #[test]
    fn the_last_thousand_events_are_kept_in_order() {
        let history = History::new();
        for n in 0..1500 {
            history.add(HostEvent::now("app", EventKind::Saved, n.to_string()));
        }
        let recent = history.recent();
        assert_eq!(
            (recent.len(), recent[0].text.as_str(), recent[999].text.as_str()),
            (1000, "500", "1499")
        );
    }
}
