//! Telling the read-only session's kernel what it must forget.
//!
//! One thread does it and holds no lock meanwhile, as with the other session (`kernel.rs`). It is another thread because it
//! waits for reads under way of what it drops, and those may wait for S3.
//!
//! An answer that is on its way to the kernel while its subject changes must not outlive the change:
//! - the kernel looks names up, and enters what comes of it, under the folder's lock, for which a notice about a name waits;
//! - so attributes are dropped after such a notice about their folder: an inode that was just looked up is then there;
//! - an answer to a question about attributes is thrown away by the kernel if the inode was invalidated meanwhile;
//! - a page that is being read is locked, and dropped when it has come.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use fuser::{INodeNo, Notifier};
use tokio::sync::oneshot;

use crate::tree::Ino;

/// Something for the thread to do.
#[derive(Debug)]
pub(crate) enum Told {
    /// What `folder` (in `above`) has under `name` is another; `gone`: what was removed there.
    Name {
        above: Ino,
        folder: Ino,
        name: Arc<str>,
        gone: Option<Ino>,
    },
    /// Attributes, and perhaps bytes, of an inode in `folder` are others.
    Inode { folder: Ino, ino: Ino, pages: bool },
    /// Somebody wants to know when all before this has been told.
    Mark(oneshot::Sender<()>),
    /// The mount ends.
    Stop,
}

/// Notices told together.
const BATCH: usize = 1024;
/// No file has this name: a notice about it only waits for the folder's lock.
const NO_NAME: &str = "/";

/// What a batch comes to.
#[derive(Debug, Default)]
struct Batch {
    names: HashSet<(Ino, Arc<str>)>,
    gone: Vec<(Ino, Ino, Arc<str>)>,
    /// Folders whose lock is waited for.
    folders: BTreeSet<Ino>,
    /// Inodes, and whether their pages go too.
    inodes: BTreeMap<Ino, bool>,
    marks: Vec<oneshot::Sender<()>>,
    last: bool,
}

impl Batch {
    fn add(&mut self, told: Told) {
        match told {
            Told::Name {
                above,
                folder,
                name,
                gone,
            } => {
                // Its times, and a folder's number of links.
                self.folders.insert(above);
                self.inodes.entry(folder).or_default();
                match gone {
                    Some(ino) => self.gone.push((folder, ino, name)),
                    None => drop(self.names.insert((folder, name))),
                }
            }
            Told::Inode { folder, ino, pages } => {
                self.folders.insert(folder);
                *self.inodes.entry(ino).or_default() |= pages;
            }
            Told::Mark(mark) => self.marks.push(mark),
            Told::Stop => self.last = true,
        }
    }

    /// Tells all of it. An inode or name that the kernel does not have is no error.
    fn tell(self, notifier: &Notifier) -> io::Result<()> {
        let mut result = Ok(());
        let mut note = |told: io::Result<()>| {
            if told.is_err() {
                result = told;
            }
        };
        for (folder, ino, name) in &self.gone {
            let (parent, name) = (INodeNo(*folder), name.as_ref().as_ref());
            let told = notifier.delete(parent, INodeNo(*ino), name);
            // ENOTEMPTY, EBUSY: the kernel will not drop it as deleted; it must at least ask again.
            note(told.or_else(|_| notifier.inval_entry(parent, name)));
        }
        for (folder, name) in &self.names {
            note(notifier.inval_entry(INodeNo(*folder), name.as_ref().as_ref()));
        }
        for folder in self.folders {
            note(notifier.inval_entry(INodeNo(folder), NO_NAME.as_ref()));
        }
        for (ino, pages) in self.inodes {
            // A negative offset leaves the pages.
            let from = if pages { 0 } else { -1 };
            note(notifier.inval_inode(INodeNo(ino), from, 0));
        }
        for mark in self.marks {
            // Who asked may have gone away.
            let _ = mark.send(());
        }
        result
    }
}

/// Starts the thread.
pub(crate) fn spawn(notices: mpsc::Receiver<Told>, notifier: Notifier) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("berth-source".into()).spawn(move || {
        while let Ok(first) = notices.recv() {
            let mut batch = Batch::default();
            std::iter::once(first)
                .chain(notices.try_iter().take(BATCH))
                .for_each(|told| batch.add(told));
            let last = batch.last;
            if let Err(error) = batch.tell(&notifier) {
                tracing::debug!(%error, "the kernel did not take a notice of the read-only session");
            }
            if last {
                return;
            }
        }
    })
}
