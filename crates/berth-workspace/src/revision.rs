//! Revisions: one immutable version of a workspace's source, named by a hash.
//!
//! The id is SHA-256 over the files sorted by path, each as `len(path) path mode size len(content) content`, numbers as
//! 8-byte big-endian, so that no two different lists give the same bytes. `content` is what the store knows without
//! reading the file: its ETag, or a symlink's target. Two hosts that see the same bucket compute the same id.
//! Paths that never belong in S3 (see [`Excludes`]) do not count, should another tool have put them there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Excludes;

/// First bytes of every hash: a later change of the encoding changes this and so cannot collide.
const DOMAIN: &[u8] = b"berth revision 1\n";

/// The name of a revision: 64 lower-case hex digits (SHA-256).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RevisionId(String);

/// The text is no revision id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no revision: a revision is 64 hex digits")]
pub struct RevisionIdError(String);

/// What kind of entry a source file is. Only what matters to a program that runs: permission bits beyond "may be run" do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileMode {
    /// A plain file.
    Regular,
    /// A plain file that may be executed.
    Executable,
    /// A symbolic link.
    Symlink,
}

impl FileMode {
    fn tag(self) -> u8 {
        match self {
            Self::Regular => b'f',
            Self::Executable => b'x',
            Self::Symlink => b'l',
        }
    }
}

/// One file of a workspace as the store lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Path relative to the workspace, `/`-separated, without a leading slash.
    pub path: String,
    /// Plain, executable or symlink.
    pub mode: FileMode,
    /// Size in bytes (of a symlink: of its target text).
    pub size: u64,
    /// The object's ETag without quotes, or a symlink's target.
    pub content: String,
}

impl RevisionId {
    /// The first 12 digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..12]
    }

    /// All 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RevisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for RevisionId {
    type Err = RevisionIdError;
    fn from_str(s: &str) -> Result<Self, RevisionIdError> {
        if s.len() == 64 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(s.to_owned()))
        } else {
            Err(RevisionIdError(s.to_owned()))
        }
    }
}

impl TryFrom<String> for RevisionId {
    type Error = RevisionIdError;
    fn try_from(s: String) -> Result<Self, RevisionIdError> {
        s.parse()
    }
}

impl From<RevisionId> for String {
    fn from(id: RevisionId) -> Self {
        id.0
    }
}

/// The revision of these files with the default excludes; the order of `files` does not matter.
///
/// A host whose exclude list is configured must use [`revision_with`], or changes below a folder that it does store would not count.
#[must_use]
pub fn revision(files: &[SourceFile]) -> RevisionId {
    revision_with(files, Excludes::standard())
}

/// The revision of these files, leaving out all that `excludes` calls local; the order of `files` does not matter.
#[must_use]
pub fn revision_with(files: &[SourceFile], excludes: &Excludes) -> RevisionId {
    let mut counted: Vec<&SourceFile> = files.iter().filter(|f| !excludes.local_only(&f.path)).collect();
    // All fields take part, so that even a list with a path twice has one order.
    counted.sort_by(|a, b| (&a.path, a.mode, a.size, &a.content).cmp(&(&b.path, b.mode, b.size, &b.content)));
    let mut hash = Sha256::new();
    hash.update(DOMAIN);
    for file in counted {
        text(&mut hash, &file.path);
        hash.update([file.mode.tag()]);
        hash.update(file.size.to_be_bytes());
        text(&mut hash, &file.content);
    }
    RevisionId(hex::encode(hash.finalize()))
}

fn text(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_be_bytes());
    hash.update(text.as_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn file(path: &str, mode: FileMode, size: u64, content: &str) -> SourceFile {
        SourceFile {
            path: path.into(),
            mode,
            size,
            content: content.into(),
        }
    }

    /// These ids must never change: hosts of different versions serve one bucket.
    #[test]
    fn the_encoding_is_fixed() {
        assert_eq!(
            revision(&[]).as_str(),
            hex::encode(Sha256::digest(b"berth revision 1\n")),
        );
        let bytes = [
            b"berth revision 1\n".as_slice(),
            b"\0\0\0\0\0\0\0\x01a",
            b"x",
            b"\0\0\0\0\0\0\0\x05",
            b"\0\0\0\0\0\0\0\x02e1",
            b"\0\0\0\0\0\0\0\x03b/c",
            b"l",
            b"\0\0\0\0\0\0\0\x01",
            b"\0\0\0\0\0\0\0\x01a",
        ]
        .concat();
        let files = [
            file("b/c", FileMode::Symlink, 1, "a"),
            file("a", FileMode::Executable, 5, "e1"),
        ];
        assert_eq!(revision(&files).as_str(), hex::encode(Sha256::digest(bytes)));
        assert_eq!(revision(&files).short().len(), 12);
    }

    #[test]
    fn what_is_never_stored_does_not_count() {
        let source = file("index.js", FileMode::Regular, 5, "e");
        let noise = [
            "node_modules/a/index.js",
            "x.log",
            ".env",
            "src/dist/a",
            ".index.js.swp",
        ]
        .map(|path| file(path, FileMode::Regular, 1, "n"));
        let mut all = noise.to_vec();
        all.push(source.clone());
        assert_eq!(revision(&all), revision(std::slice::from_ref(&source)));
        let nothing_excluded = Excludes::new(&[]).unwrap();
        assert_ne!(revision_with(&all, &nothing_excluded), revision(&[source]));
    }

    #[test]
    fn ids_are_checked() {
        assert!("abc".parse::<RevisionId>().is_err());
        assert!("G".repeat(64).parse::<RevisionId>().is_err());
        assert!("a".repeat(64).parse::<RevisionId>().is_ok());
    }

    fn any_file() -> impl Strategy<Value = SourceFile> {
        let mode = prop::sample::select(vec![FileMode::Regular, FileMode::Executable, FileMode::Symlink]);
        ("[a-c/]{1,4}", mode, 0u64..3, "[a-c]{0,2}").prop_map(|(p, m, s, c)| file(&p, m, s, &c))
    }

    proptest! {
        #[test]
        fn order_does_not_matter(files in prop::collection::vec(any_file(), 0..8), seed in any::<usize>()) {
            let mut turned = files.clone();
            turned.reverse();
            if !turned.is_empty() {
                let by = seed % turned.len();
                turned.rotate_left(by);
            }
            prop_assert_eq!(revision(&files), revision(&turned));
        }

        #[test]
        fn different_files_have_different_revisions(
            a in prop::collection::vec(any_file(), 0..4), b in prop::collection::vec(any_file(), 0..4),
        ) {
            let key = |f: &SourceFile| (f.path.clone(), f.mode, f.size, f.content.clone());
            let sorted = |files: &[SourceFile]| { let mut k: Vec<_> = files.iter().map(key).collect(); k.sort(); k };
            prop_assert_eq!(revision(&a) == revision(&b), sorted(&a) == sorted(&b));
        }
    }
}
