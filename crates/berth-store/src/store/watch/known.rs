//! What is known of the bucket, and how far an answer that differs from it is believed.

use std::{
    collections::HashMap,
    mem,
    ops::Bound,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{Claim, Look};
use crate::{Change, ETag, KeyMap, ObjectInfo};

/// For this long a LIST that contradicts what was written or published is not believed: old servers list late.
const LATE: Duration = Duration::from_secs(60);
/// Keys to be looked at; above it a LIST is cheaper.
const MOST_LOOKS: usize = 1000;
/// Workspaces that are listed for themselves.
const MOST_ACTIVE: usize = 8;
/// Keys that are written to find out what a server can do.
const PROBES: &str = ".berth/probe-";

/// One object as it was published.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    etag: ETag,
    size: u64,
    /// Nanoseconds since 1970: for servers whose LIST has no ETag.
    modified: u64,
}

/// When a key was last written or published, and how many such moments there were before it.
#[derive(Debug, Clone, Copy)]
struct Lately {
    mark: u64,
    at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct State {
    known: KeyMap<Known>,
    /// Keys of own writes under way, and how many of each.
    writing: HashMap<String, usize>,
    lately: HashMap<String, Lately>,
    marks: u64,
    to_look: HashMap<String, Claim>,
    /// To be looked at when the own write under way has ended.
    aside: HashMap<String, Claim>,
    /// Workspaces, and when something in them last changed.
    active: HashMap<String, Instant>,
    /// A change made elsewhere was found since [`State::take_stirred`].
    pub(super) stirred: bool,
    /// More keys than are worth a HEAD each.
    pub(super) too_many: bool,
    /// An event stream tells of changes.
    pub(super) told: bool,
}

impl From<&ObjectInfo> for Known {
    fn from(info: &ObjectInfo) -> Self {
        Self {
            etag: ETag::from(&*info.etag),
            size: info.size,
            modified: nanos(info.modified),
        }
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A LIST while its pages are compared with what is known.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    prefix: String,
    /// The last key that was compared.
    last: Option<String>,
    /// Objects listed.
    pub(super) listed: usize,
    differs: Vec<Change>,
    /// Listed without an ETag: nobody can tell what they are now.
    unseen: Vec<String>,
    /// A page's keys were not after those before: what is missing cannot be told.
    pub(super) disordered: bool,
}

impl Comparison {
    /// Of all there is below `prefix`.
    pub(super) fn below(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            ..Self::default()
        }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl Known {
    fn is(&self, info: &ObjectInfo) -> bool {
        let same_version = match info.etag.is_empty() {
            true => self.modified == nanos(info.modified),
            false => self.etag == *info.etag,
        };
        same_version && self.size == info.size
    }
}

impl State {
    pub(super) fn prime(&mut self, page: &[ObjectInfo]) {
        for info in page {
            self.known.insert(&info.key, info.into());
        }
    }

    pub(super) fn begin_write(&mut self, key: &str) {
        *self.writing.entry(key.to_owned()).or_default() += 1;
        self.mark(key, Instant::now());
    }

    /// Whether there is something to be looked at now.
    pub(super) fn end_write(&mut self, key: &str, unknown: bool) -> bool {
        self.mark(key, Instant::now());
        if let Some(count) = self.writing.get_mut(key) {
            *count -= 1;
            if *count > 0 {
                return false;
            }
            self.writing.remove(key);
        }
        let claim = self.aside.remove(key);
        match (unknown, claim) {
            (true, _) => self.hear(key, Claim::Changed),
            (false, Some(claim)) => self.hear(key, claim),
            (false, None) => false,
        }
    }

    fn mark(&mut self, key: &str, at: Instant) {
        self.marks += 1;
        let mark = self.marks;
        self.lately.insert(key.to_owned(), Lately { mark, at });
    }

    /// Whether `key` has to be looked at for it.
    pub(super) fn hear(&mut self, key: &str, claim: Claim) -> bool {
        let old = match (&claim, self.known.get(key)) {
            (Claim::Is(etag), Some(known)) => known.etag == **etag,
            (Claim::Gone, None) => true,
            _ => false,
        };
        if old || key.starts_with(PROBES) {
            return false;
        }
        if self.to_look.len() + self.aside.len() >= MOST_LOOKS {
            self.too_many = true;
            return false;
        }
        let waits = self.writing.contains_key(key);
        let list = if waits { &mut self.aside } else { &mut self.to_look };
        list.entry(key.to_owned())
            // Two claims about one key: who knows which is the later one.
            .and_modify(|other| {
                if *other != claim {
                    *other = Claim::Changed;
                }
            })
            .or_insert(claim);
        !waits
    }

    /// What to look at now.
    pub(super) fn take_looks(&mut self) -> Vec<Look> {
        let mut looks = Vec::new();
        for (key, claim) in mem::take(&mut self.to_look) {
            if self.writing.contains_key(&key) {
                self.aside.insert(key, claim);
                continue;
            }
            let is_known = match (&claim, self.known.get(&key)) {
                (Claim::Is(etag), Some(known)) => known.etag == **etag,
                (Claim::Gone, None) => true,
                _ => false,
            };
            if !is_known {
                let mark = self.mark_of(&key);
                looks.push(Look { key, mark });
            }
        }
        looks
    }

