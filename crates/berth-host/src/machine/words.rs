//! The words of the machine: what an app may be, what happens to it, and what is to be done.

use std::time::Duration;

use berth_sandbox::Reclaim;
use berth_workspace::RevisionId;

use super::{Climb, Rising};
use crate::failure::FailReason;
use crate::snapshot::EventKind;

/// Time since the driver began.
pub type Moment = Duration;

/// One sandbox of this app, numbered from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

/// One request that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u64);

/// Time limits of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the launch of the start command to an open port.
    pub start: Duration,
    /// All of the installation.
    pub install: Duration,
    /// Making the sandbox itself.
    pub create: Duration,
    /// Requests of a replaced sandbox may go on for this long.
    pub drain: Duration,
    /// How long an idle app is kept while the newest save does not start.
    pub keep_last_good: Duration,
    /// The memory of a frozen app that is idle for this long is handed to the kernel.
    pub idle_reclaim: Duration,
}

/// What the workspace asks for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The newest revision.
    pub revision: RevisionId,
    /// Changes whenever the plan changes.
    pub shape: u64,
    /// The sandbox shows the workspace itself: a new revision with the same shape needs no new sandbox.
    pub in_place: bool,
    /// Freeze after this long without a request; [`Duration::MAX`] for never.
    pub idle_freeze: Duration,
    /// Stop after this long without a request; [`Duration::MAX`] for never.
    pub idle_stop: Duration,
}

impl Wanted {
    /// Whether a sandbox made for `self` also serves `other`.
    pub(super) fn serves(&self, other: &Self) -> bool {
        self.shape == other.shape && (self.in_place || self.revision == other.revision)
    }
}

/// The sandbox that takes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// Which.
    pub run: RunId,
    /// What it serves.
    pub wanted: Wanted,
    /// Ready since.
    pub since: Moment,
    /// When a request last began or ended, as far as the machine was told.
    pub last_used: Moment,
    /// CPU time it has used, as far as the machine was told.
    pub cpu: Duration,
    /// Whether it gets CPU time.
    pub rest: Rest,
}

/// Whether the sandbox that serves gets CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It runs. `look` is what it had used when it was last looked at, if nobody has called since.
    Awake {
        /// When, and how much CPU time it had used until then.
        look: Option<(Moment, Duration)>,
    },
    /// It is to be frozen, unless a request is quicker.
    Freezing,
    /// It gets none until the next request.
    Frozen {
        /// Its memory was handed to the kernel.
        reclaimed: bool,
    },
    /// It runs, and cannot be frozen.
    Sleepless,
}

/// A failure and when it may be tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setback {
    /// What went wrong.
    pub reason: FailReason,
    /// A request starts the app again from this moment on.
    pub until: Moment,
}

/// Why nothing is started any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// The workspace was deleted.
    Deleted,
    /// The host goes down.
    Shutdown,
}

/// Where the app stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Front {
    /// Nothing takes requests; the next one starts the app.
    Cold,
    /// A sandbox is on its way up and none serves.
    Rising(Rising),
    /// A sandbox serves, and perhaps a newer one is on its way up.
    Ready {
        /// The one that serves.
        live: Live,
        /// The one that shall replace it.
        successor: Option<Rising>,
    },
    /// The last sandbox failed.
    Failed(Setback),
    /// The end.
    Closed(Closing),
}

/// A sandbox on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// Takes no new requests; those that it has may end until the moment.
    Draining(Moment),
    /// Being stopped.
    Stopping,
}

/// What happens to an app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new revision with a good plan.
    Saved(Wanted),
    /// A new revision that cannot be planned.
    Unplannable(FailReason),
    /// The workspace is gone.
    Deleted,
    /// A request found no open gate.
    Request(WaiterId),
    /// A request gave up waiting.
    Withdrawn(WaiterId),
    /// Stopped by hand.
    StopAsked,
    /// Restarted by hand.
    RestartAsked,
    /// The host goes down.
    Shutdown,
    /// A sandbox on its way up has come this far.
    Climbed(RunId, Climb),
    /// A sandbox on its way up answers at its port.
    Listening(RunId),
    /// A sandbox failed or ended by itself.
    Broke(RunId, FailReason),
    /// The serving sandbox was last used at this moment (now, if a lease is open).
    Used(RunId, Moment),
    /// The serving sandbox has used this much CPU time since it was made.
    Worked(RunId, Duration),
    /// A sandbox that was to be frozen is.
    Froze(RunId),
    /// A sandbox that was to be frozen is in use and runs.
    StayedAwake(RunId),
    /// A sandbox cannot be frozen, for the reason told; it runs.
    CannotFreeze(RunId, String),
    /// A frozen sandbox was thawed by a request.
    Thawed(RunId),
    /// Memory is short, and nobody has called for longer than of any other app.
    Squeezed,
    /// The last request of a draining sandbox has ended.
    Drained(RunId),
    /// Nothing is left of a sandbox that was to be stopped.
    Stopped(RunId),
    /// A deadline may have passed.
    Tick,
}

/// Why a waiter gets no lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No app here.
    NoSuchApp,
    /// It cannot run at the moment.
    Failed(FailReason, Duration),
    /// It was stopped by hand.
    Stopped,
    /// The host goes down.
    ShuttingDown,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a sandbox and start it.
    Start(RunId, Wanted),
    /// Let requests in to this sandbox, and to no other.
    Open(RunId),
    /// Give leases on this sandbox to waiters.
    Answer(RunId, Vec<WaiterId>),
    /// Tell waiters that they get none.
    Refuse(Vec<WaiterId>, Refusal),
    /// Take its CPU time, unless it is in use. Say [`Event::Froze`], [`Event::StayedAwake`] or [`Event::CannotFreeze`]; and
    /// [`Event::Thawed`] when a request has undone it.
    Freeze(RunId),
    /// Hand memory of this frozen sandbox to the kernel.
    Reclaim(RunId, Reclaim),
    /// Let no more requests in; say [`Event::Drained`] when the last one has ended.
    Drain(RunId),
    /// Let no more requests in, stop it and remove it; say [`Event::Stopped`] when nothing is left.
    Stop(RunId),
    /// For the history and the app's log.
    Note(EventKind, String),
    /// Nothing will happen any more: the driver may end.
    Retire,
}
