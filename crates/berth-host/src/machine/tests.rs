//! The rules, one by one; in `idle.rs` those of the way down to frozen and stopped; in `model.rs` all of them against every order of
//! events that a random world can bring about.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod idle;
mod model;

use berth_workspace::{FileMode, SourceFile, revision};

use super::*;

const S: Duration = Duration::from_secs(1);

fn limits() -> Limits {
    Limits {
        start: S * 60,
        install: S * 600,
        create: S * 30,
        drain: S * 30,
        keep_last_good: S * 86_400,
        idle_reclaim: S * 300,
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
        // What is not about freezing goes without.
        idle_freeze: Duration::MAX,
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
