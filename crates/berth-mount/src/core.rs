//! What all parts of one mount share, and how content comes here from S3.
//!
//! Requests of the kernel arrive on the FUSE threads (`fs.rs`). What needs no S3 is answered there at once; the rest runs
//! as a task of the runtime that started the mount, and the FUSE thread takes the next request. So a slow S3 holds up only
//! those who asked for it.

use std::sync::{Arc, atomic::AtomicBool};

use berth_store::{Store, StoreError};
use bytes::{Bytes, BytesMut};
use fuser::{Errno, FileAttr};
use parking_lot::{Mutex, MutexGuard};

use crate::{
    MountConfig,
    announce::Announcer,
    cache::{CHUNK, Contents, FetchError},
    doubts::Doubts,
    draft::{Draft, SPILL},
    file::{Base, Body, File, FileState},
    handles::{Handles, OpenDir},
    index::IndexWriter,
    journal::{BodyFile, Held, Journal},
    kernel::KernelNotices,
    local::LocalBudget,
    pending::Intents,
    prefetch::Prefetch,
    rules::Rules,
    save::Unsaved,
    sync::Readers,
    tree::{Ino, Node, ROOT, Tree},
    unshown::Record,
};

pub(crate) use crate::handles::Opened;

/// One mount.
pub(crate) struct Core {
    pub(crate) cfg: MountConfig,
    pub(crate) store: Store,
    pub(crate) tree: Mutex<Tree>,
    pub(crate) contents: Arc<Contents>,
    pub(crate) prefetch: Prefetch,
    pub(crate) unsaved: Unsaved,
    pub(crate) intents: Intents,
    pub(crate) readers: Readers,
    pub(crate) doubts: Doubts,
    pub(crate) index: IndexWriter,
    pub(crate) budget: Arc<LocalBudget>,
    pub(crate) kernel: KernelNotices,
    pub(crate) announcer: Arc<Announcer>,
    pub(crate) unshown: Record,
    pub(crate) rules: Rules,
    pub(crate) rt: tokio::runtime::Handle,
    pub(crate) ended: AtomicBool,
    handles: Handles,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("cfg", &self.cfg).finish_non_exhaustive()
    }
}

impl Core {
    pub(crate) fn new(
        cfg: MountConfig,
        store: Store,
        contents: Contents,
        journal: Arc<Journal>,
        kernel: KernelNotices,
    ) -> Arc<Self> {
        let tree = Tree::new(cfg.uid, cfg.gid);
        Arc::new(Self {
            rules: Rules::new(cfg.excludes.clone(), tree.stale.clone()),
            tree: Mutex::new(tree),
            budget: LocalBudget::new(cfg.local_max),
            prefetch: Prefetch::new(cfg.cache_mode, cfg.cache_max),
            contents: Arc::new(contents),
            unsaved: Unsaved::default(),
            intents: Intents::new(journal),
            readers: Readers::default(),
            doubts: Doubts::default(),
            index: IndexWriter::default(),
            kernel,
            announcer: Announcer::new(cfg.announcer.is_some()),
            unshown: Record::default(),
            rt: tokio::runtime::Handle::current(),
            ended: AtomicBool::new(false),
            handles: Handles::default(),
            cfg,
            store,
        })
    }

    pub(crate) fn open_handle(&self, opened: Opened) -> u64 {
        self.handles.open(opened)
    }

    pub(crate) fn close_handle(&self, fh: u64) -> Option<Opened> {
        self.handles.close(fh)
    }

    pub(crate) fn handle_file(&self, fh: u64) -> Result<Arc<File>, Errno> {
        match self.handles.get(fh) {
            Some(Opened::File(file)) => Ok(file),
            _ => Err(Errno::EBADF),
        }
    }

    pub(crate) fn handle_dir(&self, fh: u64) -> Result<Arc<OpenDir>, Errno> {
        match self.handles.get(fh) {
            Some(Opened::Dir(dir)) => Ok(dir),
            _ => Err(Errno::EBADF),
        }
    }

    /// An attribute record, counted as one more reference of the kernel.
    pub(crate) fn entry(&self, tree: &mut Tree, ino: Ino) -> Result<FileAttr, Errno> {
        let attr = tree.attr(ino)?;
        tree.remember(ino);
        Ok(attr)
    }

    /// Says in the log what failed, with the object, and gives the errno for the caller.
    pub(crate) fn failed(&self, what: &str, key: &str, error: &StoreError) -> Errno {
        tracing::warn!(key, %error, "{what}");
        Errno::EIO
    }

    /// Reads without asking S3; `None` if S3 must be asked.
    pub(crate) fn read_here(&self, file: &File, offset: u64, size: usize) -> Option<Result<Bytes, Errno>> {
        self.read_state(file.state(), offset, size)
    }

