//! Making room: state files, segments used again, contents moved out of sparse segments; and the thread that does it.
//!
//! A state file is taken as of the last seq given out, written when that seq is on disk, and put in place by a rename. The
//! segments that nobody had a content in when it was taken are free from then on: no replay can ask for them.
//! Contents are moved by copying them into a pack, syncing it, and pointing their holders at it; the old segment then has
//! nobody left and is freed by the state file that comes next.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    FREE_MAX, Held, JournalError, Log, SPARES, Shared, Slot,
    held::{At, Kind},
    record::{self, Header},
    segment::{self, Segment},
};
use crate::crash;

/// How often the background looks for work unasked.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) fn state_path(dir: &Path, seq: u64) -> PathBuf {
    dir.join(format!("state-{seq:016x}"))
}

/// The state files of a folder, newest first.
pub(super) fn state_files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(seq) = name
            .strip_prefix("state-")
            .and_then(|seq| u64::from_str_radix(seq, 16).ok())
        {
            found.push((seq, path));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found)
}

impl Shared {
    pub(super) fn background(&self) {
        loop {
            {
                let mut bell = self.bell.lock();
                if !bell.rung && !bell.stop {
                    self.rung.wait_for(&mut bell, PAUSE);
                }
                if bell.stop {
                    return;
                }
                bell.rung = false;
            }
            self.make_room();
        }
    }

    /// One round of the background's work.
    pub(super) fn make_room(&self) {
        let (fault, last) = {
            let inner = self.inner.lock();
            (inner.fault.is_some(), inner.last_seq)
        };
        if fault && self.commit(last).is_err() {
            // The waiters were told; what is freed below may let the next try succeed.
            self.trim_free(0);
        }
        self.forget_bodies();
        let moved = self.relocate();
        if moved || self.reclaimable() {
            if let Err(error) = self.checkpoint() {
                tracing::warn!(%error, "the journal cannot free its old segments; tried again in a second");
            }
            self.forget_bodies();
        }
        self.make_spares();
    }

    /// Whether a state file would free a segment.
    fn reclaimable(&self) -> bool {
        let mut log = self.log.lock();
        let mut inner = self.inner.lock();
        let pressed = std::mem::take(&mut inner.pressed);
        // The segment in use, if nothing in it is needed and its rest is too short for what was asked.
        if pressed
            && !inner.writing
            && inner.queue.is_empty()
            && log.at > 0
            && log
                .current
                .as_ref()
                .is_some_and(|current| Arc::strong_count(current) == 2)
        {
            log.current = None;
            inner.plan = super::Plan::default();
        }
        drop(inner);
        log.segments.iter().any(|segment| Arc::strong_count(segment) == 1)
    }

    fn make_spares(&self) {
        if self.inner.lock().fault.is_some() {
            return;
        }
        // A disk that is full now will say so to whoever wants to write.
        while matches!(self.add_spare(SPARES), Ok(true)) {}
    }

    /// Sees to it that a batch with so many bytes finds its segments on the disk, and one more for the clears after it.
    pub(super) fn prepare(&self, bytes: u64) -> bool {
        let mut asked = false;
        loop {
            let wanted = self.plan_with(self.inner.lock().plan, bytes).segments + 1;
            match self.add_spare(wanted) {
                Ok(true) => {}
                Ok(false) => return true,
                Err(_) if !asked => {
                    asked = true;
                    if let Some(give_way) = self.give_way.get() {
                        give_way.0(self.segment * 2);
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "no room for the journal's next segment");
                    return false;
                }
            }
        }
    }

    /// Makes a segment if there are fewer than so many spare ones; whether it did.
    fn add_spare(&self, wanted: u64) -> io::Result<bool> {
        // Without the lock first: nearly always there is one.
        if self.inner.lock().free >= wanted {
            return Ok(false);
        }
        let _one = self.sparing.lock();
        let open = self.open_bodies();
        let path = {
            let mut log = self.log.lock();
            let inner = self.inner.lock();
            // Beyond the bound it is not the disk that says no.
            if inner.free >= wanted || inner.segments + inner.bodies + open + self.segment > self.max {
                return Ok(false);
            }
            log.next_number += 1;
            segment::path(&self.dir.join("segments"), log.next_number - 1, "free")
        };
        let file = segment::zeroed(&path, self.segment)?;
        let mut log = self.log.lock();
        let mut inner = self.inner.lock();
        log.free.push_back(Segment {
            kind: Kind::Log,
            number: 0,
            path,
            file,
            size: self.segment,
        });
        inner.free += 1;
        inner.segments += self.segment;
        Ok(true)
    }

    /// Gives the free segments but `keep` back to the disk; whether there were any.
    pub(super) fn trim_free(&self, keep: usize) -> bool {
        let mut log = self.log.lock();
        let mut inner = self.inner.lock();
        let kept = log.free.len().min(keep);
        let trimmed = log.free.split_off(kept);
        for free in &trimmed {
            // One that stays is found at the next open.
            let _ = fs::remove_file(&free.path);
            inner.free -= 1;
            inner.segments -= free.size;
        }
        !trimmed.is_empty()
    }

