//! Freezing and thawing one sandbox: who may, and in which order.
//!
//! ```text
//!   driver ── Freeze ──▶ freeze(): lock { gate 0 → asleep; freezer on;  tell Froze  }
//!   request ── enter() finds it asleep ──▶ wake(): lock { freezer off; gate awake; tell Thawed } ──▶ lease
//!   driver ── Drain, Stop ──▶ gate closed, then let_go(): lock { freezer off; gate awake }
//! ```
//!
//! A lease is counted before anybody looks whether the gate sleeps, and a gate falls asleep only while no lease is counted. So of a
//! freeze and a request that meet, either the freeze finds the lease and leaves the sandbox alone, or the request finds the gate
//! asleep and waits at the lock for the freeze to be done before it thaws. Whatever the order, no lease is given on a sandbox
//! that is frozen. The first of many requests thaws; the others find it done when they get the lock.
//!
//! The lock is held for one write to a file of the cgroup (10 to 20 µs), so it may be waited for on any thread. What is told
//! to the driver is told under the lock: the driver hears it in the order in which it happened.

use std::io;

use berth_sandbox::Reclaim;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::driver::Message;
use crate::failure::{FailKind, FailReason};
use crate::gate::Upstream;
use crate::machine::{Event, RunId};

/// What one sandbox's freezing goes by.
pub(crate) struct Freezer {
    run: RunId,
    driver: mpsc::UnboundedSender<Message>,
    order: Mutex<()>,
}

impl Freezer {
    pub(crate) fn new(run: RunId, driver: mpsc::UnboundedSender<Message>) -> Self {
        Self {
            run,
            driver,
            order: Mutex::new(()),
        }
    }

    fn tell(&self, event: impl FnOnce(RunId) -> Event) {
        // A driver that is gone has stopped the sandbox.
        let _ = self.driver.send(Message::Event(event(self.run)));
    }
}

impl Upstream {
    /// Takes all CPU time from the sandbox, unless somebody uses it or it is on its way out.
    pub(crate) fn freeze(&self) {
        let _order = self.freezer.order.lock();
        if !self.gate.fall_asleep() {
            return self.freezer.tell(Event::StayedAwake);
        }
        match self.running.freeze() {
            Ok(()) => self.freezer.tell(Event::Froze),
            Err(error) => {
                // Whatever part of it was done is undone; what has failed to freeze runs.
                let _ = self.running.thaw();
                self.gate.wake();
                self.freezer.tell(|run| Event::CannotFreeze(run, error.to_string()));
            }
        }
    }

    /// Sees to it that the sandbox runs. False when it cannot be made to: it is given up then, and the driver knows.
    pub(crate) fn wake(&self) -> bool {
        let _order = self.freezer.order.lock();
        match self.thaw() {
            Ok(false) => true,
            Ok(true) => {
                self.freezer.tell(Event::Thawed);
                true
            }
            Err(error) => {
                let reason = FailReason::new(
                    FailKind::Sandbox,
                    format!("the frozen sandbox cannot be thawed: {error}"),
                );
                self.freezer.tell(|run| Event::Broke(run, reason));
                false
            }
        }
    }

    /// It is on its way out and its gate is closed: it runs until its end, so that it can be asked to end, and is never frozen
    /// again.
    pub(crate) fn let_go(&self) {
        let _order = self.freezer.order.lock();
        if let Err(error) = self.thaw() {
            // Whoever removes it thaws it once more.
            tracing::debug!(app = %self.app, %error, "thawing a sandbox that is stopped");
        }
    }

    /// Hands the memory of a frozen sandbox to the kernel, until it is thawed. Blocks.
    pub(crate) fn reclaim(&self, what: Reclaim) {
        if let Err(error) = self.running.reclaim(what, &|| self.gate.is_asleep()) {
            tracing::debug!(app = %self.app, %error, "handing memory back");
        }
    }

