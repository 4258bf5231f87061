//! Contents on disk: small ones packed together, large chunks in files of their own.
//!
//! ```text
//!   state/cache/contents/  000000000017.pack   entry, entry, entry ...   (small bodies, appended)
//!                          000000000018.chunk  entry                    (one large chunk)
//! ```
//! One thread writes; whoever keeps something does not wait for it. Every entry carries its id and checksums ([`entry`]),
//! so the index is in memory alone and is built again at start from the files; what a crash cut off is not in it, what is
//! damaged is dropped when it is read. Nothing is ever synced: S3 has it all.
//!
//! Files are numbered, and when there is too much the lowest goes. What was used since it was written gets a second
//! chance: it is written again under the newest number. The last of the disk is left to the journal, and a journal that finds
//! it full gets what the cache has.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::entry::{self, HEAD, Head, Id};

/// Bodies up to this are packed.
pub(super) const SMALL: usize = 64 << 10;
/// The largest pack.
const PACK: u64 = 16 << 20;
/// Bytes that may wait for the writer; what comes on top is not kept.
const QUEUE: u64 = 64 << 20;
/// Bytes of its disk that are not for the cache: saves must find room there.
const LEFT: u64 = 64 << 20;

#[derive(Debug)]
enum Order {
    Keep(Id, Bytes),
    GiveWay(u64, mpsc::Sender<()>),
    #[cfg(test)]
    Reach(mpsc::Sender<()>),
}

/// Where an entry is.
#[derive(Debug, Clone, Copy)]
struct Spot {
    segment: u64,
    at: u32,
    len: u32,
    /// Read since it was written.
    used: bool,
}

/// One file.
#[derive(Debug)]
struct Segment {
    bytes: u64,
    /// Open, if it is a pack.
    pack: Option<Arc<File>>,
}

#[derive(Debug, Default)]
struct Index {
    entries: HashMap<Id, Spot>,
    segments: BTreeMap<u64, Segment>,
    bytes: u64,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    max: u64,
    index: Mutex<Index>,
    queued: AtomicU64,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Disk {
    shared: Arc<Shared>,
    writer: Mutex<Option<(mpsc::Sender<Order>, JoinHandle<()>)>>,
}

impl Disk {
    /// Takes over what `dir` has; its entries turn up while the writer reads their heads. One process at a time.
    pub(super) fn open(dir: PathBuf, max: u64) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let shared = Arc::new(Shared {
            dir,
            max,
            index: Mutex::default(),
            queued: AtomicU64::new(0),
        });
        let (sender, orders) = mpsc::channel();
        let own = shared.clone();
        let thread = std::thread::Builder::new()
            .name("berth-cache".into())
            .spawn(move || Writer::new(own).run(&orders))?;
        Ok(Self {
            shared,
            writer: Mutex::new(Some((sender, thread))),
        })
    }

    /// Has it written, soon. A full disk or a slow one costs speed later, nothing else.
    pub(super) fn keep(&self, id: Id, bytes: Bytes) {
        let len = bytes.len() as u64;
        if len + HEAD as u64 > self.shared.max || self.holds(&id) {
            return;
        }
        if self.shared.queued.fetch_add(len, Ordering::Relaxed) > QUEUE {
            self.shared.queued.fetch_sub(len, Ordering::Relaxed);
            return;
        }
        if let Some((sender, _)) = &*self.writer.lock() {
            // Fails only if the writer has ended.
            let _ = sender.send(Order::Keep(id, bytes));
        }
    }

    pub(super) fn holds(&self, id: &Id) -> bool {
        self.shared.index.lock().entries.contains_key(id)
    }

    /// Whether it is here and small enough to be read at once.
    pub(super) fn is_small(&self, id: &Id) -> bool {
        let index = self.shared.index.lock();
        index.entries.get(id).is_some_and(|spot| spot.len as usize <= SMALL)
    }

    /// The chunk, checked.
    pub(super) fn read(&self, id: &Id) -> Option<Bytes> {
        self.shared.read(id)
    }

    /// What is damaged or no longer wanted.
    pub(super) fn forget(&self, id: &Id) {
        self.shared.forget(id);
    }

    /// Gives so many bytes of the disk back, the oldest contents first; returns when it has.
    pub(super) fn give_way(&self, bytes: u64) {
        let (done, wait) = mpsc::channel();
        let order = Order::GiveWay(bytes, done);
        let sent = self
            .writer
            .lock()
            .as_ref()
            .is_some_and(|(sender, _)| sender.send(order).is_ok());
        if sent {
            // Fails only if the writer has ended.
            let _ = wait.recv();
        }
    }

    /// Ends the writer when it has written what it was given.
    pub(super) fn end(&self) {
        let writer = self.writer.lock().take();
        if let Some((sender, thread)) = writer {
            drop(sender);
            if thread.join().is_err() {
                tracing::warn!("the thread that writes the cache panicked");
            }
        }
    }

