//! What is in a folder: every path with its kind, bits and time, and what of it cannot or shall not be moved.
//!
//! Symbolic links are never followed. Excluded folders are walked too, only to say how much they hold.

use std::{
    collections::BTreeMap,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
};

use berth_workspace::{EntryKind, Excludes, IndexEntry};
use nix::unistd::{AccessFlags, eaccess};

use crate::report::{Count, Failed, LeftOut};

/// Bits that a file without an entry in the index has.
pub(crate) const FILE_MODE: u32 = 0o644;
/// Bits that a folder without an entry in the index has.
pub(crate) const DIR_MODE: u32 = 0o755;
/// The longest key that S3 takes, in bytes.
const LONGEST_KEY: usize = 1024;
/// The rule under which files of a moment are reported.
const TRANSIENT: &str = "editors' temporary files";

/// A scanned folder.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// By path relative to the folder.
    pub entries: BTreeMap<String, Found>,
    pub left_out: LeftOut,
}

/// One path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub kind: FoundKind,
    pub mode: u32,
    pub mtime_ns: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FoundKind {
    File {
        size: u64,
    },
    Dir,
    Symlink {
        target: String,
    },
    /// Sockets and the like; only where everything is looked at.
    Special,
}

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// What may be stored under this workspace's name.
    Storable { app: &'a str, excludes: &'a Excludes },
    /// Everything that is there.
    Everything,
}

impl Found {
    pub(crate) fn of(meta: &Metadata, kind: FoundKind) -> Self {
        Self {
            kind,
            mode: meta.mode() & 0o7777,
            mtime_ns: meta
                .mtime()
                .saturating_mul(1_000_000_000)
                .saturating_add(meta.mtime_nsec()),
        }
    }

    /// What the index has to say about it; none for what is not stored.
    pub(crate) fn entry(&self) -> Option<IndexEntry> {
        let (mut entry, usual) = match &self.kind {
            FoundKind::File { .. } => (IndexEntry::file(), FILE_MODE),
            FoundKind::Dir => (IndexEntry::dir(), DIR_MODE),
            FoundKind::Symlink { target } => (IndexEntry::symlink(target), self.mode),
            FoundKind::Special => return None,
        };
        entry.mode = (self.mode != usual).then_some(self.mode);
        entry.mtime_ns = Some(self.mtime_ns);
        Some(entry)
    }
}

impl Scan {
    pub(crate) fn count(&self, kind: EntryKind) -> u64 {
        let is = |found: &&Found| found.entry().is_some_and(|entry| entry.kind == kind);
        self.entries.values().filter(is).count() as u64
    }
}

/// Looks at all below `root`. Blocks.
///
/// # Errors
/// When `root` itself cannot be listed; what cannot be read below it is in the report.
pub(crate) fn scan(root: &Path, scope: Scope<'_>) -> io::Result<Scan> {
    let mut scan = Scan::default();
    let mut open = vec![(root.to_owned(), String::new())];
    while let Some((folder, above)) = open.pop() {
        let listed = match fs::read_dir(&folder).and_then(|listing| listing.collect::<io::Result<Vec<_>>>()) {
            Ok(listed) => listed,
            Err(error) if above.is_empty() => return Err(error),
            Err(error) => {
                scan.left_out.unreadable.push(Failed {
                    path: above,
                    why: error.to_string(),
                });
                continue;
            }
        };
        for child in listed {
            let path = child.path();
            let name = child.file_name();
            let lossy = joined(&above, &name.to_string_lossy());
            let Some(name) = name.to_str() else {
                let why = "the name is not UTF-8".to_owned();
                scan.left_out.names.push(Failed { path: lossy, why });
                continue;
            };
            let relative = joined(&above, name);
            match look(&path, &relative, scope, &mut scan.left_out) {
                Ok(Some(found)) => {
                    if found.kind == FoundKind::Dir {
                        open.push((path, relative.clone()));
                    }
                    scan.entries.insert(relative, found);
                }
                Ok(None) => {}
                // Gone since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => scan.left_out.unreadable.push(Failed {
                    path: relative,
                    why: error.to_string(),
                }),
            }
        }
    }
    Ok(scan)
}

