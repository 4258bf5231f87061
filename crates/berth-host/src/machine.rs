//! The state machine of one app: a pure function from a state and an event to a state and actions.
//!
//! ```text
//!              request              start command runs        listens          rests           nobody calls
//!    cold ─────────────▶ installing ────────────────▶ starting ──────▶ ready ─────────▶ frozen ──────────────┐
//!     ▲  ▲                   │ fails                     │ fails       │  ▲ ▲ request     │                  │
//!     │  │                   ▼                           ▼             │  │ └─────────────┤ crash            │
//!     │  └─ save ─────── failed(reason) ◀──────────────────────────────┤  └ save: a successor rises beside it;
//!     │                      │ request, once the back-off is over      │ stop,   when that listens it takes over
//!     │                      └──────────▶ installing                   │ idle    and the old sandbox is drained
//!     └───────────────────────────── stopping ◀────────────────────────┴─────────────────────────────────────┘
//! ```
//!
//! `cold`, `rising` (installing or starting), `ready` (awake or frozen) and `failed` are the [`Front`]: at most one sandbox takes
//! requests and at most one is on its way up, because there is no place for a second one in the type. Sandboxes on their way
//! out stand beside it (`leaving`), drained or being stopped, and never hold up what comes next.
//!
//! A frozen app is a ready one whose sandbox rests (`idle.rs`): requests go to it as ever and thaw it themselves, so whatever may
//! happen to a ready app (a save, a stop, a crash, the end) may happen to a frozen one and is the same transition.
//!
//! Rules the model test holds it to: every sandbox that is started is stopped exactly once; every waiter is answered
//! exactly once; a sandbox that was closed is never opened again; a successor that fails leaves the old one serving; a sandbox
//! is never frozen while a lease on it is held, nor when it is told to stop.
//!
//! Time is a [`Moment`] that comes with each event. Timers are no actions: [`State::deadline`] says when the machine
//! wants its next [`Event::Tick`].
//!
//! Not here: anything that happens (`driver.rs`).

mod idle;
mod rising;
#[cfg(test)]
mod tests;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::failure::{FailKind, FailReason};
use crate::snapshot::{AppState, EventKind};
pub use rising::{Climb, Rising};
pub use words::{
    Action, Closing, Event, Front, Leaving, Limits, Live, Moment, Refusal, Rest, RunId, Setback, WaiterId, Wanted,
};

/// The whole state of one app.
#[derive(Clone, Debug)]
pub struct State {
    limits: Limits,
    front: Front,
    /// What the workspace asks for; `None` while its newest revision cannot be planned.
    wanted: Option<Wanted>,
    /// Why the newest save does not serve.
    fault: Option<FailReason>,
    leaving: BTreeMap<RunId, Leaving>,
    waiters: BTreeSet<WaiterId>,
    /// Failures in a row.
    strikes: u32,
    last_run: u64,
}

/// An app that ran well for this long begins with a clean record.
const HEALTHY: Duration = Duration::from_secs(60);
/// The longest back-off.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// 1 s, 2 s, 4 s … 60 s for the first, second, third … strike.
fn backoff(strikes: u32) -> Duration {
    match strikes {
        0 => Duration::ZERO,
        n => Duration::from_secs(1 << (n - 1).min(6)).min(MAX_BACKOFF),
    }
}