    /// The same, of a file whose state is locked already.
    pub(crate) fn read_state(
        &self,
        state: MutexGuard<'_, FileState>,
        offset: u64,
        size: usize,
    ) -> Option<Result<Bytes, Errno>> {
        match &state.body {
            Body::Draft(draft) => Some(draft.read(offset, size).map_err(Errno::from)),
            Body::Held(held) => {
                let held = held.clone();
                drop(state);
                Some(held.read(offset, size).map_err(Errno::from))
            }
            Body::Stored => self.stored_here(state.base.as_ref()?, state.pinned.as_ref(), offset, size),
        }
    }

    /// Reads an object of which `pinned`, or the cache, has what is asked for.
    pub(crate) fn stored_here(
        &self,
        base: &Base,
        pinned: Option<&Bytes>,
        offset: u64,
        size: usize,
    ) -> Option<Result<Bytes, Errno>> {
        let end = base.size.min(offset.saturating_add(size as u64));
        if offset >= end {
            return Some(Ok(Bytes::new()));
        }
        if let Some(bytes) = pinned.filter(|bytes| bytes.len() as u64 >= end) {
            return Some(Ok(bytes.slice(offset as usize..end as usize)));
        }
        let chunk = offset / CHUNK;
        if (end - 1) / CHUNK != chunk {
            return None;
        }
        let bytes = self.contents.at_hand(base, chunk)?;
        let start = chunk * CHUNK;
        Some(Ok(bytes.slice((offset - start) as usize..(end - start) as usize)))
    }

    /// Reads, from S3 where needed.
    pub(crate) async fn read(self: &Arc<Self>, file: &Arc<File>, offset: u64, size: usize) -> Result<Bytes, Errno> {
        let base = {
            let state = file.state();
            match (&state.body, &state.base) {
                (Body::Stored, Some(base)) => base.clone(),
                _ => {
                    drop(state);
                    return self.read_here(file, offset, size).unwrap_or(Err(Errno::EIO));
                }
            }
        };
        self.read_stored(&base, offset, size).await
    }

    /// Reads an object, from S3 where needed.
    pub(crate) async fn read_stored(self: &Arc<Self>, base: &Base, offset: u64, size: usize) -> Result<Bytes, Errno> {
        let end = base.size.min(offset.saturating_add(size as u64));
        let mut out = BytesMut::with_capacity((end - offset.min(end)) as usize);
        let mut at = offset;
        while at < end {
            let (chunk, start) = (at / CHUNK, at / CHUNK * CHUNK);
            let bytes = self.chunk(base, chunk).await?;
            let until = end.min(start + bytes.len() as u64);
            if until <= at {
                return Err(Errno::EIO);
            }
            out.extend_from_slice(&bytes[(at - start) as usize..(until - start) as usize]);
            at = until;
        }
        self.read_ahead(base, end);
        Ok(out.freeze())
    }

    /// Whoever reads one chunk of a large file mostly wants the next.
    fn read_ahead(self: &Arc<Self>, base: &Base, at: u64) {
        let next = at / CHUNK + 1;
        if base.size > CHUNK && next * CHUNK < base.size && !self.contents.holds(base, next) {
            let (core, base) = (self.clone(), base.clone());
            self.prefetch.spawn(self, async move {
                // Whoever reads there asks again and hears why not.
                let _ = core.contents.fetch(&core.store, &base, next).await;
            });
        }
    }

    async fn chunk(self: &Arc<Self>, base: &Base, chunk: u64) -> Result<Bytes, Errno> {
        let _somebody_waits = self.prefetch.reading();
        match self.contents.fetch(&self.store, base, chunk).await {
            Ok(bytes) => Ok(bytes),
            // The feed has not told yet. Handlers that hold no file's turn look themselves (`reconcile`).
            Err(FetchError::Changed(_)) => Err(Errno::ESTALE),
            Err(FetchError::Store(e)) => Err(self.failed("cannot read", &base.key, &e)),
        }
    }

    /// Holds a small file's stored bytes while it is open, so that its readers keep them whatever happens in S3.
    pub(crate) async fn pin(self: &Arc<Self>, file: &Arc<File>) -> Result<(), Errno> {
        let Some(base) = self.wants_pin(file) else {
            return Ok(());
        };
        self.prefetch.ahead(self, file.ino);
        let bytes = self.chunk(&base, 0).await?;
        let mut state = file.state();
        if state.base.as_ref() == Some(&base) && matches!(state.body, Body::Stored) {
            state.pinned = Some(bytes);
        }
        Ok(())
    }

    /// Pins from the cache; the base to fetch if it is not there.
    pub(crate) fn wants_pin(&self, file: &File) -> Option<Base> {
        let mut state = file.state();
        let base = match (&state.body, &state.base) {
            (Body::Stored, Some(base)) if state.pinned.is_none() && base.size > 0 && base.size <= CHUNK => base.clone(),
            _ => return None,
        };
        state.pinned = self.contents.at_hand(&base, 0);
        if state.pinned.is_some() { None } else { Some(base) }
    }

