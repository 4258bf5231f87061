//! Files as they were last saved: what the read-only session shows.
//!
//! Local-only files are never saved; of them it shows what there is.

use std::sync::Arc;

use bytes::Bytes;
use fuser::{Errno, FileAttr};

use crate::{
    cache::CHUNK,
    core::Core,
    file::{Base, Body, File, FileState},
    journal::Held,
    tree::{Ino, Tree},
};

/// How often a read is begun again because the file was saved meanwhile.
const TRIES: usize = 4;

impl FileState {
    /// Whether anything of it was ever saved, or need not be.
    pub(crate) fn is_shown(&self) -> bool {
        self.saved().is_none_or(|saved| !matches!(saved, Saved::Nothing))
    }

    /// What is saved, if something else is in view: written and not closed yet.
    fn saved(&self) -> Option<Saved<'_>> {
        if self.version == self.kept || self.is_local() {
            return None;
        }
        let held = self.held.as_ref().map(Saved::Held);
        Some(held.or(self.base.as_ref().map(Saved::Stored)).unwrap_or(Saved::Nothing))
    }
}

/// The version before the one that is being written.
enum Saved<'a> {
    Held(&'a Arc<Held>),
    Stored(&'a Base),
    Nothing,
}

impl Tree {
    /// Whether the read-only session shows the name of `ino`.
    pub(crate) fn is_shown(&self, ino: Ino) -> bool {
        self.get(ino).is_ok() && self.used(ino).is_none_or(|file| file.state().is_shown())
    }

    /// What `stat` shows of what is saved.
    pub(crate) fn saved_attr(&self, ino: Ino) -> Result<FileAttr, Errno> {
        let mut attr = self.attr(ino)?;
        if let Some(file) = self.used(ino) {
            let state = file.state();
            let size = match state.saved() {
                None | Some(Saved::Nothing) => None,
                Some(Saved::Held(held)) => Some(held.len()),
                Some(Saved::Stored(base)) => Some(base.size),
            };
            if size.is_some() {
                // Programs tell by the time whether a file is another.
                attr.mtime = state.saved_mtime;
                attr.ctime = state.saved_mtime;
            }
            attr.size = size.unwrap_or_else(|| state.size());
            attr.blocks = attr.size.div_ceil(512);
        }
        Ok(attr)
    }
}

impl Core {
    /// Reads what is saved without asking S3; `None` if S3 must be asked.
    pub(crate) fn read_saved_here(&self, file: &File, offset: u64, size: usize) -> Option<Result<Bytes, Errno>> {
        let state = file.state();
        match state.saved() {
            // Of a file that was shown and has nothing saved any more, what there is.
            None | Some(Saved::Nothing) => self.read_state(state, offset, size),
            Some(Saved::Held(held)) => {
                let held = held.clone();
                drop(state);
                Some(held.read(offset, size).map_err(Errno::from))
            }
            Some(Saved::Stored(base)) => self.stored_here(base, None, offset, size),
        }
    }

    /// Reads what is saved, from S3 where needed.
    ///
    /// # Errors
    /// `ESTALE` when S3 has something else there by now, and the old bytes are nowhere: the next `open` gets the new ones.
    pub(crate) async fn read_saved(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        size: usize,
    ) -> Result<Bytes, Errno> {
        let mut asked: Option<Base> = None;
        for _ in 0..TRIES {
            if let Some(here) = self.read_saved_here(file, offset, size) {
                return here;
            }
            let Some(base) = file.state().base.clone() else {
                continue;
            };
            if asked.as_ref() == Some(&base) {
                break;
            }
            if base.size <= CHUNK {
                self.prefetch.ahead(self, file.ino);
            }
            match self.read_stored(&base, offset, size).await {
                Err(errno) if errno.code() == libc::ESTALE => asked = Some(base),
                read => return read,
            }
        }
        if let Some(base) = asked {
            self.reconcile(&base.key).await;
        }
        Err(Errno::ESTALE)
    }

    /// The read-only session's kernel lets go of `count` references. Where content is kept for readers alone, it goes with the
    /// last.
    pub(crate) fn forget_saved(&self, ino: Ino, count: u64) {
        let mut tree = self.tree.lock();
        let read_elsewhere = |file: &File| {
            let state = file.state();
            state.opens > 0 || !matches!(state.body, Body::Stored)
        };
        let unused = !self.cfg.cache_mode.keeps() && tree.used(ino).is_none_or(|file| !read_elsewhere(&file));
        let base = if unused { tree.base(ino) } else { None };
        let forgotten = tree.forget_saved(ino, count);
        drop(tree);
        if let Some(base) = base.filter(|_| forgotten) {
            self.contents.closed(&base);
        }
    }
}
