//! What the edge counts. Plain atomics: read them with [`Counters::snapshot`], whoever publishes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// The edge's counters since its start.
#[derive(Debug, Default)]
pub struct Counters {
    pub(crate) connections: AtomicU64,
    pub(crate) open_connections: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) open_requests: AtomicU64,
    pub(crate) held: AtomicU64,
    pub(crate) held_now: AtomicU64,
    pub(crate) held_ms: AtomicU64,
    pub(crate) clients_left: AtomicU64,
    pub(crate) connect_retries: AtomicU64,
    pub(crate) tunnels: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    /// By hundreds of the status: 1xx (tunnels) to 5xx; the first one is for requests without any answer.
    pub(crate) statuses: [AtomicU64; 6],
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CountersSnapshot {
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub open_connections: u64,
    /// Requests begun.
    pub requests: u64,
    /// Requests (and tunnels) under way now.
    pub open_requests: u64,
    /// Requests that had to wait for their app for a millisecond or more.
    pub held: u64,
    /// Requests that wait for their app now.
    pub held_now: u64,
    /// Milliseconds that requests have waited for their apps.
    pub held_ms: u64,
    /// Clients that left before their answer was complete.
    pub clients_left: u64,
    /// Attempts to connect to an app beyond a request's first.
    pub connect_retries: u64,
    /// Upgraded connections (WebSocket).
    pub tunnels: u64,
    /// Bytes of request bodies.
    pub bytes_in: u64,
    /// Bytes of answers' bodies.
    pub bytes_out: u64,
    /// Requests by hundreds of their status: `[none, 1xx, 2xx, 3xx, 4xx, 5xx]`.
    pub statuses: [u64; 6],
}

impl Counters {
    /// All counters; each is exact, they are not read at one instant.
    #[must_use]
    pub fn snapshot(&self) -> CountersSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CountersSnapshot {
            connections: get(&self.connections),
            open_connections: get(&self.open_connections),
            requests: get(&self.requests),
            open_requests: get(&self.open_requests),
            held: get(&self.held),
            held_now: get(&self.held_now),
            held_ms: get(&self.held_ms),
            clients_left: get(&self.clients_left),
            connect_retries: get(&self.connect_retries),
            tunnels: get(&self.tunnels),
            bytes_in: get(&self.bytes_in),
            bytes_out: get(&self.bytes_out),
            statuses: std::array::from_fn(|index| get(&self.statuses[index])),
        }
    }

    pub(crate) fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }

    pub(crate) fn status(&self, status: u16) {
        let index = usize::from(status / 100).min(5);
        Self::add(&self.statuses[index], 1);
    }

    pub(crate) fn held_for(&self, waited: Duration) {
        if waited >= Duration::from_millis(1) {
            Self::add(&self.held, 1);
        }
        Self::add(&self.held_ms, u64::try_from(waited.as_millis()).unwrap_or(u64::MAX));
    }
}

/// One of something that is under way now; its end is counted when this is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    counters: Arc<Counters>,
    which: fn(&Counters) -> &AtomicU64,
}

impl Open {
    pub(crate) fn new(counters: &Arc<Counters>, which: fn(&Counters) -> &AtomicU64) -> Self {
        Counters::add(which(counters), 1);
        Self {
            counters: Arc::clone(counters),
            which,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        (self.which)(&self.counters).fetch_sub(1, Ordering::Relaxed);
    }
}
