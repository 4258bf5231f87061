//! What names a piece of content, and how it lies on disk.
//!
//! ```text
//!   magic u32 │ head crc u32 │ body crc u32 │ length u32 │ tag 16 │ parts u32 │ chunk u32 │ size u64 │ body ...
//!              └── of all after it up to the body          └──────────── the id ─────────────┘
//! ```

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::file::Base;

/// Bytes before the body.
pub(super) const HEAD: usize = 48;
const MAGIC: u32 = 0x314b_5042;
/// `parts` of an ETag that is no checksum.
const OPAQUE: u32 = u32::MAX;

/// One chunk of one version of an object, whatever its key.
///
/// An ETag in the usual form is a checksum of the content, so that equal files share an entry. Any other is believed only
/// together with the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id {
    tag: [u8; 16],
    parts: u32,
    chunk: u32,
    size: u64,
}

impl Id {
    /// `None`: the server gave no ETag, so nothing tells one version from another.
    pub(super) fn of(base: &Base, chunk: u64) -> Option<Self> {
        if base.etag.is_empty() {
            return None;
        }
        let (tag, parts) = checksum(&base.etag).unwrap_or_else(|| {
            let mut hash = Sha256::new();
            hash.update(base.key.as_bytes());
            hash.update([0]);
            hash.update(base.etag.as_bytes());
            let hash = hash.finalize();
            (std::array::from_fn(|n| hash[n]), OPAQUE)
        });
        Some(Self {
            tag,
            parts,
            chunk: u32::try_from(chunk).ok()?,
            size: base.size,
        })
    }
}

/// The bytes of `MD5` or `MD5-PARTS`.
fn checksum(etag: &str) -> Option<([u8; 16], u32)> {
    let (hex, parts) = match etag.split_once('-') {
        None => (etag, 0),
        Some((hex, parts)) => (hex, parts.parse().ok().filter(|parts| *parts != OPAQUE)?),
    };
    if hex.len() != 32 || !hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let value = u128::from_str_radix(hex, 16).ok()?;
    Some((value.to_be_bytes(), parts))
}

/// The entry's beginning, read back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) id: Id,
    pub(super) len: u32,
    body_crc: u32,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |n, byte| n << 8 | u32::from(*byte))
}

impl Head {
    /// `None`: no entry begins here, or it is damaged.
    pub(super) fn parse(bytes: &[u8; HEAD]) -> Option<Self> {
        if word(bytes, 0) != MAGIC || word(bytes, 4) != crc32fast::hash(&bytes[8..]) {
            return None;
        }
        Some(Self {
            id: Id {
                tag: std::array::from_fn(|n| bytes[16 + n]),
                parts: word(bytes, 32),
                chunk: word(bytes, 36),
                size: u64::from(word(bytes, 40)) << 32 | u64::from(word(bytes, 44)),
            },
            len: word(bytes, 12),
            body_crc: word(bytes, 8),
        })
    }
}

/// Appends the entry to `out`; `body` is at most a chunk.
pub(super) fn write(id: &Id, body: &[u8], out: &mut Vec<u8>) {
    let mut head = Vec::with_capacity(HEAD - 8);
    head.extend(crc32fast::hash(body).to_be_bytes());
    head.extend((body.len() as u32).to_be_bytes());
    head.extend(id.tag);
    head.extend(id.parts.to_be_bytes());
    head.extend(id.chunk.to_be_bytes());
    head.extend(id.size.to_be_bytes());
    out.extend(MAGIC.to_be_bytes());
    out.extend(crc32fast::hash(&head).to_be_bytes());
    out.extend(head);
    out.extend(body);
}

/// The body of the entry that `bytes` are, if it is whole and is `id`.
pub(super) fn body(id: &Id, bytes: Vec<u8>) -> Option<Bytes> {
    let head = Head::parse(bytes.first_chunk()?)?;
    let body = bytes.get(HEAD..)?;
    let whole = head.id == *id && head.len as usize == body.len() && head.body_crc == crc32fast::hash(body);
    whole.then(|| Bytes::from(bytes).slice(HEAD..))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn base(key: &str, etag: &str, size: u64) -> Base {
        Base {
            key: key.into(),
            etag: etag.into(),
            size,
        }
    }

    #[test]
    fn equal_files_share_an_entry_only_where_the_etag_is_a_checksum() {
        let md5 = "0123456789abcdef0123456789abcdef";
        assert_eq!(Id::of(&base("a", md5, 5), 0), Id::of(&base("b", md5, 5), 0));
        assert_ne!(
            Id::of(&base("a", md5, 5), 0),
            Id::of(&base("a", &format!("{md5}-2"), 5), 0)
        );
        assert_ne!(Id::of(&base("a", "W/1", 5), 0), Id::of(&base("b", "W/1", 5), 0));
        assert_ne!(Id::of(&base("a", md5, 5), 0), Id::of(&base("a", md5, 6), 0));
        assert_ne!(Id::of(&base("a", md5, 5), 0), Id::of(&base("a", md5, 5), 1));
        assert_eq!(
            Id::of(&base("a", "", 5), 0),
            None,
            "without an ETag nothing is believed"
        );
    }

    #[test]
    fn an_entry_is_read_back_as_it_was_written_and_a_changed_bit_is_noticed() {
        let id = Id::of(&base("a", "odd", 5), 3).unwrap();
        let mut bytes = Vec::new();
        write(&id, b"hello", &mut bytes);
        assert_eq!(body(&id, bytes.clone()).unwrap(), "hello");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(body(&id, damaged), None, "byte {at}");
        }
        assert_eq!(body(&id, bytes[..bytes.len() - 1].to_vec()), None);
    }
}
