//! The way down: looked at, frozen, its memory handed back, stopped; and back up.

use berth_sandbox::Reclaim;

use super::*;

/// Freezes after 100 s, hands its memory back after 300 s and is stopped after 600 s without use.
fn sleepy(n: u64) -> Wanted {
    Wanted {
        idle_freeze: S * 100,
        ..wanted(n)
    }
}

/// It serves since second 1.
fn serving() -> State {
    let mut state = State::new(limits());
    let _ = state.apply(S, Event::Saved(sleepy(1)));
    let _ = state.apply(S, Event::Request(WaiterId(0)));
    let _ = state.apply(S, Event::Listening(run(1)));
    state
}

/// It is frozen since second 101.
fn frozen() -> State {
    let mut state = serving();
    assert_eq!(acts(&mut state, S * 51, Event::Tick), []);
    assert_eq!(acts(&mut state, S * 101, Event::Tick), [Action::Freeze(run(1))]);
    assert_eq!(acts(&mut state, S * 101, Event::Froze(run(1))), []);
    assert_eq!(state.phase(), AppState::Frozen);
    state
}

fn worked(state: &mut State, now: Duration, milliseconds: u64) {
    let _ = state.apply(now, Event::Worked(run(1), Duration::from_millis(milliseconds)));
}

#[test]
fn an_idle_app_goes_down_a_rung_at_a_time() {
    let mut state = serving();
    assert_eq!(state.deadline(), Some(S * 51), "looked at half-way");
    let _ = state.apply(S * 51, Event::Tick);
    assert_eq!((state.deadline(), state.phase()), (Some(S * 101), AppState::Ready));
    assert_eq!(acts(&mut state, S * 101, Event::Tick), [Action::Freeze(run(1))]);
    assert_eq!(state.phase(), AppState::Ready, "not before it is true");
    assert_eq!(acts(&mut state, S * 102, Event::Tick), [], "it is told once");
    let told = state.apply(S * 101, Event::Froze(run(1)));
    assert!(
        matches!(&told[..], [Action::Note(EventKind::Frozen, text)] if text.contains("1m 40s")),
        "{told:?}"
    );
    assert_eq!((state.deadline(), state.phase()), (Some(S * 301), AppState::Frozen));
    assert_eq!(
        acts(&mut state, S * 301, Event::Tick),
        [Action::Reclaim(run(1), Reclaim::Own)]
    );
    assert_eq!((state.deadline(), state.phase()), (Some(S * 601), AppState::Frozen));
    assert_eq!(acts(&mut state, S * 601, Event::Tick), [Action::Drain(run(1))]);
    assert_eq!(state.phase(), AppState::Stopping);
}

#[test]
fn a_use_begins_the_count_again() {
    let mut state = serving();
    let _ = state.apply(S * 51, Event::Tick);
    let _ = state.apply(S * 101, Event::Used(run(1), S * 100));
    assert_eq!(
        acts(&mut state, S * 101, Event::Tick),
        [],
        "the first look counts no more"
    );
    assert_eq!(state.deadline(), Some(S * 150));
    let _ = state.apply(S * 150, Event::Tick);
    assert_eq!(acts(&mut state, S * 199, Event::Tick), []);
    assert_eq!(acts(&mut state, S * 200, Event::Tick), [Action::Freeze(run(1))]);
}

#[test]
fn an_app_that_works_by_itself_is_not_frozen_until_it_rests_and_is_stopped_in_the_end() {
    let mut state = serving();
    // What its last request cost is no work of its own.
    worked(&mut state, S * 51, 30_000);
    let _ = state.apply(S * 51, Event::Tick);
    worked(&mut state, S * 101, 31_500);
    assert_eq!(
        acts(&mut state, S * 101, Event::Tick),
        [],
        "1.5 s in 50 s are more than two per cent"
    );
    assert_eq!(state.deadline(), Some(S * 151));
    worked(&mut state, S * 151, 32_400);
    assert_eq!(
        acts(&mut state, S * 151, Event::Tick),
        [Action::Freeze(run(1))],
        "0.9 s are less"
    );

    let mut state = serving();
    for step in 1..12_u32 {
        let now = S + S * 50 * step;
        worked(&mut state, now, u64::from(step) * 50_000);
        assert_eq!(acts(&mut state, now, Event::Tick), [], "at {now:?}");
    }
    assert_eq!(acts(&mut state, S * 601, Event::Tick), [Action::Drain(run(1))]);
}

#[test]
fn a_request_thaws_it_and_the_count_begins_again() {
    let mut state = frozen();
    let told = state.apply(S * 150, Event::Thawed(run(1)));
    assert!(matches!(&told[..], [Action::Note(EventKind::Thawed, _)]), "{told:?}");
    assert_eq!((state.phase(), state.deadline()), (AppState::Ready, Some(S * 200)));
    // One that came by way of the driver is answered as ever: the lease thaws.
    let mut state = frozen();
    assert_eq!(
        acts(&mut state, S * 150, Event::Request(WaiterId(1))),
        [Action::Answer(run(1), vec![WaiterId(1)])]
    );
}

#[test]
fn a_freeze_that_comes_too_late_is_tried_again_when_it_has_rested_anew() {
    let mut state = serving();
    let _ = state.apply(S * 51, Event::Tick);
    let _ = state.apply(S * 101, Event::Tick);
    assert_eq!(acts(&mut state, S * 101, Event::StayedAwake(run(1))), []);
    assert_eq!((state.phase(), state.deadline()), (AppState::Ready, Some(S * 151)));
}

