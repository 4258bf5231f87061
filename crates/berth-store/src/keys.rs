//! A map by key in key order, for a bucket's worth of keys.
//!
//! Keys of one folder have most of their text in common. Here they lie in blocks of up to [`MOST`] neighbours, each key as what it
//! shares with the one before it and the rest, so that a key costs about the bytes of its file name, and no allocation of
//! its own. To find one costs a walk over one block.
//!
//! ```text
//!   blocks: BTreeMap ── first key ──▶ keys:   0 "app/a.js" │ 4 "b.js" │ 4 "src/c.js" │ ...
//!                                     values: V             V          V              ...
//! ```
//! A block is filed under a text that is not after its first key and after all keys of the block before.

use std::{
    collections::{BTreeMap, btree_map},
    fmt,
    ops::Bound,
};

/// Keys in one block.
const MOST: usize = 64;

/// The map. Texts of any kind can be keys.
#[derive(Clone)]
pub struct KeyMap<V> {
    blocks: BTreeMap<Box<str>, Block<V>>,
    len: usize,
}

#[derive(Clone)]
struct Block<V> {
    /// For each key: bytes shared with the one before, bytes that follow, and these.
    keys: Vec<u8>,
    values: Vec<V>,
}

/// Reads a block's keys one after the other.
struct Keys<'b> {
    rest: &'b [u8],
    key: Vec<u8>,
}

/// Where a key is in its block, or would be.
struct Place {
    nth: usize,
    /// Where it begins in [`Block::keys`].
    at: usize,
    found: bool,
    /// The key before it; empty if it is the first.
    before: Vec<u8>,
}

