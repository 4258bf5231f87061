//! What one host tells the others in one datagram: which keys it has just changed.
//!
//! ```text
//!   "BERTH1" | bucket 8 | sender 8 | counter 8 | time 8 | flags 1 | count 1 | (length 2, key)* | HMAC-SHA256 32
//! ```
//! Numbers are big-endian, the time is in milliseconds since 1970. The HMAC's key is derived from the secret key of the bucket
//! and the bucket's name, so only who may change the bucket can say that it was changed. Everything before the HMAC is
//! covered by it. The names of keys travel readable.

use ring::hmac;

const MAGIC: &[u8; 6] = b"BERTH1";
/// More does not pass every network in one piece.
pub(super) const MOST: usize = 1200;
const HEAD: usize = 6 + 8 + 8 + 8 + 8 + 1 + 1;
const TAG: usize = 32;
/// There was more than fits: list again.
const LIST_AGAIN: u8 = 1;

/// Signs and checks datagrams of one bucket.
#[derive(Debug)]
pub(super) struct Seal {
    key: hmac::Key,
    bucket: [u8; 8],
}

/// One datagram's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hint {
    /// Made by chance at each start of a daemon.
    pub sender: u64,
    /// One more each time.
    pub counter: u64,
    /// The sender's clock.
    pub millis: u64,
    /// More changed than is named.
    pub list_again: bool,
    /// What changed.
    pub keys: Vec<String>,
}

/// Why a datagram is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reject {
    /// It is none of ours.
    Malformed,
    /// Nobody who has the key made it, or somebody changed it.
    Forged,
    /// It is about another bucket.
    OtherBucket,
}

impl Seal {
    pub(super) fn new(secret_key: &str, bucket: &str) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret_key.as_bytes());
        let derived = hmac::sign(&secret, format!("berth hints 1\n{bucket}").as_bytes());
        let key = hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref());
        let mut id = [0; 8];
        id.copy_from_slice(&hmac::sign(&key, b"bucket").as_ref()[..8]);
        Self { key, bucket: id }
    }

    /// A datagram of at most [`MOST`] bytes; keys that do not fit become "list again".
    pub(super) fn write(&self, hint: &Hint) -> Vec<u8> {
        let mut out = Vec::with_capacity(MOST);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.bucket);
        for number in [hint.sender, hint.counter, hint.millis] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        let fitting = &hint.keys[..fitting(&hint.keys)];
        let more = hint.list_again || fitting.len() < hint.keys.len();
        out.push(if more { LIST_AGAIN } else { 0 });
        out.push(u8::try_from(fitting.len()).unwrap_or(u8::MAX));
        for key in fitting {
            out.extend_from_slice(&u16::try_from(key.len()).unwrap_or(u16::MAX).to_be_bytes());
            out.extend_from_slice(key.as_bytes());
        }
        let tag = hmac::sign(&self.key, &out);
        out.extend_from_slice(tag.as_ref());
        out
    }

    /// Checks (in constant time) and reads.
    pub(super) fn read(&self, datagram: &[u8]) -> Result<Hint, Reject> {
        if datagram.len() < HEAD + TAG || datagram.len() > MOST || !datagram.starts_with(MAGIC) {
            return Err(Reject::Malformed);
        }
        let (said, tag) = datagram.split_at(datagram.len() - TAG);
        let mut rest = &said[MAGIC.len()..];
        if take(&mut rest, 8).ok_or(Reject::Malformed)? != self.bucket.as_slice() {
            return Err(Reject::OtherBucket);
        }
        hmac::verify(&self.key, said, tag).map_err(|_| Reject::Forged)?;
        body(rest).ok_or(Reject::Malformed)
    }
}

/// How many of `keys` fit into one datagram, from the first on.
pub(super) fn fitting(keys: &[String]) -> usize {
    let mut room = MOST - HEAD - TAG;
    let fits = |key: &&String| {
        let left = room.checked_sub(2 + key.len());
        room = left.unwrap_or(room);
        left.is_some()
    };
    keys.iter().take(usize::from(u8::MAX)).take_while(fits).count()
}

fn body(mut rest: &[u8]) -> Option<Hint> {
    let (sender, counter, millis) = (number(&mut rest)?, number(&mut rest)?, number(&mut rest)?);
    let (flags, count) = match take(&mut rest, 2)? {
        [flags, count] => (*flags, *count),
        _ => return None,
    };
    let mut keys = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let length = take(&mut rest, 2)?.try_into().ok()?;
        let key = take(&mut rest, usize::from(u16::from_be_bytes(length)))?;
        keys.push(std::str::from_utf8(key).ok()?.to_owned());
    }
    rest.is_empty().then_some(Hint {
        sender,
        counter,
        millis,
        list_again: flags & LIST_AGAIN != 0,
        keys,
    })
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(count)?;
    *rest = after;
    Some(taken)
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(take(rest, 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    fn hint(keys: Vec<String>) -> Hint {
        Hint {
            sender: 7,
            counter: 8,
            millis: 9,
            list_again: false,
            keys,
        }
    }

    #[test]
    fn what_does_not_fit_becomes_a_wish_to_list_again() {
        let seal = Seal::new("secret", "b");
        let many = hint((0..300).map(|n| format!("workspace/folder/file-{n}.txt")).collect());
        let datagram = seal.write(&many);
        assert!(datagram.len() <= MOST);
        let read = seal.read(&datagram).unwrap();
        assert!(read.list_again && !read.keys.is_empty());
        assert_eq!(read.keys, many.keys[..read.keys.len()]);
        assert!(
            seal.read(&seal.write(&hint(vec!["k".repeat(1200)])))
                .unwrap()
                .list_again
        );
    }

    #[test]
    fn only_who_has_the_key_of_the_same_bucket_is_heard() {
        let seal = Seal::new("secret", "b");
        let datagram = seal.write(&hint(vec!["app/a".into()]));
        assert_eq!(seal.read(&datagram).unwrap().keys, ["app/a"]);
        for other in [Seal::new("secret", "c"), Seal::new("other", "b")] {
            assert_eq!(other.read(&datagram), Err(Reject::OtherBucket));
        }
        let mut unsigned = datagram.clone();
        let tag = unsigned.len() - TAG;
        unsigned[tag..].fill(0);
        assert_eq!(seal.read(&unsigned), Err(Reject::Forged));
        assert_eq!(seal.read(b"GET / HTTP/1.1\r\n\r\n"), Err(Reject::Malformed));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(keys in proptest::collection::vec(".{0,40}", 0..12), list_again: bool, counter: u64) {
            let seal = Seal::new("secret", "b");
            let sent = Hint { list_again, counter, ..hint(keys) };
            let read = seal.read(&seal.write(&sent)).unwrap();
            if read.list_again == list_again {
                prop_assert_eq!(read, sent);
            } else {
                prop_assert!(sent.keys.starts_with(&read.keys));
            }
        }

        #[test]
        fn no_changed_bit_goes_unnoticed(at in 0_usize..10_000, bit in 0_u8..8) {
            let seal = Seal::new("secret", "b");
            let mut datagram = seal.write(&hint(vec!["app/a".into(), "app/b".into()]));
            let at = at % datagram.len();
            datagram[at] ^= 1 << bit;
            prop_assert!(seal.read(&datagram).is_err());
        }

        #[test]
        fn garbage_is_dropped(bytes in proptest::collection::vec(any::<u8>(), 0..1400)) {
            prop_assert!(Seal::new("secret", "b").read(&bytes).is_err());
            // Also where a signature holds, for the reader alone.
            let _ = body(&bytes);
        }
    }
}
