//! One file: what its content is, where it is, and whether S3 has it.
//!
//! ```text
//!               write, truncate                     close, fsync                       S3 has it
//!    stored ─────────────────────▶ draft, unsaved ──────────────▶ held by the journal ───────────▶ stored
//!      ▲ built from LIST               │   ▲ write                        │
//!      └── remote change: a new inode  └───┘◀─────────────────────────────┘ write
//! ```
//! `version` counts changes, `kept` is the version that the journal was given: the file is unsaved while they differ. From
//! then on the way to S3 is the business of the key's intent ([`crate::pending`]), not of the file.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use fuser::Errno;
use parking_lot::{Mutex, MutexGuard};

use crate::{
    draft::{Draft, MAX_FILE, SPILL, Snapshot},
    journal::{BodyFile, Held, Journal},
    local::Charge,
    tree::{Ino, Times},
};

/// The object in S3 whose bytes are this file's, or were before it was written here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) key: String,
    pub(crate) etag: String,
    pub(crate) size: u64,
}

impl From<&berth_store::ObjectInfo> for Base {
    fn from(info: &berth_store::ObjectInfo) -> Self {
        Self {
            key: info.key.clone(),
            etag: info.etag.clone(),
            size: info.size,
        }
    }
}

/// Where the content is.
#[derive(Debug)]
pub(crate) enum Body {
    /// In S3 (and perhaps the cache), as [`FileState::base`] says.
    Stored,
    /// In the journal, and not yet in S3.
    Held(Arc<Held>),
    /// Here.
    Draft(Draft),
}

/// Whether the file still has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attachment {
    /// It is in the tree.
    Linked,
    /// Removed: what is written now goes nowhere.
    Unlinked,
    /// Somebody else put other content under its name; unsaved writes become a conflict copy.
    Replaced,
}

/// A file's changing part.
///
/// Most files of a bucket are only known: what all others need besides is behind one pointer, made when it is first set.
#[derive(Debug)]
pub(crate) struct FileState {
    pub(crate) body: Body,
    pub(crate) base: Option<Base>,
    pub(crate) times: Times,
    /// Open descriptors.
    pub(crate) opens: u32,
    pub(crate) attachment: Attachment,
    /// Present on local-only files.
    pub(crate) charge: Option<Charge>,
    used: Option<Box<Used>>,
}

/// What a file has that was opened or written.
#[derive(Debug)]
pub(crate) struct Used {
    pub(crate) version: u64,
    /// The version that the journal was given.
    pub(crate) kept: u64,
    /// The batch in which it was given.
    pub(crate) seq: u64,
    /// Its content, while S3 lacks it.
    pub(crate) held: Option<Arc<Held>>,
    /// The stored bytes of a small file that is open.
    pub(crate) pinned: Option<Bytes>,
    /// The name it had in S3, if it is an editor's backup now.
    backup_of: Option<Box<str>>,
    /// When it became unsaved.
    pub(crate) unsaved_since: Option<SystemTime>,
    /// The last write.
    pub(crate) touched: Option<Instant>,
    pub(crate) writer: Writer,
    /// The modification time that it had when it became unsaved.
    pub(crate) saved_mtime: SystemTime,
}

/// Who has written what is not saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Writer {
    #[default]
    Nobody,
    /// This thread alone.
    One(u32),
    /// Several, or it is not known.
    Anybody,
}

impl Writer {
    pub(crate) fn wrote(&mut self, thread: u32) {
        *self = match *self {
            Self::Nobody if thread != 0 => Self::One(thread),
            Self::One(before) if before == thread => *self,
            _ => Self::Anybody,
        };
    }

    /// Whether none of it is of the process that `thread` belongs to. A writer that is no more may have been anybody.
    fn is_another_process(self, thread: u32) -> bool {
        let Self::One(writer) = self else { return false };
        let process = |thread: u32| {
            let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
            line.trim().parse::<u32>().ok()
        };
        writer != thread
            && match (process(writer), process(thread)) {
                (Some(writer), Some(closer)) => writer != closer,
                _ => false,
            }
    }
}

/// A process that did not write closes the file: a child that inherited the descriptor and starts a program, mostly. What
/// others are still writing is not saved by that, but when they close it.
pub(crate) fn is_foreign(file: &File, closer: u32) -> bool {
    let writer = file.state().writer;
    writer.is_another_process(closer)
}

impl Used {
    const NOT: Self = Self {
        version: 0,
        kept: 0,
        seq: 0,
        held: None,
        pinned: None,
        backup_of: None,
        unsaved_since: None,
        touched: None,
        writer: Writer::Nobody,
        saved_mtime: SystemTime::UNIX_EPOCH,
    };
}

