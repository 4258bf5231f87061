//! Contents, wherever they are at the moment: in memory, in a segment, in a pack, or in a body file.
//!
//! What a content occupies is free when nobody has it any more; that is what counting its [`Arc`]s says. A segment knows it
//! by its own count; a body file is entered in the [`Graves`] and unlinked when the record that let go of it is on disk.

use std::{
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{BodyFile, segment::Segment};

/// The kinds of files that hold contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) enum Kind {
    #[default]
    Log,
    Pack,
    Body,
}

impl Kind {
    pub(super) fn code(self) -> u8 {
        match self {
            Kind::Log => 1,
            Kind::Pack => 2,
            Kind::Body => 3,
        }
    }

    /// `Some(None)` is "no content".
    pub(super) fn of(code: u8) -> Option<Option<Kind>> {
        match code {
            0 => Some(None),
            1 => Some(Some(Kind::Log)),
            2 => Some(Some(Kind::Pack)),
            3 => Some(Some(Kind::Body)),
            _ => None,
        }
    }
}

/// Where a content is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Place {
    pub(super) kind: Kind,
    pub(super) number: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Of the content; 0 for bodies, which are not read again to compute it.
    pub(super) crc: u32,
}

/// What the contents of one journal share: their count, and the body files to be removed.
#[derive(Debug, Default)]
pub(super) struct Graves {
    /// The last seq given out.
    pub(super) appended: AtomicU64,
    pub(super) live_bytes: AtomicU64,
    /// Bodies that nobody has any more: removed when the seq, which was the last one then, is on disk.
    pub(super) dead: Mutex<Vec<(u64, u64, PathBuf, u64)>>,
}

/// A body file that the journal has taken over.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<BodyFile>,
    pub(super) len: u64,
    /// Bytes that it takes on the disk: fewer than `len` where it has holes.
    pub(super) disk: u64,
    pub(super) synced: AtomicBool,
    /// A sync failed, and the kernel may count the pages as clean: they must be written again.
    pub(super) suspect: AtomicBool,
    pub(super) graves: Arc<Graves>,
}

impl Body {
    pub(super) fn sync(&self) -> io::Result<()> {
        if self.synced.load(Ordering::Acquire) {
            return Ok(());
        }
        if self.suspect.load(Ordering::Acquire) {
            let mut part = vec![0; 1 << 20];
            let mut at = 0;
            while at < self.len {
                let want = usize::try_from((self.len - at).min(1 << 20)).map_err(io::Error::other)?;
                self.file.read_exact_at(&mut part[..want], at)?;
                self.file.write_all_at(&part[..want], at)?;
                at += want as u64;
            }
        }
        self.file
            .sync_data()
            .inspect_err(|_| self.suspect.store(true, Ordering::Release))?;
        self.synced.store(true, Ordering::Release);
        Ok(())
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let seq = self.graves.appended.load(Ordering::SeqCst);
        self.graves
            .dead
            .lock()
            .push((seq, self.number, self.path.clone(), self.disk));
    }
}

#[derive(Debug, Clone)]
pub(super) enum At {
    Memory(Bytes),
    Segment(Arc<Segment>, u64),
    Body(Arc<Body>),
}

/// Content kept by the journal, for as long as a slot names it or somebody has this.
#[derive(Debug)]
pub(crate) struct Held {
    len: u64,
    crc: u32,
    at: Mutex<At>,
    graves: Arc<Graves>,
}

impl Held {
    pub(super) fn new(at: At, len: u64, crc: u32, graves: &Arc<Graves>) -> Arc<Held> {
        graves.live_bytes.fetch_add(len, Ordering::Relaxed);
        Arc::new(Held {
            len,
            crc,
            at: Mutex::new(at),
            graves: graves.clone(),
        })
    }

    pub(super) fn at(&self) -> At {
        self.at.lock().clone()
    }

    pub(super) fn move_to(&self, at: At) {
        *self.at.lock() = at;
    }

    pub(super) fn crc(&self) -> u32 {
        self.crc
    }

    /// Where it is on disk; `None` while it is in memory only.
    pub(super) fn place(&self) -> Option<Place> {
        let (kind, number, offset) = match &*self.at.lock() {
            At::Memory(_) => return None,
            At::Segment(segment, offset) => (segment.kind, segment.number, *offset),
            At::Body(body) => (Kind::Body, body.number, 0),
        };
        Some(Place {
            kind,
            number,
            offset,
            len: self.len,
            crc: self.crc,
        })
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Up to `size` bytes from `offset`; fewer only at the end.
    pub(crate) fn read(&self, offset: u64, size: usize) -> io::Result<Bytes> {
        let start = offset.min(self.len);
        let count = usize::try_from((self.len - start).min(size as u64)).map_err(io::Error::other)?;
        let (segment, body);
        let (file, base) = match self.at() {
            At::Memory(bytes) => {
                let start = usize::try_from(start).map_err(io::Error::other)?;
                return Ok(bytes.slice(start..start + count));
            }
            At::Segment(found, at) => {
                segment = found;
                (&segment.file, at)
            }
            At::Body(found) => {
                body = found;
                (&**body.file, 0)
            }
        };
        let mut bytes = vec![0; count];
        file.read_exact_at(&mut bytes, base + start)?;
        Ok(bytes.into())
    }

    /// The file that holds this content and nothing else, if there is one.
    pub(crate) fn as_file(&self) -> Option<Arc<BodyFile>> {
        match &*self.at.lock() {
            At::Body(body) => Some(body.file.clone()),
            _ => None,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.graves.live_bytes.fetch_sub(self.len, Ordering::Relaxed);
    }
}