/// One path; none when it is left out.
fn look(path: &Path, relative: &str, scope: Scope<'_>, left_out: &mut LeftOut) -> io::Result<Option<Found>> {
    let meta = fs::symlink_metadata(path)?;
    let kind = meta.file_type();
    if let Scope::Storable { app, excludes } = scope
        && let Some(rule) = rule(excludes, &format!("{app}/{relative}"), kind.is_dir())
    {
        let count = left_out.excluded.entry(rule.to_owned()).or_default();
        if kind.is_dir() {
            measure(path, count);
        } else {
            count.add(meta.len());
        }
        return Ok(None);
    }
    let kind = if kind.is_dir() {
        FoundKind::Dir
    } else if kind.is_symlink() {
        match fs::read_link(path)?.into_os_string().into_string() {
            Ok(target) => FoundKind::Symlink { target },
            Err(_) => {
                let why = "the link's target is not UTF-8".to_owned();
                left_out.names.push(Failed {
                    path: relative.to_owned(),
                    why,
                });
                return Ok(None);
            }
        }
    } else if kind.is_file() {
        if let Scope::Storable { app, .. } = scope {
            let length = app.len() + 1 + relative.len();
            if length > LONGEST_KEY {
                let why = format!("its key has {length} bytes, and S3 takes {LONGEST_KEY}");
                left_out.names.push(Failed {
                    path: relative.to_owned(),
                    why,
                });
                return Ok(None);
            }
            eaccess(path, AccessFlags::R_OK)?;
            left_out.hard_links += u64::from(meta.nlink() > 1);
        }
        FoundKind::File { size: meta.len() }
    } else if matches!(scope, Scope::Everything) {
        FoundKind::Special
    } else {
        left_out.special.push(relative.to_owned());
        return Ok(None);
    };
    Ok(Some(Found::of(&meta, kind)))
}

/// The rule that keeps a path out.
fn rule<'e>(excludes: &'e Excludes, key: &str, is_dir: bool) -> Option<&'e str> {
    if is_dir {
        return excludes.excluding(&format!("{key}/"));
    }
    excludes
        .excluding(key)
        .or_else(|| excludes.transient(key).then_some(TRANSIENT))
}

/// Adds what an excluded folder holds. What cannot be read is not counted: nobody wants it.
fn measure(folder: &Path, count: &mut Count) {
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for child in fs::read_dir(folder).into_iter().flatten().flatten() {
            match child.metadata() {
                Ok(meta) if meta.is_dir() => open.push(child.path()),
                Ok(meta) => count.add(meta.len()),
                Err(_) => {}
            }
        }
    }
}

pub(crate) fn joined(above: &str, name: &str) -> String {
    if above.is_empty() {
        name.to_owned()
    } else {
        format!("{above}/{name}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::{
        ffi::OsStr,
        os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    };

    use super::*;

    fn storable(root: &Path) -> Scan {
        let excludes = Excludes::default();
        scan(
            root,
            Scope::Storable {
                app: "shop",
                excludes: &excludes,
            },
        )
        .unwrap()
    }

    #[test]
    fn everything_is_found_or_its_absence_told() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let write = |path: &str, content: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write("src/a.js", "abc");
        write("node_modules/x/y.js", "12345");
        write("node_modules/.bin/z", "1");
        write(".env", "K=1");
        write(".a.swp", "x");
        fs::create_dir(root.join("empty")).unwrap();
        fs::hard_link(root.join("src/a.js"), root.join("src/b.js")).unwrap();
        std::os::unix::fs::symlink("src/a.js", root.join("link")).unwrap();
        fs::write(root.join(OsStr::from_bytes(b"bad\xff")), "x").unwrap();
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        fs::set_permissions(root.join("src/a.js"), fs::Permissions::from_mode(0o750)).unwrap();
        let scan = storable(root);
        let paths: Vec<_> = scan.entries.keys().map(String::as_str).collect();
        assert_eq!(paths, ["empty", "link", "src", "src/a.js", "src/b.js"]);
        assert_eq!(scan.entries["src/a.js"].kind, FoundKind::File { size: 3 });
        assert_eq!(scan.entries["src/a.js"].entry().unwrap().mode, Some(0o750));
        assert_eq!(
            scan.entries["link"].kind,
            FoundKind::Symlink {
                target: "src/a.js".into()
            }
        );
        let left = scan.left_out;
        assert_eq!(left.excluded["node_modules/**"], Count { files: 2, bytes: 6 });
        assert_eq!(left.excluded[".env*"], Count { files: 1, bytes: 3 });
        assert_eq!(left.excluded[TRANSIENT], Count { files: 1, bytes: 1 });
        assert_eq!(left.special, ["pipe"]);
        assert_eq!(left.hard_links, 2);
        assert_eq!(left.names.len(), 1);
        assert!(left.names[0].path.starts_with("bad") && left.names[0].why.contains("UTF-8"));
    }

    #[test]
    fn a_key_that_is_too_long_is_told_with_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let mut deep = dir.path().to_owned();
        for _ in 0..5 {
            deep.push("d".repeat(210));
        }
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("f"), "x").unwrap();
        let scan = storable(dir.path());
        assert!(
            scan.left_out.names[0].why.contains("1061 bytes"),
            "{:?}",
            scan.left_out.names
        );
        assert_eq!(scan.count(EntryKind::Dir), 5);
        assert_eq!(scan.count(EntryKind::File), 0);
    }

    #[test]
    fn where_everything_counts_nothing_is_excluded() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("dist")).unwrap();
        fs::write(dir.path().join("dist/a.log"), "x").unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let scan = scan(dir.path(), Scope::Everything).unwrap();
        assert_eq!(scan.entries.len(), 3);
        assert_eq!(scan.entries["pipe"].kind, FoundKind::Special);
    }
}
