//! What becomes of a sandbox that serves and is not called: the way down the ladder, a rung at a time.
//!
//! ```text
//!            idle_freeze / 2       idle_freeze, and it rested             idle_reclaim
//!   awake ──────────────▶ looked at ─────────────▶ freezing ──▶ frozen ─────────────▶ frozen, memory handed back
//!     ▲                    │  ▲ it worked: look again │ in use    │                    │
//!     │ request            │  └────┘                  │           │ request: thawed    │
//!     └────────────────────┴──────────────────────────┴───────────┴────────────────────┘
//!   any of them ── idle_stop ──▶ drained and stopped
//! ```
//!
//! All three times count from the last use: the begin or end of a request, a stream or a tunnel, and now while one is open. An
//! app that works by itself (a queue, a timer) is not frozen, so its CPU time is looked at twice: what it used between the
//! two looks is its own work, since nobody called in between. `idle_stop` knows no such exception. An app that shall
//! work without callers says so in its `workspace.json`; without that, nothing that nobody calls runs for ever.

use std::time::Duration;

use berth_sandbox::Reclaim;

use super::{Action, Event, Front, Live, Moment, Rest, RunId, State, note};
use crate::snapshot::EventKind;

/// An app that uses less than one part in this many of a CPU rests. Two per cent: node, Python and Go servers that wait for
/// requests use a tenth of that, a timer that does something every second is below it, a queue at work above.
const REST: u32 = 50;

/// The next rung down.
enum Squeeze {
    Freeze(RunId),
    Reclaim(RunId),
    Stop(RunId),
}

impl State {
    /// When the serving sandbox goes one rung down, or is looked at.
    pub(super) fn idle_deadline(&self) -> Option<Moment> {
        let Front::Ready { live, successor: None } = &self.front else {
            return None;
        };
        let step = match live.rest {
            Rest::Awake { look } => next_look(live, look),
            Rest::Frozen { reclaimed: false } => live.last_used.checked_add(self.limits.idle_reclaim),
            Rest::Freezing | Rest::Frozen { reclaimed: true } | Rest::Sleepless => None,
        };
        step.into_iter().chain(self.idle_end(live)).min()
    }

    fn idle_end(&self, live: &Live) -> Option<Moment> {
        live.last_used.checked_add(self.patience(live))
    }

    /// How long the serving sandbox may be idle. While the newest save does not start, it is the only copy of the revision
    /// that works, and is kept for longer.
    fn patience(&self, live: &Live) -> Duration {
        let starts = self.fault.is_none();
        if starts {
            live.wanted.idle_stop
        } else {
            live.wanted.idle_stop.max(self.limits.keep_last_good)
        }
    }

    /// Goes down the rung that is due.
    pub(super) fn descend(&mut self, now: Moment, out: &mut Vec<Action>) {
        let Front::Ready { live, successor: None } = &self.front else {
            return;
        };
        let run = live.run;
        if self.idle_end(live).is_some_and(|end| end <= now) {
            out.push(note(
                EventKind::Stopped,
                "nobody called; stopped until the next request".to_owned(),
            ));
            self.front = Front::Cold;
            return self.drain(now, run, out);
        }
        if self.idle_deadline().is_none_or(|due| due > now) {
            return;
        }
        let Front::Ready { live, .. } = &mut self.front else {
            return;
        };
        live.rest = match live.rest {
            Rest::Awake { look } => match look.filter(|(at, _)| *at >= live.last_used) {
                Some((at, cpu)) if at_rest(now.saturating_sub(at), live.cpu.saturating_sub(cpu)) => {
                    out.push(Action::Freeze(run));
                    Rest::Freezing
                }
                _ => Rest::Awake {
                    look: Some((now, live.cpu)),
                },
            },
            Rest::Frozen { .. } => {
                out.push(Action::Reclaim(run, Reclaim::Own));
                Rest::Frozen { reclaimed: true }
            }
            unchanged @ (Rest::Freezing | Rest::Sleepless) => unchanged,
        };
    }

