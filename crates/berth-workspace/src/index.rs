//! The workspace index: the one small object per workspace that says what S3 objects cannot.
//!
//! An object has no permission bits, no nanosecond time, cannot be a symlink, and a folder with nothing in it is no object
//! at all. Those facts live in `.berth/index/NAME.json`, one JSON object a workspace, written by the mount. Files without an
//! entry are plain files with default bits: a bucket filled by other tools needs no index. The format has a version; a
//! newer one than this program knows is refused rather than rewritten, since rewriting would lose what it added.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// Prefix of all index objects. Below a hidden folder, so that it can never be a workspace.
pub const PREFIX: &str = ".berth/index/";
/// The format written by this program.
pub const VERSION: u32 = 1;
/// An index may be written this much before the last object it describes (clocks of whole seconds): content stored later
/// than that came from a tool that knows of no index.
pub const SLACK: Duration = Duration::from_secs(2);
const SUFFIX: &str = ".json";

/// The index of one workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceIndex {
    /// Format version: [`VERSION`].
    pub version: u32,
    /// By path relative to the workspace, `/`-separated, no leading or trailing slash.
    #[serde(default)]
    pub entries: BTreeMap<String, IndexEntry>,
}

/// What is known about one path beyond its object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntry {
    /// File, folder or symlink.
    pub kind: EntryKind,
    /// Permission bits (`0o755`), written as octal text; `None`: the mount's default.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "octal")]
    pub mode: Option<u32>,
    /// Modification time, nanoseconds since 1970; `None`: the object's own time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime_ns: Option<i64>,
    /// The owner's number; `None`: the mount's own. A Berth that does not know of owners passes over them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The group's number; `None`: the mount's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Where a symlink points; `None` for all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// What kind of entry a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A plain file; its bytes are the object `NAME/path`.
    File,
    /// A folder.
    Dir,
    /// A symbolic link; it has no object.
    Symlink,
}

/// Nanoseconds since 1970; times too far away are cut to what fits.
#[must_use]
pub fn to_nanos(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |n| -n),
    }
}

/// The time so many nanoseconds after 1970, or before it.
#[must_use]
pub fn from_nanos(nanos: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    if nanos < 0 {
        UNIX_EPOCH - distance
    } else {
        UNIX_EPOCH + distance
    }
}

/// Why an index object could not be read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Not the JSON this program writes.
    #[error("the index is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    /// Written by a newer Berth.
    #[error("the index has format {found}, but this Berth knows formats up to {VERSION}; upgrade this host")]
    Newer {
        /// The version found.
        found: u32,
    },
}

impl Default for WorkspaceIndex {
    fn default() -> Self {
        Self {
            version: VERSION,
            entries: BTreeMap::new(),
        }
    }
}

