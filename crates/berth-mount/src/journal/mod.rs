//! The journal: an ordered map from slot names to values, some with content, that is on disk when a commit has returned.
//!
//! A change is a batch of slots set or cleared. [`Journal::append`] gives it a number (seq), enters it in memory and queues
//! it; [`Journal::commit`] returns when everything up to a seq is on disk. The first to commit writes all that is queued as
//! one durable write, the others wait for it: nothing is handed to another thread, and eight savers cost one write.
//!
//! ```text
//!   append ─▶ queue ─▶ commit ─▶ segments/N.log    records, each with its small contents behind it
//!                         └────▶ bodies/N.body     large contents, synced before the record that names them
//!   background ─▶ state-SEQ                        every live slot as of SEQ; records up to SEQ are not needed after it
//!              ─▶ segments/N.free                  segments ready for use, their blocks written with zeros or old records
//!              ─▶ segments/N.pack                  contents moved out of segments that held little else
//! ```
//! - Replay is the newest state file, then the records after its seq, each exactly one more than the last. It stops at the
//!   first that is not whole: that one was never committed. If a later record proves that it was (see `record.rs`), that is
//!   damage: it is reported, a copy of the segment is kept as `*.damaged`, and everything else that is whole is given.
//! - Each open begins a new segment and leaves a wide gap of seqs, so that what a crash left behind a torn tail can never
//!   be taken for what follows it.
//! - A record longer than a segment gets a segment of its own, as long as it.
//! - A segment in which nobody has a content any more is used again once a state file covers its records.
//! - `max` bounds segments and bodies on disk together (at least three segments). The last segment's worth of it is for
//!   batches that only clear slots: a full journal can always be emptied.
//! - The segments that a batch and the clears after it will go to are made before it is admitted: a full disk refuses the
//!   batch, and what S3 has taken can still be cleared.
//! - A write that fails (disk full, I/O error) stays queued in order. Its waiters get the error, and appends are refused
//!   until a retry has succeeded: one is made by each commit, and each second in the background.
//!
//! Not here: what slots and values mean.
mod api;
mod bodies;
mod held;
mod record;
mod recover;
mod segment;
mod state;
#[cfg(test)]
mod tests;
mod write;

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use nix::fcntl::Flock;
use parking_lot::{Condvar, Mutex};

pub use api::JournalError;
pub(crate) use api::{Appended, Content, Op, Recovered, Usage};
pub(crate) use bodies::BodyFile;
pub(crate) use held::Held;
use held::{At, Body, Graves};
use segment::Segment;

use crate::crash;

/// The length of a segment.
const SEGMENT: u64 = 16 << 20;
/// Segments kept for use again.
const FREE_MAX: usize = 4;
/// Segments made beforehand.
const SPARES: u64 = 2;

/// Called with a number of bytes when the disk is full: gives so many back to it if that can be done without loss.
type GiveWay = Box<dyn Fn(u64) + Send + Sync>;

/// The journal of one folder. Dropping it without [`Journal::close`] is safe, as a crash is.
#[derive(Debug)]
pub(crate) struct Journal {
    shared: Arc<Shared>,
    background: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    id: u64,
    id_text: String,
    max: u64,
    segment: u64,
    inner: Mutex<Inner>,
    written: Condvar,
    /// Taken before `inner` by whoever needs both.
    log: Mutex<Log>,
    bodies: Mutex<Bodies>,
    graves: Arc<Graves>,
    checkpointing: Mutex<()>,
    /// Held while a segment is made.
    sparing: Mutex<()>,
    give_way: OnceLock<Asked>,
    bell: Mutex<Bell>,
    rung: Condvar,
    damage: Vec<JournalError>,
    /// Bodies were made whose names are not on disk yet.
    names_unsynced: AtomicBool,
    /// Taken away by [`Journal::close`]: nothing is written after that, and the next may open the folder.
    lock: Mutex<Option<Flock<File>>>,
}

#[derive(Debug, Default)]
struct Bell {
    rung: bool,
    stop: bool,
}

