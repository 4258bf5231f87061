//! Telling watchers (inotify) what was changed elsewhere.
//!
//! The kernel raises inotify events for system calls on this host and for nothing else; what FUSE offers to invalidate names and
//! attributes raises none. So a helper process makes a system call on the mount for each change that came from elsewhere, and
//! the file system answers it without doing anything:
//!
//! | change | system call | event | what the file system answers to the helper |
//! | --- | --- | --- | --- |
//! | content | `open` for writing, `futimens` with the modification time alone, `close` | `IN_MODIFY`, `IN_CLOSE_WRITE` | the attributes as they are |
//! | bits, owner, times | `utimensat` with both times | `IN_ATTRIB` | the same |
//! | new name | `mknod`, `mkdir`, `symlink` | `IN_CREATE` | no such name; then the node that is there already |
//! | removed name | `unlink`, `rmdir` | `IN_DELETE` | the removed node; then success |
//!
//! ```text
//!   remote.rs ─▶ kernel.rs: forget this ─▶ queue ─▶ runner.rs: order ─▶ helper.rs ─▶ kernel ─▶ fs.rs: is it the helper? ─▶ here
//!                                          (bounded)    └──── report ◀──┘ (another process)
//! ```
//! It is another process because a thread that waits for its own process's mount cannot be killed. The file system knows it by
//! its process id; **no request of it ever changes anything**. One order is under way at a time ([`Current`]), so every
//! request of the helper can be compared with what it was sent for: whatever else it asks is answered truthfully or refused.
//! What others see of a name meanwhile is the truth too: between the helper's look-up and its call the folder is locked in the
//! kernel, and what it was told may be believed for no time at all, so everybody else asks again.
//!
//! A folder that the kernel does not know has no watchers: what happens there is not announced.

pub(crate) mod helper;
pub(crate) mod lineage;
pub(crate) mod order;
pub(crate) mod runner;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{Errno, FileAttr, FileType, INodeNo};
use parking_lot::Mutex;

use crate::{
    core::Core,
    kernel::Notice,
    tree::{Ino, Inode, Node, Tree},
};
use order::{Act, Kind, Order, Touch};

/// What may wait to be announced. More at once than this is dropped: watchers that want every event have lost some long before
/// (`fs.inotify.max_queued_events` is 16,384).
const QUEUE: usize = 8192;
/// How long the kernel may believe what only the helper is told.
pub(crate) const NEVER: Duration = Duration::ZERO;

/// Something to announce. What is announced is looked up when its turn comes, so what came between does no harm.
#[derive(Debug)]
pub(crate) enum Announcement {
    /// Somebody else changed what `parent` has under `name`; `was`: what it had before.
    Name {
        parent: Ino,
        name: Arc<str>,
        was: Option<(Ino, FileType)>,
    },
    /// Somebody else changed bits, owner or times.
    Attributes(Ino),
    /// A file was saved through the mount: the kernel tells those who watch it by what it is, not by what it was.
    Saved(Ino),
    /// A file was removed, and these were it once.
    Gone(Vec<Ino>),
    /// There is no more: the mount ends.
    End,
}

/// The order that is under way.
#[derive(Debug)]
struct Current {
    parent: Ino,
    name: Arc<str>,
    act: Act,
    /// What was removed, as the helper shall see it.
    ghost: Option<FileAttr>,
    /// Whether the helper was told what it does not see otherwise: that a name is free, or still there.
    told: bool,
    /// Whether it was given the node of the name it makes: from then on it sees the name.
    made: bool,
    gone: Vec<Ino>,
}

/// Where announcements are put, and what the file system must know of the helper.
#[derive(Debug)]
pub(crate) struct Announcer {
    queue: SyncSender<Announcement>,
    waiting: Mutex<Option<Receiver<Announcement>>>,
    /// The helper's process id; 0: there is none, and no request comes from it.
    pid: AtomicU32,
    current: Mutex<Option<Current>>,
    /// Whether there will ever be a helper.
    wanted: bool,
    stopping: AtomicBool,
    dropping: AtomicBool,
    dropped: AtomicU64,
}

