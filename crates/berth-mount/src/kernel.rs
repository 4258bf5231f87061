//! Telling the kernel that what it remembers is no longer true.
//!
//! One thread does it and holds no lock meanwhile: the kernel takes the folder's own lock for an invalidation, and an
//! operation that waits for S3 may hold that one. A FUSE thread that notified from inside a request would wait for itself.
//!
//! So the kernel learns a little late that a name means another file. Until it has been told, or has asked, the name is
//! *stale*: who renames or removes it may have the old file in view, and the kernel would take the new one for it. Such a
//! request is answered with `ESTALE`, upon which the kernel asks what the name means now, and does it again. It does so once: a
//! name that changed once more meanwhile is not refused a second time.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use fuser::{Errno, INodeNo, Notifier};
use parking_lot::Mutex;

use crate::{
    announce::{Announcement, Announcer},
    tree::{Ino, Tree},
};

/// One thing for the kernel to forget.
#[derive(Debug)]
pub(crate) enum Notice {
    /// What (or that nothing) is called `name`.
    Entry { parent: Ino, name: Arc<str> },
    /// `name` is gone; whoever watches it is told.
    Deleted { parent: Ino, child: Ino, name: Arc<str> },
    /// Size, times and bits of an inode.
    Attributes(Ino),
    /// What watchers are to be told when the kernel has forgotten all of the above.
    Announce(Announcement),
    /// The mount ends.
    Stop,
}

impl Notice {
    /// The name that is no longer what it was.
    fn name(&self) -> Option<(Ino, &Arc<str>)> {
        match self {
            Self::Entry { parent, name } | Self::Deleted { parent, name, .. } => Some((*parent, name)),
            Self::Attributes(_) | Self::Announce(_) | Self::Stop => None,
        }
    }
}

/// Names that the kernel may know otherwise, each with the number of the last notice about it.
#[derive(Debug, Default)]
struct Stale {
    names: Mutex<Names>,
    /// Whether there is any: mostly there is none, and nobody need wait for the lock to hear that.
    any: AtomicBool,
}

#[derive(Debug, Default)]
struct Names {
    sent: u64,
    by_folder: HashMap<Ino, HashMap<Arc<str>, u64>>,
    /// Who was refused lately, and which name: the process comes again at once.
    refused: VecDeque<(u32, Ino, Arc<str>)>,
}

/// So many refusals are kept in mind.
const REFUSED: usize = 64;

impl Stale {
    /// Numbers the notice and marks its name.
    fn mark(&self, notice: &Notice) -> u64 {
        let mut names = self.names.lock();
        names.sent += 1;
        let number = names.sent;
        if let Some((parent, name)) = notice.name() {
            names.by_folder.entry(parent).or_default().insert(name.clone(), number);
            self.any.store(true, Ordering::Release);
        }
        number
    }

    fn holds(&self, parent: Ino, name: &str) -> bool {
        self.any.load(Ordering::Acquire)
            && (self.names.lock().by_folder.get(&parent)).is_some_and(|names| names.contains_key(name))
    }

    /// Whether process `by` is to be refused, if the name is marked: not twice.
    fn refuses(&self, by: u32, parent: Ino, name: &str) -> bool {
        let mut names = self.names.lock();
        let again =
            |(pid, folder, refused): &(u32, Ino, Arc<str>)| *pid == by && *folder == parent && **refused == *name;
        if let Some(at) = names.refused.iter().position(again) {
            names.refused.remove(at);
            return false;
        }
        if names.refused.len() == REFUSED {
            names.refused.pop_front();
        }
        names.refused.push_back((by, parent, name.into()));
        true
    }

    /// Takes the mark away; `told`: if it is of this notice.
    fn clear(&self, parent: Ino, name: &str, told: Option<u64>) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut names = self.names.lock();
        if let Some(folder) = names.by_folder.get_mut(&parent) {
            if told.is_none() || folder.get(name).copied() == told {
                folder.remove(name);
            }
            if folder.is_empty() {
                names.by_folder.remove(&parent);
            }
        }
        self.any.store(!names.by_folder.is_empty(), Ordering::Release);
    }
}

/// Where notices are put.
#[derive(Debug, Clone)]
pub(crate) struct KernelNotices {
    sender: mpsc::Sender<(u64, Notice)>,
    stale: Arc<Stale>,
}

/// Where they come out.
#[derive(Debug)]
pub(crate) struct Receiver {
    notices: mpsc::Receiver<(u64, Notice)>,
    stale: Arc<Stale>,
}

impl KernelNotices {
    pub(crate) fn channel() -> (Self, Receiver) {
        let (sender, notices) = mpsc::channel();
        let stale = Arc::<Stale>::default();
        let receiver = Receiver {
            notices,
            stale: stale.clone(),
        };
        (Self { sender, stale }, receiver)
    }