/// What appends change, and what they need to know of the disk.
#[derive(Debug, Default)]
struct Inner {
    slots: HashMap<Arc<str>, Slot>,
    queue: VecDeque<Queued>,
    last_seq: u64,
    durable: u64,
    writing: bool,
    /// Why the last write failed; appends are refused while it is set.
    fault: Option<JournalError>,
    failed_to: u64,
    order: u64,
    /// Bytes of segments on disk, free ones too.
    segments: u64,
    /// Bytes of bodies taken over.
    bodies: u64,
    free: u64,
    plan: Plan,
    /// An append was refused: make room.
    pressed: bool,
}

/// Where the queue will go, by the rules of the write itself.
#[derive(Debug, Default, Clone, Copy)]
struct Plan {
    remaining: u64,
    segments: u64,
    oversize: u64,
}

#[derive(Debug, Clone)]
struct Slot {
    value: Bytes,
    held: Option<Arc<Held>>,
    seq: u64,
    order: u64,
}

#[derive(Debug)]
struct Queued {
    seq: u64,
    len: u64,
    ops: Vec<QueuedOp>,
}

#[derive(Debug)]
struct QueuedOp {
    slot: Arc<str>,
    value: Option<Bytes>,
    held: Option<Arc<Held>>,
    /// The content goes behind this record.
    inline: Option<Bytes>,
}

/// The files of the log.
#[derive(Debug, Default)]
struct Log {
    current: Option<Arc<Segment>>,
    at: u64,
    segments: Vec<Arc<Segment>>,
    free: VecDeque<Segment>,
    next_number: u64,
    /// The current segment's name is not on disk yet.
    name_unsynced: bool,
}

#[derive(Debug, Default)]
struct Bodies {
    by_inode: HashMap<u64, Tracked>,
    next_number: u64,
}

#[derive(Debug)]
struct Tracked {
    number: u64,
    path: PathBuf,
    file: Weak<BodyFile>,
    body: Weak<Body>,
}

impl Journal {
    /// Opens the journal in `dir`, made if missing, and gives the slots that are set, in the order of their seqs.
    pub(crate) fn open(dir: &Path, max: u64) -> Result<(Arc<Journal>, Vec<Recovered>), JournalError> {
        Journal::open_with(dir, max, SEGMENT)
    }

    fn open_with(dir: &Path, max: u64, segment: u64) -> Result<(Arc<Journal>, Vec<Recovered>), JournalError> {
        let (shared, recovered) = recover::open(dir, max, segment)?;
        let thread = {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name("journal".to_owned())
                .spawn(move || shared.background())
        };
        let thread = thread.map_err(|error| JournalError::Open {
            path: dir.to_owned(),
            source: Arc::new(error),
        })?;
        Ok((
            Arc::new(Journal {
                shared,
                background: Mutex::new(Some(thread)),
            }),
            recovered,
        ))
    }

    /// 16 hex digits that no other journal has.
    pub(crate) fn id(&self) -> &str {
        &self.shared.id_text
    }

    /// Whom to ask for room when the disk is full. Counts once.
    pub(crate) fn when_full(&self, give_way: GiveWay) {
        let _ = self.shared.give_way.set(Asked(give_way));
    }

    /// What was found damaged at open.
    pub(crate) fn damage(&self) -> &[JournalError] {
        &self.shared.damage
    }

    /// Enters a batch, whole or not at all. Only memory is touched; [`Journal::commit`] makes it last.
    #[cfg(test)]
    pub(crate) fn append(&self, batch: Vec<Op>) -> Result<Appended, JournalError> {
        self.shared.append(batch, Admission::Asked)
    }

    /// Refuses what [`Journal::append`] would refuse: a batch with so many bytes.
    pub(crate) fn admit(&self, bytes: u64) -> Result<(), JournalError> {
        let open = self.shared.open_bodies();
        let mut inner = self.shared.inner.lock();
        if let Some(fault) = inner.fault.clone() {
            drop(inner);
            self.shared.ring();
            return Err(fault);
        }
        if self.shared.planned(&inner, bytes + 4096, open, Purpose::Fill).is_none() {
            inner.pressed = true;
            drop(inner);
            self.shared.ring();
            return Err(self.shared.no_space());
        }
        drop(inner);
        if self.shared.prepare(bytes + 4096) {
            Ok(())
        } else {
            self.shared.ring();
            Err(self.shared.no_space())
        }
    }