    /// Whether the serving sandbox can go a rung down when memory is short. What a workspace forbids, and what is the only copy of
    /// a revision that works, stays.
    pub fn yields(&self) -> bool {
        self.squeeze().is_some()
    }

    fn squeeze(&self) -> Option<Squeeze> {
        let Front::Ready { live, successor: None } = &self.front else {
            return None;
        };
        let may_stop = live.wanted.idle_stop != Duration::MAX && self.fault.is_none();
        match live.rest {
            Rest::Awake { .. } if live.wanted.idle_freeze != Duration::MAX => Some(Squeeze::Freeze(live.run)),
            Rest::Frozen { reclaimed: false } => Some(Squeeze::Reclaim(live.run)),
            Rest::Freezing => None,
            _ => may_stop.then_some(Squeeze::Stop(live.run)),
        }
    }

    /// Memory is short: a rung down before its time. One that works by itself is not spared.
    pub(super) fn squeezed(&mut self, now: Moment, out: &mut Vec<Action>) {
        match self.squeeze() {
            None => {}
            Some(Squeeze::Freeze(run)) => {
                self.rests(run, Rest::Freezing);
                out.push(Action::Freeze(run));
            }
            Some(Squeeze::Reclaim(run)) => {
                self.rests(run, Rest::Frozen { reclaimed: true });
                out.push(Action::Reclaim(run, Reclaim::All));
            }
            Some(Squeeze::Stop(run)) => {
                let text = "memory is short and nobody called; stopped until the next request";
                out.push(note(EventKind::Stopped, text.to_owned()));
                self.front = Front::Cold;
                self.drain(now, run, out);
            }
        }
    }

    fn rests(&mut self, run: RunId, rest: Rest) {
        if let Some(live) = self.serving(run) {
            live.rest = rest;
        }
    }

    /// What the gate and the freezer of the serving sandbox tell. A late word of one that no longer serves changes nothing.
    pub(super) fn resting(&mut self, now: Moment, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Used(run, at) => {
                if let Some(live) = self.serving(run) {
                    live.last_used = live.last_used.max(at);
                }
            }
            Event::Worked(run, cpu) => {
                if let Some(live) = self.serving(run) {
                    live.cpu = cpu;
                }
            }
            Event::Froze(run) => {
                if let Some(live) = self.serving(run) {
                    live.rest = Rest::Frozen { reclaimed: false };
                    let idle = Duration::from_secs(now.saturating_sub(live.last_used).as_secs());
                    let text = format!("nobody called for {}; frozen until the next request", span(idle));
                    out.push(note(EventKind::Frozen, text));
                }
            }
            Event::StayedAwake(run) => self.awake(now, run),
            Event::Thawed(run) => {
                if self.serving(run).is_some() {
                    out.push(note(EventKind::Thawed, "thawed by a request".to_owned()));
                }
                self.awake(now, run);
            }
            Event::CannotFreeze(run, reason) => {
                if let Some(live) = self.serving(run) {
                    live.rest = Rest::Sleepless;
                    let text = format!("it cannot be frozen, and runs on until it is stopped: {reason}");
                    out.push(note(EventKind::Warning, text));
                }
            }
            _ => {}
        }
    }

    fn awake(&mut self, now: Moment, run: RunId) {
        if let Some(live) = self.serving(run) {
            live.last_used = live.last_used.max(now);
            live.rest = Rest::Awake { look: None };
        }
    }

    fn serving(&mut self, run: RunId) -> Option<&mut Live> {
        match &mut self.front {
            Front::Ready { live, .. } if live.run == run => Some(live),
            _ => None,
        }
    }
}

/// When its CPU time is to be looked at: half-way to being frozen, and once more at the end.
fn next_look(live: &Live, look: Option<(Moment, Duration)>) -> Option<Moment> {
    if live.wanted.idle_freeze == Duration::MAX {
        return None;
    }
    let from = look.map_or(live.last_used, |(at, _)| at.max(live.last_used));
    from.checked_add(live.wanted.idle_freeze / 2)
}

fn at_rest(passed: Duration, used: Duration) -> bool {
    used.saturating_mul(REST) <= passed
}

fn span(of: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(of)
}
