//! Copies the source into `/app`, from inside the sandbox and as its user.
//!
//! Files, folders and symlinks (as they are, never followed), with their permission bits and times. Devices, sockets and pipes are left
//! out: a workspace has none. What the copy may take is bounded by the tmpfs and by [`MAX_ENTRIES`].

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use berth_workspace::Excludes;

/// More files and folders than this are no source tree.
const MAX_ENTRIES: usize = 200_000;
/// Folders within folders.
const MAX_DEPTH: usize = 128;

/// Why the copy failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}{}", hint(.source))]
    Write { path: PathBuf, source: io::Error },
    #[error("the source has more than {MAX_ENTRIES} files")]
    TooMany,
    #[error("{path} is more than {MAX_DEPTH} folders deep")]
    TooDeep { path: PathBuf },
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::StorageFull {
        " (raise limits.app_size in workspace.json)"
    } else {
        ""
    }
}

/// What is copied where.
pub(crate) struct Copy<'a> {
    pub from: &'a Path,
    pub to: &'a Path,
    /// Asked with the app's name before the path, as in the bucket.
    pub excludes: &'a Excludes,
    pub app: &'a str,
}

impl Copy<'_> {
    /// Copies everything. Returns how many entries there were.
    pub fn run(&self) -> Result<usize, CopyError> {
        let mut entries = 0;
        self.folder(self.from, self.to, self.app, 0, &mut entries)?;
        Ok(entries)
    }

    fn folder(&self, from: &Path, to: &Path, name: &str, depth: usize, entries: &mut usize) -> Result<(), CopyError> {
        if depth > MAX_DEPTH {
            return Err(CopyError::TooDeep { path: from.to_owned() });
        }
        let read = |source| CopyError::Read {
            path: from.to_owned(),
            source,
        };
        for entry in fs::read_dir(from).map_err(read)? {
            let entry = entry.map_err(read)?;
            let file_name = entry.file_name();
            let name = format!("{name}/{}", file_name.to_string_lossy());
            let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
            if if is_dir {
                self.excludes.local_only_dir(&name)
            } else {
                self.excludes.local_only(&name)
            } {
                continue;
            }
            *entries += 1;
            if *entries > MAX_ENTRIES {
                return Err(CopyError::TooMany);
            }
            self.entry(&entry.path(), &to.join(&file_name), &name, depth, entries)?;
        }
        Ok(())
    }

    fn entry(&self, from: &Path, to: &Path, name: &str, depth: usize, entries: &mut usize) -> Result<(), CopyError> {
        let meta = match fs::symlink_metadata(from) {
            Ok(meta) => meta,
            // Deleted since the folder was read: the next revision says so.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => {
                return Err(CopyError::Read {
                    path: from.to_owned(),
                    source,
                });
            }
        };
        let write = |source| CopyError::Write {
            path: to.to_owned(),
            source,
        };
        if meta.is_dir() {
            match fs::create_dir(to) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(write(error)),
                _ => {}
            }
            self.folder(from, to, name, depth + 1, entries)
        } else if meta.is_symlink() {
            let target = fs::read_link(from).map_err(|source| CopyError::Read {
                path: from.to_owned(),
                source,
            })?;
            symlink(target, to).map_err(write)
        } else if meta.is_file() {
            copy_file(from, to, &meta)
        } else {
            Ok(())
        }
    }
}

fn copy_file(from: &Path, to: &Path, meta: &fs::Metadata) -> Result<(), CopyError> {
    let write = |source| CopyError::Write {
        path: to.to_owned(),
        source,
    };
    let mut source = File::open(from).map_err(|source| CopyError::Read {
        path: from.to_owned(),
        source,
    })?;
    let mut target = File::create(to).map_err(write)?;
    io::copy(&mut source, &mut target).map_err(write)?;
    // The owner must be able to change it, whatever the workspace says; setuid bits mean nothing here.
    let mode = (meta.permissions().mode() & 0o777) | 0o600;
    target
        .set_permissions(fs::Permissions::from_mode(mode))
        .map_err(write)?;
    if let Ok(modified) = meta.modified() {
        let _ = target.set_times(fs::FileTimes::new().set_modified(modified));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_folders_links_and_modes_arrive_and_excluded_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::create_dir_all(from.join("node_modules/x")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("a/b/run.sh"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(from.join("a/b/run.sh"), fs::Permissions::from_mode(0o555)).unwrap();
        fs::write(from.join("node_modules/x/y"), "").unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        let excludes = Excludes::default();
        Copy {
            from: &from,
            to: &to,
            excludes: &excludes,
            app: "hello",
        }
        .run()
        .unwrap();
        let mode = fs::metadata(to.join("a/b/run.sh")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert!(!to.join("node_modules").exists());
    }
}
