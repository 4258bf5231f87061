//! What a writer did and what it was told, one JSON line each, in a file outside the mount.
//!
//! A line is one `write` to a file opened for appending, before the step begins and after it has ended. The writer is never
//! killed, only the daemon under it, so the kernel has every line that was written.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::model::{Expected, Step, Tree};

/// What a writer is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// Where the bucket is mounted.
    pub mount: PathBuf,
    /// Where to write down what was done.
    pub log: PathBuf,
    /// What is there at the start.
    pub tree: Tree,
    /// Chooses everything the writer does.
    pub seed: u64,
    /// Makes names that no earlier round has used.
    pub round: u64,
    /// How many work at once.
    pub threads: usize,
    /// The most operations of each.
    pub operations: usize,
    /// Large contents, to fill the journal.
    pub heavy: bool,
    /// Go on however many steps fail.
    pub patient: bool,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The thread begins a step, so many milliseconds after the epoch.
    Begun(usize, Step, u64),
    /// Its step was acknowledged.
    Done(usize),
    /// Its step failed with this error; what a save had written until then.
    Failed(usize, i32, Option<(u64, String)>),
    /// It read something else than was acknowledged to it.
    Misread(usize, String),
    /// It does no more; why.
    Ended(usize, String),
}

/// The file of records, for writers.
#[derive(Debug)]
pub struct Recorder(File);

impl Recorder {
    /// Opens the file for appending.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(OpenOptions::new().create(true).append(true).open(path)?))
    }

    /// Writes a line.
    ///
    /// # Errors
    /// When it cannot be written; the round is void then.
    pub fn note(&self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        (&self.0).write_all(&line)
    }
}

/// All lines.
///
/// # Errors
/// When the file cannot be read, or a line is no record.
pub fn read(path: &Path) -> io::Result<Vec<Record>> {
    let text = std::fs::read_to_string(path)?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// What a round's records amount to.
#[derive(Debug, Default)]
pub struct Account {
    /// By thread: what must be there.
    pub expected: BTreeMap<usize, Expected>,
    /// Steps acknowledged.
    pub acknowledged: u64,
    /// Steps that failed while the daemon lived, by error.
    pub failed: BTreeMap<i32, u64>,
    /// When the last acknowledged step began, in milliseconds after the epoch.
    pub last_begun: u64,
    /// What threads read that was not what they had saved.
    pub misread: Vec<String>,
}

impl Account {
    /// Adds up the records of a round that began with these trees.
    #[must_use]
    pub fn of(records: &[Record], begin: BTreeMap<usize, Tree>) -> Self {
        let mut account = Self {
            expected: begin
                .into_iter()
                .map(|(thread, tree)| (thread, Expected::from(tree)))
                .collect(),
            ..Self::default()
        };
        let mut begun = BTreeMap::new();
        for record in records {
            match record {
                Record::Begun(thread, step, at) => {
                    begun.insert(*thread, *at);
                    account.expected.entry(*thread).or_default().begun(step.clone());
                }
                Record::Done(thread) => {
                    account.acknowledged += 1;
                    account.last_begun = account.last_begun.max(begun.get(thread).copied().unwrap_or(0));
                    account.expected.entry(*thread).or_default().acknowledged();
                }
                Record::Failed(thread, errno, left) => {
                    *account.failed.entry(*errno).or_default() += 1;
                    account.expected.entry(*thread).or_default().failed(left.as_ref());
                }
                Record::Misread(thread, what) => account.misread.push(format!("thread {thread} read {what}")),
                Record::Ended(..) => {}
            }
        }
        account
    }
}