    /// What the tree says changed. Never waits. The lock of the tree is held since the change: no request comes between.
    pub(crate) fn send(&self, tree: &Tree, notice: Notice) {
        // Of names the tree tells the read-only session itself.
        if let Notice::Attributes(ino) = &notice {
            tree.attributes_changed(*ino);
        }
        let number = self.stale.mark(&notice);
        // Fails only after the thread has ended, and then there is no kernel to tell.
        let _ = self.sender.send((number, notice));
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        let _ = self.sender.send((0, Notice::Stop));
    }

    /// The kernel asks what the name means, and is told.
    pub(crate) fn asked(&self, _tree: &Tree, parent: Ino, name: &str) {
        self.stale.clear(parent, name, None);
    }

    /// Refuses a request of process `by` about a name that the kernel may know otherwise. `true`: it may, but it has been
    /// refused before.
    ///
    /// # Errors
    /// `ESTALE`: the kernel asks anew and comes again.
    pub(crate) fn check_fresh(&self, _tree: &Tree, (parent, name): (Ino, &str), by: u32) -> Result<bool, Errno> {
        match self.stale.holds(parent, name) {
            true if self.stale.refuses(by, parent, name) => Err(Errno::ESTALE),
            stale => Ok(stale),
        }
    }
}

/// Notices told together.
const BATCH: usize = 1024;

/// Starts the thread.
pub(crate) fn spawn(
    receiver: Receiver,
    notifier: Notifier,
    announcer: Arc<Announcer>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("berth-notify".into()).spawn(move || {
        let Receiver { notices, stale } = receiver;
        while let Ok(first) = notices.recv() {
            let mut folders = BTreeSet::new();
            let mut announcements = Vec::new();
            for (number, notice) in std::iter::once(first).chain(notices.try_iter().take(BATCH)) {
                if matches!(notice, Notice::Stop) {
                    return;
                }
                if let Notice::Announce(announcement) = notice {
                    announcements.push(announcement);
                    continue;
                }
                if let Err(error) = tell(&notifier, &notice) {
                    tracing::debug!(?notice, %error, "the kernel did not take a notice");
                }
                if let Some((parent, name)) = notice.name() {
                    folders.insert(parent);
                    stale.clear(parent, name, Some(number));
                }
            }
            // A name the kernel had never heard of changes its folder's times all the same.
            for folder in folders {
                let _ = tell(&notifier, &Notice::Attributes(folder));
            }
            // Whoever looks when the event comes must see what it is about.
            for announcement in announcements {
                announcer.put(announcement);
            }
        }
    })
}

fn tell(notifier: &Notifier, notice: &Notice) -> std::io::Result<()> {
    match notice {
        Notice::Entry { parent, name } => notifier.inval_entry(INodeNo(*parent), name.as_ref().as_ref()),
        Notice::Deleted { parent, child, name } => {
            let told = notifier.delete(INodeNo(*parent), INodeNo(*child), name.as_ref().as_ref());
            // ENOTEMPTY, EBUSY: the kernel will not drop it as deleted; it must at least ask again.
            told.or_else(|_| notifier.inval_entry(INodeNo(*parent), name.as_ref().as_ref()))
        }
        // A negative offset leaves the pages: only the attributes are dropped.
        Notice::Attributes(ino) => notifier.inval_inode(INodeNo(*ino), -1, 0),
        Notice::Announce(_) | Notice::Stop => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(parent: Ino, name: &str) -> Notice {
        Notice::Entry {
            parent,
            name: name.into(),
        }
    }

    #[test]
    fn a_name_is_stale_until_the_last_notice_about_it_was_told_or_the_kernel_asked() {
        let stale = Stale::default();
        let first = stale.mark(&entry(5, "a"));
        let second = stale.mark(&entry(5, "a"));
        assert!(stale.holds(5, "a") && !stale.holds(5, "b") && !stale.holds(6, "a"));
        stale.clear(5, "a", Some(first));
        assert!(stale.holds(5, "a"), "it changed again since");
        stale.clear(5, "a", Some(second));
        assert!(!stale.holds(5, "a") && !stale.any.load(Ordering::Relaxed));
        stale.mark(&entry(5, "a"));
        stale.mark(&entry(5, "b"));
        stale.clear(5, "a", None);
        assert!(!stale.holds(5, "a") && stale.holds(5, "b"));
        stale.mark(&Notice::Attributes(5));
        stale.clear(5, "b", None);
        assert!(stale.names.lock().by_folder.is_empty());
    }

    #[test]
    fn nobody_is_refused_twice_in_a_row_about_the_same_name() {
        let stale = Stale::default();
        stale.mark(&entry(5, "a"));
        assert!(stale.refuses(100, 5, "a") && stale.refuses(101, 5, "a") && stale.refuses(100, 5, "b"));
        assert!(!stale.refuses(100, 5, "a"), "it comes again");
        assert!(stale.refuses(100, 5, "a"), "that was another request");
        for pid in 0..1000 {
            stale.refuses(pid, 9, "many");
        }
        assert!(stale.names.lock().refused.len() <= REFUSED);
    }
}