    /// Waits until what was kept so far is written.
    #[cfg(test)]
    pub(super) fn settle(&self) {
        let (done, wait) = mpsc::channel();
        if let Some((sender, _)) = &*self.writer.lock() {
            sender.send(Order::Reach(done)).ok();
        }
        wait.recv().ok();
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.shared.index.lock().bytes
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn path(&self, segment: u64, kind: &str) -> PathBuf {
        self.dir.join(format!("{segment:012}.{kind}"))
    }

    fn read(&self, id: &Id) -> Option<Bytes> {
        let (spot, pack) = {
            let mut index = self.index.lock();
            let spot = index.entries.get_mut(id)?;
            spot.used = true;
            let spot = *spot;
            (spot, index.segments.get(&spot.segment)?.pack.clone())
        };
        let read = || {
            let file = match pack {
                Some(file) => file,
                None => Arc::new(File::open(self.path(spot.segment, "chunk")).ok()?),
            };
            let mut bytes = vec![0; HEAD + spot.len as usize];
            file.read_exact_at(&mut bytes, spot.at.into()).ok()?;
            entry::body(id, bytes)
        };
        let body = read();
        if body.is_none() {
            self.forget(id);
        }
        body
    }

    fn forget(&self, id: &Id) {
        self.index.lock().entries.remove(id);
    }
}

/// The thread's own part.
struct Writer {
    shared: Arc<Shared>,
    next: u64,
    /// The pack that is appended to: its number and length.
    pack: Option<(u64, Arc<File>, u64)>,
    pack_max: u64,
    buffer: Vec<u8>,
}

impl Writer {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            pack_max: (shared.max / 8).clamp(128 << 10, PACK),
            shared,
            next: 1,
            pack: None,
            buffer: Vec::new(),
        }
    }

    fn run(mut self, orders: &mpsc::Receiver<Order>) {
        // Two processes at one folder would only make each other's entries useless; but why let them.
        let lock = File::create(self.shared.dir.join("lock")).and_then(|file| Ok(file.try_lock().map(|()| file)?));
        let Ok(_lock) = lock else {
            tracing::warn!(dir = %self.shared.dir.display(), "another process uses the cache on disk; going without it");
            return;
        };
        if let Err(error) = self.take_over() {
            tracing::warn!(%error, dir = %self.shared.dir.display(), "cannot read the cache on disk; what it has is fetched again");
        }
        self.make_room(self.shared.max);
        while let Ok(order) = orders.recv() {
            match order {
                Order::Keep(id, bytes) => {
                    self.shared.queued.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
                    if !self.leaves_room(bytes.len() as u64) {
                        continue;
                    }
                    if let Err(error) = self.write(id, &bytes) {
                        tracing::debug!(%error, "cannot write to the cache on disk");
                        self.pack = None;
                    }
                    self.make_room(self.shared.max);
                }
                Order::GiveWay(bytes, done) => {
                    let has = self.shared.index.lock().bytes;
                    if has > 0 {
                        tracing::info!(bytes, has, "the disk is full: the cache gives way");
                    }
                    self.make_room(has.saturating_sub(bytes));
                    done.send(()).ok();
                }
                #[cfg(test)]
                Order::Reach(done) => {
                    done.send(()).ok();
                }
            }
        }
    }

    /// Enters what an earlier run left.
    fn take_over(&mut self) -> io::Result<()> {
        let mut found: Vec<(u64, PathBuf, bool)> = Vec::new();
        for file in std::fs::read_dir(&self.shared.dir)? {
            let path = file?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).map(str::parse);
            match (stem, path.extension().and_then(|kind| kind.to_str())) {
                (Some(Ok(number)), Some(kind @ ("pack" | "chunk"))) => {
                    found.push((number, path.clone(), kind == "pack"))
                }
                _ if path.ends_with("lock") => {}
                _ => std::fs::remove_file(&path)?,
            }
        }
        found.sort();
        for (number, path, is_pack) in found {
            self.next = self.next.max(number + 1);
            let file = Arc::new(OpenOptions::new().read(true).write(true).open(&path)?);
            let (entries, end) = scan(&file)?;
            if entries.is_empty() {
                std::fs::remove_file(&path)?;
                continue;
            }
            // A half-written entry at the end is written over.
            file.set_len(end)?;
            if is_pack {
                self.pack = Some((number, file.clone(), end));
            }
            let mut index = self.shared.index.lock();
            for (id, at, len) in entries {
                let spot = Spot {
                    segment: number,
                    at,
                    len,
                    used: false,
                };
                index.entries.insert(id, spot);
            }
            index.bytes += end;
            let pack = is_pack.then_some(file);
            index.segments.insert(number, Segment { bytes: end, pack });
        }
        Ok(())
    }

    fn write(&mut self, id: Id, bytes: &[u8]) -> io::Result<()> {
        if self.shared.index.lock().entries.contains_key(&id) {
            return Ok(());
        }
        self.buffer.clear();
        entry::write(&id, bytes, &mut self.buffer);
        let added = self.buffer.len() as u64;
        let (segment, at) = if bytes.len() <= SMALL {
            let (number, file, len) = self.pack_for(added)?;
            file.write_all_at(&self.buffer, len)?;
            self.pack = Some((number, file, len + added));
            (number, len)
        } else {
            let number = self.number();
            let path = self.shared.path(number, "chunk");
            if let Err(error) = std::fs::write(&path, &self.buffer) {
                let _ = std::fs::remove_file(&path);
                return Err(error);
            }
            let segment = Segment { bytes: 0, pack: None };
            self.shared.index.lock().segments.insert(number, segment);
            (number, 0)
        };
        let mut index = self.shared.index.lock();
        let spot = Spot {
            segment,
            // A pack is far shorter than 4 GiB.
            at: at as u32,
            len: bytes.len() as u32,
            used: false,
        };
        index.entries.insert(id, spot);
        index.bytes += added;
        if let Some(segment) = index.segments.get_mut(&segment) {
            segment.bytes += added;
        }
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// The pack with room for `added` bytes.
    fn pack_for(&mut self, added: u64) -> io::Result<(u64, Arc<File>, u64)> {
        if let Some((number, file, len)) = &self.pack
            && len + added <= self.pack_max
        {
            return Ok((*number, file.clone(), *len));
        }
        let number = self.number();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.shared.path(number, "pack"))?;
        let file = Arc::new(file);
        let segment = Segment {
            bytes: 0,
            pack: Some(file.clone()),
        };
        self.shared.index.lock().segments.insert(number, segment);
        self.pack = Some((number, file.clone(), 0));
        Ok((number, file, 0))
    }

    /// Whether the disk would still have room for saves.
    fn leaves_room(&self, bytes: u64) -> bool {
        nix::sys::statvfs::statvfs(&self.shared.dir).map_or(true, |disk| {
            disk.blocks_available() * disk.fragment_size() >= bytes + LEFT
        })
    }

    /// Drops the oldest files until the rest is no more than `most` bytes.
    fn make_room(&mut self, most: u64) {
        loop {
            let (number, pack) = {
                let mut index = self.shared.index.lock();
                if index.bytes <= most {
                    return;
                }
                let Some((number, segment)) = index.segments.pop_first() else {
                    return;
                };
                index.bytes -= segment.bytes;
                (number, segment.pack)
            };
            if self.pack.as_ref().is_some_and(|(open, ..)| *open == number) {
                self.pack = None;
            }
            match pack {
                Some(file) => self.drop_pack(number, &file),
                None => self.drop_chunk(number),
            }
        }
    }

    fn drop_pack(&mut self, number: u64, file: &File) {
        let (entries, end) = scan(file).unwrap_or_default();
        let mut hot = Vec::new();
        // At most half of it, so that it always gets less.
        let mut left = end / 2;
        {
            let mut index = self.shared.index.lock();
            for (id, at, len) in entries {
                let Some(spot) = index.entries.get(&id).filter(|spot| spot.segment == number) else {
                    continue;
                };
                let whole = u64::from(len) + HEAD as u64;
                if spot.used && whole <= left {
                    left -= whole;
                    hot.push((id, at, len));
                }
                index.entries.remove(&id);
            }
        }
        let _ = std::fs::remove_file(self.shared.path(number, "pack"));
        for (id, at, len) in hot {
            let mut bytes = vec![0; HEAD + len as usize];
            let read = file.read_exact_at(&mut bytes, at.into());
            if let Some(body) = read.ok().and_then(|()| entry::body(&id, bytes)) {
                let _ = self.write(id, &body);
            }
        }
    }

    fn drop_chunk(&mut self, number: u64) {
        let path = self.shared.path(number, "chunk");
        let entries = File::open(&path).and_then(|file| scan(&file));
        let (entries, end) = entries.unwrap_or_default();
        let again = self.number();
        let mut index = self.shared.index.lock();
        for (id, ..) in entries {
            let Some(spot) = index.entries.get_mut(&id).filter(|spot| spot.segment == number) else {
                continue;
            };
            if spot.used && std::fs::rename(&path, self.shared.path(again, "chunk")).is_ok() {
                spot.used = false;
                spot.segment = again;
                index.bytes += end;
                let segment = Segment { bytes: end, pack: None };
                index.segments.insert(again, segment);
                return;
            }
            index.entries.remove(&id);
        }
        let _ = std::fs::remove_file(path);
    }
}

/// The entries of a file (their bodies unread) and where the last whole one ends.
#[allow(clippy::type_complexity)]
fn scan(file: &File) -> io::Result<(Vec<(Id, u32, u32)>, u64)> {
    let len = file.metadata()?.len();
    let mut entries = Vec::new();
    let mut at = 0;
    let mut head = [0; HEAD];
    while at + HEAD as u64 <= len {
        file.read_exact_at(&mut head, at)?;
        let Some(found) = Head::parse(&head) else { break };
        let end = at + HEAD as u64 + u64::from(found.len);
        let Ok(start) = u32::try_from(at) else { break };
        if end > len {
            break;
        }
        entries.push((found.id, start, found.len));
        at = end;
    }
    Ok((entries, at))
}

/// Removes the folder of a run that kept contents on disk.
pub(super) fn clear(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