impl State {
    /// An app about which nothing is known yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            front: Front::Cold,
            wanted: None,
            fault: None,
            leaving: BTreeMap::new(),
            waiters: BTreeSet::new(),
            strikes: 0,
            last_run: 0,
        }
    }

    /// The transition: moves to the next state and says what is to be done. Never fails: an event that does not fit (a late
    /// word of a sandbox that was given up) changes nothing.
    #[must_use]
    pub fn apply(&mut self, now: Moment, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Saved(wanted) => self.saved(now, wanted, &mut out),
            Event::Unplannable(reason) => self.unplannable(reason, &mut out),
            Event::Deleted => self.close(Closing::Deleted, &mut out),
            Event::Shutdown => self.close(Closing::Shutdown, &mut out),
            Event::Request(waiter) => self.request(now, waiter, &mut out),
            Event::Withdrawn(waiter) => {
                self.waiters.remove(&waiter);
            }
            Event::StopAsked => self.stop_asked(now, &mut out),
            Event::RestartAsked => self.restart_asked(now, &mut out),
            Event::Climbed(run, climb) => self.climbed(now, run, climb),
            Event::Listening(run) => self.listening(now, run, &mut out),
            Event::Broke(run, reason) => self.broke(now, run, reason, &mut out),
            Event::Used(..)
            | Event::Worked(..)
            | Event::Froze(_)
            | Event::StayedAwake(_)
            | Event::CannotFreeze(..)
            | Event::Thawed(_) => self.resting(now, event, &mut out),
            Event::Squeezed => self.squeezed(now, &mut out),
            Event::Drained(run) => self.drained(run, &mut out),
            Event::Stopped(run) => self.stopped(run, &mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        out
    }

    /// When the next [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Moment> {
        let rising = self.rising().and_then(|rising| rising.deadline);
        let drain = self.leaving.values().filter_map(|leaving| match leaving {
            Leaving::Draining(until) => Some(*until),
            Leaving::Stopping => None,
        });
        rising.into_iter().chain(self.idle_deadline()).chain(drain).min()
    }

    /// Where the app stands, in one word.
    pub fn phase(&self) -> AppState {
        match &self.front {
            Front::Ready { live, .. } if matches!(live.rest, Rest::Frozen { .. }) => AppState::Frozen,
            Front::Ready { .. } => AppState::Ready,
            Front::Rising(rising) => rising.phase(),
            Front::Failed(_) => AppState::Failed,
            Front::Cold | Front::Closed(_) if !self.leaving.is_empty() => AppState::Stopping,
            Front::Cold
                if self
                    .fault
                    .as_ref()
                    .is_some_and(|fault| fault.kind != FailKind::NotAnApp) =>
            {
                AppState::Failed
            }
            Front::Cold | Front::Closed(_) => AppState::Cold,
        }
    }

    /// Where the app stands, in full.
    pub fn front(&self) -> &Front {
        &self.front
    }

    /// What is wrong: why it is down, or why its newest save does not serve.
    pub fn error(&self) -> Option<&FailReason> {
        match &self.front {
            Front::Failed(setback) => Some(&setback.reason),
            _ => self.fault.as_ref(),
        }
    }

    /// What the workspace asks for.
    pub fn wanted(&self) -> Option<&Wanted> {
        self.wanted.as_ref()
    }

    /// Requests that are held.
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// Whether a sandbox is on its way out.
    pub fn is_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// The sandbox on its way up.
    pub fn rising(&self) -> Option<&Rising> {
        match &self.front {
            Front::Rising(rising) => Some(rising),
            Front::Ready { successor, .. } => successor.as_ref(),
            _ => None,
        }
    }

    fn saved(&mut self, now: Moment, wanted: Wanted, out: &mut Vec<Action>) {
        if matches!(self.front, Front::Closed(_)) {
            return;
        }
        if self
            .wanted
            .as_ref()
            .is_some_and(|known| known.revision == wanted.revision && known.shape == wanted.shape)
        {
            self.wanted = Some(wanted);
            return;
        }
        out.push(note(EventKind::Saved, format!("revision {}", wanted.revision.short())));
        self.wanted = Some(wanted.clone());
        self.fault = None;
        self.strikes = 0;
        self.front = match std::mem::replace(&mut self.front, Front::Cold) {
            Front::Cold | Front::Failed(_) => Front::Cold,
            Front::Rising(mut rising) if rising.wanted.serves(&wanted) => {
                rising.wanted = wanted;
                Front::Rising(rising)
            }
            Front::Rising(rising) => {
                self.stop(rising.run, out);
                Front::Rising(self.start(now, wanted, out))
            }
            Front::Ready { mut live, successor } if live.wanted.serves(&wanted) => {
                live.wanted = wanted;
                self.abandon(successor, out);
                Front::Ready { live, successor: None }
            }
            Front::Ready {
                live,
                successor: Some(mut rising),
            } if rising.wanted.serves(&wanted) => {
                rising.wanted = wanted;
                Front::Ready {
                    live,
                    successor: Some(rising),
                }
            }
            Front::Ready { live, successor } => {
                self.abandon(successor, out);
                let successor = Some(self.start(now, wanted, out));
                Front::Ready { live, successor }
            }
            closed @ Front::Closed(_) => closed,
        };
    }

    fn unplannable(&mut self, reason: FailReason, out: &mut Vec<Action>) {
        if matches!(self.front, Front::Closed(_)) || self.wanted.is_none() && self.fault.as_ref() == Some(&reason) {
            return;
        }
        if reason.kind != FailKind::NotAnApp {
            out.push(note(EventKind::Failed, reason.to_string()));
        }
        self.wanted = None;
        self.front = match std::mem::replace(&mut self.front, Front::Cold) {
            Front::Ready { live, successor } => {
                self.abandon(successor, out);
                Front::Ready { live, successor: None }
            }
            Front::Rising(rising) => {
                self.stop(rising.run, out);
                Front::Cold
            }
            Front::Cold | Front::Failed(_) => Front::Cold,
            closed @ Front::Closed(_) => closed,
        };
        self.fault = Some(reason);
        if matches!(self.front, Front::Cold) {
            let refusal = self.nothing_to_start();
            self.refuse(refusal, out);
        }
    }

    fn request(&mut self, now: Moment, waiter: WaiterId, out: &mut Vec<Action>) {
        match &self.front {
            Front::Ready { live, .. } => out.push(Action::Answer(live.run, vec![waiter])),
            Front::Rising(_) => {
                self.waiters.insert(waiter);
            }
            Front::Closed(Closing::Deleted) => out.push(Action::Refuse(vec![waiter], Refusal::NoSuchApp)),
            Front::Closed(Closing::Shutdown) => out.push(Action::Refuse(vec![waiter], Refusal::ShuttingDown)),
            Front::Failed(setback) if now < setback.until => {
                let refusal = Refusal::Failed(setback.reason.clone(), setback.until - now);
                out.push(Action::Refuse(vec![waiter], refusal));
            }
            Front::Cold | Front::Failed(_) => match self.wanted.clone() {
                None => out.push(Action::Refuse(vec![waiter], self.nothing_to_start())),
                Some(wanted) => {
                    self.waiters.insert(waiter);
                    self.front = Front::Rising(self.start(now, wanted, out));
                }
            },
        }
    }

    fn nothing_to_start(&self) -> Refusal {
        match &self.fault {
            Some(fault) if fault.kind != FailKind::NotAnApp => Refusal::Failed(fault.clone(), Duration::ZERO),
            _ => Refusal::NoSuchApp,
        }
    }

    fn stop_asked(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.front = match std::mem::replace(&mut self.front, Front::Cold) {
            Front::Rising(rising) => {
                self.stop(rising.run, out);
                Front::Cold
            }
            Front::Ready { live, successor } => {
                self.abandon(successor, out);
                self.drain(now, live.run, out);
                Front::Cold
            }
            Front::Cold | Front::Failed(_) => Front::Cold,
            closed @ Front::Closed(_) => closed,
        };
        self.strikes = 0;
        self.refuse(Refusal::Stopped, out);
    }

    fn restart_asked(&mut self, now: Moment, out: &mut Vec<Action>) {
        let Some(wanted) = self.wanted.clone() else { return };
        self.strikes = 0;
        self.front = match std::mem::replace(&mut self.front, Front::Cold) {
            Front::Cold | Front::Failed(_) => Front::Rising(self.start(now, wanted, out)),
            Front::Rising(rising) => {
                self.stop(rising.run, out);
                Front::Rising(self.start(now, wanted, out))
            }
            Front::Ready { live, successor } => {
                self.abandon(successor, out);
                let successor = Some(self.start(now, wanted, out));
                Front::Ready { live, successor }
            }
            closed @ Front::Closed(_) => closed,
        };
    }

    fn close(&mut self, why: Closing, out: &mut Vec<Action>) {
        match std::mem::replace(&mut self.front, Front::Closed(why)) {
            // The end is told once only.
            Front::Closed(first) => {
                self.front = Front::Closed(first);
                return;
            }
            Front::Rising(rising) => self.stop(rising.run, out),
            Front::Ready { live, successor } => {
                self.abandon(successor, out);
                self.stop(live.run, out);
            }
            Front::Cold | Front::Failed(_) => {}
        }
        let draining: Vec<_> = self
            .leaving
            .iter()
            .filter(|(_, leaving)| **leaving != Leaving::Stopping)
            .map(|(run, _)| *run)
            .collect();
        for run in draining {
            self.stop(run, out);
        }
        let refusal = match why {
            Closing::Deleted => Refusal::NoSuchApp,
            Closing::Shutdown => Refusal::ShuttingDown,
        };
        self.refuse(refusal, out);
        if self.leaving.is_empty() {
            out.push(Action::Retire);
        }
    }

    fn listening(&mut self, now: Moment, run: RunId, out: &mut Vec<Action>) {
        if self.rising().is_none_or(|rising| rising.run != run) {
            return;
        }
        let (risen, old) = match std::mem::replace(&mut self.front, Front::Cold) {
            Front::Rising(rising) => (rising, None),
            Front::Ready {
                live,
                successor: Some(rising),
            } => (rising, Some(live)),
            other => {
                self.front = other;
                return;
            }
        };
        let short = risen.wanted.revision.short().to_owned();
        self.fault = None;
        self.front = Front::Ready {
            live: Live {
                run,
                wanted: risen.wanted,
                since: now,
                last_used: now,
                cpu: Duration::ZERO,
                rest: Rest::Awake { look: None },
            },
            successor: None,
        };
        out.push(Action::Open(run));
        let waiters: Vec<_> = std::mem::take(&mut self.waiters).into_iter().collect();
        if !waiters.is_empty() {
            out.push(Action::Answer(run, waiters));
        }
        match old {
            None => out.push(note(EventKind::Ready, format!("revision {short} is ready"))),
            Some(old) => {
                let before = old.wanted.revision.short();
                out.push(note(
                    EventKind::Swapped,
                    format!("revision {short} took over from {before}"),
                ));
                self.drain(now, old.run, out);
            }
        }
    }

    fn broke(&mut self, now: Moment, run: RunId, reason: FailReason, out: &mut Vec<Action>) {
        if self
            .leaving
            .get(&run)
            .is_some_and(|leaving| *leaving != Leaving::Stopping)
        {
            self.stop(run, out);
            return;
        }
        self.front = match std::mem::replace(&mut self.front, Front::Cold) {
            Front::Rising(rising) if rising.run == run => {
                self.stop(run, out);
                self.strikes += 1;
                let until = now + backoff(self.strikes);
                out.push(note(EventKind::Failed, reason.to_string()));
                self.refuse(Refusal::Failed(reason.clone(), until - now), out);
                Front::Failed(Setback { reason, until })
            }
            Front::Ready {
                live,
                successor: Some(rising),
            } if rising.run == run => {
                self.stop(run, out);
                let (new, old) = (rising.wanted.revision.short(), live.wanted.revision.short());
                let text = format!("revision {new} did not start, {old} goes on serving: {reason}");
                out.push(note(EventKind::Failed, text));
                self.fault = Some(reason);
                Front::Ready { live, successor: None }
            }
            Front::Ready { live, successor } if live.run == run => {
                self.stop(run, out);
                // The first crash costs the next request a start and nothing more; a crash loop is slowed down.
                self.strikes = if now.saturating_sub(live.since) >= HEALTHY {
                    1
                } else {
                    self.strikes + 1
                };
                out.push(note(EventKind::Failed, reason.to_string()));
                let until = now + backoff(self.strikes - 1);
                successor.map_or(Front::Failed(Setback { reason, until }), Front::Rising)
            }
            other => other,
        };
    }

    fn drained(&mut self, run: RunId, out: &mut Vec<Action>) {
        if matches!(self.leaving.get(&run), Some(Leaving::Draining(_))) {
            self.stop(run, out);
        }
    }

    fn stopped(&mut self, run: RunId, out: &mut Vec<Action>) {
        if self.leaving.get(&run) == Some(&Leaving::Stopping) {
            self.leaving.remove(&run);
            if matches!(self.front, Front::Closed(_)) && self.leaving.is_empty() {
                out.push(Action::Retire);
            }
        }
    }

    fn tick(&mut self, now: Moment, out: &mut Vec<Action>) {
        let late = self
            .rising()
            .filter(|rising| rising.deadline.is_some_and(|deadline| deadline <= now));
        if let Some((run, reason)) = late.map(|rising| (rising.run, rising.too_late(&self.limits))) {
            self.broke(now, run, reason, out);
        }
        self.descend(now, out);
        let over: Vec<_> = self
            .leaving
            .iter()
            .filter(|(_, leaving)| matches!(leaving, Leaving::Draining(until) if *until <= now))
            .map(|(run, _)| *run)
            .collect();
        for run in over {
            self.stop(run, out);
        }
    }

    fn start(&mut self, now: Moment, wanted: Wanted, out: &mut Vec<Action>) -> Rising {
        self.last_run += 1;
        let run = RunId(self.last_run);
        out.push(Action::Start(run, wanted.clone()));
        Rising::new(run, wanted, now)
    }

    fn abandon(&mut self, successor: Option<Rising>, out: &mut Vec<Action>) {
        if let Some(rising) = successor {
            self.stop(rising.run, out);
        }
    }

    fn drain(&mut self, now: Moment, run: RunId, out: &mut Vec<Action>) {
        out.push(Action::Drain(run));
        self.leaving.insert(run, Leaving::Draining(now + self.limits.drain));
    }

    fn stop(&mut self, run: RunId, out: &mut Vec<Action>) {
        out.push(Action::Stop(run));
        self.leaving.insert(run, Leaving::Stopping);
    }

    fn refuse(&mut self, refusal: Refusal, out: &mut Vec<Action>) {
        let waiters: Vec<_> = std::mem::take(&mut self.waiters).into_iter().collect();
        if !waiters.is_empty() {
            out.push(Action::Refuse(waiters, refusal));
        }
    }
}

fn note(kind: EventKind, text: String) -> Action {
    Action::Note(kind, text)
}
