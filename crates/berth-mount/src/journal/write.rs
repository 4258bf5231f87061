//! The commit: one thread writes for all that wait.

use std::{
    collections::{HashMap, VecDeque},
    fs, io,
    sync::{Arc, atomic::Ordering},
};

use super::{
    Held, JournalError, Log, Queued, Shared,
    held::{At, Kind, Place},
    record::{self, Header},
    segment::{self, Segment},
};
use crate::crash;

impl Shared {
    pub(super) fn commit(&self, seq: u64) -> Result<(), JournalError> {
        let mut inner = self.inner.lock();
        let seq = seq.min(inner.last_seq);
        loop {
            if inner.durable >= seq {
                return Ok(());
            }
            if inner.writing {
                self.written.wait(&mut inner);
                if let Some(fault) = &inner.fault
                    && inner.durable < seq
                    && seq <= inner.failed_to
                {
                    return Err(fault.clone());
                }
                continue;
            }
            inner.writing = true;
            let mut group = std::mem::take(&mut inner.queue);
            let durable = inner.durable;
            drop(inner);
            let (durable, result) = self.write(&group, durable);
            let last = group.back().map_or(durable, |queued| queued.seq);
            let done = group.iter().take_while(|queued| queued.seq <= durable).count();
            let finished: Vec<Queued> = group.drain(..done).collect();
            inner = self.inner.lock();
            inner.writing = false;
            inner.durable = durable;
            match result {
                Ok(()) => inner.fault = None,
                Err(error) => {
                    group.append(&mut inner.queue);
                    inner.queue = group;
                    inner.failed_to = last;
                    inner.fault = Some(self.fault(error));
                }
            }
            self.written.notify_all();
            if let Some(fault) = &inner.fault
                && inner.durable < seq
            {
                return Err(fault.clone());
            }
            // What they held may be many files' last owner: not under the lock.
            parking_lot::MutexGuard::unlocked(&mut inner, || drop(finished));
        }
    }

    /// Writes a group; gives the last seq that is on disk, whatever happened.
    fn write(&self, group: &VecDeque<Queued>, mut durable: u64) -> (u64, io::Result<()>) {
        let mut log = self.log.lock();
        if self.lock.lock().is_none() {
            return (
                durable,
                Err(io::Error::other("it was closed, and may be another's now")),
            );
        }
        if let Err(error) = self.sync_bodies(group) {
            return (durable, Err(error));
        }
        let mut next = 0;
        while let Some(first) = group.get(next) {
            let segment = match self.room(&mut log, first.len) {
                Ok(segment) => segment,
                Err(error) => return (durable, Err(error)),
            };
            // The segment's name must be on disk before a record in it counts, also when this failed at an earlier try.
            if log.name_unsynced {
                if let Err(error) = segment::sync_dir(&self.dir.join("segments")) {
                    return (durable, Err(error));
                }
                log.name_unsynced = false;
            }
            let mut bytes = Vec::new();
            let mut placed: Vec<(&Arc<Held>, Place)> = Vec::new();
            let mut places: HashMap<*const Held, Place> = HashMap::new();
            let mut last = durable;
            while let Some(queued) = group.get(next)
                && log.at + bytes.len() as u64 + queued.len <= segment.size
            {
                self.encode(queued, durable, &segment, log.at, &mut bytes, &mut places, &mut placed);
                last = queued.seq;
                next += 1;
            }
            crash::point("journal.write.before");
            if let Err(error) = berth_sys::durable::pwrite_durable(&segment.file, &bytes, log.at) {
                return (durable, Err(error));
            }
            crash::point("journal.write.after");
            log.at += bytes.len() as u64;
            durable = last;
            for (held, place) in placed {
                held.move_to(At::Segment(segment.clone(), place.offset));
            }
        }
        (durable, Ok(()))
    }

    fn sync_bodies(&self, group: &VecDeque<Queued>) -> io::Result<()> {
        let mut any = false;
        for held in group
            .iter()
            .flat_map(|queued| &queued.ops)
            .filter_map(|op| op.held.as_ref())
        {
            if let At::Body(body) = held.at() {
                body.sync()?;
                any = true;
            }
        }
        if any && self.names_unsynced.swap(false, Ordering::SeqCst) {
            segment::sync_dir(&self.dir.join("bodies"))
                .inspect_err(|_| self.names_unsynced.store(true, Ordering::SeqCst))?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // One record's way into one buffer; a type for it would only name this call.
    fn encode<'a>(
        &self,
        queued: &'a Queued,
        durable: u64,
        segment: &Segment,
        base: u64,
        out: &mut Vec<u8>,
        places: &mut HashMap<*const Held, Place>,
        placed: &mut Vec<(&'a Arc<Held>, Place)>,
    ) {
        let start = out.len();
        let entries_len: u64 = queued
            .ops
            .iter()
            .map(|op| record::entry_len(&op.slot, op.value.as_deref()))
            .sum();
        let mut offset = base + start as u64 + record::HEADER as u64 + entries_len;
        out.resize(start + record::HEADER, 0);
        for op in &queued.ops {
            let place = op.held.as_ref().and_then(|held| {
                if op.inline.is_some() {
                    let (kind, number) = (Kind::Log, segment.number);
                    let place = Place {
                        kind,
                        number,
                        offset,
                        len: held.len(),
                        crc: held.crc(),
                    };
                    offset += held.len();
                    places.insert(Arc::as_ptr(held), place);
                    placed.push((held, place));
                    return Some(place);
                }
                held.place().or_else(|| places.get(&Arc::as_ptr(held)).copied())
            });
            record::put_entry(out, &op.slot, op.value.as_deref(), place, queued.seq);
        }
        let entries = &out[start + record::HEADER..];
        let header = Header {
            entries_crc: crc32fast::hash(entries),
            entries_len: entries.len() as u32,
            len: queued.len,
            seq: queued.seq,
            durable,
        };
        for bytes in queued.ops.iter().filter_map(|op| op.inline.as_ref()) {
            out.extend_from_slice(bytes);
        }
        out.resize(start + queued.len as usize, 0);
        header.put(record::RECORD, self.id, &mut out[start..start + record::HEADER]);
    }

    /// The segment in which a record of this length goes next.
    fn room(&self, log: &mut Log, len: u64) -> io::Result<Arc<Segment>> {
        if let Some(current) = &log.current
            && log.at + len <= current.size
        {
            return Ok(current.clone());
        }
        let number = log.next_number;
        let dir = self.dir.join("segments");
        let path = segment::path(&dir, number, "log");
        let size = len.max(self.segment);
        let spare = if size == self.segment {
            log.free.pop_front()
        } else {
            None
        };
        let reused = spare.is_some();
        let file = match spare {
            Some(spare) => {
                if let Err(error) = fs::rename(&spare.path, &path) {
                    log.free.push_front(spare);
                    return Err(error);
                }
                spare.file
            }
            None => segment::zeroed(&path, size)?,
        };
        log.next_number += 1;
        let segment = Arc::new(Segment {
            kind: Kind::Log,
            number,
            path,
            file,
            size,
        });
        log.segments.push(segment.clone());
        log.current = Some(segment.clone());
        log.at = 0;
        log.name_unsynced = true;
        {
            let mut inner = self.inner.lock();
            if reused {
                inner.free -= 1;
            } else {
                inner.segments += size;
            }
            if size == self.segment {
                inner.plan.segments = inner.plan.segments.saturating_sub(1);
            } else {
                inner.plan.oversize = inner.plan.oversize.saturating_sub(size);
            }
        }
        crash::point("journal.segment.new");
        self.ring();
        Ok(segment)
    }
}