fn put_number(mut n: usize, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn take_number(rest: &mut &[u8]) -> usize {
    let (mut n, mut shift) = (0, 0);
    while let Some((&byte, after)) = rest.split_first() {
        *rest = after;
        n |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    n
}

/// Writes `key` as what follows `before`.
fn put_key(before: &[u8], key: &[u8], out: &mut Vec<u8>) {
    let shared = before.iter().zip(key).take_while(|(a, b)| a == b).count();
    put_number(shared, out);
    put_number(key.len() - shared, out);
    out.extend_from_slice(&key[shared..]);
}

impl Keys<'_> {
    fn next(&mut self) -> Option<&[u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let shared = take_number(&mut self.rest);
        let len = take_number(&mut self.rest);
        let (new, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        self.key.truncate(shared);
        self.key.extend_from_slice(new);
        Some(&self.key)
    }
}

impl<V> Block<V> {
    fn new() -> Self {
        Self {
            keys: Vec::new(),
            values: Vec::new(),
        }
    }

    fn keys(&self) -> Keys<'_> {
        Keys {
            rest: &self.keys,
            key: Vec::new(),
        }
    }

    fn place(&self, key: &[u8]) -> Place {
        let mut keys = self.keys();
        let (mut nth, mut at, mut before) = (0, 0, Vec::new());
        loop {
            let found = match keys.next() {
                Some(there) if there < key => {
                    before.clear();
                    before.extend_from_slice(there);
                    nth += 1;
                    at = self.keys.len() - keys.rest.len();
                    continue;
                }
                there => there == Some(key),
            };
            return Place { nth, at, found, before };
        }
    }

    /// Puts `key` in (or takes away the one that is there, if `None`), and writes the one after it anew.
    fn splice(&mut self, place: &Place, key: Option<&[u8]>) {
        let mut keys = Keys {
            rest: &self.keys[place.at..],
            key: place.before.clone(),
        };
        if key.is_none() {
            keys.next();
        }
        let mut new = Vec::new();
        if let Some(key) = key {
            put_key(&place.before, key, &mut new);
        }
        if let Some(after) = keys.next() {
            put_key(key.unwrap_or(&place.before), after, &mut new);
        }
        let end = self.keys.len() - keys.rest.len();
        self.keys.splice(place.at..end, new);
    }

    /// Takes away the values from `nth` on, with their keys.
    fn split_off(&mut self, nth: usize) -> Self {
        let mut keys = self.keys();
        for _ in 0..nth {
            keys.next();
        }
        let end = self.keys.len() - keys.rest.len();
        let mut new = Vec::new();
        if let Some(first) = keys.next() {
            put_key(&[], first, &mut new);
        }
        new.extend_from_slice(keys.rest);
        self.keys.truncate(end);
        self.keys.shrink_to_fit();
        let values = self.values.split_off(nth);
        self.values.shrink_to_fit();
        Self { keys: new, values }
    }

    fn first(&self) -> Box<str> {
        text(self.keys().next().unwrap_or_default()).into()
    }
}

fn up_to(key: &str) -> (Bound<&str>, Bound<&str>) {
    (Bound::Unbounded, Bound::Included(key))
}

/// Keys are put in whole, and come out whole.
fn text(key: &[u8]) -> &str {
    std::str::from_utf8(key).unwrap_or_default()
}

impl<V> KeyMap<V> {
    /// An empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            blocks: BTreeMap::new(),
            len: 0,
        }
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&V> {
        let (_, block) = self.blocks.range::<str, _>(up_to(key)).next_back()?;
        let place = block.place(key.as_bytes());
        place.found.then(|| &block.values[place.nth])
    }

    /// The value of `key`, to be changed.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        let (_, block) = self.blocks.range_mut::<str, _>(up_to(key)).next_back()?;
        let place = block.place(key.as_bytes());
        place.found.then(|| &mut block.values[place.nth])
    }

    /// Whether there is such a key.
    #[must_use]
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Gives `key` a value; the one it had.
    pub fn insert(&mut self, key: &str, value: V) -> Option<V> {
        let Some((_, block)) = self.blocks.range_mut::<str, _>(up_to(key)).next_back() else {
            return self.insert_first(key, value);
        };
        let place = block.place(key.as_bytes());
        if place.found {
            return Some(std::mem::replace(&mut block.values[place.nth], value));
        }
        self.len += 1;
        if block.values.len() < MOST {
            block.splice(&place, Some(key.as_bytes()));
            block.values.insert(place.nth, value);
            return None;
        }
        // Who comes in key order fills blocks whole.
        let half = if place.nth == MOST { MOST } else { MOST / 2 };
        let mut upper = block.split_off(half);
        let into = if place.nth > half || half == MOST {
            &mut upper
        } else {
            block
        };
        let place = into.place(key.as_bytes());
        into.splice(&place, Some(key.as_bytes()));
        into.values.insert(place.nth, value);
        self.blocks.insert(upper.first(), upper);
        None
    }

    /// `key` is before all blocks: the first one takes it, if there is one with room.
    fn insert_first(&mut self, key: &str, value: V) -> Option<V> {
        self.len += 1;
        let mut block = match self.blocks.first_entry() {
            Some(first) if first.get().values.len() < MOST => first.remove(),
            _ => Block::new(),
        };
        let place = block.place(key.as_bytes());
        block.splice(&place, Some(key.as_bytes()));
        block.values.insert(place.nth, value);
        self.blocks.insert(key.into(), block);
        None
    }

    /// Takes `key` away; the value it had.
    pub fn remove(&mut self, key: &str) -> Option<V> {
        let (filed, block) = self.blocks.range_mut::<str, _>(up_to(key)).next_back()?;
        let place = block.place(key.as_bytes());
        if !place.found {
            return None;
        }
        self.len -= 1;
        block.splice(&place, None);
        let value = block.values.remove(place.nth);
        if block.values.is_empty() {
            let filed = filed.clone();
            self.blocks.remove(&filed);
        }
        Some(value)
    }

    /// All values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.blocks.values().flat_map(|block| &block.values)
    }

    /// A reader of the keys from `from` on.
    #[must_use]
    pub fn range(&self, from: Bound<&str>) -> Cursor<'_, V> {
        let start = match from {
            Bound::Included(key) | Bound::Excluded(key) => key,
            Bound::Unbounded => "",
        };
        let filed = self.blocks.range::<str, _>(up_to(start)).next_back();
        let mut cursor = Cursor {
            blocks: match filed {
                Some((filed, _)) => self
                    .blocks
                    .range::<str, _>((Bound::Included(&**filed), Bound::Unbounded)),
                None => self
                    .blocks
                    .range::<str, (Bound<&str>, Bound<&str>)>((Bound::Unbounded, Bound::Unbounded)),
            },
            keys: Keys {
                rest: &[],
                key: Vec::new(),
            },
            values: [].iter(),
            peeked: None,
        };
        while let Some((key, _)) = cursor.peek() {
            let before = match from {
                Bound::Included(from) => key < from,
                Bound::Excluded(from) => key <= from,
                Bound::Unbounded => false,
            };
            if !before {
                break;
            }
            cursor.skip();
        }
        cursor
    }

    /// A reader of all keys.
    #[must_use]
    pub fn iter(&self) -> Cursor<'_, V> {
        self.range(Bound::Unbounded)
    }
}

impl<V> Default for KeyMap<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: fmt::Debug> fmt::Debug for KeyMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        let mut all = self.iter();
        while let Some((key, value)) = all.next() {
            map.entry(&key, value);
        }
        map.finish()
    }
}