    /// Under the lock: thaws, if it sleeps. Tells whether it did.
    fn thaw(&self) -> io::Result<bool> {
        if !self.gate.is_asleep() {
            return Ok(false);
        }
        self.running.thaw()?;
        self.gate.wake();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::net::SocketAddr;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use berth_sandbox::{ExitInfo, Sandbox, SandboxError, Stats};
    use berth_workspace::{AppName, revision};
    use futures::future::BoxFuture;

    use super::*;
    use crate::sandboxes::Running;

    /// A freezer without a sandbox.
    #[derive(Default)]
    struct Ice {
        frozen: AtomicBool,
        broken: AtomicBool,
    }

    impl Ice {
        fn turn(&self, frozen: bool) -> io::Result<()> {
            if self.broken.load(Ordering::SeqCst) {
                return Err(io::Error::other("no such cgroup"));
            }
            self.frozen.store(frozen, Ordering::SeqCst);
            Ok(())
        }

        fn is_frozen(&self) -> bool {
            self.frozen.load(Ordering::SeqCst)
        }
    }

    impl Running for Ice {
        fn listening(&self) -> io::Result<Vec<SocketAddr>> {
            Ok(Vec::new())
        }
        fn socket(&self, _v6: bool) -> BoxFuture<'_, io::Result<OwnedFd>> {
            Box::pin(async { Err(io::Error::other("it has none")) })
        }
        fn stop(&self, _grace: Duration) -> BoxFuture<'_, Result<ExitInfo, SandboxError>> {
            Box::pin(async { Ok(ExitInfo::default()) })
        }
        fn freeze(&self) -> io::Result<()> {
            self.turn(true)
        }
        fn thaw(&self) -> io::Result<()> {
            self.turn(false)
        }
        fn reclaim(&self, _what: Reclaim, _go_on: &dyn Fn() -> bool) -> io::Result<()> {
            Ok(())
        }
        fn stats(&self) -> Option<Stats> {
            None
        }
        fn sandbox(&self) -> Option<Arc<Sandbox>> {
            None
        }
    }

    fn upstream() -> (Arc<Upstream>, Arc<Ice>, mpsc::UnboundedReceiver<Message>) {
        let (driver, inbox) = mpsc::unbounded_channel();
        let ice = Arc::new(Ice::default());
        let upstream = Upstream::new(
            AppName::parse("app").unwrap(),
            1,
            revision(&[]),
            "127.0.0.1:3000".parse().unwrap(),
            Arc::clone(&ice) as Arc<dyn Running>,
            Freezer::new(RunId(1), driver),
        );
        (Arc::new(upstream), ice, inbox)
    }

    fn heard(inbox: &mut mpsc::UnboundedReceiver<Message>) -> Vec<Event> {
        let mut events = Vec::new();
        while let Ok(message) = inbox.try_recv() {
            match message {
                Message::Event(event) => events.push(event),
                _ => panic!("a freezer tells of events only"),
            }
        }
        events
    }

    #[test]
    fn no_lease_is_given_on_a_frozen_sandbox_whatever_the_order() {
        const FREEZES: usize = 3000;
        let (upstream, ice, mut inbox) = upstream();
        let done = AtomicBool::new(false);
        std::thread::scope(|threads| {
            for _ in 0..3 {
                threads.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let lease = Arc::clone(&upstream).lease().expect("the gate is open");
                        for _ in 0..3 {
                            assert!(!ice.is_frozen(), "frozen while a lease is held");
                            std::thread::yield_now();
                        }
                        drop(lease);
                        std::thread::yield_now();
                    }
                });
            }
            for _ in 0..FREEZES {
                upstream.freeze();
                std::thread::yield_now();
            }
            done.store(true, Ordering::Relaxed);
        });
        upstream.freeze();
        // The driver heard all of it, in the order in which it was.
        let mut frozen = false;
        let events = heard(&mut inbox);
        for event in &events {
            match event {
                Event::Froze(_) => assert!(!std::mem::replace(&mut frozen, true), "frozen twice"),
                Event::Thawed(_) => assert!(std::mem::replace(&mut frozen, false), "thawed twice"),
                Event::StayedAwake(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(frozen, ice.is_frozen());
        assert!(events.contains(&Event::Froze(RunId(1))), "nothing was frozen at all");
    }

    #[test]
    fn a_lease_keeps_it_awake_and_the_first_of_many_thaws() {
        let (upstream, ice, mut inbox) = upstream();
        let lease = Arc::clone(&upstream).lease().unwrap();
        upstream.freeze();
        assert!(!ice.is_frozen());
        drop(lease);
        upstream.freeze();
        assert!(ice.is_frozen());
        let leases = [(); 3].map(|()| Arc::clone(&upstream).lease().unwrap());
        assert_eq!((ice.is_frozen(), upstream.in_flight()), (false, 3));
        drop(leases);
        let run = RunId(1);
        assert_eq!(
            heard(&mut inbox),
            [Event::StayedAwake(run), Event::Froze(run), Event::Thawed(run)]
        );
    }

    #[test]
    fn a_sandbox_on_its_way_out_runs_and_is_not_frozen_again() {
        let (upstream, ice, mut inbox) = upstream();
        upstream.freeze();
        assert!(ice.is_frozen());
        upstream.gate.close();
        upstream.let_go();
        assert!(!ice.is_frozen());
        upstream.freeze();
        assert!(!ice.is_frozen());
        assert_eq!(
            heard(&mut inbox),
            [Event::Froze(RunId(1)), Event::StayedAwake(RunId(1))]
        );
    }

    #[test]
    fn what_cannot_be_frozen_or_thawed_is_told() {
        let (upstream, ice, mut inbox) = upstream();
        ice.broken.store(true, Ordering::SeqCst);
        upstream.freeze();
        assert!(Arc::clone(&upstream).lease().is_some(), "it runs");
        ice.broken.store(false, Ordering::SeqCst);
        upstream.freeze();
        ice.broken.store(true, Ordering::SeqCst);
        assert!(Arc::clone(&upstream).lease().is_none());
        assert_eq!(upstream.in_flight(), 0, "a request that was turned away counts no more");
        let told = heard(&mut inbox);
        assert!(
            matches!(&told[..], [Event::CannotFreeze(..), Event::Froze(_), Event::Broke(..)]),
            "{told:?}"
        );
    }
}