    /// Makes the content a draft of its own: fetched if it is in S3, copied if the journal or a save has it.
    pub(crate) async fn bring_here(self: &Arc<Self>, file: &Arc<File>) -> Result<(), Errno> {
        loop {
            let (from, version) = {
                let mut state = file.state();
                if state.make_draft() {
                    return Ok(());
                }
                let from = match (&state.body, &state.base) {
                    (Body::Held(held), _) => Source::Held(held.clone()),
                    // After an `fsync` it could only be had from S3, and is too large to be here as a whole.
                    (Body::Draft(_), _) if state.is_released() => return Err(Errno::EFBIG),
                    (Body::Draft(Draft::Spilled { file, len, .. }), _) => Source::File(file.clone(), *len),
                    (Body::Stored, Some(base)) => Source::S3(base.clone()),
                    _ => return Err(Errno::EIO),
                };
                (from, state.version)
            };
            if from.len() > SPILL {
                self.room_to_write(file, from.len()).await?;
            }
            let draft = self.copy_here(&from).await?;
            let mut state = file.state();
            let same = state.version == version
                && match (&state.body, &from) {
                    (Body::Stored, Source::S3(base)) => state.base.as_ref().is_some_and(|now| now.etag == base.etag),
                    (Body::Held(now), Source::Held(then)) => Arc::ptr_eq(now, then),
                    (Body::Draft(now), Source::File(..)) => now.is_shared(),
                    _ => false,
                };
            if same {
                state.body = Body::Draft(draft);
                return Ok(());
            }
        }
    }

    async fn copy_here(self: &Arc<Self>, from: &Source) -> Result<Draft, Errno> {
        let journal = self.intents.journal.clone();
        let (file, len) = match from {
            Source::S3(base) => return self.fetch_draft(base).await,
            Source::File(file, len) => (file.clone(), *len),
            Source::Held(held) => match held.as_file() {
                Some(file) => (file, held.len()),
                None => {
                    let bytes = held.read(0, held.len() as usize).map_err(Errno::from)?;
                    return Ok(Draft::from_bytes(&bytes));
                }
            },
        };
        let copied = tokio::task::spawn_blocking(move || Draft::copy_of(&file, len, &journal)).await;
        copied.map_err(|_| Errno::EIO)?.map_err(Errno::from)
    }

    async fn fetch_draft(self: &Arc<Self>, base: &Base) -> Result<Draft, Errno> {
        let mut draft = Draft::empty();
        for chunk in 0..base.size.div_ceil(CHUNK) {
            let bytes = self.chunk(base, chunk).await?;
            draft
                .write(chunk * CHUNK, &bytes, Some(&self.intents.journal))
                .map_err(Errno::from)?;
        }
        Ok(draft)
    }

    /// The last descriptor of `file` may be gone: what was held for descriptors is let go.
    pub(crate) fn closed(self: &Arc<Self>, file: &Arc<File>) {
        let unsaved = {
            let mut state = file.state();
            state.opens = state.opens.saturating_sub(1);
            if state.opens > 0 {
                return;
            }
            state.settle();
            if let Some(base) = &state.base {
                self.contents.closed(base);
            }
            state.is_unsaved()
        };
        if unsaved {
            // Pages of a shared mapping are written after the last flush.
            let (core, file) = (self.clone(), file.clone());
            self.rt.spawn(async move { core.save(&file).await.is_ok() });
        }
    }

    /// The workspace a key belongs to; `None` for the root itself and for files at the top.
    pub(crate) fn workspace_of(&self, tree: &Tree, key: &str) -> Option<String> {
        let (name, rest) = key
            .split_once('/')
            .map_or((key, None), |(name, rest)| (name, Some(rest)));
        let top = tree.child(ROOT, name).ok()??;
        let inode = tree.get(top).ok()?;
        let is_folder = matches!(inode.node, Node::Dir(_)) || rest.is_some();
        (is_folder && !inode.local).then(|| name.to_owned())
    }
}

/// Where content comes from.
enum Source {
    S3(Base),
    File(Arc<BodyFile>, u64),
    Held(Arc<Held>),
}

impl Source {
    fn len(&self) -> u64 {
        match self {
            Self::S3(base) => base.size,
            Self::File(_, len) => *len,
            Self::Held(held) => held.len(),
        }
    }
}

/// What a path is, for the question whether it is local-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    File,
    Dir,
    Symlink,
    /// No object can be one.
    Special,
}

impl Shape {
    pub(crate) fn of(node: &Node) -> Self {
        match node {
            Node::Dir(_) => Self::Dir,
            Node::Symlink(_) => Self::Symlink,
            Node::File(_) => Self::File,
            Node::Special(..) => Self::Special,
        }
    }
}
