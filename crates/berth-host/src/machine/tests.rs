//! The rules, one by one, and then against every order of events that a random world can bring about.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};

use berth_workspace::{FileMode, SourceFile, revision};
use proptest::prelude::*;

use super::*;

const S: Duration = Duration::from_secs(1);

fn limits() -> Limits {
    Limits {
        start: S * 60,
        install: S * 600,
        create: S * 30,
        drain: S * 30,
        keep_last_good: S * 86_400,
    }
}

fn wanted(n: u64) -> Wanted {
    let file = SourceFile {
        path: "a".into(),
        mode: FileMode::Regular,
        size: n,
        content: n.to_string(),
    };
    Wanted {
        revision: revision(&[file]),
        shape: 1,
        in_place: false,
        idle_stop: S * 600,
    }
}

fn crash() -> FailReason {
    FailReason::new(FailKind::Crashed, "it ended")
}

fn early() -> FailReason {
    FailReason::new(FailKind::ExitedEarly, "it ended early")
}

fn run(n: u64) -> RunId {
    RunId(n)
}

/// Actions without the notes.
fn acts(state: &mut State, now: Duration, event: Event) -> Vec<Action> {
    let mut actions = state.apply(now, event);
    actions.retain(|action| !matches!(action, Action::Note(..)));
    actions
}

/// An app that serves revision 1 in sandbox 1 since second 1.
fn serving() -> State {
    let mut state = State::new(limits());
    let _ = state.apply(S, Event::Saved(wanted(1)));
    let _ = state.apply(S, Event::Request(WaiterId(0)));
    let _ = state.apply(S, Event::Climbed(run(1), Climb::Starting));
    let _ = state.apply(S, Event::Listening(run(1)));
    assert_eq!(state.phase(), AppState::Ready);
    state
}

#[test]
fn nothing_runs_until_a_request_comes() {
    let mut state = State::new(limits());
    assert_eq!(acts(&mut state, S, Event::Saved(wanted(1))), []);
    assert_eq!(state.phase(), AppState::Cold);
    assert_eq!(
        acts(&mut state, S, Event::Request(WaiterId(1))),
        [Action::Start(run(1), wanted(1))]
    );
    assert_eq!(
        acts(&mut state, S, Event::Request(WaiterId(2))),
        [],
        "the second request starts nothing"
    );
    assert_eq!(
        acts(&mut state, S * 2, Event::Listening(run(1))),
        [
            Action::Open(run(1)),
            Action::Answer(run(1), vec![WaiterId(1), WaiterId(2)])
        ]
    );
}

#[test]
fn a_new_revision_takes_over_only_when_it_listens() {
    let mut state = serving();
    assert_eq!(
        acts(&mut state, S * 2, Event::Saved(wanted(2))),
        [Action::Start(run(2), wanted(2))]
    );
    assert_eq!(
        acts(&mut state, S * 2, Event::Request(WaiterId(1))),
        [Action::Answer(run(1), vec![WaiterId(1)])]
    );
    assert_eq!(
        acts(&mut state, S * 3, Event::Listening(run(2))),
        [Action::Open(run(2)), Action::Drain(run(1))]
    );
    assert_eq!(acts(&mut state, S * 4, Event::Drained(run(1))), [Action::Stop(run(1))]);
    assert_eq!(acts(&mut state, S * 4, Event::Stopped(run(1))), []);
    assert_eq!(state.phase(), AppState::Ready);
}

#[test]
fn a_revision_that_does_not_start_never_replaces_one_that_works() {
    let mut state = serving();
    let _ = state.apply(S * 2, Event::Saved(wanted(2)));
    assert_eq!(
        acts(&mut state, S * 3, Event::Broke(run(2), early())),
        [Action::Stop(run(2))]
    );
    assert_eq!((state.phase(), state.error()), (AppState::Ready, Some(&early())));
    assert_eq!(
        acts(&mut state, S * 3, Event::Request(WaiterId(1))),
        [Action::Answer(run(1), vec![WaiterId(1)])]
    );
    // Being idle does not end it either: it is the only copy of the revision that works.
    assert_eq!(acts(&mut state, S * 700, Event::Tick), []);
    // The mended save clears the error.
    assert_eq!(
        acts(&mut state, S * 701, Event::Saved(wanted(3))),
        [Action::Start(run(3), wanted(3))]
    );
    assert_eq!(state.error(), None);
}

