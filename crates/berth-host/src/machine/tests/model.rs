//! All rules against every order of events that a random world can bring about.
//!
//! The world plays all that the machine does not own: sandboxes with their gates and freezers, requests that come by the warm
//! path or by way of the driver, and the messages that are under way. A freeze is ordered at one moment, done at another and heard of
//! at a third, and anything may happen in between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

/// What may happen next; indexes are reduced to what there is.
#[derive(Clone, Debug)]
enum Step {
    Save {
        n: u64,
        shape: u64,
    },
    Mistake,
    Request,
    Withdraw(usize),
    Climb(usize, u8),
    Listen(usize),
    Break(usize),
    Drained(usize),
    Removed(usize),
    Used(usize),
    /// A request by the warm path: it takes its lease at the gate of the sandbox that is open.
    Lease,
    Release(usize),
    /// The task that freezes gets its turn; perhaps there is no freezer.
    FreezerTurn(usize, bool),
    /// The driver hears the oldest message of gate and freezer.
    Hear,
    Work(u64),
    Squeeze,
    Stop,
    Restart,
    Wait(u64),
    Delete,
    Shutdown,
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..8_usize;
    prop_oneof![
        4 => (0..4_u64, 0..2_u64).prop_map(|(n, shape)| Step::Save { n, shape }),
        1 => Just(Step::Mistake),
        8 => Just(Step::Request),
        2 => which.clone().prop_map(Step::Withdraw),
        4 => (which.clone(), 0..5_u8).prop_map(|(run, climb)| Step::Climb(run, climb)),
        8 => which.clone().prop_map(Step::Listen),
        3 => which.clone().prop_map(Step::Break),
        4 => which.clone().prop_map(Step::Drained),
        6 => which.clone().prop_map(Step::Removed),
        2 => which.clone().prop_map(Step::Used),
        6 => Just(Step::Lease),
        6 => which.clone().prop_map(Step::Release),
        8 => (which, proptest::bool::weighted(0.9)).prop_map(|(run, works)| Step::FreezerTurn(run, works)),
        8 => Just(Step::Hear),
        1 => (1..100_u64).prop_map(Step::Work),
        2 => Just(Step::Squeeze),
        1 => Just(Step::Stop),
        1 => Just(Step::Restart),
        4 => (0..2000_u64).prop_map(Step::Wait),
        1 => Just(Step::Delete),
        1 => Just(Step::Shutdown),
    ]
}

/// The gate and the freezer of one sandbox.
#[derive(Debug, Default)]
struct Door {
    closed: bool,
    frozen: bool,
    leases: u32,
}

/// The world as the machine's actions make it, and the rules.
#[derive(Default)]
struct World {
    doors: BTreeMap<RunId, Door>,
    /// Orders to freeze that nobody has taken up yet.
    to_freeze: BTreeSet<RunId>,
    /// Told to the driver, and not heard yet.
    under_way: VecDeque<Event>,
    /// CPU time of all sandboxes alike.
    cpu: Duration,
    started: BTreeSet<RunId>,
    listening: BTreeSet<RunId>,
    opened: BTreeSet<RunId>,
    open: Option<RunId>,
    draining: BTreeSet<RunId>,
    stopping: BTreeSet<RunId>,
    removed: BTreeSet<RunId>,
    waiting: BTreeSet<WaiterId>,
    answers: BTreeMap<WaiterId, u32>,
    retired: bool,
}