static NOT_USED: Used = Used::NOT;

impl Deref for FileState {
    type Target = Used;

    fn deref(&self) -> &Used {
        self.used.as_deref().unwrap_or(&NOT_USED)
    }
}

impl DerefMut for FileState {
    fn deref_mut(&mut self) -> &mut Used {
        self.used.get_or_insert_with(|| Box::new(Used::NOT))
    }
}

/// One file.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) ino: Ino,
    state: Mutex<FileState>,
}

impl File {
    fn new(ino: Ino, body: Body, base: Option<Base>, times: Times, charge: Option<Charge>) -> Arc<Self> {
        Arc::new(Self {
            ino,
            state: Mutex::new(FileState {
                body,
                base,
                times,
                opens: 0,
                attachment: Attachment::Linked,
                charge,
                used: None,
            }),
        })
    }

    /// A file that S3 has.
    pub(crate) fn stored(ino: Ino, base: Base, times: Times) -> Arc<Self> {
        Self::new(ino, Body::Stored, Some(base), times, None)
    }

    /// A file that the journal has and S3 has not, or not in this version (`base`).
    pub(crate) fn held(ino: Ino, held: Arc<Held>, base: Option<Base>, times: Times, seq: u64) -> Arc<Self> {
        let file = Self::new(ino, Body::Held(held.clone()), base, times, None);
        {
            let mut state = file.state();
            state.held = Some(held);
            state.seq = seq;
        }
        file
    }

    /// A file just created: empty, and unsaved unless it is local-only.
    pub(crate) fn created(ino: Ino, charge: Option<Charge>) -> Arc<Self> {
        let file = Self::new(
            ino,
            Body::Draft(Draft::empty()),
            None,
            Times::at(SystemTime::now()),
            charge,
        );
        file.state().changed();
        file
    }

    /// The changing part. Held for moments only: never across a request to S3.
    pub(crate) fn state(&self) -> MutexGuard<'_, FileState> {
        self.state.lock()
    }
}

impl FileState {
    pub(crate) fn size(&self) -> u64 {
        match &self.body {
            Body::Draft(draft) => draft.len(),
            Body::Held(held) => held.len(),
            Body::Stored => self.base.as_ref().map_or(0, |base| base.size),
        }
    }

    /// Bytes that the journal would have to write to save it.
    pub(crate) fn unwritten(&self) -> u64 {
        match &self.body {
            Body::Draft(draft) => draft.unwritten(),
            Body::Held(_) | Body::Stored => 0,
        }
    }

    pub(crate) fn is_local(&self) -> bool {
        self.charge.is_some()
    }

    /// Whether something was written that the journal was not given.
    pub(crate) fn is_unsaved(&self) -> bool {
        self.version != self.kept && !self.is_local() && self.attachment != Attachment::Unlinked
    }

    /// What S3 has at `key`, as far as this file knows.
    pub(crate) fn remote(&self, key: &str) -> Option<String> {
        let base = self.base.as_ref().filter(|base| base.key == key);
        base.map(|base| base.etag.clone())
    }

    /// The name it had in S3, if it is an editor's backup now.
    pub(crate) fn backup_of(&self) -> Option<String> {
        self.backup_of.as_deref().filter(|_| self.is_local()).map(str::to_owned)
    }

    /// It had the name `key` in S3, and is an editor's backup from now on.
    pub(crate) fn set_backup_of(&mut self, key: &str) {
        self.backup_of = Some(key.into());
    }

    /// The content is another now. Comes before its time is set.
    pub(crate) fn changed(&mut self) {
        if self.version == self.kept {
            self.saved_mtime = self.times.mtime;
        }
        self.version += 1;
        self.touched = Some(Instant::now());
        if self.unsaved_since.is_none() {
            self.unsaved_since = Some(SystemTime::now());
        }
    }

    /// The journal has `version`, as `held`, with batch `seq`.
    pub(crate) fn journaled(&mut self, version: u64, held: Option<Arc<Held>>, seq: u64) {
        self.kept = version;
        self.seq = seq;
        self.held = held;
        self.charge = None;
        self.writer = Writer::Nobody;
        if self.version == version {
            self.unsaved_since = None;
        }
    }

    /// S3 has `held` as `base`.
    pub(crate) fn stored_as(&mut self, held: &Arc<Held>, base: Base) {
        let same = |mine: &Arc<Held>| Arc::ptr_eq(mine, held);
        if self.held.as_ref().is_some_and(same) {
            self.held = None;
        }
        if matches!(&self.body, Body::Held(mine) if same(mine)) {
            self.body = Body::Stored;
        }
        self.base = Some(base);
    }

