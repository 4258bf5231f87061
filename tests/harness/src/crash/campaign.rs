//! Many rounds, counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use anyhow::Result;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    bed::{Bed, Kind},
    round::{Mode, Outcome, Round, copy},
};

/// Where a daemon can be told to die while it works.
pub const POINTS: [&str; 18] = [
    "journal.append",
    "journal.write.before",
    "journal.write.after",
    "journal.segment.new",
    "journal.state.before",
    "journal.state.written",
    "journal.state.renamed",
    "journal.segment.freed",
    "journal.relocate",
    "upload.begun",
    "upload.part",
    "upload.complete",
    "sync.before_request",
    "sync.after_request",
    "sync.before_clear",
    "sync.after_clear",
    "sync.index.before",
    "sync.index.after",
];

/// … and while it takes from the journal what its predecessor left.
pub const REPLAY_POINTS: [&str; 3] = ["replay.begin", "replay.laid_over", "replay.end"];

/// After how many rounds of a bed the bucket alone is looked at.
const ALONE: u64 = 8;

/// What a campaign needs.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The real binary.
    pub berth: String,
    /// The command of a process that calls [`super::run_if_ordered`] first.
    pub writer: Vec<OsString>,
    /// All chance comes from it.
    pub seed: u64,
    /// Where the evidence of failed rounds is kept.
    pub evidence: PathBuf,
    /// Keep a copy of the journal as each crash left it, for the evidence.
    pub keep_state: bool,
}

/// What the rounds amount to so far.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Rounds.
    pub rounds: u64,
    /// Steps that were acknowledged.
    pub acknowledged: u64,
    /// Steps that failed with `ENOSPC`.
    pub no_space: u64,
    /// Steps that failed otherwise while the daemon lived.
    pub failed: u64,
    /// Names lost, wrong or stray, and programs stuck.
    pub findings: u64,
    /// Rounds with a finding.
    pub failed_rounds: Vec<u64>,
    /// Points where the daemon died.
    pub reached: BTreeSet<&'static str>,
    /// Rounds whose point was not reached, by point.
    pub not_reached: BTreeMap<&'static str, u64>,
}

/// Rounds on beds that live as long as this.
pub struct Campaign {
    setup: Setup,
    beds: BTreeMap<Kind, (Bed, u64)>,
    /// So far.
    pub summary: Summary,
}

impl Campaign {
    /// Nothing is started yet.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            beds: BTreeMap::new(),
            summary: Summary::default(),
        }
    }

    /// Runs the next round; what it found, in words. Evidence of findings is kept.
    ///
    /// # Errors
    /// When the round could not be run.
    pub fn round(&mut self, mode: &Mode) -> Result<Outcome> {
        let number = self.summary.rounds + 1;
        let seed = StdRng::seed_from_u64(self.setup.seed ^ number << 20).random();
        let kind = mode.kind(seed);
        let (mut bed, done) = match self.beds.remove(&kind) {
            Some(bed) => bed,
            None => (Bed::make(kind, &self.setup.berth, seed)?, 0),
        };
        let keep_state = self.setup.keep_state.then(|| self.setup.evidence.join("state"));
        let log = bed.daemon.log_path();
        let _ = fs::File::options().write(true).truncate(true).open(&log);
        let mut round = Round {
            bed: &mut bed,
            writer: &self.setup.writer,
            number,
            seed,
            keep_state,
        };
        // Waits of the harness panic: such a round is a finding too.
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let mut outcome = round.run(mode)?;
            if outcome.findings.is_empty() && done % ALONE == ALONE - 1 {
                outcome.findings = round.bucket_alone()?;
            }
            anyhow::Ok(outcome)
        }));
        let (outcome, usable) = match ran {
            Ok(Ok(outcome)) => (outcome, true),
            Ok(Err(error)) => (void(format!("the round could not be run: {error:#}")), false),
            Err(panic) => (void(format!("panic: {}", said(&*panic))), false),
        };
        self.count(mode, &outcome);
        if !outcome.findings.is_empty() {
            self.keep_evidence(mode, &bed, &outcome)?;
        }
        if usable {
            self.beds.insert(kind, (bed, done + 1));
        }
        Ok(outcome)
    }

    fn count(&mut self, mode: &Mode, outcome: &Outcome) {
        let summary = &mut self.summary;
        summary.rounds += 1;
        summary.acknowledged += outcome.acknowledged;
        summary.no_space += outcome.no_space;
        summary.failed += outcome.failed;
        summary.findings += outcome.findings.len() as u64;
        if !outcome.findings.is_empty() {
            summary.failed_rounds.push(summary.rounds);
        }
        if let (Mode::Point(name) | Mode::Replay(name), Some(reached)) = (mode, outcome.reached) {
            if reached {
                summary.reached.insert(*name);
            } else {
                *summary.not_reached.entry(*name).or_default() += 1;
            }
        }
    }

    /// The folder of the last round's evidence.
    #[must_use]
    pub fn evidence(&self) -> PathBuf {
        let (seed, round) = (self.setup.seed, self.summary.rounds);
        self.setup.evidence.join(format!("seed-{seed}-round-{round}"))
    }

    fn keep_evidence(&self, mode: &Mode, bed: &Bed, outcome: &Outcome) -> Result<()> {
        let to = self.evidence();
        let _ = fs::remove_dir_all(&to);
        fs::create_dir_all(&to)?;
        let findings = outcome.findings.join("\n");
        fs::write(to.join("findings.txt"), format!("{mode:?}\n{findings}\n"))?;
        fs::write(to.join("expected.txt"), format!("{:#?}", outcome.account))?;
        fs::write(to.join("indexes.txt"), format!("{:#?}", bed.indexes()))?;
        fs::write(to.join("before.txt"), format!("{:#?}", outcome.trees.0))?;
        fs::write(to.join("after.txt"), format!("{:#?}", outcome.trees.1))?;
        let disk = bed.daemon.disk();
        for name in [
            "records.jsonl",
            "indexes-before.txt",
            "order.json",
            "writer.log",
            "daemon.log",
            "berth.toml",
        ] {
            let _ = fs::copy(disk.join(name), to.join(name));
        }
        let _ = copy(&bed.state().join("journal"), &to.join("journal-after"));
        if self.setup.keep_state {
            let _ = fs::rename(self.setup.evidence.join("state"), to.join("state-at-crash"));
        }
        Ok(())
    }
}

fn void(why: String) -> Outcome {
    Outcome {
        findings: vec![why],
        ..Outcome::default()
    }
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "without words".into())
}

/// The mode of round `number` in a long run: every mode and every point comes by again and again.
#[must_use]
pub fn mix(number: u64) -> Mode {
    let turn = (number / 20) as usize;
    match number % 20 {
        slot @ (1 | 4 | 7 | 10 | 13 | 16) => Mode::Point(POINTS[(turn * 6 + slot as usize / 3) % POINTS.len()]),
        2 | 12 => Mode::Twice,
        3 | 9 | 15 => Mode::Outage,
        18 => Mode::Replay(REPLAY_POINTS[turn % REPLAY_POINTS.len()]),
        19 => Mode::FullDisk,
        _ => Mode::Kill,
    }
}
