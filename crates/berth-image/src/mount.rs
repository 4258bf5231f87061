//! Showing an image file at a folder: erofs straight from the file, by a loop device on kernels before 6.12.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount as mount_fs, umount2};

use crate::error::at;
use crate::{ImageError, Result};

/// Mounts the image file at the folder `at`.
pub(crate) fn mount(name: &str, file: &Path, at: &Path) -> Result<()> {
    let failed = |source: std::io::Error| ImageError::Mount {
        name: name.to_owned(),
        path: file.to_owned(),
        source,
    };
    match mount_erofs(file, at) {
        // The kernel wants a block device: it cannot mount erofs from a file.
        Err(Errno::ENOTBLK) => {
            let device = berth_sys::loopdev::attach(file).map_err(failed)?;
            mount_erofs(device.path(), at).map_err(|e| failed(e.into()))
        }
        other => other.map_err(|e| failed(e.into())),
    }
}

fn mount_erofs(source: &Path, at: &Path) -> std::result::Result<(), Errno> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_fs(Some(source), at, Some("erofs"), flags, None::<&str>)
}

/// Whether something is mounted at `path` itself.
pub(crate) fn is_mounted(path: &Path) -> Result<bool> {
    let (Ok(own), Some(parent)) = (fs::metadata(path), path.parent()) else {
        return Ok(false);
    };
    Ok(own.dev() != fs::metadata(parent).map_err(at("read", parent))?.dev())
}

/// The mount points of image `name`, old ones included.
fn mounts_of(mounts: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let prefix = format!("{name}@");
    let mut found = Vec::new();
    for entry in fs::read_dir(mounts).map_err(at("read", mounts))? {
        let path = entry.map_err(at("read", mounts))?.path();
        if path
            .file_name()
            .is_some_and(|file| file.to_string_lossy().starts_with(&prefix))
        {
            found.push(path);
        }
    }
    Ok(found)
}

/// Unmounts everything of image `name`, unless a process runs on it.
pub(crate) fn release(mounts: &Path, name: &str) -> Result<()> {
    let points = mounts_of(mounts, name)?;
    for point in &points {
        if is_mounted(point)? {
            let users = users(point)?;
            if !users.is_empty() {
                return Err(ImageError::InUse {
                    name: name.to_owned(),
                    users: said(&users),
                });
            }
        }
    }
    for point in &points {
        match unmount(point) {
            Err(Errno::EBUSY) => {
                let users = "a process whose folder is there".to_owned();
                return Err(ImageError::InUse {
                    name: name.to_owned(),
                    users,
                });
            }
            other => other.map_err(|e| at("unmount", point)(e.into()))?,
        }
    }
    Ok(())
}

/// Unmounts all images below `mounts`; tells the first failure, after trying all.
pub(crate) fn unmount_below(mounts: &Path) -> Result<()> {
    let points = fs::read_dir(mounts)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    points
        .filter(|point| point.is_dir())
        .map(|point| unmount(&point).map_err(|e| at("unmount", &point)(e.into())))
        .fold(Ok(()), Result::and)
}

fn unmount(point: &Path) -> std::result::Result<(), Errno> {
    match umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(other) => return Err(other),
    }
    // An empty folder that stays does no harm.
    let _ = fs::remove_dir(point);
    Ok(())
}

/// The processes, one for each other mount namespace, that have the file system at `point` mounted too.
fn users(point: &Path) -> Result<Vec<i32>> {
    let about = fs::metadata(point).map_err(at("read", point))?;
    let device = format!(
        "{}:{}",
        nix::sys::stat::major(about.dev()),
        nix::sys::stat::minor(about.dev())
    );
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mut seen: BTreeSet<PathBuf> = namespace("self").into_iter().collect();
    let mut users = Vec::new();
    for entry in fs::read_dir("/proc").map_err(at("read", "/proc"))?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else {
            continue;
        };
        // Processes come and go while we look: one that is gone uses nothing.
        let Some(ns) = namespace(pid) else { continue };
        if !seen.insert(ns) {
            continue;
        }
        let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        if table
            .lines()
            .any(|line| line.split(' ').nth(2) == Some(device.as_str()))
        {
            users.extend(pid.parse::<i32>());
        }
    }
    Ok(users)
}

fn said(pids: &[i32]) -> String {
    let list: Vec<String> = pids.iter().take(5).map(i32::to_string).collect();
    let more = if pids.len() > 5 {
        format!(" and {} more", pids.len() - 5)
    } else {
        String::new()
    };
    format!("process {}{more}", list.join(", "))
}
