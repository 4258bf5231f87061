//! What S3 does not have yet: for each key the latest *intent*, and what the workspace indexes still lack.
//!
//! ```text
//!   an operation ── Batch of steps ──▶ enter() ──┬─▶ journal (one record)          ready, oldest first
//!                                                └─▶ intents, by key ──▶ next() ──────────▶ sync.rs ──▶ S3
//!                                                        ▲                                     │
//!                                                        └──── finish(): cleared, or tried again ◀┘
//! ```
//! An intent says what S3 is to have at a key: this content (`Put`), the content of another key (`Copy`: a renamed file), or
//! nothing (`Delete`). Only the last one counts, so much work never happens: a file that is written ten times while S3 is
//! slow is sent once, a temporary file renamed over another is sent under its last name alone, and what is created and
//! removed before its turn is never sent.
//!
//! Every intent carries what S3 is believed to have at its key (`expect`), which becomes the precondition of the request. A
//! request whose answer was lost leaves a doubt (`attempted`): its key is then never simply forgotten.
//!
//! Order. One request at a time for a key. The old name of a renamed file is removed only when the new one is there, and
//! nothing is written over a key that still has to be copied (`holds`). No request is sent before the journal has its
//! record on disk: else a removal could outlive the save it belongs to. While many batches come at once, nothing is sent for
//! a moment ([`burst`]).
//!
//! Locks: the tree, then a file's state, then this, then the journal's own.

mod aside;
mod burst;
mod inner;
mod metas;
mod own;
mod recover;
mod wait;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use aside::Aside;
use berth_workspace::index::IndexEntry;
use burst::Burst;
use parking_lot::Mutex;
pub(crate) use recover::Restored;
use serde::{Deserialize, Serialize};

use crate::{
    Pending,
    file::Base,
    journal::{Content, Held, Journal, JournalError, Op},
    tree::app_of,
};

/// A key: shared by the maps below.
pub(crate) type Key = Arc<str>;

/// A new object waits so long for its file to be renamed: temporary files are rarely kept for longer.
const NEW_NAME: Duration = Duration::from_millis(4);
/// The same for names that look like temporary files.
const TEMPORARY: Duration = Duration::from_millis(250);
/// An empty file waits so long for its content: a shell closes one of two descriptors of `> FILE` before anything is written.
const EMPTY: Duration = Duration::from_millis(200);
/// A key that was sent so lately waits: editors and builds save the same file again and again.
const PACE: Duration = Duration::from_millis(90);
/// The longest wait of a key that is saved all the time.
const MAX_PACE: Duration = Duration::from_secs(1);
/// A removed name waits so long for a new file: many programs remove before they write.
const REMOVED: Duration = Duration::from_millis(30);
/// How long an own write is kept in mind to recognise its echo in the change feed.
const ECHO: Duration = Duration::from_secs(30);
/// The longest pause after S3 did not answer.
const MAX_DOWN: Duration = Duration::from_secs(5);

/// What S3 is to have at a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Want {
    /// The content held in the journal.
    Put,
    /// What `key` has in the version `etag`, of `size` bytes.
    Copy { key: String, etag: String, size: u64 },
    /// Nothing.
    Delete,
}

impl Want {
    /// The object to copy.
    pub(crate) fn source(&self) -> Option<Base> {
        match self {
            Self::Copy { key, etag, size } => Some(Base {
                key: key.clone(),
                etag: etag.clone(),
                size: *size,
            }),
            Self::Put | Self::Delete => None,
        }
    }
}

/// An intent as the journal keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    want: Want,
    /// The ETag S3 is believed to have at the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expect: Option<String>,
    /// Modification time to show after a restart, nanoseconds since 1970.
    #[serde(default)]
    mtime_ns: i64,
    /// When it was first wanted, milliseconds since 1970.
    since_ms: u64,
    /// Copies of ours to the key that were under way when something else was wanted there: what they leave is ours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    copies: Vec<Want>,
}

#[derive(Debug)]
struct Intent {
    record: Record,
    content: Option<Arc<Held>>,
    seq: u64,
    /// A request of ours may have taken effect without our knowing.
    attempted: bool,
    not_before: Instant,
    tries: u32,
    /// The old name, which stays until this is done.
    holds: Option<Key>,
    /// The batch that says that who held this key is done. It must be on disk before the key changes in S3: the next process
    /// would look here for what it had to copy.
    after: u64,
}