impl World {
    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            assert!(!self.retired, "{action:?} after the end");
            match action {
                Action::Start(run, _) => assert!(self.started.insert(run), "{run:?} is started twice"),
                Action::Open(run) => {
                    assert!(self.listening.contains(&run), "{run:?} is opened but does not listen");
                    assert!(
                        !self.draining.contains(&run) && !self.stopping.contains(&run),
                        "{run:?} was closed"
                    );
                    assert!(self.opened.insert(run), "{run:?} is opened twice");
                    self.doors.insert(run, Door::default());
                    self.open = Some(run);
                }
                Action::Answer(run, waiters) => {
                    assert_eq!(self.open, Some(run), "leases on a sandbox that is not open");
                    waiters.iter().for_each(|_| self.lease(run));
                    self.answer(waiters);
                }
                Action::Freeze(run) => {
                    assert_eq!(self.open, Some(run), "only the one that serves is frozen");
                    assert!(!self.doors[&run].frozen, "{run:?} is frozen twice");
                    assert!(self.to_freeze.insert(run), "{run:?} is told twice to freeze");
                }
                // Between its order and this one a request may have thawed it: then nothing is handed back.
                Action::Reclaim(run, _) => assert_eq!(self.open, Some(run)),
                Action::Refuse(waiters, _) => self.answer(waiters),
                Action::Drain(run) => {
                    assert!(self.opened.contains(&run) && !self.stopping.contains(&run));
                    assert!(self.draining.insert(run), "{run:?} is drained twice");
                    self.close(run);
                    self.open = self.open.filter(|open| *open != run);
                }
                Action::Stop(run) => {
                    assert!(self.started.contains(&run), "{run:?} was never started");
                    assert!(self.stopping.insert(run), "{run:?} is stopped twice");
                    self.close(run);
                    self.open = self.open.filter(|open| *open != run);
                }
                Action::Retire => {
                    assert_eq!(self.removed, self.started, "the end comes while a sandbox is there");
                    assert!(self.waiting.is_empty());
                    self.retired = true;
                }
                Action::Note(..) => {}
            }
        }
    }

    /// A request takes its lease, and wakes the sandbox first if it sleeps.
    fn lease(&mut self, run: RunId) {
        let door = self.doors.get_mut(&run).unwrap();
        assert!(!door.closed);
        door.leases += 1;
        if std::mem::take(&mut door.frozen) {
            self.under_way.push_back(Event::Thawed(run));
        }
    }

    /// The gate is closed and the freezer let go of.
    fn close(&mut self, run: RunId) {
        if let Some(door) = self.doors.get_mut(&run) {
            door.closed = true;
            door.frozen = false;
        }
    }

    /// What the task that freezes does when it gets its turn.
    fn freezer_turn(&mut self, run: RunId, works: bool) {
        self.to_freeze.remove(&run);
        let door = self.doors.get_mut(&run).unwrap();
        let told = if door.closed || door.frozen || door.leases > 0 {
            Event::StayedAwake(run)
        } else if works {
            door.frozen = true;
            Event::Froze(run)
        } else {
            Event::CannotFreeze(run, "no freezer".to_owned())
        };
        self.under_way.push_back(told);
    }

    fn answer(&mut self, waiters: Vec<WaiterId>) {
        assert!(!waiters.is_empty());
        for waiter in waiters {
            assert!(
                self.waiting.remove(&waiter),
                "{waiter:?} is answered, but does not wait"
            );
            *self.answers.entry(waiter).or_default() += 1;
        }
    }

    /// The sandboxes that are neither removed nor being stopped.
    fn alive(&self) -> Vec<RunId> {
        self.started.difference(&self.stopping).copied().collect()
    }

    fn check(&self, state: &State) {
        for (run, door) in &self.doors {
            assert!(
                !door.frozen || door.leases == 0,
                "{run:?} is frozen while a lease is held"
            );
            assert!(
                !door.frozen || !door.closed,
                "{run:?} is on its way out and cannot hear it"
            );
        }
        let serving = match state.front() {
            Front::Ready { live, .. } => Some(live.run),
            _ => None,
        };
        if let Front::Ready { live, .. } = state.front()
            && self.under_way.is_empty()
        {
            let frozen = matches!(live.rest, Rest::Frozen { .. });
            assert_eq!(
                frozen, self.doors[&live.run].frozen,
                "the driver knows whether {:?} is frozen",
                live.run
            );
            let freezing = live.rest == Rest::Freezing;
            assert_eq!(freezing, self.to_freeze.contains(&live.run));
        }
        assert_eq!(self.open, serving, "the open sandbox is the one that is ready");
        let rising = state.rising().map(|rising| rising.run);
        let known: BTreeSet<RunId> = serving
            .into_iter()
            .chain(rising)
            .chain(self.draining.difference(&self.stopping).copied())
            .collect();
        assert_eq!(
            self.alive().into_iter().collect::<BTreeSet<_>>(),
            known,
            "no sandbox is forgotten"
        );
        assert_eq!(state.waiting(), self.waiting.len());
        assert!(
            self.waiting.is_empty() || rising.is_some() && serving.is_none(),
            "waiters wait for something"
        );
        if matches!(state.front(), Front::Closed(_)) {
            assert!(self.alive().is_empty() && self.waiting.is_empty());
        }
    }
}