    /// Nobody has it open any more: what was held for descriptors is let go.
    pub(crate) fn settle(&mut self) {
        let Some(used) = &mut self.used else { return };
        used.pinned = None;
        let held = used.held.clone();
        if used.version == 0 && used.seq == 0 && held.is_none() && used.backup_of.is_none() {
            self.used = None;
        }
        if self.version != self.kept || self.is_local() {
            return;
        }
        match held {
            Some(held) => self.body = Body::Held(held),
            None if self.base.is_some() => self.body = Body::Stored,
            None => {}
        }
    }

    /// Makes the content a draft of its own if that is quick; `false`: [`crate::core::Core::bring_here`] does it.
    pub(crate) fn make_draft(&mut self) -> bool {
        let bytes = match &self.body {
            Body::Draft(draft) => return !draft.is_shared(),
            Body::Held(held) if held.len() <= SPILL => match held.read(0, held.len() as usize) {
                Ok(bytes) => bytes,
                // Whoever fetches it meets the error again, and can tell it.
                Err(_) => return false,
            },
            Body::Stored if self.size() == 0 => Bytes::new(),
            Body::Stored => match self.pinned.take() {
                Some(bytes) => bytes,
                None => return false,
            },
            Body::Held(_) => return false,
        };
        self.body = Body::Draft(Draft::from_bytes(&bytes));
        true
    }

    /// The file beside the journal that holds its draft.
    pub(crate) fn body_file(&self) -> Option<Arc<BodyFile>> {
        match &self.body {
            Body::Draft(Draft::Spilled { file, .. }) => Some(file.clone()),
            _ => None,
        }
    }

    /// Whether its content is this.
    pub(crate) fn is_body(&self, body: &Arc<BodyFile>) -> bool {
        matches!(&self.body, Body::Draft(Draft::Spilled { file, .. }) if Arc::ptr_eq(file, body))
    }

    /// Whether writes go there.
    pub(crate) fn writes_to(&self, body: &Arc<BodyFile>) -> bool {
        let shared = matches!(&self.body, Body::Draft(draft) if draft.is_shared());
        self.is_body(body) && !shared && self.attachment != Attachment::Unlinked
    }

    /// A draft that was saved, and that S3 has, is brought back from there when it is written again.
    pub(crate) fn let_go_of_saved(&mut self) {
        let shared = matches!(&self.body, Body::Draft(draft) if draft.is_shared());
        if shared && self.version == self.kept && self.held.is_none() && self.base.is_some() {
            self.body = Body::Stored;
        }
    }

    /// Whether S3 alone has the beginning of what is being written.
    pub(crate) fn is_released(&self) -> bool {
        matches!(&self.body, Body::Draft(Draft::Spilled { file, .. }) if file.upload.released() > 0)
    }

    /// Writes into the draft. Call [`FileState::make_draft`] first.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], journal: &Journal) -> Result<(), Errno> {
        let end = offset
            .checked_add(data.len() as u64)
            .filter(|end| *end <= MAX_FILE)
            .ok_or(Errno::EFBIG)?;
        let Body::Draft(draft) = &mut self.body else {
            return Err(Errno::EIO);
        };
        if let Some(charge) = &mut self.charge {
            charge.set(end.max(draft.len()))?;
        }
        let journal = self.charge.is_none().then_some(journal);
        draft.write(offset, data, journal).map_err(Errno::from)?;
        self.changed();
        self.times.changed_now();
        Ok(())
    }

    /// Cuts or lengthens. Call [`FileState::make_draft`] first, unless `size` is 0.
    pub(crate) fn resize(&mut self, size: u64, journal: &Journal) -> Result<(), Errno> {
        if size > MAX_FILE {
            return Err(Errno::EFBIG);
        }
        if size == 0 {
            self.body = Body::Draft(Draft::empty());
            self.pinned = None;
        }
        let Body::Draft(draft) = &mut self.body else {
            return Err(Errno::EIO);
        };
        if let Some(charge) = &mut self.charge {
            charge.set(size)?;
        }
        let journal = self.charge.is_none().then_some(journal);
        draft.resize(size, journal).map_err(Errno::from)?;
        self.changed();
        self.times.changed_now();
        Ok(())
    }

    /// The content as it is, if it is here; a large draft is shared from then on and copied before the next write.
    pub(crate) fn snapshot(&mut self) -> Option<Snapshot> {
        match &mut self.body {
            Body::Draft(draft) => Some(draft.snapshot()),
            Body::Held(held) => Some(Snapshot::Held(held.clone())),
            Body::Stored => None,
        }
    }
}
