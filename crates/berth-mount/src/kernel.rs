//! Telling the kernel that what it remembers is no longer true.
//!
//! One thread does it and holds no lock meanwhile: the kernel takes the folder's own lock for an invalidation, and an
//! operation that waits for S3 may hold that one. A FUSE thread that notified from inside a request would wait for itself.

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use fuser::{INodeNo, Notifier};

use crate::tree::Ino;

/// One thing for the kernel to forget.
#[derive(Debug)]
pub(crate) enum Notice {
    /// What (or that nothing) is called `name`.
    Entry { parent: Ino, name: Arc<str> },
    /// `name` is gone; whoever watches it is told.
    Deleted { parent: Ino, child: Ino, name: Arc<str> },
    /// Size, times and bits of an inode.
    Attributes(Ino),
    /// The mount ends.
    Stop,
}

/// Where notices are put.
#[derive(Debug, Clone)]
pub(crate) struct KernelNotices(mpsc::Sender<Notice>);

impl KernelNotices {
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Notice>) {
        let (sender, receiver) = mpsc::channel();
        (Self(sender), receiver)
    }

    /// Never waits.
    pub(crate) fn send(&self, notice: Notice) {
        // Fails only after the thread has ended, and then there is no kernel to tell.
        let _ = self.0.send(notice);
    }
}

/// Notices told together.
const BATCH: usize = 1024;

/// Starts the thread.
pub(crate) fn spawn(notices: mpsc::Receiver<Notice>, notifier: Notifier) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("berth-notify".into()).spawn(move || {
        while let Ok(first) = notices.recv() {
            let mut folders = BTreeSet::new();
            for notice in std::iter::once(first).chain(notices.try_iter().take(BATCH)) {
                if matches!(notice, Notice::Stop) {
                    return;
                }
                if let Notice::Entry { parent, .. } | Notice::Deleted { parent, .. } = &notice {
                    folders.insert(*parent);
                }
                if let Err(error) = tell(&notifier, &notice) {
                    tracing::debug!(?notice, %error, "the kernel did not take a notice");
                }
            }
            // A name the kernel had never heard of changes its folder's times all the same.
            for folder in folders {
                let _ = tell(&notifier, &Notice::Attributes(folder));
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
        Notice::Stop => Ok(()),
    }
}