/// A change of what S3 is to have.
#[derive(Debug)]
pub(crate) enum Step {
    /// The file at `key` has this content. `remote`: what the tree knows S3 to have there.
    Put {
        key: String,
        content: Content,
        remote: Option<String>,
        mtime_ns: i64,
        /// The name it had before.
        from: Option<String>,
    },
    /// The file at `key` is the object `from`.
    Copy {
        key: String,
        from: Base,
        remote: Option<String>,
        mtime_ns: i64,
    },
    /// Nothing has the name `key`. `linger`: how long S3 may keep it in case that changes.
    Delete {
        key: String,
        remote: Option<String>,
        linger: Duration,
    },
    /// The file at `key` became an editor's backup, which S3 never gets; see [`Aside`].
    Aside {
        key: String,
        remote: Option<String>,
        entry: Option<IndexEntry>,
    },
    /// The backup of the file at `key` is no more.
    BackupGone { key: String },
    /// The name came to mean something that is not ours to write.
    Forget { key: String },
    /// What the index says of `key`.
    Meta { key: String, entry: Option<IndexEntry> },
}

/// What a batch came to.
#[derive(Debug, Default)]
pub(crate) struct Entered {
    /// Commit this to make it durable. 0: there was nothing to enter.
    pub(crate) seq: u64,
    /// Where the journal keeps the content of each put, by key.
    pub(crate) held: Vec<(String, Arc<Held>)>,
}

/// One request to make.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) key: Key,
    pub(crate) want: Want,
    pub(crate) expect: Option<String>,
    pub(crate) content: Option<Arc<Held>>,
    pub(crate) seq: u64,
    /// Earlier copies of ours that may have ended there.
    pub(crate) copies: Vec<Want>,
    /// What must be on disk before it is sent.
    pub(crate) after: u64,
}

/// What to do next.
#[derive(Debug)]
pub(crate) enum Next {
    Work(Job),
    /// Nothing before that moment.
    At(Instant),
    /// Nothing.
    Idle,
}

/// What is known about a key beside the tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// S3 is to get something else there.
    pub(crate) wanted: bool,
    /// A request is under way.
    pub(crate) busy: bool,
    /// What S3 is believed to have, if something else is wanted or is shown.
    pub(crate) expect: Option<String>,
    /// Counts our finished writes.
    pub(crate) written: u64,
    /// One of them was a moment ago.
    pub(crate) lately: bool,
}

/// How a change of the feed relates to what we do ourselves.
#[derive(Debug, Default)]
struct Own {
    count: u64,
    at: Option<Instant>,
    /// The batch that was last carried out.
    done: u64,
    started: Option<Instant>,
    pace: Duration,
}

#[derive(Debug, Default)]
struct Inner {
    intents: HashMap<Key, Intent>,
    /// Free to go, oldest first.
    ready: BTreeSet<(u64, Key)>,
    /// Free to go later.
    delayed: BTreeSet<(Instant, Key)>,
    busy: HashSet<Key>,
    /// Names whose files are editors' backups now.
    aside: HashMap<Key, Aside>,
    /// By a key: who still needs the object there, and whether to copy it.
    held_by: HashMap<Key, HashMap<(Key, Who), Hold>>,
    /// Records about index entries, by path.
    metas: BTreeMap<String, u64>,
    own: HashMap<Key, Own>,
    /// S3 does not answer: nothing is tried before, and the pause after that.
    down: Option<(Instant, Duration)>,
    burst: Burst,
    /// Nothing waits for better moments any more.
    hurry: bool,
    bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    Intent,
    Request,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// Nothing may be written there.
    Copy,
    /// It may not be removed.
    Name,
}

/// All intents of one mount.
#[derive(Debug)]
pub(crate) struct Intents {
    inner: Mutex<Inner>,
    pub(crate) journal: Arc<Journal>,
    /// There may be something to do.
    pub(crate) wake: tokio::sync::Notify,
    /// Something was finished.
    done: tokio::sync::Notify,
}

const OBJECT: &str = "o:";
const META: &str = "m:";

impl Intents {
    pub(crate) fn new(journal: Arc<Journal>) -> Self {
        Self {
            inner: Mutex::default(),
            journal,
            wake: tokio::sync::Notify::new(),
            done: tokio::sync::Notify::new(),
        }
    }

    /// Refuses what the journal has no room for. Call it before anything is changed.
    pub(crate) fn admit(&self, bytes: u64) -> Result<(), JournalError> {
        self.journal.admit(bytes)
    }

