//! Body files: large contents, each a file of its own, taken over by the batch that names it.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Content, Inner, JournalError, Op, Shared, Tracked, held::Body, segment};
use crate::upload::Upload;

/// A file beside the log that holds one large content, and how far that is on its way to S3. Derefs to the file.
#[derive(Debug)]
pub(crate) struct BodyFile {
    file: File,
    pub(crate) upload: Upload,
}

impl BodyFile {
    pub(super) fn new(file: File) -> Arc<Self> {
        Arc::new(Self {
            file,
            upload: Upload::default(),
        })
    }
}

impl std::ops::Deref for BodyFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Shared {
    /// The batch's bodies, taken over: all or none.
    pub(super) fn adopt(&self, batch: &[Op], inner: &mut Inner) -> Result<Vec<Option<Arc<Body>>>, JournalError> {
        if !batch.iter().any(|op| matches!(op.content, Some(Content::File(..)))) {
            return Ok(batch.iter().map(|_| None).collect());
        }
        let mut bodies = self.bodies.lock();
        for op in batch {
            if let Some(Content::File(file, len)) = &op.content {
                let known = file.metadata().is_ok_and(|meta| {
                    meta.len() >= *len && bodies.by_inode.get(&meta.ino()).is_some_and(|tracked| tracked.is(file))
                });
                if !known {
                    return Err(JournalError::Foreign { slot: op.slot.clone() });
                }
            }
        }
        let mut adopted = Vec::with_capacity(batch.len());
        for op in batch {
            adopted.push(match &op.content {
                Some(Content::File(file, len)) => {
                    let (inode, disk) = file
                        .metadata()
                        .map(|meta| (meta.ino(), on_disk(&meta)))
                        .unwrap_or_default();
                    bodies.by_inode.get_mut(&inode).map(|tracked| {
                        tracked.body.upgrade().unwrap_or_else(|| {
                            inner.bodies += disk;
                            let body = Arc::new(Body {
                                number: tracked.number,
                                path: tracked.path.clone(),
                                file: file.clone(),
                                len: *len,
                                disk,
                                synced: AtomicBool::new(false),
                                suspect: AtomicBool::new(false),
                                graves: self.graves.clone(),
                            });
                            tracked.body = Arc::downgrade(&body);
                            body
                        })
                    })
                }
                _ => None,
            });
        }
        Ok(adopted)
    }

    pub(super) fn new_body(&self) -> io::Result<Arc<BodyFile>> {
        self.forget_bodies();
        let mut bodies = self.bodies.lock();
        let number = bodies.next_number;
        bodies.next_number += 1;
        let path = segment::path(&self.dir.join("bodies"), number, "body");
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = BodyFile::new(options.open(&path)?);
        let inode = file.metadata()?.ino();
        let tracked = Tracked {
            number,
            path,
            file: Arc::downgrade(&file),
            body: Weak::new(),
        };
        bodies.by_inode.insert(inode, tracked);
        self.names_unsynced.store(true, Ordering::SeqCst);
        Ok(file)
    }

    /// Bytes of bodies that no batch has named yet.
    pub(super) fn open_bodies(&self) -> u64 {
        let bodies = self.bodies.lock();
        let open = bodies
            .by_inode
            .values()
            .filter(|tracked| tracked.body.strong_count() == 0);
        open.filter_map(|tracked| tracked.file.upgrade()?.metadata().ok())
            .map(|meta| on_disk(&meta))
            .sum()
    }

    /// Removes bodies that nobody has, and those whose last record is gone from the disk's point of view.
    pub(super) fn forget_bodies(&self) {
        let durable = self.inner.lock().durable;
        let mut dead: HashSet<u64> = HashSet::new();
        let mut freed = 0;
        self.graves.dead.lock().retain(|(seq, number, path, len)| {
            if *seq > durable {
                return true;
            }
            // One that stays is removed at the next open.
            let _ = fs::remove_file(path);
            dead.insert(*number);
            freed += len;
            false
        });
        let mut bodies = self.bodies.lock();
        let waiting: HashSet<u64> = self.graves.dead.lock().iter().map(|(_, number, ..)| *number).collect();
        bodies.by_inode.retain(|_, tracked| {
            if dead.contains(&tracked.number) {
                return false;
            }
            let unused = tracked.file.strong_count() == 0 && tracked.body.strong_count() == 0;
            if unused && !waiting.contains(&tracked.number) {
                let _ = fs::remove_file(&tracked.path);
                return false;
            }
            true
        });
        drop(bodies);
        let mut inner = self.inner.lock();
        inner.bodies = inner.bodies.saturating_sub(freed);
    }
}

/// Bytes that a file takes on the disk.
pub(super) fn on_disk(meta: &fs::Metadata) -> u64 {
    meta.blocks() * 512
}

impl Tracked {
    fn is(&self, file: &Arc<BodyFile>) -> bool {
        std::ptr::eq(self.file.as_ptr(), Arc::as_ptr(file))
    }
}