    /// Writes a state file, and frees the segments that are not needed after it.
    pub(super) fn checkpoint(&self) -> Result<(), JournalError> {
        let _one = self.checkpointing.lock();
        let (seq, mut slots, candidates) = {
            let log = self.log.lock();
            let inner = self.inner.lock();
            let dead = log.segments.iter().filter(|segment| Arc::strong_count(segment) == 1);
            let candidates: Vec<PathBuf> = dead.map(|segment| segment.path.clone()).collect();
            let slots: Vec<(Arc<str>, Slot)> = inner
                .slots
                .iter()
                .map(|(name, slot)| (name.clone(), slot.clone()))
                .collect();
            (inner.last_seq, slots, candidates)
        };
        self.commit(seq)?;
        slots.sort_by_key(|(_, slot)| (slot.seq, slot.order));
        let mut bytes = vec![0; record::HEADER];
        for (name, slot) in &slots {
            let place = slot.held.as_ref().and_then(|held| held.place());
            record::put_entry(&mut bytes, name, Some(&slot.value), place, slot.seq);
        }
        let entries = &bytes[record::HEADER..];
        let header = Header {
            entries_crc: crc32fast::hash(entries),
            entries_len: entries.len() as u32,
            len: bytes.len() as u64,
            seq,
            durable: seq,
        };
        header.put(record::STATE, self.id, &mut bytes[..record::HEADER]);
        let path = state_path(&self.dir, seq);
        crash::point("journal.state.before");
        let write = || segment::replace(&path, &bytes, || crash::point("journal.state.written"));
        if let Err(error) = write() {
            let fault = self.fault(error);
            if !matches!(fault, JournalError::NoSpace { .. }) {
                return Err(fault);
            }
            self.trim_free(0);
            write().map_err(|error| self.fault(error))?;
        }
        crash::point("journal.state.renamed");
        for (older, path) in state_files(&self.dir).unwrap_or_default() {
            if older < seq {
                let _ = fs::remove_file(path);
            }
        }
        self.free(&candidates);
        Ok(())
    }

    fn free(&self, candidates: &[PathBuf]) {
        let mut log = self.log.lock();
        for path in candidates {
            let Some(found) = log.segments.iter().position(|segment| segment.path == *path) else {
                continue;
            };
            let segment = log.segments.swap_remove(found);
            let Ok(mut segment) = Arc::try_unwrap(segment).map_err(|segment| log.segments.push(segment)) else {
                continue;
            };
            let mut inner = self.inner.lock();
            let keep = segment.kind == Kind::Log
                && segment.size == self.segment
                && log.free.len() < FREE_MAX
                && inner.segments + inner.bodies <= self.max;
            let free = path.with_extension("free");
            if keep && fs::rename(path, &free).is_ok() {
                segment.path = free;
                log.free.push_back(segment);
                inner.free += 1;
            } else {
                // One that stays is removed after the next open.
                let _ = fs::remove_file(path);
                inner.segments -= segment.size;
            }
            drop(inner);
            crash::point("journal.segment.freed");
        }
    }

    /// Copies what is live in sparse segments into a pack, when the disk's share is large; says whether it did.
    fn relocate(&self) -> bool {
        let Some((sparse, pack, path)) = self.sparse() else {
            return false;
        };
        let copy = || {
            let file = segment::create(&path)?;
            let mut at = 0;
            let mut placed = Vec::with_capacity(sparse.len());
            for held in &sparse {
                let bytes = held.read(0, usize::try_from(held.len()).map_err(io::Error::other)?)?;
                if crc32fast::hash(&bytes) != held.crc() {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a content is not what was written",
                    ));
                }
                std::os::unix::fs::FileExt::write_all_at(&file, &bytes, at)?;
                placed.push((held, at));
                at += held.len();
            }
            file.sync_all()?;
            segment::sync_dir(&self.dir.join("segments"))?;
            crash::point("journal.relocate");
            let segment = Segment {
                kind: Kind::Pack,
                number: pack,
                path: path.clone(),
                file,
                size: at,
            };
            let segment = Arc::new(segment);
            self.log.lock().segments.push(segment.clone());
            self.inner.lock().segments += at;
            for (held, at) in placed {
                held.move_to(At::Segment(segment.clone(), at));
            }
            Ok(())
        };
        match copy() {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "contents could not be moved within the journal");
                let _ = fs::remove_file(&path);
                false
            }
        }
    }

    /// The contents to be moved, and the pack's number and path.
    fn sparse(&self) -> Option<(Vec<Arc<Held>>, u64, PathBuf)> {
        let mut log = self.log.lock();
        let inner = self.inner.lock();
        if inner.segments + inner.bodies <= self.max / 2 {
            return None;
        }
        let mut live: HashMap<*const Segment, HashMap<*const Held, Arc<Held>>> = HashMap::new();
        for held in inner.slots.values().filter_map(|slot| slot.held.as_ref()) {
            if let At::Segment(segment, _) = held.at() {
                live.entry(Arc::as_ptr(&segment))
                    .or_default()
                    .insert(Arc::as_ptr(held), held.clone());
            }
        }
        let used = inner.segments + inner.bodies;
        drop(inner);
        let Log { current, segments, .. } = &*log;
        let current = current.as_ref().map(Arc::as_ptr);
        let mut moved = Vec::new();
        let mut bytes = 0;
        for segment in segments.iter().filter(|segment| current != Some(Arc::as_ptr(segment))) {
            let Some(found) = live.remove(&Arc::as_ptr(segment)) else {
                continue;
            };
            let size: u64 = found.values().map(|held| held.len()).sum();
            // A reader's hold would keep the old segment too: nothing won by moving the rest.
            if size * 2 < segment.size && Arc::strong_count(segment) == 1 + found.len() {
                bytes += size;
                moved.extend(found.into_values());
            }
        }
        if moved.is_empty() {
            return None;
        }
        let number = log.next_number;
        log.next_number += 1;
        drop(log);
        if used + bytes > self.max {
            self.trim_free(0);
            let inner = self.inner.lock();
            if inner.segments + inner.bodies + bytes > self.max {
                return None;
            }
        }
        Some((moved, number, segment::path(&self.dir.join("segments"), number, "pack")))
    }
}
