//! A draft: content that lives on this host, because it is being written or because it is local-only.
//!
//! Small drafts are in memory, behind an `Arc`: a save takes a second reference and a write that comes meanwhile copies, so
//! a save always holds one state of the file. Beyond [`SPILL`] a draft moves to a file of the journal, which a save simply
//! names; such a file is *shared* from then on, and copied before it is written again.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;

use crate::journal::{BodyFile, Content, Held, Journal};

/// Drafts beyond this size go to a file.
pub(crate) const SPILL: u64 = 8 << 20;
/// Content up to this goes into the journal's segments; larger content becomes a file beside them.
pub(crate) const INLINE: u64 = 1 << 20;
/// The largest file the mount takes.
pub(crate) const MAX_FILE: u64 = 1 << 40;
/// Bytes copied at a time.
const STEP: usize = 1 << 20;

/// Content being held.
#[derive(Debug)]
pub(crate) enum Draft {
    Memory(Arc<Vec<u8>>),
    Spilled {
        file: Arc<BodyFile>,
        len: u64,
        shared: bool,
    },
}

/// One state of a file's content.
#[derive(Debug, Clone)]
pub(crate) enum Snapshot {
    /// The bytes themselves.
    Memory(Bytes),
    /// A file that nobody writes any more.
    File(Arc<BodyFile>, u64),
    /// The journal has it already.
    Held(Arc<Held>),
}

impl Snapshot {
    /// Bytes that the journal still has to write for it. A file is on its disk already, and counted there.
    pub(crate) fn unwritten(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(..) | Self::Held(_) => 0,
        }
    }

    /// Whether giving it to the journal means writing much.
    pub(crate) fn is_large(&self) -> bool {
        match self {
            Self::Memory(bytes) => bytes.len() as u64 > INLINE,
            Self::File(..) => true,
            Self::Held(_) => false,
        }
    }

    /// In the form the journal takes. Writes a file if the content is too large for a segment.
    pub(crate) fn into_content(self, journal: &Journal) -> io::Result<Content> {
        Ok(match self {
            Self::Held(held) => Content::Held(held),
            Self::File(file, len) => Content::File(file, len),
            Self::Memory(bytes) if bytes.len() as u64 <= INLINE => Content::Bytes(bytes),
            Self::Memory(bytes) => {
                let file = journal.new_body()?;
                file.write_all_at(&bytes, 0)?;
                Content::File(file, bytes.len() as u64)
            }
        })
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
            Self::Spilled { len, .. } => *len,
        }
    }

    /// Bytes that the journal would have to write to save it.
    pub(crate) fn unwritten(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Spilled { .. } => 0,
        }
    }

    /// Whether it must be copied before it is written.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Spilled { shared: true, .. })
    }

    pub(crate) fn snapshot(&mut self) -> Snapshot {
        match self {
            Self::Memory(bytes) => Snapshot::Memory(Bytes::from_owner(Shared(bytes.clone()))),
            Self::Spilled { file, len, shared } => {
                *shared = true;
                Snapshot::File(file.clone(), *len)
            }
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
            Self::Spilled { file, .. } => {
                if offset < file.upload.released() {
                    // Only S3 has it, as parts of no object yet.
                    return Err(io::Error::from_raw_os_error(libc::EBUSY));
                }
                let mut out = vec![0; (end - offset) as usize];
                file.read_exact_at(&mut out, offset)?;
                Ok(out.into())
            }
        }
    }

    /// Writes `data` at `offset`; what lies between the old end and `offset` reads as zeros. `journal`: where to spill.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], journal: Option<&Journal>) -> io::Result<()> {
        let end = offset + data.len() as u64;
        self.spill_beyond(end, journal)?;
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
            Self::Spilled { file, len, .. } => {
                only_behind(file, offset)?;
                file.write_all_at(data, offset)?;
                file.upload.wrote(offset, data.len() as u64);
                *len = end.max(*len);
            }
        }
        Ok(())
    }

    /// Cuts or lengthens (with zeros) to `size` bytes.
    pub(crate) fn resize(&mut self, size: u64, journal: Option<&Journal>) -> io::Result<()> {
        self.spill_beyond(size, journal)?;
        match self {
            Self::Memory(bytes) => Arc::make_mut(bytes).resize(size as usize, 0),
            Self::Spilled { file, len, .. } => {
                only_behind(file, size)?;
                file.set_len(size)?;
                file.upload.resized(*len, size);
                *len = size;
            }
        }
        Ok(())
    }

    fn spill_beyond(&mut self, size: u64, journal: Option<&Journal>) -> io::Result<()> {
        let (Self::Memory(bytes), Some(journal)) = (&*self, journal) else {
            return Ok(());
        };
        if size <= SPILL {
            return Ok(());
        }
        let file = journal.new_body()?;
        file.write_all_at(bytes, 0)?;
        let len = bytes.len() as u64;
        file.upload.wrote(0, len);
        *self = Self::Spilled {
            file,
            len,
            shared: false,
        };
        Ok(())
    }

    /// A copy of `len` bytes of `file` that can be written.
    pub(crate) fn copy_of(file: &File, len: u64, journal: &Journal) -> io::Result<Self> {
        let copy = journal.new_body()?;
        let mut at = 0;
        let mut buffer = vec![0; STEP];
        while at < len {
            let step = STEP.min((len - at) as usize);
            file.read_exact_at(&mut buffer[..step], at)?;
            copy.write_all_at(&buffer[..step], at)?;
            at += step as u64;
        }
        copy.upload.wrote(0, len);
        Ok(Self::Spilled {
            file: copy,
            len,
            shared: false,
        })
    }
}

/// What S3 alone has cannot be changed.
fn only_behind(file: &BodyFile, offset: u64) -> io::Result<()> {
    if offset < file.upload.released() {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    Ok(())
}
