//! The bound on local-only content.
//!
//! `node_modules`, `.git`, logs and editors' temporary files never go to S3: they live in this process's memory. All of
//! them together may hold [`crate::MountConfig::local_max`] bytes; beyond that a write says `ENOSPC`, as a full disk does.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use fuser::Errno;

use crate::LocalUsage;

/// What one file costs beside its bytes: its inode, names and buffers.
const PER_FILE: u64 = 512;

/// The account of all local-only files of a mount.
#[derive(Debug)]
pub(crate) struct LocalBudget {
    max: u64,
    files: AtomicU64,
    bytes: AtomicU64,
}

impl LocalBudget {
    pub(crate) fn new(max: u64) -> Arc<Self> {
        Arc::new(Self {
            max,
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        })
    }

    pub(crate) fn usage(&self) -> LocalUsage {
        LocalUsage {
            files: self.files.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    /// Opens the account of one more file.
    pub(crate) fn open(self: &Arc<Self>) -> Result<Charge, Errno> {
        let files = self.files.fetch_add(1, Ordering::Relaxed) + 1;
        // Born before the check, so that a refusal gives the count back.
        let charge = Charge {
            budget: self.clone(),
            bytes: 0,
        };
        if self.bytes.load(Ordering::Relaxed) + files * PER_FILE > self.max {
            Err(Errno::ENOSPC)
        } else {
            Ok(charge)
        }
    }
}

/// One file's share; given back when dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<LocalBudget>,
    bytes: u64,
}

impl Charge {
    /// Makes the share `bytes`.
    ///
    /// # Errors
    /// `ENOSPC` when all shares would exceed the bound; the share is unchanged then.
    pub(crate) fn set(&mut self, bytes: u64) -> Result<(), Errno> {
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            let files = self.budget.files.load(Ordering::Relaxed);
            let fits = |held: u64| {
                held.checked_add(more)
                    .filter(|all| all.saturating_add(files * PER_FILE) <= self.budget.max)
            };
            self.budget
                .bytes
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
                .map_err(|_| Errno::ENOSPC)?;
        } else {
            self.budget.bytes.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.files.fetch_sub(1, Ordering::Relaxed);
        self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_full_account_refuses_and_gives_back_what_is_dropped() {
        let budget = LocalBudget::new(10_000);
        let mut a = budget.open().unwrap();
        a.set(6_000).unwrap();
        let mut b = budget.open().unwrap();
        assert_eq!(b.set(6_000).unwrap_err().code(), libc::ENOSPC);
        assert_eq!(budget.usage(), LocalUsage { files: 2, bytes: 6_000 });
        drop(a);
        b.set(6_000).unwrap();
        drop(b);
        assert_eq!(budget.usage(), LocalUsage::default());
    }
}
