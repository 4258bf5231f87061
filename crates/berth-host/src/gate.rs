//! The warm path: letting a request in to a sandbox that serves costs two reads and one atomic add.
//!
//! Every sandbox has a [`Gate`]: one number whose top bit says "closed", whose next bit says "asleep", and whose other bits
//! count the leases. A request adds one and then looks what the gate was. If it was closed, the request takes its one back
//! and goes the long way, through the driver. So a sandbox that is being stopped never gets a new lease, and whoever
//! closed the gate learns when the last lease ended: there is no moment between "looked" and "counted".
//!
//! If it was asleep, the sandbox is frozen, or about to be, and the request wakes it before it goes on (`freezing.rs`). A
//! gate falls asleep only from the number zero, in one step: so whoever has counted himself in either keeps it awake or
//! has seen that it sleeps.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use berth_workspace::{AppName, RevisionId};
use tokio::sync::Notify;

use crate::freezing::Freezer;
use crate::sandboxes::Running;

const CLOSED: u64 = 1 << 63;
const ASLEEP: u64 = 1 << 62;
const LEASES: u64 = ASLEEP - 1;

/// What a request finds at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It is in, and the sandbox runs.
    In,
    /// It is in, and has to wake the sandbox before it goes on.
    Asleep,
    /// It is not in.
    Closed,
}

/// Counts the leases of one sandbox and can be closed for new ones.
pub(crate) struct Gate {
    state: AtomicU64,
    /// Milliseconds after `born` at which a lease last began or ended.
    last_used: AtomicU64,
    born: Instant,
    emptied: Notify,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            last_used: AtomicU64::new(0),
            born: Instant::now(),
            emptied: Notify::new(),
        }
    }

    /// Counts one lease more, unless the gate is closed.
    pub(crate) fn enter(&self) -> Entry {
        let found = self.state.fetch_add(1, Ordering::AcqRel);
        if found & CLOSED != 0 {
            self.leave();
            return Entry::Closed;
        }
        self.touch();
        if found & ASLEEP == 0 { Entry::In } else { Entry::Asleep }
    }

    pub(crate) fn leave(&self) {
        self.touch();
        let found = self.state.fetch_sub(1, Ordering::AcqRel);
        if found & CLOSED != 0 && found & LEASES == 1 {
            self.emptied.notify_waiters();
        }
    }

    fn touch(&self) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_used.fetch_max(now, Ordering::Relaxed);
    }

    /// No lease is given from here on. Leases that exist go on.
    pub(crate) fn close(&self) {
        if self.state.fetch_or(CLOSED, Ordering::AcqRel) & LEASES == 0 {
            self.emptied.notify_waiters();
        }
    }

    /// Falls asleep, if it is open and no lease is there. Then every lease has to wake it first.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.state
            .compare_exchange(0, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Leases need no waking from here on.
    pub(crate) fn wake(&self) {
        self.touch();
        self.state.fetch_and(!ASLEEP, Ordering::AcqRel);
    }

    pub(crate) fn is_asleep(&self) -> bool {
        self.state.load(Ordering::Acquire) & ASLEEP != 0
    }

    /// Waits until the gate is closed and the last lease has ended. Cancel-safe.
    pub(crate) async fn drained(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            // Registered before the look, so that an end between the look and the wait is not missed.
            emptied.as_mut().enable();
            let found = self.state.load(Ordering::Acquire);
            if found & CLOSED != 0 && found & LEASES == 0 {
                return;
            }
            emptied.await;
        }
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.state.load(Ordering::Acquire) & LEASES
    }

    /// How long no lease has begun or ended; zero while one is open.
    pub(crate) fn unused_for(&self) -> Duration {
        if self.in_flight() > 0 {
            return Duration::ZERO;
        }
        self.born
            .elapsed()
            .saturating_sub(Duration::from_millis(self.last_used.load(Ordering::Relaxed)))
    }
}

/// One sandbox that serves (or served), as the edge sees it.
pub struct Upstream {
    /// The app.
    pub app: AppName,
    /// Unique for each sandbox of this host's life: connections may be pooled by it, and never across it.
    pub generation: u64,
    /// The revision it was started with (an app served in place moves on to newer ones).
    pub revision: RevisionId,
    /// Where the app listens, inside its network namespace: connect a [`Upstream::socket`] to it.
    pub addr: SocketAddr,
    pub(crate) gate: Gate,
    pub(crate) running: Arc<dyn Running>,
    pub(crate) freezer: Freezer,
}

