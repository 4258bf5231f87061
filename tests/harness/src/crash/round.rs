//! One round: save, die, start again, compare.

use std::{
    ffi::OsString,
    fs,
    path::PathBuf,
    process::Child,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use nix::libc;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    bed::{Bed, Kind, THREADS, shares},
    look,
    model::Tree,
    record::{self, Account, Order, Record},
};
use crate::fault_proxy::{Fault, Reach, Rule};

/// The variable by which a daemon is told where to die.
const POINT: &str = "BERTH_CRASH_POINT";
/// How long a writer may take to notice that the daemon is gone.
const WRITER_ENDS: Duration = Duration::from_secs(60);
/// How long a full disk stays full at most.
const FULL: Duration = Duration::from_secs(12);
/// … unless so many steps have failed.
const REFUSED: usize = 6;
/// How long saves may take to go on when there is room again.
const GOES_ON: Duration = Duration::from_secs(40);
/// Steps of the round itself.
const STEP: Duration = Duration::from_micros(500);

/// How a round goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// SIGKILL at a random moment.
    Kill,
    /// The same, and again while the daemon starts.
    Twice,
    /// The daemon dies where it is told to.
    Point(&'static str),
    /// S3 is away while the writer saves, then SIGKILL; or, now and then, S3 comes back to a daemon that lives.
    Outage,
    /// S3 is away, then SIGKILL, and the next daemon dies at this point of its start.
    Replay(&'static str),
    /// The disk of the state fills up, has room again, then SIGKILL.
    FullDisk,
}

impl Mode {
    /// On which bed the round can take place.
    #[must_use]
    pub fn kind(&self, seed: u64) -> Kind {
        match self {
            Self::Point(name) if full(name) => Kind::SmallJournal,
            Self::Kill | Self::Twice | Self::Point(_) if seed.is_multiple_of(2) => Kind::Embedded,
            Self::FullDisk => Kind::SmallDisk,
            _ => Kind::Apart,
        }
    }
}

/// What came of a round.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Steps that were acknowledged.
    pub acknowledged: u64,
    /// Steps that failed with `ENOSPC`.
    pub no_space: u64,
    /// Steps that failed otherwise while the daemon lived.
    pub failed: u64,
    /// Whether the daemon died where it was told to; `None` if it was not told.
    pub reached: Option<bool>,
    /// What is wrong. Empty: nothing was lost.
    pub findings: Vec<String>,
    /// What must have been there, for the evidence.
    pub account: Account,
    /// What was there before, and after.
    pub trees: (Tree, Tree),
}

/// The things a round needs while it runs.
pub struct Round<'a> {
    /// Where it takes place.
    pub bed: &'a mut Bed,
    /// The command that runs a writer.
    pub writer: &'a [OsString],
    /// Its number.
    pub number: u64,
    /// Everything random comes from it.
    pub seed: u64,
    /// Where to keep a copy of the state as the crash left it.
    pub keep_state: Option<PathBuf>,
}

