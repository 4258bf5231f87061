//! What the file system and the helper say to each other: one [`Order`], one [`Report`], in turn.

use serde::{Deserialize, Serialize};

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink,
}

/// What to do to the name, so that the kernel raises its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Act {
    /// Nothing: it is about former inodes alone.
    Nothing,
    /// It is new.
    Make(Kind),
    /// It is there no more.
    Remove(Kind),
    /// It is there.
    Touch,
}

/// How an inode is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Touch {
    /// The inode that is meant, and no other.
    pub(crate) ino: u64,
    /// Its modification time: seconds and nanoseconds.
    pub(crate) mtime: (i64, i64),
    /// Bits, owner or times changed (`IN_ATTRIB`), not the content (`IN_MODIFY`).
    pub(crate) attributes: bool,
    /// Whether it is to be opened for writing and closed, for those who wait for `IN_CLOSE_WRITE`.
    pub(crate) close: bool,
}

/// One thing to announce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The file system that must be found at the mountpoint.
    pub(crate) device: u64,
    /// The folder below the mountpoint, and the inode it must be.
    pub(crate) folder: (String, u64),
    pub(crate) name: String,
    pub(crate) act: Act,
    /// Comes after [`Act::Make`] and with [`Act::Touch`].
    pub(crate) touch: Option<Touch>,
    /// Inodes without a name that are touched as `touch` says.
    pub(crate) former: Vec<u64>,
    /// Inodes without a name whose file is removed for good.
    pub(crate) gone: Vec<u64>,
}

/// What became of it: system errors, in the order of what was tried.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) errors: Vec<(String, i32)>,
}