impl WorkspaceIndex {
    /// Reads an index object.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] for anything but an index, [`IndexError::Newer`] for a later format.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        // The version first: a later format may differ in everything else.
        let Version { version } = serde_json::from_slice(bytes)?;
        if version > VERSION {
            return Err(IndexError::Newer { found: version });
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The bytes to store. The same index always gives the same bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings, numbers and maps with string keys: nothing that serde_json can refuse.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl IndexEntry {
    /// A folder with default bits.
    #[must_use]
    pub fn dir() -> Self {
        Self {
            kind: EntryKind::Dir,
            mode: None,
            mtime_ns: None,
            uid: None,
            gid: None,
            target: None,
        }
    }

    /// A plain file with default bits.
    #[must_use]
    pub fn file() -> Self {
        Self {
            kind: EntryKind::File,
            mode: None,
            mtime_ns: None,
            uid: None,
            gid: None,
            target: None,
        }
    }

    /// A symlink to `target`.
    #[must_use]
    pub fn symlink(target: impl Into<String>) -> Self {
        Self {
            kind: EntryKind::Symlink,
            mode: None,
            mtime_ns: None,
            uid: None,
            gid: None,
            target: Some(target.into()),
        }
    }
}

/// Key of the index of workspace `app`: `.berth/index/NAME.json`.
#[must_use]
pub fn key(app: &str) -> String {
    format!("{PREFIX}{app}{SUFFIX}")
}

/// The workspace whose index `key` is; `None` if `key` is no index.
#[must_use]
pub fn workspace_of_key(key: &str) -> Option<&str> {
    let name = key.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

/// Bits as octal text: `"755"` can be read by people, 493 cannot.
mod octal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(mode: &Option<u32>, s: S) -> Result<S::Ok, S::Error> {
        match mode {
            Some(mode) => s.collect_str(&format_args!("{mode:o}")),
            None => s.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
        let Some(text) = Option::<String>::deserialize(d)? else {
            return Ok(None);
        };
        u32::from_str_radix(&text, 8)
            .map(Some)
            .map_err(|_| D::Error::custom(format_args!("mode {text:?} is not octal")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_lead_to_workspaces_and_back() {
        assert_eq!(key("shop"), ".berth/index/shop.json");
        assert_eq!(workspace_of_key(".berth/index/shop.json"), Some("shop"));
        for other in [
            ".berth/index/.json",
            ".berth/index/a/b.json",
            ".berth/index/a",
            "shop/x.json",
            "",
        ] {
            assert_eq!(workspace_of_key(other), None, "{other}");
        }
    }

    #[test]
    fn the_format_is_fixed() {
        let mut index = WorkspaceIndex::default();
        index.entries.insert(
            "run".into(),
            IndexEntry {
                mode: Some(0o755),
                mtime_ns: Some(1),
                ..IndexEntry::file()
            },
        );
        index.entries.insert(
            "theirs".into(),
            IndexEntry {
                uid: Some(1000),
                gid: Some(1000),
                ..IndexEntry::file()
            },
        );
        index.entries.insert("cur".into(), IndexEntry::symlink("v1"));
        index.entries.insert("empty".into(), IndexEntry::dir());
        let text = r#"{"version":1,"entries":{"cur":{"kind":"symlink","target":"v1"},"empty":{"kind":"dir"},"run":{"kind":"file","mode":"755","mtime_ns":1},"theirs":{"kind":"file","uid":1000,"gid":1000}}}"#;
        assert_eq!(String::from_utf8(index.to_bytes()).unwrap(), text);
        assert_eq!(WorkspaceIndex::parse(text.as_bytes()).unwrap(), index);
        assert_eq!(
            WorkspaceIndex::parse(br#"{"version":1}"#).unwrap(),
            WorkspaceIndex::default()
        );
    }

    #[test]
    fn a_newer_or_damaged_index_is_refused() {
        let newer = WorkspaceIndex::parse(br#"{"version":2,"entries":[]}"#).unwrap_err();
        assert!(matches!(newer, IndexError::Newer { found: 2 }), "{newer}");
        for damaged in [
            "",
            "{}",
            r#"{"version":1,"entries":{"a":{}}}"#,
            r#"{"version":1,"entries":{"a":{"kind":"file","mode":"9"}}}"#,
        ] {
            assert!(
                matches!(WorkspaceIndex::parse(damaged.as_bytes()), Err(IndexError::Damaged(_))),
                "{damaged}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            entries in prop::collection::btree_map(any::<String>(), (0u8..3, prop::option::of(0u32..0o10000), prop::option::of(any::<i64>()), prop::option::of(any::<u32>()), any::<String>()), 0..8),
        ) {
            let entries = entries.into_iter().map(|(path, (kind, mode, mtime_ns, uid, target))| {
                let entry = match kind { 0 => IndexEntry::file(), 1 => IndexEntry::dir(), _ => IndexEntry::symlink(target) };
                (path, IndexEntry { mode, mtime_ns, uid, ..entry })
            }).collect();
            let index = WorkspaceIndex { version: VERSION, entries };
            prop_assert_eq!(WorkspaceIndex::parse(&index.to_bytes()).unwrap(), index);
        }
    }
}
