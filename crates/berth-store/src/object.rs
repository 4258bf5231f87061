//! What the bucket's objects and their changes look like to the rest of Berth.

use std::time::SystemTime;

/// One object as LIST and HEAD show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The whole key, `NAME/path/to/file`.
    pub key: String,
    /// Bytes of the body.
    pub size: u64,
    /// The entity tag without its quotes: it changes whenever the body changes.
    pub etag: String,
    /// When the server stored the body (its clock; whole seconds on most servers).
    pub modified: SystemTime,
}

/// What must hold on the server for a PUT to take place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// Overwrite whatever is there.
    None,
    /// Only when no object has the key (`If-None-Match: *`).
    Absent,
    /// Only when the object there has this ETag (unquoted; `If-Match`).
    Matches(String),
}

/// One change of the bucket, whoever made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An object was made or replaced.
    Put(ObjectInfo),
    /// An object was removed.
    Deleted {
        /// Its key.
        key: String,
    },
}

impl Change {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put(info) => &info.key,
            Self::Deleted { key } => key,
        }
    }
}
