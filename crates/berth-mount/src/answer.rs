//! What all request functions share: answering at once or later, and what is open.

use std::{future::Future, sync::Arc, time::Duration};

use fuser::{
    Errno, FileAttr, FileHandle, FopenFlags, Generation, OpenAccMode, OpenFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
};

use crate::{
    core::Core,
    file::{Attachment, File},
    handles::{Listing, Opened},
    tree::{Ino, Owner, Tree},
};

/// Inode numbers are never used twice.
pub(crate) const GENERATION: Generation = Generation(0);

/// How long the kernel believes names and attributes where every change of the bucket is told.
const LONG_TTL: Duration = Duration::from_secs(3600);

/// The file system that the session's threads serve.
#[derive(Debug)]
pub(crate) struct BerthFs {
    pub(crate) core: Arc<Core>,
    pub(crate) ttl: Duration,
}

/// An answer that can carry an error.
pub(crate) trait Answer: Send + 'static {
    fn refuse(self, errno: Errno);
}
macro_rules! answers {
    ($($reply:ty),*) => { $(impl Answer for $reply { fn refuse(self, errno: Errno) { self.error(errno); } })* };
}
answers!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyEmpty,
    ReplyEntry,
    ReplyOpen,
    ReplyWrite
);

impl BerthFs {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let believed = core.cfg.dir_ttl;
        // Where every change is told at once, asking again finds nothing new.
        let told = core.store.feed() != berth_store::Feed::List && !believed.is_zero();
        Self {
            ttl: if told { believed.max(LONG_TTL) } else { believed },
            core,
        }
    }

    /// Answers now.
    pub(crate) fn now<A: Answer, T>(reply: A, result: Result<T, Errno>, give: impl FnOnce(A, T)) {
        match result {
            Ok(value) => give(reply, value),
            Err(errno) => reply.refuse(errno),
        }
    }

    /// Answers when the file is saved.
    pub(crate) fn save(&self, file: Arc<File>, reply: ReplyEmpty) {
        let core = self.core.clone();
        match core.save_here(&file) {
            Err(errno) => reply.error(errno),
            Ok(Some(())) => reply.ok(),
            Ok(None) => self.later(reply, async move { core.save(&file).await }, done),
        }
    }

    /// Answers when `work` is done; the FUSE thread goes on.
    pub(crate) fn later<A: Answer, T: Send + 'static>(
        &self,
        reply: A,
        work: impl Future<Output = Result<T, Errno>> + Send + 'static,
        give: impl FnOnce(A, T) + Send + 'static,
    ) {
        self.core.rt.spawn(async move {
            match work.await {
                Ok(value) => give(reply, value),
                Err(errno) => reply.refuse(errno),
            }
        });
    }

    pub(crate) fn tree(&self) -> parking_lot::MutexGuard<'_, Tree> {
        self.core.tree.lock()
    }

    /// The file with number `ino`; the tree is free again.
    pub(crate) fn file(&self, ino: Ino) -> Result<Arc<File>, Errno> {
        self.tree().file(ino)
    }

    fn listing(&self, ino: Ino) -> Result<Listing, Errno> {
        let tree = self.tree();
        let inode = tree.get(ino)?;
        let mut all: Vec<(Arc<str>, Ino)> = vec![(".".into(), ino), ("..".into(), inode.parent)];
        all.extend(
            inode
                .as_dir()?
                .children
                .iter()
                .map(|(name, child)| (name.clone(), *child)),
        );
        Ok(Arc::new(all))
    }

    /// The open folder's listing; read again when the reader starts over.
    pub(crate) fn entries(&self, fh: FileHandle, offset: u64) -> Result<Listing, Errno> {
        let dir = self.core.handle_dir(fh.0)?;
        let mut listing = dir.listing.lock();
        if offset == 0 {
            *listing = self.listing(dir.ino)?;
        }
        Ok(listing.clone())
    }

    /// Opens for reading or writing; `Some`: fetch the content first.
    pub(crate) fn open_file(&self, ino: Ino, flags: OpenFlags, by: u32) -> Result<(Arc<File>, bool), Errno> {
        let file = self.file(ino)?;
        let truncates = flags.0 & libc::O_TRUNC != 0 && flags.acc_mode() != OpenAccMode::O_RDONLY;
        {
            let mut state = file.state();
            // ESTALE makes the kernel look the name up again and open what is there now.
            if state.attachment == Attachment::Replaced {
                return Err(Errno::ESTALE);
            }
            state.opens += 1;
        }
        if truncates {
            self.core.truncate_here(&file, 0, by)?;
        }
        let fetch = !truncates && self.core.wants_pin(&file).is_some();
        Ok((file, fetch))
    }
}

pub(crate) fn entry_reply(ttl: Duration) -> impl FnOnce(ReplyEntry, FileAttr) + Send + 'static {
    move |reply, attr| reply.entry(&ttl, &attr, GENERATION)
}

pub(crate) fn done(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

/// The kernel may keep pages: another content always means another inode. Who only reads has nothing to flush, and spares
/// the round trip at `close`.
pub(crate) fn opened(core: &Core, reply: ReplyOpen, file: Arc<File>, flags: OpenFlags) {
    let keep = FopenFlags::FOPEN_KEEP_CACHE;
    let flags = match flags.acc_mode() {
        OpenAccMode::O_RDONLY => keep | FopenFlags::FOPEN_NOFLUSH,
        _ => keep,
    };
    reply.opened(FileHandle(core.open_handle(Opened::File(file))), flags);
}

pub(crate) fn perm(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// Whom something new belongs to.
pub(crate) fn creator(req: &Request) -> Owner {
    Owner {
        uid: req.uid(),
        gid: req.gid(),
    }
}
