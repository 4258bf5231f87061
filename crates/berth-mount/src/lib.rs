#![forbid(unsafe_code)]
//! The bucket as a file system at `/workspaces`.
//!
//! ```text
//!   programs ── kernel ── fs.rs ── core.rs ──┬── tree.rs      every name, in memory
//!                 ▲                          ├── file.rs      a file: stored, or a draft (draft.rs)
//!                 │ kernel.rs                ├── upload.rs    draft → S3; the point where a save is acknowledged
//!                 │ (forget this)            ├── index.rs     what objects cannot say: bits, times, links
//!                 └──────────── remote.rs ◀──┤ cache.rs       S3 → here, by ETag
//!                              change feed   └── local.rs     what never goes to S3
//! ```
//! - Names are all in memory, from one LIST at start and the change feed after it; only contents are fetched.
//! - `close` and `fsync` return when S3 has what was written. A save that S3 does not take is `EIO`, and is kept and tried
//!   again. Nothing that S3 holds is overwritten unseen: every PUT says which version it replaces.
//! - Objects are files, 1:1, so that every S3 tool can use the bucket; the few things an object cannot say are in one index
//!   object per workspace.
//! - Paths that are excluded, and editors' temporary files, live in memory only, within a bound.
//!
//! Not here: hard links, owners and extended attributes (a bucket has none), and locks (the kernel keeps them on this host).

mod answer;
mod cache;
mod core;
mod crash;
mod draft;
mod file;
mod fs;
mod index;
mod journal;
mod kernel;
mod local;
mod mount;
mod ops;
mod remote;
mod rename;
mod tree;
mod upload;

use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use berth_store::StoreError;
use berth_workspace::Excludes;

pub use mount::{Mount, clear_stale};

/// Where and how the bucket is mounted.
#[derive(Debug, Clone)]
pub struct MountConfig {
    /// The folder where the bucket appears; made if missing.
    pub mountpoint: PathBuf,
    /// The paths that never go to S3.
    pub excludes: Excludes,
    /// The most bytes that local-only files may hold in memory, in total.
    pub local_max: u64,
    /// The most bytes of file contents kept in `cache_dir`.
    pub cache_max: u64,
    /// How long the kernel may believe names and attributes without asking. Changes of the bucket that Berth hears of are
    /// shown at once whatever this is.
    pub dir_ttl: Duration,
    /// Folder for cached contents and for large files being written. One mount's alone.
    pub cache_dir: PathBuf,
    /// Owner of every file shown.
    pub uid: u32,
    /// Group of every file shown.
    pub gid: u32,
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
    #[error("cannot serve the mount")]
    Session {
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
    /// The mount is gone and S3 lacks something that was written.
    #[error("{files} files and {indexes} indexes could not be saved to S3 before the mount ended; the log names them")]
    Unsaved {
        /// Files.
        files: usize,
        /// Index objects.
        indexes: usize,
    },
}
