//! What is open: the numbers the kernel names open files and folders by.

use std::{
    array,
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use crate::{file::File, tree::Ino};

/// The number of a handle that is never given out: behind it is nothing.
pub(crate) const NO_FILE: u64 = 0;
/// Tables, so that threads seldom meet at one.
const TABLES: usize = 16;

/// An open file or folder.
#[derive(Debug, Clone)]
pub(crate) enum Opened {
    File(Arc<File>),
    Dir(Arc<OpenDir>),
}

/// Names and inode numbers, in order.
pub(crate) type Listing = Arc<Vec<(Arc<str>, Ino)>>;

/// The listing as it was when it began: names removed while it is read shift nothing.
#[derive(Debug)]
pub(crate) struct OpenDir {
    pub(crate) ino: Ino,
    pub(crate) listing: Mutex<Listing>,
}

/// The tables.
#[derive(Debug)]
pub(crate) struct Handles {
    tables: [Mutex<HashMap<u64, Opened>>; TABLES],
    next: AtomicU64,
}

impl Default for Handles {
    fn default() -> Self {
        Self {
            tables: array::from_fn(|_| Mutex::default()),
            next: AtomicU64::new(1),
        }
    }
}

impl Handles {
    fn table(&self, fh: u64) -> &Mutex<HashMap<u64, Opened>> {
        &self.tables[fh as usize % TABLES]
    }

    pub(crate) fn open(&self, opened: Opened) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        self.table(fh).lock().insert(fh, opened);
        fh
    }

    pub(crate) fn get(&self, fh: u64) -> Option<Opened> {
        self.table(fh).lock().get(&fh).cloned()
    }

    pub(crate) fn close(&self, fh: u64) -> Option<Opened> {
        self.table(fh).lock().remove(&fh)
    }
}