    /// [`Journal::append`] of what was admitted, or only clears slots: not refused any more, whatever happened to the disk
    /// since. A commit tells.
    pub(crate) fn append_admitted(&self, batch: Vec<Op>) -> Result<Appended, JournalError> {
        self.shared.append(batch, Admission::Granted)
    }

    /// Returns when everything up to `seq` is on disk. Blocks.
    pub(crate) fn commit(&self, seq: u64) -> Result<(), JournalError> {
        self.shared.commit(seq)
    }

    /// A new file for large content, to be given to [`Journal::append`]; it is removed if it never is.
    pub(crate) fn new_body(&self) -> io::Result<Arc<BodyFile>> {
        self.shared.new_body()
    }

    /// How much it holds.
    pub(crate) fn usage(&self) -> Usage {
        let open = self.shared.open_bodies();
        let inner = self.shared.inner.lock();
        Usage {
            disk: inner.segments + inner.bodies + open,
            live_bytes: self.shared.graves.live_bytes.load(Ordering::Relaxed),
            live_slots: inner.slots.len(),
            max: self.shared.max,
        }
    }

    /// Whether a batch with so many bytes would be taken now.
    pub(crate) fn room_for(&self, bytes: u64) -> bool {
        let open = self.shared.open_bodies();
        let inner = self.shared.inner.lock();
        let fits = inner.fault.is_none() && self.shared.planned(&inner, bytes + 4096, open, Purpose::Fill).is_some();
        drop(inner);
        fits && self.shared.prepare(bytes + 4096)
    }

    /// Whether so many bytes more of bodies are within the bound.
    pub(crate) fn room_for_body(&self, bytes: u64) -> bool {
        let record = 4096;
        let fits = || {
            let open = self.shared.open_bodies();
            let inner = self.shared.inner.lock();
            let planned = self.shared.planned(&inner, record, open + bytes, Purpose::Fill);
            planned.is_some()
        };
        // Segments kept for use again are worth less than what is to be written.
        fits() || (self.shared.trim_free(1) && fits())
    }

    /// Commits what is queued and writes a state file, so that the next open has nothing to replay.
    pub(crate) fn close(&self) {
        self.stop();
        let last = self.shared.inner.lock().last_seq;
        if let Err(error) = self.shared.commit(last).and_then(|()| self.shared.checkpoint()) {
            tracing::warn!(%error, "the journal could not be closed; what was committed is recovered at the next start");
        }
        // Requests that are still under way have the journal too, perhaps for long.
        let _log = self.shared.log.lock();
        drop(self.shared.lock.lock().take());
    }

    fn stop(&self) {
        self.shared.bell.lock().stop = true;
        self.shared.rung.notify_all();
        if let Some(thread) = self.background.lock().take() {
            // It ends by itself; that it panicked was told when it did.
            let _ = thread.join();
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Asked(GiveWay);

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asked")
    }
}

/// Whether a batch may still be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admission {
    #[cfg_attr(not(test), allow(dead_code))]
    // The mount asks before it changes anything, and then must not be refused.
    Asked,
    Granted,
}

/// What a batch does to the space that is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Fill,
    /// Only clears slots: may use the reserve.
    Clear,
}

impl Shared {
    fn no_space(&self) -> JournalError {
        JournalError::NoSpace { path: self.dir.clone() }
    }

