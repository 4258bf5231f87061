//! How a batch is written down: a header, the entries, then the contents.
//!
//! ```text
//! magic u32 | crc of the header u32 | crc of the entries u32 | length of the entries u32
//! length of all, padded to 8: u64 | seq u64 | the highest seq that was on disk before: u64
//! entries…  contents…  zeros
//! ```
//! The header's checksum starts from the journal's id, so that a file that holds a copy of some journal is never taken
//! for records of this one. A content's checksum is in the entry that names it. The same form holds a state file.
//!
//! "What was on disk before" tells a torn tail from damage: records that were written together may reach the disk in any
//! order, but one that was written when its predecessor was on disk proves that the predecessor was whole once.

use super::held::Place;

pub(super) const RECORD: u32 = 0x4c4a_5242;
pub(super) const STATE: u32 = 0x5453_5242;
pub(super) const HEADER: usize = 40;
const ENTRY: usize = 45;
const CLEAR: u32 = u32::MAX;

/// One slot's new value, or that it is cleared, and where its content is.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) slot: String,
    pub(super) value: Option<Vec<u8>>,
    pub(super) place: Option<Place>,
    pub(super) seq: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) entries_crc: u32,
    pub(super) entries_len: u32,
    pub(super) len: u64,
    pub(super) seq: u64,
    pub(super) durable: u64,
}

pub(super) fn padded(len: u64) -> u64 {
    len.next_multiple_of(8)
}

pub(super) fn entry_len(slot: &str, value: Option<&[u8]>) -> u64 {
    (ENTRY + slot.len() + value.map_or(0, <[u8]>::len)) as u64
}

pub(super) fn put_entry(out: &mut Vec<u8>, slot: &str, value: Option<&[u8]>, place: Option<Place>, seq: u64) {
    let value_len = value.map_or(CLEAR, |value| u32::try_from(value.len()).unwrap_or(CLEAR));
    out.extend_from_slice(&(slot.len() as u32).to_le_bytes());
    out.extend_from_slice(&value_len.to_le_bytes());
    out.extend_from_slice(&seq.to_le_bytes());
    let (kind, place) = place.map_or((0, Place::default()), |place| (place.kind.code(), place));
    out.push(kind);
    out.extend_from_slice(&place.number.to_le_bytes());
    out.extend_from_slice(&place.offset.to_le_bytes());
    out.extend_from_slice(&place.len.to_le_bytes());
    out.extend_from_slice(&place.crc.to_le_bytes());
    out.extend_from_slice(slot.as_bytes());
    out.extend_from_slice(value.unwrap_or_default());
}

/// The entries written by [`put_entry`]; `None` if they are not whole.
pub(super) fn entries(mut bytes: &[u8]) -> Option<Vec<Entry>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let slot_len = u32_at(bytes, 0)? as usize;
        let value_len = u32_at(bytes, 4)?;
        let seq = u64_at(bytes, 8)?;
        let kind = super::held::Kind::of(*bytes.get(16)?)?;
        let place = kind.and_then(|kind| {
            let (number, offset) = (u64_at(bytes, 17)?, u64_at(bytes, 25)?);
            Some(Place {
                kind,
                number,
                offset,
                len: u64_at(bytes, 33)?,
                crc: u32_at(bytes, 41)?,
            })
        });
        let slot = std::str::from_utf8(bytes.get(ENTRY..ENTRY.checked_add(slot_len)?)?)
            .ok()?
            .to_owned();
        let mut end = ENTRY + slot_len;
        let value = if value_len == CLEAR {
            None
        } else {
            let start = end;
            end = start.checked_add(value_len as usize)?;
            Some(bytes.get(start..end)?.to_vec())
        };
        bytes = bytes.get(end..)?;
        found.push(Entry {
            slot,
            value,
            place,
            seq,
        });
    }
    Some(found)
}

impl Header {
    pub(super) fn put(&self, magic: u32, id: u64, out: &mut [u8]) {
        out[0..4].copy_from_slice(&magic.to_le_bytes());
        out[8..12].copy_from_slice(&self.entries_crc.to_le_bytes());
        out[12..16].copy_from_slice(&self.entries_len.to_le_bytes());
        out[16..24].copy_from_slice(&self.len.to_le_bytes());
        out[24..32].copy_from_slice(&self.seq.to_le_bytes());
        out[32..40].copy_from_slice(&self.durable.to_le_bytes());
        let crc = header_crc(id, &out[8..40]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    /// The header at the start of `bytes`, if there is one of this journal.
    pub(super) fn read(magic: u32, id: u64, bytes: &[u8]) -> Option<Header> {
        if u32_at(bytes, 0)? != magic || u32_at(bytes, 4)? != header_crc(id, bytes.get(8..HEADER)?) {
            return None;
        }
        Some(Header {
            entries_crc: u32_at(bytes, 8)?,
            entries_len: u32_at(bytes, 12)?,
            len: u64_at(bytes, 16)?,
            seq: u64_at(bytes, 24)?,
            durable: u64_at(bytes, 32)?,
        })
    }

    /// The entries that follow this header at the start of `bytes`, if whole.
    pub(super) fn entries(&self, bytes: &[u8]) -> Option<Vec<Entry>> {
        let text = bytes.get(HEADER..HEADER.checked_add(self.entries_len as usize)?)?;
        if crc32fast::hash(text) != self.entries_crc {
            return None;
        }
        entries(text)
    }
}

fn header_crc(id: u64, rest: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&id.to_le_bytes());
    crc.update(rest);
    crc.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