fn pick(from: &[RunId], n: usize) -> Option<RunId> {
    from.get(n % from.len().max(1)).copied()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_the_rules_hold(steps in proptest::collection::vec(step(), 1..80)) {
        let mut state = State::new(limits());
        let mut world = World::default();
        let mut now = Duration::ZERO;
        let mut next_waiter = 0;
        for step in steps {
            if world.retired {
                break;
            }
            let alive = world.alive();
            let event = match step {
                Step::Save { n, shape } => Event::Saved(Wanted { shape, in_place: shape == 1, idle_freeze: S * 60, ..wanted(n) }),
                Step::Mistake => Event::Unplannable(FailReason::new(FailKind::BadPlan, "bad")),
                Step::Request => {
                    next_waiter += 1;
                    world.waiting.insert(WaiterId(next_waiter));
                    Event::Request(WaiterId(next_waiter))
                }
                Step::Withdraw(n) => {
                    let all: Vec<_> = world.waiting.iter().copied().collect();
                    let Some(waiter) = all.get(n % all.len().max(1)) else { continue };
                    world.waiting.remove(waiter);
                    Event::Withdrawn(*waiter)
                }
                Step::Climb(n, climb) => {
                    let climb = [Climb::Creating, Climb::Copying, Climb::Installing, Climb::Starting, Climb::Unhealthy][usize::from(climb)];
                    let Some(run) = pick(&alive, n) else { continue };
                    Event::Climbed(run, climb)
                }
                // A sandbox may still say that it listens, or that it ended, after it was given up.
                Step::Listen(n) => {
                    let all: Vec<_> = world.started.difference(&world.removed).filter(|run| !world.listening.contains(run)).copied().collect();
                    let Some(run) = pick(&all, n) else { continue };
                    world.listening.insert(run);
                    Event::Listening(run)
                }
                Step::Break(n) => {
                    let all: Vec<_> = world.started.difference(&world.removed).copied().collect();
                    let Some(run) = pick(&all, n) else { continue };
                    Event::Broke(run, crash())
                }
                Step::Drained(n) => {
                    let all: Vec<_> = world.draining.iter().filter(|run| world.doors[run].leases == 0).copied().collect();
                    let Some(run) = pick(&all, n) else { continue };
                    Event::Drained(run)
                }
                Step::Removed(n) => {
                    let all: Vec<_> = world.stopping.difference(&world.removed).copied().collect();
                    let Some(run) = pick(&all, n) else { continue };
                    world.removed.insert(run);
                    Event::Stopped(run)
                }
                Step::Used(n) => {
                    let Some(run) = pick(&alive, n) else { continue };
                    Event::Used(run, now)
                }
                Step::Lease => {
                    if let Some(run) = world.open {
                        world.lease(run);
                        world.check(&state);
                    }
                    continue;
                }
                Step::Release(n) => {
                    let all: Vec<_> = world.doors.iter().filter(|(_, door)| door.leases > 0).map(|(run, _)| *run).collect();
                    if let Some(run) = pick(&all, n) {
                        world.doors.get_mut(&run).unwrap().leases -= 1;
                    }
                    continue;
                }
                Step::FreezerTurn(n, works) => {
                    let all: Vec<_> = world.to_freeze.iter().copied().collect();
                    if let Some(run) = pick(&all, n) {
                        world.freezer_turn(run, works);
                        world.check(&state);
                    }
                    continue;
                }
                Step::Hear => {
                    let Some(event) = world.under_way.pop_front() else { continue };
                    event
                }
                Step::Work(seconds) => {
                    world.cpu += S * u32::try_from(seconds).unwrap();
                    continue;
                }
                Step::Squeeze => Event::Squeezed,
                Step::Stop => Event::StopAsked,
                Step::Restart => Event::RestartAsked,
                Step::Wait(seconds) => {
                    now += S * u32::try_from(seconds).unwrap();
                    // As the driver does before each tick.
                    if let Some(run) = world.open {
                        if world.doors[&run].leases > 0 {
                            world.perform(state.apply(now, Event::Used(run, now)));
                            let actions = state.apply(now, Event::Tick);
                            let idle = [Action::Freeze(run), Action::Drain(run)];
                            prop_assert!(!idle.iter().any(|idle| actions.contains(idle)), "{run:?} is in use: {actions:?}");
                            world.perform(actions);
                            world.check(&state);
                            continue;
                        }
                        world.perform(state.apply(now, Event::Worked(run, world.cpu)));
                    }
                    Event::Tick
                }
                Step::Delete => Event::Deleted,
                Step::Shutdown => Event::Shutdown,
            };
            world.perform(state.apply(now, event));
            world.check(&state);
        }
        // However it went: told to end, it ends, with every waiter answered once and every sandbox stopped.
        if !world.retired {
            world.perform(state.apply(now, Event::Shutdown));
            let left: Vec<_> = world.stopping.difference(&world.removed).copied().collect();
            for run in left {
                world.removed.insert(run);
                world.perform(state.apply(now, Event::Stopped(run)));
            }
        }
        prop_assert!(world.retired || matches!(state.front(), Front::Closed(_)));
        prop_assert_eq!(&world.removed, &world.started);
        prop_assert!(world.doors.values().all(|door| door.closed && !door.frozen));
        prop_assert!(world.waiting.is_empty());
        prop_assert!(world.answers.values().all(|times| *times == 1));
    }
}