impl Round<'_> {
    /// Runs the round. What Berth does wrong is in the outcome.
    ///
    /// # Errors
    /// When the round itself could not be run.
    pub fn run(&mut self, mode: &Mode) -> Result<Outcome> {
        let mut chance = StdRng::seed_from_u64(self.seed);
        let mut outcome = Outcome {
            trees: (self.bed.tree.clone(), Tree::new()),
            ..Outcome::default()
        };
        let log = self.bed.daemon.disk().join("records.jsonl");
        let _ = fs::remove_file(&log);
        fs::write(&log, "")?;
        let order = Order {
            mount: self.bed.mount(),
            log: log.clone(),
            tree: self.bed.tree.clone(),
            seed: self.seed,
            round: self.number,
            threads: THREADS,
            operations: if *mode == Mode::FullDisk { 1_000_000 } else { 300 },
            heavy: *mode == Mode::FullDisk || matches!(mode, Mode::Point(name) if heavy(name)),
            patient: *mode == Mode::FullDisk,
        };
        let died = self.save_and_die(mode, &order, &mut chance, &mut outcome)?;
        self.judge(&order, died, &mut outcome)?;
        Ok(outcome)
    }

    /// Until the daemon that is to be compared stands. `false`: it is the same as at the start.
    fn save_and_die(&mut self, mode: &Mode, order: &Order, chance: &mut StdRng, outcome: &mut Outcome) -> Result<bool> {
        let mut started = true;
        if let Mode::Point(name) = mode {
            let most = match *name {
                name if heavy(name) => 2,
                // Changes of half a second share one write.
                name if name.starts_with("sync.index") => 4,
                _ => 60,
            };
            let count = chance.random_range(1..=most);
            self.bed.daemon.kill();
            self.bed.daemon.set_env(POINT, &format!("{name}:{count}"));
            // A point that is passed at the start too may end it there.
            started = !self.dies_at_its_start()?;
            self.bed.daemon.unset_env(POINT);
        }
        let mut kill = true;
        if started {
            let mut writer = self.bed.writer(self.writer, order)?;
            match mode {
                Mode::Kill | Mode::Twice => self.wait_for_records(&mut writer, chance.random_range(100..60_000))?,
                Mode::Point(_) => self.wait_for_records(&mut writer, u64::MAX)?,
                Mode::Outage | Mode::Replay(_) => {
                    self.take_s3_away(chance);
                    self.wait_for_records(&mut writer, chance.random_range(2_000..80_000))?;
                    kill = !matches!(mode, Mode::Outage) || chance.random_range(0..4) != 0;
                }
                Mode::FullDisk => {
                    self.wait_for_records(&mut writer, chance.random_range(2_000..20_000))?;
                    self.fill_and_make_room(&mut writer, order, chance, outcome)?;
                }
            }
            if matches!(mode, Mode::Point(_)) {
                outcome.reached = Some(self.bed.daemon.has_ended());
            }
            if kill {
                self.bed.daemon.kill();
            } else {
                self.bring_s3_back();
            }
            self.writer_ends(&mut writer, outcome)?;
        } else {
            outcome.reached = Some(true);
        }
        if !kill {
            return Ok(false);
        }
        self.bring_s3_back();
        self.keep_state()?;
        match mode {
            Mode::Twice => {
                self.bed.daemon.spawn();
                std::thread::sleep(Duration::from_micros(chance.random_range(0..120_000)));
                self.bed.daemon.kill();
            }
            Mode::Replay(name) => {
                self.bed.daemon.set_env(POINT, name);
                let reached = self.dies_at_its_start()?;
                self.bed.daemon.unset_env(POINT);
                outcome.reached = Some(reached);
                if !self.bed.daemon.has_ended() {
                    self.bed.daemon.kill();
                }
            }
            _ => {}
        }
        self.bed.daemon.launch();
        Ok(true)
    }

    /// Starts the daemon; whether it was killed before it answered.
    ///
    /// # Errors
    /// When it ended in another way.
    fn dies_at_its_start(&mut self) -> Result<bool> {
        match self.bed.daemon.try_launch() {
            Ok(()) => Ok(false),
            Err(why) if why.contains("signal: 9") => Ok(true),
            Err(why) => anyhow::bail!("{why}: {}", self.bed.daemon.log()),
        }
    }

    /// Returns when the records have this many bytes, the writer is done or the daemon is dead.
    fn wait_for_records(&mut self, writer: &mut Child, bytes: u64) -> Result<()> {
        let log = self.bed.daemon.disk().join("records.jsonl");
        while fs::metadata(&log)?.len() < bytes && writer.try_wait()?.is_none() && !self.bed.daemon.has_ended() {
            std::thread::sleep(STEP);
        }
        Ok(())
    }

    fn writer_ends(&self, writer: &mut Child, outcome: &mut Outcome) -> Result<()> {
        let end = Instant::now() + WRITER_ENDS;
        let status = loop {
            if let Some(status) = writer.try_wait()? {
                break status;
            }
            if Instant::now() > end {
                outcome
                    .findings
                    .push("STUCK: a program hangs in the mount of a dead daemon, or saves for ever".into());
                let _ = writer.kill();
                break writer.wait()?;
            }
            std::thread::sleep(STEP);
        };
        if !status.success() {
            let said = fs::read_to_string(self.bed.daemon.disk().join("writer.log")).unwrap_or_default();
            outcome.findings.push(format!("the writer ended with {status}: {said}"));
        }
        Ok(())
    }

    fn take_s3_away(&self, chance: &mut StdRng) {
        let Some(proxy) = &self.bed.proxy else { return };
        match chance.random_range(0..8) {
            0 => proxy.set([Rule::always(Fault::Status(503))]),
            1 => proxy.set([Rule::always(Fault::CutAfter)]),
            2 => proxy.set([Rule::always(Fault::CutDuring)]),
            3 => proxy.set([Rule::sometimes(40, Fault::CutAfter)]),
            4 => proxy.reach(Reach::Closed),
            _ => proxy.reach(Reach::Refused),
        }
    }

    fn bring_s3_back(&self) {
        if let Some(proxy) = &self.bed.proxy {
            proxy.heal();
            proxy.forget();
            // It listens again a moment later, and a daemon that starts without S3 gives up.
            let end = Instant::now() + GOES_ON;
            while std::net::TcpStream::connect(proxy.address()).is_err() && Instant::now() < end {
                std::thread::sleep(STEP);
            }
        }
    }

    /// The disk is full until some steps have been refused; when there is room again, saves must go on.
    fn fill_and_make_room(
        &mut self,
        writer: &mut Child,
        order: &Order,
        chance: &mut StdRng,
        outcome: &mut Outcome,
    ) -> Result<()> {
        // What S3 has need not stay in the journal: it is full soonest without it.
        if let Some(proxy) = self.bed.proxy.as_ref().filter(|_| chance.random_range(0..4) != 0) {
            proxy.reach(Reach::Refused);
        }
        let refused = || -> Result<usize> {
            let records = record::read(&order.log)?;
            Ok(records
                .iter()
                .filter(|record| matches!(record, Record::Failed(..)))
                .count())
        };
        let end = Instant::now() + FULL;
        while Instant::now() < end && refused()? < REFUSED && !self.bed.daemon.has_ended() {
            self.bed.fill()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        self.bed.make_room()?;
        self.bring_s3_back();
        let room = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
        let end = Instant::now() + GOES_ON;
        loop {
            let account = Account::of(&record::read(&order.log)?, self.bed.shares());
            if account.last_begun > room {
                break;
            }
            if Instant::now() > end || writer.try_wait()?.is_some() || self.bed.daemon.has_ended() {
                outcome
                    .findings
                    .push("STUCK: there is room again, and no save is acknowledged".into());
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let size = fs::metadata(&order.log)?.len();
        self.wait_for_records(writer, size + chance.random_range(100..10_000))
    }

    fn keep_state(&self) -> Result<()> {
        let Some(to) = &self.keep_state else { return Ok(()) };
        let _ = fs::remove_dir_all(to);
        copy(&self.bed.state().join("journal"), &to.join("journal"))
    }

    fn judge(&mut self, order: &Order, died: bool, outcome: &mut Outcome) -> Result<()> {
        let records = record::read(&order.log).context("the writer's records")?;
        let account = Account::of(&records, self.bed.shares());
        outcome.acknowledged = account.acknowledged;
        outcome.no_space = account.failed.get(&libc::ENOSPC).copied().unwrap_or(0);
        outcome.failed = account.failed.values().sum::<u64>() - outcome.no_space;
        outcome.findings.extend(account.misread.iter().cloned());
        if died {
            let early = self.bed.shown()?;
            compare(&self.bed.tree, &account, &early, died, "at once", &mut outcome.findings);
        }
        if let Err(error) = self.bed.drained() {
            outcome.findings.push(format!("STUCK: {error:#}"));
        }
        let mut late = self.bed.shown()?;
        if outcome.findings.is_empty() {
            let when = "when nothing is pending";
            compare(&self.bed.tree, &account, &late, died, when, &mut outcome.findings);
            outcome.findings.extend(self.bed.bucket_differs(&late)?);
        }
        late.retain(|path, _| !look::is_transient(path));
        outcome.trees.1 = late.clone();
        outcome.account = account;
        self.bed.tree = late;
        Ok(())
    }

    /// Takes journal and cache away while nothing is pending: the bucket alone must give the same tree.
    ///
    /// # Errors
    /// When the mount cannot be read.
    pub fn bucket_alone(&mut self) -> Result<Vec<String>> {
        let state = self.bed.state();
        let said = format!("{:#?}", self.bed.indexes()?);
        fs::write(self.bed.daemon.disk().join("indexes-before.txt"), said)?;
        self.bed.daemon.kill();
        for folder in ["journal", "cache"] {
            let _ = fs::remove_dir_all(state.join(folder));
        }
        self.bed.daemon.launch();
        let shown = self.bed.shown()?;
        let mut findings = Vec::new();
        let account = Account::of(&[], self.bed.shares());
        let when = "without journal and cache";
        compare(&self.bed.tree, &account, &shown, true, when, &mut findings);
        self.bed.tree = shown;
        Ok(findings)
    }
}

/// Points that are passed once in many megabytes.
fn heavy(point: &str) -> bool {
    point.starts_with("journal.s") || full(point)
}

/// Points that are passed where the journal holds much, or cannot hold a file.
fn full(point: &str) -> bool {
    point.starts_with("upload.") || point == "journal.relocate"
}

fn compare(begin: &Tree, account: &Account, shown: &Tree, died: bool, when: &str, findings: &mut Vec<String>) {
    let mut shown = shown.clone();
    if !died {
        shown.retain(|path, _| !look::is_transient(path));
    }
    let (found, rest) = shares(&shown);
    let (_, common) = shares(begin);
    if rest != common {
        let odd = rest.iter().filter(|(path, entry)| common.get(*path) != Some(entry));
        let odd: Vec<_> = odd.collect();
        let gone: Vec<_> = common.keys().filter(|path| !rest.contains_key(*path)).collect();
        findings.push(format!(
            "{when}: what belongs to nobody is STRAY: {odd:?}, LOST: {gone:?}"
        ));
    }
    for (thread, expected) in &account.expected {
        let empty = Tree::new();
        let wrong = expected.judge(found.get(thread).unwrap_or(&empty));
        findings.extend(wrong.into_iter().map(|what| format!("{when}: {what}")));
    }
}

/// A folder with all in it.
///
/// # Errors
/// When `cp` fails.
pub fn copy(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    let done = std::process::Command::new("cp")
        .args(["-a", "--sparse=always"])
        .arg(from)
        .arg(to)
        .output()?;
    anyhow::ensure!(done.status.success(), "cp: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}