#[test]
fn a_newer_save_abandons_the_one_that_is_starting() {
    let mut state = serving();
    let _ = state.apply(S * 2, Event::Saved(wanted(2)));
    assert_eq!(
        acts(&mut state, S * 2, Event::Saved(wanted(3))),
        [Action::Stop(run(2)), Action::Start(run(3), wanted(3))]
    );
    assert_eq!(
        acts(&mut state, S * 3, Event::Listening(run(2))),
        [],
        "its late word is not heard"
    );
    assert_eq!(
        acts(&mut state, S * 3, Event::Listening(run(3))),
        [Action::Open(run(3)), Action::Drain(run(1))]
    );
}

#[test]
fn undoing_an_edit_keeps_the_sandbox_that_serves() {
    let mut state = serving();
    let _ = state.apply(S * 2, Event::Saved(wanted(2)));
    assert_eq!(acts(&mut state, S * 2, Event::Saved(wanted(1))), [Action::Stop(run(2))]);
    assert!(state.rising().is_none());
}

#[test]
fn a_static_app_needs_no_new_sandbox_for_new_content() {
    let site = |n: u64, shape| Wanted {
        in_place: true,
        shape,
        ..wanted(n)
    };
    let mut state = State::new(limits());
    let _ = state.apply(S, Event::Saved(site(1, 1)));
    let _ = state.apply(S, Event::Request(WaiterId(1)));
    let _ = state.apply(S, Event::Listening(run(1)));
    assert_eq!(acts(&mut state, S, Event::Saved(site(2, 1))), []);
    let Front::Ready { live, .. } = state.front() else {
        panic!("{:?}", state.front())
    };
    assert_eq!(live.wanted.revision, site(2, 1).revision);
    assert_eq!(
        acts(&mut state, S, Event::Saved(site(3, 2))),
        [Action::Start(run(2), site(3, 2))]
    );
}

#[test]
fn a_mistake_in_the_description_keeps_the_last_good_revision_serving() {
    let mut state = serving();
    let bad = FailReason::new(FailKind::BadPlan, "workspace.json line 3");
    assert_eq!(acts(&mut state, S * 2, Event::Unplannable(bad.clone())), []);
    assert_eq!((state.phase(), state.error()), (AppState::Ready, Some(&bad)));

    let mut state = State::new(limits());
    let _ = state.apply(S, Event::Unplannable(bad.clone()));
    assert_eq!(state.phase(), AppState::Failed);
    let refusal = Refusal::Failed(bad, Duration::ZERO);
    assert_eq!(
        acts(&mut state, S, Event::Request(WaiterId(1))),
        [Action::Refuse(vec![WaiterId(1)], refusal)]
    );
}

#[test]
fn a_folder_that_is_no_app_is_no_failure() {
    let mut state = State::new(limits());
    let _ = state.apply(S, Event::Unplannable(FailReason::new(FailKind::NotAnApp, "no app")));
    assert_eq!(state.phase(), AppState::Cold);
    assert_eq!(
        acts(&mut state, S, Event::Request(WaiterId(1))),
        [Action::Refuse(vec![WaiterId(1)], Refusal::NoSuchApp)]
    );
}