impl Announcer {
    pub(crate) fn new(wanted: bool) -> Arc<Self> {
        let (queue, waiting) = sync_channel(QUEUE);
        Arc::new(Self {
            queue,
            waiting: Mutex::new(Some(waiting)),
            pid: AtomicU32::new(0),
            current: Mutex::default(),
            wanted,
            stopping: AtomicBool::new(false),
            dropping: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        })
    }

    /// Never waits: what finds no room is dropped, counted, and said once until there is room again.
    pub(crate) fn put(&self, announcement: Announcement) {
        if !self.wanted || self.stopping.load(Ordering::Relaxed) {
            return;
        }
        match self.queue.try_send(announcement) {
            Ok(()) => self.dropping.store(false, Ordering::Relaxed),
            Err(TrySendError::Full(_)) => {
                self.drop_one();
                if !self.dropping.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        most = QUEUE,
                        "more changes made elsewhere at once than can be announced: some raise no inotify event"
                    );
                }
            }
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Changes that raised no event because there were too many, or no helper.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// No more orders from now on. The helper goes when it has answered the last.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Where the queue is full, nobody waits for it to have something.
        let _ = self.queue.try_send(Announcement::End);
    }

    /// The order that was under way is done.
    fn done(&self) {
        *self.current.lock() = None;
    }

    /// Whether a request with this process id is the helper's.
    pub(crate) fn is(&self, pid: u32) -> bool {
        pid != 0 && pid == self.pid.load(Ordering::Relaxed)
    }

    /// What the helper is to see of a name, where that is not the truth: that it is free, or what it was.
    pub(crate) fn lookup(&self, tree: &Tree, parent: Ino, name: &str) -> Option<Result<FileAttr, Errno>> {
        let mut current = self.current.lock();
        let current = current.as_mut().filter(|c| c.parent == parent && &*c.name == name)?;
        let there = tree.child(parent, name).ok()?;
        match (current.act, there) {
            (Act::Make(kind), Some(ino)) if !current.made && kind_of(tree.get(ino).ok()?) == Some(kind) => {
                current.told = true;
                Some(Err(Errno::ENOENT))
            }
            (Act::Remove(_), None) => {
                current.told = true;
                Some(Ok(current.ghost?))
            }
            _ => None,
        }
    }

    /// Whether the removal of the name is being announced: that it is not there may then be believed by nobody for long, else the
    /// kernel would not ask when the helper comes.
    pub(crate) fn removes(&self, parent: Ino, name: &str) -> bool {
        let current = self.current.lock();
        let removes = |c: &Current| matches!(c.act, Act::Remove(_)) && c.parent == parent && &*c.name == name;
        current.as_ref().is_some_and(removes)
    }

    /// Whether the helper's making or removing of a name is what it was sent for; else nothing happens.
    fn agrees(&self, parent: Ino, name: &str, act: Act) -> Result<(), Errno> {
        let mut current = self.current.lock();
        match &mut *current {
            Some(c) if c.parent == parent && &*c.name == name && c.act == act && c.told => {
                c.made = true;
                Ok(())
            }
            _ => Err(Errno::EBUSY),
        }
    }

    /// Attributes as the helper, and by it the kernel, is to see them: an inode that was replaced and not removed still has its
    /// name, else those who watch it would be told that it is gone.
    pub(crate) fn attr(&self, tree: &Tree, ino: Ino) -> Result<FileAttr, Errno> {
        let mut attr = tree.attr(ino)?;
        let current = self.current.lock();
        let gone = current.as_ref().is_some_and(|current| current.gone.contains(&ino));
        if attr.nlink == 0 && !gone {
            attr.nlink = 1;
        }
        Ok(attr)
    }
}

