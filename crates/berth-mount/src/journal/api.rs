//! What goes in and comes out of the journal, and what can go wrong.

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;

use super::{BodyFile, Held};

/// One slot's change.
#[derive(Debug)]
pub(crate) struct Op {
    /// The slot.
    pub(crate) slot: String,
    /// Its value from now on; `None` clears it.
    pub(crate) value: Option<Vec<u8>>,
    /// What the slot holds beside its value.
    pub(crate) content: Option<Content>,
}

/// Content that an [`Op`] gives to its slot.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// Small: written with the record.
    Bytes(Bytes),
    /// A file of [`Journal::new_body`], complete, and its length. Whoever syncs it before spares the others the wait.
    File(Arc<BodyFile>, u64),
    /// What the journal has already: only the reference is recorded.
    Held(Arc<Held>),
}

/// What an append gave.
#[derive(Debug)]
pub(crate) struct Appended {
    /// The batch's number, for [`Journal::commit`].
    pub(crate) seq: u64,
    /// The content of each op.
    pub(crate) held: Vec<Option<Arc<Held>>>,
}

/// A slot found at open.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// The slot.
    pub(crate) slot: String,
    /// Its value.
    pub(crate) value: Vec<u8>,
    /// Its content.
    pub(crate) held: Option<Arc<Held>>,
    /// The batch that set it.
    pub(crate) seq: u64,
}

/// How much a journal holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes on disk: segments, spare ones too, and bodies.
    pub(crate) disk: u64,
    /// Bytes of contents that somebody has.
    pub(crate) live_bytes: u64,
    /// Slots that are set.
    pub(crate) live_slots: usize,
    /// The bound on `disk`.
    pub(crate) max: u64,
}

/// Why the journal could not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// Its folder or a file in it cannot be used.
    #[error("cannot open the journal: {path}; it must be on a disk with free space, and writable", path = path.display())]
    Open {
        /// The folder or file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: Arc<io::Error>,
    },
    /// Another process has it.
    #[error("the journal {path} is in use; is another `berth serve` running on it?", path = path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The bound is reached or the disk is full.
    #[error("no space in the journal {path}; free space on its disk, raise its bound, or let S3 catch up", path = path.display())]
    NoSpace {
        /// The folder.
        path: PathBuf,
    },
    /// The disk does not take what is written.
    #[error("cannot write to the journal {path}; look for errors of its disk in `dmesg`", path = path.display())]
    Write {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: Arc<io::Error>,
    },
    /// A file given as content is not one of the journal's bodies.
    #[error("content for slot {slot} is no body of this journal, or shorter than said")]
    Foreign {
        /// The slot.
        slot: String,
    },
    /// What was on disk once is not whole any more.
    #[error("the journal is damaged: {path} at byte {offset}; the rest was recovered, and a copy is beside it", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
    },
}

impl JournalError {
    /// Whether there is no room, rather than something broken.
    pub(crate) fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }
}