#[test]
fn the_first_crash_costs_no_wait_and_a_crash_loop_is_slowed_down() {
    let mut state = serving();
    let mut now = S * 2;
    let mut waits = Vec::new();
    for n in 1..9 {
        let _ = state.apply(now, Event::Broke(run(n), crash()));
        let Front::Failed(setback) = state.front().clone() else {
            panic!("{:?}", state.front())
        };
        waits.push((setback.until - now).as_secs());
        if setback.until > now {
            let refused = acts(&mut state, now, Event::Request(WaiterId(n)));
            assert_eq!(
                refused,
                [Action::Refuse(
                    vec![WaiterId(n)],
                    Refusal::Failed(crash(), setback.until - now)
                )]
            );
        }
        now = setback.until;
        assert_eq!(
            acts(&mut state, now, Event::Request(WaiterId(n))),
            [Action::Start(run(n + 1), wanted(1))]
        );
        let _ = state.apply(now, Event::Listening(run(n + 1)));
    }
    assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60]);
    // A minute of good health wipes the record.
    let _ = state.apply(now + S * 60, Event::Broke(run(9), crash()));
    assert!(matches!(state.front(), Front::Failed(setback) if setback.until == now + S * 60));
}

#[test]
fn a_failed_start_answers_those_who_wait_and_a_save_resets_the_back_off() {
    let mut state = State::new(limits());
    let _ = state.apply(S, Event::Saved(wanted(1)));
    let _ = state.apply(S, Event::Request(WaiterId(1)));
    assert_eq!(
        acts(&mut state, S * 2, Event::Broke(run(1), early())),
        [
            Action::Stop(run(1)),
            Action::Refuse(vec![WaiterId(1)], Refusal::Failed(early(), S))
        ]
    );
    assert_eq!((state.phase(), state.error()), (AppState::Failed, Some(&early())));
    let _ = state.apply(S * 2, Event::Saved(wanted(2)));
    assert_eq!(
        acts(&mut state, S * 2, Event::Request(WaiterId(2))),
        [Action::Start(run(2), wanted(2))]
    );
}

#[test]
fn each_phase_of_a_start_has_its_own_limit_and_its_own_reason() {
    let cases = [
        (Climb::Creating, S * 30, FailKind::Sandbox),
        (Climb::Copying, S * 600, FailKind::InstallTimeout),
        (Climb::Installing, S * 600, FailKind::InstallTimeout),
        (Climb::Starting, S * 60, FailKind::NeverListened),
    ];
    for (climb, limit, kind) in cases {
        let mut state = State::new(limits());
        let _ = state.apply(S, Event::Saved(wanted(1)));
        let _ = state.apply(S, Event::Request(WaiterId(1)));
        let _ = state.apply(S, Event::Climbed(run(1), climb));
        assert_eq!(state.deadline(), Some(S + limit), "{climb:?}");
        assert_eq!(
            acts(&mut state, limit, Event::Tick),
            [],
            "{climb:?}: not before its time"
        );
        let _ = state.apply(S + limit, Event::Tick);
        assert_eq!(state.error().map(|reason| reason.kind), Some(kind), "{climb:?}");
    }
    let mut state = State::new(limits());
    let _ = state.apply(S, Event::Saved(wanted(1)));
    let _ = state.apply(S, Event::Request(WaiterId(1)));
    let _ = state.apply(S, Event::Climbed(run(1), Climb::Starting));
    let _ = state.apply(S * 50, Event::Climbed(run(1), Climb::Unhealthy));
    let _ = state.apply(S * 61, Event::Tick);
    assert_eq!(
        state.error().map(|reason| reason.kind),
        Some(FailKind::Unhealthy),
        "listening does not buy time"
    );
}

#[test]
fn an_idle_app_is_stopped_and_a_used_one_is_not() {
    let mut state = serving();
    assert_eq!(state.deadline(), Some(S * 601));
    let _ = state.apply(S * 601, Event::Used(run(1), S * 500));
    assert_eq!(acts(&mut state, S * 601, Event::Tick), []);
    assert_eq!(state.deadline(), Some(S * 1100));
    assert_eq!(acts(&mut state, S * 1100, Event::Tick), [Action::Drain(run(1))]);
    assert_eq!(state.phase(), AppState::Stopping);
    let _ = state.apply(S * 1101, Event::Drained(run(1)));
    let _ = state.apply(S * 1102, Event::Stopped(run(1)));
    assert_eq!(state.phase(), AppState::Cold);
}

