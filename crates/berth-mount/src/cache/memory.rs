//! The newest chunks, in memory: least recently used goes first.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::entry::Id;

/// What a chunk takes beside its bytes.
const ENTRY: u64 = 256;

/// The shelf.
#[derive(Debug)]
pub(super) struct Memory {
    max: u64,
    /// Of chunks and entries.
    bytes: u64,
    clock: u64,
    chunks: HashMap<Id, (Bytes, u64)>,
    order: BTreeMap<u64, Id>,
}

impl Memory {
    pub(super) fn new(max: u64) -> Self {
        Self {
            max,
            bytes: 0,
            clock: 0,
            chunks: HashMap::new(),
            order: BTreeMap::new(),
        }
    }

    pub(super) fn get(&mut self, id: &Id) -> Option<Bytes> {
        let (bytes, stamp) = self.chunks.get_mut(id)?;
        self.clock += 1;
        self.order.remove(stamp);
        *stamp = self.clock;
        self.order.insert(self.clock, *id);
        Some(bytes.clone())
    }

    pub(super) fn holds(&self, id: &Id) -> bool {
        self.chunks.contains_key(id)
    }

    pub(super) fn put(&mut self, id: Id, bytes: Bytes) {
        self.remove(&id);
        self.clock += 1;
        self.bytes += bytes.len() as u64 + ENTRY;
        self.order.insert(self.clock, id);
        self.chunks.insert(id, (bytes, self.clock));
        while self.bytes > self.max
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.remove(&oldest);
        }
    }

    pub(super) fn remove(&mut self, id: &Id) {
        if let Some((bytes, stamp)) = self.chunks.remove(id) {
            self.bytes -= bytes.len() as u64 + ENTRY;
            self.order.remove(&stamp);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::file::Base;

    #[test]
    fn memory_stays_within_its_bound_and_what_is_used_stays() {
        let base = Base {
            key: "a".into(),
            etag: "e".into(),
            size: 1000,
        };
        let id = |n| Id::of(&base, n).unwrap();
        let mut memory = Memory::new(3 * (100 + ENTRY));
        for n in 0..3 {
            memory.put(id(n), Bytes::from(vec![n as u8; 100]));
        }
        assert!(memory.get(&id(0)).is_some());
        memory.put(id(3), Bytes::from(vec![3; 100]));
        assert!(memory.holds(&id(0)), "used last");
        assert!(!memory.holds(&id(1)), "unused for longest");
        assert_eq!(memory.bytes, 3 * (100 + ENTRY));
    }
}