#[test]
fn an_app_that_cannot_be_frozen_runs_on_until_it_is_stopped_and_is_told_once() {
    let mut state = serving();
    let _ = state.apply(S * 51, Event::Tick);
    let _ = state.apply(S * 101, Event::Tick);
    let told = state.apply(
        S * 101,
        Event::CannotFreeze(run(1), "no freezer on this host".to_owned()),
    );
    assert!(matches!(&told[..], [Action::Note(EventKind::Warning, _)]), "{told:?}");
    assert_eq!((state.phase(), state.deadline()), (AppState::Ready, Some(S * 601)));
}

#[test]
fn a_frozen_app_is_stopped_restarted_deleted_and_replaced_like_a_ready_one() {
    assert_eq!(acts(&mut frozen(), S * 110, Event::StopAsked), [Action::Drain(run(1))]);
    assert_eq!(acts(&mut frozen(), S * 110, Event::Deleted), [Action::Stop(run(1))]);
    assert_eq!(acts(&mut frozen(), S * 110, Event::Shutdown), [Action::Stop(run(1))]);
    assert_eq!(
        acts(&mut frozen(), S * 110, Event::Broke(run(1), crash())),
        [Action::Stop(run(1))]
    );
    assert_eq!(
        acts(&mut frozen(), S * 110, Event::RestartAsked),
        [Action::Start(run(2), sleepy(1))]
    );
    // A save while it is frozen: the next revision rises beside it and takes over.
    let mut state = frozen();
    assert_eq!(
        acts(&mut state, S * 110, Event::Saved(sleepy(2))),
        [Action::Start(run(2), sleepy(2))]
    );
    assert_eq!(state.phase(), AppState::Frozen, "and until then the old one may rest");
    assert_eq!(
        acts(&mut state, S * 112, Event::Listening(run(2))),
        [Action::Open(run(2)), Action::Drain(run(1))]
    );
    assert_eq!((state.phase(), state.deadline()), (AppState::Ready, Some(S * 142)));
    assert_eq!(
        acts(&mut state, S * 112, Event::Thawed(run(1))),
        [],
        "a late word of the old one"
    );
    assert_eq!(acts(&mut state, S * 112, Event::Froze(run(1))), []);
    assert_eq!(state.phase(), AppState::Ready);
}

#[test]
fn an_app_that_shall_be_stopped_sooner_is_never_frozen() {
    let mut state = State::new(limits());
    let wanted = Wanted {
        idle_freeze: S * 600,
        ..wanted(1)
    };
    let _ = state.apply(S, Event::Saved(wanted));
    let _ = state.apply(S, Event::Request(WaiterId(1)));
    let _ = state.apply(S, Event::Listening(run(1)));
    let _ = state.apply(S * 301, Event::Tick);
    assert_eq!(acts(&mut state, S * 601, Event::Tick), [Action::Drain(run(1))]);
}

#[test]
fn an_app_that_shall_never_freeze_nor_stop_has_no_deadline() {
    let mut state = State::new(limits());
    let never = Wanted {
        idle_freeze: Duration::MAX,
        idle_stop: Duration::MAX,
        ..wanted(1)
    };
    let _ = state.apply(S, Event::Saved(never));
    let _ = state.apply(S, Event::Request(WaiterId(1)));
    let _ = state.apply(S, Event::Listening(run(1)));
    assert_eq!(state.deadline(), None);
}

#[test]
fn when_memory_is_short_it_goes_down_before_its_time() {
    let mut state = serving();
    assert_eq!(acts(&mut state, S * 2, Event::Squeezed), [Action::Freeze(run(1))]);
    assert!(!state.yields(), "one thing after the other");
    let _ = state.apply(S * 2, Event::Froze(run(1)));
    assert_eq!(
        acts(&mut state, S * 4, Event::Squeezed),
        [Action::Reclaim(run(1), Reclaim::All)]
    );
    assert_eq!(acts(&mut state, S * 6, Event::Squeezed), [Action::Drain(run(1))]);
    assert_eq!((state.phase(), state.yields()), (AppState::Stopping, false));
}

#[test]
fn what_must_not_be_frozen_or_stopped_is_not_when_memory_is_short() {
    let cases = [
        (S * 100, Duration::MAX, vec![Action::Freeze(run(1))]),
        (Duration::MAX, S * 600, vec![Action::Drain(run(1))]),
        (Duration::MAX, Duration::MAX, vec![]),
    ];
    for (idle_freeze, idle_stop, expected) in cases {
        let mut state = State::new(limits());
        let wanted = Wanted {
            idle_freeze,
            idle_stop,
            ..wanted(1)
        };
        let _ = state.apply(S, Event::Saved(wanted));
        let _ = state.apply(S, Event::Request(WaiterId(1)));
        let _ = state.apply(S, Event::Listening(run(1)));
        assert_eq!(state.yields(), !expected.is_empty());
        assert_eq!(acts(&mut state, S * 2, Event::Squeezed), expected);
    }
    // The only copy of the revision that works.
    let mut state = frozen();
    let _ = state.apply(S * 102, Event::Squeezed);
    let _ = state.apply(S * 102, Event::Unplannable(FailReason::new(FailKind::BadPlan, "bad")));
    assert_eq!(acts(&mut state, S * 103, Event::Squeezed), []);
}
