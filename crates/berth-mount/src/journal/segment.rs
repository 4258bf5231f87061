//! The files of the log: made with zeros beforehand, used from the start to the end, then used again under a new number.
//!
//! `NUMBER.log` holds records, `NUMBER.pack` contents that were moved out of sparse segments, `NUMBER.free` waits for use.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::held::Kind;

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) kind: Kind,
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) size: u64,
}

pub(super) fn path(dir: &Path, number: u64, ext: &str) -> PathBuf {
    dir.join(format!("{number:016x}.{ext}"))
}

/// The number and extension of a file's name.
pub(super) fn parse(path: &Path) -> Option<(u64, String)> {
    let number = u64::from_str_radix(path.file_stem()?.to_str()?, 16).ok()?;
    Some((number, path.extension()?.to_str()?.to_owned()))
}

pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// A file whose blocks are all there: writing into it later changes no metadata. Nothing of it is left if that fails.
pub(super) fn zeroed(path: &Path, size: u64) -> io::Result<File> {
    let fill = || {
        let mut file = create(path)?;
        let zeros = vec![0; 1 << 20];
        let mut left = size;
        while left > 0 {
            let part = left.min(1 << 20);
            file.write_all(&zeros[..usize::try_from(part).map_err(io::Error::other)?])?;
            left -= part;
        }
        file.sync_all()?;
        Ok(file)
    };
    fill().inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Puts a file of this content in place of whatever has the name, so that a crash leaves the one or the other.
pub(super) fn replace(path: &Path, bytes: &[u8], written: impl FnOnce()) -> io::Result<()> {
    let tmp = path.with_extension("tmp");
    let write = || {
        let mut file = create(&tmp)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&tmp);
    })?;
    written();
    fs::rename(&tmp, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}