    /// Enters a batch: all of it or, should the process end before the commit, nothing. The caller holds the tree's lock, so
    /// that the journal's order is the tree's.
    pub(crate) fn enter(&self, steps: Vec<Step>) -> Entered {
        let mut inner = self.inner.lock();
        let mut batch = Vec::with_capacity(steps.len());
        let mut touched: Vec<(String, bool)> = Vec::new();
        for step in steps {
            inner.take_step(step, &mut batch, &mut touched);
        }
        if batch.is_empty() {
            return Entered::default();
        }
        inner.burst.goes_on(Instant::now());
        let appended = match self.journal.append_admitted(batch) {
            Ok(appended) => appended,
            Err(error) => {
                // Only a body that is not the journal's: a mistake in this crate, which must not take the process along.
                tracing::error!(%error, "a batch was not entered in the journal");
                return Entered::default();
            }
        };
        let mut entered = Entered {
            seq: appended.seq,
            held: Vec::new(),
        };
        for ((key, is_meta), held) in touched.into_iter().zip(appended.held) {
            if is_meta {
                inner.metas.insert(key, appended.seq);
                continue;
            }
            let Some(intent) = inner.intents.get_mut(&*key) else {
                continue;
            };
            intent.seq = appended.seq;
            if let Some(held) = held {
                intent.content = Some(held.clone());
                inner.bytes += held.len();
                entered.held.push((key.clone(), held));
            }
            inner.queue(&key);
        }
        drop(inner);
        self.wake.notify_one();
        entered
    }

    /// Slots that are not needed any more. Should the disk not hear of it, the next process does the work once more. The
    /// number of the batch.
    fn clear(&self, batch: Vec<Op>) -> u64 {
        match self.journal.append_admitted(batch) {
            Ok(appended) => appended.seq,
            Err(error) => {
                tracing::error!(%error, "what is done could not be cleared from the journal");
                0
            }
        }
    }

    /// Waits for the disk.
    pub(crate) fn commit(&self, seq: u64) -> Result<(), JournalError> {
        if seq == 0 { Ok(()) } else { self.journal.commit(seq) }
    }

    /// The next request to make; it is under way from then on.
    pub(crate) fn next(&self) -> Next {
        let mut inner = self.inner.lock();
        let now = Instant::now();
        if let Some((until, _)) = inner.down
            && until > now
        {
            return Next::At(until);
        }
        let stands_back = inner.burst.stands_back(now, inner.intents.len());
        if let Some(until) = stands_back.filter(|_| !inner.hurry) {
            return Next::At(until);
        }
        while let Some((at, key)) = inner.delayed.first().cloned()
            && at <= now
        {
            inner.delayed.pop_first();
            if let Some(seq) = inner.intents.get(&key).map(|intent| intent.seq) {
                inner.ready.insert((seq, key));
            }
        }
        // While S3 is silent one request at a time asks whether it is back.
        if inner.down.is_some() && !inner.busy.is_empty() {
            return Next::Idle;
        }
        let Some((seq, key)) = inner.ready.pop_first() else {
            return inner.delayed.first().map_or(Next::Idle, |(at, _)| Next::At(*at));
        };
        let Some(intent) = inner.intents.get_mut(&key) else {
            return Next::At(now);
        };
        intent.attempted = true;
        let job = Job {
            key: key.clone(),
            want: intent.record.want.clone(),
            expect: intent.record.expect.clone(),
            content: intent.content.clone(),
            seq,
            copies: intent.record.copies.clone(),
            after: intent.after,
        };
        inner.busy.insert(key.clone());
        if let Want::Copy { key: from, .. } = &job.want {
            inner.hold(from, &key, Who::Request, Hold::Copy);
        }
        inner.own.entry(key).or_default().started = Some(now);
        Next::Work(job)
    }

    /// S3 now has `etag` at the job's key (none: nothing). `true`: nothing else is wanted there.
    pub(crate) fn finish(&self, job: &Job, etag: Option<&str>) -> bool {
        let mut inner = self.inner.lock();
        inner.down = None;
        inner.end_request(job);
        let own = inner.own.entry(job.key.clone()).or_default();
        own.count += 1;
        own.at = Some(Instant::now());
        own.done = own.done.max(job.seq);
        let last = match inner.intents.get_mut(&job.key) {
            Some(intent) if intent.seq == job.seq => {
                let ended = inner.remove(&job.key);
                if let Some(aside) = inner.aside.get_mut(&job.key) {
                    aside.etag = etag.map(str::to_owned);
                }
                crate::crash::point("sync.before_clear");
                let cleared = self.clear(vec![cleared(OBJECT, &job.key)]);
                crate::crash::point("sync.after_clear");
                let held = ended.and_then(|ended| ended.holds);
                if let Some(held) = held.and_then(|key| inner.intents.get_mut(&key)) {
                    held.after = held.after.max(cleared);
                }
                true
            }
            Some(intent) => {
                intent.record.expect = etag.map(str::to_owned);
                intent.attempted = false;
                intent.tries = 0;
                inner.queue(&job.key);
                false
            }
            None => true,
        };
        inner.forget_echoes();
        drop(inner);
        self.done.notify_waiters();
        self.wake.notify_one();
        last
    }

