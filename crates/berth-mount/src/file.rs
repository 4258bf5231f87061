//! One file: what its content is, where it is, and whether S3 has it.
//!
//! ```text
//!                 write, truncate                      saved
//!    stored ───────────────────────▶ draft, dirty ──────────────▶ stored (or draft, clean, while a big one is open)
//!      ▲ built from LIST                 │    ▲ write
//!      └── remote change: a new inode    └────┘
//! ```
//! `version` counts changes, `saved` is the version that S3 acknowledged: the file is dirty while they differ. Uploads,
//! moves and removals of one file's object hold `upload`, so that S3 sees them one after the other.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use fuser::Errno;
use parking_lot::{Mutex, MutexGuard};

use crate::{
    draft::{Draft, MAX_FILE, Snapshot},
    local::Charge,
    tree::{Ino, Times},
};

/// The object in S3 whose bytes are this file's, or were before it became dirty.
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
#[derive(Debug)]
pub(crate) struct FileState {
    pub(crate) body: Body,
    pub(crate) base: Option<Base>,
    pub(crate) version: u64,
    pub(crate) saved: u64,
    pub(crate) times: Times,
    /// Open descriptors.
    pub(crate) opens: u32,
    /// The stored bytes of a small file that is open.
    pub(crate) pinned: Option<Bytes>,
    pub(crate) attachment: Attachment,
    /// Present on local-only files.
    pub(crate) charge: Option<Charge>,
    /// What somebody else stored under its name while it was dirty here.
    pub(crate) theirs: Option<berth_store::ObjectInfo>,
    /// When it became dirty.
    pub(crate) dirty_since: Option<SystemTime>,
    /// The last write.
    pub(crate) touched: Instant,
    /// When the background may try again, and the pause before the try after that.
    pub(crate) retry: (Instant, Duration),
}

/// One file.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) ino: Ino,
    /// Held while the object of this file is uploaded, moved or removed.
    pub(crate) upload: tokio::sync::Mutex<()>,
    state: Mutex<FileState>,
}

/// The pause before the first try again.
pub(crate) const FIRST_RETRY: Duration = Duration::from_millis(500);

impl File {
    fn new(ino: Ino, body: Body, base: Option<Base>, times: Times, charge: Option<Charge>) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            ino,
            upload: tokio::sync::Mutex::new(()),
            state: Mutex::new(FileState {
                body,
                base,
                version: 0,
                saved: 0,
                times,
                opens: 0,
                pinned: None,
                attachment: Attachment::Linked,
                charge,
                theirs: None,
                dirty_since: None,
                touched: now,
                retry: (now, FIRST_RETRY),
            }),
        })
    }

    /// A file that S3 has.
    pub(crate) fn stored(ino: Ino, base: Base, times: Times) -> Arc<Self> {
        Self::new(ino, Body::Stored, Some(base), times, None)
    }

    /// A file just created: empty, and dirty unless it is local-only.
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
            Body::Stored => self.base.as_ref().map_or(0, |base| base.size),
        }
    }

    pub(crate) fn is_local(&self) -> bool {
        self.charge.is_some()
    }

    /// Whether S3 lacks something that was written.
    pub(crate) fn is_dirty(&self) -> bool {
        self.version != self.saved && !self.is_local() && self.attachment != Attachment::Unlinked
    }

    /// The content is another now.
    pub(crate) fn changed(&mut self) {
        self.version += 1;
        self.touched = Instant::now();
        if self.dirty_since.is_none() {
            self.dirty_since = Some(SystemTime::now());
        }
    }

    /// S3 acknowledged `version` as `base`.
    pub(crate) fn acknowledged(&mut self, version: u64, base: Base) {
        self.base = Some(base);
        self.saved = version;
        self.retry = (Instant::now(), FIRST_RETRY);
        if self.saved == self.version {
            self.dirty_since = None;
        }
    }

    /// Makes the content a draft if that needs no request; `false`: fetch it first ([`crate::core::Core::bring_here`]).
    pub(crate) fn make_draft(&mut self) -> bool {
        if matches!(self.body, Body::Draft(_)) {
            return true;
        }
        if self.size() == 0 {
            self.body = Body::Draft(Draft::empty());
        } else if let Some(bytes) = self.pinned.take() {
            self.body = Body::Draft(Draft::from_bytes(&bytes));
        } else {
            return false;
        }
        true
    }

    /// Writes into the draft. Call [`FileState::make_draft`] first.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], spill: &Path) -> Result<(), Errno> {
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
        let spill = self.charge.is_none().then_some(spill);
        draft.write(offset, data, spill).map_err(Errno::from)?;
        self.times.changed_now();
        self.changed();
        Ok(())
    }

    /// Cuts or lengthens. Call [`FileState::make_draft`] first, unless `size` is 0.
    pub(crate) fn resize(&mut self, size: u64, spill: &Path) -> Result<(), Errno> {
        if size > MAX_FILE {
            return Err(Errno::EFBIG);
        }
        if size == 0 && !matches!(&self.body, Body::Draft(Draft::Spilled(..))) {
            self.body = Body::Draft(Draft::empty());
            self.pinned = None;
        }
        let Body::Draft(draft) = &mut self.body else {
            return Err(Errno::EIO);
        };
        if let Some(charge) = &mut self.charge {
            charge.set(size)?;
        }
        let spill = self.charge.is_none().then_some(spill);
        draft.resize(size, spill).map_err(Errno::from)?;
        self.times.changed_now();
        self.changed();
        Ok(())
    }

    /// The draft's present state; `None` if the content is in S3.
    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        match &self.body {
            Body::Draft(draft) => Some(draft.snapshot()),
            Body::Stored => None,
        }
    }
}
