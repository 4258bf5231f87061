#![forbid(unsafe_code)]
//! Workspaces between a plain folder and the bucket, both ways, over S3 alone: no mount and no daemon takes part.
//!
//! ```text
//!   folder ──scan.rs──▶ what is here ─┐                          ┌─▶ import.rs  files ──▶ objects, then the index
//!                                     ├─▶ plan.rs: the differences┤
//!   bucket ─bucket.rs─▶ what is there ┘   refused unless forced   └─▶ export.rs  objects ──▶ files, by temp and rename
//! ```
//! - Everything is compared before anything is written. What is at the destination with the same content is left alone, so
//!   the same command run again goes on where it was interrupted; what has other content is named, and nothing is
//!   overwritten unless that is asked for. Then each write still says which version it replaces.
//! - Content decides, by size and checksum (`content.rs`); permission bits and times follow the source.
//! - A file is whole at its destination or not there at all, and its checksum was compared at its end.
//! - Requests that fail in passing are repeated for some seconds (`retry.rs`); a server that does not come back ends the run.
//!
//! Not here: options, progress bars and exit codes (`berth`), and what an object and an index mean (`berth-mount`).

mod bucket;
mod content;
mod export;
mod import;
mod plan;
mod report;
mod retry;
mod scan;

use std::{
    io,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use berth_store::StoreError;
use berth_workspace::index::IndexError;
use tokio_util::sync::CancellationToken;

pub use export::{Destination, export};
pub use import::{Source, import};
pub use report::{Count, Difference, Failed, LeftOut, Report, WorkspaceReport};
pub use retry::{at_first, patiently};

/// How a transfer is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Files on their way at once.
    pub jobs: usize,
    /// Overwrite what has other content.
    pub force: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// How far a transfer is: for who looks on while it runs.
#[derive(Debug, Default)]
pub struct Tally {
    files: AtomicU64,
    bytes: AtomicU64,
    files_done: AtomicU64,
    bytes_done: AtomicU64,
}

/// One look at a [`Tally`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Files to move.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files moved.
    pub files_done: u64,
    /// Bytes moved, of files under way too.
    pub bytes_done: u64,
}

impl Tally {
    /// How far it is now. Before everything is compared there is nothing to move.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Progress {
            files: read(&self.files),
            bytes: read(&self.bytes),
            files_done: read(&self.files_done),
            bytes_done: read(&self.bytes_done),
        }
    }

    fn expect(&self, files: u64, bytes: u64) {
        self.files.fetch_add(files, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn moved(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What was moved of a file has to be moved again.
    fn undone(&self, bytes: u64) {
        self.bytes_done.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn file_done(&self) {
        self.files_done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Who looks on, and who may call a transfer off.
#[derive(Debug, Clone, Copy)]
pub struct Watch<'a> {
    /// Is told how far it is.
    pub tally: &'a Tally,
    /// Cancelled: no further file is begun, those under way are given up whole, and what is done is told.
    pub cancel: &'a CancellationToken,
}

/// Why a transfer could not begin or go on. What concerns single files is in the [`Report`].
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The bucket.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder to import, or the one to export to, cannot be read.
    #[error("cannot read the folder {path}", path = path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The folder to export to cannot be written.
    #[error("cannot make {path}", path = path.display())]
    Make {
        /// What was to be made.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Another export writes to the same folder.
    #[error("another export to {path} is running; let it end first", path = path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// Modes, links and empty folders of a workspace cannot be read.
    #[error(
        "{key} cannot be used, and with it the modes, links and empty folders of {app}; mend it, or remove it to go on without"
    )]
    Index {
        /// The workspace.
        app: String,
        /// The index object.
        key: String,
        /// Why.
        #[source]
        source: IndexError,
    },
    /// Somebody writes the same index all the time.
    #[error("{key} is written by somebody else all the time; run the same command again")]
    IndexBusy {
        /// The index object.
        key: String,
    },
    /// Workspaces that are not in the bucket.
    #[error("there is no workspace {}", names.join(", nor "))]
    NoSuchWorkspace {
        /// Their names.
        names: Vec<String>,
    },
}
