#![forbid(unsafe_code)]
//! berth-mount: the bucket as a file system at `/workspaces`.
//!
//! The whole tree of names is held in memory; file contents come from S3 when they are read and go to S3 before
//! `close` or `fsync` returns.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use berth_store::Store;
use berth_workspace::Excludes;

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
    /// How long the kernel may believe names and attributes when no change feed says otherwise.
    pub dir_ttl: Duration,
    /// Folder for cached contents and for large files being written.
    pub cache_dir: PathBuf,
    /// Owner of every file shown.
    pub uid: u32,
    /// Group of every file shown.
    pub gid: u32,
}

/// What the local-only files (never in S3) hold at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct LocalUsage {
    /// Number of files.
    pub files: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Content that was written and is not yet in S3.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
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
    /// The kernel's FUSE device is missing.
    #[error("/dev/fuse is missing; load the kernel module (`modprobe fuse`) or give the container the device")]
    NoFuse,
}

/// The mounted bucket. Dropping it without [`Mount::shutdown`] unmounts too, but does not wait for uploads.
#[derive(Debug)]
pub struct Mount {}

#[allow(clippy::unimplemented, unused_variables)]
impl Mount {
    /// Reads the bucket's names and mounts it.
    ///
    /// # Errors
    /// One variant for each step; nothing stays mounted after an error.
    pub async fn start(cfg: MountConfig, store: Store) -> Result<Mount, MountError> {
        unimplemented!()
    }
    /// Uploads what is pending, unmounts, ends the threads.
    ///
    /// # Errors
    /// When content could not be uploaded or the mount stays busy.
    pub async fn shutdown(self) -> Result<(), MountError> {
        unimplemented!()
    }
    /// What local-only files hold.
    pub fn local_usage(&self) -> LocalUsage {
        unimplemented!()
    }
    /// What is written and not yet in S3.
    pub fn pending(&self) -> Pending {
        unimplemented!()
    }
}

/// Lazily unmounts a dead mount (`ENOTCONN`) that a killed daemon left behind; `true` if there was one.
///
/// # Errors
/// When the dead mount cannot be unmounted.
#[allow(clippy::unimplemented)]
pub fn clear_stale(_mountpoint: &Path) -> Result<bool, MountError> {
    unimplemented!()
}
