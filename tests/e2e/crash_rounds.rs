//! The crash harness in the size that every change can afford; `cargo xtask crash` runs the same for a night.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use berth_harness::crash::{self, Campaign, Mode, POINTS, REPLAY_POINTS, Setup, Summary};

const BERTH: &str = env!("CARGO_BIN_EXE_berth");
/// Chance that is the same each time; long runs take another seed each.
const SEED: u64 = 20;

/// No promise: the process that saves is this program, run again for it.
#[test]
fn the_writer_of_the_rounds() {
    let _ = crash::run_if_ordered();
}

/// Runs the rounds; nothing may be lost, wrong, stray or stuck.
#[track_caller]
fn rounds(name: &str, modes: impl IntoIterator<Item = Mode>) -> Summary {
    let me = std::env::current_exe().unwrap();
    let evidence = std::path::Path::new("/var/tmp/berth-crash").join(name);
    let mut campaign = Campaign::new(Setup {
        berth: BERTH.into(),
        writer: vec![me.into(), "--exact".into(), "the_writer_of_the_rounds".into()],
        seed: SEED,
        evidence,
        keep_state: false,
    });
    for mode in modes {
        let outcome = campaign.round(&mode).unwrap();
        assert!(
            outcome.findings.is_empty(),
            "{mode:?}: {:#?}\nevidence: {}",
            outcome.findings,
            campaign.evidence().display()
        );
    }
    assert!(campaign.summary.acknowledged > 0, "{:?}", campaign.summary);
    campaign.summary
}

#[test]
fn no_acknowledged_save_is_lost_when_the_daemon_is_killed() {
    let modes = (0..22).map(|round| if round % 4 == 3 { Mode::Twice } else { Mode::Kill });
    rounds("kill", modes);
}

#[test]
fn no_acknowledged_save_is_lost_when_the_daemon_dies_at_a_step_of_its_work() {
    let reached = rounds("points", POINTS.into_iter().map(Mode::Point)).reached;
    // The others wait for a journal that has been full for a while.
    let certain = ["journal.append", "journal.write.before", "journal.write.after"];
    let sync = POINTS.into_iter().filter(|point| point.starts_with("sync."));
    for point in certain.into_iter().chain(sync) {
        // On a machine that is busy with something else a round may end before its point comes.
        let mut again = (0..5).map(|_| rounds("points-again", [Mode::Point(point)]));
        assert!(
            reached.contains(point) || again.any(|summary| summary.reached.contains(point)),
            "{point} was never reached"
        );
    }
}

#[test]
fn no_acknowledged_save_is_lost_when_s3_is_away_and_the_daemon_is_killed() {
    let replays = REPLAY_POINTS.into_iter().map(Mode::Replay);
    let summary = rounds("outage", (0..8).map(|_| Mode::Outage).chain(replays));
    assert_eq!(summary.reached.len(), REPLAY_POINTS.len(), "{summary:?}");
}

#[test]
fn a_full_disk_loses_nothing_and_saves_go_on_when_there_is_room() {
    let summary = rounds("disk", [Mode::FullDisk, Mode::FullDisk]);
    assert!(summary.no_space > 0, "no save met the full disk: {summary:?}");
}