impl Upstream {
    pub(crate) fn new(
        app: AppName,
        generation: u64,
        revision: RevisionId,
        addr: SocketAddr,
        running: Arc<dyn Running>,
        freezer: Freezer,
    ) -> Self {
        Self {
            app,
            generation,
            revision,
            addr,
            gate: Gate::new(),
            running,
            freezer,
        }
    }

    /// An unconnected, non-blocking TCP socket inside the app's network namespace. Cancel-safe.
    ///
    /// # Errors
    /// What socket(2) says; never because the app is down (that shows when connecting).
    pub async fn socket(&self) -> io::Result<OwnedFd> {
        self.running.socket(self.addr.is_ipv6()).await
    }

    /// Requests and tunnels open now.
    pub fn in_flight(&self) -> u64 {
        self.gate.in_flight()
    }

    /// A lease on this upstream, which runs then; `None` once it is on its way out. Waking a frozen one takes one write to a
    /// file of its cgroup, here and now: a request pays for no message and no change of thread.
    pub(crate) fn lease(self: Arc<Self>) -> Option<Lease> {
        match self.gate.enter() {
            Entry::In => {}
            Entry::Closed => return None,
            Entry::Asleep => {
                if !self.wake() {
                    self.gate.leave();
                    return None;
                }
            }
        }
        Some(Lease { upstream: self })
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("app", &self.app)
            .field("generation", &self.generation)
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

/// The right to use an upstream. While it lives, the sandbox is neither idle nor frozen nor (within the drain limit) stopped:
/// hold it as long as the request, the stream or the tunnel lasts.
#[derive(Debug)]
pub struct Lease {
    /// Where to send the request.
    pub upstream: Arc<Upstream>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.upstream.gate.leave();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_closed_gate_lets_nobody_in() {
        let gate = Gate::new();
        assert_eq!(gate.enter(), Entry::In);
        gate.close();
        assert_eq!(gate.enter(), Entry::Closed);
        assert_eq!(gate.in_flight(), 1);
        gate.leave();
        assert_eq!(gate.in_flight(), 0);
    }

    #[tokio::test]
    async fn drained_waits_for_the_last_lease_and_not_longer() {
        let gate = Arc::new(Gate::new());
        assert_eq!((gate.enter(), gate.enter()), (Entry::In, Entry::In));
        gate.close();
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.drained().await }
        });
        gate.leave();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        gate.leave();
        tokio::time::timeout(Duration::from_secs(5), waiting)
            .await
            .unwrap()
            .unwrap();
        Gate::drained(&gate).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_is_inside_once_a_closed_gate_reports_drained() {
        for _ in 0..200 {
            let gate = Arc::new(Gate::new());
            let visitors = (0..2).map(|_| {
                let gate = Arc::clone(&gate);
                tokio::spawn(async move {
                    while gate.enter() == Entry::In {
                        gate.leave();
                    }
                })
            });
            let visitors: Vec<_> = visitors.collect();
            gate.close();
            gate.drained().await;
            assert_eq!(gate.enter(), Entry::Closed);
            for visitor in visitors {
                visitor.await.unwrap();
            }
            assert_eq!(gate.in_flight(), 0);
        }
    }

    #[tokio::test]
    async fn a_sleeping_gate_drains_at_once_and_falls_asleep_only_when_it_is_empty_and_open() {
        let gate = Gate::new();
        assert_eq!(gate.enter(), Entry::In);
        assert!(!gate.fall_asleep(), "somebody is inside");
        gate.leave();
        assert!(gate.fall_asleep());
        assert_eq!((gate.enter(), gate.in_flight()), (Entry::Asleep, 1));
        gate.leave();
        gate.close();
        tokio::time::timeout(Duration::from_secs(5), gate.drained())
            .await
            .unwrap();
        gate.wake();
        assert!(!gate.fall_asleep(), "it is closed");
    }

    #[test]
    fn a_lease_is_as_free_as_the_edge_needs_it() {
        fn free<T: Send + Sync + 'static>() {}
        free::<Lease>();
    }
}