    fn fault(&self, error: io::Error) -> JournalError {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => self.no_space(),
            _ => JournalError::Write {
                path: self.dir.clone(),
                source: Arc::new(error),
            },
        }
    }

    fn ring(&self) {
        self.bell.lock().rung = true;
        self.rung.notify_all();
    }

    /// The plan with a record of `len` more; `None` if that would exceed the bound.
    fn planned(&self, inner: &Inner, len: u64, open_bodies: u64, purpose: Purpose) -> Option<Plan> {
        let plan = self.plan_with(inner.plan, len);
        let reserve = u64::from(purpose == Purpose::Fill);
        let more = (plan.segments + reserve).saturating_sub(inner.free) * self.segment + plan.oversize;
        let fits = inner.segments + inner.bodies + open_bodies + more <= self.max;
        // Within the segment in use, a clear takes no space.
        (fits
            || (purpose == Purpose::Clear
                && plan.segments <= inner.plan.segments.max(inner.free)
                && plan.oversize == 0))
            .then_some(plan)
    }

    fn plan_with(&self, mut plan: Plan, len: u64) -> Plan {
        if len <= plan.remaining {
            plan.remaining -= len;
        } else if len > self.segment {
            plan.oversize += len;
            plan.remaining = 0;
        } else {
            plan.segments += 1;
            plan.remaining = self.segment - len;
        }
        plan
    }

    fn append(&self, batch: Vec<Op>, admission: Admission) -> Result<Appended, JournalError> {
        let mut len = record::HEADER as u64;
        let mut purpose = Purpose::Clear;
        for op in &batch {
            len += record::entry_len(&op.slot, op.value.as_deref());
            if let Some(Content::Bytes(bytes)) = &op.content {
                len += bytes.len() as u64;
            }
            if op.value.is_some() {
                purpose = Purpose::Fill;
            }
        }
        let len = record::padded(len);
        let crcs: Vec<u32> = batch
            .iter()
            .map(|op| match &op.content {
                Some(Content::Bytes(bytes)) => crc32fast::hash(bytes),
                _ => 0,
            })
            .collect();
        let open_bodies = self.open_bodies();
        let mut inner = self.inner.lock();
        if let Some(fault) = inner.fault.clone().filter(|_| admission == Admission::Asked) {
            drop(inner);
            self.ring();
            return Err(fault);
        }
        let plan = match self.planned(&inner, len, open_bodies, purpose) {
            Some(plan) => plan,
            None if admission == Admission::Granted => self.plan_with(inner.plan, len),
            None => {
                inner.pressed = true;
                drop(inner);
                self.ring();
                return Err(self.no_space());
            }
        };
        let bodies = self.adopt(&batch, &mut inner)?;
        inner.plan = plan;
        inner.last_seq += 1;
        let seq = inner.last_seq;
        self.graves.appended.store(seq, Ordering::SeqCst);
        let mut held = Vec::with_capacity(batch.len());
        let mut ops = Vec::with_capacity(batch.len());
        let mut replaced = Vec::new();
        for ((op, crc), body) in batch.into_iter().zip(crcs).zip(bodies) {
            let (content, inline) = match op.content {
                None => (None, None),
                Some(Content::Bytes(bytes)) => {
                    let content = Held::new(At::Memory(bytes.clone()), bytes.len() as u64, crc, &self.graves);
                    (Some(content), Some(bytes))
                }
                Some(Content::File(_, len)) => (body.map(|body| Held::new(At::Body(body), len, 0, &self.graves)), None),
                Some(Content::Held(content)) => (Some(content), None),
            };
            let slot: Arc<str> = op.slot.into();
            let value = op.value.map(Bytes::from);
            inner.order += 1;
            let order = inner.order;
            replaced.push(match &value {
                Some(value) => {
                    let slot_now = Slot {
                        value: value.clone(),
                        held: content.clone(),
                        seq,
                        order,
                    };
                    inner.slots.insert(slot.clone(), slot_now)
                }
                None => inner.slots.remove(&slot),
            });
            held.push(content.clone());
            ops.push(QueuedOp {
                slot,
                value,
                held: content,
                inline,
            });
        }
        inner.queue.push_back(Queued { seq, len, ops });
        drop(inner);
        drop(replaced);
        crash::point("journal.append");
        Ok(Appended { seq, held })
    }
}