impl Core {
    /// Announces that `parent` has something else under `name` than it had (`was`), to those who may be watching. Comes after the
    /// notice by which the kernel forgets the name.
    pub(crate) fn announce_name(
        &self,
        tree: &Tree,
        (parent, name): (Ino, &Arc<str>),
        was: Option<(Ino, FileType)>,
        notices: &mut Vec<Notice>,
    ) {
        let watched = tree.is_known(parent) || {
            let now = tree.child(parent, name).ok().flatten();
            now.is_some_and(|ino| !tree.lineage.of(ino).is_empty())
        };
        if watched {
            let name = name.clone();
            notices.push(Notice::Announce(Announcement::Name { parent, name, was }));
        }
    }

    /// Announces that bits, owner or times of `ino` are others.
    pub(crate) fn announce_attributes(&self, tree: &Tree, ino: Ino, notices: &mut Vec<Notice>) {
        let parent = tree.get(ino).map_or(ino, |inode| inode.parent);
        if tree.is_known(ino) || tree.is_known(parent) {
            notices.push(Notice::Announce(Announcement::Attributes(ino)));
        }
    }

    /// Announces that `ino` is removed to those who watch it by what it was before.
    pub(crate) fn announce_end(&self, tree: &mut Tree, ino: Ino) {
        let gone = tree.lineage.ended(ino);
        if !gone.is_empty() {
            self.kernel.send(tree, Notice::Announce(Announcement::Gone(gone)));
        }
    }

    /// The helper's `mknod`, `mkdir` or `symlink`: what is there already.
    pub(crate) fn announced_make(&self, parent: Ino, name: &str, kind: Kind) -> Result<FileAttr, Errno> {
        let mut tree = self.tree.lock();
        self.announcer.agrees(parent, name, Act::Make(kind))?;
        let ino = tree.child(parent, name)?.ok_or(Errno::EBUSY)?;
        if kind_of(tree.get(ino)?) != Some(kind) {
            return Err(Errno::EBUSY);
        }
        self.entry(&mut tree, ino)
    }

    /// The helper's `unlink` or `rmdir`, of what is gone already.
    pub(crate) fn announced_removal(&self, parent: Ino, name: &str, dir: bool) -> Result<(), Errno> {
        let agrees = |kind| self.announcer.agrees(parent, name, Act::Remove(kind));
        if dir {
            agrees(Kind::Dir)
        } else {
            agrees(Kind::File).or_else(|_| agrees(Kind::Symlink))
        }
    }

    /// What has to be done for an announcement, as things are now; `None`: nothing, or nobody can be watching.
    fn order(&self, device: u64, announcement: &Announcement) -> Option<Order> {
        let tree = self.tree.lock();
        let (order, ghost) = match announcement {
            Announcement::Name { parent, name, was } => self.order_for_name(&tree, *parent, name, *was)?,
            Announcement::Attributes(ino) => (order_for_attributes(&tree, *ino)?, None),
            Announcement::Saved(ino) => {
                let order = Order {
                    touch: Some(touch(&tree, *ino, false)?),
                    former: tree.lineage.of(*ino).to_vec(),
                    ..nothing()
                };
                (order, None)
            }
            Announcement::Gone(gone) => {
                let gone = gone.iter().copied().filter(|ino| tree.get(*ino).is_ok()).collect();
                (Order { gone, ..nothing() }, None)
            }
            Announcement::End => return None,
        };
        if order.act == Act::Nothing && order.former.is_empty() && order.gone.is_empty() {
            return None;
        }
        *self.announcer.current.lock() = Some(Current {
            parent: order.folder.1,
            name: order.name.as_str().into(),
            act: order.act,
            ghost,
            told: false,
            made: false,
            gone: order.gone.clone(),
        });
        Some(Order { device, ..order })
    }