    fn mark_of(&self, key: &str) -> u64 {
        self.lately.get(key).map_or(0, |lately| lately.mark)
    }

    /// Whether nothing was written or published for the key since the look began.
    pub(super) fn is_current(&self, look: &Look) -> bool {
        !self.writing.contains_key(&look.key) && self.mark_of(&look.key) == look.mark
    }

    /// What a HEAD that is believed changes.
    pub(super) fn difference(&mut self, key: &str, found: Option<ObjectInfo>) -> Option<Change> {
        match (self.known.get_mut(key), found) {
            (Some(known), Some(info)) if known.is(&info) => {
                // The server's clock, to know the version again where LIST has no ETag.
                known.modified = nanos(info.modified);
                None
            }
            (None, None) => None,
            (_, Some(info)) => Some(Change::Put(info)),
            (Some(_), None) => Some(Change::Deleted { key: key.to_owned() }),
        }
    }

    /// `change` is published.
    pub(super) fn learn(&mut self, change: &Change, now: Instant) {
        match change {
            Change::Put(info) => {
                self.known.insert(&info.key, info.into());
            }
            Change::Deleted { key } => {
                self.known.remove(key);
            }
        }
        self.mark(change.key(), now);
        if let Some((workspace, _)) = change.key().split_once('/') {
            self.active.insert(workspace.to_owned(), now);
        }
    }

    /// Compares one page, whose keys follow those of the pages before.
    pub(super) fn compare(&self, compared: &mut Comparison, page: Vec<ObjectInfo>) {
        compared.listed += page.len();
        let start = match &compared.last {
            Some(last) => Bound::Excluded(&**last),
            None => Bound::Included(&*compared.prefix),
        };
        let mut known = self.known.range(start);
        let mut last: Option<String> = None;
        for info in page {
            let before = last.as_ref().or(compared.last.as_ref());
            if before.is_some_and(|before| *before >= info.key) {
                compared.disordered = true;
            }
            while let Some((key, _)) = known.peek().filter(|(key, _)| *key < &*info.key) {
                compared.differs.push(Change::Deleted { key: key.to_owned() });
                known.skip();
            }
            last = Some(info.key.clone());
            match known.peek().filter(|(key, _)| *key == info.key) {
                Some((_, old)) if old.is(&info) => {}
                _ if info.etag.is_empty() => compared.unseen.push(info.key),
                _ => compared.differs.push(Change::Put(info)),
            }
            if known.peek().is_some_and(|(key, _)| Some(key) == last.as_deref()) {
                known.skip();
            }
        }
        compared.last = last.or(compared.last.take());
    }

    /// How what was listed differs from what is known, when all pages have been compared; and of which keys it says something
    /// that is not to be believed without a look. In key order.
    pub(super) fn differences(&self, compared: Comparison) -> (Vec<Change>, Vec<String>) {
        let Comparison {
            prefix,
            last,
            mut differs,
            unseen,
            ..
        } = compared;
        let start = match &last {
            Some(last) => Bound::Excluded(&**last),
            None => Bound::Included(&*prefix),
        };
        let mut known = self.known.range(start);
        while let Some((key, _)) = known.next().filter(|(key, _)| key.starts_with(&prefix)) {
            differs.push(Change::Deleted { key: key.to_owned() });
        }
        // Only now: what was written or published while the pages came is doubtful too.
        let is_doubtful = |change: &Change| self.lately.contains_key(change.key());
        let (doubtful, changes): (Vec<Change>, Vec<Change>) = differs.into_iter().partition(is_doubtful);
        let mut doubtful: Vec<String> = doubtful.iter().map(|change| change.key().to_owned()).collect();
        doubtful.extend(unseen);
        (changes, doubtful)
    }

    /// How many objects are known below `prefix`.
    pub(super) fn count(&self, prefix: &str) -> usize {
        if prefix.is_empty() {
            return self.known.len();
        }
        let mut below = self.known.range(Bound::Included(prefix));
        let mut count = 0;
        while below.next().is_some_and(|(key, _)| key.starts_with(prefix)) {
            count += 1;
        }
        count
    }

    /// The folders of the workspaces where something changed within `span`, the latest first.
    pub(super) fn active(&mut self, span: Duration) -> Vec<String> {
        self.active.retain(|_, at| at.elapsed() < span);
        let mut all: Vec<_> = self.active.iter().collect();
        all.sort_by_key(|(_, at)| std::cmp::Reverse(**at));
        let names = all.into_iter().take(MOST_ACTIVE);
        names.map(|(name, _)| format!("{name}/")).collect()
    }

    /// Whether others have changed something since this was last asked.
    pub(super) fn take_stirred(&mut self) -> bool {
        mem::take(&mut self.stirred)
    }

    /// Call before each LIST, and not while one is on its way: what was written since it began must still be known then.
    pub(super) fn begin_list(&mut self) {
        let writing = &self.writing;
        self.lately
            .retain(|key, lately| lately.at.elapsed() < LATE || writing.contains_key(key));
    }
}
