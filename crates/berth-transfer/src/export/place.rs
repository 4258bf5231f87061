//! What is not the content of files: folders before it, links, bits and times after it, and the folder for unfinished files.

use std::{
    fs::{self, File, FileTimes, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use nix::{
    fcntl::{AT_FDCWD, Flock, FlockArg},
    sys::{
        stat::{UtimensatFlags, utimensat},
        time::TimeSpec,
    },
};

use super::STAGING;
use crate::{
    TransferError,
    content::blocking,
    plan::{self, Wanted, WantedKind},
    report::{Failed, WorkspaceReport},
    scan::Scan,
};

/// Makes the folders, and the one for unfinished files, which is emptied and locked.
pub(super) async fn make_folders(target: &Path, plan: &plan::Export) -> Result<Flock<File>, TransferError> {
    let folders = plan.wanted.iter().filter(|(_, wanted)| wanted.kind == WantedKind::Dir);
    let folders: Vec<PathBuf> = folders.map(|(path, _)| target.join(path)).collect();
    let staging = target.join(STAGING);
    let target = target.to_owned();
    let made = tokio::task::spawn_blocking(move || {
        let failed = |path: &Path, source| TransferError::Make {
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(&target).map_err(|error| failed(&target, error))?;
        let lock = lock(&staging).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => TransferError::Busy { path: target.clone() },
            _ => failed(&staging, error),
        })?;
        // Parents come before what is in them.
        for folder in folders {
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&folder, error)),
                _ => {}
            }
        }
        Ok(lock)
    });
    made.await.map_err(|error| TransferError::Make {
        path: PathBuf::new(),
        source: io::Error::other(error),
    })?
}

fn lock(staging: &Path) -> io::Result<Flock<File>> {
    match fs::create_dir(staging) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let locked = Flock::lock(File::open(staging)?, FlockArg::LockExclusiveNonblock);
    let lock = locked.map_err(|(_, errno)| io::Error::from(errno))?;
    for leftover in fs::read_dir(staging)? {
        fs::remove_file(leftover?.path())?;
    }
    Ok(lock)
}

/// Links, bits and times; then the folder for unfinished files goes.
pub(super) async fn finish(
    target: &Path,
    plan: &plan::Export,
    same: &[String],
    scan: &Scan,
    whole: bool,
    report: &mut WorkspaceReport,
) -> Result<(), TransferError> {
    let mut work: Vec<(PathBuf, Wanted, bool)> = Vec::new();
    let is_link = |wanted: &Wanted| matches!(wanted.kind, WantedKind::Symlink(_));
    let links = plan.wanted.iter().filter(|(_, wanted)| is_link(wanted));
    let files = same.iter().filter_map(|path| Some((path, plan.wanted.get(path)?)));
    let folders = plan
        .wanted
        .iter()
        .rev()
        .filter(|(_, wanted)| wanted.kind == WantedKind::Dir);
    for (path, wanted) in links.chain(files).chain(folders) {
        work.push((target.join(path), wanted.clone(), scan.entries.contains_key(path)));
    }
    let staging = target.join(STAGING);
    let root = target.to_owned();
    let done = blocking(move || {
        let mut failed = Vec::new();
        for (path, wanted, _) in work.into_iter().filter(|_| whole) {
            let made = match &wanted.kind {
                WantedKind::Symlink(to) => link(&staging, to, &path, wanted.mtime),
                _ => dress(&path, &wanted),
            };
            if let Err(error) = made {
                failed.push((path, error.to_string()));
            }
        }
        fs::remove_dir_all(&staging)?;
        // Names too are on disk when this is told to be done.
        nix::unistd::syncfs(File::open(&root)?)?;
        Ok(failed)
    });
    let failed = done.await.map_err(|source| TransferError::Make {
        path: target.to_owned(),
        source,
    })?;
    report.failed.extend(failed.into_iter().map(|(path, why)| Failed {
        path: path.strip_prefix(target).unwrap_or(&path).display().to_string(),
        why,
    }));
    Ok(())
}

/// A link that replaces what has its name, unless it points there already.
fn link(staging: &Path, to: &str, path: &Path, mtime: Option<SystemTime>) -> io::Result<()> {
    if !fs::read_link(path).is_ok_and(|there| there == Path::new(to)) {
        let fresh = staging.join("link");
        std::os::unix::fs::symlink(to, &fresh)?;
        fs::rename(&fresh, path)?;
    }
    let Some(mtime) = mtime else { return Ok(()) };
    let since = mtime.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time = TimeSpec::from_duration(since);
    utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

/// Bits and time of a file or folder.
fn dress(path: &Path, wanted: &Wanted) -> io::Result<()> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW.bits();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    dress_open(&file, wanted)
}

pub(super) fn dress_open(file: &File, wanted: &Wanted) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(wanted.mode))?;
    match wanted.mtime {
        Some(mtime) => file.set_times(FileTimes::new().set_modified(mtime)),
        None => Ok(()),
    }
}