#[test]
fn an_app_that_shall_never_stop_has_no_idle_deadline() {
    let mut state = State::new(limits());
    let _ = state.apply(
        S,
        Event::Saved(Wanted {
            idle_stop: Duration::MAX,
            ..wanted(1)
        }),
    );
    let _ = state.apply(S, Event::Request(WaiterId(1)));
    let _ = state.apply(S, Event::Listening(run(1)));
    assert_eq!(state.deadline(), None);
}

#[test]
fn a_draining_sandbox_is_stopped_at_the_limit_at_the_latest() {
    let mut state = serving();
    let _ = state.apply(S * 2, Event::Saved(wanted(2)));
    let _ = state.apply(S * 3, Event::Listening(run(2)));
    assert_eq!(state.deadline(), Some(S * 33));
    assert_eq!(acts(&mut state, S * 33, Event::Tick), [Action::Stop(run(1))]);
}

#[test]
fn a_deleted_workspace_leaves_nothing_and_its_driver_ends() {
    let mut state = serving();
    let _ = state.apply(S * 2, Event::Saved(wanted(2)));
    assert_eq!(
        acts(&mut state, S * 2, Event::Deleted),
        [Action::Stop(run(2)), Action::Stop(run(1))]
    );
    assert_eq!(
        acts(&mut state, S * 2, Event::Request(WaiterId(1))),
        [Action::Refuse(vec![WaiterId(1)], Refusal::NoSuchApp)]
    );
    let _ = state.apply(S * 3, Event::Stopped(run(1)));
    assert_eq!(acts(&mut state, S * 3, Event::Stopped(run(2))), [Action::Retire]);
}

/// What may happen next; indexes are reduced to what there is.
#[derive(Clone, Debug)]
enum Step {
    Save { n: u64, shape: u64 },
    Mistake,
    Request,
    Withdraw(usize),
    Climb(usize, u8),
    Listen(usize),
    Break(usize),
    Drained(usize),
    Removed(usize),
    Used(usize),
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
        2 => which.prop_map(Step::Used),
        1 => Just(Step::Stop),
        1 => Just(Step::Restart),
        4 => (0..2000_u64).prop_map(Step::Wait),
        1 => Just(Step::Delete),
        1 => Just(Step::Shutdown),
    ]
}

/// The world as the machine's actions make it, and the rules.
#[derive(Default)]
struct World {
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
                    self.open = Some(run);
                }
                Action::Answer(run, waiters) => {
                    assert_eq!(self.open, Some(run), "leases on a sandbox that is not open");
                    self.answer(waiters);
                }
                Action::Refuse(waiters, _) => self.answer(waiters),
                Action::Drain(run) => {
                    assert!(self.opened.contains(&run) && !self.stopping.contains(&run));
                    assert!(self.draining.insert(run), "{run:?} is drained twice");
                    self.open = self.open.filter(|open| *open != run);
                }
                Action::Stop(run) => {
                    assert!(self.started.contains(&run), "{run:?} was never started");
                    assert!(self.stopping.insert(run), "{run:?} is stopped twice");
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
        let serving = match state.front() {
            Front::Ready { live, .. } => Some(live.run),
            _ => None,
        };
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
                Step::Save { n, shape } => Event::Saved(Wanted { shape, in_place: shape == 1, ..wanted(n) }),
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
                    let all: Vec<_> = world.draining.iter().copied().collect();
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
                Step::Stop => Event::StopAsked,
                Step::Restart => Event::RestartAsked,
                Step::Wait(seconds) => {
                    now += S * u32::try_from(seconds).unwrap();
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
        prop_assert!(world.waiting.is_empty());
        prop_assert!(world.answers.values().all(|times| *times == 1));
    }
}
