//! A draft: content that lives on this host, because it is being written or because it is local-only.
//!
//! Small drafts are in memory, behind an `Arc`: an upload takes a second reference and a write that comes meanwhile
//! copies, so an upload always sends one state of the file. Beyond [`SPILL`] a draft moves to an unlinked file, which the
//! kernel frees whatever happens to this process.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;

/// Drafts beyond this size go to a file.
pub(crate) const SPILL: u64 = 8 << 20;
/// The largest file the mount takes.
pub(crate) const MAX_FILE: u64 = 1 << 40;

/// Content being held.
#[derive(Debug)]
pub(crate) enum Draft {
    Memory(Arc<Vec<u8>>),
    Spilled(Arc<File>, u64),
}

/// One state of a draft, to upload.
#[derive(Debug)]
pub(crate) enum Snapshot {
    /// The bytes themselves.
    Memory(Bytes),
    /// The file; what is written meanwhile shows in it.
    Spilled(Arc<File>, u64),
}

impl Snapshot {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Spilled(_, len) => *len,
        }
    }

    /// A path under which the unlinked file can be opened while `self` lives.
    pub(crate) fn path_of(file: &File) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
    }
}

/// Lets `Bytes` share a draft's memory without copying it.
struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Draft {
    pub(crate) fn empty() -> Self {
        Self::Memory(Arc::default())
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Self::Memory(Arc::new(bytes.to_vec()))
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Spilled(_, len) => *len,
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        match self {
            Self::Memory(bytes) => Snapshot::Memory(Bytes::from_owner(Shared(bytes.clone()))),
            Self::Spilled(file, len) => Snapshot::Spilled(file.clone(), *len),
        }
    }

    /// Up to `size` bytes from `offset`.
    pub(crate) fn read(&self, offset: u64, size: usize) -> io::Result<Bytes> {
        let end = self.len().min(offset.saturating_add(size as u64));
        if offset >= end {
            return Ok(Bytes::new());
        }
        match self {
            Self::Memory(bytes) => Ok(Bytes::copy_from_slice(&bytes[offset as usize..end as usize])),
            Self::Spilled(file, _) => {
                let mut out = vec![0; (end - offset) as usize];
                file.read_exact_at(&mut out, offset)?;
                Ok(out.into())
            }
        }
    }

    /// Writes `data` at `offset`; what lies between the old end and `offset` reads as zeros. `dir`: where to spill.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], dir: Option<&Path>) -> io::Result<()> {
        let end = offset + data.len() as u64;
        self.spill_beyond(end, dir)?;
        match self {
            Self::Memory(bytes) => {
                let bytes = Arc::make_mut(bytes);
                if bytes.len() as u64 == offset {
                    bytes.extend_from_slice(data);
                    return Ok(());
                }
                if (bytes.len() as u64) < end {
                    bytes.resize(end as usize, 0);
                }
                bytes[offset as usize..end as usize].copy_from_slice(data);
            }
            Self::Spilled(file, len) => {
                file.write_all_at(data, offset)?;
                *len = end.max(*len);
            }
        }
        Ok(())
    }

    /// Cuts or lengthens (with zeros) to `size` bytes.
    pub(crate) fn resize(&mut self, size: u64, dir: Option<&Path>) -> io::Result<()> {
        self.spill_beyond(size, dir)?;
        match self {
            Self::Memory(bytes) => Arc::make_mut(bytes).resize(size as usize, 0),
            Self::Spilled(file, len) => {
                file.set_len(size)?;
                *len = size;
            }
        }
        Ok(())
    }

    fn spill_beyond(&mut self, size: u64, dir: Option<&Path>) -> io::Result<()> {
        let (Self::Memory(bytes), Some(dir)) = (&*self, dir) else {
            return Ok(());
        };
        if size <= SPILL {
            return Ok(());
        }
        let file = unlinked_file(dir)?;
        file.write_all_at(bytes, 0)?;
        let len = bytes.len() as u64;
        *self = Self::Spilled(Arc::new(file), len);
        Ok(())
    }
}

/// A file without a name in `dir`.
pub(crate) fn unlinked_file(dir: &Path) -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let path = dir.join(format!(
        "draft-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    ));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