    fn order_for_name(
        &self,
        tree: &Tree,
        parent: Ino,
        name: &str,
        was: Option<(Ino, FileType)>,
    ) -> Option<(Order, Option<FileAttr>)> {
        let now = tree.child(parent, name).ok()?;
        let order = |act| {
            Some(Order {
                folder: (tree.key(parent).ok()?, parent),
                name: name.to_owned(),
                act,
                ..nothing()
            })
        };
        let Some(ino) = now else {
            let (ino, kind) = was?;
            if !tree.is_known(parent) {
                return None;
            }
            let kind = kind_of_type(kind)?;
            return Some((order(Act::Remove(kind))?, Some(self.ghost(tree, ino, kind))));
        };
        let inode = tree.get(ino).ok()?;
        let kind = kind_of(inode).filter(|_| !inode.local)?;
        let same = was.is_some_and(|(_, was)| kind_of_type(was) == Some(kind));
        let act = match (tree.is_known(parent), same) {
            (true, true) => Act::Touch,
            (true, false) => Act::Make(kind),
            // Its folder is watched by nobody, but perhaps the file itself.
            (false, _) => Act::Nothing,
        };
        let wrote = kind == Kind::File || act == Act::Touch;
        let order = Order {
            touch: if wrote { touch(tree, ino, false) } else { None },
            former: tree.lineage.of(ino).to_vec(),
            ..order(act)?
        };
        Some((order, None))
    }

    /// What is removed, as the helper is to find it.
    fn ghost(&self, tree: &Tree, ino: Ino, kind: Kind) -> FileAttr {
        let (kind, nlink) = match kind {
            Kind::File => (FileType::RegularFile, 1),
            Kind::Dir => (FileType::Directory, 2),
            Kind::Symlink => (FileType::Symlink, 1),
        };
        let attr = tree.attr(ino).unwrap_or(FileAttr {
            ino: INodeNo(ino),
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0,
            nlink,
            uid: self.cfg.uid,
            gid: self.cfg.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        });
        FileAttr { nlink, ..attr }
    }
}

/// An order about nothing yet.
fn nothing() -> Order {
    Order {
        device: 0,
        folder: (String::new(), 0),
        name: String::new(),
        act: Act::Nothing,
        touch: None,
        former: Vec::new(),
        gone: Vec::new(),
    }
}

fn order_for_attributes(tree: &Tree, ino: Ino) -> Option<Order> {
    let inode = tree.get(ino).ok()?;
    if !inode.linked || !(tree.is_known(inode.parent) || tree.is_known(ino)) {
        return None;
    }
    Some(Order {
        folder: (tree.key(inode.parent).ok()?, inode.parent),
        name: inode.name.to_string(),
        act: Act::Touch,
        touch: Some(touch(tree, ino, true)?),
        former: tree.lineage.of(ino).to_vec(),
        ..nothing()
    })
}

/// How to touch what has the number `ino`. An executable is not opened for writing: who starts it at that moment would meet
/// `ETXTBSY`.
fn touch(tree: &Tree, ino: Ino, attributes: bool) -> Option<Touch> {
    let attr = tree.attr(ino).ok()?;
    Some(Touch {
        ino,
        mtime: timespec(attr.mtime),
        attributes,
        close: !attributes && attr.perm & 0o111 == 0,
    })
}

fn timespec(time: SystemTime) -> (i64, i64) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (after.as_secs() as i64, i64::from(after.subsec_nanos())),
        // No matter: the answer has the true one.
        Err(_) => (0, 0),
    }
}

fn kind_of(inode: &Inode) -> Option<Kind> {
    match &inode.node {
        Node::File(_) => Some(Kind::File),
        Node::Dir(_) => Some(Kind::Dir),
        Node::Symlink(_) => Some(Kind::Symlink),
        Node::Special(..) => None,
    }
}

fn kind_of_type(kind: FileType) -> Option<Kind> {
    match kind {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Dir),
        FileType::Symlink => Some(Kind::Symlink),
        _ => None,
    }
}
