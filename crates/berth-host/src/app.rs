//! What the host and the driver of one app share: the upstream that serves, the mailbox, and the published status.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use berth_workspace::{AppName, Kind, Plan, RevisionId};
use parking_lot::RwLock;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};

use crate::driver::Message;
use crate::failure::{AcquireError, FailReason};
use crate::gate::{Lease, Upstream};
use crate::machine::WaiterId;
use crate::snapshot::{AppSnapshot, AppState, ColdStart};

/// What the driver publishes after each event.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) kind: Option<Kind>,
    pub(crate) state: AppState,
    pub(crate) revision: Option<RevisionId>,
    pub(crate) serving: Option<RevisionId>,
    pub(crate) port: Option<u16>,
    pub(crate) error: Option<FailReason>,
    pub(crate) since: OffsetDateTime,
    pub(crate) retry_at: Option<OffsetDateTime>,
    pub(crate) starts: u64,
    pub(crate) cold_start: Option<ColdStart>,
    pub(crate) sandbox: Option<String>,
    /// A sandbox is on its way up.
    pub(crate) rising: bool,
    /// Sandboxes are on their way out.
    pub(crate) leaving: bool,
    /// It can go a rung down when memory is short.
    pub(crate) yields: bool,
    /// The workspace was looked at at least once.
    pub(crate) known: bool,
}

impl Status {
    fn new() -> Self {
        Self {
            kind: None,
            state: AppState::Cold,
            revision: None,
            serving: None,
            port: None,
            error: None,
            since: OffsetDateTime::now_utc(),
            retry_at: None,
            starts: 0,
            cold_start: None,
            sandbox: None,
            rising: false,
            leaving: false,
            yields: false,
            known: false,
        }
    }
}

/// One app, as the host holds it.
pub(crate) struct App {
    pub(crate) name: AppName,
    /// The upstream that serves; written by the driver only.
    pub(crate) front: RwLock<Option<Arc<Upstream>>>,
    /// The newest revision that has a plan, and that plan; `None` while the newest one has none.
    pub(crate) plan: RwLock<Option<(RevisionId, Arc<Plan>)>>,
    pub(crate) mailbox: mpsc::UnboundedSender<Message>,
    pub(crate) status: watch::Sender<Status>,
    waiting: AtomicUsize,
    next_waiter: AtomicU64,
    requests: AtomicU64,
}

impl App {
    pub(crate) fn new(name: AppName) -> (Arc<Self>, mpsc::UnboundedReceiver<Message>) {
        let (mailbox, inbox) = mpsc::unbounded_channel();
        let app = Self {
            name,
            front: RwLock::new(None),
            plan: RwLock::new(None),
            mailbox,
            status: watch::Sender::new(Status::new()),
            waiting: AtomicUsize::new(0),
            next_waiter: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        };
        (Arc::new(app), inbox)
    }

    /// A lease if the app serves now, or is frozen.
    fn warm(&self) -> Option<Lease> {
        // Not under the lock: thawing may wait for a freeze that is under way.
        let upstream = Arc::clone(self.front.read().as_ref()?);
        let lease = upstream.lease()?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        Some(lease)
    }

    /// A lease, waiting for the app to start if need be. Cancel-safe.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        max_waiting: usize,
        longest: Duration,
    ) -> Result<Lease, AcquireError> {
        if let Some(lease) = self.warm() {
            return Ok(lease);
        }
        let begun = Instant::now();
        // A lease may be closed between its grant and its arrival here only by the sandbox's end, in which case the
        // connection fails as it would for any app that ends; so one round through the driver is enough.
        let (place, answer) = Place::take(self, max_waiting)?;
        let answer = tokio::time::timeout(longest, answer).await;
        drop(place);
        match answer {
            Ok(Ok(Ok(lease))) => {
                self.requests.fetch_add(1, Ordering::Relaxed);
                Ok(lease)
            }
            Ok(Ok(Err(refused))) => Err(refused),
            // The driver ended with this request in its mailbox: the workspace is gone.
            Ok(Err(_)) => Err(AcquireError::NoSuchApp),
            Err(_) => Err(AcquireError::Timeout {
                waited: begun.elapsed(),
            }),
        }
    }

    pub(crate) fn say(&self, message: Message) {
        // A driver that has ended has nothing left to do.
        let _ = self.mailbox.send(message);
    }

    pub(crate) fn snapshot(&self, hosts: Vec<String>, warnings: Vec<String>) -> AppSnapshot {
        let status = self.status.borrow().clone();
        let front = self.front.read().clone();
        let stats = front.as_ref().and_then(|upstream| upstream.running.stats());
        let addr: Option<SocketAddr> = front.as_ref().map(|upstream| upstream.addr);
        AppSnapshot {
            name: self.name.clone(),
            kind: status.kind,
            state: status.state,
            revision: status.revision,
            serving_revision: status.serving,
            port: addr.map(|addr| addr.port()).or(status.port),
            error: status.error,
            since: status.since,
            retry_at: status.retry_at,
            starts: status.starts,
            requests: self.requests.load(Ordering::Relaxed),
            in_flight: front.as_ref().map_or(0, |upstream| upstream.in_flight()),
            waiting: self.waiting.load(Ordering::Relaxed) as u64,
            generation: front.as_ref().map(|upstream| upstream.generation),
            sandbox: status.sandbox,
            last_cold_start: status.cold_start,
            hosts,
            warnings,
            memory: stats.map(|stats| stats.memory),
            cpu_usec: stats.map(|stats| stats.cpu_usec),
            pids: stats.map(|stats| stats.pids),
            address: addr,
        }
    }
}

/// A request's place among those that wait; dropping it gives the place up.
struct Place {
    app: Arc<App>,
    waiter: WaiterId,
}

type Answer = oneshot::Receiver<Result<Lease, AcquireError>>;

impl Place {
    fn take(app: &Arc<App>, max_waiting: usize) -> Result<(Self, Answer), AcquireError> {
        if app.waiting.fetch_add(1, Ordering::AcqRel) >= max_waiting {
            app.waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(AcquireError::TooMany);
        }
        let waiter = WaiterId(app.next_waiter.fetch_add(1, Ordering::Relaxed));
        let (reply, answer) = oneshot::channel();
        app.say(Message::Request { waiter, reply });
        Ok((
            Self {
                app: Arc::clone(app),
                waiter,
            },
            answer,
        ))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.app.waiting.fetch_sub(1, Ordering::AcqRel);
        self.app.say(Message::Withdraw(self.waiter));
    }
}
