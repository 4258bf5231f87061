//! All buckets and objects in memory, in key order, so that LIST never touches the disk.
//!
//! Only the writer changes the index, and only after the change is durable: what a reader finds here survives a crash.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::record::{Kept, Record, Upload};
use crate::{KeyMap, ObjectInfo};

/// One bucket's objects.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// Seconds since 1970.
    pub created: u64,
    pub objects: KeyMap<Kept>,
}

/// Everything there is.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub buckets: BTreeMap<String, Bucket>,
    pub uploads: BTreeMap<String, Upload>,
}

/// What a LIST asks for.
#[derive(Debug, Clone, Default)]
pub(super) struct Listing<'a> {
    pub prefix: &'a str,
    pub delimiter: &'a str,
    /// Only keys (and common prefixes) after this one.
    pub after: &'a str,
    pub max: usize,
}

/// One page of a LIST: objects and common prefixes, each in key order.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub objects: Vec<ObjectInfo>,
    pub prefixes: Vec<String>,
    /// The last name on the page when there are more: the next page's `after`.
    pub next: Option<String>,
}

impl Index {
    pub(super) fn object(&self, bucket: &str, key: &str) -> Option<Record> {
        self.buckets.get(bucket)?.objects.get(key).map(Kept::record)
    }
}

impl Bucket {
    /// One page. Costs the names on the page, not the objects under a common prefix: those are jumped over.
    pub(super) fn list(&self, ask: &Listing<'_>) -> Page {
        let mut page = Page::default();
        if ask.max == 0 {
            return page;
        }
        let mut last = String::new();
        let mut objects = self.objects.range(first_bound(ask));
        while let Some((key, kept)) = objects.next() {
            let Some(rest) = key.strip_prefix(ask.prefix) else {
                break;
            };
            let common = common_prefix(ask, key, rest);
            // A marker that is itself a common prefix was shown on the page before.
            if common.is_none_or(|c| c > ask.after) {
                if page.objects.len() + page.prefixes.len() == ask.max {
                    page.next = Some(last);
                    break;
                }
                last = common.unwrap_or(key).to_owned();
                match common {
                    Some(c) => page.prefixes.push(c.to_owned()),
                    None => page.objects.push(kept.info(key)),
                }
            }
            if let Some(c) = common {
                match after_prefix(c) {
                    Some(next) => objects = self.objects.range(Bound::Included(&next)),
                    None => break,
                }
            }
        }
        page
    }
}

fn first_bound<'a>(ask: &Listing<'a>) -> Bound<&'a str> {
    if ask.after < ask.prefix {
        Bound::Included(ask.prefix)
    } else {
        Bound::Excluded(ask.after)
    }
}

fn common_prefix<'k>(ask: &Listing<'_>, key: &'k str, rest: &str) -> Option<&'k str> {
    if ask.delimiter.is_empty() {
        return None;
    }
    let at = rest.find(ask.delimiter)?;
    key.get(..ask.prefix.len() + at + ask.delimiter.len())
}

/// The smallest string after all that start with `prefix`; none when no string is.
fn after_prefix(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        // The scalar values have one gap, the surrogates.
        let next = if last == '\u{D7FF}' {
            Some('\u{E000}')
        } else {
            char::from_u32(u32::from(last) + 1)
        };
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::embedded::record::{Body, Headers};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn bucket<'a>(keys: impl IntoIterator<Item = &'a str>) -> Bucket {
        let record = Record {
            size: 0,
            etag: String::new(),
            modified: 0,
            body: Body::Blobs(vec![]),
            headers: Headers::default(),
        };
        Bucket {
            created: 0,
            objects: keys.into_iter().map(|k| (k, Kept::from(&record))).collect(),
        }
    }

    fn names(page: &Page) -> BTreeSet<String> {
        page.objects
            .iter()
            .map(|object| object.key.clone())
            .chain(page.prefixes.iter().cloned())
            .collect()
    }

    #[test]
    fn an_object_may_stand_beside_the_folder_of_the_same_name() {
        let bucket = bucket(["a", "a/b", "a/c/d", "b"]);
        let page = bucket.list(&Listing {
            delimiter: "/",
            max: 1000,
            ..Listing::default()
        });
        assert_eq!(
            page.objects
                .iter()
                .map(|object| object.key.as_str())
                .collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(page.prefixes, ["a/"]);
        assert!(page.next.is_none());
    }

    proptest! {
        #[test]
        fn pages_of_any_size_show_what_one_look_over_all_keys_shows(
            keys in prop::collection::btree_set("[ab/\u{D7FF}\u{10FFFF}]{1,5}", 0..40),
            prefix in "[ab/]{0,2}",
            delimiter in prop::sample::select(vec!["", "/", "b"]),
            max in 1_usize..7,
        ) {
            let bucket = bucket(keys.iter().map(String::as_str));
            let wanted: BTreeSet<String> = keys.iter().filter_map(|k| {
                let rest = k.strip_prefix(prefix.as_str())?;
                match rest.find(delimiter) {
                    Some(at) if !delimiter.is_empty() => Some(format!("{prefix}{}{delimiter}", &rest[..at])),
                    _ => Some(k.clone()),
                }
            }).collect();
            let (mut seen, mut after) = (Vec::new(), String::new());
            loop {
                let page = bucket.list(&Listing { prefix: &prefix, delimiter, after: &after, max });
                let shown = names(&page);
                prop_assert!(shown.len() <= max);
                prop_assert_eq!(shown.len(), page.objects.len() + page.prefixes.len());
                seen.extend(shown);
                match page.next { Some(next) => after = next, None => break }
            }
            prop_assert_eq!(seen, wanted.into_iter().collect::<Vec<_>>());
        }
    }
}