    /// The request did not take place as far as we know. `unavailable`: S3 as a whole does not answer.
    pub(crate) fn postpone(&self, job: &Job, unavailable: bool) {
        let mut inner = self.inner.lock();
        inner.end_request(job);
        let now = Instant::now();
        if unavailable {
            let pause = inner.down.map_or(Duration::from_millis(100), |(_, pause)| pause);
            inner.down = Some((now + pause, MAX_DOWN.min(pause * 2)));
        }
        if let Some(intent) = inner.intents.get_mut(&job.key) {
            intent.tries += 1;
            intent.not_before = if unavailable {
                now
            } else {
                now + Duration::from_millis(100 << intent.tries.min(8))
            };
            inner.queue(&job.key);
        }
        drop(inner);
        self.done.notify_waiters();
        self.wake.notify_one();
    }

    /// S3 has something else at the job's key than was believed: the same is tried again over that.
    pub(crate) fn expect(&self, job: &Job, etag: Option<&str>) {
        let mut inner = self.inner.lock();
        inner.end_request(job);
        if let Some(intent) = inner.intents.get_mut(&job.key) {
            intent.record.expect = etag.map(str::to_owned);
            intent.tries += 1;
            // At once the first time; a server that contradicts itself is not asked in a circle.
            let pause = Duration::from_millis(if intent.tries < 3 {
                0
            } else {
                100 << intent.tries.min(8)
            });
            intent.not_before = Instant::now() + pause;
            inner.queue(&job.key);
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// The request ended, and what is wanted now was entered anew.
    pub(crate) fn let_go(&self, job: &Job) {
        let mut inner = self.inner.lock();
        inner.end_request(job);
        inner.queue(&job.key);
        drop(inner);
        self.done.notify_waiters();
        self.wake.notify_one();
    }

    /// Whether the intent of `job` is still the one.
    pub(crate) fn is_current(&self, job: &Job) -> bool {
        let inner = self.inner.lock();
        inner.intents.get(&job.key).is_some_and(|intent| intent.seq == job.seq)
    }

    pub(crate) fn view(&self, key: &str) -> View {
        let inner = self.inner.lock();
        let intent = inner.intents.get(key);
        let own = inner.own.get(key);
        View {
            wanted: intent.is_some(),
            busy: inner.busy.contains(key),
            expect: match intent {
                Some(intent) => intent.record.expect.clone(),
                None => inner.aside.get(key).and_then(|aside| aside.etag.clone()),
            },
            written: own.map_or(0, |own| own.count),
            lately: own.and_then(|own| own.at).is_some_and(|at| at.elapsed() < ECHO),
        }
    }

    /// Whether S3 can make `to` from `base`: by a copy for which the two do not wait for each other, or because `to` is
    /// where `base` still is.
    pub(crate) fn can_move(&self, base: &Base, to: &str) -> bool {
        let inner = self.inner.lock();
        let from = &*base.key;
        if from == to {
            return inner.intents.get(to).is_some_and(|intent| {
                intent.record.want == Want::Delete
                    && !intent.attempted
                    && intent.record.expect.as_ref() == Some(&base.etag)
            });
        }
        let (mut seen, mut look) = (HashSet::new(), vec![Key::from(to)]);
        while let Some(key) = look.pop() {
            if &*key == from {
                return false;
            }
            if seen.insert(key.clone())
                && let Some(holders) = inner.held_by.get(&key)
            {
                let copies = holders.iter().filter(|(_, hold)| **hold == Hold::Copy);
                look.extend(copies.map(|((holder, _), _)| holder.clone()));
            }
        }
        true
    }

    /// From now on nothing waits for better moments.
    pub(crate) fn hurry(&self) {
        let mut inner = self.inner.lock();
        inner.hurry = true;
        let delayed = std::mem::take(&mut inner.delayed);
        for (_, key) in delayed {
            inner.queue(&key);
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// What S3 lacks, without files that were not saved yet.
    pub(crate) fn pending(&self) -> Pending {
        let inner = self.inner.lock();
        let oldest = inner.intents.values().map(|intent| intent.record.since_ms).min();
        let indexes: BTreeSet<_> = inner.metas.keys().map(|key| app_of(key)).collect();
        Pending {
            count: (inner.intents.len() + indexes.len()) as u64,
            bytes: inner.bytes,
            oldest: oldest.map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms)),
        }
    }
}

fn cleared(kind: &str, key: &str) -> Op {
    Op {
        slot: format!("{kind}{key}"),
        value: None,
        content: None,
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Whether a name is of the kind that is renamed soon.
pub(crate) fn looks_temporary(key: &str) -> bool {
    let name = key.rsplit('/').next().unwrap_or(key).to_ascii_lowercase();
    let marks = ["tmp", "temp", ".part", ".new", ".lock", "~"];
    marks.iter().any(|mark| name.contains(mark)) || (name.starts_with('.') && name.matches('.').count() > 1)
}