impl<K: AsRef<str>, V> FromIterator<(K, V)> for KeyMap<V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(all: I) -> Self {
        let mut map = Self::new();
        for (key, value) in all {
            map.insert(key.as_ref(), value);
        }
        map
    }
}

/// Reads keys and their values in key order. No `Iterator`: a key is put together in one place, and is there until the next.
pub struct Cursor<'m, V> {
    blocks: btree_map::Range<'m, Box<str>, Block<V>>,
    keys: Keys<'m>,
    values: std::slice::Iter<'m, V>,
    /// The value whose key is in `keys`, if it was not read yet.
    peeked: Option<&'m V>,
}

impl<'m, V> Cursor<'m, V> {
    /// The next key and its value.
    #[expect(clippy::should_implement_trait, reason = "the key is lent, which an Iterator cannot")]
    pub fn next(&mut self) -> Option<(&str, &'m V)> {
        self.fill();
        let value = self.peeked.take()?;
        Some((text(&self.keys.key), value))
    }

    /// The next key and its value, which stay the next.
    pub fn peek(&mut self) -> Option<(&str, &'m V)> {
        self.fill();
        let value = self.peeked?;
        Some((text(&self.keys.key), value))
    }

    /// Leaves one out.
    pub fn skip(&mut self) {
        self.fill();
        self.peeked = None;
    }

    fn fill(&mut self) {
        while self.peeked.is_none() {
            if self.keys.next().is_some() {
                self.peeked = self.values.next();
            } else if let Some((_, block)) = self.blocks.next() {
                self.keys = block.keys();
                self.values = block.values.iter();
            } else {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    fn read(mut cursor: Cursor<'_, u32>) -> Vec<(String, u32)> {
        let mut all = Vec::new();
        while let Some((key, value)) = cursor.next() {
            all.push((key.to_owned(), *value));
        }
        all
    }

    fn keys() -> impl Strategy<Value = String> {
        prop_oneof![
            "[ab/]{0,6}",
            "(app|b)/(src/)?[a-c\u{e9}\u{10ffff}]{0,3}",
            "x{120,140}[ab]{0,2}"
        ]
    }

    #[derive(Debug, Clone)]
    enum Act {
        Insert(String),
        Remove(String),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            3 => keys().prop_map(Act::Insert),
            1 => keys().prop_map(Act::Remove),
        ];
        prop::collection::vec(act, 0..600)
    }

    proptest! {
        #[test]
        fn it_says_what_a_map_of_whole_keys_says(acts in acts(), ordered: bool, asked in prop::collection::vec(keys(), 8)) {
            let (mut own, mut plain) = (KeyMap::new(), BTreeMap::new());
            if ordered {
                for n in 0..300 {
                    let key = format!("app/src/file{n:03}");
                    prop_assert_eq!(own.insert(&key, n), plain.insert(key, n));
                }
            }
            for (n, act) in (1000..).zip(acts) {
                match act {
                    Act::Insert(key) => prop_assert_eq!(own.insert(&key, n), plain.insert(key, n)),
                    Act::Remove(key) => prop_assert_eq!(own.remove(&key), plain.remove(&key)),
                }
                prop_assert_eq!(own.len(), plain.len());
            }
            for key in &asked {
                prop_assert_eq!(own.get(key), plain.get(key));
                prop_assert_eq!(own.get_mut(key), plain.get_mut(key));
                for from in [Bound::Included(&**key), Bound::Excluded(&**key)] {
                    let wanted: Vec<_> = plain.range::<str, _>((from, Bound::Unbounded)).map(|(k, v)| (k.clone(), *v)).collect();
                    prop_assert_eq!(read(own.range(from)), wanted);
                }
            }
            prop_assert_eq!(own.values().copied().collect::<Vec<_>>(), plain.values().copied().collect::<Vec<_>>());
            prop_assert_eq!(read(own.iter()), plain.into_iter().collect::<Vec<_>>());
            prop_assert!(own.blocks.values().all(|block| (1..=MOST).contains(&block.values.len())));
        }
    }

    #[test]
    fn a_key_of_a_listing_costs_little_more_than_its_file_name() {
        let map: KeyMap<u64> = (0..100_000_u64)
            .map(|n| (format!("many/folder{:03}/component{:03}.js", n / 100, n % 100), n))
            .collect();
        let bytes: usize = map
            .blocks
            .iter()
            .map(|(filed, block)| {
                filed.len() + size_of::<Block<u64>>() + block.keys.capacity() + block.values.capacity() * 8
            })
            .sum();
        assert!(
            bytes / map.len() <= 18,
            "{} bytes a key, 8 of them its value",
            bytes / map.len()
        );
    }
}
