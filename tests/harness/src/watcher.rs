//! A program that waits for changes of files by inotify, as editors, reloaders and file managers do.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};

/// One event: what was watched, what happened (`IN_*`), and to which name in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The label that [`Watcher::watch`] was given.
    pub of: String,
    /// What happened.
    pub mask: AddWatchFlags,
    /// The name in a watched folder; empty for the watched thing itself.
    pub name: String,
}

impl Event {
    /// Whether it says that `mask` happened to `name`.
    #[must_use]
    pub fn is(&self, mask: AddWatchFlags, name: &str) -> bool {
        self.mask.contains(mask) && self.name == name
    }
}

/// An inotify instance.
#[derive(Debug)]
pub struct Watcher {
    inotify: Inotify,
    labels: HashMap<WatchDescriptor, String>,
    unread: RefCell<VecDeque<Event>>,
}

#[allow(clippy::expect_used, clippy::new_without_default, clippy::missing_panics_doc)]
impl Watcher {
    /// One that watches nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            inotify: Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).expect("an inotify instance"),
            labels: HashMap::new(),
            unread: RefCell::default(),
        }
    }

    /// Watches a folder or file for all that changes it; what only reads it is left out.
    pub fn watch(&mut self, path: &Path, label: &str) {
        let all = AddWatchFlags::IN_ALL_EVENTS;
        let reads = AddWatchFlags::IN_ACCESS | AddWatchFlags::IN_CLOSE_NOWRITE | AddWatchFlags::IN_OPEN;
        let watch = self.inotify.add_watch(path, all & !reads);
        self.labels.insert(watch.expect("a watch"), label.to_owned());
    }

    /// All events up to the first for which `is_last` holds.
    ///
    /// # Panics
    /// When it does not come within `limit`.
    pub fn until(&self, what: &str, limit: Duration, is_last: impl Fn(&Event) -> bool) -> Vec<Event> {
        let end = Instant::now() + limit;
        let mut seen = Vec::new();
        loop {
            self.fetch();
            while let Some(event) = self.unread.borrow_mut().pop_front() {
                let last = is_last(&event);
                seen.push(event);
                if last {
                    return seen;
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited {limit:?} in vain for {what}; seen: {seen:?}");
            let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&self.inotify), PollFlags::POLLIN)];
            let _ = poll(&mut fds, wait);
        }
    }

    /// The events that are there, without waiting.
    #[must_use]
    pub fn read(&self) -> Vec<Event> {
        self.fetch();
        self.unread.borrow_mut().drain(..).collect()
    }

    fn fetch(&self) {
        let events = match self.inotify.read_events() {
            Ok(events) => events
                .into_iter()
                .map(|event| Event {
                    of: self.labels.get(&event.wd).cloned().unwrap_or_default(),
                    mask: event.mask,
                    name: event
                        .name
                        .map(|name| name.to_string_lossy().into_owned())
                        .unwrap_or_default(),
                })
                .collect::<Vec<_>>(),
            Err(Errno::EAGAIN) => Vec::new(),
            Err(errno) => panic!("inotify: {errno}"),
        };
        self.unread.borrow_mut().extend(events);
    }
}
