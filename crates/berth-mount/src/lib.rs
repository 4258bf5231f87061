#![forbid(unsafe_code)]
//! The bucket as a file system at `/workspaces`.
//!
//! ```text
//!   programs ── kernel ── fs.rs ── core.rs ──┬── tree.rs      every name, in memory
//!                 ▲                          ├── file.rs      a file: stored, held by the journal, or a draft (draft.rs)
//!                 │                          ├── save.rs      the point where a save is acknowledged ──▶ journal/
//!                 │ kernel.rs                ├── pending/     what S3 does not have yet ──▶ sync.rs ──▶ S3
//!                 │ (forget this)            ├── index.rs     what objects cannot say: bits, times, links
//!                 └──────────── remote.rs ◀──┤ cache/         S3 → here, by ETag
//!                              change feed   ├── rules.rs     which names never go to S3; local.rs: their bound
//!                                            └── prefetch.rs  small files, before they are asked for
//! ```
//! - Names are all in memory, from one LIST at start and the change feed after it; only contents are fetched.
//! - `close`, `fsync` and every change of a name return when the journal has it on disk. From there it goes to S3 at once,
//!   and as often as it takes; a process that dies leaves the rest to the next one (replay.rs). Nothing that S3 holds is
//!   overwritten unseen: every request says which version it replaces.
//! - Objects are files, 1:1, so that every S3 tool can use the bucket; the few things an object cannot say are in one index
//!   object per workspace.
//! - Paths that are excluded, and editors' temporary files, live in memory only, within a bound.
//! - Sandboxes read from a mount of their own, read-only, where a warm file is opened and read without a request (source/).
//!
//! Not here: hard links and extended attributes (a bucket has none), and locks (the kernel keeps them on this host).

mod announce;
mod answer;
mod cache;
mod core;
mod crash;
mod described;
mod doubts;
mod draft;
mod file;
#[cfg(test)]
mod footprint;
mod fs;
mod handles;
mod index;
mod journal;
mod kernel;
mod leaf;
mod local;
mod mount;
mod ops;
mod pending;
mod prefetch;
mod remote;
mod rename;
mod replay;
mod rules;
mod save;
mod session;
mod source;
mod sync;
mod through;
mod times;
mod tree;
mod unshown;
mod upload;

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use berth_store::StoreError;
use berth_workspace::Excludes;

pub use announce::runner::announcer_asked_for;
pub use cache::CacheMode;
pub use mount::Mount;
pub use rules::{LocalPath, LocalPaths, LocalShare, Rule};
pub use session::clear_stale;
pub use unshown::{Unshown, UnshownObject, Why};

/// Where and how the bucket is mounted.
#[derive(Debug, Clone)]
pub struct MountConfig {
    /// The folder where the bucket appears; made if missing.
    pub mountpoint: PathBuf,
    /// The folder where it appears read-only and as it was last saved, for sandboxes; made if missing. `None`: nowhere.
    pub source: Option<PathBuf>,
    /// The paths that never go to S3.
    pub excludes: Excludes,
    /// The most bytes that local-only files may hold in memory, in total.
    pub local_max: u64,
    /// How much of what was read or written stays on this host.
    pub cache_mode: CacheMode,
    /// The most bytes of file contents kept in `cache_dir`.
    pub cache_max: u64,
    /// How long the kernel may believe names and attributes without asking. Changes of the bucket that Berth hears of are
    /// shown at once whatever this is.
    pub dir_ttl: Duration,
    /// Folder for cached contents. One mount's alone.
    pub cache_dir: PathBuf,
    /// Folder of the journal: what was saved and is not yet in S3. On a disk, and one bucket's alone.
    pub journal_dir: PathBuf,
    /// The most bytes the journal may take on disk. When it is full, saves wait for S3, and fail with `ENOSPC` in the end.
    pub journal_max: u64,
    /// What `close` and `fsync` wait for.
    pub sync: Sync,
    /// The same for single workspaces, by name.
    pub sync_of: BTreeMap<String, Sync>,
    /// How long the end of the mount waits for S3.
    pub drain_timeout: Duration,
    /// Owner of every file shown.
    pub uid: u32,
    /// Group of every file shown.
    pub gid: u32,
    /// The program that announces changes made elsewhere to inotify watchers: one whose `main` calls [`announcer_asked_for`]
    /// first thing. `None`: they are not announced.
    pub announcer: Option<PathBuf>,
}

/// What `close` and `fsync` wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sync {
    /// The journal on this host's disk; S3 gets it a moment later.
    #[default]
    Journal,
    /// S3.
    Remote,
}

impl MountConfig {
    pub(crate) fn sync_of(&self, workspace: &str) -> Sync {
        self.sync_of.get(workspace).copied().unwrap_or(self.sync)
    }

    /// Whether any save waits for S3.
    pub(crate) fn waits_for_s3(&self) -> bool {
        self.sync == Sync::Remote || self.sync_of.values().any(|sync| *sync == Sync::Remote)
    }
}

/// What the local-only files (never in S3) hold at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LocalUsage {
    /// Number of files.
    pub files: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Content that was written and is not yet in S3.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pending {
    /// Number of files.
    pub count: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// When the longest-waiting of them was first written.
    pub oldest: Option<SystemTime>,
}

/// The journal of saves, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct JournalUsage {
    /// Its folder.
    pub dir: PathBuf,
    /// Bytes it takes on disk, spare room included.
    pub disk: u64,
    /// Bytes of content that S3 does not have yet.
    pub live: u64,
    /// The most it may take on disk, bytes.
    pub max: u64,
    /// What was found damaged when it was opened; the rest was recovered.
    pub damaged: Vec<String>,
}

/// Why the bucket could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel's FUSE device cannot be opened.
    #[error(
        "cannot open /dev/fuse; load the kernel module (`modprobe fuse`), run as root, or give the container the device"
    )]
    NoFuse {
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The mountpoint cannot be made or looked at.
    #[error("cannot use {path} as the mountpoint", path = path.display())]
    Mountpoint {
        /// The mountpoint.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Something is mounted there already.
    #[error("{path} is a mountpoint already ({what}); is another `berth serve` running? If not: `umount {path}`", path = path.display())]
    AlreadyMounted {
        /// The mountpoint.
        path: PathBuf,
        /// The kind of file system there.
        what: String,
    },
    /// The cache folder cannot be made or emptied.
    #[error("cannot use {path} as the cache folder; it must be writable and on a disk with free space", path = path.display())]
    CacheDir {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The bucket's names could not be read.
    #[error("cannot read the bucket's names")]
    List(#[source] StoreError),
    /// mount(2) failed.
    #[error("cannot mount at {path}; Berth needs to be root with CAP_SYS_ADMIN", path = path.display())]
    Mount {
        /// The mountpoint.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The kernel and the FUSE session did not get together.
    #[error("cannot serve the mount at {path}", path = path.display())]
    Session {
        /// The mountpoint.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The mount could not be taken away.
    #[error("cannot unmount {path}; try `umount -l {path}`", path = path.display())]
    Unmount {
        /// The mountpoint.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The journal cannot be used.
    #[error("cannot use the journal of saves")]
    Journal(#[from] journal::JournalError),
    /// The mount is gone and something that was written and not closed is lost.
    #[error("{files} files that were still open could not be saved before the mount ended; the log says why")]
    Unsaved {
        /// Files.
        files: usize,
    },
}
